//! `sluice doctor`: what is wrong, worst first, each with the next thing to try.

use std::time::Duration;

use serde_json::{Value, json};

use crate::api::Api;
use crate::cli::Output;
use crate::exit::{Code, Told};
use crate::output::{show, text};

/// Severities, worst first, with the title of their group.
const SEVERITIES: [(&str, &str); 3] =
    [("error", "Does not work"), ("warning", "Will hurt"), ("info", "Worth knowing")];

/// How long one service has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Runs every check, side by side; each service that does not answer is named.
pub(super) async fn run(api: &Api, output: Output) -> anyhow::Result<Code> {
    let api = &api.within(ANSWER_TIMEOUT);
    let config = json!({"operation": "list", "type": "flow"});
    let (flow, config, library) = tokio::join!(
        api.call("flow", json!({"operation": "doctor"})),
        api.call("config", config),
        api.call("librarian", json!({"operation": "list-processing"})),
    );
    let mut findings = Vec::new();
    let asked = [("flow", &flow), ("config", &config), ("library", &library)];
    if asked.iter().all(|(_, answer)| answer.is_err()) {
        // It is not the services then, or not they alone.
        findings.extend(flow.as_ref().err().map(unanswered));
    } else {
        let silent = asked.iter().filter_map(|(name, answer)| Some((name, answer.as_ref().err()?)));
        findings.extend(silent.map(|(name, error)| unserved(name, error)));
    }
    if let Ok(answer) = &flow {
        findings.extend(answer["findings"].as_array().into_iter().flatten().cloned());
    }
    let is_fine = findings.iter().all(|finding| finding["severity"] == "info");
    show(output, &Value::Array(findings), told)?;
    Ok(if is_fine { Code::Ok } else { Code::Differs })
}

/// A call that got no answer, as a finding: nobody there, no key, no workspace.
fn unanswered(error: &anyhow::Error) -> Value {
    let told = error.downcast_ref::<Told>();
    let code = match told.map(|told| told.code) {
        Some(Code::Denied) => "key-refused",
        Some(Code::NotFound) => "workspace-missing",
        Some(Code::TimedOut) => "no-answer-in-time",
        Some(Code::Ok | Code::Failed | Code::Differs | Code::Usage) | None => "no-answer",
    };
    let next = match code {
        "key-refused" => {
            "name the folder that holds admin.key with --data DIR, or set TRUSTGRAPH_TOKEN; if the key is right, the identity service may be away: `sluice run iam` starts one, and its log says more"
        }
        "no-answer-in-time" => {
            "read the logs of `sluice up`, or of the processes that run iam and config: what they say of the broker comes first"
        }
        _ => told.and_then(|told| told.next.as_deref()).unwrap_or("read the log of `sluice up`"),
    };
    json!({"code": code, "severity": "error", "text": error.to_string(), "next": next})
}

/// One service that does not answer while others do.
fn unserved(name: &str, error: &anyhow::Error) -> Value {
    let next = format!("start it with `sluice run {name}` on the same broker, or read its log if it runs");
    json!({"code": "service-silent", "severity": "error", "text": format!("the {name} service: {error}"), "next": next})
}

/// The findings for people, one group per severity.
fn told(findings: &Value) -> String {
    let mut lines = Vec::new();
    let all = || findings.as_array().into_iter().flatten();
    for (severity, title) in SEVERITIES {
        let mut group = all().filter(|finding| finding["severity"] == severity).peekable();
        if group.peek().is_none() {
            continue;
        }
        lines.push(format!("{title}:"));
        for finding in group {
            lines.push(format!("  {} [{}]", text(finding, "text"), text(finding, "code")));
            lines.push(format!("    try: {}", text(finding, "next")));
        }
    }
    if !all().any(|finding| finding["severity"] != "info") {
        lines.push("Nothing is wrong.".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_grouped_worst_first_and_each_says_what_to_try() {
        let finding = |severity: &str, code: &str| json!({"severity": severity, "code": code, "text": format!("about {code}"), "next": "look"});
        let said = told(&json!([finding("info", "a"), finding("error", "b"), finding("warning", "c")]));
        let expected = "Does not work:\n  about b [b]\n    try: look\nWill hurt:\n  about c [c]\n    try: look\nWorth knowing:\n  about a [a]\n    try: look";
        assert_eq!(said, expected);
        assert!(told(&json!([finding("info", "a")])).ends_with("Nothing is wrong."));
    }

    #[test]
    fn a_call_without_an_answer_is_a_finding() {
        let nobody = Told::new(Code::Failed, "no").next("start it").into();
        let found = unanswered(&nobody);
        assert_eq!((found["code"].as_str(), found["next"].as_str()), (Some("no-answer"), Some("start it")));
        let refused = Told::new(Code::Denied, "no").next("set a key").into();
        let found = unanswered(&refused);
        assert_eq!(found["code"], "key-refused");
        assert!(found["next"].as_str().unwrap().contains("sluice run iam"), "{found}");
        let late = Told::new(Code::TimedOut, "late").into();
        let found = unserved("library", &late);
        assert!(found["text"].as_str().unwrap().contains("library service: late"), "{found}");
    }
}
