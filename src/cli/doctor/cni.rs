//! Whether networks that CNI plugins furnish have what they need: a configuration that can be read, and each of its plugins.

use std::io::ErrorKind;

use super::finding::{Check, Finding};
use super::host::Host;
use crate::config::Config;
use crate::netns::cni::{Cni, CniError};

/// For each network, all that it lacks.
pub(super) fn check(host: &Host, config: &Config) -> Vec<Finding> {
    let cni = Cni {
        conf_dir: host.path(&config.cni.conf_dir),
        bin_dirs: config.cni.bin_dirs.iter().map(|dir| host.path(dir)).collect(),
        ..config.cni.clone()
    };
    let wanted = config.cni_networks.iter().filter(|network| config.pool.networks.contains(&network.name));
    wanted.flat_map(|network| of_network(host, &cni, &network.config)).collect()
}

fn of_network(host: &Host, cni: &Cni, network: &str) -> Vec<Finding> {
    let check = Check::of("cni_network", "without its configuration no namespace gets ready on it");
    if !host.is_root() && std::fs::read_dir(&cni.conf_dir).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied) {
        let seen = format!("{network}: {} cannot be read as {}", cni.conf_dir.display(), host.user());
        return vec![check.note(seen).remedy("sudo nspool doctor")];
    }
    match cni.means(network) {
        Ok(means) => {
            let programs: Vec<String> = means.programs.iter().map(|program| program.display().to_string()).collect();
            vec![check.ok(format!("{network}: CNI {}, {}", means.version, programs.join(", ")))]
        }
        Err(lacks) => lacks.iter().map(|error| lacking(check, cni, error)).collect(),
    }
}

fn lacking(network: Check, cni: &Cni, error: &CniError) -> Finding {
    let plugin = Check::of("cni_plugin", "without all of its plugins no namespace gets ready on a network");
    match error {
        CniError::NoPlugin { .. } => {
            plugin.missing(error.to_string()).remedy("apt-get install containernetworking-plugins").remedy("[cni] bin_dirs")
        }
        CniError::NotExecutable { file, .. } => plugin.missing(error.to_string()).remedy(format!("chmod +x {file}")),
        CniError::Configuration { file, .. } => network.missing(error.to_string()).remedy(format!("jq . {file}")),
        CniError::Unknown { .. }
        | CniError::Plugin { .. }
        | CniError::Result { .. }
        | CniError::Lie { .. }
        | CniError::Unseen { .. }
        | CniError::NotUndone { .. }
        | CniError::Several(_)
        | CniError::Record { .. }
        | CniError::Stopped(_) => network.missing(error.to_string()).remedy(format!("ls {}", cni.conf_dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::super::host::made_up::MadeUp;
    use super::*;
    use crate::config::CniNetwork;

    const LIST: &str =
        r#"{"cniVersion":"1.0.0","name":"blue","plugins":[{"type":"bridge","ipam":{"type":"host-local"}},{"type":"tuning"}]}"#;

    /// With the network `blue`.
    fn config() -> Config {
        let mut config = Config { cni_networks: vec![CniNetwork { name: "own".into(), config: "blue".into() }], ..Config::default() };
        config.pool.networks = vec!["own".into()];
        config
    }

    fn program(made_up: MadeUp, path: &str, mode: u32) -> MadeUp {
        use std::os::unix::fs::PermissionsExt as _;
        let made_up = made_up.with(path, "");
        std::fs::set_permissions(made_up.host.path(path), std::fs::Permissions::from_mode(mode)).unwrap();
        made_up
    }

    fn found(made_up: &MadeUp) -> Vec<(&'static str, Status, String)> {
        check(&made_up.host, &config()).into_iter().map(|finding| (finding.name, finding.status, finding.seen)).collect()
    }

    #[test]
    fn plugins_are_looked_for_where_they_may_be_and_so_is_what_gives_addresses() {
        let made_up = MadeUp::new().with("/etc/cni/net.d/10-blue.conflist", LIST);
        let made_up = program(program(made_up, "/opt/cni/bin/bridge", 0o755), "/usr/lib/cni/tuning", 0o644);
        let lacks = found(&made_up);
        assert_eq!(lacks.iter().map(|(name, status, _)| (*name, *status)).collect::<Vec<_>>(), [("cni_plugin", Status::Missing); 2]);
        assert!(lacks[0].2.contains("\"host-local\"") && lacks[1].2.contains("/usr/lib/cni/tuning is no program"), "{lacks:?}");
        let remedies: Vec<_> = check(&made_up.host, &config()).into_iter().flat_map(|finding| finding.remedies).collect();
        assert!(remedies[0].ends_with("containernetworking-plugins") && remedies[2].starts_with("chmod +x /"), "{remedies:?}");
        let made_up = program(program(made_up, "/usr/lib/cni/tuning", 0o755), "/usr/lib/cni/host-local", 0o755);
        let well = found(&made_up);
        assert!(well.len() == 1 && well[0].1 == Status::Ok && well[0].2.starts_with("blue: CNI 1.0.0, /"), "{well:?}");
    }

    #[test]
    fn a_configuration_has_to_be_there_and_of_a_known_version() {
        let lacks = |made_up: &MadeUp| {
            let found = found(made_up);
            assert!(found.len() == 1 && (found[0].0, found[0].1) == ("cni_network", Status::Missing), "{found:?}");
            found[0].2.clone()
        };
        assert!(lacks(&MadeUp::new()).contains("there is no CNI network \"blue\""));
        let other = MadeUp::new().with("/etc/cni/net.d/10-red.conflist", &LIST.replace("blue", "red"));
        assert!(lacks(&other).contains("only red"));
        let old = MadeUp::new().with("/etc/cni/net.d/10-blue.conflist", &LIST.replace("1.0.0", "0.2.0"));
        assert!(lacks(&old).contains("`cniVersion` is 0.2.0; known are 0.3.0"));
        let broken = MadeUp::new().with("/etc/cni/net.d/10-blue.conflist", &LIST[1..]);
        assert!(lacks(&broken).contains("10-blue.conflist"));
    }

    #[test]
    fn without_such_a_network_there_is_nothing_to_say() {
        assert!(check(&MadeUp::new().host, &Config::default()).is_empty());
        let mut unused = config();
        unused.pool.networks = vec!["none".into()];
        assert!(check(&MadeUp::new().host, &unused).is_empty());
    }
}
