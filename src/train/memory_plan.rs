//! The memory and the work of a run, predicted from configurations alone: the forwards are walked on tensors without numbers,
//! with libtorch's rules for what backward keeps. Here that of a DreamBooth run.

mod cards;
mod fit;
mod language;
mod language_networks;
mod layers;
mod networks;
mod speed;
mod tape;

pub use cards::Card;
pub use fit::{fit, next_measure, parse_size, Fit, Planned, Suggestion};
pub use language::{Evaluations, LanguagePlanInput, Lengths, PlannedPrompt, Texts};
pub use speed::Rates;
pub use tape::{Product, Work};

use crate::adapters::LoraConfig;
use crate::error::{Error, Result};
use crate::libtorch::half_precision::has_units;
use crate::models::stable_diffusion::{ClipTextConfig, UNetConfig, VaeConfig};
use crate::weights::Storage;
use layers::{At, Network};
use std::collections::BTreeMap;
use std::rc::Rc;
use tape::Tape;
use tch::{Device, Kind};

/// What libtorch itself takes on the host once it computes in float32: its code's pages, buffers for packing. Measured.
const HOST_RUNTIME: u64 = 48 << 20;

/// The same in bfloat16, where the processor has units for it, and what oneDNN compiles beside that for each product. Measured.
const HOST_RUNTIME_HALF: u64 = 60 << 20;
const HOST_KERNEL_HALF: u64 = 3 << 19;

/// The same without convolutions, in float32 and in bfloat16. Measured.
const HOST_RUNTIME_TEXT: u64 = 4 << 20;
const HOST_RUNTIME_TEXT_HALF: u64 = 30 << 20;

/// Share of what is kept in small blocks that is lost between them. Measured.
const HEAP_GAPS: f64 = 0.15;

/// Gaps that any step leaves.
const HEAP_BASE: u64 = 20 << 20;

/// cuBLAS' and cuDNN's workspaces.
const CUDA_RUNTIME: u64 = 64 << 20;

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

/// A stretch of a run, what is in memory at its highest point, and what it computes.
#[derive(Debug, Clone)]
pub struct Phase {
    /// What the run does.
    pub name: &'static str,
    /// What takes memory, in bytes.
    pub parts: Vec<(String, u64)>,
    /// Its work from start to end.
    pub work: Work,
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
    /// The work of an optimizer step.
    pub step_work: Work,
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
    let mut weights = walked_encoder(config).weights();
    weights.extend(walked_decoder(config).weights());
    weights
}

fn walked_unet(config: &UNetConfig) -> Rc<Network> {
    let (network, tape) = (Rc::<Network>::default(), Tape::new(4, false));
    let side = config.size_multiple();
    let latents = tape.tensor(&[1, config.in_channels, side, side]);
    let text = tape.tensor(&[1, 1, config.cross_attention_dim]);
    networks::unet(&tape, &network.root(), config, &latents, &networks::Texts::frozen(text), false);
    network
}

fn walked_text(config: &ClipTextConfig) -> Rc<Network> {
    let (network, tape) = (Rc::<Network>::default(), Tape::new(4, false));
    // The last layer is among the weights whether it is used or not.
    networks::clip_text(&tape, &network.root(), config, 1, (false, true));
    network
}

fn walked_encoder(config: &VaeConfig) -> Rc<Network> {
    let (network, tape) = (Rc::<Network>::default(), Tape::new(4, false));
    let side = config.scale_factor();
    networks::vae_encode(&tape, &network.root(), config, &tape.tensor(&[1, config.in_channels, side, side]));
    network
}

fn walked_decoder(config: &VaeConfig) -> Rc<Network> {
    let (network, tape) = (Rc::<Network>::default(), Tape::new(4, false));
    networks::vae_decode(&tape, &network.root(), config, &tape.tensor(&[1, config.latent_channels, 1, 1]));
    network
}

/// What a forward without gradients needs: bytes beside weights, and work.
struct Inference {
    peak: u64,
    work: Work,
}

impl Inference {
    fn of(kind: Kind, walk: impl FnOnce(&Tape, &layers::At)) -> Self {
        let (network, tape) = (Rc::<Network>::default(), Tape::new(width(kind), false));
        walk(&tape, &network.root());
        Self { peak: tape.meter().peak(), work: tape.meter().work() }
    }

    /// The work of whole images, and the memory of what is encoded at once.
    fn encode(input: &PlanInput, batch: i64) -> Self {
        let of = |side: i64| {
            Self::of(input.vae_kind, |tape, root| {
                let images = |side: i64| tape.tensor(&[batch, input.vae.in_channels, side, side]);
                let _whole = (side < input.resolution).then(|| images(input.resolution));
                networks::vae_encode(tape, root, input.vae, &images(side));
            })
        };
        let tile = input.vae.tile_side().map(|side| side * input.vae.scale_factor());
        let encoded = of(input.resolution);
        match tile.filter(|side| input.vae_tiling && *side < input.resolution) {
            Some(side) => Self { peak: of(side).peak, ..encoded },
            None => encoded,
        }
    }

