//! Docker, and podman through its Docker-compatible API, over a local Unix socket.
//!
//! This folder is the only place that knows bollard, and the only one that knows how podman differs: its list and its wait are others
//! ([`podman`]), its id is a new one at each call (so the storage folder stands for it), it conflicts with a 500, it asks for more
//! descriptors than it may get, and it reads a seccomp profile from a file ([`security`]). What can go wrong is in [`errors`]: the engine's words become an [`ErrorClass`].
//!
//! It deliberately has no deadline, no retry and no pace: [`crate::engine::paced`] has. It does nothing before the first call, so it can be
//! made while the engine is away. Requests name no API version, so each engine answers in its newest; what is read is read
//! leniently. Each call has a connection of its own ([`transport`]).

mod convert;
mod errors;
mod functions;
mod images;
mod networks;
mod podman;
mod powers;
mod retry_after;
mod security;
mod sizes;
mod transport;

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use bollard::errors::Error;
use bollard::query_parameters::{
    CreateContainerOptions, EventsOptions, RemoveContainerOptions, RenameContainerOptions, WaitContainerOptions,
};
use futures::future::{Either, select};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

pub use functions::FunctionSpec;

use super::{
    BuddySpec, BuildSpec, Chunks, Container, ContainerId, ContainerSummary, Credentials, Engine, EngineError, EngineEvent, EngineFuture,
    EngineInfo, EngineKind, ErrorClass, Image, ImageArchive, ImageId, ImageRemoval, Network, NetworkSpec, PullStep, SizedImage,
    WaitOutcome,
};

/// A client of one engine. Cheap to make, does no I/O until the first call.
pub struct Docker {
    endpoint: String,
    socket: PathBuf,
    client: bollard::Docker,
    reader: transport::Reader,
    wanted: Option<EngineKind>,
    /// Found at the first call, renewed by each [`Engine::info`].
    kind: Mutex<Option<EngineKind>>,
    /// Network modes by container, for podman's list; a mode never changes after the create.
    modes: Mutex<HashMap<ContainerId, String>>,
    /// What images are made of, by id.
    layers: Mutex<sizes::Known>,
}

/// What an engine says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Which program it is.
    pub kind: EngineKind,
    /// e.g. `20.10.24`.
    pub version: String,
    /// As the engine says it; may be empty, and podman says another one each time.
    pub id: String,
    /// The folder of its images and containers on its host; may be empty.
    pub storage: String,
}

impl std::fmt::Debug for Docker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Docker({})", self.endpoint)
    }
}

impl Docker {
    /// A client for `unix:///path`. With `wanted`, calls fail with [`ErrorClass::Refused`] while another kind of engine answers there.
    ///
    /// # Errors
    /// [`ErrorClass::Refused`] for an endpoint that is not an absolute path of a Unix socket.
    pub fn connect(endpoint: &str, wanted: Option<EngineKind>) -> Result<Self, EngineError> {
        let refused = |message| errors::refused("connect", ErrorClass::Refused, endpoint, message);
        let path = endpoint.strip_prefix("unix://").ok_or_else(|| refused("only local Unix sockets (unix:///path) are supported"))?;
        if !path.starts_with('/') {
            return Err(refused("the socket's path must be absolute"));
        }
        let socket = PathBuf::from(path);
        let client = transport::client(socket.clone(), None).map_err(|error| errors::convert("connect", endpoint, &error))?;
        let reader = transport::Reader::new(socket.clone());
        let endpoint = endpoint.to_owned();
        Ok(Self {
            endpoint,
            socket,
            client,
            reader,
            wanted,
            kind: Mutex::new(None),
            modes: Mutex::new(HashMap::new()),
            layers: Mutex::default(),
        })
    }

    /// `unix:///…`
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Which program answers; asked once, and again by each `info`.
    async fn kind(&self, operation: &'static str, subject: &str) -> Result<EngineKind, EngineError> {
        let known = *self.kind.lock();
        match known {
            Some(kind) => Ok(kind),
            None => self.version(operation, subject).await.map(|(kind, _)| kind),
        }
    }

