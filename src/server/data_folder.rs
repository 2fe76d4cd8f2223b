//! The folder that a server keeps everything in, and that no second server may use.

use super::failure::{Answer, Failure};
use crate::error::{Error, Result};
use crate::train::folder_lock::FolderLock;
use crate::whole_file::write_json;
use axum::http::StatusCode;
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// Says which server has the folder.
const SERVER: &str = "server.json";
/// Bytes of disk that a job or an upload must find: checkpoints of an adapter, pictures, logs.
const LEAST_FREE: u64 = 256 << 20;
/// Bytes of a file that is given up where the disk is full, so that the database can write down what ended and what is deleted.
const RESERVE: u64 = 1 << 20;

/// The folder, locked for this process.
pub struct DataFolder {
    root: PathBuf,
    _lock: FolderLock,
}

impl DataFolder {
    /// Takes the folder `root`, which is made where it is not there. One that another server has is refused with where that is.
    pub fn open(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root).map_err(|error| Error::io("find", root, error))?;
        std::fs::create_dir_all(&root).map_err(|error| Error::io("create", &root, error))?;
        let lock = FolderLock::take(&root).map_err(|error| match of_server(&root) {
            Some((process, address)) if matches!(error, Error::File { .. }) => Error::file(
                &root,
                format!(
                    "another server (process {process}) uses this folder, at {address}; open that address, end that process, or give \
                     ⟨data_dir⟩ another folder"
                ),
            ),
            _ => error,
        })?;
        let folder = Self { root, _lock: lock };
        // What a killed server left half-made.
        drop(std::fs::remove_dir_all(folder.temporary()));
        for inside in
            [folder.temporary(), folder.sets(), folder.inputs(), folder.runs(), folder.adapters(), folder.pictures()]
        {
            std::fs::create_dir_all(&inside).map_err(|error| Error::io("create", &inside, error))?;
        }
        folder.keep_reserve();
        Ok(folder)
    }

    /// Leaves word of where this server is, for a second one.
    pub fn write_address(&self, address: &str) -> Result<()> {
        write_json(&self.root.join(SERVER), &json!({ "process": std::process::id(), "address": address }))
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.root.join("server.sqlite")
    }

    /// Files on their way; emptied at each start.
    pub fn temporary(&self) -> PathBuf {
        self.root.join("temporary")
    }

    /// Uploaded photos and records, a folder a set.
    pub fn sets(&self) -> PathBuf {
        self.root.join("sets")
    }

    /// What jobs learn from, as it was when they were asked for, a folder a job.
    pub fn inputs(&self) -> PathBuf {
        self.root.join("inputs")
    }

    /// What trainings write, a folder a job.
    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// Uploaded adapters.
    pub fn adapters(&self) -> PathBuf {
        self.root.join("adapters")
    }

    /// Drawn pictures, a folder a job.
    pub fn pictures(&self) -> PathBuf {
        self.root.join("pictures")
    }

    /// Pictures made small, by their id.
    pub fn thumbnails(&self) -> PathBuf {
        self.root.join("thumbnails")
    }

    /// Class images, which trainings of the same class on the same model share.
    pub fn class_images(&self) -> PathBuf {
        self.root.join("class-images")
    }

    /// The model inside the binary, once it is written.
    pub fn demo_model(&self) -> PathBuf {
        self.root.join("models").join("demo")
    }

    /// Bytes that are free on its disk; none where the system does not tell.
    pub fn free_bytes(&self) -> Option<u64> {
        rustix::fs::statvfs(&self.root).ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Refuses what would take the last of the disk.
    pub fn check_room(&self) -> Answer<()> {
        match self.free_bytes().filter(|free| *free < LEAST_FREE) {
            None => Ok(()),
            Some(free) => Err(Failure::new(
                StatusCode::INSUFFICIENT_STORAGE,
                format!(
                    "only {} MB are free on the disk of the data folder; delete jobs, or make room on it",
                    free >> 20
                ),
            )),
        }
    }

    /// Sets room aside, where there is enough of it.
    pub fn keep_reserve(&self) {
        let reserve = self.reserve();
        if !reserve.exists() && self.free_bytes().is_none_or(|free| free > LEAST_FREE) {
            drop(std::fs::write(reserve, vec![0; RESERVE as usize]));
        }
    }

    /// Gives up the room that was set aside, if there is no other.
    pub fn give_reserve(&self) {
        if self.free_bytes().is_some_and(|free| free < RESERVE) {
            drop(std::fs::remove_file(self.reserve()));
        }
    }

    fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    /// All folders that a job can have.
    pub fn of_job(&self, id: &str) -> [PathBuf; 4] {
        [self.inputs(), self.runs(), self.pictures(), self.class_images()].map(|folder| folder.join(id))
    }

    /// A folder or file that is to go; only ever one that lies inside.
    pub fn remove(&self, path: &Path) -> Result<()> {
        let inside = path.strip_prefix(&self.root).ok().filter(|rest| rest.components().count() > 1);
        let is_plain =
            inside.is_some_and(|rest| rest.components().all(|part| matches!(part, std::path::Component::Normal(_))));
        if !is_plain {
            return Err(Error::Internal(format!("{} does not lie in the data folder", path.display())));
        }
        let removed = match std::fs::symlink_metadata(path) {
            Err(_) => return Ok(()),
            Ok(about) if about.is_dir() => std::fs::remove_dir_all(path),
            Ok(_) => std::fs::remove_file(path),
        };
        removed.map_err(|error| Error::io("remove", path, error))
    }

    /// `text` with paths in the folder as they are inside it.
    pub fn without_root(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.root.display()), "")
    }
}

/// Process and address of the server that has the folder `root`.
fn of_server(root: &Path) -> Option<(u64, String)> {
    let text = std::fs::read_to_string(root.join(SERVER)).ok()?;
    let value: Value = serde_json::from_str(&text).ok()?;
    Some((value["process"].as_u64()?, value["address"].as_str()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_folder_is_removed() {
        let around = tempfile::tempdir().unwrap();
        let precious = around.path().join("precious");
        std::fs::write(&precious, "mine").unwrap();
        let folder = DataFolder::open(&around.path().join("data")).unwrap();
        for path in [precious.clone(), folder.root().to_owned(), folder.runs(), folder.runs().join("../../../precious")]
        {
            assert!(folder.remove(&path).is_err(), "{}", path.display());
        }
        let run = folder.runs().join("0123");
        std::fs::create_dir(&run).unwrap();
        std::os::unix::fs::symlink(&precious, run.join("link")).unwrap();
        folder.remove(&run).unwrap();
        assert!(!run.exists() && precious.exists());
    }

    #[test]
    fn a_second_server_is_told_where_the_first_one_is() {
        let around = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(around.path()).unwrap();
        folder.write_address("http://127.0.0.1:7860").unwrap();
        let message = DataFolder::open(around.path()).err().unwrap().to_string();
        assert!(message.contains(&std::process::id().to_string()) && message.contains(":7860"), "{message}");
        drop(folder);
        DataFolder::open(around.path()).unwrap();
    }
}
