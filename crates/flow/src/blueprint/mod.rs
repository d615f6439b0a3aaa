//! Blueprints: read from JSON with errors that name the place, then resolved with names and parameters to the topology of
//! one run. Pure.

mod parameters;
mod ports;
mod read;
mod resolve;
mod template;

pub use parameters::{
    Declared, ParameterType, Parameters, check as check_parameters, resolve as resolve_parameters,
};
pub use ports::Ports;
pub use read::Blueprint;
pub use resolve::{Names, OwnedTopic, Part, Resolved, Topology};

use sluice_schema::TopicError;
use sluice_schema::doors::DoorError;

/// Warnings about one blueprint or start; more tell nobody more.
const WARNINGS_MAX: usize = 100;
/// Characters of a name or place in a warning.
const SHOWN_MAX: usize = 80;

/// As much of a name or place as a warning shows.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// Why a blueprint, or a flow of it, cannot be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON at all.
    #[error("the blueprint is not JSON: {0}")]
    Json(String),
    /// Something has the wrong shape.
    #[error("{place}: must be {wanted}, not {found}")]
    Shape {
        /// Where.
        place: String,
        /// What it should be.
        wanted: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A section that every blueprint has.
    #[error("the blueprint has no '{section}' section; give it one, {{}} if it has nothing to hold")]
    Section {
        /// Its name.
        section: &'static str,
    },
    /// A processor key without both halves.
    #[error("{place}: a processor key is <processor>:<variant>, for example chunker:{{id}}")]
    Key {
        /// Where.
        place: String,
    },
    /// Parameters that control each other in a circle.
    #[error("parameters: controlled-by goes round in a circle: {}", .circle.join(" -> "))]
    Circle {
        /// The names, the first again at the end.
        circle: Vec<String>,
    },
    /// More of something than a blueprint may have.
    #[error("{place}: has {count} {what}, and {count_max} is the limit; leave out what is not needed")]
    Many {
        /// Where.
        place: String,
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        count_max: usize,
    },
    /// Values that are too long together.
    #[error("the parameters have values of more than {bytes_max} bytes together; use fewer or shorter ones")]
    Parameters {
        /// The most that they may have.
        bytes_max: usize,
    },
    /// A listed input that is no topic of the processor.
    #[error("{place}: input '{slot}' is not among the topics of this processor")]
    Input {
        /// Where.
        place: String,
        /// The name.
        slot: String,
    },
    /// A placeholder that nothing fills.
    #[error(
        "{place}: nothing fills the placeholder {{{name}}}; declare it under parameters or give it at start"
    )]
    Placeholder {
        /// Where.
        place: String,
        /// Its name.
        name: String,
    },
    /// A text that its parameters make too long.
    #[error(
        "{place}: more than {bytes_max} bytes come of it once its parameters are filled in; use fewer or shorter ones"
    )]
    Filled {
        /// Where.
        place: String,
        /// The most that may.
        bytes_max: usize,
    },
    /// A text that is no topic.
    #[error("{place}: {source}")]
    Topic {
        /// Where.
        place: String,
        /// What is wrong.
        source: TopicError,
    },
    /// A topic that the flow may not use.
    #[error("{place}: {source}")]
    Door {
        /// Where.
        place: String,
        /// Whose it is.
        source: DoorError,
    },
    /// A name that some broker cannot hold.
    #[error(
        "{place}: the queue '{queue}' has a name of {bytes} bytes; brokers allow {max}. Use a shorter id"
    )]
    Length {
        /// Where.
        place: String,
        /// The queue's name.
        queue: String,
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// A reader's processor with a point in its name, which a broker's queue name has between its halves.
    #[error(
        "{place}: processor '{processor}' has a point in its name, which queue names cannot carry; use '-'"
    )]
    Point {
        /// Where.
        place: String,
        /// The processor.
        processor: String,
    },
    /// A name that a broker could not tell from another flow's.
    #[error(
        "{place}: the queue name '{queue}' could also be that of subscription '{other_subscription}' on {other_topic}; leave '--{{workspace}}--' out of the variant and slot"
    )]
    Ambiguous {
        /// Where.
        place: String,
        /// The queue's name.
        queue: String,
        /// A topic that some flow could have.
        other_topic: String,
        /// The subscription on it.
        other_subscription: String,
    },
    /// Two keys that name the same thing.
    #[error("{place}: '{name}' is already defined by {other}")]
    Twice {
        /// Where.
        place: String,
        /// The processor and variant, slot or role.
        name: String,
        /// Where else.
        other: String,
    },
    /// A required parameter without a value.
    #[error("Required parameter '{name}' not provided and has no default")]
    Required {
        /// Its name.
        name: String,
    },
    /// A parameter that is no scalar.
    #[error("parameter '{name}' must be text, a number or a boolean, not {found}")]
    ParameterValue {
        /// Its name.
        name: String,
        /// What it is.
        found: &'static str,
    },
    /// A parameter with a value that its type rules out.
    #[error("parameter '{name}' is '{value}', but must be {wanted}; its type '{type_name}' says so")]
    ParameterWanted {
        /// Its name.
        name: String,
        /// Its value, cut short if long.
        value: String,
        /// Key of its `parameter-type`.
        type_name: String,
        /// What it should be.
        wanted: String,
    },
}
