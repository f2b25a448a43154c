//! The security options of a create: no-new-privileges for all buddies, our seccomp profile for renewable ones.
//!
//! Docker takes a profile as JSON text. podman takes the path of a file and reads it once, during the create: text fails with "file name too
//! long" (4.3 and later; a version that takes both still takes a path). The file is a memory file of this process, named through /proc, so
//! there is nothing on a disk to keep, to clear away or to meddle with. The two see the same processes, or no pid of the engine's would mean
//! anything here.
//!
//! What can go wrong: a podman that may not read this process's /proc, a rootless one. It then refuses the create, and says the path.

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::errors;
use crate::engine::{BuddySpec, EngineError, EngineKind, ErrorClass, Flavour, seccomp};

/// Refused: a spec that contradicts itself, or no memory file.
pub(super) fn options(kind: EngineKind, spec: &BuddySpec) -> Result<Vec<String>, EngineError> {
    let refused = |message: &str| errors::refused("create", ErrorClass::Refused, &spec.name, message);
    if let Some(why) = spec.contradiction() {
        return Err(refused(why));
    }
    let mut options = vec!["no-new-privileges".to_owned()];
    if spec.flavour == Flavour::Renewable {
        let profile = match kind {
            EngineKind::Podman => profile_path().map_err(|error| refused(&format!("no file for the seccomp profile: {error}")))?,
            EngineKind::Docker | EngineKind::Native | EngineKind::Fake => seccomp::renewable(),
        };
        options.push(format!("seccomp={profile}"));
    }
    Ok(options)
}

/// Made once, and there as long as this process. Nobody can write to it any more.
fn profile_path() -> std::io::Result<String> {
    static FILE: OnceLock<std::fs::File> = OnceLock::new();
    let file = match FILE.get() {
        Some(file) => file,
        None => {
            let made = memory_file(&seccomp::renewable())?;
            FILE.get_or_init(|| made)
        }
    };
    Ok(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}

fn memory_file(text: &str) -> std::io::Result<std::fs::File> {
    let mut file = std::fs::File::from(memfd_create("nspool-seccomp", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(text.as_bytes())?;
    fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Labels, NamespaceKind};

    fn spec() -> BuddySpec {
        BuddySpec {
            name: "b".into(),
            image: "sha256:1".into(),
            command: Vec::new(),
            labels: Labels::new(),
            network: "bridge".into(),
            namespaces: vec![NamespaceKind::Net],
            user: "65533:65533".into(),
            memory_bytes: 16 << 20,
            pids: 16,
            flavour: Flavour::Fixed,
            ipv6: false,
        }
    }

    #[test]
    fn docker_gets_the_text_and_podman_a_path_to_the_same() {
        for kind in [EngineKind::Docker, EngineKind::Podman] {
            assert_eq!(options(kind, &spec()).unwrap(), ["no-new-privileges"]);
        }
        let text = format!("seccomp={}", seccomp::renewable());
        assert_eq!(options(EngineKind::Docker, &spec().renewable()).unwrap(), ["no-new-privileges", &text]);
        for _ in 0..2 {
            let options = options(EngineKind::Podman, &spec().renewable()).unwrap();
            let path = options[1].strip_prefix("seccomp=").unwrap();
            assert_eq!(std::fs::read_to_string(path).unwrap(), seccomp::renewable());
            assert!(std::fs::write(path, "{}").is_err(), "it is sealed");
        }
    }

    #[test]
    fn a_spec_that_contradicts_itself_is_refused_before_the_engine_is_asked() {
        let error = options(EngineKind::Docker, &BuddySpec { network: "host".into(), ..spec().renewable() }).unwrap_err();
        assert_eq!(error.class, ErrorClass::Refused);
        assert!(error.message.contains("network none"), "{error}");
    }
}
