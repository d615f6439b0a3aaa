//! What the slots of known processors are for: which topics a processor reads, writes, or calls a service on.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::doors::Use;

/// What a slot is to its processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotKind {
    /// Read under a shared subscription.
    Consume,
    /// Written to.
    Produce,
    /// Where the processor asks a service.
    ClientRequest,
    /// Where it reads that service's answers.
    ClientResponse,
}

impl SlotKind {
    /// What the processor wants with the slot's topic, as [`crate::doors::check`] asks.
    #[must_use]
    pub const fn wanted(self) -> Use {
        match self {
            Self::Consume => Use::Consume,
            Self::Produce => Use::Produce,
            Self::ClientRequest | Self::ClientResponse => Use::Call,
        }
    }
}

/// One slot of a known processor.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Slot {
    /// What it is for.
    pub kind: SlotKind,
    /// The message type on it, by its name in [`crate::message`].
    pub schema: String,
    /// Whether a flow may leave it out.
    #[serde(default)]
    pub optional: bool,
}

/// A known processor.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KnownProcessor {
    /// Slot name → slot.
    pub slots: BTreeMap<String, Slot>,
    /// Parameters that it reads.
    #[serde(default)]
    pub parameters: Vec<String>,
}

static KNOWN: LazyLock<BTreeMap<String, KnownProcessor>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../data/processor-slots.json"))
        .expect("the table in the tree parses, as a test shows")
});

/// What is known of a processor.
#[must_use]
pub fn processor(id: &str) -> Option<&'static KnownProcessor> {
    KNOWN.get(id)
}

/// Every known processor.
pub fn processors() -> impl Iterator<Item = (&'static str, &'static KnownProcessor)> {
    KNOWN.iter().map(|(id, known)| (id.as_str(), known))
}

/// What a slot of a processor is for: as known, else by its name. `siblings` are the names of all slots that the
/// processor's template gives.
#[must_use]
pub fn kind_of<'a>(processor_id: &str, slot: &str, siblings: impl IntoIterator<Item = &'a str>) -> SlotKind {
    let known = processor(processor_id).and_then(|known| known.slots.get(slot));
    known.map_or_else(|| kind_by_name(slot, siblings), |slot| slot.kind)
}

/// The convention: `input`, `request` and `*-input` are read; a pair `X-request`, `X-response` calls a service; anything
/// else is written.
fn kind_by_name<'a>(slot: &str, siblings: impl IntoIterator<Item = &'a str>) -> SlotKind {
    if matches!(slot, "input" | "request") || slot.ends_with("-input") {
        return SlotKind::Consume;
    }
    let (service, twin, kind) = if let Some(service) = slot.strip_suffix("-request") {
        (service, "-response", SlotKind::ClientRequest)
    } else if let Some(service) = slot.strip_suffix("-response") {
        (service, "-request", SlotKind::ClientResponse)
    } else {
        return SlotKind::Produce;
    };
    let paired = siblings.into_iter().any(|other| other.strip_prefix(service) == Some(twin));
    if paired && !service.is_empty() { kind } else { SlotKind::Produce }
}

/// The slots that a known processor reads under a shared subscription; `None` for one that is not known.
#[must_use]
pub fn input_slots(processor_id: &str) -> Option<Vec<&'static str>> {
    let known = processor(processor_id)?;
    let read = known.slots.iter().filter(|(_, slot)| slot.kind == SlotKind::Consume);
    Some(read.map(|(name, _)| name.as_str()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_processors_have_their_slots() {
        assert_eq!(input_slots("chunker"), Some(vec!["input"]));
        assert_eq!(input_slots("kw-index"), Some(vec!["input", "request"]));
        assert_eq!(input_slots("kg-store"), Some(vec!["graph-embeddings-input", "triples-input"]));
        assert_eq!(input_slots("nobody"), None);
        assert_eq!(processor("chunker").unwrap().slots["output"].schema, "Chunk");
    }

    #[test]
    fn slots_of_unknown_processors_follow_their_names() {
        let all = [
            "input",
            "request",
            "response",
            "x-input",
            "llm-request",
            "llm-response",
            "odd-request",
            "output",
        ];
        let kinds: Vec<_> = all.iter().map(|slot| kind_of("mine", slot, all)).collect();
        use SlotKind::{ClientRequest, ClientResponse, Consume, Produce};
        assert_eq!(
            kinds,
            [Consume, Consume, Produce, Consume, ClientRequest, ClientResponse, Produce, Produce]
        );
    }

    #[test]
    fn the_convention_agrees_with_what_is_known() {
        for (id, known) in processors() {
            let names: Vec<_> = known.slots.keys().map(String::as_str).collect();
            for (name, slot) in &known.slots {
                assert_eq!(kind_by_name(name, names.iter().copied()), slot.kind, "{id} {name}");
            }
        }
    }
}
