//! How values are written in a run's record: for people to read, and as the command line takes them.

use clap::ValueEnum;
use serde::Serializer;
use std::path::{Path, PathBuf};

/// A path as text, be it no UTF-8: the options are written for people to read.
pub(crate) fn path_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// [`path_text`], or null.
pub(crate) fn optional_path_text<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => path_text(path, serializer),
        None => serializer.serialize_none(),
    }
}

/// A choice by the name that the command line has for it.
pub(crate) fn name_of<S: Serializer>(choice: &impl ValueEnum, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&name(choice))
}

/// [`name_of`], or null.
pub(crate) fn optional_name_of<S: Serializer>(
    choice: &Option<impl ValueEnum>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match choice {
        Some(choice) => name_of(choice, serializer),
        None => serializer.serialize_none(),
    }
}

/// The name that the command line has for a choice; empty for one that it does not take.
pub fn name(choice: &impl ValueEnum) -> String {
    choice.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
