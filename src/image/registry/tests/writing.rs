//! Blobs and manifests on their way in. What a whole push makes of it: `image::push`.

use futures::StreamExt as _;
use futures::stream;
use hyper::body::Bytes;

use super::*;
use crate::image::store::Digest;

const BLOB: &str = "some bytes";

impl Server {
    fn to_write(&self, credentials: Option<Credentials>) -> Repository {
        let reference = Reference::parse(&format!("{}/team/fn:7", self.host)).unwrap();
        Client::default().repository(&reference, credentials.as_ref(), Access::Push)
    }
}

fn pieces() -> Pieces {
    stream::iter([Ok(Bytes::from("some ")), Ok(Bytes::from("bytes"))]).boxed()
}

async fn upload(repository: &Repository) -> Result<(), RegistryError> {
    let session = repository.begin_upload().await?;
    repository.upload(&session, &Digest::of(BLOB.as_bytes()), BLOB.len() as u64, &pieces).await
}

fn place(location: &str) -> String {
    answer("202 Accepted", &[&format!("Location: {location}")], "")
}

fn token(token: &str) -> String {
    answer("200 OK", &[], &format!(r#"{{"token": "{token}"}}"#))
}

#[tokio::test]
async fn a_blob_goes_where_the_registry_says() {
    let taken = answer("201 Created", &[], "");
    let digest = Digest::of(BLOB.as_bytes()).to_string().replace(':', "%3A");
    for (location, path) in [
        ("/v2/team/fn/blobs/uploads/1?state=x%2By", format!("/v2/team/fn/blobs/uploads/1?state=x%2By&digest={digest}")),
        ("1", format!("/v2/team/fn/blobs/uploads/1?digest={digest}")),
        ("http://HOST/else/where", format!("/else/where?digest={digest}")),
    ] {
        let server = Server::that_says(&[&wants("Basic"), &place(location), &taken]).await;
        upload(&server.to_write(ann())).await.unwrap();
        let asked = server.asked();
        assert!(asked[1].starts_with("POST /v2/team/fn/blobs/uploads/ HTTP") && asked[1].contains("content-length: 0\r\n"), "{asked:?}");
        assert!(asked[2].starts_with(&format!("PUT {path} HTTP/1.1\r\n")), "{asked:?}");
        assert!(asked[2].contains("content-length: 10\r\n") && asked[2].ends_with(BLOB), "{asked:?}");
        assert!(authorization(&asked[2]).is_some(), "{asked:?}");
    }
    // Somebody else stores it: who asks is none of their business.
    let elsewhere = Server::that_says(&[&taken]).await;
    let server = Server::that_says(&[&wants("Basic"), &place(&format!("http://{}/put", elsewhere.host))]).await;
    upload(&server.to_write(ann())).await.unwrap();
    assert_eq!(authorization(&elsewhere.asked()[0]), None);
    for location in ["http://storage.example/put", "http://["] {
        let server = Server::that_says(&[&place(location)]).await;
        assert!(matches!(upload(&server.to_write(None)).await, Err(RegistryError::Strange { .. })), "{location}");
    }
    let server = Server::that_says(&[&answer("202 Accepted", &[], "")]).await;
    assert!(matches!(upload(&server.to_write(None)).await, Err(RegistryError::Strange { .. })), "nowhere");
}

#[tokio::test]
async fn who_writes_asks_for_that_at_once_and_anew_when_it_is_no_longer_good() {
    let to_read = r#"Bearer realm="http://HOST/token",service="s",scope="repository:team/fn:pull""#;
    let mount = r#"Bearer realm="http://HOST/token",service="s",scope="repository:team/fn:pull,push repository:a/b:pull""#;
    let taken = answer("201 Created", &[], "");
    let there = answer("200 OK", &[], "");
    let server = Server::that_says(&[
        &wants(to_read),
        &token("one"),
        &there,
        &place("x"),
        &wants(to_read),
        &token("two"),
        &taken,
        &wants(mount),
        &token("three"),
        &taken,
    ])
    .await;
    let repository = server.to_write(ann());
    let digest = Digest::of(BLOB.as_bytes());
    assert!(repository.has_blob(&digest).await.unwrap());
    upload(&repository).await.unwrap();
    assert!(matches!(repository.mount(&digest, "a/b").await.unwrap(), Offered::Mounted));
    let asked = server.asked();
    let lines: Vec<_> = asked.iter().map(|asked| asked.split(" HTTP").next().unwrap()).collect();
    let own = "GET /token?service=s&scope=repository%3Ateam%2Ffn%3Apull%2Cpush";
    assert_eq!((lines[1], lines[5]), (own, own));
    assert_eq!(lines[8], format!("{own}&scope=repository%3Aa%2Fb%3Apull"));
    // The second time from its beginning.
    assert!(asked[4].ends_with(BLOB) && asked[6].ends_with(BLOB), "{asked:?}");
    let leave: Vec<_> = [2, 3, 4, 6, 7, 9].iter().map(|at| authorization(&asked[*at]).unwrap()).collect();
    assert_eq!(leave, ["Bearer one", "Bearer one", "Bearer one", "Bearer two", "Bearer two", "Bearer three"]);
}

#[tokio::test]
async fn a_blob_that_cannot_be_read_or_is_not_taken_is_an_error() {
    let server = Server::that_says(&[&place("x")]).await;
    let repository = server.to_write(None);
    let session = repository.begin_upload().await.unwrap();
    let broken = || stream::iter([Ok(Bytes::from("some ")), Err(std::io::Error::other("the disk is on fire"))]).boxed();
    let error = repository.upload(&session, &Digest::of(BLOB.as_bytes()), 10, &broken).await.unwrap_err();
    assert!(error.may_pass() && error.to_string().contains("the disk is on fire"), "{error}");

    // It takes nothing, and does not hang up.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reference = Reference::parse(&format!("{}/team/fn:7", listener.local_addr().unwrap())).unwrap();
    let repository = Client::default().repository(&reference, None, Access::Push);
    tokio::time::pause();
    let error = repository.upload(&session_at(&repository), &Digest::of(BLOB.as_bytes()), 10, &pieces).await.unwrap_err();
    assert!(matches!(error, RegistryError::Silent { within: UPLOAD_TIMEOUT, .. }), "{error}");
}

fn session_at(repository: &Repository) -> Session {
    Session(repository.place.url("blobs/uploads/x").unwrap())
}

#[tokio::test]
async fn a_manifest_that_names_what_is_not_there_is_no_failure() {
    let one = Digest::of(b"one");
    let no = |errors: &str| answer("404 Not Found", &[], &format!(r#"{{"errors": [{errors}]}}"#));
    let put = async |answer: &str| {
        let server = Server::that_says(&[answer]).await;
        let put = server.to_write(None).put_manifest("7", "application/x", Bytes::from("{}")).await;
        let asked = server.asked();
        assert!(
            asked[0].starts_with("PUT /v2/team/fn/manifests/7 HTTP") && asked[0].contains("content-type: application/x\r\n"),
            "{asked:?}"
        );
        put
    };
    assert_eq!(put(&answer("201 Created", &[], "")).await, Ok(Put::Taken));
    let named =
        format!(r#"{{"code": "MANIFEST_BLOB_UNKNOWN", "detail": {{"digest": "{one}"}}}}, {{"code": "BLOB_UNKNOWN", "detail": "{one}"}}"#);
    assert_eq!(put(&no(&named)).await, Ok(Put::Missing(vec![one.clone(), one])));
    assert_eq!(put(&no(r#"{"code": "BLOB_UNKNOWN", "detail": null}"#)).await, Ok(Put::Missing(Vec::new())));
    assert!(matches!(put(&no(r#"{"code": "NAME_UNKNOWN"}"#)).await, Err(RegistryError::Unknown { .. })));
    let other = format!("Docker-Content-Digest: {}", Digest::of(b"other"));
    assert!(matches!(put(&answer("201 Created", &[&other], "")).await, Err(RegistryError::Strange { .. })));
}
