//! The rows of the key table. A new key is a row here and a field in [`Config`], nothing else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Key;
#[cfg(doc)]
use crate::config::Config;
use crate::config::value::{Kind, Value};
use crate::config::{
    AcrossTenants, Builders, EngineChoice, FetchedBy, Freshness, LogFormat, PlaceholderImage, Reuse, StopPolicy, Unbounded, checks,
};
use crate::engine::NamespaceKind;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = secs(3600);
const DAY: Duration = secs(24 * 3600);
const WEEK: Duration = secs(7 * 24 * 3600);
const FRESH_TENANTS: &str = "with reuse = \"fresh\" each lease has a namespace that nobody had; use that, or \"retire\"";

/// A row of the table, by what the value is: a general one, a number, an optional number with 0 for none, or a duration.
macro_rules! key {
    ($section:literal, $name:literal, $flag:literal, $live:ident, $kind:expr, $default:expr, get $get:expr, set $set:expr, $doc:literal) => {
        Key {
            section: $section,
            name: $name,
            path: concat!($section, ".", $name),
            flag: $flag,
            kind: $kind,
            live: key!(@$live),
            doc: $doc,
            written_default: $default,
            get: $get,
            set: $set,
        }
    };
    ($section:literal, $name:literal, $flag:literal, $live:ident, $min:literal..$max:literal, |$c:ident| $field:expr, $doc:literal) => {
        key!(
            $section, $name, $flag, $live, Kind::Number { min: $min, max: $max, zero: None }, None,
            get |$c| Value::Number(u64::from($field)), set |$c, value| $field = value.small(), $doc
        )
    };
    ($section:literal, $name:literal, $flag:literal, $live:ident, 0 = $zero:literal, $max:literal, |$c:ident| $field:expr, $doc:literal) => {
        key!(
            $section, $name, $flag, $live, Kind::Number { min: 1, max: $max, zero: Some($zero) }, None,
            get |$c| Value::Number($field.map_or(0, u64::from)),
            set |$c, value| $field = Some(value.small()).filter(|number| *number > 0), $doc
        )
    };
    ($section:literal, $name:literal, $flag:literal, $live:ident, time $min:expr, $max:expr, |$c:ident| $field:expr, $doc:literal) => {
        key!(
            $section, $name, $flag, $live, Kind::Duration { min: $min, max: $max }, None,
            get |$c| Value::Duration($field), set |$c, value| $field = value.duration(), $doc
        )
    };
    (@live) => { true };
    (@restart) => { false };
}

