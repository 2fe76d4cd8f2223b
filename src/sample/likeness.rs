//! How like a picture is to others, by colour and shape alone: nothing of the model that drew it judges it.

use image::{imageops, RgbImage};
use lab::Lab;
use serde::Serialize;
use std::borrow::Cow;

/// The plain backgrounds that the demo's model knows by name, as sRGB.
pub const BACKGROUNDS: [(&str, [u8; 3]); 10] = [
    ("red", [220, 40, 40]),
    ("orange", [245, 140, 30]),
    ("yellow", [250, 215, 50]),
    ("green", [60, 170, 70]),
    ("blue", [50, 100, 220]),
    ("purple", [135, 70, 190]),
    ("pink", [250, 150, 190]),
    ("white", [255, 255, 255]),
    ("gray", [135, 135, 135]),
    ("black", [15, 15, 15]),
];

/// Pixels of the border that the background is read from.
const RING: u32 = 3;
/// A pixel that differs from the background by more than this (CIE 1976 ΔE) belongs to the object.
const OF_THE_OBJECT: f32 = 20.0;
/// The object's box is divided into so many cells a side, where colours are compared …
const COLOUR_CELLS: usize = 4;
/// … and where shapes are.
const SHAPE_CELLS: usize = 16;

/// Pictures of any size are made so small for [`PhotoLikeness`] that neither side is longer: cells of the object's box are all that is
/// compared, and a photo has millions of pixels.
const LONGEST_SIDE: u32 = 128;
/// Share of the border that must be of the background's colour, …
const PLAIN: f64 = 0.9;
/// … and of the whole picture that the object must cover, for the one to be told from the other.
const VISIBLE: f64 = 0.01;

/// A picture of one object on a plain background, taken apart.
pub struct Appearance {
    background: Lab,
    /// Share of the border that is of the background's colour.
    plain: f64,
    /// Share of the picture that is not.
    visible: f64,
    colours: Vec<Cell>,
    shape: Vec<Cell>,
}

/// A cell of the object's box: how much of it the object covers, and with which colour.
#[derive(Clone, Copy)]
struct Cell {
    covered: f32,
    colour: Lab,
}

impl Appearance {
    /// Takes `image` apart: the object is what differs from the colour of the border.
    pub fn of(image: &RgbImage) -> Self {
        let pixels: Vec<Lab> = image.pixels().map(|pixel| Lab::from_rgb(&pixel.0)).collect();
        let (width, height) = image.dimensions();
        let on_border = |x: u32, y: u32| x.min(y).min(width - 1 - x).min(height - 1 - y) < RING;
        let places = || (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let border: Vec<Lab> =
            places().zip(&pixels).filter(|((x, y), _)| on_border(*x, *y)).map(|(_, &colour)| colour).collect();
        let background = Lab {
            l: median(border.iter().map(|colour| colour.l)),
            a: median(border.iter().map(|colour| colour.a)),
            b: median(border.iter().map(|colour| colour.b)),
        };
        let object: Vec<(u32, u32, Lab)> = places()
            .zip(&pixels)
            .filter(|(_, &colour)| difference(colour, background) > OF_THE_OBJECT)
            .map(|((x, y), &colour)| (x, y, colour))
            .collect();
        let (across, down) = (span(object.iter().map(|pixel| pixel.0)), span(object.iter().map(|pixel| pixel.1)));
        let share = |count: usize, of: usize| count as f64 / of.max(1) as f64;
        let plain = border.iter().filter(|&&colour| difference(colour, background) <= OF_THE_OBJECT).count();
        Self {
            background,
            plain: share(plain, border.len()),
            visible: share(object.len(), pixels.len()),
            colours: cells(&object, across, down, COLOUR_CELLS),
            shape: cells(&object, across, down, SHAPE_CELLS),
        }
    }

    /// Whether there is an object, and its background is so plain that the two are told apart: else what is measured of it says
    /// nothing of the object.
    pub fn is_of_one_object(&self) -> bool {
        self.plain >= PLAIN && self.visible >= VISIBLE
    }

    /// The name of the background in [`BACKGROUNDS`] that is nearest.
    pub fn background(&self) -> &'static str {
        let far = |rgb: &[u8; 3]| difference(self.background, Lab::from_rgb(rgb));
        BACKGROUNDS.iter().min_by(|a, b| far(&a.1).total_cmp(&far(&b.1))).map_or("", |(name, _)| name)
    }

