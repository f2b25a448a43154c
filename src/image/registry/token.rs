//! What a registry wants to know before it answers, and from whom that comes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Bytes;

use super::challenge::{Bearer, Challenge, encoded};
use super::error::{MOST_BODY, No, RegistryError};
use super::place::{Place, authority};
use super::wire::{Wire, body};
use super::{ASK_TIMEOUT, Access};
use crate::engine::Credentials;

/// Who asks for what.
pub(super) struct Asker<'a> {
    pub(super) wire: &'a Wire,
    pub(super) place: &'a Place,
    pub(super) credentials: Option<&'a Credentials>,
    pub(super) access: Access,
}

/// A token service's answer.
#[derive(serde::Deserialize)]
struct Given {
    token: Option<String>,
    access_token: Option<String>,
}

impl Asker<'_> {
    /// What to come back with after a 401.
    pub(super) async fn authorization(&self, headers: &HeaderMap) -> Result<HeaderValue, RegistryError> {
        let asked = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let secret = match (asked.filter_map(Challenge::parse).next(), self.credentials) {
            (Some(Challenge::Bearer(bearer)), _) => format!("Bearer {}", self.token(&bearer).await?),
            (Some(Challenge::Basic), Some(credentials)) if !credentials.username.is_empty() => basic(credentials),
            (Some(Challenge::Basic), _) => {
                return Err(RegistryError::denied(&self.place.host, "it wants a user name and a password"));
            }
            (None, _) => return Err(RegistryError::denied(&self.place.host, "and not what it wants to know")),
        };
        let mut value = HeaderValue::try_from(secret).map_err(|_| RegistryError::strange(&self.place.host, "a token that is no header"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// From whom the registry names, for what it names.
    async fn token(&self, bearer: &Bearer) -> Result<String, RegistryError> {
        let url = self.place.issuer(&bearer.realm)?;
        let issuer = authority(&url);
        let service = encoded(bearer.service.as_deref().unwrap_or_default());
        let scopes = self.scopes(bearer.scope.as_deref());
        let request = Request::builder();
        let request = match self.credentials {
            // An identity token is traded in by the other form of the question.
            Some(Credentials { username, secret }) if username.is_empty() => {
                let (scope, secret) = (encoded(&scopes.join(" ")), encoded(secret));
                let form = format!("grant_type=refresh_token&client_id=nspool&service={service}&scope={scope}&refresh_token={secret}");
                let request = request.method(Method::POST).uri(self.place.uri(&url)?);
                request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body(form.into()))
            }
            credentials => {
                let joint = if bearer.realm.contains('?') { '&' } else { '?' };
                let scopes: String = scopes.iter().map(|scope| format!("&scope={}", encoded(scope))).collect();
                let mut request = request.uri(format!("{}{joint}service={service}{scopes}", bearer.realm));
                if let Some(credentials) = credentials {
                    request = request.header(AUTHORIZATION, basic(credentials));
                }
                request.body(body(Bytes::new()))
            }
        };
        let request = request.map_err(|_| RegistryError::strange(&self.place.host, "a place for tokens that is no address"))?;
        let answer = self.wire.send(&issuer, request, ASK_TIMEOUT).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(RegistryError::denied(&self.place.host, "it gives these credentials no token"));
            }
            // Its words are not told: it has heard the secret.
            _ => return Err(No { errors: Vec::new(), ..No::read(answer).await }.error(&issuer, "a token")),
        }
        let read = tokio::time::timeout(ASK_TIMEOUT, Limited::new(answer.into_body(), MOST_BODY).collect()).await;
        let read = read.map_err(|_| RegistryError::silent(&issuer, ASK_TIMEOUT))?;
        let bytes = read.map_err(|error| RegistryError::unreachable(&issuer, &*error))?.to_bytes();
        let given: Given = serde_json::from_slice(&bytes).map_err(|_| RegistryError::strange(&issuer, "something that is no token"))?;
        given.token.or(given.access_token).ok_or_else(|| RegistryError::strange(&issuer, "no token"))
    }

    /// What the registry names is for one request. Who writes will ask more of it, and takes that along at once.
    fn scopes(&self, named: Option<&str>) -> Vec<String> {
        let own = |actions: &str| format!("repository:{}:{actions}", self.place.repository);
        let others = || named.unwrap_or_default().split_whitespace().map(str::to_owned);
        match self.access {
            Access::Pull if others().next().is_some() => others().collect(),
            Access::Pull => vec![own("pull")],
            Access::Push => std::iter::once(own("pull,push")).chain(others().filter(|other| !other.starts_with(&own("")))).collect(),
        }
    }
}

fn basic(credentials: &Credentials) -> String {
    format!("Basic {}", BASE64.encode(format!("{}:{}", credentials.username, credentials.secret)))
}
