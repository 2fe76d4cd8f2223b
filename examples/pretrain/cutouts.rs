//! Pictures with a transparent background, and composites of them on a background.

use lorabooth::error::{Error, Result};
use lorabooth::libtorch::random::Generator;
use serde::Deserialize;
use std::path::Path;
use tch::{Kind, Tensor};

/// Pixels along a side of what the model draws.
pub const SIDE: i64 = 64;

/// An object without its background.
pub struct Cutout {
    /// What it shows.
    pub text: String,
    /// Red, green and blue multiplied by alpha, then alpha: `[4, h, w]` uint8.
    pixels: Tensor,
}

/// Where in the picture an object is.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Its size as a share of the picture's.
    scale: f64,
    /// Its place, 0 to 1 from left to right and from top to bottom.
    place: (f64, f64),
    /// Mirrored.
    flip: bool,
}

impl View {
    /// Any view of a size within `scales`.
    pub fn draw(generator: &mut Generator, scales: (f64, f64)) -> Self {
        let draws = generator.uniform(&[4], 0.0, 1.0);
        let at = |i: i64| draws.double_value(&[i]);
        Self { scale: scales.0 + (scales.1 - scales.0) * at(0), place: (at(1), at(2)), flip: at(3) < 0.5 }
    }

    /// A view near the one that fills the picture: what is left open, a small model draws as a blur of all its cases.
    pub fn near_the_middle(generator: &mut Generator) -> Self {
        let draws = generator.uniform(&[3], 0.0, 1.0);
        let within = |i: i64, from: f64, to: f64| from + (to - from) * draws.double_value(&[i]);
        Self { scale: within(0, 0.85, 0.95), place: (within(1, 0.25, 0.75), within(2, 0.25, 0.75)), flip: false }
    }
}

#[derive(Deserialize)]
struct Line {
    file_name: String,
    text: String,
}

/// The cut-outs that the JSONL file `list` names, relative to its folder.
pub fn load(list: &Path) -> Result<Vec<Cutout>> {
    let folder = list.parent().unwrap_or(Path::new("."));
    let lines = std::fs::read_to_string(list).map_err(|error| Error::io("read", list, error))?;
    let parse = |line: &str| serde_json::from_str(line).map_err(|error| Error::file(list, error.to_string()));
    lines
        .lines()
        .map(|line| {
            let Line { file_name, text } = parse(line)?;
            Ok(Cutout { text, pixels: read_pixels(&folder.join(file_name))? })
        })
        .collect()
}

fn read_pixels(path: &Path) -> Result<Tensor> {
    let image = image::open(path).map_err(|error| Error::file(path, error.to_string()))?.to_rgba8();
    let (width, height) = (i64::from(image.width()), i64::from(image.height()));
    let pixels = Tensor::from_slice(image.as_raw()).view([height, width, 4]).permute([2, 0, 1]).to_kind(Kind::Float);
    let alpha = pixels.narrow(0, 3, 1);
    let rgb = pixels.narrow(0, 0, 3) * &alpha / 255.0;
    Ok(Tensor::cat(&[rgb, alpha], 0).round().to_kind(Kind::Uint8))
}

impl Cutout {
    /// The object on `background`, which is `[3, SIDE, SIDE]` or a colour `[3, 1, 1]`, of values from 0 to 1:
    /// `[3, SIDE, SIDE]` in [-1, 1], as networks take it.
    pub fn on(&self, background: &Tensor, view: View) -> Tensor {
        let side = (SIDE as f64 * view.scale).round().max(1.0) as i64;
        let pixels = self.pixels.to_kind(Kind::Float) / 255.0;
        let mut object = pixels.unsqueeze(0).internal_upsample_bilinear2d_aa([side, side], false, None, None);
        if view.flip {
            object = object.flip([3]);
        }
        // Padding below zero cuts off what is larger than the picture.
        let room = SIDE - side;
        let (left, top) = ((room as f64 * view.place.0) as i64, (room as f64 * view.place.1) as i64);
        let object = object.constant_pad_nd([left, room - left, top, room - top]).squeeze_dim(0);
        let (rgb, alpha) = (object.narrow(0, 0, 3), object.narrow(0, 3, 1));
        (rgb + background * (1.0 - alpha)) * 2.0 - 1.0
    }
}

/// A colour as a background: `[3, 1, 1]`.
pub fn plain([red, green, blue]: [u8; 3]) -> Tensor {
    Tensor::from_slice(&[red, green, blue]).to_kind(Kind::Float).view([3, 1, 1]) / 255.0
}
