//! The audit: finds each kind of disagreement, mends what is safe, leaves alone what is not, and is silent where all agree.

use std::sync::Arc;
use std::time::Duration;

use crate::support::disk::Disk;
use crate::support::rig::{Rig, config};
use nspool::audit::{Finding, Kind, NotNow};
use nspool::config::Reuse;
use nspool::engine::fake::{FakeWorld, Fault, Operation};
use nspool::engine::{BuddySpec, ContainerId, Flavour, ImageId, NamespaceKind};
use nspool::ledger::record::{Leased, Record};
use nspool::ledger::{Identity, Ledger, Table, frame};
use nspool::pool::state::SlotState;

struct Audited {
    rig: Rig,
    world: Arc<FakeWorld>,
    ledger: Arc<Ledger>,
}

impl Audited {
    /// Two ready slots.
    async fn start() -> Self {
        let world = FakeWorld::new(1);
        let mut config = config(Reuse::Once);
        config.pacer.rate = None;
        let identity = Identity { boot_id: "boot".into(), pool: config.pool.name.clone(), now: Duration::ZERO, engine: String::new() };
        let (ledger, replayed) = Ledger::on(Box::new(Disk::default()), &identity).unwrap();
        let locks = Arc::new(tempfile::tempdir().unwrap());
        let rig = Rig::start_in(config, Arc::clone(&world), locks, Some((Arc::clone(&ledger), replayed)), false);
        rig.settled(2).await;
        Self { rig, world, ledger }
    }

    async fn audit(&self, fix: bool) -> Vec<Finding> {
        self.rig.auditor.audit(fix).await.unwrap().findings
    }

    /// Found by an audit, mended by the next, gone in the third.
    async fn is_found_and_mended(&self, kind: Kind) {
        let found = self.audit(false).await;
        assert!(!found.is_empty() && found.iter().all(|found| found.kind == kind && found.fixable && !found.fixed), "{found:#?}");
        let mended = self.audit(true).await;
        assert!(mended.len() == found.len() && mended.iter().all(|found| found.fixed), "{mended:#?}");
        assert_eq!(self.audit(false).await, []);
        assert_eq!(self.world.violations(), []);
    }

