//! What does not agree in one look: pure. Only what the pool said before *and* after the look is judged.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use super::sight::{Process, Sight};
use super::{Finding, Found, Kind, Mend};
use crate::engine::{ContainerId, ContainerStatus, ContainerSummary};
use crate::ledger::Table;
use crate::nanny::buddy::{Breed, LABEL_POOL, PIN_SLOT};
use crate::netns::NamespaceId;
use crate::pool::state::SlotState;
use crate::pool::{Namespace, SlotIndex, SlotView};
use crate::random::{HashMap, HashSet};

pub(super) fn all(sight: &Sight, breed: &Breed) -> Vec<Found> {
    let mut found = Vec::new();
    if let Some(told) = &sight.told {
        ledger(sight, told, &mut found);
    }
    let still = standing(sight);
    for (slot, namespace) in &still {
        found.extend(buddy(sight, slot, namespace));
        found.extend(joiners(sight, slot, namespace));
    }
    namespaces(sight, &still, &mut found);
    containers(sight, breed, &mut found);
    folders(sight, &still, &mut found);
    unknown(sight, &mut found);
    found
}

fn finding(kind: Kind, subject: impl ToString, detail: impl Into<String>, mend: Option<Mend>) -> Found {
    let finding = Finding { kind, subject: subject.to_string(), detail: detail.into(), fixable: mend.is_some(), fixed: false };
    Found { finding, mend }
}

fn of_slot(slot: &SlotView) -> String {
    format!("slot {} (generation {}, use {}, {})", slot.key.slot, slot.key.generation, slot.key.use_number, slot.state.word())
}

/// Slots that were the same before and after.
fn standing(sight: &Sight) -> Vec<(&SlotView, &Arc<Namespace>)> {
    let later: HashMap<SlotIndex, &SlotView> = sight.after.slots.iter().map(|slot| (slot.key.slot, slot)).collect();
    let same = |slot: &SlotView| later.get(&slot.key.slot).is_some_and(|later| (later.key, later.state) == (slot.key, slot.state));
    sight.before.standing().filter(|(slot, _)| same(slot)).collect()
}

// ---- the ledger --------------------------------------------------------------------------------------------------------------------

fn ledger(sight: &Sight, told: &Result<Table, String>, found: &mut Vec<Found>) {
    let told = match told {
        Ok(told) => told,
        Err(error) => return found.push(finding(Kind::Unknown, "ledger", format!("it cannot be written or read: {error}"), None)),
    };
    let (before, after) = (&sight.before.told, &sight.after.told);
    let mut disagree = |what: String, detail: &'static str| found.push(finding(Kind::Ledger, what, detail, Some(Mend::Rewrite)));
    // Deadlines that follow from what joiners do are not recorded: after a restart there is the grace.
    let without_deadlines = |table: &Table| {
        let mut leases = table.leases.clone();
        leases.values_mut().for_each(|lease| lease.deadline = None);
        leases
    };
    let leases = (without_deadlines(before), without_deadlines(after), without_deadlines(told));
    for (wrong, lease) in differences(&leases.0, &leases.1, &leases.2) {
        // Never by its token.
        disagree(format!("lease {}-{}-{}", lease.slot, lease.generation, lease.use_number), wrong);
    }
    for (wrong, buddy) in differences(&before.buddies, &after.buddies, &told.buddies) {
        disagree(format!("slot {} (generation {}, use {})", buddy.slot, buddy.generation, buddy.use_number), wrong);
    }
    let ends = |table: &Table| table.ended.iter().map(|ended| ended.token.clone()).collect::<HashSet<_>>();
    let (now, written) = (ends(after), ends(told));
    let forgotten = before.ended.iter().filter(|ended| now.contains(&ended.token) && !written.contains(&ended.token)).count();
    if forgotten > 0 {
        disagree(format!("{forgotten} ended leases"), MISSING);
    }
    let cordoned = |table: &Table| table.doors.is_some_and(|doors| doors.cordoned);
    if cordoned(before) == cordoned(after) && cordoned(told) != cordoned(before) {
        disagree("cordon".to_owned(), OTHERWISE);
    }
}

