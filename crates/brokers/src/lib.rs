//! The edge to message brokers: one module and one feature per product, each keeping the contract of `sluice_bus`.
//!
//! It owns connections, channels and the products' ways of naming and counting. It refuses to know flows and services.
//! Begin with [`rabbitmq`], `kafka`, `nats` or `pulsar`.
//!
//! **Invariant: only a `BrokerAdmin` makes or removes a named queue**, here as everywhere. Readers attach to what is
//! there, and after a lost connection they attach again; they never declare anything but their own inbox.

use std::sync::Arc;

use sluice_bus::{BoxFuture, Broker, BrokerAdmin, Error, Result, Traits};
use sluice_schema::address;

#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(any(feature = "kafka", feature = "nats", feature = "pulsar", feature = "rabbitmq"))]
mod local;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "pulsar")]
pub mod pulsar;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
mod secret;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(any(feature = "kafka", feature = "nats", feature = "pulsar"))]
mod unroutable;

#[cfg(feature = "rabbitmq")]
pub use rabbitmq::{Options, RabbitMq};
pub use secret::Secret;

/// What can be chosen about a broker without knowing which it is.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Takes the place of the password in the address.
    pub password: Option<Secret>,
    /// Where its management API is, for brokers that have one beside.
    pub management: Option<Secret>,
    /// Certificates (PEM) to trust beside those of the machine.
    pub ca_pem: Option<String>,
}

/// A connection to some broker: both paths, and its end.
#[derive(Clone)]
pub struct Connection {
    /// The data path.
    pub broker: Arc<dyn Broker>,
    /// The life-cycle path.
    pub admin: Arc<dyn BrokerAdmin>,
    close: Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
}

impl Connection {
    /// Disconnects; what readers held goes back.
    pub async fn close(&self) {
        (self.close)().await;
    }
}

/// Connects to the broker that an address names.
///
/// # Errors
/// [`Error::Refused`] for an address of no broker in this build, and what connecting to it may fail with.
#[cfg_attr(
    not(any(feature = "kafka", feature = "nats", feature = "pulsar", feature = "rabbitmq")),
    expect(unused_variables, reason = "no broker takes settings")
)]
pub async fn connect(url: &str, settings: Settings) -> Result<Connection> {
    let Some(scheme) = address::scheme(url) else {
        let reason =
            format!("the broker's address does not begin with one of {}, each with ://", SCHEMES.join(", "));
        return Err(Error::Refused { reason });
    };
    if address::is_torn(url) {
        return Err(Error::Refused { reason: TORN.to_owned() });
    }
    match scheme {
        #[cfg(feature = "rabbitmq")]
        "amqp" | "amqps" => {
            let options = Options {
                password: settings.password,
                management: settings.management,
                ca_pem: settings.ca_pem,
                ..Options::default()
            };
            let broker = RabbitMq::connect(url, options).await?;
            let ends = Arc::new(broker.clone());
            let close = Arc::new(move || {
                let broker = broker.clone();
                Box::pin(async move { broker.shutdown().await }) as BoxFuture<'static, ()>
            });
            Ok(Connection { broker: ends.clone(), admin: ends, close })
        }
        #[cfg(feature = "kafka")]
        "kafka" | "kafka+ssl" => {
            let options = kafka::Options {
                password: settings.password,
                ca_pem: settings.ca_pem,
                ..kafka::Options::default()
            };
            let broker = kafka::Kafka::connect(url, options).await?;
            let ends = Arc::new(broker.clone());
            let close = Arc::new(move || {
                let broker = broker.clone();
                Box::pin(async move { broker.shutdown().await }) as BoxFuture<'static, ()>
            });
            Ok(Connection { broker: ends.clone(), admin: ends, close })
        }
        #[cfg(feature = "nats")]
        "nats" | "tls" => {
            let options = nats::Options {
                password: settings.password,
                ca_pem: settings.ca_pem,
                ..nats::Options::default()
            };
            let broker = nats::Nats::connect(url, options).await?;
            let ends = Arc::new(broker.clone());
            let close = Arc::new(move || {
                let broker = broker.clone();
                Box::pin(async move { broker.shutdown().await }) as BoxFuture<'static, ()>
            });
            Ok(Connection { broker: ends.clone(), admin: ends, close })
        }
        #[cfg(feature = "pulsar")]
        "pulsar" | "pulsar+ssl" => {
            let options = pulsar::Options {
                token: settings.password,
                admin: settings.management,
                ca_pem: settings.ca_pem,
                ..pulsar::Options::default()
            };
            let broker = pulsar::Pulsar::connect(url, options).await?;
            let ends = Arc::new(broker.clone());
            let close = Arc::new(move || {
                let broker = broker.clone();
                Box::pin(async move { broker.shutdown().await }) as BoxFuture<'static, ()>
            });
            Ok(Connection { broker: ends.clone(), admin: ends, close })
        }
        _ => {
            let wants = feature(scheme).map(|name| format!("; that takes a build with the feature '{name}'"));
            let reason = format!(
                "this build has no broker for '{scheme}://' addresses{}; it knows {}",
                wants.unwrap_or_default(),
                SCHEMES.join(", ")
            );
            Err(Error::Refused { reason })
        }
    }
}

/// What is told of an address whose host may be the beginning of a password.
const TORN: &str = "the broker's address has an '@' behind its host; in a user and a password write / as %2F, ? as %3F, # as %23 \
                    and @ as %40, and in what comes behind the host too";

/// The cargo feature that a build needs for addresses of a scheme; `None` for schemes of no broker.
#[must_use]
pub fn feature(scheme: &str) -> Option<&'static str> {
    match scheme {
        "amqp" | "amqps" => Some("rabbitmq"),
        "kafka" | "kafka+ssl" => Some("kafka"),
        "nats" | "tls" => Some("nats"),
        "pulsar" | "pulsar+ssl" => Some("pulsar"),
        _ => None,
    }
}

/// Schemes of the addresses that [`connect`] takes.
pub const SCHEMES: &[&str] = &[
    #[cfg(feature = "rabbitmq")]
    "amqp",
    #[cfg(feature = "rabbitmq")]
    "amqps",
    #[cfg(feature = "kafka")]
    "kafka",
    #[cfg(feature = "kafka")]
    "kafka+ssl",
    #[cfg(feature = "nats")]
    "nats",
    #[cfg(feature = "nats")]
    "tls",
    #[cfg(feature = "pulsar")]
    "pulsar",
    #[cfg(feature = "pulsar")]
    "pulsar+ssl",
];

/// What the brokers of this build do not promise, each by the name that people know it by.
pub const TRAITS: &[(&str, Traits)] = &[
    ("embedded", sluice_bus::Embedded::TRAITS),
    #[cfg(feature = "rabbitmq")]
    ("RabbitMQ", Traits::STRICT),
    #[cfg(feature = "rabbitmq")]
    ("RabbitMQ without the management API", rabbitmq::TRAITS_WITHOUT_MANAGEMENT),
    #[cfg(feature = "nats")]
    ("NATS", nats::TRAITS),
    #[cfg(feature = "pulsar")]
    ("Pulsar", pulsar::TRAITS),
    #[cfg(feature = "kafka")]
    ("Kafka", kafka::TRAITS),
];

/// What a log should leave out: client libraries that print whole messages, and as errors what we handle. All that a
/// person should know is told by this crate.
pub const LOG_FILTER: &[&str] = &["lapin=off", "async_nats=off", "krafka=off"];
