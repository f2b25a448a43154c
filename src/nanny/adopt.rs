//! Adopt: what a dead or stopped predecessor of this daemon had in the slot is proven again, and goes on as it was.
//!
//! What can go wrong: it is not there any more, or was restarted, paused, renamed meanwhile (the buddy is given up, a lease on it is LOST) · it has
//! ended with somebody inside (it goes to the minder, the slot goes on without it) · the engine or the kernel does not answer (asked again:
//! unknown is neither dead nor well) · somebody is in one that nobody has leased (it is retired, so quarantined until they are gone).

use super::fill::FillError;
use super::looks::Inside;
use super::minder::Detached;
use super::{Buddy, Nanny};
use std::net::IpAddr;
use std::time::Duration;

use crate::causes::with_causes;
use crate::engine::{Container, ContainerId, Engine, ErrorClass};
use crate::nanny::hold;
use crate::netns::networks::{Link, NetworkError};
use crate::netns::{Held, KernelError};
use crate::observer::EngineState;
use crate::pool::state::{Order, SlotState};
use crate::pool::{Namespace, UseKey};

const UNREADABLE: &str = "what a predecessor's buddy is cannot be read: it serves one more lease";

/// What a look at a predecessor's buddy came to.
enum Seen {
    Well(Box<Buddy>),
    /// Ours, alive, and not as it was.
    Changed(Box<Buddy>, &'static str),
    /// Not alive as a buddy should be; to be minded.
    Unfit(Box<Detached>),
    /// Nothing of ours has this id.
    Gone,
    /// Ask again.
    Unknown(String),
}

impl Nanny {
    pub(super) async fn adopt(&mut self, key: UseKey) {
        let order = Order::Adopt(key);
        let mut engine_state = self.tools.engine_state.clone();
        tokio::select! {
            biased;
            () = self.until_order_is_not(&order) => return,
            up = engine_state.wait_for(EngineState::is_up) => if up.is_err() { return },
        }
        let (namespace, used) = self.tools.pool.read(|state| {
            let view = state.slot_view(self.slot);
            // A lease may be over by now, and is not vacated yet.
            (view.namespace, view.state != SlotState::Adopting)
        });
        tokio::select! {
            biased;
            () = self.until_order_is_not(&order) => return,
            () = self.tools.networks.begun() => {}
        }
        let seen = match &namespace {
            Some(namespace) => self.look_at(key, namespace, used).await,
            None => Seen::Gone,
        };
        match seen {
            Seen::Well(buddy) => {
                let who = if used { Ok(Vec::new()) } else { self.who_is_in(&buddy).await };
                match who {
                    Ok(who) => self.adopted(key, *buddy, &who),
                    Err(error) => {
                        self.tools.doubts.forget(&buddy.id);
                        self.tools.present.forget(&buddy.id);
                        self.tools.networks.not_adopted(buddy.link);
                        self.ask_again(&order, error).await;
                    }
                }
            }
            Seen::Changed(buddy, why) => {
                self.buddy = Some(*buddy);
                self.gone(key, why).await;
            }
            Seen::Unfit(buddy) => {
                if let (Some(shelf), Some(namespace)) = (&self.tools.shelf, &namespace)
                    && let Err(error) = shelf.withdraw(&namespace.namespace_id).await
                {
                    return self.ask_again(&order, error.to_string()).await;
                }
                let Ok(place) = self.tools.detached.try_reserve() else {
                    return self.ask_again(&order, "as many buddies are detached as may be".to_owned()).await;
                };
                tracing::warn!(slot = self.slot, generation = key.generation, container = %buddy.id, "a predecessor's buddy has ended");
                self.tools.pool.with(|state, now| {
                    state.adopt_detached();
                    state.buddy_gone(now, key, "it ended while nspool was away");
                });
                place.send(*buddy);
            }
            Seen::Gone => {
                tracing::warn!(slot = self.slot, generation = key.generation, "a predecessor's buddy is gone");
                self.tools.pool.with(|state, now| state.buddy_gone(now, key, "it was removed while nspool was away"));
            }
            Seen::Unknown(error) => self.ask_again(&order, error).await,
        }
    }

    fn adopted(&mut self, key: UseKey, buddy: Buddy, inside: &[String]) {
        tracing::info!(
            slot = self.slot, generation = key.generation, use_number = key.use_number, namespace_id = buddy.name, container = %buddy.id,
            inside = inside.join(", "), "buddy adopted"
        );
        let image = buddy.facts.image.clone();
        self.buddy = Some(buddy);
        self.tools.trust.earn();
        self.tools.pool.with(|state, now| {
            state.made_of(self.slot, image.bare());
            state.proven(now, key, inside.is_empty());
        });
        self.tools.made.notify_one();
    }

    async fn ask_again(&mut self, order: &Order, error: String) {
        tracing::debug!(slot = self.slot, error, "a predecessor's buddy cannot be looked at yet");
        self.tools.pool.with(|state, _| state.note_error(self.slot, error));
        self.retry_later(order).await;
    }

