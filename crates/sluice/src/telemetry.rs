//! Logs: to standard error, filtered by `SLUICE_LOG` (default: warnings, and for `up` and `run` what a person running it wants to know).

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;

use crate::cli::{Args, Command, LogFormat};

pub(crate) fn start(args: &Args) {
    let default = match args.command {
        Command::Up(_) | Command::Run(_) => "info",
        // Its cases do on purpose what a broker warns of.
        Command::Conformance(_) => "error",
        _ => "warn",
    };
    let filter = EnvFilter::try_from_env("SLUICE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let left_out = sluice_brokers::LOG_FILTER.iter().filter_map(|left_out| left_out.parse().ok());
    let filter = left_out.fold(filter, EnvFilter::add_directive);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Blotting(io::stderr()))
        .with_ansi(std::io::stderr().is_terminal())
        // Nobody can be told where the log is gone, as with a terminal that was closed.
        .log_internal_errors(false);
    match args.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// What every API key begins with, and how much of what follows makes it one.
const KEY_PREFIX: &str = "tg_";
const KEY_CHARS_MIN: usize = 16;

/// Writes lines without the keys in them: callers put theirs into paths, hosts and ids of requests, which are told. Each line comes in
/// one piece.
struct Blotting<W>(W);

impl<W: Write> Write for Blotting<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(line).ok().and_then(without_keys) {
            Some(blotted) => self.0.write_all(blotted.as_bytes())?,
            None => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A text with the keys in it blotted out; `None` where there are none.
fn without_keys(text: &str) -> Option<String> {
    let mut blotted = None;
    let mut rest = text;
    while let Some((before, from)) = rest.split_once(KEY_PREFIX) {
        let is_of_key = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        let ends = from.find(|c| !is_of_key(c)).unwrap_or(from.len());
        let blotted = blotted.get_or_insert_with(|| String::with_capacity(text.len()));
        blotted.push_str(before);
        blotted.push_str(KEY_PREFIX);
        blotted.push_str(if ends >= KEY_CHARS_MIN { "***" } else { &from[..ends] });
        rest = &from[ends..];
    }
    blotted.map(|blotted| blotted + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_blotted_out_of_lines_wherever_they_stand() {
        let blotted = |text: &str| {
            let mut written = Vec::new();
            Blotting(&mut written).write_all(text.as_bytes()).unwrap();
            String::from_utf8(written).unwrap()
        };
        let key = "tg_0123456789abcdefABCDEF-_";
        assert_eq!(blotted(key), "tg_***");
        assert_eq!(
            blotted(&format!("id=\"mine-{key}\" path=/{key}/{key}.\n")),
            "id=\"mine-tg_***\" path=/tg_***/tg_***.\n"
        );
        for none in ["", "no key", "tg_", "tg_gateway_request 3", "stg_default", "tg_\u{e4}"] {
            assert_eq!(blotted(none), none);
        }
        let bytes = b"\xff tg_0123456789abcdefABCDEF";
        let mut written = Vec::new();
        Blotting(&mut written).write_all(bytes).unwrap();
        assert_eq!(written, bytes, "what is no text stays");
    }
}
