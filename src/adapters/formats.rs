//! Reads an adapter from whatever it is in, and writes it in the format that is asked for.

use super::adapter_set::{AdapterSet, Part};
use super::base_model::{of_other_family, BaseModel, Family};
use super::peft_folder::{TextEncoderSpelling, CONFIG_FILE, MODEL_FILE};
use super::prompt::PromptMethod;
use super::{diffusers_file, kohya_file, lora_file, peft_folder};
use crate::error::{Error, Result};
use crate::weights::MappedFile;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Kind;

/// A format of adapter files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Folders of PEFT: `unet/`, `text_encoder/` and `text_encoder_2/`, or some of them.
    Peft,
    /// `pytorch_lora_weights.safetensors` of diffusers.
    Diffusers,
    /// kohya's and AUTOMATIC1111's.
    Kohya,
    /// ComfyUI's: the original code's names of modules, with dots.
    ComfyUi,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Format::Peft => "PEFT",
            Format::Diffusers => "diffusers",
            Format::Kohya => "kohya",
            Format::ComfyUi => "ComfyUI",
        })
    }
}

/// Reads the adapter at `path`: the folder of a run, a PEFT folder, or a file in any spelling, alone or in a folder. One that was
/// made for another kind of model than `base`, where one is at hand, is refused.
pub fn read_any(path: &Path, base: Option<&BaseModel>) -> Result<AdapterSet> {
    read_with_format(path, base).map(|(set, _)| set)
}

/// The same, with the format that was found.
pub fn read_with_format(path: &Path, base: Option<&BaseModel>) -> Result<(AdapterSet, Format)> {
    let (set, format) = read_unchecked(path, base)?;
    if let Some(base) = base {
        base.check(&set, path)?;
    }
    Ok((set, format))
}

fn read_unchecked(path: &Path, base: Option<&BaseModel>) -> Result<(AdapterSet, Format)> {
    if path.is_dir() {
        return read_folder(path, base);
    }
    if !path.exists() {
        return Err(Error::file(path, "no such adapter"));
    }
    match peft_folder_of(path) {
        Some(folder) => read_folder(folder, base),
        None => lora_file::read(&MappedFile::open(path)?, base),
    }
}

/// Refuses, where no model is at hand, an adapter of a generation of models that is not supported.
pub fn check_family(set: &AdapterSet, path: &Path) -> Result<()> {
    match set.family.filter(|family| !family.is_supported()) {
        Some(family) => Err(of_other_family(path, family, None, "")),
        None => Ok(()),
    }
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
    let is_of_language_model = is_prompt(folder)? || peft_folder::part_at(folder)?.is_none();
    Ok(is_of_language_model.then_some(folder))
}

fn is_prompt(folder: &Path) -> Result<bool> {
    Ok(PromptMethod::of(&peft_folder::peft_type(folder)?).is_some())
}

fn read_folder(folder: &Path, base: Option<&BaseModel>) -> Result<(AdapterSet, Format)> {
    let mut set = AdapterSet::default();
    if folder.join(CONFIG_FILE).exists() {
        let of_language_model =
            || Error::file(folder, "is a language-model adapter, but a Stable Diffusion adapter is needed");
        if is_prompt(folder)? {
            return Err(of_language_model());
        }
        let adapter = peft_folder::read(folder)?;
        set.warnings.extend(peft_folder::left_out(folder)?);
        set.set(peft_folder::part_of(&adapter).ok_or_else(of_language_model)?, adapter);
        set.family = Family::of_set(&set);
        return Ok((set, Format::Peft));
    }
    if folder.join("transformer").join(CONFIG_FILE).exists() {
        return Err(of_other_family(folder, Family::Transformer, base, ""));
    }
    for part in Part::ALL {
        let below = folder.join(part.name());
        if below.join(CONFIG_FILE).exists() {
            set.set(part, peft_folder::read(&below)?);
            set.warnings.extend(peft_folder::left_out(&below)?);
        }
    }
    if set.parts().next().is_some() {
        set.family = Family::of_set(&set);
        return Ok((set, Format::Peft));
    }
    let diffusers = folder.join(diffusers_file::FILE_NAME);
    if diffusers.exists() {
        return read_unchecked(&diffusers, base);
    }
    match &safetensors_in(folder)?[..] {
        [one] => read_unchecked(one, base),
        [] => Err(of_unfinished_run(folder).or_else(|| of_pickles(folder)).unwrap_or_else(|| {
            Error::file(
                folder,
                format!("holds no adapter: neither {CONFIG_FILE} nor unet/ nor {}", diffusers_file::FILE_NAME),
            )
        })),
        _ => Err(Error::file(folder, "holds several .safetensors files; give the path of one of them")),
    }
}

/// The error for a folder whose adapter is in Python pickles.
fn of_pickles(folder: &Path) -> Option<Error> {
    let below = Part::ALL.map(|part| folder.join(part.name()));
    let pickle = std::iter::once(folder).chain(below.iter().map(PathBuf::as_path)).find_map(|folder| {
        let mut found = files_with(folder, &["bin", "pt", "pth", "ckpt"]).ok()?;
        found.sort();
        found.into_iter().next()
    })?;
    let cure = match pickle.file_name().is_some_and(|name| name == "adapter_model.bin") {
        true => "load it in Python with PEFT and write it with `save_pretrained`",
        false => "load it in Python with diffusers' `load_lora_weights` and write it with `save_lora_weights`",
    };
    let message = format!(
        "is a Python pickle, which is not read because reading one can run code, and there is no .safetensors file beside it; \
         {cure}, which makes a .safetensors file"
    );
    Some(Error::file(pickle, message))
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
    let message = format!("holds an unfinished run: continue it with its command and ⟨resume⟩{so_far}");
    Some(Error::file(folder, message))
}

fn safetensors_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = files_with(folder, &["safetensors"])?;
    found.sort();
    Ok(found)
}

/// The files in `folder` that end with one of `ends`.
fn files_with(folder: &Path, ends: &[&str]) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?;
    let is_wanted = |path: &PathBuf| ends.iter().any(|end| path.extension().is_some_and(|found| found == *end));
    Ok(entries.flatten().map(|entry| entry.path()).filter(is_wanted).collect())
}

/// Writes `set` as PEFT's folders `folder/unet`, `folder/text_encoder` and so on; the names of the files in `folder`.
pub fn write_peft(folder: &Path, set: &AdapterSet, spelling: TextEncoderSpelling) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (part, adapter) in set.parts() {
        peft_folder::write(&folder.join(part.name()), Some(part), adapter, spelling)?;
        names.extend([CONFIG_FILE, MODEL_FILE].map(|name| format!("{}/{name}", part.name())));
    }
    Ok(names)
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
