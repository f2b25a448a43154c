//! Programs in the path of packets.

use std::os::fd::{FromRawFd, OwnedFd};

use super::*;

/// A program that lets everything pass, or whatever the number means where it is attached, pinned where `ip` and `tc` find it.
struct Pinned(tempfile::TempDir, #[expect(dead_code, reason = "held")] OwnedFd);

/// `bpf(2)`: load a program, pin it.
const LOAD: i64 = 5;
const PIN: i64 = 6;

fn pinned(kind: u32, answer: i32) -> Pinned {
    let folder = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount").args(["-t", "bpf", "bpf"]).arg(folder.path()).status().unwrap();
    assert!(mounted.success());
    // r0 = answer; exit
    let code: [u64; 2] = [0xb7 | u64::from(answer.cast_unsigned()) << 32, 0x95];
    let mut load = [0_u64; 16];
    load[0] = u64::from(kind) | (code.len() as u64) << 32;
    load[1] = code.as_ptr() as u64;
    load[2] = c"GPL".as_ptr() as u64;
    let program = bpf(LOAD, &load);
    assert!(program >= 0, "{}", std::io::Error::last_os_error());
    #[expect(unsafe_code, reason = "a descriptor that a system call gave")]
    // SAFETY: the kernel just gave it, to nobody else.
    let program = unsafe { OwnedFd::from_raw_fd(i32::try_from(program).unwrap()) };
    let path = std::ffi::CString::new(folder.path().join("program").to_str().unwrap()).unwrap();
    let mut pin = [0_u64; 16];
    pin[0] = path.as_ptr() as u64;
    pin[1] = u64::from(program.as_raw_fd().cast_unsigned());
    assert_eq!(bpf(PIN, &pin), 0, "{}", std::io::Error::last_os_error());
    Pinned(folder, program)
}

#[expect(unsafe_code, reason = "nothing wraps bpf(2)")]
fn bpf(command: i64, attributes: &[u64; 16]) -> i64 {
    // SAFETY: all that the kernel reads lives until it returns.
    unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) }
}

impl Pinned {
    fn path(&self) -> String {
        self.0.path().join("program").display().to_string()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg(self.0.path()).status());
    }
}

const CLASSIFIER: u32 = 3;
const XDP: u32 = 6;

#[tokio::test]
async fn on_a_link() {
    let (rig, program) = (Rig::new().await, pinned(XDP, 2));
    rig.slot.run(&format!("ip link set dev eth0 xdpgeneric pinned {}", program.path()));
    let found = rig.dirt().await;
    assert!(found.iter().any(|difference| difference.kind == Kind::Bpf), "{}", lines(&found));
    rig.slot.run("ip link set dev eth0 xdpgeneric off");
    rig.removed().await;
}

#[tokio::test]
async fn in_a_filter() {
    let (rig, program) = (Rig::new().await, pinned(CLASSIFIER, 0));
    rig.slot.run(&format!("tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress bpf da pinned {}", program.path()));
    let found = rig.dirt().await;
    assert!(found.iter().any(|difference| difference.kind == Kind::Bpf), "{}", lines(&found));
    assert!(found.iter().any(|difference| difference.kind == Kind::Qdisc), "{}", lines(&found));
}
