//! `sluice decode`: reads one document for a processor, in this process alone, which is [confined](sandbox) first. People have no
//! use for it; `--check` shows what keeps it from doing anything else.

use anyhow::Context as _;
use sluice_processors::sandbox;

pub(crate) fn run(check: bool, bare: bool) -> anyhow::Result<()> {
    // What a parser says when it panics is of no use to anyone; that it did is told.
    std::panic::set_hook(Box::new(|_| {}));
    if let Some(found) = sandbox::enter(check, bare) {
        println!("{}", serde_json::to_string(&found)?);
        return Ok(());
    }
    sluice_documents::child::serve(std::io::stdin(), std::io::stdout())
        .context("'sluice decode' is how processors read documents; it wants an order on standard input")
}
