//! The memory and the work of a DreamBooth run.

use super::networks::{adapted, new_gradients, state_bytes, trained_numbers, weights_of, Inference, Place, Step};
use super::{adapter_parts, gaps, runtime, width, MemoryPlan, Phase, Work};
use crate::adapters::{Attached, LoraConfig, Part};
use crate::error::{Error, Result};
use crate::libtorch::planned::{Planning, PLANNED};
use crate::models::stable_diffusion::{
    ClipTextConfig, ClipTextModel, Conditioning, SizeIds, TextEncoders, UNet2DConditionModel, UNetConfig, VaeConfig,
    VaeDecoder, VaeEncoder,
};
use crate::train::losses::dreambooth_loss;
use crate::weights::{Keeping, Storage};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Images that the model makes for a run.
#[derive(Debug, Clone, Copy)]
pub struct SampledImages {
    /// How many in all.
    pub count: u64,
    /// How many at a time.
    pub batch: i64,
    /// Steps of the sampler.
    pub steps: u64,
    /// The dtype in which they are made.
    pub kind: Kind,
}

/// All that a run's memory and time depend on.
#[derive(Debug, Clone)]
pub struct PlanInput<'a> {
    /// The UNet.
    pub unet: &'a UNetConfig,
    /// The VAE.
    pub vae: &'a VaeConfig,
    /// The text encoders.
    pub texts: &'a [ClipTextConfig],
    /// Side of the square images in pixels.
    pub resolution: i64,
    /// Instance images a micro-step.
    pub batch: i64,
    /// As many class images beside them.
    pub prior_preservation: bool,
    /// Class images that have yet to be made.
    pub class_images: Option<SampledImages>,
    /// Sample images while training.
    pub sample_images: Option<SampledImages>,
    /// The compute dtype, in which frozen weights are kept.
    pub kind: Kind,
    /// How the weights of the UNet and the text encoders are kept.
    pub storage: Storage,
    /// The VAE's dtype.
    pub vae_kind: Kind,
    /// It is float32 whatever the others compute in.
    pub exact_vae: bool,
    /// The UNet's adapter.
    pub unet_lora: LoraConfig,
    /// The text encoders' adapters, where they are trained.
    pub text_loras: Vec<LoraConfig>,
    /// The 16-bit dtype of the device, which `--mixed-precision` can turn on.
    pub half: Kind,
    /// Activations are recomputed in the backward pass.
    pub gradient_checkpointing: bool,
    /// The VAE takes one image at a time.
    pub slicing: bool,
    /// The VAE takes large images tile by tile.
    pub vae_tiling: bool,
    /// AdamW with states of one byte each.
    pub optimizer_8bit: bool,
    /// The VAE runs before training and is freed.
    pub cache_latents: bool,
    /// Photos, where they are known.
    pub photos: u64,
    /// Batches that one optimizer step adds up.
    pub accumulation: u64,
    /// Optimizer steps of the run.
    pub steps: u64,
    /// Where it all runs.
    pub device: Device,
}

/// Key to shape of every weight of a UNet.
pub fn unet_weights(config: &UNetConfig) -> Result<BTreeMap<String, Vec<i64>>> {
    weights_of(|loader| UNet2DConditionModel::load(loader, config))
}

/// Key to shape of every weight of a text encoder.
pub fn text_encoder_weights(config: &ClipTextConfig) -> Result<BTreeMap<String, Vec<i64>>> {
    weights_of(|loader| ClipTextModel::load(loader, config))
}

/// Key to shape of every weight of a VAE.
pub fn vae_weights(config: &VaeConfig) -> Result<BTreeMap<String, Vec<i64>>> {
    let mut weights = weights_of(|loader| VaeEncoder::load(loader, config))?;
    weights.extend(weights_of(|loader| VaeDecoder::load(loader, config))?);
    Ok(weights)
}

