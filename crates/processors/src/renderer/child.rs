//! The life of a process that renders: jobs on standard input, answers on standard output, each a line that says how long its
//! parts are, and then those. It ends itself when a job takes too much computing or memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use minijinja::Value;
use minijinja::value::Serde;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::JOB_BYTES_MAX;
use crate::prompt::results::{self, ResponseType};
use crate::template;

/// The line by which a process says that it is ready.
pub(super) const HELLO: &str = "sluice-render";
/// Bytes of the line before the parts.
pub(super) const HEAD_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes of all parts of an answer.
pub(super) const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Computing that one job may take; with what starting and looking takes it is less than a second.
const COMPUTING_MAX: Duration = Duration::from_millis(800);
/// Memory that one job may take.
pub(super) const MEMORY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes that are written at once, if there are so many.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;
/// How often the process looks at what the job under way has taken.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Exit code of a process whose job took too much computing.
pub(super) const EXIT_TIME: i32 = 75;
/// Exit code of a process whose job took too much memory.
pub(super) const EXIT_MEMORY: i32 = 76;

/// The system prompt where there is none, or none that can be used.
pub(crate) const SYSTEM_DEFAULT: &str = "Be helpful.";
const SYSTEM: &str = "system";

/// What is to be done.
#[derive(Debug, Clone)]
pub(crate) enum Job<'a> {
    /// Fill terms into a prompt and its system prompt.
    Render {
        /// The template's name in errors.
        name: &'a str,
        system: &'a str,
        template: &'a str,
        /// JSON text; empty where there is none.
        schema: &'a str,
        /// JSON text each, or else the text itself.
        terms: &'a BTreeMap<String, String>,
    },
    /// Take the result that a prompt promises from what a model wrote.
    Result {
        form: ResponseType,
        /// JSON text; empty where there is none.
        schema: &'a str,
        text: &'a str,
    },
}

/// What came of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The prompt, ready for a model.
    Rendered {
        system: String,
        prompt: String,
        /// The schema as JSON text, if a provider can enforce it; else empty.
        strict_schema: String,
        /// Why the system prompt could not be used; empty where it was.
        bad_system: String,
    },
    /// The result: text or JSON text, the other is empty.
    Result { text: String, object: String },
}

/// The line before the parts.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head<T> {
    pub(super) what: T,
    pub(super) parts: Vec<usize>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Order {
    Render { name: String, terms: Vec<String> },
    Result { form: ResponseType },
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    Rendered,
    Result,
    Refused,
}

impl Job<'_> {
    pub(super) fn size_bytes(&self) -> usize {
        self.parts().iter().fold(self.names_bytes(), |sum, part| sum + part.len())
    }

    fn names_bytes(&self) -> usize {
        match self {
            Self::Render { terms, .. } => terms.keys().map(String::len).sum(),
            Self::Result { .. } => 0,
        }
    }

    pub(super) fn head(&self) -> Vec<u8> {
        let what = match self {
            Self::Render { name, terms, .. } => {
                Order::Render { name: (*name).to_owned(), terms: terms.keys().cloned().collect() }
            }
            Self::Result { form, .. } => Order::Result { form: *form },
        };
        line(&Head { what, parts: self.parts().iter().map(|part| part.len()).collect() })
    }

    pub(super) fn parts(&self) -> Vec<&[u8]> {
        match self {
            Self::Render { system, template, schema, terms, .. } => {
                let own = [system, template, schema].into_iter().map(|text| text.as_bytes());
                own.chain(terms.values().map(String::as_bytes)).collect()
            }
            Self::Result { schema, text, .. } => vec![schema.as_bytes(), text.as_bytes()],
        }
    }
}

