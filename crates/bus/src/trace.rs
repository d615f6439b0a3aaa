//! The request id that a person sees, carried through every hop: whoever works on a message works inside its [`scope`],
//! and what is sent from there carries the same id in [`crate::property::TRACE`].

use std::sync::Arc;

use tracing::Instrument;

use crate::message::{Message, property};

tokio::task_local! {
    static CURRENT: Arc<str>;
}

/// The id of the work that runs here, if it has one.
#[must_use]
pub fn current() -> Option<Arc<str>> {
    CURRENT.try_with(Arc::clone).ok()
}

/// Runs work under the id that a message carries, in a span that logs it. Without an id it just runs.
pub async fn scope<F: Future>(message_trace: Option<&str>, work: F) -> F::Output {
    let Some(id) = message_trace else { return work.await };
    let span = tracing::info_span!("request", id);
    CURRENT.scope(id.into(), work.instrument(span)).await
}

/// Gives a message the id of the work that sends it, unless it has one.
pub(crate) fn stamp(message: &mut Message) {
    if message.get(property::TRACE).is_some() {
        return;
    }
    if let Some(id) = current() {
        message.set(property::TRACE, &id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_sent_inside_a_scope_carries_its_id() {
        let stamped = || {
            let mut message = Message::default();
            stamp(&mut message);
            message.get(property::TRACE).map(str::to_owned)
        };
        assert_eq!(stamped(), None);
        let inside = scope(Some("r-1"), async { (stamped(), current()) }).await;
        assert_eq!(inside, (Some("r-1".to_owned()), Some("r-1".into())));
        assert_eq!(scope(None, async { stamped() }).await, None);
    }
}
