//! Which of root's powers a process keeps.
//!
//! Capabilities are a thread's: they are given away before there is a second one, which then has no more than the first. What is taken from
//! the bounding set cannot be had again by starting another program either.
//!
//! What can go wrong: the process may not give away its bounding set (that needs `CAP_SETPCAP`, which a unit may have taken). No harm: it has no
//! capability then either, and may get none by starting a program, which [`rustix::thread::set_no_new_privs`] sees to but for root's own.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// What the helper needs, as in `systemd/managed-networks.conf` and `systemd/native.conf`: SYS_ADMIN to go into namespaces, NET_ADMIN for links, rules and connections,
/// SYS_PTRACE to read other processes' namespaces, CHOWN and DAC_OVERRIDE for files that an engine shares and for what belongs to other users, SYS_CHROOT (with
/// SYS_ADMIN) to mount namespaces where all see them, outside a unit's sandbox.
pub const HELPERS: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::SYS_CHROOT);

/// What it needs besides to give a user namespace its ids, as in `systemd/native-user.conf`.
pub const OF_USERS: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SETGID);

/// Keeps these, of what there is, and nothing else. For a process with one thread.
///
/// # Errors
/// The kernel refuses.
pub fn keep(wanted: CapabilitySet) -> Result<(), Errno> {
    let own = rustix::thread::capabilities(None)?;
    let kept = own.permitted & wanted;
    for capability in CapabilitySet::all().difference(kept).iter_names().map(|(_, capability)| capability) {
        match remove_capability_from_bounding_set(capability) {
            // It may not, or the kernel does not know that one.
            Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno),
    }
    set_no_new_privs(true)?;
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
}
