//! The edge to message brokers: one module and one feature per product, each keeping the contract of `sluice_bus`.
//!
//! It owns connections, channels and the products' ways of naming and counting. It refuses to know flows and services.
//! Begin with [`rabbitmq`].
//!
//! **Invariant: only a `BrokerAdmin` makes or removes a named queue**, here as everywhere. Readers attach to what is
//! there, and after a lost connection they attach again; they never declare anything but their own inbox.

use std::sync::Arc;

use sluice_bus::{BoxFuture, Broker, BrokerAdmin, Error, Result};

#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
mod secret;
#[cfg(feature = "testing")]
pub mod testing;

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
#[cfg_attr(not(feature = "rabbitmq"), expect(unused_variables, reason = "no broker takes settings"))]
pub async fn connect(url: &str, settings: Settings) -> Result<Connection> {
    let scheme = url.split("://").next().unwrap_or_default();
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
        _ => {
            let reason = format!(
                "this build has no broker for '{scheme}://' addresses; it knows {}",
                SCHEMES.join(", ")
            );
            Err(Error::Refused { reason })
        }
    }
}

/// Schemes of the addresses that [`connect`] takes.
pub const SCHEMES: &[&str] = &[
    #[cfg(feature = "rabbitmq")]
    "amqp",
    #[cfg(feature = "rabbitmq")]
    "amqps",
];

/// What a log should leave out: client libraries that print whole messages, and as errors what we handle. All that a
/// person should know is told by this crate.
pub const LOG_FILTER: &str = "lapin=off";
