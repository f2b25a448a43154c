//! Between our words and the engine's: what a create asks for, what inspect, list and events say.
//!
//! Everything here is pure, but for the host's limits that podman needs. What the engine leaves out becomes an empty string or [`ContainerStatus::Unknown`], never a guess.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{
    ContainerCreateBody, EventMessage, EventMessageTypeEnum, HealthConfig, HostConfig, HostConfigLogConfig, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};
use rustix::process::{Resource, getrlimit};
use serde::Deserialize;

use super::powers::{Mount, Powers, is_bounded};
use crate::engine::{
    Address, BuddySpec, Container, ContainerStatus, ContainerSummary, EngineEvent, EngineKind, EventAction, Flavour, Labels, NamespaceKind,
};

/// The hostname of every buddy. Joiners get it too, so it says nothing of container, slot or host.
const HOSTNAME: &str = "nspool";

/// Docker switches it off where it gives no IPv6 address.
const IPV6_ON: [(&str, &str); 2] = [("net.ipv6.conf.all.disable_ipv6", "0"), ("net.ipv6.conf.default.disable_ipv6", "0")];

/// What a buddy is created with. A command that is given replaces the image's entrypoint and arguments both: it goes out as the entrypoint,
/// because both engines drop the image's own arguments when the entrypoint is set. `security` is of [`super::security::options`].
pub(super) fn create_body(kind: EngineKind, spec: &BuddySpec, security: Vec<String>) -> ContainerCreateBody {
    let ipc = if spec.namespaces.contains(&NamespaceKind::Ipc) { "shareable" } else { "private" };
    ContainerCreateBody {
        // Who joins a network namespace has the hostname of its owner, and may name no other.
        hostname: spec.joins().is_none().then(|| HOSTNAME.to_owned()),
        user: Some(spec.user.clone()),
        image: Some(spec.image.to_string()),
        entrypoint: (!spec.command.is_empty()).then(|| spec.command.clone()),
        labels: Some(spec.labels.clone().into_iter().collect()),
        // An image's own check would start a process in the buddy every 30 s.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        host_config: Some(HostConfig {
            network_mode: Some(spec.network.clone()),
            ipc_mode: Some(ipc.to_owned()),
            readonly_rootfs: Some(true),
            sysctls: spec.ipv6.then(|| IPV6_ON.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            cap_drop: Some(vec!["ALL".to_owned()]),
            cap_add: (spec.flavour == Flavour::Renewable).then(|| vec!["SYS_ADMIN".to_owned()]),
            security_opt: Some(security),
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            // Against a default of the engine's configuration: an init of the engine's would be the buddy's first process.
            init: Some(false),
            memory: Some(spec.memory_bytes),
            // Equal to the memory limit: no swap.
            memory_swap: Some(spec.memory_bytes),
            pids_limit: Some(spec.pids),
            ulimits: ulimits(kind),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// podman asks for a million descriptors and tasks on its own, which the kernel refuses where the service may not raise its limits. A buddy
/// needs few descriptors. The limit on tasks counts all of a user's on the host, thus all buddies together: it is left as high as podman's
/// own is, which it has lowered to the number of pids there can be, or to what programs on this host may have, this one too.
pub(super) fn ulimits(kind: EngineKind) -> Option<Vec<ResourcesUlimits>> {
    if kind != EngineKind::Podman {
        return None;
    }
    let limit = |name: &str, value| ResourcesUlimits { name: Some(name.to_owned()), soft: Some(value), hard: Some(value) };
    let pids: Option<i64> = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|text| text.trim().parse().ok());
    let own = getrlimit(Resource::Nproc).maximum.and_then(|most| i64::try_from(most).ok());
    let tasks = [pids, own].into_iter().flatten().min();
    Some([Some(limit("nofile", 1024)), tasks.map(|most| limit("nproc", most))].into_iter().flatten().collect())
}

/// Of `/version`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Version {
    pub(super) version: Option<String>,
    components: Option<Vec<Component>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: Option<String>,
}

impl Version {
    pub(super) fn kind(&self) -> EngineKind {
        let mut names = self.components.iter().flatten().filter_map(|component| component.name.as_deref());
        if names.any(|name| name.to_lowercase().contains("podman")) { EngineKind::Podman } else { EngineKind::Docker }
    }
}

/// `Docker/20.10.24 (linux)`, `Libpod/4.3.1 (linux)`; `None` for anything else, e.g. of a proxy.
pub(super) fn of_server(name: &str) -> Option<(EngineKind, String)> {
    let (program, rest) = name.split_once('/')?;
    let kind = match program {
        "Docker" => EngineKind::Docker,
        "Libpod" => EngineKind::Podman,
        _ => return None,
    };
    rest.split_whitespace().next().map(|version| (kind, version.to_owned()))
}

/// Of `/info`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Info {
    #[serde(rename = "ID")]
    pub(super) id: Option<String>,
    pub(super) docker_root_dir: Option<String>,
}

