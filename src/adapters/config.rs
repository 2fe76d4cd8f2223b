//! `adapter_config.json`: PEFT's `LoraConfig`, read and written as PEFT does.

use super::prompt::PromptMethod;
use crate::error::{Error, Result};
use clap::ValueEnum;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which modules get an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// A regular expression that must match the whole path, or `all-linear`.
    Pattern(String),
    /// Names: a module matches when its path is one of them or ends with `.` and one of them.
    Names(Vec<String>),
}

impl TargetModules {
    /// From a flag's value: names parted by commas, `all-linear`, or a regular expression (which has a character that
    /// no module name has).
    pub fn from_flag(value: &str) -> Self {
        let is_name = |part: &str| part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
        let parts: Vec<&str> = value.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        if value != "all-linear" && !parts.is_empty() && parts.iter().all(|part| is_name(part)) {
            return Self::Names(parts.into_iter().map(str::to_owned).collect());
        }
        Self::Pattern(value.to_owned())
    }
}

/// Which biases are trained with the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// All of the model.
    All,
    /// Those of targeted modules.
    LoraOnly,
}

/// How A and B start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum InitWeights {
    // PEFT's `true`.
    /// A Kaiming-uniform, B zero.
    #[default]
    #[value(name = "true")]
    Kaiming,
    /// PEFT's `false`: both drawn, so that a fresh adapter changes the output (for tests).
    #[value(skip)]
    Drawn,
    /// A normal with deviation 1/r, B zero.
    Gaussian,
}

impl Serialize for InitWeights {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            InitWeights::Kaiming => serializer.serialize_bool(true),
            InitWeights::Drawn => serializer.serialize_bool(false),
            InitWeights::Gaussian => serializer.serialize_str("gaussian"),
        }
    }
}

/// Whether PEFT takes a part of the base weight away when an adapter is made with this initialisation: what it saves is then the
/// change to a model that nobody has (peft `LoraLayer.pissa_init`, `olora_init`, `corda_init`, `loftq_init`, `lora_ga_init`).
fn changes_the_base(name: &str) -> bool {
    let name = name.to_lowercase();
    ["pissa", "olora", "corda", "loftq", "lora_ga"].iter().any(|start| name.starts_with(start))
}

impl<'de> Deserialize<'de> for InitWeights {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Ok(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(name) if changes_the_base(&name) => {
                return Err(serde::de::Error::custom(format!(
                    "init_lora_weights `{name}` changes the model's own weights too, which a LoRA file does not hold; save it as a \
                     plain LoRA, in PEFT by save_pretrained(…, path_initial_model_for_weight_conversion=…)"
                )))
            }
            // Other ways of starting (orthogonal, eva, …) were carried out when the file was made: A and B are in it.
            serde_json::Value::Bool(false) => InitWeights::Drawn,
            serde_json::Value::String(name) if name == "gaussian" => InitWeights::Gaussian,
            _ => InitWeights::Kaiming,
        })
    }
}

/// PEFT's `LoraConfig`. Unknown fields are ignored on reading; those that would change the numbers and that we cannot
/// honour are refused by [`LoraConfig::checked`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraConfig {
    /// Always `LORA` here.
    pub peft_type: String,
    /// `CAUSAL_LM` and so on; none for images.
    pub task_type: Option<String>,
    /// The model that the adapter is for.
    pub base_model_name_or_path: Option<String>,
    /// Class and library of the base model, where there is no task type.
    pub auto_mapping: Option<serde_json::Value>,
    /// Rank.
    pub r: i64,
    /// Strength: the change is scaled by alpha/r.
    pub lora_alpha: f64,
    /// Probability that an input of A is zeroed in training.
    pub lora_dropout: f64,
    /// Which modules get an adapter.
    pub target_modules: Option<TargetModules>,
    /// Modules that get none although they match.
    pub exclude_modules: Option<TargetModules>,
    /// Weights are kept transposed (GPT-2's Conv1D).
    pub fan_in_fan_out: bool,
    /// Which biases are trained.
    pub bias: Bias,
    /// Scale by alpha/√r (arXiv 2312.03732).
    pub use_rslora: bool,
    /// Train row norms beside (arXiv 2402.09353).
    pub use_dora: bool,
    /// Modules that are trained and saved whole.
    pub modules_to_save: Option<Vec<String>>,
    /// How A and B start.
    pub init_lora_weights: InitWeights,
    /// Only these layer numbers.
    pub layers_to_transform: Option<OneOrMany<i64>>,
    /// Name of the list of layers that the numbers count.
    pub layers_pattern: Option<OneOrMany<String>>,
    /// Ranks that differ, by name or regular expression; the first that matches counts.
    pub rank_pattern: IndexMap<String, i64>,
    /// Alphas that differ, likewise.
    pub alpha_pattern: IndexMap<String, f64>,
    #[serde(flatten)]
    /// Fields that are not used here, kept for writing the file again.
    pub other: BTreeMap<String, serde_json::Value>,
}

