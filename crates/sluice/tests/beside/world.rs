//! A system of ours on a vhost of its own, with a language model, and whatever of theirs a case attaches to it.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::blueprint::{self, CHUNKER};
use crate::clients;
#[cfg(feature = "pulsar")]
use crate::cluster::Cluster;
use crate::common::cases::Shape;
use crate::common::{Up, until};
#[cfg(all(feature = "kafka", feature = "pulsar"))]
use crate::kafkas::Kafkas;
use crate::model::Model;
use crate::program::{self, Said};
use crate::server::{self, Server};
use crate::theirs::Theirs;

/// The standard blueprint, but with a chunker and a prompt service that only theirs are.
pub(crate) const BLUEPRINT: &str = "beside";
pub(crate) const PROMPT: &str = "prompt-py";
#[cfg(feature = "pulsar")]
pub(crate) const COMPLETION: &str = "text-completion-py";

pub(crate) const QUESTION: &str = "Where does the spare key of the pump house hang?";
pub(crate) const PASSAGE: &str = "behind the blue door";
pub(crate) const NOTES: &str =
    "# Pump house\n\nThe spare key of the pump house hangs behind the blue door.\n";

/// How long one run of a published tool may take.
const TOOL_LIMIT: Duration = Duration::from_secs(60);

/// Where a system and theirs meet.
enum Place {
    Vhost(Arc<Server>, String),
    #[cfg(feature = "pulsar")]
    Cluster(Cluster),
    #[cfg(all(feature = "kafka", feature = "pulsar"))]
    Kafka(Kafkas),
}

pub(crate) struct World {
    /// Processors that are attached for all cases. Before the system, so that they go first.
    attached: Vec<Theirs>,
    pub(crate) up: Up,
    place: Place,
    folder: TempDir,
    #[cfg_attr(not(feature = "pulsar"), expect(dead_code, reason = "it only has to be there"))]
    model: Model,
}

impl World {
    /// Nothing of theirs.
    pub(crate) fn empty() -> Self {
        Self::on(Shape::WithManagement)
    }

    pub(crate) fn empty_without_management() -> Self {
        Self::on(Shape::WithoutManagement)
    }

    fn on(shape: Shape) -> Self {
        let server = server::shared();
        let vhost = server.vhost();
        let (broker, management) = (server.url(&vhost), server.management());
        let mut args = vec!["--broker", &broker];
        if shape == Shape::WithManagement {
            args.extend(["--broker-management", &management]);
        }
        Self::at(Place::Vhost(server, vhost), &args)
    }

    /// Nothing of theirs, on a Pulsar broker of its own.
    #[cfg(feature = "pulsar")]
    pub(crate) fn empty_on_pulsar() -> Self {
        let cluster = Cluster::start();
        let broker = cluster.url();
        Self::at(Place::Cluster(cluster), &["--broker", &broker])
    }

    /// Nothing of theirs, on a Kafka broker of its own.
    #[cfg(all(feature = "kafka", feature = "pulsar"))]
    pub(crate) fn empty_on_kafka() -> Self {
        let kafka = Kafkas::start();
        let broker = kafka.url();
        Self::at(Place::Kafka(kafka), &["--broker", &broker])
    }

    #[cfg(all(feature = "kafka", feature = "pulsar"))]
    pub(crate) fn attached_on_kafka() -> Self {
        Self::empty_on_kafka().with_theirs()
    }

    #[cfg(feature = "pulsar")]
    pub(crate) fn attached_on_pulsar() -> Self {
        Self::empty_on_pulsar().with_theirs()
    }

    /// Their text completion, with the model.
    #[cfg(feature = "pulsar")]
    pub(crate) fn completion(&self) -> Theirs {
        self.theirs_with("text-completion-tgi", COMPLETION, &["--url", &self.model.url])
    }

