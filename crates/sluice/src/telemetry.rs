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
/// How often a key that was put into an address may have been encoded on its way.
const ENCODINGS_MAX: usize = 2;

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

/// A text with the keys in it blotted out, also those of which characters are written as `%XX`; `None` where there are none.
fn without_keys(text: &str) -> Option<String> {
    let mut blotted: Option<String> = None;
    // What is before that is in `blotted`.
    let (mut done, mut at) = (0, 0);
    while let Some(found) = text[at..].find(['t', '%']) {
        at += found;
        let Some((begins, ends)) = key_at(text, at) else {
            at += 1;
            continue;
        };
        let blotted = blotted.get_or_insert_with(|| String::with_capacity(text.len()));
        blotted.push_str(&text[done..begins]);
        blotted.push_str("***");
        (done, at) = (ends, ends);
    }
    blotted.map(|blotted| blotted + &text[done..])
}

/// Where the secret part of a key that begins at a byte begins and ends, if one does.
fn key_at(text: &str, at: usize) -> Option<(usize, usize)> {
    let mut begins = at;
    for wanted in KEY_PREFIX.bytes() {
        let (found, bytes) = character(&text.as_bytes()[begins..], ENCODINGS_MAX)?;
        if found != wanted {
            return None;
        }
        begins += bytes;
    }
    let (mut ends, mut chars) = (begins, 0);
    while let Some((found, bytes)) = character(&text.as_bytes()[ends..], ENCODINGS_MAX)
        && (found.is_ascii_alphanumeric() || b"-_".contains(&found))
    {
        ends += bytes;
        chars += 1;
    }
    (chars >= KEY_CHARS_MIN).then_some((begins, ends))
}

/// The character that a text begins with, and how many bytes it takes there: one, or those of `%XX`, which may in turn be
/// written so, as often as is said.
fn character(text: &[u8], layers: usize) -> Option<(u8, usize)> {
    let Some(layers) = layers.checked_sub(1) else { return Some((*text.first()?, 1)) };
    let (first, bytes) = character(text, layers)?;
    if first != b'%' {
        return Some((first, bytes));
    }
    let (mut code, mut ends) = (0, bytes);
    for _ in 0..2 {
        let digit = character(&text[ends..], layers);
        let Some((value, more)) =
            digit.and_then(|(digit, more)| Some((char::from(digit).to_digit(16)?, more)))
        else {
            return Some((first, bytes));
        };
        (code, ends) = (code << 4 | value, ends + more);
    }
    Some((u8::try_from(code).ok()?, ends))
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
        let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
        assert_eq!(blotted(&format!("/api/{}/x", key.replace('_', "%5F"))), "/api/tg%5F***/x");
        assert_eq!(blotted(&encoded(key)), "%74%67%5f***");
        assert_eq!(
            blotted(&format!("/{}/y", encoded(&encoded(key)))),
            format!("/{}***/y", encoded("%74%67%5f"))
        );
        assert_eq!(blotted(&format!("/{}/", key.replace('_', "%255F"))), "/tg%255F***/");
        for none in ["%", "%7", "%74%6", "%74%67%5f", "tg%5Fshort", "100%25", "%zz", "t\u{e4}g_%", "%25"] {
            assert_eq!(blotted(none), none);
        }
        for none in ["", "no key", "tg_", "tg_gateway_request 3", "stg_default", "tg_\u{e4}"] {
            assert_eq!(blotted(none), none);
        }
        let bytes = b"\xff tg_0123456789abcdefABCDEF";
        let mut written = Vec::new();
        Blotting(&mut written).write_all(bytes).unwrap();
        assert_eq!(written, bytes, "what is no text stays");
    }
}
