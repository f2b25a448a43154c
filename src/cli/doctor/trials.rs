//! What the kernel does when it is tried: the process of [`crate::netns::trial`] is started, and what it says is judged.
//!
//! What can go wrong: the kernel does not come back from something. The process is ended then, and what it was is told.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::finding::{Check, Finding};
use super::host::Host;
use crate::config::Config;
use crate::engine::NamespaceKind;
use crate::netns::helper::keeper;
use crate::netns::trial::{Deed, Line, ROLE, Refused, Tried};

const DEEDS: [Deed; 9] = [Deed::Pidfd, Deed::Net, Deed::Ipc, Deed::Uts, Deed::Pid, Deed::User, Deed::Bridge, Deed::Veth, Deed::Rules];

pub(super) async fn check(host: &Host, config: &Config) -> Vec<Finding> {
    match run(host).await {
        Ok(lines) => judge(host, config, &lines),
        Err(error) => {
            vec![Check::of("trials", "what the kernel can do has to be tried").warning(format!("nothing could be tried: {error}"))]
        }
    }
}

/// All that it said in time.
async fn run(host: &Host) -> std::io::Result<Vec<Line>> {
    let mut child = Command::new(&host.program)
        .arg0(env!("CARGO_PKG_NAME"))
        .args([keeper::COMMAND, ROLE])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut said = Vec::new();
    if let Some(out) = child.stdout.take() {
        let mut lines = BufReader::new(out).lines();
        let reading = async {
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(line) = serde_json::from_str(&line) else { break };
                said.push(line);
            }
        };
        // Late: what was said is what there is.
        let _late = tokio::time::timeout(host.limit, reading).await;
    }
    child.start_kill()?;
    // One that the kernel does not let go of ends when it does.
    let _late = tokio::time::timeout(host.limit, child.wait()).await;
    Ok(said)
}

fn judge(host: &Host, config: &Config, lines: &[Line]) -> Vec<Finding> {
    let is_done = lines.contains(&Line::Done);
    let last = lines.iter().rev().find_map(|line| match line {
        Line::Begun(deed) => Some(*deed),
        Line::Ended(_) | Line::Done => None,
    });
    let of = |deed: Deed| {
        let check = check_of(deed);
        // In a user namespace, if it was tried there, too.
        let tried = lines.iter().rev().find_map(|line| match line {
            Line::Ended(tried) if tried.deed == deed => Some(tried),
            Line::Ended(_) | Line::Begun(_) | Line::Done => None,
        });
        match tried {
            Some(tried) => of_tried(host, config, check, tried),
            None if is_done => not_tried(host, check, "it was not tried, for it needs a namespace that is not to be had"),
            None if last == Some(deed) => {
                let seen = format!("the kernel did not come back from it within {:?}", host.limit);
                check
                    .is(if is_needed(config, deed) { super::finding::Status::Missing } else { super::finding::Status::Warning }, seen)
                    .remedy("dmesg | tail")
            }
            None => not_tried(host, check, "it was not tried: what was tried before did not end"),
        }
    };
    DEEDS.into_iter().map(of).collect()
}

fn check_of(deed: Deed) -> Check {
    let (name, why) = match deed {
        Deed::Pidfd => ("pidfd", "a buddy is told by a descriptor of its process, as pids come back"),
        Deed::Net => ("net_namespaces", "a slot is a network namespace"),
        Deed::Ipc => ("ipc_namespaces", "engines give each container one; slots can share theirs"),
        Deed::Uts => ("uts_namespaces", "engines give each container one"),
        Deed::Pid => ("pid_namespaces", "engines give each container one; slots can share theirs"),
        Deed::User => ("user_namespaces", "for running without root, for engines that do, and for pools that share them"),
        Deed::Bridge => ("bridge", "the links of slots go on one: nspool's on managed networks, else the engine's"),
        Deed::Veth => ("veth", "a slot's link to the bridge"),
        Deed::Rules => ("nf_tables", "managed networks keep slots from each other by rules, and let them out by NAT"),
    };
    Check::of(name, why)
}

fn is_needed(config: &Config, deed: Deed) -> bool {
    match deed {
        Deed::Pidfd | Deed::Net => true,
        Deed::Ipc => config.pool.namespaces.contains(&NamespaceKind::Ipc),
        Deed::Pid => config.pool.namespaces.contains(&NamespaceKind::Pid),
        Deed::Uts => config.pool.namespaces.contains(&NamespaceKind::Uts),
        Deed::User => config.pool.namespaces.contains(&NamespaceKind::User),
        Deed::Bridge | Deed::Veth | Deed::Rules => !config.managed.is_empty(),
    }
}

fn of_tried(host: &Host, config: &Config, check: Check, tried: &Tried) -> Finding {
    let inside = if tried.in_user_namespace { " (tried in a user namespace)" } else { "" };
    match &tried.refusal {
        None => check.ok(format!("possible{inside}")),
        Some(refused) if refused.is_not_permitted() && tried.deed != Deed::Pidfd => not_tried(host, check, &format!("{refused}{inside}")),
        Some(refused) => {
            let seen = format!("{refused}{inside}");
            let finding = match (is_needed(config, tried.deed), tried.deed) {
                (true, _) => check.missing(seen),
                (false, Deed::User) => check.note(seen),
                (false, _) => check.warning(seen),
            };
            remedies(finding, tried.deed, refused)
        }
    }
}