/// A value or a list of them, as PEFT's files have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// A single one.
    One(T),
    /// A list.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// As a list.
    pub fn as_slice(&self) -> &[T] {
        match self {
            OneOrMany::One(one) => std::slice::from_ref(one),
            OneOrMany::Many(many) => many,
        }
    }
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: None,
            base_model_name_or_path: None,
            auto_mapping: None,
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: None,
            exclude_modules: None,
            fan_in_fan_out: false,
            bias: Bias::None,
            use_rslora: false,
            use_dora: false,
            modules_to_save: None,
            init_lora_weights: InitWeights::Kaiming,
            layers_to_transform: None,
            layers_pattern: None,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            other: BTreeMap::new(),
        }
    }
}

/// Fields that change what an adapter computes and that are not supported.
const UNSUPPORTED: &[&str] = &[
    "lora_bias",
    // GPT-2's MergedLinear of the first PEFT.
    "enable_lora",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "use_qalora",
    "velora_config",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "alora_invocation_tokens",
    "monteclora_config",
];

impl LoraConfig {
    /// Itself, or what cannot be honoured.
    pub fn checked(self) -> Result<Self> {
        if PromptMethod::of(&self.peft_type).is_some() {
            return Err(Error::invalid(format!(
                "an adapter of type {} changes no weights, so it cannot be merged, converted or put on a model's layers; \
                 `complete --adapter` uses it",
                self.peft_type
            )));
        }
        if self.peft_type != "LORA" {
            return Err(Error::invalid(format!("adapters of type {} are not supported here; LORA is", self.peft_type)));
        }
        if self.r < 1 {
            return Err(Error::invalid(format!("the LoRA rank is {}; it must be at least 1", self.r)));
        }
        if let Some((name, rank)) = self.rank_pattern.iter().find(|(_, &rank)| rank < 1) {
            return Err(Error::invalid(format!("rank_pattern gives {name} the rank {rank}; it must be at least 1")));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(Error::invalid(format!("the LoRA dropout is {}; it must be in [0, 1)", self.lora_dropout)));
        }
        if !self.lora_alpha.is_finite() || self.alpha_pattern.values().any(|alpha| !alpha.is_finite()) {
            return Err(Error::invalid("the LoRA alpha must be a finite number"));
        }
        let mut keys = self.rank_pattern.keys().chain(self.alpha_pattern.keys());
        if let Some(key) = keys.find(|key| !is_plain(key) && pattern_of(key).is_err()) {
            return Err(Error::invalid(format!("the pattern `{key}` is not a regular expression")));
        }
        let empty = |value: &serde_json::Value| match value {
            serde_json::Value::Null | serde_json::Value::Bool(false) => true,
            serde_json::Value::Array(list) => list.is_empty(),
            serde_json::Value::Object(map) => map.is_empty(),
            _ => false,
        };
        match UNSUPPORTED.iter().find(|&&name| self.other.get(name).is_some_and(|value| !empty(value))) {
            Some(name) => Err(Error::invalid(format!("the adapter's `{name}` is not supported"))),
            None => Ok(self),
        }
    }

    /// Whether the module at `path` trains whole and gets no adapter (`modules_to_save`).
    pub fn saves_whole(&self, path: &str) -> bool {
        self.modules_to_save.iter().flatten().any(|module| is_within(path, module))
    }

    /// The rank of the module at `path`.
    pub fn rank_of(&self, path: &str) -> i64 {
        from_pattern(&self.rank_pattern, path).unwrap_or(self.r)
    }

    /// The alpha of the module at `path`.
    pub fn alpha_of(&self, path: &str) -> f64 {
        from_pattern(&self.alpha_pattern, path).unwrap_or(self.lora_alpha)
    }

