//! This version beside another in one run: each a process of its own that serves, and one client that asks them in turns, so
//! short that both meet the same machine.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sluice_bus::Embedded;

use crate::support::{Bed, Measured, PATH, Span, http, socket};

/// Makes the program serve until its input ends.
pub(crate) const SERVE: &str = "--serve";
const SLICES: usize = 40;
/// All of it counts, so that the calls of which the time of the processor is known are those that are counted.
const SLICE: Span = Span { warm_up: Duration::ZERO, measured: Duration::from_millis(500) };
/// Ticks per second in what Linux tells of a process.
const TICKS: f64 = 100.0;

/// Serves, and says where and to whom.
pub(crate) async fn serve() {
    let broker = Embedded::in_memory();
    let bed = Bed::start([broker.clone(), broker.clone(), broker]).await;
    println!("{} {}", bed.address, bed.token);
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().lines().last());
    let _ = ended.await;
}

/// A version that serves, until it is dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    token: String,
}

impl Server {
    fn start(program: &Path) -> Self {
        let mut command = Command::new(program);
        command.args(["--bench", SERVE]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said =
            line.trim().split_once(' ').and_then(|(at, token)| Some((at.parse().ok()?, token.to_owned())));
        let (address, token) = said.unwrap_or_else(|| {
            panic!(
                "'{}' does not serve: build it with the files of benches/ as they are here",
                program.display()
            )
        });
        Self { child, address, token }
    }

    /// The processor time that it has used.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: f64 = fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum();
        Duration::from_secs_f64(ticks / TICKS)
    }

    async fn ask(&self, is_socket: bool, callers: usize) -> Measured {
        if is_socket {
            let url = format!("ws://{}/api/v1/socket?token={}", self.address, self.token);
            socket(&url, callers, SLICE).await
        } else {
            http(self.address, PATH, &self.token, callers, SLICE).await
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Measures this program beside the same one of another version.
pub(crate) async fn beside(other: &Path) {
    let servers = [Server::start(other), Server::start(&std::env::current_exe().unwrap())];
    println!(
        "| door | callers | before, calls/s | now, calls/s | ratio (quartiles) | before, CPU µs | now, CPU µs | ratio |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (door, is_socket) in [("HTTP", false), ("one WebSocket", true)] {
        for callers in [1, 64] {
            let (mut rates, mut calls) = ([Vec::new(), Vec::new()], [0, 0]);
            let before = servers.each_ref().map(Server::cpu);
            for slice in 0..SLICES {
                for turn in 0..2 {
                    let which = (slice + turn) % 2;
                    let measured = servers[which].ask(is_socket, callers).await;
                    calls[which] += measured.took.len();
                    rates[which].push(measured.per_second());
                }
            }
            let after = servers.each_ref().map(Server::cpu);
            let cpu = [0, 1].map(|n| (after[n] - before[n]).as_secs_f64() * 1e6 / calls[n] as f64);
            let mut ratios: Vec<_> = rates[1].iter().zip(&rates[0]).map(|(now, then)| now / then).collect();
            let [then, now] = rates.each_mut().map(|rates| quartiles(rates)[1]);
            let [low, ratio, high] = quartiles(&mut ratios);
            println!(
                "| {door} | {callers} | {then:.0} | {now:.0} | {ratio:.3} ({low:.2}–{high:.2}) | {:.1} | {:.1} | {:.3} |",
                cpu[0],
                cpu[1],
                cpu[1] / cpu[0]
            );
        }
    }
}

fn quartiles(figures: &mut [f64]) -> [f64; 3] {
    figures.sort_unstable_by(f64::total_cmp);
    [1, 2, 3].map(|n| figures[figures.len() * n / 4])
}