impl PlanInput<'_> {
    /// Where the networks that train are.
    fn place(&self, kind: Kind) -> Place {
        let keeping = Keeping { storage: self.storage, slicing: self.slicing, ..Keeping::default() };
        Place { device: self.device, kind, stored: kind, shares: false, keeping }
    }

    /// Where the VAE is, whose weights are kept as they are.
    fn vae_place(&self) -> Place {
        let keeping = Keeping { slicing: self.slicing, ..Keeping::default() };
        Place { device: self.device, kind: self.vae_kind, stored: self.vae_kind, shares: false, keeping }
    }

    fn images_a_step(&self) -> i64 {
        self.batch * if self.prior_preservation { 2 } else { 1 }
    }

    fn latent_side(&self) -> i64 {
        self.resolution / self.vae.scale_factor().max(1)
    }

    fn encode(&self, batch: i64) -> Result<Inference> {
        let place = self.vae_place();
        let run = |vae: &VaeEncoder| {
            drop(vae.encode(&place.tensor(&[batch, self.vae.in_channels, self.resolution, self.resolution])));
            Ok(())
        };
        let load = |loader: &_| {
            let mut vae = VaeEncoder::load(loader, self.vae)?;
            vae.use_tiling(self.vae_tiling);
            Ok(vae)
        };
        place.inference(load, run)
    }

    fn decode(&self, in_tiles: bool) -> Result<Inference> {
        let (place, side) = (self.vae_place(), self.latent_side());
        let load = |loader: &_| {
            let mut vae = VaeDecoder::load(loader, self.vae)?;
            vae.use_tiling(in_tiles);
            Ok(vae)
        };
        let run = |vae: &VaeDecoder| {
            drop(vae.decode(&place.tensor(&[1, self.vae.latent_channels, side, side])));
            Ok(())
        };
        place.inference(load, run)
    }

    /// The UNet on both halves of the guidance.
    fn predict(&self, batch: i64, kind: Kind) -> Result<Inference> {
        let place = self.place(kind);
        let run = |unet: &UNet2DConditionModel| {
            let [latents, timesteps] = self.noisy(&place, batch * 2);
            drop(unet.forward(&latents, &timesteps, &self.known_texts(&place, batch * 2), false));
            Ok(())
        };
        place.inference(|loader| UNet2DConditionModel::load(loader, self.unet), run)
    }

    /// Noisy latents of so many images, and their timesteps.
    fn noisy(&self, place: &Place, images: i64) -> [Tensor; 2] {
        let side = self.latent_side();
        let latents = place.tensor(&[images, self.unet.in_channels, side, side]);
        [latents, Tensor::empty([images], (Kind::Int64, PLANNED))]
    }

    /// Embeddings of as many texts.
    fn known_texts(&self, place: &Place, texts: i64) -> Conditioning {
        let context = place.tensor(&[texts, self.text_length(), self.unet.cross_attention_dim]);
        let pooled = self.unet.pooled_width().map(|width| place.tensor(&[texts, width]));
        Conditioning { context, pooled, time_ids: None }.with_size_ids(&self.sizes(texts))
    }

    fn text_length(&self) -> i64 {
        self.texts.iter().map(|text| text.max_position_embeddings).max().unwrap_or(1)
    }

    fn sizes(&self, images: i64) -> Vec<SizeIds> {
        vec![SizeIds::of_whole(self.resolution, self.resolution); images.max(0) as usize]
    }

    /// The name and bytes of what is largest beside weights while `images` are made, and the work.
    fn sampling(&self, images: SampledImages, predict: &Inference, decode: &Inference) -> ((String, u64), Work) {
        let part = match predict.peak > decode.peak {
            true => ("activations of the UNet".to_owned(), predict.peak),
            false => ("activations of the decoder".to_owned(), decode.peak),
        };
        let steps = images.steps as f64 / images.batch as f64;
        let one = predict.work.clone().times(steps).plus(decode.work.clone());
        (part, one.times(images.count as f64))
    }

    fn check(&self) -> Result<()> {
        let multiple = self.vae.scale_factor() * self.unet.size_multiple();
        if self.resolution < multiple || self.resolution % multiple != 0 {
            return Err(Error::invalid(format!(
                "the resolution is {}; this model needs a multiple of {multiple}",
                self.resolution
            )));
        }
        if self.batch < 1 {
            return Err(Error::invalid(format!("the batch size is {}; it must be at least 1", self.batch)));
        }
        Ok(())
    }
}

