//! A thousand worlds hold every law; `SLUICE_SEEDS=10000` runs more, `SLUICE_SEED=7` one of them again.

use std::process::Command;

const SEEDS: &str = "1000";

#[test]
fn every_seed_holds() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-simulation"));
    match std::env::var("SLUICE_SEED") {
        Ok(seed) => command.args(["--seed", &seed, "--trace"]),
        Err(_) => {
            let seeds = std::env::var("SLUICE_SEEDS").unwrap_or_else(|_| SEEDS.to_owned());
            command.args(["--seeds", &seeds])
        }
    };
    let output = command.output().expect("the simulation runs");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

/// `SLUICE_SEEDS` and `SLUICE_SEED` as above.
#[test]
fn what_a_workspace_sees_is_the_same_whatever_another_does() {
    const LIVES: &str = "60";
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-simulation"));
    command.arg("--walls");
    match std::env::var("SLUICE_SEED") {
        Ok(seed) => command.args(["--seed", &seed, "--trace"]),
        Err(_) => {
            let lives = std::env::var("SLUICE_SEEDS").unwrap_or_else(|_| LIVES.to_owned());
            command.args(["--seeds", &lives])
        }
    };
    let output = command.output().expect("the simulation runs");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("disturbance"), "nobody disturbed anybody: {text}");
}

#[test]
fn every_fault_at_every_step_of_start_and_stop_converges() {
    let program = env!("CARGO_BIN_EXE_sluice-simulation");
    let output = Command::new(program).arg("--steps").output().expect("the simulation runs");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("covered"), "{text}");
}

#[test]
fn a_seed_decides_everything() {
    let run = || {
        let program = env!("CARGO_BIN_EXE_sluice-simulation");
        Command::new(program).args(["--seed", "3", "--trace"]).output().expect("the simulation runs").stdout
    };
    let (first, second) = (run(), run());
    assert!(first.len() > 1_000, "a trace: {}", String::from_utf8_lossy(&first));
    assert!(first == second, "the same seed took two ways");
}
