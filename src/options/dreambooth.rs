//! The options of DreamBooth LoRA training, for the command line, TOML files and the page alike.
//! Names and meanings are those of PEFT's `examples/lora_dreambooth/train_dreambooth.py`.

use super::given::GivenFlags;
use super::lora::{LoraArgs, LoraOf, LoraVariantArgs, TextEncoder2Part, TextEncoderPart, UNetPart};
use super::model::ModelArgs;
use super::precision::MixedPrecision;
use super::reading::configuration;
use super::training::TrainingArgs;
use super::values::{name_of, optional_name_of, optional_path_text, path_text};
use crate::adapters::Part;
use crate::data::latent_cache::CacheMode;
use crate::error::{Error, Result};
use crate::models::stable_diffusion::PipelineFiles;
use crate::train::measure::Measure;
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The largest height and width to train at, in pixels.
pub const MAX_RESOLUTION: u32 = 8192;

/// The UNet's modules that get a LoRA in Stable Diffusion XL, and the text encoders', as diffusers' script has them. Fewer of a text
/// encoder diffusers does not know again in kohya's files.
const XL_UNET_TARGETS: &str = "to_k,to_q,to_v,to_out.0";
const XL_TEXT_TARGETS: &str = "q_proj,k_proj,v_proj,out_proj";

/// All options of a run.
#[derive(Debug, Clone, Args, Serialize)]
pub struct DreamBoothConfig {
    /// Which of them were given.
    #[command(flatten)]
    #[serde(skip)]
    pub given: GivenFlags,
    /// The model to train on.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// Adapter to start from: a folder or file of an earlier run
    #[arg(long, help_heading = "Model")]
    #[serde(serialize_with = "optional_path_text")]
    pub init_adapter: Option<PathBuf>,

    /// Folder with photos of the subject. NAME.txt or NAME.caption next to a photo is its caption. Folders inside are read too; one called
    /// 10_NAME shows its photos 10 times an epoch (NAME is not used as a prompt)
    #[arg(long, help_heading = "Data")]
    #[serde(serialize_with = "path_text")]
    pub instance_data_dir: PathBuf,
    /// Prompt that describes the subject with a rare word, such as "a photo of sks dog"
    #[arg(long, help_heading = "Data")]
    pub instance_prompt: String,
    /// Folder with images of the subject's class, and folders inside it; missing images are generated
    #[arg(long, help_heading = "Data")]
    #[serde(serialize_with = "optional_path_text")]
    pub class_data_dir: Option<PathBuf>,
    /// Prompt that describes the class, such as "a photo of a dog"
    #[arg(long, help_heading = "Data")]
    pub class_prompt: Option<String>,
    /// Train on images of the class as well, so that the model does not forget it (prior preservation)
    #[arg(long, help_heading = "Data")]
    pub with_prior_preservation: bool,
    /// Weight of the loss on class images
    #[arg(long, default_value_t = 1.0, help_heading = "Data")]
    pub prior_loss_weight: f64,
    /// Number of class images; missing ones are generated
    #[arg(long, default_value_t = 100, help_heading = "Data")]
    pub num_class_images: usize,
    /// Guidance scale for class images and sample images
    #[arg(long, default_value_t = 7.5, help_heading = "Data")]
    pub guidance_scale: f64,
    /// Batch size for generating class images
    #[arg(long, default_value_t = 4, help_heading = "Data")]
    pub sample_batch_size: usize,
    /// Size of the training images in pixels (height and width); by default the model's own
    #[arg(long, help_heading = "Data")]
    pub resolution: Option<u32>,
    /// Crop photos at their centre instead of at random
    #[arg(long, help_heading = "Data")]
    pub center_crop: bool,
    /// Train on the photos in the order of their names instead of shuffled
    #[arg(long, help_heading = "Data")]
    pub no_shuffle: bool,
    /// Encode each photo once, before training: where its crop is fixed, always, or never
    #[arg(long, value_enum, default_value_t = CacheMode::Auto, help_heading = "Data")]
    #[serde(serialize_with = "name_of")]
    pub cache_latents: CacheMode,

    /// Folder in which latents and text embeddings are kept for other runs, by what they were made of; it can be deleted at any time
    #[arg(long, help_heading = "Data")]
    #[serde(serialize_with = "optional_path_text")]
    pub cache_dir: Option<PathBuf>,

