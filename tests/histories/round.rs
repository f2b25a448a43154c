//! One history: agents and watchers at work while daemons come and go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nspool::config::Reuse;
use nspool::proto::namespace_pool_client::NamespacePoolClient;
use nspool::proto::pool_admin_client::PoolAdminClient;
use nspool::proto::watch_response::Event;
use nspool::proto::{AllocateRequest, ForceReleaseRequest, LeaseState, WatchRequest, WatchResponse};
use tonic::transport::Channel;

use crate::agent::Agent;
use crate::history::{History, Sight, What};
use crate::house::{House, Running};

const AGENTS: u64 = 6;
const WATCHERS: u64 = 2;
const LASTS: Duration = Duration::from_millis(2500);

/// What becomes of the daemon, three times in a history.
const ENDS: u32 = 3;

pub async fn tell(seed: u64) -> History {
    let mut dice = fastrand::Rng::with_seed(seed);
    let house = House::new(seed, if dice.bool() { Reuse::Always } else { Reuse::Once });
    let running = house.start();
    let start = Instant::now();
    let until = start + LASTS;
    let agents: Vec<_> = (0..AGENTS).map(|number| tokio::spawn(Agent::new(&house, number, seed, start).live(until))).collect();
    let watchers: Vec<_> = (0..WATCHERS).map(|_| tokio::spawn(watch(NamespacePoolClient::new(house.channel()), start))).collect();
    let running = succeed(&house, running, &mut dice).await;
    let mut history = History::default();
    for agent in agents {
        history.calls.extend(agent.await.unwrap().calls);
    }
    mark_the_end(&house).await;
    for watcher in watchers {
        let watched = tokio::time::timeout(Duration::from_secs(20), watcher).await;
        history.sights.push(watched.expect("a watcher saw the mark").unwrap());
    }
    running.stop().await;
    history
}

/// Ends daemons, and starts the next.
async fn succeed(house: &Arc<House>, mut running: Running, dice: &mut fastrand::Rng) -> Running {
    for _ in 0..ENDS {
        tokio::time::sleep(LASTS / (ENDS + 1)).await;
        match dice.u8(..3) {
            0 => {
                running.stop().await;
                running = house.start();
                continue;
            }
            1 => running.life.end_in_call(dice.u64(1..8), dice.bool()),
            _ => running.life.end_in_write(dice.u64(1..8), dice.u64(..300)),
        }
        let began = Instant::now();
        while !running.life.is_over() {
            assert!(began.elapsed() < Duration::from_secs(20), "nothing is called or written any more");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        running.bury().await;
        running = house.start();
    }
    running
}

/// The owner of the lease whose end is the last thing that watchers see.
const LAST: &str = "the last";

async fn mark_the_end(house: &Arc<House>) {
    let request =
        AllocateRequest { owner: LAST.into(), wait: Some(Duration::from_secs(20).try_into().unwrap()), ..AllocateRequest::default() };
    let (mut pool, mut admin) = (NamespacePoolClient::new(house.channel()), PoolAdminClient::new(house.channel()));
    let lease = pool.allocate(request).await.unwrap().into_inner().lease.unwrap();
    admin.force_release(ForceReleaseRequest { lease_id: lease.lease_id }).await.unwrap();
}

/// Watches until the mark, over daemons' ends.
async fn watch(mut pool: NamespacePoolClient<Channel>, start: Instant) -> Vec<Sight> {
    let (mut sights, mut position) = (Vec::new(), None);
    loop {
        let Ok(stream) = pool.watch(WatchRequest { position }).await else {
            tokio::time::sleep(Duration::from_millis(2)).await;
            continue;
        };
        let mut stream = stream.into_inner();
        while let Ok(Some(message)) = stream.message().await {
            position = Some(message.position);
            if matches!(&message.event, Some(Event::Ending(note)) if note.owner == LAST) {
                return sights;
            }
            sights.extend(sight(start.elapsed(), message));
        }
    }
}

fn sight(at: Duration, message: WatchResponse) -> Option<Sight> {
    let what = match message.event? {
        Event::Snapshot(snapshot) => {
            let active = snapshot.leases.into_iter().filter(|lease| lease.state() == LeaseState::Active);
            What::Snapshot(active.map(|lease| lease.lease_id).collect())
        }
        Event::Ending(note) => What::Ended(note.lease_id),
        Event::Lost(note) => What::Lost(note.lease_id),
        Event::Reset(_) => What::Reset,
        Event::Capacity(_) | Event::Joined(_) | Event::Cordon(_) => return None,
    };
    Some(Sight { at, position: message.position, what })
}
