//! What a use costs the kernel as slots get more: the search for whoever is inside, the old link cut off, the move, the new link, the search again,
//! and the old link taken away in the end; with 10 to 1,000 slots there, furnished, each with an init of the placeholder.
//!
//!     cargo bench --bench scale [-- CSV SVG]
//!
//! No engine takes part: the inits are started here, in pid namespaces of their own. An engine adds processes of its own to each slot (Docker a shim of a
//! dozen threads), which make the searches longer. Medians of so many uses, of slots in turn, after a few that are not counted. Needs root, and `unshare`.
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]
#![expect(clippy::unwrap_used, reason = "a bench that fails, fails")]

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nspool::engine::NamespaceKind;
use nspool::image::placeholder::INIT;
use nspool::netns::linux::Linux;
use nspool::netns::managed::host::{Forwarding, Host};
use nspool::netns::managed::names::Names;
use nspool::netns::managed::{Bridge, Furnisher, Limits, ManagedNetwork, Plan, Range, Worker};
use nspool::netns::{Held, Kernel};
use plotters::prelude::*;

#[path = "../tests/support/space.rs"]
mod space;

use space::Space;

const SLOTS: [usize; 5] = [10, 30, 100, 300, 1000];
const USES: usize = 60;
/// Not counted.
const WARM: usize = 10;
const WITHIN: Duration = Duration::from_secs(10);
const STAGES: [&str; 6] = ["search", "cut off", "move", "furnish", "search again", "take the old link away"];

/// A slot's init, and its link.
struct Slot {
    unshare: Child,
    held: Box<dyn Held>,
    turn: u64,
    plan: Plan,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < WITHIN);
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

fn network() -> ManagedNetwork {
    ManagedNetwork {
        name: "bench".to_owned(),
        bridge: Bridge::Own { name: "nsbr0".to_owned() },
        slots: 2040,
        ipv4: Range::whole("10.200.0.0/18".parse().unwrap()),
        ipv6: None,
        mtu: 1500,
        isolation: true,
        nat: true,
    }
}

struct Bench {
    program: tempfile::TempPath,
    kernel: Linux,
    furnisher: Furnisher,
    names: Names,
    network: ManagedNetwork,
    book: nspool::netns::managed::addresses::AddressBook,
}

impl Bench {
    /// A slot whose first use is ready.
    async fn slot(&mut self, number: usize) -> Slot {
        let unshare = Command::new("unshare").args(["-fp", "--kill-child"]).arg(&self.program).spawn().unwrap();
        let parent = unshare.id();
        let children = || std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        let pid = until(|| children().split_whitespace().next()?.parse().ok());
        let name = self.program.file_name().unwrap().to_str().unwrap()[..15].to_owned();
        until(|| (std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim() == name).then_some(()));
        let held = self.kernel.hold_now(pid, &[]).unwrap();
        let place = self.book.allocate(Duration::ZERO).unwrap();
        let plan = self.network.plan(&self.names, u32::try_from(number).unwrap(), 1, place).unwrap();
        // Out of the host's namespace: the first number that it obeys.
        let slot = Slot { unshare, held, turn: 2, plan };
        slot.held.renew(2, WITHIN).await.unwrap();
        self.furnish(&slot).await;
        slot
    }

    async fn furnish(&self, slot: &Slot) {
        let namespace = slot.held.open(nspool::engine::NamespaceKind::Net).unwrap();
        self.furnisher.furnish(std::os::fd::AsFd::as_fd(&namespace), &slot.plan).await.unwrap();
    }

    async fn search(&self, slot: &Slot) {
        let of = [slot.held.namespace(NamespaceKind::Net).unwrap()];
        let members = self.kernel.members(NamespaceKind::Net, &of).await.unwrap();
        assert_eq!(members[&of[0]].len(), 1);
    }

