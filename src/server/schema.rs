//! Words for JSON Schema, in which `/openapi.json` says what answers are like.

use serde_json::{json, Map, Value};

/// An object with these properties, all of them, and no others.
pub fn object<const N: usize>(properties: [(&str, Value); N]) -> Value {
    with(json!({ "type": "object", "properties": {}, "required": [], "additionalProperties": false }), properties)
}

/// The object `schema` with more properties.
pub fn with<const N: usize>(mut schema: Value, properties: [(&str, Value); N]) -> Value {
    for (name, of) in properties {
        schema["properties"][name] = of;
        if let Some(required) = schema["required"].as_array_mut() {
            required.push(json!(name));
        }
    }
    schema
}

/// The schema that the document calls `name`.
pub fn named(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// This or null.
pub fn or_null(schema: Value) -> Value {
    one_of([schema, json!({ "type": "null" })])
}

/// One of these.
pub fn one_of<const N: usize>(schemas: [Value; N]) -> Value {
    json!({ "anyOf": schemas.to_vec() })
}

/// One of these texts.
pub fn word(words: &[&str]) -> Value {
    json!({ "type": "string", "enum": words })
}

/// A list.
pub fn list_of(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}

/// An object with any properties.
pub fn map() -> Value {
    Value::Object(Map::from_iter([("type".to_owned(), json!("object"))]))
}

/// A text.
pub fn text() -> Value {
    json!({ "type": "string" })
}

/// A whole number.
pub fn integer() -> Value {
    json!({ "type": "integer" })
}

/// A number.
pub fn number() -> Value {
    json!({ "type": "number" })
}

/// True or false.
pub fn truth() -> Value {
    json!({ "type": "boolean" })
}
