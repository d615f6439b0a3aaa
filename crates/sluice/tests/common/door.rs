//! Asking a system over HTTP while it may die.
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a test that cannot go on fails; not every test uses every part"
)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::common::PATIENCE;

/// Documents that a loader has under way at most.
const UNDER_WAY_MAX: usize = 4;
/// Paragraphs of a document, each as long as a chunk of the steady flow may be.
pub(crate) const PARAGRAPHS: u64 = 12;
/// What the steady flow is started with.
pub(crate) const PARAMETERS: &[&str] = &["-p", "chunk-size=200", "-p", "chunk-overlap=0"];

/// Where a system is asked, and the key to it.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) url: String,
    pub(crate) key: String,
}

/// How a request ended.
#[derive(Debug)]
pub(crate) enum Answer {
    Done(Value),
    /// It was told why not.
    Refused(String),
    /// Whoever was asked died.
    None,
}

impl Door {
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        let Some(said) = self.said(path, body) else { return Answer::None };
        let Some((head, body)) = said.split_once("\r\n\r\n") else { return Answer::None };
        if !head.contains("200 OK") {
            return Answer::Refused(said);
        }
        match serde_json::from_str::<Value>(body) {
            Ok(answer) if answer.get("error").is_none_or(Value::is_null) => Answer::Done(answer),
            Ok(_) => Answer::Refused(said),
            // Cut off in the middle.
            Err(_) => Answer::None,
        }
    }

    /// Everything that comes back; `None` when nothing does.
    fn said(&self, path: &str, body: &Value) -> Option<String> {
        let address = self.url.strip_prefix("http://")?;
        let mut stream = TcpStream::connect(address).ok()?;
        // Longer than the gateway itself waits: who hears nothing by then was forgotten.
        stream.set_read_timeout(Some(10 * PATIENCE + PATIENCE)).ok()?;
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.key,
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}

/// Keeps a flow that nobody stops at work: sends documents into it, always some under way.
pub(crate) struct Loader {
    flow: String,
    /// Tells from its progress whether a document is through.
    is_through: fn(&Value) -> bool,
    number: usize,
    /// Accepted, and not yet seen to be through.
    open: Vec<String>,
    pub(crate) through: usize,
    /// How many are open, for others to see.
    pub(crate) under_way: std::sync::Arc<AtomicUsize>,
}

impl Loader {
    pub(crate) fn new(flow: &str, is_through: fn(&Value) -> bool) -> Self {
        let under_way = std::sync::Arc::default();
        Self { flow: flow.to_owned(), is_through, number: 0, open: Vec::new(), through: 0, under_way }
    }

    /// Loads until told to leave; what a dead system did not accept is not counted.
    pub(crate) fn load_on(&mut self, door: &Door, leave: &AtomicBool) {
        while !leave.load(Ordering::SeqCst) {
            if self.open.len() < UNDER_WAY_MAX {
                self.send(door);
            } else {
                self.look(door);
            }
        }
    }

    /// Sends one more document.
    pub(crate) fn send(&mut self, door: &Door) {
        self.number += 1;
        let document = format!("urn:steady:{}", self.number);
        let paragraph = |paragraph: u64| {
            let text = format!("Rule {paragraph} of harbour {} is about boat {paragraph}", self.number);
            format!("{text:.<150}")
        };
        let text: Vec<String> = (0..PARAGRAPHS).map(paragraph).collect();
        let metadata = json!({
            "id": document, "kind": "text/plain", "title": document, "comments": "", "metadata": [], "tags": [],
        });
        let content = STANDARD.encode(text.join("\n\n"));
        let add = json!({"operation": "add-document", "document-metadata": metadata, "content": content});
        let processing = json!({
            "id": document, "document-id": document, "flow": self.flow, "collection": "default", "tags": [],
        });
        let process = json!({"operation": "add-processing", "processing-metadata": processing});
        let librarian = |body: &Value| matches!(door.post("/api/v1/librarian", body), Answer::Done(_));
        if librarian(&add) && librarian(&process) {
            self.open.push(document);
            self.under_way.store(self.open.len(), Ordering::SeqCst);
        }
    }

    /// Looks which documents are through.
    fn look(&mut self, door: &Door) {
        let asked = json!({"operation": "get-progress", "flow": self.flow, "document-ids": self.open});
        let Answer::Done(told) = door.post("/api/v1/librarian", &asked) else { return };
        let progress = told["progress"].as_array().cloned().unwrap_or_default();
        let is_through = |document: &String| {
            progress.iter().any(|one| one["document-id"] == **document && (self.is_through)(one))
        };
        let before = self.open.len();
        self.open.retain(|document| !is_through(document));
        self.through += before - self.open.len();
        self.under_way.store(self.open.len(), Ordering::SeqCst);
    }

    /// Waits until everything that was accepted is through; how many documents that were.
    pub(crate) fn finish(&mut self, door: &Door, log: impl Fn() -> String) -> usize {
        let mut open = usize::MAX;
        // Patience is for each step forward.
        while !self.open.is_empty() && self.open.len() < open {
            open = self.open.len();
            let mut looked = || {
                self.look(door);
                self.open.len() < open
            };
            crate::common::until("accepted documents to come through", &mut looked, &log);
        }
        self.through
    }
}
