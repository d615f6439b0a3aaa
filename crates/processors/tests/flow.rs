//! The processors in a running flow: real config, flow and library services over the embedded broker, real documents in,
//! questions and answers out; the language model is a fake on a free port where there is one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use sluice_bus::embedded::Embedded as Broker;
use sluice_bus::faulty::{Made, Operation};
use sluice_bus::{BrokerAdmin, Client, Fault, Faulty, Patience, Plan};
use sluice_processors::{Decoding, DecodingConfig, Model, ModelConfig, Renderer, RendererConfig};
use sluice_schema::message::{
    Chunk, Document, DocumentMetadata, DocumentProgress, DocumentRagQuery, DocumentRagResponse, FlowRequest,
    LibrarianRequest, LibrarianResponse, Metadata, PassageSource, ProcessingMetadata, PromptRequest, Term,
    TextCompletionRequest, TextDocument, TriplesQueryRequest,
};
use sluice_schema::{Exchange, Topic, exchange, record, standard};
use sluice_sdk::config::value;
use sluice_sdk::{ConfigClient, ConfigWatch, Host, HostOptions, Process};
use sluice_store::Embedded as Store;
use tokio_util::sync::CancellationToken;

#[path = "flow/room.rs"]
mod room;

/// Nothing here takes this long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(60);
const WS: &str = "default";
const COFFEE: &str = include_str!("../../../samples/coffee.md");
const BICYCLE: &str = include_str!("../../../samples/bicycle.md");

struct World {
    /// The reply inbox, config, and everything that asks config: they end in reverse order.
    layers: [Process; 3],
    process: Process,
    rest: Rest,
    librarian: Client<exchange::Librarian>,
}

/// What outlives a process.
struct Rest {
    broker: Faulty<Broker>,
    store: Store,
    _folder: tempfile::TempDir,
}

impl Rest {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        Self { broker: Faulty::new(Broker::in_memory()), store, _folder: folder }
    }

    /// Messages sent to a topic of the flow since the last plan of faults.
    fn sent(&self, topic: &str) -> usize {
        let topic = format!("{topic}:{WS}:f1");
        let is_sent = |made: &&Made| made.operation == Operation::Publish && made.about == topic;
        self.broker.log().iter().filter(is_sent).count()
    }
}

impl World {
    /// One workspace with one running `document-rag` flow, `f1`.
    async fn start(model: Option<ModelConfig>) -> Self {
        let world = Self::begin(Rest::new(), model, two_pages_of_three()).await;
        let flows: Client<exchange::Flow> = client(&world.process, &format!("flow:{WS}")).await;
        let start = FlowRequest {
            operation: "start-flow".to_owned(),
            flow_id: "f1".to_owned(),
            blueprint_name: "document-rag".to_owned(),
            description: "test".to_owned(),
            ..Default::default()
        };
        assert_eq!(flows.call(&start, DEADLINE).await.unwrap().error, None);
        world
    }

    /// A process on what others left.
    async fn begin(rest: Rest, model: Option<ModelConfig>, decoding: Decoding) -> Self {
        let (store, broker) = (&rest.store, &rest.broker);
        let admin: Arc<dyn BrokerAdmin> = Arc::new(broker.clone());
        let base = Process::new(Arc::new(broker.clone()), CancellationToken::new());
        let (platform, process) = (base.part(), base.part());
        let parts =
            sluice_config::Parts { process: platform.clone(), admin: admin.clone(), tables: store.tables() };
        sluice_config::start(parts).await.unwrap();
        let watch = ConfigWatch::start(&platform, Duration::from_secs(30));
        let config = || async { ConfigClient::new(&process.replies).await.unwrap() };
        seed(&config().await).await;
        let parts = sluice_library::Parts::new(
            process.clone(),
            admin.clone(),
            store.stores(),
            config().await,
            watch.clone(),
        );
        sluice_library::start(parts).await.unwrap();
        let roster = sluice_processors::roster();
        let resources =
            sluice_processors::resources(Some(store.stores()), Model::new(model).unwrap(), &process.metrics)
                .with(decoding)
                .with(renderer());
        let parts = sluice_flow::Parts {
            process: process.clone(),
            admin,
            watch: watch.clone(),
            config: config().await,
            catalogue: roster.catalogue(&process, &watch, &resources).unwrap(),
            options: sluice_flow::Options { only_own_processors: true, ..Default::default() },
        };
        sluice_flow::start(parts).await;
        sluice_processors::removals::start(&process, &watch, &roster, &resources);
        Host::new(process.clone(), roster, watch, resources, HostOptions::default()).start();

        let librarian = client(&process, &format!("librarian:{WS}")).await;
        Self { layers: [base, platform, process.clone()], process, rest, librarian }
    }

