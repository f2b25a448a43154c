//! How far a fetch is: an engine's many words on many layers, added up.

use std::collections::BTreeMap;

use crate::engine::{LayerStage, PullStep};

/// More layers than any engine takes in one image; those beyond are not counted.
const MOST_LAYERS: usize = 256;

/// Counts over all layers that were named so far; they grow as the engine names more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The attempt under way, from 1; 0 until the registry is asked.
    pub attempt: u32,
    /// Layers that the engine has named.
    pub layers: u32,
    /// Of these, those that are in its store.
    pub layers_done: u32,
    /// Bytes that came in this attempt.
    pub bytes: u64,
    /// Of so many, as far as the registry has said.
    pub bytes_total: u64,
}

/// What is known of each layer in one attempt.
#[derive(Debug, Default)]
pub(super) struct Tally {
    attempt: u32,
    layers: BTreeMap<String, Layer>,
}

#[derive(Debug, Default)]
struct Layer {
    current: u64,
    total: u64,
    done: bool,
}

impl Tally {
    pub(super) fn of_attempt(attempt: u32) -> Self {
        Self { attempt, layers: BTreeMap::new() }
    }

    pub(super) fn hear(&mut self, step: PullStep) {
        if self.layers.len() >= MOST_LAYERS && !self.layers.contains_key(&step.layer) {
            return;
        }
        let layer = self.layers.entry(step.layer).or_default();
        match step.stage {
            LayerStage::Waiting => {}
            LayerStage::Downloading { current, total } => (layer.current, layer.total) = (current, total.max(current)),
            LayerStage::Downloaded => layer.current = layer.total,
            LayerStage::Done => (layer.current, layer.done) = (layer.total, true),
        }
    }

    pub(super) fn progress(&self) -> Progress {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Progress {
            attempt: self.attempt,
            layers: count(self.layers.len()),
            layers_done: count(self.layers.values().filter(|layer| layer.done).count()),
            bytes: self.layers.values().fold(0, |sum, layer| sum.saturating_add(layer.current)),
            bytes_total: self.layers.values().fold(0, |sum, layer| sum.saturating_add(layer.total)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_added_up_whatever_the_engine_says_of_them() {
        use LayerStage::{Done, Downloaded, Downloading, Waiting};
        let mut tally = Tally::of_attempt(2);
        let mut heard = |layer: &str, stage| {
            tally.hear(PullStep { layer: layer.into(), stage });
            let Progress { attempt, layers, layers_done, bytes, bytes_total } = tally.progress();
            assert_eq!(attempt, 2);
            (layers, layers_done, bytes, bytes_total)
        };
        assert_eq!(heard("a", Waiting), (1, 0, 0, 0));
        assert_eq!(heard("b", Done), (2, 1, 0, 0), "it was here already");
        assert_eq!(heard("a", Downloading { current: 3, total: 10 }), (2, 1, 3, 10));
        assert_eq!(heard("c", Downloading { current: 5, total: 0 }), (3, 1, 8, 15), "its size is not known");
        assert_eq!(heard("a", Downloaded), (3, 1, 15, 15));
        assert_eq!(heard("a", Done), (3, 2, 15, 15));
        assert_eq!(heard("d", Downloading { current: u64::MAX, total: u64::MAX }), (4, 2, u64::MAX, u64::MAX));
    }

    #[test]
    fn layers_without_end_are_not_kept() {
        let mut tally = Tally::default();
        for number in 0..=MOST_LAYERS {
            tally.hear(PullStep { layer: number.to_string(), stage: LayerStage::Done });
        }
        assert_eq!(tally.progress().layers as usize, MOST_LAYERS);
    }
}
