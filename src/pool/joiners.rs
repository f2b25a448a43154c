//! What containers do with the buddies' namespaces, as the engine's events and lists tell it. Told by container id; slots that are not
//! concerned are not touched.

use std::sync::Arc;

use super::leases::{Joiner, Lease, LeaseIndex};
use super::state::{Effect, Slot, SlotState, State};
use super::types::{Lifetime, Moment, PoolEvent, SlotIndex, Words};
use crate::random::HashMap;

/// One container that joins a buddy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinerSeen {
    /// The buddy's container id.
    pub buddy: Arc<str>,
    /// The joiner's container id.
    pub joiner: Arc<str>,
    /// Its label `nspool.namespace_id`, if it has one.
    pub namespace_id: Option<String>,
    /// It holds the namespace: running, paused, restarting.
    pub live: bool,
    /// The engine says that it can do no more than root with NET_ADMIN; see `engine::Container::bounded`. A list does not say.
    pub bounded: bool,
    /// When the engine was asked: this was so then, or after. Zero for what an event tells, which may be late by any time.
    pub as_of: Moment,
}

/// A lease of whose joiners no engine has told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untold {
    /// The buddy's container id.
    pub buddy: Arc<str>,
    /// Its own process; 0: it has none.
    pub pid: u32,
    /// Joiners that were found as processes.
    pub processes: Vec<Arc<str>>,
    /// The engine has told of one by now: its processes are no joiners of their own.
    pub is_told: bool,
}

/// What the id of a joiner that is a process begins with; a container's is hexadecimal.
const PROCESS: &str = "process ";

impl Joiner {
    /// Found by a search, not told by the engine.
    pub(super) fn is_process(&self) -> bool {
        self.id.starts_with(PROCESS)
    }
}

impl State {
    /// Leases without a joiner that is a container, and those with processes that are to be forgotten, since there is one by now.
    #[must_use]
    pub fn untold(&self) -> Vec<Untold> {
        let of = |lease: &Lease| {
            let processes: Vec<_> =
                lease.joiners.iter().filter(|joiner| joiner.is_process()).map(|joiner| Arc::clone(&joiner.id)).collect();
            let (namespace, is_told) = (&lease.namespace, lease.joiners.len() > processes.len());
            let untold = Untold { buddy: Arc::clone(&namespace.container_id), pid: namespace.pid, processes, is_told };
            (lease.lost.is_none() && !(is_told && untold.processes.is_empty())).then_some(untold)
        };
        self.leases.iter().filter_map(|(_, lease)| of(lease)).collect()
    }

    /// A container that joins a buddy exists, or runs now. One that runs without a present lease, or that names another one, dooms the slot.
    ///
    /// `false`: what was seen may have been before the buddy's present use, where its joiners were welcome. Nothing has changed; the engine is to
    /// be asked again.
    #[must_use]
    pub fn joined(&mut self, now: Moment, seen: &JoinerSeen) -> bool {
        let Some(&slot) = self.by_container.get(&seen.buddy) else { return true };
        let place = &mut self.slots[slot as usize];
        if matches!(place.state, SlotState::Vacating | SlotState::Renewing | SlotState::Cooling) {
            // The look that is under way, or the one before Ready, tells who is inside, unless they came in behind it.
            place.look_again |= seen.live;
            if !seen.bounded {
                place.found_unbounded();
            }
            return true;
        }
        let named_other = match (&seen.namespace_id, &place.namespace) {
            (Some(label), Some(namespace)) => *label != namespace.namespace_id,
            _ => false,
        };
        let named_own = seen.namespace_id.is_some() && !named_other;
        let known = place.lease.is_some_and(|index| self.leases[index].joiners.iter().any(|joiner| joiner.id == seen.joiner));
        if !named_own && !known && seen.as_of < place.use_since {
            return false;
        }
        if !seen.bounded && !known {
            self.slots[slot as usize].found_unbounded();
        }
        let place = &self.slots[slot as usize];
        match (place.state, place.lease) {
            (SlotState::Leased, Some(_)) if named_other && seen.live => {
                let why = format!("container {} joined with the label of another lease", short(&seen.joiner));
                self.intruded(now, slot, why.into());
            }
            (SlotState::Leased, Some(index)) if !named_other => self.joiner_of_lease(index, seen),
            (SlotState::Ready | SlotState::Adopting, _) if seen.live => {
                let why = format!("container {} joined without a lease", short(&seen.joiner));
                self.intruded(now, slot, why.into());
            }
            _ => {}
        }
        true
    }

    fn joiner_of_lease(&mut self, index: LeaseIndex, seen: &JoinerSeen) {
        let lease = &mut self.leases[index];
        if let Some(known) = lease.joiners.iter_mut().find(|joiner| joiner.id == seen.joiner) {
            known.live = seen.live;
            return;
        }
        lease.joiners.push(Joiner { id: Arc::clone(&seen.joiner), live: seen.live });
        lease.joined = true;
        if matches!(lease.request.lifetime, Lifetime::Joiners { .. }) {
            self.set_deadline(index, None);
        }
        self.record_changed(index);
        let note = self.note(index, &seen.joiner);
        self.effects.push(Effect::Event(PoolEvent::Joined(note)));
    }

