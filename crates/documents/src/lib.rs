//! Documents become text: bytes in, pages or sections of text out, one problem with a reason for whatever gives none.
//!
//! It owns what a file format is. It refuses to know where documents come from and where the text goes: no bus, no async, no
//! files. Begin with [`recognise`] and [`read`]. Every reader is bounded by [`Limits`]; but what parses a hostile file can
//! loop or eat memory in ways that no bound inside it stops, so only [plain](Kind::is_plain) kinds of a small size are read
//! where other work is done: [`plain`] tells. Everything else belongs in a process of its own: [`child`] is both ends of the
//! pipe to it.
//!
//! ```
//! use sluice_documents::{Event, Limits, Unit, read, recognise};
//!
//! let page = b"<html><h1>Tea</h1><p>Warm the pot.</p></html>";
//! let kind = recognise("application/octet-stream", page).unwrap();
//! let mut told = Vec::new();
//! read(kind, "", page.to_vec(), &Limits::default(), &mut |event| Ok(told.push(event))).unwrap();
//! assert_eq!(told[0], Event::Begin { kind, unit: Unit::Section, count: 1 });
//! assert_eq!(told[1], Event::Part { number: 1, text: "# Tea\n\nWarm the pot.".to_owned() });
//! assert_eq!(told[2], Event::End);
//! ```

use std::io;

use serde::{Deserialize, Serialize};

pub mod child;
mod encoding;
mod event;
mod html;
mod kind;
mod office;
#[cfg(feature = "pdf")]
mod pdf;
mod problem;
mod rows;

pub use event::{Event, Unit};
pub use kind::{Kind, PLAIN_BYTES_MAX, plain, recognise};
pub use problem::{Problem, ProblemKind, REASON_BYTES_MAX};

/// Changes whenever readers give other text for the same bytes, so that parts read before are not taken for the same.
pub const READER_VERSION: &str = "1";

/// What is taken of one document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Pages, slides or sheets that are read; those after are left out, with a word about it. Default 2,000.
    pub parts_max: usize,
    /// Bytes that a packed document may unpack to, all together; more is refused. Default 256 MiB.
    pub inflated_bytes_max: u64,
    /// Bytes of text; reading stops there, with a word about it. Default 16 MiB, some eight thousand pages.
    pub text_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { parts_max: 2_000, inflated_bytes_max: 256 * 1024 * 1024, text_bytes_max: 16 * 1024 * 1024 }
    }
}

/// Reads a document of a kind and tells `sink` what it finds: [`Event::Begin`] first unless it fails before, [`Event::End`]
/// or [`Event::Failed`] last. `declared` is its MIME type, which may name an encoding.
///
/// # Errors
/// Only what `sink` returns, at once; what is wrong with the document is told as an event.
pub fn read(
    kind: Kind,
    declared: &str,
    content: Vec<u8>,
    limits: &Limits,
    sink: &mut dyn FnMut(Event) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = event::Out::new(kind, limits, sink);
    let done = match kind {
        Kind::Text | Kind::Markdown => {
            whole(&mut out, || Ok(encoding::decode(declared, &content).into_owned()))
        }
        Kind::Csv => whole(&mut out, || rows::from_csv(declared, &content, limits)),
        Kind::Html => whole(&mut out, || Ok(html::to_markdown(&encoding::decode(declared, &content)))),
        Kind::Docx | Kind::Xlsx | Kind::Pptx | Kind::Doc | Kind::Xls | Kind::Ppt => {
            office::read(kind, content, limits, &mut out)
        }
        #[cfg(feature = "pdf")]
        Kind::Pdf => pdf::read(content, &mut out),
        #[cfg(not(feature = "pdf"))]
        Kind::Pdf => Err(Problem::new(
            ProblemKind::Unsupported,
            "this program was built without its PDF reader; build it with the feature `pdf`",
        )
        .into()),
    };
    out.finish(done)
}

/// A document that is one section.
fn whole(
    out: &mut event::Out<'_>,
    text: impl FnOnce() -> Result<String, Problem>,
) -> Result<(), event::Stop> {
    let text = text()?;
    out.begin(Unit::Section, 1)?;
    out.part(1, Ok(text))
}
