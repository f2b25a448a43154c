//! Every metric: its name, its kind, its unit, its labels, its help. Nobody else writes a metric's name.
//!
//! Use with the macros of the `metrics` crate: `metrics::counter!(metric::RELEASES, "outcome" => "returned").increment(1)`. Names follow
//! Prometheus' rules: base units, `_total` for counters, `_seconds` for durations.

/// Gauge, labels `state`, `network`: slots by state.
pub const SLOTS: &str = "nspool_slots";
/// Gauge: leases that are LOST and not yet released.
pub const LEASES_LOST: &str = "nspool_leases_lost";
/// Gauge: leases that are older than a minute and that no container has joined yet.
pub const LEASES_UNJOINED: &str = "nspool_leases_unjoined";
/// Gauge: 1 while no lease can be recorded.
pub const LEDGER_FAILING: &str = "nspool_ledger_failing";
/// Gauge: what the last audit by itself found not to agree.
pub const AUDIT_FINDINGS: &str = "nspool_audit_findings";
/// Counter, label `outcome`: audits by itself (`agreed`, `found`).
pub const AUDITS: &str = "nspool_audits_total";
/// Gauge: Allocate calls that wait.
pub const WAITING: &str = "nspool_waiting";
/// Gauge: slots that should be ready or in use.
pub const TARGET: &str = "nspool_target";
/// Gauge: the most buddies there may be.
pub const MAX: &str = "nspool_max";
/// Gauge: buddies given up with somebody inside.
pub const DETACHED: &str = "nspool_detached";
/// Gauge: 1 while the engine answers.
pub const ENGINE_UP: &str = "nspool_engine_up";
/// Gauge: 1 while the placeholder image is there.
pub const IMAGE_READY: &str = "nspool_image_ready";
/// Gauge: 1 while nothing is handed out by order.
pub const CORDONED: &str = "nspool_cordoned";
/// Gauge, labels `version`, `engine`: always 1.
pub const BUILD_INFO: &str = "nspool_build_info";
/// Counter, label `outcome`: Allocate calls (`granted`, `repeated`, or a reason in lower case).
pub const ALLOCATIONS: &str = "nspool_allocations_total";
/// Counter: Allocate calls that found nothing ready at once.
pub const MISSES: &str = "nspool_allocate_misses_total";
/// Histogram: from an Allocate call to its answer, granted ones.
pub const ALLOCATE_WAIT: &str = "nspool_allocate_wait_seconds";
/// Histogram: from the decision to fill a slot to Ready.
pub const FILL: &str = "nspool_fill_seconds";
/// Histogram: from the order to move to the new network namespace, proven.
pub const RENEWAL: &str = "nspool_renewal_seconds";
/// Histogram: a namespace's link, addresses and routes.
pub const FURNISHING: &str = "nspool_furnishing_seconds";
/// Counter: helper processes that ended, or did not answer, and were followed by another.
pub const HELPERS: &str = "nspool_helper_restarts_total";
/// Counter, label `outcome`: renewals (`ready`, or why the buddy was given up).
pub const RENEWALS: &str = "nspool_renewals_total";
/// Histogram: from an empty, fenced use to Ready in a new network namespace.
pub const RENEWED: &str = "nspool_renewed_seconds";
/// Counter, label `outcome`: inspections of buddies that are to be used again as they are (`clean`, or the first difference).
pub const INSPECTIONS: &str = "nspool_inspections_total";
/// Histogram: inspections.
pub const INSPECTION: &str = "nspool_inspection_seconds";
/// Counter, label `kind`: what inspections removed, as it comes about by and by.
pub const LEFTOVERS: &str = "nspool_leftovers_removed_total";
/// Counter, labels `operation`, `outcome`: engine calls (`ok`, or the error's class in lower case).
pub const ENGINE_CALLS: &str = "nspool_engine_calls_total";
/// Histogram, label `operation`: engine calls without the pacer's wait.
pub const ENGINE_CALL: &str = "nspool_engine_call_seconds";
/// Histogram: how long mutations waited for the pacer.
pub const PACER_WAIT: &str = "nspool_pacer_wait_seconds";
/// Counter, label `outcome`: Release calls.
pub const RELEASES: &str = "nspool_releases_total";
/// Counter, label `cause`: leases that ended.
pub const LEASES_ENDED: &str = "nspool_leases_ended_total";
/// Counter, label `cause`: buddies that died.
pub const BUDDIES_DIED: &str = "nspool_buddies_died_total";
/// Counter: messages about an earlier generation or use, dropped.
pub const STALE_MESSAGES: &str = "nspool_stale_messages_total";
/// Counter, label `outcome`: EnsureImage calls that were answered (`present`, `fetched`, or a reason in lower case).
pub const IMAGE_ENSURES: &str = "nspool_image_ensures_total";
/// Counter, label `outcome`: fetches that asked a registry (`fetched`, or why not).
pub const IMAGE_FETCHES: &str = "nspool_image_fetches_total";
/// Counter: attempts of fetches after the first.
pub const IMAGE_RETRIES: &str = "nspool_image_retries_total";
/// Histogram: a fetch, with the wait for its turn and all attempts.
pub const IMAGE_FETCH: &str = "nspool_image_fetch_seconds";
/// Counter; label `outcome` (`built`, `changed`, or what is wrong).
pub const IMAGE_BUILDS: &str = "nspool_image_builds_total";
/// Histogram of seconds.
pub const IMAGE_BUILD: &str = "nspool_image_build_seconds";
/// Counter, label `outcome`: pushes to registries (`pushed`, or why not).
pub const IMAGE_PUSHES: &str = "nspool_image_pushes_total";
/// Counter, label `how`: layers of images that were pushed (`seen`, `mounted`, `present`, `uploaded`).
pub const IMAGE_PUSHED_LAYERS: &str = "nspool_image_pushed_layers_total";
/// Counter, label `outcome`: questions to registries whether an image is still what they have (`fresh`, `changed`, `unknown`).
pub const IMAGE_CHECKS: &str = "nspool_image_checks_total";
/// Gauge: images that callers asked for and of which nobody can tell whether they are still what the registry has.
pub const IMAGES_STALE: &str = "nspool_images_stale";
/// Gauge: since when that is so of the first of them, in seconds since 1970; 0: none.
pub const IMAGES_STALE_SINCE: &str = "nspool_images_stale_since";
/// Gauge: the same of the placeholder.
pub const PLACEHOLDER_STALE_SINCE: &str = "nspool_placeholder_stale_since";
/// Histogram, labels `stage` and `outcome` (`done`, `failed`): one part of an image's way.
pub const IMAGE_STAGE: &str = "nspool_image_stage_seconds";
/// Gauge: what the engine's images take, layers counted once, as last measured.
pub const IMAGE_BYTES: &str = "nspool_image_bytes";
/// Gauge: those of images that came by nspool.
pub const IMAGE_BYTES_OURS: &str = "nspool_image_bytes_ours";
/// Gauge: what the engine's images may take; 0: no limit.
pub const IMAGE_ROOM: &str = "nspool_image_room_bytes";
/// Gauge: what the host's own store takes, as last measured.
pub const IMAGE_STORE_BYTES: &str = "nspool_image_store_bytes";
/// Counter, labels `reason` (`room`, `disk_full`, `prune`, `store_room`), `outcome` (`removed`, `stays`, `kept`, `failed`): images that were to make room.
pub const IMAGES_REMOVED: &str = "nspool_images_removed_total";
/// Histogram: a measurement of the engine's images, with the removals that follow.
pub const IMAGE_SWEEP: &str = "nspool_image_sweep_seconds";
/// Gauge: 1 while it cannot be written down when images were used.
pub const IMAGE_USES_FAILING: &str = "nspool_image_uses_failing";
/// Histogram, label `lock`: how long a lock was waited for.
pub const LOCK_WAIT: &str = "nspool_lock_wait_seconds";
/// Histogram, label `lock`: how long it was held.
pub const LOCK_HOLD: &str = "nspool_lock_hold_seconds";
/// Counter, label `reason`: watchers that were cut off.
pub const WATCHERS_CUT: &str = "nspool_watchers_cut_total";

