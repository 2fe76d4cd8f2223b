//! The adapters of a DreamBooth run: put on the networks, and written as PEFT's folders and diffusers' one file.

use super::dreambooth_config::DreamBoothConfig;
use super::dreambooth_options::lora_config;
use super::dreambooth_phases::Networks;
use super::given_flags::lora_field;
use super::observer::{Event, Observer};
use super::run::Trained;
use crate::adapters::{
    attach, read_any, write_diffusers, write_peft, AdapterSet, Attached, Init, LoraConfig, Part, PartAdapter,
    TextEncoderSpelling,
};
use crate::error::{Error, Result};
use crate::libtorch::random::Generator;
use crate::train::run_folder::RunFolder;
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// The adapter of each network that trains.
pub struct Adapters(Vec<(Part, Attached)>);

impl Adapters {
    /// Puts them on: new ones drawn from `seed`, or those of `--init-adapter`.
    pub fn attach(config: &DreamBoothConfig, networks: &Networks, seed: i64) -> Result<Self> {
        let mut generator = Generator::new(seed);
        let mut parts = vec![(Part::UNet, &networks.unet.sites)];
        if let (true, Some(text_encoder)) = (config.train_text_encoder, &networks.text_encoder) {
            parts.push((Part::TextEncoder, &text_encoder.sites));
        }
        let mut adapters = Vec::new();
        for (part, sites) in parts {
            let given = config.init_adapter.as_ref().map(|folder| read_part(folder, part)).transpose()?;
            let attached = match given {
                Some((lora, tensors)) => attach(sites, "default", lora, Init::Tensors(&tensors))?,
                None => attach(sites, "default", lora_config(config, part), Init::Draw(&mut generator))?,
            };
            adapters.push((part, attached));
        }
        Ok(Self(adapters))
    }

    /// What they train: `unet.` and `text_encoder.` before the adapters' names.
    pub fn trained(&self) -> Trained {
        let named = |(part, adapter): &(Part, Attached)| {
            let name = part.name();
            let param = |(key, param): (&String, &Tensor)| (format!("{name}.{key}"), param.shallow_clone());
            adapter.params.iter().map(param).collect::<Vec<_>>()
        };
        Trained {
            params: self.0.iter().flat_map(named).collect(),
            trainable: self.0.iter().map(|(_, adapter)| adapter.trainable()).sum(),
            frozen: self.0.iter().map(|(_, adapter)| adapter.base_elements).sum(),
        }
    }

    /// Tells of each what it is and how large.
    pub fn report(&self, observer: &mut dyn Observer) {
        self.0
            .iter()
            .for_each(|(part, adapter)| super::report_adapter(part.name(), adapter, observer));
    }

    fn set(&self) -> AdapterSet {
        let mut set = AdapterSet::default();
        for (part, adapter) in &self.0 {
            set.set(*part, PartAdapter::of(adapter));
        }
        set
    }

    /// Writes them to `folder` as PEFT has them; each file is read back.
    pub fn write_peft(&self, folder: &Path) -> Result<()> {
        write_peft(folder, &self.set(), TextEncoderSpelling::Today)
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
    let of_unet = |option: &str| lora_field(option);
    // Options without a part's name are both parts'.
    let of_text_encoder = |option: &str| match option.strip_prefix("lora_text_encoder_") {
        Some(end) => lora_field(&format!("lora_{end}")),
        None => lora_field(option).filter(|_| ["use_rslora", "use_dora", "lora_init"].contains(&option)),
    };
    let check = |part: Part, field: &dyn Fn(&str) -> Option<&'static str>| {
        let found = read_part(folder, part)?.0;
        config.given.check_settled(field, &lora_config(config, part), &found, folder)
    };
    check(Part::UNet, &of_unet)?;
    match config.train_text_encoder {
        true => check(Part::TextEncoder, &of_text_encoder),
        false => Ok(()),
    }
}

/// Configuration and tensors of one part of the adapter at `path`, in any format that is known.
fn read_part(path: &Path, part: Part) -> Result<(LoraConfig, BTreeMap<String, Tensor>)> {
    let set = read_any(path, None)?;
    match set.part(part) {
        Some(adapter) => {
            let shared = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.shallow_clone());
            Ok((adapter.config.clone(), adapter.tensors.iter().map(shared).collect()))
        }
        None => Err(Error::file(path, format!("has no adapter for the {}", part.name()))),
    }
}
