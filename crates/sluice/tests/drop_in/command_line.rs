//! The published command-line tools. Most of them end with 0 whatever happened, so that what they say is what counts.

use crate::clients;
use crate::harness::Case;
use crate::world::{FLOW, PASSAGE, QUESTION, World, wait_for};

const GREETING: &str = "The model greets you.";
const INFORMED: &str = "The key hangs where the notes say: behind the blue door.";
const NO_MODEL: &str = "Exception: no language model is configured; set SLUICE_LLM_URL";

type Row = (&'static str, fn(&World));

fn cases(prefix: &str, rows: &[Row]) -> Vec<Case<World>> {
    let case = |&(name, run): &Row| Case {
        name: format!("{prefix}::{name}"),
        missing: clients::python_missing,
        run: Box::new(run),
    };
    rows.iter().map(case).collect()
}

/// Without a language model.
pub(crate) fn plain() -> Vec<Case<World>> {
    cases(
        "tools",
        &[
            ("the_main_job_from_an_empty_system_back_to_an_empty_one", main_job),
            ("blueprints_are_shown_put_and_deleted", blueprints),
            ("a_flow_is_started_shown_and_stopped", flow_life),
            ("a_flow_takes_its_parameters_in_each_form", flow_parameters),
            ("config_items_are_put_read_listed_and_deleted", config_items),
            ("the_whole_config_its_prompts_and_its_parameter_types_are_shown", config_whole),
            ("a_config_goes_from_one_workspace_to_another", config_export),
            ("documents_are_added_shown_processed_and_removed", documents),
            ("a_large_document_is_added_in_chunks", large_document),
            ("a_question_is_answered_with_the_right_passage", questions),
            ("an_explained_answer_shows_its_steps_and_leaves_them_in_the_graph", explained),
            ("embeddings_are_made_and_queried", embeddings),
            ("collections_are_set_listed_and_deleted", collections),
            ("asking_a_model_that_is_not_there_says_what_to_set", no_model),
            ("a_workspace_has_flows_of_its_own", workspaces),
            ("the_caller_is_told_who_it_is", identity),
            ("what_is_not_there_is_named", absent),
            ("a_wrong_token_is_refused", wrong_token),
        ],
    )
}

/// With one.
pub(crate) fn with_model() -> Vec<Case<World>> {
    cases(
        "model::tools",
        &[
            ("a_text_is_completed", completion),
            ("a_prompt_is_filled_in", prompt),
            ("the_models_are_listed", models),
            ("a_question_is_answered_by_the_model_from_the_passage", model_questions),
            ("a_failing_model_is_said_with_its_reason", failing_model),
        ],
    )
}

/// Without tokens, where everybody is let in.
pub(crate) fn open() -> Vec<Case<World>> {
    cases("open::tools", &[("tools_work_without_a_token", without_token)])
}

fn main_job(_: &World) {
    let world = World::empty();
    world.tool("tg-show-flows", &[]).shows(&["No flows."]);
    world.tool("tg-show-library-documents", &[]).shows(&["No documents."]);
    world
        .tool("tg-start-flow", &["-n", "document-rag", "-i", "f1", "-d", "First"])
        .shows(&[])
        .lacks(&["Exception"]);
    let file =
        world.file("notes.txt", "The night watch of the harbour drinks cocoa at two in the morning.\n");
    let document = ["--id", "urn:notes", "--name", "Notes", "-k", "text/plain", "--tags", "a,b", &file];
    world.tool("tg-add-library-document", &document).shows(&["Loaded successfully"]);
    world
        .tool("tg-start-library-processing", &["-i", "f1", "-d", "urn:notes", "--id", "run-1"])
        .shows(&[])
        .lacks(&["Exception"]);
    world.tool("tg-get-document-content", &["urn:notes"]).shows(&["drinks cocoa at two in the morning."]);
    let ask = ["-f", "f1", "-q", "What does the night watch drink?"];
    wait_for("the document", || world.tool("tg-invoke-document-rag", &ask).text().contains("cocoa"));
    world.tool("tg-remove-library-document", &["--id", "urn:notes"]).shows(&[]).lacks(&["Exception"]);
    assert!(world.tool("tg-get-document-content", &["urn:notes"]).text().contains("404"));
    world.tool("tg-stop-flow", &["-i", "f1"]).shows(&[]).lacks(&["Exception"]);
    world.tool("tg-show-flows", &[]).shows(&["No flows."]);
    world.tool("tg-show-library-documents", &[]).shows(&["No documents."]);
}

fn blueprints(world: &World) {
    world.tool("tg-show-flow-blueprints", &[]).shows(&[
        "document-rag",
        "graph-rag",
        "chunk-size",
        "Overlap between neighbouring chunks",
    ]);
    world.tool("tg-get-flow-blueprint", &["-n", "document-rag"]).shows(&["\"interfaces\"", "{workspace}"]);
    let mine =
        r#"{"description": "Mine alone", "flow": {}, "blueprint": {}, "interfaces": {}, "parameters": {}}"#;
    world.tool("tg-put-flow-blueprint", &["-n", "mine", "-c", mine]).shows(&[]).lacks(&["Exception"]);
    world.tool("tg-show-flow-blueprints", &[]).shows(&["Mine alone"]);
    world.tool("tg-delete-flow-blueprint", &["-n", "mine"]).shows(&[]).lacks(&["Exception"]);
    world
        .tool("tg-get-flow-blueprint", &["-n", "mine"])
        .shows(&["Exception: flow-error: Blueprint does not exist"]);
}

fn flow_life(world: &World) {
    let start = ["-n", "document-rag", "-i", "second", "-d", "Second flow"];
    world.tool("tg-start-flow", &start).shows(&[]).lacks(&["Exception"]);
    world.tool("tg-show-flows", &[]).shows(&[
        "Main flow",
        "Second flow",
        "document-load: flow:tg:document-load:default:second",
        "Overlap between neighbouring chunks: 50",
    ]);
    world.tool("tg-start-flow", &start).shows(&["Exception: flow-error: Flow already exists"]);
    world.tool("tg-stop-flow", &["-i", "second"]).shows(&[]).lacks(&["Exception"]);
    world.tool("tg-show-flows", &[]).shows(&["Main flow"]).lacks(&["Second flow"]);
    world.tool("tg-stop-flow", &["-i", "second"]).shows(&["Exception: flow-error: Flow ID invalid"]);
}

fn flow_parameters(world: &World) {
    let forms: &[&[&str]] = &[&["--param", "chunk-size=731"], &["-p", r#"{"chunk-size": 731}"#]];
    for form in forms {
        let start = ["-n", "document-rag", "-i", "sized", "-d", "Sized"];
        world.tool("tg-start-flow", &[&start[..], form].concat()).shows(&[]).lacks(&["Exception"]);
        world.tool("tg-show-flows", &[]).shows(&["731"]);
        world.tool("tg-stop-flow", &["-i", "sized"]).shows(&[]).lacks(&["Exception"]);
    }
}

fn config_items(world: &World) {
    let item = ["--type", "notes", "--key", "first"];
    let value = r#"{"a": "ü"}"#;
    world.tool("tg-get-config-item", &item).shows(&["None"]);
    world.tool("tg-put-config-item", &[&item[..], &["--value", value]].concat()).shows(&["notes/first"]);
    world.tool("tg-get-config-item", &item).shows(&[value]);
    world.tool("tg-list-config-items", &["--type", "notes"]).shows(&["first"]);
    world.tool("tg-delete-config-item", &item).shows(&["notes/first"]);
    world.tool("tg-get-config-item", &item).shows(&["None"]);
    world.tool("tg-list-config-items", &["--type", "notes"]).lacks(&["first"]);
    world
        .tool("tg-put-config-item", &["--type", "flow", "--key", "forged", "--value", "{}"])
        .shows(&["Exception"]);
    world.tool("tg-show-flows", &[]).lacks(&["forged"]);
}

fn config_whole(world: &World) {
    world.tool("tg-show-config", &[]).shows(&["\"flow-blueprint\"", "\"prompt\"", "\"parameter-type\""]);
    world.tool("tg-show-prompts", &[]).shows(&["System prompt", "question", "document-prompt"]);
    world.tool("tg-show-parameter-types", &[]).shows(&["chunk-size", "embeddings-model"]);
    world.tool("tg-show-tools", &[]).shows(&["knowledge-query"]);
    world.tool("tg-show-token-costs", &[]).shows(&["model"]).lacks(&["Exception"]);
}

fn config_export(world: &World) {
    let dump = world.folder.path().join("dump.json");
    let dump = dump.to_str().unwrap();
    let put = ["--type", "prompt", "--key", "template.mine", "--value", r#"{"prompt": "only here"}"#];
    world.tool("tg-put-config-item", &put).shows(&["prompt/template.mine"]);
    world.tool("tg-export-workspace-config", &["-o", dump]).shows(&[]).lacks(&["Exception"]);
    world.tool("tg-create-workspace", &["--workspace-id", "copy"]).shows(&["copy"]).lacks(&["Exception"]);
    world.tool("tg-import-workspace-config", &["-w", "copy", "-i", dump]).shows(&[]).lacks(&["Exception"]);
    let get = ["-w", "copy", "--type", "prompt", "--key", "template.mine"];
    world.tool("tg-get-config-item", &get).shows(&["only here"]);
}

fn documents(world: &World) {
    let file = world.file("bees.txt", "The bees of the old mill winter in a hollow lime tree.\n");
    let add = ["--id", "urn:bees", "--name", "Bees", "--description", "On bees", "-k", "text/plain", &file];
    world.tool("tg-add-library-document", &add).shows(&["Loaded successfully"]);
    world.tool("tg-add-library-document", &add).shows(&["Exception"]);
    world.tool("tg-show-library-documents", &[]).shows(&["urn:bees", "Bees", "On bees", "text/plain"]);
    let run = ["-i", FLOW, "-d", "urn:bees", "--id", "run-bees"];
    world.tool("tg-start-library-processing", &run).shows(&[]).lacks(&["Exception"]);
    world.tool("tg-show-library-processing", &[]).shows(&["run-bees", "urn:bees", FLOW]);
    let ask = ["-f", FLOW, "-q", "Where do the bees of the old mill winter?"];
    wait_for("the bees", || world.tool("tg-invoke-document-rag", &ask).text().contains("hollow lime tree"));
    world.tool("tg-stop-library-processing", &["--id", "run-bees"]).shows(&[]).lacks(&["Exception"]);
    world.tool("tg-show-library-processing", &[]).lacks(&["run-bees"]);
    world.tool("tg-remove-library-document", &["--id", "urn:bees"]).shows(&[]).lacks(&["Exception"]);
    world.tool("tg-show-library-documents", &[]).lacks(&["urn:bees"]);
    wait_for("the bees to be forgotten", || {
        !world.tool("tg-invoke-document-rag", &ask).shows(&[]).text().contains("hollow lime tree")
    });
}

fn large_document(world: &World) {
    let file = world.file("large.txt", &"A line that comes a great many times.\n".repeat(90_000));
    let add = ["--id", "urn:large", "--name", "Large", "-k", "text/plain", &file];
    world.tool("tg-add-library-document", &add).shows(&["Loaded successfully"]);
    world.tool("tg-show-library-documents", &[]).shows(&["urn:large"]);
    world.tool("tg-remove-library-document", &["--id", "urn:large"]).shows(&[]).lacks(&["Exception"]);
}

fn questions(world: &World) {
    let streamed = world.tool("tg-invoke-document-rag", &["-f", FLOW, "-q", QUESTION]);
    streamed.shows(&["[1]", PASSAGE, "(pump.md)", "extractive"]);
    let whole = world.tool("tg-invoke-document-rag", &["-f", FLOW, "--no-streaming", "-q", QUESTION]);
    assert_eq!(whole.shows(&[PASSAGE]).stdout.trim(), streamed.stdout.trim());
    let one = ["-f", FLOW, "--doc-limit", "1", "-q", "When does the ferry to the island leave?"];
    world.tool("tg-invoke-document-rag", &one).shows(&["quarter past nine"]).lacks(&[PASSAGE]);
}

fn explained(world: &World) {
    let question = "Which pot do tomatoes on the balcony want?";
    let steps = ["[question]", "[grounding]", "[exploration]", "[synthesis]", "a deep pot"];
    world.tool("tg-invoke-document-rag", &["-f", FLOW, "-x", "-q", question]).shows(&steps);
    wait_for("the question in the graph", || {
        world.tool("tg-show-graph", &["-f", FLOW]).shows(&[]).text().contains(question)
    });
    let query = ["-f", FLOW, "-p", "https://trustgraph.ai/ns/query", "-o", question];
    world.tool("tg-query-graph", &query).shows(&["urn:trustgraph:docrag:"]);
    world.tool("tg-list-explain-traces", &["-f", FLOW]).shows(&["urn:trustgraph:docrag:"]);
}

fn embeddings(world: &World) {
    let said = world.tool("tg-invoke-embeddings", &["-f", FLOW, "the blue door"]);
    let vector: Vec<f64> = serde_json::from_str(said.shows(&[]).stdout.trim()).unwrap();
    assert!(vector.len() > 100 && vector.iter().any(|number| *number != 0.0), "{vector:?}");
    world
        .tool("tg-invoke-document-embeddings", &["-f", FLOW, "the blue door"])
        .shows(&["1. urn:chunk:", "score:"]);
}

fn collections(world: &World) {
    let set = ["second", "-n", "Second", "-d", "The other things", "-t", "x"];
    world.tool("tg-set-collection", &set).shows(&["set successfully", "The other things"]);
    world.tool("tg-list-collections", &[]).shows(&["second", "The other things"]);
    world.tool("tg-delete-collection", &["-y", "second"]).shows(&["deleted successfully"]);
    world.tool("tg-list-collections", &[]).lacks(&["The other things"]);
}

fn no_model(world: &World) {
    let ask = ["You are terse.", "Hello?"];
    world.tool("tg-invoke-llm", &[&["-f", FLOW], &ask[..]].concat()).shows(&[NO_MODEL]);
    world.tool("tg-invoke-llm", &[&["-f", FLOW, "--no-streaming"], &ask[..]].concat()).shows(&[NO_MODEL]);
    for more in [&["--no-streaming"][..], &[]] {
        let arguments = [&["-f", FLOW], more, &["question", "question=why"]].concat();
        world.tool("tg-invoke-prompt", &arguments).shows(&[NO_MODEL]);
    }
}

fn workspaces(world: &World) {
    world.tool("tg-create-workspace", &["--workspace-id", "side", "--name", "Side"]).shows(&["side"]);
    world.tool("tg-list-workspaces", &[]).shows(&["default", "Side"]);
    world.tool("tg-show-flows", &["-w", "side"]).shows(&["No flows."]);
    let start = ["-w", "side", "-n", "document-rag", "-i", FLOW, "-d", "Beside the other"];
    world.tool("tg-start-flow", &start).shows(&[]).lacks(&["Exception"]);
    world.tool("tg-show-flows", &["-w", "side"]).shows(&["Beside the other"]).lacks(&["Main flow"]);
    world.tool("tg-show-flows", &[]).shows(&["Main flow"]).lacks(&["Beside the other"]);
    let ask = ["-w", "side", "-f", FLOW, "-q", QUESTION];
    world.tool("tg-invoke-document-rag", &ask).shows(&[]).lacks(&[PASSAGE]);
    world.tool("tg-stop-flow", &["-w", "side", "-i", FLOW]).shows(&[]).lacks(&["Exception"]);
    world.tool("tg-show-flows", &[]).shows(&["Main flow"]);
}

fn identity(world: &World) {
    world.tool("tg-whoami", &[]).shows(&["admin", "Administrator"]);
    world.tool("tg-list-my-workspaces", &[]).shows(&["default"]);
}

fn absent(world: &World) {
    let start = ["-n", "nowhere", "-i", "x", "-d", "x"];
    world.tool("tg-start-flow", &start).shows(&["Exception: flow-error: Blueprint does not exist"]);
    world.tool("tg-stop-flow", &["-i", "nowhere"]).shows(&["Exception: flow-error: Flow ID invalid"]);
    world
        .tool("tg-invoke-document-rag", &["-f", "nowhere", "-q", "?"])
        .shows(&["Exception", "default/nowhere"]);
    world
        .tool("tg-invoke-document-rag", &["-f", "nowhere", "--no-streaming", "-q", "?"])
        .shows(&["Exception", "default/nowhere"]);
    world.tool("tg-show-graph", &["-f", "nowhere"]).shows(&["Exception", "default/nowhere"]);
    world.tool("tg-remove-library-document", &["--id", "urn:nowhere"]).shows(&["Exception", "urn:nowhere"]);
    let run = ["-i", FLOW, "-d", "urn:nowhere", "--id", "run-nowhere"];
    world.tool("tg-start-library-processing", &run).shows(&["Exception", "urn:nowhere"]);
    let run = ["-i", "nowhere", "-d", "urn:nowhere", "--id", "run-nowhere"];
    world.tool("tg-start-library-processing", &run).shows(&["Exception"]);
    world.tool("tg-show-library-processing", &[]).lacks(&["run-nowhere"]);
    world.tool("tg-show-library-documents", &["-w", "nowhere"]).shows(&["Exception", "404"]);
}

fn wrong_token(world: &World) {
    world.tool("tg-show-flows", &["-t", "tg_wrong"]).shows(&["auth failure"]).lacks(&["Main flow"]);
    let start = ["-t", "tg_wrong", "-n", "document-rag", "-i", "sneaky", "-d", "x"];
    world.tool("tg-start-flow", &start).shows(&["401"]);
    world.tool("tg-invoke-document-rag", &["-t", "tg_wrong", "-f", FLOW, "-q", QUESTION]).lacks(&[PASSAGE]);
    world.tool("tg-show-flows", &[]).lacks(&["sneaky"]);
}

fn completion(world: &World) {
    let ask = ["You are terse.", "Hello?"];
    world.tool("tg-invoke-llm", &[&["-f", FLOW], &ask[..]].concat()).shows(&[GREETING]);
    world.tool("tg-invoke-llm", &[&["-f", FLOW, "--no-streaming"], &ask[..]].concat()).shows(&[GREETING]);
    let usage = [&["-f", FLOW, "--show-usage"], &ask[..]].concat();
    world.tool("tg-invoke-llm", &usage).shows(&[GREETING, "11", "4", "tiny-test"]);
}

fn prompt(world: &World) {
    for more in [&["--no-streaming"][..], &[]] {
        let arguments = [&["-f", FLOW], more, &["question", "question=Hello?"]].concat();
        world.tool("tg-invoke-prompt", &arguments).shows(&[GREETING]);
    }
    world.tool("tg-invoke-prompt", &["-f", FLOW, "nowhere"]).shows(&["Exception", "nowhere"]);
}

fn models(world: &World) {
    world.tool("tg-list-models", &["-f", FLOW]).shows(&["tiny-test"]);
}

fn model_questions(world: &World) {
    for more in [&["--no-streaming"][..], &[]] {
        let arguments = [&["-f", FLOW], more, &["-q", QUESTION]].concat();
        world.tool("tg-invoke-document-rag", &arguments).shows(&[INFORMED]);
    }
}

fn failing_model(world: &World) {
    for more in [&["--no-streaming"][..], &[]] {
        let arguments = [&["-f", FLOW], more, &["You are terse.", "Please fail."]].concat();
        world.tool("tg-invoke-llm", &arguments).shows(&["Exception", "the model is on holiday"]);
    }
}

fn without_token(world: &World) {
    world.tool("tg-show-flows", &[]).shows(&["Main flow"]);
    world.tool("tg-invoke-document-rag", &["-f", FLOW, "-q", QUESTION]).shows(&[PASSAGE]);
    let start = ["-n", "document-rag", "-i", "second", "-d", "Second flow"];
    world.tool("tg-start-flow", &start).shows(&[]).lacks(&["Exception"]);
    world.tool("tg-show-flows", &["-t", "whatever"]).shows(&["Second flow"]);
    world.tool("tg-stop-flow", &["-i", "second"]).shows(&[]).lacks(&["Exception"]);
    world.tool("tg-whoami", &[]).shows(&["anonymous"]);
}
