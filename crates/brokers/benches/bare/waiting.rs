//! Who waits for which answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

/// The header that says which answer belongs to which question.
pub(crate) const ID: &str = "id";

#[derive(Clone, Default)]
pub(crate) struct Waiting(Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>);

impl Waiting {
    /// For an answer to a question that is new.
    pub(crate) fn add(&self) -> (String, oneshot::Receiver<()>) {
        let id = uuid::Uuid::new_v4().to_string();
        let (answered, answer) = oneshot::channel();
        self.0.lock().unwrap().insert(id.clone(), answered);
        (id, answer)
    }

    pub(crate) fn answered(&self, id: &str) {
        let waiter = self.0.lock().unwrap().remove(id);
        waiter.map(|waiter| waiter.send(()));
    }
}
