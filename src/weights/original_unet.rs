//! The UNet of single-file checkpoints: the original code's names of its blocks, as ours.
//! Reference: github.com/CompVis/stable-diffusion `openaimodel.py`.
//!
//! There it is one flat list of blocks on the way down and one on the way up. How many levels it has, and how many blocks a
//! level, follows from where its resampling blocks stand.

use super::original_stable_diffusion::{numbers, renamed, UNET};
use super::WeightSet;
use std::collections::BTreeMap;

/// Levels of any UNet.
const MAX_LEVELS: usize = 8;

/// Our path of the UNet module that the original code calls `path`, such as `input_blocks.1.1.proj_in`, in a UNet of
/// `layers` blocks a level; none where such a UNet has no such module.
pub fn unet_module(path: &str, layers: usize) -> Option<String> {
    let blocks = UNetBlocks::of_layers(layers);
    let mut names = path.split('.');
    let number = names.next().filter(|side| *side == "input_blocks").and(names.next()).and_then(|n| n.parse().ok());
    if let Some(number) = number.filter(|&number: &usize| number > 0) {
        // Behind the blocks of a level stands what halves the size, and nothing else.
        let (_, index) = blocks.input.get(&number)?;
        if (names.nth(1) == Some("op")) != (*index == layers) {
            return None;
        }
    }
    blocks.key(&format!("{UNET}{path}.weight"))?.strip_suffix(".weight").map(str::to_owned)
}

/// What the original code calls the UNet module at our `path`, in a UNet of `layers` blocks a level whose resampling levels on the way
/// up have attention; none where such a UNet has no such module. The other way round is [`unet_module`].
pub fn original_unet_module(path: &str, layers: usize) -> Option<String> {
    if let Some(end) = whole_name(path, &ENDS) {
        return Some(end);
    }
    let mut names = path.splitn(4, '.');
    let original = match (names.next()?, names.next()?) {
        ("mid_block", kind) => {
            let index: usize = names.next()?.parse().ok()?;
            let place = if kind == "resnets" { 2 * index } else { 1 };
            format!("middle_block.{place}.{}", inner_name(kind, names.next()?)?)
        }
        (side @ ("down_blocks" | "up_blocks"), level) => {
            let level: usize = level.parse().ok()?;
            let (kind, rest) = (names.next()?, names.next()?);
            let (index, rest) = rest.split_once('.')?;
            let index: usize = index.parse().ok()?;
            let first = level * (layers + 1);
            match (side, kind) {
                ("down_blocks", "downsamplers") => format!("input_blocks.{}.0.op", first + layers + 1),
                ("up_blocks", "upsamplers") => format!("output_blocks.{}.2.conv", first + layers),
                ("down_blocks", _) => {
                    format!("input_blocks.{}.{}.{}", first + index + 1, place_of(kind), inner_name(kind, rest)?)
                }
                _ => format!("output_blocks.{}.{}.{}", first + index, place_of(kind), inner_name(kind, rest)?),
            }
        }
        _ => return None,
    };
    (unet_module(&original, layers).as_deref() == Some(path)).then_some(original)
}

/// The place of a residual block, or of the attention behind it.
fn place_of(kind: &str) -> usize {
    usize::from(kind == "attentions")
}

/// What is inside a residual block by the original code's name; attention's names are the same.
fn inner_name(kind: &str, rest: &str) -> Option<String> {
    match kind {
        "resnets" => whole_name(rest, &RESNET),
        _ => Some(rest.to_owned()),
    }
}

/// The original code's name of what `names` says we call `name`.
fn whole_name(name: &str, names: &[(&str, &str)]) -> Option<String> {
    let found = names.iter().find(|(_, ours)| ours.trim_end_matches('.') == name);
    found.map(|(original, _)| original.trim_end_matches('.').to_owned())
}

/// What the original code calls the layers outside blocks, and what we do.
const ENDS: [(&str, &str); 7] = [
    ("input_blocks.0.0.", "conv_in."),
    ("label_emb.0.0.", "add_embedding.linear_1."),
    ("label_emb.0.2.", "add_embedding.linear_2."),
    ("time_embed.0.", "time_embedding.linear_1."),
    ("time_embed.2.", "time_embedding.linear_2."),
    ("out.0.", "conv_norm_out."),
    ("out.2.", "conv_out."),
];

/// The same of those in a residual block.
const RESNET: [(&str, &str); 6] = [
    ("in_layers.0.", "norm1."),
    ("in_layers.2.", "conv1."),
    ("emb_layers.1.", "time_emb_proj."),
    ("out_layers.0.", "norm2."),
    ("out_layers.3.", "conv2."),
    ("skip_connection.", "conv_shortcut."),
];

