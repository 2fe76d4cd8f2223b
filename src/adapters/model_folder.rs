//! The folder that a merged model is written to: whole or not at all, and in place of another model only where that is asked for.

use crate::error::{Error, Result};
use crate::whole_file::{beside, TEMPORARY};
use std::fs;
use std::path::{Path, PathBuf};

/// Where a folder waits while its successor takes its name.
const REPLACED: &str = ".lorabooth-old";
/// Files that say that a folder is a model's.
const OF_A_MODEL: [&str; 2] = ["model_index.json", "config.json"];

/// What to do with what is in the folder already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Stop with an error that names the choices.
    Refuse,
    /// Replace a model: its files go, whatever else is there stays. What is no model is refused.
    Replace,
}

impl Existing {
    /// What `--overwrite` asks for.
    pub fn of(overwrite: bool) -> Self {
        if overwrite {
            Self::Replace
        } else {
            Self::Refuse
        }
    }
}

/// Refuses the folder `out` where it may not be written to, before any time is spent.
pub(crate) fn check(out: &Path, existing: Existing) -> Result<()> {
    out.file_name().ok_or_else(|| Error::file(out, "is not a folder name"))?;
    // A process that was killed between taking the name from the old one and giving it to the new one.
    if fs::symlink_metadata(out).is_err() && beside(out, REPLACED).is_dir() {
        fs::rename(beside(out, REPLACED), out).map_err(|error| Error::io("restore", out, error))?;
    }
    let is_file = fs::symlink_metadata(out).is_ok_and(|metadata| !metadata.is_dir()) && !out.is_dir();
    let taken = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    match existing {
        Existing::Refuse if taken || is_file => Err(Error::is_there(out, "⟨output_dir⟩")),
        Existing::Replace if is_file || taken && !OF_A_MODEL.iter().any(|name| out.join(name).exists()) => {
            Err(Error::file(out, "is not a model, so ⟨overwrite⟩ does not replace it; choose another ⟨output_dir⟩"))
        }
        _ => Ok(()),
    }
}

/// The folder `out` filled by `write`: whole or not at all.
pub(crate) fn into_folder(out: &Path, existing: Existing, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    check(out, existing)?;
    // A link stays, and the folder that it names is replaced.
    let place = out.canonicalize().unwrap_or_else(|_| out.to_owned());
    let (partial, replaced) = (beside(&place, TEMPORARY), beside(&place, REPLACED));
    // Of a process that was killed.
    _ = fs::remove_dir_all(&partial);
    let failed = |error| Error::io("write", out, error);
    let done = fs::create_dir_all(&partial).map_err(|error| Error::io("create", out, error));
    let done = done.and_then(|()| write(&partial)).and_then(|()| {
        // An empty folder would stand in the way on some systems.
        _ = fs::remove_dir(&place);
        if place.exists() {
            fs::rename(&place, &replaced).map_err(failed)?;
        }
        fs::rename(&partial, &place).map_err(failed)?;
        match replaced.exists() {
            true => keep_others(&replaced, &place).and_then(|()| fs::remove_dir_all(&replaced).map_err(failed)),
            false => Ok(()),
        }
    });
    // An error names the place that was asked for, not the one beside it.
    done.map_err(|error| {
        if replaced.exists() && !place.exists() {
            _ = fs::rename(&replaced, &place);
        }
        _ = fs::remove_dir_all(&partial);
        match error {
            Error::Io { action, path, source } => match path.strip_prefix(&partial) {
                Ok(inside) => Error::io(action, out.join(inside), source),
                Err(_) => Error::io(action, path, source),
            },
            other => other,
        }
    })
}

/// Moves from the folder `old` into `new` what is of no model: weights of the one that goes would be taken for the new one's.
fn keep_others(old: &Path, new: &Path) -> Result<()> {
    let entries = fs::read_dir(old).map_err(|error| Error::io("read", old, error))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let Some(name) = path.file_name() else { continue };
        let place = new.join(name);
        match (place.is_dir() && path.is_dir(), fs::symlink_metadata(&place).is_ok()) {
            (true, _) => keep_others(&path, &place)?,
            (false, true) => {}
            (false, false) if is_of_weights(&name.to_string_lossy()) => {}
            (false, false) => fs::rename(&path, &place).map_err(|error| Error::io("move", &path, error))?,
        }
    }
    Ok(())
}

/// Whether the file `name` is what tools call a model's weights, or their index.
fn is_of_weights(name: &str) -> bool {
    let stems = ["model", "pytorch_model", "diffusion_pytorch_model", "tf_model", "flax_model"];
    let ends = ["safetensors", "bin", "msgpack", "h5", "json"];
    let (stem, rest) = name.split_at(name.find(['.', '-']).unwrap_or(name.len()));
    stems.contains(&stem) && name != "model_index.json" && ends.iter().any(|end| rest.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn write(partial: &Path) -> Result<()> {
        touch(&partial.join("config.json"), "new");
        touch(&partial.join("unet/model.safetensors"), "new");
        Ok(())
    }

    #[test]
    fn a_model_is_replaced_only_when_asked_to_and_what_is_beside_it_stays() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("merged");
        for name in ["config.json", "unet/model.safetensors"] {
            touch(&out.join(name), "old");
        }
        let theirs = ["notes.txt", "my-lora.safetensors", "unet/mine.json"];
        let stale = ["unet/model-00001-of-00002.safetensors", "unet/model.safetensors.index.json", "pytorch_model.bin"];
        theirs.iter().chain(&stale).for_each(|name| touch(&out.join(name), "theirs"));
        let message = into_folder(&out, Existing::Refuse, write).unwrap_err().to_string();
        assert!(message.contains("⟨overwrite⟩") && message.contains("merged"), "{message}");
        assert_eq!(fs::read_to_string(out.join("config.json")).unwrap(), "old");
        into_folder(&out, Existing::Replace, |_| Err(Error::invalid("x"))).unwrap_err();
        assert_eq!(fs::read_to_string(out.join("config.json")).unwrap(), "old");
        into_folder(&out, Existing::Replace, write).unwrap();
        assert_eq!(fs::read_to_string(out.join("unet/model.safetensors")).unwrap(), "new");
        theirs.iter().for_each(|name| assert_eq!(fs::read_to_string(out.join(name)).unwrap(), "theirs", "{name}"));
        stale.iter().for_each(|name| assert!(!out.join(name).exists(), "{name}"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        // Killed in between.
        fs::rename(&out, folder.path().join(".merged.lorabooth-old")).unwrap();
        into_folder(&out, Existing::Refuse, write).unwrap_err();
        assert_eq!(fs::read_to_string(out.join("notes.txt")).unwrap(), "theirs");
    }

    #[test]
    fn what_is_no_model_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        touch(&folder.path().join("photos/dog.jpg"), "mine");
        touch(&folder.path().join("file"), "mine");
        for name in ["photos", "file"] {
            for existing in [Existing::Refuse, Existing::Replace] {
                let message = into_folder(&folder.path().join(name), existing, write).unwrap_err().to_string();
                assert!(message.contains("⟨output_dir⟩"), "{message}");
            }
        }
        assert_eq!(fs::read_to_string(folder.path().join("photos/dog.jpg")).unwrap(), "mine");
        assert_eq!(fs::read_to_string(folder.path().join("file")).unwrap(), "mine");
        for empty in ["new", "deep/er"] {
            into_folder(&folder.path().join(empty), Existing::Refuse, write).unwrap();
        }
    }
}
