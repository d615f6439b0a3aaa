//! The words Sluice speaks: wire types in both dialects (bus and API), topic names, ids, and the tables that routing,
//! authorisation and the docs derive from. Pure data.
//!
//! It owns what two programs must agree on. It refuses to know how bytes travel or rest: no I/O, no async, no client
//! library. Begin with [`Topic`] and [`message`]; [`wire`] turns messages into bytes and back. The tables: [`system`] says
//! which topics the services own, [`doors`] which topics a flow may use, [`operation`] who may ask for what, [`api`] how
//! clients' bodies become messages and back, [`ceilings`] how large things may be, [`slots`] what processors do with their topics. [`address`] says what may be shown of an address.
//!
//! ```
//! use sluice_schema::{Class, Topic, message::Chunk, wire};
//!
//! let topic: Topic = "flow:tg:chunk-load:default:f1".parse()?;
//! assert_eq!(topic.class(), Class::Flow);
//!
//! let chunk: Chunk = wire::decode(br#"{"chunk": "Water boils.", "document_id": null}"#)?;
//! assert_eq!(chunk.chunk, "Water boils.");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod address;
pub mod api;
pub mod ceilings;
pub mod doors;
pub mod exchange;
pub mod ids;
pub mod listing;
pub mod message;
pub mod operation;
pub mod record;
pub mod slots;
pub mod standard;
pub mod system;
pub mod topic;
pub mod vocabulary;
pub mod wire;

pub use exchange::Exchange;
pub use ids::{FlowId, IdError, WorkspaceId};
pub use topic::{Class, Topic, TopicError};
