//! What a managed network comes to when little is said, and every mistake that can be made about one.

use std::io::Write as _;

use crate::config::raw::{Loaded, Mistakes, Origin, Sources, load};

use super::*;

fn try_load(text: &str) -> Result<Loaded, Mistakes> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    load(&Sources { file: Some(file.path().to_owned()), ..Sources::default() })
}

fn config(text: &str) -> Config {
    try_load(text).unwrap_or_else(|error| panic!("{error}\n{text}")).config
}

/// Without the file's name.
fn report(text: &str) -> String {
    let Err(Mistakes(mistakes)) = try_load(text) else { panic!("no mistakes in {text}") };
    let file = mistakes.iter().find_map(|mistake| match &mistake.origin {
        Origin::File(path, _) => Some(path.display().to_string()),
        Origin::Default | Origin::Variable(_) | Origin::Flag(_) => None,
    });
    let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    told.join("\n").replace(&file.unwrap(), "FILE")
}

const FAST: &str = "[pool]\nnetworks = [\"fast\"]\n[networks.fast]\nkind = \"managed\"\n";

const DOCKERS: &str = "[pool]\nnetworks = [\"bridge\", \"fast\"]\n[networks.fast]\nkind = \"managed\"\nexisting = true\nbridge = \"docker0\"\n\
                       subnet = \"172.17.0.0/16\"\ngateway = \"172.17.0.1\"\naddresses = \"172.17.128.0/17\"\n";

const SEVERAL: &str = "[pool]\nnetworks = [\"a\", \"b\", \"c\"]\n\
                       [networks.a]\nkind = \"managed\"\nengine_network = \"fn\"\nsubnet = \"10.1.0.0/16\"\n\
                       [networks.b]\nkind = \"managed\"\nengine_network = \"fn\"\nsubnet = \"10.1.0.0/17\"\naddresses = \"10.1.0.0/24\"\n\
                       [networks.c]\nkind = \"managed\"\nexisting = true\nbridge = \"ns-a\"\nsubnet = \"10.3.0.0/16\"\n\
                       gateway = \"10.3.0.1\"\naddresses = \"10.3.1.0/24\"\n";

const ENGINES: &str = "[pool]\nnetworks = [\"fast\"]\n[networks.fast]\nkind = \"managed\"\nengine_network = \"fn\"\n";

#[test]
fn a_managed_network_needs_no_more_than_its_kind() {
    let config = config(FAST);
    let wanted = ManagedNetwork {
        name: "fast".into(),
        bridge: Bridge::Own { name: "ns-fast".into() },
        slots: 64,
        ipv4: Range::whole("10.213.0.0/16".parse().unwrap()),
        ipv6: None,
        mtu: 1500,
        isolation: true,
        nat: true,
    };
    assert_eq!(config.managed, [Managed { network: wanted, rest: Duration::from_secs(10), forwarding: true, engine: None }]);
    assert_eq!(config.forwarding(), Forwarding::SwitchedOn);
    assert_eq!(Config::default().forwarding(), Forwarding::Told);
}

#[test]
fn the_bridge_of_another_keeps_its_nat() {
    let config = config(DOCKERS);
    let managed = config.managed_of(1).unwrap();
    assert_eq!(managed.network.bridge, Bridge::Existing { name: "docker0".into() });
    assert_eq!(managed.network.ipv4.part.to_string(), "172.17.128.0/17");
    assert!(!managed.network.nat && managed.network.isolation);
    assert_eq!(config.managed_of(0), None, "bridge is the engine's");
    assert_eq!(config.managed_of(2), None, "there are two");
}

