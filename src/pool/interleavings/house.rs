//! A pool with nannies by hand, and callers whose leases are watched over.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use shuttle::future::{self, JoinHandle, block_on};
use tokio_util::sync::CancellationToken;

use crate::ledger::interleavings::disk::Disk;
use crate::ledger::{Identity, Ledger, Table};
use crate::pool::state::{Afterwards, Order, Rules};
use crate::pool::{Address, Denied, Grant, LeaseView, Lifetime, Namespace, Pool, Released, Request, SlotIndex, Token, UseKey, World};
use crate::sync::checked::perhaps_dropped;

/// Longer than any schedule.
pub(super) const FOREVER: Duration = Duration::from_secs(24 * 3600);

/// How a caller waits.
#[derive(Clone, Copy, Debug)]
pub(super) enum Patience {
    Forever,
    Timed,
    /// Its call is dropped, sooner or later.
    Dropped,
}

/// The pool, and whom it told of which lease.
pub(super) struct House {
    pub(super) pool: Arc<Pool>,
    pub(super) disk: Option<Disk>,
    slots: u32,
    stop: CancellationToken,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    hands: Mutex<Hands>,
}

#[derive(Default)]
struct Hands {
    /// Who holds what now.
    holders: HashMap<SlotIndex, Token>,
    /// Uses that somebody was told of, ever.
    told: HashMap<UseKey, Token>,
}

impl House {
    /// With so many slots, all to be filled; recorded on a disk of which one write in so many fails (0: none), or not at all.
    pub(super) fn new(slots: u32, disk: Option<u32>) -> Arc<Self> {
        let clock = AtomicU64::new(1);
        let coins = AtomicU64::new(1);
        let world = World {
            now: Box::new(move || Duration::from_millis(clock.fetch_add(1, Ordering::Relaxed))),
            token: Box::new(move || Token(u128::from(coins.fetch_add(1, Ordering::Relaxed)).to_be_bytes())),
        };
        let recorded = disk.map(|one_fails_of| {
            let disk = Disk::default();
            let identity = Identity { boot_id: "b".into(), pool: "p".into(), now: Duration::ZERO, engine: String::new() };
            let (ledger, _) = Ledger::on(Box::new(disk.clone()), &identity).unwrap();
            disk.fail_one_of(one_fails_of);
            (disk, ledger)
        });
        let (disk, ledger) = recorded.unzip();
        let pool = Pool::recorded(rules(slots), 1, 64, world, ledger.map(|ledger| (ledger, vec!["bridge".to_owned()].into())));
        pool.with(|state, now| {
            state.set_engine_up(true);
            state.resize(now, slots, slots).unwrap();
        });
        let stop = CancellationToken::new();
        let nannies = (0..slots).map(|slot| future::spawn(nanny(Arc::clone(&pool), slot, stop.clone())));
        let tasks = Mutex::new(nannies.collect());
        Arc::new(Self { pool, disk, slots, stop, tasks, hands: Mutex::default() })
    }

    /// The pool's own timer, too.
    pub(super) fn with_timer(self: Arc<Self>) -> Arc<Self> {
        let (pool, stop) = (Arc::clone(&self.pool), self.stop.clone());
        self.tasks.lock().push(future::spawn(async move { pool.run_timer(stop).await }));
        self
    }

    /// One call of a caller, to its end or until it is dropped.
    pub(super) fn call(&self, request: Request, patience: Patience) -> Option<Result<Grant, Denied>> {
        let answer = match patience {
            Patience::Forever => Some(block_on(self.pool.allocate(request, FOREVER))),
            Patience::Timed => Some(block_on(self.pool.allocate(request, Duration::from_secs(1)))),
            Patience::Dropped => block_on(perhaps_dropped(self.pool.allocate(request, FOREVER))),
        };
        if let Some(Ok(grant)) = &answer {
            self.takes(grant);
        }
        answer
    }

    /// I2 and I8, as the caller sees them.
    fn takes(&self, grant: &Grant) {
        let (key, token) = (grant.lease.key, grant.lease.token);
        let mut hands = self.hands.lock();
        let before = hands.told.insert(key, token);
        assert!(before.is_none_or(|before| before == token), "use {key} was told to two callers");
        if before.is_none() {
            let holder = hands.holders.insert(key.slot, token);
            assert!(holder.is_none(), "slot {} is lent to two", key.slot);
        }
        drop(hands);
        self.knows(&grant.lease);
    }

