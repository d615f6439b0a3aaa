//! Language models, prompts, tools, image and classifier services.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::Error;

message! {
    /// A call to a language model.
    pub struct TextCompletionRequest {
        /// `completion` or `list-models`.
        operation: String = "completion".to_owned(),
        system: String,
        prompt: String,
        /// Whether the answer may come in parts.
        streaming: bool,
        /// `json` for structured output; the model follows `schema` then.
        response_format: Option<String>,
        /// JSON schema of the answer.
        schema: Option<Map<String, Value>>,
    }
}

message! {
    /// A model that a provider offers.
    pub struct ModelInfo {
        id: String,
        name: Option<String>,
        owned_by: Option<String>,
        /// Seconds since 1970.
        created: Option<i64>,
        description: Option<String>,
        /// Tokens.
        context_length: Option<i64>,
        /// Tokens.
        max_output_length: Option<i64>,
        input_modalities: Vec<String>,
        output_modalities: Vec<String>,
        supported_features: Vec<String>,
        input_price: Option<f64>,
        output_price: Option<f64>,
        family: Option<String>,
        parameter_size: Option<String>,
        quantization: Option<String>,
        format: Option<String>,
    }
}

message! {
    /// Text of a language model, whole or in parts.
    pub struct TextCompletionResponse {
        error: Option<Error>,
        response: String,
        /// Tokens read; on the last message.
        in_token: Option<i64>,
        /// Tokens written; on the last message.
        out_token: Option<i64>,
        model: Option<String>,
        end_of_stream: bool,
        models: Vec<ModelInfo>,
    }
}

message! {
    /// A call of a tool; `parameters` is JSON text.
    pub struct ToolRequest {
        name: String,
        /// JSON text of an object.
        parameters: String,
    }
}

message! {
    /// What a tool gave back.
    pub struct ToolResponse {
        error: Option<Error>,
        text: String,
        /// JSON text; used where `text` is empty.
        object: String,
    }
}

message! {
    /// A prompt template by id, with JSON texts for its variables.
    pub struct PromptRequest {
        id: String,
        /// Variable → its value as JSON text.
        terms: BTreeMap<String, String>,
        streaming: bool,
    }
}

message! {
    /// What the model answered to a prompt.
    pub struct PromptResponse {
        error: Option<Error>,
        text: String,
        /// JSON text, of prompts that answer with JSON; used where `text` is empty.
        object: String,
        end_of_stream: bool,
        in_token: Option<i64>,
        out_token: Option<i64>,
        model: Option<String>,
    }
}

message! {
    /// An image (base64) to describe.
    pub struct ImageToTextRequest {
        /// Base64.
        image: String,
        mime_type: String,
        prompt: String,
        system: String,
    }
}

message! {
    /// The description of an image.
    pub struct ImageToTextResponse {
        error: Option<Error>,
        description: String,
        in_token: Option<i64>,
        out_token: Option<i64>,
        model: Option<String>,
    }
}

message! {
    /// A text with a gap to fill.
    pub struct ClozeRequest {
        operation: String = "predict".to_owned(),
        model: String,
        query: String,
    }
}

message! {
    /// A cloze model.
    pub struct ClozeModelInfo {
        name: String,
        state: String,
        labels: Vec<String>,
        accuracy: Option<f64>,
        train_size: Option<i64>,
        test_size: Option<i64>,
    }
}

message! {
    /// What fills the gap.
    pub struct ClozeResponse {
        error: Option<Error>,
        label: String,
        confidence: f64,
        models: Vec<ClozeModelInfo>,
    }
}

message! {
    /// A state and questions to score.
    pub struct DecisionScoringRequest {
        state: Map<String, Value>,
        questions: Map<String, Value>,
    }
}

message! {
    /// Scores of the questions.
    pub struct DecisionScoringResponse {
        error: Option<Error>,
        answers: Map<String, Value>,
        model: String,
    }
}

message! {
    /// A state and fields to extract.
    pub struct FieldExtractionRequest {
        state: Map<String, Value>,
        fields: Map<String, Value>,
    }
}

message! {
    /// Values of the fields.
    pub struct FieldExtractionResponse {
        error: Option<Error>,
        answers: Map<String, Value>,
        model: String,
    }
}
