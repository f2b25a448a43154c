//! Whether this engine's buddies can be renewed at all: proven once, by doing it, before the first one is made ([`crate::renewal`]).
//!
//! What can go wrong: they cannot, and then no slot that depends on it is filled, with the reason in its last error; the engine does not answer, which
//! says nothing, and the next preparation tries again.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Nanny;
use super::fill::{Debris, FillError};
use super::renew::ANSWER_WITHIN;
use crate::causes::with_causes;
use crate::engine::{BuddySpec, ErrorClass, Flavour, ImageId};
use crate::renewal::{self, Unfit};

/// An operator may change what is in the way: the runtime, a security module.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// The probe's own use, and that of its joiner: names of their own.
const USES: [u64; 2] = [1, 2];

/// What is known so far. The lock is held over a probe: whoever fills meanwhile waits for its result.
#[derive(Debug, Default)]
pub struct Fitness(Mutex<Known>);

#[derive(Debug, Default)]
enum Known {
    #[default]
    Nothing,
    Fit,
    Unfit {
        why: String,
        ask_again: Instant,
    },
}

impl Fitness {
    /// There is nothing to prove: no process has to obey.
    #[must_use]
    pub fn certain() -> Self {
        Self(Mutex::new(Known::Fit))
    }
}

impl Nanny {
    pub(super) async fn is_fit(&mut self, generation: u64, image: &ImageId) -> Result<(), FillError> {
        let tools = std::sync::Arc::clone(&self.tools);
        let mut known = tools.fitness.0.lock().await;
        match &*known {
            Known::Fit => return Ok(()),
            Known::Unfit { why, ask_again } if Instant::now() < *ask_again => return Err(FillError::CannotRenew(why.clone())),
            Known::Nothing | Known::Unfit { .. } => {}
        }
        let [name, joining] = USES.map(|number| tools.breed.name(self.slot, generation, number, self.dice()));
        let buddy = tools.breed.spec(self.slot, generation, self.network(), &name, image);
        let joiner =
            BuddySpec { name: joining.clone(), user: tools.breed.user.clone(), flavour: Flavour::Fixed, ipv6: false, ..buddy.clone() };
        let unfit = match renewal::probe(tools.engine.as_ref(), tools.kernel.as_ref(), &buddy, &joiner, ANSWER_WITHIN).await {
            Ok(renewed) => {
                tracing::info!(took = ?renewed.took, "this engine joins renewed namespaces");
                *known = Known::Fit;
                return Ok(());
            }
            Err(unfit) => unfit,
        };
        // Whatever could not be removed; no engine removes what another one joins.
        self.debris.extend([joining, name].map(Debris::of));
        let why = with_causes(&unfit);
        if is_final(&unfit) {
            tracing::error!(why, "buddies cannot be renewed here: reuse = \"fresh\" is not to be had");
            *known = Known::Unfit { why: why.clone(), ask_again: Instant::now() + ASK_AGAIN_AFTER };
        }
        Err(FillError::CannotRenew(why))
    }
}

/// Not only a call that failed this time.
fn is_final(unfit: &Unfit) -> bool {
    match unfit {
        Unfit::Engine { error, .. } => match error.class {
            ErrorClass::Refused | ErrorClass::NotAllowed => true,
            ErrorClass::Unknown
            | ErrorClass::Away
            | ErrorClass::NotFound
            | ErrorClass::ImageMissing
            | ErrorClass::NetworkMissing
            | ErrorClass::NameTaken
            | ErrorClass::HasDependents
            | ErrorClass::NoAddresses
            | ErrorClass::DiskFull
            | ErrorClass::RegistryDenied
            | ErrorClass::RegistryUnknown
            | ErrorClass::RegistryBusy { .. } => false,
        },
        Unfit::Kernel { .. } => false,
        Unfit::Ended { .. } | Unfit::TheHosts | Unfit::Renewal(_) | Unfit::JoinerElsewhere(_) => true,
    }
}
