//! Turns texts into vectors, and chunks into stored ones: the embeddings service (hashed words, no model needed) and the
//! stage that asks it for every chunk.

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::Client;
use sluice_schema::exchange;
use sluice_schema::message::{
    Chunk, ChunkEmbeddings, DocumentEmbeddings, EmbeddingsRequest, EmbeddingsResponse, Error, StageReport,
};
use sluice_sdk::{BindError, Failure, Inputs, Out, Ports, Processor, Progress, Responder};

use crate::hashing;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// Numbers are sent with this many steps between 0 and 1: enough for a cosine, short as text.
const STEPS: f64 = 1e6;

/// The embeddings service of one flow. Its vectors are made of hashed words and character sequences; the flow's `model`
/// parameter names models that other embedders have, and is not used here.
pub struct Embeddings;

impl Processor for Embeddings {
    const NAME: &'static str = "embeddings";

    fn bind(_ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self)
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
        let embed = move || request.texts.iter().map(|text| rounded(hashing::embed(text))).collect();
        let vectors = tokio::task::spawn_blocking(embed)
            .await
            .map_err(|e| Error::new("embeddings-error", e.to_string()))?;
        Ok(EmbeddingsResponse { error: None, vectors })
    }
}

fn rounded(mut vector: Vec<f64>) -> Vec<f64> {
    for x in &mut vector {
        *x = (*x * STEPS).round() / STEPS;
    }
    vector
}

/// The stage that gives each chunk its vector.
pub struct DocumentEmbedder {
    embeddings: Client<exchange::Embeddings>,
    vectors: Out<DocumentEmbeddings>,
    progress: Progress,
}

impl Processor for DocumentEmbedder {
    const NAME: &'static str = "document-embeddings";
    const STAGE: Option<&'static str> = Some("embeddings");

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self {
            embeddings: ports.client("embeddings")?,
            vectors: ports.output("output")?,
            progress: ports.progress()?,
        })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.message("input", Self::embed);
    }
}

impl DocumentEmbedder {
    async fn embed(self: Arc<Self>, chunk: Chunk) -> Result<(), Failure> {
        let question = EmbeddingsRequest { texts: vec![chunk.chunk] };
        let answer = self.embeddings.call(&question, ANSWER_TIMEOUT).await?;
        if let Some(error) = answer.error {
            return Err(Failure::again(format!("the embeddings service answered: {}", error.message)));
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