    /// What multiplies `B A` in the module at `path`: alpha/r, or alpha/√r with rsLoRA.
    pub fn scaling_of(&self, path: &str) -> f64 {
        let rank = self.rank_of(path) as f64;
        self.alpha_of(path) / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

/// Whether the module at `path`, or one that it is in, is called so that PEFT takes it for the saved `module`: by how the
/// path ends, be it in the middle of a name.
pub(super) fn is_within(path: &str, module: &str) -> bool {
    path.match_indices('.').map(|(dot, _)| &path[..dot]).chain([path]).any(|part| part.ends_with(module))
}

/// The value of the first key, in the order of the file or flag, that names the path, as PEFT's `get_pattern_key`.
fn from_pattern<T: Copy>(patterns: &IndexMap<String, T>, path: &str) -> Option<T> {
    patterns.iter().find(|(key, _)| pattern_matches(key, path)).map(|(_, &value)| value)
}

/// Whether a pattern's key is the path, or a regular expression for its end.
pub(super) fn pattern_matches(key: &str, path: &str) -> bool {
    if !is_plain(key) {
        return pattern_of(key).is_ok_and(|pattern| pattern.is_match(path));
    }
    let start = path.len().checked_sub(key.len());
    let (Some(start), bytes) = (start, path.as_bytes()) else { return false };
    let same = key.bytes().zip(&bytes[start..]).all(|(k, &p)| k == b'.' || k == p);
    same && (start == 0 || bytes[start - 1] == b'.')
}

/// Most keys are plain names, thousands of which are compared when each module has its own: no expression is built.
fn is_plain(key: &str) -> bool {
    key.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'.')
}

fn pattern_of(key: &str) -> std::result::Result<regex::Regex, regex::Error> {
    regex::Regex::new(&format!(r"^(?:.*\.)?(?:{key})$"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_that_matches_counts_as_in_peft() {
        let read = |text: &str| serde_json::from_str::<LoraConfig>(text).unwrap();
        let config = read(
            r#"{"r": 4, "alpha_pattern": {"to_q": 8, "attn1.to_q": 4}, "rank_pattern": {"b.to_q": 2, "to_q": 3}}"#,
        );
        assert_eq!((config.alpha_of("a.attn1.to_q"), config.rank_of("b.to_q"), config.rank_of("c.to_q")), (8.0, 2, 3));
        // Written and read again they mean the same.
        let again = read(&serde_json::to_string(&config).unwrap());
        assert_eq!(again.alpha_of("a.attn1.to_q"), 8.0);
    }

    #[test]
    fn initialisations_that_change_the_base_weights_are_refused_by_name() {
        for name in ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"] {
            let text = format!(r#"{{"init_lora_weights": "{name}"}}"#);
            let error = serde_json::from_str::<LoraConfig>(&text).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("path_initial_model_for_weight_conversion"), "{error}");
        }
        let harmless = serde_json::from_str::<LoraConfig>(r#"{"init_lora_weights": "orthogonal"}"#).unwrap();
        assert_eq!(harmless.init_lora_weights, InitWeights::Kaiming);
    }

    #[test]
    fn a_minimal_file_and_unknown_fields_are_read() {
        let config: LoraConfig =
            serde_json::from_str(r#"{"target_modules":["q"],"peft_type":"LORA","novelty":3,"lora_bias":false}"#)
                .unwrap();
        let config = config.checked().unwrap();
        assert_eq!((config.r, config.lora_alpha), (8, 8.0));
        assert_eq!(config.target_modules, Some(TargetModules::Names(vec!["q".into()])));
    }

    #[test]
    fn what_would_change_the_numbers_is_refused_by_name() {
        for (json, word) in [
            (r#"{"lora_bias":true}"#, "lora_bias"),
            (r#"{"r":0}"#, "rank"),
            (r#"{"lora_dropout":1.5}"#, "dropout"),
            (r#"{"peft_type":"LOHA"}"#, "LOHA"),
        ] {
            let message = serde_json::from_str::<LoraConfig>(json).unwrap().checked().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn ranks_and_alphas_follow_their_patterns() {
        let config: LoraConfig = serde_json::from_str(
            r#"{"r":4,"lora_alpha":2,"use_rslora":true,"rank_pattern":{"to_q":16,"mid.*to_v":9},"alpha_pattern":{"to_q":8}}"#,
        )
        .unwrap();
        assert_eq!(config.rank_of("down.0.to_q"), 16);
        assert_eq!(config.rank_of("mid.0.to_v"), 9);
        assert_eq!(config.rank_of("down.0.to_v"), 4);
        assert_eq!(config.scaling_of("down.0.to_q"), 2.0);
    }
}
