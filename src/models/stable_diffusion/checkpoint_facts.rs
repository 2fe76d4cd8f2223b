//! What a single-file checkpoint predicts and for which image size it was made. Its shapes do not say it.
//!
//! In this order it is said by `modelspec.prediction_type` and `modelspec.architecture` in the header (Stability's model
//! specification, which sd-scripts writes), by the empty tensors `v_pred` and `ztsnr` (which ComfyUI, Forge and sd-scripts
//! know), and by the original code's configuration NAME.yaml beside the file (which AUTOMATIC1111 reads). Else it is guessed.

use crate::error::Result;
use crate::regular_file::{self, FileKind};
use crate::weights::{OriginalCheckpoint, OriginalGeneration};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Training steps after which Stable Diffusion 2's base model, which predicts noise, was saved.
const V2_BASE_STEPS: i64 = 875_000;
/// Mappings inside each other that are read of a configuration.
const MOST_NESTED: usize = 32;
/// Pixels of a side that a model can have been made for.
const SIDES: std::ops::RangeInclusive<i64> = 64..=4096;
/// Latent height and width of a model of 512 pixels.
pub const BASE_LATENT_SIZE: i64 = 64;
/// Of one of 768 pixels.
const LARGE_LATENT_SIZE: i64 = 96;
/// Of Stable Diffusion XL, of 1024.
pub const XL_LATENT_SIZE: i64 = 128;

const EPSILON: &str = "epsilon";
const V_PREDICTION: &str = "v_prediction";
const SAMPLE: &str = "sample";

/// What a file says, or is taken to be.
#[derive(Debug, Clone)]
pub struct CheckpointFacts {
    path: PathBuf,
    generation: OriginalGeneration,
    /// What it predicts, and why that was guessed where it was.
    prediction: (&'static str, Option<&'static str>),
    zero_terminal_snr: bool,
    size: Option<Size>,
    notes: Vec<String>,
}

/// A side of the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Pixels(i64),
    Latent(i64),
}

impl CheckpointFacts {
    /// Reads the header of `checkpoint` and the configuration file next to it.
    pub fn of(checkpoint: &OriginalCheckpoint) -> Result<Self> {
        let (metadata, yaml) = (checkpoint.metadata()?, yaml_beside(checkpoint.path()).transpose());
        let (yaml, unused) = yaml.map_or_else(|reason| (None, Some(reason)), |yaml| (yaml, None));
        let (mut said, mut notes) = (Vec::new(), Vec::new());
        if let Some(value) = metadata.get("modelspec.prediction_type") {
            match prediction_named(value) {
                Some(prediction) => said.push(("modelspec.prediction_type", prediction)),
                None => notes.push(format!("its `modelspec.prediction_type` is `{value}`, which is not known")),
            }
        }
        let architecture = metadata.get("modelspec.architecture").map(|name| name.to_lowercase());
        let of_architecture = architecture.as_deref().and_then(by_architecture);
        said.extend(of_architecture.map(|(prediction, _)| ("modelspec.architecture", prediction)));
        if checkpoint.contains("v_pred") {
            said.push(("tensor v_pred", V_PREDICTION));
        }
        if let Some(yaml) = &yaml {
            match yaml.get("model.params.parameterization") {
                // The original code's own default.
                None => said.push(("configuration file next to it", EPSILON)),
                Some(value) => match prediction_named(value) {
                    Some(prediction) => said.push(("configuration file next to it", prediction)),
                    None => notes.push(format!(
                        "the `parameterization` in the file next to it is `{value}`, which is not known"
                    )),
                },
            }
        }
        // Where something else says it, nothing is amiss.
        notes.extend(unused.filter(|_| said.is_empty()));
        let prediction = match said.first() {
            Some((_, prediction)) => (*prediction, None),
            None => guess(checkpoint),
        };
        if let (Some((first, one)), Some((second, other))) =
            (said.first(), said.iter().find(|(_, p)| *p != prediction.0))
        {
            notes.push(format!("its {first} says {one} and its {second} {other}; the former counts"));
        }
        let size = metadata
            .get("modelspec.resolution")
            .and_then(|text| side_of(text))
            .or(of_architecture.map(|(_, side)| side))
            .map(Size::Pixels)
            .or_else(|| yaml.as_ref().and_then(|yaml| size_of_yaml(yaml, checkpoint.generation())));
        Ok(Self {
            path: checkpoint.path().to_owned(),
            generation: checkpoint.generation(),
            prediction,
            zero_terminal_snr: checkpoint.contains("ztsnr"),
            size,
            notes,
        })
    }

