//! From a blueprint, names and parameters to the topology of one run: its topics with their subscriptions, its processor
//! entries, its interfaces.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sluice_bus::{Naming, TopicSpec};
use sluice_schema::doors::{self, Home, Use};
use sluice_schema::record::ProcessorEntry;
use sluice_schema::slots::SlotKind;
use sluice_schema::{Class, Topic, WorkspaceId, system};

use super::parameters::Parameters;
use super::ports::{Ports, without_reading};
use super::read::{Blueprint, PartTemplate};
use super::template::Unfilled;
use super::{Error, WARNINGS_MAX, shown, template};

/// The names that fill a blueprint.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// The flow's workspace.
    pub workspace: &'a WorkspaceId,
    /// `{id}` in parameters: the flow as people name it.
    pub id: &'a str,
    /// `{id}` elsewhere: the run.
    pub run: &'a str,
    /// `{blueprint}` in parameters: the blueprint as people name it.
    pub blueprint: &'a str,
    /// `{blueprint}` elsewhere: what the shared section is called this time.
    pub shared: &'a str,
}

/// A topic that a run owns, with the subscriptions that are made with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedTopic {
    /// The topic.
    pub topic: Topic,
    /// Its subscriptions, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subscriptions: Vec<String>,
}

impl OwnedTopic {
    /// As brokers want it.
    #[must_use]
    pub fn spec(&self) -> TopicSpec {
        TopicSpec { topic: self.topic.clone(), subscriptions: self.subscriptions.clone() }
    }
}

/// One processor's part in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The processor's id.
    pub processor: String,
    /// Its variant: the key of its entry.
    pub variant: String,
    /// Its entry.
    pub entry: ProcessorEntry,
}

impl Part {
    /// The same, whose entry calls topics by such names.
    #[must_use]
    pub fn named(&self, naming: Naming) -> Self {
        let mut part = self.clone();
        for name in part.entry.topics.values_mut() {
            if let Ok(topic) = Topic::parse(name) {
                *name = (naming.name)(&topic);
            }
        }
        part
    }
}

/// All that a run consists of. Recorded at start, and what is recorded is what is removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Topology {
    /// Topics, in order of their identifiers. System topics that the run calls are not among them.
    pub topics: Vec<OwnedTopic>,
    /// Processor entries.
    pub parts: Vec<Part>,
    /// Interface, role, topic.
    pub interfaces: BTreeMap<String, BTreeMap<String, String>>,
}

/// A topology and what else came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The topology.
    pub topology: Topology,
    /// Things worth knowing that stand in nobody's way.
    pub warnings: Vec<String>,
    /// Tells shared sections apart by what is in them; `None` when there is none.
    pub shared_content: Option<String>,
}

impl Blueprint {
    /// Resolves a run.
    ///
    /// # Errors
    /// What is wrong and where: a placeholder left over, a topic behind another's door, a name too long.
    pub fn resolve(
        &self,
        names: Names<'_>,
        parameters: &Parameters,
        ports: &Ports,
    ) -> Result<Resolved, Error> {
        // Of two with one name the first counts.
        let parameters = parameters.iter().rev().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut run = Run {
            names,
            parameters: parameters.collect(),
            ports,
            topics: BTreeMap::new(),
            readers: BTreeMap::new(),
            warnings: Vec::new(),
        };
        let mut wired = Vec::with_capacity(self.parts.len());
        for template in &self.parts {
            wired.push(run.part(template)?);
        }
        if let Some((at, first)) = duplicate(&wired) {
            let name = format!("{}:{}", wired[at].part.processor, wired[at].part.variant);
            let (place, other) = (self.parts[at].place.clone(), self.parts[first].place.clone());
            return Err(Error::Twice { place, name, other });
        }
        let interfaces = self.interfaces.iter().map(|(name, roles)| run.interface(name, roles));
        let interfaces = interfaces.collect::<Result<BTreeMap<_, _>, Error>>()?;
        run.warn_unserved(&wired);
        mark_direct(&mut wired);
        run.mark_read(&mut wired);
        let shared: Vec<&Part> = wired.iter().filter(|w| w.is_shared).map(|w| &w.part).collect();
        let shared_content = (!shared.is_empty()).then(|| fingerprint(&shared));
        let topics = run.topics.into_iter().map(|(topic, subscriptions)| OwnedTopic {
            topic,
            subscriptions: subscriptions.into_iter().collect(),
        });
        let topology = Topology {
            topics: topics.collect(),
            parts: wired.into_iter().map(|w| w.part).collect(),
            interfaces,
        };
        Ok(Resolved { topology, warnings: run.warnings, shared_content })
    }
}