/// Of `/containers/<id>/json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspected {
    id: String,
    name: Option<String>,
    image: Option<String>,
    resolv_conf_path: Option<String>,
    hosts_path: Option<String>,
    hostname_path: Option<String>,
    state: State,
    host_config: Option<Modes>,
    config: Option<Config>,
    network_settings: Option<NetworkSettings>,
    mounts: Option<Vec<Mount>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    status: String,
    pid: Option<i64>,
    started_at: Option<String>,
    exit_code: Option<i64>,
    error: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Modes {
    network_mode: Option<String>,
    ipc_mode: Option<String>,
    pid_mode: Option<String>,
    #[serde(flatten)]
    powers: Powers,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    labels: Option<Labels>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    networks: Option<BTreeMap<String, Endpoint>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    #[serde(rename = "IPAddress")]
    v4: Option<String>,
    #[serde(rename = "IPPrefixLen")]
    v4_prefix: Option<i64>,
    gateway: Option<String>,
    #[serde(rename = "GlobalIPv6Address")]
    v6: Option<String>,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    v6_prefix: Option<i64>,
    #[serde(rename = "IPv6Gateway")]
    v6_gateway: Option<String>,
}

/// A row of `/containers/json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Row {
    id: String,
    names: Option<Vec<String>>,
    labels: Option<Labels>,
    state: Option<String>,
    host_config: Option<Modes>,
    #[serde(rename = "ImageID")]
    image_id: Option<String>,
}

/// What inspect says.
pub(super) fn container(answer: Inspected) -> Container {
    let state = answer.state;
    let modes = answer.host_config.unwrap_or_default();
    let status = status(&state.status);
    let bounded = is_bounded(&modes.powers, modes.pid_mode.as_deref().unwrap_or_default(), &answer.mounts.unwrap_or_default());
    Container {
        id: answer.id.into(),
        name: without_slash(&answer.name.unwrap_or_default()),
        status,
        pid: state.pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
        folder: None,
        started_at: state.started_at.unwrap_or_default(),
        exit_code: state.exit_code.filter(|_| has_ended(status)),
        error: state.error.unwrap_or_default(),
        labels: answer.config.and_then(|config| config.labels).unwrap_or_default(),
        image: answer.image.unwrap_or_default().into(),
        network_mode: modes.network_mode.unwrap_or_default(),
        ipc_mode: modes.ipc_mode.unwrap_or_default(),
        pid_mode: modes.pid_mode.unwrap_or_default(),
        addresses: addresses(&answer.network_settings.and_then(|settings| settings.networks).unwrap_or_default()),
        resolv_conf_path: answer.resolv_conf_path.unwrap_or_default(),
        hosts_path: answer.hosts_path.unwrap_or_default(),
        hostname_path: answer.hostname_path.unwrap_or_default(),
        bounded,
    }
}

/// Whether the exit code is one: engines say 0 for a container that never ran or still runs.
fn has_ended(status: ContainerStatus) -> bool {
    match status {
        ContainerStatus::Exited | ContainerStatus::Dead | ContainerStatus::Removing | ContainerStatus::Restarting => true,
        ContainerStatus::Created | ContainerStatus::Running | ContainerStatus::Paused | ContainerStatus::Unknown => false,
    }
}

/// IPv4 first, then IPv6, each in the order of the networks' names.
fn addresses(networks: &BTreeMap<String, Endpoint>) -> Vec<Address> {
    let v4 = networks.values().filter_map(|n| address(n.v4.as_ref(), n.v4_prefix, n.gateway.as_ref()));
    let v6 = networks.values().filter_map(|n| address(n.v6.as_ref(), n.v6_prefix, n.v6_gateway.as_ref()));
    v4.chain(v6).collect()
}

