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
    /// Of the prompt, or of one prompt an image: `[1 or n, t, e]`.
    pub prompt: Tensor,
    /// Of the negative prompt: `[1 or n, t, e]`.
    pub negative: Tensor,
}

impl Conditioning {
    /// Encodes a prompt and a negative prompt (empty for none).
    pub fn encode(
        tokenizer: &ClipTokenizer,
        text_encoder: &ClipTextModel,
        device: Device,
        prompt: &str,
        negative: &str,
    ) -> Result<Self> {
        let encode = |text: &str| -> Result<Tensor> {
            let ids = tokenizer.encode(text)?;
            text_encoder.check_ids(&ids)?;
            let ids = ClipTextModel::ids(&[ids], device);
            catching(|| Ok(tch::no_grad(|| text_encoder.forward(&ids, false))))
        };
        Ok(Self { prompt: encode(prompt)?, negative: encode(negative)? })
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

/// Pictures of latents `[n, 4, h, w]` in the UNet's scale, one at a time so that memory stays small.
pub fn decode(vae: &VaeDecoder, latents: &Tensor, kind: Kind) -> Result<Vec<RgbImage>> {
    let _no_grad = tch::no_grad_guard();
    let scaled = latents / vae.config().scaling_factor;
    (0..latents.size()[0])
        .map(|i| {
            let pixels = catching(|| Ok(vae.decode(&scaled.narrow(0, i, 1).to_kind(kind)).to_kind(Kind::Float)))?;
            to_image(&pixels.squeeze_dim(0))
        })
        .collect()
}

/// Pixels `[3, h, w]` in [-1, 1] as an image.
pub fn to_image(pixels: &Tensor) -> Result<RgbImage> {
    let size = pixels.size();
    let (height, width) = (size[1], size[2]);
    if f64::try_from(pixels.isfinite().all().to_kind(Kind::Float))? == 0.0 {
        return Err(Error::Diverged("the VAE's output is NaN: decode in fp32 or bf16 (⟨mixed_precision⟩ no)".into()));
    }
    let bytes = ((pixels / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round().to_kind(Kind::Uint8);
    let bytes = Vec::<u8>::try_from(bytes.permute([1, 2, 0]).contiguous().to_device(Device::Cpu).flatten(0, -1))?;
    RgbImage::from_raw(width as u32, height as u32, bytes).ok_or_else(|| Error::invalid("an image has no pixels"))
}

/// The keyword of a PNG text chunk in which image tools look for what a picture was drawn with.
pub const PARAMETERS: &str = "parameters";

/// A PNG with `parameters` as a text chunk of that name.
pub fn png_with_parameters(image: &RgbImage, parameters: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let failed = |e: png::EncodingError| Error::invalid(format!("an image cannot be encoded: {e}"));
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    match parameters.is_ascii() {
        true => encoder.add_text_chunk(PARAMETERS.into(), parameters.into()),
        false => encoder.add_itxt_chunk(PARAMETERS.into(), parameters.into()),
    }
    .map_err(failed)?;
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(image.as_raw()).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes)
}
