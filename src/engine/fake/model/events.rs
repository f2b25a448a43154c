//! The event stream: one bounded queue per subscriber; nobody subscribed, nothing kept.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Model, fail};
use crate::engine::fake::script::Operation;
use crate::engine::{EngineError, EngineEvent, ErrorClass, EventAction};

/// A reader that falls behind by more is cut off.
const MOST: usize = 1 << 18;

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<EngineEvent>,
    ended: Option<EngineError>,
    over: bool,
}

/// One reader of the events.
#[derive(Debug, Default)]
pub(in crate::engine::fake) struct Subscriber {
    queue: Mutex<Queue>,
    more: Notify,
}

impl Subscriber {
    fn push(&self, event: EngineEvent) {
        let mut queue = self.queue.lock();
        if queue.events.len() >= MOST {
            queue.ended.get_or_insert_with(|| fail(Operation::Events, ErrorClass::Unknown, "", "the reader is too slow", None));
            return;
        }
        if queue.ended.is_none() {
            queue.events.push_back(event);
            self.more.notify_one();
        }
    }

    fn cut(&self) {
        let cut = || fail(Operation::Events, ErrorClass::Unknown, "", "unexpected end of the event stream", None);
        self.queue.lock().ended.get_or_insert_with(cut);
        self.more.notify_one();
    }

    /// What was queued before the end, then the end's error once, then nothing.
    pub(in crate::engine::fake) async fn next(&self) -> Option<Result<EngineEvent, EngineError>> {
        loop {
            {
                let mut queue = self.queue.lock();
                if let Some(event) = queue.events.pop_front() {
                    return Some(Ok(event));
                }
                if queue.over {
                    return None;
                }
                if let Some(error) = queue.ended.clone() {
                    queue.over = true;
                    return Some(Err(error));
                }
            }
            self.more.notified().await;
        }
    }
}

impl Model {
    pub(in crate::engine::fake) fn subscribe(&mut self) -> Arc<Subscriber> {
        let subscriber = Arc::new(Subscriber::default());
        self.subscribers.push(Arc::downgrade(&subscriber));
        subscriber
    }

    pub(in crate::engine::fake) fn cut_events(&mut self) {
        for subscriber in self.subscribers.drain(..).filter_map(|subscriber| subscriber.upgrade()) {
            subscriber.cut();
        }
    }

    pub(in crate::engine::fake) fn emit(&mut self, action: EventAction, number: u64) {
        if !self.hearing || self.subscribers.is_empty() {
            return;
        }
        let item = self.item(number);
        let mut attributes = item.labels.clone();
        attributes.insert("image".to_owned(), item.image.to_string());
        let event = EngineEvent { action, id: item.id.to_string(), name: item.name.to_string(), attributes };
        self.send(&event);
    }

    pub(super) fn send(&mut self, event: &EngineEvent) {
        self.subscribers.retain(|subscriber| Weak::strong_count(subscriber) > 0);
        for subscriber in self.subscribers.iter().filter_map(Weak::upgrade) {
            subscriber.push(event.clone());
        }
    }
}
