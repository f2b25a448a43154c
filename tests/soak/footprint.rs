//! What an engine and a daemon have of the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::support::daemon::text;
use crate::support::engines::TestEngine;

/// What there is of an engine's, each by its name.
#[derive(Debug, Default)]
pub(crate) struct Footprint {
    parts: BTreeMap<&'static str, BTreeSet<String>>,
    /// Root file systems and namespaces of containers that the engine does not know: killed while it makes or removes one, it forgets the mount
    /// for good.
    pub(crate) forgotten: usize,
}

impl Footprint {
    pub(crate) fn of(engine: &TestEngine) -> Self {
        let lines = |text: String| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        let containers = lines(engine.run(&["ps", "-a", "--no-trunc", "--format", "{{.Names}} {{.ID}} {{.Status}}"]));
        let links = std::fs::read_dir("/sys/class/net").unwrap().map(|link| link.unwrap().file_name().to_string_lossy().into_owned());
        let dir = engine.dir.display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let known = mounts_of_containers(engine);
        let is_forgotten = |mount: &&str| {
            let at = mount.split(' ').nth(4).unwrap_or_default();
            // That of the host's network namespace is nobody's, and always there.
            let of_a_container = mount.contains(" - overlay ") || (mount.contains(" - nsfs ") && !at.ends_with("/netns/default"));
            of_a_container && !known.contains(at)
        };
        let (forgotten, mounts): (Vec<&str>, Vec<&str>) = mounts.lines().filter(|line| line.contains(&dir)).partition(is_forgotten);
        let mounts: BTreeSet<String> = mounts.into_iter().map(str::to_owned).collect();
        // Docker keeps each network namespace by a mount of its own.
        let namespaces = mounts.iter().filter(|line| line.contains(" - nsfs ")).cloned().collect();
        let shims = shims(engine).into_iter().map(|(pid, container)| format!("{pid} {container}")).collect();
        let parts =
            [("containers", containers), ("links", links.collect()), ("namespaces", namespaces), ("mounts", mounts), ("shims", shims)];
        Self { parts: parts.into(), forgotten: forgotten.len() }
    }

    /// How many there are of each kind: the names are others by now.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, usize> {
        self.parts.iter().map(|(kind, names)| (*kind, names.len())).collect()
    }

    /// For people: the kinds that have other counts than before, with what is new in them.
    pub(crate) fn difference(&self, before: &Self) -> String {
        let differ = self.parts.iter().filter(|(kind, names)| before.parts[**kind].len() != names.len());
        let tell = |(kind, names): (&&str, &BTreeSet<String>)| {
            let new: Vec<&String> = names.difference(&before.parts[*kind]).collect();
            format!("{kind}: {} instead of {}; new: {new:#?}", names.len(), before.parts[*kind].len())
        };
        differ.map(tell).collect::<Vec<_>>().join("\n")
    }
}

fn mounts_of_containers(engine: &TestEngine) -> BTreeSet<String> {
    let ids = engine.run(&["ps", "-aq", "--no-trunc"]);
    let ids: Vec<&str> = ids.lines().collect();
    if ids.is_empty() {
        return BTreeSet::new();
    }
    // One that has gone since is an error; the others are told all the same.
    let told =
        engine.client(&[&["inspect", "--format", "{{.GraphDriver.Data.MergedDir}}\n{{.NetworkSettings.SandboxKey}}"], &ids[..]].concat());
    text(&told.stdout).lines().map(str::to_owned).collect()
}

/// The engine's shims, which are the parents of its containers' processes: their pids, and which container they are of.
pub(crate) fn shims(engine: &TestEngine) -> Vec<(u32, String)> {
    let socket = engine.dir.join("exec/containerd/containerd.sock").display().to_string();
    let shim = |entry: std::fs::DirEntry| {
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let words: Vec<&str> = std::str::from_utf8(&command).ok()?.split('\0').collect();
        let after = |option: &str| Some(words[words.iter().position(|word| *word == option)? + 1]);
        let ours = words[0].contains("containerd-shim") && after("-address")? == socket;
        ours.then_some((entry.file_name().to_str()?.parse().ok()?, after("-id")?.to_owned()))
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(shim).collect()
}

/// A process's descriptors by what they are: files by their path, all else by its kind.
pub(crate) fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")).unwrap().flatten() {
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        let kind = if target.starts_with('/') { target } else { target.split(":[").next().unwrap_or_default().to_owned() };
        *found.entry(kind).or_default() += 1;
    }
    found
}
