//! What a DreamBooth run takes from its options: the adapters' configurations, and the options on which its numbers depend.

use super::dreambooth_config::{CacheLatents, DreamBoothConfig, LoraInit};
use super::pattern_flag::PatternFlag;
use crate::adapters::{LoraConfig, Part, TargetModules};
use std::collections::BTreeMap;
use tch::Kind;

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

/// The options on which a run's numbers depend: a resumed run must have the same.
pub(super) fn options_that_matter(config: &DreamBoothConfig, kind: Kind, seed: i64) -> BTreeMap<String, String> {
    let mut list: Vec<(&str, String)> = vec![
        ("model", config.model.name.clone()),
        ("prediction-type", config.model.prediction_type.clone().unwrap_or_default()),
        ("instance-prompt", config.instance_prompt.clone()),
        ("class-prompt", config.class_prompt.clone().unwrap_or_default()),
        ("with-prior-preservation", config.with_prior_preservation.to_string()),
        ("prior-loss-weight", config.prior_loss_weight.to_string()),
        ("resolution", config.resolution.to_string()),
        ("center-crop", config.center_crop.to_string()),
        ("no-shuffle", config.no_shuffle.to_string()),
        ("train-text-encoder", config.train_text_encoder.to_string()),
        ("revision", format!("{:?}", config.model.revision)),
        ("variant", format!("{:?}", config.model.variant)),
        ("tokenizer-name", format!("{:?}", config.model.tokenizer_name)),
        ("init-adapter", format!("{:?}", config.init_adapter)),
        ("cache-latents", (config.cache_latents == CacheLatents::True).to_string()),
        ("lora-r", config.lora_r.to_string()),
        ("lora-alpha", config.lora_alpha.to_string()),
        ("lora-dropout", config.lora_dropout.to_string()),
        ("lora-bias", format!("{:?}", config.lora_bias)),
        ("lora-targets", config.lora_targets.clone()),
        ("lora-text-encoder-r", config.lora_text_encoder_r.to_string()),
        ("lora-text-encoder-alpha", config.lora_text_encoder_alpha.to_string()),
        ("lora-text-encoder-dropout", config.lora_text_encoder_dropout.to_string()),
        ("lora-text-encoder-bias", format!("{:?}", config.lora_text_encoder_bias)),
        ("lora-text-encoder-targets", config.lora_text_encoder_targets.clone()),
        ("use-rslora", config.use_rslora.to_string()),
        ("use-dora", config.use_dora.to_string()),
        ("train-batch-size", config.train_batch_size.to_string()),
        ("learning-rate", config.learning_rate.to_string()),
        ("snr-gamma", format!("{:?}", config.snr_gamma)),
        ("noise-offset", config.noise_offset.to_string()),
    ];
    list.extend(config.training.options_that_matter(kind, seed));
    list.extend(adapter_options(config));
    list.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Those that few runs have; a checkpoint of a run without them does not name them.
fn adapter_options(config: &DreamBoothConfig) -> Vec<(&'static str, String)> {
    let ranks = |ranks: &Option<PatternFlag<i64>>| ranks.as_ref().map(|ranks| format!("{:?}", ranks.0));
    let alphas = |alphas: &Option<PatternFlag<f64>>| alphas.as_ref().map(|alphas| format!("{:?}", alphas.0));
    let names = |names: &[String]| (!names.is_empty()).then(|| names.join(","));
    let given = [
        ("lora-rank-pattern", ranks(&config.lora_rank_pattern)),
        ("lora-alpha-pattern", alphas(&config.lora_alpha_pattern)),
        ("lora-exclude-modules", config.lora_exclude_modules.clone()),
        ("lora-modules-to-save", names(&config.lora_modules_to_save)),
        ("lora-text-encoder-rank-pattern", ranks(&config.lora_text_encoder_rank_pattern)),
        ("lora-text-encoder-alpha-pattern", alphas(&config.lora_text_encoder_alpha_pattern)),
        ("lora-text-encoder-exclude-modules", config.lora_text_encoder_exclude_modules.clone()),
        ("lora-text-encoder-modules-to-save", names(&config.lora_text_encoder_modules_to_save)),
        ("lora-init", (config.lora_init != LoraInit::True).then(|| "gaussian".to_owned())),
    ];
    given.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}
