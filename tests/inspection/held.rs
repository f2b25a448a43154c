//! Sockets whose owner is elsewhere: each is found, of every family.

use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, ipproto, netlink, socket_with};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

use super::*;

fn raw(family: AddressFamily, kind: SocketType, protocol: Option<Protocol>) -> OwnedFd {
    socket_with(family, kind, SocketFlags::CLOEXEC, protocol).unwrap()
}

type Opening = fn() -> Vec<OwnedFd>;

#[tokio::test]
async fn a_socket_of_any_family_is_found_while_somebody_has_it() {
    let openings: [(&str, Opening); 14] = [
        ("socket tcp: was not there, is 127.0.0.1:7007 to 0.0.0.0:0", || vec![TcpListener::bind("127.0.0.1:7007").unwrap().into()]),
        ("socket tcp: was not there, is [::]:7007", || vec![TcpListener::bind("[::]:7007").unwrap().into()]),
        ("socket tcp", || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            vec![client.into(), listener.accept().unwrap().0.into()]
        }),
        ("socket udp: was not there, is 0.0.0.0:7007", || vec![UdpSocket::bind("0.0.0.0:7007").unwrap().into()]),
        ("socket udp6: was not there, is [::1]:7007", || vec![UdpSocket::bind("[::1]:7007").unwrap().into()]),
        ("socket unix: was not there, is @left", || {
            vec![UnixListener::bind_addr(&SocketAddr::from_abstract_name("left").unwrap()).unwrap().into()]
        }),
        ("socket unix", || {
            let (one, other) = UnixDatagram::pair().unwrap();
            vec![one.into(), other.into()]
        }),
        ("socket netlink", || {
            vec![{
                let socket = raw(AddressFamily::NETLINK, SocketType::RAW, None);
                rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, 1)).unwrap();
                socket
            }]
        }),
        ("socket packet", || {
            vec![raw(AddressFamily::PACKET, SocketType::RAW, Protocol::from_raw(std::num::NonZero::new(0x0300).unwrap()).into())]
        }),
        ("socket raw", || vec![raw(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))]),
        ("socket raw6", || vec![raw(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6))]),
        // Neither bound nor connected: in no list.
        ("in no use", || vec![raw(AddressFamily::INET, SocketType::STREAM, None)]),
        ("in no use", || vec![raw(AddressFamily::NETLINK, SocketType::RAW, None)]),
        ("in no use", || vec![raw(AddressFamily::VSOCK, SocketType::STREAM, None)]),
    ];
    for (said, open) in openings {
        let rig = Rig::new().await;
        let held = rig.slot.inside(open);
        let found = rig.dirt().await;
        assert!(found.iter().all(|difference| difference.kind == Kind::Socket), "{said}: {}", lines(&found));
        assert!(lines(&found).contains(said), "{said}: {}", lines(&found));
        drop(held);
        rig.removed().await;
        rig.assert_clean(said).await;
    }
}

#[tokio::test]
async fn a_socket_on_its_way_between_processes_is_found() {
    let rig = Rig::new().await;
    let (here, there) = UnixDatagram::pair().unwrap();
    let passed: OwnedFd = rig.slot.inside(|| UdpSocket::bind("10.9.0.2:7007").unwrap().into());
    let fds = [std::os::fd::AsFd::as_fd(&passed)];
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut buffer = rustix::net::SendAncillaryBuffer::new(&mut space);
    assert!(buffer.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
    rustix::net::sendmsg(&here, &[std::io::IoSlice::new(b"x")], &mut buffer, rustix::net::SendFlags::empty()).unwrap();
    drop(passed);
    assert_eq!(lines(&rig.dirt().await), "socket udp: was not there, is 10.9.0.2:7007");
    drop((here, there));
    rig.assert_clean("the first").await;
}

/// As an engine keeps one for each of its namespaces.
#[tokio::test]
async fn sockets_of_the_baselines_may_stay_and_go_but_not_be_replaced() {
    let open = || raw(AddressFamily::NETLINK, SocketType::RAW, None);
    let bound = move || {
        let socket = open();
        rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, 0)).unwrap();
        socket
    };
    let mut rig = Rig::new().await;
    let engines = rig.slot.inside(bound);
    rig.baseline = Baseline::take(rig.slot.fd(), Depth::Usual, WITHIN).await.unwrap();
    rig.assert_clean("the first").await;
    let second = rig.slot.inside(bound);
    assert!(lines(&rig.dirt().await).contains("socket netlink"));
    drop(engines);
    assert!(lines(&rig.dirt().await).contains("socket netlink"), "as many as before, but not the same");
    drop(second);
    rig.assert_clean("the first").await;
    let hidden = rig.slot.inside(|| raw(AddressFamily::INET, SocketType::STREAM, None));
    assert!(lines(&rig.dirt().await).contains("in no use"));
    drop(hidden);
}
