//! Pictures side by side in one PNG.

use image::imageops::{overlay, resize, FilterType};
use image::{Rgb, RgbImage};
use lorabooth::error::{Error, Result};
use lorabooth::whole_file::write_png;
use std::path::Path;

const GAP: u32 = 4;

/// Writes `images`, all of one size, in rows of `columns`, at twice their size.
pub fn write(path: &Path, images: &[RgbImage], columns: u32) -> Result<()> {
    let Some(first) = images.first() else { return Err(Error::invalid("a grid needs images")) };
    let (width, height) = (first.width() * 2, first.height() * 2);
    let rows = (images.len() as u32).div_ceil(columns);
    let mut grid =
        RgbImage::from_pixel(columns * (width + GAP) + GAP, rows * (height + GAP) + GAP, Rgb([255, 255, 255]));
    for (i, image) in (0u32..).zip(images) {
        let (x, y) = (GAP + i % columns * (width + GAP), GAP + i / columns * (height + GAP));
        overlay(&mut grid, &resize(image, width, height, FilterType::Nearest), i64::from(x), i64::from(y));
    }
    write_png(path, &grid)
}
