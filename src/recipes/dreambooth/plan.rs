//! What a DreamBooth run will take, from its options and the model's configurations.

use super::class_images::{class_image_kind, CLASS_IMAGE_STEPS};
use super::options::{lora_config, usual_steps, why_so_long};
use super::photos::{check_prompts, class_files, instance_files};
use super::samples::SAMPLE_STEPS;
use crate::adapters::Part;
use crate::data::latent_cache::CacheMode;
use crate::data::photos::{count_images_but, Photo, PhotoFolder};
use crate::data::tokenizers::ClipTokenizer;
use crate::error::Result;
use crate::models::stable_diffusion::{ClipTextConfig, PipelineFiles, UNetConfig, VaeConfig};
use crate::options::dreambooth::DreamBoothConfig;
use crate::plan::{PlanInput, SampledImages};
use crate::recipes::training::memory_advice;
use crate::recipes::training::observer::Observer;
use crate::train::precision::half_kind;
use crate::weights::{Quantize, Storage};
use std::path::Path;
use tch::{Device, Kind};

/// The networks' configurations.
pub struct NetworkConfigs {
    unet: UNetConfig,
    vae: VaeConfig,
    text_encoders: Vec<ClipTextConfig>,
    parts: Vec<Part>,
    /// The VAE computes in float32 whatever the others compute in.
    exact_vae: bool,
    /// Its files have the UNet in 4 bits.
    is_four_bit: bool,
}

impl NetworkConfigs {
    /// Those of a model, of which nothing else is read.
    pub fn of(files: &PipelineFiles) -> Result<Self> {
        let (unet, vae) = (files.unet_config()?, files.vae_config()?);
        Ok(Self {
            unet,
            vae,
            text_encoders: files.text_encoder_configs()?,
            parts: files.parts(),
            exact_vae: files.vae_kind(Kind::BFloat16) == Kind::Float,
            is_four_bit: files.is_four_bit()?,
        })
    }
}

/// The photos of a run.
pub struct Photos {
    /// Photos of the subject.
    instances: u64,
    /// What an epoch shows of them.
    instances_shown: u64,
    /// Class images that are there, and what an epoch shows of them.
    class: u64,
    class_shown: u64,
    crops_are_fixed: bool,
}

impl Photos {
    /// Of the folders that are named; `None` where there is no instance folder. Warns of prompts and captions as the run will.
    pub fn of(config: &DreamBoothConfig, files: &PipelineFiles, observer: &mut dyn Observer) -> Result<Option<Self>> {
        let listed = match config.instance_data_dir == Path::new("") {
            true => None,
            false => Some(instance_files(config)?),
        };
        // A plan is made without a tokenizer too.
        if let Ok(tokenizer) = files.tokenizer_folder().and_then(|folder| ClipTokenizer::from_folder(&folder)) {
            let instances = listed.as_ref().map_or(&[][..], |listed| &listed.files);
            check_prompts(config, instances, &tokenizer, observer)?;
        }
        let Some(listed) = listed else { return Ok(None) };
        let open = |folder, listed| PhotoFolder::decode(folder, listed, config.side());
        let instances = open(&config.instance_data_dir, listed)?;
        let class = match (config.with_prior_preservation, &config.class_data_dir) {
            (true, Some(folder)) if count_images_but(folder, &config.apart_from_class())? > 0 => {
                Some(open(folder, class_files(config, folder)?)?)
            }
            _ => None,
        };
        let class = class.map_or(Vec::new(), |class| class.photos);
        let shown = |photos: &[Photo]| photos.iter().map(|photo| photo.repeats() as u64).sum();
        let is_square = |photo: &Photo| photo.dimensions().0 == photo.dimensions().1;
        Ok(Some(Self {
            instances: instances.photos.len() as u64,
            instances_shown: shown(&instances.photos),
            class: class.len() as u64,
            class_shown: shown(&class),
            crops_are_fixed: instances.photos.iter().chain(&class).all(is_square),
        }))
    }
}

impl Photos {
    /// Of photos that are known by their `sizes` and not decoded again. Tells `observer` of prompts and captions as the run will.
    pub fn known(
        config: &DreamBoothConfig,
        files: &PipelineFiles,
        sizes: &[(u32, u32)],
        observer: Option<&mut dyn Observer>,
    ) -> Result<Self> {
        let tokenizer = files.tokenizer_folder().and_then(|folder| ClipTokenizer::from_folder(&folder));
        if let (Some(observer), Ok(tokenizer)) = (observer, tokenizer) {
            let listed = match config.instance_data_dir == Path::new("") {
                true => Vec::new(),
                false => instance_files(config).map_or_else(|_| Vec::new(), |listed| listed.files),
            };
            check_prompts(config, &listed, &tokenizer, observer)?;
        }
        let class = match (config.with_prior_preservation, &config.class_data_dir) {
            (true, Some(folder)) => count_images_but(folder, &config.apart_from_class())? as u64,
            _ => 0,
        };
        let instances = sizes.len() as u64;
        let crops_are_fixed = sizes.iter().all(|(width, height)| width == height);
        Ok(Self { instances, instances_shown: instances, class, class_shown: class, crops_are_fixed })
    }
}

