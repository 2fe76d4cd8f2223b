//! What a GGUF file says of itself: values by key, and questions for them that name the key where an answer is missing.

use std::collections::BTreeMap;

/// A value of any of the format's types.
#[derive(Debug, Clone, PartialEq)]
pub enum MetadataValue {
    /// uint8, uint16, uint32 or uint64.
    Unsigned(u64),
    /// int8, int16, int32 or int64.
    Signed(i64),
    /// float32.
    F32(f32),
    /// float64.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// Values of one type.
    Array(Vec<MetadataValue>),
}

/// All values by key. A question's error is a sentence about the file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(pub(super) BTreeMap<String, MetadataValue>);

impl Metadata {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&MetadataValue> {
        self.0.get(key)
    }

    /// All keys, sorted, with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &MetadataValue)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The whole number `key`, where it is there.
    pub fn integer(&self, key: &str) -> Result<Option<i64>, String> {
        self.read(key, "a whole number", MetadataValue::as_integer)
    }

    /// The number `key`, where it is there. A float32 is given as the shortest decimal that is the same float32.
    pub fn number(&self, key: &str) -> Result<Option<f64>, String> {
        self.read(key, "a number", |value| match value {
            MetadataValue::F32(number) => number.to_string().parse().ok(),
            MetadataValue::F64(number) => Some(*number),
            other => other.as_integer().map(|integer| integer as f64),
        })
    }

    /// The truth value `key`, where it is there.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        self.read(key, "true or false", |value| match value {
            MetadataValue::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// The text `key`, where it is there.
    pub fn text(&self, key: &str) -> Result<Option<&str>, String> {
        self.read(key, "a text", MetadataValue::as_text)
    }

    /// The texts of the array `key`, where it is there.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, String> {
        self.read(key, "a list of texts", |value| value.elements(MetadataValue::as_text))
    }

    /// The whole numbers of the array `key`, where it is there.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, String> {
        self.read(key, "a list of whole numbers", |value| value.elements(MetadataValue::as_integer))
    }

    /// The float32s of the array `key`, where it is there.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, String> {
        self.read(key, "a list of float32", |value| {
            value.elements(|element| match element {
                MetadataValue::F32(number) => Some(*number),
                _ => None,
            })
        })
    }

    /// An answer that must be there.
    pub(super) fn required<T>(key: &str, answer: Result<Option<T>, String>) -> Result<T, String> {
        answer?.ok_or_else(|| format!("its metadata has no `{key}`; is the file complete?"))
    }

    fn read<'a, T>(
        &'a self,
        key: &str,
        kind: &str,
        as_kind: impl Fn(&'a MetadataValue) -> Option<T>,
    ) -> Result<Option<T>, String> {
        match self.get(key).map(as_kind) {
            Some(None) => Err(format!("`{key}` in its metadata must be {kind}")),
            answer => Ok(answer.flatten()),
        }
    }
}

impl MetadataValue {
    fn as_integer(&self) -> Option<i64> {
        match self {
            Self::Unsigned(number) => i64::try_from(*number).ok(),
            Self::Signed(number) => Some(*number),
            _ => None,
        }
    }

    fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn elements<'a, T>(&'a self, element: impl Fn(&'a Self) -> Option<T>) -> Option<Vec<T>> {
        match self {
            Self::Array(elements) => elements.iter().map(element).collect(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_another_type_is_told_with_its_key() {
        let values = [("size", MetadataValue::Unsigned(7)), ("eps", MetadataValue::F32(1e-5))];
        let metadata = Metadata(values.map(|(key, value)| (key.to_owned(), value)).into());
        assert_eq!(metadata.integer("size"), Ok(Some(7)));
        assert_eq!(metadata.number("eps"), Ok(Some(1e-5)));
        assert_eq!(metadata.integer("other"), Ok(None));
        assert!(metadata.text("size").unwrap_err().contains("`size`"));
        assert!(Metadata::required("other", metadata.flag("other")).unwrap_err().contains("`other`"));
    }
}
