//! `sluice render`: runs prompt templates and schemas for a processor, in this process alone. People have no use for it.

use anyhow::Context;

pub(crate) fn run() -> anyhow::Result<()> {
    sluice_processors::renderer::child::serve(std::io::stdin(), std::io::stdout())
        .context("'sluice render' is how processors render prompts; it wants jobs on standard input")
}