/// Where each block of the original's flat lists stands: (level, index in it).
pub(super) struct UNetBlocks {
    input: BTreeMap<usize, (usize, usize)>,
    output: BTreeMap<usize, (usize, usize)>,
}

impl UNetBlocks {
    pub(super) fn of(weights: &WeightSet) -> Self {
        let (inputs, outputs) = (format!("{UNET}input_blocks."), format!("{UNET}output_blocks."));
        let resamples = |prefix: &str, n: usize, children: &[&str]| {
            children.iter().any(|child| weights.contains(&format!("{prefix}{n}.{child}.weight")))
        };
        let mut input = BTreeMap::new();
        let (mut level, mut index) = (0, 0);
        for n in numbers(weights, &inputs).into_iter().skip(1) {
            input.insert(n, (level, index));
            index += 1;
            if resamples(&inputs, n, &["0.op"]) {
                (level, index) = (level + 1, 0);
            }
        }
        let mut output = BTreeMap::new();
        (level, index) = (0, 0);
        for n in numbers(weights, &outputs) {
            output.insert(n, (level, index));
            index += 1;
            // Behind the residual block, or behind its attention.
            if resamples(&outputs, n, &["1.conv", "2.conv"]) {
                (level, index) = (level + 1, 0);
            }
        }
        Self { input, output }
    }

    /// Those of a UNet of `layers` blocks a level, of however many levels.
    fn of_layers(layers: usize) -> Self {
        let places = (0..MAX_LEVELS * (layers + 1)).map(|n| (n, (n / (layers + 1), n % (layers + 1))));
        // The first on the way down is the convolution of the latents.
        Self { input: places.clone().map(|(n, place)| (n + 1, place)).collect(), output: places.collect() }
    }

    pub(super) fn key(&self, key: &str) -> Option<String> {
        let key = key.strip_prefix(UNET)?;
        if let Some(renamed) = renamed(key, &ENDS) {
            return Some(renamed);
        }
        let (side, rest) = key.split_once('.')?;
        let (number, rest) = rest.split_once('.')?;
        let number: usize = number.parse().ok()?;
        let (block, index, rest) = match side {
            "middle_block" => ("mid_block".to_owned(), number / 2, rest),
            _ => {
                let (name, places) = match side {
                    "input_blocks" => ("down_blocks", &self.input),
                    "output_blocks" => ("up_blocks", &self.output),
                    _ => return None,
                };
                let (level, index) = places.get(&number)?;
                (format!("{name}.{level}"), *index, rest.split_once('.')?.1)
            }
        };
        Some(unet_child(&block, index, rest))
    }
}

