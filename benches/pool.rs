//! What a hand-out and a death cost, from a hundred slots to a hundred thousand: instructions (counted by callgrind, so exact enough to compare
//! with a target) and time (medians of interleaved rounds, shown).
//!
//! Half of the pool is leased throughout. A "turn" is allocate, the release of the oldest lease, and its slot ready again (`reuse = "always"`),
//! each with a request id of its own; so a turn walks through the whole pool and through all tables, memory of ended leases included. A "death"
//! is one buddy's end with all that follows from it at once; its replacement is not counted.
//!
//! `cargo bench --bench pool`: both; `-- time` or `-- instructions`: one of them. Needs valgrind for the instructions. The exit code is 1 when
//! an instruction target is missed.
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

use std::collections::{BTreeMap, VecDeque};
use std::hint::black_box;
use std::ops::Range;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nspool::pool::state::{Afterwards, Order, Rules, SlotState, State};
use nspool::pool::{Lifetime, Moment, Namespace, Pool, Request, Token, UseKey, World};

const SIZES: [u32; 4] = [100, 1_000, 10_000, 100_000];
const MOST_INSTRUCTIONS: f64 = 1.2;
const MOST_TIME: f64 = 3.0;
/// More turns than ended leases are remembered, so that the tables have their final size.
const WARM_UP: u64 = 20_000;
const COUNTED: u64 = 20_000;
const ROUNDS: usize = 31;
const TURNS_A_ROUND: u64 = 2_000;
const BATCHES_A_ROUND: usize = 30;
/// Deaths at once.
const BATCH: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    StateTurn,
    ReadyDeath,
    LeasedDeath,
    PoolTurn,
}

const SCENARIOS: [(Scenario, &str, &str); 4] = [
    (Scenario::StateTurn, "state-turn", "state: allocate + release + ready again"),
    (Scenario::ReadyDeath, "state-ready-death", "state: death of a ready buddy"),
    (Scenario::LeasedDeath, "state-leased-death", "state: death of a leased buddy"),
    (Scenario::PoolTurn, "pool-turn", "pool, behind its lock: the same turn"),
];

fn rules() -> Rules {
    Rules {
        networks: 2,
        ready: 0,
        max: 0,
        afterwards: [Afterwards::Reuse; 2].into(),
        keep_tenants: false,
        linger: Duration::from_secs(10),
        max_detached: 64,
        max_waiting: 1024,
        quota_per_uid: None,
        remember: Duration::from_secs(600),
        remember_max: 16_384,
        trim_after: Duration::from_secs(30),
    }
}

fn namespace(key: UseKey) -> Arc<Namespace> {
    let namespace_id = format!("nspool-default-{key}");
    Arc::new(Namespace {
        network_mode: format!("container:{namespace_id}"),
        host_config: String::new(),
        container_id: format!("{:064x}", key.generation).into(),
        tell_container_id: false,
        addresses: Vec::new(),
        resolv_conf: String::new(),
        mtu: 1500,
        pid: 1,
        started_at: String::new(),
        folder: String::new(),
        namespace_id,
    })
}

fn token(number: u64) -> Token {
    // Spread as random ones would be.
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes[8..].copy_from_slice(&mixed.to_be_bytes());
    Token(bytes)
}

fn request(number: u64) -> Request {
    Request {
        uid: 1000,
        owner: "agent".into(),
        tenant: String::new(),
        request_id: Some(format!("request-{number:012}")),
        network: None,
        lifetime: Lifetime::Joiners { join_by: Duration::from_secs(60) },
        labels: BTreeMap::new(),
    }
}