fn address(ip: Option<&String>, prefix: Option<i64>, gateway: Option<&String>) -> Option<Address> {
    let ip = ip.filter(|ip| !ip.is_empty())?;
    Some(Address { address: format!("{ip}/{}", prefix.unwrap_or(0)), gateway: gateway.cloned().unwrap_or_default() })
}

/// The engine's word for where a container is in its life. podman adds a few of its own.
fn status(word: &str) -> ContainerStatus {
    match word {
        "created" | "configured" | "initialized" => ContainerStatus::Created,
        "running" => ContainerStatus::Running,
        "paused" => ContainerStatus::Paused,
        "restarting" => ContainerStatus::Restarting,
        "removing" => ContainerStatus::Removing,
        "exited" | "stopped" => ContainerStatus::Exited,
        "dead" => ContainerStatus::Dead,
        // "stopping" has its processes still.
        _ => ContainerStatus::Unknown,
    }
}

/// One row of the list.
pub(super) fn summary(row: Row) -> ContainerSummary {
    ContainerSummary {
        id: row.id.into(),
        name: row.names.unwrap_or_default().first().map(|name| without_slash(name)).unwrap_or_default(),
        labels: row.labels.unwrap_or_default(),
        status: status(row.state.as_deref().unwrap_or_default()),
        network_mode: row.host_config.and_then(|modes| modes.network_mode).unwrap_or_default(),
        image: row.image_id.unwrap_or_default().into(),
    }
}

/// Docker keeps `container:<name>` as it was written when nothing had that name at the create, and looks the name up at the start. Such a row
/// joins whatever has the name now, if anything has.
pub(super) fn resolve_joined_names(rows: &mut [ContainerSummary]) {
    let ids: HashMap<String, String> = rows.iter().map(|row| (row.name.clone(), row.id.to_string())).collect();
    for row in rows {
        if let Some(id) = row.joins().and_then(|joined| ids.get(joined)) {
            row.network_mode = format!("container:{id}");
        }
    }
}

/// `None` for what nspool does not act upon.
pub(super) fn event(message: EventMessage) -> Option<EngineEvent> {
    let action = action(message.typ?, message.action.as_deref()?)?;
    let actor = message.actor.unwrap_or_default();
    let attributes: Labels = actor.attributes.unwrap_or_default().into_iter().collect();
    let name = if action == EventAction::ImageGone { String::new() } else { attributes.get("name").cloned().unwrap_or_default() };
    Some(EngineEvent { action, id: actor.id.unwrap_or_default(), name, attributes })
}

fn action(kind: EventMessageTypeEnum, word: &str) -> Option<EventAction> {
    if kind == EventMessageTypeEnum::IMAGE {
        // podman says `remove` where Docker says `delete`.
        return matches!(word, "delete" | "untag" | "remove").then_some(EventAction::ImageGone);
    }
    if kind != EventMessageTypeEnum::CONTAINER {
        return None;
    }
    match word {
        "create" => Some(EventAction::Created),
        "start" => Some(EventAction::Started),
        "die" | "died" => Some(EventAction::Died),
        "pause" => Some(EventAction::Paused),
        "unpause" => Some(EventAction::Unpaused),
        "rename" => Some(EventAction::Renamed),
        "destroy" | "remove" => Some(EventAction::Removed),
        _ => None,
    }
}

/// Name and tag (or digest) of a reference. Without one the tag is `latest`: an engine that is given none pulls *all* tags.
pub(super) fn split_reference(reference: &str) -> (&str, &str) {
    if let Some((name, digest)) = reference.split_once('@') {
        return (name, digest);
    }
    match reference.rsplit_once(':') {
        // A colon before the last slash belongs to the registry's port.
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (reference, "latest"),
    }
}

