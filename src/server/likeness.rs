//! How like a training's samples are to its photos, by the demo's measure of colour and shape: the loss alone misleads.

use crate::data::photo_decoding::decode;
use crate::data::photo_files::PhotoFiles;
use crate::recipes::demo::likeness::Appearance;
use image::imageops::{self, FilterType};
use image::RgbImage;
use serde_json::{json, Value};
use std::path::Path;

/// Height and width at which pictures are compared, in pixels.
const SIDE: u32 = 96;
/// Photos that samples are compared with.
const MOST: usize = 100;

/// The photos of a training, taken apart.
pub struct Subject(Vec<Appearance>);

impl Subject {
    /// Those in `folder`; what is no photo is left out.
    pub fn of(folder: &Path) -> Self {
        let files = PhotoFiles::list(folder, &[]).map(|listed| listed.files).unwrap_or_default();
        let appearance = |path: &Path| decode(path).ok().map(|image| Appearance::of(&square(&image)));
        Self(files.iter().take(MOST).filter_map(|file| appearance(&file.path)).collect())
    }

    /// How like the picture at `path` is to them: the colour distance (CIE 1976 ΔE) to the photo that is nearest, and the overlap of its
    /// shape (intersection over union) with the photo whose shape is nearest. Null where either cannot be read.
    pub fn measure(&self, path: &Path) -> Value {
        let Ok(image) = decode(path) else { return Value::Null };
        let sample = Appearance::of(&square(&image));
        let colour = self.0.iter().map(|photo| sample.colour_distance(photo)).fold(f64::INFINITY, f64::min);
        let shape = self.0.iter().map(|photo| sample.shape_overlap(photo)).fold(0.0, f64::max);
        match colour.is_finite() {
            true => json!({
                "colour_distance": colour, "shape_overlap": shape,
                "sentence": format!(
                    "by colour and shape alone: {colour:.0} off the nearest photo's colours (0 is the same, 100 as black to white), {:.0} % \
                     of its outline",
                    shape * 100.0
                ),
            }),
            false => Value::Null,
        }
    }
}

/// The middle of `image`, small.
fn square(image: &RgbImage) -> RgbImage {
    let side = image.width().min(image.height());
    let (x, y) = ((image.width() - side) / 2, (image.height() - side) / 2);
    let middle = imageops::crop_imm(image, x, y, side, side).to_image();
    imageops::resize(&middle, SIDE, SIDE, FilterType::Triangle)
}
