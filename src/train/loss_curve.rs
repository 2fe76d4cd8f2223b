//! `loss.png`: the loss of each step, its running mean that an eye can follow, and the loss on held-out records.

use super::metrics::StepMetrics;
use super::plot_font::{text_style, INK};
use crate::error::{Error, Result};
use crate::whole_file::write_png;
use image::RgbImage;
use plotters::prelude::*;
use std::path::Path;

/// Width and height of `loss.png`.
const SIZE: (u32, u32) = (960, 540);
const RAW: RGBColor = RGBColor(176, 196, 222);
const SMOOTH: RGBColor = RGBColor(23, 78, 145);
const HELD_OUT: RGBColor = RGBColor(196, 89, 17);

/// Draws the losses of `lines`, and those of evaluations by their step, into the PNG `path`, written whole or not at all. Steps
/// without a number are left out; with fewer than two there is nothing to draw, and nothing is written.
pub fn draw(path: &Path, lines: &[StepMetrics], evaluations: &[(u64, f64)]) -> Result<()> {
    let curve = picture(lines, evaluations, SIZE).map_err(|cause| Error::file(path, cause.to_string()))?;
    curve.map_or(Ok(()), |curve| write_png(path, &curve))
}

/// The picture of the losses of `lines` and `evaluations`, `size` pixels wide and high; none of fewer than two.
pub fn picture(lines: &[StepMetrics], evaluations: &[(u64, f64)], size: (u32, u32)) -> Result<Option<RgbImage>> {
    let raw: Vec<(f64, f64)> =
        lines.iter().filter_map(|line| Some((line.step as f64, line.loss.filter(|loss| loss.is_finite())?))).collect();
    if raw.len() < 2 {
        return Ok(None);
    }
    let held_out = evaluations.iter().filter(|(_, loss)| loss.is_finite()).map(|&(step, loss)| (step as f64, loss));
    let held_out: Vec<(f64, f64)> = held_out.collect();
    let mut pixels = vec![0u8; (size.0 * size.1 * 3) as usize];
    plot(&mut pixels, size, &raw, &held_out)
        .map_err(|cause| Error::invalid(format!("the loss curve cannot be drawn: {cause}")))?;
    Ok(RgbImage::from_raw(size.0, size.1, pixels))
}

fn plot(
    pixels: &mut [u8],
    size: (u32, u32),
    raw: &[(f64, f64)],
    held_out: &[(f64, f64)],
) -> std::result::Result<(), String> {
    let (of_labels, of_axes) = (text_style(17)?, text_style(20)?);
    let smooth = smoothed(raw);
    let (low, high) = value_range(raw, &[&smooth, held_out].concat());
    let first = held_out.first().map_or(raw[0].0, |point| point.0.min(raw[0].0));
    let area = BitMapBackend::with_buffer(pixels, size).into_drawing_area();
    let draw = || -> std::result::Result<(), Box<dyn std::error::Error>> {
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(16)
            .margin_right(28)
            .x_label_area_size(48)
            .y_label_area_size(72)
            .build_cartesian_2d(first..raw[raw.len() - 1].0.max(raw[0].0 + 1.0), low..high)?;
        chart
            .configure_mesh()
            .x_desc("step")
            .y_desc("loss")
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&|loss| label(*loss, high - low))
            .x_labels(raw.len().min(10))
            .y_labels(8)
            .light_line_style(WHITE)
            .bold_line_style(RGBColor(232, 232, 232))
            .axis_style(INK)
            .label_style(of_labels.clone())
            .axis_desc_style(of_axes)
            .draw()?;
        chart.draw_series(LineSeries::new(raw.iter().copied(), RAW))?.label("each step").legend(|at| key(at, RAW));
        chart
            .draw_series(LineSeries::new(smooth.iter().copied(), SMOOTH.stroke_width(3)))?
            .label("smoothed")
            .legend(|at| key(at, SMOOTH));
        if !held_out.is_empty() {
            chart
                .draw_series(LineSeries::new(held_out.iter().copied(), HELD_OUT.filled()).point_size(4))?
                .label("held out")
                .legend(|at| key(at, HELD_OUT));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .label_font(of_labels)
            .draw()?;
        area.present()?;
        Ok(())
    };
    draw().map_err(|error| error.to_string())
}

