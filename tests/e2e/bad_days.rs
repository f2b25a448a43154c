//! What can be wrong with networks, images and placeholders: said in the words of whoever refused, and no reason for the rest to stop.

use std::time::{Duration, Instant};

use crate::support::daemon::{LIMIT, TestDaemon, load_busybox, text};
use crate::support::engines::{TestEngine, unique_subnet};
use crate::support::eventually;
use crate::support::image::BUSYBOX;

on_both_engines!(
    a_missing_network_is_named_and_the_others_go_on,
    used_up_addresses_are_told_and_the_others_go_on,
    an_image_that_cannot_be_had_is_told,
    a_placeholder_that_ends_at_once_is_never_handed_out,
    a_placeholder_of_ones_own_works,
    a_name_that_is_taken_by_somebody_else_stays_theirs,
);

async fn a_missing_network_is_named_and_the_others_go_on(engine: &TestEngine) {
    let network = engine.network(&unique_subnet(27));
    engine.run(&["network", "rm", &network.name]);
    let networks = format!("pool.networks = [\"bridge\", {:?}]", network.name);
    let daemon = TestDaemon::start(engine, &[&networks]).await;
    let slot = daemon.slot(1, "the error", |slot| slot.failures > 1).await;
    assert!(slot.last_error.contains(&network.name), "{slot:?}");
    daemon.usage("the other network's slot", |usage| usage.ready == 1).await;
    daemon.level("nothing half-made", |_| async { (daemon.buddies().len() == 1).then_some(()) }).await;
    let refused = daemon.cli(&["allocate", "--network", &network.name]);
    assert_eq!(refused.status.code(), Some(75), "{}", text(&refused.stderr));
    engine.run(&["network", "create", "--subnet", &unique_subnet(27), &network.name]);
    daemon.settled(2).await;
}

async fn used_up_addresses_are_told_and_the_others_go_on(engine: &TestEngine) {
    // Room for the gateway and one more.
    let network = engine.network(&unique_subnet(30));
    let networks = format!("pool.networks = [\"bridge\", {:?}]", network.name);
    let mut daemon = TestDaemon::start(engine, &["pool.ready = 4", "pool.max = 8", &networks]).await;
    daemon.usage("all that there is room for", |usage| usage.ready == 3).await;
    let failing = |slots: nspool::proto::ListSlotsResponse| slots.slots.into_iter().find(|slot| slot.failures > 1);
    let slot = daemon.level("the error", |client| async move { failing(client.slots().await.unwrap()) }).await;
    let words = slot.last_error.to_lowercase();
    assert!(words.contains("address") || words.contains(" ip"), "{slot:?}");
    assert_eq!(slot.network, network.name);
    // Its address is free again once it was used.
    let lease = daemon.json(&["allocate", "--network", &network.name]);
    daemon.json(&["release", lease["token"].as_str().unwrap()]);
    daemon.usage("all that there is room for", |usage| usage.ready == 3 && usage.vacating + usage.retiring == 0).await;
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert_eq!(daemon.containers(), [""; 0]);
}

async fn an_image_that_cannot_be_had_is_told(engine: &TestEngine) {
    let mut daemon = TestDaemon::start(engine, &["placeholder.image = \"127.0.0.1:1/nobody/there:1\""]).await;
    let failed = |usage: nspool::proto::GetUsageResponse| usage.image_state == "failed" && usage.engine_state == "up";
    daemon.level("the failure", |client| async move { failed(client.usage().await.unwrap()).then_some(()) }).await;
    let usage = daemon.json(&["usage"]);
    assert!(usage["image_error"].as_str().unwrap().contains("refused"), "{usage}");
    assert_eq!(usage["ready"], 0);
    let began = Instant::now();
    assert_eq!(daemon.cli(&["allocate", "--wait", "300ms"]).status.code(), Some(75));
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
}

async fn a_placeholder_that_ends_at_once_is_never_handed_out(engine: &TestEngine) {
    load_busybox(engine);
    let image = format!("placeholder.image = {BUSYBOX:?}");
    let mut daemon = TestDaemon::start(engine, &["pool.ready = 1", &image, "placeholder.command = [\"true\"]"]).await;
    daemon
        .level("a few failures, in its words", |client| async move {
            let (usage, slots) = (client.usage().await.unwrap().total.unwrap(), client.slots().await.unwrap().slots);
            assert_eq!(usage.ready, 0, "it was ready for a moment");
            // podman may not find its process any more, and says that.
            slots.into_iter().find(|slot| slot.failures > 2 && slot.last_error.contains("ended at once"))
        })
        .await;
    assert_eq!(daemon.cli(&["allocate", "--wait", "1s"]).status.code(), Some(75));
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert_eq!(daemon.containers(), [""; 0]);
}

async fn a_placeholder_of_ones_own_works(engine: &TestEngine) {
    load_busybox(engine);
    let image = format!("placeholder.image = {BUSYBOX:?}");
    // One that forks, and whose child is no joiner.
    let command = "placeholder.command = [\"sh\", \"-c\", \"sleep 100000 & wait\"]";
    let mut daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.max = 1", &image, command]).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let seen = daemon.function(&["run", "--rm"], &lease.network_mode, &["ip", "-o", "-4", "addr"]).unwrap();
    assert!(seen.contains(&lease.ip_addresses[0]), "{seen}");
    client.release(&lease.token, false).await.unwrap();
    daemon.settled(1).await;
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert_eq!(daemon.containers(), [""; 0]);
}

async fn a_name_that_is_taken_by_somebody_else_stays_theirs(engine: &TestEngine) {
    load_busybox(engine);
    let daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.max = 1"]).await;
    daemon.settled(1).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    // Removed by hand, while the pool, which sees it die, removes it, too; and its name taken by a stranger.
    engine.client(&["rm", "-f", &lease.container_id]);
    let label = format!("{}={}", crate::support::daemon::TEST_LABEL, daemon.pool);
    let run = ["run", "-d", "--label", &label, "--name", &lease.namespace_id, BUSYBOX, "sleep", "1000"];
    let taken = || async { Some(engine.client(&run)).filter(|ran| ran.status.success()).map(|ran| text(&ran.stdout).trim().to_owned()) };
    let stranger = eventually("its name to be free", LIMIT, taken).await;
    daemon.slot(lease.slot, "another buddy", |slot| slot.generation > lease.generation && slot.state == "ready").await;
    assert_eq!(client.lease(&lease.token).await.unwrap().state(), nspool::proto::LeaseState::Lost);
    assert_eq!(engine.run(&["inspect", "--format", "{{.State.Status}}", &stranger]), "running");
}
