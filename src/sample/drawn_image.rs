//! A picture that was drawn, and what it was drawn with.

use crate::error::{Error, Result};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// An adapter by its name, and how strongly it is used: 1 is as trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NamedStrength {
    /// Its name.
    pub name: String,
    /// Its strength.
    pub strength: f64,
}

/// What a picture was drawn with: the same numbers draw it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageParameters {
    /// What it shows.
    pub prompt: String,
    /// What a second text encoder read instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_2: Option<String>,
    /// What it must not show; empty for nothing.
    pub negative_prompt: String,
    /// Adapters on the model.
    pub adapters: Vec<NamedStrength>,
    /// Steps of the sampler.
    pub steps: usize,
    /// The sampler's name, of `schedulers::SCHEDULERS`.
    pub sampler: String,
    /// Strength of the guidance.
    pub guidance_scale: f64,
    /// How much of it is brought back to the spread of a prediction without guidance.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub guidance_rescale: f64,
    /// Seed of its noise.
    pub seed: i64,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// The model's name.
    pub model: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

impl ImageParameters {
    /// The text that image tools read (AUTOMATIC1111's form).
    pub fn text(&self) -> String {
        let Self { prompt, steps, sampler, guidance_scale, seed, width, height, model, .. } = self;
        let adapters: String =
            self.adapters.iter().map(|NamedStrength { name, strength }| format!(" <lora:{name}:{strength}>")).collect();
        let negative = match self.negative_prompt.is_empty() {
            true => String::new(),
            false => format!("Negative prompt: {}\n", self.negative_prompt),
        };
        let rescale = match self.guidance_rescale {
            0.0 => String::new(),
            strength => format!(", CFG Rescale: {strength}"),
        };
        let second = self.prompt_2.as_ref().map_or(String::new(), |text| format!(", Prompt 2: {}", json!(text)));
        format!(
            "{prompt}{adapters}\n{negative}Steps: {steps}, Sampler: {sampler}, CFG scale: {guidance_scale}{rescale}, Seed: {seed}, \
             Size: {width}x{height}, Model: {model}{second}"
        )
    }
}

/// A picture that is finished.
#[derive(Debug, Clone)]
pub struct DrawnImage {
    /// Its place among those that were asked for, from 0.
    pub index: usize,
    /// Its pixels.
    pub image: RgbImage,
    /// What it was drawn with.
    pub parameters: ImageParameters,
}

impl DrawnImage {
    /// The file: a PNG that carries its parameters.
    pub fn png(&self) -> Result<Vec<u8>> {
        png_with_parameters(&self.image, &self.parameters.text())
    }
}

/// The keyword of a PNG text chunk in which image tools look for what a picture was drawn with.
pub const PARAMETERS: &str = "parameters";

/// A PNG with `parameters` as a text chunk of that name.
pub fn png_with_parameters(image: &RgbImage, parameters: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let failed = |e: png::EncodingError| Error::invalid(format!("an image cannot be encoded: {e}"));
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    match parameters.is_ascii() {
        true => encoder.add_text_chunk(PARAMETERS.into(), parameters.into()),
        false => encoder.add_itxt_chunk(PARAMETERS.into(), parameters.into()),
    }
    .map_err(failed)?;
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(image.as_raw()).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes)
}
