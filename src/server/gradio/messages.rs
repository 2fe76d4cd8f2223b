//! What a client is told of a call, as each form of the protocol writes it. Python's client takes exactly these lines: a comment, an
//! `id:` or a kind that it does not know ends it.

use serde_json::{json, Value};

/// Keeps what lies between from taking the stream for dead.
pub const HEARTBEAT: &str = "data: {\"msg\":\"heartbeat\"}\n\n";
/// The same in curl's form.
pub const NAMED_HEARTBEAT: &str = "event: heartbeat\ndata: null\n\n";
/// No event of the session is open: the client opens another stream for its next one.
pub const CLOSE: &str = "data: {\"msg\":\"close_stream\",\"event_id\":null}\n\n";

/// What is told of a call.
#[derive(Debug, Clone)]
pub enum Message {
    /// Jobs before it, and seconds until its turn.
    Waits(u64, Option<f64>),
    /// It is worked on.
    Starts,
    /// How far its present phase is, as the JSON API has it.
    Progress(Value),
    /// What there is of its outputs so far: all of them, and what changed of each since the last time, if there was one.
    Generating(Vec<Value>, Option<Vec<Value>>),
    /// Something to know.
    Warning(String),
    /// Its outputs.
    Completed(Vec<Value>),
    /// What went wrong.
    Failed(String),
}

impl Message {
    /// As clients have it.
    pub fn of_session(&self, event: &str) -> String {
        let message = match self {
            Self::Waits(before, seconds) => {
                json!({ "msg": "estimation", "event_id": event, "rank": before, "queue_size": before + 1, "rank_eta": seconds })
            }
            Self::Starts => json!({ "msg": "process_starts", "event_id": event, "eta": null }),
            Self::Progress(progress) => json!({
                "msg": "progress", "event_id": event, "progress_data": [{
                    "index": progress["done"], "length": progress["total"], "unit": progress["unit"], "progress": null,
                    "desc": progress["phase"],
                }],
            }),
            Self::Generating(all, edits) => json!({
                "msg": "process_generating", "event_id": event, "success": true,
                "output": { "data": edits.as_ref().unwrap_or(all), "is_generating": true },
            }),
            Self::Warning(sentence) => json!({
                "msg": "log", "event_id": event, "log": sentence, "level": "warning", "title": "Warning", "duration": 10, "visible": true,
            }),
            Self::Completed(outputs) => json!({
                "msg": "process_completed", "event_id": event, "success": true, "output": { "data": outputs, "is_generating": false },
            }),
            Self::Failed(sentence) => json!({
                "msg": "process_completed", "event_id": event, "success": false,
                "output": { "error": sentence, "title": "Error", "visible": true, "duration": 10 },
            }),
        };
        format!("data: {message}\n\n")
    }

    /// In curl's form, which has no word for how far a call is.
    pub fn named(&self) -> Option<String> {
        let (name, data) = match self {
            Self::Generating(all, _) => ("generating", json!(all)),
            Self::Completed(outputs) => ("complete", json!(outputs)),
            Self::Failed(sentence) => ("error", json!({ "error": sentence })),
            Self::Waits(..) | Self::Starts | Self::Progress(_) | Self::Warning(_) => return None,
        };
        Some(format!("event: {name}\ndata: {data}\n\n"))
    }
}

/// What changed from `old` to `new`, a list of edits an output.
pub fn edits(old: &[Value], new: &[Value]) -> Vec<Value> {
    let edit = |(old, new): (&Value, &Value)| match (old, new) {
        (old, new) if old == new => json!([]),
        (Value::String(old), Value::String(new)) if new.starts_with(old.as_str()) => {
            json!([["append", [], &new[old.len()..]]])
        }
        (_, new) => json!([["replace", [], new]]),
    };
    old.iter().zip(new).map(edit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_one_line_and_an_empty_one() {
        let messages = [
            Message::Waits(1, None),
            Message::Starts,
            Message::Progress(json!({ "phase": "a\nb", "done": 1, "total": 2, "unit": "steps" })),
            Message::Generating(vec![json!("x\ny")], None),
            Message::Warning("a\rb".to_owned()),
            Message::Completed(Vec::new()),
            Message::Failed("no\nmore".to_owned()),
        ];
        for message in messages {
            let text = message.of_session("e");
            let line = text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
            assert!(!line.contains(['\n', '\r']) && serde_json::from_str::<Value>(line).is_ok(), "{text}");
        }
    }

    #[test]
    fn only_what_changed_is_told_again() {
        let old = [json!("run"), json!("ab"), json!({ "step": 1 })];
        let new = [json!("run"), json!("abc"), json!({ "step": 2 })];
        assert_eq!(
            edits(&old, &new),
            [json!([]), json!([["append", [], "c"]]), json!([["replace", [], { "step": 2 }]])]
        );
    }
}
