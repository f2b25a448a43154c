//! A registry that takes pushes, in this process and in memory: it counts what it is asked, and answers as a test wants.
//!
//! Used by unit tests, too: it names nothing of nspool.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// This status, these headers and this body.
    Says(u16, Vec<(&'static str, String)>, String),
    /// Nothing, ever.
    Silent,
    /// What it asks for, once this is told.
    After(Arc<Notify>),
    /// What is asked for is done, and this answered.
    DoneAndSays(u16, Vec<(&'static str, String)>, String),
}

#[derive(Default)]
pub struct State {
    /// `METHOD /path?query`
    pub requests: Vec<String>,
    /// `repository digest`
    pub blobs: BTreeSet<String>,
    /// `repository tag`: the type, and the bytes.
    pub manifests: BTreeMap<String, (String, Vec<u8>)>,
    /// To the next request that contains the words.
    pub next: VecDeque<(String, Trouble)>,
    /// What `Authorization` has to be.
    pub password: Option<String>,
    /// It takes over nothing from other repositories.
    pub no_mounts: bool,
    sessions: u32,
}

/// Dropping it ends it.
pub struct SmallRegistry {
    /// `127.0.0.1:PORT`, part of every reference.
    pub host: String,
    pub state: Arc<Mutex<State>>,
    /// Each request that has to wait for its answer.
    pub held: Arc<Notify>,
    _serving: JoinSet<()>,
}

impl SmallRegistry {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (state, held): (Arc<Mutex<State>>, Arc<Notify>) = Default::default();
        let shared = (Arc::clone(&state), Arc::clone(&held));
        let app = Router::new().fallback(move |request: Request| {
            let (state, held) = shared.clone();
            async move { answer(&state, &held, request).await }
        });
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { host, state, held, _serving: serving }
    }

    /// What was asked since this was called last.
    pub fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().requests)
    }

    /// How often something with these words was asked since [`SmallRegistry::taken`].
    pub fn count(&self, words: &str) -> usize {
        self.state.lock().requests.iter().filter(|request| request.contains(words)).count()
    }

    /// The next request with these words.
    pub fn next(&self, words: &str, trouble: Trouble) {
        self.state.lock().next.push_back((words.to_owned(), trouble));
    }

    pub fn wipe(&self) {
        let mut state = self.state.lock();
        (state.blobs, state.manifests) = Default::default();
    }
}

impl State {
    fn trouble(&mut self, line: &str) -> Option<Trouble> {
        let at = self.next.iter().position(|(words, _)| line.contains(words));
        at.and_then(|at| self.next.remove(at)).map(|(_, trouble)| trouble)
    }
}

fn says(status: u16, headers: &[(&str, String)], body: impl Into<Body>) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, value);
    }
    response.body(body.into()).unwrap()
}

fn error(status: u16, code: &str, detail: &str) -> Response {
    says(status, &[], format!(r#"{{"errors": [{{"code": "{code}", "message": "no", "detail": "{detail}"}}]}}"#))
}

async fn answer(state: &Mutex<State>, held: &Notify, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("", |it| it.as_str()).to_owned();
    let line = format!("{} {target}", parts.method);
    let trouble = {
        let mut state = state.lock();
        state.requests.push(line.clone());
        state.trouble(&line)
    };
    match trouble.clone() {
        Some(Trouble::Says(status, headers, body)) => return says(status, &headers, body),
        Some(Trouble::Silent) => {
            held.notify_one();
            return std::future::pending().await;
        }
        Some(Trouble::After(until)) => {
            held.notify_one();
            until.notified().await;
        }
        Some(Trouble::DoneAndSays(..)) | None => {}
    }
    let bytes = to_bytes(body, usize::MAX).await;
    let Ok(bytes) = bytes else { return says(StatusCode::BAD_REQUEST.as_u16(), &[], "") };
    let done = act(&mut state.lock(), parts.method.as_str(), &target, &parts.headers, &bytes);
    match trouble {
        Some(Trouble::DoneAndSays(status, headers, body)) => says(status, &headers, body),
        Some(Trouble::Says(..) | Trouble::Silent | Trouble::After(_)) | None => done,
    }
}

fn act(state: &mut State, method: &str, target: &str, headers: &HeaderMap, bytes: &[u8]) -> Response {
    let authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    if state.password.is_some() && state.password != authorization {
        return says(401, &[("www-authenticate", "Basic realm=x".into())], "");
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query: BTreeMap<String, String> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.replace("%3A", ":").replace("%2F", "/")))
        .collect();
    let path = path.trim_start_matches("/v2/");
    let (repository, rest) = path.split_once("/blobs/").or_else(|| path.split_once("/manifests/")).unwrap_or((path, ""));
    let blob = |digest: &str| format!("{repository} {digest}");
    match method {
        "HEAD" if state.blobs.contains(&blob(rest)) => says(200, &[], ""),
        "HEAD" => says(404, &[], ""),
        "POST" => {
            if let (Some(digest), Some(from)) = (query.get("mount"), query.get("from"))
                && !state.no_mounts
                && state.blobs.contains(&format!("{from} {digest}"))
            {
                state.blobs.insert(blob(digest));
                return says(201, &[], "");
            }
            state.sessions += 1;
            says(202, &[("location", format!("/v2/{repository}/blobs/uploads/{}?state=x", state.sessions))], "")
        }
        "PUT" if path.contains("/blobs/uploads/") => {
            let digest = sha256(bytes);
            if query.get("digest") != Some(&digest) {
                return error(400, "DIGEST_INVALID", "");
            }
            state.blobs.insert(blob(&digest));
            says(201, &[("docker-content-digest", digest)], "")
        }
        "PUT" => {
            let manifest: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            let layers = manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]);
            let named: Vec<_> = layers.map(|part| part["digest"].as_str().unwrap().to_owned()).collect();
            if let Some(missing) = named.into_iter().find(|digest| !state.blobs.contains(&blob(digest))) {
                return error(404, "MANIFEST_BLOB_UNKNOWN", &missing);
            }
            let media_type = headers["content-type"].to_str().unwrap().to_owned();
            state.manifests.insert(format!("{repository} {rest}"), (media_type, bytes.to_vec()));
            says(201, &[("docker-content-digest", sha256(bytes))], "")
        }
        _ => says(405, &[], ""),
    }
}

fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
