//! Documents of a workspace and what becomes of them: the librarian, collections, progress, dead letters.
//!
//! It owns, per workspace, the topics `librarian`, `collection` and `dead-letters` (calls) and `progress` and
//! `dead-letters` (reports and parked messages), and the rows and contents behind them. It refuses to know what a processor
//! does and how a flow is started: it reads a flow's public record to find the door that a document enters by. Begin
//! with [`start`]; then `librarian` for the calls, `processing` for a document's way into a flow, `progress` for the
//! counting.
//!
//! ```no_run
//! # async fn wire(process: sluice_sdk::Process, admin: std::sync::Arc<dyn sluice_bus::BrokerAdmin>,
//! #     stores: sluice_store::Stores, watch: sluice_sdk::ConfigWatch) -> Result<(), Box<dyn std::error::Error>> {
//! let config = sluice_sdk::ConfigClient::new(&process.replies).await?;
//! sluice_library::start(sluice_library::Parts::new(process, admin, stores, config, watch)).await?;
//! # Ok(())
//! # }
//! ```

mod clock;
mod collections;
mod dead;
mod documents;
mod error;
mod folded;
mod librarian;
mod passes;
mod poison;
mod processing;
mod progress;
mod provenance;
mod removals;
mod rows;
mod service;
mod uploads;

pub use dead::Limits;
pub use documents::OWNERS;
pub use error::Error;
pub use progress::log_lost;
pub use service::{Parts, start};
