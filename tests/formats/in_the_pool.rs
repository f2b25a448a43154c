//! What a reader of format 1 takes from a ledger, held against what the present one takes, and what the present pool makes of it: the same leases,
//! buddies, ends and doors, field by field.

use std::time::Duration;

use nspool::ledger::Table;
use nspool::pool::state::{SlotState, State};
use nspool::pool::{LeaseView, Lifetime, Namespace, UseKey};

use super::format_1 as then;

/// Panics unless they agree. `networks` as they are configured.
pub fn agree(then: &then::Table, read: &Table, now: &State, networks: &[String]) {
    agree_on_ends(then, read);
    let views = now.lease_views(None);
    assert_eq!(then.leases.len(), views.len(), "leases");
    for view in views {
        let lease = then.leases.get(view.token.0.as_slice()).unwrap_or_else(|| panic!("the lease of {} is not read", view.key));
        same_lease(lease, &view, networks);
    }
    let known = |slot: &u32| matches!(now.slot_view(*slot).state, SlotState::Adopting | SlotState::Ready | SlotState::Leased);
    assert!(then.buddies.keys().copied().eq((0..now.slot_count()).filter(known)), "the slots of {:?}", then.buddies);
    for (slot, buddy) in &then.buddies {
        let view = now.slot_view(*slot);
        assert_eq!(key(buddy.slot, buddy.generation, buddy.use_number), view.key);
        assert_eq!(buddy.network, networks[usize::from(view.network)]);
        same_namespace(buddy.namespace.as_ref(), &view.namespace.expect("it has a buddy"));
    }
}

/// And on the doors: what a pool does not show, or changes at its start.
fn agree_on_ends(then: &then::Table, read: &Table) {
    let known = then.leases.values().map(|lease| (&lease.token, lease.deadline, lease.joined));
    assert!(known.eq(read.leases.values().map(|lease| (&lease.token, lease.deadline, lease.joined))), "deadlines: {then:?} {read:?}");
    let ids = then.ended.iter().map(|ended| ended.request.as_ref().map(|request| (request.uid, &request.owner, &request.request_id)));
    assert!(ids.eq(read.ended.iter().map(|ended| ended.request.as_ref().map(|request| (
        request.uid,
        &request.owner,
        &request.request_id
    )))));
    let ended = then.ended.iter().map(|ended| (&ended.token, &ended.cause, &ended.lost, ended.forget_at));
    assert!(ended.eq(read.ended.iter().map(|ended| (&ended.token, &ended.cause, &ended.lost, ended.forget_at))), "ends: {then:?} {read:?}");
    let doors = then.doors.map(|doors| ((doors.cordoned, doors.ready, doors.max), (doors.configured_ready, doors.configured_max)));
    assert_eq!(doors, read.doors.map(|doors| ((doors.cordoned, doors.ready, doors.max), (doors.configured_ready, doors.configured_max))));
}

fn same_lease(then: &then::Leased, now: &LeaseView, networks: &[String]) {
    assert_eq!(key(then.slot, then.generation, then.use_number), now.key);
    assert_eq!(Duration::from_nanos(then.allocated_at), now.allocated_at, "{}", now.key);
    assert_eq!(then.lost.as_deref(), now.lost.as_deref(), "{}", now.key);
    assert_eq!(then.network, networks[usize::from(now.network)], "{}", now.key);
    same_namespace(then.namespace.as_ref(), &now.namespace);
    let (old, new) = (then.request.as_ref().expect("a lease has its request"), &*now.request);
    assert_eq!((old.uid, &old.owner, &old.tenant, &old.request_id), (new.uid, &new.owner, &new.tenant, &new.request_id));
    assert_eq!((old.network.as_ref(), &old.labels), (new.network.map(|index| &networks[usize::from(index)]), &new.labels));
    let lifetime = match new.lifetime {
        Lifetime::Joiners { join_by } => then::Lifetime::Joiners(nanos(join_by)),
        Lifetime::Ttl(ttl) => then::Lifetime::Ttl(nanos(ttl)),
        Lifetime::Connection(_) => then::Lifetime::Connection(true),
    };
    assert_eq!(old.lifetime, Some(lifetime), "{}", now.key);
}

fn same_namespace(then: Option<&then::Namespace>, now: &Namespace) {
    let then = then.expect("its namespace is told");
    assert_eq!(format!("container:{}", then.namespace_id), now.network_mode);
    let told: Vec<_> = now.addresses.iter().map(|own| (&own.address, &own.gateway)).collect();
    let (id, host_config, resolv_conf) = (&now.namespace_id, &now.host_config, &now.resolv_conf);
    assert_eq!((&then.namespace_id, &then.host_config, &then.resolv_conf), (id, host_config, resolv_conf));
    assert_eq!((then.container_id.as_str(), then.tell_container_id), (&*now.container_id, now.tell_container_id), "{id}");
    assert_eq!(then.addresses.iter().zip(&then.gateways).collect::<Vec<_>>(), told, "{id}");
    assert_eq!((then.mtu, then.pid, &then.started_at), (now.mtu, now.pid, &now.started_at), "{id}");
}

fn key(slot: u32, generation: u64, use_number: u64) -> UseKey {
    UseKey { slot, generation, use_number }
}

fn nanos(moment: Duration) -> u64 {
    u64::try_from(moment.as_nanos()).expect("within 500 years")
}
