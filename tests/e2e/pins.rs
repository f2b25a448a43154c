//! What keeps an old namespace alive under `reuse = "fresh"` and is shown by no look at processes: an open descriptor of somebody elsewhere, sockets
//! that were made inside and passed on, or are still on their way. The next tenant has another namespace, and whoever has the old one neither reaches
//! nor hears anybody by it, also when another has its address. When it is let go, nothing is left.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nspool::client::Client;
use nspool::proto;
use rustix::net::{
    AddressFamily, Protocol, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socket_with,
};

use super::fresh::{address, links, one_slot, run, started};
use crate::support::daemon::{TestDaemon, returned, text};
use crate::support::engines::{TestEngine, unique, unique_subnet};
use crate::support::space::Space;

on_both_engines!(a_descriptor_elsewhere_reaches_nobody, sockets_that_were_passed_on_reach_nobody);

/// Longer than any answer on one machine takes, less than a lost packet's repetition.
const DROPPED: Duration = Duration::from_millis(700);
/// Uses until a network of five addresses comes back to one of them; more, in case that some are late.
const MOST_USES: usize = 20;
const EVERYTHING: u16 = 3;

/// A slot that is leased, on a network of five addresses.
struct Scene<'e> {
    daemon: TestDaemon<'e>,
    bridge: String,
    client: Client,
    lease: proto::Lease,
    /// A link whose other end is in the leased namespace: it goes when that does.
    witness: String,
}

impl<'e> Scene<'e> {
    async fn new(engine: &'e TestEngine) -> Self {
        let subnet = format!("networks.own.subnet = {:?}", unique_subnet(29));
        let (daemon, bridge) = started(engine, &[&one_slot()[..], &[&subnet, "stop.policy = \"remove\""]].concat()).await;
        daemon.settled(1).await;
        let client = daemon.client();
        let lease = daemon.allocate(&client).await;
        let mut scene = Self { daemon, bridge, client, lease, witness: format!("nw{:x}", unique()) };
        let pid = scene.buddy().await;
        run(&["ip", "link", "add", &scene.witness, "type", "veth", "peer", "name", "witness", "netns", &pid]);
        scene.lease.ip_addresses.truncate(1);
        scene
    }

    /// Its process.
    async fn buddy(&self) -> String {
        let slot = self.daemon.slots().await.remove(0);
        self.daemon.engine.run(&["inspect", "-f", "{{.State.Pid}}", &slot.container_id])
    }

    async fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.buddy().await)
    }

    /// The first lease ends, and the next one of the same buddy begins.
    async fn next(&self) -> proto::Lease {
        let next = self.after(&self.lease).await;
        assert_eq!((next.generation, next.r#use), (self.lease.generation, self.lease.r#use + 1), "{}", self.daemon.log());
        assert_ne!(address(&next), address(&self.lease));
        self.is_at_peace();
        next
    }

    async fn after(&self, lease: &proto::Lease) -> proto::Lease {
        returned(&self.client.release(&lease.token, false).await.unwrap());
        self.daemon.allocate(&self.client).await
    }

    fn old_lives(&self) -> bool {
        run(&["ip", "-o", "link"]).contains(&self.witness)
    }

    /// Neither the audit nor the log tells of anything that is wrong.
    fn is_at_peace(&self) {
        let audit = self.daemon.cli(&["audit"]);
        assert!(audit.status.success(), "{}", text(&audit.stdout));
        let log = self.daemon.log();
        assert!(!log.contains("not as it should be") && !log.contains("not gone yet"), "{log}");
    }

    /// A listener at the gateway's address, on the host.
    fn gateway(&self) -> TcpListener {
        TcpListener::bind((ip(&self.lease.gateways[0]), 0)).unwrap()
    }

    /// The tenant talks to the gateway, and to all that hear it.
    fn talks(&self, tenant: &proto::Lease) {
        let talk = format!("busybox ping -c 1 -W 5 {}; busybox arping -c 1 -w 1 {}; true", tenant.gateways[0], address(&self.lease));
        let said = self.daemon.function(&["run", "--rm"], &tenant.network_mode, &["sh", "-c", &talk]).unwrap();
        assert!(said.contains(" 1 packets received"), "{said}");
    }

    /// Uses until one has the first lease's address.
    async fn until_its_address_is_anothers(&self, mut lease: proto::Lease) -> proto::Lease {
        for _ in 0..MOST_USES {
            lease = self.after(&lease).await;
            if address(&lease) == address(&self.lease) {
                return lease;
            }
        }
        panic!("{} was not given out again:\n{}", address(&self.lease), self.daemon.log());
    }

    /// The pin is let go by now.
    async fn ends(mut self) {
        self.daemon.level("the old namespace's end", |_| async { (!self.old_lives()).then_some(()) }).await;
        links(&self.daemon, &self.bridge, 1).await;
        self.is_at_peace();
        assert_eq!(self.daemon.stop().await, 0, "{}", self.daemon.log());
        assert!(!run(&["ip", "-o", "link"]).contains(&self.bridge), "{}", self.daemon.log());
    }
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// Of the host, by one packet.
fn reaches(to: &str) -> bool {
    Command::new("busybox").args(["ping", "-c", "1", "-W", "1", to]).stdout(Stdio::null()).status().unwrap().success()
}

/// A process that has opened a file, and is in no namespace but the host's.
struct Holder(Child);

impl Holder {
    fn of(path: &str) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", "exec 9<\"$0\" && echo holds && read -r end", path])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
        Self(child)
    }

    /// What it holds, held by the test as well until this is dropped.
    fn space(&self) -> Space {
        File::open(format!("/proc/{}/fd/9", self.0.id())).unwrap().into()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ended = self.0.wait();
    }
}

