//! A ring of what happened, which watchers read at their own pace.

use std::collections::VecDeque;

use super::types::{Moment, PoolEvent};

/// A place in the stream of events. Positions of an earlier run of the daemon on this boot are smaller than any of this run's.
pub type Position = u64;

/// What a watcher has missed since its position.
#[derive(Clone, Debug)]
pub enum Backlog {
    /// These, and where to go on from.
    Events(Vec<PoolEvent>, Position),
    /// Too much, or never seen: begin anew with a snapshot, from this position.
    Reset(Position),
}

/// The last events, bounded.
#[derive(Debug)]
pub(super) struct Ring {
    events: VecDeque<PoolEvent>,
    /// Position of the first event in `events`.
    first: Position,
    most: usize,
}

impl Ring {
    /// Milliseconds since boot, shifted: no run makes a million events in each millisecond of its life.
    pub(super) fn first_position(now: Moment) -> Position {
        u64::try_from(now.as_millis()).unwrap_or(0) << 20
    }

    pub(super) fn new(first: Position, most: u32) -> Self {
        Self { events: VecDeque::new(), first, most: most.max(1) as usize }
    }

    pub(super) fn push(&mut self, event: PoolEvent) {
        if self.events.len() == self.most {
            self.events.pop_front();
            self.first += 1;
        }
        self.events.push_back(event);
    }

    /// The position after the last event.
    pub(super) fn end(&self) -> Position {
        self.first + self.events.len() as u64
    }

    pub(super) fn since(&self, position: Option<Position>) -> Backlog {
        let end = self.end();
        match position {
            Some(position) if (self.first..=end).contains(&position) => {
                let skip = usize::try_from(position - self.first).unwrap_or(usize::MAX);
                Backlog::Events(self.events.iter().skip(skip).cloned().collect(), end)
            }
            Some(_) | None => Backlog::Reset(end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cordon(cordoned: bool) -> PoolEvent {
        PoolEvent::Cordon { cordoned, draining: false }
    }

    #[test]
    fn a_position_is_good_until_its_event_has_left_the_ring() {
        let mut ring = Ring::new(100, 2);
        assert!(matches!(ring.since(None), Backlog::Reset(100)));
        for _ in 0..3 {
            ring.push(cordon(true));
        }
        assert!(matches!(ring.since(Some(100)), Backlog::Reset(103)), "its event is gone");
        assert!(matches!(ring.since(Some(101)), Backlog::Events(events, 103) if events.len() == 2));
        assert!(matches!(ring.since(Some(103)), Backlog::Events(events, 103) if events.is_empty()));
        assert!(matches!(ring.since(Some(104)), Backlog::Reset(103)), "never given out");
    }
}
