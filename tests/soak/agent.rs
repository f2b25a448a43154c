//! One agent: it takes leases, runs functions in them, ends them in one of several ways, and dies now and then. Whatever it is told it holds
//! against what it was told before.

use std::sync::Arc;
use std::time::Duration;

use nspool::client::{Client, ClientError, Request};
use nspool::proto::{self, LeaseState};
use tokio::time::Instant;

use super::world::World;
use crate::support::daemon::{TEST_LABEL, text};
use crate::support::image::BUSYBOX;

/// As configured.
const JOIN_BY: Duration = Duration::from_secs(20);
const LINGER: Duration = Duration::from_secs(3);
/// Of a lease that is kept up by Renew.
const TTL: Duration = Duration::from_secs(60);
/// How long an agent tries something while daemon and engine go and come back.
const PATIENCE: Duration = Duration::from_secs(120);

/// A lease that was answered.
struct Held {
    lease: proto::Lease,
    request: Request,
    lives_by_ttl: bool,
    /// It must not end by itself before that; `None`: it must not.
    ends: Option<Instant>,
    functions: Vec<String>,
}

/// What a look at a lease came to.
#[derive(Clone, Copy, PartialEq)]
enum Seen {
    Well,
    Lost,
    Ended,
}

/// See the module.
pub(crate) struct Agent {
    world: Arc<World>,
    name: String,
    client: Client,
    dice: fastrand::Rng,
    held: Vec<Held>,
    /// Functions of leases that were released, with the address that they must keep.
    stayers: Vec<(String, proto::Lease)>,
    number: u32,
}

impl Agent {
    pub(crate) fn new(world: Arc<World>, index: u64, seed: u64) -> Self {
        let client = Client::connect(&world.endpoint).unwrap();
        let dice = fastrand::Rng::with_seed(seed ^ (index + 1));
        Self { world, name: format!("agent-{index}"), client, dice, held: Vec::new(), stayers: Vec::new(), number: 0 }
    }

    pub(crate) async fn live(mut self) {
        while !self.world.is_stopped() {
            self.step().await;
            tokio::time::sleep(Duration::from_millis(self.dice.u64(..300))).await;
        }
        self.come_back().await;
        while let Some(held) = self.held.pop() {
            self.end_clean(held, false).await;
        }
        while !self.stayers.is_empty() {
            self.end_stayer().await;
        }
    }

    async fn step(&mut self) {
        let room = self.held.len() < 3;
        match self.dice.u8(..100) {
            0..30 if room => self.allocate().await,
            0..60 => self.run().await,
            60..70 => self.look_at_all().await,
            70..75 => self.come_back().await,
            75..82 => self.end_stayer().await,
            _ => self.end_one().await,
        }
    }

    fn any(&mut self) -> Option<usize> {
        (!self.held.is_empty()).then(|| self.dice.usize(..self.held.len()))
    }

