//! Images from text by a sampler and classifier-free guidance (arXiv 2207.12598): the same picture as diffusers'
//! `StableDiffusionPipeline` with `torch.Generator("cpu").manual_seed(seed)`.
//!
//! Shapes: n images, t text length, e text width, h and w height and width of the latents.

use crate::data::tokenizers::clip::ClipTokenizer;
use crate::error::{Error, Result};
use crate::libtorch::failure::catching;
use crate::libtorch::random::Generator;
use crate::models::stable_diffusion::{ClipTextModel, UNet2DConditionModel, VaeDecoder};
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
}

/// What the UNet is conditioned on.
pub struct Conditioning {
    /// Of one prompt for all images, or of one an image: `[1 or n, t, e]`.
    pub prompt: Tensor,
    /// Of the negative prompt: `[1, t, e]`.
    pub negative: Tensor,
}

impl Conditioning {
    /// Encodes prompts, one for all images or one an image, and the negative prompt of all (empty for none).
    pub fn encode<S: AsRef<str>>(
        tokenizer: &ClipTokenizer,
        text_encoder: &ClipTextModel,
        device: Device,
        prompts: &[S],
        negative: &str,
    ) -> Result<Self> {
        let encode = |texts: &[&str]| -> Result<Tensor> {
            let ids = texts.iter().map(|text| tokenizer.encode(text)).collect::<Result<Vec<_>>>()?;
            ids.iter().try_for_each(|ids| text_encoder.check_ids(ids))?;
            let ids = ClipTextModel::ids(&ids, device);
            catching(|| Ok(tch::no_grad(|| text_encoder.forward(&ids, false))))
        };
        let prompts: Vec<&str> = prompts.iter().map(AsRef::as_ref).collect();
        Ok(Self { prompt: encode(&prompts)?, negative: encode(&[negative])? })
    }

    /// That of `count` images from the number `first` on.
    pub(super) fn of_images(&self, first: usize, count: usize) -> Self {
        match self.prompt.size()[0] {
            1 => self.shallow_clone(),
            _ => Self { prompt: self.prompt.narrow(0, first as i64, count as i64), ..self.shallow_clone() },
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
    on: &Conditioning,
    sampling: &Sampling,
    seeds: &[i64],
    on_step: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let mut scheduler = scheduler(sampling.scheduler.as_deref(), config, sampling.steps)?;
    let mut generators: Vec<Generator> = seeds.iter().map(|&seed| Generator::new(seed)).collect();
    let (device, kind) = (on.prompt.device(), on.prompt.kind());
    let shape = [1, 4, sampling.latent_height, sampling.latent_width];
    let mut draw = |_: &[i64]| {
        let rows: Vec<Tensor> = generators.iter_mut().map(|generator| generator.randn(&shape)).collect();
        Tensor::cat(&rows, 0).to_device(device)
    };
    let guided = sampling.guidance_scale > 1.0;
    let n = seeds.len() as i64;
    let repeat = |text: &Tensor| text.expand([n, -1, -1], false);
    let text = match guided {
        true => Tensor::cat(&[repeat(&on.negative), repeat(&on.prompt)], 0),
        false => repeat(&on.prompt),
    };
    let mut latents = draw(&[]) * scheduler.init_noise_sigma();
    let timesteps = scheduler.timesteps().to_vec();
    for (index, &timestep) in timesteps.iter().enumerate() {
        latents = catching(|| {
            let input = scheduler.scale_model_input(&latents, index);
            let input = if guided { Tensor::cat(&[&input, &input], 0) } else { input };
            let times = Tensor::full([input.size()[0]], timestep, (Kind::Float, device));
            let mut output = unet.forward(&input.to_kind(kind), &times, &text, false).to_kind(Kind::Float);
            if guided {
                let halves = output.chunk(2, 0);
                output = &halves[0] + (&halves[1] - &halves[0]) * sampling.guidance_scale;
            }
            Ok(scheduler.step(&output.contiguous(), index, &latents, &mut draw))
        })?;
        on_step(index + 1, timesteps.len())?;
    }
    Ok(latents)
}

/// The picture of latents `[1, 4, h, w]` in the UNet's scale.
pub fn decode(vae: &VaeDecoder, latents: &Tensor, kind: Kind) -> Result<RgbImage> {
    let _no_grad = tch::no_grad_guard();
    let scaled = latents / vae.config().scaling_factor;
    let pixels = catching(|| Ok(vae.decode(&scaled.to_kind(kind)).to_kind(Kind::Float)))?;
    to_image(&pixels.squeeze_dim(0))
}

/// Pixels `[3, h, w]` in [-1, 1] as an image.
pub fn to_image(pixels: &Tensor) -> Result<RgbImage> {
    let size = pixels.size();
    let (height, width) = (size[1], size[2]);
    // What is no number stays none in a sum.
    if !f64::try_from(pixels.f_sum(Kind::Double)?)?.is_finite() {
        return Err(Error::Diverged("the VAE's output is NaN: decode in fp32 or bf16 (⟨mixed_precision⟩ no)".into()));
    }
    let bytes = ((pixels / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round().to_kind(Kind::Uint8);
    let bytes = Vec::<u8>::try_from(bytes.permute([1, 2, 0]).contiguous().to_device(Device::Cpu).flatten(0, -1))?;
    RgbImage::from_raw(width as u32, height as u32, bytes).ok_or_else(|| Error::invalid("an image has no pixels"))
}
