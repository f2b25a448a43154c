//! A proxy before a registry that counts what is asked, and makes troubles: what registries do on bad days.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A body of this length or more is a layer's.
const LAYER: usize = 100_000;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// For a manifest: 429, with the header `Retry-After` and the same in words.
    Busy {
        /// Seconds.
        retry_after: u32,
    },
    /// For a layer: half of it, then the connection ends.
    CutOff,
    /// For a layer: one bit is another.
    Corrupt,
    /// For a layer: as it should be, this much later.
    Slow(Duration),
}

#[derive(Default)]
struct State {
    requests: Vec<String>,
    next: VecDeque<Trouble>,
    always: Option<Trouble>,
}

/// Dropping it ends it.
pub struct Proxy {
    /// `127.0.0.1:PORT`, part of every reference.
    pub host: String,
    state: Arc<Mutex<State>>,
    _serving: JoinSet<()>,
}

impl Proxy {
    /// Before the registry that listens there.
    pub async fn before(registry: &str) -> Self {
        let registry: SocketAddr = registry.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let state: Arc<Mutex<State>> = Arc::default();
        let mut serving = JoinSet::new();
        let shared = Arc::clone(&state);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    // An engine that hangs up has its reasons.
                    let _hung_up = serve(connection, registry, &shared).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { host, state, _serving: serving }
    }

    /// The next request that it can happen to.
    pub fn next(&self, trouble: Trouble) {
        self.state.lock().next.push_back(trouble);
    }

    /// All that it can happen to, until it is `None`.
    pub fn always(&self, trouble: Option<Trouble>) {
        self.state.lock().always = trouble;
    }

    /// What was asked since this was called last, as `METHOD /path`.
    pub fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().requests)
    }
}

impl State {
    fn trouble(&mut self, fits: impl Fn(Trouble) -> bool) -> Option<Trouble> {
        let at = self.next.iter().position(|trouble| fits(*trouble));
        at.and_then(|at| self.next.remove(at)).or(self.always.filter(|trouble| fits(*trouble)))
    }
}

/// One request; the registry and the proxy both close the connection after it.
async fn serve(mut connection: TcpStream, registry: SocketAddr, state: &Mutex<State>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await?);
        let is_http = [&b"GET "[..], b"HEAD ", b"POST ", b"PUT ", b"PATCH "]
            .iter()
            .any(|method| method.starts_with(&head) || head.starts_with(method));
        if !is_http {
            // TLS, which an engine tries first.
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let line = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
    let is_manifest = line.contains("/manifests/");
    let busy = {
        let mut state = state.lock();
        state.requests.push(line);
        if is_manifest { state.trouble(|trouble| matches!(trouble, Trouble::Busy { .. })) } else { None }
    };
    if let Some(Trouble::Busy { retry_after }) = busy {
        let body = format!(r#"{{"errors":[{{"code":"TOOMANYREQUESTS","message":"slow down, retry-after: {retry_after}s"}}]}}"#);
        let words = format!("Retry-After: {retry_after}\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
        let answer = format!("HTTP/1.1 429 Too Many Requests\r\n{words}\r\nConnection: close\r\n\r\n{body}");
        return connection.write_all(answer.as_bytes()).await;
    }
    let mut sent = vec![0; length_of(&head)];
    connection.read_exact(&mut sent).await?;
    let mut answer = ask(registry, &head, &sent).await?;
    let body = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    if answer.len() - body < LAYER {
        return connection.write_all(&answer).await;
    }
    let trouble = state.lock().trouble(|trouble| !matches!(trouble, Trouble::Busy { .. }));
    match trouble {
        Some(Trouble::CutOff) => answer.truncate(body + (answer.len() - body) / 2),
        Some(Trouble::Corrupt) => *answer.last_mut().unwrap() ^= 1,
        Some(Trouble::Slow(late)) => tokio::time::sleep(late).await,
        Some(Trouble::Busy { .. }) | None => {}
    }
    connection.write_all(&answer).await
}

/// Of a request's body.
fn length_of(head: &str) -> usize {
    let mut lengths = head.lines().filter_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    lengths.next().unwrap_or(0)
}

/// The registry's whole answer.
async fn ask(registry: SocketAddr, head: &str, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut upstream = TcpStream::connect(registry).await?;
    let others = head.lines().filter(|line| !line.is_empty() && !line.to_lowercase().starts_with("connection:"));
    let request: String = others.chain(["Connection: close", ""]).map(|line| format!("{line}\r\n")).collect();
    upstream.write_all(request.as_bytes()).await?;
    upstream.write_all(body).await?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer).await?;
    Ok(answer)
}
