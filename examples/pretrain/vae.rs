//! Trains the autoencoder on composites: absolute, squared and edge errors, and a little of the divergence that keeps latents
//! near a standard normal distribution (arXiv 2112.10752).
//!
//! Shapes: b batch, s side of the picture.

use crate::captions::COLOURS;
use crate::cutouts::{self, Cutout, View, SIDE};
use crate::grid;
use crate::pipeline_folder::{copy_descriptions, write_network, Network};
use crate::training::{named, Training, TrainingArgs};
use clap::Args;
use lorabooth::error::Result;
use lorabooth::libtorch::random::Generator;
use lorabooth::models::stable_diffusion::{AutoencoderKl, LatentDistribution, PipelineFiles};
use lorabooth::sample::text_to_image::to_image;
use std::collections::BTreeMap;
use tch::{Kind, Reduction, Tensor};

/// Weight of the divergence beside the mean error of a channel.
const DIVERGENCE: f64 = 3e-4;
/// Pictures that a checkpoint is judged by.
const WATCHED: usize = 192;
/// Of them in the grid, a row of originals above a row of what the decoder makes of them.
const SHOWN: usize = 12;

#[derive(Args)]
pub struct VaeArgs {
    #[command(flatten)]
    training: TrainingArgs,
    /// Leave the encoder as it is: latents stay valid for a UNet that was trained on them
    #[arg(long)]
    decoder_only: bool,
    /// Noise on the latents, each picture's deviation drawn from 0 to this: a decoder that is used to it makes clean pictures
    /// of what a UNet gets nearly right
    #[arg(long, default_value_t = 0.0)]
    latent_noise: f64,
}

pub fn run(args: &VaeArgs) -> Result<()> {
    let options = &args.training;
    let files = PipelineFiles::open(&options.model, None)?;
    let vae = files.load_vae(options.placement())?;
    let is_trained =
        |key: &str| !args.decoder_only || key.starts_with("decoder.") || key.starts_with("post_quant_conv.");
    let params = named(Network::Vae.folder(), vae.sites.train_weights(is_trained)).collect();
    let cutouts = cutouts::load(&options.corpus.join("all.jsonl"))?;
    let watched = composites(&mut Generator::new(-1), &cutouts, WATCHED);
    let kind = options.placement().kind;

    let mut training = Training::begin(options, params)?;
    while let Some(mut draw) = training.next_step() {
        // 1. There and back
        let images = composites(&mut draw, &cutouts, options.batch_size);
        let encode = || vae.model.encode(&images.to_kind(kind));
        let posterior = if args.decoder_only { tch::no_grad(encode) } else { encode() };
        let latents = posterior.sample(&draw.randn(&posterior.mean.size()));
        let noise = draw.randn(&latents.size()) * draw.uniform(&[latents.size()[0], 1, 1, 1], 0.0, args.latent_noise);
        let latents = latents + noise;
        let decoded = vae.model.decode(&latents.to_kind(kind)).to_kind(Kind::Float);

        // 2. What was lost on the way
        let mut loss = reconstruction_loss(&decoded, &images);
        if !args.decoder_only {
            loss += divergence(&posterior) * DIVERGENCE;
        }
        training.learn(&loss)?;

        // 3. A look at it
        if training.save_is_due() {
            training.save()?;
            training.with_average(|| look_at(&training, args, &vae.model, &watched))?;
        }
    }
    Ok(())
}

/// Random composites: `[b, 3, s, s]` in [-1, 1]. Half as the diffusion model will have them; half closer or farther, on any
/// colour or blend of two.
fn composites(draw: &mut Generator, cutouts: &[Cutout], count: usize) -> Tensor {
    let pick = |draw: &mut Generator, n: usize| draw.randint(0, n as i64, &[1]).int64_value(&[0]) as usize;
    let one = |_| {
        let cutout = &cutouts[pick(draw, cutouts.len())];
        match pick(draw, 4) {
            0 | 1 => cutout.on(&cutouts::plain(COLOURS[pick(draw, COLOURS.len())].1), View::draw(draw, (0.7, 1.0))),
            2 => cutout.on(&draw.uniform(&[3, 1, 1], 0.0, 1.0), View::draw(draw, (0.4, 1.6))),
            _ => cutout.on(&blend(draw), View::draw(draw, (0.4, 1.6))),
        }
    };
    Tensor::stack(&(0..count).map(one).collect::<Vec<_>>(), 0)
}