    /// What the model predicts.
    pub fn prediction(&self) -> &'static str {
        self.prediction.0
    }

    /// Whether a model that predicts `prediction` was trained until no signal is left at the last timestep (arXiv
    /// 2305.08891), which a prediction of noise cannot learn.
    pub fn has_zero_terminal_snr(&self, prediction: &str) -> bool {
        self.zero_terminal_snr && prediction == V_PREDICTION
    }

    /// Height and width of the latents that a model that predicts `prediction` was made for; `factor` pixels are a latent's
    /// place. Where nothing says it, 1024 pixels for a Stable Diffusion XL, 768 for a Stable Diffusion 2 that predicts v, else 512.
    pub fn latent_size(&self, prediction: &str, factor: i64) -> i64 {
        match (self.size, self.generation, prediction) {
            (Some(Size::Pixels(side)), ..) => (side / factor).max(1),
            (Some(Size::Latent(side)), ..) => side,
            (None, OriginalGeneration::Xl, _) => XL_LATENT_SIZE,
            (None, OriginalGeneration::V2, V_PREDICTION) => LARGE_LATENT_SIZE,
            (None, ..) => BASE_LATENT_SIZE,
        }
    }

    /// What a user should know: that the prediction was guessed, or that what is said disagrees.
    pub fn warnings(&self) -> Vec<String> {
        let path = self.path.display();
        let mut texts: Vec<String> =
            self.notes.iter().map(|note| format!("{path}: {note}; ⟨prediction_type⟩ overrides it")).collect();
        if let (prediction, Some(why)) = self.prediction {
            let other = if prediction == EPSILON { V_PREDICTION } else { EPSILON };
            texts.push(format!(
                "{path}: nothing says what this model predicts; `{prediction}` is a guess, because {why}. If its images are \
                 brown or noisy, give ⟨prediction_type⟩ {other}"
            ));
        }
        if self.zero_terminal_snr && !self.has_zero_terminal_snr(self.prediction()) {
            texts.push(format!(
                "{path}: its tensor ztsnr is ignored, because zero terminal SNR needs ⟨prediction_type⟩ {V_PREDICTION}"
            ));
        }
        texts
    }
}

/// Stable Diffusion 1 and XL predict noise; 2 predicts v, unless it was saved at the step of its base model.
fn guess(checkpoint: &OriginalCheckpoint) -> (&'static str, Option<&'static str>) {
    match (checkpoint.generation(), checkpoint.global_step()) {
        (OriginalGeneration::V1, _) => (EPSILON, Some("it has the text encoder of Stable Diffusion 1.x")),
        (OriginalGeneration::Xl, _) => (EPSILON, Some("it has the text encoders of Stable Diffusion XL")),
        (OriginalGeneration::V2, Some(V2_BASE_STEPS)) => {
            (EPSILON, Some("it was saved at the training step of Stable Diffusion 2's base model"))
        }
        (OriginalGeneration::V2, _) => (V_PREDICTION, Some("it has the text encoder of Stable Diffusion 2.x")),
    }
}

/// A prediction by the names that programs give it.
fn prediction_named(name: &str) -> Option<&'static str> {
    match name.trim().to_lowercase().as_str() {
        "epsilon" | "eps" | "noise" => Some(EPSILON),
        "v" | "v_prediction" | "v-prediction" | "v_pred" | "velocity" => Some(V_PREDICTION),
        "x0" | "sample" => Some(SAMPLE),
        _ => None,
    }
}

/// The prediction and the side in pixels of the architectures whose names have them.
fn by_architecture(name: &str) -> Option<(&'static str, i64)> {
    if name.starts_with("stable-diffusion-v2-768-v") {
        return Some((V_PREDICTION, 768));
    }
    name.starts_with("stable-diffusion-v2-512").then_some((EPSILON, 512))
}