/// The answer that a verdict and its parts are; `None` for nonsense.
pub(super) fn answer(verdict: &Verdict, parts: Vec<String>) -> Option<Result<Answer, String>> {
    let mut parts = parts.into_iter();
    let mut next = || parts.next();
    Some(match verdict {
        Verdict::Rendered => Ok(Answer::Rendered {
            system: next()?,
            prompt: next()?,
            strict_schema: next()?,
            bad_system: next()?,
        }),
        Verdict::Result => Ok(Answer::Result { text: next()?, object: next()? }),
        Verdict::Refused => Err(next()?),
    })
}

fn line(head: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(head).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Serves jobs until the input ends: the whole life of a process that is not confined.
///
/// # Errors
/// When a job cannot be understood or the output is closed.
pub fn serve(input: impl Read, output: impl Write) -> io::Result<()> {
    Meter::open().serve(input, output)
}

fn read(input: &mut impl io::BufRead) -> io::Result<Option<(Order, Vec<String>)>> {
    let Some(head): Option<Head<Order>> = read_head(input)? else { return Ok(None) };
    let total = head.parts.iter().fold(0_usize, |sum, bytes| sum.saturating_add(*bytes));
    if total > JOB_BYTES_MAX {
        return Err(io::Error::other("a job is larger than jobs may be"));
    }
    let mut parts = Vec::with_capacity(head.parts.len());
    for bytes in head.parts {
        let mut part = vec![0; bytes];
        input.read_exact(&mut part)?;
        parts.push(String::from_utf8(part).map_err(io::Error::other)?);
    }
    Ok(Some((head.what, parts)))
}

fn read_head<T: DeserializeOwned>(input: &mut impl io::BufRead) -> io::Result<Option<Head<T>>> {
    let mut line = Vec::new();
    // Names of terms are escaped, at worst every character of them.
    input.take(HEAD_BYTES_MAX + 6 * JOB_BYTES_MAX as u64).read_until(b'\n', &mut line)?;
    if line.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&line)?)) }
}

fn work(order: &Order, parts: &[String]) -> Result<Answer, String> {
    let short = || "the job was cut short".to_owned();
    match (order, parts) {
        (Order::Render { name, terms }, [system, template, schema, values @ ..]) => {
            if terms.len() != values.len() {
                return Err(short());
            }
            let terms = terms.iter().map(String::as_str).zip(values.iter().map(String::as_str));
            render(name, system, template, schema, terms)
        }
        (Order::Result { form }, [schema, text]) => {
            let schema = schema_of(schema)?;
            let (text, object) = results::result(*form, schema.as_ref(), text.clone())?;
            Ok(Answer::Result { text, object })
        }
        (Order::Render { .. } | Order::Result { .. }, _) => Err(short()),
    }
}

fn schema_of(text: &str) -> Result<Option<serde_json::Value>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(text).map(Some).map_err(|error| format!("the schema is not JSON: {error}"))
}

/// Fills terms into a prompt; each is JSON text, or else the text itself, as some clients send it.
pub(crate) fn render<'a>(
    name: &str,
    system: &str,
    template: &str,
    schema: &str,
    terms: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Answer, String> {
    let mut environment = template::environment();
    let key = format!("template.{name}");
    template::compile(&mut environment, &key, template)
        .map_err(|reason| format!("prompt '{name}' cannot be used: {reason}"))?;
    let bad_system = template::compile(&mut environment, SYSTEM, system).err().unwrap_or_default();
    if !bad_system.is_empty() {
        // The default is plain text and compiles.
        template::compile(&mut environment, SYSTEM, SYSTEM_DEFAULT)?;
    }
    let mut values = BTreeMap::new();
    for (name, text) in terms {
        let value = serde_json::from_str(text).unwrap_or_else(|_| serde_json::Value::String(text.to_owned()));
        values.insert(name.to_owned(), Value::from(Serde(&value)));
    }
    let strict = schema_of(schema)?.and_then(|schema| results::enforceable(&schema));
    Ok(Answer::Rendered {
        system: template::render(&environment, SYSTEM, &values)?,
        prompt: template::render(&environment, &key, &values)?,
        strict_schema: strict.map(|schema| serde_json::Value::Object(schema).to_string()).unwrap_or_default(),
        bad_system,
    })
}

