//! Ranges of options, in words that a user can act on; `option` is an option as a sentence has it ([`crate::sentence`]).

use crate::error::{Error, Result};
use std::path::Path;

/// More places in a batch, or images, than any run has.
pub(crate) const MAX_PLACES: u64 = 1_000_000;
/// The largest alpha, weight or gamma: float32 overflows where such numbers meet.
pub(crate) const MAX_FACTOR: f64 = 1e6;
/// The largest rank: no projection of these models is as narrow.
pub const MAX_RANK: i64 = 4096;

pub(crate) fn refuse<T>(message: String) -> Result<T> {
    Err(Error::invalid(message))
}

/// A path that is to be read.
pub(crate) fn is_there(option: &str, path: &Path) -> Result<()> {
    match path.exists() {
        true => Ok(()),
        false => refuse(format!("{option} {}: no such file or folder", path.display())),
    }
}

/// A folder that is to be read.
pub(crate) fn is_folder(option: &str, path: &Path) -> Result<()> {
    match (path.is_dir(), path.exists()) {
        (true, _) => Ok(()),
        (false, true) => refuse(format!("{option} {} is a file; name a folder", path.display())),
        (false, false) => refuse(format!("{option} {}: no such folder", path.display())),
    }
}

/// A file that is to be read. What is there and is no file is refused where it is opened, with more to say of it.
pub(crate) fn is_file(option: &str, path: &Path) -> Result<()> {
    match (path.is_dir(), path.exists()) {
        (true, _) => refuse(format!("{option} {} is a folder; name a file", path.display())),
        (false, true) => Ok(()),
        (false, false) => refuse(format!("{option} {}: no such file", path.display())),
    }
}

/// A count from `least` to `most`.
pub(crate) fn counted(option: &str, number: u64, least: u64, most: u64) -> Result<()> {
    if number < least {
        return refuse(format!("{option} is {number}; it must be at least {least}"));
    }
    match number <= most {
        true => Ok(()),
        false => refuse(format!("{option} is {number}; it can be at most {most}")),
    }
}

/// A number from 0 to `most`.
pub(crate) fn in_range(option: &str, number: f64, most: f64) -> Result<()> {
    if !number.is_finite() || number < 0.0 {
        return refuse(format!("{option} is {number}; it must be a number of at least 0"));
    }
    match number <= most {
        true => Ok(()),
        false => refuse(format!("{option} is {number:e}; it can be at most {most}")),
    }
}

/// An adapter's rank.
pub(crate) fn rank(option: &str, rank: i64) -> Result<()> {
    match (1..=MAX_RANK).contains(&rank) {
        true => Ok(()),
        false => refuse(format!("{option} is {rank}; it must be 1 to {MAX_RANK}")),
    }
}

/// An adapter's alpha.
pub(crate) fn alpha(option: &str, alpha: f64) -> Result<()> {
    match alpha == 0.0 {
        true => {
            refuse(format!("{option} is 0, with which an adapter changes nothing; its rank, or twice it, is usual"))
        }
        false => in_range(option, alpha, MAX_FACTOR),
    }
}

/// An adapter's dropout.
pub(crate) fn dropout(option: &str, dropout: f64) -> Result<()> {
    match (0.0..1.0).contains(&dropout) {
        true => Ok(()),
        false => refuse(format!("{option} is {dropout}; it must be at least 0 and below 1")),
    }
}
