//! How topics, subscriptions and messages are called on the server.
//!
//! A stream per topic, a durable consumer per subscription. Their names hold what people read; the identifiers
//! themselves stand in the metadata, for names cannot be mapped back.

use std::hash::{DefaultHasher, Hash, Hasher};

use async_nats::HeaderMap;
use bytes::Bytes;
use sluice_bus::{Error, Message, Result, property};
use sluice_schema::{Class, Topic};

/// In a stream's metadata: the topic.
pub(super) const TOPIC: &str = "sluice-topic";
/// In a consumer's metadata: the subscription.
pub(super) const SUBSCRIPTION: &str = "sluice-subscription";
/// The header with all properties, as a JSON object: values may hold what a header may not.
const PROPERTIES: &str = "Sluice-Properties";
/// After so many seconds the server drops a message.
const TTL: &str = "Nats-TTL";
/// What properties of a message take beside its body, at most: the server keeps headers of 65,535 bytes, ours and its own.
pub(super) const HEADER_BYTES_MAX: usize = 63 << 10;

/// Everything that a name or a subject may not hold becomes `=XX`.
fn escaped(text: &str, also: &[u8]) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || also.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("={byte:02X}"));
        }
        out
    })
}

/// `tg_flow_chunk-load:default:f1`; the space has no `_`, so no two topics share a name.
pub(super) fn stream(topic: &Topic) -> String {
    format!("{}_{}_{}", escaped(topic.space(), b"-"), topic.class(), escaped(topic.name(), b"-_:@#,+"))
}

/// Where a topic is published to.
pub(super) fn subject(topic: &Topic) -> String {
    format!("{}.{}.{}", escaped(topic.space(), b"-"), topic.class(), escaped(topic.name(), b"-_:@#,+"))
}

/// What a stream listens to that has no subscription yet: nobody publishes there, so a publish to its topic finds nobody.
pub(super) fn nowhere(topic: &Topic) -> String {
    format!("sluice.nowhere.{}", subject(topic))
}

/// A subject of a topic's followers, of this incarnation of the topic only.
pub(super) fn followers() -> String {
    format!("sluice.follow.{}", uuid::Uuid::new_v4().simple())
}

/// A reader's own inbox, also its address.
pub(super) fn inbox() -> String {
    format!("sluice.inbox.{}", uuid::Uuid::new_v4().simple())
}

/// A durable consumer.
pub(super) fn consumer(subscription: &str) -> String {
    escaped(subscription, b"-_:@#,+")
}

/// A key of a bucket.
pub(super) fn key(text: &str) -> String {
    escaped(text, b"-_")
}

/// # Errors
/// [`Error::Refused`] for a class that is read in the other way.
pub(super) fn check_class(topic: &Topic, is_shared: bool) -> Result<()> {
    if topic.class().has_subscriptions() == is_shared {
        return Ok(());
    }
    let how = if is_shared { "has no named subscriptions" } else { "is read through named subscriptions" };
    Err(Error::Refused { reason: format!("'{topic}' {how}") })
}

/// Properties, and for a request how long it is worth delivering, in whole seconds: less the server does not take.
pub(super) fn headers(message: &Message, class: Option<Class>) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    let properties: serde_json::Map<_, _> =
        message.properties().map(|(name, value)| (name.to_owned(), value.into())).collect();
    let text = serde_json::to_string(&properties).map_err(|error| unusable(&error))?;
    if text.len() > HEADER_BYTES_MAX {
        let reason = format!("properties of {} bytes are more than {HEADER_BYTES_MAX}", text.len());
        return Err(Error::Refused { reason });
    }
    headers.insert(PROPERTIES, text);
    let ttl_ms = message.get(property::TTL).and_then(|ttl| ttl.parse::<u64>().ok());
    if let (Some(Class::Request), Some(ttl_ms)) = (class, ttl_ms) {
        headers.insert(TTL, ttl_ms.div_ceil(1_000).max(1).to_string());
    }
    Ok(headers)
}

fn unusable(error: &serde_json::Error) -> Error {
    Error::Refused { reason: format!("the properties cannot be written ({error})") }
}

/// What a stranger sent has no properties.
pub(super) fn message(body: Bytes, headers: Option<&HeaderMap>) -> Message {
    let mut message = Message::new(body);
    let text = headers.and_then(|headers| headers.get(PROPERTIES));
    let properties = text.and_then(|text| serde_json::from_str::<serde_json::Map<_, _>>(text.as_str()).ok());
    for (name, value) in properties.iter().flatten() {
        if let Some(value) = value.as_str() {
            message.set(name, value);
        }
    }
    message
}

/// The same for every delivery of a message, and another one for another subscription.
pub(super) fn mark(stream: &str, consumer: &str, message: &Message) -> String {
    let mut hasher = DefaultHasher::new();
    (stream, consumer, &message.body).hash(&mut hasher);
    for property in message.properties() {
        property.hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_no_character_that_a_server_refuses() {
        let topic = Topic::parse("flow:a_b:c.d/e f:g").unwrap();
        assert_eq!(stream(&topic), "a=5Fb_flow_c=2Ed=2Fe=20f:g");
        assert_eq!(subject(&topic), "a=5Fb.flow.c=2Ed=2Fe=20f:g");
        assert_eq!(consumer("a b>*.é"), "a=20b=3E=2A=2E=C3=A9");
    }

    #[test]
    fn no_two_topics_share_a_name() {
        let topics =
            ["flow:a:b_flow_c", "flow:a_flow_b:c", "request:a:b", "flow:a:b", "flow:a:b.c", "flow:a:b c"];
        let names: std::collections::HashSet<_> =
            topics.iter().map(|text| stream(&Topic::parse(text).unwrap())).collect();
        assert_eq!(names.len(), topics.len());
    }

    #[test]
    fn properties_arrive_whatever_they_hold() {
        let sent = Message::new("b").with("id", "1").with("line", "a\r\n\"é\"").with("empty", "");
        let headers = headers(&sent, None).unwrap();
        assert_eq!(message(sent.body.clone(), Some(&headers)), sent);
    }

    #[test]
    fn only_requests_have_a_term_and_it_is_never_shorter_than_asked() {
        let check = |ttl: &str, class, wanted: Option<&str>| {
            let headers = headers(&Message::new("").with(property::TTL, ttl), Some(class)).unwrap();
            assert_eq!(headers.get(TTL).map(|value| value.as_str()), wanted, "{ttl}");
        };
        check("50", Class::Request, Some("1"));
        check("1001", Class::Request, Some("2"));
        check("0", Class::Request, Some("1"));
        check("x", Class::Request, None);
        check("50", Class::Flow, None);
    }
}