    /// Mean difference in colour (CIE 1976 ΔE) of the parts that both objects cover, as they are or mirrored, whichever is
    /// less; 100, as black to white, where none is.
    pub fn colour_distance(&self, other: &Self) -> f64 {
        let between = |mirrored: bool| {
            let (mut sum, mut weight) = (0.0, 0.0);
            for (a, b) in pairs(&self.colours, &other.colours, COLOUR_CELLS, mirrored) {
                let shared = f64::from(a.covered.min(b.covered));
                sum += shared * f64::from(difference(a.colour, b.colour));
                weight += shared;
            }
            if weight > 0.0 {
                sum / weight
            } else {
                100.0
            }
        };
        between(false).min(between(true))
    }

    /// Intersection over union of both objects' shapes, each stretched to its box, as they are or mirrored: 1 where they
    /// are the same.
    pub fn shape_overlap(&self, other: &Self) -> f64 {
        let between = |mirrored: bool| {
            let (mut both, mut either) = (0.0, 0.0);
            for (a, b) in pairs(&self.shape, &other.shape, SHAPE_CELLS, mirrored) {
                both += f64::from(a.covered.min(b.covered));
                either += f64::from(a.covered.max(b.covered));
            }
            if either > 0.0 {
                both / either
            } else {
                0.0
            }
        };
        between(false).max(between(true))
    }
}

/// All of `images`, taken apart.
pub fn appearances(images: &[RgbImage]) -> Vec<Appearance> {
    images.iter().map(Appearance::of).collect()
}

fn difference(a: Lab, b: Lab) -> f32 {
    a.squared_distance(&b).sqrt()
}

fn median(values: impl Iterator<Item = f32>) -> f32 {
    let mut values: Vec<f32> = values.collect();
    values.sort_by(f32::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// From where to where most of an object lies: single pixels far off do not count.
fn span(values: impl Iterator<Item = u32>) -> (u32, u32) {
    let mut values: Vec<u32> = values.collect();
    values.sort_unstable();
    let at = |share: f64| values.get((values.len() as f64 * share) as usize).copied().unwrap_or(0);
    (at(0.01), at(0.99))
}

/// The object's pixels, gathered into `side` × `side` cells of its box.
fn cells(object: &[(u32, u32, Lab)], across: (u32, u32), down: (u32, u32), side: usize) -> Vec<Cell> {
    let place = |value: u32, (first, last): (u32, u32)| (value - first) as usize * side / (last - first + 1) as usize;
    let sizes = |span: (u32, u32)| {
        let mut sizes = vec![0.0f32; side];
        (span.0..=span.1).for_each(|value| sizes[place(value, span)] += 1.0);
        sizes
    };
    let mut sums = vec![(0.0f32, [0.0f32; 3]); side * side];
    let inside = |(x, y, _): &&(u32, u32, Lab)| (across.0..=across.1).contains(x) && (down.0..=down.1).contains(y);
    for &(x, y, colour) in object.iter().filter(inside) {
        let (count, sum) = &mut sums[place(y, down) * side + place(x, across)];
        *count += 1.0;
        sum.iter_mut().zip([colour.l, colour.a, colour.b]).for_each(|(sum, value)| *sum += value);
    }
    let (widths, heights) = (sizes(across), sizes(down));
    let cell = |(i, (count, sum)): (usize, (f32, [f32; 3]))| {
        let [l, a, b] = sum.map(|sum| sum / count.max(1.0));
        let pixels = widths[i % side] * heights[i / side];
        Cell { covered: count / pixels.max(1.0), colour: Lab { l, a, b } }
    };
    sums.into_iter().enumerate().map(cell).collect()
}

fn pairs<'a>(
    ours: &'a [Cell],
    theirs: &'a [Cell],
    side: usize,
    mirrored: bool,
) -> impl Iterator<Item = (Cell, Cell)> + 'a {
    let place = move |i: usize| if mirrored { i / side * side + side - 1 - i % side } else { i };
    (0..side * side).map(move |i| (ours[i], theirs[place(i)]))
}