/// Engine work takes milliseconds to minutes.
const ENGINE_BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// An allocation takes microseconds, or as long as its caller waits.
const ALLOCATE_BUCKETS: &[f64] =
    &[0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0];

/// From a registry's word that nothing is new to a large image over a slow line.
const FETCH_BUCKETS: &[f64] = &[0.01, 0.05, 0.25, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// Work of the kernel, from fractions of a millisecond on.
const KERNEL_BUCKETS: &[f64] = &[0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.25, 1.0, 5.0];

/// A commit of small files takes less than a millisecond, a pull minutes.
const STAGE_BUCKETS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0, 300.0, 600.0];

/// A lock is held for microseconds.
const LOCK_BUCKETS: &[f64] = &[0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.01, 0.05, 0.25, 1.0];

/// Bounds of each histogram, in seconds.
pub const BUCKETS: &[(&str, &[f64])] = &[
    (ALLOCATE_WAIT, ALLOCATE_BUCKETS),
    (FILL, ENGINE_BUCKETS),
    (RENEWAL, KERNEL_BUCKETS),
    (FURNISHING, KERNEL_BUCKETS),
    (RENEWED, KERNEL_BUCKETS),
    (INSPECTION, KERNEL_BUCKETS),
    (IMAGE_FETCH, FETCH_BUCKETS),
    (IMAGE_BUILD, FETCH_BUCKETS),
    (IMAGE_SWEEP, FETCH_BUCKETS),
    (ENGINE_CALL, ENGINE_BUCKETS),
    (PACER_WAIT, ENGINE_BUCKETS),
    (IMAGE_STAGE, STAGE_BUCKETS),
    (LOCK_WAIT, LOCK_BUCKETS),
    (LOCK_HOLD, LOCK_BUCKETS),
];

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only goes up.
    Counter,
    /// Durations in seconds.
    Histogram,
}

