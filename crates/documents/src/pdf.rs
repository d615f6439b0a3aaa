//! PDF: each page by itself, so that one that cannot be read costs no other.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pdf_oxide::{Error, PdfDocument};

use crate::event::{Out, Stop};
use crate::{Problem, ProblemKind, Unit};

pub(crate) fn read(content: Vec<u8>, out: &mut Out<'_>) -> Result<(), Stop> {
    let document = guarded(|| PdfDocument::from_bytes(content)).map_err(|error| told("the PDF", &error))?;
    if document.is_encrypted() && !unlocked(&document) {
        return Err(locked().into());
    }
    let found = guarded(|| document.page_count()).map_err(|error| told("the PDF", &error))?;
    let count = out.begin(Unit::Page, found)?;
    for number in 1..=count {
        let text = guarded(|| document.extract_text(number - 1));
        out.part(number, text.map_err(|error| told(&format!("page {number}"), &error)))?;
    }
    Ok(())
}

/// Whether it opens without a password, as documents do that only forbid printing or copying.
fn unlocked(document: &PdfDocument) -> bool {
    guarded(|| document.authenticate(b"")).unwrap_or(false)
}

/// What the parser says, or that it panicked.
fn guarded<T>(work: impl FnOnce() -> pdf_oxide::Result<T>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(Fault::Said),
        Err(_) => Err(Fault::Panicked),
    }
}

enum Fault {
    Said(Error),
    Panicked,
}

fn told(what: &str, fault: &Fault) -> Problem {
    match fault {
        Fault::Said(Error::EncryptedPdf) => locked(),
        Fault::Said(error) => Problem::damaged(what, error),
        Fault::Panicked => Problem::damaged(what, "its parser gave up"),
    }
}

fn locked() -> Problem {
    let reason = "the PDF is locked with a password; save it without one and add it again";
    Problem::new(ProblemKind::Encrypted, reason)
}
