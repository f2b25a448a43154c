//! The pool's state, step by step: one test for each thing that once went wrong, named after it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nspool::pool::state::{Afterwards, Effect, Order, Rules, SlotState, State};
use nspool::pool::{Allocated, ConnectionId, Denied, JoinerSeen, LeaseIndex, Lifetime, Namespace, NetworkIndex, PoolEvent, Request, Token};

const NOW: Duration = Duration::from_secs(1000);

fn rules(networks: u32) -> Rules {
    Rules {
        networks,
        ready: 0,
        max: 0,
        afterwards: vec![Afterwards::Reuse; networks as usize].into(),
        keep_tenants: false,
        linger: Duration::from_secs(10),
        max_detached: 8,
        max_waiting: 8,
        quota_per_uid: None,
        remember: Duration::from_secs(600),
        remember_max: 100,
        trim_after: Duration::from_secs(30),
    }
}

fn pool(networks: u32, ready: u32, max: u32) -> State {
    let mut state = State::new(rules(networks), 1);
    state.set_engine_up(true);
    state.resize(NOW, ready, max).expect("a good size");
    fill(&mut state);
    state
}

fn container(slot: u32) -> Arc<str> {
    format!("container-of-{slot}").into()
}

fn namespace(slot: u32, name: &str) -> Arc<Namespace> {
    Arc::new(Namespace {
        namespace_id: name.into(),
        network_mode: String::new(),
        host_config: String::new(),
        container_id: container(slot),
        tell_container_id: false,
        addresses: Vec::new(),
        resolv_conf: String::new(),
        mtu: 0,
        pid: 0,
        started_at: String::new(),
        folder: String::new(),
    })
}

/// Every nanny that is told to fill does.
fn fill(state: &mut State) {
    for slot in 0..state.slot_count() {
        if let Order::Fill { generation } = state.order(slot) {
            state.registered(NOW, slot, generation, namespace(slot, "ns"));
        }
    }
}

fn request(network: Option<NetworkIndex>) -> Request {
    Request {
        uid: 0,
        owner: String::new(),
        tenant: String::new(),
        request_id: None,
        network,
        lifetime: Lifetime::Ttl(Duration::from_secs(60)),
        labels: BTreeMap::new(),
    }
}

fn token(number: u8) -> Token {
    Token([number; 16])
}

fn lease(state: &mut State, request: Request, number: u8) -> LeaseIndex {
    match state.allocate(NOW, request, token(number), false) {
        Ok(Allocated::Granted(index)) => index,
        answer => panic!("{answer:?}"),
    }
}

fn state_of(state: &State, slot: u32) -> SlotState {
    state.slot_view(slot).state
}

fn ends_told(state: &mut State) -> usize {
    state.take_effects().filter(|effect| matches!(effect, Effect::Event(PoolEvent::Ending(_)))).count()
}

#[test]
fn a_late_word_of_somebody_inside_stuck_to_a_slot_without_a_buddy() {
    let mut state = pool(1, 1, 1);
    let key = state.slot_view(0).key;
    state.recycle(NOW, 0, false).unwrap();
    state.resize(NOW, 0, 1).unwrap();
    state.removed(NOW, key);
    state.occupied(NOW, key, vec!["late".into()]);
    assert!(state.slot_view(0).occupants.is_empty());
    assert_eq!(state.stale(), 1);
}

#[test]
fn a_late_word_of_a_death_doomed_a_slot_without_a_buddy() {
    let mut state = pool(1, 1, 1);
    let key = state.slot_view(0).key;
    state.recycle(NOW, 0, false).unwrap();
    state.resize(NOW, 0, 1).unwrap();
    state.removed(NOW, key);
    state.buddy_gone(NOW, key, "late");
    assert_eq!((state.slot_view(0).doom, state.slot_view(0).last_error), (None, None));
    assert_eq!(state.stale(), 1);
}

#[test]
fn an_undone_lease_that_somebody_had_joined_was_lent_again() {
    let mut state = pool(1, 1, 1);
    let first = lease(&mut state, request(None), 1);
    let waiter = state.allocate(NOW, request(None), token(2), true).unwrap();
    assert!(matches!(waiter, Allocated::Waiting(_)));
    state.release(NOW, token(1), false).unwrap();
    let key = state.slot_view(0).key;
    state.vacated(NOW, key, namespace(0, "ns-2"));
    let granted = state.take_effects().find_map(|effect| if let Effect::Granted(_, index) = effect { Some(index) } else { None });
    let seen = JoinerSeen { buddy: container(0), joiner: "guesser".into(), namespace_id: None, live: true, bounded: true, as_of: NOW };
    assert!(state.joined(NOW, &seen));
    state.undo(NOW, granted.unwrap_or(first), token(2));
    let key = state.slot_view(0).key;
    state.vacated(NOW, key, namespace(0, "ns-3"));
    assert_eq!(state_of(&state, 0), SlotState::Retiring, "nobody vouched for that use");
}

