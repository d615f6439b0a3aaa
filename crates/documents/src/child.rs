//! Both ends of the pipe to a process that reads one document: an [`Order`] goes in, [`Event`]s come out, a line of JSON
//! each, as they are found. What the process reported before it died stays reported.
//!
//! The end that gives the order trusts nothing that comes back: a document may have taken over the process that reads it.
//! [`Conversation`] says what may come next.

use std::io::{self, BufRead, BufReader, Read, Write};

use serde::{Deserialize, Serialize};

use crate::{Event, Limits, Problem, REASON_BYTES_MAX};

/// Longest first line, in bytes.
const ORDER_BYTES_MAX: u64 = 64 * 1024;
/// Stack of the thread that reads, in bytes: readers of nested formats recurse.
const STACK_BYTES: usize = 64 * 1024 * 1024;

/// What a process is to read; its content follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The declared MIME type.
    pub declared: String,
    /// Bytes of content that follow.
    pub content_bytes: u64,
    /// What is taken of it.
    pub limits: Limits,
}

impl Order {
    /// The line that goes before the content.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// Bytes that a line of events may have at most under these limits: text is escaped, at worst every character of it.
#[must_use]
pub fn line_bytes_max(limits: &Limits) -> usize {
    const FRAME_BYTES: usize = 64 * 1024;
    limits.text_bytes_max.saturating_mul(2).saturating_add(FRAME_BYTES)
}

/// What has been reported of one document, and so what may come next. Whatever the other end sends, as many events are
/// accepted as the limits allow, with as much text.
#[derive(Debug)]
pub struct Conversation {
    limits: Limits,
    /// Parts that were announced; `None` before.
    count: Option<usize>,
    /// The part that comes next.
    next: usize,
    text_bytes: usize,
    /// The parts beyond the last that is read were named.
    rest_is_lost: bool,
    has_ended: bool,
}

impl Conversation {
    /// Before the first event.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self { limits, count: None, next: 1, text_bytes: 0, rest_is_lost: false, has_ended: false }
    }

    /// Takes the next event; returns whether it can be one.
    pub fn accepts(&mut self, event: &Event) -> bool {
        if self.has_ended || !is_short(event) {
            return false;
        }
        match (event, self.count) {
            (Event::Begin { count, .. }, None) => {
                self.count = Some(*count);
                *count <= self.limits.parts_max
            }
            (Event::Part { number, text }, Some(count)) => {
                self.text_bytes = self.text_bytes.saturating_add(text.len());
                self.goes_on(*number, *number, count) && self.text_bytes <= self.limits.text_bytes_max
            }
            (Event::Lost { first, last, .. }, Some(count)) if *first == count.saturating_add(1) => {
                !std::mem::replace(&mut self.rest_is_lost, true) && last >= first
            }
            (Event::Lost { first, last, .. }, Some(count)) => self.goes_on(*first, *last, count),
            (Event::Failed(_), _) | (Event::End, Some(_)) => {
                self.has_ended = true;
                true
            }
            (Event::Begin { .. }, Some(_)) | (Event::Part { .. } | Event::Lost { .. } | Event::End, None) => {
                false
            }
        }
    }

    fn goes_on(&mut self, first: usize, last: usize, count: usize) -> bool {
        let goes_on = self.next <= first && first <= last && last <= count;
        if goes_on {
            self.next = last + 1;
        }
        goes_on
    }
}

fn is_short(event: &Event) -> bool {
    match event {
        Event::Lost { problem, .. } | Event::Failed(problem) => problem.reason.len() <= REASON_BYTES_MAX,
        Event::Begin { .. } | Event::Part { .. } | Event::End => true,
    }
}

/// Serves one order: the whole life of the process. An input that is shorter than announced is reported as damaged.
///
/// # Errors
/// When the order cannot be understood or the output is closed.
pub fn serve(input: impl Read + Send, output: impl Write + Send) -> io::Result<()> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let reading = thread.spawn_scoped(scope, || answer(input, output))?;
        reading.join().unwrap_or_else(|_| Err(io::Error::other("the reader panicked")))
    })
}

