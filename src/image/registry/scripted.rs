//! A registry whose answers are scripted, for tests of those who ask.

use parking_lot::Mutex;

use super::*;

/// Says what it was told to say last, again and again; before that, that it cannot be reached.
#[derive(Default)]
pub(crate) struct Scripted {
    answer: Mutex<Option<Result<String, RegistryError>>>,
    asked: Mutex<Vec<(String, Option<Credentials>)>>,
    slow: Mutex<Duration>,
}

impl Scripted {
    pub(crate) fn will_say(&self, answer: Result<String, RegistryError>) {
        *self.answer.lock() = Some(answer);
    }

    pub(crate) fn takes(&self, slow: Duration) {
        *self.slow.lock() = slow;
    }

    /// Since it was called last.
    pub(crate) fn taken(&self) -> Vec<(String, Option<Credentials>)> {
        std::mem::take(&mut self.asked.lock())
    }
}

pub(crate) fn away() -> RegistryError {
    RegistryError::Unreachable { host: "reg:5000".into(), words: "no route to host".into() }
}

impl Registry for Scripted {
    fn head<'a>(&'a self, reference: &'a Reference, credentials: Option<&'a Credentials>) -> BoxFuture<'a, Result<String, RegistryError>> {
        self.asked.lock().push((reference.to_string(), credentials.cloned()));
        let slow = *self.slow.lock();
        Box::pin(async move {
            tokio::time::sleep(slow).await;
            self.answer.lock().clone().unwrap_or_else(|| Err(away()))
        })
    }
}
