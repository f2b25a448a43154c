//! The [`Engine`] side: how a call is answered, in time and in spite of what was scripted.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt as _};
use tokio::sync::oneshot;

use super::model::{Look, Model, fail};
use super::script::{Call, Fault, Operation, Phase};
use super::{EngineState, FakeWorld};
use crate::engine::{
    BuddySpec, BuildSpec, Chunks, Container, ContainerId, ContainerSummary, Credentials, Engine, EngineError, EngineEvent, EngineFuture,
    EngineInfo, EngineKind, ErrorClass, Image, ImageArchive, ImageId, ImageRemoval, LayerStage, Network, NetworkSpec, PullStep, SizedImage,
    WaitOutcome,
};
use crate::level;

/// See [`FakeWorld::engine`].
pub(super) struct FakeEngine(pub Arc<FakeWorld>);

/// A call that has begun; it has ended when this is dropped.
pub(super) struct Ticket {
    world: Arc<FakeWorld>,
    call: Call,
    fault: Fault,
    latency: Duration,
}

impl Ticket {
    fn answered<T>(&mut self, answer: &Result<T, EngineError>) {
        self.settled(answer.as_ref().map(|_| ()).map_err(|error| error.class));
    }

    pub(super) fn settled(&mut self, outcome: Result<(), ErrorClass>) {
        self.call.outcome = Some(outcome);
    }

    fn error(&self, class: ErrorClass, message: &str) -> EngineError {
        fail(self.call.operation, class, &self.call.subject, message, None)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.call.phase = Phase::Answered;
        self.world.script.lock().end(&self.call);
        self.world.tell(&self.call);
    }
}

impl FakeWorld {
    fn tell(&self, call: &Call) {
        let hook = self.hook.lock().clone();
        if let Some(hook) = hook {
            hook(call);
        }
    }

    pub(super) fn begin(self: &Arc<Self>, operation: Operation, subject: &str) -> Ticket {
        let name = {
            let model = self.model.lock();
            model.find(subject).map_or_else(|| subject.to_owned(), |number| model.item(number).name.to_string())
        };
        let (call, fault, latency) = self.script.lock().begin(operation, subject, name);
        self.tell(&call);
        Ticket { world: Arc::clone(self), call, fault, latency }
    }

    /// Carries a call out, at once where nothing was scripted, else in a task of its own: a request that the engine has read goes on without
    /// its caller.
    async fn call<T, F>(self: &Arc<Self>, operation: Operation, subject: &str, act: F) -> Result<T, EngineError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Model) -> Result<T, EngineError> + Send + 'static,
    {
        let mut ticket = self.begin(operation, subject);
        if ticket.fault == Fault::Ok && ticket.latency.is_zero() && *self.state.borrow() == EngineState::Up {
            let answer = act(&mut self.model.lock());
            ticket.answered(&answer);
            return answer;
        }
        let (mut sender, receiver) = oneshot::channel();
        let world = Arc::clone(self);
        self.tasks.spawn(async move {
            let answer = world.serve(&ticket, act, &mut sender).await;
            ticket.answered(&answer);
            drop(ticket);
            // The caller may be gone: that changes nothing.
            drop(sender.send(answer));
        });
        match receiver.await {
            Ok(answer) => answer,
            Err(_) => std::future::pending().await,
        }
    }

    async fn serve<T, F>(&self, ticket: &Ticket, act: F, caller: &mut oneshot::Sender<Result<T, EngineError>>) -> Result<T, EngineError>
    where
        F: FnOnce(&mut Model) -> Result<T, EngineError>,
    {
        let mut state = self.state.subscribe();
        if *state.borrow() == EngineState::Away {
            return Err(ticket.error(ErrorClass::Away, "connection refused"));
        }
        let cut = || ticket.error(ErrorClass::Unknown, "EOF");
        let slow = if let Fault::Slow(slow) = ticket.fault { slow } else { Duration::ZERO };
        tokio::select! {
            biased;
            () = until(&mut state, EngineState::Away) => return Err(cut()),
            () = tokio::time::sleep(ticket.latency + slow) => {}
        }
        let mut second = self.state.subscribe();
        tokio::select! {
            biased;
            () = until(&mut state, EngineState::Away) => return Err(cut()),
            () = until(&mut second, EngineState::Up) => {}
        }
        let never = async {
            tokio::select! {
                biased;
                () = until(&mut state, EngineState::Away) => {}
                () = caller.closed() => {}
            }
        };
        match &ticket.fault {
            Fault::Ok | Fault::Slow(_) => act(&mut self.model.lock()),
            Fault::Late(late) => {
                let answer = act(&mut self.model.lock());
                tokio::time::sleep(*late).await;
                answer
            }
            Fault::Error(class, message) => Err(ticket.error(*class, message)),
            Fault::Unknown { done: false } => Err(cut()),
            Fault::Unknown { done: true } => act(&mut self.model.lock()).and_then(|_| Err(cut())),
            Fault::Never => {
                never.await;
                Err(cut())
            }
            Fault::DoneNever => {
                drop(act(&mut self.model.lock()));
                never.await;
                Err(cut())
            }
        }
    }
}

