//! A text made of a row's columns: `--prompt-template "Tweet text : {text} Label : "`, as PEFT's examples make theirs with
//! Python's `f"{column} : {value} Label : "`.

use super::records::Record;
use crate::error::{Error, Result};
use std::collections::BTreeSet;

/// Text with places for columns. `{{` and `}}` stand for braces, as in Python's `str.format`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptTemplate(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Column(String),
}

impl PromptTemplate {
    /// Reads a template; a brace that is not closed, not opened or empty is an error, and so is a template without a column.
    pub fn parse(template: &str) -> Result<Self> {
        let wrong = |cause: &str| Error::invalid(format!("⟨prompt_template⟩ {template:?} {cause}"));
        let (mut parts, mut text) = (Vec::new(), String::new());
        let mut chars = template.chars().peekable();
        while let Some(char) = chars.next() {
            match char {
                '{' | '}' if chars.peek() == Some(&char) => {
                    chars.next();
                    text.push(char);
                }
                '{' => {
                    let mut name = String::new();
                    loop {
                        match chars.next() {
                            Some('}') => break,
                            Some('{') | None => {
                                return Err(wrong("has a { without its }; write {{ for a brace itself"))
                            }
                            Some(char) => name.push(char),
                        }
                    }
                    if name.is_empty() {
                        return Err(wrong("has {} without a column's name in it"));
                    }
                    parts.push(Part::Text(std::mem::take(&mut text)));
                    parts.push(Part::Column(name));
                }
                '}' => return Err(wrong("has a } without its {; write }} for a brace itself")),
                char => text.push(char),
            }
        }
        parts.push(Part::Text(text));
        match parts.len() {
            1 => Err(wrong("has no place for a column, such as {text}: every row would be the same")),
            _ => Ok(Self(parts)),
        }
    }

    /// The template that is one column alone.
    pub fn column(name: &str) -> Self {
        Self(vec![Part::Column(name.to_owned())])
    }

    /// The columns that it has places for.
    pub fn columns(&self) -> BTreeSet<&str> {
        self.0
            .iter()
            .filter_map(|part| match part {
                Part::Column(name) => Some(name.as_str()),
                Part::Text(_) => None,
            })
            .collect()
    }

    /// The text of a row; a column that was not read is an error.
    pub fn render(&self, record: &Record) -> Result<String> {
        self.render_with(record, |value| value)
    }

    /// The same, of each column what `part` takes of its value.
    pub fn render_with<'a>(&self, record: &'a Record, part: impl Fn(&'a str) -> &'a str) -> Result<String> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Part::Text(fixed) => text.push_str(fixed),
                Part::Column(name) => text.push_str(part(record.get(name).ok_or_else(|| {
                    Error::invalid(format!(
                        "the prompt template asks for `{name}`, which is not a column of the records"
                    ))
                })?)),
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_take_their_places_and_doubled_braces_stay() {
        let template = PromptTemplate::parse("Tweet text : {Tweet text} {{x}} Label : ").unwrap();
        assert_eq!(template.columns().into_iter().collect::<Vec<_>>(), ["Tweet text"]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, r#"{"Tweet text": "{so} slow", "label": 1}"#).unwrap();
        let records = super::super::records::Records::read(&path, &["Tweet text"]).unwrap();
        let record = records.iter().next().unwrap();
        assert_eq!(template.render(&record).unwrap(), "Tweet text : {so} slow {x} Label : ");
        assert_eq!(PromptTemplate::column("Tweet text").render(&record).unwrap(), "{so} slow");
        assert!(PromptTemplate::column("label").render(&record).unwrap_err().to_string().contains("`label`"));
    }

    #[test]
    fn a_template_with_a_wrong_brace_or_without_a_column_is_refused() {
        for (template, says) in [
            ("a {text", "without its }"),
            ("a {te{xt}", "without its }"),
            ("a } {text}", "without its {"),
            ("a {}", "column's name"),
            ("a {{text}}", "no place for a column"),
            ("", "no place for a column"),
        ] {
            let error = PromptTemplate::parse(template).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("⟨prompt_template⟩"), "{error}");
        }
    }
}
