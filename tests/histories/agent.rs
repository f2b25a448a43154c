//! One client: what it does is drawn from a seed, and every call is written down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nspool::engine::fake::FakeWorld;
use nspool::proto::namespace_pool_client::NamespacePoolClient;
use nspool::proto::pool_admin_client::PoolAdminClient;
use nspool::proto::{
    self, AllocateRequest, ForceReleaseRequest, GetLeaseRequest, LeaseState, ReleaseOutcome, ReleaseRequest, RenewRequest, ResumeRequest,
};
use tonic::transport::Channel;
use tonic::{Response, Status};
use tonic_types::StatusExt;

use crate::history::{Answer, Asked, Call, Lease, Outcome};
use crate::house::House;

/// How a lease is asked for; asked again, it is the same.
#[derive(Clone)]
struct Wish {
    request_id: String,
    ttl: Option<Duration>,
}

/// A lease that it was told of.
#[derive(Clone)]
struct Held {
    token: String,
    lease_id: String,
    namespace_id: String,
    renews: bool,
}

pub struct Agent {
    owner: String,
    start: Instant,
    dice: fastrand::Rng,
    world: Arc<FakeWorld>,
    /// Two connections, so that a try and its retry can be on their way at once.
    pools: [NamespacePoolClient<Channel>; 2],
    admin: PoolAdminClient<Channel>,
    wishes: u32,
    /// Asked for, and not known whether it was granted.
    doubtful: Vec<Wish>,
    held: Vec<Held>,
    /// Released, as far as it knows.
    gone: Vec<String>,
    pub calls: Vec<Call>,
}

impl Agent {
    pub fn new(house: &Arc<House>, number: u64, seed: u64, start: Instant) -> Self {
        Self {
            owner: format!("agent-{number}"),
            start,
            dice: fastrand::Rng::with_seed(seed << 8 | number),
            world: Arc::clone(&house.world),
            pools: [NamespacePoolClient::new(house.channel()), NamespacePoolClient::new(house.channel())],
            admin: PoolAdminClient::new(house.channel()),
            wishes: 0,
            doubtful: Vec::new(),
            held: Vec::new(),
            gone: Vec::new(),
            calls: Vec::new(),
        }
    }

    /// Acts until then, and then gives everything back.
    pub async fn live(mut self, until: Instant) -> Self {
        while Instant::now() < until {
            self.act().await;
            if self.dice.u8(..3) == 0 {
                tokio::time::sleep(Duration::from_micros(self.dice.u64(..3000))).await;
            }
        }
        let end = until + Duration::from_secs(20);
        while Instant::now() < end {
            if let Some(wish) = self.doubtful.pop() {
                self.allocate(wish, false).await;
            } else if let Some(held) = self.held.pop() {
                self.release(held, false).await;
            } else {
                return self;
            }
        }
        panic!("{} gets no answer any more", self.owner);
    }

    async fn act(&mut self) {
        match self.dice.u8(..100) {
            0..35 if self.held.len() < 3 => {
                let wish = if self.dice.bool() { self.doubtful.pop() } else { None };
                let wish = wish.unwrap_or_else(|| self.wish());
                if self.dice.u8(..4) == 0 { self.allocate_twice(wish).await } else { self.allocate(wish, true).await }
            }
            0..60 => {
                if let Some(held) = self.take_held() {
                    if self.dice.u8(..4) == 0 { self.release_twice(held).await } else { self.release(held, true).await }
                }
            }
            60..70 => self.renew().await,
            70..82 => self.get().await,
            82..88 => self.resume().await,
            88..92 => self.release_what_is_gone().await,
            92..96 => self.force().await,
            96..98 => self.kill(),
            _ => tokio::time::sleep(Duration::from_millis(self.dice.u64(..20))).await,
        }
    }

    fn wish(&mut self) -> Wish {
        self.wishes += 1;
        let ttl = (self.dice.u8(..3) == 0).then(|| Duration::from_millis(self.dice.u64(50..400)));
        // Without an id, what is not answered stays until its time is up.
        let named = ttl.is_none() || self.dice.u8(..4) > 0;
        Wish { request_id: if named { format!("r{}", self.wishes) } else { String::new() }, ttl }
    }

    fn take_held(&mut self) -> Option<Held> {
        (!self.held.is_empty()).then(|| self.held.swap_remove(self.dice.usize(..self.held.len())))
    }

    fn any_token(&mut self) -> Option<String> {
        if self.held.is_empty() || self.dice.u8(..4) == 0 {
            return self.gone.last().cloned();
        }
        Some(self.held[self.dice.usize(..self.held.len())].token.clone())
    }

