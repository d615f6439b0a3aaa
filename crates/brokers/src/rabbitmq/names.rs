//! How topics, subscriptions and messages are called and carried on the broker.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use sluice_bus::{Error, Message, Result, property};
use sluice_schema::{Class, Topic};

/// Ours: how often a message was handed out before, on copies put behind the good ones.
const ATTEMPTS: &str = "sluice-attempts";
/// The broker's own count, on quorum queues.
const DELIVERY_COUNT: &str = "x-delivery-count";
/// What an inbox's queue begins with.
const INBOX: &str = "sluice.inbox.";
/// What the queue of a held name begins with.
const HOLD: &str = "sluice.hold.";

/// A name as the protocol carries it.
pub(super) fn short(text: &str) -> Result<ShortString> {
    ShortString::try_new(text).map_err(|_| Error::Refused {
        reason: format!(
            "'{text}' has {} bytes; the broker takes names of up to {}",
            text.len(),
            Topic::QUEUE_BYTES_MAX
        ),
    })
}

pub(super) fn exchange(topic: &Topic) -> String {
    format!("{}.{}.{}", topic.space(), topic.class(), topic.name())
}

pub(super) fn queue(topic: &Topic, subscription: &str) -> String {
    format!("{}.{subscription}", exchange(topic))
}

pub(super) fn inbox() -> String {
    format!("{INBOX}{}", uuid::Uuid::new_v4().simple())
}

pub(super) fn hold(name: &str) -> String {
    format!("{HOLD}{name}")
}

/// The topic of an exchange; `None` for exchanges of others.
pub(super) fn topic(exchange: &str) -> Option<Topic> {
    let (space, rest) = exchange.split_once('.')?;
    let (class, name) = rest.split_once('.')?;
    Topic::parse(&format!("{class}:{space}:{name}")).ok()
}

/// Whether readers of the class share named subscriptions, or the error that says what it has instead.
pub(super) fn check_class(topic: &Topic, has_subscriptions: bool) -> Result<()> {
    if topic.class().has_subscriptions() == has_subscriptions {
        return Ok(());
    }
    let reason = if has_subscriptions {
        format!("'{topic}' has no named subscriptions: each of its readers has an inbox of its own")
    } else {
        format!("'{topic}' cannot be followed: its readers share named subscriptions")
    };
    Err(Error::Refused { reason })
}

/// Everything of a message but its body; `class` is `None` for one reader's inbox.
pub(super) fn properties(message: &Message, class: Option<Class>) -> Result<BasicProperties> {
    let mut headers = FieldTable::default();
    for (name, value) in message.properties() {
        headers.insert(short(name)?, AMQPValue::LongString(value.into()));
    }
    let id = uuid::Uuid::new_v4().simple().to_string();
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_headers(headers)
        .with_delivery_mode(if class == Some(Class::Flow) { 2 } else { 1 })
        .with_priority(0)
        .with_message_id(id.into());
    Ok(match message.get(property::TTL).map(str::parse::<u32>) {
        // The broker takes a number of milliseconds as text, and would close the channel on anything else.
        Some(Ok(ttl_ms)) if class == Some(Class::Request) => {
            properties.with_expiration(ttl_ms.to_string().into())
        }
        _ => properties,
    })
}

/// A message as it came; what others put in that is not text is told as text.
pub(super) fn message(body: Vec<u8>, properties: &BasicProperties) -> Message {
    let mut message = Message::new(body);
    for (name, value) in properties.headers().iter().flat_map(|table| table.inner()) {
        if name.as_str() != ATTEMPTS && name.as_str() != DELIVERY_COUNT {
            message.set(name.as_str(), &text(value));
        }
    }
    message
}

fn text(value: &AMQPValue) -> String {
    let of = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match value {
        AMQPValue::LongString(text) => of(text.as_bytes()),
        AMQPValue::ByteArray(bytes) => of(bytes.as_slice()),
        AMQPValue::ShortString(text) => text.to_string(),
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::Float(value) => value.to_string(),
        AMQPValue::Double(value) => value.to_string(),
        AMQPValue::Void => String::new(),
        other => whole(other).map_or_else(|| format!("{other:?}"), |number| number.to_string()),
    }
}

