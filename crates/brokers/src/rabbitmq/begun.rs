//! Notes that outlive a process: how often work has begun on a message that may have ended one.
//!
//! The broker marks as redelivered what a reader that ended had in its hands, what was only on its way to it, and, after a
//! crash of its own, everything. None of that says whether somebody worked on a message. So before work on one begins that
//! was handed out before, a small message is put into a queue that stands for it: the length of that queue is how often
//! that was done. It is removed before the message is settled, and by itself after a day without another beginning.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lapin::Channel;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use sluice_bus::{Delivery, Error, Message, Result, Settle, Verdict};
use sluice_schema::Class;
use tokio::runtime::Handle;

use super::admin::Admin;
use super::outbox::{Letter, Routed};
use super::{fault, names};

/// How long a note outlives the last beginning: its message went with its queue, or was settled by somebody who had not
/// begun.
const EXPIRES_MS: i32 = 24 * 60 * 60 * 1_000;
/// How long a message waits whose beginning could not be noted.
const AGAIN_PAUSE: Duration = Duration::from_secs(1);

/// Notes that work on a delivery of a queue begins, and sets how often it has. Where the broker does not let us note it, the
/// delivery is as it was.
pub(super) async fn note(
    admin: &Arc<Admin>,
    queue: &ShortString,
    mut delivery: Delivery,
) -> Result<Delivery> {
    let noted = async {
        let name = names::short(&names::begun(mark(queue, &delivery.message)))?;
        let before = admin.note(&name).await?;
        Ok::<_, Error>((name, before))
    };
    match noted.await {
        Ok((name, before)) => {
            delivery.begun = Some(before.saturating_add(2));
            let (admin, runtime) = (admin.clone(), Handle::current());
            Ok(delivery.settled_by(|inner| Box::new(Noted { admin, name, inner, runtime })))
        }
        // Somebody decided so; waiting would be for ever.
        Err(error) if matches!(error, Error::Refused { .. } | Error::Mismatch { .. }) => {
            tracing::warn!(%queue, %error, "that work begins cannot be noted; the broker's own count is used");
            Ok(delivery)
        }
        Err(error) => {
            delivery.untried(AGAIN_PAUSE);
            Err(error)
        }
    }
}

/// The same for every delivery of a message, and another one in another queue.
fn mark(queue: &ShortString, message: &Message) -> u64 {
    let mut hasher = DefaultHasher::new();
    queue.as_str().hash(&mut hasher);
    for property in message.properties() {
        property.hash(&mut hasher);
    }
    message.body.hash(&mut hasher);
    hasher.finish()
}

/// Removes the note before the message is settled, so that none stays of what is settled.
struct Noted {
    admin: Arc<Admin>,
    name: ShortString,
    inner: Box<dyn Settle>,
    /// A delivery may be dropped anywhere.
    runtime: Handle,
}

impl Settle for Noted {
    fn settle(self: Box<Self>, verdict: Verdict) {
        let Self { admin, name, inner, runtime } = *self;
        runtime.spawn(async move {
            if let Err(error) = admin.forget_note(&name).await {
                tracing::debug!(note = %name, %error, "a note stays until it expires");
            }
            inner.settle(verdict);
        });
    }
}

impl Admin {
    /// Adds one to a note; how many it had.
    async fn note(&self, name: &ShortString) -> Result<u32> {
        let declared = self.try_call(async |channel: Channel| {
            let options = QueueDeclareOptions { durable: true, ..Default::default() };
            let mut arguments = FieldTable::default();
            // Of a quorum queue the length is not known at once.
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
            arguments.insert("x-expires".into(), AMQPValue::LongInt(EXPIRES_MS));
            channel.queue_declare(name.clone(), options, arguments).await
        });
        let what = "noting that work begins";
        let before = declared.await?.map_err(|error| fault::of_call(&error, name.as_str(), what))?;
        let letter = Letter {
            exchange: ShortString::default(),
            key: name.clone(),
            mandatory: true,
            body: Bytes::new(),
            properties: names::properties(&Message::default(), Some(Class::Flow))?,
        };
        match self.publisher.send(letter).await {
            Ok(Routed::Queued) => Ok(before.message_count()),
            other => Err(Error::Unavailable { reason: format!("{what} failed: {other:?}") }),
        }
    }

    async fn forget_note(&self, name: &ShortString) -> Result<()> {
        let removed = self.try_call(async |channel: Channel| {
            channel.queue_delete(name.clone(), QueueDeleteOptions::default()).await.map(drop)
        });
        removed.await?.map_err(|error| fault::of_call(&error, name.as_str(), "removing a note"))
    }
}