async fn a_descriptor_elsewhere_reaches_nobody(engine: &TestEngine) {
    let scene = Scene::new(engine).await;
    let (listener, namespace) = (scene.gateway(), scene.namespace().await);
    let gateway = listener.local_addr().unwrap();
    let holder = Holder::of(&namespace);
    let tries = |to: SocketAddr| holder.space().inside(|| TcpStream::connect_timeout(&to, DROPPED).is_ok());
    assert!(tries(gateway) && reaches(address(&scene.lease)), "or nothing below says anything");
    let (hears, (_, own)) = (holder.space().inside(packets), link(&holder.space()));

    let next = scene.next().await;
    assert!(!tries(gateway) && !reaches(address(&scene.lease)), "cut off");
    let is = |path: &str| std::fs::metadata(path).unwrap().ino();
    assert_ne!(is(&namespace), is(&format!("/proc/{}/fd/9", holder.0.id())), "the next one's namespace is another");
    heard(&hears, own).clear();
    scene.talks(&next);
    scene.daemon.level("the old link's end", |_| async { (!holder.space().run("ip -o link").contains("eth0")).then_some(()) }).await;
    scene.is_at_peace();
    assert!(!tries(gateway), "taken away");

    let twin = scene.until_its_address_is_anothers(next).await;
    assert!(scene.old_lives());
    scene.talks(&twin);
    assert!(reaches(address(&twin)) && !tries(gateway) && !tries((ip(address(&twin)), 1).into()));
    assert_eq!(heard(&hears, own), [] as [Vec<u8>; 0]);
    drop((hears, holder));
    scene.ends().await;
}

/// All that comes to any link of the namespace which the calling thread is in.
fn packets() -> OwnedFd {
    let all = Protocol::from_raw(u32::from(EVERYTHING.to_be()).try_into().unwrap());
    socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, Some(all)).unwrap()
}

/// The frames by IPv4 and ARP that came since the last look, from other links than that with this hardware address.
fn heard(hears: &OwnedFd, own: [u8; 6]) -> Vec<Vec<u8>> {
    let (mut frame, mut heard) = ([0; 2048], Vec::new());
    loop {
        match recv(hears, &mut frame[..], RecvFlags::DONTWAIT) {
            Ok((length, _)) => {
                let is_one = [[0x08, 0x00], [0x08, 0x06]].contains(&[frame[12], frame[13]]) && frame[6..12] != own;
                heard.extend(is_one.then(|| frame[..length].to_vec()));
            }
            // Its link is gone, which is told once.
            Err(rustix::io::Errno::NETDOWN) => {}
            Err(rustix::io::Errno::AGAIN) => return heard,
            Err(errno) => panic!("{errno}"),
        }
    }
}

