//! What an inspection finds, on the kernel that the tests run on: each kind of dirt by its own name, the clean twin clean, and what may be
//! removed gone. Needs root, `ip`, `tc`, `bridge`, `nft`, `iptables`, `ipset`,
//! util-linux (`unshare`, `nsenter`, `setpriv`, `ipcmk`), and a kernel that lists tracked connections in /proc/net/nf_conntrack.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

#[path = "inspection/dirt.rs"]
mod dirt;
#[path = "inspection/held.rs"]
mod held;
#[path = "inspection/host.rs"]
mod host;
#[path = "inspection/ipc.rs"]
mod ipc;
#[path = "inspection/leftovers.rs"]
mod leftovers;
#[path = "inspection/programs.rs"]
mod programs;
#[path = "support/space.rs"]
mod space;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nspool::netns::inspection::{Baseline, Depth, Difference, InspectError, Kind, Leftover, LeftoverKind, Verdict, inspect};
use space::Space;

const WITHIN: Duration = Duration::from_secs(5);

/// A slot's namespace with a link to what is beyond.
struct Rig {
    slot: Space,
    beyond: Space,
    baseline: Arc<Baseline>,
}

impl Rig {
    async fn new() -> Self {
        Self::with("", Depth::Usual).await
    }

    /// What else there is from the beginning.
    async fn with(also: &str, depth: Depth) -> Self {
        let (slot, beyond) = (Space::new(), Space::new());
        let peer = format!("/proc/{}/fd/{}", std::process::id(), beyond.fd().as_raw_fd());
        slot.run(&format!("ip link set lo up; ip link add eth0 address 02:00:00:00:00:02 type veth peer name up0 netns {peer}"));
        beyond.run("ip link set lo up; ip addr add 10.9.0.1/24 dev up0; ip addr add fd09::1/64 dev up0 nodad; ip link set up0 up");
        slot.run(
            "ip link set eth0 addrgenmode none; ip addr add 10.9.0.2/24 dev eth0; ip addr add fd09::2/64 dev eth0 nodad
             ip link set eth0 up; ip route add default via 10.9.0.1; ip route add default via fd09::1",
        );
        slot.run(&format!("until ip link show eth0 | grep -q 'LOWER_UP.* state UP'; do sleep 0.01; done; sleep 0.1\n{also}"));
        let baseline = Baseline::take(slot.fd(), depth, WITHIN).await.unwrap();
        Self { slot, beyond, baseline }
    }

    async fn inspect(&self) -> Verdict {
        inspect(self.slot.fd(), &self.baseline, Depth::Usual, WITHIN).await
    }

    async fn dirt(&self) -> Vec<Difference> {
        match self.inspect().await {
            Verdict::Dirty(differences) => differences,
            clean @ Verdict::Clean { .. } => panic!("it is dirty, and found {clean:?}"),
        }
    }

    /// But for neighbours, of which the kernel makes some by itself, soon after a link came up.
    async fn assert_clean(&self, after: &str) {
        let removed = self.removed().await;
        assert!(removed.iter().all(|leftover| leftover.kind == LeftoverKind::Neighbour), "{after}: {removed:?}");
    }

    async fn removed(&self) -> Vec<Leftover> {
        let end = Instant::now() + WITHIN;
        loop {
            match self.inspect().await {
                Verdict::Clean { removed } => return removed,
                // A busy kernel counts for longer what was closed.
                Verdict::Dirty(differences)
                    if Instant::now() < end && differences.iter().all(|difference| difference.subject.contains("in no use")) => {}
                Verdict::Dirty(differences) => panic!("dirty: {}", lines(&differences)),
            }
        }
    }
}

fn lines(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn has(removed: &[Leftover], kind: LeftoverKind) -> bool {
    removed.iter().any(|leftover| leftover.kind == kind && leftover.count > 0)
}

#[tokio::test]
async fn what_nobody_touched_is_clean_again_and_again() {
    let rig = Rig::new().await;
    for _ in 0..20 {
        rig.assert_clean("nothing").await;
    }
    let bare = Space::new();
    let baseline = Baseline::take(bare.fd(), Depth::Usual, WITHIN).await.unwrap();
    assert_eq!(inspect(bare.fd(), &baseline, Depth::Usual, WITHIN).await, Verdict::Clean { removed: Vec::new() });
}

#[tokio::test]
async fn another_namespace_than_the_baselines_is_dirty() {
    let (one, other) = (Rig::new().await, Space::new());
    let Verdict::Dirty(differences) = inspect(other.fd(), &one.baseline, Depth::Usual, WITHIN).await else { panic!("clean") };
    assert!(differences.iter().any(|difference| difference.kind == Kind::Address), "{}", lines(&differences));
}

#[tokio::test]
async fn what_comes_too_late_or_cannot_be_read_is_dirty() {
    let rig = Rig::new().await;
    let Verdict::Dirty(late) = inspect(rig.slot.fd(), &rig.baseline, Depth::Usual, Duration::from_micros(20)).await else {
        panic!("nothing is read within so little time")
    };
    assert_eq!(late.iter().map(|difference| difference.kind).collect::<Vec<_>>(), [Kind::Late]);
    assert_eq!(late[0].to_string(), "late the inspection: not done within 20µs");
    assert!(matches!(Baseline::take(rig.slot.fd(), Depth::Usual, Duration::ZERO).await, Err(InspectError::Late { .. })));

    // No namespace at all.
    let file = std::fs::File::open("/dev/null").unwrap();
    let Verdict::Dirty(unreadable) = inspect(std::os::fd::AsFd::as_fd(&file), &rig.baseline, Depth::Usual, WITHIN).await else {
        panic!("a file is no namespace")
    };
    assert_eq!(unreadable[0].kind, Kind::Unreadable);
    assert!(unreadable[0].to_string().contains("by entering it"), "{}", unreadable[0]);
    rig.assert_clean("no verdict").await;
}

#[tokio::test]
async fn who_asks_stays_where_it_is_and_nothing_is_left_of_a_look() {
    let rig = Rig::new().await;
    let own = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let (before, descriptors) = (own(), std::fs::read_dir("/proc/self/fd").unwrap().count());
    for _ in 0..50 {
        rig.removed().await;
    }
    assert_eq!(own(), before);
    // Other tests of this process have descriptors, too, but not hundreds.
    assert!(std::fs::read_dir("/proc/self/fd").unwrap().count() < descriptors + 100);
}

#[tokio::test]
async fn inspections_of_one_namespace_do_not_find_each_other() {
    let rig = Rig::new().await;
    let all = futures::future::join_all((0..20).map(|_| rig.inspect())).await;
    assert!(all.iter().all(Verdict::is_clean), "{all:?}");
}

#[tokio::test]
async fn a_hundred_at_once_are_all_clean() {
    let mut slots = Vec::new();
    for _ in 0..100 {
        let slot = Space::new();
        let baseline = Baseline::take(slot.fd(), Depth::Usual, WITHIN).await.unwrap();
        slots.push((slot, baseline));
    }
    let all = slots.iter().map(|(slot, baseline)| inspect(slot.fd(), baseline, Depth::Usual, WITHIN));
    let all = futures::future::join_all(all).await;
    assert!(all.iter().all(Verdict::is_clean), "{all:?}");
}