/// A background that goes from one colour to another, from top to bottom or from left to right: `[3, s, s]`
fn blend(draw: &mut Generator) -> Tensor {
    let share = Tensor::linspace(0.0, 1.0, SIDE, (Kind::Float, tch::Device::Cpu));
    let share = match draw.uniform(&[1], 0.0, 1.0).double_value(&[0]) < 0.5 {
        true => share.view([1, SIDE, 1]),
        false => share.view([1, 1, SIDE]),
    };
    let (from, to) = (draw.uniform(&[3, 1, 1], 0.0, 1.0), draw.uniform(&[3, 1, 1], 0.0, 1.0));
    (&from + (to - &from) * share).expand([3, SIDE, SIDE], false)
}

fn reconstruction_loss(decoded: &Tensor, images: &Tensor) -> Tensor {
    let slope = |xs: &Tensor, dim: i64| xs.slice(dim, 1, None, 1) - xs.slice(dim, None, -1, 1);
    let edges = |dim: i64| slope(decoded, dim).l1_loss(&slope(images, dim), Reduction::Mean);
    decoded.l1_loss(images, Reduction::Mean) + decoded.mse_loss(images, Reduction::Mean) + edges(2) + edges(3)
}

/// Of the latents' distribution from a standard normal one, the mean over all numbers.
fn divergence(posterior: &LatentDistribution) -> Tensor {
    let LatentDistribution { mean, log_variance } = posterior;
    ((mean.square() + log_variance.exp() - 1.0 - log_variance) * 0.5).mean(Kind::Float)
}

/// Measures and shows what the averaged weights make of `watched`, and writes them as a pipeline.
fn look_at(training: &Training, args: &VaeArgs, vae: &AutoencoderKl, watched: &Tensor) -> Result<()> {
    let options = &args.training;
    let kind = options.placement().kind;
    let means = vae.encode(&watched.to_kind(kind)).mean;
    let decoded = vae.decode(&means.to_kind(kind)).to_kind(Kind::Float);
    let decibels = psnr(&decoded, watched);
    eprintln!("step {}: peak signal to noise {decibels:.2} dB", training.step());

    let row =
        |pictures: &Tensor, from: usize| (from..from + SHOWN).map(|i| to_image(&pictures.get(i as i64))).collect();
    let rows: Vec<Result<Vec<_>>> = (0..3).flat_map(|i| [row(watched, i * SHOWN), row(&decoded, i * SHOWN)]).collect();
    let images = rows.into_iter().collect::<Result<Vec<_>>>()?.concat();
    grid::write(&options.output.join(format!("grid-{}.png", training.step())), &images, SHOWN as u32)?;

    let start = PipelineFiles::open(&options.model, None)?;
    let mut weights = Network::Vae.read(&start)?;
    weights.extend(training.average_of(Network::Vae.folder()));
    if !args.decoder_only {
        whiten(&mut weights, &means);
    }
    let model = options.output.join("model");
    copy_descriptions(&options.model, &model)?;
    write_network(&model, Network::Vae, &weights, Kind::Float)?;
    for network in [Network::Unet, Network::TextEncoder] {
        write_network(&model, network, &network.read(&start)?, Kind::Float)?;
    }
    Ok(())
}

/// The mean over pictures of the peak signal to noise ratio, both in [-1, 1], in decibels.
fn psnr(decoded: &Tensor, images: &Tensor) -> f64 {
    let errors = (decoded.clamp(-1.0, 1.0) - images).square().flatten(1, -1).mean_dim(1, false, Kind::Float);
    10.0 * 4f64.log10() - 10.0 * errors.clamp_min(1e-10).log10().mean(Kind::Float).double_value(&[])
}

/// Has every channel of the latents come with mean 0 and deviation 1, which diffusion expects of them: the 1×1 convolutions
/// behind the encoder and before the decoder take that in and give it back exactly. `means` `[n, 4, h, w]` are latents.
fn whiten(weights: &mut BTreeMap<String, Tensor>, means: &Tensor) {
    let channels = means.size()[1];
    let (deviation, mean) = means.transpose(0, 1).flatten(1, -1).std_mean_dim(&[1i64][..], true, false);
    // The encoder's output is the means, then the logarithms of the variances.
    let shift = Tensor::cat(&[&mean, &(deviation.log() * 2.0)], 0);
    let scale = Tensor::cat(&[&deviation, &deviation.ones_like()], 0);
    let matrix = weights["post_quant_conv.weight"].view([channels, channels]);
    let mut change = |key: &str, to: &dyn Fn(&Tensor) -> Tensor| {
        let changed = to(&weights[key]);
        weights.insert(key.to_owned(), changed);
    };
    change("quant_conv.weight", &|weight| weight / scale.view([-1, 1, 1, 1]));
    change("quant_conv.bias", &|bias| (bias - &shift) / &scale);
    change("post_quant_conv.weight", &|weight| weight * deviation.view([1, -1, 1, 1]));
    change("post_quant_conv.bias", &|bias| bias + matrix.mv(&mean));
}
