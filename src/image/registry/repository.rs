//! One repository of a registry, for one identity: what is in it, read. `writing` puts something in.
//!
//! What it promises:
//! - What the registry wants to know (a password, a token) is asked for once and kept, by one for all who ask at the same time; after a 401, once more.
//! - A manifest's bytes are those of its digest. A [`Blob`]'s bytes are not looked at: whoever writes them down knows what they should be.
//! - Redirects are followed, five at most. Nobody but the registry itself is told who asks, and nothing goes in the open but on loopback.
//! - No wait without an end: [`ANSWER_TIMEOUT`] for an answer to begin, [`IDLE_TIMEOUT`] for each piece of a body. There is none for a whole blob.
//!
//! It tries nothing twice: [`RegistryError::may_pass`] says whether that makes sense.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, LOCATION};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use parking_lot::Mutex;
use serde_json::Value;
use url::Url;

use super::error::{No, RegistryError};
use super::place::{Place, authority};
use super::token::Asker;
use super::wire::{Body, Wire, body};
use crate::engine::Credentials;
use crate::image::store::Digest;

/// How long an answer may take to begin.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the next piece of a body may take.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Longer manifests are not read: no real one comes near.
const LONGEST_MANIFEST: usize = 4 << 20;
const MOST_REDIRECTS: usize = 5;

pub(super) const DIGEST: &str = "docker-content-digest";
/// What engines pull: an index for several platforms, or one manifest.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

/// What a repository is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read.
    Pull,
    /// To write, and to read.
    Push,
}

/// A manifest, or an index of several, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedManifest {
    /// As the registry says, else as it says itself; empty if neither does.
    pub media_type: String,
    /// Of the bytes.
    pub digest: Digest,
    /// As they came.
    pub bytes: Bytes,
}

/// See the module. Made by [`Client::repository`](super::Client::repository); does nothing before the first question.
pub struct Repository {
    pub(super) wire: Arc<Wire>,
    pub(super) place: Place,
    pub(super) credentials: Option<Credentials>,
    pub(super) access: Access,
    /// What the registry wanted to know last.
    leave: Mutex<Option<HeaderValue>>,
    /// Held by whoever finds that out.
    asking: tokio::sync::Mutex<()>,
}

/// A request that can be made again.
pub(super) struct Question<'a> {
    pub(super) method: Method,
    pub(super) url: &'a Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl<'a> Question<'a> {
    pub(super) fn new(method: Method, url: &'a Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: Bytes::new() }
    }

    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

impl Repository {
    pub(super) fn new(wire: Arc<Wire>, place: Place, credentials: Option<Credentials>, access: Access) -> Self {
        Self { wire, place, credentials, access, leave: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    /// The registry, as references name it.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.place.host
    }

    /// The path behind the host, as the registry knows it.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.place.repository
    }

