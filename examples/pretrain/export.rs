//! Copies a pipeline in float16.

use crate::pipeline_folder::{copy_descriptions, write_network, Network};
use clap::Args;
use lorabooth::error::Result;
use lorabooth::models::stable_diffusion::PipelineFiles;
use std::path::PathBuf;
use tch::Kind;

#[derive(Args)]
pub struct ExportArgs {
    /// The pipeline
    #[arg(long)]
    model: PathBuf,
    /// Another pipeline that the autoencoder is taken from, where its decoder was trained on
    #[arg(long)]
    vae: Option<PathBuf>,
    /// The folder to write
    #[arg(long)]
    output: PathBuf,
}

pub fn run(args: &ExportArgs) -> Result<()> {
    copy_descriptions(&args.model, &args.output)?;
    for network in Network::ALL {
        let source = args.vae.as_ref().filter(|_| network == Network::Vae).unwrap_or(&args.model);
        write_network(&args.output, network, &network.read(&PipelineFiles::open(source, None)?)?, Kind::Half)?;
    }
    PipelineFiles::open(&args.output, None)?.check_parts()
}