    /// Asks under one request id until there is an answer.
    async fn allocate(&mut self) {
        self.number += 1;
        let lives_by_ttl = self.dice.u8(..4) == 0;
        let request = Request::new().owner(&self.name).request_id(format!("{}-{}", self.name, self.number)).wait(Duration::from_secs(2));
        let request = if lives_by_ttl { request.ttl(TTL) } else { request };
        let began = Instant::now();
        let mut again = self.dice.u8(..6) == 0;
        if again {
            // Nobody waits for this answer: the agent dies, and asks again.
            let patience = Duration::from_millis(self.dice.u64(..20));
            let _dropped =
                tokio::time::timeout(patience, self.client.allocate(request.clone())).await.map(|lease| lease.map(|lease| lease.keep()));
            self.client = Client::connect(&self.world.endpoint).unwrap();
        }
        let lease = loop {
            let error = match self.client.allocate(request.clone()).await {
                Ok(lease) => break lease.keep(),
                Err(error) => error,
            };
            match error.reason() {
                "LEASE_LOST" => return,
                "LEASE_ENDED" => {
                    assert!(began.elapsed() >= if lives_by_ttl { TTL } else { JOIN_BY }, "it ended before it was answered: {error}");
                    return;
                }
                "POOL_EMPTY" => {}
                _ => assert!(may_be_tried_again(&error), "{error:?}"),
            }
            again |= error.outcome_unknown();
            assert!(began.elapsed() < PATIENCE, "{} gets no lease: {error}", self.name);
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        self.world.takes(&lease);
        self.note(&format!("has {} under {}-{}", lease.lease_id, self.name, self.number));
        self.world.tally(|tally| tally.asked_again += u64::from(again));
        let ends = Some(began + if lives_by_ttl { TTL } else { JOIN_BY });
        self.held.push(Held { lease, request, lives_by_ttl, ends, functions: Vec::new() });
    }

    /// A function that says its address and is over, or one that stays.
    async fn run(&mut self) {
        let Some(index) = self.any() else { return };
        let stays = self.dice.bool();
        self.number += 1;
        let held = &mut self.held[index];
        let lease = held.lease.clone();
        let name = format!("{}-{}-f{}", self.world.pool, self.name, self.number);
        let (label, namespace) = (format!("{TEST_LABEL}={}", self.world.pool), format!("nspool.namespace_id={}", lease.namespace_id));
        let options = ["--name", &name, "--label", &label, "--label", &namespace, "--network", &lease.network_mode, BUSYBOX];
        let (verb, command): (&[&str], &[&str]) =
            if stays { (&["run", "-d"], &["sleep", "1000"]) } else { (&["run"], &["ip", "-o", "-4", "addr", "show", "dev", "eth0"]) };
        held.functions.push(name.clone());
        let (calm, ended) = (self.world.now(), held.ends.is_some_and(|ends| Instant::now() >= ends));
        self.note(&format!("runs {name} in {}: {command:?}", lease.lease_id));
        let output = self.world.docker(&[verb, &options, command].concat()).await;
        self.note(&format!("{name}: {}: {}{}", output.status, text(&output.stdout), text(&output.stderr)));
        let well = output.status.success() && (stays || text(&output.stdout).contains(&lease.ip_addresses[0]));
        let held = &mut self.held[index];
        if well {
            // It is in: now the lease lives at least as long as the function's container, unless that came too late.
            if !held.lives_by_ttl && held.ends.is_some_and(|ends| Instant::now() < ends) {
                held.ends = None;
            }
            return self.world.tally(|tally| tally.functions += 1);
        }
        self.world.tally(|tally| tally.functions_failed += 1);
        let excused =
            ended || held.ends.is_some_and(|ends| Instant::now() >= ends) || !self.world.calm_since(calm) || self.world.is_hurt(&lease);
        assert!(excused, "{name} on {} failed: {}{}", lease.namespace_id, text(&output.stdout), text(&output.stderr));
    }

    fn note(&self, words: &str) {
        self.world.note(&format!("{} {words}", self.name));
    }

    async fn remove_functions(&self, held: &mut Held) {
        if held.functions.is_empty() {
            return;
        }
        // From here on it may linger out; or never have been joined.
        if !held.lives_by_ttl {
            let lingers = Instant::now() + LINGER;
            held.ends = Some(held.ends.map_or(lingers, |ends| ends.min(lingers)));
        }
        for function in held.functions.drain(..) {
            self.note(&format!("removes {function}"));
            self.world.remove(&function).await;
        }
    }

    async fn end_one(&mut self) {
        let Some(index) = self.any() else { return };
        let mut held = self.held.swap_remove(index);
        match self.dice.u8(..10) {
            0..2 if self.world.may_forget() && !held.lives_by_ttl => {
                self.remove_functions(&mut held).await;
                self.note(&format!("forgets {}", held.lease.lease_id));
                self.world.forgets(held.lease);
                self.world.tally(|tally| *tally.releases.entry("forgotten").or_default() += 1);
            }
            0..5 if !held.functions.is_empty() && self.stayers.is_empty() => {
                let kind = if self.dice.bool() { "released with a function inside" } else { "doubtful, with a function inside" };
                self.stayers.extend(held.functions.iter().map(|function| (function.clone(), held.lease.clone())));
                self.release(held, kind).await;
            }
            5..7 => self.end_clean(held, true).await,
            _ => self.end_clean(held, false).await,
        }
    }

    async fn end_clean(&mut self, mut held: Held, doubtful: bool) {
        self.remove_functions(&mut held).await;
        self.release(held, if doubtful { "doubtful" } else { "released" }).await;
    }

    /// Until it is answered. Ended by itself, or lost, it is only where it may be.
    async fn release(&self, held: Held, kind: &'static str) {
        let doubtful = kind.starts_with("doubtful");
        self.world.gives(&held.lease);
        self.note(&format!("gives back {}: {kind}", held.lease.lease_id));
        let began = Instant::now();
        let answer = loop {
            match self.client.release(&held.lease.token, doubtful).await {
                Ok(answer) => break answer,
                Err(error) => {
                    assert!(may_be_tried_again(&error) && began.elapsed() < PATIENCE, "release of {}: {error}", held.lease.lease_id)
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let hurt = self.world.is_hurt(&held.lease);
        let over = held.ends.is_some_and(|ends| Instant::now() >= ends);
        let ended = answer.outcome() == proto::ReleaseOutcome::AlreadyEnded;
        assert!(!ended || hurt || over, "{} had ended before its release: {}", held.lease.lease_id, answer.cause);
        self.world.tally(|tally| match ended {
            true if hurt => tally.lost += 1,
            true => *tally.releases.entry("ended before").or_default() += 1,
            false => *tally.releases.entry(kind).or_default() += 1,
        });
    }

    /// Nobody may have done anything to a function because its lease is over.
    async fn end_stayer(&mut self) {
        let Some((function, lease)) = self.stayers.pop() else { return };
        let running = |output: std::process::Output| output.status.success() && text(&output.stdout) == "true";
        let calm = self.world.now();
        let runs = running(self.world.docker(&["inspect", "--format", "{{.State.Running}}", &function]).await);
        if runs {
            let seen = self.world.docker(&["exec", &function, "ip", "-o", "-4", "addr", "show", "dev", "eth0"]).await;
            let keeps = text(&seen.stdout).contains(&lease.ip_addresses[0]);
            let excused = !self.world.calm_since(calm) || self.world.is_hurt(&lease);
            assert!(keeps || excused, "{function} has lost {}: {}{}", lease.namespace_id, text(&seen.stdout), text(&seen.stderr));
        }
        self.world.remove(&function).await;
    }

    async fn look_at_all(&mut self) {
        for held in std::mem::take(&mut self.held) {
            match self.look(&held).await {
                Seen::Well => self.held.push(held),
                Seen::Lost | Seen::Ended => self.end_clean(held, false).await,
            }
        }
        let Some(index) = self.any() else { return };
        let held = &mut self.held[index];
        if held.lives_by_ttl {
            let began = Instant::now();
            if self.client.renew(&held.lease.token, None).await.is_ok() {
                held.ends = Some(began + TTL);
            }
        } else if let Ok(again) = self.client.allocate(held.request.clone()).await.map(|lease| lease.keep()) {
            assert_eq!(again.token, held.lease.token, "another lease for the same request");
        }
    }

    async fn look(&self, held: &Held) -> Seen {
        let began = Instant::now();
        self.world.tally(|tally| tally.looks += 1);
        loop {
            let seen = match self.client.lease(&held.lease.token).await {
                Ok(lease) => {
                    assert_eq!(lease.namespace_id, held.lease.namespace_id);
                    if lease.state() == LeaseState::Active { Ok(Seen::Well) } else { Err((Seen::Lost, lease.cause)) }
                }
                Err(error) if error.reason() == "LEASE_ENDED" => Err((Seen::Ended, error.to_string())),
                Err(error) => {
                    assert!(may_be_tried_again(&error) && began.elapsed() < PATIENCE, "a look at {}: {error}", held.lease.lease_id);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (seen, cause) = match seen {
                Ok(seen) => return seen,
                Err(over) => over,
            };
            let may_be = match seen {
                Seen::Lost => self.world.is_hurt(&held.lease),
                Seen::Well | Seen::Ended => held.ends.is_some_and(|ends| Instant::now() >= ends),
            };
            assert!(may_be, "{} is over before its time: {cause}", held.lease.lease_id);
            return seen;
        }
    }

    /// Dies, and comes back for what it had: all that was answered and has not ended is there, under the same token.
    async fn come_back(&mut self) {
        let endpoint = &self.world.endpoint;
        self.client = Client::connect(endpoint).unwrap();
        let began = Instant::now();
        let listed = loop {
            match self.client.resume(&self.name).await {
                Ok(listed) => break listed,
                Err(error) => assert!(may_be_tried_again(&error) && began.elapsed() < PATIENCE, "resume: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        self.world.tally(|tally| tally.comebacks += 1);
        for held in &self.held {
            let found = listed.iter().find(|lease| lease.token == held.lease.token);
            assert!(found.is_none_or(|lease| lease.namespace_id == held.lease.namespace_id));
            let over = held.ends.is_some_and(|ends| Instant::now() >= ends);
            assert!(found.is_some() || over, "{} is not among {}'s leases: {listed:#?}", held.lease.lease_id, self.name);
        }
        // Leases that were lost before their answer came.
        let forgotten = self.world.forgotten();
        for lease in listed {
            let known = self.held.iter().any(|held| held.lease.token == lease.token)
                || forgotten.iter().any(|forgotten| forgotten.lease.token == lease.token);
            if !known {
                let _next_time = self.client.release(&lease.token, true).await;
            }
        }
    }
}

/// The daemon is not there, or not yet, or not any more; the engine is not.
fn may_be_tried_again(error: &ClientError) -> bool {
    error.is_unavailable() || error.outcome_unknown()
}
