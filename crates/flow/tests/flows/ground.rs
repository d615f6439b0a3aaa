//! Where worlds are: each has a broker in this process, a vhost or a server of its own, or a real server for as long as it lasts.

use std::net::Ipv4Addr;
use std::panic::resume_unwind;
use std::sync::Arc;
#[cfg(any(feature = "kafka", feature = "pulsar"))]
use std::sync::Mutex;

use sluice_brokers::rabbitmq::{self, Options, RabbitMq};
use sluice_brokers::testing::RabbitServer;
#[cfg(feature = "kafka")]
use sluice_brokers::{kafka, testing::KafkaServer};
#[cfg(feature = "nats")]
use sluice_brokers::{nats, testing::NatsServer};
#[cfg(feature = "pulsar")]
use sluice_brokers::{pulsar, testing::PulsarServer};
use sluice_bus::{Broker, BrokerAdmin, Embedded, Traits};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// What worlds can be made on.
#[derive(Clone)]
pub(crate) enum Ground {
    Embedded,
    RabbitMq(Arc<RabbitServer>, Shape),
    /// A server for each world: it is there at once.
    #[cfg(feature = "nats")]
    Nats,
    /// Worlds one after the other on each of a few servers: the names of all worlds are the same.
    #[cfg(feature = "pulsar")]
    Pulsar(Arc<Pool<PulsarServer>>),
    /// As with Pulsar.
    #[cfg(feature = "kafka")]
    Kafka(Arc<Pool<KafkaServer>>),
}

/// Servers that no world has.
#[cfg(any(feature = "kafka", feature = "pulsar"))]
pub(crate) struct Pool<S>(Mutex<Vec<Arc<S>>>);

/// What the service under test knows of a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    WithManagement,
    /// As people begin: it sees only what it asks for by name.
    WithoutManagement,
}

/// One world's place.
#[derive(Clone)]
pub(crate) enum Site {
    Embedded(Embedded),
    RabbitMq {
        server: Arc<RabbitServer>,
        vhost: String,
        shape: Shape,
    },
    #[cfg(feature = "nats")]
    Nats(Arc<NatsServer>),
    #[cfg(feature = "pulsar")]
    Pulsar(Arc<PulsarServer>, Arc<Pool<PulsarServer>>),
    #[cfg(feature = "kafka")]
    Kafka(Arc<KafkaServer>, Arc<Pool<KafkaServer>>),
}

/// One process's end of the broker.
pub(crate) struct End {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) admin: Arc<dyn BrokerAdmin>,
    way: Way,
}

/// How an end reaches its broker.
enum Way {
    Inside,
    Line(Line),
    #[cfg(any(feature = "kafka", feature = "nats", feature = "pulsar"))]
    Straight(sluice_brokers::Connection),
}

impl Ground {
    pub(crate) async fn site(&self) -> Site {
        match self {
            Self::Embedded => Site::Embedded(Embedded::in_memory()),
            Self::RabbitMq(server, shape) => {
                Site::RabbitMq { server: server.clone(), vhost: server.vhost().await.unwrap(), shape: *shape }
            }
            #[cfg(feature = "nats")]
            Self::Nats => Site::Nats(Arc::new(NatsServer::start().await.unwrap())),
            #[cfg(feature = "pulsar")]
            Self::Pulsar(pool) => Site::Pulsar(pool.take(), pool.clone()),
            #[cfg(feature = "kafka")]
            Self::Kafka(pool) => Site::Kafka(pool.take(), pool.clone()),
        }
    }

    /// What the service under test cannot rely on there.
    pub(crate) const fn traits(&self) -> Traits {
        match self {
            Self::Embedded => Embedded::TRAITS,
            Self::RabbitMq(_, Shape::WithManagement) => Traits::STRICT,
            Self::RabbitMq(_, Shape::WithoutManagement) => rabbitmq::TRAITS_WITHOUT_MANAGEMENT,
            #[cfg(feature = "nats")]
            Self::Nats => nats::TRAITS,
            #[cfg(feature = "pulsar")]
            Self::Pulsar(_) => pulsar::TRAITS,
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => kafka::TRAITS,
        }
    }
}

impl Site {
    /// An end for the test itself, which sees everything.
    pub(crate) async fn connect(&self) -> End {
        self.connect_as(Shape::WithManagement).await
    }

    /// An end for the service under test.
    pub(crate) async fn connect_service(&self) -> End {
        let Self::RabbitMq { shape, .. } = self else { return self.connect().await };
        self.connect_as(*shape).await
    }

    async fn connect_as(&self, shape: Shape) -> End {
        match self {
            Self::Embedded(broker) => {
                End { broker: Arc::new(broker.clone()), admin: Arc::new(broker.clone()), way: Way::Inside }
            }
            Self::RabbitMq { server, vhost, .. } => {
                let (relay, url) = Line::relay(&server.url(vhost)).await;
                let options = match shape {
                    Shape::WithManagement => server.options(),
                    Shape::WithoutManagement => Options::default(),
                };
                let rabbit = RabbitMq::connect(&url, options).await.unwrap();
                let (broker, admin) = (Arc::new(rabbit.clone()), Arc::new(rabbit.clone()));
                End { broker, admin, way: Way::Line(Line { relay, rabbit }) }
            }
            #[cfg(feature = "nats")]
            Self::Nats(server) => End::straight(&server.url()).await,
            #[cfg(feature = "pulsar")]
            Self::Pulsar(server, _) => End::straight(&server.url()).await,
            #[cfg(feature = "kafka")]
            Self::Kafka(server, _) => End::straight(&server.url()).await,
        }
    }