    /// Whether a slot has this container.
    #[must_use]
    pub fn is_buddy(&self, container: &str) -> bool {
        self.by_container.contains_key(container)
    }

    /// Somebody joined a buddy, and is gone, who could do more than root with NET_ADMIN.
    pub fn joiner_was_unbounded(&mut self, buddy: &str) {
        if let Some(&slot) = self.by_container.get(buddy) {
            self.slots[slot as usize].found_unbounded();
        }
    }

    /// Somebody joined, and nobody can tell who: a container that was gone before it could be looked at, an engine that was away. `label`: the
    /// namespace that it was started for, as it says; without one of ours it may have been any.
    pub fn joiner_unknown(&mut self, label: Option<&str>) {
        let named = |place: &Slot| place.namespace.as_deref().is_some_and(|namespace| Some(&*namespace.namespace_id) == label);
        match self.slots.iter_mut().find(|place| named(place)) {
            Some(place) => place.found_unbounded(),
            None => self.slots.iter_mut().for_each(Slot::found_unbounded),
        }
    }

    /// Somebody is in a namespace that is not theirs: it is given up, and a lease on it is LOST.
    fn intruded(&mut self, now: Moment, slot: SlotIndex, why: Words) {
        let place = &mut self.slots[slot as usize];
        place.last_error = Some(why.clone());
        if place.doom.is_none() {
            place.doom = Some(why.clone());
        }
        let network = u32::from(place.network);
        match place.state {
            SlotState::Leased => {
                self.lose(now, slot, why);
                self.set_state(now, slot, SlotState::Vacating);
            }
            SlotState::Ready => self.set_state(now, slot, SlotState::Retiring),
            SlotState::Adopting
            | SlotState::Vacating
            | SlotState::Renewing
            | SlotState::Cooling
            | SlotState::Quarantined
            | SlotState::Retiring
            | SlotState::Idle
            | SlotState::Filling
            | SlotState::BackingOff => {}
        }
        self.rebalance(now, network);
    }

    /// A container ended but still exists, so it may start again: it counts as there, not as live.
    pub fn joiner_stopped(&mut self, buddy: &str, joiner: &str) {
        if let Some(index) = self.lease_on(buddy)
            && let Some(known) = self.leases[index].joiners.iter_mut().find(|known| &*known.id == joiner)
        {
            known.live = false;
        }
    }

    /// A container exists no more. After the last one a `joiners` lease has `linger` left.
    pub fn joiner_removed(&mut self, now: Moment, buddy: &str, joiner: &str) {
        let Some(index) = self.lease_on(buddy) else { return };
        let lease = &mut self.leases[index];
        let before = lease.joiners.len();
        lease.joiners.retain(|known| &*known.id != joiner);
        let last_left = before > 0 && lease.joiners.is_empty();
        if last_left && matches!(lease.request.lifetime, Lifetime::Joiners { .. }) {
            self.set_deadline(index, Some((now + self.rules.linger).max(self.grace_until)));
        }
    }

    fn lease_on(&self, buddy: &str) -> Option<LeaseIndex> {
        let slot = self.by_container.get(buddy)?;
        self.slots[*slot as usize].lease
    }

    /// The whole truth, after events may have been lost: what is in the list has joined, what is not has been removed. Answers those about whom
    /// the engine is to be asked again, as [`State::joined`] does.
    #[must_use]
    pub fn joiners_listed<'a>(&mut self, now: Moment, all: &'a [JoinerSeen]) -> Vec<&'a JoinerSeen> {
        let mut listed: HashMap<&str, Vec<&str>> = HashMap::default();
        for seen in all {
            listed.entry(&seen.buddy).or_default().push(&seen.joiner);
        }
        let mut gone: Vec<(Arc<str>, Arc<str>)> = Vec::new();
        for (_, lease) in &self.leases {
            let buddy = &lease.namespace.container_id;
            let present = listed.get(&**buddy).map_or(&[][..], Vec::as_slice);
            let missing = lease.joiners.iter().filter(|known| !present.contains(&&*known.id));
            gone.extend(missing.map(|known| (Arc::clone(buddy), Arc::clone(&known.id))));
        }
        for (buddy, joiner) in gone {
            self.joiner_removed(now, &buddy, &joiner);
        }
        let doubtful = all.iter().filter(|seen| !self.joined(now, seen)).collect();
        // Those of a predecessor's leases that were removed while no daemon was there.
        let left = |lease: &Lease| lease.joined && lease.joiners.is_empty() && lease.deadline.is_none() && lease.lost.is_none();
        let lingering: Vec<LeaseIndex> = self.leases.iter().filter(|(_, lease)| left(lease)).map(|(index, _)| index).collect();
        for index in lingering {
            if matches!(self.leases[index].request.lifetime, Lifetime::Joiners { .. }) {
                self.set_deadline(index, Some((now + self.rules.linger).max(self.grace_until)));
            }
        }
        doubtful
    }
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