    /// A short while, after which some calls are cancelled.
    fn patience(&mut self) -> Duration {
        if self.dice.u8(..5) == 0 { Duration::from_micros(self.dice.u64(..4000)) } else { Duration::from_secs(5) }
    }

    async fn allocate(&mut self, wish: Wish, cancels: bool) {
        let patience = if cancels && !wish.request_id.is_empty() { self.patience() } else { Duration::from_secs(5) };
        let wait = Duration::from_millis(self.dice.u64(..60));
        let call = self.ask_for(0, &wish, wait);
        let answer = self.note(self.asked_for(&wish), patience, call).await;
        self.settle(wish, answer);
    }

    /// A try and a retry at once.
    async fn allocate_twice(&mut self, wish: Wish) {
        if wish.request_id.is_empty() {
            return self.allocate(wish, false).await;
        }
        let wait = Duration::from_millis(self.dice.u64(..60));
        let (patience, other) = (self.patience(), self.patience());
        let (one, two) = (self.ask_for(0, &wish, wait), self.ask_for(1, &wish, wait));
        let (asked, start) = (self.asked_for(&wish), self.start);
        let (one, two) = tokio::join!(time(start, patience, one), time(start, other, two));
        let first = self.put_down(asked.clone(), one);
        let second = self.put_down(asked, two);
        let answer = if first.as_ref().is_some_and(Result::is_ok) { first } else { second };
        self.settle(wish, answer);
    }

    fn asked_for(&self, wish: &Wish) -> Asked {
        Asked::Allocate { owner: self.owner.clone(), request_id: wish.request_id.clone(), ttl: wish.ttl }
    }

    fn ask_for(
        &self,
        connection: usize,
        wish: &Wish,
        wait: Duration,
    ) -> impl Future<Output = Result<Vec<proto::Lease>, Status>> + Send + 'static {
        let lifetime = if wish.ttl.is_some() { proto::Lifetime::Ttl } else { proto::Lifetime::Joiners };
        let request = AllocateRequest {
            request_id: wish.request_id.clone(),
            owner: self.owner.clone(),
            lifetime: lifetime.into(),
            ttl: wish.ttl.map(|ttl| ttl.try_into().unwrap()),
            wait: Some(wait.try_into().unwrap()),
            ..AllocateRequest::default()
        };
        let mut pool = self.pools[connection].clone();
        async move { Ok(vec![pool.allocate(request).await?.into_inner().lease.unwrap()]) }
    }

    /// A definite no ends a wish; what is not known is asked for again.
    fn settle(&mut self, wish: Wish, answer: Option<Result<Vec<proto::Lease>, String>>) {
        match answer {
            Some(Ok(leases)) => {
                let renews = wish.ttl.is_some();
                self.held.extend(leases.into_iter().map(|lease| Held {
                    token: lease.token,
                    lease_id: lease.lease_id,
                    namespace_id: lease.namespace_id,
                    renews,
                }));
            }
            Some(Err(_)) => {}
            None if wish.request_id.is_empty() => {}
            None => self.doubtful.push(wish),
        }
    }

    async fn release(&mut self, held: Held, cancels: bool) {
        let patience = if cancels { self.patience() } else { Duration::from_secs(5) };
        let call = give_back(self.pools[0].clone(), held.token.clone());
        match self.note(Asked::Release(held.token.clone()), patience, call).await {
            None => self.held.push(held),
            Some(_) => self.gone.push(held.token),
        }
    }

    async fn release_twice(&mut self, held: Held) {
        let [one, two] = self.pools.clone().map(|pool| give_back(pool, held.token.clone()));
        let (patience, start, asked) = (self.patience(), self.start, Asked::Release(held.token.clone()));
        let (one, two) = tokio::join!(time(start, patience, one), time(start, Duration::from_secs(5), two));
        let first = self.put_down(asked.clone(), one);
        match self.put_down(asked, two).or(first) {
            None => self.held.push(held),
            Some(_) => self.gone.push(held.token),
        }
    }

    async fn release_what_is_gone(&mut self) {
        let Some(token) = self.gone.last().cloned() else { return };
        let call = give_back(self.pools[1].clone(), token.clone());
        self.note(Asked::Release(token), Duration::from_secs(5), call).await;
    }

    async fn renew(&mut self) {
        let held = self.held.iter().find(|held| held.renews).map(|held| held.token.clone());
        let Some(token) = held.or_else(|| self.gone.last().cloned()) else { return };
        let (mut pool, request) = (self.pools[0].clone(), RenewRequest { token: token.clone(), ttl: None });
        let call = async move { pool.renew(request).await.map(Response::into_inner).map(drop) };
        self.note(Asked::Renew(token), Duration::from_secs(5), call).await;
    }

    async fn get(&mut self) {
        let Some(token) = self.any_token() else { return };
        let (mut pool, request) = (self.pools[1].clone(), GetLeaseRequest { token: token.clone() });
        let call = async move { Ok(vec![pool.get_lease(request).await?.into_inner().lease.unwrap()]) };
        self.note(Asked::Get(token), Duration::from_secs(5), call).await;
    }

    async fn resume(&mut self) {
        let (mut pool, request) = (self.pools[0].clone(), ResumeRequest { owner: self.owner.clone() });
        let call = async move {
            let mut stream = pool.resume(request).await?.into_inner();
            let mut leases = Vec::new();
            while let Some(message) = stream.message().await? {
                leases.extend(message.lease);
            }
            Ok(leases)
        };
        self.note(Asked::Resume(self.owner.clone()), Duration::from_secs(5), call).await;
    }

    async fn force(&mut self) {
        let Some(held) = self.held.last() else { return };
        let lease_id = held.lease_id.clone();
        let (mut admin, request) = (self.admin.clone(), ForceReleaseRequest { lease_id: lease_id.clone() });
        let call = async move { admin.force_release(request).await.map(Response::into_inner).map(drop) };
        self.note(Asked::Force(lease_id), Duration::from_secs(5), call).await;
    }

    /// The buddy under one of its leases dies.
    fn kill(&mut self) {
        let Some(held) = self.held.last() else { return };
        let began = self.start.elapsed();
        self.world.kill(&held.namespace_id);
        let asked = Asked::Kill(held.lease_id.clone());
        self.calls.push(Call { began, ended: self.start.elapsed(), asked, answer: Answer::Done });
    }

    /// Makes a call and writes it down. `None`: nobody knows what came of it.
    async fn note<T: Tells + Clone>(
        &mut self,
        asked: Asked,
        patience: Duration,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Option<Result<T, String>> {
        let timed = time(self.start, patience, call).await;
        self.put_down(asked, timed)
    }

    fn put_down<T: Tells + Clone>(&mut self, asked: Asked, timed: Timed<T>) -> Option<Result<T, String>> {
        let Timed { began, ended, answer } = timed;
        let told = match &answer {
            Some(Ok(value)) => value.clone().told(),
            Some(Err(reason)) => Answer::Refused(reason.clone()),
            None => Answer::Unknown,
        };
        self.calls.push(Call { began, ended, asked, answer: told });
        answer
    }
}