#[test]
fn the_engine_is_asked_for_a_network_that_leaves_the_slots_addresses_out() {
    let managed = |text: &str| config(text).managed.remove(0);
    let ours = managed(ENGINES);
    assert_eq!(ours.network.bridge, Bridge::Existing { name: "ns-fast".into() });
    assert!(!ours.network.nat, "the engine sees to it");
    assert_eq!(ours.network.ipv4.part.to_string(), "10.213.128.0/17");
    let range =
        |subnet: &str, range: &str, gateway: &str| NetworkRange { subnet: subnet.into(), range: range.into(), gateway: gateway.into() };
    let spec = NetworkSpec {
        name: "fn".into(),
        bridge: "ns-fast".into(),
        ranges: vec![range("10.213.0.0/16", "10.213.0.0/17", "10.213.0.1")],
        mtu: 1500,
        masquerade: true,
        labels: Labels::new(),
    };
    assert_eq!(ours.engine_spec(), Some(spec));
    let chosen = "bridge = \"br\"\nsubnet = \"10.9.0.0/16\"\naddresses = \"10.9.1.0/24\"\ngateway = \"10.9.0.9\"\nmtu = 1400\nnat = false\n\
                  subnet6 = \"fd00:9::/64\"\n";
    let ours = managed(&format!("{ENGINES}{chosen}"));
    assert_eq!(ours.network.ipv6.unwrap().part.to_string(), "fd00:9:0:0:8000::/65");
    let spec = ours.engine_spec().unwrap();
    assert_eq!((spec.bridge.as_str(), spec.mtu, spec.masquerade), ("br", 1400, false));
    let ranges = [range("10.9.0.0/16", "10.9.128.0/17", "10.9.0.9"), range("fd00:9::/64", "fd00:9::/65", "fd00:9::1")];
    assert_eq!(spec.ranges, ranges, "the half without the slots");
    for text in [FAST, DOCKERS] {
        assert_eq!(managed(text).engine_spec(), None);
    }
}

#[test]
fn what_is_shown_reads_back() {
    let everything = "[pool]\nmax = 2000\nnetworks = [\"b\", \"x.1\"]\n[networks.\"x.1\"]\nkind = \"managed\"\nbridge = \"br\"\n\
                      subnet = \"10.9.0.0/16\"\ngateway = \"10.9.0.9\"\nsubnet6 = \"fd00:9::/64\"\ngateway6 = \"fd00:9::9\"\nmtu = 1400\n\
                      isolation = false\nnat = false\nforwarding = false\nrest = \"1m\"\n";
    let dockers6 = format!("{DOCKERS}subnet6 = \"fd00:17::/64\"\ngateway6 = \"fd00:17::1\"\naddresses6 = \"fd00:17:0:0:8000::/65\"\n");
    let engines6 = format!("{ENGINES}subnet6 = \"fd00:17::/64\"\naddresses = \"10.213.7.0/24\"\nnat = false\n");
    for text in [FAST, DOCKERS, &dockers6, everything, ENGINES, &engines6] {
        let config = config(text);
        let (head, table) = text.split_at(text.find("[networks").unwrap());
        let header = table.lines().next().unwrap();
        let shown: String = config.managed[0].written().iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        assert_eq!(self::config(&format!("{head}{header}\n{shown}")), config, "{shown}");
    }
}

#[test]
fn every_key_is_shown_with_its_line() {
    let loaded = try_load(&format!("{FAST}mtu = 1400\n")).unwrap();
    let managed = &loaded.config.managed[0];
    assert_eq!(managed.path("mtu"), "networks.\"fast\".mtu");
    assert!(loaded.origin(&managed.path("mtu")).to_string().ends_with(":5"));
    assert_eq!(*loaded.origin(&managed.path("rest")), Origin::Default);
}

#[test]
fn the_examples_are_the_defaults() {
    let examples: String = NETWORK_KEYS.iter().map(|key| format!("{} = {}\n", key.name, key.example)).collect();
    assert_eq!(config(&format!("[pool]\nnetworks = [\"fast\"]\n[networks.fast]\n{examples}")), config(FAST));
}

