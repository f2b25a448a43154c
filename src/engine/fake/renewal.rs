//! Renewals on the fake machine: the init's side (it obeys the next number alone, and late when it was frozen), and the prover's.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::Violation;
use super::kernel::Grip;
use super::machine::{HOST, place};
use super::model::Model;
use super::script::{Operation, RenewalFault};
use crate::engine::{ContainerStatus, ErrorClass, Flavour, NamespaceKind};
use crate::netns::{RenewError, Renewed, WrongAnswer};

/// As the real init's: it was refused the system call.
const CANNOT_RENEW: i64 = 103;

impl Grip {
    /// The [`crate::netns::Held::renew`] of the fake.
    pub(super) async fn renew(self: Arc<Self>, use_number: u64, within: Duration) -> Result<Renewed, RenewError> {
        let mut ticket = self.world.begin(Operation::Renew, &self.pid.to_string());
        let answer = self.told(use_number, within).await;
        ticket.settled(answer.as_ref().map(|_| ()).map_err(|_| ErrorClass::Refused));
        answer
    }

    async fn told(self: &Arc<Self>, use_number: u64, within: Duration) -> Result<Renewed, RenewError> {
        let (fault, latency) = {
            let mut script = self.world.script.lock();
            (script.renewals.pop_front().unwrap_or(RenewalFault::Ok), script.latency(Operation::Renew))
        };
        if self.has_moved() {
            return Err(RenewError::Wrong { pid: self.pid, wrong: WrongAnswer::MovedUntold });
        }
        let (begun, late) = (Instant::now(), if let RenewalFault::Slow(late) = fault { latency + late } else { latency });
        let obeyed = self.order(use_number, fault.clone(), late);
        let in_time = async {
            // Without a word from it nothing changes, until the end of the process.
            if obeyed.await.is_err() || !self.has_moved() {
                std::future::pending().await
            }
        };
        tokio::select! {
            biased;
            () = self.life.ended() => return Err(RenewError::Gone { pid: self.pid }),
            () = in_time => {}
            () = sleep(within) => return Err(RenewError::NoAnswer { pid: self.pid, state: 'S', within }),
        }
        if let RenewalFault::Error(error) = fault {
            return Err(error);
        }
        self.hold_new(begun)
    }

    /// Sends the order; what comes of it does not hang on who waits.
    fn order(self: &Arc<Self>, use_number: u64, fault: RenewalFault, late: Duration) -> oneshot::Receiver<()> {
        let (tell, obeyed) = oneshot::channel();
        if late.is_zero() {
            self.obey(use_number, &fault);
            let _told = tell.send(());
        } else {
            let grip = Arc::clone(self);
            self.world.tasks.spawn(async move {
                sleep(late).await;
                grip.obey(use_number, &fault);
                let _told = tell.send(());
            });
        }
        obeyed
    }

    fn obey(&self, use_number: u64, fault: &RenewalFault) {
        if !self.life.is_alive() {
            return;
        }
        let mut model = self.world.model.lock();
        match fault {
            RenewalFault::Ok | RenewalFault::Slow(_) | RenewalFault::Error(_) => model.obey(self.pid, use_number),
            RenewalFault::Never => {}
            RenewalFault::Refused => model.end_process(self.pid, CANNOT_RENEW),
            RenewalFault::Killed => model.end_process(self.pid, 137),
            RenewalFault::Strays => model.machine.enter(self.pid, NamespaceKind::Net, HOST[place(NamespaceKind::Net)]),
        }
    }

    fn has_moved(&self) -> bool {
        let held = self.pins.lock().iter().find(|(kind, _, _)| *kind == NamespaceKind::Net).map(|(_, key, _)| *key);
        let model = self.world.model.lock();
        let now = model.machine.process(self.pid).map(|process| process.namespaces[place(NamespaceKind::Net)]);
        self.life.is_alive() && now != held
    }

