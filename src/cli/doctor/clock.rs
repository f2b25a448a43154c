//! The clock by which leases end, and the one that the log shows.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

use super::finding::{Check, Finding};

/// Long enough for any clock to advance.
const PAUSE: Duration = Duration::from_millis(20);

/// What the kernel says of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wall {
    Synchronised,
    Free,
    Unknown,
}

pub(super) async fn check() -> Vec<Finding> {
    let first = read(ClockId::Boottime);
    tokio::time::sleep(PAUSE).await;
    // In this order: read at once they could not be compared.
    let (monotonic, second) = (read(ClockId::Monotonic), read(ClockId::Boottime));
    vec![of_boottime(first, second, monotonic), of_wall(wall())]
}

fn read(clock: ClockId) -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
    Duration::new(tv_sec.unsigned_abs(), u32::try_from(tv_nsec).unwrap_or(0))
}

fn of_boottime(first: Duration, second: Duration, monotonic: Duration) -> Finding {
    let check = Check::of("boottime", "leases end by it: it goes on while the machine sleeps");
    let shown = humantime::format_duration(Duration::from_secs(second.as_secs()));
    if second <= first {
        return check.missing(format!("it stands still, at {shown}")).remedy("dmesg | grep -i clocksource");
    }
    if second < monotonic {
        return check.missing(format!("it is behind CLOCK_MONOTONIC, by {:?}", monotonic - second)).remedy("dmesg | grep -i clocksource");
    }
    check.ok(format!("it goes on, since {shown}"))
}

fn of_wall(wall: Wall) -> Finding {
    let check = Check::of("wall_clock", "for times in the log and in answers only: leases do not go by it");
    match wall {
        Wall::Synchronised => check.ok("synchronised"),
        Wall::Free => check.note("nobody synchronises it").remedy("timedatectl set-ntp true").remedy("apt-get install systemd-timesyncd"),
        Wall::Unknown => check.note("whether it is synchronised cannot be seen"),
    }
}

#[expect(unsafe_code, reason = "neither rustix nor nix has adjtimex")]
fn wall() -> Wall {
    // SAFETY: `timex` is plain numbers, for which zero is a value; `modes` 0 changes nothing, and the kernel writes to what is lent for the call.
    let state = unsafe {
        let mut question: libc::timex = std::mem::zeroed();
        libc::adjtimex(&raw mut question)
    };
    match state {
        -1 => Wall::Unknown,
        libc::TIME_ERROR => Wall::Free,
        _ => Wall::Synchronised,
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn a_clock_that_stands_still_or_lags_is_missing() {
        let seconds = Duration::from_secs;
        assert_eq!(of_boottime(seconds(5), seconds(5), seconds(4)).status, Status::Missing);
        assert_eq!(of_boottime(seconds(5), seconds(6), seconds(7)).status, Status::Missing);
        assert_eq!(of_boottime(seconds(5), seconds(6), seconds(6)).status, Status::Ok);
    }

    #[test]
    fn a_wall_clock_left_alone_is_a_note() {
        assert_eq!([of_wall(Wall::Free).status, of_wall(Wall::Unknown).status], [Status::Note, Status::Note]);
        assert_eq!(of_wall(Wall::Synchronised).status, Status::Ok);
    }

    #[tokio::test]
    async fn this_machines_clock_goes_on() {
        assert_eq!(check().await[0].status, Status::Ok);
    }
}
