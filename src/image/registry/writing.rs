//! One repository of a registry, for one identity: what is put into it.
//!
//! A blob goes as one PUT behind one POST, as the protocol has it for all registries; where it goes to is the registry's to say ([`Session`]), and
//! what it wants to know is told to nobody else. A blob's pieces are read anew for each attempt, so whoever sends them says how they are read.
//!
//! What can go wrong: all of [`RegistryError`]. An upload has no deadline as a whole; it is given up when the registry has taken nothing, or said nothing, for
//! [`UPLOAD_TIMEOUT`]. It tries nothing twice, but for a token that is no longer good.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt as _};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;
use url::Url;

use super::challenge::encoded;
use super::error::{No, RegistryError};
use super::repository::{DIGEST, Question, Repository, header};
use crate::image::store::Digest;

/// How long a registry may take nothing of an upload, or say nothing at its end: some copy the blob to another store before they do.
pub const UPLOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// A blob's bytes, from its beginning.
pub type Pieces = BoxStream<'static, io::Result<Bytes>>;

/// Where a blob may be sent to, once.
#[derive(Clone, Debug)]
pub struct Session(pub(super) Url);

/// What comes of offering a blob from another repository.
#[derive(Debug)]
pub enum Offered {
    /// It is in this one now.
    Mounted,
    /// It has to be sent.
    NotMounted(Session),
}

/// What comes of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there, and has its name.
    Taken,
    /// It names blobs that the repository does not have: these, as far as the registry says which.
    Missing(Vec<Digest>),
}

impl Repository {
    /// Whether it has a blob.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let url = self.place.url(&format!("blobs/{digest}"))?;
        match self.follow(Method::HEAD, url, None, digest.as_str()).await {
            Ok(_) => Ok(true),
            Err(RegistryError::Unknown { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes over a blob that another repository of the registry has, if the registry lets us: it looks by itself whether we may read it there.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn mount(&self, digest: &Digest, from: &str) -> Result<Offered, RegistryError> {
        let url = self.place.url(&format!("blobs/uploads/?mount={}&from={}", encoded(digest.as_str()), encoded(from)))?;
        let answer = self.ask(&post(&url)).await?;
        match answer.status() {
            StatusCode::CREATED => Ok(Offered::Mounted),
            StatusCode::ACCEPTED => Ok(Offered::NotMounted(self.session(&url, &answer)?)),
            _ => Err(self.no(&No::read(answer).await, digest.as_str())),
        }
    }

    /// A place for one blob.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn begin_upload(&self) -> Result<Session, RegistryError> {
        let url = self.place.url("blobs/uploads/")?;
        let answer = self.ask(&post(&url)).await?;
        match answer.status() {
            StatusCode::ACCEPTED => self.session(&url, &answer),
            _ => Err(self.no(&No::read(answer).await, self.path())),
        }
    }

    /// All of a blob. `open` is called for each attempt: there is a second one when the registry wants to know anew who asks. Dropping it ends it, and the registry
    /// keeps nothing that anybody sees.
    ///
    /// # Errors
    /// [`RegistryError`]; a blob that cannot be read is [`RegistryError::Unreachable`] with the system's words.
    pub async fn upload(
        &self,
        session: &Session,
        digest: &Digest,
        size: u64,
        open: &(dyn Fn() -> Pieces + Send + Sync),
    ) -> Result<(), RegistryError> {
        let mut url = session.0.clone();
        url.query_pairs_mut().append_pair("digest", digest.as_str());
        let leave = self.leave();
        let mut answer = self.send_pieces(&url, leave.as_ref(), size, open()).await?;
        if answer.status() == StatusCode::UNAUTHORIZED && self.place.is_own(&url) {
            let leave = self.renew(leave.as_ref(), answer.headers()).await?;
            answer = self.send_pieces(&url, Some(&leave), size, open()).await?;
        }
        if !answer.status().is_success() {
            return Err(self.no(&No::read(answer).await, digest.as_str()));
        }
        self.same_digest(&answer, digest)
    }

    /// Gives a manifest a name. What it names has to be there.
    ///
    /// # Errors
    /// [`RegistryError`]; a registry that says it has other bytes is [`RegistryError::Strange`].
    pub async fn put_manifest(&self, version: &str, media_type: &str, bytes: Bytes) -> Result<Put, RegistryError> {
        let url = self.place.url(&format!("manifests/{version}"))?;
        let digest = Digest::of(&bytes);
        let media_type = HeaderValue::from_str(media_type).map_err(|_| self.strange("a media type that is no header"))?;
        let question = Question { body: bytes, ..Question::new(Method::PUT, &url).with(CONTENT_TYPE, media_type) };
        let answer = self.ask(&question).await?;
        if answer.status().is_success() {
            return self.same_digest(&answer, &digest).map(|()| Put::Taken);
        }
        let no = No::read(answer).await;
        let unknown = |code: &str| matches!(code, "BLOB_UNKNOWN" | "MANIFEST_BLOB_UNKNOWN");
        if !no.errors.iter().any(|reason| unknown(&reason.code)) {
            return Err(self.no(&no, version));
        }
        Ok(Put::Missing(no.errors.iter().filter(|reason| unknown(&reason.code)).filter_map(|reason| named(&reason.detail)).collect()))
    }

    fn session(&self, from: &Url, answer: &Response<Incoming>) -> Result<Session, RegistryError> {
        let location = header(answer, &LOCATION).ok_or_else(|| self.strange("a place for a blob that has no address"))?;
        self.place.follow(from, location).map(Session)
    }

    fn same_digest(&self, answer: &Response<Incoming>, digest: &Digest) -> Result<(), RegistryError> {
        match header(answer, &HeaderName::from_static(DIGEST)).filter(|named| named.starts_with("sha256:")) {
            Some(named) if named != digest.as_str() => Err(self.strange(&format!("{named} to what has the digest {digest}"))),
            Some(_) | None => Ok(()),
        }
    }

    /// Given up when nothing is taken, and nothing said, for [`UPLOAD_TIMEOUT`].
    async fn send_pieces(
        &self,
        url: &Url,
        leave: Option<&HeaderValue>,
        size: u64,
        pieces: Pieces,
    ) -> Result<Response<Incoming>, RegistryError> {
        let taken = Arc::new(Mutex::new(Instant::now()));
        let pieces = pieces.inspect({
            let taken = Arc::clone(&taken);
            move |_| *taken.lock() = Instant::now()
        });
        let mut request = Request::new(StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync());
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = self.place.uri(url)?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(size));
        if let Some(leave) = leave.filter(|_| self.place.is_own(url)) {
            request.headers_mut().insert(AUTHORIZATION, leave.clone());
        }
        let mut sent = pin!(self.wire.send_patiently(&self.place.host, request));
        loop {
            let until = *taken.lock() + UPLOAD_TIMEOUT;
            match tokio::time::timeout_at(until, &mut sent).await {
                Ok(answer) => return answer,
                Err(_) if *taken.lock() + UPLOAD_TIMEOUT > until => {}
                Err(_) => return Err(RegistryError::silent(&self.place.host, UPLOAD_TIMEOUT)),
            }
        }
    }
}

/// Said outright: some registries do not take a POST that does not say that nothing follows.
fn post(url: &Url) -> Question<'_> {
    Question::new(Method::POST, url).with(CONTENT_LENGTH, HeaderValue::from_static("0"))
}

/// Registries name a blob by its digest alone, or by an object that has it.
fn named(detail: &Value) -> Option<Digest> {
    Digest::parse(detail.as_str().or_else(|| detail.get("digest")?.as_str())?)
}