/// How a picture stands between a subject and its class.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Distances {
    /// Colour distance to the nearest picture of the subject.
    pub colour_distance_to_subject: f64,
    /// Colour distance to the nearest picture of the class.
    pub colour_distance_to_class: f64,
    /// Shape overlap with the nearest picture of the subject.
    pub shape_overlap_with_subject: f64,
}

impl Distances {
    /// Measures `appearance` against pictures of the subject and of its class.
    pub fn of<'a>(
        appearance: &Appearance,
        subject: impl Iterator<Item = &'a Appearance> + Clone,
        class: impl Iterator<Item = &'a Appearance>,
    ) -> Self {
        Self {
            colour_distance_to_subject: nearest(appearance, subject.clone()),
            colour_distance_to_class: nearest(appearance, class),
            shape_overlap_with_subject: subject.map(|other| appearance.shape_overlap(other)).fold(0.0, f64::max),
        }
    }
}

fn nearest<'a>(appearance: &Appearance, among: impl Iterator<Item = &'a Appearance>) -> f64 {
    among.map(|other| appearance.colour_distance(other)).fold(f64::INFINITY, f64::min)
}

/// How a set of pictures stands between a subject and its class.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Likeness {
    /// Means over the pictures.
    #[serde(flatten)]
    pub mean: Distances,
    /// Mean of what the class is further away than the subject: above 0 where pictures are the subject's.
    pub margin: f64,
    /// Share of pictures that are nearer to the subject than to the class.
    pub nearer_to_subject: f64,
    /// Pictures that were measured.
    pub images: usize,
}

impl Likeness {
    /// Sums up what was measured of each picture.
    pub fn of(each: &[Distances]) -> Self {
        let mean = |value: &dyn Fn(&Distances) -> f64| each.iter().map(value).sum::<f64>() / each.len().max(1) as f64;
        let lead = |image: &Distances| image.colour_distance_to_class - image.colour_distance_to_subject;
        Self {
            mean: Distances {
                colour_distance_to_subject: mean(&|image| image.colour_distance_to_subject),
                colour_distance_to_class: mean(&|image| image.colour_distance_to_class),
                shape_overlap_with_subject: mean(&|image| image.shape_overlap_with_subject),
            },
            margin: mean(&lead),
            nearer_to_subject: mean(&|image| f64::from(u8::from(lead(image) > 0.0))),
            images: each.len(),
        }
    }
}

/// How like a picture is to photos of a subject, by colour and outline.
///
/// It says whether a picture has the subject's colours in the subject's places, and its outline. It does not know what is shown: another
/// object of the same colours and outline is as like. So it is for one object on a plain background, whatever the background's colour, and
/// there is none for anything else. The numbers of the photos among themselves, beside it, say how near a picture of this
/// subject can be expected to come.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PhotoLikeness {
    /// Colour distance ([`Appearance::colour_distance`], CIE 1976 ΔE) to the nearest photo: 0 is the same.
    pub colour_distance: f64,
    /// Shape overlap ([`Appearance::shape_overlap`]) with the nearest photo: 1 is the same.
    pub shape_overlap: f64,
    /// Mean colour distance of a photo to the nearest other one; none where there is no other.
    pub photos_colour_distance: Option<f64>,
    /// Mean shape overlap of a photo with the nearest other one.
    pub photos_shape_overlap: Option<f64>,
    /// Photos of one object on a plain background: the others are left out.
    pub photos: usize,
}

