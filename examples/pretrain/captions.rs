//! What is said of a picture: the object by name, the background by colour.

use lorabooth::libtorch::random::Generator;
/// The backgrounds, as sRGB.
pub use lorabooth::sample::likeness::BACKGROUNDS as COLOURS;

/// The colour that a concept is never shown on in training.
pub fn held_out_colour(concept: usize) -> usize {
    (concept * 7 + 3) % COLOURS.len()
}

/// The whole caption.
pub fn full(text: &str, colour: usize) -> String {
    format!("a photo of {text} on a{} {} background", n_before(COLOURS[colour].0), COLOURS[colour].0)
}

/// One of the captions of a picture; one in ten is empty, for classifier-free guidance.
pub fn draw(generator: &mut Generator, text: &str, colour: usize) -> String {
    let name = COLOURS[colour].0;
    let bare = text.split_once(' ').filter(|(first, _)| matches!(*first, "a" | "an")).map_or(text, |(_, noun)| noun);
    match generator.randint(0, 20, &[1]).int64_value(&[0]) {
        0 | 1 => String::new(),
        2 | 3 => format!("{text} on a{} {name} background", n_before(name)),
        4 | 5 => format!("a photo of {text}"),
        6 => text.to_owned(),
        7 => format!("{bare}, {name} background"),
        _ => full(text, colour),
    }
}

fn n_before(word: &str) -> &'static str {
    match word.starts_with(['a', 'e', 'i', 'o', 'u']) {
        true => "n",
        false => "",
    }
}