/// Whatever the nannies of these slots are told, they have done.
fn settle(state: &mut State, now: Moment, slots: Range<u32>) {
    for slot in slots {
        loop {
            match state.order(slot) {
                Order::Fill { generation } => {
                    let key = UseKey { slot, generation, use_number: 1 };
                    state.registered(now, slot, generation, namespace(key));
                }
                Order::Retire(key) => state.removed(now, key),
                Order::Vacate(key) => state.vacated(now, key, namespace(UseKey { use_number: key.use_number + 1, ..key })),
                Order::Renew(key) => state.renewed(now, key, namespace(UseKey { use_number: key.use_number + 1, ..key })),
                Order::Adopt(_) | Order::Rest | Order::BackOff | Order::Tend(_) | Order::Await(_) => break,
            }
            state.take_effects().for_each(drop);
        }
    }
}

/// A pool of `size` slots, half of them leased.
struct Bench {
    state: State,
    now: Moment,
    size: u32,
    held: VecDeque<(Token, UseKey, Arc<Namespace>)>,
    next: u64,
    next_victim: u32,
}

impl Bench {
    fn new(size: u32) -> Self {
        let mut state = State::new(rules(), 1);
        let now = Duration::from_secs(1000);
        state.set_engine_up(true);
        state.resize(now, size / 2, size).expect("a good size");
        settle(&mut state, now, 0..size);
        let mut bench = Self { state, now, size, held: VecDeque::new(), next: 0, next_victim: 0 };
        while bench.held.len() < size as usize / 2 {
            bench.allocate();
            settle(&mut bench.state, now, 0..0);
        }
        settle(&mut bench.state, now, 0..size);
        bench
    }

    fn allocate(&mut self) {
        let token = token(self.next);
        let answer = self.state.allocate(self.now, request(self.next), token, false);
        self.next += 1;
        let lease = answer.and_then(|_| self.state.lease(token)).expect("something is ready");
        self.held.push_back((token, lease.key, lease.namespace));
    }

    fn turn(&mut self) {
        self.now += Duration::from_micros(100);
        self.allocate();
        if let Some((token, key, namespace)) = self.held.pop_front() {
            black_box(self.state.release(self.now, token, false)).expect("it is ours");
            self.state.vacated(self.now, key, namespace);
        }
        self.state.take_effects().for_each(drop);
    }

    /// The next one to die, and its lease's token: the oldest lease, or a ready slot somewhere in the pool.
    fn victim(&mut self, leased: bool) -> (UseKey, Option<Token>) {
        if leased && let Some((token, key, _)) = self.held.pop_front() {
            return (key, Some(token));
        }
        loop {
            self.next_victim = (self.next_victim + 7919) % self.size;
            let view = self.state.slot_view(self.next_victim);
            if view.state == SlotState::Ready {
                return (view.key, None);
            }
        }
    }

    /// After a death: a new buddy, and another lease in the lost one's place.
    fn replace(&mut self, key: UseKey, lost: Option<Token>) {
        if let Some(token) = lost {
            black_box(self.state.release(self.now, token, false)).expect("it is ours");
        }
        settle(&mut self.state, self.now, key.slot..key.slot + 1);
        if lost.is_some() {
            self.allocate();
        }
        // A network that had more ready than it needs fills another slot, or a later one.
        if self.state.usage().filling > 0 {
            settle(&mut self.state, self.now, 0..self.size);
        }
    }
}

#[inline(never)]
fn counted_death(bench: &mut Bench, key: UseKey) {
    bench.state.buddy_gone(bench.now, key, "exited with code 137");
    bench.state.take_effects().for_each(drop);
}

#[inline(never)]
fn counted_state_turns(bench: &mut Bench, turns: u64) {
    for _ in 0..turns {
        bench.turn();
    }
}

#[inline(never)]
fn counted_pool_turns(shell: &mut Shell, turns: u64) {
    for _ in 0..turns {
        shell.turn();
    }
}

/// The same behind the pool's lock.
struct Shell {
    pool: Arc<Pool>,
    held: VecDeque<(Token, UseKey, Arc<Namespace>)>,
    next: u64,
}

