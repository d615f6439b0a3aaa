//! A held name: an exclusive queue, and life-cycle calls over the one connection that it lives and dies with. That
//! connection is not rebuilt, so what its holder sends late reaches nobody.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, BasicRejectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use sluice_bus::{
    BoxFuture, BrokerAdmin, Error, Finding, Message, PoisonBound, Result, Seen, TopicSpec, Traits,
};
use sluice_schema::{Class, Topic};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::admin::Admin;
use super::fault::{self, code};
use super::link::{Link, Up};
use super::outbox::{Letter, Routed};
use super::pool::Pool;
use super::{Core, names};

/// The broker's own inbox for the answer to one question.
const REPLIES: &str = "amq.rabbitmq.reply-to";
/// How long a holder has to say who it is; an older one does not.
const HOLDER_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Hold {
    admin: Admin,
    name: String,
    queue: String,
    /// Cancelled with the end of the hold.
    over: CancellationToken,
    _gone: DropGuard,
}

impl Hold {
    /// # Errors
    /// [`Error::Held`] while somebody else holds the name.
    pub(super) async fn take(core: &Core, name: &str) -> Result<Self> {
        let queue = names::hold(name);
        let queue_name = names::short(&queue)?;
        // Most who ask stand by; they need no connection to learn that it is held.
        if let Err(Error::InUse { .. }) = core.admin.look_at_queue(&queue).await {
            return Err(Error::Held { name: name.to_owned() });
        }
        let (within, stop) = (core.options.call_timeout, core.stop.child_token());
        let (over, _gone) = (stop.clone(), stop.clone().drop_guard());
        let role = format!("life cycle, {name}");
        let link = Link::open_once(core.address.clone(), &role, within, stop.clone()).await?;
        let up = link.up(within).await?;
        let taken = tokio::time::timeout(within, Self::declare(&up, queue_name, stop));
        match taken.await {
            Ok(Ok(())) => {
                let pool = Pool::new(link, core.options.life_cycle_channels_max);
                Ok(Self { admin: core.admin.over(pool), name: name.to_owned(), queue, over, _gone })
            }
            Ok(Err(error)) if fault::is(&error, code::RESOURCE_LOCKED) => {
                Err(Error::Held { name: name.to_owned() })
            }
            Ok(Err(error)) => Err(match fault::of_call(&error, name, "holding a name") {
                // Nothing that was half done outlives its connection.
                Error::OutcomeUnknown { reason, .. } => Error::Unavailable { reason },
                other => other,
            }),
            Err(_) => Err(Error::Unavailable { reason: format!("'{name}' could not be held in time") }),
        }
    }

    async fn declare(up: &Up, queue: ShortString, stop: CancellationToken) -> Result<(), lapin::Error> {
        let channel = up.channel().await?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        channel.queue_declare(queue.clone(), options, FieldTable::default()).await?;
        // Read, so that we are told should somebody delete it, and so that whoever asks learns who holds it.
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let mut consumer =
            channel.basic_consume(queue, ShortString::default(), options, names::consuming()).await?;
        #[expect(
            clippy::disallowed_methods,
            reason = "floor 1 does not see the sdk's tasks; `stop` ends this one"
        )]
        tokio::spawn(async move {
            let ends = async {
                while let Some(Ok(asked)) = consumer.next().await {
                    introduce(&channel, &asked).await;
                }
            };
            stop.run_until_cancelled(ends).await;
            stop.cancel();
            drop(channel);
        });
        Ok(())
    }

    /// Asks the broker whether the name is still ours.
    async fn verify(&self) -> Result<()> {
        match self.admin.look_at_own_queue(&self.queue).await {
            Ok(Some(_)) => Ok(()),
            Err(error) if self.admin.is_up() && !matches!(error, Error::InUse { .. }) => Err(error),
            Ok(None) | Err(_) => Err(self.lost_error()),
        }
    }

    /// A call over the held connection: the broker does what comes over it only while the name is ours.
    async fn under<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        if !self.admin.is_up() {
            return Err(self.lost_error());
        }
        match call.await {
            // What was under way may have been done before the end.
            Err(Error::OutcomeUnknown { what, reason }) => Err(Error::OutcomeUnknown { what, reason }),
            Err(_) if !self.admin.is_up() => Err(self.lost_error()),
            outcome => outcome,
        }
    }

    fn lost_error(&self) -> Error {
        Error::HoldLost { name: self.name.clone() }
    }

    /// The string is the one message of a queue that lasts.
    async fn read_signature(&self) -> Result<Option<String>> {
        let queue = names::short(&names::signature(&self.name))?;
        let read = self.admin.try_call(async move |channel: Channel| {
            let Some(kept) = channel.basic_get(queue, BasicGetOptions::default()).await? else {
                return Ok(None);
            };
            kept.delivery.acker.reject(BasicRejectOptions { requeue: true }).await?;
            Ok(String::from_utf8(kept.delivery.data).ok())
        });
        match read.await? {
            Ok(read) => Ok(read),
            Err(error) if fault::is(&error, code::NOT_FOUND) => Ok(None),
            Err(error) => Err(fault::of_call(&error, &self.name, "reading who signed a name")),
        }
    }

    async fn write_signature(&self, by: &str) -> Result<()> {
        let queue = names::short(&names::signature(&self.name))?;
        let name = queue.clone();
        let what = "signing a name";
        let declared = self.admin.try_call(async move |channel: Channel| {
            let options = QueueDeclareOptions { durable: true, ..Default::default() };
            let mut arguments = FieldTable::default();
            // What is kept in a quorum queue cannot be read at once after a restart.
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
            // The newest stays.
            arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
            channel.queue_declare(name, options, arguments).await.map(drop)
        });
        declared.await?.map_err(|error| fault::of_call(&error, &self.name, what))?;
        let letter = Letter {
            exchange: ShortString::default(),
            key: queue,
            mandatory: true,
            body: Bytes::copy_from_slice(by.as_bytes()),
            properties: names::properties(&Message::default(), Some(Class::Flow))?,
        };
        match self.admin.publisher.send(letter).await {
            Ok(Routed::Queued) => Ok(()),
            other => Err(Error::Unavailable { reason: format!("{what} failed: {other:?}") }),
        }
    }

    async fn remove_signature(&self) -> Result<()> {
        let queue = names::short(&names::signature(&self.name))?;
        let removed = self.admin.try_call(async move |channel: Channel| {
            channel.queue_delete(queue, QueueDeleteOptions::default()).await.map(drop)
        });
        removed.await?.map_err(|error| fault::of_call(&error, &self.name, "removing who signed a name"))
    }
}

