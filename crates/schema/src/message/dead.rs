//! Calls about messages that could not be processed and were parked.

use super::{DeadLetter, Error};

message! {
    /// A call about parked messages, on `request:tg:dead-letters:<workspace>`. Operations: `list` (without bodies) and `export`
    /// (with bodies), newest first, page by page; `replay` (published again, then removed) and `remove`, oldest first.
    /// What it is about: the letters named by `ids`, or else all that match `flow`, `topic` and `document_id`, where empty
    /// matches any.
    pub struct DeadLettersRequest {
        operation: String,
        ids: Vec<String>,
        flow: String,
        topic: String,
        /// Only letters whose message was made from this document.
        document_id: String,
        /// For `replay`: the run whose topic of the same name gets the messages; empty = the topic they came from.
        run: String,
        /// The most letters to handle; 0 = the service's own bound.
        limit: i64,
        /// For `list` and `export`: only letters older than the one with this id, to page on.
        before: String,
        /// For `replay` and `remove` without `ids`, `flow`, `topic` and `document_id`: really all of them.
        all: bool,
    }
}

message! {
    /// The answer. A page of an export ends after some megabytes; `remaining` says that there is more.
    pub struct DeadLettersResponse {
        error: Option<Error>,
        /// `list`: the letters, `body` left out; `export`: whole letters.
        letters: Vec<DeadLetter>,
        /// How many were listed, exported, replayed or removed.
        count: i64,
        /// How many more match and were left for another call.
        remaining: i64,
        /// `replay`: letters that stay, and why.
        kept: Vec<KeptLetter>,
        is_final: bool = true,
    }
}

message! {
    /// A letter that could not be replayed.
    pub struct KeptLetter {
        id: String,
        reason: String,
    }
}