struct Wired {
    part: Part,
    is_shared: bool,
    slots: Vec<(String, SlotKind, Topic)>,
}

type Values<'a> = BTreeMap<&'a str, &'a str>;

struct Run<'a> {
    names: Names<'a>,
    parameters: Values<'a>,
    ports: &'a Ports,
    topics: BTreeMap<Topic, BTreeSet<String>>,
    /// Processor, variant and slot of each subscription.
    readers: BTreeMap<(Topic, String), [String; 3]>,
    warnings: Vec<String>,
}

impl<'a> Run<'a> {
    fn part(&mut self, template: &'a PartTemplate) -> Result<Wired, Error> {
        let variant = self.fill(&template.place, &template.variant)?;
        let is_idle = self.ports.is_idle(&template.processor) && template.inputs.is_none();
        if is_idle {
            self.warn(format!(
                "{}: nothing here runs the processor '{}'; it gets no subscriptions and what is sent to it is not kept",
                shown(&template.place),
                shown(&template.processor)
            ));
        }
        let mut slots = Vec::with_capacity(template.topics.len());
        let mut topics = BTreeMap::new();
        for (slot, topic) in &template.topics {
            let place = format!("{} / topics / {slot}", template.place);
            let slot = self.fill(&place, slot)?;
            let siblings = template.topics.iter().map(|(slot, _)| slot.as_str());
            let listed = self.ports.kind(&template.processor, &slot, siblings);
            let kind = match &template.inputs {
                Some(inputs) if inputs.contains(&slot) => SlotKind::Consume,
                Some(_) => without_reading(listed),
                None => listed,
            };
            let topic = self.topic(&place, topic, kind.wanted())?;
            if kind == SlotKind::Consume && topic.class().has_subscriptions() && !is_idle {
                self.subscribe(&place, &topic, &template.processor, &variant, &slot)?;
            }
            topics.insert(slot.clone(), topic.to_string());
            slots.push((slot, kind, topic));
        }
        for input in template.inputs.iter().flatten() {
            if !topics.contains_key(input) {
                return Err(Error::Input { place: template.place.clone(), slot: input.clone() });
            }
        }
        let parameters = self.part_parameters(template)?;
        let entry = ProcessorEntry { topics, parameters, direct: Vec::new(), read: Vec::new() };
        let part = Part { processor: template.processor.clone(), variant, entry };
        Ok(Wired { part, is_shared: template.is_shared, slots })
    }

    fn part_parameters(&self, template: &'a PartTemplate) -> Result<BTreeMap<String, String>, Error> {
        let names = Names { run: self.names.id, shared: self.names.blueprint, ..self.names };
        template
            .parameters
            .iter()
            .map(|(name, text)| {
                let place = format!("{} / parameters / {name}", template.place);
                let fill = |text: &'a str| fill(&place, text, names, &self.parameters);
                Ok((fill(name)?, fill(text)?))
            })
            .collect()
    }

    fn interface(
        &mut self,
        name: &'a str,
        roles: &'a [(String, String)],
    ) -> Result<(String, BTreeMap<String, String>), Error> {
        let place = format!("interfaces / {name}");
        let filled = self.fill(&place, name)?;
        let roles = roles.iter().map(|(role, topic)| {
            let place = format!("{place} / {role}");
            let role = self.fill(&place, role)?;
            Ok((role, self.topic(&place, topic, Use::Expose)?.to_string()))
        });
        Ok((filled, roles.collect::<Result<_, Error>>()?))
    }

