//! Buddies that somebody else lays hands on: out of the pool at once, and replaced.

use crate::support::daemon::{TestDaemon, kill};
use crate::support::engines::TestEngine;

on_both_engines!(a_buddy_that_ends_is_replaced, a_fallen_buddy_is_never_handed_out);

async fn a_buddy_that_ends_is_replaced(engine: &TestEngine) {
    let daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.max = 1"]).await;
    for way in ["killed on the host", "killed", "paused", "removed", "stopped", "restarted"] {
        daemon.settled(1).await;
        let before = daemon.slots().await.remove(0);
        let id = &before.container_id;
        match way {
            "killed on the host" => kill("KILL", before.pid),
            // podman says that it was removed before it had seen it end.
            "killed" => drop(engine.client(&["kill", id])),
            "paused" => drop(engine.run(&["pause", id])),
            // The pool removes what it sees die, and two removals at once may get into each other's way.
            "removed" => drop(engine.client(&["rm", "-f", id])),
            "stopped" => drop(engine.run(&["stop", id])),
            // It may be removed before the engine has started it again, and says so.
            _ => drop(engine.client(&["restart", "-t", "1", id])),
        }
        daemon.slot(0, "it to leave the pool", |slot| slot.generation != before.generation || slot.state != "ready").await;
        let after = daemon.slot(0, "another buddy", |slot| slot.generation > before.generation && slot.state == "ready").await;
        assert_ne!(after.container_id, *id, "{way}");
        assert!(!daemon.buddies().contains(id), "{way}: it is still there");
    }
}

async fn a_fallen_buddy_is_never_handed_out(engine: &TestEngine) {
    let daemon = TestDaemon::start(engine, &["pool.ready = 2"]).await;
    let client = daemon.client();
    for _ in 0..3 {
        daemon.settled(2).await;
        let slot = daemon.slots().await.into_iter().find(|slot| slot.state == "ready").unwrap();
        kill("KILL", slot.pid);
        daemon.slot(slot.slot, "its end to be seen", |now| now.generation != slot.generation || now.state != "ready").await;
        let lease = daemon.allocate(&client).await;
        assert_ne!((lease.slot, lease.generation), (slot.slot, slot.generation));
        client.release(&lease.token, false).await.unwrap();
    }
    daemon.settled(2).await;
}
