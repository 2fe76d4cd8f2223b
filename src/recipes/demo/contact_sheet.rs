//! The picture that a demo ends in: photos, images before and after, the loss, the measures.

use crate::error::{Error, Result};
use crate::train::plot_font::text_style;
use image::imageops::{overlay, resize, FilterType};
use image::{Rgb, RgbImage};
use plotters::prelude::*;

const MARGIN: u32 = 24;
const GAP: u32 = 4;
/// Width of the labels left of the rows.
const LABELS: u32 = 84;
/// Side of an image in a row.
const CELL: u32 = 96;
const TITLE: i32 = 34;
const HEADING: i32 = 22;
const TEXT: i32 = 17;
/// Height of a table's line, and where its columns begin.
const LINE: u32 = 34;
const TABLE_COLUMNS: [u32; 4] = [0, 300, 374, 448];

/// What stands on a sheet, from top to bottom.
pub enum Block<'a> {
    /// The sheet's name.
    Title(&'a str),
    /// A line over what follows.
    Heading(&'a str),
    /// Lines over groups of images of the next rows, each group of so many images.
    GroupNames(Vec<&'a str>, u32),
    /// Images side by side behind a label, each `CELL` high times the number.
    Row(&'a str, &'a [RgbImage], u32),
    /// A picture as it is, and a table at its right: a name and three values a line.
    PictureAndTable(RgbImage, Vec<[String; 4]>),
}

impl Block<'_> {
    fn height(&self) -> u32 {
        match self {
            Block::Title(_) => TITLE as u32 + 16,
            Block::Heading(_) => HEADING as u32 + 22,
            Block::GroupNames(..) => TEXT as u32 + 6,
            Block::Row(_, _, scale) => CELL * scale + GAP,
            Block::PictureAndTable(picture, lines) => picture.height().max(lines.len() as u32 * LINE) + GAP,
        }
    }
}

/// The sheet, wide enough for rows of `columns` images.
pub fn draw(blocks: &[Block], columns: u32) -> Result<RgbImage> {
    let width = 2 * MARGIN + LABELS + columns * (CELL + GAP);
    let height = 2 * MARGIN + blocks.iter().map(Block::height).sum::<u32>();
    let mut sheet = RgbImage::from_pixel(width, height, Rgb([255; 3]));
    let mut texts: Vec<(String, u32, u32, i32)> = Vec::new();
    let mut top = MARGIN;
    for block in blocks {
        match block {
            Block::Title(text) => texts.push((text.to_string(), MARGIN, top, TITLE)),
            Block::Heading(text) => texts.push((text.to_string(), MARGIN, top + 14, HEADING)),
            Block::GroupNames(names, size) => {
                for (i, name) in (0u32..).zip(names) {
                    texts.push((name.to_string(), MARGIN + LABELS + i * size * (CELL + GAP), top, TEXT));
                }
            }
            Block::Row(label, images, scale) => {
                let side = CELL * scale;
                texts.push((label.to_string(), MARGIN, top + side / 2 - TEXT as u32 / 2, TEXT));
                for (i, image) in (0u32..).zip(*images) {
                    let cell = resize(image, side, side, FilterType::CatmullRom);
                    overlay(&mut sheet, &cell, i64::from(MARGIN + LABELS + i * (side + GAP)), i64::from(top));
                }
            }
            Block::PictureAndTable(picture, lines) => {
                overlay(&mut sheet, picture, i64::from(MARGIN), i64::from(top));
                let left = MARGIN + picture.width() + 24;
                for (i, line) in (0u32..).zip(lines) {
                    for (text, column) in line.iter().zip(TABLE_COLUMNS) {
                        texts.push((text.clone(), left + column, top + 12 + i * LINE, TEXT));
                    }
                }
            }
        }
        top += block.height();
    }
    write_texts(&mut sheet, &texts)
        .map_err(|cause| Error::invalid(format!("the contact sheet cannot be drawn: {cause}")))?;
    Ok(sheet)
}

fn write_texts(sheet: &mut RgbImage, texts: &[(String, u32, u32, i32)]) -> std::result::Result<(), String> {
    let size = sheet.dimensions();
    let area = BitMapBackend::with_buffer(sheet, size).into_drawing_area();
    for (text, left, top, size) in texts {
        let at = (*left as i32, *top as i32);
        area.draw_text(text, &text_style(*size)?, at).map_err(|error| error.to_string())?;
    }
    area.present().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_holds_its_images_and_its_text() {
        let blue = RgbImage::from_pixel(64, 64, Rgb([0, 0, 255]));
        let images = [blue.clone(), blue.clone()];
        let blocks = [
            Block::Title("a title"),
            Block::GroupNames(vec!["one", "two"], 1),
            Block::Row("row", &images, 1),
            Block::PictureAndTable(blue, vec![["a", "b", "c", "d"].map(str::to_owned)]),
        ];
        let sheet = draw(&blocks, 2).unwrap();
        let count = |of: fn(&[u8; 3]) -> bool| sheet.pixels().filter(|pixel| of(&pixel.0)).count() as u32;
        assert_eq!(count(|pixel| *pixel == [0, 0, 255]), 2 * CELL * CELL + 64 * 64);
        assert!(count(|pixel| pixel.iter().all(|&value| value < 128)) > 100, "there is text");
    }
}
