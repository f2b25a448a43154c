//! Ipc objects: each that a joiner of a shared ipc namespace leaves is found, and told.

use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use nspool::netns::inspection::Objects;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::*;

/// A keeper: a process with an ipc namespace and mounts of its own, which ends with this.
struct Keeper {
    process: Child,
    ipc: File,
    root: File,
}

/// Small queues, as all of a user count together, those of other tests, too.
const SMALL: &str = "echo 1 > /proc/sys/fs/mqueue/msg_default; echo 128 > /proc/sys/fs/mqueue/msgsize_default";
/// As engines furnish a container.
const FURNISHED: &str = "mkdir -m 1777 /dev/shm /dev/mqueue; mount -t tmpfs shm /dev/shm; mount -t mqueue mqueue /dev/mqueue";

impl Keeper {
    fn new() -> Self {
        Self::with(FURNISHED)
    }

    fn with(furnish: &str) -> Self {
        let lines = format!("{SMALL}; mount -t tmpfs dev /dev; {furnish}; echo ready; read end");
        let mut command = Command::new("unshare");
        command.args(["--ipc", "--mount", "--propagation", "private", "sh", "-ec", &lines]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n");
        let of = |what: &str| File::open(format!("/proc/{}/{what}", process.id())).unwrap();
        Self { ipc: of("ns/ipc"), root: of("root"), process }
    }

    /// Runs a shell's lines as a joiner of its ipc namespace that sees its folders.
    fn run(&self, lines: &str) {
        let pid = self.process.id().to_string();
        let output = Command::new("nsenter").args(["-t", &pid, "--ipc", "--mount", "sh", "-ec", lines]).output().unwrap();
        assert!(output.status.success(), "{lines}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Calls something inside of its ipc namespace, which must not fail.
    fn call(&self, deed: impl FnOnce() -> i32 + Send) -> i32 {
        let work = || {
            move_into_link_name_space(self.ipc.as_fd(), Some(LinkNameSpaceType::InterProcessCommunication)).unwrap();
            let answer = deed();
            assert!(answer >= 0, "{}", std::io::Error::last_os_error());
            answer
        };
        std::thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    async fn try_read(&self) -> Result<Objects, InspectError> {
        Objects::read(self.ipc.as_fd(), self.root.as_fd(), WITHIN).await
    }

    async fn read(&self) -> Objects {
        self.try_read().await.unwrap()
    }

    async fn told(&self, before: &Objects) -> String {
        let found = before.differences(&self.read().await);
        assert!(found.iter().all(|difference| difference.kind == Kind::Ipc && difference.kind.word() == "ipc"), "{found:?}");
        lines(&found)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

const KEY: i32 = 0x51f3;

#[expect(unsafe_code, reason = "nothing wraps System V's calls")]
fn get_queue() -> i32 {
    // SAFETY: takes numbers only.
    unsafe { libc::msgget(KEY, libc::IPC_CREAT | 0o600) }
}

#[expect(unsafe_code, reason = "nothing wraps System V's calls")]
fn send(queue: i32, text: &str) -> i32 {
    #[repr(C)]
    struct Message(libc::c_long, [u8; 8]);
    let mut message = Message(1, [0; 8]);
    message.1[..text.len()].copy_from_slice(text.as_bytes());
    // SAFETY: the message lives until the call returns, and is as long as said.
    unsafe { libc::msgsnd(queue, (&raw const message).cast(), text.len(), libc::IPC_NOWAIT) }
}

#[expect(unsafe_code, reason = "nothing wraps System V's calls")]
fn get_memory(key: i32) -> i32 {
    // SAFETY: takes numbers only.
    unsafe { libc::shmget(key, 4096, libc::IPC_CREAT | 0o600) }
}

#[expect(unsafe_code, reason = "nothing wraps System V's calls")]
fn give(memory: i32, uid: u32, mode: u16) -> i32 {
    // SAFETY: all zeroes is a value of the structure, which lives until the calls return.
    let mut now: libc::shmid_ds = unsafe { std::mem::zeroed() };
    now.shm_perm.uid = uid;
    now.shm_perm.mode = mode;
    // SAFETY: as above.
    unsafe { libc::shmctl(memory, libc::IPC_SET, &raw mut now) }
}

/// Writes nothing, but is attached for a moment: the times are others then.
#[expect(unsafe_code, reason = "nothing wraps System V's calls")]
fn attach(memory: i32) -> i32 {
    // SAFETY: the kernel chooses where it is put, it is not used, and taken away again.
    unsafe {
        let at = libc::shmat(memory, std::ptr::null(), 0);
        libc::shmdt(at)
    }
}

#[expect(unsafe_code, reason = "nothing wraps it")]
fn open_queue(name: &str) -> i32 {
    let name = CString::new(name).unwrap();
    // SAFETY: the name lives until the call returns; the default attributes are asked for by a null.
    unsafe { libc::mq_open(name.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600, std::ptr::null_mut::<libc::mq_attr>()) }
}

#[expect(unsafe_code, reason = "nothing wraps it")]
fn post(queue: i32, text: &str) -> i32 {
    // SAFETY: the text lives until the call returns.
    unsafe { libc::mq_send(queue, text.as_ptr().cast(), text.len(), 0) }
}

#[tokio::test]
async fn what_nobody_touched_is_the_same_again_and_again() {
    let (keeper, twin) = (Keeper::new(), Keeper::new());
    keeper.run("ipcmk -M 4096; ipcmk -S 3; ipcmk -Q; touch /dev/mqueue/own /dev/shm/own");
    let before = keeper.read().await;
    for _ in 0..10 {
        // What others have in theirs is nothing to it.
        twin.run("ipcmk -M 4096; ipcmk -S 1; ipcmk -Q; touch /dev/mqueue/$(cat /proc/sys/kernel/random/uuid) /dev/shm/other");
        assert_eq!(keeper.told(&before).await, "");
    }
    assert_eq!(before, keeper.read().await);
}

#[tokio::test]
async fn each_object_is_found_by_its_name() {
    let deeds = [
        ("ipcmk -M 4096", "ipc shared memory 0x"),
        ("ipcmk -M 4096", " perms 644 size 4096 uid 0 gid 0 cgid 0"),
        ("setpriv --reuid 1000 --regid 1000 --clear-groups ipcmk -M 8192 -p 600", "by uid 1000: was not there, is shmid"),
        ("ipcmk -S 3", "ipc semaphores 0x"),
        ("ipcmk -S 3", " nsems 3 "),
        ("ipcmk -Q", "ipc message queue 0x"),
        ("touch /dev/mqueue/left", "ipc message queue /left: was not there, is inode "),
        ("touch /dev/shm/left", "ipc shared memory /left: was not there, is inode "),
        ("truncate -s 4096 /dev/shm/left", " mode 100644 uid 0 gid 0 size 4096"),
        ("mkdir /dev/shm/left", "ipc shared memory /left: was not there, is inode "),
        // Nobody reads it: that would wait for ever.
        ("mkfifo /dev/shm/left", " mode 10644 "),
        ("ln -s /etc/passwd /dev/shm/left", " mode 120777 "),
        ("chmod 0700 /dev/shm", "ipc folder /dev/shm: was inode "),
        ("chown 1000 /dev/mqueue", "ipc folder /dev/mqueue: was inode "),
    ];
    for (deed, said) in deeds {
        let keeper = Keeper::new();
        let before = keeper.read().await;
        assert_eq!(keeper.told(&before).await, "", "before {deed}");
        keeper.run(deed);
        let told = keeper.told(&before).await;
        assert!(told.contains(said) && told.lines().count() == 1, "{deed}: {told}");
        assert_eq!(keeper.told(&before).await, told, "{deed}: nothing was removed");
    }
}

#[tokio::test]
async fn objects_of_the_beginning_may_not_go_nor_change() {
    let deeds = [
        ("rm /dev/mqueue/own", "ipc message queue /own: was inode "),
        ("rm /dev/shm/own", "ipc shared memory /own: was inode "),
        ("chmod 666 /dev/mqueue/own", "mode 100666"),
        ("chown 1000 /dev/shm/own", "uid 1000"),
        ("truncate -s 1 /dev/shm/own", "size 1"),
        ("touch /dev/shm/new; mv /dev/shm/new /dev/shm/own", "ipc shared memory /own: was inode "),
        ("ipcrm -M 0x51f3", "ipc shared memory 0x000051f3 by uid 0: was shmid "),
        ("ipcrm -Q 0x51f3", "is gone"),
    ];
    for (deed, said) in deeds {
        let keeper = Keeper::new();
        keeper.call(get_queue);
        keeper.call(|| get_memory(KEY));
        keeper.run("touch /dev/mqueue/own /dev/shm/own");
        let before = keeper.read().await;
        keeper.run(deed);
        let told = keeper.told(&before).await;
        assert!(told.contains(said) && told.lines().count() == 1, "{deed}: {told}");
    }
}

#[tokio::test]
async fn owners_permissions_and_messages_count_and_times_do_not() {
    let keeper = Keeper::new();
    let (memory, queue) = (keeper.call(|| get_memory(KEY)), keeper.call(get_queue));
    let posted = keeper.call(|| open_queue("/own"));
    let before = keeper.read().await;

    keeper.call(|| attach(memory));
    keeper.run("touch -a /dev/mqueue/own");
    assert_eq!(keeper.told(&before).await, "", "times and the numbers of processes");

    keeper.call(|| give(memory, 1000, 0o640));
    let told = keeper.told(&before).await;
    assert!(told.contains("0x000051f3 by uid 0: was shmid ") && told.contains(" perms 640 size 4096 uid 1000 "), "{told}");
    keeper.call(|| give(memory, 0, 0o600));
    assert_eq!(keeper.told(&before).await, "", "as it was");

    keeper.call(|| send(queue, "left"));
    assert!(keeper.told(&before).await.contains(" cbytes 4 qnum 1 "), "a message is left");
    keeper.run("ipcrm -Q 0x51f3");
    keeper.call(get_queue);
    assert!(keeper.told(&before).await.contains("was msqid "), "another one in its place");

    let before = keeper.read().await;
    post(posted, "left");
    let told = keeper.told(&before).await;
    assert!(told.contains("message queue /own: ") && told.contains(" waiting 0,") && told.ends_with(" waiting 4"), "{told}");
}

/// Two of the same owner, without a key.
#[tokio::test]
async fn memory_without_a_key_is_found() {
    let keeper = Keeper::new();
    keeper.call(|| get_memory(libc::IPC_PRIVATE));
    let before = keeper.read().await;
    keeper.call(|| get_memory(libc::IPC_PRIVATE));
    let told = keeper.told(&before).await;
    assert!(told.starts_with("ipc shared memory without a key by uid 0: was not there, is shmid "), "{told}");
}

#[tokio::test]
async fn names_cannot_speak_to_a_terminal_nor_fill_it() {
    let keeper = Keeper::new();
    let before = keeper.read().await;
    keeper.run("cd /dev/shm; touch \"$(printf 'a\\033[2J\\nipc folder: forged')\" \"$(printf '\\377\\376')\"; touch $(printf '%0250d' 7)");
    let found = before.differences(&keeper.read().await);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().all(|difference| difference.subject.chars().all(|c| c.is_ascii() && !c.is_ascii_control())), "{found:?}");
    let told = lines(&found);
    assert!(told.contains("/a\\x1b[2J\\nipc folder: forged: was not there"), "{told}");
    assert!(told.contains("/\\xff\\xfe: was not there"), "{told}");
    assert!(told.contains("... (265 bytes): was not there"), "{told}");
    assert_eq!(told.lines().count(), 3);
}

#[tokio::test]
async fn a_flood_is_told_in_a_few_lines_and_has_a_bound() {
    let keeper = Keeper::new();
    let before = keeper.read().await;
    keeper.run("cd /dev/shm; i=0; while [ $i -lt 1000 ]; do : > $i; i=$((i + 1)); done");
    assert_eq!(keeper.told(&before).await.lines().count(), 33);
    keeper.run("cd /dev/shm; i=1000; while [ $i -lt 20000 ]; do : > $i; i=$((i + 1)); done");
    let refused = keeper.try_read().await.unwrap_err();
    assert!(matches!(&refused, InspectError::Unreadable { cause: rustix::io::Errno::TOOBIG, .. }), "{refused:?}");
}

#[tokio::test]
async fn folders_that_are_not_there_have_nothing_and_what_leads_out_is_not_followed() {
    let bare = Keeper::with(":");
    let before = bare.read().await;
    assert_eq!(bare.told(&before).await, "");
    bare.run("mkdir /dev/shm");
    assert!(bare.told(&before).await.contains("folder /dev/shm: was not there"));
    bare.run("ipcmk -Q");
    assert!(bare.told(&before).await.contains("message queue 0x"));

    let is_loop = |refused: &InspectError| matches!(refused, InspectError::Unreadable { cause: rustix::io::Errno::LOOP, .. });
    for leads_out in ["ln -s /etc /dev/shm", "ln -s ../etc /dev/mqueue"] {
        let refused = Keeper::with(leads_out).try_read().await.unwrap_err();
        assert!(is_loop(&refused), "{leads_out}: {refused:?}");
    }
    let root = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev", root.path().join("dev")).unwrap();
    let refused = Objects::read(bare.ipc.as_fd(), File::open(root.path()).unwrap().as_fd(), WITHIN).await.unwrap_err();
    assert!(is_loop(&refused), "{refused:?}");
    let refused = Keeper::with(": > /dev/shm").try_read().await.unwrap_err();
    assert!(matches!(&refused, InspectError::Unreadable { cause: rustix::io::Errno::NOTDIR, .. }), "{refused:?}");
}

#[tokio::test]
async fn what_is_late_or_no_namespace_is_an_error_and_who_asks_stays_where_it_is() {
    let keeper = Keeper::new();
    let own = || std::fs::read_link("/proc/thread-self/ns/ipc").unwrap();
    let before = own();
    keeper.read().await;
    assert_eq!(own(), before);
    let late = Objects::read(keeper.ipc.as_fd(), keeper.root.as_fd(), Duration::ZERO).await;
    assert!(matches!(late, Err(InspectError::Late { .. })), "{late:?}");
    let other = Objects::read(keeper.root.as_fd(), keeper.root.as_fd(), WITHIN).await.unwrap_err();
    assert!(other.to_string().contains("by entering it"), "{other}");
}