/// All keys, in the order of the sample file.
pub const KEYS: &[Key] = &[
    key!(
        "pool",
        "name",
        "pool",
        restart,
        Kind::Text(checks::POOL_NAME),
        None,
        get | c | Value::Text(c.pool.name.clone()),
        set | c,
        value | c.pool.name = value.text().to_owned(),
        "The pool's name. It is part of every buddy's name and label, so two pools on one engine need two names."
    ),
    key!("pool", "ready", "ready", live, 0..100_000, |c| c.pool.ready, "Slots kept ready, spread evenly over the networks."),
    key!("pool", "max", "max", live, 1..100_000, |c| c.pool.max, "Buddies that may exist at once, leased ones included."),
    key!(
        "pool",
        "networks",
        "networks",
        restart,
        Kind::List { item: checks::NETWORK, min: 1, max: 64 },
        None,
        get | c | Value::List(c.pool.networks.clone()),
        set | c,
        value | c.pool.networks = value.list().to_vec(),
        "Networks that the slots are on: the engine's, or with a table [networks.NAME] nspool's own. The first is the default."
    ),
    key!(
        "pool",
        "namespaces",
        "namespaces",
        restart,
        Kind::List { item: checks::NAMESPACE, min: 1, max: 5 },
        None,
        get | c | Value::List(c.pool.namespaces.iter().map(|kind| kind.proc_name().to_owned()).collect()),
        set | c,
        value | c.pool.namespaces = value.list().iter().map(|word| namespace_kind(word)).collect(),
        "Namespaces that functions may share with a buddy. Shared memory outlives the function that made it (ipc); with pid a function that is \
         root can end the buddy and see other processes, so pid goes only with reuse = \"once\". uts, the host's name, and user, to \
         which the others then belong, are to be had with engine.kind = \"native\" alone."
    ),
    key!(
        "pool",
        "user_ids",
        "user-ids",
        restart,
        Kind::Text(checks::USER_IDS),
        None,
        get | c | Value::Text(format!("{}:{}", c.pool.user_ids.first, c.pool.user_ids.count)),
        set | c,
        value | c.pool.user_ids = checks::user_ids(value.text()).unwrap_or(c.pool.user_ids),
        "With user in namespaces: the host's user and group ids that are 0, 1 and so on in there, as \"FIRST:COUNT\". Nobody else on the host should have them; the \
         default is above all that systemd and Debian give away."
    ),
    key!(
        "pool",
        "reuse",
        "reuse",
        restart,
        Kind::Choice { allowed: &["auto", "once", "always", "fresh", "verified"], refused: &[] },
        None,
        get | c | Value::Text(c.pool.reuse.map_or("auto", Reuse::word).to_owned()),
        set | c,
        value | c.pool.reuse =
            [Reuse::Once, Reuse::Always, Reuse::Fresh, Reuse::Verified].into_iter().find(|reuse| reuse.word() == value.text()),
        "What becomes of a buddy after a use. once: a new one for each use. always: the same namespace again, so that the next tenant can see \
         what the last one left in it. fresh: a new namespace under the same buddy; with managed networks, namespaces = [\"net\"] and the \
         embedded image only. verified: the same namespace again, once an inspection has proven that it is as it was when it was ready; else a new \
         buddy. auto: fresh where that can be, else once."
    ),
    key!(
        "pool",
        "privileged_joiners",
        "privileged-joiners",
        restart,
        Kind::Choice { allowed: &["retire", "inspect"], refused: &[] },
        None,
        get | c | Value::Text(c.pool.privileged_joiners.word().to_owned()),
        set | c,
        value | c.pool.privileged_joiners = if value.text() == "inspect" { Unbounded::Inspect } else { Unbounded::Retire },
        "With reuse = \"verified\", after a function that could do more than root with NET_ADMIN (privileged, SYS_ADMIN, sysctls, a writable /proc), or when it \
         cannot be told who was there. retire: a new buddy, as not all that they can do leaves traces. inspect: the settings of the network are compared as well."
    ),
    key!(
        "pool",
        "across_tenants",
        "across-tenants",
        live,
        Kind::Choice { allowed: &["allow", "retire"], refused: &[("fresh", FRESH_TENANTS)] },
        None,
        get | c | Value::Text(c.pool.across_tenants.word().to_owned()),
        set | c,
        value | c.pool.across_tenants = if value.text() == "retire" { AcrossTenants::Retire } else { AcrossTenants::Allow },
        "With reuse = \"verified\" or \"always\": whether a namespace that one tenant's functions were in goes to another tenant (as Allocate names them). \
         retire: it does not; when nothing else is ready it is given up, and a new buddy made."
    ),
    key!(
        "pool", "join_by", "join-by", live, time secs(1), DAY, |c| c.pool.join_by,
        "How long a lease waits for the first container to join, unless the caller says."
    ),
    key!(
        "pool", "linger", "linger", live, time Duration::ZERO, HOUR, |c| c.pool.linger,
        "How long a lease outlives the last container that joined it."
    ),
    key!(
        "pool", "count_every", "count-every", restart, time secs(0), HOUR, |c| c.pool.count_every,
        "How often processes are looked for that joined a lease by path, of which no engine tells: they count as its joiners. 0s: never."
    ),
    key!(
        "pool", "longest", "longest", restart, time secs(60), WEEK, |c| c.pool.longest,
        "The longest ttl, join_by and wait that a caller may ask for."
    ),
    key!(
        "pool", "settle", "settle", live, time Duration::ZERO, secs(60), |c| c.pool.settle,
        "After a lease: how long a container that was created to join, but never started, may take to go away before the buddy is retired."
    ),
    key!(
        "pool", "detach_after", "detach-after", live, time secs(1), DAY, |c| c.pool.detach_after,
        "How long a buddy that somebody is still in after its lease keeps its slot, before it is given up and only watched."
    ),
    key!(
        "pool",
        "max_detached",
        "max-detached",
        restart,
        0..100_000,
        |c| c.pool.max_detached,
        "Buddies given up like that at most; further ones keep their slots."
    ),
    key!("pool", "max_waiting", "max-waiting", restart, 0..1_000_000, |c| c.pool.max_waiting, "Allocate calls that may wait at once."),
    key!(
        "pool",
        "quota_per_uid",
        "quota-per-uid",
        restart,
        0 = "no quota",
        100_000,
        |c| c.pool.quota_per_uid,
        "Leases that one uid may have at once."
    ),
    key!(
        "pool", "remember", "remember", restart, time secs(1), DAY, |c| c.pool.remember,
        "How long the token and the request id of a lease that ended are remembered, for calls that are repeated."
    ),
    key!("pool", "remember_max", "remember-max", restart, 16..10_000_000, |c| c.pool.remember_max, "Leases that ended remembered at most."),
    key!(
        "pool", "trim_after", "trim-after", restart, time secs(1), DAY, |c| c.pool.trim_after,
        "A ready slot beyond `ready` is given up after this long without need."
    ),
    key!(
        "pool",
        "watch_backlog",
        "watch-backlog",
        restart,
        16..1_000_000,
        |c| c.pool.watch_backlog,
        "Events kept for watchers that come back."
    ),
    key!(
        "placeholder",
        "image",
        "placeholder-image",
        restart,
        Kind::Text(checks::IMAGE),
        None,
        get | c
            | Value::Text(match &c.placeholder.image {
                PlaceholderImage::Embedded => "embedded".to_owned(),
                PlaceholderImage::Reference(reference) => reference.clone(),
            }),
        set | c,
        value | c.placeholder.image = match value.text() {
            "embedded" => PlaceholderImage::Embedded,
            reference => PlaceholderImage::Reference(reference.to_owned()),
        },
        "The built-in image, which needs no registry, or a reference that is pulled when it is not there."
    ),
    key!(
        "placeholder",
        "command",
        "placeholder-command",
        restart,
        Kind::Words { item: checks::WORD, max: 64 },
        None,
        get | c | Value::List(c.placeholder.command.clone()),
        set | c,
        value | c.placeholder.command = value.list().to_vec(),
        "What the image runs, e.g. [\"tail\", \"-f\", \"/dev/null\"]. Empty: the image's own; the embedded image takes none."
    ),
    key!(
        "placeholder",
        "user",
        "placeholder-user",
        restart,
        Kind::Text(checks::USER),
        None,
        get | c | Value::Text(c.placeholder.user.clone()),
        set | c,
        value | c.placeholder.user = value.text().to_owned(),
        "The uid and gid of the buddies; no function should run with them."
    ),
    key!(
        "placeholder",
        "memory",
        "placeholder-memory",
        restart,
        Kind::Size { min: 6 << 20, max: 1 << 40 },
        None,
        get | c | Value::Number(u64::try_from(c.placeholder.memory).unwrap_or(0)),
        set | c,
        value | c.placeholder.memory = i64::try_from(value.number()).unwrap_or(i64::MAX),
        "Memory limit of a buddy. runc's own start needs some room."
    ),
    key!(
        "placeholder",
        "pids",
        "placeholder-pids",
        restart,
        Kind::Number { min: 2, max: 32_768, zero: None },
        None,
        get | c | Value::Number(u64::try_from(c.placeholder.pids).unwrap_or(0)),
        set | c,
        value | c.placeholder.pids = i64::from(value.small()),
        "Task limit of a buddy. runc's own start needs some room."
    ),
    key!(
        "placeholder", "prepare_timeout", "placeholder-prepare-timeout", restart, time secs(1), DAY, |c| c.placeholder.prepare_timeout,
        "One pull or load of the image takes at most this long."
    ),
    key!(
        "images",
        "fetch_timeout",
        "image-fetch-timeout",
        restart,
        time secs(1), DAY,
        |c| c.images.fetch_timeout,
        "How long fetching an image, or pushing one, may take, with the wait for its turn and all attempts."
    ),
    key!(
        "images",
        "attempts",
        "image-attempts",
        restart,
        1..100,
        |c| c.images.attempts,
        "How often a registry is asked for an image that does not come, with waits between as in [backoff], or as long as the registry says."
    ),
    key!(
        "images",
        "concurrent",
        "image-concurrent",
        restart,
        1..64,
        |c| c.images.concurrent,
        "Images that are fetched at once; the others wait."
    ),
    key!(
        "images",
        "concurrent_while_filling",
        "image-concurrent-while-filling",
        restart,
        1..256,
        |c| c.images.concurrent_while_filling,
        "The same while fewer slots are ready than should be: beside a large fetch a container is created slowly. Those under way go on."
    ),
    key!(
        "images",
        "freshness",
        "image-freshness",
        restart,
        Kind::Choice { allowed: &["always", "ttl", "never"], refused: &[] },
        None,
        get | c | Value::Text(c.images.freshness.word().to_owned()),
        set | c,
        value | c.images.freshness = Freshness::of(value.text()),
        "When a registry is asked whether an image that is here, by a tag, is still what it has: each time somebody asks for the image, when \
         fresh_for has passed, or never. The placeholder is asked about once a minute with always."
    ),
    key!(
        "images",
        "fresh_for",
        "image-fresh-for",
        restart,
        time secs(1), secs(365 * 24 * 3600),
        |c| c.images.fresh_for,
        "With freshness = ttl: for how long nobody asks. Of what was here before nspool, counted from when it was first asked for. In any \
         case, for how long a layer that was seen in a registry is taken to be there when an image is pushed."
    ),
    key!(
        "images",
        "queue",
        "image-queue",
        restart,
        1..10_000,
        |c| c.images.queue,
        "Images that may be looked for, fetched and waited for at once, however many ask for each."
    ),
    key!(
        "images",
        "failed_for",
        "image-failed-for",
        restart,
        time MILLISECOND, HOUR,
        |c| c.images.failed_for,
        "How long a registry is not asked again after a no that would be the same: no such image, not allowed, no space left."
    ),
    key!("images", "remember", "image-remember", restart, 1..100_000, |c| c.images.remember, "Images that the list remembers at most."),
    key!(
        "images",
        "keep_failures",
        "image-keep-failures",
        restart,
        0..10_000,
        |c| c.images.keep_failures,
        "Failures that are kept for `nspool image list`."
    ),
    key!(
        "images",
        "build_timeout",
        "image-build-timeout",
        restart,
        time secs(1), DAY,
        |c| c.images.build_timeout,
        "How long building an image may take, with the wait for its turn."
    ),
    key!(
        "images",
        "context_limit",
        "image-context-limit",
        restart,
        Kind::Size { min: 64 << 10, max: 1 << 40 },
        None,
        get | c | Value::Number(c.images.context_limit),
        set | c,
        value | c.images.context_limit = value.number(),
        "The largest context that is built from, without what .dockerignore leaves out."
    ),
    key!(
        "images",
        "spool",
        "image-spool",
        restart,
        Kind::Text(checks::FOLDER),
        None,
        get | c | Value::Text(c.images.spool.display().to_string()),
        set | c,
        value | c.images.spool = PathBuf::from(value.text()),
        "Where contexts lie, without names, on their way to the builder, and images on their way to a registry if there is no store: a disk with \
         room for them, not memory."
    ),
    key!(
        "images",
        "store",
        "image-store",
        restart,
        Kind::Text(checks::FOLDER),
        None,
        get | c | Value::Text(c.images.store.display().to_string()),
        set | c,
        value | c.images.store = PathBuf::from(value.text()),
        "The host's own images (`nspool image import`), if the folder is there: what the engine has not is loaded from it, before a registry is asked."
    ),
    key!(
        "images",
        "fetched_by",
        "image-fetched-by",
        restart,
        Kind::Choice { allowed: &["engine", "nspool"], refused: &[] },
        None,
        get | c | Value::Text(c.images.fetched_by.word().to_owned()),
        set | c,
        value | c.images.fetched_by = if value.text() == "nspool" { FetchedBy::Nspool } else { FetchedBy::Engine },
        "Who fetches what callers ask for by a tag: engine, by its own mirrors and proxies, or nspool, into the store, from which each engine of \
         this host is loaded, and is again when it was wiped. The second needs room for both. What a caller's own credentials are for is always pulled by \
         the engine."
    ),
    key!(
        "images",
        "lock_bound",
        "image-lock-bound",
        restart,
        time MILLISECOND, HOUR,
        |c| c.images.lock_bound,
        "A lock of images (`store`, `image_cache`, `image_builds`) that is held for longer is a line in the log."
    ),
    key!(
        "images",
        "room",
        "image-room",
        live,
        Kind::Size { min: 0, max: 1 << 50 },
        None,
        get | c | Value::Number(c.images.room),
        set | c,
        value | c.images.room = value.number(),
        "What the engine's images may take, layers counted once; 0 means no limit. Above it those that came by nspool and were asked for the longest ago are removed, \
         down to nine tenths of it; never what a container uses, or what is held."
    ),
    key!(
        "images",
        "room_for_others",
        "image-room-for-others",
        live,
        Kind::Switch,
        None,
        get | c | Value::Switch(c.images.room_for_others),
        set | c,
        value | c.images.room_for_others = value.is_on(),
        "Images that did not come by nspool (pulled, built or named by others) may be removed for room, too; those that nobody asked nspool for go by the date they were built. \
         Without this they are only counted."
    ),
    key!(
        "images",
        "store_room",
        "image-store-room",
        live,
        Kind::Size { min: 0, max: 1 << 50 },
        None,
        get | c | Value::Number(c.images.store_room),
        set | c,
        value | c.images.store_room = value.number(),
        "What the host's own images (store) may take; 0 means no limit. Above it those that were asked for the longest ago are removed, down to nine tenths of it."
    ),
    key!(
        "images",
        "hold",
        "image-hold",
        live,
        time Duration::ZERO, WEEK,
        |c| c.images.hold,
        "For how long an image that EnsureImage or BuildImage answered is not removed for room: who asked is about to create from it."
    ),
    key!(
        "images",
        "builders",
        "image-builders",
        restart,
        Kind::Choice { allowed: &["operators", "everybody"], refused: &[] },
        None,
        get | c | Value::Text(c.images.builders.word().to_owned()),
        set | c,
        value | c.images.builders = if value.text() == "everybody" { Builders::Everybody } else { Builders::Operators },
        "Who may build images: operators (root, the daemon's own uid and [api] admin_uids), or everybody who may call. Only operators may name a \
         folder of the host as context: it is read by the daemon's rights."
    ),
    key!(
        "engine",
        "kind",
        "engine-kind",
        restart,
        Kind::Choice { allowed: &["auto", "docker", "podman", "native"], refused: &[] },
        None,
        get | c | Value::Text(c.engine.kind.word().to_owned()),
        set | c,
        value | {
            let all = [EngineChoice::Docker, EngineChoice::Podman, EngineChoice::Native];
            c.engine.kind = all.into_iter().find(|kind| kind.word() == value.text()).unwrap_or(EngineChoice::Auto);
        },
        "Which engine to look for. auto: Docker, else podman, and none only where nothing on the host speaks of them (a socket, DOCKER_HOST, a unit or a client's \
         configuration of Docker's). native: none, nspool makes the namespaces itself, and functions join them by path."
    ),
    key!(
        "engine",
        "endpoint",
        "engine-endpoint",
        restart,
        Kind::Text(checks::ENGINE_ENDPOINT),
        None,
        get | c | Value::Text(c.engine.endpoint.clone().unwrap_or_default()),
        set | c,
        value | c.engine.endpoint = Some(value.text().to_owned()).filter(|endpoint| !endpoint.is_empty()),
        "Where it listens. Empty: DOCKER_HOST, then the usual sockets."
    ),
    key!("engine", "read_timeout", "engine-read-timeout", restart, time secs(1), HOUR, |c| c.engine.read_timeout, "Deadline of a call that reads."),
    key!(
        "engine", "write_timeout", "engine-write-timeout", restart, time secs(1), HOUR, |c| c.engine.write_timeout,
        "Deadline of a create, start, rename or remove."
    ),
    key!(
        "engine", "probe_every", "engine-probe-every", restart, time Duration::from_millis(100), HOUR, |c| c.engine.probe_every,
        "How often a silent engine is asked whether it lives."
    ),
    key!(
        "cni",
        "conf_dir",
        "cni-conf-dir",
        restart,
        Kind::Text(checks::FOLDER),
        None,
        get | c | Value::Text(c.cni.conf_dir.to_string_lossy().into_owned()),
        set | c,
        value | c.cni.conf_dir = PathBuf::from(value.text()),
        "Where networks of CNI are configured: files that end in .conflist, .conf or .json, of which the first one by name with the network's name counts. \
         Read each time that a namespace gets its link."
    ),
    key!(
        "cni",
        "bin_dirs",
        "cni-bin-dirs",
        restart,
        Kind::List { item: checks::FOLDER, min: 1, max: 16 },
        None,
        get | c | Value::List(c.cni.bin_dirs.iter().map(|dir| dir.to_string_lossy().into_owned()).collect()),
        set | c,
        value | c.cni.bin_dirs = value.list().iter().map(PathBuf::from).collect(),
        "Where CNI plugins are looked for; the first folder that has one counts."
    ),
    key!(
        "cni", "timeout", "cni-timeout", restart, time secs(1), secs(300), |c| c.cni.timeout,
        "How long a CNI plugin may take, each time; one that takes longer is killed, with all that it started."
    ),
    key!("pacer", "rate", "pacer-rate", live, 0 = "no limit", 100_000, |c| c.pacer.rate, "Preparations of buddies per second."),
    key!("pacer", "burst", "pacer-burst", live, 1..100_000, |c| c.pacer.burst, "Preparations that may come at once."),
    key!(
        "pacer",
        "concurrent",
        "pacer-concurrent",
        live,
        1..1_000,
        |c| c.pacer.concurrent,
        "Creates, starts, renames and removals in flight at once."
    ),
    key!("backoff", "first", "backoff-first", live, time MILLISECOND, HOUR, |c| c.backoff.first, "After the first failure; doubles with each further one."),
    key!("backoff", "longest", "backoff-longest", live, time MILLISECOND, DAY, |c| c.backoff.longest, "The longest wait."),
    key!(
        "backoff", "healthy_after", "backoff-healthy-after", live, time Duration::ZERO, DAY, |c| c.backoff.healthy_after,
        "A buddy that lived this long makes its slot's failures forgotten."
    ),
    key!(
        "api",
        "listen",
        "listen",
        restart,
        Kind::List { item: checks::LISTEN, min: 1, max: 8 },
        None,
        get | c | Value::List(c.api.listen.iter().map(|path| format!("unix:{}", path.display())).collect()),
        set | c,
        value | c.api.listen = value.list().iter().map(|text| socket_path(text)).collect(),
        "Unix sockets to listen on. When systemd passes sockets, those are used instead."
    ),
    key!(
        "api",
        "mode",
        "api-mode",
        restart,
        Kind::Mode,
        None,
        get | c | Value::Number(u64::from(c.api.mode)),
        set | c,
        value | c.api.mode = value.small(),
        "Permission bits of the sockets."
    ),
    key!(
        "api",
        "group",
        "api-group",
        restart,
        Kind::Text(checks::GROUP),
        None,
        get | c | Value::Text(c.api.group.clone().unwrap_or_default()),
        set | c,
        value | c.api.group = Some(value.text().to_owned()).filter(|group| !group.is_empty()),
        "Group of the sockets. Empty: nspool, if there is such a group. Who may open a socket can take every lease there is."
    ),
    key!(
        "api",
        "admin_uids",
        "api-admin-uids",
        restart,
        Kind::Numbers { max: 64 },
        None,
        get | c | Value::Numbers(c.api.admin_uids.clone()),
        set | c,
        value | c.api.admin_uids = value.numbers().to_vec(),
        "Who may resize, cordon, drain, recycle and release by force, besides root and the daemon's own uid."
    ),
    key!("api", "timeout", "api-timeout", restart, time MILLISECOND, HOUR, |c| c.api.timeout, "Deadline of a call that brings none."),
    key!(
        "api",
        "max_message",
        "api-max-message",
        restart,
        Kind::Size { min: 4 << 10, max: 16 << 20 },
        None,
        get | c | Value::Number(u64::try_from(c.api.max_message).unwrap_or(u64::MAX)),
        set | c,
        value | c.api.max_message = usize::try_from(value.number()).unwrap_or(usize::MAX),
        "The largest message taken."
    ),
    key!("api", "max_streams", "api-max-streams", restart, 1..1_000_000, |c| c.api.max_streams, "Calls in flight per connection."),
    key!(
        "metrics",
        "listen",
        "metrics-listen",
        restart,
        Kind::Text(checks::METRICS_LISTEN),
        None,
        get | c | Value::Text(c.metrics.listen.map(|address| address.to_string()).unwrap_or_default()),
        set | c,
        value | c.metrics.listen = value.text().parse().ok(),
        "Address and port to serve them on. Empty: nowhere."
    ),
    key!(
        "log",
        "format",
        "log-format",
        restart,
        Kind::Choice { allowed: &["text", "json"], refused: &[] },
        None,
        get | c
            | Value::Text(
                match c.log.format {
                    LogFormat::Text => "text",
                    LogFormat::Json => "json",
                }
                .into()
            ),
        set | c,
        value | c.log.format = if value.text() == "json" { LogFormat::Json } else { LogFormat::Text },
        "One readable line, or one JSON object, per event."
    ),
    key!(
        "log",
        "filter",
        "log-filter",
        live,
        Kind::Text(checks::FILTER),
        None,
        get | c | Value::Text(c.log.filter.clone()),
        set | c,
        value | c.log.filter = value.text().to_owned(),
        "How much."
    ),
    key!(
        "state",
        "dir",
        "state-dir",
        restart,
        Kind::Text(checks::DIRECTORY),
        Some("\"/run/nspool/default\""),
        get | c | Value::Text(c.state.dir.to_string_lossy().into_owned()),
        set | c,
        value | c.state.dir = PathBuf::from(value.text()),
        "Made with mode 0700 when it is not there. By default it is named after the pool."
    ),
    key!(
        "state",
        "namespaces",
        "state-namespaces",
        restart,
        Kind::Text(checks::DIRECTORY),
        None,
        get | c | Value::Text(c.state.namespaces.to_string_lossy().into_owned()),
        set | c,
        value | c.state.namespaces = PathBuf::from(value.text()),
        "Where namespaces are mounted, to be joined by path: DIR/POOL/NAMESPACE_ID/net, which is there as long as the lease is."
    ),
    key!(
        "audit", "every", "audit-every", restart, time secs(0), DAY, |c| c.audit.every,
        "The daemon compares its slots with ledger, engine and kernel this often, and reports what does not agree. 0s: never."
    ),
    key!(
        "stop",
        "policy",
        "stop-policy",
        restart,
        Kind::Choice { allowed: &["auto", "keep", "remove"], refused: &[] },
        None,
        get | c
            | match c.stop.policy {
                StopPolicy::Auto => Value::Text("auto".into()),
                StopPolicy::Keep => Value::Text("keep".into()),
                StopPolicy::Remove => Value::Text("remove".into()),
            },
        set | c,
        value | c.stop.policy = match value.text() {
            "keep" => StopPolicy::Keep,
            "remove" => StopPolicy::Remove,
            _ => StopPolicy::Auto,
        },
        "keep: slots and leases stay for the next start. remove: every buddy that nobody is in. auto: keep under systemd, remove otherwise."
    ),
    key!("stop", "timeout", "stop-timeout", restart, time secs(1), secs(600), |c| c.stop.timeout, "The whole stop takes at most this long."),
];

/// The path in `unix:/path` and `unix:///path`.
fn socket_path(text: &str) -> PathBuf {
    let path = text.strip_prefix("unix:").unwrap_or(text);
    Path::new(path.strip_prefix("//").unwrap_or(path)).to_owned()
}

/// Of a word that the check has let through.
fn namespace_kind(word: &str) -> NamespaceKind {
    match word {
        "ipc" => NamespaceKind::Ipc,
        "pid" => NamespaceKind::Pid,
        "uts" => NamespaceKind::Uts,
        "user" => NamespaceKind::User,
        _ => NamespaceKind::Net,
    }
}