fn answer(input: impl Read, mut output: impl Write) -> io::Result<()> {
    let mut input = BufReader::new(input);
    let mut line = Vec::new();
    input.by_ref().take(ORDER_BYTES_MAX).read_until(b'\n', &mut line)?;
    let order: Order = serde_json::from_slice(&line)?;
    let mut content = Vec::with_capacity(usize::try_from(order.content_bytes).unwrap_or_default());
    input.take(order.content_bytes).read_to_end(&mut content)?;
    let mut report = |event: Event| {
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        output.write_all(&line)?;
        output.flush()
    };
    if content.len() as u64 != order.content_bytes {
        return report(Event::Failed(Problem::damaged(
            "the document",
            "its content was cut short on the way",
        )));
    }
    match crate::recognise(&order.declared, &content) {
        Ok(kind) => crate::read(kind, &order.declared, content, &order.limits, &mut report),
        Err(problem) => report(Event::Failed(problem)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, ProblemKind, Unit};

    fn served(order: &Order, content: &[u8]) -> Vec<Event> {
        let mut output = Vec::new();
        serve([order.line(), content.to_vec()].concat().as_slice(), &mut output).unwrap();
        let lines = output.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    #[test]
    fn an_order_is_answered_with_events() {
        let content = b"<h1>Tea</h1>\n";
        let mut order = Order {
            declared: "text/html".to_owned(),
            content_bytes: content.len() as u64,
            limits: Limits::default(),
        };
        let told = served(&order, content);
        assert_eq!(told[1], Event::Part { number: 1, text: "# Tea".to_owned() });
        assert_eq!(told.last(), Some(&Event::End));
        order.content_bytes += 1;
        assert!(
            matches!(&served(&order, content)[..], [Event::Failed(problem)] if problem.reason.contains("cut short"))
        );
    }

    #[test]
    fn no_text_makes_a_line_longer_than_the_bound() {
        let limits = Limits { text_bytes_max: 1_000, ..Limits::default() };
        for text in ["\n".repeat(1_000), "\"".repeat(1_000), "ä".repeat(500)] {
            let line = serde_json::to_vec(&Event::Part { number: 1, text }).unwrap();
            assert!(line.len() <= line_bytes_max(&limits));
        }
    }

    #[test]
    fn what_is_not_read_here_is_reported_and_no_error() {
        let content = b"\x89PNG\r\n\x1a\n";
        let order = Order { declared: "image/png".to_owned(), content_bytes: 8, limits: Limits::default() };
        assert!(
            matches!(&served(&order, content)[..], [Event::Failed(problem)] if problem.reason.contains("PNG"))
        );
    }

    fn problem(reason: impl Into<String>) -> Problem {
        Problem { kind: ProblemKind::Damaged, reason: reason.into() }
    }

    #[test]
    fn a_conversation_takes_what_a_reader_says() {
        let limits = Limits { parts_max: 3, ..Limits::default() };
        let mut conversation = Conversation::new(limits.clone());
        for event in [
            Event::Begin { kind: Kind::Pdf, unit: Unit::Page, count: 3 },
            Event::Lost { first: 4, last: 9, problem: problem("left out") },
            Event::Part { number: 1, text: "One.".to_owned() },
            Event::Lost { first: 2, last: 2, problem: problem("blank") },
            Event::Part { number: 3, text: "Three.".to_owned() },
            Event::End,
        ] {
            assert!(conversation.accepts(&event), "{event:?}");
        }
        assert!(!conversation.accepts(&Event::End));
        assert!(Conversation::new(limits.clone()).accepts(&Event::Failed(problem("damaged"))));
    }

    #[test]
    fn a_conversation_takes_nothing_that_has_no_bound() {
        let limits = Limits { parts_max: 3, text_bytes_max: 10, ..Limits::default() };
        let begin = Event::Begin { kind: Kind::Pdf, unit: Unit::Page, count: 3 };
        let part = |number, text: &str| Event::Part { number, text: text.to_owned() };
        let lost = |first, last| Event::Lost { first, last, problem: problem("x") };
        for (before, odd) in [
            (vec![], part(1, "a")),
            (vec![], lost(1, 1)),
            (vec![], Event::End),
            (vec![], Event::Begin { kind: Kind::Pdf, unit: Unit::Page, count: usize::MAX }),
            (vec![], Event::Failed(problem("x".repeat(REASON_BYTES_MAX + 1)))),
            (vec![begin.clone()], begin.clone()),
            (vec![begin.clone()], part(0, "a")),
            (vec![begin.clone()], part(4, "a")),
            (vec![begin.clone()], part(1, "too much text")),
            (vec![begin.clone(), part(1, "sixsix")], part(2, "sixsix")),
            (vec![begin.clone(), part(2, "a")], part(2, "a")),
            (vec![begin.clone(), part(2, "a")], lost(1, 3)),
            (vec![begin.clone()], lost(1, 4)),
            (vec![begin.clone()], lost(2, 1)),
            (vec![begin.clone()], lost(5, usize::MAX)),
            (vec![begin.clone(), lost(4, usize::MAX)], lost(4, 5)),
        ] {
            let mut conversation = Conversation::new(limits.clone());
            assert!(before.iter().all(|event| conversation.accepts(event)), "{before:?}");
            assert!(!conversation.accepts(&odd), "{before:?} {odd:?}");
        }
    }

    #[test]
    fn what_is_no_order_is_refused() {
        assert!(serve(&b"hello\n"[..], Vec::new()).is_err());
    }
}