    /// The digest of the manifest under a tag or digest, by one HEAD.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn head(&self, version: &str) -> Result<String, RegistryError> {
        let url = self.place.url(&format!("manifests/{version}"))?;
        let answer = self.follow(Method::HEAD, url, Some(MANIFESTS), version).await?;
        let digest = header(&answer, &HeaderName::from_static(DIGEST));
        let is_whole = |digest: &&str| crate::image::reference::Reference::parse(&format!("a@{digest}")).is_ok();
        digest.filter(is_whole).map(str::to_owned).ok_or_else(|| self.strange("no digest"))
    }

    /// The manifest or index under a tag or digest, with the digest that was asked for, or that the registry says it has.
    ///
    /// # Errors
    /// [`RegistryError`]; other bytes than they should be are [`RegistryError::Strange`].
    pub async fn manifest(&self, version: &str) -> Result<FetchedManifest, RegistryError> {
        let url = self.place.url(&format!("manifests/{version}"))?;
        let answer = self.follow(Method::GET, url, Some(MANIFESTS), version).await?;
        let asked = version.contains(':').then_some(version);
        let named = header(&answer, &HeaderName::from_static(DIGEST)).filter(|named| named.starts_with("sha256:"));
        let (asked, named) = (asked.map(str::to_owned), named.map(str::to_owned));
        let said = header(&answer, &CONTENT_TYPE).and_then(|said| said.split(';').next());
        let mut media_type = said.unwrap_or_default().trim().to_owned();
        let mut piecewise = Blob::new(&self.place.host, answer);
        let mut bytes = Vec::new();
        while let Some(piece) = piecewise.next().await? {
            if bytes.len() + piece.len() > LONGEST_MANIFEST {
                return Err(self.strange("a manifest that is too long"));
            }
            bytes.extend_from_slice(&piece);
        }
        let digest = Digest::of(&bytes);
        if asked.iter().chain(&named).any(|should| should != digest.as_str()) {
            return Err(self.strange(&format!("a manifest with another digest than its own ({digest})")));
        }
        if media_type.is_empty() || media_type == "application/json" {
            let own = serde_json::from_slice::<Value>(&bytes).ok();
            media_type = own.as_ref().and_then(|own| own.get("mediaType")?.as_str()).unwrap_or_default().to_owned();
        }
        Ok(FetchedManifest { media_type, digest, bytes: bytes.into() })
    }

    /// The bytes of a blob, as they come.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn blob(&self, digest: &Digest) -> Result<Blob, RegistryError> {
        let url = self.place.url(&format!("blobs/{digest}"))?;
        let answer = self.follow(Method::GET, url, None, digest.as_str()).await?;
        Ok(Blob::new(&self.place.host, answer))
    }

    /// A question that only reads, to whoever the registry sends us to.
    pub(super) async fn follow(
        &self,
        method: Method,
        mut url: Url,
        accept: Option<&'static str>,
        subject: &str,
    ) -> Result<Response<Incoming>, RegistryError> {
        for _ in 0..=MOST_REDIRECTS {
            let mut question = Question::new(method.clone(), &url);
            if let Some(accept) = accept {
                question = question.with(ACCEPT, HeaderValue::from_static(accept));
            }
            let own = self.place.is_own(&url);
            let answer = if own { self.ask(&question).await? } else { self.ask_others(&question).await? };
            let location = header(&answer, &LOCATION).filter(|_| answer.status().is_redirection());
            if let Some(location) = location {
                url = self.place.follow(&url, location)?;
            } else if answer.status() == StatusCode::OK {
                return Ok(answer);
            } else if own {
                return Err(self.no(&No::read(answer).await, subject));
            } else {
                // Whoever that is has not been told who asks: its no is none to the credentials.
                let error = No::read(answer).await.error(&authority(&url), subject);
                return Err(match error {
                    RegistryError::Denied { host, words } => RegistryError::Strange { host, words },
                    RegistryError::Unknown { .. }
                    | RegistryError::Busy { .. }
                    | RegistryError::Unreachable { .. }
                    | RegistryError::Silent { .. }
                    | RegistryError::Ailing { .. }
                    | RegistryError::Strange { .. } => error,
                });
            }
        }
        Err(self.strange(&format!("more than {MOST_REDIRECTS} redirects")))
    }

    /// The registry itself, and again when it wants to know something before.
    pub(super) async fn ask(&self, question: &Question<'_>) -> Result<Response<Incoming>, RegistryError> {
        let leave = self.leave();
        let answer = self.send(question, leave.as_ref()).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let leave = self.renew(leave.as_ref(), answer.headers()).await?;
        self.send(question, Some(&leave)).await
    }

    async fn ask_others(&self, question: &Question<'_>) -> Result<Response<Incoming>, RegistryError> {
        let request = self.request(question, None)?;
        self.wire.send(&authority(question.url), request, ANSWER_TIMEOUT).await
    }

    async fn send(&self, question: &Question<'_>, leave: Option<&HeaderValue>) -> Result<Response<Incoming>, RegistryError> {
        self.wire.send(&self.place.host, self.request(question, leave)?, ANSWER_TIMEOUT).await
    }

    fn request(&self, question: &Question<'_>, leave: Option<&HeaderValue>) -> Result<Request<Body>, RegistryError> {
        let mut request = Request::new(body(question.body.clone()));
        *request.method_mut() = question.method.clone();
        *request.uri_mut() = self.place.uri(question.url)?;
        *request.headers_mut() = question.headers.clone();
        if let Some(leave) = leave {
            request.headers_mut().insert(AUTHORIZATION, leave.clone());
        }
        Ok(request)
    }

    /// What the registry wanted to know last.
    pub(super) fn leave(&self) -> Option<HeaderValue> {
        self.leave.lock().clone()
    }

    /// After a 401 to a request with that: what another has found out meanwhile, or a new one.
    pub(super) async fn renew(&self, refused: Option<&HeaderValue>, headers: &HeaderMap) -> Result<HeaderValue, RegistryError> {
        let _asking = self.asking.lock().await;
        if let Some(newer) = self.leave().filter(|leave| Some(leave) != refused) {
            return Ok(newer);
        }
        let (wire, credentials) = (&*self.wire, self.credentials.as_ref());
        let leave = Asker { wire, place: &self.place, credentials, access: self.access }.authorization(headers).await?;
        *self.leave.lock() = Some(leave.clone());
        Ok(leave)
    }

    /// The registry's no. What repeats the secret is not told.
    pub(super) fn no(&self, no: &No, subject: &str) -> RegistryError {
        let error = no.error(&self.place.host, subject);
        let secret = self.credentials.as_ref().map(|credentials| credentials.secret.as_str()).filter(|secret| !secret.is_empty());
        if secret.is_some_and(|secret| error.to_string().contains(secret)) {
            return No { status: no.status, retry_after: no.retry_after, errors: Vec::new() }.error(&self.place.host, subject);
        }
        error
    }

    pub(super) fn strange(&self, words: &str) -> RegistryError {
        RegistryError::strange(&self.place.host, words)
    }
}

