//! Turns texts into vectors, and chunks into stored ones: the embeddings service, with hashed words, a provider or a model
//! run here, and the stage that asks it for every chunk.

mod embedder;
mod local;
mod ollama;
mod once;
mod openai;

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{Client, trace};
use sluice_schema::exchange;
use sluice_schema::message::{
    Chunk, ChunkEmbeddings, DocumentEmbeddings, EmbeddingsRequest, EmbeddingsResponse, Error, StageReport,
};
use sluice_schema::operation::{EMBEDDINGS_BYTES_MAX, EMBEDDINGS_TEXTS_MAX};
use sluice_sdk::{BindError, Failure, Inputs, Out, Ports, Processor, Progress, Recorded, Responder};

pub use self::embedder::{Embedder, EmbedderConfig};
pub use self::local::LocalConfig;
use self::once::Once;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

/// The embeddings service of one flow. Where vectors come from is a setting of the program.
pub struct Embeddings {
    embedder: Embedder,
    model: Option<String>,
    calls_max: usize,
}

impl Processor for Embeddings {
    const NAME: &'static str = "embeddings";

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        let embedder: Embedder = ports.resource()?;
        let calls_max = ports.setting("concurrency", embedder.calls_max().unwrap_or(Self::CONCURRENCY))?;
        Ok(Self { embedder, model: ports.text("model"), calls_max })
    }

    fn concurrency(&self) -> usize {
        self.calls_max
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.request::<exchange::Embeddings, _, _>("request", Self::answer);
    }
}

impl Embeddings {
    async fn answer(
        self: Arc<Self>,
        request: EmbeddingsRequest,
        _answer: Responder<exchange::Embeddings>,
    ) -> Result<EmbeddingsResponse, Error> {
        let bytes: usize = request.texts.iter().map(String::len).sum();
        if request.texts.len() > EMBEDDINGS_TEXTS_MAX || bytes > EMBEDDINGS_BYTES_MAX {
            let reason = format!(
                "{} texts of {bytes} bytes are asked for at once; ask for at most {EMBEDDINGS_TEXTS_MAX} of \
                 {EMBEDDINGS_BYTES_MAX} bytes together",
                request.texts.len()
            );
            return Err(Error::new("too-large", reason));
        }
        let embedded = self.embedder.embed(self.model.as_deref(), request.texts).await;
        let vectors = embedded.map_err(|error| {
            let kind = match error.kind() {
                "llm-error" => "embeddings-error",
                kind => kind,
            };
            Error::new(kind, error.to_string())
        })?;
        Ok(EmbeddingsResponse { error: None, vectors })
    }
}

/// The stage that gives each chunk its vector.
pub struct DocumentEmbedder {
    embeddings: Client<exchange::Embeddings>,
    vectors: Out<DocumentEmbeddings>,
    progress: Progress,
    recorded: Recorded,
    once: Once,
}

impl Processor for DocumentEmbedder {
    const NAME: &'static str = "document-embeddings";
    const CONCURRENCY: usize = 32;
    const STAGE: Option<&'static str> = Some("embeddings");

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self {
            embeddings: ports.client("embeddings")?,
            vectors: ports.output("output")?,
            progress: ports.progress()?,
            recorded: ports.recorded()?,
            once: Once::default(),
        })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.message("input", Self::embed);
    }
}

impl DocumentEmbedder {
    /// A chunk whose vector may have been made in this pass already is asked for only if it was not. Without a pass
    /// nobody can tell this time from the times before.
    async fn embed(self: Arc<Self>, chunk: Chunk) -> Result<(), Failure> {
        let Some(pass) = trace::pass() else { return self.ask(chunk).await };
        let (id, root) = (&chunk.document_id, chunk.metadata.as_ref().map_or("", |metadata| &metadata.root));
        let Some(turn) = self.once.begin(id, pass).await else { return Ok(()) };
        if !trace::is_again() || !self.recorded.is_embedded(root, id).await {
            self.ask(chunk).await?;
        }
        turn.done();
        Ok(())
    }

    async fn ask(&self, chunk: Chunk) -> Result<(), Failure> {
        let question = EmbeddingsRequest { texts: vec![chunk.chunk] };
        let answer = self.embeddings.call(&question, ANSWER_TIMEOUT).await?;
        if let Some(error) = answer.error {
            let reason = format!("the embeddings service answered: {}", error.message);
            // The same text will be refused again.
            let is_final = error.r#type == "provider-refused";
            return Err(if is_final { Failure::never(reason) } else { Failure::again(reason) });
        }
        let mut vectors = answer.vectors.into_iter().filter(|vector| !vector.is_empty());
        let (Some(vector), None) = (vectors.next(), vectors.next()) else {
            return Err(Failure::again("the embeddings service did not answer one vector for one text"));
        };
        let entry =
            ChunkEmbeddings { chunk_id: chunk.document_id.clone(), vector, attributes: chunk.attributes };
        let metadata = chunk.metadata.unwrap_or_default();
        let report = chunks_done("embeddings", &metadata.root, &metadata.collection, vec![chunk.document_id]);
        self.vectors.send(&DocumentEmbeddings { metadata: Some(metadata), chunks: vec![entry] }).await?;
        self.progress.report(report).await
    }
}

/// The report that a stage is through with chunks.
pub(crate) fn chunks_done(stage: &str, root: &str, collection: &str, chunks: Vec<String>) -> StageReport {
    StageReport {
        id: format!("{stage}:done:{}", chunks.first().map_or("", String::as_str)),
        document_id: root.to_owned(),
        collection: collection.to_owned(),
        stage: stage.to_owned(),
        event: "done".to_owned(),
        unit: "chunk".to_owned(),
        count: i64::try_from(chunks.len()).unwrap_or(i64::MAX),
        pieces: chunks,
        ..Default::default()
    }
}
