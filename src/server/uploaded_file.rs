//! Files that clients send: written to the data folder as they come, under names that the server makes.

use super::failure::{Answer, Failure};
use super::ids::new_id;
use super::App;
use crate::error::Error;
use axum::extract::multipart::{Field, MultipartError};
use axum::http::StatusCode;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

/// Bytes of one uploaded file: photos of phones are smaller, and zip files of photos can be this large.
pub const MAX_FILE: u64 = 2 << 30;

/// A file that goes when it is dropped.
pub struct Temporary(pub PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

/// Writes an uploaded file to the data folder as it comes; none where it is larger than `most`, when the rest of it is passed over.
pub async fn receive(app: &App, mut field: Field<'_>, most: u64) -> Answer<Option<Temporary>> {
    app.data.check_room()?;
    let path = app.data.temporary().join(new_id()?);
    let mut file = File::create_new(&path).map_err(|error| Error::io("create", &path, error))?;
    let temporary = Temporary(path.clone());
    let mut bytes = 0;
    let broken = |error: MultipartError| {
        Failure::new(error.status(), "the upload broke off, or is larger than the server takes at a time")
    };
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        bytes += chunk.len() as u64;
        if bytes <= most {
            file.write_all(&chunk).map_err(|error| match error.kind() {
                std::io::ErrorKind::StorageFull => Failure::new(
                    StatusCode::INSUFFICIENT_STORAGE,
                    "the disk of the data folder is full; make room on it and try again",
                ),
                _ => Failure::from(Error::io("write", &path, error)),
            })?;
        }
    }
    Ok((bytes <= most).then_some(temporary))
}

/// What a client calls a file, fit to be shown: the last part of a path, without control characters.
pub fn label(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let plain: String = last.chars().filter(|c| !c.is_control()).take(120).collect();
    match plain.trim().trim_matches('.') {
        "" => "file".to_owned(),
        plain => plain.to_owned(),
    }
}

/// The name without its ending.
pub fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// The part of a server-made file name that tells people which file it was.
pub fn readable(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let text: String = stem(name).chars().map(plain).take(40).collect();
    text.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_clients_are_labels_alone() {
        for (name, shown) in [
            ("../../etc/passwd", "passwd"),
            ("C:\\Users\\me\\dog.jpg", "dog.jpg"),
            ("..", "file"),
            ("", "file"),
            ("a\u{0}b\n.png", "ab.png"),
        ] {
            assert_eq!(label(name), shown);
        }
        assert_eq!(readable("My Dog (1).JPG"), "my-dog--1");
        assert_eq!(readable("../..//x.png"), "x");
    }
}
