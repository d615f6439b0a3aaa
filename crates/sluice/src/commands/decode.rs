//! `sluice decode`: reads one document for a processor, in this process alone. People have no use for it.

use anyhow::Context;

pub(crate) fn run() -> anyhow::Result<()> {
    // What a parser says when it panics is of no use to anyone; that it did is told.
    std::panic::set_hook(Box::new(|_| {}));
    sluice_documents::child::serve(std::io::stdin(), std::io::stdout())
        .context("'sluice decode' is how processors read documents; it wants an order on standard input")
}
