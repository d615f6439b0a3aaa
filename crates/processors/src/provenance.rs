//! Where things came from, as triples: what the decoder and the chunker say of the parts they make, and the names and
//! times that all traces are made of.

use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use sluice_schema::message::{Term, Triple};
pub(crate) use sluice_schema::vocabulary::{LABEL, PROV, RDF_TYPE, TG};
use uuid::Uuid;

/// Graph of extraction provenance.
pub(crate) const SOURCE_GRAPH: &str = "urn:graph:source";
/// Graph of question traces.
pub(crate) const RETRIEVAL_GRAPH: &str = "urn:graph:retrieval";
const COMPONENT_VERSION: &str = "1.0.0";

pub(crate) fn iri(iri: impl Into<String>) -> Term {
    Term { r#type: "i".to_owned(), iri: iri.into(), ..Default::default() }
}

pub(crate) fn literal(value: impl Into<String>) -> Term {
    Term { r#type: "l".to_owned(), value: value.into(), ..Default::default() }
}

/// Collects triples of one graph.
pub(crate) struct Statements {
    graph: &'static str,
    triples: Vec<Triple>,
}

impl Statements {
    pub(crate) const fn of_graph(graph: &'static str) -> Self {
        Self { graph, triples: Vec::new() }
    }

    pub(crate) fn say(&mut self, subject: &str, predicate: impl Into<String>, object: Term) {
        self.triples.push(Triple {
            s: Some(iri(subject)),
            p: Some(iri(predicate)),
            o: Some(object),
            g: Some(self.graph.to_owned()),
        });
    }

    pub(crate) fn finish(self) -> Vec<Triple> {
        self.triples
    }
}

/// A part that was made from a document or from another part.
pub(crate) struct Part<'a> {
    pub(crate) id: &'a str,
    pub(crate) parent: &'a str,
    /// What made it: the name after `https://trustgraph.ai/agent/`.
    pub(crate) component: &'a str,
    pub(crate) title: &'a str,
    pub(crate) kind: PartKind,
}

pub(crate) enum PartKind {
    Page { number: usize, mime_type: String },
    Section { mime_type: String },
    Chunk { index: usize, offset: usize, length: usize, size: usize, overlap: usize },
}

impl Part<'_> {
    /// What is known of the part, in the graph of sources.
    pub(crate) fn triples(&self, made_at: &str) -> Vec<Triple> {
        let activity = format!("https://trustgraph.ai/activity/{}", derived_uuid(&["activity", self.id]));
        let agent = format!("https://trustgraph.ai/agent/{}", self.component);
        let class = match self.kind {
            PartKind::Page { .. } => "Page",
            PartKind::Section { .. } => "Section",
            PartKind::Chunk { .. } => "Chunk",
        };
        let (prov, tg) = (|name: &str| format!("{PROV}{name}"), |name: &str| format!("{TG}{name}"));
        let mut known = Statements::of_graph(SOURCE_GRAPH);
        known.say(self.id, RDF_TYPE, iri(prov("Entity")));
        known.say(self.id, RDF_TYPE, iri(tg(class)));
        known.say(self.id, prov("wasDerivedFrom"), iri(self.parent));
        known.say(self.id, prov("wasGeneratedBy"), iri(&activity));
        known.say(&activity, RDF_TYPE, iri(prov("Activity")));
        known.say(&activity, LABEL, literal(format!("{} extraction", self.component)));
        known.say(&activity, prov("used"), iri(self.parent));
        known.say(&activity, prov("wasAssociatedWith"), iri(&agent));
        known.say(&activity, prov("startedAtTime"), literal(made_at));
        known.say(&activity, tg("componentVersion"), literal(COMPONENT_VERSION));
        known.say(&agent, RDF_TYPE, iri(prov("Agent")));
        known.say(&agent, LABEL, literal(self.component));
        known.say(self.id, LABEL, literal(self.title));
        match &self.kind {
            PartKind::Page { number, mime_type } => {
                known.say(self.id, tg("pageNumber"), literal(number.to_string()));
                known.say(self.id, tg("mimeType"), literal(mime_type));
            }
            PartKind::Section { mime_type } => known.say(self.id, tg("mimeType"), literal(mime_type)),
            PartKind::Chunk { index, offset, length, size, overlap } => {
                known.say(self.id, tg("chunkIndex"), literal(index.to_string()));
                known.say(self.id, tg("charOffset"), literal(offset.to_string()));
                known.say(self.id, tg("charLength"), literal(length.to_string()));
                known.say(&activity, tg("chunkSize"), literal(size.to_string()));
                known.say(&activity, tg("chunkOverlap"), literal(overlap.to_string()));
            }
        }
        known.finish()
    }
}

/// A UUID that the same parts always give, so that a message handled twice makes the same things twice.
pub(crate) fn derived_uuid(parts: &[&str]) -> Uuid {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let mut bytes = [0_u8; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// Now, as traces write it: UTC with microseconds.
pub(crate) fn now() -> String {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    timestamp(since_1970.as_secs(), since_1970.subsec_micros())
}

/// Seconds since 1970.
pub(crate) fn now_seconds() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX)
}

pub(crate) fn timestamp(seconds: u64, micros: u32) -> String {
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    let fraction = if micros == 0 { String::new() } else { format!(".{micros:06}") };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// The date that many days after 1970-01-01. Years are counted from March, so that the odd day comes last.
const fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_calendars_have_them() {
        assert_eq!(timestamp(0, 0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(951_782_400, 0), "2000-02-29T00:00:00Z");
        assert_eq!(timestamp(1_767_259_800, 123_456), "2026-01-01T09:30:00.123456Z");
    }

    #[test]
    fn ids_derived_from_the_same_parts_are_the_same() {
        assert_eq!(derived_uuid(&["a", "b"]), derived_uuid(&["a", "b"]));
        assert_ne!(derived_uuid(&["a", "b"]), derived_uuid(&["ab", ""]));
    }

    #[test]
    fn a_chunk_is_described_with_its_place_in_the_graph_of_sources() {
        let kind = PartKind::Chunk { index: 2, offset: 10, length: 5, size: 2_000, overlap: 50 };
        let part =
            Part { id: "urn:chunk:1", parent: "urn:page:1", component: "chunker", title: "Chunk 2", kind };
        let triples = part.triples("2026-01-01T09:30:00Z");
        assert!(triples.iter().all(|triple| triple.g.as_deref() == Some(SOURCE_GRAPH)));
        let said = |predicate: &str| -> Vec<String> {
            let of = |triple: &Triple| triple.p.as_ref().is_some_and(|p| p.iri.ends_with(predicate));
            let object = |triple: &Triple| {
                triple.o.as_ref().map(|o| format!("{}{}", o.iri, o.value)).unwrap_or_default()
            };
            triples.iter().filter(|triple| of(triple)).map(object).collect()
        };
        assert_eq!(said("charOffset"), ["10"]);
        assert_eq!(said("chunkOverlap"), ["50"]);
        assert_eq!(said("wasDerivedFrom"), ["urn:page:1"]);
        assert_eq!(said("label"), ["chunker extraction", "chunker", "Chunk 2"]);
        assert_eq!(triples.len(), 18);
    }
}