/// Name, kind and help of all.
pub const ALL: &[(&str, Kind, &str)] = &[
    (SLOTS, Kind::Gauge, "Slots by state and network."),
    (LEASES_LOST, Kind::Gauge, "Leases that are lost and not yet released."),
    (LEASES_UNJOINED, Kind::Gauge, "Leases older than a minute that no container has joined."),
    (LEDGER_FAILING, Kind::Gauge, "1 while no lease can be recorded."),
    (AUDIT_FINDINGS, Kind::Gauge, "What the last audit by itself found not to agree."),
    (AUDITS, Kind::Counter, "Audits that ran by themselves, by outcome."),
    (WAITING, Kind::Gauge, "Allocate calls that wait for a slot."),
    (TARGET, Kind::Gauge, "Slots that should be ready or in use."),
    (MAX, Kind::Gauge, "Buddies that may exist at once."),
    (DETACHED, Kind::Gauge, "Buddies given up with somebody still inside."),
    (ENGINE_UP, Kind::Gauge, "1 while the engine answers."),
    (IMAGE_READY, Kind::Gauge, "1 while the placeholder image is there."),
    (CORDONED, Kind::Gauge, "1 while nothing is handed out by order."),
    (BUILD_INFO, Kind::Gauge, "Always 1; its labels say what runs."),
    (ALLOCATIONS, Kind::Counter, "Allocate calls by outcome."),
    (MISSES, Kind::Counter, "Allocate calls that found nothing ready at once."),
    (ALLOCATE_WAIT, Kind::Histogram, "From an Allocate call to its lease."),
    (FILL, Kind::Histogram, "From the decision to fill a slot until it is ready."),
    (HELPERS, Kind::Counter, "Helper processes that ended or did not answer and were followed by another."),
    (RENEWALS, Kind::Counter, "Renewals of a buddy's namespace by outcome."),
    (RENEWAL, Kind::Histogram, "From the order to move until the buddy is proven to be in its new network namespace."),
    (FURNISHING, Kind::Histogram, "A namespace's link, addresses and routes."),
    (RENEWED, Kind::Histogram, "From an empty, fenced use until the slot is ready in a new namespace."),
    (INSPECTIONS, Kind::Counter, "Inspections of used namespaces by outcome."),
    (INSPECTION, Kind::Histogram, "The inspection of a used namespace."),
    (LEFTOVERS, Kind::Counter, "Connections, neighbours and their like that inspections removed."),
    (ENGINE_CALLS, Kind::Counter, "Engine calls by operation and outcome."),
    (ENGINE_CALL, Kind::Histogram, "Engine calls by operation, without waiting for the pacer."),
    (PACER_WAIT, Kind::Histogram, "How long engine calls waited for the pacer."),
    (RELEASES, Kind::Counter, "Release calls by outcome."),
    (LEASES_ENDED, Kind::Counter, "Leases that ended, by cause."),
    (BUDDIES_DIED, Kind::Counter, "Buddies that died, by cause."),
    (IMAGE_ENSURES, Kind::Counter, "Answered EnsureImage calls by outcome."),
    (IMAGE_FETCHES, Kind::Counter, "Fetches of images from registries by outcome."),
    (IMAGE_RETRIES, Kind::Counter, "Attempts to fetch an image after the first."),
    (IMAGE_BUILDS, Kind::Counter, "Builds of images by outcome."),
    (IMAGE_BUILD, Kind::Histogram, "From the first wait for a turn until an image is built or given up."),
    (IMAGE_PUSHES, Kind::Counter, "Pushes of images to registries by outcome."),
    (IMAGE_PUSHED_LAYERS, Kind::Counter, "Layers of images that were pushed, by how they came into their repository."),
    (IMAGE_CHECKS, Kind::Counter, "Questions whether an image is still what its registry has, by outcome."),
    (IMAGES_STALE, Kind::Gauge, "Images that callers asked for and whose registry could not be asked in time whether they changed."),
    (IMAGES_STALE_SINCE, Kind::Gauge, "Since when the first of them is stale, in seconds since 1970; 0: none is."),
    (PLACEHOLDER_STALE_SINCE, Kind::Gauge, "Since when the placeholder's registry could not be asked, in seconds since 1970; 0: it could."),
    (IMAGE_FETCH, Kind::Histogram, "From the first wait for a turn until an image is fetched or given up."),
    (IMAGE_STAGE, Kind::Histogram, "Parts of an image's way, by stage and outcome."),
    (IMAGE_BYTES, Kind::Gauge, "What the engine's images take, layers counted once, as last measured."),
    (IMAGE_BYTES_OURS, Kind::Gauge, "What those of them take that came by nspool."),
    (IMAGE_ROOM, Kind::Gauge, "What the engine's images may take; 0: no limit."),
    (IMAGE_STORE_BYTES, Kind::Gauge, "What the host's own image store takes, as last measured."),
    (IMAGES_REMOVED, Kind::Counter, "Images that were to be removed to make room, by reason and outcome."),
    (IMAGE_SWEEP, Kind::Histogram, "A measurement of the engine's images, with the removals that follow."),
    (IMAGE_USES_FAILING, Kind::Gauge, "1 while it cannot be written down when images were used."),
    (LOCK_WAIT, Kind::Histogram, "How long a lock was waited for."),
    (LOCK_HOLD, Kind::Histogram, "How long a lock was held."),
    (STALE_MESSAGES, Kind::Counter, "Messages about an earlier generation or use, dropped."),
    (WATCHERS_CUT, Kind::Counter, "Watch streams that were cut off, by reason."),
];

/// Tells the recorder what each is; once, after it is installed.
pub fn describe_all() {
    for (name, kind, help) in ALL {
        match kind {
            Kind::Gauge => metrics::describe_gauge!(*name, *help),
            Kind::Counter => metrics::describe_counter!(*name, *help),
            Kind::Histogram => metrics::describe_histogram!(*name, metrics::Unit::Seconds, *help),
        }
    }
}
