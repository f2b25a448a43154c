//! The host's own [`store`](super::store) as a daemon has it: where and with what bound the configuration says, and off the async threads.
//!
//! Looking for an image begins no store: where there is none, nothing is found, at the price of one question to the file system. One that somebody else
//! begins later is seen from then on, and one that was removed is gone.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::JoinError;

use super::store::{INDEX, Options, Store, StoreError};
use crate::config;

/// Clones share everything.
#[derive(Clone, Debug)]
pub struct HostStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: config::Images,
    opened: Mutex<Option<Store>>,
}

impl HostStore {
    /// Nothing is opened before it is needed.
    #[must_use]
    pub fn new(settings: &config::Images) -> Self {
        Self(Arc::new(Inner { settings: settings.clone(), opened: Mutex::default() }))
    }

    /// Those of every store of this daemon's.
    pub(super) fn options(&self) -> Options {
        Options { hold_bound: self.0.settings.lock_bound, steps: None }
    }

    fn root(&self) -> &Path {
        &self.0.settings.store
    }

    fn is_there(&self) -> bool {
        self.root().join(INDEX).exists()
    }

    /// The store, if there is one. Blocks.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn existing(&self) -> Result<Option<Store>, StoreError> {
        let is_there = self.is_there();
        let mut opened = self.0.opened.lock();
        *opened = match opened.take().filter(|_| is_there) {
            None if is_there => Some(Store::open(self.root(), self.options())?),
            known => known,
        };
        Ok(opened.clone())
    }

    /// What `look` finds in the store; `None`: there is no store.
    ///
    /// # Errors
    /// Those of [`HostStore::existing`] and `look`.
    pub(super) async fn look<T, E>(&self, look: impl FnOnce(Store) -> Result<T, StoreError> + Send + 'static) -> Result<Option<T>, E>
    where
        T: Send + 'static,
        E: From<StoreError> + From<JoinError>,
    {
        // Where there is none, that is not worth another thread's turn.
        if !self.is_there() {
            return Ok(None);
        }
        let own = self.clone();
        blocking(move || own.existing()?.map(look).transpose()).await
    }

    /// The store, begun if there is none; what dead writers left is removed.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub(super) async fn begun<E: From<StoreError> + From<JoinError>>(&self) -> Result<Store, E> {
        let own = self.clone();
        blocking(move || {
            let store = Store::open(own.root(), own.options())?;
            *own.0.opened.lock() = Some(store.clone());
            Ok(store)
        })
        .await
    }
}

/// On a thread that may block. Dropped, the work goes on to its end all the same.
pub(super) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, StoreError> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<StoreError> + From<JoinError>,
{
    Ok(tokio::task::spawn_blocking(work).await??)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn looking_begins_nothing_and_sees_what_comes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("images");
        let settings = config::Images { store: root.clone(), lock_bound: Duration::from_micros(7), ..config::Images::default() };
        let host = HostStore::new(&settings);
        assert!(host.existing().unwrap().is_none() && !root.exists());
        Store::open(&root, Options::default()).unwrap();
        let seen = host.existing().unwrap().unwrap();
        assert_eq!(seen.hold_bound(), Duration::from_micros(7));
        std::fs::remove_dir_all(&root).unwrap();
        assert!(host.existing().unwrap().is_none() && !root.exists());
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join(INDEX), "{}").unwrap();
        std::fs::write(root.join("others"), "").unwrap();
        assert!(matches!(host.existing(), Err(StoreError::NotAStore { .. })));
    }
}
