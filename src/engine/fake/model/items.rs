//! What the fake engine keeps of a container and of a network, and how it writes ids and times.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::engine::fake::machine::NsSet;
use crate::engine::{ContainerId, ContainerStatus, Flavour, ImageId, Labels, NamespaceKind};

/// What a container's network is.
#[derive(Debug)]
pub(in crate::engine::fake) enum Attachment {
    /// A network by name.
    Network(Arc<str>),
    /// Another container, as written and as resolved at create.
    Joins { written: String, number: Option<u64> },
}

/// What a container is made from; buddies and functions alike.
pub(in crate::engine::fake) struct Recipe {
    pub name: String,
    pub labels: Labels,
    pub image: ImageId,
    pub network: Attachment,
    /// Namespaces besides the network's that it shares, or joins.
    pub shares: Vec<NamespaceKind>,
    pub privileged: bool,
    pub buddy: bool,
    pub flavour: Flavour,
}

#[derive(Debug)]
pub(in crate::engine::fake) struct Item {
    pub id: ContainerId,
    pub name: Arc<str>,
    pub labels: Labels,
    pub image: ImageId,
    pub network: Attachment,
    pub shares: Vec<NamespaceKind>,
    pub privileged: bool,
    pub buddy: bool,
    pub flavour: Flavour,
    /// What the engine says; the truth is in `process`.
    pub status: ContainerStatus,
    pub told_pid: u32,
    pub process: Option<u32>,
    /// Of the last run; may be gone.
    pub namespaces: Option<NsSet>,
    pub start_number: u64,
    pub exit_code: Option<i64>,
    pub error: String,
    pub address: Option<u32>,
    /// Containers that join it.
    pub joiners: BTreeSet<u64>,
    /// Somebody waits for its end.
    pub waits: Option<Arc<Notify>>,
    /// An end that the engine has not heard of.
    pub unheard: Option<i64>,
    /// The engine will not hear of its end.
    pub lies: bool,
    /// Its process outlives a removal.
    pub survives: bool,
}

#[derive(Debug)]
pub(in crate::engine::fake) struct Network {
    pub(in crate::engine::fake) number: u32,
    free: BTreeSet<u32>,
    next: u32,
    most: u32,
}

impl Network {
    pub(in crate::engine::fake) fn new(number: u32, most: u32) -> Self {
        Self { number, free: BTreeSet::new(), next: 0, most }
    }

    pub(in crate::engine::fake) fn set_most(&mut self, most: u32) {
        self.most = most;
    }

    pub(in crate::engine::fake) fn give_back(&mut self, address: u32) {
        self.free.insert(address);
    }

    pub(in crate::engine::fake) fn take(&mut self) -> Option<u32> {
        let in_use = self.next - u32::try_from(self.free.len()).unwrap_or(0);
        if in_use >= self.most {
            return None;
        }
        Some(self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        }))
    }

    pub(in crate::engine::fake) fn in_use(&self) -> u32 {
        self.next - u32::try_from(self.free.len()).unwrap_or(0)
    }
}

pub(in crate::engine::fake) fn started_at(start_number: u64) -> String {
    if start_number == 0 {
        return "0001-01-01T00:00:00Z".to_owned();
    }
    let seconds = start_number / 1000;
    format!(
        "2026-01-01T{:02}:{:02}:{:02}.{:09}Z",
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
        start_number % 1000 * 1_000_000 + 7
    )
}

/// 64 hex digits that look like an engine's.
pub(in crate::engine::fake) fn id_text(seed: u64, number: u64) -> String {
    let word = |salt: u64| {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_add(1).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ salt << 56;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    };
    format!("{:016x}{:016x}{:016x}{:016x}", word(1), word(2), word(3), word(4))
}
