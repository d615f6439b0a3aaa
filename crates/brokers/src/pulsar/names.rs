//! How topics, subscriptions and messages are called at the broker: `persistent://tg/flow/chunk-load:default:f1` is
//! `flow:tg:chunk-load:default:f1`. Every name is escaped so that it can be a part of a URL's path, and can be read back.

use bytes::Bytes;
use sluice_bus::{Error, Message, Result};
use sluice_schema::{Class, Topic, TopicError, system};

use super::proto::{Metadata, Property};
use crate::local::decoded;

/// The tenant of what is not a topic of somebody's.
pub(super) const TENANT: &str = "tg";
/// The namespace of readers' inboxes.
pub(super) const INBOXES: &str = "inbox";
/// The namespace of holds and notes.
pub(super) const SYSTEM: &str = "sluice";
/// The property of a topic that no other incarnation of it has.
pub(super) const INCARNATION: &str = "sluice-incarnation";
/// What properties of a message take beside its body, at most.
pub(super) const PROPERTIES_BYTES_MAX: usize = 63 << 10;
/// The broker takes what ends in this and a number for a part of something else.
const PARTITION: &str = "-partition-";
const INBOX: &str = "sluice-inbox-";

/// A topic at the broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) tenant: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// Whether it is where TrustGraph 2.11 looks for requests, answers and notices; see [`super::beside`].
    pub(super) is_mirror: bool,
}

impl Place {
    pub(super) fn system(name: String) -> Self {
        Self { tenant: TENANT.to_owned(), namespace: SYSTEM.to_owned(), name, is_mirror: false }
    }

    /// The one of the same name that is not persistent.
    pub(super) fn mirror(&self) -> Self {
        Self { is_mirror: true, ..self.clone() }
    }

    const fn domain(&self) -> &'static str {
        if self.is_mirror { "non-persistent" } else { "persistent" }
    }

    /// What it is called over a connection.
    pub(super) fn uri(&self) -> String {
        format!("{}://{}/{}/{}", self.domain(), self.tenant, self.namespace, self.name)
    }

    /// Where it is under the admin API.
    pub(super) fn path(&self) -> [&str; 4] {
        [self.domain(), &self.tenant, &self.namespace, &self.name]
    }
}

impl From<&Topic> for Place {
    fn from(topic: &Topic) -> Self {
        Self {
            tenant: escaped(topic.space()),
            namespace: topic.class().as_str().to_owned(),
            name: escaped(topic.name()),
            is_mirror: false,
        }
    }
}

/// What entries of processors call a topic beside TrustGraph 2.11, which looks for requests elsewhere unless it is told where.
pub(super) fn called(topic: &Topic) -> String {
    let is_told = topic.class() == Class::Request && !system::is_system(topic);
    if is_told { Place::from(topic).uri() } else { topic.to_string() }
}

/// The topic that is called so.
pub(super) fn of_name(name: &str) -> std::result::Result<Topic, TopicError> {
    topic(name).map_or_else(|| Topic::parse(name), Ok)
}

/// The topic that a URI of the broker's is; `None` where it is none of ours.
pub(super) fn topic(uri: &str) -> Option<Topic> {
    let mut parts = uri.strip_prefix("persistent://")?.splitn(3, '/');
    let (space, class, name) = (parts.next()?, parts.next()?, parts.next()?);
    Topic::parse(&format!("{class}:{}:{}", read(space)?, read(name)?)).ok()
}

/// What a broker's name may not hold, or a path of a URL not, becomes `=XX`.
pub(super) fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@#,+".contains(&byte);
    let escaped = text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("={byte:02X}"));
        }
        out
    });
    escaped.replace(PARTITION, "=2Dpartition-")
}

/// What was escaped.
pub(super) fn read(escaped: &str) -> Option<String> {
    decoded(&escaped.replace('%', "%25").replace('=', "%"))
}

/// An inbox that nobody has yet: its address.
pub(super) fn inbox() -> String {
    format!("{INBOX}{}", uuid::Uuid::new_v4().simple())
}

