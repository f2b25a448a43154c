//! What a registry has under a reference now: one HEAD, and before it what the registry wants to know.
//!
//! [`Registry`] is what the gate and the cache ask; [`Client`] asks real ones, by the OCI distribution protocol: HTTPS by the host's certificates, HTTP
//! on loopback only; a registry that wants a token or a password says so first, and gets what it asks for and no more. It is not an engine's: podman has
//! no question that is not a pull, and Docker's is one that registries count as a pull.
//!
//! What can go wrong is in [`RegistryError`]. The words are the registry's own, cut short; credentials are in none of them, and neither are they sent where
//! others could read them: only over TLS or loopback.
//!
//! It deliberately knows no engine and nothing of mirrors and proxies that are configured there, keeps nothing from one question to the next but
//! connections, and tries nothing twice.

mod challenge;
#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::future::BoxFuture;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::OnceCell;

use self::challenge::{Bearer, Challenge, encoded};
use super::pull::registry_host;
use super::reference::Reference;
use crate::causes::with_causes;
use crate::engine::Credentials;

/// How long one question may take, with all that a registry wants to know before.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// What of an answer's body is read: a token and an error are shorter.
const MOST_BODY: usize = 64 << 10;
/// What of a registry's words is told.
const MOST_WORDS: usize = 200;

const DIGEST: &str = "docker-content-digest";
/// What engines pull: an index for several platforms, or one manifest.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

/// Answers what a reference stands for now.
pub trait Registry: Send + Sync + 'static {
    /// The digest of the reference's manifest. Has a deadline of its own; dropping it ends it.
    fn head<'a>(&'a self, reference: &'a Reference, credentials: Option<&'a Credentials>) -> BoxFuture<'a, Result<String, RegistryError>>;
}

/// Why a registry gave no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// It wants other credentials, or any.
    #[error("{host} says no: {words}")]
    Denied {
        /// The registry.
        host: String,
        /// Its own.
        words: String,
    },
    /// It has no such image.
    #[error("{host} has no such image: {words}")]
    Unknown {
        /// The registry.
        host: String,
        /// Its own.
        words: String,
    },
    /// Too many requests.
    #[error("{host} has had too many requests")]
    Busy {
        /// The registry.
        host: String,
        /// When to ask again, if it says so.
        retry_after: Option<Duration>,
    },
    /// No connection, or it ended early.
    #[error("{host} cannot be reached: {words}")]
    Unreachable {
        /// The registry, or who gives its tokens.
        host: String,
        /// The system's.
        words: String,
    },
    /// Nothing within [`ASK_TIMEOUT`].
    #[error("{host} did not answer within {ASK_TIMEOUT:?}")]
    Silent {
        /// The registry.
        host: String,
    },
    /// Something else than the protocol says.
    #[error("{host} answered with {words}")]
    Strange {
        /// The registry, or who gives its tokens.
        host: String,
        /// What it was.
        words: String,
    },
}

impl RegistryError {
    /// When the registry wants to be asked again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            Self::Denied { .. } | Self::Unknown { .. } | Self::Unreachable { .. } | Self::Silent { .. } | Self::Strange { .. } => None,
        }
    }
}

type Http = legacy::Client<HttpConnector, Full<Bytes>>;
type Https = legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// See the module. Does nothing before the first question.
pub struct Client {
    http: Http,
    /// With the host's certificates, read when they are needed first.
    https: OnceCell<Https>,
}

impl Default for Client {
    fn default() -> Self {
        Self { http: legacy::Client::builder(TokioExecutor::new()).build_http(), https: OnceCell::new() }
    }
}

impl Registry for Client {
    fn head<'a>(&'a self, reference: &'a Reference, credentials: Option<&'a Credentials>) -> BoxFuture<'a, Result<String, RegistryError>> {
        Box::pin(async move {
            let asked = tokio::time::timeout(ASK_TIMEOUT, self.digest(reference, credentials)).await;
            asked.unwrap_or_else(|_| Err(RegistryError::Silent { host: registry_host(reference.as_str()).to_owned() }))
        })
    }
}

