//! A language model with adapters folded into its weights, as transformers saves one: for tools that know no adapters.

use crate::adapters::inspect::dtype;
use crate::adapters::merge::{self, Folding, Shapes};
use crate::adapters::model_folder::{into_folder, Existing};
use crate::data::language_dataset::LanguageTask;
use crate::data::tokenizers::LanguageTokenizer;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::models::language::{HeadOutline, LanguageModelFiles, Outline};
use crate::recipes::language::base::WantedModel;
use crate::recipes::language::given_adapters::{of_other_model, GivenAdapters};
use crate::recipes::training::observer::{Event, Observer};
use crate::weights::WeightSet;
use crate::whole_file::write_json;
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

/// Writes the model with the adapters, each at its strength, folded in to the folder `out`; `existing` says what becomes of
/// a model that is there. Dtypes are those of the model's files, float32 where a GGUF file's are quantised, or `kind` where it is given.
pub fn write(
    model: &WantedModel,
    adapters: &GivenAdapters,
    kind: Option<Kind>,
    (out, existing): (&Path, Existing),
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<()> {
    if adapters.prompt().is_some() {
        return Err(Error::invalid(
            "a prompt is put before the text and changes no weights, so it cannot be merged; use it with `lorabooth complete --adapter`",
        ));
    }
    let files = model.open_files(observer)?;
    adapters.check_for(&files)?;
    let mut merged = Merged::new(&files, adapters)?;
    if files.gguf().is_some() && kind.is_none() {
        observer.fact_with(
            "dtype",
            "float32, as the file's weights are quantised; ⟨dtype⟩ bf16 takes half the space",
            serde_json::json!({ "dtype": "fp32" }),
        );
    }
    if let Some(kind) = kind {
        merged.kind = Some(kind);
        for name in ["dtype", "torch_dtype"] {
            if let Some(said) = merged.config.get_mut(name) {
                *said = json!(dtype(kind));
            }
        }
    }
    into_folder(out, existing, |partial| {
        match files.gguf() {
            Some(model) => LanguageTokenizer::from_gguf(model.file())?.write(partial)?,
            None => merge::copy_files(files.root(), partial, is_kept)?,
        }
        write_json(&partial.join("config.json"), &merged.config)?;
        let mut progress = |done, total| observer.merging(done, total, interrupt);
        let written = merged.folding(adapters).write(&partial.join("model.safetensors"), &mut progress);
        observer.on(Event::End);
        written
    })
}

/// Starts of the names of files that are as true of the merged model: its tokenizer, how it writes, its licence.
const KEPT: [&str; 11] = [
    "tokenizer",
    "vocab",
    "merges",
    "special_tokens_map",
    "added_tokens",
    "spiece",
    "sentencepiece",
    "generation_config",
    "chat_template",
    "LICENSE",
    "NOTICE",
];

fn is_kept(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    KEPT.iter().any(|start| name.starts_with(start))
}

/// What the merged model's files say.
struct Merged {
    config: Value,
    weights: WeightSet,
    added: BTreeMap<String, Tensor>,
    transposed: &'static [&'static str],
    kind: Option<Kind>,
}

impl Merged {
    fn new(files: &LanguageModelFiles, adapters: &GivenAdapters) -> Result<Self> {
        let (weights, mut config) = (files.weights()?, files.config().clone());
        // What is written has the dtype that codes of 4 bits stand for.
        if let Some(fields) = config.as_object_mut() {
            fields.shift_remove("quantization_config");
        }
        let transposed = files.architecture().transposed;
        let merged = Self { config, weights, added: BTreeMap::new(), transposed, kind: None };
        let merged = match adapters.are_for(LanguageTask::SeqCls) {
            true => merged.with_classes(files, adapters)?,
            false => merged,
        };
        let merged = merged.untied(&files.outline()?, adapters)?;
        merged.check(adapters)?;
        Ok(merged)
    }

