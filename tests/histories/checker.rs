//! Whether a history can be that of a pool that keeps its promises. It knows nothing of how the pool does it: only when calls went out,
//! when their answers were there, and what was in them. Where a lease may have ended already, it is taken to have ended.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crate::history::{Answer, Asked, Call, History, Lease, Outcome, Sight, Time, What};

/// What cannot be, in words; empty: nothing.
pub fn check(history: &History) -> Vec<String> {
    let lives = lives(history);
    let mut wrong = Vec::new();
    one_holder_at_a_time(&lives, &mut wrong);
    one_lease_per_request(&lives, &mut wrong);
    for life in lives.values() {
        over_is_over(history, life, &mut wrong);
        outcomes_fit(life, &mut wrong);
        alive_is_alive(history, life, &mut wrong);
    }
    for (watcher, sights) in history.sights.iter().enumerate() {
        let mut found = Vec::new();
        in_order_and_once(sights, &lives, &mut found);
        nothing_missed(sights, &lives, &mut found);
        wrong.extend(found.into_iter().map(|words| format!("watcher {watcher}: {words}")));
    }
    wrong
}

/// A lease that was answered, with all calls that were about it.
struct Life<'a> {
    lease: &'a Lease,
    owner: &'a str,
    request_id: &'a str,
    /// Not made before.
    asked: Time,
    /// Somebody knows that it is there.
    told: Time,
    ttl: Option<Duration>,
    renewals: Vec<&'a Call>,
    releases: Vec<&'a Call>,
    forces: Vec<&'a Call>,
    kills: Vec<&'a Call>,
}

impl Life<'_> {
    /// When its time was up, if nothing else ended it: each good renewal shows that it was not before.
    fn expires(&self) -> Time {
        let good = self.renewals.iter().filter(|call| call.answer == Answer::Done).map(|call| call.began);
        self.ttl.map_or(Time::MAX, |ttl| good.chain([self.asked]).max().unwrap_or_default().saturating_add(ttl))
    }

    /// It was there until then at least.
    fn stands_until(&self) -> Time {
        let ends = [&self.releases, &self.forces, &self.kills].into_iter().flatten().map(|call| call.began);
        ends.chain([self.expires()]).min().unwrap_or(Time::MAX)
    }

    /// From then on it is over for everybody: a release was answered.
    fn over(&self) -> Option<Time> {
        self.releases.iter().filter(|call| matches!(call.answer, Answer::Released(_))).map(|call| call.ended).min()
    }

    fn released(&self) -> bool {
        self.releases.iter().any(|call| call.answer == Answer::Released(Outcome::Returned))
    }

    /// It ended otherwise than by a release, for certain.
    fn ended_by_itself(&self) -> bool {
        let said = |call: &&&Call| matches!(call.answer, Answer::Released(Outcome::AlreadyEnded(_)));
        self.releases.iter().any(|call| said(&call)) || self.forces.iter().any(|call| call.answer == Answer::Done)
    }
}

fn lives(history: &History) -> BTreeMap<&str, Life<'_>> {
    let mut lives = BTreeMap::<&str, Life>::new();
    for call in &history.calls {
        let (Asked::Allocate { owner, request_id, ttl }, Answer::Leases(leases)) = (&call.asked, &call.answer) else { continue };
        for lease in leases {
            let life = lives.entry(&lease.token).or_insert_with(|| Life {
                lease,
                owner,
                request_id,
                asked: call.began,
                told: call.ended,
                ttl: *ttl,
                renewals: Vec::new(),
                releases: Vec::new(),
                forces: Vec::new(),
                kills: Vec::new(),
            });
            life.told = life.told.min(call.ended);
        }
    }
    let mut by_id: HashMap<&str, &str> = HashMap::new();
    let mut first_asked: HashMap<(&str, &str), Time> = HashMap::new();
    for (token, life) in &lives {
        by_id.insert(&life.lease.id, token);
    }
    for call in &history.calls {
        match &call.asked {
            Asked::Renew(token) => drop(lives.get_mut(&token[..]).map(|life| life.renewals.push(call))),
            Asked::Release(token) => drop(lives.get_mut(&token[..]).map(|life| life.releases.push(call))),
            Asked::Force(id) => drop(by_id.get(&id[..]).and_then(|token| lives.get_mut(token)).map(|life| life.forces.push(call))),
            Asked::Kill(id) => drop(by_id.get(&id[..]).and_then(|token| lives.get_mut(token)).map(|life| life.kills.push(call))),
            // A try whose answer was never seen may have made the lease.
            Asked::Allocate { owner, request_id, .. } => {
                let first = first_asked.entry((owner, request_id)).or_insert(call.began);
                *first = call.began.min(*first);
            }
            Asked::Get(_) | Asked::Resume(_) => {}
        }
    }
    for life in lives.values_mut().filter(|life| !life.request_id.is_empty()) {
        life.asked = first_asked.get(&(life.owner, life.request_id)).copied().unwrap_or(life.asked);
    }
    lives
}

