//! A small harness for cases that share a real server: where it is missing, each case is listed as ignored; a case that
//! fails does not keep the others from running.
#![allow(clippy::print_stdout, reason = "the harness tells what it ran")]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use sluice_brokers::testing::RabbitServer;
use tokio::runtime::Runtime;

use super::PATIENCE;

/// What a note begins with that work on a message has begun.
const BEGUN: &str = "sluice.begun.";

/// The server that all cases share, and what awaits it.
pub(crate) struct Shared {
    pub(crate) server: RabbitServer,
    pub(crate) runtime: Runtime,
    /// What the systems of this case know of the server.
    pub(crate) shape: Shape,
}

/// What a system on a real server knows of it. What stops, kills or drains has to hold in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    WithManagement,
    /// As people begin: it sees only what it asks for by name.
    WithoutManagement,
}

impl Shape {
    const fn suffix(self) -> &'static str {
        match self {
            Self::WithManagement => "",
            Self::WithoutManagement => ", without the management API",
        }
    }
}

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&mut Shared),
    pub(crate) shapes: &'static [Shape],
    /// Says which program is missing that only this case needs, if one is.
    pub(crate) missing: fn() -> Option<&'static str>,
}

/// Functions as cases, in the shapes that stand behind: `both`, or `plain` where it makes no difference. After `needs`
/// stands what tells that something else than the server is missing.
#[macro_export]
macro_rules! cases {
    (missing) => { || None };
    (missing $needs:path) => { $needs };
    (shapes both) => {
        &[$crate::common::cases::Shape::WithManagement, $crate::common::cases::Shape::WithoutManagement]
    };
    (shapes plain) => { &[$crate::common::cases::Shape::WithManagement] };
    ($($name:ident: $shapes:ident $(needs $needs:path)?),* $(,)?) => {
        &[$($crate::common::cases::Case {
            name: stringify!($name),
            run: $name,
            shapes: $crate::cases!(shapes $shapes),
            missing: $crate::cases!(missing $($needs)?),
        }),*]
    };
}

#[allow(dead_code, reason = "not every test uses every part")]
impl Shared {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(RabbitServer::start()).unwrap();
        Self { server, runtime, shape: Shape::WithManagement }
    }

    /// Names of all exchanges and queues of a vhost that belong to a flow's run.
    pub(crate) fn left_of(&self, vhost: &str, run: &str) -> Vec<String> {
        let mark = format!(":{run}");
        let of_run = |name: &String| name.ends_with(&mark) || name.contains(&format!("{mark}."));
        self.names(vhost).into_iter().filter(of_run).collect()
    }

    pub(crate) fn names(&self, vhost: &str) -> Vec<String> {
        self.runtime.block_on(self.server.names(vhost)).unwrap()
    }

    /// The same apart from inboxes, which come and go with their readers, and from notes that work has begun, which go by
    /// themselves where somebody removed the message.
    pub(crate) fn lasting(&self, vhost: &str) -> BTreeSet<String> {
        let passing = ["amq", "sluice.inbox.", BEGUN];
        let passes = |name: &String| passing.iter().any(|prefix| name.starts_with(prefix));
        self.names(vhost).into_iter().filter(|name| !passes(name)).collect()
    }

    /// What belongs to processes that have ended, and stays. The broker takes it away a moment after they are gone.
    pub(crate) fn of_processes(&self, vhost: &str) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let mut left = self.names(vhost);
            left.retain(|name| name.starts_with("sluice.") && !name.starts_with(BEGUN));
            if left.is_empty() || begun.elapsed() > PATIENCE {
                return left;
            }
        }
    }

    /// How often something dies unless the environment says: half as often in the second shape.
    pub(crate) fn times(&self, default: u64) -> u64 {
        match self.shape {
            Shape::WithManagement => default,
            Shape::WithoutManagement => default.div_ceil(2),
        }
    }

    /// How a system is told of its broker.
    pub(crate) fn broker_args(&self, vhost: &str) -> Vec<String> {
        let mut args = vec!["--broker".to_owned(), self.server.url(vhost)];
        if self.shape == Shape::WithManagement {
            let management = self.server.options().management.unwrap();
            args.extend(["--broker-management".to_owned(), management.reveal().to_owned()]);
        }
        args
    }

    pub(crate) fn vhost(&self) -> String {
        self.runtime.block_on(self.server.vhost()).unwrap()
    }
}

/// A case as it is run: in one shape, or on one of several servers.
pub(crate) struct Single<'a> {
    /// With what it is run on.
    pub(crate) name: String,
    /// Why it cannot be run here, if it cannot.
    pub(crate) missing: Option<&'static str>,
    pub(crate) run: Box<dyn FnOnce() + 'a>,
}

/// Runs the cases that the arguments name, all without any, each in its shapes, one after the other on one server.
pub(crate) fn run(cases: &'static [Case]) -> ExitCode {
    let shared: RefCell<Option<Shared>> = RefCell::new(None);
    let run_one = |case: &Case, shape: Shape| {
        let mut shared = shared.borrow_mut();
        let shared = shared.get_or_insert_with(Shared::start);
        shared.shape = shape;
        (case.run)(shared);
    };
    let of_case = |case: &'static Case| {
        let missing = RabbitServer::missing().or_else(case.missing);
        case.shapes.iter().map(move |shape| (case, *shape, missing))
    };
    let single = |(case, shape, missing): (&'static Case, Shape, _)| Single {
        name: format!("{}{}", case.name, shape.suffix()),
        missing,
        run: Box::new(move || run_one(case, shape)),
    };
    run_each(cases.iter().flat_map(of_case).map(single).collect())
}

/// Runs those that the arguments name, all without any, one after the other.
pub(crate) fn run_each(mut cases: Vec<Single<'_>>) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    cases.retain(|case| wanted.is_empty() || wanted.iter().any(|arg| case.name.contains(*arg)));
    if args.iter().any(|arg| arg == "--list") {
        cases.iter().for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", cases.len());
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    for Single { name, missing, run } in cases {
        if let Some(why) = missing {
            println!("test {name} ... ignored, {why}");
            ignored += 1;
            continue;
        }
        let begun = Instant::now();
        // The panic itself has been printed by its hook.
        let is_ok = catch_unwind(AssertUnwindSafe(run)).is_ok();
        *if is_ok { &mut passed } else { &mut failed } += 1;
        let verdict = if is_ok { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict} ({} s)", begun.elapsed().as_secs());
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {result}. {passed} passed; {failed} failed; {ignored} ignored\n");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
