//! How many calls may be in flight at once: tokio's fair semaphore, made resizable. It knows no rates and no deadlines.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::names;

/// A fair cap on calls in flight, which can be resized while they are.
pub(super) struct Cap {
    name: &'static str,
    places: Arc<Semaphore>,
    size: Arc<Mutex<Size>>,
}

struct Size {
    wanted: usize,
    /// Places in use that are not to be given back.
    surplus: usize,
}

impl Cap {
    pub(super) fn new(name: &'static str, size: u32) -> Self {
        let wanted = (size as usize).max(1);
        Self { name, places: Arc::new(Semaphore::new(wanted)), size: Arc::new(Mutex::new(Size { wanted, surplus: 0 })) }
    }

    /// First come, first served. Cancel safe.
    pub(super) async fn enter(&self) -> Place {
        let begin = Instant::now();
        // The semaphore is never closed, so there always is a permit.
        let permit = self.places.clone().acquire_owned().await.ok();
        metrics::histogram!(names::PACER_WAIT_SECONDS, "queue" => self.name).record(begin.elapsed());
        Place { permit, size: self.size.clone() }
    }

    /// A larger size is there at once, a smaller one is reached as calls end.
    pub(super) fn resize(&self, size: u32) {
        let wanted = (size as usize).max(1);
        let mut size = self.size.lock();
        if wanted >= size.wanted {
            let more = wanted - size.wanted;
            let kept = more.min(size.surplus);
            size.surplus -= kept;
            self.places.add_permits(more - kept);
        } else {
            let fewer = size.wanted - wanted;
            size.surplus += fewer - self.places.forget_permits(fewer);
        }
        size.wanted = wanted;
    }
}

/// One call's place under a [`Cap`]; given back when dropped, unless the cap shrank meanwhile.
pub(super) struct Place {
    permit: Option<OwnedSemaphorePermit>,
    size: Arc<Mutex<Size>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut size = self.size.lock();
        if size.surplus > 0
            && let Some(permit) = self.permit.take()
        {
            size.surplus -= 1;
            permit.forget();
        }
        // A permit that is still there goes back only after the lock; a resize in between counts it as in use, which it is.
    }
}