#[test]
fn each_mistake_about_a_network_is_told_with_its_line() {
    let long = "[pool]\nnetworks = [\"functions-net\"]\n[networks.functions-net]\nkind = \"managed\"\n";
    let engines = "[pool]\nnetworks = [\"b\"]\n[networks.b]\nmtu = 1400\n";
    let stranger = "[networks.fast]\nkind = \"managed\"\n";
    let missing = "[pool]\nnetworks = [\"fast\"]\n[networks.fast]\nkind = \"managed\"\nexisting = true\nsubnet6 = \"fd00::/64\"\n";
    let values = "kind = \"menaged\"\nbridge = \"a bridge\"\nexisting = \"true\"\nsubnet = \"10.213.0.1/16\"\ngateway = \"::1\"\n\
                  addresses = \"fd00::/64\"\nsubnet6 = \"10.0.0.0/16\"\ngateway6 = \"10.0.0.1\"\naddresses6 = \"x\"\nmtu = 1279\n\
                  isolation = 1\nnat = \"no\"\nforwarding = []\nrest = \"2h\"\nvlan = 7\n";
    let values = format!("[pool]\nnetworks = [\"fast\"]\n[networks.fast]\n{values}");
    let fast = |keys: &str| format!("{FAST}{keys}");
    let others = [
        ("a name too long for a bridge", long.to_owned()),
        ("keys that are not the engine's", engines.to_owned()),
        ("not in the pool", stranger.to_owned()),
        ("what another's bridge needs", missing.to_owned()),
        ("each value", values),
        ("what only another's bridge has", fast("addresses = \"10.213.128.0/17\"\naddresses6 = \"fd00::/65\"\n")),
        ("without IPv6", fast("gateway6 = \"fd00::1\"\n")),
        ("a subnet too large, and a gateway outside", fast("subnet = \"10.0.0.0/8\"\ngateway = \"11.0.0.1\"\n")),
        ("too few addresses", fast("subnet = \"10.0.0.0/27\"\n")),
        ("another's NAT", format!("{DOCKERS}nat = true\n")),
        ("both kinds of another's bridge", format!("{DOCKERS}engine_network = \"fn\"\n")),
        ("one of the engine's own", ENGINES.replace("\"fn\"", "\"bridge\"")),
        ("no network's name", ENGINES.replace("\"fn\"", "\"f n\"")),
        ("nothing left for the engine", format!("{ENGINES}addresses = \"10.213.0.0/16\"\n")),
        ("more slots than ports on a bridge of the engine", ENGINES.replace("[pool]\n", "[pool]\nmax = 2000\n")),
        ("an engine that makes none", format!("{ENGINES}[engine]\nkind = \"podman\"\n")),
        ("two of one, and a bridge of another", SEVERAL.to_owned()),
        ("more slots than ports on another's bridge", DOCKERS.replace("[pool]\n", "[pool]\nmax = 2000\n")),
    ];
    let told: Vec<String> = others.iter().map(|(what, text)| format!("# {what}\n{}", report(text))).collect();
    insta::assert_snapshot!(told.join("\n\n"));
}

#[test]
fn mistakes_of_several_networks_come_together_with_all_others() {
    insta::assert_snapshot!(report(
        "[pool]\n\
         networks = [\"a\", \"b\", \"c\", \"engines\"]\n\
         namespaces = [\"net\", \"ipc\"]\n\
         reuse = \"fresh\"\n\
         ready = 100\n\
         [networks.a]\n\
         kind = \"managed\"\n\
         [networks.b]\n\
         kind = \"managed\"\n\
         bridge = \"ns-a\"\n\
         gateway = \"10.9.0.1\"\n\
         [networks.c]\n\
         kind = \"managed\"\n\
         mtu = 9\n\
         [networks.d]\n\
         [placeholder]\n\
         image = \"busybox\"\n"
    ));
}

#[test]
fn the_reference_page_shows_valid_ones() {
    let page = include_str!("../../../docs/configuration.md");
    let examples: Vec<&str> = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let furnished: Vec<(usize, usize)> =
        examples.iter().map(|example| config(example)).map(|config| (config.managed.len(), config.cni_networks.len())).collect();
    assert_eq!(furnished, [(1, 0), (1, 0), (1, 0), (0, 1)]);
}