    /// The work of a whole picture, and the memory of what is decoded at once.
    fn decode(input: &PlanInput, tiled: bool) -> Self {
        let whole = latent_side(input);
        let of = |side: i64| {
            Self::of(input.vae_kind, |tape, root| {
                networks::vae_decode(tape, root, input.vae, &tape.tensor(&[1, input.vae.latent_channels, side, side]));
            })
        };
        let tile = input.vae.tile_side().filter(|side| tiled && *side < whole);
        let decoded = of(whole);
        match tile {
            Some(side) => Self { peak: of(side).peak, ..decoded },
            None => decoded,
        }
    }

    /// The UNet on both halves of the guidance.
    fn predict(input: &PlanInput, batch: i64, kind: Kind) -> Self {
        let side = latent_side(input);
        Self::of(kind, |tape, root| {
            let latents = tape.tensor(&[batch * 2, input.unet.in_channels, side, side]);
            networks::unet(tape, root, input.unet, &latents, &frozen_texts(tape, input, batch * 2), false);
        })
    }
}

/// The name and bytes of what is largest beside weights while `images` are made, and the work.
fn sampling(input: &PlanInput, images: SampledImages, tiled: bool) -> ((String, u64), Work) {
    let (predict, decode) = (Inference::predict(input, images.batch, images.kind), Inference::decode(input, tiled));
    let part = match predict.peak > decode.peak {
        true => ("activations of the UNet".to_owned(), predict.peak),
        false => ("activations of the decoder".to_owned(), decode.peak),
    };
    let one = predict.work.times(images.steps as f64 / images.batch as f64).plus(decode.work);
    let work = one.times(images.count as f64);
    (part, work)
}

/// Embeddings of as many texts that are known.
fn frozen_texts(tape: &Tape, input: &PlanInput, texts: i64) -> networks::Texts {
    let length = input.texts.iter().map(|text| text.max_position_embeddings).max().unwrap_or(1);
    networks::Texts::frozen(tape.tensor(&[texts, length, input.unet.cross_attention_dim]))
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
    trained: u64,
}

impl Step {
    fn of(input: &PlanInput) -> Result<Self> {
        let unet = Network::new(Some(&input.unet_lora), input.storage)?;
        let encoders = input.text_loras.iter().map(|lora| Network::new(Some(lora), input.storage));
        let encoders = encoders.collect::<Result<Vec<_>>>()?;
        let tape = Tape::new(width(input.kind), true);
        let (batch, side) = (images_a_step(input), latent_side(input));
        let latents = tape.tensor(&[batch, input.unet.in_channels, side, side]);
        let text = match encoders.is_empty() {
            true => frozen_texts(&tape, input, batch),
            false => {
                let roots: Vec<At> = encoders.iter().map(|network| network.root()).collect();
                networks::texts(&tape, &roots, input.texts, batch, input.gradient_checkpointing)
            }
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
            trained: unet.trained_elements() + encoders.iter().map(|network| network.trained_elements()).sum::<u64>(),
        })
    }
}

fn images_a_step(input: &PlanInput) -> i64 {
    input.batch * if input.prior_preservation { 2 } else { 1 }
}

impl MemoryPlan {
    fn of(phases: Vec<Phase>, trained_parameters: u64, step_work: Work) -> Self {
        let peak_bytes = phases.iter().map(Phase::bytes).max().unwrap_or(0);
        Self { phases, peak_bytes, trained_parameters, step_work }
    }

    /// All that is computed, a step of the training counted once more.
    pub fn work(&self) -> Work {
        self.phases.iter().fold(self.step_work.clone(), |all, phase| all.plus(phase.work.clone()))
    }

