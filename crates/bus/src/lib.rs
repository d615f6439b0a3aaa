//! Messages move: the contracts that every broker keeps, the typed ends above them, and the embedded broker.
//!
//! It owns delivery: who gets a message, how long it is kept, when it counts as settled. It refuses to know any broker
//! product, and what a workspace or a flow means. Begin with [`contract`], then [`Client`] and [`Replies`].
//!
//! **Invariant: the data path ([`Broker`]) has no call that makes or removes a named queue.** Only the owner of a topic
//! holds a [`BrokerAdmin`].

pub mod client;
pub mod conformance;
pub mod contract;
pub mod counting;
pub mod embedded;
pub mod error;
pub mod faulty;
pub mod letter;
pub mod losses;
pub mod message;
pub mod renewing;
pub mod shares;
pub mod trace;

pub use client::{Call, Client, Following, Foreign, Patience, RawCall, Replies, Sender};
pub use contract::{
    Address, Broker, BrokerAdmin, Excess, Finding, HoldEnd, Inbox, InboxAddress, Limits, Naming, PoisonBound,
    Pressure, Promise, Seen, SeenSubscription, Severity, Subscription, TopicSpec, Traits,
};
pub use counting::{Counting, Counts};
pub use embedded::{Config, Embedded};
pub use error::{Error, ErrorKind};
pub use faulty::{Fault, Faulty, Plan};
pub use losses::{Losses, Lost, News};
pub use message::{Delivery, Message, Settle, Verdict, property};
pub use renewing::Renewing;

/// The result of a bus operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A boxed future, as the object-safe contracts return.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
