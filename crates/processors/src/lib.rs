//! The data plane: the stages that documents pass through, and the services that answer questions about them.
//!
//! It owns what happens to a document's content between the librarian and the stores, and from a question to its answer.
//! It refuses to know which broker carries messages, which workspaces exist, and who asks. Begin with [`roster`]; each
//! processor is a file, and the thinking in it is a pure function beside its handler.
//!
//! The pure parts can be used alone:
//!
//! ```
//! use sluice_processors::{hashing, pieces::pieces};
//!
//! let cut = pieces("Oil the chain.\n\nBake the bread.", 20, 0);
//! assert_eq!(cut[1].text, "Bake the bread.");
//! let alike = |a, b| hashing::cosine(&hashing::embed(a), &hashing::embed(b));
//! assert!(alike(cut[0].text, "oiling a chain") > alike(cut[1].text, "oiling a chain"));
//! ```

use sluice_sdk::{Metrics, Resources, Roster};
use sluice_store::Stores;

pub mod chunk_index;
pub mod chunker;
pub mod completion;
pub mod decoder;
mod derived;
pub mod document_rag;
pub mod embeddings;
pub mod fair;
pub mod fusion;
pub mod hashing;
mod json_schema;
pub mod lexical;
mod librarian;
pub mod metering;
pub mod passage;
pub mod pieces;
pub mod prompt;
mod provenance;
pub mod provider;
pub mod removals;
pub mod renderer;
pub mod reranker;
mod retention;
pub mod retrieval;
pub mod sandbox;
mod template;
pub mod text;
mod thesaurus;
pub mod tokens;
mod trace;
pub mod triples;

pub use completion::{Model, ModelConfig, ModelError, NOT_CONFIGURED, Secret};
pub use decoder::{Decoding, DecodingConfig};
pub use derived::Derived;
pub use embeddings::{Embedder, EmbedderConfig, LocalConfig};
pub use metering::Meters;
pub use provider::Dialect;
pub use renderer::{Renderer, RendererConfig};

/// Processors that keep what they are given, each with those that read it: they share one store, so they run in one
/// process.
pub const STORES: &[&[&str]] =
    &[&["doc-embeddings-write", "doc-embeddings-query"], &["kw-index"], &["triples-write", "triples-query"]];

/// Every processor here, under the ids that blueprints use.
#[must_use]
pub fn roster() -> Roster {
    Roster::new()
        .add::<decoder::DocumentDecoder>()
        .add::<chunker::Chunker>()
        .add_as::<chunker::Chunker>(chunker::TOKEN_CHUNKER)
        .add::<embeddings::Embeddings>()
        .add::<embeddings::DocumentEmbedder>()
        .add::<chunk_index::VectorWriter>()
        .add::<chunk_index::VectorQuery>()
        .add::<chunk_index::KeywordIndex>()
        .add::<reranker::Reranker>()
        .add::<triples::TriplesWriter>()
        .add::<triples::TriplesQuery>()
        .add::<completion::TextCompletion>()
        .add_as::<completion::TextCompletion>("text-completion-rag")
        .add::<prompt::Prompt>()
        .add_as::<prompt::Prompt>("prompt-rag")
        .add::<metering::Metering>()
        .add_as::<metering::Metering>("metering-rag")
        .add::<document_rag::DocumentRag>()
}

/// Everything that the processors of [`roster`] borrow from their program. Those of [`STORES`] cannot run without stores.
/// Texts are embedded by hashing; a program with another [`Embedder`] adds that.
#[must_use]
pub fn resources(stores: Option<Stores>, model: Model, metrics: &Metrics) -> Resources {
    let resources = Resources::new()
        .with(model)
        .with(Embedder::default())
        .with(decoder::Decoding::default())
        .with(Renderer::default())
        .with(Meters::registered(metrics));
    match stores {
        Some(stores) => resources.with(Derived::new(stores.clone())).with(stores),
        None => resources,
    }
}
