//! What a DreamBooth run takes from its options: the adapters' configurations, and which options may change when it resumes.

use super::config::{CacheLatents, DreamBoothConfig};
use crate::adapters::{LoraConfig, Part, TargetModules};
use crate::plain_text::counted;

/// The adapter of `part` that the options ask for.
pub(in crate::recipes) fn lora_config(config: &DreamBoothConfig, part: Part) -> LoraConfig {
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

/// Steps for each photo of a run whose options give no length: enough for a subject to be learned, too few to learn its photos by
/// heart.
const STEPS_A_PHOTO: u64 = 120;
/// Fewer teach little.
const FEWEST_STEPS: u64 = 400;
/// More are for those who ask for them.
const MOST_STEPS: u64 = 1200;

/// Steps of a run on so many photos whose options give no length.
pub(in crate::recipes) fn usual_steps(photos: u64) -> u64 {
    photos.saturating_mul(STEPS_A_PHOTO).clamp(FEWEST_STEPS, MOST_STEPS)
}

/// Why a run on so many photos has the length that it has, where its options give none.
pub(in crate::recipes) fn why_so_long(config: &DreamBoothConfig, photos: u64) -> Option<String> {
    if config.training.max_train_steps.is_some() || config.training.num_train_epochs.is_some() {
        return None;
    }
    let steps = usual_steps(photos);
    let counted = counted(photos as usize, "photo");
    let limits = match steps {
        FEWEST_STEPS => format!(", but at least {FEWEST_STEPS}"),
        MOST_STEPS => format!(", but at most {MOST_STEPS}"),
        _ => String::new(),
    };
    Some(format!(
        "{steps} steps for {counted}: {STEPS_A_PHOTO} each{limits}; --max-train-steps or --num-train-epochs choose another length"
    ))
}

/// Options that change none of a run's numbers: what photos and class images come to is weighed as such.
pub(in crate::recipes) fn free_options(config: &DreamBoothConfig) -> Vec<&'static str> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_length_follows_the_photos_within_its_bounds() {
        assert_eq!([0, 1, 3, 4, 5, 9, 10, 500].map(usual_steps), [400, 400, 400, 480, 600, 1080, 1200, 1200]);
        let config = |more: &str| {
            let flags = format!("--model m --instance-data-dir d --instance-prompt p {more}");
            DreamBoothConfig::from_flags(&flags.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).unwrap()
        };
        let why = |photos| why_so_long(&config(""), photos).unwrap();
        assert!(why(1).starts_with("400 steps for 1 photo: 120 each, but at least 400"), "{}", why(1));
        assert!(why(5).starts_with("600 steps for 5 photos: 120 each; --max-train-steps"), "{}", why(5));
        assert!(why(50).contains("but at most 1200"), "{}", why(50));
        for more in ["--max-train-steps 5", "--num-train-epochs 1"] {
            assert_eq!(why_so_long(&config(more), 5), None);
        }
    }
}
