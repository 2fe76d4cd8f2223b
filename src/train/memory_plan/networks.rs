//! The forwards of `models::stable_diffusion` on shadows, line by line, so that what lives when is the same.
//!
//! Shapes: b batch, c channels, h and w height and width, s = h·w, t text length, e text width.

use super::layers::At;
use super::tape::{Record, Segment, Shadow, Tape};
use crate::models::stable_diffusion::{ClipTextConfig, UNetConfig, VaeConfig};
use crate::nn::Activation;
use std::rc::Rc;

/// A residual block; `time` is the SiLU of the time embedding.
fn resnet(tape: &Tape, at: &At, xs: &Shadow, outputs: i64, time: Option<&Shadow>) -> Shadow {
    let inputs = xs.shape[1];
    let mut hidden = tape.conv(&(at / "conv1"), &norm_silu(tape, &(at / "norm1"), xs), outputs, 3, 1);
    if let Some(time) = time {
        let projected = tape.linear(&(at / "time_emb_proj"), time, outputs, true);
        hidden = tape.add(&hidden, &projected);
    }
    hidden = tape.conv(&(at / "conv2"), &norm_silu(tape, &(at / "norm2"), &hidden), outputs, 3, 1);
    match inputs != outputs {
        true => tape.add(&tape.conv(&(at / "conv_shortcut"), xs, outputs, 1, 1), &hidden),
        false => tape.add(xs, &hidden),
    }
}

fn norm_silu(tape: &Tape, at: &At, xs: &Shadow) -> Shadow {
    tape.element_wise(&tape.norm(at, xs, xs.shape[1]), 2.0)
}

/// The sizes of the spatial transformers of a level.
#[derive(Clone, Copy)]
struct Transformer {
    heads: i64,
    layers: i64,
    linear: bool,
}

fn transformer(tape: &Tape, at: &At, xs: &Shadow, text: &Shadow, sizes: Transformer) -> Shadow {
    let shape = xs.shape.clone();
    let rows_shape = [shape[0], shape[2] * shape[3], shape[1]];
    // A 1×1 convolution keeps its input for backward, a linear layer does not.
    let project = |at: &At, xs: &Shadow| match sizes.linear {
        true => tape.linear(at, &xs.view(&rows_shape), shape[1], true),
        false => tape.conv(at, &xs.view(&shape), shape[1], 1, 1),
    };
    let normed = tape.norm(&(at / "norm"), xs, shape[1]);
    let mut rows = project(&(at / "proj_in"), &normed).view(&rows_shape);
    for i in 0..sizes.layers {
        rows = transformer_block(tape, &(&(at / "transformer_blocks") / i), &rows, text, sizes.heads);
    }
    let image = project(&(at / "proj_out"), &rows).view(&shape);
    tape.add(&image, xs)
}

fn transformer_block(tape: &Tape, at: &At, xs: &Shadow, text: &Shadow, heads: i64) -> Shadow {
    let channels = xs.shape[2];
    let normed = tape.norm(&(at / "norm1"), xs, channels);
    let first = tape.add(&attention(tape, &(at / "attn1"), &normed, &normed, heads), xs);
    let second = {
        let normed = tape.norm(&(at / "norm2"), &first, channels);
        tape.add(&attention(tape, &(at / "attn2"), &normed, text, heads), &first)
    };
    let feed_forward = {
        let normed = tape.norm(&(at / "norm3"), &second, channels);
        let (values, gates) = tape.halves(&tape.linear(&(at / "ff.net.0.proj"), &normed, channels * 8, true));
        tape.linear(&(at / "ff.net.2"), &tape.mul(&values, &tape.element_wise(&gates, 4.0)), channels, true)
    };
    tape.add(&feed_forward, &second)
}

fn attention(tape: &Tape, at: &At, xs: &Shadow, context: &Shadow, heads: i64) -> Shadow {
    let channels = xs.shape[2];
    let q = tape.linear(&(at / "to_q"), xs, channels, false);
    let k = tape.linear(&(at / "to_k"), context, channels, false);
    let v = tape.linear(&(at / "to_v"), context, channels, false);
    tape.linear(&(at / "to_out.0"), &tape.attend(&q, &k, &v, heads, false), channels, true)
}

/// What every block of the UNet is given.
struct Conditions<'a> {
    time: &'a Shadow,
    text: &'a Shadow,
    checkpointing: bool,
}

fn run_resnet(tape: &Tape, at: &At, xs: &Shadow, outputs: i64, on: &Conditions) -> Shadow {
    if !on.checkpointing {
        return resnet(tape, at, xs, outputs, Some(on.time));
    }
    let at = at.clone();
    let segment: Segment = Rc::new(move |tape: &Tape, xs: &[Shadow]| resnet(tape, &at, &xs[0], outputs, Some(&xs[1])));
    tape.checkpoint(&[xs, on.time], segment)
}