    /// A topic that the run may use; one that is not the system's is the run's own from now on.
    fn topic(&mut self, place: &str, text: &'a str, wanted: Use) -> Result<Topic, Error> {
        let filled = self.fill(place, text)?;
        let topic =
            Topic::parse(&filled).map_err(|source| Error::Topic { place: place.to_owned(), source })?;
        let home = Home { workspace: self.names.workspace, names: &[self.names.run, self.names.shared] };
        doors::check(&topic, wanted, home)
            .map_err(|source| Error::Door { place: place.to_owned(), source })?;
        if !system::is_system(&topic) {
            self.topics.entry(topic.clone()).or_default();
        }
        Ok(topic)
    }

    fn subscribe(
        &mut self,
        place: &str,
        topic: &Topic,
        processor: &str,
        variant: &str,
        slot: &str,
    ) -> Result<(), Error> {
        let workspace = self.names.workspace.as_str();
        let subscription = format!("{processor}--{workspace}--{variant}--{slot}");
        let queue = format!("{}.{}.{}.{subscription}", topic.space(), topic.class(), topic.name());
        if let Some(character) = subscription.chars().find(|c| !is_carried(*c)) {
            let source = sluice_schema::TopicError::Character { topic: subscription, character };
            return Err(Error::Topic { place: place.to_owned(), source });
        }
        if queue.len() > Topic::QUEUE_BYTES_MAX {
            let (bytes, max) = (queue.len(), Topic::QUEUE_BYTES_MAX);
            return Err(Error::Length { place: place.to_owned(), queue, bytes, max });
        }
        if processor.contains('.') {
            return Err(Error::Point { place: place.to_owned(), processor: processor.to_owned() });
        }
        if let Some((other_topic, other_subscription)) = other_reading(topic, &subscription) {
            let place = place.to_owned();
            return Err(Error::Ambiguous { place, queue, other_topic, other_subscription });
        }
        let parts = [processor, variant, slot].map(str::to_owned);
        let known =
            self.readers.entry((topic.clone(), subscription.clone())).or_insert_with(|| parts.clone());
        if *known != parts {
            let [processor, variant, slot] = known;
            let other = format!("slot '{slot}' of {processor}:{variant}");
            return Err(Error::Twice { place: place.to_owned(), name: subscription, other });
        }
        self.topics.entry(topic.clone()).or_default().insert(subscription);
        Ok(())
    }

    fn warn(&mut self, warning: String) {
        if self.warnings.len() < WARNINGS_MAX {
            self.warnings.push(warning);
        }
    }

    fn fill(&self, place: &str, text: &'a str) -> Result<String, Error> {
        fill(place, text, self.names, &self.parameters)
    }

    /// What is sent to a topic with a reader on record is kept or refused; to others it may go nowhere.
    fn mark_read(&self, wired: &mut [Wired]) {
        for wired in wired {
            let is_read = |topic: &Topic| self.topics.get(topic).is_some_and(|names| !names.is_empty());
            let read = wired.slots.iter().filter(|(_, kind, topic)| {
                *kind != SlotKind::Consume && topic.class() == Class::Flow && is_read(topic)
            });
            wired.part.entry.read = read.map(|(slot, _, _)| slot.clone()).collect();
        }
    }

    /// A service that is asked but that no processor of the run is.
    fn warn_unserved(&mut self, wired: &[Wired]) {
        let served: BTreeSet<&Topic> = consumers(wired).collect();
        let mut unserved = BTreeMap::<&Topic, &str>::new();
        for wired in wired {
            for (_, kind, topic) in &wired.slots {
                if *kind == SlotKind::ClientRequest && !system::is_system(topic) && !served.contains(topic) {
                    unserved.entry(topic).or_insert(&wired.part.processor);
                }
            }
        }
        for (topic, asker) in unserved {
            let asker = shown(asker);
            self.warn(format!("'{asker}' asks on {topic}, which no processor of this flow serves"));
        }
    }
}

