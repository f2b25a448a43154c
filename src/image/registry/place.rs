//! Whom to ask: a reference's registry and repository, as addresses.
//!
//! The rest of the world is not asked in the open: HTTP is for loopback, and only where the registry itself is there.

use http::Uri;
use url::{Host, Url};

use super::error::RegistryError;
use crate::image::pull::registry_host;
use crate::image::reference::Reference;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// As references name it.
    pub(super) host: String,
    /// As it is reached.
    authority: String,
    pub(super) repository: String,
    /// Without TLS.
    pub(super) plain: bool,
}

impl Place {
    pub(super) fn of(reference: &Reference) -> Self {
        let host = registry_host(reference.as_str());
        let is_hub = host == "docker.io";
        // With its host, unless that is Docker Hub's.
        let named = reference.repository();
        let path = if is_hub { named } else { named.split_once('/').map_or(named, |(_, path)| path) };
        let repository = if is_hub && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
        let authority = if is_hub { "registry-1.docker.io" } else { host };
        let plain = Url::parse(&format!("http://{authority}")).is_ok_and(|url| is_loopback(&url));
        Self { host: host.to_owned(), authority: authority.to_owned(), repository, plain }
    }

    /// Of something in the repository.
    pub(super) fn url(&self, path: &str) -> Result<Url, RegistryError> {
        let scheme = if self.plain { "http" } else { "https" };
        let url = Url::parse(&format!("{scheme}://{}/v2/{}/{path}", self.authority, self.repository));
        url.map_err(|_| RegistryError::strange(&self.host, "an address that is none"))
    }

    /// Where the registry sends us, from that address: no more in the open than it is itself.
    pub(super) fn follow(&self, from: &Url, location: &str) -> Result<Url, RegistryError> {
        let url = from.join(location).map_err(|_| RegistryError::strange(&self.host, "a location that is no address"))?;
        match url.scheme() {
            "https" => Ok(url),
            "http" if self.plain && is_loopback(&url) => Ok(url),
            _ => Err(RegistryError::strange(&self.host, "a location that is not HTTPS")),
        }
    }

    /// The registry itself, and nobody else, gets what it wants to know.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        self.url("").is_ok_and(|own| own.origin() == url.origin())
    }

    /// Who gives tokens for it.
    pub(super) fn issuer(&self, realm: &str) -> Result<Url, RegistryError> {
        let url = Url::parse(realm).map_err(|_| RegistryError::strange(&self.host, "a place for tokens that is no address"))?;
        match url.scheme() {
            "https" => Ok(url),
            "http" if self.plain && is_loopback(&url) => Ok(url),
            _ => Err(RegistryError::strange(&self.host, "a place for tokens that is not HTTPS")),
        }
    }

    /// As requests have it.
    pub(super) fn uri(&self, url: &Url) -> Result<Uri, RegistryError> {
        Uri::try_from(url.as_str()).map_err(|_| RegistryError::strange(&self.host, "an address that is none"))
    }
}

/// `host:port`, for errors.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}