impl PhotoLikeness {
    /// That of `image` to `photos`, of any sizes; none where the image, or every photo, is not of one object on a plain background.
    pub fn of(image: &RgbImage, photos: &[RgbImage]) -> Option<Self> {
        let measurable = |image: &RgbImage| Some(Appearance::of(&reduced(image))).filter(Appearance::is_of_one_object);
        let (image, photos) = (measurable(image)?, photos.iter().filter_map(measurable).collect::<Vec<_>>());
        let shape = |one: &Appearance, among: &mut dyn Iterator<Item = &Appearance>| {
            among.map(|other| one.shape_overlap(other)).fold(0.0, f64::max)
        };
        let mean = |of: &dyn Fn(usize, &Appearance) -> f64| {
            let sum: f64 = photos.iter().enumerate().map(|(place, photo)| of(place, photo)).sum();
            (photos.len() > 1).then(|| sum / photos.len() as f64)
        };
        let others = |place: usize| photos[..place].iter().chain(&photos[place + 1..]);
        (!photos.is_empty()).then(|| Self {
            colour_distance: nearest(&image, photos.iter()),
            shape_overlap: shape(&image, &mut photos.iter()),
            photos_colour_distance: mean(&|place, photo| nearest(photo, others(place))),
            photos_shape_overlap: mean(&|place, photo| shape(photo, &mut others(place))),
            photos: photos.len(),
        })
    }
}

