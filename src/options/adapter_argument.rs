//! What `--adapter` and `--lora` take.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// The largest scale of an adapter: beyond it there is nothing but overflow.
const MAX_SCALE: f64 = 1000.0;

/// `PATH` or `PATH=SCALE`, as `flag` has it. A path that exists is never taken apart; one that does not is refused.
pub fn path_and_scale(flag: &str, text: &str) -> Result<(PathBuf, f64)> {
    if Path::new(text).exists() {
        return Ok((PathBuf::from(text), 1.0));
    }
    let (path, scale) = match text.rsplit_once('=') {
        None => (text, 1.0),
        Some((path, scale)) => match scale.parse::<f64>() {
            Ok(scale) if scale.abs() <= MAX_SCALE => (path, scale),
            Ok(scale) if scale.is_finite() => {
                return Err(Error::invalid(format!(
                    "{flag} {text}: the scale {scale:e} of {path} is too large; it can be at most {MAX_SCALE}, and 1 is as trained"
                )))
            }
            _ => {
                return Err(Error::invalid(format!("{flag} {text}: the scale `{scale}` of {path} is not a number")))
            }
        },
    };
    match Path::new(path).exists() {
        true => Ok((PathBuf::from(path), scale)),
        false => Err(Error::invalid(format!("{flag} {path}: no such adapter"))),
    }
}