    /// Kind and version of who answers, which is remembered and must be the wanted one.
    async fn version(&self, operation: &'static str, subject: &str) -> Result<(EngineKind, String), EngineError> {
        let failed = |error: &Error| errors::convert(operation, subject, error);
        // podman takes half a second for its /version: it asks the package manager about each of its parts.
        let server = self.reader.server().await.map_err(|error| failed(&error))?;
        let (kind, version) = match server.as_deref().and_then(convert::of_server) {
            Some(known) => known,
            None => {
                let version: convert::Version = self.reader.get("/version").await.map_err(|error| failed(&error))?;
                (version.kind(), version.version.unwrap_or_default())
            }
        };
        if let Some(wanted) = self.wanted.filter(|&wanted| wanted != kind) {
            let message = format!("{kind} answers at {}, but {wanted} is configured", self.endpoint);
            return Err(errors::refused(operation, ErrorClass::Refused, subject, &message));
        }
        *self.kind.lock() = Some(kind);
        Ok((kind, version))
    }

    /// What the engine says of itself, as it says it.
    ///
    /// # Errors
    /// As [`Engine::info`].
    pub async fn about(&self) -> Result<About, EngineError> {
        let (kind, version) = self.version("info", &self.endpoint).await?;
        let info: convert::Info = self.reader.get("/info").await.map_err(|error| errors::convert("info", &self.endpoint, &error))?;
        Ok(About { kind, version, id: info.id.unwrap_or_default(), storage: info.docker_root_dir.unwrap_or_default() })
    }

    async fn info_of_engine(&self) -> Result<EngineInfo, EngineError> {
        let About { kind, version, id, storage } = self.about().await?;
        let id = if kind == EngineKind::Docker && !id.is_empty() { id } else { id_of_storage(kind, &storage) };
        Ok(EngineInfo { kind, id, version, endpoint: self.endpoint.clone() })
    }

    async fn wait_for_end(&self, id: &ContainerId) -> Result<WaitOutcome, EngineError> {
        path_safe("wait", id.as_str())?;
        match self.kind("wait", id.as_str()).await {
            Ok(EngineKind::Podman) => return podman::wait(self, id).await,
            Err(error) if error.class == ErrorClass::Unknown => return Ok(WaitOutcome::Unknown),
            kind => kind.map(drop)?,
        }
        let options = WaitContainerOptions { condition: "not-running".to_owned() };
        let answer = Box::pin(self.client.wait_container(id.as_str(), Some(options))).next().await;
        match answer {
            None => Ok(WaitOutcome::Unknown),
            Some(Ok(answer)) => Ok(WaitOutcome::Exited(answer.status_code)),
            // bollard takes every exit code above 0 for an error.
            Some(Err(Error::DockerContainerWaitError { code, .. })) => Ok(WaitOutcome::Exited(code)),
            Some(Err(error)) => {
                let error = errors::convert("wait", id.as_str(), &error);
                if error.class == ErrorClass::Unknown { Ok(WaitOutcome::Unknown) } else { Err(error) }
            }
        }
    }

    async fn list_all(&self) -> Result<Vec<ContainerSummary>, EngineError> {
        let kind = self.kind("list", "containers").await?;
        let rows: Vec<convert::Row> =
            self.reader.get("/containers/json?all=1").await.map_err(|error| errors::convert("list", "containers", &error))?;
        let mut rows: Vec<ContainerSummary> = rows.into_iter().map(convert::summary).collect();
        if kind == EngineKind::Podman {
            rows = podman::with_modes(self, rows).await?;
        }
        convert::resolve_joined_names(&mut rows);
        Ok(rows)
    }

    async fn inspect_one(&self, id_or_name: &str) -> Result<Container, EngineError> {
        path_safe("inspect", id_or_name)?;
        let answer = self.reader.get(&format!("/containers/{id_or_name}/json")).await;
        answer.map(convert::container).map_err(|error| errors::convert("inspect", id_or_name, &error))
    }

