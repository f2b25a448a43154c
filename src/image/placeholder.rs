//! The embedded placeholder image, made by nspool itself: no registry, no other image, nothing to install.
//!
//! [`Archive::build`] puts the init (`init.c`, compiled by `build.rs`) into a tar as `docker load` takes it, on Docker and on podman. The same
//! init always gives the same bytes, and the tag is made from what is inside: a new version of nspool comes with a new tag, and pools
//! of both versions live side by side on one engine.
//!
//! It deliberately does not know engines: [`super::gate`] loads what is made here.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use serde_json::json;
use sha2::{Digest, Sha256};

/// The init of the architecture that nspool was built for: a static executable of less than a kilobyte.
pub const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/placeholder-init"));

/// How [`INIT`] ends when it is refused a new network namespace.
pub const EXIT_CANNOT_RENEW: i64 = 103;

/// The repository of the tag. The host is no registry: nothing pulls it by accident, and podman does not add its own host in front.
pub const REPOSITORY: &str = "nspool.local/placeholder";

/// Marks the image as ours; set on the image, so the engine shows it on buddies as well.
pub const IMAGE_LABEL: &str = "nspool.placeholder";

/// What the engine binds its own files and file systems to. With a read-only root it cannot make them, so they are in the layer.
const FOLDERS: [&str; 8] = ["dev", "etc", "proc", "run", "sys", "tmp", "var", "var/tmp"];
const EMPTY_FILES: [&str; 3] = ["etc/hostname", "etc/hosts", "etc/resolv.conf"];

/// An architecture, as images name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// `x86_64`
    Amd64,
    /// `aarch64`
    Arm64,
}

impl Arch {
    /// The one that [`INIT`] was compiled for. `build.rs` refuses all but these two.
    pub const NATIVE: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 };

    /// The name in an image's config.
    #[must_use]
    pub fn oci_name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// A `docker load`-able image.
#[derive(Clone, Debug)]
pub struct Archive {
    reference: String,
    bytes: Arc<[u8]>,
}

impl Archive {
    /// The image that has `init` as `/init`, and as its entrypoint. The same arguments always give the same bytes.
    ///
    /// # Errors
    /// Only those of the tar writer, which over memory has none to give but for a name that does not fit.
    pub fn build(init: &[u8], arch: Arch) -> io::Result<Self> {
        let layer = layer(init)?;
        let diff_id = format!("sha256:{}", sha256_hex(&layer));
        let config = serde_json::to_vec(&json!({
            "architecture": arch.oci_name(),
            "os": "linux",
            // The time is part of the bytes, so it is always the same one.
            "created": "1970-01-01T00:00:00Z",
            "config": { "Entrypoint": ["/init"], "WorkingDir": "/", "Labels": { IMAGE_LABEL: "1" } },
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
            "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "nspool" }],
        }))?;
        let id = sha256_hex(&config);
        // By the config's digest and not the layer's: the config names the layer, so a change of either gives a new tag.
        let reference = format!("{REPOSITORY}:{}", &id[..12]);
        let manifest = serde_json::to_vec(&json!([{
            "Config": format!("{id}.json"),
            "RepoTags": [reference],
            "Layers": ["layer.tar"],
        }]))?;

        let mut tar = tar::Builder::new(Vec::new());
        append(&mut tar, tar::EntryType::Regular, &format!("{id}.json"), 0o644, &config)?;
        append(&mut tar, tar::EntryType::Regular, "layer.tar", 0o644, &layer)?;
        append(&mut tar, tar::EntryType::Regular, "manifest.json", 0o644, &manifest)?;
        Ok(Self { reference, bytes: tar.into_inner()?.into() })
    }

    /// The placeholder that this nspool brings along.
    ///
    /// # Errors
    /// As [`Archive::build`].
    pub fn embedded() -> io::Result<Self> {
        Self::build(INIT, Arch::NATIVE)
    }

    /// `nspool.local/placeholder:<12 hex digits>`, by which the engine knows it once loaded.
    #[must_use]
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// The tar.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn layer(init: &[u8]) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for folder in FOLDERS {
        append(&mut tar, tar::EntryType::Directory, &format!("{folder}/"), 0o755, &[])?;
    }
    for file in EMPTY_FILES {
        append(&mut tar, tar::EntryType::Regular, file, 0o644, &[])?;
    }
    append(&mut tar, tar::EntryType::Regular, "init", 0o755, init)?;
    tar.into_inner()
}

/// Owned by root, dated 1970: nothing of the machine or the moment gets in.
fn append(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content)
}

fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    fn entries(tar: &[u8]) -> BTreeMap<String, (u32, u64, Vec<u8>)> {
        let mut archive = tar::Archive::new(tar);
        archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                let header = entry.header();
                (entry.path().unwrap().display().to_string(), (header.mode().unwrap(), header.mtime().unwrap(), content))
            })
            .collect()
    }

    #[test]
    fn the_same_init_gives_the_same_bytes_and_another_one_another_tag() {
        let one = Archive::build(b"init", Arch::Amd64).unwrap();
        assert_eq!(one.bytes(), Archive::build(b"init", Arch::Amd64).unwrap().bytes());
        assert_ne!(one.reference(), Archive::build(b"tini", Arch::Amd64).unwrap().reference());
        assert_ne!(one.reference(), Archive::build(b"init", Arch::Arm64).unwrap().reference());
    }

    #[test]
    fn manifest_config_and_layer_agree() {
        let archive = Archive::build(b"init", Arch::Arm64).unwrap();
        let outer = entries(archive.bytes());
        let manifest: serde_json::Value = serde_json::from_slice(&outer["manifest.json"].2).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], archive.reference());

        let config_name = manifest[0]["Config"].as_str().unwrap();
        let config = &outer[config_name].2;
        assert_eq!(config_name, format!("{}.json", sha256_hex(config)));
        assert!(config_name.starts_with(archive.reference().rsplit_once(':').unwrap().1));
        let config: serde_json::Value = serde_json::from_slice(config).unwrap();
        assert_eq!(config["architecture"], "arm64");
        assert_eq!(config["config"]["Labels"][IMAGE_LABEL], "1");

        let layer = &outer[manifest[0]["Layers"][0].as_str().unwrap()].2;
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", sha256_hex(layer)));
        let files = entries(layer);
        assert_eq!(files["init"], (0o755, 0, b"init".to_vec()));
        for mount_point in ["proc/", "sys/", "dev/", "etc/resolv.conf", "etc/hosts", "etc/hostname"] {
            assert!(files.contains_key(mount_point), "{mount_point} is missing from {:?}", files.keys());
        }
        assert!(files.values().chain(outer.values()).all(|(_, mtime, _)| *mtime == 0));
    }

    #[test]
    fn the_embedded_init_is_a_small_static_executable() {
        assert_eq!(&INIT[..4], b"\x7fELF");
        assert!(INIT.len() < 4096, "{} bytes", INIT.len());
        assert!(Archive::embedded().unwrap().bytes().len() < 64 << 10);
    }
}
