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
        let text = text.map(|text| closed_up(&text));
        out.part(number, text.map_err(|error| told(&format!("page {number}"), &error)))?;
    }
    Ok(())
}

/// Text without blanks at the ends of its lines. Where a page is set with wide lines, a blank line between each and the next
/// comes of that: then one blank line less, so that only paragraphs are apart.
fn closed_up(text: &str) -> String {
    // Lines with the number of blank lines after each.
    let mut lines: Vec<(&str, usize)> = Vec::new();
    for line in text.lines().map(str::trim_end) {
        match lines.last_mut() {
            Some((_, blank)) if line.is_empty() => *blank += 1,
            None if line.is_empty() => {}
            _ => lines.push((line, 0)),
        }
    }
    let apart = lines.iter().filter(|(_, blank)| *blank > 0).count();
    let is_wide = lines.len() > 3 && apart * 4 > lines.len() * 3;
    let mut closed = String::with_capacity(text.len());
    for (line, blank) in lines {
        closed.push_str(line);
        let breaks = if is_wide { blank } else { blank + 1 };
        closed.push_str(if breaks > 1 { "\n\n" } else { "\n" });
    }
    closed.truncate(closed.trim_end().len());
    closed
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_set_wide_are_one_paragraph() {
        let wide = "Raw copper was \n\nsmelted on Cyprus \n\nand shipped.\n\n\nTin moved \n\nwestward.\n";
        assert_eq!(
            closed_up(wide),
            "Raw copper was\nsmelted on Cyprus\nand shipped.\n\nTin moved\nwestward."
        );
        let narrow = "\nRaw copper was\nsmelted on Cyprus\nand shipped.\n\n\nTin moved\nwestward.\n";
        assert_eq!(
            closed_up(narrow),
            "Raw copper was\nsmelted on Cyprus\nand shipped.\n\nTin moved\nwestward."
        );
    }
}
