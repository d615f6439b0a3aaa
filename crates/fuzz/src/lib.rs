//! Feeds mutated inputs to whatever takes bytes of others, on the stable compiler and the same each time.
//!
//! A target is a function of bytes with a folder of inputs to begin from, its corpus; without one it fails. A test runs it: first on
//! each input of the corpus as it is, then on as many mutations of them as `SLUICE_FUZZ` says (a few hundred by default), made from the seed
//! `SLUICE_FUZZ_SEED`. It fails when the target panics, with the seed, the case, and the file that holds the input: put that file
//! into the corpus together with the mend. An input that ends the process is in the file named `current`.
//!
//! ```
//! // Any folder with files in it.
//! let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
//! sluice_fuzz::run("never-panics", &corpus, 10, &[b"a,b\n1,2\n"], &|input: &[u8]| {
//!     let _ = std::str::from_utf8(input);
//! });
//! ```

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Longest input, in bytes.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// Changes made to one input.
const CHANGES_MAX: u64 = 6;
/// Numbers at which programs err.
const NUMBERS: [&str; 9] = [
    "0",
    "-1",
    "1",
    "65536",
    "2147483647",
    "4294967296",
    "9223372036854775807",
    "1e999",
    "00000000000000000001",
];
const SEED: u64 = 20_260_101;

/// Runs a target on every input of its corpus, which are the files of a folder and `more`, and on mutations of them:
/// `cases`, or as many as `SLUICE_FUZZ` says.
///
/// # Panics
/// When the corpus is missing or empty, or a file of it cannot be read; and when the target panics, with how to run that case
/// again.
pub fn run(name: &str, corpus: &Path, cases: u64, more: &[&[u8]], target: &dyn Fn(&[u8])) {
    let seed = number("SLUICE_FUZZ_SEED").unwrap_or(SEED);
    let cases = number("SLUICE_FUZZ").unwrap_or(cases);
    let mut inputs: Vec<Vec<u8>> = more.iter().map(|input| input.to_vec()).collect();
    let kept = files(corpus).unwrap_or_else(|error| {
        panic!("'{name}' has no corpus that can be read in {}: {error}", corpus.display())
    });
    assert!(!kept.is_empty(), "the corpus of '{name}' is empty: put an input into {}", corpus.display());
    inputs.extend(kept);
    let failures = std::env::temp_dir().join(format!("sluice-fuzz-{}", std::process::id()));
    // Where it cannot be kept, the seed still tells it.
    let _ = fs::create_dir_all(&failures);
    let current = failures.join(format!("{name}-current"));
    let count = inputs.len() as u64;
    for case in 0..count + cases {
        let input = match usize::try_from(case).ok().and_then(|case| inputs.get(case)) {
            Some(input) => input.clone(),
            None => {
                mutated(&inputs, &mut Random(seed.wrapping_add(case.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
            }
        };
        let _ = fs::write(&current, &input);
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            let kept = failures.join(format!("{name}-{seed}-{case}"));
            let _ = fs::rename(&current, &kept);
            panic!(
                "'{name}' fails with SLUICE_FUZZ_SEED={seed}, case {case}; its input is in {}: put it into {} with the mend",
                kept.display(),
                corpus.display()
            );
        }
    }
    let _ = fs::remove_file(current);
    // Only when nothing is in it.
    let _ = fs::remove_dir(failures);
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The files of a folder, in the order of their names.
fn files(folder: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        paths.push(entry?.path());
    }
    paths.retain(|path| path.is_file());
    paths.sort();
    paths.into_iter().map(fs::read).collect()
}

/// One input of the corpus with a few changes.
fn mutated(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = random.of(inputs).cloned().unwrap_or_default();
    for _ in 0..=random.below(CHANGES_MAX) {
        change(&mut input, inputs, random);
        input.truncate(INPUT_BYTES_MAX);
    }
    input
}

fn change(input: &mut Vec<u8>, inputs: &[Vec<u8>], random: &mut Random) {
    let at = random.place(input.len());
    match random.below(9) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.byte(),
        2 => input.insert(at, random.byte()),
        3 => drop(input.drain(at..end(at, input.len(), random))),
        4 => input.truncate(at),
        // The same once more, or very often: what is nested, and what grows.
        5 => {
            let piece = input[at..end(at, input.len(), random)].to_vec();
            let times = if random.below(8) == 0 { 1 << random.below(13) } else { 1 };
            let times = times.min(INPUT_BYTES_MAX / piece.len().max(1));
            input.splice(at..at, piece.repeat(times));
        }
        6 => {
            let other = random.of(inputs).map_or(&[][..], Vec::as_slice);
            let from = random.place(other.len());
            let piece = &other[from..end(from, other.len(), random)];
            input.splice(at..at, piece.iter().copied());
        }
        7 => {
            let text = random.of(&NUMBERS).copied().unwrap_or_default();
            let until = input[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            input.splice(at..at + until, text.bytes());
        }
        _ => {
            let zeros_or_ones = if random.below(2) == 0 { 0 } else { 0xff };
            let until = end(at, input.len(), random).min(at + 8);
            input[at..until].fill(zeros_or_ones);
        }
    }
}

fn end(at: usize, length: usize, random: &mut Random) -> usize {
    let longest = if random.below(4) == 0 { length - at } else { (length - at).min(16) };
    at + random.place(longest)
}

/// A sequence that a seed decides (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// A place in something of this length, its end among them.
    fn place(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64 + 1)).unwrap_or(length)
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        let at = self.place(list.len().saturating_sub(1));
        list.get(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files, which goes when it is dropped.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn with(name: &str, files: &[&[u8]]) -> Self {
            let path = std::env::temp_dir().join(format!("sluice-fuzz-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            for (number, file) in files.iter().enumerate() {
                fs::write(path.join(number.to_string()), file).unwrap();
            }
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            // The next test of this process has a folder of its own.
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// What a run fails with.
    fn failure(corpus: &Path, target: impl Fn(&[u8]) + std::panic::RefUnwindSafe) -> String {
        let found = catch_unwind(|| run("fails", corpus, 20_000, &[b"abc"], &target)).unwrap_err();
        found.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    #[test]
    fn a_target_that_fails_on_some_input_is_found_and_told_with_its_seed() {
        let corpus = Folder::with("found", &[b"b"]);
        let said = failure(&corpus.0, |input| assert!(!input.starts_with(b"bb")));
        let where_to = format!("put it into {}", corpus.0.display());
        assert!(said.contains("SLUICE_FUZZ_SEED=") && said.contains(&where_to), "{said}");
    }

    #[test]
    fn a_target_whose_corpus_is_missing_or_empty_fails_although_there_are_other_inputs() {
        let said = failure(Path::new("/nowhere/log"), |_| {});
        assert!(said.contains("no corpus that can be read in /nowhere/log"), "{said}");
        let empty = Folder::with("empty", &[]);
        let said = failure(&empty.0, |_| {});
        assert!(said.contains("the corpus of 'fails' is empty"), "{said}");
    }

    #[test]
    fn the_same_seed_makes_the_same_inputs() {
        let inputs = [b"a,b\n1,2\n".to_vec(), b"<p>x".to_vec()];
        let made = |seed| mutated(&inputs, &mut Random(seed));
        let mut different = std::collections::BTreeSet::new();
        for seed in 0..500 {
            assert_eq!(made(seed), made(seed));
            assert!(made(seed).len() <= INPUT_BYTES_MAX);
            different.insert(made(seed));
        }
        assert!(different.len() > 400);
    }
}
