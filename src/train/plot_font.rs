//! A free font inside the binary for the text in pictures: fonts of the system may be absent.

use plotters::prelude::*;
use plotters::style::register_font;
use std::sync::OnceLock;

const NAME: &str = "lorabooth";

/// The colour of text.
pub const INK: RGBColor = RGBColor(60, 60, 60);

/// Text of `size` pixels, or that the font cannot be read.
pub fn text_style(size: i32) -> Result<TextStyle<'static>, String> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let register = || register_font(NAME, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT).is_ok();
    match *REGISTERED.get_or_init(register) {
        true => Ok((NAME, size).into_font().color(&INK)),
        false => Err("its font cannot be read".to_owned()),
    }
}
