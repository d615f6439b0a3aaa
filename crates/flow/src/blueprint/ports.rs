//! What is known of processors' slots: from the processors this system runs, from the catalogue of the standard ones, or
//! from the names that slots have by convention.

use std::collections::BTreeMap;

use sluice_schema::slots::{self, SlotKind};

/// What this system knows of slots.
#[derive(Debug, Clone, Default)]
pub struct Ports {
    own: BTreeMap<String, BTreeMap<String, SlotKind>>,
    only_own: bool,
}

impl Ports {
    /// Knows the standard processors. With `only_own`, nobody can run them but this system: those it does not run get no
    /// subscriptions.
    #[must_use]
    pub fn new(only_own: bool) -> Self {
        Self { own: BTreeMap::new(), only_own }
    }

    /// Adds a slot of a processor that this system runs.
    pub fn add(&mut self, processor: &str, slot: &str, kind: SlotKind) {
        self.own.entry(processor.to_owned()).or_default().insert(slot.to_owned(), kind);
    }

    /// Whether a processor is a standard one that nobody can run here.
    pub(super) fn is_idle(&self, processor: &str) -> bool {
        self.only_own && !self.own.contains_key(processor) && slots::processor(processor).is_some()
    }

    /// Whether a processor reads a slot.
    pub(crate) fn is_input<'a>(
        &self,
        processor: &str,
        slot: &str,
        siblings: impl IntoIterator<Item = &'a str>,
    ) -> bool {
        self.kind(processor, slot, siblings) == SlotKind::Consume
    }

    /// What a slot is for. A slot that its processor does not list is never an input: nobody would read it.
    pub(super) fn kind<'a>(
        &self,
        processor: &str,
        slot: &str,
        siblings: impl IntoIterator<Item = &'a str>,
    ) -> SlotKind {
        let listed = self.own.get(processor).map(|slots| slots.get(slot).copied());
        let listed = listed
            .or_else(|| slots::processor(processor).map(|known| known.slots.get(slot).map(|slot| slot.kind)));
        match listed {
            Some(Some(kind)) => kind,
            Some(None) => without_reading(slots::kind_of(processor, slot, siblings)),
            None => slots::kind_of(processor, slot, siblings),
        }
    }
}

/// The same use, but not as an input.
pub(super) fn without_reading(kind: SlotKind) -> SlotKind {
    if kind == SlotKind::Consume { SlotKind::Produce } else { kind }
}