fn run_attention(tape: &Tape, at: &At, xs: &Shadow, sizes: Transformer, on: &Conditions) -> Shadow {
    if !on.checkpointing {
        return transformer(tape, at, xs, on.text, sizes);
    }
    let at = at.clone();
    let segment: Segment = Rc::new(move |tape: &Tape, xs: &[Shadow]| transformer(tape, &at, &xs[0], &xs[1], sizes));
    tape.checkpoint(&[xs, on.text], segment)
}

/// A residual block and the attention after it, where the level has any.
fn stage(tape: &Tape, at: &At, i: i64, xs: &Shadow, level: &Level, on: &Conditions) -> Shadow {
    let ys = run_resnet(tape, &(&(at / "resnets") / i), xs, level.channels, on);
    match level.attention {
        Some(sizes) => run_attention(tape, &(&(at / "attentions") / i), &ys, sizes, on),
        None => ys,
    }
}

struct Level {
    channels: i64,
    attention: Option<Transformer>,
}

impl Level {
    fn of(config: &UNetConfig, level: usize, kind: &str) -> Self {
        let sizes = Transformer {
            heads: config.heads(level),
            layers: config.transformer_layers_per_block.at(level),
            linear: config.use_linear_projection,
        };
        let attention = kind.starts_with("CrossAttn").then_some(sizes);
        Self { channels: config.block_out_channels[level], attention }
    }
}

/// What the UNet is told of texts.
pub(super) struct Texts {
    /// `[b, t, e]`
    context: Shadow,
    /// Of whole texts, `[b, p]`, where a text encoder that trains makes them.
    pooled: Option<Shadow>,
}

impl Texts {
    /// Embeddings that are known.
    pub(super) fn frozen(context: Shadow) -> Self {
        Self { context, pooled: None }
    }
}

/// The text encoders on `batch` texts: of several, the last hidden states but one side by side.
pub(super) fn texts(tape: &Tape, at: &[At], configs: &[ClipTextConfig], batch: i64, checkpointing: bool) -> Texts {
    let with_last = at.len() == 1;
    let mut outputs = std::iter::zip(at, configs)
        .map(|(at, config)| clip_text(tape, at, config, batch, (checkpointing, with_last || config.with_projection)));
    let Some((mut context, mut pooled)) = outputs.next().map(|outputs| outputs.of(with_last)) else {
        return Texts::frozen(tape.tensor(&[batch, 1, 1]));
    };
    for (hidden, whole) in outputs.map(|outputs| outputs.of(with_last)) {
        context = tape.cat_widths(&context, &hidden);
        pooled = whole.or(pooled);
    }
    Texts { context, pooled }
}

/// The UNet on latents `[b, 4, h, w]` and texts.
pub(super) fn unet(
    tape: &Tape,
    at: &At,
    config: &UNetConfig,
    latents: &Shadow,
    texts: &Texts,
    checkpointing: bool,
) -> Shadow {
    let channels = &config.block_out_channels;
    let last = channels.len() - 1;
    let width = config.time_embedding_width();
    let time_at = at / "time_embedding";
    let time = tape.tensor(&[latents.shape[0], channels[0]]);
    let embed = |at: &At, xs: &Shadow| {
        tape.linear(&(at / "linear_2"), &tape.linear(&(at / "linear_1"), xs, width, true), width, true)
    };
    let mut time = embed(&time_at, &time);
    if let Some((_, inputs)) = config.addition() {
        let sizes = |width: i64| tape.tensor(&[latents.shape[0], width]);
        let given = match &texts.pooled {
            Some(pooled) => tape.cat_widths(pooled, &sizes(inputs - pooled.shape[1])),
            None => sizes(inputs),
        };
        time = tape.add(&time, &embed(&(at / "add_embedding"), &given));
    }
    let on = Conditions { time: &time, text: &texts.context, checkpointing };
    let laid_out = tape.tensor(&latents.shape);
    let mut xs = tape.conv(&(at / "conv_in"), &laid_out, channels[0], 3, 1);
    drop(laid_out);
    let mut skips = vec![xs.clone()];
    for (level, &outputs) in channels.iter().enumerate() {
        let block = &(at / "down_blocks") / level;
        let sizes = Level::of(config, level, &config.down_block_types[level]);
        for i in 0..config.layers_per_block {
            xs = stage(tape, &block, i, &xs, &sizes, &on);
            skips.push(xs.clone());
        }
        if level < last {
            xs = tape.conv(&(&block / "downsamplers.0.conv"), &xs, outputs, 3, 2);
            skips.push(xs.clone());
        }
    }
    let middle = at / "mid_block";
    let sizes = Level::of(config, last, "CrossAttn");
    let ys = stage(tape, &middle, 0, &xs, &sizes, &on);
    xs = run_resnet(tape, &(&middle / "resnets.1"), &ys, channels[last], &on);
    drop(ys);
    for i in 0..=last {
        xs = up_block(tape, &(&(at / "up_blocks") / i), config, i, xs, &mut skips, &on);
    }
    tape.conv(&(at / "conv_out"), &norm_silu(tape, &(at / "conv_norm_out"), &xs), config.out_channels, 3, 1)
}

