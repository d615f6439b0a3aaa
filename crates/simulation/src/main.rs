//! Whole systems on virtual time. A seed decides everything that happens in a world: what people ask for and when, what
//! fails, dies, is cut off, lost, doubled and overtaken. Two config services over one store, two flow services, a
//! gateway's routes, processors of ours and of somebody else's run in one thread, over a broker and tables in memory.
//!
//! ```sh
//! cargo run -p sluice-simulation -- --seeds 10000     # many worlds
//! cargo run -p sluice-simulation -- --seed 7 --trace  # one world again, with what happened in it
//! cargo run -p sluice-simulation -- --walls           # one workspace alone, and beside another
//! ```
#![allow(clippy::disallowed_methods, reason = "tasks of the world itself end with it")]

mod chance;
mod entropy;
mod history;
mod laws;
mod line;
mod node;
mod tables;
mod walls;
mod world;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use clap::{Parser, ValueEnum};

use crate::chance::{Chance, Fault};

/// What happens in a world before it is left in peace.
const STEPS: usize = 30;
/// Worlds in a hundred in which config is restored from an older copy in the end.
const RESTORED: u32 = 25;

#[derive(Parser)]
#[command(about = "Runs whole systems on virtual time; a seed decides what happens")]
struct Args {
    /// Run this world, in this process
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Print what happens
    #[arg(long)]
    trace: bool,
    /// Instead of faults: lives of one workspace, each alone and beside another that does what it likes
    #[arg(long, conflicts_with = "steps")]
    walls: bool,
    /// Instead of chance: one fault at every step of services in lives by the book, each in a world of its own
    #[arg(long, conflicts_with_all = ["seed", "seeds"])]
    steps: bool,
    /// Of steps of the same name only so many
    #[arg(long, default_value_t = 2)]
    alike: usize,
    /// Of those the one at this step
    #[arg(long, requires_all = ["steps", "fault"])]
    step: Option<usize>,
    /// And what befalls it
    #[arg(long, value_enum, requires = "step")]
    fault: Option<Fault>,
    /// Run so many worlds, each in a process of its own
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// End after the first that fails
    #[arg(long)]
    fail_fast: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.trace && args.seed.is_none() && args.step.is_none() {
        eprintln!("error: --trace shows one world; name it with --seed or --step");
        return ExitCode::from(64);
    }
    match (args.seed, args.steps) {
        (Some(seed), _) if args.walls => beside_another(seed, args.trace),
        (Some(seed), _) => one(seed, args.trace),
        (None, true) => match (args.step, args.fault) {
            (Some(step), Some(fault)) => by_the_book(Some((step, fault)), args.alike, args.trace).0,
            _ => every_step(args.alike),
        },
        (None, false) => many(&args),
    }
}

/// One world without chance, in which one thing befalls one step; the steps that there were.
fn by_the_book(armed: Option<(usize, Fault)>, alike_max: usize, is_told: bool) -> (ExitCode, Vec<String>) {
    entropy::seed(1);
    let Some(runtime) = runtime() else { return (ExitCode::from(3), Vec::new()) };
    let (outcome, (steps, has_fired)) = runtime.block_on(async {
        let chance = Arc::new(Chance::new(1, is_told));
        chance.make_peace();
        let outcome = async {
            let mut world = world::World::new(chance.clone()).await;
            chance.number_steps(armed, alike_max);
            world.live_by_the_book().await?;
            chance.stop_numbering();
            laws::judge(&mut world).await
        };
        (outcome.await, chance.numbered())
    });
    let broken = match outcome {
        Ok(()) if armed.is_some() && !has_fired => "was never reached".to_owned(),
        Ok(()) => return (ExitCode::SUCCESS, steps),
        Err(broken) => broken,
    };
    if let Some((step, fault)) = armed {
        println!("{fault:?} at step {step}, {}: {broken}", steps.get(step).map_or("", String::as_str));
    } else {
        println!("without any fault: {broken}");
    }
    (ExitCode::from(2), steps)
}

/// Every fault at every step, each in a world and process of its own.
fn every_step(alike_max: usize) -> ExitCode {
    let (code, steps) = by_the_book(None, alike_max, false);
    if steps.is_empty() || code != ExitCode::SUCCESS {
        return ExitCode::from(2);
    }
    let faults = Fault::ALL.iter().filter_map(ValueEnum::to_possible_value);
    let names: Vec<String> = faults.map(|fault| fault.get_name().to_owned()).collect();
    let alike = alike_max.to_string();
    let cases: Vec<Vec<String>> = (0..steps.len())
        .flat_map(|step| names.iter().map(move |fault| (step, fault)))
        .map(|(step, fault)| {
            ["--steps", "--alike", &alike, "--step", &step.to_string(), "--fault", fault]
                .map(str::to_owned)
                .to_vec()
        })
        .collect();
    let all = cases.len();
    let sum = in_processes(cases, false);
    println!("covered {} of {all} faults at {} steps", sum.held, steps.len());
    if sum.broken.is_empty() && sum.held == all as u64 { ExitCode::SUCCESS } else { ExitCode::from(2) }
}

fn runtime() -> Option<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().ok()
}

