//! A Stable Diffusion pipeline that draws again and again: its networks stay in memory, and adapters change on them.

use super::drawn_image::NamedStrength;
use super::painter::{DrawingListener, Painter, Pictures};
use super::text_to_image::{decode, EncodedPrompts};
use crate::adapters::{attach, AdapterSet, Init, Part, Sites};
use crate::data::tokenizers::{ClipTokenizer, PromptTokenizers};
use crate::error::{Error, Result};
use crate::libtorch::memory;
use crate::models::stable_diffusion::{Loaded, PipelineFiles, TextEncoders, UNet2DConditionModel, VaeDecoder};
use crate::schedulers::SchedulerConfig;
use crate::weights::Placement;
use image::RgbImage;
use std::path::Path;
use tch::{Kind, Tensor};

/// The noise schedule's configuration of a model, as its files have it.
pub fn scheduler_config(files: &PipelineFiles) -> Result<SchedulerConfig> {
    let text = files.scheduler_config_json()?.to_string();
    SchedulerConfig::from_json(&text)
        .map_err(|error| Error::file(files.root().join("scheduler/scheduler_config.json"), error.to_string()))
}

/// The noise schedule of a model as its pictures are sampled: what diffusers' pipelines of its kind make of the configuration.
pub fn sampling_schedule(files: &PipelineFiles) -> Result<SchedulerConfig> {
    let config = scheduler_config(files)?;
    Ok(if files.is_xl() { config } else { config.for_stable_diffusion() })
}

/// Which networks of a pipeline are in memory at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residence {
    /// All of them, so that the next prompt is drawn at once.
    Together,
    /// The text encoders go before the UNet comes, and the other way round: the least memory.
    InTurn,
}

/// An adapter on a pipeline.
#[derive(Debug)]
pub struct PipelineAdapter {
    /// Its name and strength.
    pub used: NamedStrength,
    /// What it changes.
    pub set: AdapterSet,
}

/// A pipeline: what of it is not in memory yet is loaded when it is needed.
pub struct Pipeline {
    files: PipelineFiles,
    placement: Placement,
    residence: Residence,
    name: String,
    tiling: bool,
    tokenizers: PromptTokenizers,
    scheduler: SchedulerConfig,
    adapters: Vec<AdapterSet>,
    used: Vec<NamedStrength>,
    text_encoders: Option<TextEncoders>,
    unet: Option<Loaded<UNet2DConditionModel>>,
    vae_decoder: Option<Loaded<VaeDecoder>>,
}

impl Pipeline {
    /// The pipeline behind `files`, of which no network is loaded yet. `model` is how it was named: a path or a hub id.
    pub fn open(files: PipelineFiles, model: &str, placement: Placement, residence: Residence) -> Result<Self> {
        let name = short_name(Path::new(model));
        Ok(Self {
            tokenizers: PromptTokenizers::of(&files)?,
            scheduler: sampling_schedule(&files)?,
            files,
            placement,
            residence,
            name,
            tiling: false,
            adapters: Vec::new(),
            used: Vec::new(),
            text_encoders: None,
            unet: None,
            vae_decoder: None,
        })
    }

    /// Has large pictures decoded tile by tile, which needs the memory of one tile.
    pub fn use_tiling(&mut self, tiling: bool) {
        self.tiling = tiling;
        if let Some(vae_decoder) = &mut self.vae_decoder {
            vae_decoder.model.use_tiling(tiling);
        }
    }

    /// The model's files.
    pub fn files(&self) -> &PipelineFiles {
        &self.files
    }

    /// Prompts to ids.
    pub fn tokenizer(&self) -> &ClipTokenizer {
        self.tokenizers.first()
    }

    /// The noise schedule, as for sampling.
    pub fn scheduler(&self) -> &SchedulerConfig {
        &self.scheduler
    }

    /// The adapters that it draws with.
    pub fn adapters(&self) -> &[NamedStrength] {
        &self.used
    }

    /// Draws with `adapters` from now on, and with no other. Networks that are in memory stay there: each adapter is folded into
    /// their weights, and out of them again to the same bits. Where only strengths differ from those of before, that is all;
    /// where nothing does, nothing is done. After an error there are no adapters on it.
    pub fn set_adapters(&mut self, adapters: Vec<PipelineAdapter>) -> Result<()> {
        let (used, sets): (Vec<NamedStrength>, Vec<AdapterSet>) =
            adapters.into_iter().map(|PipelineAdapter { used, set }| (used, set)).unzip();
        let same_sets =
            sets.len() == self.adapters.len() && std::iter::zip(&sets, &self.adapters).all(|(a, b)| a.is_same_as(b));
        let same_strengths = same_sets && std::iter::zip(&used, &self.used).all(|(a, b)| a.strength == b.strength);
        (self.adapters, self.used) = (sets, used);
        if same_strengths {
            return Ok(());
        }
        let outcome = self.loaded_parts().into_iter().try_for_each(|(part, sites)| match same_sets {
            true => self.set_strengths(part, sites),
            false => self.put_on(part, sites),
        });
        outcome.inspect_err(|_| {
            self.loaded_parts().into_iter().for_each(|(_, sites)| take_off(sites));
            (self.adapters, self.used) = Default::default();
        })
    }

    fn loaded_parts(&self) -> Vec<(Part, &Sites)> {
        let unet = self.unet.iter().map(|unet| (Part::UNet, unet.sites.as_ref()));
        unet.chain(self.text_encoders.iter().flat_map(TextEncoders::sites)).collect()
    }

