//! Every message of the bus dialect: one struct per schema, fields named as on the wire.
//!
//! Reading is lenient the way the dialect asks: unknown fields are ignored, a missing field has its default, and `null`
//! counts as missing. Writing is complete: every field is present. Fields marked *additive* are ours; they are left out
//! when they hold their default, so that what we send equals what a TrustGraph 2.11 process would send.

#[macro_use]
mod define;

mod agent;
mod control;
mod dead;
mod documents;
mod embeddings;
mod events;
mod iam;
mod models;
mod primitives;
mod rag;
mod rows;
mod triples;

pub use self::agent::*;
pub use self::control::*;
pub use self::dead::*;
pub use self::define::TextOrList;
pub use self::documents::*;
pub use self::embeddings::*;
pub use self::events::*;
pub use self::iam::*;
pub use self::models::*;
pub use self::primitives::*;
pub use self::rag::*;
pub use self::rows::*;
pub use self::triples::*;
