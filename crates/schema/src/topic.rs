//! Topic identifiers: `class:space:name`, split on the first two colons only.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What kind of traffic a topic carries; decides who gets a message and how long it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Pipeline items: durable, one consumer per subscription, kept until settled.
    Flow,
    /// Calls: one consumer per subscription, kept until their deadline or a broker restart.
    Request,
    /// Answers: every reader gets every message; gone with the reader.
    Response,
    /// Signals: every reader gets every message; gone with the reader.
    Notify,
}

impl Class {
    /// Every class, in the order the dialect lists them.
    pub const ALL: [Self; 4] = [Self::Flow, Self::Request, Self::Response, Self::Notify];

    /// The word in a topic identifier.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Request => "request",
            Self::Response => "response",
            Self::Notify => "notify",
        }
    }

    /// Whether readers share named subscriptions (`flow`, `request`) rather than each having an inbox of its own.
    #[must_use]
    pub const fn has_subscriptions(self) -> bool {
        matches!(self, Self::Flow | Self::Request)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a text is not a topic identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Not of the form `class:space:name`.
    #[error("topic '{0}' is not of the form class:space:name, for example flow:tg:chunk-load:default:f1")]
    Shape(String),
    /// The first word is not a class.
    #[error("topic '{0}' has an invalid class, expected flow, request, response, or notify")]
    Class(String),
    /// A character that brokers do not carry in names.
    #[error(
        "topic '{topic}' has the character {character:?}; allowed are letters, digits and - _ . : @ # , / + and space"
    )]
    Character {
        /// The text.
        topic: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// Too long for some broker.
    #[error("topic '{topic}' makes an exchange name of {bytes} bytes; brokers allow {max}")]
    Length {
        /// The text.
        topic: String,
        /// What it would need.
        bytes: usize,
        /// [`Topic::EXCHANGE_BYTES_MAX`].
        max: usize,
    },
}

/// A checked topic identifier. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic {
    class: Class,
    text: Arc<str>,
    name_at: usize,
}

impl Topic {
    /// The longest exchange name (`space.class.name`, as long as the identifier) that every broker takes, in bytes.
    pub const EXCHANGE_BYTES_MAX: usize = 127;
    /// The longest queue name (`exchange.subscription`) that every broker takes, in bytes.
    pub const QUEUE_BYTES_MAX: usize = 255;

    /// Reads `class:space:name`.
    ///
    /// # Errors
    /// A [`TopicError`] that shows the text and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        let mut parts = text.splitn(3, ':');
        let (Some(class), Some(space), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(TopicError::Shape(text.to_owned()));
        };
        if space.is_empty() || name.is_empty() {
            return Err(TopicError::Shape(text.to_owned()));
        }
        let class = Class::ALL
            .into_iter()
            .find(|known| known.as_str() == class)
            .ok_or_else(|| TopicError::Class(text.to_owned()))?;
        if let Some(character) = text.chars().find(|c| !carried_by_brokers(*c)) {
            return Err(TopicError::Character { topic: text.to_owned(), character });
        }
        if text.len() > Self::EXCHANGE_BYTES_MAX {
            return Err(TopicError::Length {
                topic: text.to_owned(),
                bytes: text.len(),
                max: Self::EXCHANGE_BYTES_MAX,
            });
        }
        let name_at = class.as_str().len() + 1 + space.len() + 1;
        Ok(Self { class, text: text.into(), name_at })
    }

    /// A topic in the space `tg`, from parts joined by colons.
    ///
    /// # Errors
    /// As [`Topic::parse`].
    pub fn tg(class: Class, name: impl fmt::Display) -> Result<Self, TopicError> {
        Self::parse(&format!("{class}:tg:{name}"))
    }

    /// A system topic. Its base is ours; the workspace in it may be older than the rule for ids and is kept served.
    pub(crate) fn made(class: Class, name: &str) -> Self {
        let text = format!("{class}:tg:{name}");
        Self { class, name_at: text.len() - name.len(), text: text.into() }
    }

    /// What kind of traffic it carries.
    #[must_use]
    pub const fn class(&self) -> Class {
        self.class
    }

    /// The topic space, in practice always `tg`.
    #[must_use]
    pub fn space(&self) -> &str {
        &self.text[self.class.as_str().len() + 1..self.name_at - 1]
    }

    /// All after the second colon; may itself hold colons.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.text[self.name_at..]
    }

    /// The identifier.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn carried_by_brokers(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.:@#,/+ ".contains(c)
}

impl FromStr for Topic {
    type Err = TopicError;
    fn from_str(text: &str) -> Result<Self, TopicError> {
        Self::parse(text)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Topic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Topic {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_two_colons_split() {
        let topic = Topic::parse("request:tg:config:default").unwrap();
        assert_eq!((topic.class(), topic.space(), topic.name()), (Class::Request, "tg", "config:default"));
        assert_eq!(topic.to_string(), "request:tg:config:default");
    }

    #[test]
    fn what_is_not_a_topic_says_why() {
        let check = |text: &str, expected: &str| {
            let said = Topic::parse(text).unwrap_err().to_string();
            assert!(said.contains(expected), "{text}: {said}");
        };
        check("flow:tg", "class:space:name");
        check("chunk", "class:space:name");
        check("state:tg:x", "expected flow, request, response, or notify");
        check("flow:tg:a{id}", "'{'");
        check("flow:tg:é", "'é'");
        check(&format!("flow:tg:{}", "x".repeat(120)), "128 bytes");
    }
}
