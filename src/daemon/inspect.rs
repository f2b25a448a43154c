//! What people are shown of a slot's namespaces: the nannies' snapshots in the words of the API, which knows neither.

use std::sync::Arc;

use crate::api::{Differs, Inspected, Inspections};
use crate::nanny::verify::Snapshots;
use crate::netns::inspection::{Difference, Seen};

/// What cannot be read is a difference.
pub(super) fn inspections(snapshots: &Arc<Snapshots>) -> Inspections {
    let snapshots = Arc::clone(snapshots);
    Arc::new(move |slot, generation| {
        let snapshots = Arc::clone(&snapshots);
        Box::pin(async move {
            let seen = snapshots.look(slot, generation).await;
            seen.unwrap_or_else(|error| Some(Seen { differences: vec![error.into()], leftovers: Vec::new() })).map(inspected)
        })
    })
}

fn inspected(seen: Seen) -> Inspected {
    let differs = |difference: Difference| {
        let Difference { kind, subject, was, is } = difference;
        Differs { kind: kind.word(), subject, was, is }
    };
    Inspected {
        differences: seen.differences.into_iter().map(differs).collect(),
        leftovers: seen.leftovers.into_iter().map(|leftover| (leftover.kind.word(), leftover.count as u64)).collect(),
    }
}
