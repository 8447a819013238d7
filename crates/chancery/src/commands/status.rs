//! `chancery status`: roles, head, lag, edges, what is owed, what is wrong.

use std::process::ExitCode;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use lifecycle::names::Slug;

use super::verdict;
use crate::client::{Client, read};
use crate::failure::Result;
use crate::output::{Card, Out};

/// The parts that are known, in the order in which they are read.
const SHOWN: [&str; 9] = [
    "version",
    "log",
    "epoch",
    "platform_domain",
    "head",
    "head_hash",
    "roles",
    "regions",
    "owed",
];

/// Parts differ between releases; what is unknown is shown as it comes.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct View {
    problems: Vec<Value>,
    #[serde(flatten)]
    parts: serde_json::Map<String, Value>,
}

pub(super) async fn run(client: &Client, out: &Out) -> Result<ExitCode> {
    let answer = client
        .query(&Slug::platform(), "status", &serde_json::json!({}))
        .await?;
    let view: View = read(&answer)?;
    if out.json() {
        out.raw(&read::<Box<RawValue>>(&answer)?);
        return Ok(verdict(view.problems.is_empty()));
    }
    let mut card = Card::default();
    for name in SHOWN {
        for line in view.parts.get(name).map(lines).unwrap_or_default() {
            card.add(name, line);
        }
    }
    // `ok` says the same as the list of problems.
    let others = view
        .parts
        .iter()
        .filter(|(name, _)| *name != "ok" && !SHOWN.contains(&name.as_str()));
    for (name, part) in others {
        for line in lines(part) {
            card.add(name.as_str(), line);
        }
    }
    card.print(out);
    if view.problems.is_empty() {
        out.say("nothing is wrong");
    }
    for problem in &view.problems {
        out.say(format!("problem  {}", text(problem)));
    }
    Ok(verdict(view.problems.is_empty()))
}

/// A part as lines: a list of things has one for each, all else has one.
fn lines(part: &Value) -> Vec<String> {
    match part {
        Value::Array(items) if items.is_empty() => vec!["none".to_owned()],
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.iter().map(text).collect()
        }
        Value::Null => Vec::new(),
        other => vec![text(other)],
    }
}

/// JSON as people read it: no quotes, `name value` pairs, lists with commas.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| match value {
                Value::Object(_) => format!("{name} ({})", text(value)),
                _ => format!("{name} {}", text(value)),
            })
            .collect::<Vec<_>>()
            .join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_shown_without_its_punctuation() {
        let value = serde_json::json!({"a": 1, "b": ["x", "y"], "c": {"d": true}, "e": null});
        assert_eq!(text(&value), "a 1, b x, y, c (d yes), e -");
    }
}