impl Client {
    async fn digest(&self, reference: &Reference, credentials: Option<&Credentials>) -> Result<String, RegistryError> {
        let place = Place::of(reference);
        let answer = self.send(&place, place.manifest(None)?).await?;
        let answer = if answer.status() == StatusCode::UNAUTHORIZED {
            let leave = self.authorization(&place, answer.headers(), credentials).await?;
            self.send(&place, place.manifest(Some(leave))?).await?
        } else {
            answer
        };
        place.digest_in(answer)
    }

    /// What to come back with after a 401.
    async fn authorization(
        &self,
        place: &Place,
        headers: &HeaderMap,
        credentials: Option<&Credentials>,
    ) -> Result<HeaderValue, RegistryError> {
        let asked = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let secret = match (asked.filter_map(Challenge::parse).next(), credentials) {
            (Some(Challenge::Bearer(bearer)), credentials) => format!("Bearer {}", self.token(place, &bearer, credentials).await?),
            (Some(Challenge::Basic), Some(credentials)) if !credentials.username.is_empty() => basic(credentials),
            (Some(Challenge::Basic), _) => return Err(place.denied("it wants a user name and a password")),
            (None, _) => return Err(place.denied("and not what it wants to know")),
        };
        let mut value = HeaderValue::try_from(secret).map_err(|_| place.strange("a token that is no header"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// From whom the registry names, for this repository alone.
    async fn token(&self, place: &Place, bearer: &Bearer, credentials: Option<&Credentials>) -> Result<String, RegistryError> {
        let issuer = Place::issuer(place, &bearer.realm)?;
        let scope = bearer.scope.clone().unwrap_or_else(|| format!("repository:{}:pull", place.repository));
        let service = bearer.service.as_deref().unwrap_or_default();
        let asked = format!("service={}&scope={}", encoded(service), encoded(&scope));
        let request = match credentials {
            // An identity token is traded in by the other form of the question.
            Some(Credentials { username, secret }) if username.is_empty() => {
                let form = format!("grant_type=refresh_token&client_id=nspool&{asked}&refresh_token={}", encoded(secret));
                let request = Request::builder().method(Method::POST).uri(&bearer.realm);
                request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(Full::from(form))
            }
            credentials => {
                let joint = if bearer.realm.contains('?') { '&' } else { '?' };
                let mut request = Request::builder().uri(format!("{}{joint}{asked}", bearer.realm));
                if let Some(credentials) = credentials {
                    request = request.header(AUTHORIZATION, basic(credentials));
                }
                request.body(Full::default())
            }
        };
        let request = request.map_err(|_| place.strange("a place for tokens that is no address"))?;
        let answer = self.send(&issuer, request).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(place.denied("it gives these credentials no token")),
            _ => return Err(issuer.no_digest(&answer)),
        }
        let body = Limited::new(answer.into_body(), MOST_BODY).collect().await;
        let body = body.map_err(|error| issuer.unreachable(&*error))?.to_bytes();
        let given: Given = serde_json::from_slice(&body).map_err(|_| issuer.strange("something that is no token"))?;
        given.token.or(given.access_token).ok_or_else(|| issuer.strange("no token"))
    }

    async fn send(&self, to: &Place, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, RegistryError> {
        let agent = HeaderValue::from_static(concat!("nspool/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, agent);
        let sent = if to.plain { self.http.request(request).await } else { self.https(to).await?.request(request).await };
        sent.map_err(|error| to.unreachable(&error))
    }

    async fn https(&self, to: &Place) -> Result<&Https, RegistryError> {
        let make = async {
            let read = tokio::task::spawn_blocking(|| HttpsConnectorBuilder::new().with_native_roots()).await;
            let roots = read.map_err(|error| to.unreachable(&error))?.map_err(|error| to.unreachable(&error))?;
            Ok(legacy::Client::builder(TokioExecutor::new()).build(roots.https_only().enable_http1().build()))
        };
        self.https.get_or_try_init(|| make).await
    }
}

/// A token service's answer.
#[derive(serde::Deserialize)]
struct Given {
    token: Option<String>,
    access_token: Option<String>,
}

fn basic(credentials: &Credentials) -> String {
    format!("Basic {}", BASE64.encode(format!("{}:{}", credentials.username, credentials.secret)))
}

/// Whom to ask, and for what.
struct Place {
    /// As references name it.
    host: String,
    /// As it is reached.
    authority: String,
    repository: String,
    /// A tag or a digest.
    version: String,
    /// Without TLS.
    plain: bool,
}

impl Place {
    fn of(reference: &Reference) -> Self {
        let host = registry_host(reference.as_str());
        let is_hub = host == "docker.io";
        // With its host, unless that is Docker Hub's.
        let named = reference.repository();
        let path = if is_hub { named } else { named.split_once('/').map_or(named, |(_, path)| path) };
        let repository = if is_hub && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
        let authority = if is_hub { "registry-1.docker.io" } else { host };
        Self {
            host: host.to_owned(),
            authority: authority.to_owned(),
            repository,
            version: reference.version().to_owned(),
            plain: is_loopback(authority),
        }
    }

    /// Who gives tokens for the registry: no more in the open than that is.
    fn issuer(registry: &Self, realm: &str) -> Result<Self, RegistryError> {
        let uri: Uri = realm.parse().map_err(|_| registry.strange("a place for tokens that is no address"))?;
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let plain = match uri.scheme_str() {
            Some("https") => false,
            Some("http") if registry.plain && is_loopback(&authority) => true,
            Some(_) | None => return Err(registry.strange("a place for tokens that is not HTTPS")),
        };
        Ok(Self { host: authority.clone(), authority, repository: String::new(), version: String::new(), plain })
    }

    fn manifest(&self, leave: Option<HeaderValue>) -> Result<Request<Full<Bytes>>, RegistryError> {
        let scheme = if self.plain { "http" } else { "https" };
        let uri = format!("{scheme}://{}/v2/{}/manifests/{}", self.authority, self.repository, self.version);
        let mut request = Request::builder().method(Method::HEAD).uri(uri).header(ACCEPT, MANIFESTS);
        if let Some(leave) = leave {
            request = request.header(AUTHORIZATION, leave);
        }
        request.body(Full::default()).map_err(|_| self.strange("an address that is none"))
    }

    fn digest_in(&self, answer: Response<Incoming>) -> Result<String, RegistryError> {
        if answer.status() != StatusCode::OK {
            return Err(self.no_digest(&answer));
        }
        let digest = answer.headers().get(DIGEST).and_then(|value| value.to_str().ok());
        let is_whole = |digest: &&str| Reference::parse(&format!("a@{digest}")).is_ok();
        digest.filter(is_whole).map(str::to_owned).ok_or_else(|| self.strange("no digest"))
    }

    /// The answer to a HEAD has no words of its own.
    fn no_digest(&self, answer: &Response<Incoming>) -> RegistryError {
        let status = answer.status();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.denied(status.as_str()),
            StatusCode::NOT_FOUND => RegistryError::Unknown { host: self.host.clone(), words: self.version.clone() },
            StatusCode::TOO_MANY_REQUESTS => {
                let after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
                RegistryError::Busy { host: self.host.clone(), retry_after: after.map(Duration::from_secs) }
            }
            _ => self.strange(&format!("status {}", status.as_u16())),
        }
    }

    fn denied(&self, words: &str) -> RegistryError {
        RegistryError::Denied { host: self.host.clone(), words: words.to_owned() }
    }

    fn strange(&self, words: &str) -> RegistryError {
        RegistryError::Strange { host: self.host.clone(), words: words.to_owned() }
    }

    fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> RegistryError {
        let words: String = with_causes(error).chars().filter(|c| !c.is_control()).take(MOST_WORDS).collect();
        RegistryError::Unreachable { host: self.host.clone(), words }
    }
}

/// Of `host:port`. The rest of the world is not asked in the open.
fn is_loopback(authority: &str) -> bool {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
