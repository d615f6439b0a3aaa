//! Rows of values become lines that each say what they are about, since a reader may get to see one of them alone.
//!
//! A table is taken value by value: beside the content and the text that comes of it, only one value and one row of names are
//! in memory, however long a row is.

use csv_core::{ReadFieldResult, Reader, ReaderBuilder};

use crate::{Limits, Problem, encoding};

/// Lines looked at to find out what separates values.
const SNIFF_LINES_MAX: usize = 20;
/// A table of so many bytes comes in one piece, in bytes.
const SNIFF_BYTES: usize = 32 * 1024;
/// Values of a first row that names the columns; as many as a workbook has.
const NAMES_MAX: usize = 16_384;
/// Longest name of a column.
const NAME_CHARS_MAX: usize = 60;
/// Bytes of a value that are copied at once.
const STEP_BYTES: usize = 4 * 1024;

/// The lines of a content of separated values.
pub(crate) fn from_csv(declared: &str, content: &[u8], limits: &Limits) -> Result<String, Problem> {
    let mut values: Option<Values<'_>> = None;
    encoding::pieces(declared, content, |piece| {
        values.get_or_insert_with(|| Values::new(delimiter(piece), limits)).take(piece.as_bytes())
    })?;
    values.map_or(Ok(String::new()), Values::finish)
}

/// The values of a table, as its bytes come.
struct Values<'a> {
    reader: Reader,
    value: Vec<u8>,
    lines: Lines<'a>,
}

impl<'a> Values<'a> {
    fn new(delimiter: u8, limits: &'a Limits) -> Self {
        let reader = ReaderBuilder::new().delimiter(delimiter).build();
        Self { reader, value: Vec::new(), lines: Lines::new(limits) }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Problem> {
        while !bytes.is_empty() {
            let (read, _) = self.step(bytes)?;
            bytes = &bytes[read..];
        }
        Ok(())
    }

    /// To the reader, no bytes mean that no more come.
    fn finish(mut self) -> Result<String, Problem> {
        while !self.step(&[])?.1 {}
        self.lines.finish()
    }

    /// Returns how many bytes were read, and whether this was the end.
    fn step(&mut self, bytes: &[u8]) -> Result<(usize, bool), Problem> {
        let mut step = [0; STEP_BYTES];
        let (result, read, written) = self.reader.read_field(bytes, &mut step);
        self.value.extend_from_slice(&step[..written]);
        if self.value.len() > self.lines.limits.text_bytes_max {
            return Err(self.lines.too_large());
        }
        match result {
            ReadFieldResult::InputEmpty | ReadFieldResult::OutputFull => {}
            ReadFieldResult::Field { record_end } => {
                self.lines.value(String::from_utf8_lossy(&self.value).trim())?;
                self.value.clear();
                if record_end {
                    self.lines.end_row()?;
                }
            }
            ReadFieldResult::End => return Ok((read, true)),
        }
        Ok((read, false))
    }
}

/// The lines of rows that are in memory already.
pub(crate) fn lines(rows: impl Iterator<Item = Vec<String>>, limits: &Limits) -> Result<String, Problem> {
    let mut lines = Lines::new(limits);
    for row in rows {
        row.iter().try_for_each(|value| lines.value(value))?;
        lines.end_row()?;
    }
    lines.finish()
}

/// One line a row: `name: value` for each value where the first row names the columns, else the values.
struct Lines<'a> {
    limits: &'a Limits,
    text: String,
    names: Names,
    column: usize,
    /// Where the line of this row begins.
    row_start: usize,
}

/// What the first row that is not blank says.
enum Names {
    /// Its values so far; each of them could be a name.
    Unknown(Vec<String>),
    Known(Vec<String>),
    None,
}

impl<'a> Lines<'a> {
    fn new(limits: &'a Limits) -> Self {
        Self { limits, text: String::new(), names: Names::Unknown(Vec::new()), column: 0, row_start: 0 }
    }

    fn value(&mut self, value: &str) -> Result<(), Problem> {
        if let Names::Unknown(first) = &mut self.names {
            if first.len() < NAMES_MAX && (value.is_empty() || can_be_a_name(value)) {
                first.push(value.to_owned());
                return Ok(());
            }
            self.no_names()?;
        }
        self.put(value)
    }

    fn end_row(&mut self) -> Result<(), Problem> {
        if let Names::Unknown(first) = &mut self.names {
            if first.iter().all(String::is_empty) {
                first.clear();
                return Ok(());
            }
            if are_different(first) {
                self.names = Names::Known(std::mem::take(first));
                return Ok(());
            }
            self.no_names()?;
        }
        self.end_line();
        Ok(())
    }

    fn finish(mut self) -> Result<String, Problem> {
        self.end_row()?;
        if let (Names::Known(_), true) = (&self.names, self.text.is_empty()) {
            // Nothing but a first row.
            self.no_names()?;
            self.end_line();
        }
        Ok(self.text)
    }

    /// The first row is one like the others.
    fn no_names(&mut self) -> Result<(), Problem> {
        match std::mem::replace(&mut self.names, Names::None) {
            Names::Unknown(first) | Names::Known(first) => first.iter().try_for_each(|value| self.put(value)),
            Names::None => Ok(()),
        }
    }

