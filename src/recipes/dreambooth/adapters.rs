//! The adapters of a DreamBooth run: put on the networks, and written as PEFT's folders and diffusers' one file.

use super::networks::Networks;
use super::options::lora_config;
use crate::adapters::{
    attach, read_any, write_diffusers, write_peft, AdapterSet, Attached, BaseModel, Init, LoraConfig, Part,
    PartAdapter, TextEncoderSpelling,
};
use crate::error::{Error, Result};
use crate::libtorch::random::Generator;
use crate::models::stable_diffusion::PipelineFiles;
use crate::options::dreambooth::DreamBoothConfig;
use crate::options::given::lora_field;
use crate::recipes::training::observer::{Event, Observer};
use crate::recipes::training::run::Trained;
use crate::train::run_folder::RunFolder;
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// The adapter of each network that trains, and those of text encoders that stay as they are.
pub struct Adapters {
    trained: Vec<(Part, Attached)>,
    carried: Vec<(Part, PartAdapter)>,
    /// Of the networks that have one of their own.
    learning_rates: Vec<(Part, f64)>,
}

impl Adapters {
    /// Puts them on the networks of `files`: new ones drawn from `seed`, or those of `--init-adapter`. What does not train is
    /// `carried` along.
    pub fn attach(
        config: &DreamBoothConfig,
        networks: &Networks,
        files: &PipelineFiles,
        carried: Vec<(Part, PartAdapter)>,
        seed: i64,
    ) -> Result<Self> {
        let mut generator = Generator::new(seed);
        let base = config.init_adapter.is_some().then(|| files.base_model()).transpose()?;
        let mut trained = Vec::new();
        for (part, sites) in networks.trained() {
            let given =
                config.init_adapter.as_ref().map(|folder| read_part(folder, part, base.as_ref())).transpose()?;
            let attached = match given {
                Some((lora, tensors)) => attach(sites, "default", lora, Init::Tensors(&tensors))?,
                None => attach(sites, "default", lora_config(config, part), Init::Draw(&mut generator))?,
            };
            trained.push((part, attached));
        }
        Ok(Self { trained, carried, learning_rates: config.own_learning_rates() })
    }

    /// What they train: `unet.` and so on before the adapters' names.
    pub fn trained(&self) -> Trained {
        let named = |(part, adapter): &(Part, Attached)| {
            let name = part.name();
            let param = |(key, param): (&String, &Tensor)| (format!("{name}.{key}"), param.shallow_clone());
            adapter.params.iter().map(param).collect::<Vec<_>>()
        };
        Trained {
            params: self.trained.iter().flat_map(named).collect(),
            trainable: self.trained.iter().map(|(_, adapter)| adapter.trainable()).sum(),
            frozen: self.trained.iter().map(|(_, adapter)| adapter.base_elements).sum(),
            learning_rates: self
                .learning_rates
                .iter()
                .map(|(part, rate)| (format!("{}.", part.name()), *rate))
                .collect(),
        }
    }

    /// Those of text encoders that do not train.
    pub fn carried(&self) -> &[(Part, PartAdapter)] {
        &self.carried
    }

    /// Tells of each what it is and how large.
    pub fn report(&self, observer: &mut dyn Observer) {
        self.trained.iter().for_each(|(part, adapter)| crate::recipes::report_adapter(part.name(), adapter, observer));
    }

    /// What they start from, in words.
    pub fn start(&self, config: &DreamBoothConfig) -> String {
        let Some(path) = &config.init_adapter else { return "a new adapter".to_owned() };
        let parts: Vec<String> = self.trained.iter().map(|(part, _)| part.name().replace('_', " ")).collect();
        let carried = match self.carried.len() {
            0 => "",
            1 => "; its text encoder's adapter is used and written unchanged (⟨train_text_encoder⟩ trains it)",
            _ => "; its text encoders' adapters are used and written unchanged (⟨train_text_encoder⟩ trains them)",
        };
        format!("the adapter {}: {}{carried}", path.display(), parts.join(" and "))
    }

    fn set(&self) -> AdapterSet {
        let mut set = AdapterSet::default();
        for (part, adapter) in &self.trained {
            set.set(*part, PartAdapter::of(adapter));
        }
        self.carried.iter().for_each(|(part, adapter)| set.set(*part, adapter.shallow_clone()));
        set
    }

    /// Writes them to `folder` as PEFT has them; each file is read back.
    pub fn write_peft(&self, folder: &Path) -> Result<()> {
        write_peft(folder, &self.set(), TextEncoderSpelling::Today).map(drop)
    }

    /// Writes them in all formats. Tells of what was written, and of what a format has no place for.
    pub fn write(&self, folder: &RunFolder, observer: &mut dyn Observer) -> Result<()> {
        let set = self.set();
        self.write_peft(folder.path())?;
        set.parts().for_each(|(part, _)| observer.on(Event::Wrote { path: folder.join(part.name()) }));
        let path = write_diffusers(folder.path(), &set)?;
        if let Some(text) = set.left_out_warning(&path) {
            observer.warning(text);
        }
        observer.on(Event::Wrote { path });
        Ok(())
    }
}

/// Refuses flags that ask for another adapter than `--init-adapter` names.
pub fn check_init_adapter(config: &DreamBoothConfig) -> Result<()> {
    let Some(folder) = &config.init_adapter else { return Ok(()) };
    let set = read_any(folder, None)?;
    for part in config.trained_parts().filter(|part| *part != Part::TextEncoder2 || set.part(*part).is_some()) {
        let found = read_part(folder, part, None)?.0;
        let field = |option: &str| lora_field(&config.lora_option(part, option)?);
        config.given.check_settled(field, &lora_config(config, part), &found, folder)?;
    }
    Ok(())
}

/// The text encoders' adapters of `--init-adapter` where they do not train: the UNet's was made to go with them.
pub(in crate::recipes) fn carried_text_encoders(config: &DreamBoothConfig) -> Result<Vec<(Part, PartAdapter)>> {
    let Some(path) = config.init_adapter.as_ref().filter(|_| !config.train_text_encoder) else { return Ok(Vec::new()) };
    let set = read_any(path, None)?;
    let carried = set.parts().filter(|(part, _)| part.is_text_encoder());
    Ok(carried.map(|(part, adapter)| (part, adapter.shallow_clone())).collect())
}

/// Configuration and tensors of one part of the adapter at `path`, in any format that is known.
fn read_part(path: &Path, part: Part, base: Option<&BaseModel>) -> Result<(LoraConfig, BTreeMap<String, Tensor>)> {
    let set = read_any(path, base)?;
    if set.parts().any(|(_, adapter)| adapter.has_column_magnitudes()) {
        let message =
            "is a DoRA with magnitudes by input column, which can be used and merged but not trained on: PEFT's files \
            have magnitudes by output row alone";
        return Err(Error::file(path, message));
    }
    match set.part(part) {
        Some(adapter) => {
            let PartAdapter { config, tensors } = adapter.shallow_clone();
            Ok((config, tensors))
        }
        None if part.is_text_encoder() => Err(Error::file(
            path,
            format!(
                "has no adapter for the {}, which ⟨train_text_encoder⟩ continues; leave the flag out, or give an \
                 ⟨init_adapter⟩ that has both",
                part.in_words()
            ),
        )),
        None => {
            Err(Error::file(path, format!("has no adapter for the {}, which ⟨init_adapter⟩ must have", part.name())))
        }
    }
}