/// Number and hardware address of the slot's link inside.
fn link(space: &Space) -> (u32, [u8; 6]) {
    let told = space.run("ip -o link show eth0");
    let words: Vec<&str> = told.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "link/ether").unwrap() + 1;
    let bytes: Vec<u8> = words[at].split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    (words[0].trim_end_matches(':').parse().unwrap(), bytes.try_into().unwrap())
}

/// Made inside, and passed on: none of them is anybody's but by this socket, in which they wait.
fn pass_on(namespace: &str, gateway: SocketAddr) -> UnixStream {
    let (to, from) = UnixStream::pair().unwrap();
    let space = Space::from(File::open(namespace).unwrap());
    space.inside(|| {
        let tcp = TcpStream::connect_timeout(&gateway, DROPPED).unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let links = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
        let (packets, passed) = (packets(), [tcp.as_fd(), udp.as_fd(), links.as_fd()]);
        let passed = [passed[0], passed[1], passed[2], packets.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&passed)));
        sendmsg(&to, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty()).unwrap();
    });
    from
}

fn received(from: &UnixStream) -> [OwnedFd; 4] {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(from, &mut [IoSliceMut::new(&mut [0])], &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let rights = |message| if let RecvAncillaryMessage::ScmRights(rights) = message { Some(rights) } else { None };
    let passed: Vec<OwnedFd> = ancillary.drain().filter_map(rights).flatten().collect();
    passed.try_into().unwrap()
}

/// Takes a link down, and up, by a socket of its namespace. If it is still there.
fn flap(links: &OwnedFd, index: u32) {
    for up in [0_u32, 1] {
        let mut request = Vec::new();
        for word in [32, 16 | 1 << 16, 1, 0, 0, index, up, 1_u32] {
            request.extend(word.to_ne_bytes());
        }
        send(links, &request, SendFlags::empty()).unwrap();
    }
}

async fn sockets_that_were_passed_on_reach_nobody(engine: &TestEngine) {
    let scene = Scene::new(engine).await;
    let (listener, namespace) = (scene.gateway(), scene.namespace().await);
    let hears = UdpSocket::bind((ip(&scene.lease.gateways[0]), 0)).unwrap();
    hears.set_read_timeout(Some(DROPPED)).unwrap();
    let (index, own) = link(&File::open(&namespace).unwrap().into());
    let on_the_way = pass_on(&namespace, listener.local_addr().unwrap());
    let (mut beyond, _) = listener.accept().unwrap();
    beyond.set_read_timeout(Some(DROPPED)).unwrap();

    let next = scene.next().await;
    assert!(scene.old_lives(), "what is on its way is a pin");
    let [tcp, udp, links, packets] = received(&on_the_way);
    let (mut tcp, udp) = (TcpStream::from(tcp), UdpSocket::from(udp));
    tcp.set_read_timeout(Some(DROPPED)).unwrap();
    flap(&links, index);
    let mut says_something = |what: &str| {
        // Taken, refused or without a way: it does not come.
        let _said = (tcp.write(b"x"), beyond.write(b"x"), udp.send_to(b"x", hears.local_addr().unwrap()));
        let heard = [beyond.read(&mut [0; 8]), tcp.read(&mut [0; 8]), hears.recv(&mut [0; 8])];
        // An end that was reset heard so from whoever has the address now.
        assert!(heard.iter().all(|heard| !matches!(heard, Ok(1..))), "{what}: {heard:?}");
    };
    says_something("cut off");
    heard(&packets, own).clear();
    scene.talks(&next);
    let twin = scene.until_its_address_is_anothers(next).await;
    assert!(scene.old_lives());
    scene.talks(&twin);
    flap(&links, index);
    says_something("another has its address");
    assert_eq!(heard(&packets, own), [] as [Vec<u8>; 0]);
    // Or the kernel keeps it, for minutes, to send what nobody acknowledges.
    rustix::net::sockopt::set_socket_linger(&tcp, Some(Duration::ZERO)).unwrap();
    drop((tcp, udp, links, packets, beyond, on_the_way));
    scene.ends().await;
}
