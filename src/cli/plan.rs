//! `lorabooth plan`: the memory and time that a training run will need, from configurations alone.

use super::{Common, Dtype, Reporter};
use crate::adapters::{LoraConfig, TargetModules};
use crate::error::{Error, Result};
use crate::models::stable_diffusion::ModelOptions;
use crate::recipes::dreambooth_config::{MAX_RANK, MAX_RESOLUTION};
use crate::recipes::model_args::ModelArgs;
use crate::train::memory_plan::{fit, parse_size, MemoryPlan, PlanInput, Rates};
use clap::Args;
use serde_json::json;

/// Flags of the command; those of `train dreambooth` mean the same.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The model, of which configurations alone are fetched.
    #[command(flatten)]
    model: ModelArgs,
    /// Height and width to train at, in pixels
    #[arg(long, default_value_t = 512)]
    resolution: i64,
    /// Instance images in a batch
    #[arg(long, default_value_t = 1)]
    train_batch_size: i64,
    /// Class images beside them
    #[arg(long)]
    with_prior_preservation: bool,
    /// Train the text encoder too
    #[arg(long)]
    train_text_encoder: bool,
    /// Rank of the UNet's LoRA
    #[arg(long, default_value_t = 8)]
    lora_r: i64,
    /// UNet modules
    #[arg(long, default_value = "to_q,to_v")]
    lora_targets: String,
    /// Rank of the text encoder's LoRA
    #[arg(long, default_value_t = 8)]
    lora_text_encoder_r: i64,
    /// Text encoder modules
    #[arg(long, default_value = "q_proj,v_proj")]
    lora_text_encoder_targets: String,
    /// Compute activations again in backward
    #[arg(long)]
    gradient_checkpointing: bool,
    /// Keep the optimizer's state in 8 bits
    #[arg(long)]
    use_8bit_adam: bool,
    /// Sample images will be made while training
    #[arg(long)]
    validation_prompt: Option<String>,
    /// Dtype of the frozen weights and of the computation
    #[arg(long, value_enum, default_value_t = Dtype::Auto)]
    mixed_precision: Dtype,
    /// Say what to turn on to fit this much memory, such as 11GB
    #[arg(long)]
    fit: Option<String>,
}

fn lora(r: i64, targets: &str) -> LoraConfig {
    LoraConfig { r, target_modules: Some(TargetModules::from_flag(targets)), ..LoraConfig::default() }
}

/// Runs the command.
pub fn run(args: PlanArgs, common: &Common, reporter: &mut Reporter) -> Result<()> {
    let budget = args.fit.as_deref().map(parse_size).transpose()?;
    let device = common.device()?;
    let kind = args.mixed_precision.kind(device);
    let options = ModelOptions { configs_only: true, ..args.model.options() };
    let files = crate::recipes::open_model(&args.model.name, &options, reporter)?;
    let (unet, vae, text) = (files.unet_config()?, files.vae_config()?, files.text_encoder_config()?);
    for (flag, number, most) in [
        ("--resolution", args.resolution, MAX_RESOLUTION.into()),
        ("--train-batch-size", args.train_batch_size, 4096),
        ("--lora-r", args.lora_r, MAX_RANK),
        ("--lora-text-encoder-r", args.lora_text_encoder_r, MAX_RANK),
    ] {
        if !(1..=most).contains(&number) {
            return Err(Error::invalid(format!("{flag} is {number}; it must be 1 to {most}")));
        }
    }
    let unet_lora = lora(args.lora_r, &args.lora_targets).checked()?;
    let text_lora = lora(args.lora_text_encoder_r, &args.lora_text_encoder_targets).checked()?;
    let input = PlanInput {
        unet: &unet,
        vae: &vae,
        text: &text,
        resolution: args.resolution,
        batch: args.train_batch_size,
        prior_preservation: args.with_prior_preservation,
        generate_class_images: args.with_prior_preservation,
        sample_batch: 4,
        validation: args.validation_prompt.is_some(),
        kind,
        unet_lora,
        text_lora: args.train_text_encoder.then_some(text_lora),
        gradient_checkpointing: args.gradient_checkpointing,
        optimizer_8bit: args.use_8bit_adam,
        cache_latents: true,
        device,
    };
    let plan = MemoryPlan::new(&input)?;
    if plan.trained_parameters == 0 {
        let flag = "no module of the model matches --lora-targets";
        return Err(Error::invalid(format!("{flag} {}; to_q,to_v are usual", args.lora_targets)));
    }
    let seconds = plan.step_seconds(&Rates::measure(device, kind)?);
    let gib = |bytes: u64| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
    let mut lines = Vec::new();
    for phase in &plan.phases {
        lines.push(format!("{:>10}  {}", gib(phase.bytes()), phase.name));
        lines.extend(phase.parts.iter().map(|(name, bytes)| format!("{:>24}  {name}", gib(*bytes))));
    }
    lines.push(format!("{:>10}  peak of the run, above what the process starts with", gib(plan.peak_bytes)));
    lines.push(format!("{:>10}  a step, by a quick measure of this machine", format!("{seconds:.1} s")));
    lines.push(format!("{:>10}  trained parameters", plan.trained_parameters));
    let mut suggestions = Vec::new();
    let (mut fits, mut fitted_peak) = (None, None);
    if let Some(budget) = budget {
        let fitted = fit(budget, &input)?;
        (fits, fitted_peak) = (Some(fitted.fits), Some(fitted.peak_bytes));
        for suggestion in &fitted.suggestions {
            lines.push(format!(
                "turn on {}: saves {}, {}",
                suggestion.what,
                gib(suggestion.saves_bytes),
                suggestion.costs
            ));
            suggestions.push(
                json!({ "what": suggestion.what, "saves_bytes": suggestion.saves_bytes, "costs": suggestion.costs }),
            );
        }
        lines.push(match fitted.fits {
            true => format!("fits {} with a peak of {}", gib(budget), gib(fitted.peak_bytes)),
            false => format!("nothing makes it fit {}: the least is {}", gib(budget), gib(fitted.peak_bytes)),
        });
    }
    let phases: Vec<_> = plan
        .phases
        .iter()
        .map(|phase| json!({ "name": phase.name, "bytes": phase.bytes(), "parts": phase.parts }))
        .collect();
    let report = json!({
        "phases": phases, "peak_bytes": plan.peak_bytes, "seconds_per_step": seconds,
        "trained_parameters": plan.trained_parameters, "flops_per_step": plan.flops_per_step, "suggestions": suggestions,
        "fits": fits, "fitted_peak_bytes": fitted_peak,
    });
    reporter.result(report, &lines.join("\n"));
    Ok(())
}
