//! Messages that the broker took from readers which are not ours and kept giving them back: filed in the dead letters of
//! the workspace that they came from, where they can be seen, exported and replayed like any other.

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{
    Address, Broker, BrokerAdmin, ErrorKind, Message, PoisonBound, Subscription, TopicSpec, letter, property,
};
use sluice_schema::message::DeadLetter;
use sluice_schema::system::{self, LIBRARIAN};
use sluice_schema::{Topic, WorkspaceId, record};
use sluice_sdk::{Backoff, ConfigClient, Process, Suspects, owned, suspects};
use tokio_util::sync::CancellationToken;

use crate::{Error, clock};

/// Messages that are filed at once at most.
const PREFETCH: u32 = 16;
/// How often a message is handed out: one that has ended the process as often is filed without its content, and one that ends
/// it even so is dropped after as many times more.
const ATTEMPTS_MAX: u32 = 5;

/// Files poison until the process stops. On return its topic is there, if the broker could be reached.
pub(crate) async fn start(process: &Process, admin: Arc<dyn BrokerAdmin>, config: Arc<ConfigClient>) {
    owned::own_soon(process, &admin, "poison", vec![spec()]).await;
    let suspects = process.suspects.clone();
    let stop = process.stop.clone();
    let files = Files { broker: process.broker.clone(), admin, config, suspects, stop };
    process.tasks.supervise("library/poison", Backoff::default(), move || {
        let files = files.clone();
        async move { files.run().await.map_err(|error| crate::error::cause(&error)) }
    });
}

fn spec() -> TopicSpec {
    TopicSpec::with(system::poison(), LIBRARIAN)
}

#[derive(Clone)]
struct Files {
    broker: Arc<dyn Broker>,
    admin: Arc<dyn BrokerAdmin>,
    config: Arc<ConfigClient>,
    suspects: Arc<Suspects>,
    stop: CancellationToken,
}

impl Files {
    async fn run(&self) -> Result<(), Error> {
        let topic = system::poison();
        // First somebody who takes it, then the broker is told to send it.
        self.admin.ensure(&spec()).await?;
        let to =
            Subscription::Shared { topic: topic.clone(), name: LIBRARIAN.to_owned(), prefetch: PREFETCH };
        let inbox = self.broker.subscribe(&to).await?;
        let bound = self.admin.bound_poison(&topic).await?;
        match &bound {
            PoisonBound::Bounded { deliveries } => {
                tracing::info!(deliveries, "the broker ends the loops of foreign readers");
            }
            PoisonBound::Unbounded { why } => {
                tracing::info!(
                    why,
                    "foreign readers that give a message back for ever are not stopped by the broker"
                );
            }
            PoisonBound::Unneeded => {}
        }
        loop {
            let mut delivery = inbox.next().await?.cut_by(&self.stop);
            if self.suspects.is_suspect(&delivery) {
                delivery = inbox.begin(delivery).await?;
            }
            let mut message = delivery.message.clone();
            let (is_spent, is_hopeless) = {
                let spent =
                    |times| self.suspects.is_spent(&delivery, times).then(|| suspects::reason(&delivery));
                (spent(ATTEMPTS_MAX), spent(2 * ATTEMPTS_MAX))
            };
            let filed = match (is_spent, is_hopeless) {
                (_, Some(reason)) => {
                    tracing::error!(reason, "a message that came as poison was dropped: it cannot be filed");
                    Ok(())
                }
                (Some(reason), None) => {
                    let without = format!("; its content is dropped: {reason}");
                    message.body = bytes::Bytes::new();
                    self.file(&message, &bound, &without).await
                }
                (None, None) => self.file(&message, &bound, "").await,
            };
            match filed {
                Ok(()) => delivery.ack(),
                Err(error) => {
                    // Only what ends the process counts.
                    delivery.untried(Duration::ZERO);
                    return Err(error);
                }
            }
        }
    }

    async fn file(&self, message: &Message, bound: &PoisonBound, why_more: &str) -> Result<(), Error> {
        let Some((workspace, mut letter)) = about(message, bound) else {
            tracing::error!(
                bytes = message.body.len(),
                "a message came as poison without telling where from; it is dropped"
            );
            return Ok(());
        };
        letter.reason.push_str(why_more);
        tracing::warn!(
            workspace,
            topic = letter.topic,
            subscription = letter.subscription,
            reason = letter.reason,
            "a message was parked; see `sluice dead ls`"
        );
        let to = Address::Subscribed(system::dead_letters(&WorkspaceId::existing(&workspace)));
        let parked = letter::message(letter, &message.body, self.broker.limits());
        match self.broker.publish(&to, parked).await {
            Err(error) if error.kind() == ErrorKind::Absent && !self.is_live(&workspace).await? => {
                tracing::warn!(workspace, "the workspace is gone, and what was parked from it with it");
                Ok(())
            }
            published => Ok(published?),
        }
    }

