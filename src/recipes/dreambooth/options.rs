//! What a DreamBooth run takes from its options: the adapters' configurations, and which options may change when it resumes.

use crate::adapters::{LoraConfig, Part};
use crate::data::latent_cache::CacheMode;
use crate::options::dreambooth::DreamBoothConfig;
use crate::options::lora::LoraArgs;
use crate::plain_text::counted;
use crate::recipes::training::output_name;

/// The adapter of `part` that the options ask for.
pub(in crate::recipes) fn lora_config(config: &DreamBoothConfig, part: Part) -> LoraConfig {
    let lora: &LoraArgs = if part == Part::UNet { &config.unet } else { &config.text_encoder };
    LoraConfig { base_model_name_or_path: Some(config.model.name.clone()), ..lora.config(&config.lora) }
}

/// The same options with an output folder: the one that was given, or one named after the prompt and the date.
pub(in crate::recipes) fn with_output(config: &DreamBoothConfig) -> DreamBoothConfig {
    let named = || output_name::folder(&config.instance_prompt, "dreambooth", &config.training.ranks);
    let output = config.output_dir.clone().unwrap_or_else(named);
    let mut config = DreamBoothConfig { output_dir: Some(output.clone()), ..config.clone() };
    config.training.go_on_after_a_restart(&output);
    config
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
        "{steps} steps for {counted}: {STEPS_A_PHOTO} each{limits}; ⟨max_train_steps⟩ or ⟨num_train_epochs⟩ choose another length"
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
    if config.cache_latents != CacheMode::Always {
        free.push("cache_latents");
    }
    free
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::reading::Configuration;

    #[test]
    fn the_usual_length_follows_the_photos_within_its_bounds() {
        assert_eq!([0, 1, 3, 4, 5, 9, 10, 500].map(usual_steps), [400, 400, 400, 480, 600, 1080, 1200, 1200]);
        let config = |more: &str| {
            let flags = format!("--model m --instance-data-dir d --instance-prompt p {more}");
            DreamBoothConfig::from_flags(&flags.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).unwrap()
        };
        let why = |photos| why_so_long(&config(""), photos).unwrap();
        assert!(why(1).starts_with("400 steps for 1 photo: 120 each, but at least 400"), "{}", why(1));
        assert!(why(5).starts_with("600 steps for 5 photos: 120 each; ⟨max_train_steps⟩"), "{}", why(5));
        assert!(why(50).contains("but at most 1200"), "{}", why(50));
        for more in ["--max-train-steps 5", "--num-train-epochs 1"] {
            assert_eq!(why_so_long(&config(more), 5), None);
        }
    }
}
