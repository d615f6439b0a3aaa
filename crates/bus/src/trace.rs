//! What is carried through every hop: whoever works on a message works inside its [`scope`] or [`carry`], and what is sent
//! from there carries the same request id in [`crate::property::TRACE`], the same pass in [`crate::property::PASS`] and, where
//! that may be so, that it is sent again in [`crate::property::AGAIN`].

use std::sync::Arc;

use tracing::Instrument;

use crate::message::{Message, property};

tokio::task_local! {
    static CURRENT: Arc<str>;
    static HOP: Hop;
}

/// What a message says of the document that it brings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Hop {
    pass: Option<i64>,
    is_again: bool,
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
    hop().pass
}

/// Whether the message that is worked on here may have been worked on before: it was handed out before, or is a second
/// copy of one that was.
#[must_use]
pub fn is_again() -> bool {
    hop().is_again
}

fn hop() -> Hop {
    HOP.try_with(|hop| *hop).unwrap_or_default()
}

/// Runs work on a message under what it carries, as handed out for the `attempt`th time.
pub async fn carry<F: Future>(message: &Message, attempt: u32, work: F) -> F::Output {
    let pass = message.get(property::PASS).and_then(|pass| pass.parse().ok());
    let is_again = attempt > 1 || message.get(property::AGAIN).is_some();
    HOP.scope(Hop { pass, is_again }, scope(message.get(property::TRACE), work)).await
}

/// Gives a message what the work that sends it carries, unless it has its own.
pub(crate) fn stamp(message: &mut Message) {
    let Hop { pass, is_again } = hop();
    if let Some(pass) = pass
        && message.get(property::PASS).is_none()
    {
        message.set(property::PASS, &pass.to_string());
    }
    if is_again {
        message.set(property::AGAIN, "1");
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
        assert_eq!(carry(&message, 1, async { stamped() }).await, message);
        assert_eq!(carry(&Message::default().with(property::PASS, "soon"), 1, async { pass() }).await, None);
        assert_eq!(carry(&Message::default(), 1, async { stamped() }).await, Message::default());
    }

    #[tokio::test]
    async fn what_is_sent_by_who_works_again_says_so_through_every_hop() {
        let sent = |message: Message, attempt| async move {
            carry(&message, attempt, async {
                let mut sent = Message::default();
                stamp(&mut sent);
                sent
            })
            .await
        };
        let first = sent(Message::default(), 1).await;
        assert_eq!(first.get(property::AGAIN), None);
        let again = sent(first, 2).await;
        let further = sent(again, 1).await;
        assert!(further.get(property::AGAIN).is_some());
        assert!(carry(&further, 1, async { is_again() }).await);
        assert!(!is_again());
    }
}