fn whole(value: &AMQPValue) -> Option<i128> {
    Some(match value {
        AMQPValue::ShortShortInt(number) => (*number).into(),
        AMQPValue::ShortShortUInt(number) => (*number).into(),
        AMQPValue::ShortInt(number) => (*number).into(),
        AMQPValue::ShortUInt(number) => (*number).into(),
        AMQPValue::LongInt(number) => (*number).into(),
        AMQPValue::LongUInt(number) => (*number).into(),
        AMQPValue::LongLongInt(number) => (*number).into(),
        AMQPValue::Timestamp(number) => (*number).into(),
        _ => return None,
    })
}

fn count(properties: &BasicProperties, name: &str) -> u32 {
    let Some(value) = properties.headers().as_ref().and_then(|table| table.inner().get(name)) else {
        return 0;
    };
    whole(value).or_else(|| text(value).parse().ok()).and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
}

/// How often a message that is not marked as redelivered was handed out before.
pub(super) fn attempts(properties: &BasicProperties) -> u32 {
    count(properties, ATTEMPTS)
}

/// The same for one that is, of which the broker knows at least one attempt more.
pub(super) fn attempts_redelivered(properties: &BasicProperties) -> u32 {
    attempts(properties).saturating_add(count(properties, DELIVERY_COUNT).max(1))
}

/// The properties of a copy that was handed out `attempts` times.
pub(super) fn counted(properties: &BasicProperties, attempts: u32) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(|table| table.inner()) {
        if name.as_str() != DELIVERY_COUNT {
            headers.insert(name.clone(), value.clone());
        }
    }
    headers.insert(ATTEMPTS.into(), AMQPValue::LongString(LongString::from(attempts.to_string())));
    properties.clone().with_headers(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_dialect() {
        let given = Topic::parse("request:tg:config:default").unwrap();
        assert_eq!(exchange(&given), "tg.request.config:default");
        assert_eq!(queue(&given, "config-svc"), "tg.request.config:default.config-svc");
        assert_eq!(topic("tg.request.config:default"), Some(given));
        for foreign in ["", "amq.direct", "amq.rabbitmq.trace", "tg.state.x", "orders"] {
            assert_eq!(topic(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn properties_travel_as_long_strings_and_come_back() {
        let sent = Message::new("{}").with("id", "1").with(property::TTL, "50");
        let properties = properties(&sent, Some(Class::Request)).unwrap();
        let table = properties.headers().clone().unwrap();
        assert!(matches!(table.inner().get("id"), Some(AMQPValue::LongString(_))));
        assert_eq!(properties.expiration().as_ref().map(ToString::to_string).as_deref(), Some("50"));
        assert_eq!((*properties.delivery_mode(), *properties.priority()), (Some(1), Some(0)));
        assert_eq!(message(b"{}".to_vec(), &properties), sent);
    }

    #[test]
    fn what_others_put_in_is_told_as_text() {
        let mut headers = FieldTable::default();
        headers.insert("bytes".into(), AMQPValue::ByteArray(b"a".to_vec().into()));
        headers.insert("number".into(), AMQPValue::LongLongInt(7));
        headers.insert("yes".into(), AMQPValue::Boolean(true));
        let message = message(Vec::new(), &BasicProperties::default().with_headers(headers));
        let told: Vec<_> = ["bytes", "number", "yes"].map(|name| message.get(name)).to_vec();
        assert_eq!(told, [Some("a"), Some("7"), Some("true")]);
        assert_eq!(super::message(b"x".to_vec(), &BasicProperties::default()), Message::new("x"));
    }

    #[test]
    fn attempts_are_counted_on_copies() {
        let fresh = properties(&Message::new("x").with("id", "1"), Some(Class::Flow)).unwrap();
        assert_eq!((attempts(&fresh), attempts_redelivered(&fresh)), (0, 1));
        let copy = counted(&fresh, attempts_redelivered(&fresh));
        assert_eq!((attempts(&copy), attempts_redelivered(&copy)), (1, 2));
        assert_eq!(message(Vec::new(), &copy).properties().collect::<Vec<_>>(), [("id", "1")]);
    }
}
