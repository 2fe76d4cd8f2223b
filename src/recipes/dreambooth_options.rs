//! What a DreamBooth run takes from its options: the adapters' configurations, and which options may change when it resumes.

use super::dreambooth_config::{CacheLatents, DreamBoothConfig};
use crate::adapters::{LoraConfig, Part, TargetModules};

/// The adapter of `part` that the options ask for.
pub(super) fn lora_config(config: &DreamBoothConfig, part: Part) -> LoraConfig {
    let unet = part == Part::UNet;
    let targets = if unet { &config.lora_targets } else { &config.lora_text_encoder_targets };
    let ranks = if unet { &config.lora_rank_pattern } else { &config.lora_text_encoder_rank_pattern };
    let alphas = if unet { &config.lora_alpha_pattern } else { &config.lora_text_encoder_alpha_pattern };
    let excluded = if unet { &config.lora_exclude_modules } else { &config.lora_text_encoder_exclude_modules };
    let saved = if unet { &config.lora_modules_to_save } else { &config.lora_text_encoder_modules_to_save };
    LoraConfig {
        r: if unet { config.lora_r } else { config.lora_text_encoder_r },
        lora_alpha: if unet { config.lora_alpha } else { config.lora_text_encoder_alpha },
        lora_dropout: if unet { config.lora_dropout } else { config.lora_text_encoder_dropout },
        bias: (if unet { config.lora_bias } else { config.lora_text_encoder_bias }).into(),
        target_modules: Some(TargetModules::from_flag(targets)),
        use_rslora: config.use_rslora,
        use_dora: config.use_dora,
        init_lora_weights: config.lora_init.into(),
        rank_pattern: ranks.as_ref().map(|pattern| pattern.0.clone()).unwrap_or_default(),
        alpha_pattern: alphas.as_ref().map(|pattern| pattern.0.clone()).unwrap_or_default(),
        exclude_modules: excluded.as_deref().map(TargetModules::from_flag),
        modules_to_save: (!saved.is_empty()).then(|| saved.clone()),
        base_model_name_or_path: Some(config.model.name.clone()),
        ..LoraConfig::default()
    }
}

/// Options that change none of a run's numbers: what photos and class images come to is weighed as such.
pub(super) fn free_options(config: &DreamBoothConfig) -> Vec<&'static str> {
    let mut free = vec![
        "instance_data_dir",
        "class_data_dir",
        "num_class_images",
        "guidance_scale",
        "sample_batch_size",
        "prior_generation_precision",
        "validation_prompt",
        "num_validation_images",
        "validation_steps",
    ];
    if config.cache_latents != CacheLatents::True {
        free.push("cache_latents");
    }
    free
}
