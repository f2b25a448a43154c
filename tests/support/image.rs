//! A small image to run things in: Debian's static busybox, in the form of `docker save`.

use nspool::engine::{Engine, ImageId};
use sha2::{Digest, Sha256};

/// What [`busybox_image`] loads. With a host in it, because podman puts one before names that have none.
pub const BUSYBOX: &str = "localhost/nspool-test-busybox:1";

/// Loads busybox as [`BUSYBOX`] (again, if it is there); gives its id.
pub async fn busybox_image(engine: &dyn Engine) -> ImageId {
    engine.load_image(busybox_archive(BUSYBOX).into()).await.unwrap();
    engine.image_id(BUSYBOX).await.unwrap().expect("the image is there after its load")
}

/// A `docker save` tar with busybox as `/bin/busybox`, `/bin/sh` and a few more, tagged `reference`.
pub fn busybox_archive(reference: &str) -> Vec<u8> {
    archive_of(reference, &busybox_layer(&[]), serde_json::json!({}))
}

/// The same with labels of its own, which make it another image.
pub fn labelled_archive(reference: &str, labels: &[(&str, &str)]) -> Vec<u8> {
    archive_of(reference, &busybox_layer(&[]), labels.iter().map(|(key, value)| (*key, *value)).collect())
}

/// The same with a layer of its own, which no engine has.
pub fn unique_busybox_archive(reference: &str) -> Vec<u8> {
    let mut mark = [0; 16];
    nspool::random::fill(&mut mark);
    archive_of(reference, &busybox_layer(&mark), serde_json::json!({}))
}

/// One more layer over busybox's, which `mark` makes one of its own: those of one mark share it.
pub fn layered_archive(reference: &str, mark: &[u8], content: &[u8]) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    add_file(&mut layer, "data", 0o644, content);
    archive_of_layers(reference, &[&busybox_layer(mark), &layer.into_inner().unwrap()], serde_json::json!({}))
}

/// One with so many random bytes: no engine has any part of it, and no registry makes it smaller.
pub fn random_archive(reference: &str, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    nspool::random::fill(&mut data);
    let mut layer = tar::Builder::new(Vec::new());
    add_file(&mut layer, "data", 0o644, &data);
    archive_of(reference, &layer.into_inner().unwrap(), serde_json::json!({}))
}

fn archive_of(reference: &str, layer: &[u8], labels: serde_json::Value) -> Vec<u8> {
    archive_of_layers(reference, &[layer], labels)
}

fn archive_of_layers(reference: &str, layers: &[&[u8]], labels: serde_json::Value) -> Vec<u8> {
    let digest = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let digests: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let diff_ids: Vec<String> = digests.iter().map(|digest| format!("sha256:{digest}")).collect();
    let files: Vec<String> = digests.iter().map(|digest| format!("{digest}/layer.tar")).collect();
    let history = vec![serde_json::json!({"created_by": "nspool tests"}); layers.len()];
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"], "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    })
    .to_string()
    .into_bytes();
    let config_name = format!("{}.json", digest(&config));
    let manifest = serde_json::json!([{"Config": config_name, "RepoTags": [reference], "Layers": files}]);
    let mut archive = tar::Builder::new(Vec::new());
    add_file(&mut archive, &config_name, 0o644, &config);
    for (file, layer) in files.iter().zip(layers) {
        add_file(&mut archive, file, 0o644, layer);
    }
    add_file(&mut archive, "manifest.json", 0o644, manifest.to_string().as_bytes());
    archive.into_inner().unwrap()
}

/// `mark` makes it another layer.
fn busybox_layer(mark: &[u8]) -> Vec<u8> {
    let busybox =
        ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| std::fs::read(path).ok()).expect("busybox-static is installed");
    let mut layer = tar::Builder::new(Vec::new());
    for dir in ["bin/", "dev/", "etc/", "proc/", "sys/", "tmp/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if dir == "tmp/" { 0o1777 } else { 0o755 });
        header.set_size(0);
        layer.append_data(&mut header, dir, std::io::empty()).unwrap();
    }
    if !mark.is_empty() {
        add_file(&mut layer, "etc/mark", 0o644, mark);
    }
    add_file(&mut layer, "bin/busybox", 0o755, &busybox);
    for applet in ["sh", "sleep", "ip", "cat", "true", "false", "hostname", "nc", "ls", "id", "kill", "tail", "wget"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    layer.into_inner().unwrap()
}

fn add_file(archive: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(data.len() as u64);
    archive.append_data(&mut header, path, data).unwrap();
}