async fn give_back(mut pool: NamespacePoolClient<Channel>, token: String) -> Result<proto::ReleaseResponse, Status> {
    pool.release(ReleaseRequest { token, doubtful: false }).await.map(Response::into_inner)
}

/// A call that was made.
struct Timed<T> {
    began: Duration,
    ended: Duration,
    /// Or why it was refused, by the daemon itself; `None`: unknown.
    answer: Option<Result<T, String>>,
}

async fn time<T>(start: Instant, patience: Duration, call: impl Future<Output = Result<T, Status>>) -> Timed<T> {
    let began = start.elapsed();
    let answer = tokio::time::timeout(patience, call).await;
    let ended = start.elapsed();
    let answer = match answer {
        Ok(Ok(value)) => Some(Ok(value)),
        Ok(Err(status)) => status.get_details_error_info().map(|info| Err(info.reason)),
        Err(_) => None,
    };
    Timed { began, ended, answer }
}

/// What an answer says to the checker.
trait Tells {
    fn told(self) -> Answer;
}

impl Tells for Vec<proto::Lease> {
    fn told(self) -> Answer {
        let lease = |lease: proto::Lease| Lease {
            lost: lease.state() == LeaseState::Lost,
            token: lease.token,
            id: lease.lease_id,
            buddy: (lease.slot, lease.generation),
        };
        Answer::Leases(self.into_iter().map(lease).collect())
    }
}

impl Tells for proto::ReleaseResponse {
    fn told(self) -> Answer {
        Answer::Released(match self.outcome() {
            ReleaseOutcome::Returned | ReleaseOutcome::JoinerStillThere => Outcome::Returned,
            ReleaseOutcome::AlreadyReleased => Outcome::AlreadyReleased,
            ReleaseOutcome::AlreadyEnded => Outcome::AlreadyEnded(self.cause),
            ReleaseOutcome::Unspecified => panic!("no outcome"),
        })
    }
}

impl Tells for () {
    fn told(self) -> Answer {
        Answer::Done
    }
}
