//! The folder that a run writes: each file whole or not at all, and never over another run by accident.

use crate::error::{Error, Result};
use crate::whole_file::{beside, sync, sync_parent, TEMPORARY};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a folder waits while its successor takes its name.
const REPLACED: &str = ".lorabooth-old";

/// The folder `path`, whole or not at all: `write` fills an empty folder with the files `ours`, which are made durable
/// before the folder takes the name `path`; some may be in folders of it. A folder that has the name waits beside it until then, and
/// what a user put into it, which is whatever is not called as one of `ours`, moves into the new one; [`restore_replaced`] brings all
/// of it back if the process ended in between.
pub fn write_folder_atomically(path: &Path, ours: &[String], write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (temporary, replaced) = (beside(path, TEMPORARY), beside(path, REPLACED));
    if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_dir()) {
        return Err(Error::file(path, "is a file or a link where a folder is to be written; move it away"));
    }
    let finish = || -> Result<()> {
        drop(fs::remove_dir_all(&temporary));
        fs::create_dir_all(&temporary).map_err(|error| Error::io("create", path, error))?;
        write(&temporary)?;
        sync_whole(&temporary)?;
        if path.exists() {
            fs::rename(path, &replaced).map_err(|error| Error::io("replace", path, error))?;
        }
        fs::rename(&temporary, path).map_err(|error| Error::io("write", path, error))?;
        sync_parent(path)
    };
    finish().inspect_err(|_| drop(fs::remove_dir_all(&temporary)))?;
    empty_into(&replaced, path, ours)
}

/// Brings a folder with all that is in it to the disk.
fn sync_whole(folder: &Path) -> Result<()> {
    for entry in entries(folder)? {
        if entry.is_dir() { sync_whole(&entry) } else { sync(&entry) }?;
    }
    sync(folder)
}

/// Takes the folder `replaced` away, if it is there: the files `ours` go, everything else moves into `successor`.
fn empty_into(replaced: &Path, successor: &Path, ours: &[String]) -> Result<()> {
    if !fs::symlink_metadata(replaced).is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(());
    }
    remove_own(replaced, ours)?;
    if !replaced.exists() {
        return Ok(());
    }
    for entry in entries(replaced)? {
        let place = successor.join(entry.file_name().unwrap_or_default());
        if !place.exists() {
            fs::rename(&entry, &place).map_err(|error| Error::io("move", &entry, error))?;
        }
    }
    // Fails, rightly, where something of a user's is in both.
    drop(fs::remove_dir(replaced));
    Ok(())
}

/// Removes the files `ours` of the folder `path`, the folders that they are in, and itself, where a user put nothing else into them.
pub(super) fn remove_own(path: &Path, ours: &[impl AsRef<Path>]) -> Result<()> {
    ours.iter().try_for_each(|name| remove_file(&path.join(name)))?;
    for folder in ours.iter().filter_map(|name| name.as_ref().parent()).filter(|folder| *folder != Path::new("")) {
        drop(fs::remove_dir(path.join(folder)));
    }
    // Fails, rightly, where something else is left in it.
    drop(fs::remove_dir(path));
    Ok(())
}

/// Finishes the replacing of folders in `parent` that a process began and did not end: a folder whose successor is not
/// there gets its name back; of another what is not called as one of `ours` moves into the successor.
pub fn restore_replaced(parent: &Path, ours: &[String]) -> Result<()> {
    for entry in entries(parent)? {
        if let Some(name) = name_of(&entry).strip_prefix('.').and_then(|name| name.strip_suffix(REPLACED)) {
            let place = parent.join(name);
            if place.exists() {
                empty_into(&entry, &place, ours)?;
            } else {
                fs::rename(&entry, &place).map_err(|error| Error::io("restore", &place, error))?;
            }
        }
    }
    Ok(())
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What lies in `folder`, sorted.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(folder).map_err(|error| Error::io("read", folder, error))?;
    let mut paths: Vec<PathBuf> = list.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

/// Files that runs write, in the order in which they go.
const FILES: &[&str] = &[
    "pytorch_lora_weights.safetensors",
    "run.json",
    "metrics.jsonl",
    "evaluations.jsonl",
    "predictions.csv",
    "loss.png",
];
/// Files of a trained adapter.
pub(super) const ADAPTER_FILES: &[&str] =
    &["adapter_config.json", "adapter_model.safetensors", "prompt_encoder.safetensors", "classes.json"];
/// Beside the best one, what it was chosen by.
pub const BEST_EVALUATION: &str = "evaluation.json";
/// Folders with the adapters of a pipeline's parts.
pub(super) const PART_FOLDERS: &[&str] = &["unet", "text_encoder"];
/// The one with the adapter of a language model's best evaluation.
pub const BEST: &str = "best";
const SAMPLES: &str = "samples";

/// Whether a run has a use for the `name` in its output folder.
pub fn is_written_by_a_run(name: &str) -> bool {
    let is_checkpoint = name.starts_with("checkpoint-");
    is_checkpoint
        || name == SAMPLES
        || name == BEST
        || [FILES, ADAPTER_FILES, PART_FOLDERS].iter().any(|names| names.contains(&name))
}

/// What to do with a run that is already in the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExistingRun {
    /// Stop with an error that names the choices.
    Refuse,
    /// Leave it: it goes on.
    Resume,
    /// Remove what it wrote, and nothing else, once the new run is known to begin ([`RunFolder::remove_run`]).
    Overwrite,
}

