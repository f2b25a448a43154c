//! What is on the link inside a namespace, whoever made it.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::thread;

use rustix::io::Errno;

use super::error::FurnishError;
use super::hand::{INSIDE, enter};
use super::link;
use crate::netns::socket::Socket;

/// As the kernel says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::netns) struct Inside {
    /// There is a link of that name.
    pub(in crate::netns) is_there: bool,
    /// It was brought up.
    pub(in crate::netns) is_up: bool,
    pub(in crate::netns) mtu: u32,
    /// Each with its prefix.
    pub(in crate::netns) addresses: Vec<(IpAddr, u8)>,
}

/// By a thread that goes there for good.
pub(in crate::netns) fn look_inside(namespace: BorrowedFd<'_>) -> Result<Inside, FurnishError> {
    let opened = thread::scope(|scope| {
        let open = || {
            enter(namespace).map_err(FurnishError::failing("entering the slot's network namespace", "setns"))?;
            Socket::open(None, 0).map_err(FurnishError::failing("opening a socket inside", "links"))
        };
        let spawned = thread::Builder::new().name("nspool-inside".to_owned()).spawn_scoped(scope, open);
        let failed = |_| FurnishError::failing("starting a thread", "links")(Errno::AGAIN);
        spawned.map_err(failed)?.join().map_err(|_| FurnishError::Stopped)?
    });
    let (mut socket, failed) = (opened?, FurnishError::failing("looking for the link inside", INSIDE));
    let Some(found) = link::find(&mut socket, INSIDE).map_err(&failed)? else {
        return Ok(Inside { is_there: false, is_up: false, mtu: 0, addresses: Vec::new() });
    };
    let all = link::addresses(&mut socket).map_err(&failed)?;
    let addresses = all.into_iter().filter(|(index, ..)| *index == found.index).map(|(_, address, prefix)| (address, prefix)).collect();
    Ok(Inside { is_there: true, is_up: found.is_up, mtu: found.mtu, addresses })
}
