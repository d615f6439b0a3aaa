//! What is carried through every hop: whoever works on a message works inside its [`scope`] or [`carry`], and what is sent
//! from there carries the same request id in [`crate::property::TRACE`] and the same pass in [`crate::property::PASS`].

use std::sync::Arc;

use tracing::Instrument;

use crate::message::{Message, property};

tokio::task_local! {
    static CURRENT: Arc<str>;
    static PASS: i64;
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

/// The pass of the document that is worked on here, if the message that brought it says.
#[must_use]
pub fn pass() -> Option<i64> {
    PASS.try_with(|pass| *pass).ok()
}

/// Runs work on a message under the id and the pass that it carries.
pub async fn carry<F: Future>(message: &Message, work: F) -> F::Output {
    let work = scope(message.get(property::TRACE), work);
    match message.get(property::PASS).and_then(|pass| pass.parse().ok()) {
        Some(pass) => PASS.scope(pass, work).await,
        None => work.await,
    }
}

/// Gives a message the id and the pass of the work that sends it, unless it has its own.
pub(crate) fn stamp(message: &mut Message) {
    if let Some(pass) = pass()
        && message.get(property::PASS).is_none()
    {
        message.set(property::PASS, &pass.to_string());
    }
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

    #[tokio::test]
    async fn what_is_sent_while_a_message_is_worked_on_carries_its_pass_and_its_id() {
        let stamped = || {
            let mut message = Message::default();
            stamp(&mut message);
            message
        };
        let message = Message::default().with(property::PASS, "7").with(property::TRACE, "r-1");
        assert_eq!(carry(&message, async { stamped() }).await, message);
        assert_eq!(carry(&Message::default().with(property::PASS, "soon"), async { pass() }).await, None);
        assert_eq!(carry(&Message::default(), async { stamped() }).await, Message::default());
    }
}
