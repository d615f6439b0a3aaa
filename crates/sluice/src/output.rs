//! How results are printed: a table for people, JSON or YAML for programs.

use std::io::Write as _;

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

use crate::cli::Output;
use crate::exit::{self, Code, Told};

/// Prints a value: as `table` makes it for people, else whole.
pub(crate) fn show(
    output: Output,
    value: &Value,
    table: impl FnOnce(&Value) -> String,
) -> anyhow::Result<()> {
    match output {
        Output::Table => say(&table(value)),
        Output::Json => say(&serde_json::to_string_pretty(value)?),
        Output::Yaml => say(serde_yaml_ng::to_string(value)?.trim_end()),
    }
    Ok(())
}

/// Prints a result, or a part of it, as a line. A reader that has seen enough (`| head`) ends the command, quietly.
pub(crate) fn say(text: &str) {
    say_on(&format!("{text}\n"));
}

/// Prints a piece of a text at once; otherwise as [`say`].
pub(crate) fn say_on(text: &str) {
    let mut out = std::io::stdout().lock();
    let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) else { return };
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(Code::Ok as i32);
    }
    let told = Told::new(Code::Failed, format!("the result cannot be written to standard output: {error}"))
        .next("what was to be done is done, and only its result is not told; see where standard output goes");
    exit::report(&told.into());
    std::process::exit(Code::Failed as i32);
}

/// A table with a header; a sentence instead when it has no rows.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>, empty: &str) -> String {
    if rows.is_empty() {
        return empty.to_owned();
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().map(|title| title.to_uppercase()));
    table.add_rows(rows);
    table.trim_fmt()
}

/// A member as text, empty when it is not there.
pub(crate) fn text(value: &Value, name: &str) -> String {
    match value.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}
