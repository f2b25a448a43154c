//! The pool's words in the ledger's: what is recorded as it happens, and the way back at the start of a daemon.
//!
//! Restored slots are *unproven*: their nannies look at the buddies first ([`Order::Adopt`](super::state::Order)). A leased one stays leased
//! meanwhile, a ready one is Adopting, so that nothing is handed out that was not proven by this daemon (I4). What the ledger does not tell is
//! nobody's here, and left to the recovery.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use super::ended::EndedLease;
use super::leases::{Known, Lease, LeaseIndex};
use super::state::{SlotState, State};
use super::tenants::Had;
use super::types::{Address, Cause, ConnectionId, Lifetime, Moment, Namespace, NetworkIndex, Request, SlotIndex, Token, UseKey};
use crate::ledger::Table;
use crate::ledger::encode;
use crate::ledger::record::{self, Record};

/// Nothing ends by itself for so long after a start: agents come back first.
pub const GRACE: Duration = Duration::from_secs(30);
/// Of a connection that did not survive the daemon; none has this number.
const GONE: ConnectionId = ConnectionId(u64::MAX);

/// Frames that were not handed to the ledger yet.
#[derive(Debug, Default)]
pub(super) struct Journal {
    pub(super) frames: Vec<u8>,
    /// Names of the networks; `None`: nothing is recorded.
    networks: Option<Arc<[String]>>,
}

impl Journal {
    fn push(&mut self, record: Record) {
        encode(record, &mut self.frames);
    }

    fn name(&self, network: NetworkIndex) -> String {
        self.networks.as_ref().and_then(|names| names.get(usize::from(network))).cloned().unwrap_or_default()
    }

    fn is_on(&self) -> bool {
        self.networks.is_some()
    }
}

/// What a restore found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Leases that stand, LOST ones included.
    pub leases: u32,
    /// Buddies to be proven.
    pub buddies: u32,
}

impl State {
    /// From now on everything is recorded, with networks by these names.
    pub fn record_with(&mut self, networks: Arc<[String]>) {
        self.journal.networks = Some(networks);
    }

    pub(super) fn is_recorded(&self) -> bool {
        self.journal.is_on()
    }