const MISSING: &str = "the ledger does not tell of it: the next daemon would not know";
const OVER: &str = "the ledger still tells of it: the next daemon would look for it in vain";
const OTHERWISE: &str = "the ledger tells it otherwise";

/// What the ledger should have told all the while, and did not.
fn differences<'a, K: Ord, V: PartialEq + Debug>(
    before: &'a BTreeMap<K, V>,
    after: &'a BTreeMap<K, V>,
    told: &'a BTreeMap<K, V>,
) -> Vec<(&'static str, &'a V)> {
    let kept = before.iter().filter(|(key, value)| after.get(key) == Some(value));
    let missed = kept.filter_map(|(key, value)| match told.get(key) {
        None => Some((MISSING, value)),
        Some(other) if other != value => Some((OTHERWISE, value)),
        Some(_) => None,
    });
    let over = told.iter().filter(|(key, _)| !before.contains_key(key) && !after.contains_key(key)).map(|(_, value)| (OVER, value));
    missed.chain(over).collect()
}

// ---- engine and kernel -------------------------------------------------------------------------------------------------------------

fn buddy(sight: &Sight, slot: &SlotView, namespace: &Namespace) -> Option<Found> {
    let id = ContainerId(Arc::clone(&namespace.container_id));
    let doubt = |detail: String| Some(finding(Kind::Buddy, of_slot(slot), detail, Some(Mend::Doubt(id.to_string()))));
    match sight.inspected.get(&id) {
        Some(Ok(None)) => return doubt(format!("the engine knows no container {id}")),
        Some(Ok(Some(container))) => {
            // In quarantine a buddy may have ended: its joiners hold the namespace.
            if container.status != ContainerStatus::Running && slot.state != SlotState::Quarantined {
                return doubt(format!("container {id} is not running, says the engine: {:?}", container.status).to_lowercase());
            }
            if container.status == ContainerStatus::Running
                && (container.pid, &container.started_at) != (namespace.pid, &namespace.started_at)
            {
                return doubt(format!("container {id} was started again: process {}, it was {}", container.pid, namespace.pid));
            }
            if container.name != namespace.namespace_id && slot.state != SlotState::Quarantined {
                let detail = format!("container {id} is called {}, and should be {}", container.name, namespace.namespace_id);
                return Some(finding(Kind::Name, of_slot(slot), detail, Some(Mend::Recycle(slot.key.slot))));
            }
        }
        Some(Err(_)) | None => {}
    }
    match sight.processes.get(&slot.key.slot) {
        Some(Process::Gone) if slot.state != SlotState::Quarantined => doubt(format!("process {} is gone, says the kernel", namespace.pid)),
        Some(Process::Unknown(why)) => Some(finding(Kind::Unknown, of_slot(slot), why.clone(), None)),
        Some(Process::Gone | Process::There { .. }) | None => None,
    }
}

fn joiners(sight: &Sight, slot: &SlotView, namespace: &Namespace) -> Option<Found> {
    if let (SlotState::Ready, Some(Process::There { strangers, .. })) = (slot.state, sight.processes.get(&slot.key.slot))
        && !strangers.is_empty()
    {
        let detail = format!("it is ready, and somebody is inside: {}", strangers.join(", "));
        return Some(finding(Kind::Joiner, of_slot(slot), detail, Some(Mend::Recycle(slot.key.slot))));
    }
    let list = sight.list.as_ref().ok().filter(|_| slot.state == SlotState::Leased)?;
    let known = |books: &super::sight::Books| books.joiners.get(&slot.key.slot).copied().unwrap_or(0);
    let (there, known) =
        (list.joiners_of(&ContainerId(Arc::clone(&namespace.container_id))).count(), known(&sight.before).max(known(&sight.after)));
    (there > known).then(|| {
        let detail = format!("{there} containers join it, says the engine, and events told of {known}");
        finding(Kind::Joiner, of_slot(slot), detail, Some(Mend::Relist))
    })
}

