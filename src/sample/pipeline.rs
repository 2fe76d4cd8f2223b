//! A whole Stable Diffusion pipeline in memory, for many prompts in one batch.

use super::text_to_image::{decode, sample_latents, Conditioning, Sampling};
use crate::adapters::{attach, AdapterSet, Init, Part};
use crate::data::tokenizers::clip::ClipTokenizer;
use crate::error::{Error, Result};
use crate::libtorch::failure::catching;
use crate::models::stable_diffusion::{
    vae_kind, ClipTextModel, Loaded, PipelineFiles, UNet2DConditionModel, VaeDecoder,
};
use crate::schedulers::SchedulerConfig;
use crate::weights::Placement;
use image::RgbImage;
use tch::Tensor;

/// The noise schedule's configuration of a model, as its files have it.
pub fn scheduler_config(files: &PipelineFiles) -> Result<SchedulerConfig> {
    let text = files.scheduler_config_json()?.to_string();
    SchedulerConfig::from_json(&text)
        .map_err(|error| Error::file(files.root().join("scheduler/scheduler_config.json"), error.to_string()))
}

/// All networks that make an image of a text.
pub struct Pipeline {
    /// Predicts the noise.
    pub unet: Loaded<UNet2DConditionModel>,
    /// Prompts to embeddings.
    pub text_encoder: Loaded<ClipTextModel>,
    /// Latents to pixels.
    pub vae_decoder: Loaded<VaeDecoder>,
    /// Prompts to ids.
    pub tokenizer: ClipTokenizer,
    /// The noise schedule.
    pub scheduler: SchedulerConfig,
    placement: Placement,
}

impl Pipeline {
    /// Loads all parts.
    pub fn load(files: &PipelineFiles, placement: Placement) -> Result<Self> {
        let for_vae = Placement { kind: vae_kind(placement.kind), ..placement };
        Ok(Self {
            unet: files.load_unet(placement)?,
            text_encoder: files.load_text_encoder(placement)?,
            vae_decoder: files.load_vae_decoder(for_vae)?,
            tokenizer: ClipTokenizer::from_folder(&files.tokenizer_folder()?)?,
            scheduler: scheduler_config(files)?.for_stable_diffusion(),
            placement,
        })
    }

    /// Puts `adapter` on the networks that it is for, under `name`.
    pub fn put_on(&self, name: &str, adapter: &AdapterSet) -> Result<()> {
        for (part, sites) in [(Part::UNet, &self.unet.sites), (Part::TextEncoder, &self.text_encoder.sites)] {
            if let Some(adapter) = adapter.part(part) {
                attach(sites, name, adapter.config.clone(), Init::Tensors(&adapter.tensors))?;
            }
        }
        Ok(())
    }

    /// Embeddings `[prompts, t, e]`, with the graph that leads to them.
    pub fn embed(&self, prompts: &[String]) -> Result<Tensor> {
        let ids = prompts.iter().map(|prompt| self.tokenizer.encode(prompt)).collect::<Result<Vec<_>>>()?;
        let ids = ClipTextModel::ids(&ids, self.placement.device);
        catching(|| Ok(self.text_encoder.model.forward(&ids, false)))
    }

    /// One image a prompt, all of them at once, the i-th from the noise of `seeds[i]`; `on_step` as for
    /// [`sample_latents`].
    pub fn draw(
        &self,
        prompts: &[String],
        seeds: &[i64],
        sampling: &Sampling,
        on_step: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Vec<RgbImage>> {
        let _no_grad = tch::no_grad_guard();
        let on = Conditioning { prompt: self.embed(prompts)?, negative: self.embed(&[String::new()])? };
        let latents = sample_latents(&self.unet.model, &self.scheduler, &on, sampling, seeds, on_step)?;
        self.decode(&latents)
    }

    /// Images of latents `[n, 4, h, w]` in the UNet's scale.
    pub fn decode(&self, latents: &Tensor) -> Result<Vec<RgbImage>> {
        let latents = latents.to_device(self.placement.device);
        decode(&self.vae_decoder.model, &latents, vae_kind(self.placement.kind))
    }
}
