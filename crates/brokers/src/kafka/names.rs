//! Names: what topics and groups are called at the broker, and properties.
//!
//! A topic's name at the broker ends in a number that no other one has, so what is made again under an identifier is another
//! topic with other groups. Which identifier it stands for is in the registry; the rest of the name is for people.

use bytes::Bytes;
use krafka::{ConsumerRecord, Headers, Record};
use sluice_bus::{Error, Message, Result};
use sluice_schema::{Class, Topic};

/// What all of ours begins with.
const PREFIX: &str = "sluice.";
/// Topics, their subscriptions, inboxes and signatures; the last of each counts.
pub(super) const REGISTRY: &str = "sluice.registry";
/// Leases of held names, and which processes live.
pub(super) const LEASES: &str = "sluice.leases";
/// What topics of inboxes begin with.
pub(super) const INBOXES: &str = "sluice.inbox.";
/// The longest name of a topic.
const PLACE_BYTES_MAX: usize = 249;
const INBOX: &str = "sluice-inbox-";

/// Bytes that properties of a message may take together.
pub(super) const PROPERTIES_BYTES_MAX: usize = 64 << 10;
/// What else a record takes.
pub(super) const RECORD_BYTES_MAX: usize = PROPERTIES_BYTES_MAX + (4 << 10);

/// On a copy: the subscription it is for, how often its message was handed out before, and how old that is.
const COPY_FOR: &str = "sluice-copy-for";
const COPY_TRIED: &str = "sluice-copy-tried";
const COPY_AGE: &str = "sluice-copy-age-ms";
/// On a message to an inbox: its address.
const TO: &str = "sluice-to";

/// A number that nobody else has.
pub(super) fn fresh() -> String {
    let number = uuid::Uuid::new_v4().simple().to_string();
    number[..16].to_owned()
}

/// What a topic is called at the broker, which takes 249 bytes: more than identifiers have with what is added.
pub(super) fn place(topic: &Topic, id: &str) -> String {
    format!("{PREFIX}{}.{}.{id}", topic.class(), plain(topic.name()))
}

/// What TrustGraph 2.11 calls a topic at the broker.
pub(super) fn plain_place(topic: &Topic) -> String {
    format!("{}.{}.{}", topic.space(), topic.class(), topic.name()).replace(':', ".")
}

/// # Errors
/// [`Error::Refused`] for a topic that TrustGraph 2.11 can have no name for at the broker.
pub(super) fn check_plain(topic: &Topic) -> Result<()> {
    let place = plain_place(topic);
    let is_taken = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if place.len() <= PLACE_BYTES_MAX && place.chars().all(is_taken) {
        return Ok(());
    }
    let reason = format!(
        "Kafka takes names of {PLACE_BYTES_MAX} letters, digits, '.', '_' and '-', and TrustGraph 2.11 changes ':' only, so beside \
         it there can be no topic '{topic}'"
    );
    Err(Error::Refused { reason })
}

/// Whether this is what a topic may be called at the broker.
pub(super) fn is_topic(place: &str) -> bool {
    let class = place.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.')).map(|(class, _)| class);
    class.is_some_and(|class| Class::ALL.iter().any(|known| known.as_str() == class))
}

/// What a subscription's group is called.
pub(super) fn group(place: &str, subscription: &str) -> String {
    format!("{place}/{subscription}")
}

/// What a process's topic of inboxes is called.
pub(super) fn inboxes(process: &str) -> String {
    format!("{INBOXES}{process}")
}

/// An inbox that nobody has yet: its address.
pub(super) fn inbox() -> String {
    format!("{INBOX}{}", uuid::Uuid::new_v4().simple())
}

/// Characters that names at the broker may have; a dot parts what stands in them.
fn plain(text: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' };
    text.chars().map(kept).collect()
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

/// Whether messages wait for readers that are not there.
pub(super) const fn keeps(class: Class) -> bool {
    matches!(class, Class::Flow | Class::Request)
}

/// A copy of a message for one of its subscriptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) subscription: String,
    /// How often its message was handed out before.
    pub(super) tried: u32,
    /// How long before it was published its message was.
    pub(super) age_ms: u64,
}

