//! The photos of the subject and of its class, with what is said of them.

use crate::data::dreambooth_dataset::DreamBoothDataset;
use crate::data::photo_files::{PhotoFile, PhotoFiles};
use crate::data::photos::{no_image, PhotoFolder};
use crate::data::tokenizers::ClipTokenizer;
use crate::error::{Error, Result};
use crate::options::dreambooth::DreamBoothConfig;
use crate::recipes::prompt_checks::{warn_of_prompts, NamedPrompt};
use crate::recipes::training::observer::Observer;
use std::path::Path;

/// Warns of prompts, and of the captions of `instances`, that are cut, or hold what is no word.
pub fn check_prompts(
    config: &DreamBoothConfig,
    instances: &[PhotoFile],
    tokenizer: &ClipTokenizer,
    observer: &mut dyn Observer,
) -> Result<()> {
    let captions = instances.iter().filter_map(|photo| photo.caption.as_ref());
    let mut prompts = Vec::new();
    // Where all photos have captions, nothing reads it.
    if instances.is_empty() || captions.clone().count() < instances.len() {
        prompts.push(NamedPrompt::option("⟨instance_prompt⟩", &config.instance_prompt));
    }
    let class_prompt = config.class_prompt.as_deref().filter(|_| config.with_prior_preservation);
    prompts.extend(class_prompt.map(|text| NamedPrompt::option("⟨class_prompt⟩", text)));
    prompts.extend(config.validation_prompt.as_deref().map(|text| NamedPrompt::option("⟨validation_prompt⟩", text)));
    prompts.extend(captions.map(|(file, text)| NamedPrompt::listed(file.display().to_string(), text)));
    warn_of_prompts(tokenizer, &prompts, observer)
}

/// The photos of the subject, with their captions.
pub fn instance_files(config: &DreamBoothConfig) -> Result<PhotoFiles> {
    let mut files = PhotoFiles::list(&config.instance_data_dir, &config.apart_from_instances())?;
    if files.files.is_empty() {
        return Err(no_image(&config.instance_data_dir, None));
    }
    files.read_captions()?;
    Ok(files)
}

/// The photos of the class in `folder`, which all have one prompt.
pub fn class_files(config: &DreamBoothConfig, folder: &Path) -> Result<PhotoFiles> {
    let mut files = PhotoFiles::list(folder, &config.apart_from_class())?;
    let unused = match files.texts() {
        0 => None,
        1 => Some("a caption is not used: class images are trained with ⟨class_prompt⟩".to_owned()),
        texts => Some(format!("{texts} captions are not used: class images are trained with ⟨class_prompt⟩")),
    };
    files.warnings.extend(unused.map(|text| format!("{}: {text}", folder.display())));
    Ok(files)
}

/// Opens the photos.
pub fn open_dataset(config: &DreamBoothConfig, observer: &mut dyn Observer) -> Result<DreamBoothDataset> {
    let mut open = |folder: &Path, files: PhotoFiles| -> Result<PhotoFolder> {
        let photos = PhotoFolder::decode(folder, files, config.side())?;
        photos.warnings.iter().for_each(|text| observer.warning(text.clone()));
        Ok(photos)
    };
    let listed = instance_files(config)?;
    let bare = listed.files.iter().filter(|photo| photo.caption.is_none()).count();
    if bare > 0 && config.instance_prompt.trim().is_empty() {
        return Err(Error::invalid(format!(
            "⟨instance_prompt⟩ is empty, and {bare} of the {} photos have no caption, so that no words would name the subject; give \
             a prompt such as \"a photo of sks dog\", or a caption for each photo",
            listed.files.len()
        )));
    }
    let instances = open(&config.instance_data_dir, listed)?;
    let class = match (&config.class_data_dir, &config.class_prompt) {
        (Some(folder), Some(prompt)) if config.with_prior_preservation => {
            Some((open(folder, class_files(config, folder)?)?, prompt.as_str()))
        }
        _ => None,
    };
    DreamBoothDataset::new(instances, &config.instance_prompt, class, config.center_crop)
}