    /// Train a LoRA on the text encoder too; on both, where the model has two
    #[arg(long, help_heading = "Adapter")]
    pub train_text_encoder: bool,
    /// Accepted: this trains LoRA anyway
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub use_lora: bool,
    /// The UNet's LoRA.
    #[command(flatten)]
    #[serde(flatten)]
    pub unet: LoraOf<UNetPart>,
    /// The text encoder's.
    #[command(flatten)]
    #[serde(flatten)]
    pub text_encoder: LoraOf<TextEncoderPart>,
    /// The second text encoder's, of models that have two.
    #[command(flatten)]
    #[serde(flatten)]
    pub text_encoder_2: LoraOf<TextEncoder2Part>,
    /// What all have in common.
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraVariantArgs,

    /// Instance images in a batch
    #[arg(long, visible_alias = "batch-size", default_value_t = 1, help_heading = "Training")]
    pub train_batch_size: usize,
    /// Learning rate
    #[arg(long, visible_alias = "lr", default_value_t = 1e-4, help_heading = "Training")]
    pub learning_rate: f64,
    /// Learning rate of the text encoders, by default that of the UNet
    #[arg(long, alias = "learning-rate-te1", help_heading = "Training")]
    pub text_encoder_lr: Option<f64>,
    /// Learning rate of the second text encoder, by default that of the first
    #[arg(long, alias = "learning-rate-te2", help_heading = "Training")]
    pub text_encoder_2_lr: Option<f64>,
    /// Weight the loss by min-SNR with this gamma; 5 is usual
    #[arg(long, alias = "min-snr-gamma", help_heading = "Training")]
    pub snr_gamma: Option<f64>,
    /// Strength of the noise offset; 0.1 is usual
    #[arg(long, default_value_t = 0.0, help_heading = "Training")]
    pub noise_offset: f64,
    /// Compute attention a few heads at a time and the VAE an image at a time, which takes less memory and somewhat longer
    #[arg(long, help_heading = "Memory")]
    pub slicing: bool,
    /// Encode and decode images larger than a tile of the VAE (512 px at most) tile by tile, which takes the memory of one tile
    #[arg(long, help_heading = "Memory")]
    pub vae_tiling: bool,
    /// Dtype for generating class images; by default that of the training
    #[arg(long, value_enum, help_heading = "Training")]
    #[serde(serialize_with = "optional_name_of")]
    pub prior_generation_precision: Option<MixedPrecision>,

    /// Steps, optimizer, precision and checkpoints.
    #[command(flatten)]
    #[serde(flatten)]
    pub training: TrainingArgs,

    /// Folder for everything that the run writes; by default named after the prompt and the date
    #[arg(long, visible_alias = "output", help_heading = "Output")]
    #[serde(serialize_with = "optional_path_text")]
    pub output_dir: Option<PathBuf>,
    /// Prompt for sample images during the training
    #[arg(long, help_heading = "Output")]
    pub validation_prompt: Option<String>,
    /// Number of sample images each time
    #[arg(long, default_value_t = 4, help_heading = "Output")]
    pub num_validation_images: usize,
    /// Generate sample images every so many optimizer steps
    #[arg(long, default_value_t = 100, help_heading = "Output")]
    pub validation_steps: u64,

    /// Flags of PEFT's script that change nothing here.
    #[command(flatten)]
    #[serde(skip)]
    pub accepted: AcceptedFlags,
}

configuration!(DreamBoothConfig, "train dreambooth");

impl DreamBoothConfig {
    /// Folders that hold no photos of the subject, wherever they are.
    pub fn apart_from_instances(&self) -> Vec<&Path> {
        self.class_data_dir.as_deref().into_iter().chain(self.output_dir.as_deref()).collect()
    }

    /// Folders that hold no class images, wherever they are.
    pub fn apart_from_class(&self) -> Vec<&Path> {
        std::iter::once(self.instance_data_dir.as_path()).chain(self.output_dir.as_deref()).collect()
    }

    /// The same options with those of `measure`.
    pub fn taking(mut self, measure: &Measure) -> Self {
        match measure {
            Measure::Slicing => self.slicing = true,
            Measure::VaeTiling => self.vae_tiling = true,
            Measure::SampleBatch { size } => self.sample_batch_size = *size,
            _ => self.training.take(measure, &mut self.train_batch_size),
        }
        self
    }

    /// The options of the LoRA on `part`.
    pub fn lora_of(&self, part: Part) -> &LoraArgs {
        match part {
            Part::UNet => &self.unet,
            Part::TextEncoder => &self.text_encoder,
            Part::TextEncoder2 => &self.text_encoder_2,
        }
    }

