//! Tells when something was removed from a folder: one inotify instance for all, a watch for each folder, whatever it is called meanwhile. (Of the
//! folder itself the kernel says nothing for as long as it is open.)
//!
//! What can go wrong: no more watches (`fs.inotify.max_user_watches`) or instances are to be had · more happens than the kernel keeps for us: all who
//! wait are woken then, and look for themselves. So is who waits for a folder that was gone before it was watched.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use rustix::fs::inotify;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use super::MountError;
use crate::netns::linux;
use crate::random::HashMap;

/// An event without a name is 16 bytes.
const BUFFER: usize = 16 * 1024;

/// Who waits for which folder, by the watch's number, and how many of them there are: the kernel has one for each folder.
type Waiting = Mutex<HashMap<i32, (Arc<Notify>, usize)>>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Watch {
    instance: OnceLock<Arc<AsyncFd<OwnedFd>>>,
    waiting: Arc<Waiting>,
}

/// Of one folder; given up when it is dropped.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) gone: Arc<Notify>,
    number: i32,
    instance: Weak<AsyncFd<OwnedFd>>,
    waiting: Weak<Waiting>,
}

impl Watch {
    /// Inside a runtime.
    pub(super) fn folder(&self, folder: &Path, tasks: &TaskTracker) -> Result<Watched, MountError> {
        let failed = |step: &'static str| MountError::refused(step, folder.display());
        let instance = self.instance(tasks)?;
        // Under the lock: it may go at once, and then whoever waits has to be known.
        let mut waiting = self.waiting.lock();
        let number = inotify::add_watch(instance.get_ref(), folder, inotify::WatchFlags::DELETE | inotify::WatchFlags::ONLYDIR).map_err(
            |errno| match errno {
                Errno::NOSPC => MountError::Stopped("no more folders can be watched (fs.inotify.max_user_watches)".to_owned()),
                errno => failed("watching")(errno),
            },
        )?;
        let (gone, watchers) = waiting.entry(number).or_default();
        *watchers += 1;
        let gone = Arc::clone(gone);
        drop(waiting);
        Ok(Watched { gone, number, instance: Arc::downgrade(instance), waiting: Arc::downgrade(&self.waiting) })
    }

    fn instance(&self, tasks: &TaskTracker) -> Result<&Arc<AsyncFd<OwnedFd>>, MountError> {
        if let Some(instance) = self.instance.get() {
            return Ok(instance);
        }
        let made = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK);
        let made = made.map_err(MountError::refused("watching", "folders (fs.inotify.max_user_instances)"))?;
        let watched = linux::readable(made).map_err(|error| MountError::Stopped(error.to_string()))?;
        let instance = self.instance.get_or_init(|| {
            let instance = Arc::new(watched);
            tasks.spawn(tell(Arc::downgrade(&instance), Arc::clone(&self.waiting)));
            instance
        });
        Ok(instance)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let Some(waiting) = self.waiting.upgrade() else { return };
        let mut waiting = waiting.lock();
        // The number may be another folder's by now.
        let Some((_, watchers)) = waiting.get_mut(&self.number).filter(|(gone, _)| Arc::ptr_eq(gone, &self.gone)) else { return };
        *watchers -= 1;
        if *watchers == 0 {
            waiting.remove(&self.number);
            if let Some(instance) = self.instance.upgrade() {
                // Refused when the folder is gone, and its watch with it.
                let _ = inotify::remove_watch(instance.get_ref(), self.number);
            }
        }
    }
}

/// As long as there is something to watch with.
async fn tell(instance: Weak<AsyncFd<OwnedFd>>, waiting: Arc<Waiting>) {
    while let Some(instance) = instance.upgrade() {
        let Ok(mut ready) = instance.readable().await else { return };
        if read(instance.get_ref(), &waiting) {
            ready.clear_ready();
        }
    }
}

/// All that there is to read. `true`: there is no more.
fn read(instance: &OwnedFd, waiting: &Waiting) -> bool {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut reader = inotify::Reader::new(instance, &mut buffer);
    loop {
        match reader.next() {
            Ok(event) if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) => {
                waiting.lock().values().for_each(|(gone, _)| gone.notify_waiters());
            }
            Ok(event) if event.events().contains(inotify::ReadFlags::IGNORED) => {
                // The kernel may give the number to another one from now on.
                if let Some((gone, _)) = waiting.lock().remove(&event.wd()) {
                    gone.notify_waiters();
                }
            }
            Ok(event) => {
                if let Some((gone, _)) = waiting.lock().get(&event.wd()) {
                    gone.notify_waiters();
                }
            }
            Err(Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}
