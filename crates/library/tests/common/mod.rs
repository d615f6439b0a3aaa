//! A small world for the library: a real store in a folder, the embedded broker, the config service, one workspace.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use sluice_bus::{Address, Broker, BrokerAdmin, Client, Delivery, Inbox, Message, Subscription, TopicSpec};
use sluice_library::{Limits, Parts};
use sluice_schema::message::{
    CollectionManagementRequest, CollectionManagementResponse, DeadLettersRequest, DeadLettersResponse,
    DocumentMetadata, Error, LibrarianRequest, LibrarianResponse, ProcessingMetadata,
};
use sluice_schema::{Exchange, Topic, exchange, record, wire};
use sluice_sdk::config::value;
use sluice_sdk::{ConfigClient, ConfigWatch, Process};
use sluice_store::{Embedded as Store, Stores};
use tokio_util::sync::CancellationToken;

/// Nothing here takes this long unless it hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const WS: &str = "default";

pub(crate) struct World {
    pub(crate) broker: sluice_bus::embedded::Embedded,
    pub(crate) process: Process,
    pub(crate) config: ConfigClient,
    pub(crate) store: Option<Store>,
    pub(crate) librarian: Client<exchange::Librarian>,
    pub(crate) collections: Client<exchange::Collections>,
    pub(crate) letters: Client<exchange::DeadLetters>,
}

impl World {
    pub(crate) async fn start(folder: &Path) -> Self {
        let broker = sluice_bus::embedded::Embedded::in_memory();
        Self::start_with(folder, &broker, Arc::new(broker.clone()), Limits::default()).await
    }

    /// `path` is the broker that the library publishes through; the rest of the world uses `broker`.
    pub(crate) async fn start_with(
        folder: &Path,
        broker: &sluice_bus::embedded::Embedded,
        path: Arc<dyn Broker>,
        limits: Limits,
    ) -> Self {
        Self::start_on(folder, broker, path, limits, |stores| stores).await
    }

    /// `wrap` gives the stores that the library works on.
    pub(crate) async fn start_on(
        folder: &Path,
        broker: &sluice_bus::embedded::Embedded,
        path: Arc<dyn Broker>,
        limits: Limits,
        wrap: impl FnOnce(Stores) -> Stores,
    ) -> Self {
        let store = Store::open(folder).unwrap();
        let admin: Arc<dyn BrokerAdmin> = Arc::new(broker.clone());
        let process = Process::new(path, CancellationToken::new());
        let parts =
            sluice_config::Parts { process: process.clone(), admin: admin.clone(), tables: store.tables() };
        sluice_config::start(parts).await.unwrap();
        let config = ConfigClient::new(&process.replies).await.unwrap();
        let workspace = value(
            record::WORKSPACES,
            record::WORKSPACE,
            WS,
            r#"{"id": "default", "name": "Default", "enabled": true}"#,
        );
        config.put(record::WORKSPACES, vec![workspace]).await.unwrap();
        let watch = ConfigWatch::start(&process, Duration::from_secs(30));
        let for_library = ConfigClient::new(&process.replies).await.unwrap();
        let mut parts = Parts::new(process.clone(), admin, wrap(store.stores()), for_library, watch);
        parts.dead_letters = limits;
        tokio::time::timeout(DEADLINE, sluice_library::start(parts)).await.unwrap().unwrap();
        Self {
            librarian: client(&process, "librarian").await,
            collections: client(&process, "collection").await,
            letters: client(&process, "dead-letters").await,
            broker: broker.clone(),
            config,
            process,
            store: Some(store),
        }
    }

    /// Ends everything that runs and lets go of the folder.
    pub(crate) async fn stop(mut self) {
        let cut = self.process.shutdown(DEADLINE).await;
        assert!(cut.is_empty(), "did not end: {cut:?}");
        self.store.take().unwrap().close().await;
    }

    pub(crate) async fn ask(&self, request: LibrarianRequest) -> LibrarianResponse {
        self.librarian.call(&request, DEADLINE).await.unwrap()
    }

    /// The answer to a call that must succeed.
    pub(crate) async fn ok(&self, request: LibrarianRequest) -> LibrarianResponse {
        let operation = request.operation.clone();
        let answer = self.ask(request).await;
        assert_eq!(answer.error, None, "{operation}");
        answer
    }

    /// The error of a call that must fail.
    pub(crate) async fn refused(&self, request: LibrarianRequest) -> Error {
        let operation = request.operation.clone();
        self.ask(request).await.error.unwrap_or_else(|| panic!("{operation} was not refused"))
    }

    pub(crate) async fn collection(
        &self,
        request: CollectionManagementRequest,
    ) -> CollectionManagementResponse {
        self.collections.call(&request, DEADLINE).await.unwrap()
    }

    pub(crate) async fn dead(&self, request: DeadLettersRequest) -> DeadLettersResponse {
        self.letters.call(&request, DEADLINE).await.unwrap()
    }

    /// Makes a flow as the flow service would: topics with a reader each, then the record.
    pub(crate) async fn flow(&self, id: &str, record: &record::Flow) {
        for roles in record.interfaces.values() {
            self.broker.ensure(&TopicSpec::with(topic(&roles["flow"]), "reader")).await.unwrap();
        }
        let text = serde_json::to_string(record).unwrap();
        self.config.put(WS, vec![value(WS, record::FLOW, id, text)]).await.unwrap();
    }

