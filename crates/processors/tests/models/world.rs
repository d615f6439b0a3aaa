//! The model services of one flow on the embedded broker, and a provider that does as it is told.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use sluice_bus::embedded::Embedded as Broker;
use sluice_bus::{BrokerAdmin, Client, TopicSpec};
use sluice_processors::chunk_index::VectorQuery;
use sluice_processors::completion::TextCompletion;
use sluice_processors::embeddings::Embeddings;
use sluice_processors::prompt::Prompt;
use sluice_processors::{Dialect, Embedder, EmbedderConfig, Model, ModelConfig, Renderer, RendererConfig};
use sluice_schema::message::TextCompletionRequest;
use sluice_schema::{Exchange, Topic, exchange, standard};
use sluice_sdk::config::value;
use sluice_sdk::{ConfigClient, ConfigWatch, Host, HostOptions, Process, Resources, Roster};
use sluice_store::Embedded as Store;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// Nothing here takes this long unless it hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const WS: &str = "default";

/// The services that ask models, in one flow.
pub(crate) struct World {
    layers: [Process; 2],
    pub(crate) store: Store,
    pub(crate) text: Client<exchange::TextCompletion>,
    pub(crate) prompt: Client<exchange::Prompt>,
    pub(crate) embeddings: Client<exchange::Embeddings>,
    pub(crate) vectors: Client<exchange::DocumentEmbeddings>,
    _folder: tempfile::TempDir,
}

impl World {
    /// Services that ask the model, and embed with it too where that is a provider.
    pub(crate) async fn start(model: ModelConfig, parameters: Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let broker = Broker::in_memory();
        let admin: Arc<dyn BrokerAdmin> = Arc::new(broker.clone());
        let base = Process::new(Arc::new(broker), CancellationToken::new());
        let process = base.part();
        let parts =
            sluice_config::Parts { process: base.clone(), admin: admin.clone(), tables: store.tables() };
        sluice_config::start(parts).await.unwrap();
        let config = ConfigClient::new(&process.replies).await.unwrap();
        let mut values: Vec<_> =
            standard::config().iter().map(|one| value(WS, one.config_type, &one.key, &one.value)).collect();
        for name in ["text-completion", "prompt", "embeddings", "doc-embeddings-query"] {
            let request = TopicSpec::with(topic("request", name), format!("{name}--{WS}--f1--request"));
            admin.ensure(&request).await.unwrap();
            admin.ensure(&TopicSpec::bare(topic("response", name))).await.unwrap();
            let entry = json!({"parameters": parameters, "topics": {
                "request": topic("request", name).to_string(), "response": topic("response", name).to_string(),
                "text-completion-request": topic("request", "text-completion").to_string(),
                "text-completion-response": topic("response", "text-completion").to_string(),
            }});
            values.push(value(WS, &format!("processor:{name}"), "f1", entry.to_string()));
        }
        config.put(WS, values).await.unwrap();

        let watch = ConfigWatch::start(&process, Duration::from_secs(30));
        let embedder = match model.dialect {
            Dialect::Anthropic => EmbedderConfig::Hashing,
            Dialect::OpenAi | Dialect::Ollama => EmbedderConfig::Remote(model.clone()),
        };
        let resources = Resources::new()
            .with(store.stores())
            .with(Model::new(Some(model)).unwrap())
            .with(Embedder::open(embedder).await.unwrap())
            .with(renderer());
        let roster =
            Roster::new().add::<TextCompletion>().add::<Prompt>().add::<Embeddings>().add::<VectorQuery>();
        Host::new(process.clone(), roster, watch, resources, HostOptions::default()).start();
        Self {
            text: client(&process, "text-completion").await,
            prompt: client(&process, "prompt").await,
            embeddings: client(&process, "embeddings").await,
            vectors: client(&process, "doc-embeddings-query").await,
            layers: [base, process],
            store,
            _folder: folder,
        }
    }

    pub(crate) async fn stop(self) {
        for layer in self.layers.iter().rev() {
            let cut = layer.shutdown(DEADLINE).await;
            assert!(cut.is_empty(), "did not end: {cut:?}");
        }
        self.store.close().await;
    }
}

#[test]
#[ignore = "the process that renders prompts for the other tests"]
fn renders_prompts() {
    sluice_processors::renderer::child::serve(std::io::stdin(), std::io::stdout()).unwrap();
}

/// Renders in processes of this program.
fn renderer() -> Renderer {
    let arguments = ["world::renders_prompts", "--exact", "--ignored", "--nocapture", "--test-threads", "1"];
    Renderer::new(RendererConfig {
        program: std::env::current_exe().unwrap(),
        arguments: arguments.map(str::to_owned).to_vec(),
        ..RendererConfig::default()
    })
}

fn topic(class: &str, name: &str) -> Topic {
    Topic::parse(&format!("{class}:tg:{name}:{WS}:f1")).unwrap()
}

async fn client<X: Exchange>(process: &Process, name: &str) -> Client<X> {
    Client::new(&process.replies, topic("request", name), &topic("response", name)).await.unwrap()
}

pub(crate) fn ask(text: &str, streaming: bool) -> TextCompletionRequest {
    TextCompletionRequest { prompt: text.to_owned(), streaming, ..Default::default() }
}

