//! What the small files beside a vocabulary say: special tokens, and tokens that are found in a text as they are.

use super::json_files::optional_object;
use crate::error::Result;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::AddedToken;

/// Transformers writes 1e30 for "no limit".
const LARGEST_MAX_LENGTH: f64 = 1e6;

/// What a tokenizer's small files say.
pub(super) struct SpecialTokens {
    /// `bos_token`, `eos_token`, … to the token's text.
    names: BTreeMap<&'static str, String>,
    /// Tokens that are found in a text before it is split into words; a later one replaces an earlier one.
    pub(super) added: Vec<AddedToken>,
    /// How many of them, from the first, have an id in a file; the others are only named.
    pub(super) listed: usize,
    /// `model_max_length`, where it is a length.
    pub(super) max_length: Option<usize>,
    /// All of `tokenizer_config.json`.
    pub(super) config: Map<String, Value>,
}

impl SpecialTokens {
    /// In the order in which transformers adds them.
    const ROLES: [&'static str; 7] =
        ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

    /// Reads `tokenizer_config.json`, and where it is an older one `special_tokens_map.json`, `added_tokens.json` and the
    /// list in the `whole` of `tokenizer.json`. `defaults` are the tokens of roles that no file names.
    pub(super) fn read(folder: &Path, whole: Option<&Value>, defaults: &[(&str, &str)]) -> Result<Self> {
        let mut config = optional_object(&folder.join("tokenizer_config.json"))?;
        // Token texts by id: from the configuration, or in older folders from the other files.
        let mut by_id = BTreeMap::new();
        if let Some(tokens) = config.get("added_tokens_decoder").and_then(Value::as_object) {
            by_id.extend(tokens.iter().filter_map(|(id, token)| Some((id.parse::<u64>().ok()?, added(token, false)?))));
        } else {
            let map = optional_object(&folder.join("special_tokens_map.json"))?;
            for (role, token) in map {
                config.insert(role, mark_special(token));
            }
            let older = optional_object(&folder.join("added_tokens.json"))?;
            let named = |text: &str| Self::ROLES.iter().any(|role| config.get(*role).and_then(text_of) == Some(text));
            by_id.extend(
                older
                    .iter()
                    .filter_map(|(text, id)| Some((id.as_u64()?, AddedToken::from(text.as_str(), named(text))))),
            );
            let listed = whole.and_then(|whole| whole.get("added_tokens")).and_then(Value::as_array);
            by_id.extend(
                listed
                    .into_iter()
                    .flatten()
                    .filter_map(|token| Some((token.get("id")?.as_u64()?, added(token, false)?))),
            );
        }
        let mut added_tokens: Vec<AddedToken> = by_id.into_values().collect();
        let listed: Vec<String> = added_tokens.iter().map(|token| token.content.clone()).collect();
        let mut names = BTreeMap::new();
        for role in Self::ROLES {
            let default = defaults.iter().find(|(named, _)| *named == role);
            let token = config.get(role).and_then(|token| added(token, true));
            let token = token.or_else(|| default.map(|(_, text)| AddedToken::from(*text, true)));
            let Some(token) = token else { continue };
            names.insert(role, token.content.clone());
            if !listed.contains(&token.content) {
                added_tokens.push(token);
            }
        }
        let further = config.get("additional_special_tokens").or_else(|| config.get("extra_special_tokens"));
        for token in further.and_then(Value::as_array).into_iter().flatten().filter_map(|token| added(token, true)) {
            if !listed.contains(&token.content) {
                added_tokens.push(token);
            }
        }
        let max_length = config.get("model_max_length").and_then(Value::as_f64);
        let max_length = max_length.filter(|&length| (0.0..=LARGEST_MAX_LENGTH).contains(&length));
        Ok(Self {
            names,
            added: added_tokens,
            listed: listed.len(),
            max_length: max_length.map(|length| length as usize),
            config,
        })
    }

    /// The text of the token in a role.
    pub(super) fn name(&self, role: &str) -> Option<&str> {
        self.names.get(role).map(String::as_str)
    }

    /// A truth value of `tokenizer_config.json`.
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.config.get(name).and_then(Value::as_bool)
    }

    /// A text of `tokenizer_config.json`.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.config.get(name).and_then(Value::as_str)
    }
}

/// A token of a JSON file: its text, or an object with `content` and flags. A bare text is `special`; an object
/// without `normalized` is normalized where it is not special.
fn added(token: &Value, special: bool) -> Option<AddedToken> {
    if let Some(text) = token.as_str() {
        return Some(AddedToken::from(text, special));
    }
    let flag = |name: &str| token.get(name).and_then(Value::as_bool);
    let token = AddedToken::from(text_of(token)?, flag("special").unwrap_or(false))
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false));
    Some(match flag("normalized") {
        Some(normalized) => token.normalized(normalized),
        None => token,
    })
}

fn text_of(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// An object of `special_tokens_map.json` is special whatever it says.
fn mark_special(mut token: Value) -> Value {
    if let Some(object) = token.as_object_mut() {
        object.insert("special".to_owned(), Value::Bool(true));
    }
    token
}