/// # Errors
/// [`Error::Refused`] where properties are too long.
pub(super) fn record(place: &str, message: &Message) -> Result<Record> {
    let bytes: usize = message.properties().map(|(name, value)| name.len() + value.len() + 8).sum();
    if bytes > PROPERTIES_BYTES_MAX {
        let reason = format!("properties of {bytes} bytes are more than {PROPERTIES_BYTES_MAX}");
        return Err(Error::Refused { reason });
    }
    let mut record = Record::new(place, message.body.clone());
    for (name, value) in message.properties() {
        record = record.header(name, value.to_owned());
    }
    Ok(record)
}

/// The same for one of the inboxes that share a topic.
pub(super) fn record_to(place: &str, inbox: &str, message: &Message) -> Result<Record> {
    Ok(record(place, message)?.header(TO, inbox.to_owned()))
}

/// The same for one of its subscriptions only.
pub(super) fn record_copy(place: &str, copy: &Copy, message: &Message) -> Result<Record> {
    let record = record(place, message)?;
    let record = record.header(COPY_FOR, copy.subscription.clone());
    let record = record.header(COPY_TRIED, copy.tried.to_string());
    Ok(record.header(COPY_AGE, copy.age_ms.to_string()))
}

/// A message as it was sent.
pub(super) fn message(record: &ConsumerRecord) -> Message {
    let mut message = Message::new(record.value.clone().unwrap_or_default());
    for (name, value) in &record.headers {
        let is_ours = [COPY_FOR, COPY_TRIED, COPY_AGE, TO].contains(&&**name);
        if let Some(value) = value.as_ref().and_then(text).filter(|_| !is_ours) {
            message.set(name, value);
        }
    }
    message
}

/// What a copy says of itself; `None` for what is none.
pub(super) fn copy(headers: &Headers) -> Option<Copy> {
    let subscription = header(headers, COPY_FOR)?.to_owned();
    let tried = header(headers, COPY_TRIED).and_then(|tried| tried.parse().ok()).unwrap_or(0);
    let age_ms = header(headers, COPY_AGE).and_then(|age| age.parse().ok()).unwrap_or(0);
    Some(Copy { subscription, tried, age_ms })
}

/// Which of the inboxes that share a topic a message is for.
pub(super) fn to(headers: &Headers) -> Option<&str> {
    header(headers, TO)
}

fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).and_then(|(_, value)| text(value.as_ref()?))
}

fn text(value: &Bytes) -> Option<&str> {
    std::str::from_utf8(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_only_what_the_broker_takes() {
        for identifier in [
            "flow:tg:chunk-load:default:f1",
            "request:a b:c.d/e f:g",
            &format!("notify:tg:{}", "x".repeat(110)),
        ] {
            let topic = Topic::parse(identifier).unwrap();
            let (one, two) = (place(&topic, &fresh()), place(&topic, &fresh()));
            assert_ne!(one, two);
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
            assert!(one.len() <= 249 && one.chars().all(is_plain), "{one}");
        }
    }

    #[test]
    fn beside_others_names_are_theirs_where_the_broker_takes_them() {
        let topic = Topic::parse("flow:tg:chunk-load:default:f1").unwrap();
        assert_eq!(plain_place(&topic), "tg.flow.chunk-load.default.f1");
        assert!(check_plain(&topic).is_ok());
        assert!(check_plain(&Topic::parse("request:a b:c.d/e f:g").unwrap()).is_err());
        assert!(
            is_topic(&place(&topic, "1")) && !is_topic(&plain_place(&topic)) && !is_topic("sluice.inbox.1")
        );
    }

    #[test]
    fn properties_that_are_too_long_are_refused() {
        let long = Message::new("").with("long", &"x".repeat(PROPERTIES_BYTES_MAX));
        assert!(record("t", &long).is_err());
        assert!(record("t", &Message::new("b").with("id", "1")).is_ok());
    }

    #[test]
    fn a_copy_says_for_whom_it_is_and_what_was_before() {
        let said = |text: &str| Some(Bytes::from(text.to_owned()));
        let headers = vec![
            ("id".to_owned(), said("1")),
            (COPY_FOR.to_owned(), said("reader")),
            (COPY_TRIED.to_owned(), said("8")),
            (COPY_AGE.to_owned(), said("70")),
        ];
        let wanted = Copy { subscription: "reader".to_owned(), tried: 8, age_ms: 70 };
        assert_eq!(copy(&headers), Some(wanted));
        assert_eq!(copy(&vec![("id".to_owned(), said("1"))]), None);
    }
}
