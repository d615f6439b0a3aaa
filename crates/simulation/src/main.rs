//! Whole systems on virtual time. A seed decides everything that happens in a world: what people ask for and when, what
//! fails, dies, is cut off, lost, doubled and overtaken. Two config services over one store, two flow services, a
//! gateway's routes, processors of ours and of somebody else's run in one thread, over a broker and tables in memory.
//!
//! ```sh
//! cargo run -p sluice-simulation -- --seeds 10000     # many worlds
//! cargo run -p sluice-simulation -- --seed 7 --trace  # one world again, with what happened in it
//! ```
#![allow(clippy::disallowed_methods, reason = "tasks of the world itself end with it")]

mod chance;
mod entropy;
mod laws;
mod line;
mod node;
mod tables;
mod world;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;

/// What happens in a world before it is left in peace.
const STEPS: usize = 30;

#[derive(Parser)]
#[command(about = "Runs whole systems on virtual time; a seed decides what happens")]
struct Args {
    /// Run this world, in this process
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Print what happens
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Run so many worlds, each in a process of its own
    #[arg(long, default_value_t = 100)]
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
    match args.seed {
        Some(seed) => one(seed, args.trace),
        None => many(&args),
    }
}

fn one(seed: u64, is_told: bool) -> ExitCode {
    entropy::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let Ok(runtime) = runtime else { return ExitCode::from(3) };
    let (outcome, counts, seconds) = runtime.block_on(async {
        let chance = Arc::new(chance::Chance::new(seed, is_told));
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

async fn live(chance: Arc<chance::Chance>) -> Result<(), world::Broken> {
    let mut world = world::World::new(chance).await;
    for _ in 0..STEPS {
        world.step().await?;
    }
    laws::judge(&mut world).await
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
    let Ok(program) = std::env::current_exe() else { return ExitCode::from(3) };
    let next = AtomicU64::new(args.from);
    let sum = std::sync::Mutex::new(Sum::default());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= args.from + args.seeds {
                        return;
                    }
                    let ran = Command::new(&program)
                        .args(["--seed", &seed.to_string()])
                        .stdin(Stdio::null())
                        .output();
                    let mut sum = sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    match ran {
                        Ok(output) if output.status.success() => {
                            sum.held += 1;
                            count(&mut sum, &String::from_utf8_lossy(&output.stdout));
                        }
                        Ok(output) => {
                            let text = String::from_utf8_lossy(&output.stdout).into_owned();
                            let panic = String::from_utf8_lossy(&output.stderr).into_owned();
                            let last = text.lines().last().unwrap_or_default();
                            let broken =
                                format!("{last}{}", panic.lines().take(3).collect::<Vec<_>>().join(" "));
                            println!(
                                "{broken}\n  again: cargo run -p sluice-simulation -- --seed {seed} --trace"
                            );
                            sum.broken.push(broken);
                        }
                        Err(error) => sum.broken.push(format!("seed {seed}: {error}")),
                    }
                    if args.fail_fast && !sum.broken.is_empty() {
                        return;
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let counts: Vec<String> = sum.counts.iter().map(|(what, count)| format!("{count} × {what}")).collect();
    println!("{}", counts.join(", "));
    println!(
        "{} of {} seeds held, {} hours of virtual time",
        sum.held,
        sum.held + sum.broken.len() as u64,
        sum.seconds / 3_600
    );
    if sum.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) }
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