/// A folder that this process alone writes to, until it is dropped.
#[derive(Debug)]
pub struct FolderLock(File);

impl FolderLock {
    /// Takes the lock of `folder`, or says that another run has it. A file system without locks has none to take.
    pub fn take(folder: &Path) -> Result<Self> {
        let file = File::open(folder).map_err(|error| Error::io("read", folder, error))?;
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => {
                Err(Error::file(folder, "another run is writing here; wait for it to end, or name another folder"))
            }
            _ => Ok(Self(file)),
        }
    }
}

/// `--output-dir` of a run, made and known to be writable.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
    existing: ExistingRun,
    made: bool,
    lock: Arc<FolderLock>,
}

impl RunFolder {
    /// Makes the folder, and answers for it before any time is spent: that it can be written to, and that it holds no
    /// other run unless `existing` says so.
    pub fn create(path: &Path, existing: ExistingRun) -> Result<Self> {
        let made = !path.exists();
        fs::create_dir_all(path).map_err(|error| Error::io("create", path, error))?;
        let lock = Arc::new(FolderLock::take(path)?);
        let folder = Self { path: path.to_owned(), existing, made, lock };
        if existing == ExistingRun::Refuse {
            if let Some(trace) = folder.trace_of_a_run()? {
                return Err(Error::file(
                    path,
                    format!("holds another run ({trace}); continue it with --resume, or replace it with --overwrite"),
                ));
            }
        }
        // Written and removed, so that a read-only or full disk shows now and not after the first checkpoint.
        let probe = beside(&path.join("probe"), TEMPORARY);
        let mut file = File::create(&probe).map_err(|error| Error::io("write to", path, error))?;
        let written = file.write_all(&[0; 4096]).and_then(|()| file.sync_all());
        drop(fs::remove_file(&probe));
        written.map_err(|error| Error::io("write to", path, error))?;
        restore_replaced(path, &super::checkpoint::files())?;
        folder.remove_left_overs()?;
        Ok(folder)
    }

    /// Takes the lock of the folder that has this name now, where the one that was locked was removed.
    pub fn lock_again(&mut self) -> Result<()> {
        let failed = |error| Error::io("read", &self.path, error);
        let (here, locked) = (fs::metadata(&self.path).map_err(failed)?, self.lock.0.metadata().map_err(failed)?);
        if (here.dev(), here.ino()) != (locked.dev(), locked.ino()) {
            self.lock = Arc::new(FolderLock::take(&self.path)?);
        }
        Ok(())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file or folder in it, by the name that the command line's contract gives it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn trace_of_a_run(&self) -> Result<Option<String>> {
        let is_trace =
            |name: &String| name == "run.json" || name == "metrics.jsonl" || super::checkpoint::step_of(name).is_some();
        Ok(entries(&self.path)?.iter().map(|entry| name_of(entry)).find(is_trace))
    }

    /// Temporary files and folders of a run that was killed.
    fn remove_left_overs(&self) -> Result<()> {
        for entry in entries(&self.path)? {
            let name = name_of(&entry);
            if name.starts_with('.') && name.ends_with(TEMPORARY) {
                let removed = if entry.is_dir() { fs::remove_dir_all(&entry) } else { fs::remove_file(&entry) };
                removed.map_err(|error| Error::io("remove", &entry, error))?;
            }
        }
        Ok(())
    }

    /// Takes the folder away again if this run made it and wrote nothing.
    pub fn remove_if_unused(&self) {
        if self.made {
            // Fails, rightly, where something is in it.
            drop(fs::remove_dir(&self.path));
        }
    }

