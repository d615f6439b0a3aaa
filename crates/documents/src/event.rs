//! What reading a document tells, in order: an outline, then each part as text or as a loss, then the end. The same lines
//! go from the process that reads a document to the one that wants it.

use std::io;

use serde::{Deserialize, Serialize};

use crate::{Kind, Limits, Problem, ProblemKind};

/// What the parts of a document are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Pages or slides, with the numbers that people see.
    Page,
    /// Anything else: a whole text, a sheet of a workbook.
    Section,
}

impl Unit {
    /// `page` or `section`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Section => "section",
        }
    }
}

/// One thing that reading a document tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// Comes first, before anything else is read.
    Begin {
        /// What the document is.
        kind: Kind,
        /// What its parts are.
        unit: Unit,
        /// How many of them will be told about one by one, numbered from 1.
        count: usize,
    },
    /// The text of a part; never blank.
    Part {
        /// Its number.
        number: usize,
        /// Its text.
        text: String,
    },
    /// Parts that give no text; the others go on.
    Lost {
        /// The first of them.
        first: usize,
        /// The last of them.
        last: usize,
        /// Why.
        problem: Problem,
    },
    /// Comes last: everything was read.
    End,
    /// Comes last: reading stopped here, and what was not told about is lost.
    Failed(Problem),
}

/// Why reading stops early.
pub(crate) enum Stop {
    Problem(Problem),
    /// Nobody takes what is told.
    Gone(io::Error),
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Gone(error)
    }
}

/// Where readers put what they find; keeps the bounds for all of them.
pub(crate) struct Out<'a> {
    sink: &'a mut dyn FnMut(Event) -> io::Result<()>,
    kind: Kind,
    limits: &'a Limits,
    unit: Unit,
    text_bytes: usize,
    /// The first problem of a part.
    problem: Option<Problem>,
}

impl<'a> Out<'a> {
    pub(crate) fn new(
        kind: Kind,
        limits: &'a Limits,
        sink: &'a mut dyn FnMut(Event) -> io::Result<()>,
    ) -> Self {
        Self { sink, kind, limits, unit: Unit::Section, text_bytes: 0, problem: None }
    }

    /// Tells the outline; returns how many parts of `found` are to be read.
    pub(crate) fn begin(&mut self, unit: Unit, found: usize) -> Result<usize, Stop> {
        self.unit = unit;
        let count = found.min(self.limits.parts_max);
        (self.sink)(Event::Begin { kind: self.kind, unit, count })?;
        if found > count {
            let (name, first) = (unit.name(), count + 1);
            let problem = Problem::too_large(format!(
                "{name}s {first} to {found} were left out: at most {count} {name}s of a document are read; split it"
            ));
            (self.sink)(Event::Lost { first, last: found, problem })?;
        }
        Ok(count)
    }

    /// Tells a part.
    pub(crate) fn part(&mut self, number: usize, text: Result<String, Problem>) -> Result<(), Stop> {
        let unit = self.unit.name();
        let text = text.and_then(|text| {
            let text = tidied(&text);
            if text.trim().is_empty() {
                return Err(Problem::empty(format!(
                    "{unit} {number} holds no text: it is blank or a picture"
                )));
            }
            Ok(text)
        });
        match text {
            Ok(text) => {
                self.text_bytes += text.len();
                if self.text_bytes > self.limits.text_bytes_max {
                    let most = self.limits.text_bytes_max / (1024 * 1024);
                    return Err(Problem::too_large(format!(
                        "the document holds more than {most} MiB of text, and {unit} {number} and what follows were left out; split it"
                    ))
                    .into());
                }
                Ok((self.sink)(Event::Part { number, text })?)
            }
            Err(problem) => {
                self.problem.get_or_insert_with(|| problem.clone());
                Ok((self.sink)(Event::Lost { first: number, last: number, problem })?)
            }
        }
    }

    /// Tells the end.
    pub(crate) fn finish(self, done: Result<(), Stop>) -> io::Result<()> {
        match done {
            Ok(()) if self.text_bytes > 0 => (self.sink)(Event::End),
            Ok(()) => {
                let problem = match self.problem {
                    Some(problem) if problem.kind != ProblemKind::Empty => problem,
                    _ => nothing_in(self.kind),
                };
                (self.sink)(Event::Failed(problem))
            }
            Err(Stop::Problem(problem)) => (self.sink)(Event::Failed(problem)),
            Err(Stop::Gone(error)) => Err(error),
        }
    }
}

fn nothing_in(kind: Kind) -> Problem {
    Problem::empty(if kind == Kind::Pdf {
        "the document holds no text: it is blank, a scan or cut short; if a reader shows its pages, run text recognition (OCR) over it and add the result"
    } else {
        "the document holds no text"
    })
}

/// Text without what only confuses: control characters, carriage returns, a mark at the start. Nothing else moves, so that
/// places in a plain text stay what they were.
fn tidied(text: &str) -> String {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut tidy = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' if chars.peek() == Some(&'\n') => {}
            '\r' | '\u{0c}' => tidy.push('\n'),
            '\n' | '\t' => tidy.push(c),
            c if c.is_control() => {}
            c => tidy.push(c),
        }
    }
    tidy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_survives_the_way_between_processes() {
        for event in [
            Event::Begin { kind: Kind::Pdf, unit: Unit::Page, count: 3 },
            Event::Part { number: 1, text: "a\nb".to_owned() },
            Event::Lost { first: 2, last: 3, problem: Problem::empty("nothing") },
            Event::End,
            Event::Failed(Problem::damaged("it", "x")),
        ] {
            let line = serde_json::to_string(&event).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
        }
    }

    #[test]
    fn text_is_tidied_and_not_rearranged() {
        assert_eq!(tidied("\u{feff}a\r\nb\rc\u{0c}d\0e\u{1b}f  \n\n\n g"), "a\nb\nc\ndef  \n\n\n g");
    }
}
