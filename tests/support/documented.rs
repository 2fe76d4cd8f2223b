//! The tables of docs/files.md.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub struct Documented(String);

impl Documented {
    pub fn read() -> Self {
        Self(std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/files.md")).unwrap())
    }

    /// The rows of the tables under the heading that is `name`, as cells.
    fn rows(&self, name: &str) -> Vec<Vec<&str>> {
        let is_heading = |line: &&str| line.starts_with('#');
        let is_own = |line: &&str| is_heading(line) && line.trim_start_matches('#').trim() == format!("`{name}`");
        let mut lines = self.0.lines().skip_while(|line| !is_own(line));
        assert!(lines.next().is_some(), "docs/files.md has no heading `{name}`");
        let lines = lines.take_while(|line| !is_heading(line)).filter(|line| line.starts_with("| `"));
        lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
    }

    /// The fields of the file or event called `name`.
    pub fn fields(&self, name: &str) -> BTreeSet<String> {
        let rows = self.rows(name);
        rows.iter().filter(|cells| cells.len() == 3).flat_map(|cells| quoted(cells[0])).collect()
    }

    /// Name to fields of each fact.
    pub fn facts(&self) -> BTreeMap<String, BTreeSet<String>> {
        let rows = self.rows("fact");
        let of_fact = |cells: &Vec<&str>| {
            let mut fields: BTreeSet<String> = quoted(&without_brackets(cells[1])).collect();
            if fields.remove("evaluations.jsonl") {
                fields.extend(self.fields("evaluations.jsonl"));
            }
            quoted(cells[0]).map(|name| (name, fields.clone())).collect::<Vec<_>>()
        };
        rows.iter().filter(|cells| cells.len() == 2).flat_map(of_fact).collect()
    }

    /// Everything in `events` that stands in no table.
    pub fn undocumented(&self, events: &[Value]) -> BTreeSet<String> {
        let facts = self.facts();
        let mut unknown = BTreeSet::new();
        for event in events {
            let name = event["event"].as_str().unwrap();
            let mut known = self.fields(name);
            if name == "step" {
                known.extend(self.fields("metrics.jsonl"));
            }
            if name == "fact" {
                let fact = event["name"].as_str().unwrap();
                assert!(!fact.is_empty() && !event["text"].as_str().unwrap().is_empty(), "{event}");
                match facts.get(fact) {
                    Some(fields) => known.extend(fields.iter().cloned()),
                    None => drop(unknown.insert(format!("fact {fact}"))),
                }
            }
            unknown.extend(keys(event).difference(&known).map(|key| format!("{name} {key}")));
        }
        unknown
    }
}

/// Names of an object's fields.
pub fn keys(object: &Value) -> BTreeSet<String> {
    object.as_object().unwrap_or_else(|| panic!("not an object: {object}")).keys().cloned().collect()
}

fn quoted(cell: &str) -> impl Iterator<Item = String> + use<> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>().into_iter()
}

fn without_brackets(text: &str) -> String {
    let mut depth = 0;
    let keep = |c: &char| {
        depth += i32::from(*c == '(');
        let inside = depth > 0;
        depth -= i32::from(*c == ')');
        !inside
    };
    text.chars().filter(keep).collect()
}