    /// Where a service under test does what it does, so that its connections end with that. Those of a client library that has
    /// a thread of its own do not: they go by a way that can be cut.
    pub(crate) fn room(&self) -> Room {
        let is_own = !matches!(self, Self::Embedded(_) | Self::RabbitMq { .. });
        Room(is_own.then(|| {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            runtime.worker_threads(1).enable_all().build().unwrap()
        }))
    }

    /// What a real server itself shows of the topics of [`crate::common::blueprint`], whatever our end of it lists.
    pub(crate) async fn shown(&self) -> Option<Vec<String>> {
        let mut names = match self {
            Self::Embedded(_) => return None,
            Self::RabbitMq { server, vhost, .. } => server.names(vhost).await.unwrap(),
            #[cfg(feature = "nats")]
            Self::Nats(server) => server.streams().await.unwrap(),
            #[cfg(feature = "pulsar")]
            Self::Pulsar(server, _) => {
                server.topics(&["tg/flow", "tg/request", "tg/response"]).await.unwrap()
            }
            #[cfg(feature = "kafka")]
            Self::Kafka(server, _) => server.topics().await.unwrap(),
        };
        names.retain(|name| ["load", "chunks", "embeddings"].iter().any(|topic| name.contains(topic)));
        Some(names)
    }

    pub(crate) async fn clear(self) {
        match self {
            Self::Embedded(_) => {}
            Self::RabbitMq { server, vhost, .. } => server.remove_vhost(&vhost).await.unwrap(),
            #[cfg(feature = "nats")]
            Self::Nats(server) => {
                if let Some(mut server) = Arc::into_inner(server) {
                    server.stop(false).await;
                }
            }
            #[cfg(feature = "pulsar")]
            Self::Pulsar(server, pool) => {
                remove_all(&End::straight(&server.url()).await).await;
                pool.give_back(server);
            }
            #[cfg(feature = "kafka")]
            Self::Kafka(server, pool) => {
                remove_all(&End::straight(&server.url()).await).await;
                pool.give_back(server);
            }
        }
    }
}

/// Leaves a server to the next world as it was.
#[cfg(any(feature = "kafka", feature = "pulsar"))]
async fn remove_all(end: &End) {
    for seen in end.admin.list("").await.unwrap() {
        end.admin.remove(&sluice_bus::TopicSpec::bare(seen.topic)).await.unwrap();
    }
    end.close().await;
}

#[cfg(any(feature = "kafka", feature = "pulsar"))]
impl<S> Pool<S> {
    pub(crate) fn new(servers: Vec<S>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(servers.into_iter().map(Arc::new).collect())))
    }

    fn take(&self) -> Arc<S> {
        self.0.lock().unwrap().pop().expect("there are no more worlds at once than servers")
    }

    fn give_back(&self, server: Arc<S>) {
        self.0.lock().unwrap().push(server);
    }
}

impl End {
    #[cfg(any(feature = "kafka", feature = "nats", feature = "pulsar"))]
    async fn straight(url: &str) -> Self {
        let connection = sluice_brokers::connect(url, sluice_brokers::Settings::default()).await.unwrap();
        let (broker, admin) = (connection.broker.clone(), connection.admin.clone());
        Self { broker, admin, way: Way::Straight(connection) }
    }

    /// Ends its connections as those of a killed process end: without a word. Others end with their room.
    pub(crate) async fn cut(&mut self) {
        if let Way::Line(line) = &mut self.way {
            line.relay.shutdown().await;
        }
    }

    /// Lets nobody try to connect again.
    pub(crate) async fn close(&self) {
        match &self.way {
            Way::Inside => {}
            Way::Line(line) => line.rabbit.shutdown().await,
            #[cfg(any(feature = "kafka", feature = "nats", feature = "pulsar"))]
            Way::Straight(connection) => connection.close().await,
        }
    }
}

/// The tasks and connections of one process, which end together as those of a killed one do; or those of the whole test.
pub(crate) struct Room(Option<Runtime>);

impl Room {
    /// Does something there.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let Some(runtime) = &self.0 else { return work.await };
        // Ends with its caller.
        let mut tasks = JoinSet::new();
        tasks.spawn_on(work, runtime.handle());
        match tasks.join_next().await.expect("one was spawned") {
            Ok(done) => done,
            Err(error) => resume_unwind(error.into_panic()),
        }
    }

    /// Ends all that goes on there; whether it is a process's own.
    pub(crate) fn end(&mut self) -> bool {
        self.0.take().map(Runtime::shutdown_background).is_some()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.end();
    }
}

/// A way to a server that can be cut off.
struct Line {
    /// The task that listens; it has the connections.
    relay: JoinSet<()>,
    rabbit: RabbitMq,
}

impl Line {
    /// Lets connections to a port of its own through to a server, and none any more once it is shut down.
    async fn relay(url: &str) -> (JoinSet<()>, String) {
        let start = url.find('@').map_or(0, |at| at + 1);
        let end = url[start..].find('/').map_or(url.len(), |slash| start + slash);
        let server = url[start..end].to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("{}{}{}", &url[..start], listener.local_addr().unwrap(), &url[end..]);
        let mut relay = JoinSet::new();
        relay.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut ours, _)) = listener.accept().await {
                let server = server.clone();
                connections.spawn(async move {
                    if let Ok(mut theirs) = TcpStream::connect(server).await {
                        let _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        (relay, url)
    }
}
