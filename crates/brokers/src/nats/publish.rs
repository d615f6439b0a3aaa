//! Sending, acknowledged by the server, with what finds nobody kept apart.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use bytes::Bytes;
use sluice_bus::{Address, Error, Message, Result};
use sluice_schema::{Class, Topic};
use tokio::time::Instant;

use super::link::{self, Fault, Link};
use super::{admin, names, own};
use crate::local::Pauses;
use crate::unroutable::Unroutable;

/// How long after a subject is bound, or an inbox subscribed, all servers of a cluster know it.
const TOPIC_SETTLES: Duration = Duration::from_secs(5);
const INBOX_SETTLES: Duration = Duration::from_millis(200);

pub(super) struct Publisher {
    link: Arc<Link>,
    timeout: Duration,
    unroutable: Unroutable,
}

impl Publisher {
    pub(super) fn new(link: Arc<Link>, timeout: Duration) -> Self {
        Self { link, timeout, unroutable: Unroutable::default() }
    }

    pub(super) async fn publish(&self, to: &Address, message: Message, max: usize) -> Result<()> {
        let (subject, class) = match to {
            Address::Topic(topic) | Address::Subscribed(topic) => {
                (names::subject(topic), Some(topic.class()))
            }
            Address::Inbox(inbox) => (inbox.to_string(), None),
        };
        let headers = names::headers(&message, class)?;
        let bytes = message.body.len();
        let what = format!("a publish to '{subject}'");
        let (mut missed, mut pauses) = (None, Pauses::new());
        let sent = loop {
            let (headers, body) = (headers.clone(), message.body.clone());
            let sent = self.link.request(&what, subject.clone(), headers, body, self.timeout).await;
            let settles = match (&sent, to) {
                (Err(Fault::NoResponders), Address::Inbox(_)) if self.link.is_clustered() => INBOX_SETTLES,
                (Err(Fault::NoResponders), Address::Topic(topic) | Address::Subscribed(topic)) => {
                    match self.nobody(topic, matches!(to, Address::Subscribed(_))).await {
                        Err(Error::Unavailable { .. }) => TOPIC_SETTLES,
                        decided => return decided,
                    }
                }
                _ => break sent,
            };
            if missed.get_or_insert_with(Instant::now).elapsed() >= settles {
                break sent;
            }
            tokio::time::sleep(pauses.next().min(INBOX_SETTLES)).await;
        };
        match (sent, to) {
            (Ok(answer), Address::Inbox(inbox)) if answer.payload == own::GONE => {
                Err(Error::NoInbox { inbox: inbox.to_string() })
            }
            // Its reader answers at once, before it reads.
            (Ok(_), Address::Inbox(_)) => Ok(()),
            (Ok(answer), Address::Topic(_) | Address::Subscribed(_)) => {
                acknowledged(&answer.payload, &what, bytes)
            }
            (Err(Fault::NoResponders), Address::Inbox(inbox)) => {
                Err(Error::NoInbox { inbox: inbox.to_string() })
            }
            (Err(Fault::NoResponders), Address::Topic(topic) | Address::Subscribed(topic)) => {
                Err(Error::Unavailable { reason: format!("'{topic}' was made or bound just now") })
            }
            (Err(Fault::TooLarge), _) => Err(Error::TooLarge { bytes, max }),
            (Err(Fault::Other(Error::TimedOut { what, after_ms })), _) => Err(Error::OutcomeUnknown {
                what,
                reason: format!("it was not confirmed within {after_ms} ms"),
            }),
            (Err(Fault::Other(error)), _) => Err(error),
        }
    }

    /// Nothing listens to a topic: it is not there, or has no subscription.
    async fn nobody(&self, topic: &Topic, is_on_record: bool) -> Result<()> {
        let found = admin::look_at(&self.link, &names::stream(topic), self.timeout).await?;
        let Some(found) = found else { return Err(Error::NoTopic { topic: topic.clone() }) };
        match topic.class() {
            _ if found.config.subjects == [names::subject(topic)] => {
                Err(Error::Unavailable { reason: format!("'{topic}' was made or bound just now") })
            }
            Class::Request => Err(Error::Unroutable { topic: topic.clone() }),
            _ if is_on_record => Err(Error::NoReader { topic: topic.clone() }),
            Class::Flow | Class::Response | Class::Notify => {
                self.unroutable.count(topic);
                Ok(())
            }
        }
    }

    pub(super) const fn unroutable(&self) -> &Unroutable {
        &self.unroutable
    }
}

/// What the server answers to a publish.
fn acknowledged(answer: &Bytes, what: &str, bytes: usize) -> Result<()> {
    match serde_json::from_slice::<Response<PublishAck>>(answer) {
        Ok(Response::Ok(_)) => Ok(()),
        Ok(Response::Err { error }) if error.error_code() == ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => {
            Err(Error::Refused { reason: format!("{what} of {bytes} bytes: {error}") })
        }
        Ok(Response::Err { error }) => Err(link::refused(&error, what)),
        Err(error) => Err(Error::OutcomeUnknown { what: what.to_owned(), reason: error.to_string() }),
    }
}
