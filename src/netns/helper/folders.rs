//! Namespaces in folders as the daemon has them made, by verbs of the helper.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::de::DeserializeOwned;

use super::client::Helper;
use super::session::ANSWERED_WITHIN;
use super::verbs::Verb;
use crate::engine::NamespaceKind;
use crate::netns::folders::{Folder, MountError, Mounter, Open};

/// The daemon's [`Mounter`].
pub struct RemoteMounter(pub Arc<Helper>);

impl RemoteMounter {
    async fn ask<T: DeserializeOwned>(&self, verb: Verb, descriptors: Vec<OwnedFd>) -> Result<(T, Vec<OwnedFd>), MountError> {
        let stopped = |error: super::HelperError| MountError::Stopped(error.to_string());
        let (answer, descriptors) = self.0.ask::<Result<T, MountError>>(verb, descriptors, ANSWERED_WITHIN).await.map_err(stopped)?;
        Ok((answer?, descriptors))
    }

    async fn done(&self, verb: Verb, descriptors: Vec<OwnedFd>) -> Result<(), MountError> {
        self.ask::<()>(verb, descriptors).await.map(drop)
    }

    /// What each descriptor is, whoever gets it looks at.
    async fn opened(&self, verb: Verb) -> Result<Open, MountError> {
        let (kinds, descriptors): (Vec<NamespaceKind>, _) = self.ask(verb, Vec::new()).await?;
        if descriptors.len() == kinds.len() {
            Ok(kinds.into_iter().zip(descriptors).collect())
        } else {
            Err(MountError::Stopped("the helper process answered without descriptors".to_owned()))
        }
    }
}

impl Mounter for RemoteMounter {
    fn make<'a>(&'a self, folder: &'a Folder, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<(), MountError>> {
        self.done(Verb::MakeFolder { folder: folder.clone(), kinds: kinds.to_vec() }, Vec::new()).boxed()
    }

    fn publish<'a>(&'a self, folder: &'a Folder, namespaces: Open) -> BoxFuture<'a, Result<(), MountError>> {
        let (kinds, descriptors) = namespaces.into_iter().unzip();
        self.done(Verb::PublishFolder { folder: folder.clone(), kinds }, descriptors).boxed()
    }

    fn open<'a>(&'a self, folder: &'a Folder, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<Open, MountError>> {
        self.opened(Verb::OpenFolder { folder: folder.clone(), kinds: kinds.to_vec() }).boxed()
    }

    fn renew<'a>(&'a self, folder: &'a Folder, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<Open, MountError>> {
        self.opened(Verb::RenewFolder { folder: folder.clone(), kinds: kinds.to_vec() }).boxed()
    }

    fn clear<'a>(&'a self, folder: &'a Folder) -> BoxFuture<'a, Result<(), MountError>> {
        self.done(Verb::ClearFolder { folder: folder.clone() }, Vec::new()).boxed()
    }

    fn tidy<'a>(&'a self, pool: &'a str) -> BoxFuture<'a, Result<(), MountError>> {
        self.done(Verb::TidyFolders { pool: pool.to_owned() }, Vec::new()).boxed()
    }
}