/// The side of a square as large as `512x768`; `512` is one already.
fn side_of(text: &str) -> Option<i64> {
    let sides: Vec<f64> = text
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .map(|digits| digits.parse().ok())
        .collect::<Option<_>>()?;
    let side = match sides[..] {
        [side] => side,
        [width, height] => (width * height).sqrt(),
        _ => return None,
    };
    let side = side.round() as i64 / 8 * 8;
    SIDES.contains(&side).then_some(side)
}

/// `image_size` counts latents. Stability's configuration of the 768-pixel model of v says 64 all the same.
fn size_of_yaml(yaml: &BTreeMap<String, String>, generation: OriginalGeneration) -> Option<Size> {
    let side = yaml.get("model.params.image_size")?.parse().ok()?;
    let predicts_v =
        yaml.get("model.params.parameterization").and_then(|name| prediction_named(name)) == Some(V_PREDICTION);
    let is_template = side == BASE_LATENT_SIZE && predicts_v && generation == OriginalGeneration::V2;
    (SIDES.contains(&(side * 8)) && !is_template).then_some(Size::Latent(side))
}

/// The configuration of the original code beside the checkpoint `path`: its values by their dotted paths, or why it is not used.
fn yaml_beside(path: &Path) -> Option<std::result::Result<BTreeMap<String, String>, String>> {
    let path = ["yaml", "yml"].map(|end| path.with_extension(end)).into_iter().find(|path| path.exists())?;
    let text = match regular_file::read(&path, FileKind::YAML) {
        Ok(text) => text,
        Err(error) => return Some(Err(error.to_string())),
    };
    let values = yaml_values(String::from_utf8_lossy(&text).trim_start_matches('\u{feff}'));
    Some(match values.keys().any(|name| name.starts_with("model.params.")) {
        true => Ok(values),
        false => Err(format!("{} has no `model.params` that can be read, and is not used", path.display())),
    })
}

/// The plain values of the mappings in `text`, by the dotted paths of their keys: as much of YAML as these configurations
/// have. Lists are left out.
fn yaml_values(text: &str) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut open: Vec<(usize, String)> = Vec::new();
    let mut lines = text.lines().map(without_comment);
    while let Some(line) = lines.next() {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if content.is_empty() || content.starts_with(['#', '-']) {
            continue;
        }
        let (key, value) = match content.starts_with('{') {
            true => ("", content),
            false => match content.split_once(':') {
                Some((key, value)) => (unquoted(key), value.trim()),
                None => continue,
            },
        };
        open.retain(|(outer, _)| *outer < indent);
        let before: String = open.iter().map(|(_, key)| format!("{key}.")).collect();
        if value.starts_with('{') {
            let (mut flow, mut depth) = (value.to_owned(), opened_in(value));
            while depth > 0 {
                let Some(more) = lines.next() else { break };
                depth += opened_in(more);
                flow = flow + " " + more.trim();
            }
            let below = if key.is_empty() { before } else { format!("{before}{key}.") };
            flow_values(&flow, &below, MOST_NESTED, &mut values);
        } else if value.is_empty() {
            open.push((indent, key.to_owned()));
        } else {
            values.insert(format!("{before}{key}"), unquoted(value).to_owned());
        }
    }
    values
}

fn without_comment(line: &str) -> &str {
    line.split(" #").next().unwrap_or(line).trim_end()
}

/// The values of a mapping in braces, which may hold others, so many deep at most; `before` is the path of what it is the value of.
fn flow_values(flow: &str, before: &str, deep: usize, values: &mut BTreeMap<String, String>) {
    let flow = flow.trim().strip_prefix('{').unwrap_or(flow);
    for pair in parts(flow.strip_suffix('}').unwrap_or(flow)) {
        let Some((key, value)) = pair.split_once(':') else { continue };
        let (path, value) = (format!("{before}{}", unquoted(key)), value.trim());
        match value.as_bytes().first() {
            Some(b'{') if deep > 0 => flow_values(value, &format!("{path}."), deep - 1, values),
            Some(b'{' | b'[') | None => {}
            Some(_) => _ = values.insert(path, unquoted(value).to_owned()),
        }
    }
}

/// Braces and brackets that `flow` opens and does not close.
fn opened_in(flow: &str) -> i64 {
    places(flow).last().map_or(0, |(_, _, depth)| depth)
}