    /// Events come no more, though the engine does whatever it is asked.
    async fn deaf(&self) {
        self.world.script(Operation::Events, Fault::Never);
        self.world.cut_events();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    fn ready(&self) -> ContainerId {
        let ready = self.rig.pool.read(|state| state.slot_views().into_iter().find(|slot| slot.state == SlotState::Ready).unwrap());
        ContainerId(Arc::clone(&ready.namespace.unwrap().container_id))
    }

    /// A container with the labels of one of the pool's buddies but for these, by that name.
    async fn made_by_hand(&self, name: &str, changed: &[(&str, &str)]) -> ContainerId {
        let mut labels = self.world.container(self.ready().as_str()).unwrap().labels;
        labels.extend(changed.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let image = self.world.container(self.ready().as_str()).unwrap().image;
        let spec = BuddySpec {
            name: name.to_owned(),
            image: ImageId(image.0),
            command: Vec::new(),
            labels,
            network: "bridge".into(),
            namespaces: vec![NamespaceKind::Net],
            user: String::new(),
            memory_bytes: 0,
            pids: 0,
            flavour: Flavour::Fixed,
            ipv6: false,
        };
        self.world.engine().create(&spec).await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn all_agree_while_slots_are_leased_used_and_refilled() {
    let audited = Audited::start().await;
    assert_eq!(audited.audit(false).await, []);
    let grant = audited.rig.allocate().await;
    let name = &grant.lease.namespace.namespace_id;
    audited.world.run_function(name, Some(name), "").unwrap();
    let audit = audited.rig.auditor.audit(true).await.unwrap();
    assert_eq!((audit.findings, audit.leases), (Vec::new(), 1));
    assert!(audit.slots == 4 && audit.containers >= 3, "{} slots, {} containers", audit.slots, audit.containers);
    audited.rig.release(&grant);
    assert_eq!(audited.audit(false).await, [], "one that is in quarantine is no disagreement");
}

#[tokio::test(start_paused = true)]
async fn a_buddy_that_is_not_running_is_found_and_replaced() {
    let audited = Audited::start().await;
    audited.deaf().await;
    audited.world.pause(audited.ready().as_str());
    audited.is_found_and_mended(Kind::Buddy).await;
}

#[tokio::test(start_paused = true)]
async fn a_buddy_by_another_name_is_found_and_replaced() {
    let audited = Audited::start().await;
    let ready = audited.ready();
    audited.world.engine().rename(&ready, "mine-now").await.unwrap();
    let found = audited.audit(true).await;
    assert_eq!(found.iter().map(|found| found.kind).collect::<Vec<_>>(), [Kind::Name], "{found:#?}");
    assert_eq!(audited.audit(false).await, []);
}

#[tokio::test(start_paused = true)]
async fn somebody_in_a_ready_slot_is_found_and_the_slot_given_up() {
    let audited = Audited::start().await;
    let ready = audited.ready();
    let name = audited.world.container(ready.as_str()).unwrap().name;
    audited.world.create_function(nspool::engine::fake::FunctionSpec::joining(&name, None)).unwrap();
    audited.is_found_and_mended(Kind::Joiner).await;
    assert_ne!(audited.ready(), ready);
}

#[tokio::test(start_paused = true)]
async fn a_joiner_that_no_event_told_of_is_found_and_told() {
    let audited = Audited::start().await;
    let grant = audited.rig.allocate().await;
    audited.deaf().await;
    let name = &grant.lease.namespace.namespace_id;
    audited.world.run_function(name, Some(name), "").unwrap();
    audited.is_found_and_mended(Kind::Joiner).await;
    let lease = audited.rig.pool.read(|state| state.lease(grant.lease.token)).unwrap();
    assert_eq!((lease.joiners, lease.lost), (1, None));
}

#[tokio::test(start_paused = true)]
async fn an_orphan_is_removed_once_nobody_is_in_it() {
    let audited = Audited::start().await;
    let orphan = audited.made_by_hand("nspool-default-3-7-1-0123abcd", &[("nspool.slot", "3"), ("nspool.generation", "7")]).await;
    audited.is_found_and_mended(Kind::Orphan).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(audited.world.container(orphan.as_str()).is_none(), "the minder removes it");
}

#[tokio::test(start_paused = true)]
async fn an_orphan_with_somebody_inside_is_watched() {
    let audited = Audited::start().await;
    let name = "nspool-default-3-7-1-0123abcd";
    let orphan = audited.made_by_hand(name, &[("nspool.slot", "3"), ("nspool.generation", "7")]).await;
    audited.world.engine().start(&orphan).await.unwrap();
    let function = audited.world.run_function(name, None, "").unwrap();
    audited.is_found_and_mended(Kind::Orphan).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(audited.world.is_alive(orphan.as_str()));
    audited.world.remove_function(&function);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(audited.world.container(orphan.as_str()).is_none());
    assert_eq!(audited.world.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn what_only_looks_like_ours_is_told_and_left_alone() {
    let audited = Audited::start().await;
    let stray = audited.made_by_hand("web", &[]).await;
    let found = audited.audit(true).await;
    assert_eq!(found.iter().map(|found| (found.kind, found.fixable, found.fixed)).collect::<Vec<_>>(), [(Kind::Stray, false, false)]);
    assert!(audited.world.container(stray.as_str()).is_some());
    // Another pool's are nobody's business.
    audited.world.remove_by_hand(stray.as_str());
    audited.made_by_hand("web", &[("nspool.pool", "other")]).await;
    assert_eq!(audited.audit(false).await, []);
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_tells_too_little_or_too_much_is_found_and_written_anew() {
    let audited = Audited::start().await;
    let grant = audited.rig.allocate().await;
    audited.rig.settled_beside(2).await;
    audited.ledger.rewrite(Table::default()).unwrap();
    let found = audited.audit(false).await;
    let lease = format!("lease {}", grant.lease.key);
    assert!(found.iter().any(|found| found.subject == lease), "{found:#?}");
    assert!(!format!("{found:?}").contains(&grant.lease.token.to_hex()), "a token is told");
    audited.is_found_and_mended(Kind::Ledger).await;

    let mut extra = frame(Record::Leased(Leased { token: vec![9; 16], slot: 3, generation: 1, use_number: 1, ..Leased::default() }));
    audited.ledger.stage(&mut extra);
    audited.is_found_and_mended(Kind::Ledger).await;

    // What was written anew is what the next daemon needs.
    let told = audited.ledger.told().unwrap();
    assert_eq!((told.leases.len(), told.buddies.len()), (1, 3));
    assert_eq!(told.began.unwrap().boot_id, "boot");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_asked_is_a_finding_and_nothing_else() {
    let audited = Audited::start().await;
    audited.world.engine_frozen();
    let found = audited.audit(true).await;
    assert!(!found.is_empty() && found.iter().all(|found| found.kind == Kind::Unknown && !found.fixed), "{found:#?}");
    assert_eq!(audited.rig.pool.read(|state| state.usage().ready), 2, "unknown is neither dead nor free");
}

#[tokio::test(start_paused = true)]
async fn there_is_no_audit_before_a_predecessors_slots_are_taken_over_nor_during_a_stop() {
    let world = FakeWorld::new(1);
    world.engine_away();
    let rig = Rig::start(config(Reuse::Once), Arc::clone(&world));
    assert_eq!(rig.auditor.audit(false).await.unwrap_err(), NotNow::Starting);
    rig.pool.with(|state, now| state.stop(now));
    assert_eq!(rig.auditor.audit(false).await.unwrap_err(), NotNow::Stopping);
}
