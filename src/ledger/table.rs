//! What a ledger comes to: the records applied one after the other. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::record::{Began, Changed, Doors, Ended, Leased, Ready, Record};

/// The state that the records describe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Whose it is; `None`: the record is missing, and nothing here can be trusted.
    pub began: Option<Began>,
    /// Buddies that are Ready or Leased, by slot.
    pub buddies: BTreeMap<u32, Ready>,
    /// Leases that stand, LOST ones included, by token. Each has its namespace.
    pub leases: BTreeMap<Vec<u8>, Leased>,
    /// Leases that are over and may still be asked for, in the order of their ends. Those with a request id have their request.
    pub ended: Vec<Ended>,
    /// What operators said last.
    pub doors: Option<Doors>,
}

impl Table {
    /// Of these records.
    #[must_use]
    pub fn of(records: impl IntoIterator<Item = Record>) -> Self {
        let mut table = Self::default();
        // By its first end, if two are told.
        let mut known = HashSet::new();
        for record in records {
            table.apply(record, &mut known);
        }
        table
    }

    /// Of frames as the pool makes them.
    #[must_use]
    pub fn read(frames: &[u8]) -> Self {
        Self::of(super::frames::scan(frames).records)
    }

    fn apply(&mut self, record: Record, known: &mut HashSet<Vec<u8>>) {
        match record {
            Record::Began(began) => self.began = Some(began),
            Record::Ready(ready) => drop(self.buddies.insert(ready.slot, ready)),
            Record::Out(out) => {
                if self.buddies.get(&out.slot).is_some_and(|buddy| buddy.generation == out.generation) {
                    self.buddies.remove(&out.slot);
                }
            }
            Record::Leased(mut lease) => {
                let buddy = self
                    .buddies
                    .get(&lease.slot)
                    .filter(|buddy| (buddy.generation, buddy.use_number) == (lease.generation, lease.use_number));
                if let (Some(buddy), None) = (buddy, &lease.namespace) {
                    lease.namespace.clone_from(&buddy.namespace);
                    lease.network.clone_from(&buddy.network);
                }
                self.leases.insert(lease.token.clone(), lease);
            }
            Record::Changed(Changed { token, deadline, joined, lost }) => {
                if let Some(lease) = self.leases.get_mut(&token) {
                    (lease.deadline, lease.joined, lease.lost) = (deadline, joined, lost);
                }
            }
            Record::Ended(mut ended) => {
                if let Some(lease) = self.leases.remove(&ended.token) {
                    ended.request = lease.request.filter(|request| request.request_id.is_some());
                }
                if known.insert(ended.token.clone()) {
                    self.ended.push(ended);
                }
            }
            Record::Undone(undone) => drop(self.leases.remove(&undone.token)),
            Record::Doors(doors) => self.doors = Some(doors),
        }
    }

    /// After a record was lost: a buddy that no lease is told of may have one all the same, so it is not told as free again, and a lease whose buddy
    /// is not told is nobody's. Of what is older than `at`, nanoseconds since boot, not everything is told any more.
    pub fn distrust(&mut self, at: u64) {
        if let Some(began) = &mut self.began {
            began.at = at;
        }
        self.leases.retain(|_, lease| lease.namespace.is_some());
        let leased: HashSet<(u32, u64)> = self.leases.values().map(|lease| (lease.slot, lease.generation)).collect();
        self.buddies.retain(|slot, buddy| leased.contains(&(*slot, buddy.generation)));
    }

    /// Forgets what may be forgotten by then, nanoseconds since boot, and all but the last `most` ends.
    pub fn forget(&mut self, now: u64, most: usize) {
        self.ended.retain(|ended| ended.forget_at > now);
        let many = self.ended.len().saturating_sub(most);
        self.ended.drain(..many);
    }