    /// How long each stage took.
    async fn next_use(&self, slot: &mut Slot) -> [Duration; STAGES.len()] {
        let mut last = Instant::now();
        let mut lap = || std::mem::replace(&mut last, Instant::now()).elapsed();
        self.search(slot).await;
        let search = lap();
        let old = slot.plan.host_end.clone();
        self.furnisher.cut(&old).await.unwrap();
        let cut = lap();
        slot.turn += 1;
        slot.held.renew(slot.turn, WITHIN).await.unwrap();
        let moved = lap();
        let number = self.names.slot_of(old.as_str()).unwrap().1;
        slot.plan.host_end = self.names.host_end(number, slot.turn);
        self.furnish(slot).await;
        let furnished = lap();
        self.search(slot).await;
        let again = lap();
        self.furnisher.strip(&old).await.unwrap();
        [search, cut, moved, furnished, again, lap()]
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

#[tokio::main]
async fn main() {
    let files: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let mut program = tempfile::Builder::new().prefix("nspool-bench-init").tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::io::Write::write_all(&mut program, INIT).unwrap();
    program.as_file().set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
    let (home, network, names) = (Space::new(), network(), Names::of("bench"));
    let host = Host { names: names.clone(), networks: vec![network.clone()], forwarding: Forwarding::Told };
    let (worker, furnisher) = Worker::start_in(home.owned(), host, Limits::default()).unwrap();
    furnisher.mend().await.unwrap();
    home.run("ip link show nsbr0");
    let book = network.book();
    let mut bench = Bench { program: program.into_temp_path(), kernel: Linux::new(), furnisher, names, network, book };

    let (mut slots, mut rows) = (Vec::new(), Vec::new());
    println!("p50 of {USES} uses, milliseconds");
    println!("{:>6} {}  all but the last", "slots", STAGES.map(|stage| format!(" {stage:>12}")).concat());
    for wanted in SLOTS {
        while slots.len() < wanted {
            slots.push(bench.slot(slots.len()).await);
        }
        let mut took: [Vec<Duration>; STAGES.len()] = Default::default();
        for number in 0..WARM + USES {
            // Each time another one, near and far.
            let at = number * 7919 % wanted;
            let laps = bench.next_use(&mut slots[at]).await;
            if number >= WARM {
                took.iter_mut().zip(laps).for_each(|(all, lap)| all.push(lap));
            }
        }
        let until_ready = (0..USES).map(|at| took[..STAGES.len() - 1].iter().map(|stage| stage[at]).sum()).collect();
        let row = Row { slots: wanted, stages: took.map(median), ready: median(until_ready) };
        println!("{:>6} {}  {:.2}", wanted, row.stages.map(|stage| format!(" {stage:>12.2}")).concat(), row.ready);
        rows.push(row);
    }
    drop(slots);
    worker.stop().await;
    if let [csv, svg] = &files[..] {
        std::fs::write(csv, table(&rows)).unwrap();
        plot(Path::new(svg), &rows);
    }
}

struct Row {
    slots: usize,
    stages: [f64; STAGES.len()],
    /// Until the next use is ready.
    ready: f64,
}

fn table(rows: &[Row]) -> String {
    let mut text = format!("slots,{},ready\n", STAGES.map(|stage| stage.replace(' ', "_")).join(","));
    for row in rows {
        writeln!(text, "{},{},{:.3}", row.slots, row.stages.map(|stage| format!("{stage:.3}")).join(","), row.ready).unwrap();
    }
    text
}

fn plot(path: &Path, rows: &[Row]) {
    let area = SVGBackend::new(path, (800, 480)).into_drawing_area();
    area.fill(&WHITE).unwrap();
    let most = rows.iter().map(|row| row.ready.max(row.stages[STAGES.len() - 1])).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(&area)
        .caption("What a use costs the kernel, by slots that are there (p50)", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d((10.0..1000.0).log_scale(), 0.0..most * 1.1)
        .unwrap();
    chart.configure_mesh().x_desc("slots").y_desc("ms").x_label_formatter(&|slots| format!("{slots:.0}")).draw().unwrap();
    let mut line = |label: &str, color: RGBColor, of: &dyn Fn(&Row) -> f64| {
        let points: Vec<(f64, f64)> = rows.iter().map(|row| (f64::from(u32::try_from(row.slots).unwrap()), of(row))).collect();
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)).point_size(3))
            .unwrap()
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
    };
    let colors = [BLUE, CYAN, GREEN, RED, MAGENTA, RGBColor(128, 128, 128)];
    for (stage, color) in colors.into_iter().enumerate() {
        line(STAGES[stage], color, &|row| row.stages[stage]);
    }
    line("until the next use is ready", BLACK, &|row| row.ready);
    let labels = SeriesLabelPosition::UpperLeft;
    chart.configure_series_labels().position(labels).background_style(WHITE.mix(0.8)).border_style(BLACK).draw().unwrap();
    area.present().unwrap();
}