    /// With [`ExistingRun::Overwrite`], removes the files that a run writes, by name, and the folders that are empty then:
    /// a user may have put the folder of a model here. `logs` is the folder of TensorBoard events, which stay where they
    /// are outside this folder. Called when nothing can be refused any more.
    pub fn remove_run(&self, logs: &Path) -> Result<()> {
        if self.existing != ExistingRun::Overwrite {
            return Ok(());
        }
        for name in FILES.iter().chain(ADAPTER_FILES) {
            remove_file(&self.join(name))?;
        }
        if logs.starts_with(&self.path) && logs.is_dir() {
            remove_where(logs, |name| name.starts_with("events.out.tfevents."))?;
        }
        for entry in entries(&self.path)?.iter().filter(|entry| entry.is_dir()) {
            match name_of(entry).as_str() {
                name if name == BEST || PART_FOLDERS.contains(&name) => {
                    remove_own(entry, &[ADAPTER_FILES, &[BEST_EVALUATION]].concat())?;
                }
                SAMPLES => remove_where(entry, |name| name.starts_with("step-") && name.ends_with(".png"))?,
                name if super::checkpoint::step_of(name).is_some() => remove_own(entry, &super::checkpoint::files())?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Removes the files of `folder` whose names are `written` by a run, and itself where it is empty then.
fn remove_where(folder: &Path, written: impl Fn(&str) -> bool) -> Result<()> {
    let files = entries(folder)?;
    let names: Vec<String> = files.iter().filter(|file| !file.is_dir()).map(|file| name_of(file)).collect();
    remove_own(folder, &names.iter().map(String::as_str).filter(|name| written(name)).collect::<Vec<_>>())
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(Error::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(folder: &Path, name: &str) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }

    #[test]
    fn a_folder_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint-1");
        for name in ["first", "second"] {
            write_folder_atomically(&path, &["first", "second"].map(str::to_owned), |temporary| {
                touch(temporary, name);
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(entries(&path).unwrap(), [path.join("second")]);
        assert_eq!(entries(folder.path()).unwrap(), [path]);
    }

    #[test]
    fn what_a_user_put_into_a_replaced_folder_moves_into_its_successor_also_after_a_kill() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint-1");
        for name in ["state.json", "notes.txt", "deep/er.txt"] {
            touch(&path, name);
        }
        write_folder_atomically(&path, &super::super::checkpoint::files(), |temporary| {
            touch(temporary, "state.json");
            Ok(())
        })
        .unwrap();
        for name in ["state.json", "state.safetensors", "more.txt"] {
            touch(folder.path(), &format!(".checkpoint-1.lorabooth-old/{name}"));
        }
        RunFolder::create(folder.path(), ExistingRun::Resume).unwrap();
        assert!(["state.json", "notes.txt", "deep/er.txt", "more.txt"].iter().all(|name| path.join(name).exists()));
        assert!(!path.join("state.safetensors").exists());
        assert_eq!(entries(folder.path()).unwrap(), [path]);
    }

    #[test]
    fn a_folder_whose_replacing_was_cut_short_is_restored() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), ".checkpoint-4.lorabooth-old/state.json");
        RunFolder::create(folder.path(), ExistingRun::Resume).unwrap();
        assert!(folder.path().join("checkpoint-4/state.json").exists());
    }

    #[test]
    fn a_folder_with_another_run_is_refused_with_the_choices() {
        for trace in ["run.json", "metrics.jsonl", "checkpoint-10/state.json"] {
            let folder = tempfile::tempdir().unwrap();
            touch(folder.path(), trace);
            let message = RunFolder::create(folder.path(), ExistingRun::Refuse).unwrap_err().to_string();
            assert!(message.contains("--resume") && message.contains("--overwrite"), "{message}");
            assert!(folder.path().join(trace).exists());
            RunFolder::create(folder.path(), ExistingRun::Resume).unwrap();
            assert!(folder.path().join(trace).exists());
        }
    }

    #[test]
    fn overwriting_removes_what_a_run_writes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let theirs = [
            "photo.jpg",
            "unet/diffusion_pytorch_model.safetensors",
            "checkpoint-9/pytorch_model.bin",
            "logs/my.txt",
            "evaluation.json",
            "unet/loss.png",
        ];
        let ours = [
            "run.json",
            "metrics.jsonl",
            "loss.png",
            "pytorch_lora_weights.safetensors",
            "unet/adapter_config.json",
            "adapter_model.safetensors",
            "predictions.csv",
            "best/classes.json",
            "best/evaluation.json",
        ];
        let in_folders = ["logs/events.out.tfevents.1.x", "samples/step-000100-0.png", "checkpoint-10/state.json"];
        let half = [".checkpoint-20.lorabooth-tmp/state.safetensors", ".run.json.lorabooth-tmp"];
        for name in theirs.iter().chain(&ours).chain(&in_folders).chain(&half) {
            touch(folder.path(), name);
        }
        let run = RunFolder::create(folder.path(), ExistingRun::Overwrite).unwrap();
        assert!(ours.iter().all(|name| folder.path().join(name).exists()), "removed before the new run begins");
        run.remove_run(&run.join("logs")).unwrap();
        assert!(theirs.iter().all(|name| folder.path().join(name).exists()));
        for name in ours.iter().chain(&in_folders).chain(&half) {
            assert!(!folder.path().join(name).exists(), "{name}");
        }
        assert!(!folder.path().join("samples").exists() && !folder.path().join("checkpoint-10").exists());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_one_plain_error() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), "file");
        let message = RunFolder::create(&folder.path().join("file/run"), ExistingRun::Refuse).unwrap_err().to_string();
        assert!(message.starts_with("cannot create") && message.contains("file/run"), "{message}");
    }
}