    /// The frames since the last time.
    pub fn take_journal(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.journal.frames)
    }

    /// For the ledger, which takes them over.
    pub(super) fn journal(&mut self) -> &mut Vec<u8> {
        &mut self.journal.frames
    }

    pub(super) fn record_ready(&mut self, slot: SlotIndex) {
        if self.journal.is_on() {
            let ready = self.ready_out(slot);
            self.journal.push(Record::Ready(ready));
        }
    }

    fn ready_out(&self, slot: SlotIndex) -> record::Ready {
        let place = &self.slots[slot as usize];
        record::Ready {
            slot,
            generation: place.generation,
            use_number: place.use_number,
            network: self.journal.name(place.network),
            namespace: place.namespace.as_deref().map(namespace_out),
        }
    }

    pub(super) fn record_out(&mut self, slot: SlotIndex) {
        if self.journal.is_on() {
            let generation = self.slots[slot as usize].generation;
            self.journal.push(Record::Out(record::Out { slot, generation }));
        }
    }

    /// Without its namespace, which its buddy's record has.
    pub(super) fn record_leased(&mut self, index: LeaseIndex) {
        if self.journal.is_on() {
            let leased = self.leased_out(&self.leases[index]);
            self.journal.push(Record::Leased(leased));
        }
    }

    fn leased_out(&self, lease: &Lease) -> record::Leased {
        record::Leased {
            token: lease.token.0.to_vec(),
            slot: lease.key.slot,
            generation: lease.key.generation,
            use_number: lease.key.use_number,
            request: Some(self.request_out(&lease.request)),
            allocated_at: nanos(lease.allocated_at),
            deadline: lease.deadline.map(|(when, _)| nanos(when)),
            joined: lease.joined,
            lost: lease.lost.as_deref().map(str::to_owned),
            namespace: None,
            network: String::new(),
        }
    }

    pub(super) fn record_changed(&mut self, index: LeaseIndex) {
        if !self.journal.is_on() {
            return;
        }
        let lease = &self.leases[index];
        let changed = record::Changed {
            token: lease.token.0.to_vec(),
            deadline: lease.deadline.map(|(when, _)| nanos(when)),
            joined: lease.joined,
            lost: lease.lost.as_deref().map(str::to_owned),
        };
        self.journal.push(Record::Changed(changed));
    }

    pub(super) fn record_ended(&mut self, token: Token, cause: &Cause, forget_at: Moment) {
        if self.journal.is_on() {
            self.journal.push(Record::Ended(ended_out(token, cause, forget_at)));
        }
    }

    pub(super) fn record_undone(&mut self, token: Token) {
        if self.journal.is_on() {
            self.journal.push(Record::Undone(record::Undone { token: token.0.to_vec() }));
        }
    }

    pub(super) fn record_doors(&mut self) {
        if self.journal.is_on() {
            let doors = self.doors_out();
            self.journal.push(Record::Doors(doors));
        }
    }

    fn doors_out(&self) -> record::Doors {
        let (ready, max) = (self.asked_sizes.map(|(ready, _)| ready), self.asked_sizes.map(|(_, max)| max));
        let (configured_ready, configured_max) = self.configured;
        record::Doors { cordoned: self.cordoned, ready, max, configured_ready, configured_max }
    }

    /// What the ledger should tell by now, but for whose it is: as if everything were recorded anew.
    #[must_use]
    pub fn told(&self) -> Table {
        let known =
            |slot: &SlotIndex| matches!(self.slots[*slot as usize].state, SlotState::Adopting | SlotState::Ready | SlotState::Leased);
        let lease_out = |lease: &Lease| record::Leased {
            namespace: Some(namespace_out(&lease.namespace)),
            network: self.journal.name(lease.network),
            ..self.leased_out(lease)
        };
        let ended = self.ended.iter().map(|(forget_at, token, lease)| record::Ended {
            request: lease.request.as_deref().map(|request| self.request_out(request)),
            ..ended_out(token, &lease.cause, forget_at)
        });
        Table {
            began: None,
            doors: Some(self.doors_out()),
            buddies: (0..self.slot_count()).filter(known).map(|slot| (slot, self.ready_out(slot))).collect(),
            leases: self.leases.iter().map(|(_, lease)| (lease.token.0.to_vec(), lease_out(lease))).collect(),
            ended: ended.collect(),
        }
    }

    fn request_out(&self, request: &Request) -> record::Request {
        record::Request {
            uid: request.uid,
            owner: request.owner.clone(),
            tenant: request.tenant.clone(),
            request_id: request.request_id.clone(),
            network: request.network.map(|network| self.journal.name(network)),
            lifetime: Some(match request.lifetime {
                Lifetime::Joiners { join_by } => record::Lifetime::Joiners(nanos(join_by)),
                Lifetime::Ttl(ttl) => record::Lifetime::Ttl(nanos(ttl)),
                Lifetime::Connection(_) => record::Lifetime::Connection(true),
            }),
            labels: request.labels.clone(),
        }
    }

    // ---- the way back --------------------------------------------------------------------------------------------------------------

    /// What the last daemon's ledger tells, into an empty pool that records.
    pub fn restore(&mut self, now: Moment, mut table: Table) -> Restored {
        table.forget(nanos(now), self.rules.remember_max as usize);
        let names = self.journal.networks.clone().unwrap_or_default();
        let index = |name: &str| names.iter().position(|own| own == name).and_then(|index| NetworkIndex::try_from(index).ok());
        let mut restored = Restored::default();
        self.grace_until = now + GRACE;
        if let Some(doors) = table.doors {
            // A drain's cordon stands, though nobody waits for it any more.
            self.cordoned = doors.cordoned;
            let same = (doors.configured_ready, doors.configured_max) == self.configured;
            self.asked_sizes = doors.ready.zip(doors.max).filter(|_| same);
        }
        // A lease's slot is restored from the lease, in case its buddy's record is lost.
        // Of two on one slot, which only a broken ledger tells, the later one is the one that can stand.
        let mut leases: Vec<record::Leased> = table.leases.into_values().collect();
        leases.sort_by_key(|lease| std::cmp::Reverse((lease.generation, lease.use_number)));
        for mut lease in leases {
            if lease.lost.is_none() && self.slots.get(lease.slot as usize).is_some_and(|slot| slot.state != SlotState::Idle) {
                lease.lost = Some("the ledger does not tell what became of it".to_owned());
                lease.deadline = Some(nanos(now + self.rules.remember));
            }
            let network = index(&lease.network);
            let Some(found) = self.restore_lease(now, lease, network, &index) else { continue };
            restored.leases += 1;
            let lease = &self.leases[found];
            if lease.lost.is_none() {
                restored.buddies += 1;
                self.restore_slot(now, lease.key, network, Arc::clone(&self.leases[found].namespace), Some(found));
            }
        }
        for buddy in table.buddies.into_values() {
            let key = UseKey { slot: buddy.slot, generation: buddy.generation, use_number: buddy.use_number };
            // One whose network is not configured any more is as good as unknown.
            let (Some(network), Some(namespace)) = (index(&buddy.network), buddy.namespace) else { continue };
            if self.slots.get(key.slot as usize).is_none_or(|slot| slot.state == SlotState::Idle) {
                restored.buddies += 1;
                self.restore_slot(now, key, Some(network), Arc::new(namespace_in(namespace)), None);
            }
        }
        self.restore_ended(table.ended, &index);
        restored
    }

    fn restore_lease(
        &mut self,
        now: Moment,
        lease: record::Leased,
        network: Option<NetworkIndex>,
        index: &impl Fn(&str) -> Option<NetworkIndex>,
    ) -> Option<LeaseIndex> {
        let (token, namespace) = (token_in(&lease.token)?, lease.namespace?);
        self.grow_to(now, lease.slot + 1);
        self.generations_begin_at(lease.generation + 1);
        let request = Arc::new(request_in(lease.request?, index));
        let (connection, lost) = (matches!(request.lifetime, Lifetime::Connection(_)), lease.lost.is_some());
        // A connection is gone with the daemon; its holder has the grace to come back.
        let deadline = lease.deadline.map(Duration::from_nanos).or(connection.then_some(now)).map(|when| when.max(now + GRACE));
        let found = self.leases.insert(Lease {
            token,
            key: UseKey { slot: lease.slot, generation: lease.generation, use_number: lease.use_number },
            namespace: Arc::new(namespace_in(namespace)),
            network: network.unwrap_or(0),
            request: Arc::clone(&request),
            allocated_at: Duration::from_nanos(lease.allocated_at),
            deadline: None,
            lost: lease.lost.map(Into::into),
            joiners: Vec::new(),
            joined: lease.joined,
            delivered: true,
        });
        self.by_token.insert(token, found);
        if let Some(key) = request.key() {
            self.by_request.insert(key, Known::Lease(found));
        }
        *self.leases_per_uid.entry(request.uid).or_default() += 1;
        if connection {
            self.by_connection.entry(GONE).or_default().insert(found);
        }
        self.lost += u32::from(lost);
        self.set_deadline(found, deadline);
        Some(found)
    }

    fn restore_ended(&mut self, ended: Vec<record::Ended>, index: &impl Fn(&str) -> Option<NetworkIndex>) {
        let mut restored = Vec::new();
        // From the last to the first: where a request id was used again after it was forgotten, the last one has it.
        for ended in ended.into_iter().rev() {
            let Some(token) = token_in(&ended.token) else { continue };
            let request = ended.request.map(|request| Arc::new(request_in(request, index)));
            let known = request.as_ref().and_then(|request| request.key()).map(|key| self.by_request.entry(key));
            let request = match known {
                Some(Entry::Vacant(free)) => {
                    free.insert(Known::Ended(token));
                    request
                }
                Some(Entry::Occupied(_)) | None => None,
            };
            let cause = Cause::from_word(&ended.cause, ended.lost);
            restored.push((Duration::from_nanos(ended.forget_at), token, EndedLease { cause, request }));
        }
        restored.into_iter().rev().for_each(|(forget_at, token, lease)| self.ended.push(forget_at, token, lease));
    }

    fn restore_slot(
        &mut self,
        now: Moment,
        key: UseKey,
        network: Option<NetworkIndex>,
        namespace: Arc<Namespace>,
        lease: Option<LeaseIndex>,
    ) {
        self.grow_to(now, key.slot + 1);
        self.generations_begin_at(key.generation + 1);
        self.move_to_network(key.slot, network.unwrap_or(0));
        self.by_container.insert(Arc::clone(&namespace.container_id), key.slot);
        let place = &mut self.slots[key.slot as usize];
        // Those before a present lease's are not told.
        place.had = if key.use_number > 1 { Had::Others } else { Had::Nobody };
        if let Some(lease) = lease {
            place.had.has(&self.leases[lease].request.tenant);
        }
        (place.generation, place.use_number) = (key.generation, key.use_number);
        (place.namespace, place.lease, place.unproven) = (Some(namespace), lease, true);
        self.unproven += 1;
        if network.is_none() {
            place.doom = Some("its network is not configured any more".into());
        }
        self.set_state(now, key.slot, if lease.is_some() { SlotState::Leased } else { SlotState::Adopting });
    }

    /// Whether an Adopting or Leased slot has this container.
    #[must_use]
    pub fn has_container(&self, id: &str) -> bool {
        self.by_container.contains_key(id)
    }
}