impl Shell {
    fn new(size: u32) -> Self {
        let (clock, tokens) = (AtomicU64::new(1_000_000_000), AtomicU64::new(0));
        let world = World {
            now: Box::new(move || Duration::from_micros(clock.fetch_add(25, Ordering::Relaxed))),
            token: Box::new(move || token(tokens.fetch_add(1, Ordering::Relaxed))),
        };
        let pool = Pool::new(rules(), 1, 4096, world);
        pool.with(|state, now| {
            state.set_engine_up(true);
            state.resize(now, size / 2, size).expect("a good size");
            settle(state, now, 0..size);
        });
        let mut shell = Self { pool, held: VecDeque::new(), next: 0 };
        for _ in 0..size / 2 {
            shell.allocate();
        }
        shell.pool.with(|state, now| settle(state, now, 0..size));
        shell
    }

    fn allocate(&mut self) {
        let grant = futures::executor::block_on(self.pool.allocate(request(self.next), Duration::ZERO)).expect("something is ready");
        self.next += 1;
        self.held.push_back((grant.lease.token, grant.lease.key, grant.lease.namespace));
    }

    fn turn(&mut self) {
        self.allocate();
        if let Some((token, key, namespace)) = self.held.pop_front() {
            black_box(self.pool.with(|state, now| state.release(now, token, false))).expect("it is ours");
            self.pool.with(|state, now| state.vacated(now, key, namespace));
        }
    }
}

// ---- instructions --------------------------------------------------------------------------------------------------------------------

/// What runs under callgrind, which counts only inside of functions that are called `counted_…`.
fn run_counted(scenario: Scenario, size: u32) {
    match scenario {
        Scenario::StateTurn => {
            let mut bench = Bench::new(size);
            (0..WARM_UP).for_each(|_| bench.turn());
            counted_state_turns(&mut bench, COUNTED);
        }
        Scenario::PoolTurn => {
            let mut shell = Shell::new(size);
            (0..WARM_UP).for_each(|_| shell.turn());
            counted_pool_turns(&mut shell, COUNTED);
        }
        Scenario::ReadyDeath | Scenario::LeasedDeath => {
            let mut bench = Bench::new(size);
            for _ in 0..COUNTED {
                let (key, lost) = bench.victim(scenario == Scenario::LeasedDeath);
                counted_death(&mut bench, key);
                bench.replace(key, lost);
            }
        }
    }
}

/// Instructions per operation.
fn count(name: &str, size: u32) -> Result<f64, String> {
    let myself = std::env::current_exe().map_err(|error| format!("where this program is: {error}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*counted_*"])
        .arg(myself)
        .args(["counted", name, &size.to_string()])
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected :")).and_then(|(_, count)| count.trim().parse::<f64>().ok());
    match collected {
        Some(collected) if output.status.success() => Ok(collected / COUNTED as f64),
        Some(_) | None => Err(format!("valgrind: {said}")),
    }
}

fn instructions() -> Result<bool, String> {
    println!("\ninstructions per operation (ratio to {} slots; target {MOST_INSTRUCTIONS}x)", SIZES[0]);
    print_head();
    let mut good = true;
    for (_, name, title) in SCENARIOS {
        let counts = SIZES.iter().map(|size| count(name, *size)).collect::<Result<Vec<_>, _>>()?;
        good &= print_row(title, &counts, MOST_INSTRUCTIONS);
    }
    Ok(good)
}

// ---- time ----------------------------------------------------------------------------------------------------------------------------

fn nanoseconds(rounds: &mut [Vec<f64>]) -> Vec<f64> {
    rounds
        .iter_mut()
        .map(|rounds| {
            rounds.sort_by(f64::total_cmp);
            rounds[rounds.len() / 2]
        })
        .collect()
}

/// Rounds of all sizes by turns, so that whatever else the machine does meets them alike.
fn interleaved<B>(benches: &mut [B], mut round: impl FnMut(&mut B) -> f64) -> Vec<f64> {
    let mut rounds = vec![Vec::new(); benches.len()];
    for _ in 0..ROUNDS {
        for (bench, rounds) in benches.iter_mut().zip(&mut rounds) {
            rounds.push(round(bench));
        }
    }
    nanoseconds(&mut rounds)
}

