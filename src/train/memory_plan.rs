//! The memory and the work of a DreamBooth run, predicted from configurations alone: the forwards are walked on tensors
//! without numbers, with libtorch's rules for what backward keeps.

mod fit;
mod layers;
mod networks;
mod speed;
mod tape;

pub use fit::{fit, parse_size, Fit, Suggestion};
pub use speed::Rates;
pub use tape::Work;

use crate::adapters::LoraConfig;
use crate::error::{Error, Result};
use crate::models::stable_diffusion::{ClipTextConfig, UNetConfig, VaeConfig};
use layers::Network;
use std::collections::BTreeMap;
use std::rc::Rc;
use tape::Tape;
use tch::{Device, Kind};

/// What libtorch itself takes on the host once it computes in float32: its code's pages, buffers for packing. Measured.
const HOST_RUNTIME: u64 = 45 << 20;

/// The same in bfloat16: oneDNN compiles a kernel for each shape. Measured.
const HOST_RUNTIME_HALF: u64 = 115 << 20;

/// Share of what is kept in small blocks that is lost between them. Measured.
const HEAP_GAPS: f64 = 0.15;

/// Gaps that any step leaves.
const HEAP_BASE: u64 = 20 << 20;

/// cuBLAS' and cuDNN's workspaces.
const CUDA_RUNTIME: u64 = 64 << 20;

/// All that a run's memory depends on.
#[derive(Debug, Clone)]
pub struct PlanInput<'a> {
    /// The UNet.
    pub unet: &'a UNetConfig,
    /// The VAE.
    pub vae: &'a VaeConfig,
    /// The text encoder.
    pub text: &'a ClipTextConfig,
    /// Side of the square images in pixels.
    pub resolution: i64,
    /// Instance images a micro-step.
    pub batch: i64,
    /// As many class images beside them.
    pub prior_preservation: bool,
    /// Class images have yet to be made.
    pub generate_class_images: bool,
    /// Images that are sampled at once, for class images.
    pub sample_batch: i64,
    /// Sample images are made while training.
    pub validation: bool,
    /// The compute dtype, in which frozen weights are kept.
    pub kind: Kind,
    /// The UNet's adapter.
    pub unet_lora: LoraConfig,
    /// The text encoder's adapter, where it is trained.
    pub text_lora: Option<LoraConfig>,
    /// Activations are computed again in backward.
    pub gradient_checkpointing: bool,
    /// AdamW with states of one byte each.
    pub optimizer_8bit: bool,
    /// The VAE runs before training and is freed.
    pub cache_latents: bool,
    /// Where it all runs.
    pub device: Device,
}

/// A stretch of a run and what is in memory at its highest point.
#[derive(Debug, Clone)]
pub struct Phase {
    /// What the run does.
    pub name: &'static str,
    /// What takes memory, in bytes.
    pub parts: Vec<(String, u64)>,
}

impl Phase {
    /// The phase's peak in bytes.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The prediction.
#[derive(Debug, Clone)]
pub struct MemoryPlan {
    /// The phases of the run, in their order.
    pub phases: Vec<Phase>,
    /// The highest of their peaks: bytes of the device, or of the host above the start of the process.
    pub peak_bytes: u64,
    /// Elements of the adapters.
    pub trained_parameters: u64,
    /// Floating-point operations of a micro-step.
    pub flops_per_step: f64,
    /// The same by kind of operation.
    pub work: Work,
}

/// Elements of each network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elements {
    /// The UNet's.
    pub unet: u64,
    /// The text encoder's.
    pub text_encoder: u64,
    /// The VAE's.
    pub vae: u64,
}

/// Bytes of a number.
fn width(kind: Kind) -> u64 {
    kind.elt_size_in_bytes() as u64
}

/// Key to shape of every weight of a UNet.
pub fn unet_weights(config: &UNetConfig) -> BTreeMap<String, Vec<i64>> {
    walked_unet(config).weights()
}

/// Key to shape of every weight of a text encoder.
pub fn text_encoder_weights(config: &ClipTextConfig) -> BTreeMap<String, Vec<i64>> {
    walked_text(config).weights()
}

/// Key to shape of every weight of a VAE.
pub fn vae_weights(config: &VaeConfig) -> BTreeMap<String, Vec<i64>> {
    walked_vae(config).weights()
}

