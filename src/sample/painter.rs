//! Pictures of texts, drawn by networks that are in memory: the one place where a sampler's latents become images.

use super::drawn_image::{DrawnImage, ImageParameters, NamedStrength};
use super::text_to_image::{decode, sample_latents, EncodedPrompts, Sampling};
use crate::adapters::Sites;
use crate::error::{Error, Result};
use crate::libtorch::memory;
use crate::models::stable_diffusion::{Loaded, UNet2DConditionModel, VaeDecoder};
use crate::schedulers::{default_name, SchedulerConfig};
use crate::weights::is_finite;
use image::RgbImage;
use tch::{Device, Kind, Tensor};

/// Pictures to be drawn.
#[derive(Debug, Clone)]
pub struct Pictures {
    /// What they show: one prompt for all of them, or one for each.
    pub prompts: Vec<String>,
    /// What a second text encoder reads instead, where that is something else.
    pub prompt_2: Option<String>,
    /// What none of them must show.
    pub negative_prompt: Option<String>,
    /// The seed of each one's noise.
    pub seeds: Vec<i64>,
    /// So many are sampled at a time; they are decoded one by one.
    pub batch_size: usize,
    /// How they are sampled.
    pub sampling: Sampling,
}

impl Pictures {
    /// Sampler steps of all of them; pictures of one batch share theirs.
    pub fn total_steps(&self) -> usize {
        self.seeds.len().div_ceil(self.batch_size.max(1)) * self.sampling.steps
    }
}

/// What a drawing tells while it goes on. An error of either ends it within the step.
pub trait DrawingListener {
    /// So many of [`Pictures::total_steps`] are done.
    fn on_step(&mut self, done: usize) -> Result<()>;

    /// A picture is finished; they come in the order of their seeds.
    fn on_image(&mut self, drawn: DrawnImage) -> Result<()>;

    /// Pictures are decoded otherwise than was asked for, in these words.
    fn on_change(&mut self, _what: &str) {}
}

/// How pictures are decoded that could not be decoded as was asked for.
#[derive(Default)]
struct Decoding {
    /// The decoder in float32.
    exact: Option<Loaded<VaeDecoder>>,
    in_tiles: bool,
}

/// Networks that draw, wherever they are kept: a pipeline's, or those of a run that trains.
pub struct Painter<'a> {
    /// Predicts the noise.
    pub unet: &'a UNet2DConditionModel,
    /// Latents to pixels.
    pub vae_decoder: &'a VaeDecoder,
    /// The VAE's dtype.
    pub vae_kind: Kind,
    /// Loads the decoder in float32, for a picture that is lost in float16.
    pub load_exact: &'a dyn Fn() -> Result<Loaded<VaeDecoder>>,
    /// What need not be on the device while a picture is decoded, where there is no room for both.
    pub movable: &'a [&'a Sites],
    /// The noise schedule, as for sampling (`SchedulerConfig::for_stable_diffusion`).
    pub scheduler: &'a SchedulerConfig,
    /// The model's name, for the pictures' parameters.
    pub model: &'a str,
    /// The adapters on it, for the same.
    pub adapters: &'a [NamedStrength],
}

impl Painter<'_> {
    /// Draws `pictures` of what their prompts were encoded to.
    pub fn draw(&self, pictures: &Pictures, on: &EncodedPrompts, listener: &mut dyn DrawingListener) -> Result<()> {
        let Pictures { sampling, seeds, .. } = pictures;
        let (steps, batch_size) = (sampling.steps, pictures.batch_size.max(1));
        let sampler = match &sampling.scheduler {
            Some(name) => name,
            None => default_name(self.scheduler)?,
        };
        let mut decoding = Decoding::default();
        for (batch, seeds) in seeds.chunks(batch_size).enumerate() {
            let first = batch * batch_size;
            let on = on.of_images(first, seeds.len());
            // Some samplers ask the UNet more often than they have steps.
            let mut on_step = |done: usize, total: usize| listener.on_step(batch * steps + done * steps / total.max(1));
            let latents = sample_latents(self.unet, self.scheduler, &on, sampling, seeds, &mut on_step)?;
            // On the host: they are few, and the decoder waits for them anyway.
            if !is_finite(&latents.to_device(Device::Cpu))? {
                return Err(Error::Diverged("the UNet's output is not a number in places".into()));
            }
            for (row, &seed) in seeds.iter().enumerate() {
                let image = self.decode_in_room(&latents.narrow(0, row as i64, 1), &mut decoding, listener)?;
                let index = first + row;
                let prompt = pictures.prompts.get(index).or(pictures.prompts.first()).cloned().unwrap_or_default();
                let parameters = ImageParameters {
                    prompt,
                    prompt_2: pictures.prompt_2.clone(),
                    negative_prompt: pictures.negative_prompt.clone().unwrap_or_default(),
                    adapters: self.adapters.to_vec(),
                    steps,
                    sampler: sampler.to_owned(),
                    guidance_scale: sampling.guidance_scale,
                    guidance_rescale: sampling.guidance_rescale,
                    seed,
                    width: image.width(),
                    height: image.height(),
                    model: self.model.to_owned(),
                };
                listener.on_image(DrawnImage { index, image, parameters })?;
            }
        }
        Ok(())
    }

    /// Decodes with the networks off the device where there is no room for them, and tile by tile where there is none for the picture;
    /// the next pictures in tiles too, then.
    fn decode_in_room(
        &self,
        latents: &Tensor,
        decoding: &mut Decoding,
        listener: &mut dyn DrawingListener,
    ) -> Result<RgbImage> {
        let is_full = |decoded: &Result<RgbImage>| matches!(decoded, Err(Error::OutOfMemory { .. }));
        let full = match self.decode(latents, decoding) {
            Err(full @ Error::OutOfMemory { .. }) => full,
            done => return done,
        };
        let device = latents.device();
        self.movable.iter().try_for_each(|sites| sites.park())?;
        memory::release_cached(device)?;
        let mut decoded = match self.movable.is_empty() {
            true => Err(full),
            false => self.decode(latents, decoding),
        };
        if is_full(&decoded) && !decoding.in_tiles && self.vae_decoder.has_tiles_in(latents) {
            memory::release_cached(device)?;
            decoding.in_tiles = true;
            decoded = self.decode(latents, decoding);
            if decoded.is_ok() {
                listener.on_change(
                    "memory was full while a picture was decoded: it is decoded tile by tile (⟨vae_tiling⟩)",
                );
            }
        }
        memory::release_cached(device)?;
        self.movable.iter().try_for_each(|sites| sites.unpark(device))?;
        decoded
    }

    /// Decodes, in float32 where the numbers of float16 do not reach; the next pictures too, then.
    fn decode(&self, latents: &Tensor, decoding: &mut Decoding) -> Result<RgbImage> {
        if decoding.exact.is_none() {
            match decode(self.vae_decoder, latents, self.vae_kind, decoding.in_tiles) {
                Err(Error::Diverged(_)) if self.vae_kind == Kind::Half => {}
                done => return done,
            }
        }
        let decoder = match &mut decoding.exact {
            Some(decoder) => decoder,
            none => none.insert((self.load_exact)()?),
        };
        decode(&decoder.model, latents, Kind::Float, decoding.in_tiles)
    }
}
