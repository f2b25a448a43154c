//! CNI plugins as the daemon has them run, by verbs of the helper: they have its powers, and are its children.
//!
//! A few chains of one network run at once, and the others wait here: a network whose plugins hang holds up no other one, nor the helper.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::client::Helper;
use super::session::ANSWERED_WITHIN;
use super::verbs::Verb;
use crate::netns::cni::{Attached, Attacher, Cni, CniError, RECORD, network_of};
use crate::netns::folders::Folder;

/// Chains of one network at once; each is one to three processes at a time.
const AT_ONCE: usize = 8;

/// The daemon's [`Attacher`].
pub struct RemoteCni {
    helper: Arc<Helper>,
    root: PathBuf,
    within: Duration,
    turns: Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

impl RemoteCni {
    /// For folders below `root`. The helper has begun with the same.
    #[must_use]
    pub fn new(helper: Arc<Helper>, cni: &Cni, root: PathBuf) -> Self {
        Self { helper, root, within: cni.bound() + ANSWERED_WITHIN, turns: Mutex::default() }
    }

    async fn turn(&self, network: &str) -> Result<OwnedSemaphorePermit, CniError> {
        // As many as the pool has had networks.
        let turns = Arc::clone(self.turns.lock().entry(network.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))));
        turns.acquire_owned().await.map_err(|error| CniError::Stopped(error.to_string()))
    }

    /// Of the network that is on record.
    async fn recorded_turn(&self, folder: &Folder) -> Result<OwnedSemaphorePermit, CniError> {
        let network = network_of(&folder.path(&self.root).join(RECORD));
        self.turn(network.as_deref().unwrap_or_default()).await
    }

    async fn ask<T: DeserializeOwned>(&self, verb: Verb, namespace: Option<OwnedFd>) -> Result<T, CniError> {
        let asked = self.helper.ask::<Result<T, CniError>>(verb, namespace.into_iter().collect(), self.within).await;
        asked.map_err(|error| CniError::Stopped(error.to_string()))?.0
    }
}

impl Attacher for RemoteCni {
    fn attach<'a>(&'a self, folder: &'a Folder, network: &'a str, namespace: OwnedFd) -> BoxFuture<'a, Result<Attached, CniError>> {
        async move {
            let _turn = self.turn(network).await?;
            self.ask(Verb::Attach { folder: folder.clone(), network: network.to_owned() }, Some(namespace)).await
        }
        .boxed()
    }

    fn look<'a>(&'a self, folder: &'a Folder, namespace: OwnedFd, ask: bool) -> BoxFuture<'a, Result<Option<Attached>, CniError>> {
        async move {
            let _turn = self.recorded_turn(folder).await?;
            self.ask(Verb::Attached { folder: folder.clone(), ask }, Some(namespace)).await
        }
        .boxed()
    }

    fn detach<'a>(&'a self, folder: &'a Folder, namespace: Option<OwnedFd>) -> BoxFuture<'a, Result<(), CniError>> {
        async move {
            let _turn = self.recorded_turn(folder).await?;
            self.ask(Verb::Detach { folder: folder.clone() }, namespace).await
        }
        .boxed()
    }
}