    pub(crate) async fn publish(&self, to: &str, body: impl serde::Serialize) {
        self.broker.publish(&Address::Topic(topic(to)), Message::new(wire::encode(&body))).await.unwrap();
    }

    pub(crate) async fn read(&self, from: &str, subscription: &str) -> Box<dyn Inbox> {
        let to = Subscription::Shared { topic: topic(from), name: subscription.to_owned(), prefetch: 16 };
        self.broker.subscribe(&to).await.unwrap()
    }

    /// Asks until the answer is as wanted.
    pub(crate) async fn until(
        &self,
        request: LibrarianRequest,
        wanted: impl Fn(&LibrarianResponse) -> bool,
    ) -> LibrarianResponse {
        let ends = tokio::time::Instant::now() + DEADLINE;
        loop {
            let answer = self.ask(request.clone()).await;
            if wanted(&answer) {
                return answer;
            }
            assert!(tokio::time::Instant::now() < ends, "never as wanted, last: {answer:?}");
            tokio::task::yield_now().await;
        }
    }

    /// Asks until so many letters are kept.
    pub(crate) async fn letters(&self, count: usize) -> DeadLettersResponse {
        let ends = tokio::time::Instant::now() + DEADLINE;
        loop {
            let answer =
                self.dead(DeadLettersRequest { operation: "list".into(), ..Default::default() }).await;
            if answer.letters.len() == count {
                return answer;
            }
            assert!(tokio::time::Instant::now() < ends, "never {count} letters, last: {answer:?}");
            tokio::task::yield_now().await;
        }
    }
}

async fn client<X: Exchange>(process: &Process, name: &str) -> Client<X> {
    let request = topic(&format!("request:tg:{name}:{WS}"));
    Client::new(&process.replies, request, &topic(&format!("response:tg:{name}:{WS}"))).await.unwrap()
}

pub(crate) async fn next(inbox: &dyn Inbox) -> Delivery {
    tokio::time::timeout(DEADLINE, inbox.next()).await.expect("a message arrives").unwrap()
}

pub(crate) fn topic(text: &str) -> Topic {
    Topic::parse(text).unwrap()
}

pub(crate) fn flow_record(run: &str, interfaces: &[(&str, &str)]) -> record::Flow {
    let interfaces = interfaces.iter().map(|(interface, name)| {
        ((*interface).to_owned(), [("flow".to_owned(), format!("flow:tg:{name}:{WS}:{run}"))].into())
    });
    record::Flow { interfaces: interfaces.collect(), run: Some(run.to_owned()), ..Default::default() }
}

pub(crate) fn text_flow(run: &str) -> record::Flow {
    flow_record(run, &[("text-load", "text-document-load"), ("triples-store", "triples-store")])
}

pub(crate) fn base64(content: impl AsRef<[u8]>) -> String {
    base64::engine::general_purpose::STANDARD.encode(content)
}

pub(crate) fn bytes(text: &str) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

pub(crate) fn call(operation: &str) -> LibrarianRequest {
    LibrarianRequest { operation: operation.to_owned(), ..Default::default() }
}

pub(crate) fn about(operation: &str, document_id: &str) -> LibrarianRequest {
    LibrarianRequest { document_id: document_id.to_owned(), ..call(operation) }
}

pub(crate) fn metadata(id: &str) -> DocumentMetadata {
    DocumentMetadata {
        id: id.to_owned(),
        time: 1_700_000_000,
        kind: "text/plain".to_owned(),
        title: format!("Title of {id}"),
        ..Default::default()
    }
}

pub(crate) fn add(id: &str, content: &str) -> LibrarianRequest {
    LibrarianRequest {
        document_metadata: Some(metadata(id)),
        content: base64(content),
        ..call("add-document")
    }
}

pub(crate) fn add_child(parent: &str, id: &str, content: &str) -> LibrarianRequest {
    let child =
        DocumentMetadata { parent_id: parent.to_owned(), document_type: "chunk".to_owned(), ..metadata(id) };
    LibrarianRequest {
        document_metadata: Some(child),
        content: base64(content),
        ..call("add-child-document")
    }
}

pub(crate) fn add_processing(id: &str, document_id: &str, flow: &str) -> LibrarianRequest {
    let processing = ProcessingMetadata {
        id: id.to_owned(),
        document_id: document_id.to_owned(),
        time: 1_700_000_000,
        flow: flow.to_owned(),
        collection: "default".to_owned(),
        tags: Vec::new(),
    };
    LibrarianRequest { processing_metadata: Some(processing), ..call("add-processing") }
}

/// The bodies published on one exchange of a recorded conversation, in order, with the id that ties them.
pub(crate) fn captured(file: &str) -> Vec<(String, String, serde_json::Value)> {
    let path = format!("{}/tests/captures/{file}", env!("CARGO_MANIFEST_DIR"));
    let lines = std::fs::read_to_string(path).unwrap();
    lines
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            (text(&line["exchange"]), text(&line["properties"]["headers"]["id"]), line["body"].clone())
        })
        .collect()
}
