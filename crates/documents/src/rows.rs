//! Rows of values become lines that each say what they are about, since a reader may get to see one of them alone.

use crate::{Limits, Problem};

/// Lines looked at to find out what separates values.
const SNIFF_LINES_MAX: usize = 20;

/// The lines of a text of separated values.
pub(crate) fn from_csv(text: &str, limits: &Limits) -> Result<String, Problem> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter(text))
        .from_reader(text.as_bytes());
    let rows = reader.records().map(|record| {
        let record = record.map_err(|error| Problem::damaged("the table", error))?;
        Ok(record.iter().map(|value| value.trim().to_owned()).collect())
    });
    lines(rows, limits)
}

/// One line a row: `name: value` for each value where the first row names the columns, else the values.
pub(crate) fn lines(
    rows: impl Iterator<Item = Result<Vec<String>, Problem>>,
    limits: &Limits,
) -> Result<String, Problem> {
    let mut rows =
        rows.filter(|row| row.as_ref().map_or(true, |row| row.iter().any(|value| !value.is_empty())));
    let Some(first) = rows.next().transpose()? else { return Ok(String::new()) };
    let mut text = String::new();
    let names = names_columns(&first).then_some(&first);
    if names.is_none() {
        line(&mut text, &[], &first);
    }
    for row in rows {
        line(&mut text, names.map_or(&[], Vec::as_slice), &row?);
        if text.len() > limits.text_bytes_max {
            let most = limits.text_bytes_max / (1024 * 1024);
            return Err(Problem::too_large(format!(
                "the table gives more than {most} MiB of text; split it"
            )));
        }
    }
    if text.is_empty() && names.is_some() {
        // Nothing but a first row.
        line(&mut text, &[], &first);
    }
    Ok(text)
}

fn line(text: &mut String, names: &[String], row: &[String]) {
    let start = text.len();
    for (at, value) in row.iter().enumerate().filter(|(_, value)| !value.is_empty()) {
        if text.len() > start {
            text.push_str(" | ");
        }
        if let Some(name) = names.get(at).filter(|name| !name.is_empty()) {
            text.push_str(name);
            text.push_str(": ");
        }
        // A row stays one line.
        text.extend(value.chars().map(|c| if c == '\n' || c == '\r' { ' ' } else { c }));
    }
    if text.len() > start {
        text.push('\n');
    }
}

/// Whether a first row names the columns: several different short texts, no numbers.
fn names_columns(row: &[String]) -> bool {
    const NAME_CHARS_MAX: usize = 60;
    let names: Vec<&String> = row.iter().filter(|value| !value.is_empty()).collect();
    let different: std::collections::HashSet<&String> = names.iter().copied().collect();
    names.len() > 1
        && different.len() == names.len()
        && names.iter().all(|name| {
            name.chars().count() <= NAME_CHARS_MAX && name.chars().next().is_some_and(|c| !c.is_ascii_digit())
        })
}

/// What separates the values: what each of the first lines has, and as often as possible.
fn delimiter(text: &str) -> u8 {
    let lines: Vec<&str> =
        text.lines().filter(|line| !line.trim().is_empty()).take(SNIFF_LINES_MAX).collect();
    let fewest = |mark: char| lines.iter().map(|line| line.matches(mark).count()).min().unwrap_or_default();
    let best = [',', ';', '\t', '|'].into_iter().rev().max_by_key(|mark| fewest(*mark));
    best.and_then(|mark| u8::try_from(mark).ok()).unwrap_or(b',')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        from_csv(text, &Limits::default()).unwrap()
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
    }

    #[test]
    fn a_table_that_says_its_names_too_often_is_cut_off() {
        let limits = Limits { text_bytes_max: 1_000, ..Limits::default() };
        let table = format!("{}\n{}", "a_long_name,another_name", "1,2\n".repeat(100));
        assert_eq!(from_csv(&table, &limits).unwrap_err().kind, crate::ProblemKind::TooLarge);
    }
}