    fn at(place: Place, broker: &[&str]) -> Self {
        let (model, folder) = (Model::start(), tempfile::tempdir().unwrap());
        let args = [broker, &["--llm-url", &model.url, "--llm-model", "tiny-test"]].concat();
        let up = Up::start_with(&folder.path().join("data"), &args);
        let world = Self { attached: Vec::new(), up, place, folder, model };
        let own = blueprint::left_to(&[("chunker", CHUNKER), ("prompt", PROMPT)]);
        let file = world.file("blueprint.json", &own);
        world.up.json(&["blueprint", "put", BLUEPRINT, &file]);
        world
    }

    /// Their chunker and their prompt service, all the time.
    pub(crate) fn attached() -> Self {
        Self::empty().with_theirs()
    }

    pub(crate) fn attached_without_management() -> Self {
        Self::empty_without_management().with_theirs()
    }

    fn with_theirs(self) -> Self {
        let mut world = self;
        world.attached = vec![world.chunker(CHUNKER), world.theirs("prompt-template", PROMPT)];
        world.attached.iter().for_each(Theirs::until_ready);
        world
    }

    pub(crate) fn chunker(&self, id: &str) -> Theirs {
        self.theirs("chunker-recursive", id)
    }

    fn theirs(&self, program: &str, id: &str) -> Theirs {
        self.theirs_with(program, id, &[])
    }

    fn theirs_with(&self, program: &str, id: &str, more: &[&str]) -> Theirs {
        match &self.place {
            Place::Vhost(server, vhost) => Theirs::start(program, id, &server.url(vhost), more),
            #[cfg(feature = "pulsar")]
            Place::Cluster(cluster) => cluster.theirs(program, id, more),
            #[cfg(all(feature = "kafka", feature = "pulsar"))]
            Place::Kafka(kafka) => kafka.theirs(program, id, more),
        }
    }

    /// What the attached ones said.
    pub(crate) fn said(&self) -> String {
        self.attached.iter().map(Theirs::log).collect()
    }

    /// Waits until one of the attached ones has said this.
    #[track_caller]
    pub(crate) fn until_said(&self, text: &str) {
        self.until(&format!("theirs to say '{text}'"), || self.said().contains(text));
    }

    #[track_caller]
    pub(crate) fn until(&self, what: &str, holds: impl FnMut() -> bool) {
        until(what, holds, || format!("{}\n{}", self.up.log(), self.said()));
    }

    /// Writes a file, and tells its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A folder with a number of small notes, no two alike.
    pub(crate) fn notes(&self, folder: &str, count: usize) -> String {
        for number in 0..count {
            let text =
                format!("Note {number} of {folder}: box {number} holds the key to gate {}.\n", number * 7);
            self.file(&format!("{folder}/{number}.txt"), &text);
        }
        self.folder.path().join(folder).to_str().unwrap().to_owned()
    }

    pub(crate) fn start_flow(&self, id: &str, blueprint: &str) {
        self.up.json(&["flow", "start", id, blueprint]);
    }

