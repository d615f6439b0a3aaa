//! A stub of a provider of models: it answers as Ollama, Anthropic and OpenAI do, remembers what it was asked, can break down, and can
//! leave a question open until the asker hangs up.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// It serves until the test's process ends.
pub(crate) struct Provider {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    asked: Mutex<Vec<String>>,
    is_broken: AtomicBool,
    /// Questions with this word are refused.
    refused: Mutex<Option<String>>,
    is_slow: AtomicBool,
    open: AtomicUsize,
    hung_up: AtomicUsize,
    /// Questions for vectors that are answered still; the others wait.
    vectors_left: Mutex<Option<usize>>,
    given: Condvar,
}

impl Provider {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let served = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let served = served.clone();
                std::thread::spawn(move || served.serve(stream));
            }
        });
        Self { url, shared }
    }

    /// The last question on a path: head and body.
    #[allow(dead_code, reason = "not every test file uses every part")]
    pub(crate) fn asked(&self, path: &str) -> String {
        let asked = self.shared.asked.lock().unwrap();
        let found = asked.iter().rev().find(|one| one.lines().next().is_some_and(|line| line.contains(path)));
        found.unwrap_or_else(|| panic!("{path} was not asked: {asked:?}")).clone()
    }

    /// From now on it refuses everything.
    #[allow(dead_code, reason = "not every test file uses every part")]
    pub(crate) fn break_down(&self) {
        self.shared.is_broken.store(true, Ordering::SeqCst);
    }

    /// From now on it refuses questions with this word, or none.
    #[allow(dead_code, reason = "not every test file uses every part")]
    pub(crate) fn refuse(&self, word: Option<&str>) {
        *self.shared.refused.lock().unwrap() = word.map(str::to_owned);
    }

    /// From now on questions to the model stay open.
    #[allow(dead_code, reason = "not every test file uses every part")]
    pub(crate) fn become_slow(&self) {
        self.shared.is_slow.store(true, Ordering::SeqCst);
    }

    /// So many questions for vectors are answered from now on; the others wait until more are allowed, `None` for all.
    #[allow(dead_code, reason = "not every test file uses every part")]
    pub(crate) fn allow_vectors(&self, count: Option<usize>) {
        *self.shared.vectors_left.lock().unwrap() = count;
        self.shared.given.notify_all();
    }

    /// The bodies of all questions for vectors.
    #[allow(dead_code, reason = "not every test file uses every part")]
    pub(crate) fn asked_for_vectors(&self) -> Vec<String> {
        let asked = self.shared.asked.lock().unwrap();
        let of_vectors =
            asked.iter().filter(|one| one.lines().next().is_some_and(|line| line.contains("/embeddings")));
        of_vectors.filter_map(|one| Some(one.split_once("\r\n\r\n")?.1.to_owned())).collect()
    }

    /// Questions that stay open, and those whose asker hung up.
    #[allow(dead_code, reason = "not every test file uses every part")]
    pub(crate) fn open_and_hung_up(&self) -> (usize, usize) {
        (self.shared.open.load(Ordering::SeqCst), self.shared.hung_up.load(Ordering::SeqCst))
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut text = String::new();
        loop {
            let question = read(&mut stream, &mut text)?;
            let path = question.split(' ').nth(1).unwrap_or_default().to_owned();
            self.asked.lock().unwrap().push(question.clone());
            if self.is_slow.load(Ordering::SeqCst) && path.contains("chat") {
                self.open.fetch_add(1, Ordering::SeqCst);
                // An asker that hangs up sends the end of its side, or an error.
                let _ = stream.read(&mut [0; 1]);
                self.hung_up.fetch_add(1, Ordering::SeqCst);
                return None;
            }
            if path.contains("/embeddings") {
                let left = self.vectors_left.lock().unwrap();
                let mut left = self.given.wait_while(left, |left| *left == Some(0)).unwrap();
                *left = left.map(|left| left - 1);
            }
            let is_refused =
                self.refused.lock().unwrap().as_ref().is_some_and(|word| question.contains(word));
            let (status, body) = if is_refused {
                ("400 Bad Request", r#"{"error": {"message": "that word is not taken"}}"#)
            } else if self.is_broken.load(Ordering::SeqCst) {
                ("401 Unauthorized", r#"{"error": "no more of that"}"#)
            } else {
                ("200 OK", answer(&path, &question))
            };
            let kind = if body.starts_with("data: ") { "text/event-stream" } else { "application/json" };
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).ok()?;
        }
    }
}

fn answer(path: &str, question: &str) -> &'static str {
    match path {
        "/api/chat" if question.contains("\"stream\":true") => concat!(
            r#"{"model":"gemma3","message":{"role":"assistant","content":"hello from the stub"},"done":false}"#,
            "\n",
            r#"{"model":"gemma3","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}"#,
            "\n"
        ),
        "/api/chat" => {
            r#"{"model":"gemma3","message":{"role":"assistant","content":"hello from the stub"},"done":true,"done_reason":"stop"}"#
        }
        _ if path.ends_with("/messages") && question.contains("\"stream\":true") => concat!(
            r#"data: {"type":"message_start","message":{"model":"claude","usage":{"input_tokens":5,"output_tokens":1}}}"#,
            "\n\n",
            r#"data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hello from "}}"#,
            "\n\n",
            r#"data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"the stub"}}"#,
            "\n\n",
            r#"data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":4}}"#,
            "\n\n",
            r#"data: {"type":"message_stop"}"#,
            "\n\n"
        ),
        _ if path.ends_with("/messages") => {
            r#"{"model":"claude","content":[{"type":"text","text":"hello from the stub"}],"stop_reason":"end_turn","usage":{"input_tokens":5,"output_tokens":4}}"#
        }
        _ if path.contains("/models") => r#"{"data":[{"id":"claude"}]}"#,
        "/api/tags" => r#"{"models":[{"name":"gemma3:latest","model":"gemma3:latest"}]}"#,
        _ => r#"{"data":[{"index":0,"embedding":[0.25,0.5]}],"model":"embedder"}"#,
    }
}

/// One request, with what was read too far left in `text`.
fn read(stream: &mut TcpStream, text: &mut String) -> Option<String> {
    let mut bytes = [0; 4096];
    loop {
        if let Some(head) = text.find("\r\n\r\n") {
            let lower = text[..head].to_lowercase();
            let length =
                lower.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            let end = head + 4 + length.unwrap_or(0);
            if text.len() >= end {
                let rest = text.split_off(end);
                return Some(std::mem::replace(text, rest));
            }
        }
        let count = stream.read(&mut bytes).ok().filter(|count| *count > 0)?;
        text.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
}
