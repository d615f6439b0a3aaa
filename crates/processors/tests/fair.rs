//! Slots that workspaces share: whatever one of them asks for, another's wait is bounded. In units of virtual time.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use futures_util::FutureExt as _;
use proptest::prelude::*;
use sluice_processors::fair::{Fair, Slots};

/// Longest time that a slot is held.
const BUDGET: u64 = 100;

/// Work that a workspace asks for at a time.
#[derive(Debug, Clone)]
struct Job {
    workspace: usize,
    at: u64,
    takes: u64,
}

const WORKSPACES: usize = 10;

/// When each job begins, by its place. A slot never goes to a workspace while one that has fewer waits.
fn begins(slots: usize, jobs: &[Job]) -> Vec<u64> {
    let names: Vec<Arc<str>> =
        (0..WORKSPACES).map(|number| Arc::from(format!("workspace {number}"))).collect();
    let (mut held, mut waiting) = ([0_usize; WORKSPACES], [0_usize; WORKSPACES]);
    let mut fair = Fair::new(slots);
    let mut begun = vec![u64::MAX; jobs.len()];
    // Ends of slots come before new questions of the same moment.
    let mut moments: BinaryHeap<Reverse<(u64, bool, usize)>> =
        jobs.iter().enumerate().map(|(at, job)| Reverse((job.at, true, at))).collect();
    while let Some(Reverse((now, asks, number))) = moments.pop() {
        let workspace = jobs[number].workspace;
        if asks {
            waiting[workspace] += 1;
            fair.ask(&names[workspace], number);
        } else {
            held[workspace] -= 1;
            fair.give_back(&names[workspace]);
        }
        fair.serve(|served, number| {
            let workspace = jobs[number].workspace;
            assert_eq!(*served, names[workspace]);
            let fewest = (0..WORKSPACES).filter(|other| waiting[*other] > 0).map(|other| held[other]).min();
            assert_eq!(
                Some(held[workspace]),
                fewest,
                "workspace {workspace} has more than another that waits"
            );
            (waiting[workspace], held[workspace]) = (waiting[workspace] - 1, held[workspace] + 1);
            begun[number] = now;
            moments.push(Reverse((now + jobs[number].takes, false, number)));
            true
        });
    }
    begun
}

fn job(workspaces: std::ops::Range<usize>) -> impl Strategy<Value = Job> {
    let takes = prop_oneof![1..=BUDGET, Just(BUDGET)];
    (workspaces, 0..600_u64, takes).prop_map(|(workspace, at, takes)| Job { workspace, at, takes })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_small_document_beside_any_of_one_neighbour_waits_for_one_slot_at_most(
        slots in 1..4_usize, mut jobs in prop::collection::vec(job(1..2), 0..60), at in 0..2_000_u64, takes in 1..10_u64,
    ) {
        jobs.push(Job { workspace: 0, at, takes });
        let begun = begins(slots, &jobs);
        let own = begun[jobs.len() - 1];
        prop_assert!(own + takes <= at + takes + BUDGET, "asked at {at}, began at {own}");
    }

    #[test]
    fn beside_several_neighbours_each_of_them_is_waited_for_once(
        slots in 1..4_usize, others in 1..8_usize, jobs in prop::collection::vec(job(1..9), 0..80), at in 0..2_000_u64,
    ) {
        let mut jobs: Vec<Job> =
            jobs.into_iter().map(|job| Job { workspace: 1 + job.workspace % others, ..job }).collect();
        jobs.push(Job { workspace: 0, at, takes: 1 });
        let own = begins(slots, &jobs)[jobs.len() - 1];
        // Of the others at least one has a slot while all are taken; each of the rest may come first, once.
        let rounds = others.div_ceil(slots) as u64;
        prop_assert!(own <= at + rounds * BUDGET, "asked at {at}, began at {own}, {rounds} rounds");
    }

    #[test]
    fn every_job_is_served_once_and_no_slot_is_idle_while_one_waits(
        slots in 1..4_usize, jobs in prop::collection::vec(job(0..9), 1..60),
    ) {
        let begun = begins(slots, &jobs);
        for (job, begins) in jobs.iter().zip(&begun) {
            prop_assert!(*begins < u64::MAX);
            for moment in job.at..*begins {
                let runs = |(other, begun): &(&Job, &u64)| **begun <= moment && moment < **begun + other.takes;
                prop_assert_eq!(jobs.iter().zip(&begun).filter(runs).count(), slots);
            }
        }
    }
}

#[test]
fn a_slot_goes_to_the_workspace_that_has_none_and_askers_that_left_are_passed_over() {
    let slots = Slots::new(2);
    let (a, b): (Arc<str>, Arc<str>) = (Arc::from("a"), Arc::from("b"));
    let take = |workspace: &Arc<str>| {
        let (slots, workspace) = (slots.clone(), workspace.clone());
        Box::pin(async move { slots.take(&workspace).await })
    };
    let (first, second) = (take(&a).now_or_never().unwrap(), take(&a).now_or_never().unwrap());
    let (mut left, mut more, mut of_b) = (take(&a), take(&a), take(&b));
    for asked in [&mut left, &mut more, &mut of_b] {
        assert!(asked.now_or_never().is_none());
    }
    drop(first);
    assert!((&mut more).now_or_never().is_none());
    let of_b = (&mut of_b).now_or_never().unwrap();
    drop(left);
    drop(second);
    let more = (&mut more).now_or_never().unwrap();
    // One that was served and never looked gives its slot back as well.
    let mut unseen = take(&b);
    assert!((&mut unseen).now_or_never().is_none());
    drop(of_b);
    drop(unseen);
    drop(more);
    let all = (take(&b).now_or_never(), take(&b).now_or_never());
    assert!(all.0.is_some() && all.1.is_some());
}
