//! The pool's lock, waiters, grants and levels, with everybody in between each other in every order that the checker finds.
//!
//! In each story some callers, nannies by hand and troublemakers act on one real pool, with its real ledger where the story says so.
//! Whoever sleeps beside a slot that it could have is found as a deadlock; what callers were told is held against each other (`house`); and
//! at the end, when all have gone, every slot must be ready again and the ledger empty: so nobody that was dropped on its way has left
//! anything.
//!
//! What is not covered: two threads between the same two steps of the checker (within tokio's channels, or with the flag of a delivery),
//! and the nannies' own code, which the simulation has.

mod house;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use shuttle::future::block_on;
use shuttle::thread::{self, JoinHandle};

use super::{Denied, Grant, Lifetime, PoolEvent, Request};
use crate::sync::checked::{check, dice};
use house::{FOREVER, House, Patience, request};

fn caller<T: Send + 'static>(house: &Arc<House>, calls: impl FnOnce(&House) -> T + Send + 'static) -> JoinHandle<T> {
    let house = Arc::clone(house);
    thread::spawn(move || calls(&house))
}

fn any_patience() -> Patience {
    [Patience::Forever, Patience::Timed, Patience::Dropped][dice(3) as usize]
}

/// Two uses, whatever comes of them.
fn uses(house: &House) {
    for _ in 0..2 {
        if let Some(Ok(grant)) = house.call(request(None), any_patience()) {
            house.gives_back(&grant);
        }
    }
}

fn strangers(slots: u32, disk: Option<u32>) {
    let house = House::new(slots, disk);
    let callers = [(); 3].map(|()| caller(&house, uses));
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    house.ends_untouched();
}

#[test]
fn no_slot_has_two_holders_and_nobody_sleeps_beside_a_free_one() {
    check(|| strangers(1, None));
}

#[test]
fn the_same_with_two_slots_and_a_ledger() {
    check(|| strangers(2, Some(0)));
}

#[test]
fn what_cannot_be_recorded_is_taken_back() {
    check(|| strangers(1, Some(3)));
}

/// A request, its retry, and a stranger for the one slot there is.
fn retries(disk: Option<u32>) {
    let house = House::new(1, disk);
    let fails = disk.is_some_and(|one_fails_of| one_fails_of > 0);
    let asks = move |house: &House| {
        let patience = any_patience();
        let answer = house.call(request(Some("r")), patience);
        let must = matches!(patience, Patience::Forever) && !fails;
        assert!(!must || matches!(answer, Some(Ok(_))), "who waits on gets it, though the other call has left: {answer:?}");
        answer.and_then(Result::ok)
    };
    let tries = [caller(&house, asks), caller(&house, asks)];
    let stranger = caller(&house, uses);
    let mut answered: Vec<Grant> = tries.into_iter().filter_map(|call| call.join().unwrap()).collect();
    if let Some(grant) = answered.pop() {
        assert!(answered.iter().all(|other| other.lease.token == grant.lease.token), "one request, two leases");
        house.gives_back(&grant);
    }
    stranger.join().unwrap();
    house.ends_untouched();
}

#[test]
fn a_retry_gets_the_same_lease_and_neither_leaves_anything() {
    check(|| retries(None));
}

#[test]
fn a_retry_beside_a_failing_ledger_leaves_nothing_either() {
    check(|| retries(Some(0)));
    check(|| retries(Some(2)));
}

/// Somebody resumes while a lease is on its way to its first caller: who is told of it finds it recorded, too.
fn resumes(disk: Option<u32>) {
    let house = House::new(1, disk);
    let first = caller(&house, |house| house.call(request(Some("r")), any_patience()).and_then(Result::ok));
    let heirs = [(); 2].map(|()| {
        caller(&house, |house| {
            let leases = house.pool.resume(0, "");
            leases.iter().for_each(|lease| house.knows(lease));
            leases
        })
    });
    let mut told: Vec<_> = heirs.into_iter().flat_map(|heir| heir.join().unwrap()).collect();
    told.extend(first.join().unwrap().map(|grant| grant.lease));
    for lease in told {
        house.lets_go(&lease);
        house.pool.with(|state, now| state.release(now, lease.token, false)).expect("who was told has it");
    }
    house.ends_untouched();
}

#[test]
fn who_resumes_is_told_of_what_is_recorded() {
    check(|| resumes(None));
    check(|| resumes(Some(0)));
    check(|| resumes(Some(2)));
}

