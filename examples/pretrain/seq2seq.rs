//! Trains a T5 from random weights to answer texts with texts.

use crate::pipeline_folder::{copy_files, write_weights};
use crate::training::{named, Training, TrainingArgs};
use clap::Args;
use lorabooth::data::language_dataset::{LanguageDataOptions, LanguageDataset, LanguageTask};
use lorabooth::data::prompt_template::PromptTemplate;
use lorabooth::data::tokenizers::LanguageTokenizer;
use lorabooth::error::Result;
use lorabooth::libtorch::random::Generator;
use lorabooth::models::language::{HeadOptions, LanguageModelFiles};
use lorabooth::recipes::language::loss::{language_loss, LanguageLoss, LossOptions};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

/// Prefix of the parameters' names in training.
const MODEL: &str = "model";
/// The weights' file in a model's folder.
const WEIGHTS: &str = "model.safetensors";
/// What it holds beside.
const DESCRIPTIONS: [&str; 3] = ["config.json", "tokenizer.json", "tokenizer_config.json"];
/// Tokens of the longest text.
const LONGEST: usize = 64;
/// Pairs at a time where nothing is learned.
const WATCHED_BATCH: usize = 64;

#[derive(Args)]
pub struct Seq2SeqArgs {
    #[command(flatten)]
    training: TrainingArgs,
    /// Pairs that are not learned from: the loss on them is told at each checkpoint
    #[arg(long)]
    validation_file: PathBuf,
}

pub fn run(args: &Seq2SeqArgs) -> Result<()> {
    let options = &args.training;
    let model = options.output.join(MODEL);
    copy_files(&DESCRIPTIONS, &options.model, &model)?;
    let (files, tokenizer) = (LanguageModelFiles::open(&model)?, LanguageTokenizer::from_folder(&model)?);
    // A run that goes on takes its weights from the checkpoint.
    if !model.join(WEIGHTS).exists() {
        write_weights(&model.join(WEIGHTS), &random_weights(files.config(), &mut Generator::new(options.seed)))?;
    }
    let pairs = LanguageDataOptions {
        task: LanguageTask::Seq2SeqLm,
        prompt: PromptTemplate::column("text"),
        label_column: Some("label".to_owned()),
        max_length: LONGEST,
    };
    let data = pairs.training(&options.corpus, &tokenizer)?;
    let watched = pairs.validation(&args.validation_file, &tokenizer, &data)?;
    let network = files.load(options.placement(), HeadOptions::default())?;
    let loss_options = LossOptions { prompt: None, pad: tokenizer.pad()?, device: Device::Cpu, checkpointing: false };
    let loss =
        |data: &LanguageDataset, places: &[usize]| language_loss(&network.model, &data.batch(places)?, loss_options);

    let mut training = Training::begin(options, named(MODEL, network.sites.train_weights(|_| true)).collect())?;
    while let Some(mut draw) = training.next_step() {
        // 1. Pairs, and what dropout leaves out
        let places = draw.randint(0, data.len() as i64, &[options.batch_size as i64]);
        let places: Vec<usize> = Vec::<i64>::try_from(places)?.into_iter().map(|place| place as usize).collect();
        draw.becomes_global()?;
        network.sites.set_training(true);

        // 2. The step
        training.learn(&loss(&data, &places)?.mean)?;

        // 3. A look at it
        if training.save_is_due() {
            network.sites.set_training(false);
            training.save()?;
            write_weights(&model.join(WEIGHTS), &training.average_of(MODEL))?;
            let mean = training.with_average(|| mean_loss(&watched, loss))?;
            eprintln!("step {}: loss {mean:.4} on {} other pairs", training.step(), watched.len());
        }
    }
    Ok(())
}

/// Of a label of `data`.
fn mean_loss(data: &LanguageDataset, loss: impl Fn(&LanguageDataset, &[usize]) -> Result<LanguageLoss>) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for places in (0..data.len()).collect::<Vec<_>>().chunks(WATCHED_BATCH) {
        let LanguageLoss { mean, labels, .. } = loss(data, places)?;
        sum += mean.double_value(&[]) * labels as f64;
        count += labels;
    }
    Ok(sum / count.max(1) as f64)
}

/// Every tensor of a T5 with a gated feed-forward as T5 starts: norms 1, embeddings standard normal, matrices normal with
/// deviation 1/√inputs, queries smaller by √d_kv because scores are not scaled. Source: transformers' `T5PreTrainedModel`; but
/// an output of its own is a matrix like the others.
fn random_weights(config: &Value, generator: &mut Generator) -> BTreeMap<String, Tensor> {
    let size = |name: &str| config[name].as_i64().unwrap_or(0);
    let (width, hidden) = (size("d_model"), size("d_ff"));
    let (heads, head_width, buckets) = (size("num_heads"), size("d_kv"), size("relative_attention_num_buckets"));
    let mut weights = BTreeMap::new();
    let mut matrix = |key: String, rows: i64, columns: i64, deviation: f64| {
        weights.insert(format!("{key}.weight"), generator.randn(&[rows, columns]) * deviation);
    };
    let by_inputs = |inputs: i64| (inputs as f64).powf(-0.5);
    matrix("shared".to_owned(), size("vocab_size"), width, 1.0);
    if config["tie_word_embeddings"] == false {
        matrix("lm_head".to_owned(), size("vocab_size"), width, by_inputs(width));
    }
    let mut norms = Vec::new();
    for (stack, layers, attentions) in [
        ("encoder", size("num_layers"), &["SelfAttention"][..]),
        ("decoder", size("num_decoder_layers"), &["SelfAttention", "EncDecAttention"]),
    ] {
        let bias = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias");
        matrix(bias, buckets, heads, by_inputs(width));
        for block in 0..layers {
            let layer = |i: usize| format!("{stack}.block.{block}.layer.{i}");
            for (i, attention) in attentions.iter().enumerate() {
                let part = |name: &str| format!("{}.{attention}.{name}", layer(i));
                matrix(part("q"), heads * head_width, width, by_inputs(width * head_width));
                matrix(part("k"), heads * head_width, width, by_inputs(width));
                matrix(part("v"), heads * head_width, width, by_inputs(width));
                matrix(part("o"), width, heads * head_width, by_inputs(heads * head_width));
            }
            let part = |name: &str| format!("{}.DenseReluDense.{name}", layer(attentions.len()));
            matrix(part("wi_0"), hidden, width, by_inputs(width));
            matrix(part("wi_1"), hidden, width, by_inputs(width));
            matrix(part("wo"), width, hidden, by_inputs(hidden));
            norms.extend((0..=attentions.len()).map(|i| format!("{}.layer_norm.weight", layer(i))));
        }
        norms.push(format!("{stack}.final_layer_norm.weight"));
    }
    weights.extend(norms.into_iter().map(|key| (key, Tensor::ones([width], (Kind::Float, Device::Cpu)))));
    weights
}