    /// Pins the new namespace, and lets go of the old one.
    fn hold_new(&self, begun: Instant) -> Result<Renewed, RenewError> {
        let (pid, mut pins) = (self.pid, self.pins.lock());
        let mut model = self.world.model.lock();
        let key = model.machine.process(pid).ok_or(RenewError::Gone { pid })?.namespaces[place(NamespaceKind::Net)];
        if key == HOST[place(NamespaceKind::Net)] {
            return Err(RenewError::Wrong { pid, wrong: WrongAnswer::TheHosts });
        }
        let namespace = model.machine.pin(key).ok_or(RenewError::Gone { pid })?;
        for pin in pins.iter_mut().filter(|(kind, _, _)| *kind == NamespaceKind::Net) {
            model.machine.unpin(pin.1);
            *pin = (NamespaceKind::Net, key, namespace);
        }
        // A key is never given to another namespace, as a cookie is not.
        Ok(Renewed { namespace, cookie: Some(key), took: begun.elapsed() })
    }
}

impl Model {
    /// As the init does: only the next number counts, and what is frozen obeys when it is thawed.
    fn obey(&mut self, pid: u32, use_number: u64) {
        let Some(process) = self.machine.process_mut(pid) else { return };
        let Some(number) = process.container else { return };
        if self.containers.get(&number).is_some_and(|item| item.status == ContainerStatus::Paused) {
            process.orders.push(use_number);
            return;
        }
        if use_number != process.use_number + 1 {
            return;
        }
        if self.item(number).flavour == Flavour::Fixed {
            self.end_process(pid, CANNOT_RENEW);
            return;
        }
        let inside = self.joiners_inside(number);
        if !inside.is_empty() {
            self.violations.push(Violation::RenewedWithJoiner { buddy: self.item(number).name.to_string(), inside });
        }
        if self.remembers_first_namespaces
            && let Some(first) = self.item(number).namespaces
        {
            self.machine.pin(first[place(NamespaceKind::Net)]);
        }
        let key = self.machine.new_namespace();
        self.machine.enter(pid, NamespaceKind::Net, key);
        if let Some(process) = self.machine.process_mut(pid) {
            process.use_number = use_number;
        }
        if self.remembers_first_namespaces {
            // Whoever joins is put where it was started: the engine keeps that namespace, as by a bind mount.
            return;
        }
        if let Some(namespaces) = &mut self.item_mut(number).namespaces {
            namespaces[place(NamespaceKind::Net)] = key;
        }
    }

