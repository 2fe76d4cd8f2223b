//! Adapters folded into a model, which is then one of its own.

use super::{language_model, new_single_file, pipeline, single_file};
use crate::adapters::formats::language_adapter_at;
use crate::adapters::model_folder::{self, Existing};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::options::adapter_argument::path_and_scale;
use crate::options::merge::MergeConfig;
use crate::recipes::language::base::WantedModel;
use crate::recipes::language::given_adapters::GivenAdapters;
use crate::recipes::training::observer::Observer;
use crate::recipes::{open_model, read_adapter};
use crate::train::folder_lock::FolderLock;
use std::path::{Path, PathBuf};
use tch::Kind;

/// Writes the model of `config` with its adapters folded in: the folder, whole or, once `interrupt` is set, not at all.
pub fn merge(config: &MergeConfig, interrupt: &Interrupt, observer: &mut dyn Observer) -> Result<PathBuf> {
    let kind = config.dtype.map(Kind::from);
    let _watch = interrupt.watch();
    let given = config.lora.iter().map(|text| path_and_scale("⟨lora⟩", text)).collect::<Result<Vec<_>>>()?;
    let as_file = config.output_dir.extension().is_some_and(|end| end.eq_ignore_ascii_case("safetensors"))
        && !config.output_dir.is_dir();
    let existing = Existing::of(config.overwrite);
    if !as_file {
        model_folder::check(&config.output_dir, existing)?;
        FolderLock::check_free(&config.output_dir)?;
    } else if !config.overwrite && std::fs::symlink_metadata(&config.output_dir).is_ok() {
        return Err(Error::is_there(config.output_dir.clone(), "⟨output_dir⟩"));
    }
    config.output_dir.parent().map_or(Ok(()), FolderLock::check_free)?;
    let out = (config.output_dir.as_path(), existing);
    let mut of_language_model = false;
    for (path, _) in &given {
        of_language_model |= language_adapter_at(path)?.is_some();
    }
    match of_language_model {
        true if as_file => Err(Error::Usage(format!(
            "{}: a language model is written as a folder; give a folder's name, without .safetensors",
            config.output_dir.display()
        ))),
        true => {
            // What is wrong with it is told before anything of the model is.
            let adapters = GivenAdapters::read(&config.lora)?;
            config.model.check_for_language_model()?;
            let model = WantedModel::new(Path::new(&config.model.name), config.model.revision.as_deref());
            model.check_path()?;
            adapters.warnings().iter().for_each(|text| observer.warning(text.clone()));
            language_model::write(&model, &adapters, kind, out, interrupt, observer)
        }
        false => {
            config.model.check_paths()?;
            let files = open_model(&config.model.name, &config.model.options(), observer)?;
            let mut adapters = Vec::new();
            for (path, scale) in given {
                adapters.push((read_adapter(&path, &files, observer)?, scale));
            }
            let file = &config.output_dir;
            match files.checkpoint() {
                Some(checkpoint) if as_file => {
                    single_file::write(&files, checkpoint, &adapters, kind, file, interrupt, observer)
                }
                None if as_file => new_single_file::write(&files, &adapters, kind, file, interrupt, observer),
                _ => pipeline::write(&files, &config.model, &adapters, kind, out, interrupt, observer),
            }
        }
    }
    .map_err(|error| match error {
        Error::Interrupted(what) if what.is_empty() => Error::Interrupted("nothing was written".into()),
        other => other,
    })?;
    Ok(config.output_dir.clone())
}
