//! Whether the host has a link of a name: all that those who know engines, and not links, need of it.

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// In the network namespace of the calling thread. What cannot be told is taken for there: nothing may be made in its place.
#[must_use]
pub fn is_there(link: &str) -> bool {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    socket.and_then(|socket| name_to_index(socket, link)) != Err(Errno::NODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_there_or_not() {
        assert!(is_there("lo"));
        assert!(!is_there("nspool-no-link") && !is_there("a name that no link can have"));
    }
}
