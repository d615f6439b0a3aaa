//! What callers are told when a provider fails: one error of a stable type for each way, after a number of tries that the
//! configuration says.

use std::time::Duration;

use serde_json::json;
use sluice_bus::Patience;
use sluice_processors::{Dialect, ModelConfig};
use sluice_schema::message::Error;

use super::world::{Act, DEADLINE, Provider, Then, World, ask, words};

/// What came before the failure, and the failure with what it was as its type: on the wire that stands before the text.
async fn failure(config: ModelConfig, streaming: bool) -> (Vec<String>, Error) {
    let world = World::start(config, json!({})).await;
    let mut call = world.text.stream(&ask("x", streaming), Patience::total(DEADLINE)).await.unwrap();
    let mut texts = Vec::new();
    let error = loop {
        let part = call.next().await.unwrap().expect("a failure is told");
        match part.error {
            Some(error) => break error,
            None => texts.push(part.response),
        }
    };
    assert_eq!(call.next().await.unwrap(), None, "a failure is the last message");
    world.stop().await;
    assert_eq!(error.r#type, "llm-error", "the one type that clients know");
    let named = error.message.split_once(": ").filter(|(kind, _)| !kind.contains(' '));
    let (kind, text) = named.unwrap_or(("llm-error", error.message.as_str()));
    (texts, Error::new(kind, text))
}

/// A provider that does one thing, however often it is asked, whole and streamed alike.
async fn check(act: Act, tries: usize, kind: &str, part: &str) {
    for streaming in [false, true] {
        let (provider, config, _) = Provider::start(vec![act.clone()]).await;
        let (texts, error) = failure(config, streaming).await;
        assert_eq!((texts.len(), error.r#type.as_str()), (0, kind), "{error:?}");
        assert!(error.message.contains(part), "{error:?}");
        assert_eq!(provider.asked(), tries, "{error:?}");
    }
}

fn say(status: u16, body: &str) -> Act {
    Act::Say(status, vec![("retry-after", "0")], body.to_owned())
}

#[tokio::test]
async fn a_refusal_is_final_and_says_why() {
    check(say(401, r#"{"error": {"message": "no such key"}}"#), 1, "provider-refused", "401 no such key")
        .await;
    check(say(400, r#"{"error": "bad model"}"#), 1, "provider-refused", "400 bad model").await;
    check(say(429, r#"{"error": {"code": "insufficient_quota"}}"#), 1, "provider-refused", "quota").await;
}

#[tokio::test]
async fn who_is_busy_for_ever_is_given_up_after_all_tries() {
    check(say(429, "slow down"), 3, "rate-limited", "429 slow down").await;
    check(say(529, "overloaded"), 3, "rate-limited", "529").await;
    check(say(503, "starting"), 3, "provider-unavailable", "503 starting").await;
}

#[tokio::test]
async fn a_pause_beyond_the_bound_is_not_waited_for() {
    let act = Act::Say(429, vec![("retry-after", "3600")], "come back later".to_owned());
    check(act, 1, "rate-limited", "3600 s").await;
}

#[tokio::test]
async fn nonsense_is_called_nonsense() {
    check(say(200, "<html>hello</html>"), 1, "provider-garbage", "not a completion").await;
    let (_provider, config, _) = Provider::start(vec![say(200, "{}")]).await;
    assert_eq!(failure(config, false).await.1.r#type, "provider-garbage");
    let act = Act::Parts("text/event-stream", vec!["data: what?\n\n".to_owned()], Then::End);
    let (_provider, config, _) = Provider::start(vec![act]).await;
    assert_eq!(failure(config, true).await.1.r#type, "provider-garbage");
}

#[tokio::test]
async fn a_provider_that_hangs_is_left_after_the_bound_and_not_asked_twice() {
    let hangs_between = Act::Parts("text/event-stream", words(&["Ma"]), Then::Hang);
    for (act, streaming, texts, what) in [
        (Act::Hang, false, 0, "begin to answer"),
        (Act::Hang, true, 0, "begin to answer"),
        (hangs_between, true, 1, "go on answering"),
    ] {
        let (provider, mut config, mut left) = Provider::start(vec![act]).await;
        config.idle_timeout = Duration::from_secs(2);
        let (found, error) = failure(config, streaming).await;
        assert_eq!((found.len(), error.r#type.as_str()), (texts, "provider-timeout"), "{error:?}");
        assert!(error.message.contains(what) && error.message.contains("2000 ms"), "{error:?}");
        assert_eq!(provider.asked(), 1);
        tokio::time::timeout(DEADLINE, left.recv()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn all_tries_together_have_a_bound() {
    let (provider, mut config, _) = Provider::start(vec![say(503, "starting")]).await;
    config.attempts_max = u32::MAX;
    config.retry_pause = Duration::from_millis(500);
    config.total_timeout = Duration::from_secs(3);
    let (_, error) = failure(config, false).await;
    assert_eq!(error.r#type, "provider-unavailable", "{error:?}");
    assert!(provider.asked() < 7, "pauses grow");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_no_answer() {
    for (dialect, kind, pieces) in [
        (Dialect::OpenAi, "text/event-stream", words(&["Ma"])),
        (Dialect::Ollama, "application/x-ndjson", vec!["{\"message\": {\"content\": \"Ma\"}}\n".to_owned()]),
    ] {
        for then in [Then::Break, Then::End] {
            let (provider, mut config, _) =
                Provider::start(vec![Act::Parts(kind, pieces.clone(), then)]).await;
            config.dialect = dialect;
            let (texts, error) = failure(config, true).await;
            assert_eq!(
                (texts, error.r#type.as_str()),
                (vec!["Ma".to_owned()], "provider-broke-off"),
                "{dialect} {then:?}"
            );
            assert_eq!(provider.asked(), 1, "what was read cannot be unread");
        }
    }
    let half = vec!["{\"choices\": [{\"mess".to_owned()];
    let (_provider, config, _) =
        Provider::start(vec![Act::Parts("application/json", half, Then::Break)]).await;
    assert_eq!(failure(config, false).await.1.r#type, "provider-broke-off");
}

#[tokio::test]
async fn a_failure_that_is_told_in_the_middle_ends_the_answer() {
    let mut pieces = words(&["Ma"]);
    pieces
        .push("data: {\"error\": {\"type\": \"server_error\", \"message\": \"overheated\"}}\n\n".to_owned());
    let (provider, config, _) =
        Provider::start(vec![Act::Parts("text/event-stream", pieces, Then::End)]).await;
    let (texts, error) = failure(config, true).await;
    assert_eq!((texts.len(), error.r#type.as_str(), provider.asked()), (1, "provider-unavailable", 1));
    assert!(error.message.contains("overheated"), "{error:?}");
}

#[tokio::test]
async fn a_provider_that_is_not_there_is_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let patient = |url: String| {
        let mut config = ModelConfig::new(url);
        config.model = Some("m1".to_owned());
        config.retry_pause = Duration::from_millis(1);
        config.attempts_max = 2;
        config
    };
    let (_, error) = failure(patient(format!("http://{address}")), false).await;
    assert_eq!(error.r#type, "provider-unavailable");
    assert!(error.message.contains(&address.to_string()), "{error:?}");

    // One that takes the connection and never says who it is.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = patient(format!("https://{}", silent.local_addr().unwrap()));
    config.connect_timeout = Duration::from_millis(100);
    let (_, error) = failure(config, true).await;
    assert_eq!(error.r#type, "provider-unavailable", "{error:?}");
}

#[tokio::test]
async fn without_a_model_name_the_caller_is_told_where_to_put_one() {
    let (_provider, mut config, _) = Provider::start(vec![Act::Hang]).await;
    config.model = None;
    let (_, error) = failure(config, false).await;
    assert_eq!(error.r#type, "llm-error");
    assert!(error.message.contains("SLUICE_LLM_MODEL"), "{error:?}");
}
