//! Primitives that other messages are made of: errors, RDF terms, row schemas, metadata.

message! {
    /// A failure told to the caller: a stable `type` and a message for people. Part of every response.
    pub struct Error {
        /// Stable word to act on, as `flow-error`.
        r#type: String,
        /// For people.
        message: String,
    }
}

impl Error {
    /// The type of a write that may have happened: look again before acting again.
    pub const OUTCOME_UNKNOWN: &'static str = "outcome-unknown";
    /// The type of a write that config's store did not take: nothing happened, the same write may succeed later.
    pub const CONFIG_UNAVAILABLE: &'static str = "config-unavailable";
    /// The type of a write that a service's store did not take, as on a full disk: as [`Error::CONFIG_UNAVAILABLE`].
    pub const STORE_UNAVAILABLE: &'static str = "store-unavailable";
    /// The type of a call for which a service could not use the broker: the same call may succeed later.
    pub const BUS_UNAVAILABLE: &'static str = "bus-unavailable";
    /// The type of an error that says that something is larger than is accepted, or than one answer may be.
    pub const TOO_LARGE: &'static str = "too-large";
    /// The type of an error that says that too many large answers are under way: the same question may be answered later.
    pub const OVERLOADED: &'static str = "overloaded";
    /// The type of an error that says that the next page cannot be told any more: begin again with the first.
    pub const PAGE_EXPIRED: &'static str = "page-expired";

    /// Whether nothing happened because too much is under way.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        self.r#type == Self::OVERLOADED
    }

    /// Whether the same call may succeed later: a service's store, or the broker, takes nothing at the moment.
    #[must_use]
    pub fn is_store_unavailable(&self) -> bool {
        [Self::STORE_UNAVAILABLE, Self::CONFIG_UNAVAILABLE, Self::BUS_UNAVAILABLE]
            .contains(&self.r#type.as_str())
    }
}

message! {
    /// One RDF term: IRI (`i`), blank node (`b`), literal (`l`) or quoted triple (`t`).
    pub struct Term {
        /// `i`, `b`, `l` or `t`; tells which of the other members counts.
        r#type: String,
        iri: String,
        /// Of a blank node.
        id: String,
        /// Of a literal.
        value: String,
        /// IRI; a literal has this or `language`, not both.
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
        /// IRI of the graph.
        g: Option<String>,
    }
}

message! {
    /// One column of a row schema.
    pub struct Field {
        name: String,
        /// `string`, `integer`, `float`, `boolean`, `timestamp`, `date`, `time` or `uuid`.
        r#type: String,
        /// A hint at its width; 0 = none.
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
        /// Of the item itself: a document, a page, a chunk.
        id: String,
        /// Of the document that the item was cut from.
        root: String,
        collection: String,
    }
}
