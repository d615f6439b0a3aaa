//! Theirs come late, share the work with ours, or are killed at work: nothing is lost and nothing is done twice without need.

use crate::Row;
use crate::blueprint::CHUNKER;
use crate::world::{BLUEPRINT, World, is_theirs};

pub(crate) const CASES: &[Row] = &[
    ("what_was_sent_before_theirs_attached_is_all_processed", before),
    ("nothing_is_lost_when_theirs_is_killed_at_work", killed),
    ("theirs_and_ours_share_the_work_of_one_chunker", shared),
];

const SENT: usize = 50;

fn before(world: &World) {
    world.start_flow("early", BLUEPRINT);
    let documents = world.send("early", &world.notes("early", SENT));
    let queue = || world.queue("early", &format!("{CHUNKER}--default--early--input"));
    world.until("the documents to wait", || queue() == Some((SENT as u64, 0)));
    let _theirs = world.chunker(CHUNKER);
    world.until("all documents", || world.stored("early", &documents) == [1; SENT]);
    world.up.json(&["flow", "stop", "early"]);
    assert!(world.left_of("early").is_empty());
}

fn killed(world: &World) {
    const PARAGRAPHS: usize = 300;
    const BEHIND: usize = 20;
    let parameters = ["-p", "chunk-size=200", "-p", "chunk-overlap=0"];
    world.up.json(&[&["flow", "start", "hard", BLUEPRINT], &parameters[..]].concat());
    // As long as a chunk may be, so that each becomes one.
    let paragraph =
        |number: usize| format!("{:150}", format!("Rule {number} of the harbour is about boat {number}"));
    let book: Vec<String> = (0..PARAGRAPHS).map(|number| paragraph(number).replace("  ", " .")).collect();
    let book = world.send("hard", &world.file("book.txt", &book.join("\n\n")));
    let behind = world.send("hard", &world.notes("behind", BEHIND));
    let stored = || world.stored("hard", &book)[0];

    let first = world.chunker(CHUNKER);
    // Seen stored, so that it was passed on: of what is only saved the killed one may not have told anybody.
    world.until("some of the book", || stored() >= 10);
    first.kill();
    let until_then = world.chunks(&book[0]).len();
    assert!((10..PARAGRAPHS).contains(&until_then), "it was killed at {until_then} chunks: not at work");
    assert_eq!(world.stored("hard", &behind), [0; BEHIND]);

    let _second = world.chunker(CHUNKER);
    world.until("what was behind it", || world.stored("hard", &behind) == [1; BEHIND]);
    // The book is done again from its start; what the killed one had just asked to be saved may have come late.
    let more = world.chunks(&book[0]).len() - until_then;
    assert!((PARAGRAPHS..=PARAGRAPHS + 1).contains(&more), "{more} more chunks of {PARAGRAPHS} paragraphs");
    world.until("the whole book", || stored() >= PARAGRAPHS as u64 + 10);
    world.up.json(&["flow", "stop", "hard"]);
    assert_eq!(world.up.json(&["dead", "ls", "--flow", "hard"]).as_array().map(Vec::len), Some(0));
    assert!(world.left_of("hard").is_empty());
}

fn shared(world: &World) {
    let theirs = world.chunker("chunker");
    world.start_flow("both", "document-rag");
    theirs.until_said("Started flow: default/both\n");
    let queue = || world.queue("both", "chunker--default--both--input");
    world.until("both to be attached", || queue() == Some((0, 2)));
    let documents = world.send("both", &world.notes("both", SENT));
    world.until("all documents", || world.stored("both", &documents) == [1; SENT]);
    let chunks: Vec<Vec<String>> = documents.iter().map(|document| world.chunks(document)).collect();
    assert!(chunks.iter().all(|chunks| chunks.len() == 1), "{chunks:?}");
    let of_theirs = chunks.iter().flatten().filter(|chunk| is_theirs(chunk)).count();
    assert!((1..SENT).contains(&of_theirs), "theirs did {of_theirs} of {SENT}");
    world.up.json(&["flow", "stop", "both"]);
    assert!(world.left_of("both").is_empty());
}
