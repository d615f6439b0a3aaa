//! Whatever bytes a document has, reading it ends in text or a reason, within its limits.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "shared with other tests, which use more")]
mod made;

use std::path::{Path, PathBuf};

use sluice_documents::{Event, Limits, child};

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

fn limits() -> Limits {
    Limits { parts_max: 20, inflated_bytes_max: 4 << 20, text_bytes_max: 1 << 20 }
}

/// Reads as the process does that reads documents, and takes what it reports as its owner does.
fn read(declared: &str, content: &[u8]) {
    let order =
        child::Order { declared: declared.to_owned(), content_bytes: content.len() as u64, limits: limits() };
    let mut output = Vec::new();
    child::serve([&order.line(), content].concat().as_slice(), &mut output).unwrap();
    let mut conversation = child::Conversation::new(limits());
    let mut last = None;
    for line in output.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        assert!(line.len() <= child::line_bytes_max(&limits()));
        let event: Event = serde_json::from_slice(line).unwrap();
        assert!(conversation.accepts(&event), "{event:?}");
        last = Some(event);
    }
    assert!(matches!(last, Some(Event::End | Event::Failed(_))), "{last:?}");
}

fn fuzz(name: &str, declared: &'static str, cases: u64, more: &[&[u8]]) {
    sluice_fuzz::run(name, &corpus(name), cases, more, &move |content| read(declared, content));
}

#[test]
fn any_text_is_read() {
    fuzz("text", "text/plain", 1_000, &[]);
}

#[test]
fn any_table_is_read() {
    fuzz("csv", "text/csv", 1_000, &[]);
}

#[test]
fn any_web_page_is_read() {
    fuzz("html", "text/html", 500, &[]);
}

#[cfg(feature = "pdf")]
#[test]
fn any_pdf_is_read() {
    fuzz("pdf", "application/pdf", 200, &[&made::pdf(&["One.", "Two."]), &made::locked_pdf()]);
}

#[test]
fn any_office_file_is_read() {
    fuzz("office", "", 300, &[&made::docx(), &made::xlsx(), &made::pptx()]);
}

#[test]
fn whatever_a_reading_process_reports_is_bounded() {
    let line = |event: &Event| serde_json::to_vec(event).unwrap();
    let begin = br#"{"begin":{"kind":"pdf","unit":"page","count":3}}"#.to_vec();
    let part = line(&Event::Part { number: 1, text: "One.".to_owned() });
    let lost = br#"{"lost":{"first":2,"last":3,"problem":{"kind":"damaged","reason":"x"}}}"#.to_vec();
    let all = [begin, part, lost, line(&Event::End)].join(&b'\n');
    sluice_fuzz::run("conversation", &corpus("conversation"), 5_000, &[&all], &|input| {
        let mut conversation = child::Conversation::new(limits());
        let (mut parts, mut text_bytes, mut events) = (0, 0, 0);
        for line in input.split(|byte| *byte == b'\n') {
            let Ok(event) = serde_json::from_slice::<Event>(line) else { break };
            if !conversation.accepts(&event) {
                break;
            }
            events += 1;
            if let Event::Part { number, text } = event {
                assert!(number > parts && number <= limits().parts_max);
                (parts, text_bytes) = (number, text_bytes + text.len());
            }
        }
        assert!(text_bytes <= limits().text_bytes_max && events <= limits().parts_max + 3);
    });
}