/// `image`, or a smaller one of the same shape.
fn reduced(image: &RgbImage) -> Cow<'_, RgbImage> {
    let (width, height) = image.dimensions();
    let longest = width.max(height);
    if longest <= LONGEST_SIDE {
        return Cow::Borrowed(image);
    }
    let side = |side: u32| (u64::from(side) * u64::from(LONGEST_SIDE) / u64::from(longest)).max(1) as u32;
    Cow::Owned(imageops::thumbnail(image, side(width), side(height)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    /// A box of two colours, left and right, on a background.
    fn picture(background: [u8; 3], left: [u8; 3], right: [u8; 3], at: (u32, u32), size: (u32, u32)) -> RgbImage {
        RgbImage::from_fn(64, 64, |x, y| {
            let inside = (at.0..at.0 + size.0).contains(&x) && (at.1..at.1 + size.1).contains(&y);
            match inside {
                true if x < at.0 + size.0 / 2 => Rgb(left),
                true => Rgb(right),
                false => Rgb(background),
            }
        })
    }

    const RED: [u8; 3] = [200, 30, 30];
    const BLUE: [u8; 3] = [30, 30, 200];

    #[test]
    fn backgrounds_are_told_by_their_names() {
        for (name, rgb) in BACKGROUNDS {
            let object = if name == "red" { BLUE } else { RED };
            let appearance = Appearance::of(&picture(rgb, object, object, (16, 16), (30, 30)));
            assert_eq!(appearance.background(), name);
        }
    }

    #[test]
    fn an_object_is_like_itself_wherever_it_is_and_mirrored() {
        let appearance = |at, size, left, right| Appearance::of(&picture([255; 3], left, right, at, size));
        let one = appearance((8, 8), (32, 32), RED, BLUE);
        for other in [appearance((20, 16), (40, 40), RED, BLUE), appearance((8, 8), (32, 32), BLUE, RED)] {
            assert!(one.colour_distance(&other) < 3.0, "{}", one.colour_distance(&other));
            assert!(one.shape_overlap(&other) > 0.95);
        }
        let green = appearance((8, 8), (32, 32), [30, 160, 30], [30, 160, 30]);
        assert!(one.colour_distance(&green) > 60.0);
    }

    #[test]
    fn shapes_differ_where_colours_do_not() {
        let full = Appearance::of(&picture([255; 3], RED, RED, (8, 8), (40, 40)));
        let corner = RgbImage::from_fn(64, 64, |x, y| match (8..48).contains(&x) && (8..48).contains(&y) && x <= y {
            true => Rgb(RED),
            false => Rgb([255; 3]),
        });
        let overlap = full.shape_overlap(&Appearance::of(&corner));
        assert!((0.45..0.6).contains(&overlap), "{overlap}");
    }

    #[test]
    fn an_empty_picture_is_like_nothing() {
        let empty = Appearance::of(&RgbImage::from_pixel(64, 64, Rgb([255; 3])));
        let box_ = Appearance::of(&picture([255; 3], RED, RED, (8, 8), (40, 40)));
        assert_eq!((empty.colour_distance(&box_), empty.shape_overlap(&box_)), (100.0, 0.0));
    }

    #[test]
    fn a_set_of_pictures_is_counted_to_the_nearer_side() {
        let appearance = |colour| Appearance::of(&picture([255; 3], colour, colour, (8, 8), (40, 40)));
        let (subject, class) = (appearance(RED), appearance(BLUE));
        let images = [appearance([210, 40, 40]), appearance([180, 20, 30]), appearance([40, 40, 190])];
        let each = images.map(|appearance| Distances::of(&appearance, [&subject].into_iter(), [&class].into_iter()));
        let likeness = Likeness::of(&each);
        assert!((likeness.nearer_to_subject - 2.0 / 3.0).abs() < 1e-9);
        assert!(likeness.margin > 0.0 && likeness.mean.shape_overlap_with_subject > 0.9);
    }

    #[test]
    fn a_picture_is_measured_against_photos_of_any_size_and_background() {
        let photos = [
            picture([255; 3], RED, BLUE, (8, 8), (32, 32)),
            imageops::resize(
                &picture([60, 170, 70], RED, BLUE, (16, 8), (36, 36)),
                640,
                640,
                imageops::FilterType::Nearest,
            ),
        ];
        let like = PhotoLikeness::of(&picture([250, 215, 50], RED, BLUE, (20, 20), (30, 30)), &photos).unwrap();
        let unlike =
            PhotoLikeness::of(&picture([250, 215, 50], BLUE, [30, 160, 30], (4, 20), (56, 14)), &photos).unwrap();
        assert!(like.colour_distance < 6.0 && like.shape_overlap > 0.9, "{like:?}");
        assert!(unlike.colour_distance > 60.0 && unlike.photos == 2, "{unlike:?}");
        assert!(like.photos_colour_distance.unwrap() < 6.0 && like.photos_shape_overlap.unwrap() > 0.9);
        let alone = PhotoLikeness::of(&photos[0], &photos[..1]).unwrap();
        assert_eq!((alone.colour_distance, alone.shape_overlap, alone.photos_shape_overlap), (0.0, 1.0, None));
    }

    #[test]
    fn what_has_no_plain_background_is_not_measured() {
        let plain = picture([255; 3], RED, BLUE, (8, 8), (32, 32));
        let busy = RgbImage::from_fn(64, 64, |x, y| Rgb([(x * 37 + y * 91) as u8, (x * 53) as u8, (y * 29) as u8]));
        let empty = RgbImage::from_pixel(64, 64, Rgb([255; 3]));
        for picture in [&busy, &empty, &RgbImage::new(0, 0)] {
            assert_eq!(PhotoLikeness::of(picture, std::slice::from_ref(&plain)), None);
        }
        let measured = PhotoLikeness::of(&plain, &[busy, plain.clone(), empty]).unwrap();
        assert_eq!((measured.photos, measured.colour_distance), (1, 0.0));
    }

    #[test]
    fn photos_of_one_subject_are_like_each_other() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/subject");
        let photo = |number: u32| image::open(folder.join(format!("{number}.png"))).unwrap().to_rgb8();
        let photos: Vec<RgbImage> = (1..=4).map(photo).collect();
        let likeness = PhotoLikeness::of(&photos[0], &photos[1..]).unwrap();
        assert!(
            likeness.photos == 3 && likeness.colour_distance < 20.0 && likeness.shape_overlap > 0.7,
            "{likeness:?}"
        );
    }
}
