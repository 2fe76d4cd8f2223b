//! A pipeline of random weights: configurations, tokenizer, scheduler, and every tensor that the networks load.

use crate::pipeline_folder::{write_network, Network};
use crate::tokenizer::{train_tokenizer, LONGEST_PROMPT, VOCABULARY};
use clap::Args;
use lorabooth::error::Result;
use lorabooth::libtorch::random::Generator;
use lorabooth::models::stable_diffusion::PipelineFiles;
use lorabooth::plan::{text_encoder_weights, unet_weights, vae_weights};
use lorabooth::whole_file::write_json;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

#[derive(Args)]
pub struct InitArgs {
    /// What prepare_corpus.py wrote
    #[arg(long)]
    corpus: PathBuf,
    /// The pipeline's folder
    #[arg(long)]
    output: PathBuf,
    /// Of the weights
    #[arg(long, default_value_t = 0)]
    seed: i64,
}

pub fn run(args: &InitArgs) -> Result<()> {
    let output = &args.output;
    for (name, content) in descriptions() {
        write_json(&output.join(name), &content)?;
    }
    train_tokenizer(&args.corpus.join("words.txt"), &output.join("tokenizer"))?;

    let unet = unet_weights(&lorabooth::models::stable_diffusion::UNetConfig::from_folder(&output.join("unet"))?)?;
    let vae = vae_weights(&lorabooth::models::stable_diffusion::VaeConfig::from_folder(&output.join("vae"))?)?;
    let text = text_encoder_weights(&lorabooth::models::stable_diffusion::ClipTextConfig::from_folder(
        &output.join("text_encoder"),
    )?)?;
    let mut generator = Generator::new(args.seed);
    for (network, shapes) in [(Network::Unet, unet), (Network::Vae, vae), (Network::TextEncoder, text)] {
        let draw = |(key, shape): (String, Vec<i64>)| {
            let weight = random_weight(&mut generator, network, &key, &shape);
            (key, weight)
        };
        let weights: BTreeMap<String, Tensor> = shapes.into_iter().map(draw).collect();
        let numbers: usize = weights.values().map(Tensor::numel).sum();
        eprintln!("{}: {:.2} M parameters", network.folder(), numbers as f64 / 1e6);
        write_network(output, network, &weights, Kind::Float)?;
    }
    PipelineFiles::open(output, None)?.check_parts()
}

/// Biases 0, norms 1, embeddings small, matrices uniform within 1/√inputs as torch's layers start. The UNet's residual
/// branches and its output start at 0: every block is the identity at first (arXiv 2105.05233).
fn random_weight(generator: &mut Generator, network: Network, key: &str, shape: &[i64]) -> Tensor {
    let constant = |value: f64| Tensor::full(shape, value, (Kind::Float, Device::Cpu));
    let starts_at_zero = ["conv2.weight", "proj_out.weight", "conv_out.weight"];
    if key.ends_with(".bias") || (network == Network::Unet && starts_at_zero.iter().any(|name| key.ends_with(name))) {
        constant(0.0)
    } else if shape.len() == 1 {
        constant(1.0)
    } else if key.starts_with("embeddings.") {
        generator.randn(shape) * 0.02
    } else {
        let inputs: i64 = shape[1..].iter().product();
        let bound = 1.0 / (inputs as f64).sqrt();
        generator.uniform(shape, -bound, bound)
    }
}

/// Every JSON file of the pipeline but the tokenizer's vocabulary.
fn descriptions() -> [(&'static str, Value); 6] {
    let (end, start) = (VOCABULARY - 1, VOCABULARY - 2);
    [
        ("model_index.json", model_index()),
        ("unet/config.json", unet()),
        ("vae/config.json", vae()),
        (
            "text_encoder/config.json",
            json!({
                "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": VOCABULARY,
                "hidden_size": 192, "intermediate_size": 768, "projection_dim": 192, "num_hidden_layers": 3,
                "num_attention_heads": 4, "max_position_embeddings": LONGEST_PROMPT, "hidden_act": "quick_gelu",
                "layer_norm_eps": 1e-5, "bos_token_id": start, "eos_token_id": end, "pad_token_id": end,
            }),
        ),
        (
            "tokenizer/tokenizer_config.json",
            json!({
                "tokenizer_class": "CLIPTokenizer", "model_max_length": LONGEST_PROMPT, "do_lower_case": true,
                "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
                "pad_token": "<|endoftext|>",
            }),
        ),
        (
            "scheduler/scheduler_config.json",
            json!({
                "_class_name": "EulerAncestralDiscreteScheduler", "_diffusers_version": "0.36.0", "num_train_timesteps": 1000,
                "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
                "prediction_type": "v_prediction", "clip_sample": false, "set_alpha_to_one": false, "steps_offset": 1,
            }),
        ),
    ]
}

fn model_index() -> Value {
    json!({
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.36.0",
        "feature_extractor": [null, null], "image_encoder": [null, null], "safety_checker": [null, null],
        "requires_safety_checker": false, "scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    })
}

/// Attention at 8×8 and 4×4 only: at 16×16 it would cost more than all the rest.
fn unet() -> Value {
    json!({
        "_class_name": "UNet2DConditionModel", "sample_size": 16, "in_channels": 4, "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [64, 128, 160], "layers_per_block": 1, "attention_head_dim": 4, "cross_attention_dim": 192,
        "norm_num_groups": 16,
    })
}

fn vae() -> Value {
    json!({
        "_class_name": "AutoencoderKL", "sample_size": 64, "in_channels": 3, "out_channels": 3, "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        "block_out_channels": [32, 64, 64], "layers_per_block": 1, "norm_num_groups": 8, "scaling_factor": 1.0,
    })
}