fn walked_unet(config: &UNetConfig) -> Rc<Network> {
    let (network, tape) = (Rc::<Network>::default(), Tape::new(4, false));
    let side = config.size_multiple();
    let latents = tape.tensor(&[1, config.in_channels, side, side]);
    let text = tape.tensor(&[1, 1, config.cross_attention_dim]);
    networks::unet(&tape, &network.root(), config, &latents, &text, false);
    network
}

fn walked_text(config: &ClipTextConfig) -> Rc<Network> {
    let (network, tape) = (Rc::<Network>::default(), Tape::new(4, false));
    networks::clip_text(&tape, &network.root(), config, 1, false);
    network
}

fn walked_vae(config: &VaeConfig) -> Rc<Network> {
    let (network, tape) = (Rc::<Network>::default(), Tape::new(4, false));
    let side = config.scale_factor();
    networks::vae_encode(&tape, &network.root(), config, &tape.tensor(&[1, config.in_channels, side, side]));
    networks::vae_decode(&tape, &network.root(), config, &tape.tensor(&[1, config.latent_channels, 1, 1]));
    network
}

/// Bytes that the encoder needs beside weights for one image at a time.
fn encode_peak(input: &PlanInput, batch: i64) -> u64 {
    let (network, tape) = (Rc::<Network>::default(), Tape::new(width(input.kind), false));
    let images = tape.tensor(&[batch, input.vae.in_channels, input.resolution, input.resolution]);
    networks::vae_encode(&tape, &network.root(), input.vae, &images);
    tape.meter().peak()
}

/// Bytes that sampling `batch` images needs beside weights: the UNet on both halves of the guidance, then the decoder.
fn sample_peaks(input: &PlanInput, batch: i64) -> (u64, u64) {
    let (network, tape) = (Rc::<Network>::default(), Tape::new(width(input.kind), false));
    let side = latent_side(input);
    let latents = tape.tensor(&[batch * 2, input.unet.in_channels, side, side]);
    let text = tape.tensor(&[batch * 2, input.text.max_position_embeddings, input.unet.cross_attention_dim]);
    networks::unet(&tape, &network.root(), input.unet, &latents, &text, false);
    let predicted = tape.meter().peak();
    let (network, tape) = (Rc::<Network>::default(), Tape::new(width(input.kind), false));
    let latents = tape.tensor(&[batch, input.vae.latent_channels, side, side]);
    networks::vae_decode(&tape, &network.root(), input.vae, &latents);
    (predicted, tape.meter().peak())
}

fn latent_side(input: &PlanInput) -> i64 {
    input.resolution / input.vae.scale_factor().max(1)
}

/// A micro-step of training: what forward leaves, what backward needs on top, the work, and the adapters' elements.
struct Step {
    kept: u64,
    kept_small: u64,
    on_top: u64,
    work: Work,
    trained: (u64, u64),
}

impl Step {
    fn of(input: &PlanInput) -> Result<Self> {
        let unet = Network::new(Some(&input.unet_lora))?;
        let text_encoder = Network::new(input.text_lora.as_ref())?;
        let tape = Tape::new(width(input.kind), true);
        let (batch, side) = (images_a_step(input), latent_side(input));
        let latents = tape.tensor(&[batch, input.unet.in_channels, side, side]);
        let text = match input.text_lora {
            Some(_) => {
                let checkpointing = input.gradient_checkpointing;
                networks::clip_text(&tape, &text_encoder.root(), input.text, batch, checkpointing)
            }
            None => tape.tensor(&[batch, input.text.max_position_embeddings, input.unet.cross_attention_dim]),
        };
        let checkpointing = input.gradient_checkpointing;
        let predicted = networks::unet(&tape, &unet.root(), input.unet, &latents, &text, checkpointing);
        drop(text);
        let (kept, kept_small) = (tape.meter().live(), tape.meter().small());
        tape.backward(predicted);
        Ok(Self {
            kept,
            kept_small,
            on_top: tape.meter().peak().saturating_sub(kept),
            work: tape.meter().work(),
            trained: (unet.trained_elements(), text_encoder.trained_elements()),
        })
    }
}

fn images_a_step(input: &PlanInput) -> i64 {
    input.batch * if input.prior_preservation { 2 } else { 1 }
}

