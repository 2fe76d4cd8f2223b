//! What a DreamBooth run will take, from its options and the model's configurations.

use super::dreambooth_config::{CacheLatents, DreamBoothConfig};
use super::dreambooth_options::{lora_config, usual_steps, why_so_long};
use super::dreambooth_phases::{class_image_kind, CLASS_IMAGE_STEPS, SAMPLE_STEPS};
use super::memory_advice;
use crate::adapters::Part;
use crate::data::photos::{count_images, PhotoFolder};
use crate::error::Result;
use crate::models::stable_diffusion::{vae_kind, ClipTextConfig, PipelineFiles, UNetConfig, VaeConfig};
use crate::train::memory_plan::{PlanInput, SampledImages};
use crate::train::precision::half_kind;
use std::path::Path;
use tch::Device;

/// The three networks' configurations.
pub struct NetworkConfigs {
    unet: UNetConfig,
    vae: VaeConfig,
    text_encoder: ClipTextConfig,
}

impl NetworkConfigs {
    /// Those of a model, of which nothing else is read.
    pub fn of(files: &PipelineFiles) -> Result<Self> {
        let (unet, vae) = (files.unet_config()?, files.vae_config()?);
        Ok(Self { unet, vae, text_encoder: files.text_encoder_config()? })
    }
}

/// The photos of a run.
pub struct Photos {
    instances: u64,
    crops_are_fixed: bool,
}

impl Photos {
    /// Of the folders that are named; `None` where there is no instance folder.
    pub fn of(config: &DreamBoothConfig) -> Result<Option<Self>> {
        if config.instance_data_dir == Path::new("") {
            return Ok(None);
        }
        let mut photos = PhotoFolder::open(&config.instance_data_dir, config.side())?.photos;
        let instances = photos.len() as u64;
        if let (true, Some(folder)) = (config.with_prior_preservation, &config.class_data_dir) {
            if count_images(folder)? > 0 {
                photos.extend(PhotoFolder::open(folder, config.side())?.photos);
            }
        }
        let crops_are_fixed = photos.iter().all(|photo| photo.dimensions().0 == photo.dimensions().1);
        Ok(Some(Self { instances, crops_are_fixed }))
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
        CacheLatents::True => true,
        CacheLatents::False => false,
        CacheLatents::Auto => config.center_crop || photos.is_some_and(|photos| photos.crops_are_fixed),
    }
}

/// What the plan of a run depends on.
pub fn plan_input<'a>(
    config: &DreamBoothConfig,
    networks: &'a NetworkConfigs,
    photos: Option<&Photos>,
    device: Device,
) -> Result<PlanInput<'a>> {
    let instances = photos.map_or(0, |photos| photos.instances);
    let places = instances.max(class_images(config));
    let batches = places.div_ceil(config.train_batch_size as u64);
    let updates_per_epoch = batches.div_ceil(config.training.gradient_accumulation_steps);
    let steps = config.training.steps(updates_per_epoch, photos.map(|photos| usual_steps(photos.instances)));
    let kind = config.training.precision(device).compute_kind();
    let present = config.class_data_dir.as_deref().map_or(Ok(0), count_images)? as u64;
    let missing = class_images(config).saturating_sub(present);
    let (class_batch, class_kind) = (config.sample_batch_size as i64, class_image_kind(config, kind));
    let samplings = config.num_validation_images as u64 * (2 + steps.saturating_sub(1) / config.validation_steps);
    Ok(PlanInput {
        unet: &networks.unet,
        vae: &networks.vae,
        text: &networks.text_encoder,
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
        storage: config.training.weights.storage(),
        vae_kind: vae_kind(kind),
        unet_lora: lora_config(config, Part::UNet).checked()?,
        text_lora: match config.train_text_encoder {
            true => Some(lora_config(config, Part::TextEncoder).checked()?),
            false => None,
        },
        half: half_kind(device),
        gradient_checkpointing: config.training.gradient_checkpointing,
        optimizer_8bit: config.training.use_8bit_adam,
        cache_latents: caches_latents(config, photos),
        photos: photos.map_or(0, |photos| photos.instances + class_images(config)),
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
