//! The power goes at any step: what was said to be stored is there, and the store is whole.
//!
//! Every step of some work is written down. Then, for each step, trees are made of what a disk may have by then, and opened: what was synced is there;
//! of the rest, each name that was given or taken away may have got to the disk or not, apart from all others, and each file may be empty, torn, or as
//! it was. That is more than journalling file systems lose. That it finds what a missing sync does is tested, too.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nspool::image::store::{Options, Step, Steps, Store};

use super::images::{Image, in_memory, name, open};

#[derive(Clone, Debug, PartialEq)]
enum Op {
    MakeFolder(PathBuf),
    MakeFile(PathBuf),
    /// With all that is in the file afterwards.
    Write(PathBuf, Vec<u8>),
    SyncFile(PathBuf),
    SyncFolder(PathBuf),
    Link(PathBuf, PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

/// Writes down each step.
#[derive(Debug)]
struct Recorder {
    base: PathBuf,
    log: Mutex<Vec<Op>>,
}

impl Recorder {
    /// What the last write has written can be read only now.
    fn catch_up(&self, log: &mut [Op]) {
        if let Some(Op::Write(path, bytes)) = log.last_mut() {
            *bytes = std::fs::read(self.base.join(path)).unwrap();
        }
    }

    fn length(&self) -> usize {
        let mut log = self.log.lock().unwrap();
        self.catch_up(&mut log);
        log.len()
    }
}

impl Steps for Recorder {
    fn before(&self, step: Step<'_>) -> io::Result<()> {
        let of = |path: &Path| path.strip_prefix(&self.base).unwrap().to_owned();
        let mut log = self.log.lock().unwrap();
        self.catch_up(&mut log);
        log.push(match step {
            Step::MakeFolder(path) => Op::MakeFolder(of(path)),
            Step::MakeFile(path) => Op::MakeFile(of(path)),
            Step::Write(path) => Op::Write(of(path), Vec::new()),
            Step::SyncFile(path) => Op::SyncFile(of(path)),
            Step::SyncFolder(path) => Op::SyncFolder(of(path)),
            Step::Link { from, to } => Op::Link(of(from), of(to)),
            Step::Rename { from, to } => Op::Rename(of(from), of(to)),
            Step::RemoveFile(path) | Step::RemoveFolder(path) => Op::Remove(of(path)),
        });
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Node {
    File(usize),
    Folder(usize),
}

type Names = BTreeMap<String, Node>;

#[derive(Clone, Default)]
struct Folder {
    now: Names,
    synced: Names,
    /// What came after the last sync.
    since: Vec<(String, Option<Node>)>,
}

#[derive(Clone, Default)]
struct File {
    now: Vec<u8>,
    synced: Vec<u8>,
}

/// A disk, as programs see it and as it would be after a power cut. Folder 0 was there before.
#[derive(Clone)]
struct SimulatedDisk {
    folders: Vec<Folder>,
    files: Vec<File>,
}

/// What of the rest got there.
#[derive(Clone, Debug)]
enum Fate {
    Nothing,
    Everything,
    Dice(u64),
}

impl SimulatedDisk {
    fn new() -> Self {
        Self { folders: vec![Folder::default()], files: Vec::new() }
    }

    fn look(&self, path: &Path) -> Option<Node> {
        let mut at = Node::Folder(0);
        for part in path.iter() {
            let Node::Folder(folder) = at else { return None };
            at = *self.folders[folder].now.get(part.to_str().unwrap())?;
        }
        Some(at)
    }

    fn folder(&mut self, path: &Path) -> &mut Folder {
        match self.look(path) {
            Some(Node::Folder(folder)) => &mut self.folders[folder],
            other => panic!("{}: {other:?}", path.display()),
        }
    }

    fn file(&mut self, path: &Path) -> &mut File {
        match self.look(path) {
            Some(Node::File(file)) => &mut self.files[file],
            other => panic!("{}: {other:?}", path.display()),
        }
    }

    fn set(&mut self, path: &Path, node: Option<Node>) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let folder = self.folder(path.parent().unwrap());
        match node {
            Some(node) => drop(folder.now.insert(name.clone(), node)),
            None => drop(folder.now.remove(&name)),
        }
        folder.since.push((name, node));
    }

    /// A step that the system refused is in the log as well: it finds nothing, or what is there already.
    fn apply(&mut self, op: &Op) {
        match op {
            Op::MakeFolder(path) if self.look(path).is_none() => {
                self.folders.push(Folder::default());
                self.set(path, Some(Node::Folder(self.folders.len() - 1)));
            }
            Op::MakeFolder(_) => {}
            Op::MakeFile(path) => match self.look(path) {
                Some(_) => self.file(path).now.clear(),
                None => {
                    self.files.push(File::default());
                    self.set(path, Some(Node::File(self.files.len() - 1)));
                }
            },
            Op::Write(path, bytes) => self.file(path).now.clone_from(bytes),
            Op::SyncFile(path) => {
                let file = self.file(path);
                file.synced.clone_from(&file.now);
            }
            Op::SyncFolder(path) => {
                let folder = self.folder(path);
                folder.synced.clone_from(&folder.now);
                folder.since.clear();
            }
            Op::Link(from, to) => {
                if let (Some(node), None) = (self.look(from), self.look(to)) {
                    self.set(to, Some(node));
                }
            }
            Op::Rename(from, to) => {
                let node = self.look(from);
                // Of two names of one file neither goes.
                if node.is_some() && node != self.look(to) {
                    self.set(to, node);
                    self.set(from, None);
                }
            }
            Op::Remove(path) => self.set(path, None),
        }
    }

    /// Writes down there what is on the disk after a power cut.
    fn write_out(&self, folder: usize, to: &Path, fate: &Fate, dice: &mut fastrand::Rng) {
        let of = &self.folders[folder];
        let mut names = of.synced.clone();
        for (name, node) in &of.since {
            let is_there = match fate {
                Fate::Nothing => false,
                Fate::Everything => true,
                Fate::Dice(_) => dice.bool(),
            };
            if is_there {
                match node {
                    Some(node) => drop(names.insert(name.clone(), *node)),
                    None => drop(names.remove(name)),
                }
            }
        }
        std::fs::create_dir_all(to).unwrap();
        for (name, node) in names {
            let path = to.join(name);
            match node {
                Node::Folder(folder) => self.write_out(folder, &path, fate, dice),
                Node::File(file) => std::fs::write(path, self.contents(&self.files[file], fate, dice)).unwrap(),
            }
        }
    }

    fn contents(&self, file: &File, fate: &Fate, dice: &mut fastrand::Rng) -> Vec<u8> {
        if file.now == file.synced {
            return file.now.clone();
        }
        match (fate, dice.u8(..4)) {
            (Fate::Nothing, _) | (Fate::Dice(_), 0) => file.synced.clone(),
            (Fate::Everything, _) | (Fate::Dice(_), 1) => file.now.clone(),
            (Fate::Dice(_), 2) => vec![0; file.now.len()],
            (Fate::Dice(_), _) => file.now[..dice.usize(..=file.now.len())].to_vec(),
        }
    }
}

type Visible = BTreeMap<String, String>;

fn visible(store: &Store) -> Result<Visible, String> {
    let images = store.images().map_err(|error| error.to_string())?;
    Ok(images.into_iter().flat_map(|image| image.names.clone().into_iter().map(move |name| (name, image.id.to_string()))).collect())
}

/// The steps of some work, and what was to be seen after so many of them.
struct Story {
    log: Vec<Op>,
    marks: Vec<(usize, Visible)>,
}

fn told() -> Story {
    let base = in_memory();
    let recorder = Arc::new(Recorder { base: base.path().to_owned(), log: Mutex::default() });
    let mut marks = vec![(0, Visible::new())];
    let (one, two) = (Image::new(&[1, 2], 700), Image::new(&[1, 3], 700));
    let store = Store::open(&base.path().join("lib/images"), Options { steps: Some(recorder.clone()), ..Options::default() }).unwrap();
    let mut mark = || marks.push((recorder.length(), visible(&store).unwrap()));
    mark();
    let layout = in_memory();
    two.layout(layout.path(), Some("c/adopts:1"), false);
    store.import_tar(&*one.saved(&["a/fn:1", "a/moves:1"]), None).unwrap();
    mark();
    store.import_tar(&*two.saved(&["b/fn:1", "a/moves:1"]), None).unwrap();
    mark();
    store.remove(&name("a/fn:1")).unwrap();
    mark();
    store.sweep().unwrap();
    mark();
    store.import_folder(layout.path(), None).unwrap();
    mark();
    store.remove(&name("b/fn:1")).unwrap();
    mark();
    store.import_tar(&*one.saved(&["a/fn:1"]), None).unwrap();
    mark();
    drop(Store::open(&base.path().join("lib/images"), Options { steps: Some(recorder.clone()), ..Options::default() }));
    mark();
    let log = recorder.log.lock().unwrap().clone();
    Story { log, marks }
}

impl Story {
    /// Opens what is left at each step; the first thing that is wrong.
    fn survives(&self, forgotten: impl Fn(&Op) -> bool, dices: u64) -> Result<usize, String> {
        let mut disk = SimulatedDisk::new();
        let mut trees = 0;
        for step in 0..=self.log.len() {
            let fates = [Fate::Nothing, Fate::Everything].into_iter().chain((0..dices).map(Fate::Dice));
            for fate in fates {
                self.look(&disk, step, &fate).map_err(|why| format!("step {step} ({:?}), {fate:?}: {why}", self.log.get(step)))?;
                trees += 1;
            }
            if let Some(op) = self.log.get(step).filter(|op| !forgotten(op)) {
                disk.apply(op);
            }
        }
        Ok(trees)
    }

    fn look(&self, disk: &SimulatedDisk, step: usize, fate: &Fate) -> Result<(), String> {
        let seed = if let Fate::Dice(seed) = fate { *seed } else { 0 };
        let dir = in_memory();
        disk.write_out(0, dir.path(), fate, &mut fastrand::Rng::with_seed(seed * 1_000_003 + step as u64));
        let store = Store::open(&dir.path().join("lib/images"), Options::default()).map_err(|error| format!("{error:?}"))?;
        let check = |when: &str| {
            let verified = store.verify().map_err(|error| error.to_string())?;
            if verified.faults.is_empty() { Ok(()) } else { Err(format!("{when}: {:?}", verified.faults)) }
        };
        check("at first")?;
        let seen = visible(&store)?;
        // What was acknowledged last, or what is on its way.
        let done = self.marks.iter().rposition(|(at, _)| *at <= step).unwrap();
        let may_be = self.marks[done..].iter().take(2).map(|(_, visible)| visible).collect::<Vec<_>>();
        let exactly = self.marks[done].0 == step;
        if !may_be.iter().take(if exactly { 1 } else { 2 }).any(|may_be| **may_be == seen) {
            return Err(format!("{seen:?} is to be seen, and it should be one of {may_be:?}"));
        }
        store.sweep().map_err(|error| error.to_string())?;
        check("after a sweep")?;
        let next = Image::new(&[3, 4], 50);
        store.import_tar(&*next.saved(&["next/fn:1"]), None).map_err(|error| error.to_string())?;
        check("after an import")
    }
}

#[test]
fn a_power_cut_at_any_step_loses_nothing_that_was_acknowledged() {
    let story = told();
    let trees = story.survives(|_| false, 4).unwrap();
    assert!(trees > 800, "{trees}");
}

#[test]
fn the_story_notices_each_sync_that_is_missing() {
    let story = told();
    let is_blob = |path: &Path| path.file_name().is_some_and(|name| name.len() == 64);
    let of_blobs = |op: &Op| matches!(op, Op::SyncFile(path) if is_blob(path));
    let of_indexes = |op: &Op| matches!(op, Op::SyncFile(path) if path.ends_with("index.json"));
    let of_folder = |folder: &'static str| move |op: &Op| matches!(op, Op::SyncFolder(path) if path.ends_with(folder));
    type Forgotten<'a> = (&'a str, &'a dyn Fn(&Op) -> bool);
    let all: [Forgotten<'_>; 5] = [
        ("a blob's", &of_blobs),
        ("an index's", &of_indexes),
        ("the blobs' folder's", &of_folder("blobs/sha256")),
        ("the store's folder's", &of_folder("images")),
        ("that of the folder above", &of_folder("lib")),
    ];
    for (whose, forgotten) in all {
        let found = story.survives(forgotten, 3);
        assert!(found.is_err(), "{whose} sync is missing, and nobody notices");
    }
}

/// The index that a sweep goes by is on the disk before anything goes.
#[test]
fn a_sweep_waits_for_the_disk() {
    let base = in_memory();
    let recorder = Arc::new(Recorder { base: base.path().to_owned(), log: Mutex::default() });
    open(base.path()).import_tar(&*Image::new(&[1], 10).saved(&["a/fn:1"]), None).unwrap();
    open(base.path()).remove(&name("a/fn:1")).unwrap();
    Store::open(base.path(), Options { steps: Some(recorder.clone()), ..Options::default() }).unwrap().sweep().unwrap();
    let log = recorder.log.lock().unwrap();
    let synced = log.iter().position(|op| matches!(op, Op::SyncFolder(path) if path.as_os_str().is_empty()));
    let gone = log.iter().position(|op| matches!(op, Op::Rename(from, _) if from.starts_with("blobs")));
    assert!(synced.unwrap() < gone.unwrap(), "{log:?}");
}
