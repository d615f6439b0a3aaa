//! How topics, subscriptions and messages are called and carried on the broker.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use sluice_bus::{Error, Message, Result, property};
use sluice_schema::{Class, Topic};

/// Ours: how often a message was handed out before, on copies put behind the good ones.
const ATTEMPTS: &str = "sluice-attempts";
/// Ours: the exchange that such a copy came through first.
const EXCHANGE: &str = "sluice-exchange";
/// The broker's own count, on quorum queues.
const DELIVERY_COUNT: &str = "x-delivery-count";
/// What the broker tells of a message that it took from its readers begins with one of these.
const DEATHS: [&str; 3] = ["x-death", "x-first-death-", "x-last-death-"];
/// How long a request waits to be taken of which nobody said how long its answer is waited for: as long as the most
/// patient clients of the dialect do. A request that its reader gives back for ever ends by that.
const REQUEST_TTL_MS: u32 = 600_000;
/// What the queues of `flow` topics begin with.
pub(super) const FLOW_QUEUES: &str = "tg.flow.";
/// What an inbox's queue begins with.
const INBOX: &str = "sluice.inbox.";
/// What the queue of a held name begins with.
const HOLD: &str = "sluice.hold.";
/// What the queue of the string that is left under a held name begins with.
const SIGNATURE: &str = "sluice.signature.";

/// What a note of work that has begun begins with.
const BEGUN: &str = "sluice.begun.";

/// Has the broker end a consumer with its queue. Without it, it moves the consumer to a queue that was made again under the
/// name before the end of the old one was handled. Classic queues know it, and no others.
pub(super) const ENDS_WITH_QUEUE: &str = "x-cancel-on-ha-failover";

/// Where a message goes that nobody is to get.
pub(super) const NOBODY: &str = "sluice.nobody";

/// Whether a queue bears one of our names.
pub(super) fn is_ours(queue: &str) -> bool {
    ["tg.", "sluice."].iter().any(|prefix| queue.starts_with(prefix))
}

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

/// What every consumer of a classic queue asks for. One that the broker moves to the queue that was made again ends silently:
/// the broker does not watch that queue for it, passes on nothing of what it settles there, and does not report when it is
/// removed too.
pub(super) fn consuming() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert(ENDS_WITH_QUEUE.into(), AMQPValue::Boolean(true));
    arguments
}

pub(super) fn inbox() -> String {
    format!("{INBOX}{}", uuid::Uuid::new_v4().simple())
}

pub(super) fn hold(name: &str) -> String {
    format!("{HOLD}{name}")
}

pub(super) fn signature(name: &str) -> String {
    format!("{SIGNATURE}{name}")
}

pub(super) fn begun(mark: u64) -> String {
    format!("{BEGUN}{mark:016x}")
}

/// The topic of an exchange; `None` for exchanges of others.
pub(super) fn topic(exchange: &str) -> Option<Topic> {
    let (space, rest) = exchange.split_once('.')?;
    let (class, name) = rest.split_once('.')?;
    Topic::parse(&format!("{class}:{space}:{name}")).ok()
}

/// The topic of a queue whose exchange is not there. Both halves of its name may hold points, and as many of them, for
/// both name the flow: the middle one is taken. Whichever it is, topic and subscription together name this queue.
pub(super) fn topic_of_orphan(queue: &str) -> Option<Topic> {
    let points: Vec<usize> = queue.match_indices('.').map(|(at, _)| at).skip(2).collect();
    topic(&queue[..*points.get(points.len() / 2)?]).filter(|topic| topic.class().has_subscriptions())
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
    if class != Some(Class::Request) {
        return Ok(properties);
    }
    // The broker takes a number of milliseconds as text, and would close the channel on anything else.
    let ttl_ms = message.get(property::TTL).and_then(|ttl| ttl.parse::<u32>().ok());
    Ok(properties.with_expiration(ttl_ms.unwrap_or(REQUEST_TTL_MS).to_string().into()))
}

/// Whether the broker puts a message with these properties on its disk.
pub(super) fn is_durable(properties: &BasicProperties) -> bool {
    *properties.delivery_mode() == Some(2)
}

/// A message as it came; what others put in that is not text is told as text.
pub(super) fn message(body: Vec<u8>, properties: &BasicProperties) -> Message {
    let mut message = Message::new(body);
    for (name, value) in properties.headers().iter().flat_map(|table| table.inner()) {
        if !is_between_us_and_the_broker(name.as_str()) {
            message.set(name.as_str(), &text(value));
        }
    }
    for (name, value) in death(properties).into_iter().flatten() {
        message.set(name, &value);
    }
    message
}