    async fn is_live(&self, workspace: &str) -> Result<bool, Error> {
        Ok(self.config.get(record::WORKSPACES, record::WORKSPACE, workspace).await?.is_some())
    }
}

/// The letter about a message that the broker took from a reader, and whose workspace it belongs to.
fn about(message: &Message, bound: &PoisonBound) -> Option<(String, DeadLetter)> {
    let topic = message.get(property::DEAD_TOPIC)?;
    let subscription = message.get(property::DEAD_SUBSCRIPTION).unwrap_or_default();
    let (workspace, flow) = origin(topic, subscription)?;
    let why = message.get(property::DEAD_REASON).unwrap_or_default();
    let reason = match (bound, why) {
        (PoisonBound::Bounded { deliveries }, "delivery_limit") => {
            format!("a reader that is not ours gave it back {deliveries} times")
        }
        (_, "delivery_limit") => "a reader that is not ours gave it back too often".to_owned(),
        _ => format!("the broker took it from its readers ({why})"),
    };
    let attempts = if let PoisonBound::Bounded { deliveries } = bound { *deliveries } else { 0 };
    let id = message.get(property::MESSAGE_ID).map(|id| format!("{id}@{subscription}"));
    // What the broker added about the taking does not belong to the message.
    let own = message.properties().filter(|(name, _)| {
        ![property::DEAD_TOPIC, property::DEAD_SUBSCRIPTION, property::DEAD_REASON].contains(name)
            && !name.starts_with("x-")
    });
    let letter = DeadLetter {
        id: id.unwrap_or_else(|| uuid::Uuid::now_v7().to_string()),
        workspace: workspace.to_owned(),
        flow: flow.to_owned(),
        topic: topic.to_owned(),
        subscription: subscription.to_owned(),
        reason,
        attempts: attempts.into(),
        time: clock::seconds(),
        properties: own.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        body: String::new(),
    };
    Some((workspace.to_owned(), letter))
}

/// Workspace and run (or blueprint) of a topic of a flow, which ends in both; else what the subscription's name says,
/// `PROCESSOR--WORKSPACE--VARIANT--SLOT`.
fn origin<'a>(topic: &'a str, subscription: &'a str) -> Option<(&'a str, &'a str)> {
    let is_flows = Topic::parse(topic).is_ok_and(|topic| !system::is_system(&topic));
    let mut parts = topic.rsplitn(3, ':');
    let (owner, workspace, rest) = (parts.next()?, parts.next()?, parts.next().unwrap_or_default());
    // The rest begins with class, space and at least one part of a name.
    if is_flows && rest.split(':').count() >= 3 {
        return Some((workspace, owner));
    }
    let mut parts = subscription.rsplitn(4, "--");
    let (_slot, variant, workspace, _processor) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    Some((workspace, variant))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: &str = "flow:tg:text-document-load:acme:f1-r2";
    const READER: &str = "chunker--acme--f1-r2--input";

    fn taken() -> Message {
        Message::new("{}")
            .with(property::DEAD_TOPIC, TOPIC)
            .with(property::DEAD_SUBSCRIPTION, READER)
            .with(property::DEAD_REASON, "delivery_limit")
            .with(property::MESSAGE_ID, "m1")
            .with("x-first-death-queue", "q")
    }

    #[test]
    fn a_taken_message_becomes_a_letter_of_its_own_workspace_and_run() {
        let (workspace, letter) = about(&taken(), &PoisonBound::Bounded { deliveries: 20 }).unwrap();
        assert_eq!(workspace, "acme");
        assert_eq!((letter.flow.as_str(), letter.topic.as_str()), ("f1-r2", TOPIC));
        assert_eq!((letter.subscription.as_str(), letter.attempts), (READER, 20));
        assert_eq!(letter.reason, "a reader that is not ours gave it back 20 times");
        assert_eq!(letter.id, "m1@chunker--acme--f1-r2--input");
        let names: Vec<_> = letter.properties.keys().map(String::as_str).collect();
        assert_eq!(names, [property::MESSAGE_ID], "what the broker added is left out");
    }

    #[test]
    fn the_origin_is_told_by_the_topic_or_else_by_the_reader() {
        let check = |topic: &str, reader: &str, expected: Option<(&str, &str)>| {
            assert_eq!(origin(topic, reader), expected, "{topic} {reader}");
        };
        check(TOPIC, "", Some(("acme", "f1-r2")));
        check("flow:tg:odd", READER, Some(("acme", "f1-r2")));
        check("flow:tg:odd", "a--b--acme--v--input", Some(("acme", "v")));
        check("flow:tg:progress:acme", "librarian", None);
        check("flow:tg:odd", "x", None);
        assert!(about(&Message::new("{}"), &PoisonBound::Unneeded).is_none());
    }
}