/// Ends the process when the job under way takes too much. Between jobs it waits for the next one.
fn watch(meter: &Meter, count: &AtomicU64) {
    let mut began: Option<(u64, Taken)> = None;
    loop {
        if count.load(Ordering::SeqCst).is_multiple_of(2) {
            std::thread::park();
        }
        pause();
        let job = count.load(Ordering::SeqCst);
        if job.is_multiple_of(2) {
            continue;
        }
        let now = meter.taken();
        let Some((_, before)) = began.as_ref().filter(|(known, _)| *known == job) else {
            began = Some((job, now));
            continue;
        };
        if now.computing.saturating_sub(before.computing) > COMPUTING_MAX {
            std::process::exit(EXIT_TIME);
        }
        if now.memory_bytes.saturating_sub(before.memory_bytes) > MEMORY_BYTES_MAX {
            std::process::exit(EXIT_MEMORY);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "nobody tells what a computing thread has taken")]
fn pause() {
    std::thread::sleep(LOOK_INTERVAL);
}

/// What a process has taken so far.
struct Taken {
    computing: Duration,
    memory_bytes: u64,
}

/// Measures what this process takes. It has open what it reads, since a confined process opens nothing.
pub struct Meter {
    start: Instant,
    /// Times and pages, on Linux.
    files: Option<(File, File)>,
}

impl Meter {
    /// To be opened before the process is confined.
    #[must_use]
    pub fn open() -> Self {
        let files =
            File::open("/proc/self/stat").and_then(|stat| Ok((stat, File::open("/proc/self/statm")?)));
        Self { start: Instant::now(), files: files.ok() }
    }

    /// Serves jobs until the input ends: the whole life of the process.
    ///
    /// # Errors
    /// When a job cannot be understood or the output is closed.
    pub fn serve(self, input: impl Read, output: impl Write) -> io::Result<()> {
        let mut input = BufReader::new(input);
        let mut output = BufWriter::with_capacity(BUFFER_BYTES, output);
        // Even between jobs, odd while one is under way, and never the same for two.
        let count = Arc::new(AtomicU64::new(0));
        let seen = count.clone();
        let watching =
            std::thread::Builder::new().name("limits".to_owned()).spawn(move || watch(&self, &seen))?;
        // What was printed before, by whatever started this, has a line of its own.
        writeln!(output, "\n{HELLO}")?;
        output.flush()?;
        while let Some((order, parts)) = read(&mut input)? {
            count.fetch_add(1, Ordering::SeqCst);
            watching.thread().unpark();
            let done = work(&order, &parts);
            count.fetch_add(1, Ordering::SeqCst);
            let (what, parts) = match done {
                Ok(Answer::Rendered { system, prompt, strict_schema, bad_system }) => {
                    (Verdict::Rendered, vec![system, prompt, strict_schema, bad_system])
                }
                Ok(Answer::Result { text, object }) => (Verdict::Result, vec![text, object]),
                Err(reason) => (Verdict::Refused, vec![reason]),
            };
            let bytes: usize = parts.iter().map(String::len).sum();
            let (what, parts) = if bytes > ANSWER_BYTES_MAX {
                let told = format!(
                    "what comes of the prompt has {bytes} bytes, more than the {ANSWER_BYTES_MAX} that are taken"
                );
                (Verdict::Refused, vec![told])
            } else {
                (what, parts)
            };
            output.write_all(&line(&Head { what, parts: parts.iter().map(String::len).collect() }))?;
            for part in parts {
                output.write_all(part.as_bytes())?;
            }
            output.flush()?;
        }
        Ok(())
    }

    /// As the system tells; where it does not, the clock stands for computing.
    fn taken(&self) -> Taken {
        Taken {
            computing: self.computing().unwrap_or_else(|| self.start.elapsed()),
            memory_bytes: self.memory_bytes().unwrap_or_default(),
        }
    }

    /// User and system time, which Linux counts in hundredths of a second.
    fn computing(&self) -> Option<Duration> {
        let stat = read_again(&self.files.as_ref()?.0)?;
        // The program's name, in brackets, may hold anything.
        let mut numbers = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let (user, system): (u64, u64) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        Some(Duration::from_millis((user + system) * 10))
    }

    /// Memory that is in use, of pages of 4 KiB at least.
    fn memory_bytes(&self) -> Option<u64> {
        let statm = read_again(&self.files.as_ref()?.1)?;
        let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
        Some(pages * 4096)
    }
}

/// What a file that is short says now.
#[cfg(unix)]
fn read_again(file: &File) -> Option<String> {
    let mut content = [0; 1024];
    let bytes = std::os::unix::fs::FileExt::read_at(file, &mut content, 0).ok()?;
    String::from_utf8(content.get(..bytes)?.to_vec()).ok()
}

#[cfg(not(unix))]
fn read_again(_: &File) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(jobs: &[Job<'_>]) -> Vec<Result<Answer, String>> {
        let mut input = Vec::new();
        for job in jobs {
            input.extend(job.head());
            job.parts().iter().for_each(|part| input.extend_from_slice(part));
        }
        let mut output = Vec::new();
        serve(&input[..], &mut output).unwrap();
        let mut output = output.strip_prefix(format!("\n{HELLO}\n").as_bytes()).unwrap();
        let mut answers = Vec::new();
        while let Some(head) = read_head::<Verdict>(&mut output).unwrap() {
            let mut parts = Vec::new();
            for bytes in head.parts {
                let (part, rest) = output.split_at(bytes);
                parts.push(String::from_utf8(part.to_vec()).unwrap());
                output = rest;
            }
            answers.push(answer(&head.what, parts).unwrap());
        }
        answers
    }

    #[test]
    fn jobs_are_answered_one_after_the_other() {
        let terms =
            BTreeMap::from([("who".to_owned(), "\"terse\"".to_owned()), ("n".to_owned(), "a\nb".to_owned())]);
        let render =
            Job::Render { name: "t", system: "Be {{who}}.", template: "{{n}}!", schema: "", terms: &terms };
        let bad = Job::Render { name: "t", system: "", template: "{% if %}", schema: "", terms: &terms };
        let result =
            Job::Result { form: ResponseType::Json, schema: r#"{"type": "object"}"#, text: "{\"a\": 1}" };
        let wrong = Job::Result { form: ResponseType::Json, schema: r#"{"type": "object"}"#, text: "[]" };
        let answers = served(&[render, bad, result, wrong]);
        let rendered = Answer::Rendered {
            system: "Be terse.".to_owned(),
            prompt: "a\nb!".to_owned(),
            strict_schema: String::new(),
            bad_system: String::new(),
        };
        assert_eq!(answers[0], Ok(rendered));
        assert!(answers[1].as_ref().unwrap_err().contains("cannot be used"), "{answers:?}");
        assert_eq!(answers[2], Ok(Answer::Result { text: String::new(), object: "{\"a\":1}".to_owned() }));
        assert!(answers[3].as_ref().unwrap_err().contains("is not of type"), "{answers:?}");
    }

    #[test]
    fn a_job_that_is_cut_short_or_no_job_ends_the_process() {
        assert!(serve(&b"hello\n"[..], Vec::new()).is_err());
        let job = Job::Result { form: ResponseType::Json, schema: "", text: "{}" };
        assert!(serve(&job.head()[..], Vec::new()).is_err());
    }

    #[test]
    fn what_the_process_has_taken_is_seen() {
        if cfg!(target_os = "linux") {
            let meter = Meter::open();
            let before = meter.taken();
            assert!(meter.computing().is_some());
            let full = vec![1_u8; 16 << 20];
            let more = meter.taken().memory_bytes - before.memory_bytes;
            assert!(before.memory_bytes > 1 << 20 && more > 8 << 20, "{more} for {} bytes", full.len());
        }
    }
}