pub(super) fn header<'a>(answer: &'a Response<Incoming>, name: &HeaderName) -> Option<&'a str> {
    answer.headers().get(name).and_then(|value| value.to_str().ok())
}

/// A blob on its way. Dropping it ends it.
pub struct Blob {
    host: String,
    size: Option<u64>,
    body: Incoming,
}

impl Blob {
    fn new(host: &str, answer: Response<Incoming>) -> Self {
        let size = header(&answer, &CONTENT_LENGTH).and_then(|length| length.parse().ok());
        Self { host: host.to_owned(), size, body: answer.into_body() }
    }

    /// Bytes, if whoever sends it says so.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// The next bytes; `None`: that was all of it. Cancel safe.
    ///
    /// # Errors
    /// [`RegistryError::Silent`] after [`IDLE_TIMEOUT`]; [`RegistryError::Unreachable`]: it was cut off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let frame = tokio::time::timeout(IDLE_TIMEOUT, self.body.frame()).await;
            let Some(frame) = frame.map_err(|_| RegistryError::silent(&self.host, IDLE_TIMEOUT))? else { return Ok(None) };
            let frame = frame.map_err(|error| RegistryError::unreachable(&self.host, &error))?;
            // Trailers are not of the blob.
            if let Ok(piece) = frame.into_data() {
                return Ok(Some(piece));
            }
        }
    }

    /// All of it, as [`Blob::next`]; ends with the first error.
    #[must_use]
    pub fn into_stream(self) -> BoxStream<'static, Result<Bytes, RegistryError>> {
        let next = |mut blob: Self| async { Ok(blob.next().await?.map(|piece| (piece, blob))) };
        stream::try_unfold(self, next).boxed()
    }
}
