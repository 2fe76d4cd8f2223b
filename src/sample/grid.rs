//! Several images side by side in one.

use image::{imageops, Rgb, RgbImage};

/// Pixels between two images.
const GAP: u32 = 4;
const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);

/// `images` row by row, about as many columns as rows; each place is as large as the largest of them.
pub fn grid(images: &[RgbImage]) -> RgbImage {
    let count = images.len() as u32;
    let columns = (1..=count).find(|columns| columns * columns >= count).unwrap_or(1);
    let rows = count.div_ceil(columns);
    let width = images.iter().map(RgbImage::width).max().unwrap_or(0);
    let height = images.iter().map(RgbImage::height).max().unwrap_or(0);
    let side = |places: u32, size: u32| places * size + places.saturating_sub(1) * GAP;
    let mut all = RgbImage::from_pixel(side(columns, width), side(rows, height), BACKGROUND);
    for (place, image) in (0..).zip(images) {
        let (x, y) = (place % columns * (width + GAP), place / columns * (height + GAP));
        imageops::replace(&mut all, image, x.into(), y.into());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_image_lies_in_its_place() {
        let images: Vec<RgbImage> = (1..=5).map(|shade| RgbImage::from_pixel(8, 6, Rgb([shade; 3]))).collect();
        let all = grid(&images);
        assert_eq!(all.dimensions(), (3 * 8 + 2 * GAP, 2 * 6 + GAP));
        let shades =
            [(0, 0), (12, 0), (24, 0), (0, 10), (12, 10), (24, 10), (9, 0)].map(|(x, y)| all.get_pixel(x, y)[0]);
        assert_eq!(shades, [1, 2, 3, 4, 5, 255, 255]);
    }
}