    /// Puts the adapters on a network, which has others or none.
    fn put_on(&self, part: Part, sites: &Sites) -> Result<()> {
        take_off(sites);
        for (index, set) in self.adapters.iter().enumerate() {
            if let Some(adapter) = set.part(part) {
                attach(sites, &numbered(index), adapter.config.clone(), Init::Tensors(&adapter.tensors))?;
            }
        }
        self.set_strengths(part, sites)
    }

    /// Folds the adapters, which are on the network, into its weights: a step costs what the plain model's does.
    fn set_strengths(&self, part: Part, sites: &Sites) -> Result<()> {
        sites.unmerge();
        for (index, (set, used)) in self.adapters.iter().zip(&self.used).enumerate() {
            if set.part(part).is_some() {
                sites.set_scale(&numbered(index), used.strength)?;
            }
        }
        sites.merge();
        Ok(())
    }

    /// Encodes the prompts of `pictures`, and loads what draws them.
    pub fn prepare(&mut self, pictures: &Pictures) -> Result<EncodedPrompts> {
        if self.residence == Residence::InTurn {
            (self.unet, self.vae_decoder) = (None, None);
        }
        let text_encoders = match self.text_encoders.take() {
            Some(loaded) => loaded,
            None => {
                let loaded = self.files.load_text_encoders(self.placement)?;
                loaded.sites().try_for_each(|(part, sites)| self.put_on(part, sites))?;
                loaded
            }
        };
        let negative = pictures.negative_prompt.as_deref();
        let prompts = (&pictures.prompts[..], pictures.prompt_2.as_deref());
        let on = EncodedPrompts::encode(&self.tokenizers, &text_encoders, prompts, negative);
        match self.residence {
            Residence::Together => self.text_encoders = Some(text_encoders),
            Residence::InTurn => drop(text_encoders),
        }
        let on = on?;
        if self.unet.is_none() {
            let loaded = self.files.load_unet(self.placement)?;
            self.put_on(Part::UNet, &loaded.sites)?;
            self.unet = Some(loaded);
        }
        if self.vae_decoder.is_none() {
            let mut loaded = self.files.load_vae_decoder(self.vae_placement())?;
            loaded.model.use_tiling(self.tiling);
            self.vae_decoder = Some(loaded);
        }
        memory::release_cached(self.placement.device)?;
        Ok(on)
    }

    fn load_exact(&self) -> Result<Loaded<VaeDecoder>> {
        let mut loaded = self.files.load_vae_decoder(Placement { kind: Kind::Float, ..self.placement })?;
        loaded.model.use_tiling(self.tiling);
        Ok(loaded)
    }

    fn vae_placement(&self) -> Placement {
        Placement { kind: self.files.vae_kind(self.placement.kind), ..self.placement }
    }

    /// Draws `pictures` of what [`Pipeline::prepare`] made of their prompts.
    pub fn draw(&self, pictures: &Pictures, on: &EncodedPrompts, listener: &mut dyn DrawingListener) -> Result<()> {
        let (Some(unet), Some(vae_decoder)) = (&self.unet, &self.vae_decoder) else {
            return Err(Error::Internal("pictures are drawn before their prompts are encoded".to_owned()));
        };
        let painter = Painter {
            unet: &unet.model,
            vae_decoder: &vae_decoder.model,
            vae_kind: self.vae_placement().kind,
            load_exact: &|| self.load_exact(),
            movable: &[],
            scheduler: &self.scheduler,
            model: &self.name,
            adapters: &self.used,
        };
        painter.draw(pictures, on, listener).map_err(|error| self.naming_damage(error))
    }

    /// Where numbers were lost: the weight of the model that is none, or what helps.
    fn naming_damage(&self, error: Error) -> Error {
        let Error::Diverged(what) = error else { return error };
        match self.files.damaged_weight() {
            Ok(Some(damaged)) => damaged,
            Ok(None) if self.placement.kind == Kind::Float => Error::Diverged(what),
            Ok(None) => Error::Diverged(format!("{what}; use ⟨mixed_precision⟩ no")),
            Err(error) => error,
        }
    }

    /// Images of latents `[n, 4, h, w]` in the UNet's scale.
    pub fn decode(&mut self, latents: &Tensor) -> Result<Vec<RgbImage>> {
        let placement = self.vae_placement();
        let vae_decoder = match &self.vae_decoder {
            Some(loaded) => loaded,
            None => self.vae_decoder.insert(self.files.load_vae_decoder(placement)?),
        };
        let latents = latents.to_device(placement.device);
        let all = |vae_decoder: &VaeDecoder, kind: Kind| {
            (0..latents.size()[0]).map(|row| decode(vae_decoder, &latents.narrow(0, row, 1), kind, false)).collect()
        };
        match all(&vae_decoder.model, placement.kind) {
            Err(Error::Diverged(_)) if placement.kind == Kind::Half => all(&self.load_exact()?.model, Kind::Float),
            done => done,
        }
    }
}

/// The name of a model or an adapter in pictures' parameters: that of its file or folder.
pub fn short_name(path: &Path) -> String {
    path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The name of an adapter on the networks: the same one twice is twice its change.
fn numbered(index: usize) -> String {
    format!("adapter {index}")
}

fn take_off(sites: &Sites) {
    sites.unmerge();
    sites.clear();
}