/// A network whose kind could not be read is not taken for one of the engine, nor are the defaults that stand in for refused values judged.
#[test]
fn one_mistake_does_not_make_another() {
    let told = report("[pool]\nreuse = \"fresh\"\nnetworks = [\"fast\"]\n[networks.fast]\nkind = \"menaged\"\n");
    assert_eq!(told.lines().count(), 1, "{told}");
    let told = report("[pool]\nreuse = \"fresh\"\nnetworks = 7\nnamespaces = 7\n[networks.fast]\nkind = \"managed\"\n");
    assert_eq!(told.lines().count(), 2, "{told}");
}

#[test]
fn the_policy_is_each_networks_own() {
    let of = |config: &Config| (config.reuse_of(0), config.reuse_of(1));
    let mixed = config(DOCKERS);
    assert_eq!(of(&mixed), (Reuse::Once, Reuse::Fresh));
    assert_eq!(mixed.pool.reuse, None);
    for reuse in [Reuse::Once, Reuse::Always] {
        let config = config(&DOCKERS.replace("[pool]\n", &format!("[pool]\nreuse = \"{}\"\n", reuse.word())));
        assert_eq!(of(&config), (reuse, reuse));
    }
    assert_eq!(config(&FAST.replace("[pool]\n", "[pool]\nreuse = \"fresh\"\n")).reuse_of(0), Reuse::Fresh);
    for shared in ["ipc", "pid"] {
        let config = config(&FAST.replace("[pool]\n", &format!("[pool]\nnamespaces = [\"net\", {shared:?}]\n")));
        assert_eq!(config.reuse_of(0), Reuse::Once, "{shared} outlives a renewal");
    }
    let config = config(&format!("{FAST}[placeholder]\nimage = \"busybox\"\n"));
    assert_eq!(config.reuse_of(0), Reuse::Once, "busybox cannot renew");
}

const PLUGGED: &str = "[pool]\nnetworks = [\"fast\", \"none\"]\n[engine]\nkind = \"native\"\n[networks.fast]\nkind = \"cni\"\n";

#[test]
fn a_network_of_plugins_is_called_by_them_as_by_the_pool_unless_it_is_said() {
    let plain = config(PLUGGED);
    assert_eq!(plain.cni_networks, [CniNetwork { name: "fast".into(), config: "fast".into() }]);
    assert_eq!((plain.cni_of(0), plain.cni_of(1), plain.managed_of(0)), (plain.cni_networks.first(), None, None));
    assert_eq!(plain.reuse_of(0), Reuse::Fresh);
    let named = config(&format!("{PLUGGED}config = \"podman\"\n[cni]\nconf_dir = \"/c\"\nbin_dirs = [\"/b\"]\ntimeout = \"3s\"\n"));
    assert_eq!(named.cni_networks[0].written(), [("kind", "\"cni\"".into()), ("config", "\"podman\"".into())]);
    assert_eq!(named.cni, crate::netns::cni::Cni { conf_dir: "/c".into(), bin_dirs: vec!["/b".into()], timeout: Duration::from_secs(3) });
}

#[test]
fn a_network_of_plugins_has_no_keys_of_managed_ones_nor_those_its() {
    let told = report(&format!("{PLUGGED}mtu = 1400\n"));
    assert!(told.contains("networks.\"fast\".mtu: written for a network of CNI plugins"), "{told}");
    let told = report("[pool]\nnetworks = [\"fast\"]\n[networks.fast]\nkind = \"managed\"\nconfig = \"x\"\n");
    assert!(told.contains("networks.\"fast\".config"), "{told}");
    let told = report("[pool]\nnetworks = [\"fast\"]\n[networks.fast]\nconfig = \"x\"\n");
    assert!(told.contains("networks.\"fast\".config: written for a network of the engine"), "{told}");
}

#[test]
fn plugins_furnish_no_containers() {
    let told = report(&PLUGGED.replace("native", "docker"));
    assert!(told.contains("networks.\"fast\".kind: read \"cni\"") && told.contains("engine.kind = \"native\""), "{told}");
}
