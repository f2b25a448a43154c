//! Against a scripted HTTP server on loopback.

mod reading;
mod writing;

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;

const OURS: &str = "sha256:b5d6fe0712636ceb7430189de28819e195e8966372edfc2d9409d79402a0dc16";

/// One scripted answer for each request, in order; then it hangs up.
struct Server {
    host: String,
    asked: Arc<Mutex<Vec<String>>>,
    _serving: JoinSet<()>,
}

impl Server {
    async fn that_says(answers: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let mut answers: VecDeque<String> = answers.iter().map(|answer| answer.replace("HOST", &host)).collect();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = Arc::clone(&asked);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(connection.read_u8().await.unwrap());
                }
                let head = String::from_utf8(request).unwrap();
                let length =
                    head.to_lowercase().split_once("content-length: ").map_or(0, |(_, rest)| rest.lines().next().unwrap().parse().unwrap());
                let mut body = vec![0; length];
                connection.read_exact(&mut body).await.unwrap();
                heard.lock().push(head + std::str::from_utf8(&body).unwrap());
                let Some(answer) = answers.pop_front() else { continue };
                connection.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { host, asked, _serving: serving }
    }

    async fn head(&self, credentials: Option<Credentials>) -> Result<String, RegistryError> {
        let reference = Reference::parse(&format!("{}/team/fn:7", self.host)).unwrap();
        Client::default().head(&reference, credentials.as_ref()).await
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

fn answer(status: &str, headers: &[&str], body: &str) -> String {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn found() -> String {
    answer("200 OK", &[&format!("Docker-Content-Digest: {OURS}")], "")
}

fn wants(challenge: &str) -> String {
    answer("401 Unauthorized", &[&format!("WWW-Authenticate: {challenge}")], "")
}

fn ann() -> Option<Credentials> {
    Some(Credentials { username: "ann".into(), secret: "correct-horse".into() })
}

/// `Authorization` of a request, if it has one.
fn authorization(request: &str) -> Option<&str> {
    request.lines().find_map(|line| line.strip_prefix("authorization: "))
}

#[tokio::test]
async fn one_head_answers_where_nothing_is_secret() {
    let server = Server::that_says(&[&found()]).await;
    assert_eq!(server.head(ann()).await, Ok(OURS.to_owned()));
    let asked = server.asked();
    assert!(asked.len() == 1 && asked[0].starts_with("HEAD /v2/team/fn/manifests/7 HTTP/1.1\r\n"), "{asked:?}");
    assert!(asked[0].contains("image.index.v1+json") && asked[0].contains("manifest.list.v2+json"), "{asked:?}");
    assert_eq!(authorization(&asked[0]), None, "nobody asked for it");
}

#[tokio::test]
async fn a_password_is_given_when_it_is_asked_for() {
    let server = Server::that_says(&[&wants(r#"Basic realm="x""#), &found()]).await;
    assert_eq!(server.head(ann()).await, Ok(OURS.to_owned()));
    assert_eq!(authorization(&server.asked()[1]), Some("Basic YW5uOmNvcnJlY3QtaG9yc2U="));

    let server = Server::that_says(&[&wants("Basic")]).await;
    assert!(matches!(server.head(None).await, Err(RegistryError::Denied { .. })));
    assert_eq!(server.asked().len(), 1);
}

const BEARER: &str = r#"Bearer realm="http://HOST/token",service="a registry",scope="repository:team/fn:pull""#;

#[tokio::test]
async fn a_token_is_fetched_from_whom_the_registry_names() {
    let token = answer("200 OK", &[], r#"{"access_token": "t0ken", "expires_in": 60}"#);
    let server = Server::that_says(&[&wants(BEARER), &token, &found()]).await;
    assert_eq!(server.head(ann()).await, Ok(OURS.to_owned()));
    let asked = server.asked();
    assert!(asked[1].starts_with("GET /token?service=a%20registry&scope=repository%3Ateam%2Ffn%3Apull HTTP"), "{asked:?}");
    assert_eq!(authorization(&asked[1]), Some("Basic YW5uOmNvcnJlY3QtaG9yc2U="));
    assert_eq!(authorization(&asked[2]), Some("Bearer t0ken"));

    let server = Server::that_says(&[&wants(BEARER), &token, &found()]).await;
    assert_eq!(server.head(None).await, Ok(OURS.to_owned()));
    assert_eq!(authorization(&server.asked()[1]), None, "a public image's token is for everybody");
}

#[tokio::test]
async fn an_identity_token_is_traded_in() {
    let token = answer("200 OK", &[], r#"{"token": "t0ken"}"#);
    let server = Server::that_says(&[&wants(BEARER), &token, &found()]).await;
    let identity = Credentials { username: String::new(), secret: "id/token".into() };
    assert_eq!(server.head(Some(identity)).await, Ok(OURS.to_owned()));
    let asked = server.asked();
    assert!(asked[1].starts_with("POST /token HTTP") && asked[1].contains("grant_type=refresh_token"), "{asked:?}");
    assert!(asked[1].ends_with("&refresh_token=id%2Ftoken"), "{asked:?}");
}

#[tokio::test]
async fn each_no_is_told_apart_and_has_no_secret() {
    type Is = fn(&RegistryError) -> bool;
    let kinds: [(&[&str], Is); 9] = [
        (&[&answer("404 Not Found", &[], "")], |error| matches!(error, RegistryError::Unknown { .. })),
        (&[&answer("403 Forbidden", &[], "")], |error| matches!(error, RegistryError::Denied { .. })),
        (&[&wants("Basic"), &wants("Basic")], |error| matches!(error, RegistryError::Denied { .. })),
        (&[&wants("Negotiate")], |error| matches!(error, RegistryError::Denied { .. })),
        (&[&wants(BEARER), &answer("401 Unauthorized", &[], "")], |error| matches!(error, RegistryError::Denied { .. })),
        (&[&wants(BEARER), &answer("200 OK", &[], "correct-horse")], |error| matches!(error, RegistryError::Strange { .. })),
        (&[&answer("200 OK", &[], "")], |error| matches!(error, RegistryError::Strange { .. })),
        (&[&answer("502 Bad Gateway", &[], "")], |error| matches!(error, RegistryError::Ailing { .. })),
        (&[], |error| matches!(error, RegistryError::Unreachable { .. })),
    ];
    for (answers, is_it) in kinds {
        let server = Server::that_says(answers).await;
        let error = server.head(ann()).await.unwrap_err();
        assert!(is_it(&error), "{answers:?}: {error:?}");
        let told = format!("{error} {error:?}");
        assert!(!told.contains("correct-horse") && !told.contains("Y29ycmVjdC1ob3JzZQ"), "{told}");
    }
    for (header, retry_after) in [("Retry-After: 7", Some(Duration::from_secs(7))), ("X: y", None)] {
        let server = Server::that_says(&[&answer("429 Too Many Requests", &[header], "")]).await;
        assert_eq!(server.head(None).await.map_err(|error| error.retry_after()), Err(retry_after));
    }
}

#[tokio::test]
async fn credentials_are_not_sent_in_the_open() {
    let elsewhere = wants(r#"Bearer realm="http://tokens.example/t""#);
    let server = Server::that_says(&[&elsewhere]).await;
    let error = server.head(ann()).await.unwrap_err();
    assert!(error.to_string().contains("not HTTPS"), "{error}");

    for (reference, url, plain) in [
        ("busybox", "https://registry-1.docker.io/v2/library/busybox/manifests/latest", false),
        ("docker.io/team/fn:1", "https://registry-1.docker.io/v2/team/fn/manifests/1", false),
        ("registry:5000/a/b/c:2", "https://registry:5000/v2/a/b/c/manifests/2", false),
        ("localhost:5000/a", "http://localhost:5000/v2/a/manifests/latest", true),
        ("127.0.0.2/a", "http://127.0.0.2/v2/a/manifests/latest", true),
    ] {
        let place = Place::of(&Reference::parse(reference).unwrap());
        let manifest = format!("manifests/{}", Reference::parse(reference).unwrap().version());
        assert_eq!((place.url(&manifest).unwrap().as_str(), place.plain), (url, plain), "{reference}");
    }
}

#[tokio::test]
async fn a_registry_that_is_not_there_or_says_nothing_does_not_hold_up() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let reference = Reference::parse(&format!("{closed}/a:1")).unwrap();
    let error = Client::default().head(&reference, None).await.unwrap_err();
    assert!(matches!(&error, RegistryError::Unreachable { words, .. } if words.contains("refused")), "{error}");

    // Connects, and no more than that.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reference = Reference::parse(&format!("{}/a:1", silent.local_addr().unwrap())).unwrap();
    tokio::time::pause();
    assert!(matches!(Client::default().head(&reference, None).await, Err(RegistryError::Silent { .. })));
}
