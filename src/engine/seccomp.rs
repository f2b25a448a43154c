//! The seccomp profile of a renewable buddy, as the JSON that Docker takes and podman reads.
//!
//! A renewable buddy runs as uid 0 with SYS_ADMIN, which without a filter is nearly the host's root. So it is an allow-list of three parts: what
//! `init.c` calls; `unshare` for a network namespace and nothing else; and what is left of the runtime's own start, because runc and crun load the
//! filter before they execute the init: they still close descriptors, open and write a pipe, and wait for their other threads. There is no `setns`,
//! `mount`, `bpf`, `ptrace` or `socket` in it, no `clone` but of a thread (thus no child process and no other namespace), and no foreign ABI:
//! calls by another (32 bit, x32) end the process.
//!
//! What is not in it fails with EPERM rather than end the process: the runtime tries this and that before it executes the init and goes on
//! when it is refused, other versions try other things, and our own init tells a refusal by an exit code of its own. An attacker gains
//! nothing by it, the call is not made either way. `clone3` is told to be unknown (ENOSYS), because a C library then falls back to `clone`,
//! whose flags a filter can see.
//!
//! What can go wrong: a runtime that needs more for its start. Then the buddy does not start, and the probe (`crate::renewal`) says so.

use serde_json::json;

/// All that `init.c` calls, but for `unshare`.
const INIT: [&str; 4] = ["exit_group", "rt_sigprocmask", "rt_sigtimedwait", "wait4"];

/// Between the filter and the init, runc 1.1.5 was seen to call close, openat, write, getpid, execve, and its Go runtime futex, nanosleep and
/// `epoll_pwait`. Later versions close descriptors by the list in /proc; any Go runtime may collect memory, signal its threads or start one.
const START: [&str; 36] = [
    "brk",
    "clock_nanosleep",
    "close",
    "close_range",
    "epoll_ctl",
    "epoll_pwait",
    "execve",
    "exit",
    "fcntl",
    "fstat",
    "fstatfs",
    "futex",
    "getdents64",
    "getpid",
    "getppid",
    "getrandom",
    "gettid",
    "lseek",
    "madvise",
    "mmap",
    "mprotect",
    "munmap",
    "nanosleep",
    "newfstatat",
    "openat",
    "openat2",
    "read",
    "readlinkat",
    "rseq",
    "rt_sigaction",
    "rt_sigreturn",
    "sched_yield",
    "set_robust_list",
    "sigaltstack",
    "tgkill",
    "write",
];

/// The kernel's CLONE_ flags.
const CLONE_NEWNET: u64 = 0x4000_0000;
const CLONE_THREAD: u64 = 0x0001_0000;
/// New mount, cgroup, uts, ipc, user, pid and network namespaces. (A new time namespace is `clone3`'s and `unshare`'s only.)
const CLONE_NAMESPACES: u64 = 0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | CLONE_NEWNET;

const ENOSYS: u32 = 38;

/// The only ABI whose calls are let through at all.
const NATIVE: &str = if cfg!(target_arch = "aarch64") { "SCMP_ARCH_AARCH64" } else { "SCMP_ARCH_X86_64" };

/// For [`super::Flavour::Renewable`]. The same text each time.
#[must_use]
pub fn renewable() -> String {
    let names: Vec<&str> = INIT.into_iter().chain(START).collect();
    let of_a_thread = json!({
        "index": 0, "value": CLONE_THREAD | CLONE_NAMESPACES, "valueTwo": CLONE_THREAD, "op": "SCMP_CMP_MASKED_EQ",
    });
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": [NATIVE],
        "syscalls": [
            { "names": names, "action": "SCMP_ACT_ALLOW" },
            { "names": ["unshare"], "action": "SCMP_ACT_ALLOW", "args": [{ "index": 0, "value": CLONE_NEWNET, "op": "SCMP_CMP_EQ" }] },
            { "names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [of_a_thread] },
            { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS },
        ],
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Vec<serde_json::Value> {
        let profile: serde_json::Value = serde_json::from_str(&renewable()).unwrap();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(profile["architectures"].as_array().unwrap().len(), 1, "native only");
        profile["syscalls"].as_array().unwrap().clone()
    }

    #[test]
    fn unshare_is_let_through_for_a_network_namespace_alone() {
        let rules = rules();
        let of: Vec<_> = rules.iter().filter(|rule| rule["names"].as_array().unwrap().contains(&"unshare".into())).collect();
        assert_eq!(of.len(), 1);
        assert_eq!(of[0]["args"], json!([{ "index": 0, "value": 0x4000_0000, "op": "SCMP_CMP_EQ" }]));
    }

    #[test]
    fn clone_makes_threads_and_no_namespace() {
        let rules = rules();
        let rule = rules.iter().find(|rule| rule["names"] == json!(["clone"])).unwrap();
        let (mask, wanted) = (rule["args"][0]["value"].as_u64().unwrap(), rule["args"][0]["valueTwo"].as_u64().unwrap());
        let passes = |flags: u64| flags & mask == wanted;
        assert!(passes(0x0005_0f00), "a thread of Go's");
        assert!(passes(0x003d_0f00), "a thread of a C library's");
        assert!(!passes(17), "a fork");
        for bit in [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
            assert!(!passes(0x0005_0f00 | bit), "{bit:#x}");
        }
    }

    #[test]
    fn what_would_make_sys_admin_dangerous_is_not_in_it() {
        let rules = rules();
        let allowed: Vec<&str> = rules
            .iter()
            .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW")
            .flat_map(|rule| rule["names"].as_array().unwrap())
            .map(|name| name.as_str().unwrap())
            .collect();
        for refused in
            ["setns", "mount", "umount2", "bpf", "clone3", "ptrace", "socket", "fsopen", "open_tree", "move_mount", "ioctl", "fork"]
        {
            assert!(!allowed.contains(&refused), "{refused}");
        }
    }
}
