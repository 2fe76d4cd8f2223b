//! What `--adapter` and `--lora` take.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// The largest strength of an adapter: beyond it there is nothing but overflow.
const MAX_STRENGTH: f64 = 1000.0;

/// `PATH` or `PATH=SCALE`. A path that exists is never taken apart.
pub fn path_and_scale(text: &str) -> Result<(PathBuf, f64)> {
    if Path::new(text).exists() {
        return Ok((PathBuf::from(text), 1.0));
    }
    match text.rsplit_once('=') {
        None => Ok((PathBuf::from(text), 1.0)),
        Some((path, scale)) => match scale.parse::<f64>() {
            Ok(scale) if scale.abs() <= MAX_STRENGTH => Ok((PathBuf::from(path), scale)),
            Ok(scale) if scale.is_finite() => Err(Error::invalid(format!(
                "the strength {scale:e} of {path} is too large; it can be at most {MAX_STRENGTH}, and 1 is as trained"
            ))),
            _ => Err(Error::invalid(format!("the strength `{scale}` of {path} is no number"))),
        },
    }
}