    /// To one container's events, or to those of all containers and images.
    async fn subscribe(&self, of: Option<&ContainerId>) -> Result<BoxStream<'static, Result<EngineEvent, EngineError>>, EngineError> {
        let failed = |error: &Error| errors::convert("events", "", error);
        // Engines send the head of their answer just before they subscribe; `since` closes that gap from their backlog.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let filters = match of {
            None => HashMap::from([("type".to_owned(), vec!["container".to_owned(), "image".to_owned()])]),
            Some(id) => HashMap::from([("container".to_owned(), vec![id.to_string()])]),
        };
        let options =
            EventsOptions { since: Some(format!("{}.{:09}", since.as_secs(), since.subsec_nanos())), until: None, filters: Some(filters) };
        let (tell, accepted) = oneshot::channel();
        let client = transport::client(self.socket.clone(), Some(tell)).map_err(|error| failed(&error))?;
        let mut messages = client.events(Some(options)).boxed();
        let first = match select(accepted, messages.next()).await {
            Either::Left(_) => None,
            Either::Right((Some(Err(error)), _)) => return Err(failed(&error)),
            Either::Right((Some(Ok(message)), _)) => Some(Ok(message)),
            Either::Right((None, _)) => {
                return Err(errors::refused("events", ErrorClass::Unknown, "", "the engine closed the connection"));
            }
        };
        let events = stream::iter(first).chain(messages).filter_map(|message| {
            futures::future::ready(match message {
                Ok(message) => convert::event(message).map(Ok),
                Err(error) => Some(Err(errors::convert("events", "", &error))),
            })
        });
        Ok(events.boxed())
    }
}

impl Engine for Docker {
    fn info(&self) -> EngineFuture<'_, EngineInfo> {
        self.info_of_engine().boxed()
    }

    fn ping(&self) -> EngineFuture<'_, ()> {
        async { self.client.ping().await.map(drop).map_err(|error| errors::convert("ping", &self.endpoint, &error)) }.boxed()
    }

    fn image<'a>(&'a self, reference: &'a str) -> EngineFuture<'a, Option<Image>> {
        self.look_at_image(reference).boxed()
    }

    fn load_image(&self, archive: ImageArchive) -> EngineFuture<'_, ()> {
        self.load(archive).boxed()
    }

    fn save_image<'a>(&'a self, reference: &'a str) -> EngineFuture<'a, Chunks> {
        self.save(reference).boxed()
    }

    fn pull_image<'a>(
        &'a self,
        reference: &'a str,
        credentials: Option<&'a Credentials>,
        told: &'a (dyn Fn(PullStep) + Send + Sync),
    ) -> EngineFuture<'a, ()> {
        self.pull(reference, credentials, told).boxed()
    }

    fn images<'a>(&'a self, label: &'a str) -> EngineFuture<'a, Vec<Image>> {
        self.images_with(label).boxed()
    }

    fn image_sizes(&self) -> EngineFuture<'_, Vec<SizedImage>> {
        sizes::list(self).boxed()
    }

    fn remove_image<'a>(&'a self, name: &'a str) -> EngineFuture<'a, ImageRemoval> {
        sizes::remove(self, name).boxed()
    }

    fn build_image<'a>(&'a self, spec: &'a BuildSpec, context: File, told: &'a (dyn Fn(&str) + Send + Sync)) -> EngineFuture<'a, ()> {
        self.build(spec, context, told).boxed()
    }

    fn tag_image<'a>(&'a self, id: &'a ImageId, repository: &'a str, tag: &'a str) -> EngineFuture<'a, ()> {
        self.tag(id, repository, tag).boxed()
    }

    fn create<'a>(&'a self, spec: &'a BuddySpec) -> EngineFuture<'a, ContainerId> {
        async move {
            let kind = self.kind("create", &spec.name).await?;
            let options = CreateContainerOptions { name: Some(spec.name.clone()), ..Default::default() };
            let security = security::options(kind, spec)?;
            let created = self.client.create_container(Some(options), convert::create_body(kind, spec, security)).await;
            created.map(|answer| answer.id.into()).map_err(|error| errors::convert("create", &spec.name, &error))
        }
        .boxed()
    }

    fn start<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, ()> {
        async move {
            path_safe("start", id.as_str())?;
            // Already running is a 304, which bollard takes for success.
            self.client.start_container(id.as_str(), None).await.map_err(|error| errors::convert("start", id.as_str(), &error))
        }
        .boxed()
    }

    fn inspect<'a>(&'a self, id_or_name: &'a str) -> EngineFuture<'a, Container> {
        self.inspect_one(id_or_name).boxed()
    }

    fn rename<'a>(&'a self, id: &'a ContainerId, name: &'a str) -> EngineFuture<'a, ()> {
        async move {
            path_safe("rename", id.as_str())?;
            let options = RenameContainerOptions { name: name.to_owned() };
            self.client.rename_container(id.as_str(), options).await.map_err(|error| errors::convert("rename", id.as_str(), &error))
        }
        .boxed()
    }

    fn remove<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, ()> {
        async move {
            path_safe("remove", id.as_str())?;
            let options = RemoveContainerOptions { force: true, v: true, link: false };
            let removed = self.client.remove_container(id.as_str(), Some(options)).await;
            match removed.map_err(|error| errors::convert("remove", id.as_str(), &error)) {
                Err(error) if error.class == ErrorClass::NotFound => Ok(()),
                done => done,
            }
        }
        .boxed()
    }

    fn wait<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, WaitOutcome> {
        self.wait_for_end(id).boxed()
    }

    fn list(&self) -> EngineFuture<'_, Vec<ContainerSummary>> {
        self.list_all().boxed()
    }

    fn networks(&self) -> EngineFuture<'_, Vec<Network>> {
        networks::list(self).boxed()
    }

    fn create_network<'a>(&'a self, spec: &'a NetworkSpec) -> EngineFuture<'a, ()> {
        networks::create(self, spec).boxed()
    }

    fn network_users<'a>(&'a self, network: &'a Network) -> EngineFuture<'a, Vec<String>> {
        networks::users(self, network).boxed()
    }

    fn remove_network<'a>(&'a self, network: &'a Network) -> EngineFuture<'a, ()> {
        networks::remove(self, &network.id).boxed()
    }

    fn events(&self) -> EngineFuture<'_, BoxStream<'static, Result<EngineEvent, EngineError>>> {
        self.subscribe(None).boxed()
    }
}