fn not_tried(host: &Host, check: Check, why: &str) -> Finding {
    match host.is_root() {
        true => check.note(format!("cannot be told: {why}")).remedy("as root with CAP_SYS_ADMIN: nspool doctor"),
        false => check.note(format!("cannot be told as {}: {why}", host.user())).remedy("sudo nspool doctor"),
    }
}

fn remedies(finding: Finding, deed: Deed, refused: &Refused) -> Finding {
    let is_full = refused.errno == rustix::io::Errno::NOSPC.raw_os_error();
    let most = |kind: &str| format!("sysctl -w user.max_{kind}_namespaces=15000");
    match deed {
        Deed::Net if is_full => finding.remedy(most("net")),
        Deed::Ipc if is_full => finding.remedy(most("ipc")),
        Deed::Uts if is_full => finding.remedy(most("uts")),
        Deed::Pid if is_full => finding.remedy(most("pid")),
        Deed::User if is_full => finding.remedy(most("user")),
        Deed::Net | Deed::Ipc | Deed::Uts | Deed::Pid | Deed::User => {
            finding.remedy("a kernel with CONFIG_NET_NS, CONFIG_IPC_NS, CONFIG_UTS_NS, CONFIG_PID_NS and CONFIG_USER_NS")
        }
        Deed::Pidfd => finding.remedy("a kernel from 5.3 on, or a seccomp filter that lets pidfd_open through"),
        Deed::Bridge => finding.remedy("modprobe bridge"),
        Deed::Veth => finding.remedy("modprobe veth"),
        Deed::Rules => finding.remedy("modprobe -a nf_tables nft_chain_nat nft_ct nft_masq"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::finding::Status;
    use super::super::host::made_up::MadeUp;
    use super::*;
    use crate::config::Pool;

    const NOSPC: i32 = 28;
    const PERM: i32 = 1;
    const OPNOTSUPP: i32 = 95;

    fn ended(deed: Deed, in_user_namespace: bool, errno: i32) -> Line {
        let refusal = (errno != 0).then(|| Refused { step: "unshare".into(), errno });
        Line::Ended(Tried { deed, in_user_namespace, refusal })
    }

    fn found<'f>(findings: &'f [Finding], name: &str) -> &'f Finding {
        findings.iter().find(|finding| finding.name == name).unwrap()
    }

    #[test]
    fn a_refusal_is_as_bad_as_the_need_for_it() {
        let made_up = MadeUp::new();
        let lines = [ended(Deed::Net, false, NOSPC), ended(Deed::Ipc, false, NOSPC), ended(Deed::User, false, NOSPC), Line::Done];
        let config =
            Config { pool: Pool { namespaces: vec![NamespaceKind::Net, NamespaceKind::Ipc], ..Pool::default() }, ..Config::default() };
        let findings = judge(&made_up.host, &Config::default(), &lines);
        let statuses = ["net_namespaces", "ipc_namespaces", "user_namespaces", "veth"].map(|name| found(&findings, name).status);
        assert_eq!(statuses, [Status::Missing, Status::Warning, Status::Note, Status::Note]);
        assert_eq!(found(&findings, "net_namespaces").remedies, ["sysctl -w user.max_net_namespaces=15000"]);
        assert_eq!(found(&judge(&made_up.host, &config, &lines), "ipc_namespaces").status, Status::Missing);
        let findings = judge(&made_up.host, &config, &[ended(Deed::Veth, false, OPNOTSUPP), Line::Done]);
        assert_eq!((found(&findings, "veth").status, found(&findings, "veth").remedies[0].as_str()), (Status::Warning, "modprobe veth"));
    }

    #[test]
    fn what_is_possible_in_a_user_namespace_is_possible_and_what_is_not_permitted_cannot_be_told() {
        let made_up = MadeUp::new().asked_by(7);
        let lines = [ended(Deed::Net, false, PERM), ended(Deed::Net, true, 0), ended(Deed::Bridge, true, PERM), Line::Done];
        let findings = judge(&made_up.host, &Config::default(), &lines);
        assert_eq!(found(&findings, "net_namespaces").status, Status::Ok);
        assert_eq!(found(&findings, "bridge").status, Status::Note);
        assert_eq!(found(&findings, "bridge").remedies, ["sudo nspool doctor"]);
    }

    async fn with_program(body: &str) -> Vec<Finding> {
        let mut made_up = MadeUp::new().with("/program", &format!("#!/bin/sh\n{body}\n"));
        made_up.host.program = made_up.host.path("/program");
        std::fs::set_permissions(&made_up.host.program, std::fs::Permissions::from_mode(0o755)).unwrap();
        loop {
            let findings = check(&made_up.host, &Config::default()).await;
            // A child that another test forked may still have the program open for writing.
            if findings[0].name != "trials" || !findings[0].seen.contains("busy") {
                return findings;
            }
        }
    }

    #[tokio::test]
    async fn what_the_kernel_does_not_come_back_from_is_named() {
        let begun = std::time::Instant::now();
        let findings = with_program(r#"echo '{"begun":"net"}'; exec sleep 60"#).await;
        assert!(begun.elapsed().as_secs() < 30);
        assert_eq!(found(&findings, "net_namespaces").status, Status::Missing);
        assert!(found(&findings, "net_namespaces").seen.contains("did not come back"));
        assert_eq!(found(&findings, "veth").status, Status::Note);
    }

    #[tokio::test]
    async fn without_a_program_nothing_is_tried() {
        let mut made_up = MadeUp::new();
        made_up.host.program = "/nonexistent".into();
        let findings = check(&made_up.host, &Config::default()).await;
        assert_eq!((findings.len(), findings[0].status), (1, Status::Warning), "{findings:?}");
    }
}
