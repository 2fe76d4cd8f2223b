//! Configurations in JSON, whose mistakes are told with the name of the field.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// `value` as `T`, all of whose fields have defaults; what is wrong is told with the name of its field.
pub fn parse<T: DeserializeOwned>(value: &Value) -> std::result::Result<T, String> {
    T::deserialize(value).map_err(|error| {
        let alone = |(name, value): &(&String, &Value)| {
            T::deserialize(Value::Object([((*name).clone(), (*value).clone())].into_iter().collect())).is_err()
        };
        match value.as_object().into_iter().flatten().find(alone) {
            Some((name, _)) => format!("`{name}`: {error}"),
            None => error.to_string(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, Default, serde::Deserialize)]
    #[serde(default)]
    struct Sizes {
        width: i64,
        names: Vec<String>,
    }

    #[test]
    fn the_field_that_cannot_be_read_is_named() {
        let sizes: Sizes = parse(&json!({ "width": 3, "names": ["a"], "other": null })).unwrap();
        assert_eq!((sizes.width, sizes.names.len()), (3, 1));
        let message = parse::<Sizes>(&json!({ "width": 3, "names": "a" })).unwrap_err();
        assert!(message.starts_with("`names`: invalid type"), "{message}");
    }
}
