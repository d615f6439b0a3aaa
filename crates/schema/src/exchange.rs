//! Which answer belongs to which question, and when an answer is complete.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::message as m;

/// A question with its answer: what a client sends, what it gets, and which answer message is the last.
pub trait Exchange: Send + Sync + 'static {
    /// The service's name in logs and metrics.
    const NAME: &'static str;
    /// The question.
    type Request: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// One message of the answer.
    type Response: Serialize + DeserializeOwned + Default + Send + Sync + 'static;

    /// Whether no more messages follow this one.
    fn is_last(response: &Self::Response) -> bool;
    /// The failure that the service reports, if any; a failure is always the last message.
    fn error(response: &Self::Response) -> Option<&m::Error>;
    /// The last message that tells a failure.
    fn failed(error: m::Error) -> Self::Response;
}

macro_rules! exchanges {
    ($( $(#[$doc:meta])* $name:ident, $text:literal, $request:ident => $response:ident, last($r:ident) = $last:expr $(, end { $($end:ident : $value:expr),* })?; )*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy)]
            pub enum $name {}
            impl Exchange for $name {
                const NAME: &'static str = $text;
                type Request = m::$request;
                type Response = m::$response;
                fn is_last($r: &m::$response) -> bool { $r.error.is_some() || $last }
                fn error(response: &m::$response) -> Option<&m::Error> { response.error.as_ref() }
                fn failed(error: m::Error) -> m::$response {
                    m::$response { error: Some(error), $($($end: $value,)*)? ..Default::default() }
                }
            }
        )*
    };
}

exchanges! {
    /// Config: values per workspace, with versions.
    Config, "config", ConfigRequest => ConfigResponse, last(_r) = true;
    /// Flows: blueprints, start, stop.
    Flow, "flow", FlowRequest => FlowResponse, last(_r) = true;
    /// Documents and their processing.
    Librarian, "librarian", LibrarianRequest => LibrarianResponse, last(r) = r.is_final, end { is_final: true };
    /// Messages that could not be processed.
    DeadLetters, "dead-letters", DeadLettersRequest => DeadLettersResponse, last(r) = r.is_final, end { is_final: true };
    /// Collections of a workspace.
    Collections, "collection-management", CollectionManagementRequest => CollectionManagementResponse, last(_r) = true;
    /// Identity and access.
    Iam, "iam", IamRequest => IamResponse, last(_r) = true;
    /// Language models.
    TextCompletion, "text-completion", TextCompletionRequest => TextCompletionResponse, last(r) = r.end_of_stream, end { end_of_stream: true };
    /// Prompt templates.
    Prompt, "prompt", PromptRequest => PromptResponse, last(r) = r.end_of_stream, end { end_of_stream: true };
    /// Texts to vectors.
    Embeddings, "embeddings", EmbeddingsRequest => EmbeddingsResponse, last(_r) = true;
    /// Vectors to chunks.
    DocumentEmbeddings, "document-embeddings", DocumentEmbeddingsRequest => DocumentEmbeddingsResponse, last(_r) = true;
    /// Words to chunks.
    KeywordIndex, "keyword-index", KeywordIndexRequest => KeywordIndexResponse, last(_r) = true;
    /// Texts in order of fit.
    Reranker, "reranker", RerankerRequest => RerankerResponse, last(_r) = true;
    /// Statements that match a pattern.
    TriplesQuery, "triples", TriplesQueryRequest => TriplesQueryResponse, last(r) = r.is_final, end { is_final: true };
    /// Questions answered from passages.
    DocumentRag, "document-rag", DocumentRagQuery => DocumentRagResponse, last(r) = r.end_of_session, end { end_of_session: true, end_of_stream: true };
    /// Questions answered from the graph.
    GraphRag, "graph-rag", GraphRagQuery => GraphRagResponse, last(r) = r.end_of_session, end { end_of_session: true, end_of_stream: true };
    /// Questions answered by an agent.
    Agent, "agent", AgentRequest => AgentResponse, last(r) = r.end_of_dialog, end { end_of_dialog: true, end_of_message: true };
    /// Vectors to entities.
    GraphEmbeddings, "graph-embeddings", GraphEmbeddingsRequest => GraphEmbeddingsResponse, last(_r) = true;
    /// Vectors to row index values.
    RowEmbeddings, "row-embeddings", RowEmbeddingsRequest => RowEmbeddingsResponse, last(_r) = true;
    /// SPARQL.
    Sparql, "sparql", SparqlQueryRequest => SparqlQueryResponse, last(r) = r.is_final, end { is_final: true };
    /// GraphQL over rows.
    Rows, "rows", RowsQueryRequest => RowsQueryResponse, last(_r) = true;
    /// Questions to GraphQL.
    NlpQuery, "nlp-query", QuestionToStructuredQueryRequest => QuestionToStructuredQueryResponse, last(_r) = true;
    /// Questions answered from rows.
    StructuredQuery, "structured-query", StructuredQueryRequest => StructuredQueryResponse, last(_r) = true;
    /// What a sample of data is.
    StructuredDiag, "structured-diag", StructuredDataDiagnosisRequest => StructuredDataDiagnosisResponse, last(_r) = true;
    /// Tools.
    Tool, "mcp-tool", ToolRequest => ToolResponse, last(_r) = true;
    /// Images to texts.
    ImageToText, "image-to-text", ImageToTextRequest => ImageToTextResponse, last(_r) = true;
    /// Gaps in texts.
    Cloze, "cloze", ClozeRequest => ClozeResponse, last(_r) = true;
    /// Scores of questions about a state.
    DecisionScoring, "decision-scoring", DecisionScoringRequest => DecisionScoringResponse, last(_r) = true;
    /// Fields out of a state.
    FieldExtraction, "field-extraction", FieldExtractionRequest => FieldExtractionResponse, last(_r) = true;
}

/// Longest message of an error, in bytes: it may repeat what a caller sent, which is as long as callers like.
const ERROR_MESSAGE_BYTES_MAX: usize = 16 << 10;

impl m::Error {
    /// An error as services report it. A message of more than 16 KiB is cut, and says so.
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        let mut message = message.into();
        let bytes = message.len();
        if bytes > ERROR_MESSAGE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(ERROR_MESSAGE_BYTES_MAX));
            message.push_str(&format!("… ({bytes} bytes in all)"));
        }
        Self { r#type: kind.into(), message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_of_an_error_is_cut_between_characters_and_says_so() {
        let short = m::Error::new("flow-error", "no flow 'a'");
        assert_eq!(short.message, "no flow 'a'");
        let long = m::Error::new("flow-error", format!("no flow '{}'", "ß".repeat(1 << 20)));
        assert!(long.message.len() < ERROR_MESSAGE_BYTES_MAX + 64, "{}", long.message.len());
        assert!(long.message.ends_with("ß… (2097162 bytes in all)"), "{}", &long.message[16_000..]);
    }
}