/// A container's name goes into the request's path; what cannot be one is not there.
fn path_safe(operation: &'static str, name: &str) -> Result<(), EngineError> {
    if convert::is_path_safe(name) && !name.contains('/') {
        return Ok(());
    }
    Err(errors::refused(operation, ErrorClass::NotFound, name, "no container can have this name"))
}

/// podman makes a new id for each answer; its storage folder is what stays.
fn id_of_storage(kind: EngineKind, root: &str) -> String {
    let digest = Sha256::digest(root.as_bytes());
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{kind}-{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_unix_sockets_are_endpoints() {
        assert_eq!(Docker::connect("unix:///run/x.sock", None).unwrap().endpoint(), "unix:///run/x.sock");
        for endpoint in ["tcp://127.0.0.1:2375", "unix://x.sock", "/run/x.sock", ""] {
            assert_eq!(Docker::connect(endpoint, None).unwrap_err().class, ErrorClass::Refused, "{endpoint}");
        }
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there_is_away_with_its_path_said() {
        let docker = Docker::connect("unix:///nonexistent/docker.sock", None).unwrap();
        let error = docker.ping().await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Away);
        assert!(error.to_string().contains("unix:///nonexistent/docker.sock") && error.to_string().contains("No such file"), "{error}");
        assert_eq!(docker.list().await.unwrap_err().class, ErrorClass::Away);
        assert_eq!(docker.events().await.map(|_| ()).unwrap_err().class, ErrorClass::Away);
        assert_eq!(docker.wait(&"a".into()).await.unwrap_err().class, ErrorClass::Away);
    }

    #[tokio::test]
    async fn an_engine_that_hangs_up_leaves_the_outcome_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let hang_up = async {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                // Reads the request's first bytes, then closes without an answer.
                let _read = tokio::io::AsyncReadExt::read(&mut connection, &mut [0; 64]).await;
            }
        };
        let docker = Docker::connect(&format!("unix://{}", socket.display()), None).unwrap();
        let calls = async {
            assert_eq!(docker.start(&"a".into()).await.unwrap_err().class, ErrorClass::Unknown);
            assert_eq!(docker.list().await.unwrap_err().class, ErrorClass::Unknown);
            assert_eq!(docker.wait(&"a".into()).await.unwrap(), WaitOutcome::Unknown);
            assert_eq!(docker.events().await.map(|_| ()).unwrap_err().class, ErrorClass::Unknown);
        };
        tokio::select! { () = calls => {}, () = hang_up => {} }
    }

    #[tokio::test]
    async fn a_name_that_would_be_another_request_is_not_found() {
        let docker = Docker::connect("unix:///nonexistent/docker.sock", None).unwrap();
        assert_eq!(docker.inspect("../images/json?x").await.unwrap_err().class, ErrorClass::NotFound);
        assert_eq!(docker.start(&"a/b".into()).await.unwrap_err().class, ErrorClass::NotFound);
    }
}
