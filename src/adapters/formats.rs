//! Reads an adapter from whatever it is in, and writes it in the format that is asked for.

use super::adapter_set::{AdapterSet, Part};
use super::kohya_file::ModuleNames;
use super::peft_folder::{TextEncoderSpelling, CONFIG_FILE, MODEL_FILE};
use super::prompt::PromptMethod;
use super::{diffusers_file, kohya_file, peft_folder};
use crate::error::{Error, Result};
use crate::weights::MappedFile;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Kind;

/// A format of adapter files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Folders of PEFT: `unet/` and `text_encoder/`, or one of them.
    Peft,
    /// `pytorch_lora_weights.safetensors` of diffusers.
    Diffusers,
    /// kohya's and AUTOMATIC1111's.
    Kohya,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Format::Peft => "PEFT",
            Format::Diffusers => "diffusers",
            Format::Kohya => "kohya",
        })
    }
}

/// Reads the adapter at `path`: the folder of a run, a PEFT folder, diffusers' folder or file, a kohya file. `names` are
/// the modules of the model that it is for, where one is at hand.
pub fn read_any(path: &Path, names: Option<&ModuleNames>) -> Result<AdapterSet> {
    read_with_format(path, names).map(|(set, _)| set)
}

/// The same, with the format that was found.
pub fn read_with_format(path: &Path, names: Option<&ModuleNames>) -> Result<(AdapterSet, Format)> {
    if path.is_dir() {
        return read_folder(path, names);
    }
    if !path.exists() {
        return Err(Error::file(path, "no such adapter"));
    }
    if let Some(folder) = peft_folder_of(path) {
        return read_folder(folder, names);
    }
    let file = MappedFile::open(path)?;
    if kohya_file::is_one(&file) {
        return Ok((kohya_file::read(&file, names)?, Format::Kohya));
    }
    if diffusers_file::is_one(&file) {
        return Ok((diffusers_file::read(&file)?, Format::Diffusers));
    }
    let first = file.names().into_iter().next().unwrap_or_default();
    let hint = match first.starts_with("base_model.model.") {
        true => format!("is PEFT's, whose {CONFIG_FILE} must lie beside it"),
        false => format!("is no adapter that is known here (its first key is `{first}`)"),
    };
    Err(Error::file(path, hint))
}

/// The folder of PEFT's that `path` is, or whose tensors' file it is.
fn peft_folder_of(path: &Path) -> Option<&Path> {
    let folder = match path.is_dir() {
        true => path,
        false => path.parent().filter(|_| path.file_name().is_some_and(|name| name == MODEL_FILE))?,
    };
    folder.join(CONFIG_FILE).exists().then_some(folder)
}

/// The folder of PEFT's at `path`, if what it holds is for a language model.
pub fn language_adapter_at(path: &Path) -> Result<Option<&Path>> {
    let Some(folder) = peft_folder_of(path) else { return Ok(None) };
    let is_of_language_model = is_prompt(folder)? || peft_folder::part_of(&peft_folder::read(folder)?).is_none();
    Ok(is_of_language_model.then_some(folder))
}

fn is_prompt(folder: &Path) -> Result<bool> {
    Ok(PromptMethod::of(&peft_folder::peft_type(folder)?).is_some())
}

fn read_folder(folder: &Path, names: Option<&ModuleNames>) -> Result<(AdapterSet, Format)> {
    let mut set = AdapterSet::default();
    if folder.join(CONFIG_FILE).exists() {
        let of_language_model =
            || Error::file(folder, "is an adapter of a language model, and one of Stable Diffusion is needed here");
        if is_prompt(folder)? {
            return Err(of_language_model());
        }
        let adapter = peft_folder::read(folder)?;
        set.set(peft_folder::part_of(&adapter).ok_or_else(of_language_model)?, adapter);
        return Ok((set, Format::Peft));
    }
    for part in Part::ALL {
        let below = folder.join(part.name());
        if below.join(CONFIG_FILE).exists() {
            set.set(part, peft_folder::read(&below)?);
        }
    }
    if set.parts().next().is_some() {
        return Ok((set, Format::Peft));
    }
    let diffusers = folder.join(diffusers_file::FILE_NAME);
    if diffusers.exists() {
        return read_with_format(&diffusers, names);
    }
    match &safetensors_in(folder)?[..] {
        [one] => read_with_format(one, names),
        [] => Err(of_unfinished_run(folder).unwrap_or_else(|| {
            Error::file(
                folder,
                format!("holds no adapter: neither {CONFIG_FILE} nor unet/ nor {}", diffusers_file::FILE_NAME),
            )
        })),
        _ => Err(Error::file(folder, "holds several .safetensors files; name one of them")),
    }
}

/// The error for the folder of a run that is not finished, whose adapter so far is in its checkpoints.
pub fn of_unfinished_run(folder: &Path) -> Option<Error> {
    if !folder.join("metrics.jsonl").exists() || folder.join(CONFIG_FILE).exists() {
        return None;
    }
    let names = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let steps = names.filter_map(|name| name.strip_prefix("checkpoint-")?.parse::<u64>().ok());
    let so_far = match steps.max() {
        Some(step) => format!("; its adapter so far is in {}", folder.join(format!("checkpoint-{step}")).display()),
        None => String::new(),
    };
    let message = format!("holds a run that is not finished: go on with its command and --resume{so_far}");
    Some(Error::file(folder, message))
}

fn safetensors_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.extension().is_some_and(|end| end == "safetensors"));
    found.sort();
    Ok(found)
}

/// Writes `set` as PEFT's folders `folder/unet` and `folder/text_encoder`.
pub fn write_peft(folder: &Path, set: &AdapterSet, spelling: TextEncoderSpelling) -> Result<()> {
    for (part, adapter) in set.parts() {
        peft_folder::write(&folder.join(part.name()), Some(part), adapter, spelling)?;
    }
    Ok(())
}

/// Writes `set` as diffusers' file in `folder`; the file's path.
pub fn write_diffusers(folder: &Path, set: &AdapterSet) -> Result<PathBuf> {
    let path = folder.join(diffusers_file::FILE_NAME);
    diffusers_file::write(&path, set)?;
    Ok(path)
}

/// Writes `set` as a kohya file in `kind` with `metadata` (`ss_…`) added.
pub fn write_kohya(path: &Path, set: &AdapterSet, kind: Kind, metadata: &BTreeMap<String, String>) -> Result<()> {
    kohya_file::write(path, set, kind, metadata)
}
