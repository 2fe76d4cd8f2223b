//! Trains small models from random weights: a Stable Diffusion pipeline on captioned cut-outs, which is how the model in `assets/model`
//! was made, and a T5 on pairs of texts.
//!
//! ```text
//! prepare_corpus.py corpus
//! pretrain init --corpus corpus --output runs/start
//! pretrain vae --model runs/start --corpus corpus --output runs/vae
//! pretrain diffusion --model runs/vae/model --corpus corpus --output runs/diffusion
//! pretrain sample --model runs/diffusion/model --corpus corpus --output grid.png
//! pretrain export --model runs/diffusion/model --output assets/model
//!
//! pretrain seq2seq --model start --corpus train.jsonl --validation-file validation.jsonl --output runs/t5
//! ```
//!
//! Each training goes on from the last checkpoint in its `--output`, and keeps the averaged weights in `OUTPUT/model`, which
//! every other command takes. `start` holds a T5's `config.json` and tokenizer; examples/t5_phonemes.sh uses it.

mod captions;
mod cutouts;
mod diffusion;
mod export;
mod grid;
mod init;
mod pipeline_folder;
mod seq2seq;
mod tokenizer;
mod training;
mod vae;

use clap::{Parser, Subcommand};
use lorabooth::error::Result;
use lorabooth::libtorch::{host_allocator, openmp_waiting};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    about = "Trains small models from random weights: Stable Diffusion on captioned cut-outs, T5 on pairs of texts"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Threads that compute
    #[arg(long, global = true, default_value_t = 1)]
    threads: i32,
}

#[derive(Subcommand)]
enum Command {
    /// A pipeline of random weights, with a tokenizer for the corpus
    Init(init::InitArgs),
    /// Trains the autoencoder
    Vae(vae::VaeArgs),
    /// Trains the text encoder and the UNet on the latents of a finished autoencoder
    Diffusion(diffusion::DiffusionArgs),
    /// Draws the prompts that training watches, each with a colour it was never shown with
    Sample(diffusion::SampleArgs),
    /// Copies a pipeline in float16, to be shipped
    Export(export::ExportArgs),
    /// Trains a T5 on a file of pairs: `text`, and its answer `label`
    Seq2seq(seq2seq::Seq2SeqArgs),
}

fn run(arguments: Arguments) -> Result<()> {
    host_allocator::install();
    openmp_waiting::sleep_while_others_compute();
    tch::set_num_threads(arguments.threads);
    match arguments.command {
        Command::Init(args) => init::run(&args),
        Command::Vae(args) => vae::run(&args),
        Command::Diffusion(args) => diffusion::run(&args),
        Command::Sample(args) => diffusion::sample(&args),
        Command::Export(args) => export::run(&args),
        Command::Seq2seq(args) => seq2seq::run(&args),
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