fn fill<'a>(place: &str, text: &'a str, names: Names<'a>, parameters: &Values<'a>) -> Result<String, Error> {
    let value_of = |name: &str| match name {
        "workspace" => Some(names.workspace.as_str()),
        "blueprint" => Some(names.shared),
        "id" => Some(names.run),
        _ => parameters.get(name).copied(),
    };
    template::render(text, value_of).map_err(|unfilled| {
        let place = place.to_owned();
        match unfilled {
            Unfilled::Leftover(name) => Error::Placeholder { place, name },
            Unfilled::TooLong => Error::Filled { place, bytes_max: template::FILLED_BYTES_MAX },
        }
    })
}

/// Another topic and subscription of some flow that would have the same queue name, where brokers name queues
/// `exchange.subscription`. Both halves may hold points (those of a flow's id), so a name made for it can be read in two
/// ways; refusing those, and processors with points, leaves each queue name to one pair, whoever starts what.
fn other_reading(topic: &Topic, subscription: &str) -> Option<(String, String)> {
    let joined = format!("{}.{subscription}", topic.name());
    let could_be = |name: &str, subscription: &str| {
        let mut ends = name.rsplitn(3, ':');
        let (Some(run), Some(workspace), Some(base)) = (ends.next(), ends.next(), ends.next()) else {
            return false;
        };
        let infix = format!("--{workspace}--");
        let is_subscription = subscription.match_indices(&infix).any(|(at, _)| {
            let rest = &subscription[at + infix.len()..];
            let processor = &subscription[..at];
            !processor.is_empty()
                && !processor.contains('.')
                && rest.match_indices("--").any(|(at, _)| at > 0 && at + 2 < rest.len())
        });
        !run.is_empty() && !workspace.is_empty() && !base.is_empty() && is_subscription
    };
    let points = joined.match_indices('.').map(|(at, _)| at).filter(|at| *at != topic.name().len());
    points
        .map(|at| (&joined[..at], &joined[at + 1..]))
        .find(|(name, subscription)| could_be(name, subscription))
        .map(|(name, other)| (format!("{}:{}:{name}", topic.class(), topic.space()), other.to_owned()))
}

fn is_carried(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.:@#,/+ ".contains(c)
}

fn consumers(wired: &[Wired]) -> impl Iterator<Item = &Topic> {
    wired
        .iter()
        .flat_map(|w| &w.slots)
        .filter(|(_, kind, _)| *kind == SlotKind::Consume)
        .map(|(_, _, topic)| topic)
}

/// Answers may go straight to the asker where nobody else reads them.
fn mark_direct(wired: &mut [Wired]) {
    let read: BTreeSet<Topic> = consumers(wired).cloned().collect();
    for wired in wired {
        let direct = wired.slots.iter().filter(|(_, kind, topic)| {
            *kind == SlotKind::Produce && topic.class() == Class::Response && !read.contains(topic)
        });
        wired.part.entry.direct = direct.map(|(slot, _, _)| slot.clone()).collect();
    }
}

fn duplicate(wired: &[Wired]) -> Option<(usize, usize)> {
    let mut seen = BTreeMap::new();
    wired
        .iter()
        .enumerate()
        .find_map(|(at, w)| seen.insert((&w.part.processor, &w.part.variant), at).map(|first| (at, first)))
}