/// Polls `future` to its end; answers as well when its last poll began, by a clock that only counts.
async fn last_poll<F: Future>(clock: &AtomicU64, future: F) -> (F::Output, u64) {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let began = clock.fetch_add(1, Ordering::Relaxed);
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready((output, began)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Buddies die while callers wait: nobody is told of a lease that was lost before its caller even looked.
fn deaths(disk: Option<u32>) {
    let house = House::new(1, disk);
    let clock = Arc::new(AtomicU64::new(0));
    let call = |id: Option<&'static str>| {
        let clock = Arc::clone(&clock);
        caller(&house, move |house| block_on(last_poll(&clock, house.pool.allocate(request(id), FOREVER))))
    };
    let calls = [call(None), call(Some("r")), call(Some("r"))];
    let time = Arc::clone(&clock);
    let killer = caller(&house, move |house| {
        house.dies(0);
        let (lost, _) = house.pool.snapshot(|state| state.lease_views(None));
        (lost, time.fetch_add(1, Ordering::Relaxed))
    });
    let releases = calls.map(|call| {
        caller(&house, move |house| {
            let (answer, looked) = call.join().unwrap();
            // A retry may be late: then its lease has ended.
            let Ok(grant) = answer else { return None };
            house.pool.with(|state, now| state.release(now, grant.lease.token, false)).unwrap();
            Some((grant, looked))
        })
    });
    let (lost, died) = killer.join().unwrap();
    for (grant, looked) in releases.into_iter().filter_map(|call| call.join().unwrap()) {
        let known = lost.iter().any(|lease| lease.token == grant.lease.token && lease.lost.is_some());
        assert!(!(known && died < looked), "told of a lease that was lost long ago");
    }
    house.ends_untouched();
}

#[test]
fn a_lease_that_is_lost_before_its_caller_looks_is_another_one() {
    check(|| deaths(None));
    check(|| deaths(Some(0)));
}

#[test]
fn who_leaves_the_queue_has_left_it() {
    check(|| {
        let house = House::new(1, None);
        let holder = house.call(request(None), Patience::Forever).unwrap().unwrap();
        let impatient = |id| {
            let patience = [Patience::Timed, Patience::Dropped][dice(2) as usize];
            caller(&house, move |house| assert!(!matches!(house.call(request(id), patience), Some(Ok(_)))))
        };
        let calls = [impatient(None), impatient(Some("r")), impatient(Some("r"))];
        calls.into_iter().for_each(|call| call.join().unwrap());
        assert_eq!(house.pool.read(|state| state.usage().waiting), 0);
        house.gives_back(&holder);
        house.ends_untouched();
    });
}

#[test]
fn closed_doors_and_the_end_reach_everybody_who_waits() {
    check(|| {
        let house = House::new(1, None);
        let holder = house.call(request(None), Patience::Forever).unwrap().unwrap();
        let waits = [(); 2].map(|()| {
            caller(&house, |house| match house.call(request(None), Patience::Forever) {
                Some(Ok(grant)) => drop(house.gives_back(&grant)),
                other => assert!(matches!(other, Some(Err(Denied::Cordoned | Denied::Stopping))), "{other:?}"),
            })
        });
        let operator = caller(&house, |house| {
            house.pool.with(|state, _| state.cordon(false));
            house.pool.with(|state, _| state.uncordon());
            if dice(2) == 0 {
                house.pool.with(super::state::State::stop_and_keep);
            }
        });
        house.gives_back(&holder);
        operator.join().unwrap();
        waits.into_iter().for_each(|wait| wait.join().unwrap());
        house.closes();
    });
}

#[test]
fn a_lease_that_ends_by_itself_wakes_who_waits_for_its_slot() {
    check(|| {
        let house = House::new(1, None).with_timer();
        let forgets = caller(&house, |house| {
            let request = Request { lifetime: Lifetime::Ttl(Duration::from_millis(5)), ..request(None) };
            let grant = house.call(request, Patience::Forever).unwrap().unwrap();
            house.lets_go(&grant.lease);
        });
        let waits = caller(&house, |house| {
            let grant = house.call(request(None), Patience::Forever).unwrap().unwrap();
            house.gives_back(&grant);
        });
        forgets.join().unwrap();
        waits.join().unwrap();
        house.ends_untouched();
    });
}

/// As `api::watch` reads the ring: subscribe, then look.
async fn watch(house: &House, mut position: u64, events: usize) -> Vec<PoolEvent> {
    let mut seen = Vec::new();
    while seen.len() < events {
        let mut news = pin!(house.pool.news());
        news.as_mut().enable();
        match house.pool.events_since(Some(position)) {
            super::Backlog::Events(found, end) if found.is_empty() => {
                assert_eq!(end, position);
                news.await;
            }
            super::Backlog::Events(found, end) => {
                seen.extend(found);
                position = end;
            }
            super::Backlog::Reset(_) => panic!("the ring is longer than that"),
        }
    }
    seen
}

#[test]
fn a_watcher_misses_no_end_and_sees_them_in_order() {
    check(|| {
        let house = House::new(2, None);
        let (_, start) = house.pool.snapshot(|_| ());
        let watchers = [(); 2].map(|()| caller(&house, move |house| block_on(watch(house, start, 4))));
        let ends = [(); 2].map(|()| {
            caller(&house, |house| {
                [(); 2].map(|()| {
                    let grant = house.call(request(None), Patience::Forever).unwrap().unwrap();
                    house.lets_go(&grant.lease);
                    house.pool.with(|state, now| state.force_release(now, grant.lease.key)).unwrap();
                    grant.lease.key
                })
            })
        });
        let ends = ends.map(|end| end.join().unwrap());
        let mut all: Vec<_> = ends.iter().flatten().copied().collect();
        all.sort_unstable();
        let seen = watchers.map(|watcher| {
            let note = |event| if let PoolEvent::Ending(note) = event { note.key } else { panic!("{event:?}") };
            watcher.join().unwrap().into_iter().map(note).collect::<Vec<_>>()
        });
        assert_eq!(seen[0], seen[1], "one order for all");
        for own in ends {
            let place = |key| seen[0].iter().position(|seen| *seen == key);
            assert!(place(own[0]) < place(own[1]), "in the order they happened");
        }
        let mut once = seen[0].clone();
        once.sort_unstable();
        assert_eq!(once, all, "each of them once");
        house.ends_untouched();
    });
}