fn ended_out(token: Token, cause: &Cause, forget_at: Moment) -> record::Ended {
    let lost = match cause {
        Cause::Lost(why) => why.to_string(),
        Cause::Released
        | Cause::ReleasedDoubtful
        | Cause::NotJoined
        | Cause::Lingered
        | Cause::Expired
        | Cause::ConnectionClosed
        | Cause::Forced
        | Cause::Stopping => String::new(),
    };
    record::Ended { token: token.0.to_vec(), cause: cause.word().to_owned(), lost, forget_at: nanos(forget_at), request: None }
}

fn nanos(moment: Duration) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}

fn token_in(bytes: &[u8]) -> Option<Token> {
    bytes.try_into().ok().map(Token)
}

fn namespace_out(namespace: &Namespace) -> record::Namespace {
    record::Namespace {
        namespace_id: namespace.namespace_id.clone(),
        host_config: namespace.host_config.clone(),
        container_id: namespace.container_id.to_string(),
        tell_container_id: namespace.tell_container_id,
        addresses: namespace.addresses.iter().map(|own| own.address.clone()).collect(),
        gateways: namespace.addresses.iter().map(|own| own.gateway.clone()).collect(),
        resolv_conf: namespace.resolv_conf.clone(),
        mtu: namespace.mtu,
        pid: namespace.pid,
        started_at: namespace.started_at.clone(),
        folder: namespace.folder.clone(),
    }
}

