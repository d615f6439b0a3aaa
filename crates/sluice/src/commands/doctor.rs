//! `sluice doctor`: what is wrong, worst first, each with the next thing to try.

use serde_json::{Value, json};

use crate::api::Api;
use crate::cli::Output;
use crate::exit::{Code, Told};
use crate::output::{show, text};

/// Severities, worst first, with the title of their group.
const SEVERITIES: [(&str, &str); 3] =
    [("error", "Does not work"), ("warning", "Will hurt"), ("info", "Worth knowing")];

/// Runs every check; what cannot be asked because an earlier one failed is left out.
pub(super) async fn run(api: &Api, output: Output) -> anyhow::Result<Code> {
    let mut findings = Vec::new();
    match api.call("flow", json!({"operation": "doctor"})).await {
        Ok(answer) => findings.extend(answer["findings"].as_array().cloned().unwrap_or_default()),
        Err(error) => findings.push(unanswered(&error)),
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
    let next = told.and_then(|told| told.next.clone());
    let next = next.unwrap_or_else(|| "read the log of `sluice up`".to_owned());
    json!({"code": code, "severity": "error", "text": error.to_string(), "next": next})
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
        let refused = Told::new(Code::Denied, "no").next("set a key").into();
        let found = unanswered(&refused);
        assert_eq!(
            (found["code"].as_str(), found["next"].as_str()),
            (Some("key-refused"), Some("set a key"))
        );
    }
}