/// The key of what is in a place of the flat lists: told from the child's own names.
fn unet_child(block: &str, index: usize, rest: &str) -> String {
    const RESAMPLE: [(&str, &str); 2] = [("op.", "downsamplers.0.conv."), ("conv.", "upsamplers.0.conv.")];
    if let Some(resnet) = renamed(rest, &RESNET) {
        format!("{block}.resnets.{index}.{resnet}")
    } else if let Some(resample) = renamed(rest, &RESAMPLE) {
        format!("{block}.{resample}")
    } else {
        format!("{block}.attentions.{index}.{rest}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn levels_follow_from_the_resampling_blocks() {
        let original = [
            ("input_blocks.0.0.weight", "conv_in.weight"),
            ("input_blocks.1.0.in_layers.2.weight", "down_blocks.0.resnets.0.conv1.weight"),
            ("input_blocks.2.0.op.weight", "down_blocks.0.downsamplers.0.conv.weight"),
            ("input_blocks.3.0.skip_connection.bias", "down_blocks.1.resnets.0.conv_shortcut.bias"),
            ("input_blocks.3.1.proj_in.weight", "down_blocks.1.attentions.0.proj_in.weight"),
            ("input_blocks.4.0.op.weight", "down_blocks.1.downsamplers.0.conv.weight"),
            ("input_blocks.5.0.emb_layers.1.weight", "down_blocks.2.resnets.0.time_emb_proj.weight"),
            (
                "middle_block.1.transformer_blocks.0.ff.net.2.bias",
                "mid_block.attentions.0.transformer_blocks.0.ff.net.2.bias",
            ),
            ("middle_block.2.out_layers.3.weight", "mid_block.resnets.1.conv2.weight"),
            ("output_blocks.0.0.in_layers.0.weight", "up_blocks.0.resnets.0.norm1.weight"),
            ("output_blocks.1.1.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
            ("output_blocks.2.0.in_layers.0.weight", "up_blocks.1.resnets.0.norm1.weight"),
            ("output_blocks.3.2.conv.weight", "up_blocks.1.upsamplers.0.conv.weight"),
            ("output_blocks.5.1.norm.weight", "up_blocks.2.attentions.1.norm.weight"),
            ("output_blocks.4.0.out_layers.0.bias", "up_blocks.2.resnets.0.norm2.bias"),
            ("out.2.weight", "conv_out.weight"),
        ];
        let keys: Vec<String> = original.iter().map(|(key, _)| format!("{UNET}{key}")).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let zeros = || Tensor::zeros([3, 1], (Kind::Float, Device::Cpu));
        let tensors: Vec<(&str, Tensor)> = keys.iter().map(|key| (key.as_str(), zeros())).collect();
        Tensor::write_safetensors(&tensors, &path).unwrap();
        let blocks = UNetBlocks::of(&WeightSet::open_file(&path).unwrap());
        for ((_, ours), key) in original.iter().zip(&keys) {
            assert_eq!(blocks.key(key).as_deref(), Some(*ours), "{key}");
        }
        assert_eq!(blocks.key("model_ema.diffusion_modelinput_blocks00weight"), None);
    }

    #[test]
    fn an_original_module_has_our_path_by_the_blocks_of_a_level() {
        for (layers, path, ours) in [
            (2, "input_blocks.0.0", Some("conv_in")),
            (2, "input_blocks.1.1.proj_in", Some("down_blocks.0.attentions.0.proj_in")),
            (2, "input_blocks.3.0.op", Some("down_blocks.0.downsamplers.0.conv")),
            (2, "input_blocks.8.1.proj_out", Some("down_blocks.2.attentions.1.proj_out")),
            (2, "input_blocks.3.1.proj_in", None),
            (2, "input_blocks.4.0.op", None),
            (1, "input_blocks.3.1.proj_in", Some("down_blocks.1.attentions.0.proj_in")),
            (1, "input_blocks.2.0.op", Some("down_blocks.0.downsamplers.0.conv")),
            (2, "middle_block.2.in_layers.2", Some("mid_block.resnets.1.conv1")),
            (2, "middle_block.1.proj_in", Some("mid_block.attentions.0.proj_in")),
            (2, "output_blocks.5.2.conv", Some("up_blocks.1.upsamplers.0.conv")),
            (2, "output_blocks.11.0.skip_connection", Some("up_blocks.3.resnets.2.conv_shortcut")),
            (1, "output_blocks.1.1.proj_in", Some("up_blocks.0.attentions.1.proj_in")),
            (2, "time_embed.2", Some("time_embedding.linear_2")),
            (2, "label_emb.0.2", Some("add_embedding.linear_2")),
            (2, "label_emb.1.0", None),
            (2, "input_blocks.999.0.in_layers.2", None),
        ] {
            assert_eq!(unet_module(path, layers).as_deref(), ours, "{path} of {layers} blocks a level");
        }
    }

    #[test]
    fn our_paths_of_stable_diffusion_xl_have_their_original_names() {
        let block = "transformer_blocks.9.attn1.to_out.0";
        for (ours, original) in [
            (format!("down_blocks.1.attentions.0.{block}"), format!("input_blocks.4.1.{block}")),
            (format!("down_blocks.2.attentions.1.{block}"), format!("input_blocks.8.1.{block}")),
            (format!("mid_block.attentions.0.{block}"), format!("middle_block.1.{block}")),
            (format!("up_blocks.0.attentions.2.{block}"), format!("output_blocks.2.1.{block}")),
            ("up_blocks.1.attentions.0.proj_in".into(), "output_blocks.3.1.proj_in".into()),
            ("up_blocks.2.resnets.2.conv_shortcut".into(), "output_blocks.8.0.skip_connection".into()),
            ("up_blocks.1.upsamplers.0.conv".into(), "output_blocks.5.2.conv".into()),
            ("down_blocks.0.downsamplers.0.conv".into(), "input_blocks.3.0.op".into()),
            ("mid_block.resnets.1.time_emb_proj".into(), "middle_block.2.emb_layers.1".into()),
            ("add_embedding.linear_2".into(), "label_emb.0.2".into()),
            ("conv_out".into(), "out.2".into()),
        ] {
            assert_eq!(original_unet_module(&ours, 2).as_deref(), Some(original.as_str()), "{ours}");
        }
        for none in ["down_blocks.0.resnets.2.conv1", "down_blocks.0", "x", "up_blocks.0.attentions.3.proj_in"] {
            assert_eq!(original_unet_module(none, 2), None, "{none}");
        }
    }
}