    /// Predicts the DreamBooth run of `input`.
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
        let step = Step::of(input)?;
        let weights = |name: &str, network: Rc<Network>, kind: Kind, storage: Storage| {
            (format!("{name} weights"), network.kept_bytes(width(kind), storage, input.device))
        };
        let unet = |kind: Kind| weights("UNet", walked_unet(input.unet), kind, input.storage);
        let text_encoders: Vec<(String, u64)> = std::iter::zip(["text encoder", "second text encoder"], input.texts)
            .map(|(name, text)| {
                let (name, bytes) = weights(name, walked_text(text), input.kind, input.storage);
                (name, bytes - unread_embeddings(input, text))
            })
            .collect();
        let text_weights: Vec<String> = text_encoders.iter().map(|(name, _)| name.clone()).collect();
        let encoder = weights("VAE encoder", walked_encoder(input.vae), input.vae_kind, Storage::default());
        let decoder = weights("VAE decoder", walked_decoder(input.vae), input.vae_kind, Storage::default());
        let runtime = runtime(input.device, input.kind, step.work.products.len());
        let mut phases = Vec::new();
        let mut phase =
            |name: &'static str, parts: Vec<(String, u64)>, work: Work| phases.push(Phase { name, parts, work });
        if let Some(images) = input.class_images {
            let (activations, work) = sampling(input, images, input.vae_tiling);
            phase("class images", vec![unet(images.kind), decoder.clone(), activations, runtime.clone()], work);
        }
        let encode = Inference::encode(input, 1);
        if input.cache_latents {
            let activations = ("activations of the encoder".to_owned(), encode.peak);
            let work = encode.work.times(input.photos as f64);
            phase("latents", vec![encoder.clone(), activations, runtime.clone()], work);
        }
        if input.text_loras.is_empty() {
            let parts = text_encoders.iter().chain([&runtime]).cloned().collect();
            phase("prompt embeddings", parts, Work::default());
        }
        let mut resident = vec![unet(input.kind)];
        if !input.text_loras.is_empty() {
            resident.extend(text_encoders);
        }
        let trained = step.trained;
        resident.extend(adapter_parts(trained, input.optimizer_8bit));
        let mut micro_step = step.work;
        if !input.cache_latents {
            resident.push(encoder);
            let images = images_a_step(input);
            let encode = Inference::encode(input, if input.slicing { 1 } else { images });
            let times = if input.slicing { images as f64 } else { 1.0 };
            micro_step = micro_step.plus(encode.work.times(times));
            if encode.peak > step.kept + step.on_top {
                let mut parts = resident.clone();
                parts.extend([("activations of the encoder".to_owned(), encode.peak), runtime.clone()]);
                phase("encoding photos", parts, Work::default());
            }
        }
        if let Some(images) = input.sample_images {
            let (activations, work) = sampling(input, images, input.slicing || input.vae_tiling);
            let mut parts = resident.clone();
            // What encoded the prompts goes to host memory meanwhile.
            let is_parked = input.device != Device::Cpu && !input.storage.streamed;
            parts.retain(|(name, _)| !is_parked || !text_weights.contains(name));
            parts.extend([decoder, activations, runtime.clone()]);
            phase("sample images", parts, work);
        }
        resident.push(("activations kept for backward".to_owned(), step.kept));
        resident.push(("largest step of forward or backward".to_owned(), step.on_top));
        resident.extend(gaps(input.device, step.kept_small));
        resident.push(runtime);
        let step_work = micro_step.times(input.accumulation as f64);
        phase("training", resident, step_work.clone().times(input.steps as f64));
        Ok(Self::of(phases, trained, step_work))
    }

    /// The phase called `name`.
    pub fn phase(&self, name: &str) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.name == name)
    }
}

/// Adapters of so many numbers, with their gradients, and the optimizer's state.
fn adapter_parts(trained: u64, optimizer_8bit: bool) -> [(String, u64); 2] {
    let state = trained * if optimizer_8bit { 2 } else { 8 };
    [("adapters and their gradients".to_owned(), trained * 8), ("optimizer state".to_owned(), state)]
}

/// What is lost between blocks of the host's heap.
fn gaps(device: Device, kept_small: u64) -> Option<(String, u64)> {
    let lost = (kept_small as f64 * HEAP_GAPS) as u64 + HEAP_BASE;
    (!matches!(device, Device::Cuda(_))).then(|| ("heap fragmentation".to_owned(), lost))
}

/// Bytes of the token table that never come to memory where it is not streamed: it is mapped from the file, and prompts read few of
/// its rows.
fn unread_embeddings(input: &PlanInput, text: &ClipTextConfig) -> u64 {
    let stays_mapped = input.device == Device::Cpu && input.kind == Kind::Float && !input.storage.streamed;
    match stays_mapped {
        true => (text.vocab_size * text.hidden_size) as u64 * width(input.kind),
        false => 0,
    }
}

/// What libtorch takes by itself for networks with convolutions, of so many different products.
fn runtime(device: Device, kind: Kind, products: usize) -> (String, u64) {
    match device {
        Device::Cuda(_) => cuda_runtime(),
        _ if width(kind) < 4 && has_units(kind) => host_runtime(HOST_RUNTIME_HALF + HOST_KERNEL_HALF * products as u64),
        _ => host_runtime(HOST_RUNTIME),
    }
}

/// The same without convolutions.
fn runtime_text(device: Device, kind: Kind) -> (String, u64) {
    match device {
        Device::Cuda(_) => cuda_runtime(),
        _ => host_runtime(if width(kind) < 4 { HOST_RUNTIME_TEXT_HALF } else { HOST_RUNTIME_TEXT }),
    }
}

fn cuda_runtime() -> (String, u64) {
    ("cuBLAS and cuDNN".to_owned(), CUDA_RUNTIME)
}

fn host_runtime(bytes: u64) -> (String, u64) {
    ("libtorch and oneDNN".to_owned(), bytes)
}

#[cfg(test)]
mod tests;
