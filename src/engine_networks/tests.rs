//! On the scripted engine, whose bridges are the fake host's.

use super::*;
use crate::engine::NetworkRange;
use crate::engine::fake::{FakeWorld, Fault, Operation};

fn spec(name: &str) -> NetworkSpec {
    let range = NetworkRange { subnet: "10.1.0.0/16".into(), range: "10.1.0.0/17".into(), gateway: "10.1.0.1".into() };
    NetworkSpec { name: name.into(), bridge: format!("ns-{name}"), ranges: vec![range], mtu: 1400, masquerade: true, labels: Labels::new() }
}

fn networks(world: &Arc<FakeWorld>, pool: &str, wanted: &[&str]) -> EngineNetworks {
    let host = Arc::clone(world);
    EngineNetworks::new(world.engine(), pool, wanted.iter().map(|name| spec(name)).collect(), Box::new(move |link| host.has_bridge(link)))
}

fn names(world: &FakeWorld) -> Vec<String> {
    world.engine_networks().into_iter().map(|network| network.made_with.name).collect()
}

#[track_caller]
fn touched_nothing(world: &FakeWorld, before: &[Network]) {
    assert_eq!(world.engine_networks(), before);
    assert_eq!((world.count(Operation::CreateNetwork), world.count(Operation::RemoveNetwork)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_made_once_with_its_owner_on_it() {
    let world = FakeWorld::new(1);
    let ours = networks(&world, "a", &["fn", "gn"]);
    assert_eq!(ours.ensure().await.unwrap(), ["fn", "gn"]);
    assert_eq!(ours.ensure().await.unwrap(), [] as [&str; 0]);
    let there = world.engine_networks();
    assert!(there.iter().all(|network| owner(network) == Some("a")));
    assert_eq!(there[0].differences(&spec("fn")), [] as [&str; 0]);
    // The next daemon of the pool uses them.
    assert_eq!(networks(&world, "a", &["fn", "gn"]).ensure().await.unwrap(), [] as [&str; 0]);
    assert_eq!(world.count(Operation::CreateNetwork), 2);
}

#[tokio::test(start_paused = true)]
async fn a_network_of_somebody_else_is_told_and_left() {
    let of_pool = |pool: &str, name: &str| NetworkSpec { labels: labels(pool, name), ..spec("fn") };
    let others = [
        (spec("fn"), "which nspool did not make"),
        (of_pool("b", "fn"), "which is the pool b's"),
        // Labels that came with a copy.
        (of_pool("a", "gn"), "which nspool did not make"),
    ];
    for (other, whose) in others {
        let world = FakeWorld::new(1);
        world.make_network(other);
        let before = world.engine_networks();
        let ours = networks(&world, "a", &["fn"]);
        let trouble = ours.ensure().await.unwrap_err();
        assert_eq!(trouble, Trouble::Foreign { name: "fn".into(), whose: whose.into() });
        // Nor is it when its bridge goes, or the pool.
        world.set_bridge("ns-fn", false);
        assert_eq!(ours.ensure().await.unwrap_err(), trouble);
        assert_eq!(ours.remove(false).await.unwrap(), Removed::default());
        touched_nothing(&world, &before);
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_ours_with_other_settings_is_told_and_left() {
    let world = FakeWorld::new(1);
    world.make_network(NetworkSpec { mtu: 1500, masquerade: false, labels: labels("a", "fn"), ..spec("fn") });
    let before = world.engine_networks();
    let trouble = networks(&world, "a", &["fn"]).ensure().await.unwrap_err();
    assert!(trouble.to_string().contains("mtu is 1500, not 1400, nat is off, not on"), "{trouble}");
    touched_nothing(&world, &before);
}

#[tokio::test(start_paused = true)]
async fn a_link_that_has_the_bridges_name_is_not_taken_over() {
    let world = FakeWorld::new(1);
    world.set_bridge("ns-fn", true);
    let trouble = networks(&world, "a", &["fn"]).ensure().await.unwrap_err();
    assert_eq!(trouble, Trouble::LinkInTheWay { name: "fn".into(), bridge: "ns-fn".into() });
    touched_nothing(&world, &[]);
}

#[tokio::test(start_paused = true)]
async fn a_trouble_with_one_does_not_keep_the_others_from_being_made() {
    let world = FakeWorld::new(1);
    world.make_network(spec("fn"));
    networks(&world, "a", &["fn", "gn"]).ensure().await.unwrap_err();
    assert_eq!(names(&world), ["fn", "gn"]);
}

#[tokio::test(start_paused = true)]
async fn a_bridge_that_is_gone_comes_back_unless_a_container_needs_its_network() {
    let world = FakeWorld::new(1);
    let ours = networks(&world, "a", &["fn"]);
    ours.ensure().await.unwrap();
    world.set_bridge("ns-fn", false);
    world.use_network("fn", &["web"]);
    let trouble = ours.ensure().await.unwrap_err();
    assert_eq!(trouble, Trouble::InUse { name: "fn".into(), bridge: "ns-fn".into(), users: vec!["web".into()] });
    assert_eq!(names(&world), ["fn"]);
    world.use_network("fn", &[]);
    assert_eq!(ours.ensure().await.unwrap(), ["fn"]);
    assert!(world.has_bridge("ns-fn"));
    assert_eq!(world.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn what_the_pool_made_goes_with_it_unless_a_container_is_on_it() {
    let world = FakeWorld::new(1);
    networks(&world, "a", &["fn", "gn"]).ensure().await.unwrap();
    networks(&world, "b", &["hn"]).ensure().await.unwrap();
    world.use_network("gn", &["web", "db"]);
    // Whoever purges knows no configuration.
    let purge = networks(&world, "a", &[]);
    let left = vec![Left { network: "gn".into(), why: vec!["container web".into(), "container db".into()] }];
    let wanted = Removed { removed: vec!["fn".into()], left };
    assert_eq!(purge.remove(true).await.unwrap(), wanted);
    assert_eq!(names(&world), ["fn", "gn", "hn"]);
    assert_eq!(purge.remove(false).await.unwrap(), wanted);
    assert_eq!(names(&world), ["gn", "hn"]);
    world.use_network("gn", &[]);
    assert_eq!(purge.remove(false).await.unwrap().removed, ["gn"]);
    assert_eq!((names(&world), world.violations()), (vec!["hn".to_owned()], vec![]));
}

/// Only a list that came is one: an error neither makes nor removes anything.
#[tokio::test(start_paused = true)]
async fn an_engine_that_fails_is_told() {
    let operations = [Operation::Networks, Operation::CreateNetwork];
    for operation in operations {
        let world = FakeWorld::new(1);
        world.script(operation, Fault::Error(ErrorClass::Refused, "Pool overlaps with other one on this address space".into()));
        let ours = networks(&world, "a", &["fn"]);
        assert!(ours.ensure().await.unwrap_err().to_string().contains("Pool overlaps"));
        assert_eq!(ours.ensure().await.unwrap(), ["fn"]);
    }
    let world = FakeWorld::new(1);
    let ours = networks(&world, "a", &["fn"]);
    ours.ensure().await.unwrap();
    world.script(Operation::NetworkUsers, Fault::Error(ErrorClass::Unknown, "EOF".into()));
    assert_eq!(ours.remove(false).await.unwrap().removed, [] as [&str; 0]);
    assert_eq!(names(&world), ["fn"]);
    // An answer that was lost: what was made is found.
    world.prune_network("fn");
    world.script(Operation::CreateNetwork, Fault::Unknown { done: true });
    ours.ensure().await.unwrap_err();
    assert_eq!((ours.ensure().await.unwrap(), names(&world)), (vec![], vec!["fn".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn the_care_begins_when_it_may_and_mends_at_once() {
    let world = FakeWorld::new(1);
    let mut care = Care::new(Arc::new(networks(&world, "a", &["fn"])));
    assert!(!care.look(false).await.is_empty());
    assert_eq!((world.count(Operation::Networks), care.look(true).await), (0, ""));
    world.prune_network("fn");
    assert_eq!((care.look(true).await, names(&world)), ("", vec!["fn".to_owned()]));
    // As long as the bridge is there, nobody is asked for half a minute, and an engine that is away changes nothing.
    let asked = world.count(Operation::Networks);
    care.look(true).await;
    assert_eq!(world.count(Operation::Networks), asked);
    world.engine_away();
    tokio::time::advance(AT_LEAST_EVERY).await;
    assert_eq!((care.look(true).await, world.count(Operation::Networks)), ("", asked + 1));
}

#[tokio::test(start_paused = true)]
async fn the_care_asks_less_and_less_often_while_it_is_in_vain() {
    let world = FakeWorld::new(1);
    world.make_bridges_elsewhere();
    let mut care = Care::new(Arc::new(networks(&world, "a", &["fn"])));
    for _ in 0..600 {
        assert!(care.look(true).await.contains("not on this host"));
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let made = world.count(Operation::CreateNetwork);
    assert!((10..=30).contains(&made), "{made}");
    assert_eq!(names(&world), ["fn"], "each was taken back before the next");
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_wants_none_asks_for_none() {
    let world = FakeWorld::new(1);
    let mut care = Care::new(Arc::new(networks(&world, "a", &[])));
    for may_look in [false, true] {
        assert_eq!(care.look(may_look).await, "");
    }
    assert_eq!(world.count(Operation::Networks), 0);
}