    fn put(&mut self, value: &str) -> Result<(), Problem> {
        let column = self.column;
        self.column += 1;
        if value.is_empty() {
            return Ok(());
        }
        if self.text.len() > self.row_start {
            self.text.push_str(" | ");
        }
        if let Names::Known(names) = &self.names
            && let Some(name) = names.get(column).filter(|name| !name.is_empty())
        {
            self.text.push_str(name);
            self.text.push_str(": ");
        }
        // A row stays one line.
        self.text.extend(value.chars().map(|c| if c == '\n' || c == '\r' { ' ' } else { c }));
        if self.text.len() > self.limits.text_bytes_max { Err(self.too_large()) } else { Ok(()) }
    }

    fn end_line(&mut self) {
        if self.text.len() > self.row_start {
            self.text.push('\n');
        }
        (self.column, self.row_start) = (0, self.text.len());
    }

    fn too_large(&self) -> Problem {
        let most = self.limits.text_bytes_max / (1024 * 1024);
        Problem::too_large(format!("the table gives more than {most} MiB of text; split it"))
    }
}

/// Names of columns are short and do not begin with a digit.
fn can_be_a_name(value: &str) -> bool {
    value.chars().take(NAME_CHARS_MAX + 1).count() <= NAME_CHARS_MAX
        && value.chars().next().is_some_and(|c| !c.is_ascii_digit())
}

/// Names of columns are several, and no two are the same.
fn are_different(row: &[String]) -> bool {
    let names: Vec<&String> = row.iter().filter(|value| !value.is_empty()).collect();
    let different: std::collections::HashSet<&String> = names.iter().copied().collect();
    names.len() > 1 && different.len() == names.len()
}

/// What separates the values: what each of the first lines has, and as often as possible.
fn delimiter(beginning: &str) -> u8 {
    // The last line of a long beginning may be cut.
    let end = if beginning.len() > SNIFF_BYTES { beginning.rfind('\n') } else { None };
    let lines: Vec<&str> = beginning[..end.unwrap_or(beginning.len())]
        .lines()
        .filter(|line| !line.trim().is_empty())
        .take(SNIFF_LINES_MAX)
        .collect();
    let fewest = |mark: char| lines.iter().map(|line| line.matches(mark).count()).min().unwrap_or_default();
    let best = [',', ';', '\t', '|'].into_iter().rev().max_by_key(|mark| fewest(*mark));
    best.and_then(|mark| u8::try_from(mark).ok()).unwrap_or(b',')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        from_csv("", text.as_bytes(), &Limits::default()).unwrap()
    }

    #[test]
    fn each_row_says_what_its_values_are() {
        let expected = "plant: leek | sow: March, indoors\nplant: bean | note: likes \"poles\" a lot\n";
        assert_eq!(
            read("plant,sow,note\nleek,\"March, indoors\",\nbean,,\"likes \"\"poles\"\"\na lot\"\n"),
            expected
        );
        assert_eq!(read("plant;sow\nleek;1,5 weeks\n"), "plant: leek | sow: 1,5 weeks\n");
        assert_eq!(read("plant\tsow\nleek\tMarch\n"), "plant: leek | sow: March\n");
    }

    #[test]
    fn rows_without_names_stay_as_they_are() {
        assert_eq!(read("1,2\n3,4\n"), "1 | 2\n3 | 4\n");
        assert_eq!(read("one column\nonly\n"), "one column\nonly\n");
        assert_eq!(read("name,place\n"), "name | place\n");
        assert_eq!(read(" , \n"), "");
        assert_eq!(read("\n , \n1,2\n\n3,\n"), "1 | 2\n3\n");
    }

    #[test]
    fn a_table_reads_the_same_wherever_it_is_cut_into_pieces() {
        let row = "leek,\"March, \"\"indoors\"\"\nor under glass\",Käse\r\n";
        let text = format!("plant,sow,note\r\n{}last,1,2", row.repeat(5_000));
        let line = "plant: leek | sow: March, \"indoors\" or under glass | note: Käse\n";
        assert_eq!(read(&text), format!("{}plant: last | sow: 1 | note: 2\n", line.repeat(5_000)));
    }

    #[test]
    fn a_row_of_very_many_values_is_taken_value_by_value() {
        let limits = Limits { text_bytes_max: 1_000_000, ..Limits::default() };
        let mut lines = Lines::new(&limits);
        for _ in 0..100_000 {
            lines.value("a").unwrap();
        }
        // What is held beside the text is what a first row of names may have.
        assert!(matches!(lines.names, Names::None) && lines.text.len() > 300_000);
        let one_value = format!("{},", "a".repeat(2_000_000));
        let problem = from_csv("", one_value.as_bytes(), &limits).unwrap_err();
        assert_eq!(problem.kind, crate::ProblemKind::TooLarge);
    }

    #[test]
    fn the_separator_is_found_in_a_beginning_that_is_cut_in_a_line() {
        let text = format!("a;b;c\n{}", "1,5;2,5;3,5\n".repeat(20_000));
        assert!(read(&text).starts_with("a: 1,5 | b: 2,5 | c: 3,5\n"));
    }

    #[test]
    fn a_table_that_says_its_names_too_often_is_cut_off() {
        let limits = Limits { text_bytes_max: 1_000, ..Limits::default() };
        let table = format!("{}\n{}", "a_long_name,another_name", "1,2\n".repeat(100));
        assert_eq!(from_csv("", table.as_bytes(), &limits).unwrap_err().kind, crate::ProblemKind::TooLarge);
    }
}