fn namespace_in(namespace: record::Namespace) -> Namespace {
    let gateways = namespace.gateways.into_iter().chain(std::iter::repeat(String::new()));
    Namespace {
        network_mode: Namespace::network_mode_of(&namespace.namespace_id, namespace.pid, &namespace.folder),
        namespace_id: namespace.namespace_id,
        host_config: namespace.host_config,
        container_id: namespace.container_id.into(),
        tell_container_id: namespace.tell_container_id,
        addresses: namespace.addresses.into_iter().zip(gateways).map(|(address, gateway)| Address { address, gateway }).collect(),
        resolv_conf: namespace.resolv_conf,
        mtu: namespace.mtu,
        pid: namespace.pid,
        started_at: namespace.started_at,
        folder: namespace.folder,
    }
}

fn request_in(request: record::Request, index: &impl Fn(&str) -> Option<NetworkIndex>) -> Request {
    Request {
        uid: request.uid,
        owner: request.owner,
        tenant: request.tenant,
        request_id: request.request_id,
        network: request.network.as_deref().and_then(index),
        lifetime: match request.lifetime {
            Some(record::Lifetime::Joiners(join_by)) => Lifetime::Joiners { join_by: Duration::from_nanos(join_by) },
            Some(record::Lifetime::Ttl(ttl)) => Lifetime::Ttl(Duration::from_nanos(ttl)),
            Some(record::Lifetime::Connection(_)) | None => Lifetime::Connection(GONE),
        },
        labels: request.labels,
    }
}