fn is_between_us_and_the_broker(header: &str) -> bool {
    [ATTEMPTS, EXCHANGE, DELIVERY_COUNT].contains(&header)
        || DEATHS.iter().any(|death| header.starts_with(death))
        // Only the broker's word makes a message a dead one.
        || [property::DEAD_TOPIC, property::DEAD_SUBSCRIPTION, property::DEAD_REASON].contains(&header)
}

/// Where the broker took a message from, and why.
fn death(properties: &BasicProperties) -> Option<[(&'static str, String); 3]> {
    let of = |header: &str| properties.headers().as_ref()?.inner().get(header).map(text);
    // A copy was published to its queue itself, and tells the exchange of its original.
    let exchange = of("x-first-death-exchange").filter(|name| !name.is_empty()).or_else(|| of(EXCHANGE))?;
    let queue = of("x-first-death-queue")?;
    let subscription = queue.strip_prefix(&exchange)?.strip_prefix('.')?;
    Some([
        (property::DEAD_TOPIC, topic(&exchange)?.to_string()),
        (property::DEAD_SUBSCRIPTION, subscription.to_owned()),
        (property::DEAD_REASON, of("x-first-death-reason")?),
    ])
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

/// The properties of a copy that was handed out `attempts` times; the original came through `exchange`, or was itself a
/// copy.
pub(super) fn counted(properties: &BasicProperties, attempts: u32, exchange: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(|table| table.inner()) {
        if name.as_str() != DELIVERY_COUNT {
            headers.insert(name.clone(), value.clone());
        }
    }
    headers.insert(ATTEMPTS.into(), AMQPValue::LongString(LongString::from(attempts.to_string())));
    if !exchange.is_empty() {
        headers.insert(EXCHANGE.into(), AMQPValue::LongString(exchange.into()));
    }
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
        for (orphan, its) in [
            ("tg.flow.a:w:f.p--w--f--input", Some("flow:tg:a:w:f")),
            ("tg.flow.a:w.1:f.p--w.1--f--input", Some("flow:tg:a:w.1:f")),
            ("tg.notify.a.b", None),
            ("tg.flow.a", None),
        ] {
            assert_eq!(topic_of_orphan(orphan).as_ref().map(Topic::as_str), its);
        }
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
        let copy = counted(&fresh, attempts_redelivered(&fresh), "tg.flow.a");
        assert_eq!((attempts(&copy), attempts_redelivered(&copy)), (1, 2));
        assert_eq!(message(Vec::new(), &copy).properties().collect::<Vec<_>>(), [("id", "1")]);
    }

    #[test]
    fn a_dead_message_tells_where_it_was_taken_from() {
        let mut headers = FieldTable::default();
        let long = |text: &str| AMQPValue::LongString(text.into());
        headers.insert(property::DEAD_TOPIC.into(), long("flow:tg:forged"));
        headers.insert("id".into(), long("7"));
        let message_of = |headers: &FieldTable| {
            message(Vec::new(), &BasicProperties::default().with_headers(headers.clone()))
        };
        assert_eq!(message_of(&headers).properties().collect::<Vec<_>>(), [("id", "7")]);
        headers.insert("x-first-death-queue".into(), long("tg.flow.a:w.reader"));
        headers.insert("x-first-death-exchange".into(), long("tg.flow.a:w"));
        headers.insert("x-first-death-reason".into(), long("delivery_limit"));
        let told = [
            ("id", "7"),
            (property::DEAD_TOPIC, "flow:tg:a:w"),
            (property::DEAD_SUBSCRIPTION, "reader"),
            (property::DEAD_REASON, "delivery_limit"),
        ];
        assert_eq!(message_of(&headers).properties().collect::<Vec<_>>(), told);
        // A copy of ours that somebody else could not read.
        headers.insert("x-first-death-exchange".into(), long(""));
        headers.insert(EXCHANGE.into(), long("tg.flow.a:w"));
        assert_eq!(message_of(&headers).properties().collect::<Vec<_>>(), told);
    }

    #[test]
    fn a_request_does_not_wait_for_ever() {
        let properties = properties(&Message::new("{}"), Some(Class::Request)).unwrap();
        assert_eq!(properties.expiration().as_ref().map(ShortString::as_str), Some("600000"));
    }
}
