//! Registries, by the OCI distribution protocol: what a reference stands for now, and what is in a repository, read and written.
//!
//! [`Registry`] is what the gate and the cache ask; [`Client`] asks real ones: HTTPS by the host's certificates, HTTP
//! on loopback only; a registry that wants a token or a password says so first, and gets what it asks for and no more. It is not an engine's: podman has
//! no question that is not a pull, and Docker's is one that registries count as a pull. [`Client::repository`] is for all that one question does not do.
//!
//! What can go wrong is in [`RegistryError`]. The words are the registry's own, cut short; credentials are in none of them, and neither are they sent where
//! others could read them: only over TLS or loopback, and to nobody whom the registry redirects to.
//!
//! It deliberately knows no engine and nothing of mirrors and proxies that are configured there, keeps nothing from one [`Repository`] to the next but
//! connections, and tries nothing twice.
//!
//! Reading order: `place` (whom to ask) → `repository` (what is asked, and what is read) → `writing` → `token`, `challenge` (what it wants to know before) →
//! `wire` (how it gets there) → `error`.

mod challenge;
mod error;
mod place;
mod repository;
#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;
mod token;
mod wire;
mod writing;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

pub use self::error::RegistryError;
use self::place::Place;
pub use self::repository::{ANSWER_TIMEOUT, Access, Blob, FetchedManifest, IDLE_TIMEOUT, Repository};
use self::wire::Wire;
pub use self::writing::{Offered, Pieces, Put, Session, UPLOAD_TIMEOUT};
use super::reference::Reference;
use crate::engine::Credentials;

/// How long [`Registry::head`] may take, with all that a registry wants to know before.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers what a reference stands for now.
pub trait Registry: Send + Sync + 'static {
    /// The digest of the reference's manifest. Has a deadline of its own; dropping it ends it.
    fn head<'a>(&'a self, reference: &'a Reference, credentials: Option<&'a Credentials>) -> BoxFuture<'a, Result<String, RegistryError>>;
}

/// See the module. Does nothing before the first question. Clones share their connections.
#[derive(Clone, Default)]
pub struct Client(Arc<Wire>);

impl Client {
    /// The reference's repository, as these credentials see it; `None`: as everybody does. It keeps what the registry wanted to know, and belongs to one
    /// piece of work.
    #[must_use]
    pub fn repository(&self, reference: &Reference, credentials: Option<&Credentials>, access: Access) -> Repository {
        Repository::new(Arc::clone(&self.0), Place::of(reference), credentials.cloned(), access)
    }
}

impl Registry for Client {
    fn head<'a>(&'a self, reference: &'a Reference, credentials: Option<&'a Credentials>) -> BoxFuture<'a, Result<String, RegistryError>> {
        Box::pin(async move {
            let repository = self.repository(reference, credentials, Access::Pull);
            let asked = tokio::time::timeout(ASK_TIMEOUT, repository.head(reference.version())).await;
            asked.unwrap_or_else(|_| Err(RegistryError::silent(repository.host(), ASK_TIMEOUT)))
        })
    }
}
