//! Flags that give modules values of their own, as PEFT's `rank_pattern` and `alpha_pattern` do.

use indexmap::IndexMap;
use serde::de::DeserializeOwned;
use serde::Serialize;
use std::str::FromStr;

/// A value by module name, or by a regular expression for the end of a module's path; the first that matches counts.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct PatternFlag<T>(pub IndexMap<String, T>);

impl<T: FromStr + DeserializeOwned> FromStr for PatternFlag<T> {
    type Err = String;

    /// From `to_q=16,to_v=4`, or from a JSON object such as `{"mid_block.*to_q": 16}`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim_start().starts_with('{') {
            return serde_json::from_str(text).map(Self).map_err(|error| format!("not an object of numbers: {error}"));
        }
        let mut values = IndexMap::new();
        for pair in text.split(',') {
            let parsed =
                pair.rsplit_once('=').and_then(|(name, value)| Some((name.trim(), value.trim().parse().ok()?)));
            let (name, value) = parsed.filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
                format!("`{pair}` is not `name=number`; write them as to_q=16,to_v=4, or as a JSON object")
            })?;
            if values.insert(name.to_owned(), value).is_some() {
                return Err(format!("`{name}` is given twice"));
            }
        }
        Ok(Self(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_and_objects_are_the_same_and_mistakes_are_named() {
        let pairs: PatternFlag<i64> = "to_q=16, mid.*to_v=4".parse().unwrap();
        assert_eq!(pairs, r#"{"to_q": 16, "mid.*to_v": 4}"#.parse().unwrap());
        assert_eq!(pairs.0.keys().collect::<Vec<_>>(), ["to_q", "mid.*to_v"]);
        for (text, word) in [
            ("to_q", "`to_q`"),
            ("to_q=many", "`to_q=many`"),
            ("=4", "`=4`"),
            ("", "``"),
            ("a=1,a=2", "twice"),
            ("{", "object"),
            (r#"{"a": "b"}"#, "object"),
            (r#"{"a": 1.5}"#, "object"),
        ] {
            let message = PatternFlag::<i64>::from_str(text).unwrap_err();
            assert!(message.contains(word) && !message.contains('\n'), "{text}: {message}");
        }
    }
}
