//! Room on the disk of a real engine: what shares layers is counted once, and nothing goes that somebody uses.
//!
//! Each test has an engine of its own: what an engine takes is all that is in it.

use std::time::{Duration, Instant};

use futures::future::join_all;
use nspool::engine::ImageId;
use nspool::image::Images;
use nspool::image::placeholder::Archive;
use nspool::image::room::plan::Stays;
use nspool::image::room::{Outcome, Row, Swept};

use super::support::engines::{PrivateDocker, PrivatePodman};
use super::support::image::unique_busybox_archive;
use super::*;

/// Of one layer that nobody else has.
const MIB: u64 = 1 << 20;

mod docker_engine {
    use super::PrivateDocker;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn room_is_made_by_what_nobody_needs() {
        super::room_is_made_by_what_nobody_needs(&PrivateDocker::start()).await;
    }
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_prune_beside_creates_is_no_creates_failure() {
        super::a_prune_beside_creates_is_no_creates_failure(&PrivateDocker::start()).await;
    }
}

mod podman_engine {
    use super::PrivatePodman;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn room_is_made_by_what_nobody_needs() {
        super::room_is_made_by_what_nobody_needs(&PrivatePodman::start()).await;
    }
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_prune_beside_creates_is_no_creates_failure() {
        super::a_prune_beside_creates_is_no_creates_failure(&PrivatePodman::start()).await;
    }
}

/// An engine with nothing in it but what a test puts there, and a registry.
struct House<'e> {
    host: &'e TestEngine,
    engine: Arc<dyn Engine>,
    registry: TestRegistry,
    images: Images,
    dir: tempfile::TempDir,
}

impl<'e> House<'e> {
    fn new(host: &'e TestEngine) -> Self {
        let engine = paced(Docker::connect(&host.endpoint(), Some(host.kind)).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let settings = config::Images { hold: Duration::ZERO, store: dir.path().join("store"), ..config::Images::default() };
        let cache = Cache::new(Arc::clone(&engine), CredentialSource::new(Vec::new(), None), settings.clone(), config::Backoff::default());
        let images = Images::new(cache, Arc::clone(&engine), &settings);
        Self { host, engine, registry: TestRegistry::start(false), images, dir }
    }

    /// Built of these lines in a folder of these files; `name` is the operator's own.
    fn build(&self, name: &str, dockerfile: &str, files: &[(&str, u64)]) {
        let folder = self.dir.path().join(name.replace(['/', ':'], "-"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("Dockerfile"), dockerfile).unwrap();
        for (file, bytes) in files {
            let mut data = vec![0; usize::try_from(*bytes).unwrap()];
            nspool::random::fill(&mut data);
            std::fs::write(folder.join(file), data).unwrap();
        }
        self.host.run(&["build", "-t", name, folder.to_str().unwrap()]);
    }

    /// Published and fetched by nspool, in place of the local one.
    async fn fetched(&self, local: &str, remote: &str) -> ImageId {
        self.registry.push(self.host, local, remote);
        self.host.run(&["rmi", local]);
        let ensured = self.ensure(remote).await;
        assert!(ensured.fetched, "{ensured:?}");
        ensured.id
    }

    async fn ensure(&self, remote: &str) -> Ensured {
        let name = format!("{}/{remote}", self.registry.host);
        let mut following = self.images.cache.ensure(&Reference::parse(&name).unwrap(), None);
        let over = tokio::time::timeout(LIMIT, following.wait_for(|told| told.outcome.is_some())).await;
        over.expect("it is over in time").unwrap().outcome.clone().unwrap().unwrap()
    }

    async fn prune(&self, room: u64, dry_run: bool) -> Swept {
        self.images.room.prune(Some(room), dry_run).await.unwrap()
    }

    async fn has(&self, id: &ImageId) -> bool {
        self.engine.image(id.as_str()).await.unwrap().is_some()
    }
}

fn row<'s>(swept: &'s Swept, id: &ImageId) -> &'s Row {
    swept.rows.iter().find(|row| row.id.bare() == id.bare()).unwrap_or_else(|| panic!("{id} is not in {swept:#?}"))
}

/// Within a tenth of a MiB: engines count headers and metadata, or do not.
fn about(bytes: u64, mib: u64) -> bool {
    bytes.abs_diff(mib * MIB) < MIB / 10
}

