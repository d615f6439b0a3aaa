//! The system dies again and again while one of theirs shares its work.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::Row;
use crate::cluster::Cluster;
use crate::common::Up;
use crate::kills;
use crate::theirs::Theirs;
use crate::world::World;

pub(crate) const CASES: &[Row] =
    &[("a_system_killed_at_random_moments_beside_theirs_converges_and_leaves_nothing", killed)];

/// Times that the system is killed; `SLUICE_KILLS=24` kills more often.
const KILLS: u64 = 4;

fn killed(_: &World) {
    let (cluster, folder) = (Cluster::start(), tempfile::tempdir().unwrap());
    let broker = cluster.url();
    let start = || Up::start_with(&folder.path().join("data"), &["--broker", &broker]);
    assert_eq!(start().terminate(), 0);
    let of_the_system = cluster.names();
    // Theirs dies with the system: what it asked of that, it would wait for longer than anybody here.
    let theirs = RefCell::new(None);
    let worked = RefCell::new(0);
    let begin = || {
        let before = theirs.take().map_or_else(String::new, |theirs: Theirs| theirs.log());
        *worked.borrow_mut() += usize::from(before.contains("Started flow: default/k0"));
        let up = start();
        theirs.replace(Some(cluster.theirs("chunker-recursive", "chunker", &[])));
        up
    };
    let mut up = kills::kill_again_and_again(begin, KILLS);
    let last = theirs.take().map_or_else(String::new, |theirs| theirs.log());
    assert!(*worked.borrow() > 0 || last.contains("Started flow: default/k0"), "{last}");
    assert_eq!(up.terminate(), 0);
    let left: BTreeSet<String> = cluster.names().difference(&of_the_system).cloned().collect();
    assert_eq!(left, BTreeSet::new());
}