fn key((x, y): (i32, i32), color: RGBColor) -> PathElement<(i32, i32)> {
    PathElement::new([(x, y), (x + 22, y)], color.stroke_width(3))
}

/// As many decimals as tell two labels apart.
fn label(value: f64, range: f64) -> String {
    let decimals = (1.0 - range.max(1e-12).log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{value:.decimals$}")
}

/// Exponential moving average over about a twentieth of the run, corrected for its start as Adam's moments are.
fn smoothed(raw: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let decay = 1.0 - 1.0 / (raw.len() as f64 / 20.0).max(2.0);
    let (mut mean, mut weight) = (0.0, 0.0);
    let average = |&(step, loss): &(f64, f64)| {
        mean = decay * mean + (1.0 - decay) * loss;
        weight = decay * weight + (1.0 - decay);
        (step, mean / weight)
    };
    raw.iter().map(average).collect()
}

/// From 0 where losses come near it to what 99 in 100 stay below, so that one outlier does not flatten the rest; all of `others` are in.
fn value_range(raw: &[(f64, f64)], others: &[(f64, f64)]) -> (f64, f64) {
    let mut losses: Vec<f64> = raw.iter().map(|point| point.1).collect();
    losses.sort_by(f64::total_cmp);
    let high = losses[((losses.len() - 1) * 99).div_ceil(100)];
    let high = others.iter().fold(high, |high, point| high.max(point.1));
    let least = others.iter().fold(losses[0], |low, point| low.min(point.1));
    let low = if least < 0.5 * high { least.min(0.0) } else { least };
    let margin = 0.05 * (high - low).max(1e-9).max(1e-6 * high.abs());
    (if low == 0.0 { 0.0 } else { low - margin }, high + margin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(losses: impl Iterator<Item = f64>) -> Vec<StepMetrics> {
        let line = |(i, loss): (usize, f64)| StepMetrics {
            step: i as u64 + 1,
            epoch: 0,
            loss: Some(loss),
            parts: Default::default(),
            lr: 1e-4,
            grad_norm: None,
            step_s: 1.,
            peak_mib: 1.,
        };
        losses.enumerate().map(line).collect()
    }

    #[test]
    fn a_curve_is_a_picture_with_all_lines_in_it() {
        let noise = |i: i32| ((f64::from(i) * 12.9898).sin() * 43758.5453).fract().abs();
        let losses = (0..400).map(|i| 0.05 + 0.25 * (-f64::from(i) / 120.).exp() + 0.15 * noise(i));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.png");
        let held_out = [(0, 0.45), (100, 0.33), (200, 0.28), (300, f64::NAN), (400, 0.3)];
        draw(&path, &lines(losses), &held_out).unwrap();
        let picture = image::open(&path).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), SIZE);
        let count = |color: RGBColor| picture.pixels().filter(|pixel| pixel.0 == [color.0, color.1, color.2]).count();
        assert!(count(RAW) > 500 && count(SMOOTH) > 500 && count(HELD_OUT) > 200);
        if let Ok(copy) = std::env::var("LORABOOTH_KEEP_PICTURES") {
            std::fs::copy(&path, Path::new(&copy).join("loss.png")).unwrap();
        }
    }

    #[test]
    fn odd_losses_are_drawn_or_left_out_but_never_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.png");
        draw(&path, &lines([0.3].into_iter()), &[]).unwrap();
        draw(&path, &lines([f64::NAN, f64::INFINITY, 0.2].into_iter()), &[(0, 1.0)]).unwrap();
        assert!(!path.exists());
        for losses in [[0., 0., 0.], [0.3, 0.3, 0.3], [1e-30, 1e30, 2.], [-1., -2., f64::NAN]] {
            draw(&path, &lines(losses.into_iter()), &[(2, losses[0])]).unwrap();
        }
    }
}
