//! Their chunker and their prompt service are attached all the time, to flows that start and stop.

use serde_json::json;

use crate::Row;
#[cfg(feature = "pulsar")]
use crate::blueprint;
use crate::blueprint::CHUNKER;
use crate::world::{BLUEPRINT, NOTES, World, is_theirs};
#[cfg(feature = "pulsar")]
use crate::world::{COMPLETION, PROMPT};

const GREETING: &str = "The model greets you.";
const FLOW: &str = "main";

pub(crate) const CASES: &[Row] = &[
    ("a_document_goes_through_their_chunker_and_a_question_is_answered_with_its_source", chunker),
    ("their_prompt_service_answers_with_our_model", prompt),
    ("a_published_client_reaches_them_through_our_gateway", client),
    ("a_flow_starts_and_stops_twice_and_nothing_is_left", twice),
];

/// What asks the language model and what answers are theirs.
#[cfg(feature = "pulsar")]
pub(crate) const COMPLETION_CASES: &[Row] = &[("their_text_completion_answers_ours_and_theirs", completion)];

#[cfg(feature = "pulsar")]
fn completion(world: &World) {
    let parts = [("chunker", CHUNKER), ("prompt", PROMPT), ("text-completion", COMPLETION)];
    let all = world.file("words.json", &blueprint::left_to(&parts));
    world.up.json(&["blueprint", "put", "words", &all]);
    let theirs = world.completion();
    theirs.until_ready();
    world.start_flow("words", "words");
    theirs.until_said("Started flow: default/words\n");
    let asked = json!({"system": "", "prompt": "Hello?"});
    let answer = world.call("flow/words/service/text-completion", &asked);
    assert_eq!(answer["response"], GREETING, "{answer}");
    // Their prompt service asks it, and so does our retrieval over that.
    let asked = json!({"id": "question", "variables": {"question": "Hello?"}});
    assert_eq!(world.call("flow/words/service/prompt", &asked)["text"], GREETING);
    let notes = world.file("words.md", NOTES);
    world.up.json(&["doc", "add", &notes, "--flow", "words"]);
    world.finds_the_passage("words");
    world.up.json(&["flow", "stop", "words"]);
    assert!(world.left_of("words").is_empty(), "{:?}", world.left_of("words"));
}

fn chunker(world: &World) {
    world.start_flow(FLOW, BLUEPRINT);
    let notes = world.file("pump.md", NOTES);
    let added = world.up.json(&["doc", "add", &notes, "--flow", FLOW]);
    assert_eq!(added["progress"][0]["stored"], 1, "{added}");
    let chunks = world.chunks(added["documents"][0].as_str().unwrap());
    assert!(chunks.len() == 1 && is_theirs(&chunks[0]), "{chunks:?}");
    world.finds_the_passage(FLOW);
}

fn prompt(world: &World) {
    let queue = || world.queue(FLOW, &format!("prompt-py--default--{FLOW}--request"));
    world.until("theirs to be attached", || queue() == Some((0, 1)));
    let asked = json!({"id": "question", "variables": {"question": "Hello?"}});
    let answer = world.call(&format!("flow/{FLOW}/service/prompt"), &asked);
    assert_eq!(answer["text"], GREETING, "{answer}");
}

fn client(world: &World) {
    for more in [&["--no-streaming"][..], &[]] {
        let arguments = [&["-f", FLOW], more, &["question", "question=Hello?"]].concat();
        world.tool("tg-invoke-prompt", &arguments).shows(&[GREETING]).lacks(&["Exception"]);
    }
    // Their own answer to a wrong question comes through as it is.
    world.tool("tg-invoke-prompt", &["-f", FLOW, "nowhere"]).shows(&["Exception"]);
}

fn twice(world: &World) {
    let before = world.names();
    for (turn, run) in ["again", "again-r2"].into_iter().enumerate() {
        world.start_flow("again", BLUEPRINT);
        let documents = world.send("again", &world.notes(&format!("again-{turn}"), 5));
        if turn == 0 {
            world.until("the documents", || world.stored("again", &documents) == [1; 5]);
            let asked = json!({"id": "question", "variables": {"question": "Hello?"}});
            assert_eq!(world.call("flow/again/service/prompt", &asked)["text"], GREETING);
        }
        // The second time it stops with work under way: that is done first.
        world.up.json(&["flow", "stop", "again"]);
        assert!(world.left_of(run).is_empty(), "{:?}", world.left_of(run));
        let parked = world.up.json(&["dead", "ls", "--flow", "again"]);
        let parked = parked.as_array().unwrap().len() as u64;
        let stored: u64 = world.stored(run, &documents).iter().sum();
        assert_eq!(stored + parked, 5, "{parked} of them parked\n{}", world.up.log());
        world.until_said(&format!("Stopped flow: default/{run}\n"));
    }
    // What is planted shows that the flow service has looked again, after which there is still nothing.
    let planted = "flow:tg:text-document-load:default:again-r2";
    // As their chunker would make it again.
    world.plant(planted, &format!("{CHUNKER}--default--again-r2--input"));
    world.until("the next audit", || {
        let left = world.left_of("again-r2");
        // On RabbitMQ and on Pulsar.
        let begins =
            ["tg.flow", "persistent.flow"].map(|at| format!("{at}.text-document-load:default:again-r2"));
        let is_planted = |name: &String| begins.iter().any(|begins| name.starts_with(begins));
        assert!(left.iter().all(is_planted), "{left:?}");
        left.is_empty()
    });
    assert_eq!(world.names(), before);
}