    /// The fewest records that come to this.
    #[must_use]
    pub fn records(self) -> Vec<Record> {
        let mut records: Vec<Record> = self.began.into_iter().map(Record::Began).collect();
        records.extend(self.doors.map(Record::Doors));
        let uses: HashMap<u32, (u64, u64)> =
            self.buddies.values().map(|buddy| (buddy.slot, (buddy.generation, buddy.use_number))).collect();
        records.extend(self.buddies.into_values().map(Record::Ready));
        for mut lease in self.leases.into_values() {
            if uses.get(&lease.slot) == Some(&(lease.generation, lease.use_number)) {
                (lease.namespace, lease.network) = (None, String::new());
            }
            records.push(Record::Leased(lease));
        }
        records.extend(self.ended.into_iter().map(Record::Ended));
        records
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Namespace, Out, Request, Undone};
    use super::*;
    use proptest::prelude::*;

    fn record() -> impl Strategy<Value = Record> {
        let slot = 0u32..4;
        let token = (0u8..12).prop_map(|byte| vec![byte; 16]);
        prop_oneof![
            (slot.clone(), 1u64..4, 1u64..3).prop_map(|(slot, generation, use_number)| Record::Ready(Ready {
                slot,
                generation,
                use_number,
                network: "bridge".into(),
                namespace: Some(Namespace { namespace_id: format!("{slot}-{generation}-{use_number}"), ..Namespace::default() }),
            })),
            (slot.clone(), 1u64..4).prop_map(|(slot, generation)| Record::Out(Out { slot, generation })),
            (slot, 1u64..4, 1u64..3, token.clone(), any::<bool>()).prop_map(|(slot, generation, use_number, token, with_id)| {
                let request = Request { request_id: with_id.then(|| "r".into()), ..Request::default() };
                Record::Leased(Leased { token, slot, generation, use_number, request: Some(request), ..Leased::default() })
            }),
            (token.clone(), prop::option::of(0u64..9), any::<bool>()).prop_map(|(token, deadline, joined)| Record::Changed(Changed {
                token,
                deadline,
                joined,
                lost: None
            })),
            (token.clone(), 0u64..9).prop_map(|(token, forget_at)| Record::Ended(Ended { token, forget_at, ..Ended::default() })),
            token.prop_map(|token| Record::Undone(Undone { token })),
            any::<bool>().prop_map(|cordoned| Record::Doors(Doors { cordoned, ..Doors::default() })),
        ]
    }

    proptest! {
        #[test]
        fn a_compacted_ledger_comes_to_the_same(records in prop::collection::vec(record(), 0..60)) {
            // A lease is granted on the buddy that is there, and once: what the pool never writes is left out.
            let mut seen = std::collections::BTreeSet::new();
            let mut buddies = BTreeMap::new();
            let records: Vec<Record> = records.into_iter().filter(|record| match record {
                Record::Ready(ready) => { buddies.insert(ready.slot, (ready.generation, ready.use_number)); true }
                Record::Leased(lease) => buddies.get(&lease.slot) == Some(&(lease.generation, lease.use_number)) && seen.insert(lease.token.clone()),
                Record::Ended(ended) => seen.contains(&ended.token),
                Record::Out(out) => {
                    buddies.retain(|slot, (generation, _)| (*slot, *generation) != (out.slot, out.generation));
                    true
                }
                Record::Began(_) | Record::Changed(_) | Record::Undone(_) | Record::Doors(_) => true,
            }).collect();
            let table = Table::of(records);
            prop_assert_eq!(Table::of(table.clone().records()), table);
        }
    }

    #[test]
    fn a_lost_lease_keeps_its_namespace_after_its_buddy() {
        let namespace = Some(Namespace { namespace_id: "n".into(), ..Namespace::default() });
        let ready = Ready { slot: 1, generation: 2, use_number: 1, network: "b".into(), namespace };
        let lease = Leased { token: vec![1; 16], slot: 1, generation: 2, use_number: 1, ..Leased::default() };
        let table = Table::of([Record::Ready(ready), Record::Leased(lease), Record::Out(Out { slot: 1, generation: 2 })]);
        let again = Table::of(table.records());
        assert!(again.buddies.is_empty());
        let lease = &again.leases[&vec![1; 16]];
        assert_eq!((lease.namespace.as_ref().unwrap().namespace_id.as_str(), lease.network.as_str()), ("n", "b"));
    }
}
