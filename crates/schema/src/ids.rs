//! Checked names that people choose: workspaces, flows, blueprints, collections.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} id '{text}' is not valid: {rule}")]
pub struct IdError {
    /// Workspace, flow, …
    pub what: &'static str,
    /// The text.
    pub text: String,
    /// What an id has to look like.
    pub rule: &'static str,
}

macro_rules! id {
    ($(#[$meta:meta])* $name:ident, $what:literal, $check:path, $rule:literal) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks a text that somebody wrote.
            ///
            /// # Errors
            /// An [`IdError`] with the rule.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                if $check(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(IdError { what: $what, text: text.to_owned(), rule: $rule })
                }
            }

            /// Takes a name that is already in use, whatever it looks like: names from before the rule are kept served.
            #[must_use]
            pub fn existing(text: &str) -> Self {
                Self(text.into())
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(Self::existing(&String::deserialize(deserializer)?))
            }
        }
    };
}

id!(
    /// A tenant. Everything but the system's own topics belongs to exactly one.
    WorkspaceId,
    "workspace",
    workspace_rule,
    "use a lower-case letter, then up to 62 lower-case letters, digits or '-'"
);
id!(
    /// A flow as people name it. Its runs have names of their own.
    FlowId,
    "flow",
    flow_rule,
    "use a letter or digit, then up to 127 letters, digits, '.', '_' or '-', not ending in -r<digits>"
);
id!(
    /// A blueprint, a collection, or another thing that people name.
    Name,
    "name",
    name_rule,
    "use a letter or digit, then up to 127 letters, digits, '.', '_' or '-'"
);

impl WorkspaceId {
    /// Whether the id belongs to the system (`__workspaces__`, `__flows__`, …): stored, never announced, never routed to.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with('_')
    }
}

fn workspace_rule(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn name_rule(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn flow_rule(text: &str) -> bool {
    name_rule(text) && !is_run_name(text)
}

/// Whether a text ends like the name of a second or later run: `-r<digits>`.
#[must_use]
pub fn is_run_name(text: &str) -> bool {
    text.rsplit_once("-r").is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_their_rule() {
        for good in ["default", "a", "acme-2"] {
            assert!(WorkspaceId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "Acme", "2a", "a_b", "__system__", "a:b", "a b", &"a".repeat(64)] {
            assert!(WorkspaceId::parse(bad).is_err(), "{bad}");
        }
        for good in ["f1", "My.Flow_2", "for-r", "a-rx2"] {
            assert!(FlowId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "f-r2", "a/b", "{id}", ".x", "a:b"] {
            assert!(FlowId::parse(bad).is_err(), "{bad}");
        }
    }
}
