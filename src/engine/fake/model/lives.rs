//! How containers end, and how the engine hears of it (or does not).

use std::sync::Arc;

use tokio::sync::Notify;

use super::{Attachment, Model, no_such};
use crate::engine::fake::machine::Proc;
use crate::engine::fake::script::Operation;
use crate::engine::{ContainerStatus, EngineError, EventAction, WaitOutcome};

/// What a wait finds when it looks.
pub(in crate::engine::fake) enum Look {
    Over(WaitOutcome),
    /// Not yet: look again after this.
    Sleep(Arc<Notify>),
}

impl Model {
    pub(in crate::engine::fake) fn set_hearing(&mut self, hearing: bool) {
        self.hearing = hearing;
    }

    /// The container's process ends, and with it all that are in a pid namespace of its own.
    pub(in crate::engine::fake) fn end(&mut self, number: u64, code: i64) {
        let Some(pid) = self.item(number).process else { return };
        let own_pid_namespace = self.item(number).namespaces.map(|set| set[2]).filter(|_| {
            let item = self.item(number);
            let joins_pid = matches!(item.network, Attachment::Joins { .. }) && item.shares.contains(&crate::engine::NamespaceKind::Pid);
            !joins_pid
        });
        let others: Vec<u32> =
            own_pid_namespace.into_iter().flat_map(|key| self.machine.pids_in(key)).filter(|other| *other != pid).collect();
        self.end_process(pid, code);
        for other in others {
            self.end_process(other, 137);
        }
    }

    pub(in crate::engine::fake) fn end_process(&mut self, pid: u32, code: i64) {
        let Some(Proc { container: Some(number), .. }) = self.machine.end(pid) else { return };
        let Some(item) = self.containers.get_mut(&number) else { return };
        item.process = None;
        item.unheard = Some(code);
        self.hear(number, true);
    }

    /// The engine hears of an end, if it hears at all.
    fn hear(&mut self, number: u64, tell: bool) {
        let can_hear = self.hearing && self.containerd;
        let Some(item) = self.containers.get_mut(&number).filter(|item| can_hear && !item.lies) else { return };
        let Some(code) = item.unheard.take() else { return };
        item.status = ContainerStatus::Exited;
        item.exit_code = Some(code);
        item.told_pid = 0;
        self.free_address(number);
        self.wake(number);
        if tell {
            self.emit(EventAction::Died, number);
        }
    }

    fn free_address(&mut self, number: u64) {
        let item = self.item_mut(number);
        let address = item.address.take();
        if let Attachment::Network(name) = &item.network {
            let name = Arc::clone(name);
            self.give_back(Some(&name), address);
        }
    }

    /// Whatever ended unheard is heard of now.
    pub(in crate::engine::fake) fn hear_all(&mut self, tell: bool) {
        let ended: Vec<u64> = self.containers.iter().filter(|(_, item)| item.unheard.is_some()).map(|(number, _)| *number).collect();
        for number in ended {
            self.hear(number, tell);
        }
    }

    /// The engine was restarted without live-restore.
    pub(in crate::engine::fake) fn end_all(&mut self) {
        let running: Vec<u64> = self.containers.iter().filter(|(_, item)| item.process.is_some()).map(|(number, _)| *number).collect();
        for number in running {
            self.end(number, 137);
        }
    }

    pub(in crate::engine::fake) fn remove_item(&mut self, number: u64) {
        if self.item(number).survives {
            // The engine thinks it killed it: the process stays, with its namespace, and the address is given to others.
            if let Some(process) = self.item_mut(number).process.take() {
                self.machine.disown(process);
            }
            self.item_mut(number).unheard = Some(137);
            self.item_mut(number).lies = false;
            self.hear(number, true);
        } else {
            self.item_mut(number).lies = false;
            self.end(number, 137);
            self.hear(number, true);
        }
        self.free_address(number);
        self.wake(number);
        self.emit(EventAction::Removed, number);
        let Some(item) = self.containers.remove(&number) else { return };
        self.by_id.remove(&item.id.0);
        self.by_name.remove(&item.name);
        self.buddies -= u32::from(item.buddy);
        if let Attachment::Joins { number: Some(buddy), .. } = item.network
            && let Some(buddy) = self.containers.get_mut(&buddy)
        {
            buddy.joiners.remove(&number);
        }
    }

    /// Who is in the namespaces of a container's last run besides its own process: containers by name, others as processes.
    pub(in crate::engine::fake) fn joiners_inside(&self, number: u64) -> Vec<String> {
        let item = self.item(number);
        let Some(namespaces) = item.namespaces else { return Vec::new() };
        let host = crate::engine::fake::machine::HOST;
        let keys = namespaces.into_iter().filter(|key| !host.contains(key));
        let mut pids: Vec<u32> = keys.flat_map(|key| self.machine.pids_in(key)).filter(|pid| Some(*pid) != item.process).collect();
        pids.sort_unstable();
        pids.dedup();
        pids.into_iter().map(|pid| self.describe(pid)).collect()
    }

    fn describe(&self, pid: u32) -> String {
        let process = self.machine.process(pid);
        let container = process.and_then(|process| process.container).and_then(|number| self.containers.get(&number));
        match (container, process) {
            (Some(item), _) => format!("container {}", item.name),
            (None, Some(process)) => format!("process {pid} ({})", process.command),
            (None, None) => format!("process {pid}"),
        }
    }

    // ---- waits ---------------------------------------------------------------------------------------------------------------------

    /// Where a wait begins; hand it to [`Self::look`] each time.
    pub(in crate::engine::fake) fn begin_wait(&self, id: &str) -> Result<(u64, u64), EngineError> {
        let number = self.find(id).ok_or_else(|| no_such(Operation::Wait, id))?;
        Ok((number, self.waits_cut))
    }

    pub(in crate::engine::fake) fn look(&mut self, (number, cut): (u64, u64)) -> Look {
        if self.waits_cut != cut {
            return Look::Over(WaitOutcome::Unknown);
        }
        let hearing = self.hearing;
        let Some(item) = self.containers.get_mut(&number) else { return Look::Over(WaitOutcome::Exited(137)) };
        match item.status {
            ContainerStatus::Created if hearing => Look::Over(WaitOutcome::Exited(-1)),
            ContainerStatus::Exited | ContainerStatus::Dead if hearing => Look::Over(WaitOutcome::Exited(item.exit_code.unwrap_or(-1))),
            ContainerStatus::Created
            | ContainerStatus::Exited
            | ContainerStatus::Dead
            | ContainerStatus::Running
            | ContainerStatus::Paused
            | ContainerStatus::Restarting
            | ContainerStatus::Removing
            | ContainerStatus::Unknown => Look::Sleep(Arc::clone(item.waits.get_or_insert_default())),
        }
    }

    fn wake(&mut self, number: u64) {
        if let Some(waits) = self.item_mut(number).waits.take() {
            waits.notify_waiters();
        }
    }

    pub(in crate::engine::fake) fn cut_waits(&mut self) {
        self.waits_cut += 1;
        self.wake_waits();
    }

    pub(in crate::engine::fake) fn wake_waits(&mut self) {
        for item in self.containers.values_mut() {
            if let Some(waits) = item.waits.take() {
                waits.notify_waiters();
            }
        }
    }
}