    /// I8: whoever is told of a lease is told of one that a next daemon would know.
    pub(super) fn knows(&self, lease: &LeaseView) {
        let token = lease.token;
        if let Some(disk) = &self.disk {
            let table = Table::read(&disk.bytes());
            let known = table.leases.contains_key(&token.0[..]) || table.ended.iter().any(|ended| ended.token == token.0);
            assert!(known, "an answered lease is in no ledger");
        }
    }

    /// It is not held any more: to be said before whatever ends it.
    pub(super) fn lets_go(&self, lease: &LeaseView) {
        let mut hands = self.hands.lock();
        if hands.holders.get(&lease.key.slot) == Some(&lease.token) {
            hands.holders.remove(&lease.key.slot);
        }
    }

    pub(super) fn gives_back(&self, grant: &Grant) -> Released {
        self.lets_go(&grant.lease);
        self.pool.with(|state, now| state.release(now, grant.lease.token, false)).unwrap()
    }

    /// The buddy of a slot dies, whatever the slot is doing.
    pub(super) fn dies(&self, slot: SlotIndex) {
        self.hands.lock().holders.remove(&slot);
        self.pool.with(|state, now| {
            let key = state.key(slot);
            state.buddy_gone(now, key, "killed by the test");
        });
    }

    /// After everybody has gone: nothing is left of them, in the pool or in its ledger.
    pub(super) fn ends_untouched(&self) {
        if let Some(disk) = &self.disk {
            disk.fail_one_of(0);
        }
        let all = self.slots;
        block_on(self.pool.until(|state| state.usage().ready == all));
        let usage = self.pool.read(|state| {
            state.check();
            state.usage()
        });
        assert_eq!((usage.leased, usage.lost, usage.waiting), (0, 0, 0), "{usage:?}");
        assert!(self.pool.inner.lock().waiters.is_empty(), "a waiter of nobody");
        if let Some(ledger) = self.pool.ledger() {
            ledger.flush_grant().unwrap();
            let (written, state) = (ledger.told().unwrap(), self.pool.read(|state| state.told()));
            assert_eq!(written.leases, BTreeMap::new());
            assert_eq!((written.buddies, written.ended.len()), (state.buddies, state.ended.len()));
        }
        self.closes();
    }

    pub(super) fn closes(&self) {
        self.stop.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.into_iter().for_each(|task| block_on(task).unwrap());
    }
}

fn rules(slots: u32) -> Rules {
    Rules {
        networks: 1,
        ready: slots,
        max: slots,
        afterwards: [Afterwards::Reuse].into(),
        keep_tenants: false,
        linger: Duration::from_secs(10),
        max_detached: 1,
        max_waiting: 8,
        quota_per_uid: None,
        remember: FOREVER,
        remember_max: 100,
        trim_after: FOREVER,
    }
}

pub(super) fn request(id: Option<&str>) -> Request {
    Request {
        uid: 0,
        owner: String::new(),
        tenant: String::new(),
        request_id: id.map(str::to_owned),
        network: None,
        lifetime: Lifetime::Joiners { join_by: FOREVER },
        labels: BTreeMap::new(),
    }
}

/// Follows the orders at once, and sleeps between them until it is nudged.
async fn nanny(pool: Arc<Pool>, slot: SlotIndex, stop: CancellationToken) {
    let nudge = pool.nudge_of(slot);
    loop {
        match pool.order(slot) {
            Order::Fill { generation } => {
                pool.with(|state, now| state.registered(now, slot, generation, namespace(slot, generation, 1)));
            }
            Order::Vacate(key) => {
                let next = namespace(slot, key.generation, key.use_number + 1);
                pool.with(|state, now| state.vacated(now, key, next));
            }
            Order::Renew(key) => {
                let next = namespace(slot, key.generation, key.use_number + 1);
                pool.with(|state, now| state.renewed(now, key, next));
            }
            Order::Retire(key) => pool.with(|state, now| state.removed(now, key)),
            // As if the backoff were over at once.
            Order::BackOff => pool.with(|state, now| state.backoff_over(now, slot)),
            Order::Rest | Order::Tend(_) | Order::Adopt(_) | Order::Await(_) => tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = nudge.notified() => {}
            },
        }
    }
}

fn namespace(slot: SlotIndex, generation: u64, use_number: u64) -> Arc<Namespace> {
    let namespace_id = format!("n-{slot}-{generation}-{use_number}");
    Arc::new(Namespace {
        network_mode: format!("container:{namespace_id}"),
        namespace_id,
        host_config: String::new(),
        container_id: format!("c-{slot}-{generation}").into(),
        tell_container_id: false,
        addresses: vec![Address { address: "172.17.0.2/16".into(), gateway: String::new() }],
        resolv_conf: String::new(),
        mtu: 1500,
        pid: 1,
        started_at: String::new(),
        folder: String::new(),
    })
}