    async fn who_is_in(&self, buddy: &Buddy) -> Result<Vec<String>, String> {
        let inside = self.tools.looks.inside(&buddy.id, Some(&*buddy.held)).await;
        inside.map(Inside::all).map_err(|error| error.to_string())
    }

    async fn look_at(&self, key: UseKey, namespace: &Namespace, used: bool) -> Seen {
        let id = ContainerId::from(&*namespace.container_id);
        let container = match self.tools.engine.inspect(id.as_str()).await {
            Ok(container) => container,
            Err(error) if error.class == ErrorClass::NotFound => return Seen::Gone,
            Err(error) => return Seen::Unknown(error.to_string()),
        };
        let ours = self.tools.breed.owned(&container.name, &container.labels);
        if ours.is_none_or(|owner| (owner.slot, owner.generation) != (key.slot, key.generation)) {
            return Seen::Gone;
        }
        let (held, facts) = match self.prove(&id).await {
            Ok(proven) => proven,
            Err(FillError::Engine(error)) if error.class == ErrorClass::NotFound => return Seen::Gone,
            Err(
                error @ (FillError::Engine(_)
                | FillError::Kernel(_)
                | FillError::Debris(_)
                | FillError::CannotRenew(_)
                | FillError::Network(_)
                | FillError::Files(_)
                | FillError::Shelf(_)
                | FillError::Snapshot(_)),
            ) => return Seen::Unknown(error.to_string()),
            Err(error @ (FillError::Unfit(_) | FillError::EndedAtOnce { .. })) => {
                return self.unfit_one(key, container, error.to_string()).await;
            }
        };
        let (started_at, name) = (facts.started_at.clone(), facts.name.clone());
        // A function may have written into them; a ready buddy's are as they were at first.
        let files = if used { Ok(None) } else { self.baseline(&facts).await };
        let files = files.unwrap_or_else(|error| {
            tracing::warn!(slot = self.slot, %error, "{UNREADABLE}");
            None
        });
        let link = match self.link_of(namespace, held.as_ref(), used).await {
            Ok(link) => link,
            Err(error) => return Seen::Unknown(error.to_string()),
        };
        let unfurnished = link.is_none() && self.address_of(namespace).is_some();
        let mut buddy = Box::new(self.buddy(key.generation, name.clone(), held, facts).await);
        (buddy.link, buddy.files) = (link, files);
        // Another policy's uses were not verified, and a holder that knows the id could follow by it.
        if !used && key.use_number == 1 && !namespace.tell_container_id {
            buddy.snapshot = self.take_snapshot(&buddy).await.unwrap_or_else(|error| {
                tracing::warn!(slot = self.slot, error = with_causes(&error), "{UNREADABLE}");
                None
            });
        }
        // What the predecessor's last use could be joined by goes with the fence, or is there as it should be.
        buddy.shelved = self.tools.shelf.as_ref().map(|_| namespace.namespace_id.clone());
        if name == namespace.namespace_id
            && let Err(error) = self.tools.publish(&mut buddy).await
        {
            return Seen::Unknown(error.to_string());
        }
        if unfurnished {
            Seen::Changed(buddy, "its link went while nspool was away")
        } else if started_at != namespace.started_at {
            Seen::Changed(buddy, "it was restarted while nspool was away")
        } else if name != namespace.namespace_id {
            Seen::Changed(buddy, "it was renamed while nspool was away")
        } else {
            Seen::Well(buddy)
        }
    }

    /// The one that the predecessor gave it.
    async fn link_of(&self, namespace: &Namespace, held: &dyn Held, used: bool) -> Result<Option<Link>, NetworkError> {
        match self.address_of(namespace) {
            Some(address) => self.tools.networks.adopt(self.network(), self.slot, address, held, used).await,
            None => Ok(None),
        }
    }

    /// If it is one of ours: the network may have been the engine's when the buddy was made.
    fn address_of(&self, namespace: &Namespace) -> Option<IpAddr> {
        let address = namespace.addresses.first()?.address.split('/').next()?.parse().ok()?;
        self.tools.networks.is_ours(self.network(), address).then_some(address)
    }

    async fn unfit_one(&self, key: UseKey, container: Container, why: String) -> Seen {
        let held = match hold(self.tools.kernel.as_ref(), &container, &self.tools.breed.namespaces).await {
            Ok(held) => held,
            Err(KernelError::Gone { .. }) => None,
            Err(error) => return Seen::Unknown(error.to_string()),
        };
        Seen::Unfit(Box::new(Detached {
            id: container.id,
            name: container.name,
            slot: self.slot,
            generation: key.generation,
            held,
            // A predecessor's: it goes with the namespace.
            link: None,
            since: self.tools.pool.now(),
            joiners: vec![why],
            keep_until: Duration::ZERO,
        }))
    }
}