fn fingerprint(parts: &[&Part]) -> String {
    let text = serde_json::to_vec(parts).unwrap_or_default();
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blueprint::{ParameterType, resolve_parameters};
    use serde_json::{Value, json};

    const DEMO: &str = r#"{"description":"Example","tags":["demo"],
 "parameters":{
   "llm-model":{"type":"llm-model","description":"LLM","order":1},
   "llm-rag-model":{"type":"llm-model","description":"RAG LLM","order":2,"advanced":true,"controlled-by":"llm-model"},
   "chunk-size":{"type":"chunk-size","description":"Chunk size","order":3}},
 "interfaces":{
   "document-load":{"flow":"flow:tg:document-load:{workspace}:{id}"},
   "text-completion":{"request":"request:tg:text-completion:{workspace}:{id}",
                      "response":"response:tg:text-completion:{workspace}:{id}"},
   "embeddings":{"request":"request:tg:embeddings:{workspace}:{blueprint}",
                 "response":"response:tg:embeddings:{workspace}:{blueprint}"}},
 "blueprint":{
   "embeddings:{blueprint}":{"topics":{
      "request":"request:tg:embeddings:{workspace}:{blueprint}",
      "response":"response:tg:embeddings:{workspace}:{blueprint}"}}},
 "flow":{
   "document-decoder:{id}":{"topics":{
      "input":"flow:tg:document-load:{workspace}:{id}",
      "output":"flow:tg:text-document-load:{workspace}:{id}",
      "librarian-request":"request:tg:librarian:{workspace}",
      "librarian-response":"response:tg:librarian:{workspace}"}},
   "chunker:{id}":{"topics":{
      "input":"flow:tg:text-document-load:{workspace}:{id}",
      "output":"flow:tg:chunk-load:{workspace}:{id}"},
      "parameters":{"chunk-size":"{chunk-size}","chunk-overlap":"100"}},
   "text-completion:{id}":{"topics":{
      "request":"request:tg:text-completion:{workspace}:{id}",
      "response":"response:tg:text-completion:{workspace}:{id}"},
      "parameters":{"model":"{llm-model}"}},
   "audit-sink:{id}":{"topics":{"input":"flow:tg:audit-copy:{workspace}:{id}"}}}}"#;

    fn resolve(blueprint: &str, run: &str, given: &Value, ports: &Ports) -> Result<Resolved, String> {
        let blueprint = Blueprint::read(blueprint).unwrap();
        let types = |name: &str| match name {
            "llm-model" => {
                Some(ParameterType::read(r#"{"type":"string","default":"gpt-x","required":true}"#))
            }
            "chunk-size" => Some(ParameterType::read(r#"{"type":"integer","default":2000}"#)),
            _ => None,
        };
        let parameters =
            resolve_parameters(blueprint.parameters(), given.as_object().unwrap(), types).unwrap();
        let workspace = WorkspaceId::existing("acme");
        let names = Names { workspace: &workspace, id: "f1", run, blueprint: "demo", shared: "demo" };
        blueprint.resolve(names, &parameters, ports).map_err(|e| e.to_string())
    }

    fn subscriptions(topology: &Topology) -> Vec<String> {
        topology.topics.iter().flat_map(|t| t.subscriptions.clone()).collect()
    }

    #[test]
    fn the_worked_example_resolves_as_documented() {
        let given = json!({"llm-model": "gemma:9b", "extra": true});
        let resolved = resolve(DEMO, "f1", &given, &Ports::default()).unwrap();
        let topics: Vec<_> = resolved.topology.topics.iter().map(|t| t.topic.to_string()).collect();
        assert_eq!(
            topics,
            [
                "flow:tg:audit-copy:acme:f1",
                "flow:tg:chunk-load:acme:f1",
                "flow:tg:document-load:acme:f1",
                "flow:tg:text-document-load:acme:f1",
                "request:tg:embeddings:acme:demo",
                "request:tg:text-completion:acme:f1",
                "response:tg:embeddings:acme:demo",
                "response:tg:text-completion:acme:f1",
            ]
        );
        assert_eq!(
            subscriptions(&resolved.topology),
            [
                "audit-sink--acme--f1--input",
                "document-decoder--acme--f1--input",
                "chunker--acme--f1--input",
                "embeddings--acme--demo--request",
                "text-completion--acme--f1--request",
            ]
        );
        let entry = |processor: &str| {
            let part = resolved.topology.parts.iter().find(|p| p.processor == processor).unwrap();
            (part.variant.clone(), serde_json::to_value(&part.entry).unwrap())
        };
        assert_eq!(
            entry("chunker"),
            (
                "f1".to_owned(),
                json!({"topics": {"input": "flow:tg:text-document-load:acme:f1", "output": "flow:tg:chunk-load:acme:f1"},
                       "parameters": {"chunk-size": "2000", "chunk-overlap": "100"}})
            )
        );
        assert_eq!(entry("embeddings").0, "demo");
        assert_eq!(entry("text-completion").1["parameters"], json!({"model": "gemma:9b"}));
        assert_eq!(entry("text-completion").1["direct"], json!(["response"]));
        assert_eq!(resolved.topology.interfaces["document-load"]["flow"], "flow:tg:document-load:acme:f1");
        assert!(resolved.warnings.is_empty(), "{:?}", resolved.warnings);
        assert!(resolved.shared_content.is_some());
    }

    #[test]
    fn a_later_run_has_names_of_its_own_but_parameters_keep_the_id() {
        let blueprint = json!({"blueprint": {}, "flow": {"a:{id}": {
            "topics": {"input": "flow:tg:x:{workspace}:{id}"}, "parameters": {"who": "{id} of {blueprint}"}}}});
        let resolved = resolve(&blueprint.to_string(), "f1-r2", &json!({}), &Ports::default()).unwrap();
        assert_eq!(subscriptions(&resolved.topology), ["a--acme--f1-r2--input"]);
        let part = &resolved.topology.parts[0];
        assert_eq!((part.variant.as_str(), part.entry.parameters["who"].as_str()), ("f1-r2", "f1 of demo"));
        assert_eq!(resolved.shared_content, None);
    }

    #[test]
    fn an_answer_that_somebody_else_reads_goes_to_its_topic() {
        let blueprint = json!({"blueprint": {}, "flow": {
            "llm:{id}": {"topics": {"request": "request:tg:llm:{workspace}:{id}", "response": "response:tg:llm:{workspace}:{id}"}},
            "metering:{id}": {"topics": {"input": "response:tg:llm:{workspace}:{id}"}}}});
        let resolved = resolve(&blueprint.to_string(), "f1", &json!({}), &Ports::default()).unwrap();
        assert!(resolved.topology.parts.iter().all(|p| p.entry.direct.is_empty()));
        assert_eq!(subscriptions(&resolved.topology), ["llm--acme--f1--request"]);
    }

    #[test]
    fn only_inputs_are_subscribed_and_the_catalogue_knows_them() {
        let topics = json!({"input": "flow:tg:a:{workspace}:{id}", "side-input": "flow:tg:b:{workspace}:{id}",
            "output": "flow:tg:c:{workspace}:{id}", "queue": "flow:tg:d:{workspace}:{id}"});
        let check = |ports: &Ports, inputs: Value, expected: &[&str], warnings: usize| {
            let blueprint =
                json!({"blueprint": {}, "flow": {"p:{id}": {"topics": topics, "inputs": inputs}}});
            let resolved = resolve(&blueprint.to_string(), "f1", &json!({}), ports).unwrap();
            let expected: Vec<_> = expected.iter().map(|slot| format!("p--acme--f1--{slot}")).collect();
            assert_eq!(subscriptions(&resolved.topology), expected);
            assert_eq!(resolved.warnings.len(), warnings, "{:?}", resolved.warnings);
        };
        check(&Ports::default(), Value::Null, &["input", "side-input"], 0);
        let mut own = Ports::new(true);
        own.add("p", "queue", SlotKind::Consume);
        own.add("p", "output", SlotKind::Produce);
        check(&own, Value::Null, &["queue"], 0);
        check(&own, json!(["input"]), &["input"], 0);
    }

    #[test]
    fn a_standard_processor_that_nobody_runs_gets_no_subscriptions_and_a_warning() {
        let check = |only_own: bool, extra: Value, expected: &[&str], warnings: usize| {
            let mut part = json!({"topics": {"input": "flow:tg:a:{workspace}:{id}", "request": "request:tg:b:{workspace}:{id}",
                "other-input": "flow:tg:c:{workspace}:{id}"}});
            part.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let blueprint = json!({"blueprint": {}, "flow": {"kw-index:{id}": part}});
            let resolved = resolve(&blueprint.to_string(), "f1", &json!({}), &Ports::new(only_own)).unwrap();
            let expected: Vec<_> =
                expected.iter().map(|slot| format!("kw-index--acme--f1--{slot}")).collect();
            assert_eq!(subscriptions(&resolved.topology), expected);
            assert_eq!(resolved.warnings.len(), warnings, "{:?}", resolved.warnings);
        };
        check(true, json!({}), &[], 1);
        check(true, json!({"inputs": ["input"]}), &["input"], 0);
        check(false, json!({}), &["input", "request"], 0);
    }

    #[test]
    fn what_cannot_be_started_is_named_with_its_place() {
        let check = |flow: Value, expected: &str| {
            let blueprint = json!({"blueprint": {}, "flow": flow}).to_string();
            let said = resolve(&blueprint, "f1", &json!({"a/b": "x"}), &Ports::default()).unwrap_err();
            assert!(said.contains(expected), "{said}");
        };
        check(
            json!({"a:{id}": {"topics": {"input": "flow:tg:x:{nope}:{id}"}}}),
            "flow / a:{id} / topics / input: nothing fills the placeholder {nope}",
        );
        check(json!({"a:{x}": {}}), "flow / a:{x}: nothing fills the placeholder {x}");
        check(
            json!({"a:{id}": {"parameters": {"p": "{x}"}}}),
            "flow / a:{id} / parameters / p: nothing fills the placeholder {x}",
        );
        check(json!({"a:{id}": {"topics": {"input": "flow:tg:x:acme:f2"}}}), "does not belong to this flow");
        check(json!({"a:{id}": {"topics": {"input": "notify:tg:config"}}}), "class notify");
        check(json!({"a:{id}": {}, "a:f1": {}}), "'a:f1' is already defined by flow / a:{id}");
        check(json!({"a:{id}": {"inputs": ["input"]}}), "input 'input' is not among the topics");
        check(
            json!({"a:{id}": {"topics": {"input": format!("flow:tg:{}:{{workspace}}:{{id}}", "x".repeat(120))}}}),
            "makes an exchange name of 136 bytes; brokers allow 127",
        );
        let long = json!({format!("{}:{{id}}", "p".repeat(240)): {"topics": {"input": "flow:tg:x:{workspace}:{id}"}}});
        check(long, "brokers allow 255. Use a shorter id");
    }

    #[test]
    fn a_queue_name_that_could_be_anothers_is_refused() {
        let refused = |flow: Value, expected: &str| {
            let blueprint = json!({"blueprint": {}, "flow": flow}).to_string();
            let said = resolve(&blueprint, "f1", &json!({}), &Ports::default()).unwrap_err();
            assert!(said.contains(expected), "{said}");
        };
        let input = json!({"topics": {"input": "flow:tg:x:{workspace}:{id}"}});
        let variant = "{id}.q--{workspace}--v";
        refused(
            json!({format!("p:{variant}"): input}),
            "could also be that of subscription 'q--acme--v--input' on flow:tg:x:acme:f1.p--acme--f1",
        );
        refused(json!({"p:a:acme:f1.q--acme--b": input}), "on flow:tg:x:acme:f1.p--acme--a:acme:f1");
        refused(
            json!({"p:a--b": input, "p:a": {"topics": {"b--input": "flow:tg:x:{workspace}:{id}"}}}),
            "'p--acme--a--b--input' is already defined by slot",
        );
        refused(json!({"p.1:{id}": input}), "processor 'p.1' has a point in its name");
        // Points in a flow's id or a variant make nothing ambiguous.
        let blueprint = json!({"blueprint": {}, "flow": {"p:{id}.x": input}}).to_string();
        let resolved = resolve(&blueprint, "f.1", &json!({}), &Ports::default()).unwrap();
        assert_eq!(subscriptions(&resolved.topology), ["p--acme--f.1.x--input"]);
    }

    #[test]
    fn an_asked_service_that_nobody_is_makes_a_warning() {
        let blueprint = json!({"blueprint": {}, "flow": {"a:{id}": {"topics": {
            "prompt-request": "request:tg:prompt:{workspace}:{id}",
            "prompt-response": "response:tg:prompt:{workspace}:{id}",
            "librarian-request": "request:tg:librarian:{workspace}",
            "librarian-response": "response:tg:librarian:{workspace}"}}}});
        let resolved = resolve(&blueprint.to_string(), "f1", &json!({}), &Ports::default()).unwrap();
        assert_eq!(
            resolved.warnings,
            ["'a' asks on request:tg:prompt:acme:f1, which no processor of this flow serves"]
        );
    }
}
