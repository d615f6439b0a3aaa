//! Where worlds are: each has a broker in this process, or a vhost of its own at a real server.

use std::net::Ipv4Addr;
use std::sync::Arc;

use sluice_brokers::rabbitmq::{Options, RabbitMq};
use sluice_brokers::testing::RabbitServer;
use sluice_bus::{Broker, BrokerAdmin, Embedded};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What worlds can be made on.
#[derive(Clone)]
pub(crate) enum Ground {
    Embedded,
    RabbitMq(Arc<RabbitServer>, Shape),
}

/// What the service under test knows of a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    WithManagement,
    /// As people begin: it sees only what it asks for by name.
    WithoutManagement,
}

/// One world's place.
pub(crate) enum Site {
    Embedded(Embedded),
    RabbitMq { server: Arc<RabbitServer>, vhost: String, shape: Shape },
}

/// One process's end of the broker.
pub(crate) struct End {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) admin: Arc<dyn BrokerAdmin>,
    line: Option<Line>,
}

impl Ground {
    pub(crate) async fn site(&self) -> Site {
        match self {
            Self::Embedded => Site::Embedded(Embedded::in_memory()),
            Self::RabbitMq(server, shape) => {
                Site::RabbitMq { server: server.clone(), vhost: server.vhost().await.unwrap(), shape: *shape }
            }
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
        match self {
            Self::Embedded(_) => self.connect().await,
            Self::RabbitMq { shape, .. } => self.connect_as(*shape).await,
        }
    }

    async fn connect_as(&self, shape: Shape) -> End {
        match self {
            Self::Embedded(broker) => {
                End { broker: Arc::new(broker.clone()), admin: Arc::new(broker.clone()), line: None }
            }
            Self::RabbitMq { server, vhost, .. } => {
                let (relay, url) = Line::relay(&server.url(vhost)).await;
                let options = match shape {
                    Shape::WithManagement => server.options(),
                    Shape::WithoutManagement => Options::default(),
                };
                let rabbit = RabbitMq::connect(&url, options).await.unwrap();
                let (broker, admin) = (Arc::new(rabbit.clone()), Arc::new(rabbit.clone()));
                End { broker, admin, line: Some(Line { relay, rabbit }) }
            }
        }
    }

    /// What a real server itself shows of the topics of [`crate::common::blueprint`], whatever our end of it lists.
    pub(crate) async fn shown(&self) -> Option<Vec<String>> {
        let Self::RabbitMq { server, vhost, .. } = self else { return None };
        let mut names = server.names(vhost).await.unwrap();
        names.retain(|name| ["load:", "chunks:", "embeddings:"].iter().any(|topic| name.contains(topic)));
        Some(names)
    }

    pub(crate) async fn clear(self) {
        match self {
            Self::Embedded(_) => {}
            Self::RabbitMq { server, vhost, .. } => server.remove_vhost(&vhost).await.unwrap(),
        }
    }
}

impl End {
    /// Ends its connections as those of a killed process end: without a word.
    pub(crate) async fn cut(&mut self) {
        if let Some(line) = &mut self.line {
            line.relay.shutdown().await;
        }
    }

    /// Lets nobody try to connect again.
    pub(crate) async fn close(&self) {
        if let Some(line) = &self.line {
            line.rabbit.shutdown().await;
        }
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
