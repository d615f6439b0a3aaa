//! Theirs miss that a flow was stopped: they hang, or are cut off and come back with queues of a run that is over.

use crate::Row;
use crate::blueprint::CHUNKER;
use crate::common::{PATIENCE, until_within};
use crate::world::{BLUEPRINT, NOTES, World};

pub(crate) const CASES: &[Row] = &[
    ("a_stop_names_one_of_theirs_that_hangs_and_is_done_when_it_lets_go", hangs),
    ("a_queue_that_theirs_declares_again_after_the_stop_is_swept_and_other_flows_go_on", returns),
];

fn hangs(world: &World) {
    let theirs = world.chunker(CHUNKER);
    theirs.until_ready();
    world.start_flow("held", BLUEPRINT);
    theirs.until_said("Started flow: default/held\n");
    theirs.pause();
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| world.up.json(&["flow", "stop", "held"]));
        let holder = format!("flow:tg:text-document-load:default:held / {CHUNKER}--default--held--input");
        world.until("the holder to be named", || {
            let told = world.up.json(&["flow", "describe", "held"]);
            told["status"]["held-by"][0] == *holder
        });
        theirs.resume();
        stop.join().unwrap();
    });
    assert!(world.left_of("held").is_empty(), "{:?}", world.left_of("held"));
}

fn returns(world: &World) {
    let notes = world.file("pump.md", NOTES);
    world.start_flow("other", "document-rag");
    world.up.json(&["doc", "add", &notes, "--flow", "other"]);
    let others = world.left_of("other");

    let theirs = world.chunker(CHUNKER);
    theirs.until_ready();
    world.start_flow("gone", BLUEPRINT);
    theirs.until_said("Started flow: default/gone\n");
    theirs.pause();
    world.until("their connection to be cut", || world.cut_theirs() == 1);
    world.up.json(&["flow", "stop", "gone"]);
    assert!(world.left_of("gone").is_empty());

    // It never heard of the stop, so it connects again and declares what it had.
    theirs.resume();
    // It takes its time to connect, and it is looked for six seconds after the stop and then every thirty.
    let is_noticed = || world.up.log().contains("topics of an ended run came back");
    until_within(3 * PATIENCE, "it to be noticed", is_noticed, || world.up.log());
    // Meanwhile everybody else goes on. Of a change before it listens again it hears nothing, so there is more than one.
    world.until("theirs to hear of the stop", || {
        world.start_flow("third", "document-rag");
        world.up.json(&["flow", "stop", "third"]);
        theirs.log().contains("Stopped flow: default/gone\n")
    });
    world.until("what came back to be swept", || world.left_of("gone").is_empty());
    assert_eq!(world.left_of("other"), others);
    world.finds_the_passage("other");

    // The next run of it finds it attached and as good as new.
    world.start_flow("gone", BLUEPRINT);
    theirs.until_said("Started flow: default/gone-r2\n");
    let documents = world.send("gone", &notes);
    world.until("the document", || world.stored("gone", &documents) == [1]);
    world.finds_the_passage("gone");
    for id in ["gone", "other"] {
        world.up.json(&["flow", "stop", id]);
    }
    for run in ["gone", "gone-r2", "other"] {
        assert!(world.left_of(run).is_empty(), "{:?}", world.left_of(run));
    }
}
