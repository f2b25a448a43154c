//! A private registry on loopback: Debian's `docker-registry`, with or without a password (`htpasswd` of apache2-utils).

use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};

use super::engines::{TestEngine, insisted};
use super::wait_for;

/// An account of the registry.
pub const USER: &str = "holder";
/// Its password.
pub const PASSWORD: &str = "correct-horse-7";

/// Dropping it ends it, and removes what it has.
pub struct TestRegistry {
    /// `127.0.0.1:PORT`, part of every reference.
    pub host: String,
    dir: tempfile::TempDir,
    child: Option<Child>,
    _port: OwnedFd,
}

/// A port of loopback that nobody listens on, and that nobody is given who asks for any: as long as the socket is there, only who asks for this one has it.
pub fn reserved_port() -> (OwnedFd, String) {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let host = SocketAddrV4::try_from(getsockname(&socket).unwrap()).unwrap().to_string();
    (socket, host)
}

impl TestRegistry {
    /// Panics with its log when it does not come up.
    pub fn start(with_password: bool) -> Self {
        let mut registry = Self::prepare(with_password);
        registry.launch();
        registry
    }

    /// Only chooses the port: nobody listens there until [`TestRegistry::launch`].
    pub fn prepare(with_password: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (port, host) = reserved_port();
        let root = dir.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\nhttp: {{addr: '{host}'}}\n"
        );
        if with_password {
            let output =
                Command::new("htpasswd").args(["-Bbn", USER, PASSWORD]).output().expect("htpasswd, of apache2-utils, is installed");
            assert!(output.status.success(), "{output:?}");
            std::fs::write(dir.path().join("htpasswd"), output.stdout).unwrap();
            config += &format!("auth: {{htpasswd: {{realm: nspool-tests, path: {root}/htpasswd}}}}\n");
        }
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        Self { host, dir, child: None, _port: port }
    }

    /// The same behind TLS, on all addresses. An engine takes any certificate on loopback.
    pub fn start_with_tls(certificate: &Path, key: &Path) -> Self {
        let mut registry = Self::prepare(false);
        let config = registry.dir.path().join("config.yml");
        let (port, tls) = (registry.port(), format!("tls: {{certificate: {}, key: {}}}", certificate.display(), key.display()));
        let behind = std::fs::read_to_string(&config).unwrap();
        let behind = behind.replace(&format!("http: {{addr: '{}'}}", registry.host), &format!("http: {{addr: ':{port}', {tls}}}"));
        std::fs::write(config, behind).unwrap();
        registry.launch();
        registry
    }

    /// Where it listens.
    pub fn port(&self) -> &str {
        self.host.rsplit_once(':').unwrap().1
    }

    /// Starts it and waits until it listens.
    pub fn launch(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", &self.dir.path().join("config.yml").display().to_string()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("docker-registry is installed");
        let child = self.child.insert(child);
        wait_for("the registry to listen", Duration::from_secs(30), || {
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap();
            assert_eq!(child.try_wait().unwrap(), None, "the registry ended: {}", log());
            TcpStream::connect(&self.host).ok()
        });
    }

    /// Forgets all it has, by a start with an empty folder.
    pub fn wipe(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
        self.launch();
    }

    /// Pushes an image of the engine under `repository:tag`, and takes the name away from the engine again; gives the full reference.
    pub fn push(&self, engine: &TestEngine, image: &str, name: &str) -> String {
        let reference = format!("{}/{name}", self.host);
        let config = self.docker_config();
        engine.run(&["tag", image, &reference]);
        let config = config.parent().unwrap().display().to_string();
        let mut push = Command::new("docker");
        push.args(["--config", &config, "-H", &engine.endpoint(), "push", &reference]);
        let pushed = insisted(|| push.output().unwrap());
        assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
        engine.run(&["rmi", &reference]);
        reference
    }

    /// A Docker config file with the account in it.
    pub fn docker_config(&self) -> PathBuf {
        let auths = serde_json::json!({"auths": {&self.host: {"username": USER, "password": PASSWORD, "auth": basic(USER, PASSWORD)}}});
        let dir = self.dir.path().join("docker");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.json"), auths.to_string()).unwrap();
        dir.join("config.json")
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// base64 of `user:password`, as the `auth` of a Docker config file.
fn basic(user: &str, password: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in format!("{user}:{password}").as_bytes().chunks(3) {
        let bits = (0..3).fold(0_u32, |bits, at| bits << 8 | u32::from(chunk.get(at).copied().unwrap_or(0)));
        for digit in 0..4 {
            let at = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= chunk.len() { char::from(DIGITS[at as usize]) } else { '=' });
        }
    }
    text
}