    /// The option of [`LoraArgs`], or of [`LoraVariantArgs`], that `option` is for the LoRA on `part`; none: it is of another part.
    pub fn lora_option(&self, part: Part, option: &str) -> Option<String> {
        if ["use_rslora", "use_dora", "lora_init"].contains(&option) {
            return Some(option.to_owned());
        }
        let of_first = || LoraOf::<TextEncoderPart>::own_option(option);
        match part {
            Part::UNet => LoraOf::<UNetPart>::own_option(option),
            Part::TextEncoder => of_first(),
            Part::TextEncoder2 => LoraOf::<TextEncoder2Part>::own_option(option)
                .or_else(|| of_first().filter(|name| !self.text_encoder_2.is_own(name))),
        }
    }

    /// The parts that train, of those that a model has.
    pub fn trained_parts(&self) -> impl Iterator<Item = Part> {
        let with_text = self.train_text_encoder;
        Part::ALL.into_iter().filter(move |part| with_text || !part.is_text_encoder())
    }

    /// The learning rates of parts that have one of their own.
    pub fn own_learning_rates(&self) -> Vec<(Part, f64)> {
        let factor = self.training.learning_rate_factor(self.train_batch_size);
        let rates = [
            (Part::TextEncoder, self.text_encoder_lr),
            (Part::TextEncoder2, self.text_encoder_2_lr.or(self.text_encoder_lr)),
        ];
        rates.into_iter().filter_map(|(part, rate)| Some((part, rate? * factor))).collect()
    }

    /// The folder that the run writes to, once it is named.
    pub fn output(&self) -> &Path {
        self.output_dir.as_deref().unwrap_or(Path::new(""))
    }

    /// Height and width to train at, once [`DreamBoothConfig::for_model`] has settled them.
    pub fn side(&self) -> u32 {
        self.resolution.unwrap_or_default()
    }

    /// The same options with what the model `files` settles where nothing was given: the resolution, of which one that the model does
    /// not take is refused, and for Stable Diffusion XL what diffusers' own script has: its targets, and one crop of each photo.
    pub fn for_model(&self, files: &PipelineFiles) -> Result<Self> {
        let native = u32::try_from(files.native_resolution()?).unwrap_or(MAX_RESOLUTION).min(MAX_RESOLUTION);
        let side = self.resolution.unwrap_or(native);
        let multiple = files.unet_config()?.size_multiple() * files.vae_config()?.scale_factor();
        let resolution = i64::from(side);
        if resolution % multiple != 0 {
            let below = (resolution / multiple * multiple).max(multiple);
            return Err(Error::invalid(format!(
                "⟨resolution⟩ {resolution} does not fit this model, which takes multiples of {multiple}: {below} or {}",
                below + multiple
            )));
        }
        if self.text_encoder_2_lr.is_some() && !files.is_xl() {
            return Err(Error::invalid(
                "⟨text_encoder_2_lr⟩ is for Stable Diffusion XL, and this model has one text encoder; leave it out",
            ));
        }
        let mut settled = Self { resolution: Some(side), ..self.clone() };
        if files.is_xl() {
            settled.unet = self.unet.with_usual_targets(XL_UNET_TARGETS);
            settled.text_encoder = self.text_encoder.with_usual_targets(XL_TEXT_TARGETS);
            let of_first = settled.text_encoder.lora_targets.clone().unwrap_or_default();
            settled.text_encoder_2 = self.text_encoder_2.with_usual_targets(&of_first);
            if self.cache_latents == CacheMode::Auto {
                settled.cache_latents = CacheMode::Always;
            }
        }
        Ok(settled)
    }
}

/// Flags of PEFT's script for things that need no choice here.
#[derive(Debug, Clone, Args)]
#[allow(missing_docs, reason = "the names are those of PEFT's script")]
pub struct AcceptedFlags {
    #[arg(long, alias = "dataloader-num-workers", hide = true)]
    pub num_dataloader_workers: Option<usize>,
    #[arg(long, hide = true)]
    pub no_tracemalloc: bool,
    #[arg(long, hide = true)]
    pub allow_tf32: bool,
    #[arg(long, hide = true, allow_negative_numbers = true)]
    pub local_rank: Option<i64>,
    #[arg(long, hide = true)]
    pub enable_xformers_memory_efficient_attention: bool,
    #[arg(long, hide = true)]
    pub report_to: Option<String>,
    #[arg(long, hide = true)]
    pub wandb_key: Option<String>,
    #[arg(long, hide = true)]
    pub wandb_project_name: Option<String>,
}
