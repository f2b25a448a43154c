//! Nannies by hand: they follow the pool's orders at once, with no engine behind. Tests can hold them back.

use std::sync::Arc;

use nspool::level;
use nspool::pool::Pool;
use nspool::pool::state::Order;
use tokio::task::JoinSet;

use crate::world::namespace;

/// What the nannies do; the rest of their orders waits.
#[derive(Clone, Copy)]
pub struct Does {
    pub fill: bool,
    pub vacate: bool,
}

/// The nannies of all slots; dropped, they are gone.
pub struct Hand {
    pub does: level::Sender<Does>,
    _tasks: JoinSet<()>,
}

impl Hand {
    pub fn new(pool: Arc<Pool>, does: Does) -> Self {
        let (sender, receiver) = level::channel(does);
        let mut tasks = JoinSet::new();
        tasks.spawn(supervise(pool, receiver));
        Self { does: sender, _tasks: tasks }
    }

    pub fn fill(&self, fill: bool) {
        self.does.send_modify(|does| does.fill = fill);
    }
}

async fn supervise(pool: Arc<Pool>, does: level::Receiver<Does>) {
    let mut nannies = JoinSet::new();
    let mut slots = 0;
    loop {
        pool.until(|state| state.slot_count() > slots).await;
        let there_are = pool.read(|state| state.slot_count());
        for slot in slots..there_are {
            nannies.spawn(nanny(Arc::clone(&pool), slot, does.clone()));
        }
        slots = there_are;
    }
}

async fn nanny(pool: Arc<Pool>, slot: u32, mut does: level::Receiver<Does>) {
    let nudge = pool.nudge_of(slot);
    loop {
        let Does { fill, vacate } = *does.borrow_and_update();
        match pool.order(slot) {
            Order::Fill { generation } if fill => {
                pool.with(|state, now| state.registered(now, slot, generation, namespace(slot, generation, 1)));
            }
            Order::Vacate(key) if vacate => {
                let next = namespace(slot, key.generation, key.use_number + 1);
                pool.with(|state, now| state.vacated(now, key, next));
            }
            Order::Adopt(key) => pool.with(|state, now| state.proven(now, key, true)),
            Order::Retire(key) => pool.with(|state, now| state.removed(now, key)),
            Order::Rest | Order::Fill { .. } | Order::BackOff | Order::Tend(_) | Order::Vacate(_) | Order::Renew(_) | Order::Await(_) => {
                tokio::select! {
                    () = nudge.notified() => {}
                    changed = does.changed() => if changed.is_err() { return },
                }
            }
        }
    }
}