    /// The process dies on the spot.
    async fn die(self) -> Rest {
        for layer in self.layers.iter().rev() {
            // Without the stop signal: nothing gets to tidy up.
            layer.tasks.finish(Duration::ZERO).await;
        }
        self.rest
    }

    async fn stop(self) {
        for layer in self.layers.iter().rev() {
            let cut = layer.shutdown(DEADLINE).await;
            assert!(cut.is_empty(), "did not end: {cut:?}");
        }
        self.rest.store.close().await;
    }

    async fn service<X: Exchange>(&self, name: &str) -> Client<X> {
        client(&self.process, &format!("{name}:{WS}:f1")).await
    }

    async fn librarian(&self, request: LibrarianRequest) -> LibrarianResponse {
        let operation = request.operation.clone();
        let answer = self.librarian.call(&request, DEADLINE).await.unwrap();
        assert_eq!(answer.error, None, "{operation}");
        answer
    }

    /// Adds a document, puts it through the flow, and waits until all of it is stored or lost.
    async fn load(&self, id: &str, kind: &str, title: &str, content: &[u8]) -> DocumentProgress {
        self.add(id, kind, title, content).await;
        self.process(id, "p1").await
    }

    async fn add(&self, id: &str, kind: &str, title: &str, content: &[u8]) {
        self.librarian(LibrarianRequest {
            operation: "add-document".to_owned(),
            document_metadata: Some(DocumentMetadata {
                id: id.to_owned(),
                kind: kind.to_owned(),
                title: title.to_owned(),
                ..Default::default()
            }),
            content: base64::engine::general_purpose::STANDARD.encode(content),
            ..Default::default()
        })
        .await;
    }

    async fn process(&self, id: &str, processing: &str) -> DocumentProgress {
        self.put_through(id, processing).await;
        // The index is no part of "complete", but a question wants it.
        self.until(id, |progress| progress.complete && progress.indexed == progress.stored).await
    }