fn up_block(
    tape: &Tape,
    at: &At,
    config: &UNetConfig,
    i: usize,
    xs: Shadow,
    skips: &mut Vec<Shadow>,
    on: &Conditions,
) -> Shadow {
    let level = config.block_out_channels.len() - 1 - i;
    let sizes = Level::of(config, level, &config.up_block_types[i]);
    let mut xs = xs;
    for layer in 0..=config.layers_per_block {
        let joined = match skips.pop() {
            Some(skip) => tape.cat_channels(&xs, &skip),
            None => xs.clone(),
        };
        xs = stage(tape, at, layer, &joined, &sizes, on);
    }
    match (level > 0, skips.last().map(|skip| (skip.shape[2], skip.shape[3]))) {
        (true, Some((height, width))) => {
            let large = tape.resized(&xs, height, width);
            tape.conv(&(at / "upsamplers.0.conv"), &large, sizes.channels, 3, 1)
        }
        _ => xs,
    }
}

/// What CLIP's text model gives.
pub(super) struct TextOutputs {
    penultimate: Shadow,
    last: Option<Shadow>,
    pooled: Option<Shadow>,
}

impl TextOutputs {
    /// The hidden state that the UNet is given, the last or the one before, and the whole text.
    fn of(self, last: bool) -> (Shadow, Option<Shadow>) {
        let Self { penultimate, last: normed, pooled } = self;
        (normed.filter(|_| last).unwrap_or(penultimate), pooled)
    }
}

/// CLIP's text model on `batch` rows of the longest text; its last layer only `with_last`.
pub(super) fn clip_text(
    tape: &Tape,
    at: &At,
    config: &ClipTextConfig,
    batch: i64,
    (checkpointing, with_last): (bool, bool),
) -> TextOutputs {
    let (length, width) = (config.max_position_embeddings, config.hidden_size);
    (at / "embeddings.token_embedding").waiting_table([config.vocab_size, width]);
    (at / "embeddings.position_embedding").table([length, width]);
    let mut xs = tape.tensor(&[batch, length, width]);
    let sizes = (config.num_attention_heads, config.intermediate_size, config.hidden_act);
    let run = |tape: &Tape, i: i64, xs: &Shadow| {
        let layer = &(at / "encoder.layers") / i;
        match checkpointing {
            false => clip_layer(tape, &layer, xs, sizes),
            true => tape.checkpoint(&[xs], Rc::new(move |tape, xs| clip_layer(tape, &layer, &xs[0], sizes))),
        }
    };
    for i in 0..config.num_hidden_layers - 1 {
        xs = run(tape, i, &xs);
    }
    if !with_last {
        // Its weights and adapters are there.
        let aside = Tape::new(tape.width(), false);
        run(&aside, config.num_hidden_layers - 1, &aside.tensor(&xs.shape));
        return TextOutputs { penultimate: xs, last: None, pooled: None };
    }
    let last = tape.norm(&(at / "final_layer_norm"), &run(tape, config.num_hidden_layers - 1, &xs), width);
    let pooled = config.with_projection.then(|| {
        let ends =
            tape.record_one(&[&last], tape.tensor(&[batch, width]), Record { pass_on: true, ..Record::default() });
        tape.linear(&(at / "text_projection"), &ends, config.projection_dim, false)
    });
    TextOutputs { penultimate: xs, last: Some(last), pooled }
}

fn clip_layer(tape: &Tape, at: &At, xs: &Shadow, (heads, inner, activation): (i64, i64, Activation)) -> Shadow {
    let width = xs.shape[2];
    let attn = at / "self_attn";
    let normed = tape.norm(&(at / "layer_norm1"), xs, width);
    let projection = |name: &str, xs: &Shadow| tape.linear(&(&attn / name), xs, width, true);
    let (q, k, v) = (projection("q_proj", &normed), projection("k_proj", &normed), projection("v_proj", &normed));
    let xs = tape.add(xs, &projection("out_proj", &tape.attend(&q, &k, &v, heads, true)));
    let normed = tape.norm(&(at / "layer_norm2"), &xs, width);
    let hidden = activate(tape, activation, &tape.linear(&(at / "mlp.fc1"), &normed, inner, true));
    tape.add(&xs, &tape.linear(&(at / "mlp.fc2"), &hidden, width, true))
}

