//! Secrets of a command line: none is repeated, and who types one is told what to use instead.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use sluice_schema::address;

/// An error that does not repeat what could be an address with a password: the option says enough.
pub(super) fn not_repeated(error: clap::Error) -> clap::Error {
    let kind = match error.kind() {
        ErrorKind::UnknownArgument => ContextKind::InvalidArg,
        ErrorKind::InvalidSubcommand => ContextKind::InvalidSubcommand,
        _ => ContextKind::InvalidValue,
    };
    let Some(ContextValue::String(given)) = error.get(kind) else { return error };
    if address::is_harmless(given) {
        return error;
    }
    // What the parser of a value says repeats it too.
    let told = error.render().to_string().replace(given.as_str(), "***");
    clap::Error::raw(error.kind(), told.strip_prefix("error: ").unwrap_or(&told))
}

/// Options whose values are secrets, and what takes their place on a command line.
const SECRETS: [(&str, &str); 3] = [
    ("broker_password", "--broker-password-file"),
    ("llm_key", "--llm-key-file"),
    ("embeddings_key", "--embeddings-key-file"),
];
/// Options whose addresses may hold a password.
const ADDRESSES: [(&str, &str); 6] = [
    ("broker", "--broker-password-file"),
    ("broker_management", "SLUICE_BROKER_MANAGEMENT"),
    ("url", "TRUSTGRAPH_URL"),
    ("llm_url", "SLUICE_LLM_URL"),
    ("embeddings_url", "SLUICE_EMBEDDINGS_URL"),
    ("embeddings_local", "SLUICE_EMBEDDINGS_LOCAL"),
];

/// Secrets that were typed as arguments, each by what should be used instead. Everybody on the machine can read them.
pub(super) fn typed(matches: &clap::ArgMatches) -> Vec<&'static str> {
    let Some((_, matches)) = matches.subcommand() else { return Vec::new() };
    let is_typed = |id: &str| {
        let is_known = matches.try_contains_id(id).unwrap_or(false);
        is_known && matches.value_source(id) == Some(clap::parser::ValueSource::CommandLine)
    };
    let has_password = |id: &str| {
        let address = matches.try_get_one::<String>(id).ok().flatten();
        address.is_some_and(|address| {
            url::Url::parse(address)
                .is_ok_and(|url| url.password().is_some_and(|password| !password.is_empty()))
        })
    };
    let secrets = SECRETS.into_iter().filter(|(id, _)| is_typed(id));
    let addresses = ADDRESSES.into_iter().filter(|(id, _)| is_typed(id) && has_password(id));
    let mut instead: Vec<_> = secrets.chain(addresses).map(|(_, instead)| instead).collect();
    instead.dedup();
    instead
}
