//! An adapter in another file format.

use super::kohya_metadata;
use super::training::observer::Observer;
use crate::adapters::diffusers_file::FILE_NAME;
use crate::adapters::formats::{check_family, language_adapter_at};
use crate::adapters::model_folder::{into_folder, Existing};
use crate::adapters::peft_folder::{self, peft_type, CONFIG_FILE, MODEL_FILE};
use crate::adapters::{read_any, write_diffusers, write_kohya, write_peft, AdapterSet, Part, TextEncoderSpelling};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::options::convert::{ConvertConfig, OutputFormat};
use crate::train::folder_lock::FolderLock;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Kind;

/// Files of PEFT's in `folder` for parts that `set` has no adapter for.
fn parts_of_another(folder: &Path, set: &AdapterSet) -> impl Iterator<Item = PathBuf> {
    let others: Vec<Part> = Part::ALL.into_iter().filter(|part| set.part(*part).is_none()).collect();
    let folder = folder.to_owned();
    let files = others.into_iter().flat_map(move |part| {
        let part = folder.join(part.name());
        [CONFIG_FILE, MODEL_FILE].map(|file| part.join(file))
    });
    files.filter(|file| std::fs::symlink_metadata(file).is_ok())
}

/// Writes the adapter of `config` in another format: the folder or the file.
pub fn convert(config: &ConvertConfig, interrupt: &Interrupt, observer: &mut dyn Observer) -> Result<PathBuf> {
    let _watch = interrupt.watch();
    if let Some(folder) = language_adapter_at(&config.adapter)? {
        let method = peft_type(folder)?;
        if method == "LORA" {
            // A damaged one is told of first.
            peft_folder::read(folder)?;
        }
        return Err(Error::file(
            &config.adapter,
            format!("is a language model's adapter ({method}), whose only format is PEFT's folder"),
        ));
    }
    let set = read_any(&config.adapter, None)?;
    check_family(&set, &config.adapter)?;
    set.warnings.iter().for_each(|text| observer.warning(text.clone()));
    config.check()?;
    let path = match config.to {
        OutputFormat::Diffusers => config.output.join(FILE_NAME),
        OutputFormat::Peft | OutputFormat::Kohya => config.output.clone(),
    };
    let taken = match config.to {
        OutputFormat::Peft => set
            .parts()
            .map(|(part, _)| path.join(part.name()))
            .chain(parts_of_another(&path, &set))
            .find(|folder| std::fs::symlink_metadata(folder).is_ok()),
        OutputFormat::Diffusers | OutputFormat::Kohya => {
            Some(path.clone()).filter(|path| std::fs::symlink_metadata(path).is_ok())
        }
    };
    if let Some(taken) = taken.filter(|_| !config.overwrite) {
        return Err(Error::is_there(taken, "⟨output⟩"));
    }
    interrupt.check().map_err(|_| Error::Interrupted("nothing was written".into()))?;
    let folder = if config.to == OutputFormat::Kohya { path.parent().unwrap_or(&path) } else { &config.output };
    FolderLock::check_free(folder)?;
    let made = Some(&config.output).filter(|folder| !folder.exists());
    match config.to {
        OutputFormat::Peft => {
            let spelling = match config.old_text_encoder_names {
                true => TextEncoderSpelling::BeforeTransformers5,
                false => TextEncoderSpelling::Today,
            };
            // Both parts or none; a folder that is there may hold anything else too.
            match path.exists() {
                true => {
                    write_peft(&path, &set, spelling)?;
                    // The adapters of one folder are one: what stayed of another would be read with the new one.
                    let stale: Vec<PathBuf> = parts_of_another(&path, &set).collect();
                    stale
                        .iter()
                        .try_for_each(|file| std::fs::remove_file(file).map_err(|e| Error::io("remove", file, e)))?;
                }
                false => into_folder(&path, Existing::Refuse, |folder| write_peft(folder, &set, spelling).map(drop))?,
            }
        }
        OutputFormat::Diffusers => {
            // Takes away the folder again that was made for nothing.
            let forget = |_: &Error| drop(made.map(std::fs::remove_dir));
            write_diffusers(&config.output, &set).inspect_err(forget)?;
        }
        OutputFormat::Kohya => {
            let kind = if config.half { Kind::Half } else { Kind::Float };
            let metadata = match config.no_metadata {
                true => BTreeMap::new(),
                false => kohya_metadata::of_run_beside(&config.adapter, &config.output),
            };
            write_kohya(&config.output, &set, kind, &metadata)?;
        }
    }
    if let Some(text) = set.left_out_warning(&path).filter(|_| config.to != OutputFormat::Peft) {
        observer.warning(text);
    }
    if config.to == OutputFormat::Kohya && set.uses_dora() {
        let file = path.display();
        observer.warning(format!(
            "{file} is DoRA: diffusers reads it without its norms, as another adapter; give it PEFT's folders"
        ));
    }
    Ok(path)
}
