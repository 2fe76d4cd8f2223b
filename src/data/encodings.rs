//! What frozen networks make of photos and prompts, kept on the disk: under a name that says all that it was made of, so that any
//! run finds it that would make the same.

use crate::error::{Error, Result};
use crate::plain_text::hex;
use crate::weights::{tensor_file, MappedFile};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// All that something is made of, as one number.
#[derive(Debug, Clone)]
pub struct Contents(Sha256);

impl Contents {
    /// Nothing yet; `kind` is what will be made.
    pub fn of(kind: &str) -> Self {
        Self(Sha256::new()).and(kind.as_bytes())
    }

    /// With `bytes`, whose length counts.
    pub fn and(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// With `text`.
    pub fn and_text(self, text: &str) -> Self {
        self.and(text.as_bytes())
    }

    fn name(self) -> String {
        hex(&self.0.finalize())
    }
}

/// A folder of encodings; none: nothing is kept.
#[derive(Debug)]
pub struct Encodings {
    folder: Option<PathBuf>,
}

impl Encodings {
    /// Those in `folder`, which is made.
    pub fn in_folder(folder: Option<&Path>) -> Result<Self> {
        if let Some(folder) = folder {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        }
        Ok(Self { folder: folder.map(Path::to_owned) })
    }

    /// Whether anything is kept.
    pub fn are_kept(&self) -> bool {
        self.folder.is_some()
    }

    /// The tensors that were made of `contents`, where they are known; else those that `make` makes, which are kept. One that cannot
    /// be read is made again.
    pub fn get_or_make(
        &self,
        contents: Contents,
        make: impl FnOnce() -> Result<BTreeMap<String, Tensor>>,
    ) -> Result<BTreeMap<String, Tensor>> {
        let Some(folder) = &self.folder else { return make() };
        let path = folder.join(format!("{}.safetensors", contents.name()));
        if let Some(known) = read(&path) {
            return Ok(known);
        }
        let made = make()?;
        tensor_file::save(&path, &made, &BTreeMap::new())?;
        Ok(made)
    }
}

/// The tensors of the file `path`, copied, as another run may replace it.
fn read(path: &Path) -> Option<BTreeMap<String, Tensor>> {
    let file = path.is_file().then(|| MappedFile::open(path).ok()).flatten()?;
    let tensor = |name: String| Some((name.clone(), file.tensor(&name).ok()?.copy()));
    file.names().into_iter().map(tensor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_of_the_same_is_made_once_and_what_is_broken_again() {
        let folder = tempfile::tempdir().unwrap();
        let encodings = Encodings::in_folder(Some(folder.path())).unwrap();
        let mut made = 0;
        let mut get = |of: &str| {
            let mut make = || {
                made += 1;
                Ok(BTreeMap::from([("x".to_owned(), Tensor::from_slice(&[1f32, 2.]))]))
            };
            let found = encodings.get_or_make(Contents::of("test").and_text(of), &mut make).unwrap();
            assert_eq!(Vec::<f32>::try_from(&found["x"]).unwrap(), [1., 2.]);
            made
        };
        assert_eq!([get("a"), get("a"), get("b"), get("a")], [1, 1, 2, 2]);
        for file in std::fs::read_dir(folder.path()).unwrap() {
            std::fs::write(file.unwrap().path(), b"broken").unwrap();
        }
        assert_eq!([get("a"), get("a")], [3, 3]);
        // Two texts are not one.
        let name = |texts: [&str; 2]| Contents::of("test").and_text(texts[0]).and_text(texts[1]).name();
        assert_ne!(name(["ab", "c"]), name(["a", "bc"]));
    }
}
