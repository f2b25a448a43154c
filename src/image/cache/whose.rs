//! By whose credentials a registry is asked, without holding them.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::engine::Credentials;
use crate::random;

/// Part of a fetch's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Whose {
    /// The daemon's own, as configured, or none: what they are good for is everybody's who may call.
    Daemons,
    /// A caller's, who brought them with the call.
    Callers(Identity),
}

/// The same for the same credentials, in one process, and of no use to anybody else. `Debug` shows nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity([u8; 32]);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(…)")
    }
}

/// Makes identities: SHA-256 over a random key of this process, then each part with its length before it.
pub(in crate::image) struct Identities([u8; 32]);

impl Identities {
    pub(in crate::image) fn new() -> Self {
        let mut key = [0; 32];
        random::fill(&mut key);
        Self(key)
    }

    pub(in crate::image) fn of(&self, credentials: &Credentials) -> Identity {
        let mut hash = Sha256::new_with_prefix(self.0);
        for part in [&credentials.username, &credentials.secret] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Identity(hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_that_of_the_whole_credentials_in_this_process_only() {
        let of = |identities: &Identities, username: &str, secret: &str| {
            identities.of(&Credentials { username: username.into(), secret: secret.into() })
        };
        let (one, other) = (Identities::new(), Identities::new());
        assert_eq!(of(&one, "ann", "word"), of(&one, "ann", "word"));
        for (username, secret) in [("ann", "words"), ("annw", "ord"), ("an", "nword"), ("", "annword")] {
            assert_ne!(of(&one, "ann", "word"), of(&one, username, secret), "{username} {secret}");
        }
        assert_ne!(of(&one, "ann", "word"), of(&other, "ann", "word"));
        assert_eq!(format!("{:?}", Whose::Callers(of(&one, "ann", "word"))), "Callers(Identity(…))");
    }
}
