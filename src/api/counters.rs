//! The services' metrics, registered once: the way of an Allocate looks nothing up.

use metrics::{Counter, Histogram, counter, histogram};

use super::status::{REASONS, Reason};
use crate::pool::{Denied, Released};

/// Handles into the recorder that is installed when [`Counters::new`] is called.
pub(super) struct Counters {
    pub(super) granted: Counter,
    pub(super) repeated: Counter,
    refused: [Counter; REASONS.len()],
    /// Seconds, of those that waited.
    pub(super) wait: Histogram,
    returned: Counter,
    joiner_still_there: Counter,
    already_released: Counter,
    already_ended: Counter,
    unknown: Counter,
}

impl Counters {
    pub(super) fn new() -> Self {
        let allocations = |outcome: &'static str| counter!("nspool_allocations_total", "outcome" => outcome);
        let releases = |outcome: &'static str| counter!("nspool_releases_total", "outcome" => outcome);
        Self {
            granted: allocations("granted"),
            repeated: allocations("repeated"),
            refused: REASONS.map(|reason| allocations(reason.metric())),
            wait: histogram!("nspool_allocate_wait_seconds"),
            returned: releases("returned"),
            joiner_still_there: releases("joiner_still_there"),
            already_released: releases("already_released"),
            already_ended: releases("already_ended"),
            unknown: releases(Reason::UnknownToken.metric()),
        }
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused[reason as usize].increment(1);
    }

    pub(super) fn released(&self, outcome: &Result<Released, Denied>) {
        match outcome {
            Ok(Released::Returned) => &self.returned,
            Ok(Released::JoinerStillThere) => &self.joiner_still_there,
            Ok(Released::AlreadyReleased) => &self.already_released,
            Ok(Released::AlreadyEnded(_)) => &self.already_ended,
            Err(_) => &self.unknown,
        }
        .increment(1);
    }
}
