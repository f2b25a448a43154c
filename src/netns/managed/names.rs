//! What is ours on the host, by name. One who sees a link, a bridge or a table can tell whose it is, and nothing else is ever touched.
//!
//! | what | name | for pool `test` |
//! |---|---|---|
//! | the host's end of slot 42, use 7 | `ns`, five letters from the pool's name, slot, `-`, use modulo 36 | `ns7gqbi42-7` |
//! | | the alias `nspool pool <pool> <address>` | |
//! | a bridge of our own | as configured, and the alias `nspool pool <pool>` | `nsbr0` |
//! | the table of rules | `nspool_<pool>`, family inet | `nspool_test` |
//! | rules in `DOCKER-USER` | the comment `nspool pool <pool>` | |
//!
//! The use is in the name because the link of an old use stays as long as somebody pins its namespace. What can go wrong: a bridge of the
//! configured name that lacks our alias is somebody else's, which is an error, and it stays as it is.

use std::net::IpAddr;

use sha2::{Digest, Sha256};

/// The kernel takes one less than 16 bytes.
pub(super) const LONGEST_LINK: usize = 15;
/// What fits into a name.
pub(super) const MOST_SLOTS: u32 = 100_000;
const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
/// Of the letters from the pool's name.
const TAG: usize = 5;

/// The names of a pool.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Names {
    pool: String,
    /// With which all links of slots begin.
    stem: String,
}

/// The name of a link that is ours, because nobody else makes one of these.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct HostEnd(String);

impl HostEnd {
    /// As `ip link` shows it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for HostEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Names {
    /// Of the pool of that name.
    #[must_use]
    pub fn of(pool: &str) -> Self {
        let digest = Sha256::digest(pool.as_bytes());
        let tag: String = digest.iter().take(TAG).map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect();
        Self { pool: pool.to_owned(), stem: format!("ns{tag}") }
    }

    /// Of the pool.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// The link of a slot's use. Slots count below [`ManagedNetwork::slots`](super::ManagedNetwork::slots), which fit.
    #[must_use]
    pub fn host_end(&self, slot: u32, use_number: u64) -> HostEnd {
        let turn = usize::try_from(use_number % DIGITS.len() as u64).unwrap_or(0);
        HostEnd(format!("{}{}-{}", self.stem, slot % MOST_SLOTS, char::from(DIGITS[turn])))
    }

    /// Whose it is, if a link is one of a slot of this pool.
    #[must_use]
    pub fn slot_of(&self, link: &str) -> Option<(HostEnd, u32)> {
        let (slot, turn) = link.strip_prefix(&self.stem)?.split_once('-')?;
        let slot = slot.parse().ok()?;
        let turn = DIGITS.iter().position(|&digit| turn.as_bytes() == [digit])? as u64;
        let name = self.host_end(slot, turn);
        (name.as_str() == link).then_some((name, slot))
    }

    /// Of all our rules.
    #[must_use]
    pub fn table(&self) -> String {
        format!("nspool_{}", self.pool)
    }

    /// On bridges and rules that are ours.
    #[must_use]
    pub fn mark(&self) -> String {
        format!("nspool pool {}", self.pool)
    }

    /// On the host's end of a slot's link: which address the slot has, for whoever finds the link and nothing else.
    #[must_use]
    pub fn alias(&self, address: IpAddr) -> String {
        format!("{} {address}", self.mark())
    }

    /// Read back.
    #[must_use]
    pub fn address_in(&self, alias: &str) -> Option<IpAddr> {
        alias.strip_prefix(&self.mark())?.trim_start().parse().ok()
    }

    /// A hardware address for one of our bridges: always the same, and no vendor's.
    pub(super) fn mac(&self, bridge: &str) -> [u8; 6] {
        let digest = Sha256::new().chain_update(&self.pool).chain_update([0]).chain_update(bridge).finalize();
        [0x02, 0x6e, digest[0], digest[1], digest[2], digest[3]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_fits_and_is_known_again() {
        let (names, other) = (Names::of("default"), Names::of("other"));
        for (slot, use_number) in [(0, 0), (42, 7), (MOST_SLOTS - 1, u64::MAX)] {
            let end = names.host_end(slot, use_number);
            assert!(end.as_str().len() <= LONGEST_LINK, "{end}");
            assert_eq!(names.slot_of(end.as_str()), Some((end.clone(), slot)));
            assert_eq!(other.slot_of(end.as_str()), None);
        }
        assert_ne!(names.host_end(1, 1), names.host_end(1, 2));
    }

    #[test]
    fn names_of_others_are_not_ours() {
        let names = Names::of("default");
        let stem = names.stem.clone();
        for link in ["", "eth0", "docker0", "vethd3adbee", &stem, &format!("{stem}1"), &format!("{stem}01-1"), &format!("{stem}1-A")] {
            assert_eq!(names.slot_of(link), None, "{link}");
        }
    }

    #[test]
    fn names_stay_the_same_over_releases() {
        assert_eq!(Names::of("test").host_end(42, 7).as_str(), "ns7gqbi42-7");
        assert_eq!(Names::of("test").table(), "nspool_test");
        assert_eq!(Names::of("test").mark(), "nspool pool test");
        let address = "10.0.0.7".parse().unwrap();
        assert_eq!(Names::of("test").alias(address), "nspool pool test 10.0.0.7");
        assert_eq!(Names::of("test").address_in("nspool pool test 10.0.0.7"), Some(address));
        assert_eq!(Names::of("test").address_in("nspool pool test2 10.0.0.7"), None);
    }
}