fn one(seed: u64, is_told: bool) -> ExitCode {
    entropy::seed(seed);
    let Some(runtime) = runtime() else { return ExitCode::from(3) };
    let (outcome, counts, seconds) = runtime.block_on(async {
        let chance = Arc::new(Chance::new(seed, is_told));
        let outcome = live(chance.clone()).await;
        let mut counts = chance.counts();
        counts.insert("step", chance.steps());
        (outcome, counts, chance.now().as_secs())
    });
    let counts: Vec<String> = counts.iter().map(|(what, count)| format!("{what}={count}")).collect();
    println!("seconds={seconds} {}", counts.join(","));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(broken) => {
            println!("seed {seed}: {broken}");
            ExitCode::from(2)
        }
    }
}

/// One life of a workspace, alone and beside another.
fn beside_another(seed: u64, is_told: bool) -> ExitCode {
    let (mut lives, mut counts, mut seconds) = (Vec::new(), BTreeMap::new(), 0);
    for is_beside in [false, true] {
        entropy::seed(seed);
        let Some(runtime) = runtime() else { return ExitCode::from(3) };
        let lived = runtime.block_on(async {
            let chance = Arc::new(Chance::new(seed, is_told));
            chance.make_peace();
            let lived = walls::live(chance.clone(), seed, is_beside).await;
            counts = chance.counts();
            counts.insert("step", chance.steps());
            seconds += chance.now().as_secs();
            lived
        });
        lives.push(lived);
    }
    let counts: Vec<String> = counts.iter().map(|(what, count)| format!("{what}={count}")).collect();
    println!("seconds={seconds} {}", counts.join(","));
    let outcome = match &lives[..] {
        [Ok(alone), Ok(beside)] => walls::compare(alone, beside),
        [Err(broken), _] => Err(format!("alone: {broken}")),
        [_, Err(broken)] => Err(format!("beside another: {broken}")),
        _ => Ok(()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(broken) => {
            println!("seed {seed}: {broken}");
            ExitCode::from(2)
        }
    }
}

async fn live(chance: Arc<Chance>) -> Result<(), world::Broken> {
    let mut world = world::World::new(chance.clone()).await;
    world.history = Some(history::History::start(&world.config, &chance));
    for _ in 0..STEPS {
        world.step().await?;
    }
    laws::judge(&mut world).await?;
    // Last, since what happens to messages and runs of the other history nobody can say.
    if chance.percent(RESTORED) { laws::judge_a_restore(&mut world).await } else { Ok(()) }
}

/// What all worlds together did.
#[derive(Default)]
struct Sum {
    held: u64,
    broken: Vec<String>,
    counts: BTreeMap<String, u64>,
    seconds: u64,
}

fn many(args: &Args) -> ExitCode {
    let seeds = args.from..args.from + args.seeds;
    let walls = args.walls.then(|| "--walls".to_owned());
    let case = |seed: u64| ["--seed".to_owned(), seed.to_string()].into_iter().chain(walls.clone()).collect();
    let cases = seeds.map(case).collect();
    let sum = in_processes(cases, args.fail_fast);
    let counts: Vec<String> = sum.counts.iter().map(|(what, count)| format!("{count} × {what}")).collect();
    println!("{}", counts.join(", "));
    let all = sum.held + sum.broken.len() as u64;
    println!("{} of {all} seeds held, {} hours of virtual time", sum.held, sum.seconds / 3_600);
    if sum.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) }
}

/// Runs this program once with each of these arguments, as many at once as there are processors.
fn in_processes(cases: Vec<Vec<String>>, fail_fast: bool) -> Sum {
    let sum = Mutex::new(Sum::default());
    let Ok(program) = std::env::current_exe() else { return Sum::default() };
    let waiting = Mutex::new(cases.into_iter());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let lock = || sum.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(case) = next else { return };
                    let ran = Command::new(&program).args(&case).stdin(Stdio::null()).output();
                    lock().take(&case, ran);
                    if fail_fast && !lock().broken.is_empty() {
                        return;
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Sum {
    /// Takes in how a world ended.
    fn take(&mut self, case: &[String], ran: std::io::Result<Output>) {
        let broken = match ran {
            Ok(output) if output.status.success() => {
                self.held += 1;
                count(self, &String::from_utf8_lossy(&output.stdout));
                return;
            }
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let panic = String::from_utf8_lossy(&output.stderr).into_owned();
                let last = text.lines().last().unwrap_or_default();
                format!("{last}{}", panic.lines().take(3).collect::<Vec<_>>().join(" "))
            }
            Err(error) => error.to_string(),
        };
        println!("{broken}\n  again: cargo run -p sluice-simulation -- {} --trace", case.join(" "));
        self.broken.push(broken);
    }
}

/// Adds the counts that a world printed.
fn count(sum: &mut Sum, text: &str) {
    let Some(line) = text.lines().find_map(|line| line.strip_prefix("seconds=")) else { return };
    let (seconds, counts) = line.split_once(' ').unwrap_or((line, ""));
    sum.seconds += seconds.parse::<u64>().unwrap_or_default();
    for (what, count) in counts.split(',').filter_map(|one| one.split_once('=')) {
        *sum.counts.entry(what.to_owned()).or_default() += count.parse::<u64>().unwrap_or_default();
    }
}
