//! Whose functions have been in a namespace that is used again, and to whom it may go (`across_tenants = "retire"`).
//!
//! What it promises: where that is asked for, a namespace goes to nobody but the tenant who had it; who finds only others' has one of them given
//! up, so that a new buddy comes. What can go wrong: a caller that does not wait has others' slots given up, too; at most as many as callers wait, and one
//! more, are on their way at a time. It deliberately believes what tenant a caller says it is: the caller is the agent.

use std::sync::Arc;

use super::state::{Afterwards, SlotState, State};
use super::types::{Moment, NetworkIndex, SlotIndex};

/// Which tenants a namespace had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Had {
    #[default]
    Nobody,
    /// This one only.
    One(Arc<str>),
    /// Several, or those of a predecessor.
    Others,
}

impl Had {
    fn fits(&self, tenant: &str) -> bool {
        match self {
            Self::Nobody => true,
            Self::One(had) => **had == *tenant,
            Self::Others => false,
        }
    }

    pub(super) fn has(&mut self, tenant: &str) {
        match self {
            Self::Nobody => *self = Self::One(tenant.into()),
            Self::One(had) if **had == *tenant => {}
            Self::One(_) | Self::Others => *self = Self::Others,
        }
    }
}

impl State {
    /// Namespaces of that network are used again, and each has its tenant.
    pub(super) fn keeps_tenants(&self, network: NetworkIndex) -> bool {
        let policy = self.rules.afterwards.get(usize::from(network));
        self.rules.keep_tenants && matches!(policy, Some(Afterwards::Verify | Afterwards::Reuse))
    }

    /// Whether a slot may go to a tenant.
    pub(super) fn fits(&self, slot: SlotIndex, tenant: &str) -> bool {
        let place = &self.slots[slot as usize];
        !self.keeps_tenants(place.network) || place.had.fits(tenant)
    }

    /// The network that is asked for, or all, those with most ready first.
    fn by_readiness(&self, network: Option<NetworkIndex>) -> Vec<NetworkIndex> {
        let mut all =
            network.map_or_else(|| (0..NetworkIndex::try_from(self.networks.len()).unwrap_or(0)).collect(), |network| vec![network]);
        all.sort_by_key(|network| std::cmp::Reverse(self.networks[usize::from(*network)].count(SlotState::Ready)));
        all
    }

    /// A ready slot for a tenant, the one that became ready last. Linear in those that others' functions have been in.
    pub(super) fn fitting_slot(&self, network: Option<NetworkIndex>, tenant: &str) -> Option<SlotIndex> {
        self.by_readiness(network).into_iter().find_map(|network| self.fitting_on(network, tenant))
    }

    fn fitting_on(&self, network: NetworkIndex, tenant: &str) -> Option<SlotIndex> {
        self.networks[usize::from(network)].ready.present(&self.slots).find(|slot| self.fits(*slot, tenant))
    }

    /// All that is ready is others': one of them makes room, unless as many come as callers wait.
    pub(super) fn give_up_anothers(&mut self, now: Moment, network: Option<NetworkIndex>) {
        if !self.rules.keep_tenants {
            return;
        }
        let Some(network) = self.by_readiness(network).into_iter().find(|network| self.keeps_tenants(*network)) else { return };
        let place = &self.networks[usize::from(network)];
        if place.count(SlotState::Filling) + place.count(SlotState::Retiring) <= self.waiters.len() {
            self.give_up_coldest(now, u32::from(network), "its namespace is another tenant's");
            self.rebalance(now, u32::from(network));
        }
    }

    /// What is ready may fit others by new rules.
    pub(super) fn serve_waiters(&mut self, now: Moment) {
        let networks = 0..NetworkIndex::try_from(self.networks.len()).unwrap_or(0);
        for network in networks {
            let ready: Vec<SlotIndex> = self.networks[usize::from(network)].ready.present(&self.slots).collect();
            for slot in ready {
                if self.waiters.first_for(network, |waiting| self.fits(slot, &waiting.request.tenant)).is_some() {
                    self.serve_waiter(now, slot);
                }
            }
        }
    }
}