const TEXT_PARTS: [Part; 2] = [Part::TextEncoder, Part::TextEncoder2];

/// The text encoders, and the bytes of each.
fn text_encoders(input: &PlanInput, place: &Place, planning: &Planning) -> Result<(TextEncoders, Vec<u64>)> {
    let mut networks = Vec::new();
    let mut bytes = Vec::new();
    for (part, config) in std::iter::zip(TEXT_PARTS, input.texts) {
        let (network, weights) = place.load(planning, |loader| ClipTextModel::load(loader, config))?;
        networks.push((part, network));
        bytes.push(weights - unread_embeddings(input, config));
    }
    Ok((TextEncoders::new(networks, false), bytes))
}

/// The networks that a step needs, and what it takes.
struct Training {
    unet: u64,
    texts: Vec<u64>,
    trained: u64,
    /// Bytes of the optimizer's state.
    state: u64,
    step: Step,
}

impl Training {
    fn of(input: &PlanInput) -> Result<Self> {
        let place = input.place(input.kind);
        place.planned(|planning| {
            let (unet, unet_bytes) = place.load(planning, |loader| UNet2DConditionModel::load(loader, input.unet))?;
            let (encoders, texts) = text_encoders(input, &place, planning)?;
            let mut adapters = vec![adapted(&unet.sites, &input.unet_lora)?];
            for ((_, sites), lora) in std::iter::zip(encoders.sites(), &input.text_loras) {
                adapters.push(adapted(sites, lora)?);
            }
            let (trained, gradients) = (trained_numbers(&adapters), new_gradients(&adapters, input.accumulation)?);
            let named = |(part, adapter): (usize, &Attached)| {
                let param = |(name, param): (&String, &Tensor)| (format!("{part}.{name}"), param.shallow_clone());
                adapter.params.iter().map(param).collect::<Vec<_>>()
            };
            let params = adapters.iter().enumerate().flat_map(named).collect();
            let state = state_bytes(planning, &params, input.optimizer_8bit)?;
            let step = Step::of(planning, gradients, || {
                let images = input.images_a_step();
                let [latents, timesteps] = input.noisy(&place, images);
                let on = match input.text_loras.is_empty() {
                    true => input.known_texts(&place, images),
                    false => {
                        let rows =
                            vec![vec![vec![0; input.text_length() as usize]; input.texts.len()]; images as usize];
                        encoders.forward(&rows, input.gradient_checkpointing).with_size_ids(&input.sizes(images))
                    }
                };
                let predicted = unet.model.forward(&latents, &timesteps, &on, input.gradient_checkpointing);
                let prior = input.prior_preservation.then_some(1.0);
                Ok(dreambooth_loss(&predicted, &latents, prior, None).total)
            })?;
            Ok(Self { unet: unet_bytes, texts, trained, state, step })
        })
    }
}

/// The phases of a run, as they are found.
struct Phases<'a> {
    input: &'a PlanInput<'a>,
    training: Training,
    runtime: (String, u64),
    found: Vec<Phase>,
}

impl MemoryPlan {
    /// Predicts the DreamBooth run of `input`.
    pub fn new(input: &PlanInput) -> Result<Self> {
        input.check()?;
        let training = Training::of(input)?;
        let runtime = runtime(input.device, input.kind, training.step.work.products.len());
        Phases { input, training, runtime, found: Vec::new() }.all()
    }
}

