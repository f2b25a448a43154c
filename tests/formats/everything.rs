//! Records of every kind with every field, in the present format, that make sense one after the other.

use std::collections::BTreeMap;

use nspool::ledger::format::{FORMAT, OLDEST_READER};
use nspool::ledger::record::{Began, Changed, Doors, Ended, Leased, Lifetime, Namespace, Out, Ready, Record, Request, Undone};

/// Ends far ahead of any start.
pub const LATER: u64 = 3_600_000_000_000;

fn namespace(slot: u32, generation: u64) -> Namespace {
    Namespace {
        namespace_id: format!("nspool-golden-{slot}-{generation}-1-0123abcd"),
        host_config: format!("{{\"HostConfig\":{{\"NetworkMode\":\"container:{slot}\"}}}}"),
        container_id: format!("c{slot}"),
        tell_container_id: true,
        addresses: vec![format!("172.17.0.{slot}/16"), format!("fd00::{slot}/64")],
        gateways: vec!["172.17.0.1".into(), "fd00::1".into()],
        resolv_conf: "nameserver 127.0.0.53\n".into(),
        mtu: 1500,
        pid: 4000 + slot,
        started_at: "2025-01-01T00:00:00.000000001Z".into(),
        folder: format!("/run/nspool/ns/golden/{slot}"),
    }
}

fn ready(slot: u32) -> Ready {
    let generation = 100 + u64::from(slot);
    Ready { slot, generation, use_number: 1, network: "bridge".into(), namespace: Some(namespace(slot, generation)) }
}

fn request(id: &str, lifetime: Lifetime) -> Request {
    Request {
        uid: 1000,
        owner: "agent".into(),
        tenant: "acme".into(),
        request_id: Some(id.into()),
        network: Some("bridge".into()),
        lifetime: Some(lifetime),
        labels: BTreeMap::from([("app".into(), "web".into()), ("zone".into(), "b".into())]),
    }
}

/// On the buddy of this slot, with all that a lease can have but a loss.
fn leased(slot: u8, lifetime: Lifetime) -> Leased {
    let Ready { slot: index, generation, use_number, .. } = ready(slot.into());
    Leased {
        token: vec![slot; 16],
        slot: index,
        generation,
        use_number,
        request: Some(request(&format!("of slot {slot}"), lifetime)),
        allocated_at: 5_000_000_000,
        deadline: Some(LATER),
        joined: true,
        lost: None,
        namespace: None,
        network: String::new(),
    }
}

/// Every kind, and every field of it, none with its default: the literals here and above name all fields, so that a new one has to be given something.
pub fn everything() -> Vec<Record> {
    let lost = Leased {
        lost: Some("its buddy died".into()),
        namespace: Some(namespace(9, 90)),
        network: "bridge".into(),
        generation: 90,
        ..leased(9, Lifetime::Joiners(LATER))
    };
    let token = |slot: u8| vec![slot; 16];
    let ended =
        |slot: u8, cause: &str| Ended { token: token(slot), cause: cause.into(), lost: String::new(), forget_at: LATER, request: None };
    let mut records = vec![
        Record::Began(Began {
            boot_id: "golden boot".into(),
            pool: "golden".into(),
            incarnation: "2f1c5a52-8a0e-4c86-9f0b-0d9a3f1f7c11".into(),
            at: 1_000_000_000,
            format: FORMAT,
            oldest_reader: OLDEST_READER,
            engine: "native".into(),
        }),
        Record::Doors(Doors { cordoned: true, ready: Some(3), max: Some(12), configured_ready: 2, configured_max: 8 }),
    ];
    records.extend((1..=7).map(|slot| Record::Ready(ready(slot))));
    records.extend([
        Record::Leased(leased(1, Lifetime::Ttl(LATER))),
        Record::Leased(leased(2, Lifetime::Joiners(LATER))),
        Record::Leased(leased(3, Lifetime::Connection(true))),
        Record::Leased(leased(4, Lifetime::Joiners(LATER))),
        Record::Leased(leased(5, Lifetime::Joiners(LATER))),
        Record::Changed(Changed { token: token(2), deadline: Some(2 * LATER), joined: true, lost: Some("by hand".into()) }),
        Record::Out(Out { slot: 2, generation: 102 }),
        Record::Ended(ended(4, "released")),
        Record::Undone(Undone { token: token(5) }),
        Record::Out(Out { slot: 6, generation: 106 }),
        Record::Leased(lost),
        // As they are in a file that was compacted.
        Record::Ended(Ended { request: Some(request("of before", Lifetime::Ttl(LATER))), lost: "it died".into(), ..ended(8, "lost") }),
    ]);
    // All that a lease can end by.
    let causes = ["released", "released_doubtful", "not_joined", "lingered", "expired", "connection_closed", "forced", "stopping"];
    records.extend((20..).zip(causes).map(|(slot, cause)| Record::Ended(ended(slot, cause))));
    records
}

/// Its number in the file. A new one is asked for here, and then belongs into [`everything`].
pub fn kind(record: &Record) -> u32 {
    match record {
        Record::Began(_) => 1,
        Record::Ready(_) => 2,
        Record::Out(_) => 3,
        Record::Leased(_) => 4,
        Record::Changed(_) => 5,
        Record::Ended(_) => 6,
        Record::Undone(_) => 7,
        Record::Doors(_) => 8,
    }
}