    /// Puts documents on their way; their ids.
    pub(crate) fn send(&self, flow: &str, path: &str) -> Vec<String> {
        let added = self.up.json(&["doc", "add", path, "--flow", flow, "--no-wait"]);
        added["documents"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
    }

    /// How many chunks of each of these documents are stored.
    pub(crate) fn stored(&self, flow: &str, documents: &[String]) -> Vec<u64> {
        let body = json!({"operation": "get-progress", "workspace": "default", "flow": flow, "document-ids": documents});
        let told = self.call("librarian", &body);
        let count = |id: &String| {
            let one = told["progress"].as_array()?.iter().find(|one| one["document-id"] == **id)?;
            one["stored"].as_u64()
        };
        documents.iter().map(|id| count(id).unwrap_or(0)).collect()
    }

    /// Ids of the chunks that were made of a document, or of its sections.
    pub(crate) fn chunks(&self, document: &str) -> Vec<String> {
        let (mut chunks, others): (Vec<_>, Vec<_>) =
            self.children(document).into_iter().partition(|child| child.starts_with("urn:chunk:"));
        chunks.extend(others.iter().flat_map(|section| self.children(section)));
        chunks
    }

    fn children(&self, document: &str) -> Vec<String> {
        let body = json!({"operation": "list-children", "workspace": "default", "document-id": document});
        let told = self.call("librarian", &body);
        let all = told["document-metadatas"].as_array().unwrap();
        all.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Posts to the gateway.
    pub(crate) fn call(&self, service: &str, body: &Value) -> Value {
        let said = self.up.post(&format!("/api/v1/{service}"), body);
        let (head, body) = said.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 "), "{said}");
        serde_json::from_str(body).unwrap()
    }

    /// What the broker shows of a subscription of a flow: messages ready, readers.
    pub(crate) fn queue(&self, flow: &str, subscription: &str) -> Option<(u64, u64)> {
        let told = self.up.json(&["flow", "describe", flow]);
        let all = told["status"]["queues"].as_array()?;
        let one = all.iter().find(|one| one["subscription"] == subscription)?;
        Some((one["ready"].as_u64()?, one["consumers"].as_u64()?))
    }

    pub(crate) fn finds_the_passage(&self, flow: &str) {
        let answer = self.up.json(&["ask", QUESTION, "--flow", flow]);
        assert!(answer["response"].as_str().is_some_and(|text| text.contains(PASSAGE)), "{answer}");
        assert!(answer["sources"][0]["title"].is_string(), "{answer}");
    }

    /// Runs a published tool as the administrator.
    pub(crate) fn tool(&self, name: &str, arguments: &[&str]) -> Said {
        let mut command = Command::new(clients::python_programs().join(name));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TRUSTGRAPH_")) {
            command.env_remove(name);
        }
        command.env("TRUSTGRAPH_URL", format!("{}/", self.up.url)).env("TRUSTGRAPH_TOKEN", self.up.key());
        program::run(command.args(arguments), TOOL_LIMIT).unwrap()
    }

    /// Names on the broker that belong to a run.
    pub(crate) fn left_of(&self, run: &str) -> BTreeSet<String> {
        let mark = format!(":{run}");
        let of_run = |name: &String| name.ends_with(&mark) || name.contains(&format!("{mark}."));
        self.all_names().into_iter().filter(of_run).collect()
    }

    fn all_names(&self) -> BTreeSet<String> {
        match &self.place {
            Place::Vhost(server, vhost) => server.names(vhost),
            #[cfg(feature = "pulsar")]
            Place::Cluster(cluster) => cluster.names(),
            #[cfg(all(feature = "kafka", feature = "pulsar"))]
            Place::Kafka(kafka) => kafka.names(),
        }
    }

    /// Names on the broker apart from inboxes, which come and go with their readers.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let is_inbox = |name: &String| name.starts_with("amq") || name.starts_with("sluice.inbox.");
        self.all_names().into_iter().filter(|name| !is_inbox(name)).collect()
    }

    pub(crate) fn plant(&self, topic: &str, subscription: &str) {
        match &self.place {
            Place::Vhost(server, vhost) => server.plant(vhost, topic, subscription),
            #[cfg(feature = "pulsar")]
            Place::Cluster(cluster) => cluster.plant(topic, subscription),
            #[cfg(all(feature = "kafka", feature = "pulsar"))]
            Place::Kafka(kafka) => kafka.plant(topic, subscription),
        }
    }

    /// Cuts what connects theirs with the broker.
    pub(crate) fn cut_theirs(&self) -> usize {
        match &self.place {
            Place::Vhost(server, vhost) => server.cut_theirs(vhost),
            #[cfg(feature = "pulsar")]
            Place::Cluster(_) => panic!("no case on Pulsar cuts theirs off"),
            #[cfg(all(feature = "kafka", feature = "pulsar"))]
            Place::Kafka(_) => panic!("no case on Kafka cuts theirs off"),
        }
    }
}

/// Whether their chunker made a chunk: its ids are random, ours are made from the text.
pub(crate) fn is_theirs(chunk: &str) -> bool {
    let id = chunk.rsplit(':').next().unwrap();
    uuid::Uuid::parse_str(id).unwrap().get_version_num() == 4
}
