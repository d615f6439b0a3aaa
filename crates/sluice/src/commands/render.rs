//! `sluice render`: runs prompt templates and schemas for a processor, in this process alone, which is [confined](sandbox) first.
//! People have no use for it; `--check` shows what keeps it from doing anything else.

use std::fs::File;
use std::os::fd::AsFd as _;

use anyhow::Context as _;
use sluice_processors::renderer::child::Meter;
use sluice_processors::sandbox;

pub(crate) fn run(check: bool, bare: bool) -> anyhow::Result<()> {
    // What a panic says may quote what is rendered, and what a dying process says is logged: where it was is enough.
    std::panic::set_hook(Box::new(|panic| {
        if let Some(at) = panic.location() {
            eprintln!("panicked at {at}");
        }
    }));
    // As a file: the library's standard output writes line by line.
    let output = std::io::stdout().as_fd().try_clone_to_owned().context("standard output cannot be used")?;
    let meter = Meter::open();
    if let Some(found) = sandbox::enter(check, bare) {
        println!("{}", serde_json::to_string(&found)?);
        return Ok(());
    }
    meter
        .serve(std::io::stdin(), File::from(output))
        .context("'sluice render' is how processors render prompts; it wants jobs on standard input")
}