fn namespaces(sight: &Sight, still: &[(&SlotView, &Arc<Namespace>)], found: &mut Vec<Found>) {
    let mut whose: HashMap<NamespaceId, &SlotView> = HashMap::default();
    for (slot, _) in still {
        let Some(Process::There { network: Some(network), .. }) = sight.processes.get(&slot.key.slot) else { continue };
        if sight.host.as_ref().ok() == Some(network) {
            found.push(finding(Kind::Namespace, of_slot(slot), "its buddy is in the host's network namespace", None));
        }
        if let Some(other) = whose.insert(*network, slot) {
            found.push(finding(Kind::Namespace, of_slot(slot), format!("it shares its network namespace with {}", of_slot(other)), None));
        }
    }
}

fn containers(sight: &Sight, breed: &Breed, found: &mut Vec<Found>) {
    let Ok(list) = &sight.list else { return };
    let both = || sight.before.slots.iter().chain(&sight.after.slots);
    let known: HashSet<&str> = both().filter_map(|slot| slot.namespace.as_deref()).map(|namespace| &*namespace.container_id).collect();
    // A slot without a registered buddy may have one all the same: its nanny is at work on that generation.
    let at_work: HashSet<(u32, u64)> =
        both().filter(|slot| slot.state != SlotState::Idle).map(|slot| (slot.key.slot, slot.key.generation)).collect();
    for container in list.iter().filter(|container| container.labels.get(LABEL_POOL) == Some(&breed.pool)) {
        if known.contains(container.id.as_str()) || sight.detached.contains(&container.id) {
            continue;
        }
        match breed.owned(&container.name, &container.labels) {
            // It keeps the placeholder image, and is in no slot.
            Some(owner) if owner.slot == PIN_SLOT && owner.instance == breed.instance => {}
            Some(owner) if at_work.contains(&(owner.slot, owner.generation)) => {}
            Some(_) => found.push(orphan(container)),
            None => {
                let detail = "it has the labels of this pool's buddies, and a name that nspool did not give it: it is left alone";
                found.push(finding(Kind::Stray, of_container(container), detail, None));
            }
        }
    }
}

fn orphan(container: &ContainerSummary) -> Found {
    let detail = "a buddy of this pool that no slot has";
    finding(Kind::Orphan, of_container(container), detail, Some(Mend::Mind(container.id.to_string())))
}

fn of_container(container: &ContainerSummary) -> String {
    format!("container {} ({})", container.id.as_str().get(..12).unwrap_or(container.id.as_str()), container.name)
}

/// A slot that does not stand still may be about to hand out what lies there, or to take it away.
fn folders(sight: &Sight, still: &[(&SlotView, &Arc<Namespace>)], found: &mut Vec<Found>) {
    let rests = |slot: &SlotView| {
        let stands = |state| matches!(state, SlotState::Ready | SlotState::Leased);
        slot.state == SlotState::Idle || still.iter().any(|(same, _)| same.key == slot.key && stands(same.state))
    };
    let both = || sight.before.slots.iter().chain(&sight.after.slots);
    for left in sight.folders.iter().flatten() {
        if both().any(|slot| left.slot == Some(slot.key.slot) && !rests(slot)) {
            continue;
        }
        let subject = format!("folder {}", left.name);
        found.push(match &left.doubt {
            None => {
                let detail = "a use was joined by it that no slot has";
                finding(Kind::Folder, subject, detail, Some(Mend::Clear(left.name.clone())))
            }
            Some(why) => finding(Kind::Stray, subject, format!("no slot has it, and it is left alone: {why}"), None),
        });
    }
}

fn unknown(sight: &Sight, found: &mut Vec<Found>) {
    if let Err(error) = &sight.list {
        found.push(finding(Kind::Unknown, "engine", error.to_string(), None));
    }
    if let Err(error) = &sight.host {
        found.push(finding(Kind::Unknown, "kernel", error.clone(), None));
    }
    if let Err(error) = &sight.folders {
        found.push(finding(Kind::Unknown, "folders", error.clone(), None));
    }
    let mut silent = sight.inspected.values().filter_map(|answer| answer.as_ref().err());
    if let Some(first) = silent.next() {
        let detail = format!("{} containers could not be inspected: {first}", 1 + silent.count());
        found.push(finding(Kind::Unknown, "engine", detail, None));
    }
}

