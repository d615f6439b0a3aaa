//! The `message!` macro: a struct that reads leniently and writes every field.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize};

/// A string or a list of strings: the values of attribute maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, DeriveDeserialize)]
#[serde(untagged)]
pub enum TextOrList {
    /// One text.
    Text(String),
    /// Several texts.
    List(Vec<String>),
}

impl Default for TextOrList {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

/// A field name being read; borrowed from the input where the input allows it.
pub(crate) struct FieldName<'de>(pub(crate) Cow<'de, str>);

impl<'de> Deserialize<'de> for FieldName<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl<'de> Visitor<'de> for NameVisitor {
            type Value = FieldName<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field name")
            }
            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(FieldName(Cow::Borrowed(name)))
            }
            fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
                Ok(FieldName(Cow::Owned(name.to_owned())))
            }
        }
        deserializer.deserialize_str(NameVisitor)
    }
}

/// The wire name of a Rust field: raw identifiers lose their `r#`.
pub(crate) const fn wire_name(rust_name: &'static str) -> &'static str {
    let bytes = rust_name.as_bytes();
    if bytes.len() > 2 && bytes[0] == b'r' && bytes[1] == b'#' { rust_name.split_at(2).1 } else { rust_name }
}

/// Defines a wire message: public fields, `Default`, lenient reading, complete writing.
///
/// `#[additive]` before a field leaves it out of the output while it holds its default.
macro_rules! message {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[doc = $doc:literal])* $(#[additive $($additive:tt)?])? $field:ident : $type:ty $(= $default:expr)? ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $( $(#[doc = $doc])* #[allow(missing_docs, reason = "the struct's own text covers the fields of the dialect")] pub $field: $type, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: message!(@default $type $(, $default)?), )* }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeMap as _;
                let mut map = serializer.serialize_map(None)?;
                $(
                    message!(@write map, self, $field, $type $(, additive $($additive)?)?);
                )*
                map.end()
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct MessageVisitor;
                impl<'de> serde::de::Visitor<'de> for MessageVisitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str(concat!("a JSON object (", stringify!($name), ")"))
                    }
                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<$name, A::Error> {
                        let mut message = $name::default();
                        while let Some(name) = map.next_key::<$crate::message::define::FieldName<'de>>()? {
                            let name: &str = &name.0;
                            $(
                                if name == const { $crate::message::define::wire_name(stringify!($field)) } {
                                    if let Some(value) = map.next_value::<Option<$type>>()
                                        .map_err(|e| message!(@name_the_field e, $field))?
                                    {
                                        message.$field = value;
                                    }
                                    continue;
                                }
                            )*
                            map.next_value::<serde::de::IgnoredAny>()?;
                        }
                        Ok(message)
                    }
                }
                deserializer.deserialize_map(MessageVisitor)
            }
        }
    };
    (@default $type:ty) => { <$type as Default>::default() };
    (@default $type:ty, $default:expr) => { $default };
    (@write $map:ident, $self:ident, $field:ident, $type:ty) => {
        $map.serialize_entry(const { $crate::message::define::wire_name(stringify!($field)) }, &$self.$field)?;
    };
    (@write $map:ident, $self:ident, $field:ident, $type:ty, additive) => {
        if $self.$field != <$type as Default>::default() {
            $map.serialize_entry(const { $crate::message::define::wire_name(stringify!($field)) }, &$self.$field)?;
        }
    };
    (@name_the_field $error:ident, $field:ident) => {
        serde::de::Error::custom(format_args!(
            "field `{}`: {}",
            const { $crate::message::define::wire_name(stringify!($field)) },
            $error
        ))
    };
}