pub(super) fn activate(tape: &Tape, activation: Activation, xs: &Shadow) -> Shadow {
    match activation {
        Activation::Gelu | Activation::GeluNew | Activation::Relu | Activation::Silu => tape.element_wise(xs, 4.0),
        Activation::QuickGelu => {
            let scaled = tape.record_one(&[xs], tape.tensor(&xs.shape), Record::default());
            // The sigmoid keeps its output, which the product keeps as well.
            let gate = tape.record_one(&[&scaled], tape.tensor(&xs.shape), Record::default());
            tape.mul(xs, &gate)
        }
    }
}

/// Residual blocks of the VAE, one after another.
fn vae_resnets(tape: &Tape, at: &At, xs: Shadow, outputs: i64, layers: i64) -> Shadow {
    (0..layers).fold(xs, |xs, i| resnet(tape, &(&(at / "resnets") / i), &xs, outputs, None))
}

fn vae_middle(tape: &Tape, at: &At, config: &VaeConfig, xs: &Shadow) -> Shadow {
    let shape = xs.shape.clone();
    let ys = resnet(tape, &(at / "resnets.0"), xs, shape[1], None);
    let ys = match config.mid_block_add_attention {
        false => ys,
        true => {
            let at = at / "attentions.0";
            let rows = tape.norm(&(&at / "group_norm"), &ys, shape[1]).view(&[shape[0], shape[2] * shape[3], shape[1]]);
            let project = |name: &str, xs: &Shadow| tape.linear(&(&at / name), xs, shape[1], true);
            let (q, k, v) = (project("to_q", &rows), project("to_k", &rows), project("to_v", &rows));
            let attended = project("to_out.0", &tape.attend(&q, &k, &v, 1, false)).view(&shape);
            tape.add(&attended, &ys)
        }
    };
    resnet(tape, &(at / "resnets.1"), &ys, shape[1], None)
}

/// The VAE's encoder on images `[b, 3, h, w]`, and the 1×1 convolution behind it.
pub(super) fn vae_encode(tape: &Tape, at: &At, config: &VaeConfig, images: &Shadow) -> Shadow {
    let channels = &config.block_out_channels;
    let encoder = at / "encoder";
    let laid_out = tape.tensor(&images.shape);
    let mut xs = tape.conv(&(&encoder / "conv_in"), &laid_out, channels[0], 3, 1);
    drop(laid_out);
    for (i, &outputs) in channels.iter().enumerate() {
        let block = &(&encoder / "down_blocks") / i;
        xs = vae_resnets(tape, &block, xs, outputs, config.layers_per_block);
        if i + 1 < channels.len() {
            let padded = tape.resized(&xs, xs.shape[2], xs.shape[3]);
            xs = tape.conv(&(&block / "downsamplers.0.conv"), &padded, outputs, 3, 2);
        }
    }
    xs = vae_middle(tape, &(&encoder / "mid_block"), config, &xs);
    let normed = norm_silu(tape, &(&encoder / "conv_norm_out"), &xs);
    let moments = tape.conv(&(&encoder / "conv_out"), &normed, config.latent_channels * 2, 3, 1);
    match config.use_quant_conv {
        true => tape.conv(&(at / "quant_conv"), &moments, config.latent_channels * 2, 1, 1),
        false => moments,
    }
}

/// The 1×1 convolution and the VAE's decoder on latents `[b, 4, h, w]`.
pub(super) fn vae_decode(tape: &Tape, at: &At, config: &VaeConfig, latents: &Shadow) -> Shadow {
    let channels: Vec<i64> = config.block_out_channels.iter().rev().copied().collect();
    let decoder = at / "decoder";
    let latents = match config.use_post_quant_conv {
        true => tape.conv(&(at / "post_quant_conv"), latents, config.latent_channels, 1, 1),
        false => latents.clone(),
    };
    let mut xs = tape.conv(&(&decoder / "conv_in"), &latents, channels[0], 3, 1);
    xs = vae_middle(tape, &(&decoder / "mid_block"), config, &xs);
    for (i, &outputs) in channels.iter().enumerate() {
        let block = &(&decoder / "up_blocks") / i;
        xs = vae_resnets(tape, &block, xs, outputs, config.layers_per_block + 1);
        if i + 1 < channels.len() {
            let large = tape.resized(&xs, xs.shape[2] * 2, xs.shape[3] * 2);
            xs = tape.conv(&(&block / "upsamplers.0.conv"), &large, outputs, 3, 1);
        }
    }
    let normed = norm_silu(tape, &(&decoder / "conv_norm_out"), &xs);
    tape.conv(&(&decoder / "conv_out"), &normed, config.out_channels, 3, 1)
}