#[cfg(test)]
mod tests {
    use super::super::sight::{Books, Sight};
    use super::*;
    use crate::engine::{EngineError, NamespaceKind};
    use crate::nanny::leftovers::Leftover;
    use crate::pool::UseKey;
    use std::time::Duration;

    fn slot(number: u32) -> SlotView {
        let namespace = Namespace {
            namespace_id: format!("n{number}"),
            network_mode: String::new(),
            host_config: String::new(),
            container_id: format!("c{number}").into(),
            tell_container_id: false,
            addresses: Vec::new(),
            resolv_conf: String::new(),
            mtu: 0,
            pid: 100 + number,
            started_at: String::new(),
            folder: String::new(),
        };
        SlotView {
            key: UseKey { slot: number, generation: 1, use_number: 1 },
            state: SlotState::Ready,
            since: Duration::ZERO,
            network: 0,
            namespace: Some(Arc::new(namespace)),
            leased: false,
            doom: None,
            failures: 0,
            last_error: None,
            occupants: Arc::new([]),
            unbounded: false,
        }
    }

    fn sight(networks: &[u64]) -> Sight {
        let books = || Books {
            slots: (0u32..).zip(networks).map(|(number, _)| slot(number)).collect(),
            told: Table::default(),
            joiners: HashMap::default(),
        };
        let there = |ino: &u64| Process::There { network: Some(NamespaceId { dev: 4, ino: *ino }), strangers: Vec::new() };
        Sight {
            before: books(),
            after: books(),
            told: None,
            list: Err(EngineError::deadline("list", "", Duration::ZERO)),
            listed_at: Duration::ZERO,
            inspected: HashMap::default(),
            processes: (0..).zip(networks.iter().map(there)).collect(),
            host: Ok(NamespaceId { dev: 4, ino: 1 }),
            detached: HashSet::default(),
            folders: Ok(Vec::new()),
        }
    }

    fn found(sight: &Sight) -> Vec<String> {
        let breed = Breed {
            pool: "default".into(),
            instance: String::new(),
            networks: Vec::new(),
            namespaces: vec![NamespaceKind::Net],
            command: Vec::new(),
            user: String::new(),
            memory: 0,
            pids: 0,
            may_fork: false,
            native: false,
            folders: None,
        };
        let all = all(sight, &breed).into_iter().filter(|found| found.finding.kind != Kind::Unknown);
        all.map(|found| format!("{}: {}", found.finding.subject, found.finding.detail)).collect()
    }

    #[test]
    fn no_two_slots_share_a_network_namespace_and_none_has_the_hosts() {
        assert_eq!(found(&sight(&[7, 8, 9])), [""; 0]);
        let shared = found(&sight(&[7, 8, 7]));
        assert!(shared.len() == 1 && shared[0].starts_with("slot 2 ") && shared[0].contains("with slot 0 "), "{shared:?}");
        let hosts = found(&sight(&[7, 1]));
        assert!(hosts.len() == 1 && hosts[0].starts_with("slot 1 ") && hosts[0].contains("the host's"), "{hosts:?}");
    }

    #[test]
    fn a_folder_is_no_slots_only_when_its_slot_rests() {
        let mut sight = sight(&[7, 8]);
        let leftover =
            |slot, doubt: Option<&str>| Leftover { name: format!("n{slot}-old"), slot: Some(slot), doubt: doubt.map(str::to_owned) };
        sight.folders = Ok(vec![leftover(0, None), leftover(1, None), leftover(9, Some("somebody is in it"))]);
        assert_eq!(
            found(&sight),
            [
                "folder n0-old: a use was joined by it that no slot has",
                "folder n1-old: a use was joined by it that no slot has",
                "folder n9-old: no slot has it, and it is left alone: somebody is in it"
            ]
        );
        sight.after.slots[0].key.use_number = 2;
        sight.before.slots[1].state = SlotState::Quarantined;
        sight.after.slots[1].state = SlotState::Quarantined;
        assert_eq!(found(&sight).len(), 1, "{:?}", found(&sight));
    }

    #[test]
    fn what_changes_meanwhile_is_not_judged() {
        let mut sight = sight(&[7, 7]);
        sight.after.slots[1].key.generation = 2;
        assert_eq!(found(&sight), [""; 0]);
    }
}