/// Tells who asks on the queue of a hold whose it is.
async fn introduce(channel: &Channel, asked: &Delivery) {
    let Some(to) = asked.properties.reply_to().clone() else { return };
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let who = format!("process {} on host '{}'", std::process::id(), host.trim());
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    if let Err(error) =
        channel.basic_publish(ShortString::default(), to, options, who.as_bytes(), properties).await
    {
        tracing::debug!(%error, "who asked for the holder could not be told");
    }
}

/// Asks the holder of a name who it is.
pub(super) async fn holder(core: &Core, name: &str) -> Result<Option<String>> {
    let queue = names::short(&names::hold(name))?;
    let asked = core.admin.try_call(async move |channel: Channel| {
        let inbox = ShortString::from(REPLIES);
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let mut answers = channel
            .basic_consume(inbox.clone(), ShortString::default(), options, FieldTable::default())
            .await?;
        let properties = BasicProperties::default().with_reply_to(inbox);
        let options = BasicPublishOptions::default();
        channel.basic_publish(ShortString::default(), queue, options, b"who?", properties).await?;
        let answer = tokio::time::timeout(HOLDER_TIMEOUT, answers.next()).await;
        channel.basic_cancel(answers.tag(), BasicCancelOptions::default()).await?;
        Ok(match answer {
            Ok(Some(Ok(answer))) => String::from_utf8(answer.data).ok(),
            Ok(Some(Err(_)) | None) | Err(_) => None,
        })
    });
    asked.await?.map_err(|error| fault::of_call(&error, name, "asking who holds a name"))
}

impl BrokerAdmin for Hold {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(async move {
            let seen = self.under(self.admin.observe(topics)).await?;
            // Looks go over another connection.
            self.verify().await?;
            Ok(seen)
        })
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.under(self.admin.ensure(topic)))
    }

    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.under(self.admin.remove(topic)))
    }

    fn remove_idle<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.under(self.admin.remove_idle(topic)))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(async move {
            self.verify().await?;
            self.under(self.admin.list(prefix)).await
        })
    }

    fn lost(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.over.cancelled())
    }

    fn signature(&self) -> BoxFuture<'_, Result<Option<String>>> {
        Box::pin(self.under(self.read_signature()))
    }

    fn sign<'a>(&'a self, by: Option<&'a str>) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.under(async move {
            match by {
                Some(by) => self.write_signature(by).await,
                None => self.remove_signature().await,
            }
        }))
    }

    fn hold<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BrokerAdmin>>> {
        Box::pin(async move {
            Err(Error::Refused { reason: format!("'{name}' cannot be held under '{}'", self.name) })
        })
    }

    fn bound_poison<'a>(&'a self, to: &'a Topic) -> BoxFuture<'a, Result<PoisonBound>> {
        Box::pin(async move {
            self.verify().await?;
            self.under(self.admin.bound_poison(to)).await
        })
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(async move {
            self.verify().await?;
            self.under(async { Ok(self.admin.examine().await) }).await
        })
    }

    fn traits(&self) -> Traits {
        self.admin.traits()
    }
}