    async fn put_through(&self, id: &str, processing: &str) {
        self.librarian(LibrarianRequest {
            operation: "add-processing".to_owned(),
            processing_metadata: Some(ProcessingMetadata {
                id: format!("{processing}:{id}"),
                document_id: id.to_owned(),
                flow: "f1".to_owned(),
                collection: "default".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        })
        .await;
    }

    async fn until(&self, id: &str, is_so: impl Fn(&DocumentProgress) -> bool) -> DocumentProgress {
        let ends = tokio::time::Instant::now() + DEADLINE;
        loop {
            let request = LibrarianRequest {
                operation: "get-progress".to_owned(),
                document_id: id.to_owned(),
                ..Default::default()
            };
            let progress = self.librarian(request).await.progress;
            if let Some(done) = progress.iter().find(|progress| is_so(progress)) {
                return done.clone();
            }
            assert!(tokio::time::Instant::now() < ends, "never came so far: {progress:?}");
            tokio::task::yield_now().await;
        }
    }

    async fn send<T: serde::Serialize>(&self, kind: &str, message: &T) {
        let topic = Topic::parse(&format!("flow:tg:{kind}:{WS}:f1")).unwrap();
        sluice_bus::Sender::new(self.process.broker.clone(), topic).send(message).await.unwrap();
    }

    /// Asks until the best source is of this document.
    async fn ask_until(&self, query: &str, document: &str) -> PassageSource {
        let ends = tokio::time::Instant::now() + DEADLINE;
        loop {
            let last = self.ask(question(query)).await.pop().unwrap();
            match last.sources.first() {
                Some(best) if best.document_id == document => return best.clone(),
                _ => assert!(tokio::time::Instant::now() < ends, "{last:?}"),
            }
        }
    }

    /// Every message of an answer.
    async fn ask(&self, query: DocumentRagQuery) -> Vec<DocumentRagResponse> {
        let rag = self.service::<exchange::DocumentRag>("document-rag").await;
        let mut call = rag.stream(&query, Patience::total(DEADLINE)).await.unwrap();
        let mut parts = Vec::new();
        while let Some(part) = call.next().await.unwrap() {
            parts.push(part);
        }
        parts
    }
}

#[test]
#[ignore = "the process that renders prompts for the other tests"]
fn renders_prompts() {
    sluice_processors::renderer::child::serve(std::io::stdin(), std::io::stdout()).unwrap();
}

/// Renders in processes of this program.
fn renderer() -> Renderer {
    let arguments = ["renders_prompts", "--exact", "--ignored", "--nocapture", "--test-threads", "1"];
    Renderer::new(RendererConfig {
        program: std::env::current_exe().unwrap(),
        arguments: arguments.map(str::to_owned).to_vec(),
        ..RendererConfig::default()
    })
}

/// Reads every PDF as three pages, of which the second is damaged; the process that does so is a script.
fn two_pages_of_three() -> Decoding {
    let script = r#"cat > /dev/null
        echo '{"begin":{"kind":"pdf","unit":"page","count":3}}'
        echo '{"part":{"number":1,"text":"The zebra sleeps standing."}}'
        echo '{"lost":{"first":2,"last":2,"problem":{"kind":"damaged","reason":"page 2 is torn"}}}'
        echo '{"part":{"number":3,"text":"Penguins breed in winter."}}'
        echo '"end"'"#;
    Decoding::new(DecodingConfig {
        program: "/bin/sh".into(),
        arguments: vec!["-c".to_owned(), script.to_owned()],
        ..DecodingConfig::default()
    })
}

async fn client<X: Exchange>(process: &Process, name: &str) -> Client<X> {
    let topic = |class: &str| Topic::parse(&format!("{class}:tg:{name}")).unwrap();
    Client::new(&process.replies, topic("request"), &topic("response")).await.unwrap()
}

async fn seed(config: &ConfigClient) {
    let workspace = r#"{"id": "default", "name": "Default", "enabled": true}"#;
    let workspace = value(record::WORKSPACES, record::WORKSPACE, WS, workspace);
    config.put(record::WORKSPACES, vec![workspace]).await.unwrap();
    let mut values: Vec<_> =
        standard::config().iter().map(|one| value(WS, one.config_type, &one.key, &one.value)).collect();
    values.extend(standard::BLUEPRINTS.iter().map(|(name, text)| value(WS, record::BLUEPRINT, name, *text)));
    config.put(WS, values).await.unwrap();
}

fn question(query: &str) -> DocumentRagQuery {
    DocumentRagQuery { query: query.to_owned(), collection: "default".to_owned(), ..Default::default() }
}

/// What each message of an answer is: the step it explains, or its type.
fn kinds(parts: &[DocumentRagResponse]) -> Vec<&str> {
    parts
        .iter()
        .map(|part| match part.explain_id.as_deref() {
            Some(node) => node.split_once('/').map_or("question", |(_, step)| step),
            None => part.message_type.as_str(),
        })
        .collect()
}

#[tokio::test]
async fn a_question_is_answered_from_the_passages_that_were_loaded_and_cites_them_exactly() {
    let world = World::start(None).await;
    let loaded = world.load("urn:doc:coffee", "text/markdown", "Coffee", COFFEE.as_bytes()).await;
    assert_eq!((loaded.failed, loaded.texts_done, loaded.failures.len()), (0, 1, 0));
    assert!(loaded.stored >= 4 && loaded.stored == loaded.embedded, "{loaded:?}");
    world.load("urn:doc:bicycle", "text/plain", "Bicycle", BICYCLE.as_bytes()).await;

    for (query, document, title, whole, fact) in [
        ("How do I get limescale out of my kettle?", "urn:doc:coffee", "Coffee", COFFEE, "citric acid"),
        (
            "What causes two small parallel cuts in an inner tube?",
            "urn:doc:bicycle",
            "Bicycle",
            BICYCLE,
            "snake bite",
        ),
    ] {
        let parts = world.ask(question(query)).await;
        assert_eq!(kinds(&parts), ["question", "grounding", "exploration", "focus", "synthesis", ""]);
        let last = parts.last().unwrap();
        assert_eq!(
            (last.end_of_stream, last.end_of_session, last.model.as_deref()),
            (true, true, Some("extractive"))
        );
        let text = last.response.as_deref().unwrap();
        assert!(text.contains(fact), "{text}");
        assert!(text.contains("SLUICE_LLM_URL"), "it says how to configure a model: {text}");
        let best = &last.sources[0];
        assert_eq!((best.document_id.as_str(), best.title.as_str(), best.page), (document, title, None));
        for source in last.sources.iter().filter(|source| source.document_id == document) {
            let (offset, length) =
                (usize::try_from(source.offset).unwrap(), usize::try_from(source.length).unwrap());
            let there: String = whole.chars().skip(offset).take(length).collect();
            assert_eq!(there, source.text, "offset and length find the passage in the document");
        }
        assert!(last.sources.is_sorted_by(|a, b| a.score >= b.score));
    }
    world.stop().await;
}

#[tokio::test]
async fn a_streamed_answer_comes_in_chunks_and_ends_with_an_end() {
    let world = World::start(None).await;
    world.load("urn:doc:coffee", "text/markdown", "Coffee", COFFEE.as_bytes()).await;
    let parts =
        world.ask(DocumentRagQuery { streaming: true, ..question("Can I freeze coffee beans?") }).await;
    assert_eq!(kinds(&parts), ["question", "grounding", "exploration", "focus", "chunk", "synthesis", "end"]);
    assert!(parts[4].end_of_stream && parts[4].response.as_deref().unwrap().contains("freezer"));
    let last = &parts[6];
    assert_eq!((last.response.as_deref(), last.end_of_stream, last.end_of_session), (None, false, true));
    assert!(!last.sources.is_empty());

    let nothing =
        world.ask(DocumentRagQuery { collection: "empty".to_owned(), ..question("Anything?") }).await;
    assert_eq!(kinds(&nothing), ["question", "grounding", "exploration", "synthesis", ""]);
    assert!(nothing.last().unwrap().response.as_deref().unwrap().starts_with("Nothing"));
    for (refused, why) in [
        (question(" "), "empty"),
        (
            DocumentRagQuery { retrieval_mode: "magic".to_owned(), ..question("x") },
            "'vector', 'keyword' or 'hybrid'",
        ),
        (DocumentRagQuery { rerank_diversity_mode: "much".to_owned(), ..question("x") }, "'none' or 'mmr'"),
        (DocumentRagQuery { rerank_diversity_lambda: Some(1.5), ..question("x") }, "from 0 to 1"),
        (DocumentRagQuery { vector_weight: Some(-1.0), ..question("x") }, "0 or more"),
        (DocumentRagQuery { keyword_weight: Some(-0.5), ..question("x") }, "0 or more"),
    ] {
        let parts = world.ask(refused).await;
        let error = parts.last().unwrap().error.as_ref().unwrap();
        assert_eq!((parts.len(), error.r#type.as_str()), (1, "document-rag-error"));
        assert!(error.message.contains(why), "{error:?}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_question_says_how_it_is_searched_for() {
    let world = World::start(None).await;
    world.load("urn:doc:coffee", "text/markdown", "Coffee", COFFEE.as_bytes()).await;
    // The same again under another name: passages that only repeat.
    world.load("urn:doc:copy", "text/markdown", "Coffee, a copy", COFFEE.as_bytes()).await;
    let asked = || DocumentRagQuery { doc_limit: 2, ..question("Can I freeze coffee beans?") };
    let sources = async |query| world.ask(query).await.pop().unwrap().sources;
    for mode in ["", "vector", "keyword", "hybrid"] {
        let found = sources(DocumentRagQuery { retrieval_mode: mode.to_owned(), ..asked() }).await;
        assert_eq!(found.len(), 2, "{mode}");
        assert!(found.iter().all(|source| source.text.contains("freezer")), "{mode}: {found:?}");
    }
    // A word that only an index of words knows.
    let keyword = DocumentRagQuery { retrieval_mode: "keyword".to_owned(), ..question("zyzzyva") };
    assert!(sources(keyword).await.is_empty());
    let diverse = DocumentRagQuery {
        rerank_diversity_mode: "mmr".to_owned(),
        rerank_diversity_lambda: Some(0.3),
        ..asked()
    };
    let found = sources(diverse).await;
    assert_eq!(found.len(), 2);
    assert!(found[0].text.contains("freezer") && found[1].text != found[0].text, "{found:?}");
    world.stop().await;
}

#[tokio::test]
async fn where_a_chunk_came_from_is_in_the_graph_and_processing_again_makes_no_second_chunk() {
    let world = World::start(None).await;
    let first = world.load("urn:doc:coffee", "text/markdown", "Coffee", COFFEE.as_bytes()).await;
    let triples = world.service::<exchange::TriplesQuery>("triples").await;
    let iri = |iri: &str| Some(Term { r#type: "i".to_owned(), iri: iri.to_owned(), ..Default::default() });
    let chunks = TriplesQueryRequest {
        collection: "default".to_owned(),
        p: iri("http://www.w3.org/1999/02/22-rdf-syntax-ns#type"),
        o: iri("https://trustgraph.ai/ns/Chunk"),
        g: Some("urn:graph:source".to_owned()),
        limit: 1_000,
        ..Default::default()
    };
    let ends = tokio::time::Instant::now() + DEADLINE;
    let known = loop {
        let found = triples.call(&chunks, DEADLINE).await.unwrap().triples;
        if i64::try_from(found.len()).unwrap() >= first.stored {
            break found;
        }
        assert!(tokio::time::Instant::now() < ends, "{found:?}");
        tokio::task::yield_now().await;
    };
    let streamed = TriplesQueryRequest { streaming: true, batch_size: 2, ..chunks.clone() };
    let mut call = triples.stream(&streamed, Patience::total(DEADLINE)).await.unwrap();
    let (mut parts, mut count) = (0, 0);
    while let Some(part) = call.next().await.unwrap() {
        assert!(part.triples.len() <= 2);
        (parts, count) = (parts + 1, count + part.triples.len());
    }
    assert_eq!(count, known.len());
    assert!(parts >= count / 2);

    let again = world.process("urn:doc:coffee", "p2").await;
    assert_eq!(again.stored, first.stored);
    let keywords = world.service::<exchange::KeywordIndex>("keyword-index").await;
    let request = sluice_schema::message::KeywordIndexRequest {
        query: "coffee".to_owned(),
        limit: 1_000,
        collection: "default".to_owned(),
    };
    let indexed = keywords.call(&request, DEADLINE).await.unwrap().chunks;
    assert!(i64::try_from(indexed.len()).unwrap() <= first.stored, "the same piece is the same chunk");
    world.stop().await;
}

#[tokio::test]
async fn chunks_and_texts_of_other_makers_are_stored_and_cited_too() {
    let world = World::start(None).await;
    // A chunk as another chunker leaves it: in the librarian below its page, and on the topic without labels.
    for (id, parent, kind, title, text) in [
        ("urn:doc:zoo", "", "source", "Zoo", "The zebra sleeps standing."),
        ("urn:page:zoo", "urn:doc:zoo", "page", "Page 7", "The zebra sleeps standing."),
        ("urn:chunk:zoo", "urn:page:zoo", "chunk", "Chunk 1", "The zebra sleeps standing."),
    ] {
        world
            .librarian(LibrarianRequest {
                operation: if parent.is_empty() { "add-document" } else { "add-child-document" }.to_owned(),
                document_metadata: Some(DocumentMetadata {
                    id: id.to_owned(),
                    kind: "text/plain".to_owned(),
                    title: title.to_owned(),
                    parent_id: parent.to_owned(),
                    document_type: kind.to_owned(),
                    ..Default::default()
                }),
                content: base64::engine::general_purpose::STANDARD.encode(text),
                ..Default::default()
            })
            .await;
    }
    let metadata = |id: &str, root: &str| {
        Some(Metadata { id: id.to_owned(), root: root.to_owned(), collection: "default".to_owned() })
    };
    let chunk = Chunk {
        metadata: metadata("urn:chunk:zoo", "urn:doc:zoo"),
        chunk: "The zebra sleeps standing.".to_owned(),
        document_id: "urn:chunk:zoo".to_owned(),
        ..Default::default()
    };
    world.send("chunk-load", &chunk).await;
    // A text that the librarian has never heard of.
    let text = TextDocument {
        metadata: metadata("urn:doc:inline", "urn:doc:inline"),
        text: "Penguins breed in winter.".to_owned(),
        ..Default::default()
    };
    world.send("text-document-load", &text).await;

    let zebra = world.ask_until("Where do zebras sleep?", "urn:doc:zoo").await;
    assert_eq!((zebra.title.as_str(), zebra.page, zebra.length), ("Zoo", Some(7), 26));
    let penguin = world.ask_until("When do penguins breed?", "urn:doc:inline").await;
    assert_eq!((penguin.offset, penguin.length), (0, 25));
    world.stop().await;
}

#[tokio::test]
async fn pages_are_parts_of_their_document_with_numbers_in_the_graph_and_in_sources() {
    let world = World::start(None).await;
    let zoo = world.load("urn:doc:zoo", "application/pdf", "Zoo", b"%PDF-1.7").await;
    assert_eq!((zoo.texts_announced, zoo.texts_done, zoo.stored), (3, 3, 2));
    assert!(matches!(&zoo.failures[..], [one] if one.reason == "page 2 is torn"), "{zoo:?}");
    let penguin = world.ask_until("When do penguins breed?", "urn:doc:zoo").await;
    assert_eq!((penguin.page, penguin.offset), (Some(3), 0));

    let request = LibrarianRequest {
        operation: "list-children".to_owned(),
        document_id: "urn:doc:zoo".to_owned(),
        ..Default::default()
    };
    let children = world.librarian(request).await.document_metadatas;
    let third = children.iter().find(|child| child.title == "Page 3").unwrap();
    assert_eq!((children.len(), third.document_type.as_str()), (2, "page"));

    let triples = world.service::<exchange::TriplesQuery>("triples").await;
    let iri = |iri: &str| Some(Term { r#type: "i".to_owned(), iri: iri.to_owned(), ..Default::default() });
    let about = TriplesQueryRequest {
        collection: "default".to_owned(),
        s: iri(&third.id),
        g: Some("urn:graph:source".to_owned()),
        limit: 100,
        ..Default::default()
    };
    let ends = tokio::time::Instant::now() + DEADLINE;
    loop {
        let known = triples.call(&about, DEADLINE).await.unwrap().triples;
        let says = |p: &str, o: &str| {
            known.iter().any(|triple| {
                let (predicate, object) = (triple.p.as_ref().unwrap(), triple.o.as_ref().unwrap());
                predicate.iri.ends_with(p) && (object.iri == o || object.value == o)
            })
        };
        if says("#type", "https://trustgraph.ai/ns/Page")
            && says("#wasDerivedFrom", "urn:doc:zoo")
            && says("pageNumber", "3")
            && says("mimeType", "application/pdf")
        {
            break;
        }
        assert!(tokio::time::Instant::now() < ends, "{known:?}");
        tokio::task::yield_now().await;
    }
    world.stop().await;
}

#[tokio::test]
async fn a_document_that_came_with_its_content_is_kept_and_read() {
    let world = World::start(None).await;
    let id = "urn:doc:sent".to_owned();
    let metadata = Metadata { id: id.clone(), root: id.clone(), collection: "default".to_owned() };
    let data = base64::engine::general_purpose::STANDARD.encode("%PDF-1.7");
    let document = Document { metadata: Some(metadata), data, ..Default::default() };
    world.send("document-load", &document).await;
    world.ask_until("When do penguins breed?", &id).await;
    let request = LibrarianRequest {
        operation: "get-document-metadata".to_owned(),
        document_id: id,
        ..Default::default()
    };
    let kept = world.librarian(request).await.document_metadata.unwrap();
    assert_eq!((kept.kind.as_str(), kept.document_type.as_str()), ("application/pdf", "source"));
    world.stop().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_told_with_its_reason() {
    let world = World::start(None).await;
    let pdf = world.load("urn:doc:pdf", "application/pdf", "A PDF", b"Dear all,").await;
    assert!(pdf.failures[0].reason.contains("added as a PDF and is plain text"), "{pdf:?}");
    let empty = world.load("urn:doc:empty", "text/plain", "Nothing", b" \n\n ").await;
    assert!(empty.failures[0].reason.contains("no text"), "{empty:?}");
    let odd = world.load("urn:doc:odd", "text/markdown", "Odd", b"abc \0\xff").await;
    assert!(odd.failures[0].reason.contains("binary data"), "{odd:?}");
    world.stop().await;
}

/// Reads every PDF as six pages; after three it goes on only if there is such a file.
fn three_pages_then(go_on: &std::path::Path) -> Decoding {
    let script = format!(
        r#"cat > /dev/null
        echo '{{"begin":{{"kind":"pdf","unit":"page","count":6}}}}'
        for n in 1 2 3; do echo '{{"part":{{"number":'$n',"text":"Gate '$n' is open."}}}}'; done
        test -e '{}' || exec sleep 1000
        for n in 4 5 6; do echo '{{"part":{{"number":'$n',"text":"Gate '$n' is open."}}}}'; done
        echo '"end"'"#,
        go_on.display()
    );
    Decoding::new(DecodingConfig {
        program: "/bin/sh".into(),
        arguments: vec!["-c".to_owned(), script],
        ..DecodingConfig::default()
    })
}

#[tokio::test]
async fn a_document_that_is_read_again_after_a_crash_asks_only_for_chunks_without_vectors() {
    let folder = tempfile::tempdir().unwrap();
    let go_on = folder.path().join("go-on");
    let rest = World::start(None).await.die().await;
    let world = World::begin(rest, None, three_pages_then(&go_on)).await;
    world.rest.broker.plan(Plan::none());
    world.add("urn:doc:gates", "application/pdf", "Gates", b"%PDF-1.4").await;
    world.put_through("urn:doc:gates", "p1").await;
    world.until("urn:doc:gates", |progress| (progress.embedded, progress.stored) == (3, 3)).await;
    assert_eq!(world.rest.sent("request:tg:embeddings"), 3);
    let rest = world.die().await;
    std::fs::write(&go_on, "").unwrap();
    let world = World::begin(rest, None, three_pages_then(&go_on)).await;
    let done = world.until("urn:doc:gates", |progress| progress.complete).await;
    assert_eq!((done.stored, done.announced), (6, 6), "{done:?}");
    assert_eq!(world.rest.sent("flow:tg:text-document-load"), 3 + 6, "all pages are read again");
    assert_eq!(world.rest.sent("flow:tg:chunk-load"), 3 + 6, "and cut again");
    assert_eq!(world.rest.sent("request:tg:embeddings"), 6, "each chunk was asked for once");
    // Put through once more, everything is made once more.
    world.process("urn:doc:gates", "p2").await;
    assert_eq!(world.rest.sent("request:tg:embeddings"), 6 + 6);
    world.stop().await;
}

#[tokio::test]
async fn a_text_whose_chunks_could_not_all_be_sent_is_cut_again_and_each_chunk_is_asked_for_once() {
    let world = World::start(None).await;
    let paragraph = |n: usize| format!("Mark {n}. {}", "The gate lets water through. ".repeat(60));
    let text = (0..60).map(paragraph).collect::<Vec<_>>().join("\n\n");
    for (n, fault) in [Fault::Before, Fault::After].into_iter().enumerate() {
        let is_chunk = |made: &Made| {
            made.operation == Operation::Publish && made.about.starts_with("flow:tg:chunk-load:")
        };
        world.rest.broker.plan(Plan::nth(30, fault, is_chunk));
        let done = world.load(&format!("urn:doc:{n}"), "text/plain", "Long", text.as_bytes()).await;
        assert_eq!(done.stored, 60, "{done:?}");
        assert_eq!(world.rest.broker.faults().len(), 1);
        assert!(world.rest.sent("flow:tg:chunk-load") >= 30 + 60, "it is cut again");
        assert_eq!(world.rest.sent("request:tg:embeddings"), 60, "{fault:?}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_configured_model_answers_and_its_tokens_are_metered() {
    let world = World::start(Some(fake_model().await)).await;
    world.load("urn:doc:coffee", "text/markdown", "Coffee", COFFEE.as_bytes()).await;
    let parts = world.ask(question("Can I freeze coffee beans?")).await;
    let last = parts.last().unwrap();
    assert_eq!(last.response.as_deref(), Some("An answer."));
    // Two calls: concepts and answer.
    assert_eq!((last.model.as_deref(), last.in_token, last.out_token), (Some("fake"), Some(14), Some(4)));
    assert!(last.sources.iter().any(|source| source.text.contains("The freezer is different")));
    let ends = tokio::time::Instant::now() + DEADLINE;
    let counted = r#"tg_metering_tokens_total{model="fake",direction="input"} 14"#;
    while !world.process.metrics.text().contains(counted) {
        assert!(tokio::time::Instant::now() < ends, "{}", world.process.metrics.text());
        tokio::task::yield_now().await;
    }

    let models = world.service::<exchange::TextCompletion>("text-completion").await;
    let unknown = TextCompletionRequest { operation: "sing".to_owned(), ..Default::default() };
    let refused = models.call(&unknown, DEADLINE).await.unwrap().error.unwrap();
    assert_eq!(refused.r#type, "not-implemented");
    let prompts = world.service::<exchange::Prompt>("prompt").await;
    let unknown = PromptRequest { id: "no-such".to_owned(), ..Default::default() };
    let refused = prompts.call(&unknown, DEADLINE).await.unwrap();
    assert!(refused.error.unwrap().message.contains("no-such") && refused.end_of_stream);
    world.stop().await;
}

#[expect(clippy::disallowed_methods, reason = "the fake model ends with the test's runtime")]
async fn fake_model() -> ModelConfig {
    use axum::{Json, Router, routing};
    let answer = || async {
        Json(serde_json::json!({
            "choices": [{"message": {"content": "An answer."}}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 2}, "model": "fake",
        }))
    };
    let router = Router::new().route("/v1/chat/completions", routing::post(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    ModelConfig::new(url)
}
