//! Images built by a real builder: once for all who ask, found again by what went in, and nothing left of what fails.

use std::collections::BTreeMap;
use std::path::Path;

use nspool::image::build::{Builds, Built, Context, Definition, Event, REPOSITORY};
use tempfile::TempDir;

use super::support::image::busybox_archive;
use super::*;

on_both_engines!(
    ten_builds_of_the_same_are_one_and_found_again,
    what_is_left_out_does_not_get_in,
    a_build_that_fails_says_why_and_leaves_nothing,
    a_build_that_is_cut_off_leaves_nothing,
    an_image_that_was_built_upon_is_not_taken_for_another,
);

/// A builder on the engine, with an image to begin from that nobody else has, and a folder.
struct Yard<'e> {
    host: &'e TestEngine,
    engine: Arc<dyn Engine>,
    builds: Builds,
    base: String,
    dir: TempDir,
}

impl<'e> Yard<'e> {
    async fn new(host: &'e TestEngine, settings: config::Images) -> Self {
        let base = format!("localhost/nspool-test-base-{:x}:1", unique());
        let docker = Docker::connect(&host.endpoint(), Some(host.kind)).unwrap();
        docker.load_image(busybox_archive(&base).into()).await.unwrap();
        let engine = paced(docker);
        let cache = Cache::new(Arc::clone(&engine), CredentialSource::new(Vec::new(), None), settings.clone(), config::Backoff::default());
        let builds = Builds::new(Arc::clone(&engine), cache, settings);
        Self { host, engine, builds, base, dir: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn dockerfile(&self, rest: &str) {
        self.write("Dockerfile", &format!("FROM {}\n{rest}", self.base));
    }

    fn definition(&self) -> Definition {
        Definition {
            context: Context::Folder { path: self.dir.path().to_owned(), identity: None },
            dockerfile: "Dockerfile".into(),
            content: None,
            target: String::new(),
            args: BTreeMap::new(),
            platform: String::new(),
            anew: false,
        }
    }

    async fn over(&self, definition: Definition) -> (Vec<String>, Result<Built, Failure>) {
        let (mut building, mut printed) = (self.builds.enter().unwrap().begin(definition), Vec::new());
        let over = async {
            loop {
                match building.next().await {
                    Ok(Event::Log { lines, .. }) => printed.extend(lines.iter().map(ToString::to_string)),
                    Ok(Event::Built(built)) => return Ok(built),
                    Err(failure) => return Err(failure),
                }
            }
        };
        let outcome = tokio::time::timeout(LIMIT, over).await.expect("it is over in time");
        (printed, outcome)
    }

    async fn build(&self) -> Result<Built, Failure> {
        self.over(self.definition()).await.1
    }

    /// What a container of it prints.
    fn runs(&self, built: &Built, command: &[&str]) -> String {
        let args = ["run", "--rm", "--network", "none", built.id.as_str()];
        self.host.run(&[&args, command].concat())
    }

    /// Containers that a build has made from ours: those of other tests are none of ours.
    async fn containers(&self) -> Vec<String> {
        let all = self.engine.list().await.unwrap();
        let mut ours = Vec::new();
        for container in all {
            if let Ok(container) = self.engine.inspect(container.id.as_str()).await
                && self.is_of_ours(container.image.as_str()).await
            {
                ours.push(format!("{} {:?}", container.id, container.status));
            }
        }
        ours
    }

    /// Its base is the only image that has this file's bytes in its first layer, so a label says it.
    async fn is_of_ours(&self, image: &str) -> bool {
        self.engine.image(image).await.unwrap().is_some_and(|image| image.labels.get("nspool-test-yard") == Some(&self.base))
    }
}

async fn ten_builds_of_the_same_are_one_and_found_again(host: &TestEngine) {
    let yard = Yard::new(host, config::Images::default()).await;
    yard.write("a/fn", "#!/bin/sh\necho works\n");
    yard.dockerfile(
        "ARG WORD=none\nCOPY a /a\nRUN busybox chmod 755 /a/fn && echo $WORD > /word && busybox head -c 16 /dev/urandom > /chance\n",
    );
    let ten = join_all((0..10).map(|_| yard.build())).await;
    let first = ten[0].clone().unwrap();
    assert!(ten.iter().all(|outcome| outcome.as_ref().is_ok_and(|built| built.id == first.id)), "{ten:?}");
    assert_eq!(yard.runs(&first, &["/a/fn"]).trim(), "works");
    assert_eq!(yard.runs(&first, &["cat", "/word"]).trim(), "none");

    let began = Instant::now();
    let (printed, again) = yard.over(yard.definition()).await;
    println!("{}: found again after {:?}", host.kind, began.elapsed());
    assert_eq!((again.unwrap(), printed.len()), (Built { reused: true, ..first.clone() }, 0));
    let by_tar = nspool::image::build::tar_of(yard.dir.path(), Some("Dockerfile"), u64::MAX).unwrap();
    let by_tar = yard.over(Definition { context: Context::Tar(by_tar), ..yard.definition() }).await.1.unwrap();
    assert_eq!(by_tar, Built { reused: true, ..first.clone() });

    let args = BTreeMap::from([("WORD".to_owned(), "some".to_owned())]);
    let other = yard.over(Definition { args, ..yard.definition() }).await.1.unwrap();
    assert_ne!(other.id, first.id);
    assert_eq!(yard.runs(&other, &["cat", "/word"]).trim(), "some");
    let (printed, anew) = yard.over(Definition { anew: true, ..yard.definition() }).await;
    let anew = anew.unwrap();
    assert!(!anew.reused && anew.id != first.id, "it has made another /chance: {printed:?}");

    // Away by hand, and built again.
    host.run(&["rmi", "-f", anew.id.as_str()]);
    let again = yard.build().await.unwrap();
    assert!(!again.reused);
    assert!(yard.containers().await.is_empty());
}

async fn what_is_left_out_does_not_get_in(host: &TestEngine) {
    let yard = Yard::new(host, config::Images::default()).await;
    yard.dockerfile("COPY . /all\n");
    for name in ["keep", "secret/a", "secret/b.txt", "deep/er/x.log", "deep/er/y", "#odd name"] {
        yard.write(name, name);
    }
    yard.write(".dockerignore", "Dockerfile\n.dockerignore\nsecret\n!secret/*.txt\n**/*.log\n");
    let built = yard.build().await.unwrap();
    let mut found: Vec<String> = yard.runs(&built, &["busybox", "find", "/all", "-type", "f"]).lines().map(str::to_owned).collect();
    found.sort();
    assert_eq!(found, ["/all/#odd name", "/all/deep/er/y", "/all/keep", "/all/secret/b.txt"]);

    // From elsewhere: it is in no image.
    std::fs::remove_file(yard.dir.path().join(".dockerignore")).unwrap();
    let content = Some(format!("FROM {}\nCOPY . /all\n", yard.base));
    let built = yard.over(Definition { content, ..yard.definition() }).await.1.unwrap();
    let found = yard.runs(&built, &["busybox", "find", "/all", "-name", ".docker*"]);
    assert!(!found.contains(".dockerfile."), "{found}");
}

async fn a_build_that_fails_says_why_and_leaves_nothing(host: &TestEngine) {
    let yard = Yard::new(host, config::Images::default()).await;
    yard.dockerfile(&format!("LABEL nspool-test-yard={}\nRUN echo before\nRUN echo the reason >&2; exit 7\n", yard.base));
    let (printed, outcome) = yard.over(yard.definition()).await;
    let failure = outcome.unwrap_err();
    println!("{}: {failure}", host.kind);
    assert_eq!(failure.kind, Kind::BuildFailed);
    assert!(failure.why.contains('7'), "{failure}");
    assert!(printed.iter().any(|line| line.contains("the reason")), "{printed:?}");
    assert!(yard.containers().await.is_empty(), "{:?}", yard.containers().await);
    // What only the builder can know.
    yard.dockerfile("COPY nothing /\n");
    let failure = yard.build().await.unwrap_err();
    assert!(matches!(failure.kind, Kind::BuildFailed | Kind::Invalid) && failure.why.contains("nothing"), "{failure}");
}

async fn a_build_that_is_cut_off_leaves_nothing(host: &TestEngine) {
    let settings = config::Images { build_timeout: Duration::from_secs(15), ..config::Images::default() };
    let yard = Yard::new(host, settings).await;
    yard.dockerfile(&format!("LABEL nspool-test-yard={}\nRUN sleep 600\n", yard.base));
    let (printed, outcome) = yard.over(yard.definition()).await;
    let failure = outcome.unwrap_err();
    assert_eq!(&*failure.why, "not built within 15s ([images] build_timeout)");
    assert!(printed.iter().any(|line| line.contains("sleep 600")), "{printed:?}");
    let gone = async {
        while !yard.containers().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(30), gone).await.is_ok(), "{:?}", yard.containers().await);
}

async fn an_image_that_was_built_upon_is_not_taken_for_another(host: &TestEngine) {
    let yard = Yard::new(host, config::Images::default()).await;
    yard.dockerfile("COPY Dockerfile /\n");
    let first = yard.build().await.unwrap();
    let upon = tempfile::tempdir().unwrap();
    std::fs::write(upon.path().join("Dockerfile"), format!("FROM {}\nLABEL other=1\n", first.name())).unwrap();
    let other = format!("localhost/nspool-test-upon-{:x}:1", unique());
    build_by_hand(host, &other, upon.path());
    let image = yard.engine.image(&other).await.unwrap().unwrap();
    assert_eq!(image.labels.get(nspool::image::build::KEY_LABEL), Some(&first.key.to_string()), "it has inherited the label");
    let listed = async || {
        let builds = &yard.builds;
        builds.forget();
        builds.list().await;
        builds.rows().unwrap().into_iter().filter(|row| row.key == first.key).map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(listed().await, std::slice::from_ref(&first.id));
    host.run(&["rmi", &first.name()]);
    assert!(listed().await.is_empty());
    assert!(!yard.build().await.unwrap().reused);
    assert!(first.name().starts_with(REPOSITORY));
    host.run(&["rmi", &other]);
}

fn build_by_hand(host: &TestEngine, tag: &str, folder: &Path) {
    host.run(&["build", "-t", tag, folder.to_str().unwrap()]);
}
