//! Pages of a PDF that are read in a second, in this process: `cargo bench -p sluice-documents`. Where `pdftotext` is
//! installed it reads the same file beside it.

#[path = "../tests/made/mod.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "shared with the tests, which make more")]
mod made;

use std::io::Write as _;
use std::process::{Command, Stdio};

use divan::counter::ItemsCount;
use sluice_documents::{Kind, Limits, read};

const PAGES: usize = 100;

fn main() {
    divan::main();
}

fn document() -> Vec<u8> {
    let line = "A sluice is a gate that lets water through, and only as much of it as is wanted. ".repeat(30);
    made::pdf(&[line.as_str(); PAGES])
}

#[divan::bench(sample_count = 10)]
fn pages(bencher: divan::Bencher<'_, '_>) {
    let document = document();
    let limits = Limits::default();
    bencher.counter(ItemsCount::new(PAGES)).with_inputs(|| document.clone()).bench_values(|content| {
        let mut events = 0;
        let done = read(Kind::Pdf, "", content, &limits, &mut |_| {
            events += 1;
            Ok(())
        });
        assert!(done.is_ok() && events == PAGES + 2);
    });
}

#[divan::bench(sample_count = 10)]
fn pages_of_pdftotext(bencher: divan::Bencher<'_, '_>) {
    let document = document();
    if Command::new("pdftotext").arg("-v").stderr(Stdio::null()).status().is_err() {
        eprintln!("pdftotext is not installed: nothing to compare with");
        return;
    }
    bencher.counter(ItemsCount::new(PAGES)).bench(|| {
        let mut child = Command::new("pdftotext")
            .args(["-", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("it is installed");
        child.stdin.take().expect("it is piped").write_all(&document).expect("it reads");
        assert!(child.wait().expect("it ends").success());
    });
}