fn one_holder_at_a_time(lives: &BTreeMap<&str, Life>, wrong: &mut Vec<String>) {
    let mut by_buddy = HashMap::<(u32, u64), Vec<&Life>>::new();
    for life in lives.values() {
        by_buddy.entry(life.lease.buddy).or_default().push(life);
    }
    for (buddy, mut holders) in by_buddy {
        holders.sort_by_key(|life| life.told);
        for pair in holders.windows(2) {
            if pair[1].told < pair[0].stands_until() {
                wrong.push(format!("buddy {buddy:?} is leased to {} and {} at the same time", pair[0].lease.id, pair[1].lease.id));
            }
            if pair[0].lease.id == pair[1].lease.id {
                wrong.push(format!("{} is leased twice", pair[0].lease.id));
            }
        }
    }
}

fn one_lease_per_request(lives: &BTreeMap<&str, Life>, wrong: &mut Vec<String>) {
    let mut by_request = HashMap::new();
    for life in lives.values().filter(|life| !life.request_id.is_empty()) {
        if let Some(other) = by_request.insert((life.owner, life.request_id), &life.lease.id) {
            wrong.push(format!("request {} of {} got {other} and {}", life.request_id, life.owner, life.lease.id));
        }
    }
}

/// Whether the answer says that this lease is there.
fn tells(call: &Call, life: &Life) -> bool {
    match &call.answer {
        Answer::Leases(leases) => leases.iter().any(|lease| lease.token == life.lease.token),
        Answer::Done => call.asked == Asked::Renew(life.lease.token.clone()),
        Answer::Released(outcome) => *outcome == Outcome::Returned && call.asked == Asked::Release(life.lease.token.clone()),
        Answer::Unknown | Answer::Refused(_) => false,
    }
}

fn over_is_over(history: &History, life: &Life, wrong: &mut Vec<String>) {
    let Some(over) = life.over() else { return };
    for call in history.calls.iter().filter(|call| call.began > over && tells(call, life)) {
        wrong.push(format!("{} was over, and is there again for {:?}", life.lease.id, call.asked));
    }
}

fn outcomes_fit(life: &Life, wrong: &mut Vec<String>) {
    let id = &life.lease.id;
    let returned = life.releases.iter().filter(|call| call.answer == Answer::Released(Outcome::Returned)).count();
    if returned > 1 {
        wrong.push(format!("{id} was returned {returned} times"));
    }
    let began_before = |calls: &[&Call], call: &Call| calls.iter().any(|other| other.began < call.ended && !std::ptr::eq(*other, call));
    for call in &life.releases {
        let fits = match &call.answer {
            Answer::Released(Outcome::AlreadyReleased) => began_before(&life.releases, call),
            Answer::Released(Outcome::AlreadyEnded(cause)) => match cause.as_str() {
                "its ttl ran out" => life.expires() <= call.ended,
                "ended by an operator" => began_before(&life.forces, call),
                lost if lost.starts_with("lost: ") => began_before(&life.kills, call),
                _ => false,
            },
            Answer::Refused(reason) => reason != "UNKNOWN_TOKEN",
            Answer::Released(Outcome::Returned) | Answer::Unknown | Answer::Leases(_) | Answer::Done => true,
        };
        if !fits {
            wrong.push(format!("nothing explains {:?} for the release of {id}", call.answer));
        }
    }
}