/// The registry that a reference names; Docker's own when it names none.
pub(super) fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// Whether a word may stand in a request's path: what is not a name or reference cannot exist, and must not become another path.
pub(super) fn is_path_safe(word: &str) -> bool {
    !word.is_empty()
        && word.len() <= 1024
        && word.chars().all(|c| c.is_ascii_alphanumeric() || "_.:/@-".contains(c))
        && word.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

fn without_slash(name: &str) -> String {
    name.strip_prefix('/').unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> BuddySpec {
        BuddySpec {
            name: "b".into(),
            image: "sha256:1".into(),
            command: vec!["/bin/init".into(), "x".into()],
            labels: Labels::from([("a".into(), "b".into())]),
            network: "bridge".into(),
            namespaces: vec![NamespaceKind::Net],
            user: "65533:65533".into(),
            memory_bytes: 16 << 20,
            pids: 16,
            flavour: Flavour::Fixed,
            ipv6: false,
        }
    }

    fn body(kind: EngineKind, spec: &BuddySpec) -> serde_json::Value {
        serde_json::to_value(create_body(kind, spec, vec!["no-new-privileges".into()])).unwrap()
    }

    #[test]
    fn who_answers_is_told_by_the_servers_name() {
        assert_eq!(of_server("Docker/20.10.24+dfsg1 (linux)"), Some((EngineKind::Docker, "20.10.24+dfsg1".into())));
        assert_eq!(of_server("Libpod/4.3.1 (linux)"), Some((EngineKind::Podman, "4.3.1".into())));
        for other in ["", "nginx/1.22", "Docker", "Docker/"] {
            assert_eq!(of_server(other), None, "{other}");
        }
    }

    #[test]
    fn a_buddy_is_created_with_nothing_it_does_not_need() {
        let body = body(EngineKind::Docker, &spec());
        assert_eq!(body["Entrypoint"], serde_json::json!(["/bin/init", "x"]));
        assert_eq!(body["Cmd"], serde_json::Value::Null);
        assert_eq!(body["Healthcheck"]["Test"], serde_json::json!(["NONE"]));
        assert_eq!(body["Hostname"], "nspool");
        let host = &body["HostConfig"];
        assert_eq!(host["ReadonlyRootfs"], true);
        assert_eq!((&host["CapDrop"], &host["CapAdd"]), (&serde_json::json!(["ALL"]), &serde_json::Value::Null));
        assert_eq!(host["SecurityOpt"], serde_json::json!(["no-new-privileges"]));
        assert_eq!(host["LogConfig"]["Type"], "none");
        assert_eq!(host["RestartPolicy"]["Name"], "no");
        assert_eq!(
            (host["Memory"].as_i64(), host["MemorySwap"].as_i64(), host["PidsLimit"].as_i64()),
            (Some(16 << 20), Some(16 << 20), Some(16))
        );
        assert_eq!((host["NetworkMode"].as_str(), host["IpcMode"].as_str()), (Some("bridge"), Some("private")));
        assert_eq!(host["Ulimits"], serde_json::Value::Null);
    }

    #[test]
    fn sharing_ipc_podman_and_an_images_own_command_change_what_they_must() {
        let spec = BuddySpec { command: vec![], namespaces: vec![NamespaceKind::Net, NamespaceKind::Ipc], ..spec() };
        let body = body(EngineKind::Podman, &spec);
        assert_eq!(body["Entrypoint"], serde_json::Value::Null);
        assert_eq!(body["HostConfig"]["IpcMode"], "shareable");
        assert_eq!(body["HostConfig"]["Ulimits"][0]["Name"], "nofile");
    }

    #[test]
    fn a_renewable_buddy_gets_one_capability_and_a_joiner_no_hostname() {
        let renewable = body(EngineKind::Docker, &spec().renewable());
        let host = &renewable["HostConfig"];
        assert_eq!((&host["CapDrop"], &host["CapAdd"]), (&serde_json::json!(["ALL"]), &serde_json::json!(["SYS_ADMIN"])));
        assert_eq!((host["NetworkMode"].as_str(), renewable["User"].as_str()), (Some("none"), Some("0:0")));
        assert_eq!((host["ReadonlyRootfs"].as_bool(), host["Privileged"].as_bool()), (Some(true), None));
        let joiner = body(EngineKind::Docker, &BuddySpec { network: "container:1".into(), ..spec() });
        assert_eq!(joiner["Hostname"], serde_json::Value::Null);
    }

    #[test]
    fn addresses_are_v4_before_v6_in_the_order_of_names() {
        let network = |v4: &str, v6: &str| Endpoint {
            v4: Some(v4.into()),
            v4_prefix: Some(16),
            v6: Some(v6.into()),
            v6_prefix: Some(64),
            ..Endpoint::default()
        };
        let networks = [("b".to_owned(), network("172.18.0.2", "fd00::2")), ("a".to_owned(), network("172.17.0.2", ""))];
        let found = addresses(&networks.into());
        let found: Vec<&str> = found.iter().map(|a| a.address.as_str()).collect();
        assert_eq!(found, ["172.17.0.2/16", "172.18.0.2/16", "fd00::2/64"]);
    }

    #[test]
    fn an_unknown_word_is_live() {
        assert_eq!(status("running"), ContainerStatus::Running);
        assert!(status("stopping").is_live());
        assert!(status("").is_live());
        assert!(!status("stopped").is_live());
    }

    #[test]
    fn answers_with_unknown_words_and_missing_parts_are_read() {
        let row: Row = serde_json::from_str(r#"{"Id":"1","Names":["/a"],"Labels":null,"State":"stopped","New":{"x":1}}"#).unwrap();
        let row = summary(row);
        assert_eq!((row.name.as_str(), row.status, row.network_mode.as_str()), ("a", ContainerStatus::Exited, ""));
        let text = r#"{"Id":"1","State":{"Status":"thawing","Health":{"Status":"odd"}},"NetworkSettings":{"Networks":null}}"#;
        let container = container(serde_json::from_str(text).unwrap());
        assert_eq!((container.status, container.addresses.len()), (ContainerStatus::Unknown, 0));
        assert!(serde_json::from_str::<Inspected>("{}").is_err(), "an answer without an id says nothing");
    }

    #[test]
    fn a_name_that_was_kept_is_resolved_to_who_has_it() {
        let row = |id: &str, name: &str, mode: &str| ContainerSummary {
            id: id.into(),
            name: name.into(),
            labels: Labels::new(),
            status: ContainerStatus::Created,
            network_mode: mode.into(),
            image: "sha256:aa".into(),
        };
        let mut rows = vec![row("1", "buddy", "bridge"), row("2", "late", "container:buddy"), row("3", "later", "container:gone")];
        resolve_joined_names(&mut rows);
        assert_eq!(rows.iter().map(ContainerSummary::joins).collect::<Vec<_>>(), [None, Some("1"), Some("gone")]);
    }

    #[test]
    fn events_have_one_word_for_both_engines() {
        use EventMessageTypeEnum as T;
        assert_eq!(action(T::CONTAINER, "destroy"), Some(EventAction::Removed));
        assert_eq!(action(T::CONTAINER, "remove"), Some(EventAction::Removed));
        assert_eq!(action(T::CONTAINER, "exec_create: sh"), None);
        assert_eq!(action(T::IMAGE, "untag"), Some(EventAction::ImageGone));
        assert_eq!(action(T::IMAGE, "pull"), None);
        assert_eq!(action(T::NETWORK, "remove"), None);
    }

    #[test]
    fn references_are_split_where_engines_split_them() {
        assert_eq!(split_reference("busybox"), ("busybox", "latest"));
        assert_eq!(split_reference("127.0.0.1:5000/a/b"), ("127.0.0.1:5000/a/b", "latest"));
        assert_eq!(split_reference("127.0.0.1:5000/a:1"), ("127.0.0.1:5000/a", "1"));
        assert_eq!(split_reference("a:1@sha256:00"), ("a:1", "sha256:00"));
        assert_eq!(
            (registry("busybox:1"), registry("a/b"), registry("localhost/b"), registry("r:5000/b")),
            ("docker.io", "docker.io", "localhost", "r:5000")
        );
    }

    #[test]
    fn a_word_that_would_change_the_path_is_no_name() {
        for good in ["a", "sha256:00", "127.0.0.1:5000/a-b/c:1.2", "x@sha256:0"] {
            assert!(is_path_safe(good), "{good}");
        }
        for bad in ["", "../images", "a/../b", "a?force=1", "a b", "a//b", "é", "a#b", "/a"] {
            assert!(!is_path_safe(bad), "{bad}");
        }
    }
}
