//! The trace of a question: one node per step of the answer, as triples that readers of the graph understand.

use sluice_schema::message::Triple;

use crate::provenance::{LABEL, PROV, RDF_TYPE, RETRIEVAL_GRAPH, Statements, TG, iri, literal};

/// Tokens used by a step.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Usage {
    pub(crate) in_token: Option<i64>,
    pub(crate) out_token: Option<i64>,
    pub(crate) model: Option<String>,
}

impl Usage {
    /// Adds another step's tokens; the last model named stays.
    pub(crate) fn add(&mut self, other: &Self) {
        let sum =
            |a: Option<i64>, b: Option<i64>| a.map_or(b, |a| Some(a.saturating_add(b.unwrap_or_default())));
        self.in_token = sum(self.in_token, other.in_token);
        self.out_token = sum(self.out_token, other.out_token);
        self.model = other.model.clone().or(self.model.take());
    }
}

/// The nodes of one question.
pub(crate) struct Trace {
    question: String,
    session: String,
}

/// A step of the answer.
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) triples: Vec<Triple>,
}

impl Trace {
    pub(crate) fn new(session: &str) -> Self {
        Self { question: format!("urn:trustgraph:docrag:{session}"), session: session.to_owned() }
    }

    /// The id of the question.
    pub(crate) fn id(&self) -> &str {
        &self.question
    }

    /// The id under which the answer is saved.
    pub(crate) fn answer_id(&self) -> String {
        format!("{}/answer", self.question)
    }

    pub(crate) fn question(&self, query: &str, asked_at: &str) -> Node {
        let id = self.question.clone();
        let mut known = begin(&id, &["Question", "DocRagQuestion"], "DocumentRAG Question", None);
        known.say(&id, format!("{PROV}startedAtTime"), literal(asked_at));
        known.say(&id, format!("{TG}query"), literal(query));
        Node { id, triples: known.finish() }
    }

    pub(crate) fn grounding(&self, concepts: &[String], usage: &Usage) -> Node {
        let id = self.step("grounding");
        let mut known = begin(&id, &["Grounding"], "Grounding", Some(&self.question));
        for concept in concepts {
            known.say(&id, format!("{TG}concept"), literal(concept));
        }
        say_usage(&mut known, &id, usage);
        Node { id, triples: known.finish() }
    }

    pub(crate) fn exploration<'a>(&self, chunks: impl ExactSizeIterator<Item = &'a str>) -> Node {
        let id = self.step("exploration");
        let mut known = begin(&id, &["Exploration"], "Exploration", Some(&self.step("grounding")));
        known.say(&id, format!("{TG}chunkCount"), literal(chunks.len().to_string()));
        for chunk in chunks {
            known.say(&id, format!("{TG}selectedChunk"), iri(chunk));
        }
        Node { id, triples: known.finish() }
    }

    pub(crate) fn focus<'a>(&self, selected: impl Iterator<Item = (&'a str, f64)>) -> Node {
        let id = self.step("focus");
        let mut known = begin(&id, &["Focus"], "Chunk Selection", Some(&self.step("exploration")));
        for (place, (chunk, score)) in selected.enumerate() {
            let selection = format!("urn:trustgraph:prov:chunk:{}:{place}", self.session);
            known.say(&id, format!("{TG}selectedChunk"), iri(&selection));
            known.say(&selection, RDF_TYPE, iri(format!("{TG}ChunkSelection")));
            known.say(&selection, format!("{TG}document"), iri(chunk));
            known.say(&selection, format!("{TG}score"), literal(score.to_string()));
        }
        Node { id, triples: known.finish() }
    }

    pub(crate) fn synthesis(&self, focused: bool, answer: Option<&str>, usage: &Usage) -> Node {
        let id = self.step("synthesis");
        let from = self.step(if focused { "focus" } else { "exploration" });
        let mut known = begin(&id, &["Synthesis", "Answer"], "Synthesis", Some(&from));
        if let Some(answer) = answer {
            known.say(&id, format!("{TG}document"), iri(answer));
        }
        say_usage(&mut known, &id, usage);
        Node { id, triples: known.finish() }
    }

    fn step(&self, name: &str) -> String {
        format!("{}/{name}", self.question)
    }
}

fn begin(id: &str, classes: &[&str], label: &str, derived_from: Option<&str>) -> Statements {
    let mut known = Statements::of_graph(RETRIEVAL_GRAPH);
    known.say(id, RDF_TYPE, iri(format!("{PROV}Entity")));
    for class in classes {
        known.say(id, RDF_TYPE, iri(format!("{TG}{class}")));
    }
    known.say(id, LABEL, literal(label));
    if let Some(from) = derived_from {
        known.say(id, format!("{PROV}wasDerivedFrom"), iri(from));
    }
    known
}

fn say_usage(known: &mut Statements, id: &str, usage: &Usage) {
    for (name, value) in [
        ("inToken", usage.in_token.map(|tokens| tokens.to_string())),
        ("outToken", usage.out_token.map(|tokens| tokens.to_string())),
        ("llmModel", usage.model.clone()),
    ] {
        if let Some(value) = value {
            known.say(id, format!("{TG}{name}"), literal(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_hangs_on_the_one_before() {
        let trace = Trace::new("s1");
        let usage = Usage { in_token: Some(3), ..Default::default() };
        let nodes = [
            trace.question("why", "2026-01-01T00:00:00Z"),
            trace.grounding(&["a".to_owned()], &usage),
            trace.exploration(["urn:chunk:1"].into_iter()),
            trace.focus([("urn:chunk:1", 0.5)].into_iter()),
            trace.synthesis(true, Some("urn:a"), &usage),
        ];
        for pair in nodes.windows(2) {
            let from =
                |triple: &&Triple| triple.p.as_ref().is_some_and(|p| p.iri.ends_with("wasDerivedFrom"));
            let parent = pair[1].triples.iter().find(from).and_then(|triple| triple.o.clone()).unwrap();
            assert_eq!(parent.iri, pair[0].id);
        }
        assert_eq!(nodes[0].id, "urn:trustgraph:docrag:s1");
        assert!(nodes.iter().flat_map(|node| &node.triples).all(|t| t.g.as_deref() == Some(RETRIEVAL_GRAPH)));
    }

    #[test]
    fn tokens_of_several_calls_add_up() {
        let mut usage = Usage::default();
        usage.add(&Usage { in_token: Some(2), out_token: None, model: Some("a".to_owned()) });
        usage.add(&Usage { in_token: Some(3), out_token: Some(1), model: None });
        assert_eq!(usage, Usage { in_token: Some(5), out_token: Some(1), model: Some("a".to_owned()) });
    }
}