/// What the provider does with a question.
#[derive(Clone)]
pub(crate) enum Act {
    /// Answers at once: status, headers, body.
    Say(u16, Vec<(&'static str, &'static str)>, String),
    /// Sends pieces, then does as the last says.
    Parts(&'static str, Vec<String>, Then),
    /// Never begins to answer.
    Hang,
    /// Answers after so many questions are there at once.
    Together(usize, String),
    /// Answers after a while; the bench has such a model.
    #[allow(dead_code, reason = "only the bench measures")]
    After(Duration, String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    End,
    Break,
    Hang,
}

/// A provider on a free port. It does its acts in turn, the last one for ever.
pub(crate) struct Provider {
    acts: Mutex<VecDeque<Act>>,
    pub(crate) asked: Mutex<Vec<(String, HeaderMap, Value)>>,
    under_way: AtomicUsize,
    /// Questions under way at once, at most.
    pub(crate) most: AtomicUsize,
    arrived: Notify,
    /// Told when an asker leaves before the end.
    left: mpsc::UnboundedSender<()>,
}

/// What an asker that leaves drops.
struct UnderWay {
    provider: Arc<Provider>,
    is_done: bool,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.provider.under_way.fetch_sub(1, Ordering::SeqCst);
        if !self.is_done {
            // Nobody listens in most tests.
            let _ = self.provider.left.send(());
        }
    }
}

impl Provider {
    /// A provider, the way to it, and what tells that an asker has left.
    #[expect(clippy::disallowed_methods, reason = "the fake provider ends with the test's runtime")]
    pub(crate) async fn start(acts: Vec<Act>) -> (Arc<Self>, ModelConfig, mpsc::UnboundedReceiver<()>) {
        let (left, leaving) = mpsc::unbounded_channel();
        let provider = Arc::new(Self {
            acts: Mutex::new(acts.into()),
            asked: Mutex::default(),
            under_way: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            arrived: Notify::new(),
            left,
        });
        let router = Router::new().fallback(answer).with_state(provider.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = ModelConfig::new(format!("http://{}/v1", listener.local_addr().unwrap()));
        tokio::spawn(async move { axum::serve(listener, router).await });
        config.model = Some("m1".to_owned());
        config.retry_pause = Duration::from_millis(1);
        config.attempts_max = 3;
        (provider, config, leaving)
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// Waits until so many questions have come in all.
    pub(crate) async fn asked_at_least(&self, count: usize) {
        let waiting = async {
            while self.asked() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, waiting).await.unwrap();
    }

    fn next(&self) -> Act {
        let mut acts = self.acts.lock().unwrap();
        if acts.len() > 1 { acts.pop_front() } else { acts.front().cloned() }.unwrap()
    }
}

async fn answer(State(provider): State<Arc<Provider>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 24).await.unwrap();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let now = provider.under_way.fetch_add(1, Ordering::SeqCst) + 1;
    provider.most.fetch_max(now, Ordering::SeqCst);
    let mut under_way = UnderWay { provider: provider.clone(), is_done: false };
    provider.asked.lock().unwrap().push((head.uri.path().to_owned(), head.headers, body));
    provider.arrived.notify_waiters();
    let act = provider.next();
    let json = "application/json";
    let (status, headers, body) = match act {
        Act::Say(status, headers, body) => (status, headers, body),
        Act::Hang => std::future::pending().await,
        Act::After(pause, body) => {
            tokio::time::sleep(pause).await;
            (200, vec![("content-type", json)], body)
        }
        Act::Together(count, body) => {
            while provider.most.load(Ordering::SeqCst) < count {
                let arrived = provider.arrived.notified();
                if provider.most.load(Ordering::SeqCst) < count {
                    arrived.await;
                }
            }
            (200, vec![("content-type", json)], body)
        }
        Act::Parts(kind, pieces, then) => return parts(kind, pieces, then, under_way),
    };
    under_way.is_done = true;
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(Body::from(body)).unwrap()
}

fn parts(kind: &str, pieces: Vec<String>, then: Then, mut under_way: UnderWay) -> Response {
    let pieces = stream::iter(pieces.into_iter().map(|piece| Ok(Bytes::from(piece))));
    let end = stream::once(async move {
        match then {
            Then::End => {}
            Then::Break => {
                // What was said so far goes out first.
                tokio::task::yield_now().await;
                return Err(std::io::Error::other("broken"));
            }
            Then::Hang => std::future::pending::<()>().await,
        }
        under_way.is_done = true;
        drop(under_way);
        Ok(Bytes::new())
    });
    let pieces = pieces.map(|piece: Result<Bytes, Infallible>| piece.map_err(|never| match never {}));
    Response::builder().header("content-type", kind).body(Body::from_stream(pieces.chain(end))).unwrap()
}

/// A whole answer in the OpenAI dialect.
pub(crate) fn whole(text: &str) -> String {
    json!({
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 21, "completion_tokens": 3}, "model": "m1-2026",
    })
    .to_string()
}

pub(crate) fn good(text: &str) -> Act {
    Act::Say(200, vec![("content-type", "application/json")], whole(text))
}

/// Words as parts in the OpenAI dialect, without the end.
pub(crate) fn words(words: &[&str]) -> Vec<String> {
    let part = |word: &&str| {
        let chunk =
            json!({"choices": [{"delta": {"content": word}, "finish_reason": null}], "model": "m1-2026"});
        format!("data: {chunk}\n\n")
    };
    words.iter().map(part).collect()
}

/// What ends an answer in parts in the OpenAI dialect.
pub(crate) fn end() -> String {
    let stop = json!({"choices": [{"delta": {}, "finish_reason": "stop"}]});
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 21, "completion_tokens": 3}});
    format!("data: {stop}\n\ndata: {usage}\n\ndata: [DONE]\n\n")
}

pub(crate) fn streamed(text: &[&str]) -> Act {
    let mut pieces = words(text);
    pieces.push(end());
    Act::Parts("text/event-stream", pieces, Then::End)
}
