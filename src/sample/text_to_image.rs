//! Images from text by a sampler and classifier-free guidance (arXiv 2207.12598): the same picture as diffusers'
//! `StableDiffusionPipeline` and `StableDiffusionXLPipeline` with `torch.Generator("cpu").manual_seed(seed)`.
//!
//! Shapes: n images, t text length, e text width, h and w height and width of the latents.

use crate::data::tokenizers::PromptTokenizers;
use crate::error::{Error, Result};
use crate::libtorch::failure::catching;
use crate::libtorch::random::Generator;
use crate::models::stable_diffusion::{Conditioning, SizeIds, TextEncoders, UNet2DConditionModel, VaeDecoder};
use crate::schedulers::{scheduler, SchedulerConfig};
use image::RgbImage;
use tch::{Device, Kind, Tensor};

/// The strongest guidance: pictures are noise long before it.
const MAX_GUIDANCE: f64 = 1000.0;

/// Refuses a `--guidance-scale` that makes no pictures.
pub fn check_guidance_scale(scale: f64) -> Result<()> {
    match (-MAX_GUIDANCE..=MAX_GUIDANCE).contains(&scale) {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "⟨guidance_scale⟩ is {scale:e}; it must be a number of at most {MAX_GUIDANCE}, 7.5 is usual"
        ))),
    }
}

/// How images are sampled.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// Steps of the sampler.
    pub steps: usize,
    /// Strength of the guidance; at 1 or below the negative prompt is not used.
    pub guidance_scale: f64,
    /// A name of `schedulers::SCHEDULERS`; the model's own where none is given.
    pub scheduler: Option<String>,
    /// Height of the latents.
    pub latent_height: i64,
    /// Width of the latents.
    pub latent_width: i64,
    /// How much of the guided prediction is brought back to the spread of the unguided one (arXiv 2305.08891, section 3.4): 0 to 1.
    pub guidance_rescale: f64,
    /// The sizes that a model is told which is conditioned on them.
    pub size_ids: SizeIds,
}

/// What pictures are drawn of.
pub struct EncodedPrompts {
    /// Of one prompt for all images, or of one an image.
    pub prompt: Conditioning,
    /// Of the negative prompt, one for all.
    pub negative: Conditioning,
}

impl EncodedPrompts {
    /// Encodes prompts, one for all images or one an image, and the negative prompt of all where there is one. A second text encoder
    /// reads `second` instead of each prompt where that is given.
    pub fn encode<S: AsRef<str>>(
        tokenizers: &PromptTokenizers,
        encoders: &TextEncoders,
        (prompts, second): (&[S], Option<&str>),
        negative: Option<&str>,
    ) -> Result<Self> {
        let encode = |texts: &[&str], second: Option<&str>| -> Result<Conditioning> {
            let rows = texts.iter().map(|text| tokenizers.encode(text, second)).collect::<Result<Vec<_>>>()?;
            rows.iter().try_for_each(|row| encoders.check_ids(row))?;
            catching(|| Ok(tch::no_grad(|| encoders.forward(&rows, false))))
        };
        let prompts: Vec<&str> = prompts.iter().map(AsRef::as_ref).collect();
        let prompt = encode(&prompts, second)?;
        let negative = match negative {
            None if encoders.zeroes_absent() => prompt.narrow(0, 1).zeros_like(),
            text => encode(&[text.unwrap_or_default()], None)?,
        };
        Ok(Self { prompt, negative })
    }

    /// That of `count` images from the number `first` on.
    pub(super) fn of_images(&self, first: usize, count: usize) -> Self {
        match self.prompt.images() {
            1 => self.shallow_clone(),
            _ => Self { prompt: self.prompt.narrow(first as i64, count as i64), ..self.shallow_clone() },
        }
    }

    /// The same, with the same tensors.
    pub fn shallow_clone(&self) -> Self {
        Self { prompt: self.prompt.shallow_clone(), negative: self.negative.shallow_clone() }
    }
}

