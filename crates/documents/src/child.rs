//! Both ends of the pipe to a process that reads one document: an [`Order`] goes in, [`Event`]s come out, a line of JSON
//! each, as they are found. What the process told before it died stays told.

use std::io::{self, BufRead, BufReader, Read, Write};

use serde::{Deserialize, Serialize};

use crate::{Event, Kind, Limits, Problem};

/// Longest first line, in bytes.
const ORDER_BYTES_MAX: u64 = 64 * 1024;
/// Stack of the thread that reads, in bytes: readers of nested formats recurse.
const STACK_BYTES: usize = 64 * 1024 * 1024;

/// What a process is to read; its content follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// What the content was recognised as.
    pub kind: Kind,
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

/// Serves one order: the whole life of the process. An input that is shorter than announced is told as damaged.
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
    let mut tell = |event: Event| {
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        output.write_all(&line)?;
        output.flush()
    };
    if content.len() as u64 != order.content_bytes {
        return tell(Event::Failed(Problem::damaged("the document", "its content was cut short on the way")));
    }
    crate::read(order.kind, &order.declared, content, &order.limits, &mut tell)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(order: &Order, content: &[u8]) -> Vec<Event> {
        let mut output = Vec::new();
        serve([order.line(), content.to_vec()].concat().as_slice(), &mut output).unwrap();
        let lines = output.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    #[test]
    fn an_order_is_answered_with_events() {
        let content = b"<h1>Tea</h1>\x00";
        let mut order = Order {
            kind: Kind::Html,
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
    fn what_is_no_order_is_refused() {
        assert!(serve(&b"hello\n"[..], Vec::new()).is_err());
    }
}