impl MemoryPlan {
    /// Predicts the run of `input`.
    pub fn new(input: &PlanInput) -> Result<Self> {
        let multiple = input.vae.scale_factor() * input.unet.size_multiple();
        if input.resolution < multiple || input.resolution % multiple != 0 {
            return Err(Error::invalid(format!(
                "the resolution is {}; this model needs a multiple of {multiple}",
                input.resolution
            )));
        }
        if input.batch < 1 {
            return Err(Error::invalid(format!("the batch size is {}; it must be at least 1", input.batch)));
        }
        let elements = Self::elements(input);
        let bytes = |elements: u64| elements * width(input.kind);
        let weights = |name: &str, elements: u64| (format!("{name} weights"), bytes(elements));
        let step = Step::of(input)?;
        let (runtime_name, runtime) = match input.device {
            Device::Cuda(_) => ("cuBLAS and cuDNN", CUDA_RUNTIME),
            _ if width(input.kind) < 4 => ("libtorch and oneDNN", HOST_RUNTIME_HALF),
            _ => ("libtorch and oneDNN", HOST_RUNTIME),
        };
        let runtime = (runtime_name.to_owned(), runtime);
        let unet = weights("UNet", elements.unet);
        let text_encoder = weights("text encoder", elements.text_encoder);
        let vae = weights("VAE", elements.vae);
        let mut phases = Vec::new();
        let mut phase = |name: &'static str, parts: Vec<(String, u64)>| phases.push(Phase { name, parts });
        if input.prior_preservation && input.generate_class_images {
            let activations = sample_activations(input, input.sample_batch);
            let parts = vec![unet.clone(), text_encoder.clone(), vae.clone(), activations, runtime.clone()];
            phase("class images", parts);
        }
        if input.cache_latents {
            let activations = ("activations of the encoder".to_owned(), encode_peak(input, 1));
            phase("latents", vec![vae.clone(), activations, runtime.clone()]);
        }
        if input.text_lora.is_none() {
            phase("prompt embeddings", vec![text_encoder.clone(), runtime.clone()]);
        }
        let mut resident = vec![unet];
        if input.text_lora.is_some() {
            resident.push(text_encoder);
        }
        let trained = step.trained.0 + step.trained.1;
        let state = trained * if input.optimizer_8bit { 2 } else { 8 };
        resident.push(("adapters and their gradients".to_owned(), trained * 8));
        resident.push(("optimizer state".to_owned(), state));
        if input.validation {
            let mut parts = resident.clone();
            parts.extend([vae.clone(), sample_activations(input, 1), runtime.clone()]);
            phase("sample images", parts);
        }
        if !input.cache_latents {
            resident.push(vae);
            let encoding = encode_peak(input, images_a_step(input));
            if encoding > step.kept + step.on_top {
                let mut parts = resident.clone();
                parts.extend([("activations of the encoder".to_owned(), encoding), runtime.clone()]);
                phase("encoding photos", parts);
            }
        }
        resident.push(("activations kept for backward".to_owned(), step.kept));
        resident.push(("largest step of forward or backward".to_owned(), step.on_top));
        if !matches!(input.device, Device::Cuda(_)) {
            resident.push(("gaps in the heap".to_owned(), (step.kept_small as f64 * HEAP_GAPS) as u64 + HEAP_BASE));
        }
        resident.push(runtime);
        phase("training", resident);
        let peak_bytes = phases.iter().map(Phase::bytes).max().unwrap_or(0);
        Ok(Self { phases, peak_bytes, trained_parameters: trained, flops_per_step: step.work.flops(), work: step.work })
    }

    /// Elements of the three networks.
    pub fn elements(input: &PlanInput) -> Elements {
        Elements {
            unet: walked_unet(input.unet).elements(),
            text_encoder: walked_text(input.text).elements(),
            vae: walked_vae(input.vae).elements(),
        }
    }

    /// The phase called `name`.
    pub fn phase(&self, name: &str) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.name == name)
    }

    /// Seconds of a micro-step on a device with these rates.
    pub fn step_seconds(&self, rates: &Rates) -> f64 {
        rates.seconds(&self.work)
    }
}

fn sample_activations(input: &PlanInput, batch: i64) -> (String, u64) {
    let (predicting, decoding) = sample_peaks(input, batch);
    match predicting > decoding {
        true => ("activations of the UNet".to_owned(), predicting),
        false => ("activations of the decoder".to_owned(), decoding),
    }
}

#[cfg(test)]
mod tests;
