//! What a single-file checkpoint predicts and for which image size it was made. Its shapes do not say it.
//!
//! In this order it is said by `modelspec.prediction_type` and `modelspec.architecture` in the header (Stability's model
//! specification, which sd-scripts writes), by the empty tensors `v_pred` and `ztsnr` (which ComfyUI, Forge and sd-scripts
//! know), and by the original code's configuration NAME.yaml beside the file (which AUTOMATIC1111 reads). Else it is guessed.

use crate::error::Result;
use crate::weights::{OriginalCheckpoint, OriginalTextEncoder};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Training steps after which Stable Diffusion 2's base model, which predicts noise, was saved.
const V2_BASE_STEPS: i64 = 875_000;
/// Longest configuration that is read.
const MAX_YAML: u64 = 1 << 20;
/// Pixels of a side that a model can have been made for.
const SIDES: std::ops::RangeInclusive<i64> = 64..=4096;
/// Latent height and width of a model of 512 pixels.
pub const BASE_LATENT_SIZE: i64 = 64;
/// Of one of 768 pixels.
const LARGE_LATENT_SIZE: i64 = 96;

const EPSILON: &str = "epsilon";
const V_PREDICTION: &str = "v_prediction";
const SAMPLE: &str = "sample";

/// What a file says, or is taken to be.
#[derive(Debug, Clone)]
pub struct CheckpointFacts {
    path: PathBuf,
    text_encoder: OriginalTextEncoder,
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
        let (metadata, yaml) = (checkpoint.metadata()?, yaml_beside(checkpoint.path()));
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
            .or_else(|| yaml.as_ref().and_then(|yaml| size_of_yaml(yaml, checkpoint.text_encoder_kind())));
        Ok(Self {
            path: checkpoint.path().to_owned(),
            text_encoder: checkpoint.text_encoder_kind(),
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
    /// place. Where nothing says it, 768 pixels for a Stable Diffusion 2 that predicts v, else 512.
    pub fn latent_size(&self, prediction: &str, factor: i64) -> i64 {
        match (self.size, self.text_encoder, prediction) {
            (Some(Size::Pixels(side)), ..) => (side / factor).max(1),
            (Some(Size::Latent(side)), ..) => side,
            (None, OriginalTextEncoder::OpenClip, V_PREDICTION) => LARGE_LATENT_SIZE,
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

/// Stable Diffusion 1 predicts noise; 2 predicts v, unless it was saved at the step of its base model.
fn guess(checkpoint: &OriginalCheckpoint) -> (&'static str, Option<&'static str>) {
    match (checkpoint.text_encoder_kind(), checkpoint.global_step()) {
        (OriginalTextEncoder::Clip, _) => (EPSILON, Some("it has the text encoder of Stable Diffusion 1.x")),
        (OriginalTextEncoder::OpenClip, Some(V2_BASE_STEPS)) => {
            (EPSILON, Some("it was saved at the training step of Stable Diffusion 2's base model"))
        }
        (OriginalTextEncoder::OpenClip, _) => (V_PREDICTION, Some("it has the text encoder of Stable Diffusion 2.x")),
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
fn size_of_yaml(yaml: &BTreeMap<String, String>, text_encoder: OriginalTextEncoder) -> Option<Size> {
    let side = yaml.get("model.params.image_size")?.parse().ok()?;
    let predicts_v =
        yaml.get("model.params.parameterization").and_then(|name| prediction_named(name)) == Some(V_PREDICTION);
    let is_template = side == BASE_LATENT_SIZE && predicts_v && text_encoder == OriginalTextEncoder::OpenClip;
    (SIDES.contains(&(side * 8)) && !is_template).then_some(Size::Latent(side))
}

/// The configuration of the original code beside the checkpoint `path`: its values by their dotted paths.
fn yaml_beside(path: &Path) -> Option<BTreeMap<String, String>> {
    let path = ["yaml", "yml"].map(|end| path.with_extension(end)).into_iter().find(|path| path.exists())?;
    // A pipe would be waited for, and a disk's image never end.
    std::fs::metadata(&path).ok().filter(|about| about.is_file() && about.len() <= MAX_YAML)?;
    let text = std::fs::read(&path).ok()?;
    let values = yaml_values(String::from_utf8_lossy(&text).trim_start_matches('\u{feff}'));
    values.keys().any(|name| name.starts_with("model.params.")).then_some(values)
}

/// The plain values of the mappings in `text`, by the dotted paths of their keys: as much of YAML as these configurations
/// have. Lists are left out.
fn yaml_values(text: &str) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut open: Vec<(usize, String)> = Vec::new();
    for line in text.lines() {
        let line = line.split(" #").next().unwrap_or(line).trim_end();
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if content.is_empty() || content.starts_with(['#', '-']) {
            continue;
        }
        let Some((key, value)) = content.split_once(':') else { continue };
        open.retain(|(outer, _)| *outer < indent);
        let key = unquoted(key);
        let before: String = open.iter().map(|(_, key)| format!("{key}.")).collect();
        match value.trim() {
            "" => open.push((indent, key.to_owned())),
            flow if flow.starts_with('{') => {
                let pairs = flow.trim_matches(['{', '}']).split(',').filter_map(|pair| pair.split_once(':'));
                values.extend(
                    pairs.map(|(inner, value)| {
                        (format!("{before}{key}.{}", unquoted(inner)), unquoted(value).to_owned())
                    }),
                );
            }
            value => _ = values.insert(format!("{before}{key}"), unquoted(value).to_owned()),
        }
    }
    values
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
    fn stabilitys_own_configuration_of_v_does_not_say_its_size() {
        let yaml = |size: &str, prediction: &str| {
            BTreeMap::from([
                ("model.params.image_size".to_owned(), size.to_owned()),
                ("model.params.parameterization".to_owned(), prediction.to_owned()),
            ])
        };
        let (clip, open_clip) = (OriginalTextEncoder::Clip, OriginalTextEncoder::OpenClip);
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
