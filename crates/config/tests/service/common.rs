//! A config service on the embedded broker and store, with ends to ask it and to hear it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sluice_bus::{
    Address, BoxFuture, Broker, BrokerAdmin, Client, Embedded, Error, Inbox, Limits, Message, Subscription,
};
use sluice_config::Parts;
use sluice_schema::message::{
    ConfigKey, ConfigPush, ConfigRequest, ConfigResponse, ConfigValue, Expectation, ScopedKey,
};
use sluice_schema::{Topic, exchange, wire};
use sluice_sdk::{ConfigClient, Process};
use sluice_store::Tables;
use tokio_util::sync::CancellationToken;

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A store in a folder that goes with it.
pub(crate) struct Store {
    pub(crate) tables: Arc<dyn Tables>,
    _store: sluice_store::Embedded,
    _folder: tempfile::TempDir,
}

impl Store {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = sluice_store::Embedded::open(folder.path()).unwrap();
        Self { tables: store.tables(), _store: store, _folder: folder }
    }
}

/// One instance of the service, in a process of its own.
pub(crate) struct Instance {
    pub(crate) process: Process,
    pub(crate) admin: Arc<dyn BrokerAdmin>,
    pub(crate) system: ConfigClient,
}

impl Instance {
    pub(crate) async fn start(broker: &Embedded, store: &Store) -> Self {
        Self::start_with(Arc::new(broker.clone()), broker, store).await
    }

    pub(crate) async fn start_with(data_path: Arc<dyn Broker>, broker: &Embedded, store: &Store) -> Self {
        let process = Process::new(data_path, CancellationToken::new());
        let admin: Arc<dyn BrokerAdmin> = Arc::new(broker.clone());
        let parts = Parts { process: process.clone(), admin: admin.clone(), tables: store.tables.clone() };
        sluice_config::start(parts).await.unwrap();
        let system = ConfigClient::new(&process.replies).await.unwrap();
        Self { process, admin, system }
    }

    pub(crate) async fn stop(self) {
        let cut = self.process.shutdown(DEADLINE).await;
        assert_eq!(cut, Vec::<String>::new());
    }

    /// Asks through the queue of a workspace, as the gateway does for users.
    pub(crate) async fn user(&self, workspace: &str) -> Client<exchange::Config> {
        let request = format!("request:tg:config:{workspace}").parse().unwrap();
        let response: Topic = format!("response:tg:config:{workspace}").parse().unwrap();
        Client::new(&self.process.replies, request, &response).await.unwrap()
    }

    pub(crate) async fn register(&self, workspace: &str) {
        let entry = value("workspace", workspace, "{\"enabled\": true}");
        self.system.put("__workspaces__", vec![entry]).await.unwrap();
    }

    pub(crate) async fn exists(&self, topic: &str) -> bool {
        let found = self.admin.list(topic).await.unwrap();
        found.iter().any(|seen| seen.topic.as_str() == topic)
    }
}

pub(crate) async fn ask(client: &Client<exchange::Config>, request: ConfigRequest) -> ConfigResponse {
    client.call(&request, DEADLINE).await.unwrap()
}

/// Hears notices.
pub(crate) struct Listener(Box<dyn Inbox>);

impl Listener {
    /// The broker must know the topic already.
    pub(crate) async fn attach(broker: &Embedded) -> Self {
        let topics = vec!["notify:tg:config".parse().unwrap()];
        Self(broker.subscribe(&Subscription::Own { topics }).await.unwrap())
    }

    pub(crate) async fn next(&self) -> ConfigPush {
        wire::decode(&self.next_body().await).unwrap()
    }

    /// A notice that has already arrived.
    pub(crate) fn arrived(&self) -> Option<ConfigPush> {
        let delivery = futures_util::FutureExt::now_or_never(self.0.next())?.unwrap();
        let push = wire::decode(&delivery.message.body).unwrap();
        delivery.ack();
        Some(push)
    }

    pub(crate) async fn next_body(&self) -> Vec<u8> {
        let mut delivery = tokio::time::timeout(DEADLINE, self.0.next()).await.expect("a notice").unwrap();
        let body = std::mem::take(&mut delivery.message).body;
        delivery.ack();
        body.to_vec()
    }
}

/// A broker that takes no notices while told so.
pub(crate) struct NoNotices {
    pub(crate) inner: Embedded,
    pub(crate) refusing: AtomicBool,
}

impl Broker for NoNotices {
    fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, Result<(), Error>> {
        let is_notice = matches!(to, Address::Topic(topic) if topic.as_str() == "notify:tg:config");
        if is_notice && self.refusing.load(Ordering::SeqCst) {
            return Box::pin(async { Err(Error::Unavailable { reason: "told to refuse".into() }) });
        }
        self.inner.publish(to, message)
    }

    fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, Result<Box<dyn Inbox>, Error>> {
        self.inner.subscribe(to)
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }
}

/// Looks again until it finds what it looks for.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, looking).await.unwrap_or_else(|_| panic!("never saw: {what}"))
}

pub(crate) fn value(config_type: &str, key: &str, text: &str) -> ConfigValue {
    ConfigValue {
        r#type: config_type.into(),
        key: key.into(),
        value: Some(text.into()),
        ..Default::default()
    }
}

pub(crate) fn value_in(workspace: &str, config_type: &str, key: &str, text: &str) -> ConfigValue {
    ConfigValue { workspace: workspace.into(), ..value(config_type, key, text) }
}

pub(crate) fn key(config_type: &str, key: &str) -> ConfigKey {
    ConfigKey { r#type: config_type.into(), key: key.into() }
}

pub(crate) fn key_in(workspace: &str, config_type: &str, key: &str) -> ScopedKey {
    ScopedKey { workspace: workspace.into(), r#type: config_type.into(), key: key.into() }
}

pub(crate) fn expect(workspace: &str, config_type: &str, key: &str, version: i64) -> Expectation {
    Expectation { workspace: workspace.into(), r#type: config_type.into(), key: key.into(), version }
}

pub(crate) fn request(operation: &str) -> ConfigRequest {
    ConfigRequest { operation: operation.into(), ..Default::default() }
}