async fn room_is_made_by_what_nobody_needs(host: &TestEngine) {
    let house = House::new(host);
    let base = "FROM scratch\nCOPY base /base\nLABEL a=b\n";
    house.build("localhost/base:1", base, &[("base", 4 * MIB)]);
    for (name, file, mib) in [("localhost/one:1", "one", 2), ("localhost/two:1", "two", 3)] {
        house.build(name, &format!("FROM localhost/base:1\nENV A=1\nCOPY {file} /{file}\nCMD [\"/x\"]\n"), &[(file, mib * MIB)]);
    }
    // As long as the base has a name, its layers are not pulled.
    let (one, two) = (house.fetched("localhost/one:1", "team/one:1").await, house.fetched("localhost/two:1", "team/two:1").await);
    host.run(&["rmi", "localhost/base:1"]);
    house.build("localhost/mine:1", "FROM scratch\nCOPY mine /mine\n", &[("mine", MIB)]);
    let mine = house.engine.image_id("localhost/mine:1").await.unwrap().unwrap();
    let placeholder = Archive::embedded().unwrap();
    house.engine.load_image(placeholder.bytes().to_vec().into()).await.unwrap();
    let placeholder = house.engine.image_id(placeholder.reference()).await.unwrap().unwrap();

    // 4 + 2 + 3 + 1, and not 4 + 2 + 4 + 3 + 1.
    let began = Instant::now();
    let look = house.prune(0, true).await;
    let (first, again) = (began.elapsed(), Instant::now());
    house.prune(0, true).await;
    println!("{}: four images measured in {first:?}, and again in {:?}", host.kind, again.elapsed());
    println!("{}: before {}, ours {}, after {}: {:#?}", host.kind, look.before, look.ours, look.after, look.rows);
    assert!(about(look.before, 10) && about(look.ours, 9) && about(look.after, 1), "{look:#?}");
    assert!(about(row(&look, &one).bytes, 6) && about(row(&look, &one).frees, 2), "the base is there for the other one");
    assert!(about(row(&look, &two).frees, 7));
    assert_eq!(row(&look, &mine).outcome, Outcome::Stays(Stays::NotOurs));
    assert_eq!(row(&look, &placeholder).outcome, Outcome::Stays(Stays::Pinned));

    // Asked for again, so the other one goes first; and a stopped container keeps that.
    house.ensure("team/one:1").await;
    let container = host.run(&["create", "--network", "none", two.bare(), "/x"]).trim().to_owned();
    let look = house.prune(0, true).await;
    assert_eq!((&row(&look, &two).outcome, &row(&look, &one).outcome), (&Outcome::Stays(Stays::InUse), &Outcome::WouldGo));
    host.run(&["rm", &container]);
    let swept = house.prune(8 * MIB, false).await;
    assert_eq!((&row(&swept, &two).outcome, &row(&swept, &one).outcome), (&Outcome::Removed, &Outcome::Fits), "{swept:#?}");
    assert!(about(swept.after, 7) && !house.has(&two).await && house.has(&one).await, "{swept:#?}");
    assert!(about(house.prune(u64::MAX, true).await.before, 7), "the engine says so, too");

    house.images.room.uses().set_hold(Duration::from_secs(3600));
    house.ensure("team/one:1").await;
    let swept = house.prune(0, false).await;
    assert_eq!((&row(&swept, &one).outcome, swept.removed()), (&Outcome::Stays(Stays::Held), 0));

    // By nspool's own time, in which nobody has asked for them for long enough: all but the pool's own.
    house.images.room.reconfigure(&config::Images { room_for_others: true, ..config::Images::default() });
    let swept = house.prune(0, false).await;
    assert_eq!(row(&swept, &mine).outcome, Outcome::Stays(Stays::NotKnown), "{swept:#?}");
    house.images.room.uses().set_hold(Duration::ZERO);
    let local = Reference::parse("localhost/mine:1").unwrap();
    let mut asked = house.images.cache.ensure(&local, None);
    asked.wait_for(|told| told.outcome.is_some()).await.unwrap();
    let swept = house.prune(0, false).await;
    assert_eq!((&row(&swept, &mine).outcome, &row(&swept, &placeholder).outcome), (&Outcome::Removed, &Outcome::Stays(Stays::Pinned)));
    assert!(!house.has(&mine).await && house.has(&one).await && house.has(&placeholder).await);
}

/// Longer than a create takes, and not much longer: each image goes again as soon as it may.
const HOLD: Duration = Duration::from_secs(4);

async fn a_prune_beside_creates_is_no_creates_failure(host: &TestEngine) {
    let house = &House::new(host);
    house.images.room.uses().set_hold(HOLD);
    for number in 0..3 {
        let local = format!("localhost/fn{number}:1");
        house.engine.load_image(unique_busybox_archive(&local).into()).await.unwrap();
        house.registry.push(host, &local, &format!("team/fn{number}:1"));
        host.run(&["rmi", &local]);
    }
    let one = |round: u32, number: u32| async move {
        let asked = Instant::now();
        let ensured = house.ensure(&format!("team/fn{number}:1")).await;
        let (id, name) = (ensured.id.bare(), format!("{}-fn-{round}-{number}", host.prefix));
        let created = tokio::task::block_in_place(|| host.client(&["create", "--name", &name, "--network", "none", id, "true"]));
        assert!(created.status.success() || asked.elapsed() > HOLD, "round {round}: {created:?}");
        if created.status.success() {
            tokio::task::block_in_place(|| host.run(&["rm", &name]));
        }
        assert!(ensured.fetched, "round {round}: it was removed in the one before");
        while house.has(&ensured.id).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let creates = async {
        for round in 0..3 {
            join_all((0..3).map(|number| one(round, number))).await;
        }
    };
    let prunes = async {
        loop {
            let swept = house.prune(0, false).await;
            assert!(swept.rows.iter().all(|row| !matches!(row.outcome, Outcome::Failed(_))), "{swept:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let both = async {
        tokio::select! { () = creates => {}, () = prunes => {} }
    };
    tokio::time::timeout(LIMIT, both).await.expect("it is over in time");
}
