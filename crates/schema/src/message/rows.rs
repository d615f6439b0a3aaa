//! Structured data: rows, their queries and diagnosis.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Error, Metadata, RowSchema};

message! {
    /// Rows found in a text.
    pub struct ExtractedObject {
        metadata: Option<Metadata>,
        schema_name: String,
        values: Vec<BTreeMap<String, String>>,
        /// 0 to 1.
        confidence: f64,
        source_span: String,
    }
}

message! {
    /// Rows with their schema.
    pub struct Rows {
        metadata: Option<Metadata>,
        row_schema: Option<RowSchema>,
        rows: Vec<BTreeMap<String, String>>,
    }
}

message! {
    /// Structured data to store.
    pub struct StructuredDataSubmission {
        metadata: Option<Metadata>,
        format: String,
        schema_name: String,
        data: String,
        options: Map<String, Value>,
    }
}

message! {
    /// A sample to diagnose.
    pub struct StructuredDataDiagnosisRequest {
        /// `detect-type`, `generate-descriptor`, `diagnose` or `schema-selection`.
        operation: String,
        sample: String,
        r#type: String,
        schema_name: String,
        options: Map<String, Value>,
    }
}

message! {
    /// What a sample seems to be.
    pub struct StructuredDataDiagnosisResponse {
        error: Option<Error>,
        operation: String,
        detected_type: String,
        /// 0 to 1.
        confidence: f64,
        /// JSON text.
        descriptor: String,
        metadata: BTreeMap<String, String>,
        schema_matches: Vec<String>,
    }
}

message! {
    /// An error of a GraphQL query.
    pub struct GraphQLError {
        message: String,
        path: Vec<String>,
        extensions: BTreeMap<String, String>,
    }
}

message! {
    /// A GraphQL query over rows.
    pub struct RowsQueryRequest {
        collection: String,
        query: String,
        variables: Map<String, Value>,
        operation_name: Option<String>,
    }
}

message! {
    /// The answer to a GraphQL query; `data` is JSON text.
    pub struct RowsQueryResponse {
        error: Option<Error>,
        data: String,
        errors: Vec<GraphQLError>,
        extensions: BTreeMap<String, String>,
    }
}

message! {
    /// A question to turn into GraphQL.
    pub struct QuestionToStructuredQueryRequest {
        question: String,
        max_results: i64,
    }
}

message! {
    /// The GraphQL of a question.
    pub struct QuestionToStructuredQueryResponse {
        error: Option<Error>,
        graphql_query: String,
        variables: BTreeMap<String, String>,
        detected_schemas: Vec<String>,
        /// 0 to 1.
        confidence: f64,
    }
}

message! {
    /// A question over rows.
    pub struct StructuredQueryRequest {
        question: String,
        collection: String,
    }
}

message! {
    /// The answer to a question over rows.
    pub struct StructuredQueryResponse {
        error: Option<Error>,
        /// JSON text.
        data: String,
        errors: Vec<String>,
    }
}
