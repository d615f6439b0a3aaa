//! Primitives that other messages are made of: errors, RDF terms, row schemas, metadata.

message! {
    /// A failure told to the caller: a stable `type` and a message for people. Part of every response.
    pub struct Error {
        r#type: String,
        message: String,
    }
}

message! {
    /// One RDF term: IRI (`i`), blank node (`b`), literal (`l`) or quoted triple (`t`).
    pub struct Term {
        r#type: String,
        iri: String,
        id: String,
        value: String,
        datatype: String,
        language: String,
        triple: Option<Box<Triple>>,
    }
}

message! {
    /// An RDF statement; `g` is its named graph, `None` the default graph.
    pub struct Triple {
        s: Option<Term>,
        p: Option<Term>,
        o: Option<Term>,
        g: Option<String>,
    }
}

message! {
    /// One column of a row schema.
    pub struct Field {
        name: String,
        r#type: String,
        size: i64,
        primary: bool,
        description: String,
        required: bool,
        enum_values: Vec<String>,
        indexed: bool,
    }
}

message! {
    /// The shape of extracted rows.
    pub struct RowSchema {
        name: String,
        description: String,
        fields: Vec<Field>,
    }
}

message! {
    /// Which item a pipeline message carries, which document it came from, and the collection it goes to.
    pub struct Metadata {
        id: String,
        root: String,
        collection: String,
    }
}
