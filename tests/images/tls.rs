//! A registry behind TLS: asked by the host's certificates, and by nothing less.

use std::path::Path;
use std::process::Command;

use nspool::config;
use nspool::engine::Engine as _;
use nspool::engine::docker::Docker;
use nspool::image::download;
use nspool::image::host_store::HostStore;
use nspool::image::pull::CredentialSource;
use nspool::image::reference::Reference;
use nspool::image::registry::{Client, Registry as _, RegistryError};

use crate::support::engines::{docker, unique};
use crate::support::image::random_archive;
use crate::support::registry::TestRegistry;

/// What the child is told.
const REFERENCE: &str = "NSPOOL_TEST_REFERENCE";

fn run(dir: &Path, program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `ca.pem`, and by it `server.pem` with `server.key` for this address.
fn certificates(dir: &Path, address: &str) {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let ca = ["req", "-x509", "-subj", "/CN=nspool-tests", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem"];
    run(dir, "openssl", &[&ca[..], &key].concat());
    let (subject, name) = (format!("/CN={address}"), format!("subjectAltName=IP:{address}"));
    let server = ["req", "-x509", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2", "-keyout", "server.key", "-out", "server.pem"];
    let names = ["-subj", &subject, "-addext", &name, "-addext", "basicConstraints=critical,CA:FALSE"];
    run(dir, "openssl", &[&server[..], &names, &key].concat());
}

/// The certificates are read once in a process, so each question has its own.
fn child(reference: &str, certificates: &Path, name: &str) {
    let binary = std::env::current_exe().unwrap();
    let output = Command::new(binary)
        .args(["--exact", &format!("tls::{name}"), "--ignored", "--nocapture"])
        .env(REFERENCE, reference)
        .env("SSL_CERT_FILE", certificates)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{name}: {said}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_behind_tls_is_asked_by_the_hosts_certificates_alone() {
    let engine = docker();
    // No loopback address, and nobody else's: the tests have a network of their own.
    let address = format!("192.0.2.{}", 1 + unique() % 250);
    run(Path::new("/"), "ip", &["address", "replace", &format!("{address}/32"), "dev", "lo"]);
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path(), &address);
    let registry = TestRegistry::start_with_tls(&dir.path().join("server.pem"), &dir.path().join("server.key"));
    let local = format!("localhost/nspool-test-tls-{:x}:1", unique());
    let client = Docker::connect(&engine.endpoint(), Some(engine.kind)).unwrap();
    client.load_image(random_archive(&local, 1 << 20).into()).await.unwrap();
    registry.push(engine, &local, "team/fn:1");
    engine.run(&["rmi", &local]);
    let reference = format!("{address}:{}/team/fn:1", registry.port());
    child(&reference, &dir.path().join("ca.pem"), "what_is_behind_tls_comes");
    // Debian's own bundle, where nobody vouches for it.
    child(&reference, Path::new("/etc/ssl/certs/ca-certificates.crt"), "whom_nobody_vouches_for_is_not_asked");
    run(Path::new("/"), "ip", &["address", "delete", &format!("{address}/32"), "dev", "lo"]);
}

fn reference() -> Reference {
    Reference::parse(&std::env::var(REFERENCE).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a child of the test above"]
async fn what_is_behind_tls_comes() {
    let (client, reference, dir) = (Client::default(), reference(), tempfile::tempdir().unwrap());
    let digest = client.head(&reference, None).await.unwrap();
    let source = CredentialSource::new(Vec::new(), None);
    let host = HostStore::new(&config::Images { store: dir.path().join("images"), ..config::Images::default() });
    let store = download::by_source(&client, &host, &reference, &source, &|_| {}).await.unwrap();
    let image = store.image(reference.as_str()).unwrap().unwrap();
    assert_eq!(image.origin.unwrap().as_str(), digest);
    assert_eq!(store.verify().unwrap().faults.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a child of the test above"]
async fn whom_nobody_vouches_for_is_not_asked() {
    let refused = Client::default().head(&reference(), None).await.unwrap_err();
    let RegistryError::Unreachable { words, .. } = &refused else { panic!("{refused}") };
    assert!(words.contains("certificate"), "{words}");
}