    fn folding<'a>(&'a self, adapters: &'a GivenAdapters) -> Folding<'a> {
        Folding {
            weights: &self.weights,
            adapters: adapters.on_weights().collect(),
            added: self.added.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect(),
            spell: str::to_owned,
            transposed: self.transposed,
            shapes: Shapes::AsTheyAre,
            kind: self.kind,
        }
    }

    /// Refuses adapters that are of another model.
    fn check(&self, adapters: &GivenAdapters) -> Result<()> {
        self.folding(adapters).check().map_err(|error| match adapters.on_weights().next() {
            Some((adapter, _)) => of_other_model(error, adapter),
            None => error,
        })
    }

    /// As a classifier, with the head that the adapters have trained.
    fn with_classes(mut self, files: &LanguageModelFiles, adapters: &GivenAdapters) -> Result<Self> {
        let architecture = files.architecture();
        let head = format!("{}.", architecture.classifier_head());
        let tensors = adapters.on_weights().flat_map(|(adapter, _)| &adapter.tensors);
        let of_head = tensors.filter(|(name, _)| name.starts_with(&head) && !name.contains(".lora_"));
        self.added.extend(of_head.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())));
        let added = &self.added;
        self.weights = self.weights.respelled(|key| {
            let of_other_head = architecture.is_of_head(key) && !key.starts_with(&head);
            (!of_other_head && !added.contains_key(key)).then(|| key.to_owned())
        });
        self.check(adapters)?;
        let mut keys = files.classifier_keys()?.into_iter();
        if let Some(key) = keys.find(|key| !self.weights.contains(key) && !self.added.contains_key(key)) {
            return Err(Error::file(
                files.root(),
                format!("has no `{key}`: it was drawn for the adapter, whose files lack it too, so nothing whole can be merged"),
            ));
        }
        let labels = adapters.head_rows(files)?.unwrap_or(2);
        // Without names as transformers calls them.
        let unnamed = || (0..labels).map(|id| format!("LABEL_{id}")).collect();
        let classes = adapters.classes(files)?.unwrap_or_else(unnamed);
        let class = architecture.classes.iter().find(|class| class.ends_with("ForSequenceClassification"));
        let numbered = || classes.iter().enumerate();
        let names: Map<String, Value> = numbered().map(|(id, name)| (id.to_string(), json!(name))).collect();
        let ids: Map<String, Value> = numbered().map(|(id, name)| (name.clone(), json!(id))).collect();
        self.config["architectures"] = json!([class]);
        self.config["id2label"] = names.into();
        self.config["label2id"] = ids.into();
        Ok(self)
    }

    /// Where adapters change a table of embeddings, or the output, and the model has one tensor for both: with two, as an adapter
    /// changes the one that it is on alone.
    fn untied(mut self, outline: &Outline, adapters: &GivenAdapters) -> Result<Self> {
        let changes = |path: &str| {
            let key = format!("{path}.weight");
            adapters.on_weights().any(|(adapter, _)| adapter.tensors.keys().any(|name| merge::weight_of(name) == key))
        };
        let table = &outline.table;
        let shared = outline.readers.iter().any(|path| changes(path));
        let output = match &outline.head {
            HeadOutline::Tokens { path, tied: true } if changes(path) || changes(table) => Some(path),
            _ => None,
        };
        if shared || (output.is_some() && outline.encoder_blocks.is_some()) {
            return Err(Error::invalid(
                "the adapter changes a table of embeddings, of which this model has one for encoder, decoder and output: folded in, \
                 it would change all of them; use the adapter beside the model",
            ));
        }
        if let Some(path) = output {
            let key = format!("{path}.weight");
            if !self.weights.contains(&key) {
                self.weights = self.weights.with_copy(&format!("{table}.weight"), &key)?;
            }
            self.config["tie_word_embeddings"] = json!(false);
        }
        Ok(self)
    }
}
