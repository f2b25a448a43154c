//! Images to put into stores, made here: the same seed is the same image.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::RwLock;

use nspool::image::reference::Reference;
use nspool::image::store::{Digest, Options, Store};

/// An image with these layers.
#[derive(Clone, Debug)]
pub struct Image {
    pub layers: Vec<Vec<u8>>,
    pub config: Vec<u8>,
}

impl Image {
    /// One layer for each seed, with a file of so many bytes.
    pub fn new(seeds: &[u64], bytes: usize) -> Self {
        Self::of(seeds.iter().map(|&seed| layer(seed, bytes)).collect())
    }

    pub fn of(layers: Vec<Vec<u8>>) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let config = serde_json::json!({
            "architecture": architecture(), "os": "linux", "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        Self { layers, config: config.to_string().into_bytes() }
    }

    pub fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    /// As `docker save` writes it.
    pub fn saved(&self, names: &[&str]) -> Vec<u8> {
        saved(&[(self, names)])
    }

    /// An OCI layout, as skopeo writes it: gzip layers if wanted, and a name if it has one.
    pub fn layout(&self, folder: &Path, name: Option<&str>, zipped: bool) {
        let blobs = folder.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let put = |media_type: &str, bytes: &[u8]| {
            let digest = Digest::of(bytes);
            std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
            serde_json::json!({"mediaType": media_type, "digest": digest.as_str(), "size": bytes.len()})
        };
        let layers: Vec<_> = (self.layers.iter())
            .map(|layer| match zipped {
                true => put("application/vnd.oci.image.layer.v1.tar+gzip", &gzip(layer)),
                false => put("application/vnd.oci.image.layer.v1.tar", layer),
            })
            .collect();
        let config = put("application/vnd.oci.image.config.v1+json", &self.config);
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers, "annotations": {"kept": "as it is"}});
        let mut entry = put("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        if let Some(name) = name {
            entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
        }
        write_index(folder, &[entry]);
    }
}

pub fn write_index(folder: &Path, entries: &[serde_json::Value]) {
    std::fs::write(folder.join("index.json"), serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string()).unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

pub fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// Several, as `docker save a b` does.
pub fn saved(images: &[(&Image, &[&str])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut manifest = Vec::new();
    for (image, names) in images {
        let config = format!("{}.json", image.id().hex());
        add(&mut archive, &config, &image.config);
        let mut paths = Vec::new();
        for layer in &image.layers {
            let path = format!("{}/layer.tar", Digest::of(layer).hex());
            add(&mut archive, &path, layer);
            paths.push(path);
        }
        manifest.push(serde_json::json!({"Config": config, "RepoTags": names, "Layers": paths}));
    }
    add(&mut archive, "manifest.json", serde_json::Value::from(manifest).to_string().as_bytes());
    archive.into_inner().unwrap()
}

pub fn add(archive: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, path, bytes).unwrap();
}

/// A tar with one file that no compression makes smaller.
pub fn layer(seed: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    fastrand::Rng::with_seed(seed).fill(&mut data);
    let mut archive = tar::Builder::new(Vec::new());
    add(&mut archive, &format!("data-{seed}"), &data);
    archive.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut child = spawned(Command::new("gzip").args(["-n", "-1"]).stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writing = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output.stdout
}

/// A folder whose syncs take no time: for what does not depend on the disk.
pub fn in_memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(if memory.is_dir() { memory } else { Path::new("/tmp") }).unwrap()
}

pub fn name(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

/// A process that was just forked has all locks of this one, those of folders included, until it is its own program: an opening then would leave a dead
/// writer's folder. So no opening is beside a fork.
static FORKS: RwLock<()> = RwLock::new(());

pub fn open(root: &Path) -> Store {
    open_with(root, Options::default())
}

pub fn open_with(root: &Path, options: Options) -> Store {
    let _no_fork = FORKS.read().unwrap();
    Store::open(root, options).unwrap()
}

/// The way to start a program.
pub fn spawned(command: &mut Command) -> Child {
    let _no_opening = FORKS.write().unwrap();
    command.spawn().unwrap()
}

/// Whole, and nobody's staging is left but so many folders.
pub fn assert_sound(store: &Store, staging: usize) {
    let verified = store.verify().unwrap();
    assert_eq!(verified.faults, [], "{verified:?}");
    let left = || std::fs::read_dir(store.root().join("staging")).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    assert_eq!(left().len(), staging, "{:?}", left());
}

/// What an engine would be given is this image.
pub fn assert_whole(store: &Store, name: &str, image: &Image) {
    let stored = store.image(name).unwrap().unwrap_or_else(|| panic!("{name} is there"));
    assert_eq!(stored.id, image.id());
    let export = store.export(&stored, &[name.to_owned()]).unwrap();
    let elsewhere = in_memory();
    let other = open(&elsewhere.path().join("other")).import_tar(export, None).unwrap();
    assert_eq!((&other[0].id, &*other[0].names), (&image.id(), &[name.to_owned()][..]));
}