#[test]
fn a_late_word_of_the_use_before_took_the_next_one_along() {
    const LATER: Duration = Duration::from_secs(1001);
    let mut state = pool(1, 1, 1);
    lease(&mut state, request(None), 1);
    let sight = |as_of, label: Option<&str>| JoinerSeen {
        buddy: container(0),
        joiner: "of-the-first".into(),
        namespace_id: label.map(str::to_owned),
        live: true,
        bounded: true,
        as_of,
    };
    state.release(NOW, token(1), false).unwrap();
    let key = state.slot_view(0).key;
    // Its first word comes when the look for it may be over: then there is another look, and no more than that.
    assert!(state.joined(NOW, &sight(Duration::ZERO, None)));
    state.vacated(NOW, key, namespace(0, "ns-2"));
    assert_eq!(state.order(0), Order::Vacate(key));
    state.vacated(LATER, key, namespace(0, "ns-2"));
    assert_eq!((state_of(&state, 0), state.slot_view(0).doom), (SlotState::Ready, None));
    // The second one when the namespace is ready for another, or somebody else's: that says nothing.
    for late in [sight(NOW, None), sight(NOW, Some("ns"))] {
        assert!(!state.joined(LATER, &late), "ask the engine again");
    }
    lease(&mut state, request(None), 2);
    for late in [sight(NOW, None), sight(NOW, Some("ns"))] {
        assert!(!state.joined(LATER, &late), "ask the engine again");
    }
    assert_eq!(state_of(&state, 0), SlotState::Leased);
    assert!(state.lease_views(None)[0].joiners == 0);
    // Its own joiner's label can be of no other use, however late it comes.
    assert!(state.joined(LATER, &sight(Duration::ZERO, Some("ns-2"))));
    assert_eq!(state.lease_views(None)[0].joiners, 1);
    // Asked again, the engine says that it runs: somebody is in who should not be.
    assert!(state.joined(LATER, &JoinerSeen { joiner: "another".into(), ..sight(LATER, Some("ns")) }));
    assert_eq!(state_of(&state, 0), SlotState::Vacating);
}

#[test]
fn a_caller_that_takes_any_network_waited_for_a_full_one_while_another_had_room() {
    let mut state = pool(2, 0, 2);
    state.allocate(NOW, request(Some(0)), token(1), true).unwrap();
    fill(&mut state);
    assert_eq!(state.usage().leased, 1, "network 0 is full");
    state.allocate(NOW, request(None), token(2), true).unwrap();
    assert_eq!(state_of(&state, 1), SlotState::Filling, "network 1 has room");
}

#[test]
fn a_caller_that_takes_any_network_waited_for_one_that_cannot_be_filled() {
    let mut state = pool(2, 0, 2);
    state.allocate(NOW, request(None), token(1), true).unwrap();
    let Order::Fill { generation } = state.order(0) else { panic!("network 0 is tried first") };
    state.fill_failed(NOW, 0, generation, "network not found");
    assert_eq!(state_of(&state, 1), SlotState::Filling, "network 1 goes on");
}

#[test]
fn the_end_of_a_lost_lease_was_told_as_its_ttl() {
    let mut state = pool(1, 1, 1);
    lease(&mut state, request(None), 1);
    let key = state.slot_view(0).key;
    state.buddy_gone(NOW, key, "killed");
    drop(state.take_effects());
    state.tick(NOW + Duration::from_secs(601));
    assert_eq!(ends_told(&mut state), 0, "its holder was told when it was lost");
    assert!(matches!(state.lease(token(1)), Err(Denied::LeaseLost { .. })));
}

#[test]
fn a_smaller_memory_of_ended_leases_took_effect_at_the_next_end_only() {
    let mut state = pool(1, 1, 1);
    lease(&mut state, request(None), 1);
    state.release(NOW, token(1), false).unwrap();
    state.set_rules(NOW, Rules { remember_max: 0, ..rules(1) });
    assert_eq!(state.release(NOW, token(1), false), Err(Denied::UnknownToken));
}

#[test]
fn a_stop_left_the_trim_timer_armed() {
    let mut state = pool(1, 0, 2);
    state.allocate(NOW, request(None), token(1), true).unwrap();
    let Order::Fill { generation } = state.order(0) else { panic!("somebody waits") };
    state.cordon(false);
    state.registered(NOW, 0, generation, namespace(0, "ns"));
    assert!(state.next_tick().is_some(), "one more is ready than needed");
    state.stop(NOW);
    assert_eq!(state.next_tick(), None);
}

#[test]
fn a_wrong_word_about_a_quarantined_slot_left_a_slot_too_many_ready() {
    let mut state = pool(1, 2, 2);
    state.recycle(NOW, 0, false).unwrap();
    state.resize(NOW, 1, 1).unwrap();
    let key = state.slot_view(0).key;
    state.occupied(NOW, key, vec!["somebody".into()]);
    assert_eq!(state_of(&state, 1), SlotState::Retiring, "the quarantined one is the one that may exist");
}

#[test]
fn a_released_lease_of_a_connection_took_part_in_its_end() {
    let mut state = pool(1, 3, 3);
    let connected = Request { lifetime: Lifetime::Connection(ConnectionId(7)), ..request(None) };
    for number in 1..=3 {
        lease(&mut state, connected.clone(), number);
    }
    state.release(NOW, token(2), false).unwrap();
    drop(state.take_effects());
    state.connection_closed(NOW, ConnectionId(7));
    assert_eq!((ends_told(&mut state), state.usage().leased), (2, 0));
}