/// An answered lease is there until something ends it.
fn alive_is_alive(history: &History, life: &Life, wrong: &mut Vec<String>) {
    let (token, until) = (&life.lease.token, life.stands_until());
    for call in history.calls.iter().filter(|call| call.began > life.told && call.ended < until) {
        let gone = |reason: &str| matches!(reason, "LEASE_ENDED" | "LEASE_LOST" | "UNKNOWN_TOKEN");
        let denied = match (&call.asked, &call.answer) {
            (Asked::Get(asked) | Asked::Renew(asked), Answer::Refused(reason)) => asked == token && gone(reason),
            (Asked::Get(asked), Answer::Leases(leases)) => asked == token && leases.iter().any(|lease| lease.lost),
            (Asked::Resume(owner), Answer::Leases(_)) => owner == life.owner && !tells(call, life),
            (Asked::Allocate { owner, request_id, .. }, Answer::Refused(reason)) => {
                !request_id.is_empty() && (&owner[..], &request_id[..]) == (life.owner, life.request_id) && gone(reason)
            }
            _ => false,
        };
        if denied {
            wrong.push(format!("{} is there, and {:?} says {:?}", life.lease.id, call.asked, call.answer));
        }
    }
}

fn in_order_and_once(sights: &[Sight], lives: &BTreeMap<&str, Life>, wrong: &mut Vec<String>) {
    let (mut last, mut ended, mut lost) = (0, HashSet::new(), HashSet::new());
    let released: HashSet<&str> = lives.values().filter(|life| life.released()).map(|life| &life.lease.id[..]).collect();
    for sight in sights {
        let (id, once) = match &sight.what {
            What::Ended(id) => (id, ended.insert(&id[..]) && !lost.contains(&id[..])),
            What::Lost(id) => (id, lost.insert(&id[..]) && !ended.contains(&id[..])),
            What::Snapshot(_) => {
                last = sight.position;
                continue;
            }
            // Another daemon: what the last one told and could not record any more, it may tell again.
            What::Reset => {
                (ended, lost) = (HashSet::new(), HashSet::new());
                continue;
            }
        };
        if sight.position <= last {
            wrong.push(format!("{id} ended at position {}, after position {last}", sight.position));
        }
        last = sight.position;
        if !once {
            wrong.push(format!("the end of {id} was told twice"));
        }
        if matches!(sight.what, What::Ended(_)) && released.contains(&id[..]) {
            wrong.push(format!("{id} was released, and is told to have ended otherwise"));
        }
    }
}

/// From the last snapshot on: what was before it, a daemon that was killed may have taken along.
fn nothing_missed(sights: &[Sight], lives: &BTreeMap<&str, Life>, wrong: &mut Vec<String>) {
    let mut snapshots = sights.iter().enumerate().rev().filter_map(|(place, sight)| match &sight.what {
        What::Snapshot(leases) => Some((place, sight.at, leases)),
        What::Ended(_) | What::Lost(_) | What::Reset => None,
    });
    let Some((place, at, there)) = snapshots.next() else { return wrong.push("it never saw anything".into()) };
    let seen: HashSet<&str> = sights[place..]
        .iter()
        .filter_map(|sight| match &sight.what {
            What::Ended(id) | What::Lost(id) => Some(&id[..]),
            What::Snapshot(_) | What::Reset => None,
        })
        .collect();
    for life in lives.values().filter(|life| life.ended_by_itself()) {
        let id = &life.lease.id;
        if (life.asked > at || there.contains(id)) && !seen.contains(&id[..]) {
            wrong.push(format!("the end of {id} was never told"));
        }
    }
    for life in lives.values().filter(|life| there.contains(&life.lease.id)) {
        // Some time of grace: the snapshot was taken before it arrived.
        if life.over().is_some_and(|over| over + Duration::from_secs(1) < at) {
            wrong.push(format!("{} was over, and is in the snapshot", life.lease.id));
        }
    }
}