/// Where an inbox is. Addresses come with messages: `None` for what cannot be one.
pub(super) fn inbox_at(address: &str) -> Option<Place> {
    let number = address.strip_prefix(INBOX)?;
    let is_one = number.len() == 32 && number.bytes().all(|byte| byte.is_ascii_hexdigit());
    let [tenant, namespace, name] = [TENANT, INBOXES, address].map(str::to_owned);
    is_one.then_some(Place { tenant, namespace, name, is_mirror: false })
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

/// # Errors
/// [`Error::Refused`] where they are too long.
pub(super) fn properties(message: &Message) -> Result<Vec<Property>> {
    let bytes: usize = message.properties().map(|(name, value)| name.len() + value.len() + 16).sum();
    if bytes > PROPERTIES_BYTES_MAX {
        let reason = format!("properties of {bytes} bytes are more than {PROPERTIES_BYTES_MAX}");
        return Err(Error::Refused { reason });
    }
    let property = |(name, value): (&str, &str)| Property { key: name.to_owned(), value: value.to_owned() };
    Ok(message.properties().map(property).collect())
}

pub(super) fn message(body: Bytes, metadata: &Metadata) -> Message {
    let mut message = Message::new(body);
    for property in &metadata.properties {
        message.set(&property.key, &property.value);
    }
    message
}

/// Whether messages wait for readers that are not there.
pub(super) fn keeps(topic: &Topic) -> bool {
    matches!(topic.class(), Class::Flow | Class::Request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_read_back_and_hold_nothing_that_a_path_may_not() {
        for text in [
            "flow:tg:chunk-load:default:f1",
            "request:a b:c.d/e f:g",
            "notify:tg:x-partition-7",
            "response:tg:#@,+_-",
        ] {
            let topic_before = Topic::parse(text).unwrap();
            let place = Place::from(&topic_before);
            assert!(!place.name.contains([' ', '/', '%']) && !place.name.contains(PARTITION), "{place:?}");
            assert_eq!(topic(&place.uri()), Some(topic_before));
        }
        assert_eq!(Place::from(&Topic::parse("flow:tg:a:b").unwrap()).uri(), "persistent://tg/flow/a:b");
    }

    #[test]
    fn an_entry_calls_requests_of_flows_by_where_they_are_and_all_can_be_read() {
        for (text, name) in [
            ("request:tg:prompt:default:f1", "persistent://tg/request/prompt:default:f1"),
            ("request:tg:librarian:default", "request:tg:librarian:default"),
            ("response:tg:prompt:default:f1", "response:tg:prompt:default:f1"),
            ("flow:tg:chunk-load:default:f1", "flow:tg:chunk-load:default:f1"),
        ] {
            let topic = Topic::parse(text).unwrap();
            assert_eq!(called(&topic), name);
            assert_eq!(of_name(name), Ok(topic.clone()));
            assert_eq!(of_name(text), Ok(topic));
        }
        assert!(of_name("non-persistent://tg/request/a").is_err());
    }

    #[test]
    fn what_is_not_ours_is_no_topic() {
        for uri in ["persistent://tg/inbox/x", "non-persistent://tg/flow/x", "persistent://tg/flow", "x"] {
            assert_eq!(topic(uri), None, "{uri}");
        }
    }

    #[test]
    fn an_address_that_came_with_a_message_is_an_inbox_or_nothing() {
        assert!(inbox_at(&inbox()).is_some());
        for address in ["", "sluice-inbox-", "sluice-inbox-../../tg/flow/secret-topic-name", "tg/flow/a"] {
            assert_eq!(inbox_at(address), None, "{address}");
        }
    }

    #[test]
    fn properties_arrive_whatever_they_hold() {
        let sent = Message::new("b").with("id", "1").with("line", "a\r\n\"é\"").with("empty", "");
        let metadata = Metadata { properties: properties(&sent).unwrap(), ..Metadata::default() };
        assert_eq!(message(sent.body.clone(), &metadata), sent);
        let long = Message::new("").with("long", &"x".repeat(PROPERTIES_BYTES_MAX));
        assert!(properties(&long).is_err());
    }
}
