//! Manifests and blobs, and where registries send one for them.

use super::*;
use crate::image::store::Digest;

const MANIFEST: &str = r#"{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}"#;
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

impl Server {
    fn repository(&self, credentials: Option<Credentials>) -> Repository {
        let reference = Reference::parse(&format!("{}/team/fn:7", self.host)).unwrap();
        Client::default().repository(&reference, credentials.as_ref(), Access::Pull)
    }

    /// All of one blob.
    async fn blob(&self, credentials: Option<Credentials>) -> Result<String, RegistryError> {
        let mut blob = self.repository(credentials).blob(&Digest::of(b"blob")).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = blob.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(String::from_utf8(bytes).unwrap())
    }
}

fn sends_to(location: &str) -> String {
    answer("307 Temporary Redirect", &[&format!("Location: {location}")], "")
}

#[tokio::test]
async fn a_manifest_is_the_one_of_its_digest() {
    let digest = Digest::of(MANIFEST.as_bytes());
    let named = format!("Docker-Content-Digest: {digest}");
    for (headers, media_type) in [
        (
            &["Content-Type: application/vnd.docker.distribution.manifest.v2+json; charset=utf-8", &named][..],
            "application/vnd.docker.distribution.manifest.v2+json",
        ),
        (&[], OCI),
    ] {
        let server = Server::that_says(&[&answer("200 OK", headers, MANIFEST), &answer("200 OK", headers, MANIFEST)]).await;
        let repository = server.repository(None);
        let wanted = FetchedManifest { media_type: media_type.into(), digest: digest.clone(), bytes: MANIFEST.into() };
        assert_eq!(repository.manifest("7").await.unwrap(), wanted);
        assert_eq!(repository.manifest(digest.as_str()).await.unwrap(), wanted);
        let asked = server.asked();
        assert!(asked[0].starts_with("GET /v2/team/fn/manifests/7 HTTP/1.1\r\n") && asked[0].contains("image.index.v1+json"), "{asked:?}");
        assert!(asked[1].starts_with(&format!("GET /v2/team/fn/manifests/{digest} HTTP/1.1\r\n")), "{asked:?}");
    }

    // Not what was asked for, not what the registry says, longer than any.
    let other = Digest::of(b"another");
    let server = Server::that_says(&[&answer("200 OK", &[], MANIFEST)]).await;
    assert!(matches!(server.repository(None).manifest(other.as_str()).await, Err(RegistryError::Strange { .. })));
    let server = Server::that_says(&[&answer("200 OK", &[&format!("Docker-Content-Digest: {other}")], MANIFEST)]).await;
    assert!(matches!(server.repository(None).manifest("7").await, Err(RegistryError::Strange { .. })));
    let server = Server::that_says(&[&answer("200 OK", &[], &" ".repeat((4 << 20) + 1))]).await;
    let error = server.repository(None).manifest("7").await.unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_again_when_it_is_no_longer_good() {
    let (one, two) = (answer("200 OK", &[], r#"{"token": "one"}"#), answer("200 OK", &[], r#"{"token": "two"}"#));
    let bytes = answer("200 OK", &[], MANIFEST);
    let server = Server::that_says(&[&wants(BEARER), &one, &bytes, &bytes, &wants(BEARER), &two, &bytes]).await;
    let repository = server.repository(ann());
    for _ in 0..3 {
        repository.manifest("7").await.unwrap();
    }
    let asked = server.asked();
    let leave: Vec<_> = asked.iter().filter(|asked| asked.contains("/v2/")).map(|asked| authorization(asked)).collect();
    assert_eq!(leave, [None, Some("Bearer one"), Some("Bearer one"), Some("Bearer one"), Some("Bearer two")]);

    // A new token that is not good either is a no.
    let server = Server::that_says(&[&wants(BEARER), &one, &wants(BEARER)]).await;
    assert!(matches!(server.repository(ann()).manifest("7").await, Err(RegistryError::Denied { .. })));
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn many_who_ask_at_once_get_one_token() {
    let token = answer("200 OK", &[], r#"{"token": "one"}"#);
    let (no, bytes) = (wants(BEARER), answer("200 OK", &[], MANIFEST));
    // One connection after the other: all three are told no, before anybody has asked for a token.
    let server = Server::that_says(&[&no, &no, &no, &token, &bytes, &bytes, &bytes]).await;
    let repository = server.repository(ann());
    let all = futures::future::join_all((0..3).map(|_| repository.manifest("7"))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(server.asked().iter().filter(|asked| asked.starts_with("GET /token")).count(), 1);
}

#[tokio::test]
async fn redirects_are_followed_and_nobody_else_is_told_who_asks() {
    let elsewhere = Server::that_says(&[&answer("200 OK", &[], "some bytes")]).await;
    let there = format!("http://{}/cdn/blob?signature=abc", elsewhere.host);
    let digest = Digest::of(b"blob");
    let path = format!("/v2/team/fn/blobs/{digest}");
    let server = Server::that_says(&[&wants("Basic"), &sends_to("/elsewhere/x"), &sends_to("y?z=1"), &sends_to(&there)]).await;
    assert_eq!(server.blob(ann()).await.unwrap(), "some bytes");
    let (asked, asked_there) = (server.asked(), elsewhere.asked());
    let lines: Vec<_> = asked.iter().map(|asked| asked.lines().next().unwrap().to_owned()).collect();
    let wanted = [path.as_str(), &path, "/elsewhere/x", "/elsewhere/y?z=1"].map(|path| format!("GET {path} HTTP/1.1"));
    assert_eq!(lines, wanted);
    assert!(asked[1..].iter().all(|asked| authorization(asked).is_some()), "it is the same registry: {asked:?}");
    assert!(asked_there[0].starts_with("GET /cdn/blob?signature=abc HTTP/1.1\r\n"), "{asked_there:?}");
    assert_eq!(authorization(&asked_there[0]), None);
}

#[tokio::test]
async fn not_every_redirect_is_followed() {
    let server = Server::that_says(&[sends_to("/again").as_str(); 7]).await;
    let error = server.blob(None).await.unwrap_err();
    assert!(error.to_string().contains("more than 5 redirects"), "{error}");
    assert_eq!(server.asked().len(), 6);

    for location in ["http://storage.example/blob", "ftp://127.0.0.1/blob", "http://["] {
        let server = Server::that_says(&[&sends_to(location)]).await;
        assert!(matches!(server.blob(None).await, Err(RegistryError::Strange { .. })), "{location}");
    }
    // A no from elsewhere is none to the credentials: they were not shown there.
    let elsewhere = Server::that_says(&[&answer("403 Forbidden", &[], "")]).await;
    let server = Server::that_says(&[&sends_to(&format!("http://{}/", elsewhere.host))]).await;
    let error = server.blob(ann()).await.unwrap_err();
    assert!(matches!(&error, RegistryError::Strange { host, .. } if *host == elsewhere.host), "{error}");
}

#[tokio::test]
async fn a_blob_comes_whole_or_not_at_all() {
    let server = Server::that_says(&[&answer("200 OK", &[], "some bytes")]).await;
    let blob = server.repository(None).blob(&Digest::of(b"blob")).await.unwrap();
    assert_eq!(blob.size(), Some(10));
    let pieces: Vec<_> = futures::StreamExt::collect(blob.into_stream()).await;
    let bytes: Vec<u8> = pieces.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(bytes, b"some bytes");

    let server = Server::that_says(&["HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nsome bytes"]).await;
    assert!(matches!(server.blob(None).await, Err(RegistryError::Unreachable { .. })), "cut off");

    let why = r#"{"errors": [{"code": "BLOB_UNKNOWN", "message": "blob unknown to registry"}]}"#;
    let server = Server::that_says(&[&answer("404 Not Found", &[], why)]).await;
    let error = server.blob(None).await.unwrap_err();
    assert!(matches!(&error, RegistryError::Unknown { words, .. } if words.contains("BLOB_UNKNOWN")), "{error}");
}

#[tokio::test]
async fn a_blob_that_stops_on_its_way_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        assert_ne!(connection.read(&mut [0; 4096]).await.unwrap(), 0);
        connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nsome").await.unwrap();
        // And no more; it does not hang up, either.
        std::future::pending::<()>().await;
    });
    let reference = Reference::parse(&format!("{host}/team/fn:7")).unwrap();
    let mut blob = Client::default().repository(&reference, None, Access::Pull).blob(&Digest::of(b"blob")).await.unwrap();
    assert_eq!(blob.next().await.unwrap().as_deref(), Some(&b"some"[..]));
    tokio::time::pause();
    assert!(matches!(blob.next().await, Err(RegistryError::Silent { within: IDLE_TIMEOUT, .. })));
}

#[tokio::test]
async fn what_may_pass_is_told_apart_and_what_repeats_the_secret_is_not_told() {
    for (status, may_pass) in [
        ("500 Internal Server Error", true),
        ("503 Service Unavailable", true),
        ("429 Too Many Requests", true),
        ("408 Request Timeout", true),
        ("400 Bad Request", false),
        ("403 Forbidden", false),
        ("404 Not Found", false),
    ] {
        let why = r#"{"errors": [{"code": "UNKNOWN", "message": "no use for correct-horse\r\n", "detail": {}}]}"#;
        let server = Server::that_says(&[&answer(status, &[], why), &answer(status, &[], why)]).await;
        let error = server.repository(None).manifest("7").await.unwrap_err();
        assert_eq!(error.may_pass(), may_pass, "{error}");
        let busy = matches!(error, RegistryError::Busy { .. });
        assert!(busy || error.to_string().contains("UNKNOWN no use for correct-horse"), "{error}");
        let error = server.repository(ann()).manifest("7").await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("correct-horse"), "{error}");
    }
    let busy = answer("503 Service Unavailable", &["Retry-After: 3"], "");
    let server = Server::that_says(&[&busy]).await;
    assert_eq!(server.repository(None).manifest("7").await.unwrap_err().retry_after(), Some(Duration::from_secs(3)));
}