/// Why a run on these photos has the length that it has, where its options give none.
pub fn why_that_length(config: &DreamBoothConfig, photos: &Photos) -> Option<String> {
    why_so_long(config, photos.instances)
}

fn class_images(config: &DreamBoothConfig) -> u64 {
    if config.with_prior_preservation {
        config.num_class_images as u64
    } else {
        0
    }
}

/// Whether the VAE runs before training alone: where crops are fixed, or are told to be. Photos that are not known are taken for
/// photos whose crops are random.
fn caches_latents(config: &DreamBoothConfig, photos: Option<&Photos>) -> bool {
    match config.cache_latents {
        CacheMode::Always => true,
        CacheMode::Never => false,
        CacheMode::Auto => config.center_crop || photos.is_some_and(|photos| photos.crops_are_fixed),
    }
}

/// What the plan of a run depends on.
pub fn plan_input<'a>(
    config: &DreamBoothConfig,
    networks: &'a NetworkConfigs,
    photos: Option<&Photos>,
    device: Device,
) -> Result<PlanInput<'a>> {
    let (wanted, present) = match photos {
        Some(photos) => (class_images(config), photos.class),
        None => {
            let count = |folder| count_images_but(folder, &config.apart_from_class());
            (class_images(config), config.class_data_dir.as_deref().map_or(Ok(0), count)? as u64)
        }
    };
    let missing = wanted.saturating_sub(present);
    let places = photos.map_or(wanted, |photos| photos.instances_shown.max(photos.class_shown + missing));
    let batches = places.div_ceil(config.train_batch_size as u64).div_ceil(config.training.ranks_args.count());
    let updates_per_epoch = batches.div_ceil(config.training.gradient_accumulation_steps);
    let steps = config.training.steps(updates_per_epoch, photos.map(|photos| usual_steps(photos.instances)));
    let kind = config.training.precision(device).compute_kind();
    let (class_batch, class_kind) = (config.sample_batch_size as i64, class_image_kind(config, kind));
    let samplings = config.num_validation_images as u64 * (2 + steps.saturating_sub(1) / config.validation_steps);
    Ok(PlanInput {
        unet: &networks.unet,
        vae: &networks.vae,
        texts: &networks.text_encoders,
        resolution: config.side().into(),
        batch: config.train_batch_size as i64,
        prior_preservation: config.with_prior_preservation,
        class_images: (missing > 0).then_some(SampledImages {
            count: missing,
            batch: class_batch,
            steps: CLASS_IMAGE_STEPS as u64,
            kind: class_kind,
        }),
        sample_images: config.validation_prompt.is_some().then_some(SampledImages {
            count: samplings,
            batch: 1,
            steps: SAMPLE_STEPS as u64,
            kind,
        }),
        kind,
        storage: match networks.is_four_bit {
            true => Storage { quantize: Quantize::Nf4, ..config.training.weights.storage() },
            false => config.training.weights.storage(),
        },
        exact_vae: networks.exact_vae,
        vae_kind: match networks.exact_vae || config.training.fp32_layers.iter().any(|layer| layer == "vae") {
            true => Kind::Float,
            false => kind,
        },
        slicing: config.slicing,
        vae_tiling: config.vae_tiling,
        unet_lora: lora_config(config, Part::UNet).checked()?,
        text_loras: config
            .trained_parts()
            .filter(|part| part.is_text_encoder() && networks.parts.contains(part))
            .map(|part| lora_config(config, part).checked())
            .collect::<Result<_>>()?,
        half: half_kind(device),
        gradient_checkpointing: config.training.gradient_checkpointing,
        optimizer_8bit: config.training.use_8bit_adam,
        cache_latents: caches_latents(config, photos),
        photos: photos.map_or(0, |photos| photos.instances + photos.class + missing),
        accumulation: config.training.gradient_accumulation_steps,
        steps,
        device,
    })
}

/// What is to be told of a run's memory; see [`memory_advice::peak_and_advice`].
pub fn peak_and_advice(
    config: &DreamBoothConfig,
    files: &PipelineFiles,
    device: Device,
    budget: u64,
) -> Result<(u64, String)> {
    let networks = NetworkConfigs::of(files)?;
    memory_advice::peak_and_advice(&plan_input(config, &networks, None, device)?, budget)
}