/// Comes back when the engine is in this state.
async fn until(state: &mut level::Receiver<EngineState>, wanted: EngineState) {
    if state.wait_for(|state| *state == wanted).await.is_err() {
        // The world is gone, so nothing changes any more.
        std::future::pending::<()>().await;
    }
}

impl Engine for FakeEngine {
    fn info(&self) -> EngineFuture<'_, EngineInfo> {
        Box::pin(self.0.call(Operation::Info, "", |_| {
            Ok(EngineInfo { kind: EngineKind::Fake, id: "fake-engine".into(), version: "1.0".into(), endpoint: "unix:///fake.sock".into() })
        }))
    }

    fn ping(&self) -> EngineFuture<'_, ()> {
        Box::pin(self.0.call(Operation::Ping, "", |_| Ok(())))
    }

    fn image<'a>(&'a self, reference: &'a str) -> EngineFuture<'a, Option<Image>> {
        let wanted = reference.to_owned();
        Box::pin(self.0.call(Operation::Image, reference, move |model| Ok(model.images.look(&wanted))))
    }

    fn load_image(&self, archive: ImageArchive) -> EngineFuture<'_, ()> {
        Box::pin(async move {
            let pieces: Result<Vec<_>, _> = archive.into_chunks().try_collect().await;
            let broke_off = |error: std::io::Error| fail(Operation::LoadImage, ErrorClass::Unknown, "", error.to_string(), None);
            let archive = pieces.map_err(broke_off)?.concat();
            self.0.call(Operation::LoadImage, "", move |model| model.images.load(&archive)).await
        })
    }

    fn save_image<'a>(&'a self, reference: &'a str) -> EngineFuture<'a, Chunks> {
        let wanted = reference.to_owned();
        Box::pin(async move {
            let archive = self.0.call(Operation::SaveImage, reference, move |model| model.images.save(&wanted)).await?;
            Ok(ImageArchive::from(archive).into_chunks())
        })
    }

    fn pull_image<'a>(
        &'a self,
        reference: &'a str,
        credentials: Option<&'a Credentials>,
        told: &'a (dyn Fn(PullStep) + Send + Sync),
    ) -> EngineFuture<'a, ()> {
        let (wanted, credentials) = (reference.to_owned(), credentials.cloned());
        let layer = |stage| PullStep { layer: "layer".into(), stage };
        Box::pin(async move {
            told(layer(LayerStage::Downloading { current: 1, total: 2 }));
            self.0.call(Operation::PullImage, reference, move |model| model.images.pull(&wanted, credentials.as_ref())).await?;
            told(layer(LayerStage::Done));
            Ok(())
        })
    }

    fn tag_image<'a>(&'a self, id: &'a ImageId, repository: &'a str, tag: &'a str) -> EngineFuture<'a, ()> {
        let (image, name) = (id.clone(), format!("{repository}:{tag}"));
        Box::pin(self.0.call(Operation::TagImage, id.as_str(), move |model| model.images.name(&image, &name)))
    }

    fn images<'a>(&'a self, label: &'a str) -> EngineFuture<'a, Vec<Image>> {
        let wanted = label.to_owned();
        Box::pin(self.0.call(Operation::Images, label, move |model| Ok(model.images.with_label(&wanted))))
    }

    fn image_sizes(&self) -> EngineFuture<'_, Vec<SizedImage>> {
        Box::pin(self.0.call(Operation::ImageSizes, "", |model| Ok(model.images.sizes())))
    }

    fn remove_image<'a>(&'a self, name: &'a str) -> EngineFuture<'a, ImageRemoval> {
        let wanted = name.to_owned();
        Box::pin(self.0.call(Operation::RemoveImage, name, move |model| Ok(model.let_image_go(&wanted))))
    }

    fn build_image<'a>(&'a self, spec: &'a BuildSpec, _context: File, told: &'a (dyn Fn(&str) + Send + Sync)) -> EngineFuture<'a, ()> {
        let recipe = spec.clone();
        Box::pin(async move {
            told("Step 1/1 : ");
            self.0
                .call(Operation::BuildImage, &spec.tag, move |model| {
                    model.images.build(&recipe);
                    Ok(())
                })
                .await?;
            told(
                "FROM scratch
done
",
            );
            Ok(())
        })
    }

    fn create<'a>(&'a self, spec: &'a BuddySpec) -> EngineFuture<'a, ContainerId> {
        let recipe = spec.clone();
        Box::pin(self.0.call(Operation::Create, &spec.name, move |model| model.create_buddy(recipe)))
    }

    fn start<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, ()> {
        let wanted = id.clone();
        Box::pin(self.0.call(Operation::Start, id.as_str(), move |model| model.start(wanted.as_str(), true)))
    }

    fn inspect<'a>(&'a self, id_or_name: &'a str) -> EngineFuture<'a, Container> {
        let wanted = id_or_name.to_owned();
        Box::pin(self.0.call(Operation::Inspect, id_or_name, move |model| model.inspect(&wanted)))
    }

    fn rename<'a>(&'a self, id: &'a ContainerId, name: &'a str) -> EngineFuture<'a, ()> {
        let (wanted, name) = (id.clone(), name.to_owned());
        Box::pin(self.0.call(Operation::Rename, id.as_str(), move |model| model.rename(wanted.as_str(), &name)))
    }

    fn remove<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, ()> {
        let wanted = id.clone();
        Box::pin(self.0.call(Operation::Remove, id.as_str(), move |model| {
            model.remove(wanted.as_str(), true);
            Ok(())
        }))
    }

    fn wait<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, WaitOutcome> {
        Box::pin(async move {
            let wanted = id.clone();
            let begun = self.0.call(Operation::Wait, id.as_str(), move |model| model.begin_wait(wanted.as_str())).await;
            let begun = match begun {
                Ok(begun) => begun,
                // The answer's head comes at once, so what is cut is its body.
                Err(error) if error.class == ErrorClass::Unknown => return Ok(WaitOutcome::Unknown),
                Err(error) => return Err(error),
            };
            loop {
                let look = self.0.model.lock().look(begun);
                let sleep = match look {
                    Look::Over(outcome) => return Ok(outcome),
                    Look::Sleep(sleep) => sleep,
                };
                let mut woken = std::pin::pin!(sleep.notified());
                woken.as_mut().enable();
                // It may have happened between the look and the subscription.
                let look = self.0.model.lock().look(begun);
                match look {
                    Look::Over(outcome) => return Ok(outcome),
                    Look::Sleep(now) if Arc::ptr_eq(&now, &sleep) => woken.await,
                    Look::Sleep(_) => {}
                }
            }
        })
    }

    fn list(&self) -> EngineFuture<'_, Vec<ContainerSummary>> {
        Box::pin(self.0.call(Operation::List, "", |model| Ok(model.containers.values().map(|item| model.summary(item)).collect())))
    }

    fn networks(&self) -> EngineFuture<'_, Vec<Network>> {
        Box::pin(self.0.call(Operation::Networks, "", |model| Ok(model.engine_networks.list())))
    }

    fn create_network<'a>(&'a self, spec: &'a NetworkSpec) -> EngineFuture<'a, ()> {
        let wanted = spec.clone();
        Box::pin(self.0.call(Operation::CreateNetwork, &spec.name, move |model| model.engine_networks.create(wanted)))
    }

    fn network_users<'a>(&'a self, network: &'a Network) -> EngineFuture<'a, Vec<String>> {
        let id = network.id.clone();
        Box::pin(self.0.call(Operation::NetworkUsers, &network.made_with.name, move |model| Ok(model.engine_networks.users(&id))))
    }

    fn remove_network<'a>(&'a self, network: &'a Network) -> EngineFuture<'a, ()> {
        let id = network.id.clone();
        Box::pin(self.0.call(Operation::RemoveNetwork, &network.made_with.name, move |model| {
            let removed = model.engine_networks.remove(&id)?;
            model.violations.extend(removed);
            Ok(())
        }))
    }

    fn events(&self) -> EngineFuture<'_, BoxStream<'static, Result<EngineEvent, EngineError>>> {
        Box::pin(async move {
            let subscriber = self.0.call(Operation::Events, "", |model| Ok(model.subscribe())).await?;
            let next = |subscriber: Arc<super::model::Subscriber>| async move { subscriber.next().await.map(|event| (event, subscriber)) };
            Ok(futures::stream::unfold(subscriber, next).boxed())
        })
    }
}