impl Phases<'_> {
    fn push(&mut self, name: &'static str, parts: Vec<(String, u64)>, work: Work) {
        self.found.push(Phase { name, parts, work });
    }

    fn all(mut self) -> Result<MemoryPlan> {
        let input = self.input;
        if let Some(images) = input.class_images {
            let (predict, decode) = (input.predict(images.batch, images.kind)?, input.decode(input.vae_tiling)?);
            let (activations, work) = input.sampling(images, &predict, &decode);
            let parts = vec![
                ("UNet weights".to_owned(), predict.weights),
                ("VAE decoder weights".to_owned(), decode.weights),
                activations,
                self.runtime.clone(),
            ];
            self.push("class images", parts, work);
        }
        let mut encode = input.encode(1)?;
        let encoder = ("VAE encoder weights".to_owned(), encode.weights);
        if input.cache_latents {
            let parts =
                vec![encoder.clone(), ("activations of the encoder".to_owned(), encode.peak), self.runtime.clone()];
            self.push("latents", parts, encode.work.clone().times(input.photos as f64));
        }
        let texts = self.text_weights();
        let mut resident = vec![("UNet weights".to_owned(), self.training.unet)];
        match input.text_loras.is_empty() {
            true => {
                self.push("prompt embeddings", texts.iter().chain([&self.runtime]).cloned().collect(), Work::default())
            }
            false => resident.extend(texts.iter().cloned()),
        }
        resident.extend(adapter_parts(self.training.trained, self.training.state));
        let mut micro_step = self.training.step.work.clone();
        if !input.cache_latents {
            resident.push(encoder);
            encode = input.encode(input.images_a_step())?;
            micro_step = micro_step.plus(encode.work.clone());
            if encode.peak > self.training.step.kept + self.training.step.on_top {
                let mut parts = resident.clone();
                parts.extend([("activations of the encoder".to_owned(), encode.peak), self.runtime.clone()]);
                self.push("encoding photos", parts, Work::default());
            }
        }
        if let Some(images) = input.sample_images {
            self.sample_images(images, &resident, &texts)?;
        }
        let step = &self.training.step;
        resident.push(("activations kept for backward".to_owned(), step.kept));
        resident.push(("largest step of forward or backward".to_owned(), step.on_top));
        resident.extend(gaps(input.device, step.kept_small));
        resident.push(self.runtime.clone());
        let step_work = micro_step.times(input.accumulation as f64);
        self.push("training", resident, step_work.clone().times(input.steps as f64));
        Ok(MemoryPlan::of(self.found, self.training.trained, step_work))
    }

    fn text_weights(&self) -> Vec<(String, u64)> {
        let named = |(name, bytes): (&str, &u64)| (format!("{name} weights"), *bytes);
        std::iter::zip(["text encoder", "second text encoder"], &self.training.texts).map(named).collect()
    }

    fn sample_images(
        &mut self,
        images: SampledImages,
        resident: &[(String, u64)],
        texts: &[(String, u64)],
    ) -> Result<()> {
        let input = self.input;
        let predict = input.predict(images.batch, images.kind)?;
        let decode = input.decode(input.slicing || input.vae_tiling)?;
        let (activations, work) = input.sampling(images, &predict, &decode);
        // What encoded the prompts goes to host memory meanwhile.
        let is_parked = input.device != Device::Cpu && !input.storage.streamed;
        let mut parts = resident.to_vec();
        parts.retain(|(name, _)| !is_parked || !texts.iter().any(|(text, _)| text == name));
        parts.extend([("VAE decoder weights".to_owned(), decode.weights), activations, self.runtime.clone()]);
        self.push("sample images", parts, work);
        Ok(())
    }
}

/// Bytes of a text encoder's token table that never come to memory where it is not streamed: it is mapped from the file, and prompts read few of
/// its rows.
fn unread_embeddings(input: &PlanInput, text: &ClipTextConfig) -> u64 {
    let stays_mapped = input.device == Device::Cpu && input.kind == Kind::Float && !input.storage.streamed;
    match stays_mapped {
        true => (text.vocab_size * text.hidden_size) as u64 * width(input.kind),
        false => 0,
    }
}
