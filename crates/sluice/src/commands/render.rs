//! `sluice render`: runs prompt templates and schemas for a processor, in this process alone. People have no use for it.

use std::fs::File;
use std::os::fd::AsFd as _;

use anyhow::Context;

pub(crate) fn run() -> anyhow::Result<()> {
    // As a file: the library's standard output writes line by line.
    let output = std::io::stdout().as_fd().try_clone_to_owned().context("standard output cannot be used")?;
    sluice_processors::renderer::child::serve(std::io::stdin(), File::from(output))
        .context("'sluice render' is how processors render prompts; it wants jobs on standard input")
}
