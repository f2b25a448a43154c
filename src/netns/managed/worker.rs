//! The one thread that works on links: a bounded queue of jobs, done in order.
//!
//! One, because the kernel does one change to links at a time anyway; a thread of its own, because it goes into other namespaces, which no
//! thread of the runtime may, and because a change cannot be hurried once the kernel has it. What it is asked for is answered within a
//! deadline: a job that waited for longer is not begun, one that nobody waits for any more is undone.
//!
//! Removals that wait behind each other are done together, at the price of one.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};

use super::error::FurnishError;
use super::hand::{Furnished, Hand, Stripped};
use super::host::{Finding, Host};
use super::names::HostEnd;
use super::network::Plan;
use super::watch::Watch;
use crate::level;

/// Bounds of the worker.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Jobs that wait.
    pub queue: usize,
    /// From asking for something to its answer.
    pub deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { queue: 1024, deadline: Duration::from_secs(10) }
    }
}

/// Removals that are done together at most.
const MOST_AT_ONCE: usize = 256;

/// Owns the thread.
#[derive(Debug)]
pub struct Worker {
    jobs: mpsc::Sender<Job>,
    thread: JoinHandle<()>,
    watch: Watch,
}

/// Asks the worker. Clones share its queue.
#[derive(Clone, Debug)]
pub struct Furnisher {
    jobs: mpsc::Sender<Job>,
    deadline: Duration,
    /// As [`Worker::changes`].
    pub(in crate::netns) changes: level::Receiver<u64>,
}

#[derive(Debug)]
enum Job {
    Furnish { namespace: OwnedFd, plan: Box<Plan>, reply: Reply<Furnished> },
    Strip { end: HostEnd, reply: Reply<Stripped> },
    Cut { end: HostEnd, reply: Reply<()> },
    Adopt { plans: Vec<Plan>, reply: Reply<()> },
    Mend { reply: Reply<Vec<Finding>> },
    Audit { reply: Reply<Vec<Finding>> },
    Links { reply: Reply<Vec<(HostEnd, Option<IpAddr>)>> },
    TearDown { reply: Reply<Vec<FurnishError>> },
    End,
}

/// Where the answer goes, and until when somebody waits for it.
#[derive(Debug)]
struct Reply<T> {
    to: oneshot::Sender<Result<T, FurnishError>>,
    until: Instant,
}

impl<T> Reply<T> {
    fn is_awaited(&self) -> bool {
        !self.to.is_closed() && Instant::now() < self.until
    }

    /// False when nobody got it.
    fn send(self, result: Result<T, FurnishError>) -> bool {
        self.to.send(result).is_ok()
    }
}

impl Worker {
    /// In the network namespace of this process.
    ///
    /// # Errors
    /// As [`start_in`](Self::start_in).
    pub fn start(host: Host, limits: Limits) -> Result<(Self, Furnisher), FurnishError> {
        let own = std::fs::File::open("/proc/self/ns/net").map_err(|error| started("opening the host's network namespace", &error))?;
        Self::start_in(own.into(), host, limits)
    }

    /// In the network namespace that shall be the host. Nothing is set up yet.
    ///
    /// # Errors
    /// When the namespace cannot be entered (that needs CAP_SYS_ADMIN), a socket not be opened, a thread not be started.
    pub fn start_in(home: OwnedFd, host: Host, limits: Limits) -> Result<(Self, Furnisher), FurnishError> {
        let (jobs, queue) = mpsc::channel(limits.queue);
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let work = move || {
            let opened = Watch::sockets_in(&home).and_then(|sockets| Ok((sockets, Hand::new(home, host.clone())?)));
            match opened {
                Ok((sockets, hand)) => {
                    if ready.send(Ok((sockets, host))).is_ok() {
                        run(hand, queue);
                    }
                }
                // Whoever started it waits for this.
                Err(error) => drop(ready.send(Err(error))),
            }
        };
        let failed = |error: io::Error| started("starting the network's worker", &error);
        let thread = std::thread::Builder::new().name("nspool-links".to_owned()).spawn(work).map_err(failed)?;
        let (sockets, host) = is_ready.recv().map_err(|_| FurnishError::Stopped)??;
        let watch = Watch::start(sockets, &host).map_err(|error| started("starting to watch links", &error))?;
        let furnisher = Furnisher { jobs: jobs.clone(), deadline: limits.deadline, changes: watch.changes() };
        Ok((Self { jobs, thread, watch }, furnisher))
    }

    /// Counts what others did to our bridges, ports and rules, and what we did: when it changes, [`Furnisher::audit`] tells what is
    /// different.
    #[must_use]
    pub fn changes(&self) -> level::Receiver<u64> {
        self.watch.changes()
    }

    /// Ends it after the jobs that wait. What is on the host stays. Must be called inside a tokio runtime; not cancel safe.
    pub async fn stop(self) {
        // Refused when it has ended, which is well.
        drop(self.jobs.send(Job::End).await);
        let (thread, watch) = (self.thread, self.watch);
        drop(
            tokio::task::spawn_blocking(move || {
                watch.stop();
                drop(thread.join());
            })
            .await,
        );
    }
}

fn started(step: &'static str, error: &io::Error) -> FurnishError {
    FurnishError::Refused { step: step.into(), subject: "worker".to_owned(), cause: Errno::from_io_error(error).unwrap_or(Errno::IO) }
}

impl Furnisher {
    /// Makes the bridges, the rules, and all else that is missing or different; see [`Finding`] for what comes back. Also the first setting
    /// up.
    ///
    /// # Errors
    /// When something is in the way, or the kernel refuses. What was made stays.
    pub async fn mend(&self) -> Result<Vec<Finding>, FurnishError> {
        self.ask("mending the networks", |reply| Job::Mend { reply }).await
    }