    /// The orders that came while it was frozen.
    pub(super) fn obey_late(&mut self, number: u64) {
        let Some(pid) = self.item(number).process else { return };
        let orders = self.machine.process_mut(pid).map(|process| std::mem::take(&mut process.orders)).unwrap_or_default();
        for order in orders {
            self.obey(pid, order);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake::{FakeWorld, FunctionSpec};
    use crate::engine::{BuddySpec, ContainerId, Labels};
    use crate::netns::Held;

    const WITHIN: Duration = Duration::from_secs(1);

    async fn buddy(world: &Arc<FakeWorld>, flavour: Flavour) -> (ContainerId, Box<dyn Held>) {
        let fixed = BuddySpec {
            name: "one".into(),
            image: world.put_image("placeholder"),
            command: Vec::new(),
            labels: Labels::new(),
            network: "bridge".into(),
            namespaces: vec![NamespaceKind::Net],
            user: "1:1".into(),
            memory_bytes: 1,
            pids: 1,
            flavour: Flavour::Fixed,
            ipv6: false,
        };
        let spec = if flavour == Flavour::Renewable { fixed.renewable() } else { fixed };
        let engine = world.engine();
        let id = engine.create(&spec).await.unwrap();
        engine.start(&id).await.unwrap();
        let pid = engine.inspect(id.as_str()).await.unwrap().pid;
        (id, world.kernel().hold(pid, &[]).await.unwrap())
    }

    fn net(held: &dyn Held) -> crate::netns::NamespaceId {
        held.namespace(NamespaceKind::Net).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn it_moves_for_the_next_number_alone() {
        let world = FakeWorld::new(1);
        let (_, held) = buddy(&world, Flavour::Renewable).await;
        for number in [1, 3, 0, u64::MAX] {
            let before = net(held.as_ref());
            assert!(matches!(held.renew(number, WITHIN).await, Err(RenewError::NoAnswer { .. })), "{number}");
            assert_eq!(net(held.as_ref()), before);
        }
        let mut cookies = std::collections::BTreeSet::new();
        for number in 2..50 {
            let before = net(held.as_ref());
            let renewed = held.renew(number, WITHIN).await.unwrap();
            assert_eq!(renewed.namespace, net(held.as_ref()));
            assert_ne!(renewed.namespace, before);
            assert!(cookies.insert(renewed.cookie));
            assert!(matches!(held.renew(number, WITHIN).await, Err(RenewError::NoAnswer { .. })), "a repeat of {number}");
        }
        assert_eq!(world.violations(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn joiners_come_into_the_new_one_and_the_old_one_lives_by_its_joiner() {
        let world = FakeWorld::new(1);
        let (_, held) = buddy(&world, Flavour::Renewable).await;
        let old = net(held.as_ref());
        let function = world.run_function("one", None, "early").unwrap();
        let new = held.renew(2, WITHIN).await.unwrap().namespace;
        let inside = vec!["container early".to_owned()];
        assert_eq!(world.violations(), [Violation::RenewedWithJoiner { buddy: "one".into(), inside }]);
        assert_eq!((world.processes_in(old).len(), world.processes_in(new).len()), (1, 1));
        world.start_function(&world.create_function(FunctionSpec::joining("one", None)).unwrap()).unwrap();
        assert_eq!(world.processes_in(new).len(), 2);
        world.remove_function(&function);
        assert_eq!(world.processes_in(old), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_frozen_one_obeys_when_it_is_thawed() {
        let world = FakeWorld::new(1);
        let (_, held) = buddy(&world, Flavour::Renewable).await;
        world.pause("one");
        assert!(matches!(held.renew(2, WITHIN).await, Err(RenewError::NoAnswer { .. })));
        assert_eq!(world.namespace_of("one"), held.namespace(NamespaceKind::Net));
        world.unpause("one");
        assert_ne!(world.namespace_of("one"), held.namespace(NamespaceKind::Net));
        let again = held.renew(3, WITHIN).await;
        assert!(matches!(again, Err(RenewError::Wrong { wrong: WrongAnswer::MovedUntold, .. })), "{again:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_none_and_shows_later() {
        let world = FakeWorld::new(1);
        let (_, held) = buddy(&world, Flavour::Renewable).await;
        world.script_renewal(RenewalFault::Slow(WITHIN / 2));
        assert_eq!(held.renew(2, WITHIN).await.unwrap().took, WITHIN / 2);
        world.script_renewal(RenewalFault::Slow(WITHIN * 3));
        assert!(matches!(held.renew(3, WITHIN).await, Err(RenewError::NoAnswer { .. })));
        sleep(WITHIN * 3).await;
        assert!(matches!(held.renew(4, WITHIN).await, Err(RenewError::Wrong { wrong: WrongAnswer::MovedUntold, .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_buddy_that_may_not_ends_with_a_code_of_its_own() {
        let world = FakeWorld::new(1);
        let (id, held) = buddy(&world, Flavour::Fixed).await;
        assert!(matches!(held.renew(2, WITHIN).await, Err(RenewError::Gone { .. })));
        assert_eq!(world.container(id.as_str()).unwrap().exit_code, Some(CANNOT_RENEW));
        assert!(matches!(held.renew(2, WITHIN).await, Err(RenewError::Gone { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_call_is_carried_out_all_the_same() {
        let world = FakeWorld::new(1);
        let (_, held) = buddy(&world, Flavour::Renewable).await;
        world.script_renewal(RenewalFault::Slow(WITHIN / 2));
        assert!(tokio::time::timeout(WITHIN / 4, held.renew(2, WITHIN)).await.is_err());
        sleep(WITHIN).await;
        assert_ne!(world.namespace_of("one"), held.namespace(NamespaceKind::Net));
        world.script_renewal(RenewalFault::Killed);
        assert!(matches!(held.renew(3, WITHIN).await, Err(RenewError::Wrong { .. })));
    }
}
