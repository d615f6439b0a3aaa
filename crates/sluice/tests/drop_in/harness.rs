//! A small harness over one list of named cases, which speaks like the usual one. Where the program that a case needs
//! is missing, the case is listed as ignored, by name.

use std::cell::{OnceCell, RefCell};
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;

/// What a case does in the world of its group; it fails by panicking.
pub(crate) type Run<W> = Box<dyn Fn(&W) + Send>;

pub(crate) struct Case<W> {
    pub(crate) name: String,
    /// Says which program is missing, if one is.
    pub(crate) missing: fn() -> Option<&'static str>,
    pub(crate) run: Run<W>,
}

/// Cases that share a world, which is made for the first of them that runs and dropped after the last.
pub(crate) struct Group<W> {
    pub(crate) start: fn() -> W,
    pub(crate) cases: Vec<Case<W>>,
}

/// What the command line asks for. Flags of the usual harness that mean nothing here are let pass.
pub(crate) struct Asked {
    list: bool,
    exact: bool,
    /// Only the cases that are ignored whatever is installed: there are none.
    only_ignored: bool,
    filters: Vec<String>,
    skips: Vec<String>,
}

impl Asked {
    pub(crate) fn read(arguments: impl Iterator<Item = String>) -> Self {
        let mut asked =
            Self { list: false, exact: false, only_ignored: false, filters: Vec::new(), skips: Vec::new() };
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => asked.list = true,
                "--exact" => asked.exact = true,
                "--ignored" => asked.only_ignored = true,
                "--skip" => asked.skips.extend(arguments.next()),
                "--test-threads" | "--format" | "--color" | "--logfile" | "--shuffle-seed" | "-Z" => {
                    arguments.next();
                }
                flag if flag.starts_with('-') => {
                    if let Some(name) = flag.strip_prefix("--skip=") {
                        asked.skips.push(name.to_owned());
                    }
                }
                filter => asked.filters.push(filter.to_owned()),
            }
        }
        asked
    }

    fn wants(&self, name: &str) -> bool {
        let fits =
            |pattern: &String| if self.exact { name == pattern } else { name.contains(pattern.as_str()) };
        !self.only_ignored
            && (self.filters.is_empty() || self.filters.iter().any(fits))
            && !self.skips.iter().any(fits)
    }
}

/// How a case ended.
enum Ended {
    Passed,
    /// Nothing was tried: this is missing.
    Ignored(&'static str),
    Failed(String),
}

/// Runs what is asked for: the cases of a group one after the other, groups side by side.
pub(crate) fn run<W>(asked: &Asked, mut groups: Vec<Group<W>>) -> ExitCode {
    let all = count(&groups);
    for group in &mut groups {
        group.cases.retain(|case| asked.wants(&case.name));
    }
    let chosen = count(&groups);
    if asked.list {
        for group in &groups {
            group.cases.iter().for_each(|case| println!("{}: test", case.name));
        }
        println!("\n{chosen} tests, 0 benchmarks");
        return ExitCode::SUCCESS;
    }

    println!("\nrunning {chosen} tests");
    std::panic::set_hook(Box::new(|panic| LAST_PANIC.set(panic.to_string())));
    let (waiting, ended) = (Mutex::new(groups.into_iter()), Mutex::new(Vec::new()));
    let next = || waiting.lock().unwrap().next();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                while let Some(group) = next() {
                    run_group(group, &ended);
                }
            });
        }
    });
    report(ended.into_inner().unwrap(), all - chosen)
}

fn run_group<W>(group: Group<W>, ended: &Mutex<Vec<(String, Ended)>>) {
    let world = OnceCell::new();
    for case in group.cases {
        let attempt = || (case.run)(world.get_or_init(group.start));
        let end = match (case.missing)() {
            Some(missing) => Ended::Ignored(missing),
            None => match catch_unwind(AssertUnwindSafe(attempt)) {
                Ok(()) => Ended::Passed,
                Err(_) => Ended::Failed(LAST_PANIC.take()),
            },
        };
        let mut ended = ended.lock().unwrap();
        match &end {
            Ended::Passed => println!("test {} ... ok", case.name),
            Ended::Ignored(missing) => println!("test {} ... ignored, {missing} is missing", case.name),
            Ended::Failed(_) => println!("test {} ... FAILED", case.name),
        }
        ended.push((case.name, end));
    }
}

fn report(ended: Vec<(String, Ended)>, filtered: usize) -> ExitCode {
    let (mut passed, mut ignored, mut failures) = (0, 0, Vec::new());
    for (name, end) in ended {
        match end {
            Ended::Passed => passed += 1,
            Ended::Ignored(_) => ignored += 1,
            Ended::Failed(why) => failures.push((name, why)),
        }
    }
    if !failures.is_empty() {
        println!("\nfailures:");
        failures.iter().for_each(|(name, why)| println!("\n---- {name} ----\n{why}"));
        println!("\nfailures:");
        failures.iter().for_each(|(name, _)| println!("    {name}"));
    }
    let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
    let failed = failures.len();
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; {filtered} filtered out\n"
    );
    // The exit code of the usual harness.
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

fn count<W>(groups: &[Group<W>]) -> usize {
    groups.iter().map(|group| group.cases.len()).sum()
}

thread_local! {
    /// What the last panic of this thread said, and where.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}