fn timed(operations: u64, act: impl FnOnce()) -> f64 {
    let began = Instant::now();
    act();
    began.elapsed().as_nanos() as f64 / operations as f64
}

/// Some die at once, then all are replaced: the clock is read around the batch, for one death takes about as long as reading it. Another one
/// goes before it uncounted, for the code and the pool's own few lines: the replacing walks through all slots, so in a large pool it puts out
/// of the caches what it leaves there in a small one.
fn time_deaths(bench: &mut Bench, leased: bool) -> f64 {
    let mut spent = Duration::ZERO;
    let mut victims = Vec::with_capacity(BATCH);
    for _ in 0..BATCHES_A_ROUND {
        while victims.len() <= BATCH {
            let victim = bench.victim(leased);
            if !victims.contains(&victim) {
                victims.push(victim);
            }
        }
        counted_death(bench, victims[0].0);
        let began = Instant::now();
        victims[1..].iter().for_each(|(key, _)| counted_death(bench, *key));
        spent += began.elapsed();
        victims.drain(..).for_each(|(key, lost)| bench.replace(key, lost));
    }
    spent.as_nanos() as f64 / (BATCHES_A_ROUND * BATCH) as f64
}

fn time() {
    println!("\nnanoseconds per operation, medians of {ROUNDS} interleaved rounds (ratio to {} slots; target {MOST_TIME}x)", SIZES[0]);
    print_head();
    for (scenario, _, title) in SCENARIOS {
        let times = if scenario == Scenario::PoolTurn {
            let mut shells: Vec<Shell> = SIZES.iter().map(|size| Shell::new(*size)).collect();
            shells.iter_mut().for_each(|shell| (0..WARM_UP).for_each(|_| shell.turn()));
            interleaved(&mut shells, |shell| timed(TURNS_A_ROUND, || counted_pool_turns(shell, TURNS_A_ROUND)))
        } else {
            let mut benches: Vec<Bench> = SIZES.iter().map(|size| Bench::new(*size)).collect();
            benches.iter_mut().for_each(|bench| (0..WARM_UP).for_each(|_| bench.turn()));
            interleaved(&mut benches, |bench| match scenario {
                Scenario::ReadyDeath => time_deaths(bench, false),
                Scenario::LeasedDeath => time_deaths(bench, true),
                Scenario::StateTurn | Scenario::PoolTurn => timed(TURNS_A_ROUND, || counted_state_turns(bench, TURNS_A_ROUND)),
            })
        };
        print_row(title, &times, MOST_TIME);
    }
}

// ---- words ---------------------------------------------------------------------------------------------------------------------------

fn print_head() {
    print!("{:42}", "");
    SIZES.iter().for_each(|size| print!("{size:>16}"));
    println!();
}

fn print_row(title: &str, figures: &[f64], most: f64) -> bool {
    print!("{title:42}");
    figures.iter().for_each(|figure| print!("{figure:>8.0} ({:>4.2}x)", figure / figures[0]));
    let good = figures.iter().all(|figure| figure / figures[0] <= most);
    println!("{}", if good { "  ok" } else { "  MISSED" });
    good
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [counted, name, size] = words.as_slice()
        && counted == "counted"
    {
        let scenario = SCENARIOS.iter().find(|(_, other, _)| other == name);
        let (Some((scenario, _, _)), Ok(size)) = (scenario, size.parse()) else { return ExitCode::from(64) };
        run_counted(*scenario, size);
        return ExitCode::SUCCESS;
    }
    let only = words.first().map_or("", String::as_str);
    if only != "instructions" {
        time();
    }
    if only == "time" {
        return ExitCode::SUCCESS;
    }
    match instructions() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("{error}");
            ExitCode::from(69)
        }
    }
}