    /// Changes nothing.
    ///
    /// # Errors
    /// When the kernel could not be asked.
    pub async fn audit(&self) -> Result<Vec<Finding>, FurnishError> {
        self.ask("auditing the networks", |reply| Job::Audit { reply }).await
    }

    /// The links of this pool's slots that are there, whoever made them, each with the address of its slot, if its alias tells.
    ///
    /// # Errors
    /// When the kernel could not be asked.
    pub async fn links(&self) -> Result<Vec<(HostEnd, Option<IpAddr>)>, FurnishError> {
        self.ask("listing links", |reply| Job::Links { reply }).await
    }

    /// Takes away all that is ours by name, links of slots included; gives what could not be.
    ///
    /// # Errors
    /// When it was not begun or took too long.
    pub async fn tear_down(&self) -> Result<Vec<FurnishError>, FurnishError> {
        self.ask("taking the networks down", |reply| Job::TearDown { reply }).await
    }

    /// Links that a predecessor made, and that shall be there.
    ///
    /// # Errors
    /// When the worker is busy or gone.
    pub async fn adopt(&self, plans: Vec<Plan>) -> Result<(), FurnishError> {
        self.ask("adopting links", |reply| Job::Adopt { plans, reply }).await
    }

    /// Gives a namespace its link, addresses and routes: all of it, or none.
    ///
    /// Dropping the future, or a timeout, leaves it open whether it was done: strip before trying again.
    ///
    /// # Errors
    /// See [`FurnishError::class`].
    pub async fn furnish(&self, namespace: BorrowedFd<'_>, plan: &Plan) -> Result<Furnished, FurnishError> {
        let duplicate = namespace.try_clone_to_owned();
        let namespace = duplicate.map_err(|error| started("holding the slot's network namespace", &error))?;
        let plan = Box::new(plan.clone());
        self.ask("furnishing a namespace", |reply| Job::Furnish { namespace, plan, reply }).await
    }

    /// Takes a slot's link away. When it answers, the link is gone, also for those who have the namespace.
    ///
    /// # Errors
    /// See [`FurnishError::class`].
    pub async fn strip(&self, end: &HostEnd) -> Result<Stripped, FurnishError> {
        self.ask("removing a link", |reply| Job::Strip { end: end.clone(), reply }).await
    }

    /// Lets nothing more pass a slot's link, in a fraction of the time that it takes to remove it, which waits for all processors. The link is
    /// there still: [`strip`](Self::strip) it, unless it goes with its namespace.
    ///
    /// # Errors
    /// See [`FurnishError::class`].
    pub async fn cut(&self, end: &HostEnd) -> Result<(), FurnishError> {
        self.ask("cutting a link off", |reply| Job::Cut { end: end.clone(), reply }).await
    }

    async fn ask<T>(&self, what: &'static str, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, FurnishError> {
        let (to, answer) = oneshot::channel();
        let job = job(Reply { to, until: Instant::now() + self.deadline });
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => FurnishError::QueueFull,
            mpsc::error::TrySendError::Closed(_) => FurnishError::Stopped,
        })?;
        match tokio::time::timeout(self.deadline, answer).await {
            Ok(answer) => answer.unwrap_or(Err(FurnishError::Stopped)),
            Err(_) => Err(FurnishError::TimedOut { what: what.into(), limit: self.deadline }),
        }
    }
}

fn run(mut hand: Hand, mut queue: mpsc::Receiver<Job>) {
    let mut next = VecDeque::new();
    while let Some(job) = next.pop_front().or_else(|| queue.blocking_recv()) {
        match job {
            Job::Furnish { namespace, plan, reply } if reply.is_awaited() => {
                let furnished = hand.furnish(namespace.as_fd(), &plan);
                let is_astray = matches!(furnished, Err(FurnishError::Astray { .. }));
                let is_there = furnished.is_ok();
                if !reply.send(furnished) && is_there {
                    hand.undo(&plan.host_end);
                }
                if is_astray {
                    return;
                }
            }
            Job::Strip { end, reply } => {
                let mut waiting = vec![(end, reply)];
                while waiting.len() < MOST_AT_ONCE && next.is_empty() {
                    match queue.try_recv() {
                        Ok(Job::Strip { end, reply }) => waiting.push((end, reply)),
                        Ok(other) => next.push_back(other),
                        Err(_) => break,
                    }
                }
                strip(&mut hand, waiting);
            }
            // Also when nobody waits any more: what is to be cut off, is.
            Job::Cut { end, reply } => drop(reply.send(hand.cut(&end))),
            Job::Adopt { plans, reply } => {
                plans.iter().for_each(|plan| hand.adopt(plan));
                reply.send(Ok(()));
            }
            Job::Mend { reply } if reply.is_awaited() => drop(reply.send(hand.mend())),
            Job::Audit { reply } if reply.is_awaited() => drop(reply.send(hand.audit())),
            Job::TearDown { reply } if reply.is_awaited() => drop(reply.send(Ok(hand.tear_down()))),
            Job::Links { reply } if reply.is_awaited() => drop(reply.send(hand.links())),
            // Nobody waits for them any more, so they are not begun.
            Job::Furnish { .. } | Job::Links { .. } | Job::Mend { .. } | Job::Audit { .. } | Job::TearDown { .. } => {}
            Job::End => return,
        }
    }
}

/// Also those that nobody waits for: what is to go, goes.
fn strip(hand: &mut Hand, waiting: Vec<(HostEnd, Reply<Stripped>)>) {
    let (ends, replies): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
    for (reply, result) in replies.into_iter().zip(hand.strip(&ends)) {
        reply.send(result);
    }
}
