//! The client libraries alone, as what our ends are measured beside: a client and a service that do nothing else, and two
//! hops, each confirmed as our link has it confirmed.

#[cfg(feature = "kafka")]
pub(crate) mod kafka;
#[cfg(feature = "nats")]
pub(crate) mod nats;
#[cfg(feature = "pulsar")]
pub(crate) mod pulsar;
pub(crate) mod rabbitmq;
mod waiting;

use sluice_bus::BoxFuture;

/// The header that says where an answer goes.
#[cfg(any(feature = "nats", feature = "pulsar"))]
const REPLY_TO: &str = "reply-to";

pub(crate) trait Bare: Send + Sync {
    /// One question and its answer.
    fn ask(&self) -> BoxFuture<'_, ()>;
    /// Disconnects.
    fn close(&self) -> BoxFuture<'_, ()>;
}

impl Bare for rabbitmq::Rabbit {
    fn ask(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.ask())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.close())
    }
}
