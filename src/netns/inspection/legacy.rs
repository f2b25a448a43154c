//! Tables of the older iptables, ip6tables and arptables, as their programs read them: by an option of a socket.
//!
//! Only tables that a namespace has are asked for; the kernel would make the others. Their counters are left out, but for arptables', which
//! nobody who makes namespaces ready sets up. The older ebtables is not looked at: it works only where a bridge is, and a bridge is a
//! difference.

use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};
use sha2::{Digest as _, Sha256};

/// With the NUL at its end.
const NAME: usize = 32;
const INFO: usize = 84;
const INFO_COUNT: usize = 76;
const INFO_SIZE: usize = 80;
/// Name and size, and the gap before the first entry.
const ENTRIES: usize = 40;
const COUNTERS: usize = 16;

/// One of the three.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    /// Below /proc/net.
    pub(super) names: &'static str,
    pub(super) program: &'static str,
    family: AddressFamily,
    level: i32,
    option: i32,
    /// Where an entry says how long it is, and where it has counters.
    entry: Option<(usize, usize)>,
}

pub(super) const FAMILIES: [Family; 3] = [
    Family {
        names: "ip_tables_names",
        program: "iptables",
        family: AddressFamily::INET,
        level: libc::IPPROTO_IP,
        option: 64,
        entry: Some((90, 96)),
    },
    Family {
        names: "ip6_tables_names",
        program: "ip6tables",
        family: AddressFamily::INET6,
        level: libc::IPPROTO_IPV6,
        option: 64,
        entry: Some((142, 152)),
    },
    Family {
        names: "arp_tables_names",
        program: "arptables",
        family: AddressFamily::INET,
        level: libc::IPPROTO_IP,
        option: 96,
        entry: None,
    },
];

impl Family {
    /// How many entries a table has, and a sum over them.
    pub(super) fn entries(&self, table: &str) -> Result<String, Errno> {
        let socket = socket(self.family, SocketType::DGRAM, None)?;
        let mut info = vec![0; INFO];
        name(&mut info, table)?;
        self.get(&socket, self.option, &mut info)?;
        let number = |at| crate::netns::wire::word(&info, at).unwrap_or(0);
        let size = usize::try_from(number(INFO_SIZE)).unwrap_or(0);
        let mut entries = vec![0; ENTRIES + size];
        name(&mut entries, table)?;
        entries[NAME..NAME + 4].copy_from_slice(&number(INFO_SIZE).to_ne_bytes());
        self.get(&socket, self.option + 1, &mut entries)?;
        let mut entries = entries.split_off(ENTRIES);
        self.without_counters(&mut entries);
        let sum: String = Sha256::digest(&entries).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Ok(format!("{} entries, {sum}", number(INFO_COUNT)))
    }

    fn without_counters(&self, entries: &mut [u8]) {
        let Some((length, counters)) = self.entry else { return };
        let mut at = 0;
        while let Some(next) = crate::netns::wire::half(entries, at + length).filter(|next| *next > 0) {
            if let Some(counters) = entries.get_mut(at + counters..at + counters + COUNTERS) {
                counters.fill(0);
            }
            at += usize::from(next);
        }
    }

    #[expect(unsafe_code, reason = "rustix knows no options of netfilter")]
    fn get(&self, socket: &OwnedFd, option: i32, buffer: &mut [u8]) -> Result<(), Errno> {
        let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::TOOBIG)?;
        // SAFETY: the descriptor is open; the kernel reads and writes at most `length` bytes of the buffer, which has that many, and writes
        // the length to `length`.
        let got = unsafe { libc::getsockopt(socket.as_raw_fd(), self.level, option, buffer.as_mut_ptr().cast(), &raw mut length) };
        if got == 0 { Ok(()) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)) }
    }
}

fn name(buffer: &mut [u8], table: &str) -> Result<(), Errno> {
    let place = buffer.get_mut(..table.len()).filter(|_| table.len() < NAME).ok_or(Errno::NAMETOOLONG)?;
    place.copy_from_slice(table.as_bytes());
    Ok(())
}
