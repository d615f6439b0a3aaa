//! `sluice flow watch`: a flow's queues and documents, again and again.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::doc::{self, Idle, Pace};
use super::{flow, up};
use crate::api::Api;
use crate::cli::Output;
use crate::exit::{Code, Told};
use crate::output::{say, table, text};

/// Pause between looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often the flow's documents are listed again.
const LIST_INTERVAL: Duration = Duration::from_secs(5);
/// Looks in a row that must find nothing to do: counts of messages in work may be seconds old. More of them while a
/// document is not reported complete.
const IDLE_LOOKS: u32 = 6;
const IDLE_LOOKS_OPEN: u32 = 40;

/// Watches until interrupted, or until nothing is left to do.
pub(super) async fn run(api: &Api, output: Output, id: &str, until_idle: bool) -> anyhow::Result<Code> {
    let interrupted = up::interrupted()?;
    tokio::select! {
        ended = watch(api, output, id, until_idle) => ended,
        () = interrupted => Ok(Code::Ok),
    }
}

async fn watch(api: &Api, output: Output, id: &str, until_idle: bool) -> anyhow::Result<Code> {
    let mut screen = Screen { output, is_terminal: std::io::stdout().is_terminal(), lines: 0 };
    let mut documents = Documents::default();
    let mut last = Value::Null;
    let (mut moved, mut idle_looks) = (Instant::now(), 0);
    loop {
        let status = flow::status(api, id).await?;
        documents.look(api, id, idle_looks > 0).await?;
        let now = picture(id, &status, &documents.states.values().collect::<Vec<_>>());
        if facts(&now) != facts(&last) {
            screen.show(&now)?;
            moved = Instant::now();
            last = now;
        }
        if until_idle {
            let quiet = Quiet::of(&status);
            idle_looks = if quiet == Quiet::Busy { 0 } else { idle_looks + 1 };
            match quiet.verdict(&last["documents"], idle_looks, moved.elapsed()) {
                None => {}
                Some(Code::Ok) => return Ok(Code::Ok),
                Some(code) => return Err(unseen(id, code).into()),
            }
            if moved.elapsed() > api.timeout() {
                let told = format!("nothing has moved in flow '{id}' for {} s", api.timeout().as_secs());
                return Err(Told::new(Code::TimedOut, told).next("sluice doctor, and sluice dead ls").into());
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// What one look at the queues tells of work that is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quiet {
    /// Something waits or is in work, or the queues were not seen this time.
    Busy,
    /// Nothing waits and nothing is in work.
    Certain,
    /// Nothing waits; the broker does not show what is in work, or shows no queue of the flow at all.
    Unseen,
}

impl Quiet {
    fn of(status: &Value) -> Self {
        let is_durable = |queue: &Value| text(queue, "topic").starts_with("flow:");
        match (doc::idle(status), status["queues"].as_array()) {
            (Some(Idle::Counted), _) => Self::Certain,
            (Some(Idle::Unsettled), _) => Self::Unseen,
            (None, Some(queues)) if !queues.iter().any(is_durable) => Self::Unseen,
            (None, _) => Self::Busy,
        }
    }

    /// How the wait ends after so many looks like this one in a row, if it does. What cannot be seen at the broker may be
    /// told by the documents, where there are any and all are through.
    fn verdict(self, documents: &Value, looks: u32, still_for: Duration) -> Option<Code> {
        let is_open = documents["complete"] != documents["known"];
        let is_through = !is_open && documents["known"].as_u64() > Some(0);
        match self {
            Self::Busy => None,
            Self::Certain => {
                (looks >= if is_open { IDLE_LOOKS_OPEN } else { IDLE_LOOKS }).then_some(Code::Ok)
            }
            Self::Unseen if is_through => (looks >= IDLE_LOOKS).then_some(Code::Ok),
            Self::Unseen => {
                let is_still = still_for >= LOOK_INTERVAL * IDLE_LOOKS_OPEN;
                (looks >= IDLE_LOOKS_OPEN && is_still).then_some(Code::Unseen)
            }
        }
    }
}

fn unseen(id: &str, code: Code) -> Told {
    let seconds = (LOOK_INTERVAL * IDLE_LOOKS_OPEN).as_secs();
    let told = format!(
        "nothing waits in flow '{id}' and nothing has moved for {seconds} s, but its broker does not show what is in work"
    );
    Told::new(code, told).next("the address of the broker's management API (--broker-management) where the flow service runs; sluice doc ls")
}

/// The documents that were put through the flow, and how far each is.
#[derive(Default)]
struct Documents {
    ids: Vec<String>,
    listed: Option<Instant>,
    states: BTreeMap<String, Value>,
}

impl Documents {
    async fn look(&mut self, api: &Api, flow: &str, afresh: bool) -> anyhow::Result<()> {
        if afresh || self.listed.is_none_or(|at| at.elapsed() > LIST_INTERVAL) {
            let answer = api.list("librarian", json!({"operation": "list-processing"})).await?;
            let records = answer["processing-metadatas"].as_array().into_iter().flatten();
            self.ids =
                records.filter(|one| one["flow"] == *flow).map(|one| text(one, "document-id")).collect();
            self.ids.sort_unstable();
            self.ids.dedup();
            self.listed = Some(Instant::now());
        }
        doc::ask_for_open(api, &self.ids, flow, &mut self.states).await
    }
}

/// Everything that is shown of one look.
fn picture(id: &str, status: &Value, progress: &[&Value]) -> Value {
    let progress = progress.iter().copied();
    let queues: Vec<&Value> = status["queues"].as_array().into_iter().flatten().collect();
    let waiting = |name: &str| queues.iter().filter_map(|queue| queue[name].as_u64()).sum::<u64>();
    let sum = |name: &str| progress.clone().filter_map(|one| one[name].as_u64()).sum::<u64>();
    let count = |wanted: fn(&Value) -> bool| progress.clone().filter(|one| wanted(one)).count();
    let pace = Pace::of(progress.clone());
    json!({
        "flow": id,
        "phase": status["phase"],
        "run": status["run"],
        "backlog": waiting("ready"),
        "in-work": waiting("unsettled"),
        "documents": {
            "known": count(|_| true),
            "complete": count(|one| one["complete"] == true),
            "with-failures": count(|one| one["failures"].as_array().is_some_and(|all| !all.is_empty())),
        },
        "chunks": {
            "announced": sum("announced"), "embedded": sum("embedded"), "indexed": sum("indexed"),
            "stored": sum("stored"), "failed": sum("failed"),
        },
        "rate-per-minute": pace.chunks_per_minute,
        "remaining-seconds": pace.remaining_seconds,
        "queues": queues,
    })
}

/// What is worth a new line: a rate changes although nothing happens.
fn facts(picture: &Value) -> Value {
    let mut facts = picture.clone();
    if let Some(members) = facts.as_object_mut() {
        members.remove("rate-per-minute");
        members.remove("remaining-seconds");
    }
    facts
}

/// Where pictures go, one over the other on a terminal.
struct Screen {
    output: Output,
    is_terminal: bool,
    lines: usize,
}

impl Screen {
    fn show(&mut self, picture: &Value) -> anyhow::Result<()> {
        match (self.output, self.is_terminal) {
            (Output::Json, _) => say(&picture.to_string()),
            (Output::Yaml, _) => say(&format!("---\n{}", serde_yaml_ng::to_string(picture)?.trim_end())),
            (Output::Table, false) => say(&line(picture)),
            (Output::Table, true) => {
                let text = lines(picture);
                let up = match self.lines {
                    0 => String::new(),
                    lines => format!("\x1b[{lines}A\x1b[J"),
                };
                self.lines = text.lines().count();
                say(&format!("{up}{text}"));
            }
        }
        Ok(())
    }
}

fn pace(picture: &Value) -> String {
    let chunks_per_minute = picture["rate-per-minute"].as_f64().unwrap_or_default();
    Pace { chunks_per_minute, remaining_seconds: picture["remaining-seconds"].as_u64() }.to_string()
}

/// The picture as one line.
fn line(picture: &Value) -> String {
    let (documents, chunks) = (&picture["documents"], &picture["chunks"]);
    let told = format!(
        "{} {}: {} waiting, {} in work; documents {}/{}; chunks {}/{} stored, {} failed; {}",
        text(picture, "flow"),
        text(picture, "phase"),
        picture["backlog"],
        picture["in-work"],
        documents["complete"],
        documents["known"],
        chunks["stored"],
        chunks["announced"],
        chunks["failed"],
        pace(picture)
    );
    told.trim_end_matches([' ', ';']).to_owned()
}

/// The picture as people look at it.
fn lines(picture: &Value) -> String {
    let (documents, chunks) = (&picture["documents"], &picture["chunks"]);
    let mut lines = vec![
        format!(
            "flow       {} ({}, run {})",
            text(picture, "flow"),
            text(picture, "phase"),
            text(picture, "run")
        ),
        format!("backlog    {} waiting, {} in work", picture["backlog"], picture["in-work"]),
        format!(
            "documents  {} of {} complete, {} with failures",
            documents["complete"], documents["known"], documents["with-failures"]
        ),
        format!(
            "chunks     {} announced, {} embedded, {} indexed, {} stored, {} failed",
            chunks["announced"], chunks["embedded"], chunks["indexed"], chunks["stored"], chunks["failed"]
        ),
        format!("pace       {}", pace(picture)),
    ];
    let row = |queue: &Value| {
        ["topic", "subscription", "ready", "unsettled", "consumers"].map(|name| text(queue, name)).to_vec()
    };
    let durable = picture["queues"].as_array().into_iter().flatten();
    let durable = durable.filter(|queue| text(queue, "topic").starts_with("flow:"));
    let header = ["topic", "subscription", "ready", "in work", "readers"];
    lines.push(table(&header, durable.map(row).collect(), "No queues."));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(ready: u64) -> Value {
        json!({"phase": "Running", "run": "f1", "queues": [
            {"topic": "flow:tg:in:w:f1", "subscription": "s", "ready": ready, "unsettled": 1, "consumers": 2},
        ]})
    }

    #[test]
    fn a_wait_ends_well_only_where_it_is_known_that_nothing_is_left() {
        let queue = |topic: &str, ready: u64, unsettled: Value| json!({"queues": [{"topic": topic, "ready": ready, "unsettled": unsettled}]});
        let flow = "flow:tg:in:w:f1";
        let certain = Quiet::of(&queue(flow, 0, json!(0)));
        let unseen = Quiet::of(&queue(flow, 0, Value::Null));
        assert_eq!((certain, unseen), (Quiet::Certain, Quiet::Unseen));
        assert_eq!(Quiet::of(&json!({"queues": []})), Quiet::Unseen, "bare topics");
        assert_eq!(Quiet::of(&queue("request:tg:a:w:f1", 0, json!(0))), Quiet::Unseen, "bare topics");
        for busy in [queue(flow, 1, Value::Null), queue(flow, 0, json!(1)), json!({"phase": "Running"})] {
            assert_eq!(Quiet::of(&busy), Quiet::Busy, "{busy}");
        }
        let documents = |complete: u64, known: u64| json!({"complete": complete, "known": known});
        let (still, moving) = (LOOK_INTERVAL * IDLE_LOOKS_OPEN, LOOK_INTERVAL);
        let check = |quiet: Quiet, documents: &Value, still_for, after: u32, code: Code| {
            assert_eq!(quiet.verdict(documents, after - 1, still_for), None, "{quiet:?} {documents}");
            assert_eq!(quiet.verdict(documents, after, still_for), Some(code), "{quiet:?} {documents}");
        };
        check(certain, &documents(2, 2), moving, IDLE_LOOKS, Code::Ok);
        check(certain, &documents(0, 0), moving, IDLE_LOOKS, Code::Ok);
        check(certain, &documents(1, 2), moving, IDLE_LOOKS_OPEN, Code::Ok);
        check(unseen, &documents(2, 2), moving, IDLE_LOOKS, Code::Ok);
        check(unseen, &documents(1, 2), still, IDLE_LOOKS_OPEN, Code::Unseen);
        check(unseen, &documents(0, 0), still, IDLE_LOOKS_OPEN, Code::Unseen);
        assert_eq!(unseen.verdict(&documents(1, 2), IDLE_LOOKS_OPEN, moving), None, "it moves still");
        assert_eq!(Quiet::Busy.verdict(&documents(2, 2), IDLE_LOOKS_OPEN, still), None);
    }

    #[test]
    fn a_picture_adds_up_and_is_new_only_when_a_fact_is() {
        let one = |stored: u64, rate: f64| json!({"announced": 10, "stored": stored, "failed": 1, "complete": false, "rate-per-minute": rate, "failures": [{}]});
        let at = |ready, all: &[Value]| picture("f1", &status(ready), &all.iter().collect::<Vec<_>>());
        let now = at(4, &[one(3, 60.0), one(2, 30.0)]);
        let said = line(&now);
        assert_eq!(
            said,
            "f1 Running: 4 waiting, 1 in work; documents 0/2; chunks 5/20 stored, 2 failed; 90 chunks/min"
        );
        assert!(
            lines(&now).contains("0 of 2 complete, 2 with failures") && lines(&now).contains("flow:tg:in")
        );
        assert_eq!(facts(&now), facts(&at(4, &[one(3, 59.0), one(2, 29.0)])));
        assert_ne!(facts(&now), facts(&at(3, &[one(3, 60.0), one(2, 30.0)])));
        assert!(line(&at(0, &[])).ends_with("0 failed"));
    }
}