/// Latents of one image a seed: `[n, 4, h, w]` float32, in the UNet's scale. `on_step` is told of each finished step
/// and may stop the work with an error.
pub fn sample_latents(
    unet: &UNet2DConditionModel,
    config: &SchedulerConfig,
    on: &EncodedPrompts,
    sampling: &Sampling,
    seeds: &[i64],
    on_step: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let mut scheduler = scheduler(sampling.scheduler.as_deref(), config, sampling.steps)?;
    let mut generators: Vec<Generator> = seeds.iter().map(|&seed| Generator::new(seed)).collect();
    let (device, kind) = on.prompt.placement();
    let shape = [1, 4, sampling.latent_height, sampling.latent_width];
    let mut draw = |_: &[i64]| {
        let rows: Vec<Tensor> = generators.iter_mut().map(|generator| generator.randn(&shape)).collect();
        Tensor::cat(&rows, 0).to_device(device)
    };
    let guided = sampling.guidance_scale > 1.0;
    let n = seeds.len() as i64;
    let on = match guided {
        true => Conditioning::cat(&[on.negative.expand(n), on.prompt.expand(n)]),
        false => on.prompt.expand(n),
    };
    let sizes = vec![sampling.size_ids; on.images() as usize];
    let on = on.with_size_ids(&sizes);
    let mut latents = draw(&[]) * scheduler.init_noise_sigma();
    let timesteps = scheduler.timesteps().to_vec();
    for (index, &timestep) in timesteps.iter().enumerate() {
        latents = catching(|| {
            let input = scheduler.scale_model_input(&latents, index);
            let input = if guided { Tensor::cat(&[&input, &input], 0) } else { input };
            let times = Tensor::full([input.size()[0]], timestep, (Kind::Float, device));
            let mut output = unet.forward(&input.to_kind(kind), &times, &on, false).to_kind(Kind::Float);
            if guided {
                let halves = output.chunk(2, 0);
                output = &halves[0] + (&halves[1] - &halves[0]) * sampling.guidance_scale;
                if sampling.guidance_rescale > 0.0 {
                    output = rescaled(&output, &halves[1], sampling.guidance_rescale);
                }
            }
            Ok(scheduler.step(&output.contiguous(), index, &latents, &mut draw))
        })?;
        on_step(index + 1, timesteps.len())?;
    }
    Ok(latents)
}

/// A share `strength` of the prediction `guided` with the standard deviation that each image's prediction `text` has, and the rest as
/// it is (arXiv 2305.08891, equations 15 and 16).
fn rescaled(guided: &Tensor, text: &Tensor, strength: f64) -> Tensor {
    let spread = |xs: &Tensor| xs.std_dim([1, 2, 3].as_slice(), true, true);
    let brought_back = guided * (spread(text) / spread(guided));
    brought_back * strength + guided * (1.0 - strength)
}

/// The picture of latents `[1, 4, h, w]` in the UNet's scale; `in_tiles` has it decoded so whatever the VAE was told.
pub fn decode(vae: &VaeDecoder, latents: &Tensor, kind: Kind, in_tiles: bool) -> Result<RgbImage> {
    let _no_grad = tch::no_grad_guard();
    let scaled = (latents / vae.config().scaling_factor).to_kind(kind);
    let pixels = catching(|| {
        let pixels = if in_tiles { vae.decode_in_tiles(&scaled) } else { vae.decode(&scaled) };
        Ok(pixels.to_kind(Kind::Float))
    })?;
    to_image(&pixels.squeeze_dim(0))
}

/// Pixels `[3, h, w]` in [-1, 1] as an image.
pub fn to_image(pixels: &Tensor) -> Result<RgbImage> {
    let size = pixels.size();
    let (height, width) = (size[1], size[2]);
    // What is no number stays none in a sum.
    if !f64::try_from(pixels.f_sum(Kind::Double)?)?.is_finite() {
        return Err(Error::Diverged("the VAE's output is not a number in places".into()));
    }
    let bytes = ((pixels / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round().to_kind(Kind::Uint8);
    let bytes = Vec::<u8>::try_from(bytes.permute([1, 2, 0]).contiguous().to_device(Device::Cpu).flatten(0, -1))?;
    RgbImage::from_raw(width as u32, height as u32, bytes).ok_or_else(|| Error::invalid("an image has no pixels"))
}
