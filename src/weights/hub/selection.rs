//! Which files of a repository are used.

use super::Request;
use crate::error::{Error, Result};
use crate::regular_file::{self, FileKind};
use crate::weights::other_pipelines;
use crate::weights::weight_files::{self, WeightFile};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The files of a tokenizer, those that exist.
const TOKENIZER: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
];

/// What says that a pipeline has a second text encoder.
const SECOND_ENCODER: &str = "text_encoder_2/config.json";

/// What is fetched of a repository.
pub(super) struct Selection {
    /// Files without which it is another kind of repository.
    required: Vec<String>,
    /// Files that come where they exist.
    optional: Vec<String>,
    /// Folders whose weights come.
    weights_of: Vec<String>,
    variant: Option<String>,
    kind: &'static str,
}

/// A pipeline in the diffusers layout.
pub(super) fn pipeline(request: &Request) -> Selection {
    let required = [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
    ];
    let tokenizers =
        ["tokenizer", "tokenizer_2"].iter().flat_map(|folder| TOKENIZER.map(|name| format!("{folder}/{name}")));
    Selection {
        required: required.map(str::to_owned).to_vec(),
        optional: tokenizers.chain([SECOND_ENCODER.to_owned()]).collect(),
        ..of_weights(request, "a Stable Diffusion pipeline in the diffusers layout")
    }
}

/// A VAE alone.
pub(super) fn vae(request: &Request) -> Selection {
    Selection { required: vec!["config.json".to_owned()], ..of_weights(request, "a VAE in the diffusers layout") }
}

/// A language model in the transformers layout.
pub(super) fn language_model(request: &Request) -> Selection {
    let mut optional = TOKENIZER.map(str::to_owned).to_vec();
    optional.push("generation_config.json".to_owned());
    Selection {
        required: vec!["config.json".to_owned()],
        optional,
        ..of_weights(request, "a model in the transformers layout")
    }
}

/// A tokenizer alone.
pub(super) fn tokenizer() -> Selection {
    Selection {
        optional: TOKENIZER.iter().flat_map(|name| [(*name).to_owned(), format!("tokenizer/{name}")]).collect(),
        ..of_weights(&Request::default(), "a tokenizer")
    }
}

fn of_weights(request: &Request, kind: &'static str) -> Selection {
    Selection {
        required: Vec::new(),
        optional: Vec::new(),
        weights_of: request.weights_of.iter().map(|part| (*part).to_owned()).collect(),
        variant: request.variant.map(str::to_owned),
        kind,
    }
}

impl Selection {
    /// The file that says what kind of model the repository is.
    pub(super) fn index_file(&self) -> Option<&str> {
        self.required.first().map(String::as_str).filter(|name| *name == "model_index.json")
    }

    /// Refuses what is not Stable Diffusion 1.x, 2.x or XL, by the model_index.json in `folder`.
    pub(super) fn check_index_file(&self, id: &str, folder: &Path) -> Result<()> {
        let Some(name) = self.index_file() else {
            return Ok(());
        };
        let path = folder.join(name);
        let text = regular_file::read_text(&path, FileKind::CONFIG)?;
        let index: Value =
            serde_json::from_str(&text).map_err(|e| Error::file(&path, format!("not valid JSON: {e}")))?;
        match other_pipelines::of_index(&index) {
            Some(other) => Err(Error::invalid(format!("`{id}` is {other}; {}", other_pipelines::SUPPORTED))),
            None => Ok(()),
        }
    }

    /// The configurations and tokenizer files among `names`.
    pub(super) fn configurations(&self, names: &BTreeSet<String>) -> Vec<String> {
        self.required.iter().chain(&self.optional).filter(|name| names.contains(*name)).cloned().collect()
    }

    /// The weights that are one file.
    pub(super) fn single_weights(&self, names: &BTreeSet<String>) -> Vec<String> {
        self.chosen(names)
            .filter_map(|(prefix, file)| match file {
                Some(WeightFile::Single(name)) => Some(format!("{prefix}{name}")),
                _ => None,
            })
            .collect()
    }

    /// The indices of weights that are sharded. An error where something that is needed is not among `names`.
    pub(super) fn indices(&self, names: &BTreeSet<String>) -> Result<Vec<String>> {
        self.check(names).map_err(Error::Invalid)?;
        let sharded = self.chosen(names).filter_map(|(prefix, file)| match file {
            Some(WeightFile::ShardIndex(name)) => Some(format!("{prefix}{name}")),
            _ => None,
        });
        Ok(sharded.collect())
    }

    /// The shards that the index `name` speaks of.
    pub(super) fn shards(&self, name: &str, shard_of: &BTreeMap<String, String>) -> BTreeSet<String> {
        let folder = name.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        shard_of.values().map(|shard| format!("{folder}{shard}")).collect()
    }

    /// The weights of each part: of the variant where the part has it, else what it has.
    fn chosen<'a>(&'a self, names: &'a BTreeSet<String>) -> impl Iterator<Item = (String, Option<WeightFile>)> + 'a {
        let is_there =
            |part: &&String| !SECOND_ENCODER.starts_with(&format!("{part}/")) || names.contains(SECOND_ENCODER);
        self.weights_of.iter().filter(is_there).map(move |part| {
            let prefix = if part.is_empty() { String::new() } else { format!("{part}/") };
            let exists = |name: &str| names.contains(&format!("{prefix}{name}"));
            let file = weight_files::choose(exists, self.variant.as_deref()).or(weight_files::choose(exists, None));
            (prefix, file)
        })
    }

    fn check(&self, names: &BTreeSet<String>) -> std::result::Result<(), String> {
        if let Some(name) = self.required.iter().find(|name| !names.contains(*name)) {
            let single = names.iter().find(|name| name.ends_with(".safetensors") && !name.contains('/'));
            return Err(match single {
                Some(single) if self.index_file().is_some() => {
                    format!(
                        "has no {name}, it is not {}; it has the file {single}: download it and give its path",
                        self.kind
                    )
                }
                _ => format!("has no {name}: it is not {}", self.kind),
            });
        }
        if self.required.is_empty() && self.configurations(names).is_empty() {
            return Err("holds no tokenizer (tokenizer.json, or vocab.json and merges.txt)".to_owned());
        }
        for (prefix, file) in self.chosen(names) {
            if file.is_none() {
                let pickle = names.iter().find(|name| {
                    name.strip_prefix(&prefix).is_some_and(|n| !n.contains('/') && weight_files::is_pickle(n))
                });
                return Err(match pickle {
                    Some(pickle) => format!(
                        "has its weights as a Python pickle ({pickle}), which can run code when it is read; find a repository or a `⟨revision⟩` with .safetensors, or save it again with `save_pretrained` in Python"
                    ),
                    None => format!("has no .safetensors weights in `{}`", prefix.trim_end_matches('/')),
                });
            }
        }
        let Some(variant) = self.variant.as_deref().filter(|_| !self.weights_of.is_empty()) else {
            return Ok(());
        };
        let has_variant = self.weights_of.iter().any(|part| {
            let prefix = if part.is_empty() { String::new() } else { format!("{part}/") };
            weight_files::choose(|name| names.contains(&format!("{prefix}{name}")), Some(variant)).is_some()
        });
        match has_variant {
            true => Ok(()),
            false => Err(format!("has no weights of the variant `{variant}`; leave `⟨variant⟩` out")),
        }
    }
}