/// What stands between the commas of `flow` that are in no brackets and no quotes.
fn parts(flow: &str) -> Vec<&str> {
    let commas = places(flow).filter(|(_, c, depth)| (*c, *depth) == (',', 0)).map(|(place, ..)| place);
    let (mut parts, mut from) = (Vec::new(), 0);
    for comma in commas {
        parts.push(&flow[from..comma]);
        from = comma + 1;
    }
    parts.push(&flow[from..]);
    parts
}

/// Each character outside quotes with its place, and the number of brackets that are open behind it.
fn places(flow: &str) -> impl Iterator<Item = (usize, char, i64)> + '_ {
    let (mut quote, mut depth) = (None, 0);
    flow.char_indices().filter_map(move |(place, c)| {
        match (quote, c) {
            (Some(open), _) => {
                quote = (open != c).then_some(open);
                return None;
            }
            (None, '"' | '\'') => quote = Some(c),
            (None, '{' | '[') => depth += 1,
            (None, '}' | ']') => depth -= 1,
            _ => {}
        }
        Some((place, c, depth))
    })
}

fn unquoted(text: &str) -> &str {
    text.trim().trim_matches(['"', '\''])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_original_codes_configuration_is_read() {
        let text = "# of 768 pixels\nmodel:\n  base_learning_rate: 1.0e-4\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  \
            params:\n    parameterization: \"v\" # not eps\n    image_size: 96\n    unet_config:\n      params:\n        \
            image_size: 32 # unused\n        attention_resolutions: [ 4, 2, 1 ]\n    first_stage_config:\n      \
            params: {embed_dim: 4, image_size: 1}\n";
        let values = yaml_values(text);
        assert_eq!(values["model.params.parameterization"], "v");
        assert_eq!(values["model.params.image_size"], "96");
        assert_eq!(values["model.params.unet_config.params.image_size"], "32");
        assert_eq!(values["model.params.first_stage_config.params.embed_dim"], "4");
        assert_eq!(yaml_values("- a\nb\n---\n: :\n\u{0}"), BTreeMap::from([(String::new(), ":".to_owned())]));
    }

    #[test]
    fn a_configuration_in_braces_is_read_however_deep_and_on_how_many_lines() {
        for text in [
            "model: {target: a.b, params: {parameterization: \"v\", image_size: 96, sizes: [1, 2], unet: {image_size: 1}}}",
            "model:\n  params: {parameterization: 'v', # of 768 pixels\n    image_size: 96, text: \"a, {b\",\n    \
             unet: {image_size: 1}}\nother: 1\n",
            r#"{"model": {"params": {"parameterization": "v", "image_size": 96, "unet": {"image_size": 1}}}}"#,
        ] {
            let values = yaml_values(text);
            assert_eq!(values["model.params.parameterization"], "v", "{text}");
            assert_eq!(values["model.params.image_size"], "96", "{text}");
            assert_eq!(values["model.params.unet.image_size"], "1", "{text}");
        }
        assert!(yaml_values(&format!("model: {}", "{a: ".repeat(100_000))).is_empty());
    }

    #[test]
    fn stabilitys_own_configuration_of_v_does_not_say_its_size() {
        let yaml = |size: &str, prediction: &str| {
            BTreeMap::from([
                ("model.params.image_size".to_owned(), size.to_owned()),
                ("model.params.parameterization".to_owned(), prediction.to_owned()),
            ])
        };
        let (clip, open_clip) = (OriginalGeneration::V1, OriginalGeneration::V2);
        assert_eq!(size_of_yaml(&yaml("64", "v"), open_clip), None);
        assert_eq!(size_of_yaml(&yaml("64", "v"), clip), Some(Size::Latent(64)));
        assert_eq!(size_of_yaml(&yaml("96", "v"), open_clip), Some(Size::Latent(96)));
        assert_eq!(size_of_yaml(&yaml("64", "eps"), open_clip), Some(Size::Latent(64)));
        assert_eq!(size_of_yaml(&yaml("99999999999", "eps"), open_clip), None);
    }

    #[test]
    fn sizes_of_headers_are_sides_of_squares() {
        for (text, side) in [
            ("512x512", Some(512)),
            ("768", Some(768)),
            ("(512, 768)", Some(624)),
            ("1x1", None),
            ("99999999999999999999x1", None),
            ("large", None),
            ("1x2x3", None),
        ] {
            assert_eq!(side_of(text), side, "{text}");
        }
    }
}
