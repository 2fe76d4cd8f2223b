//! The folder that a run writes: each file whole or not at all, and never over another run by accident.

use crate::error::{Error, Result};
use crate::whole_file::{beside, sync, sync_parent, TEMPORARY};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where a folder waits while its successor takes its name.
const REPLACED: &str = ".lorabooth-old";

/// The folder `path`, whole or not at all: `write` fills an empty folder with files, which are made durable before the folder
/// takes the name `path`. A folder that has the name waits beside it until then; [`restore_replaced`] brings it back if
/// the process ended in between.
pub fn write_folder_atomically(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (temporary, replaced) = (beside(path, TEMPORARY), beside(path, REPLACED));
    let finish = || -> Result<()> {
        drop(fs::remove_dir_all(&temporary));
        fs::create_dir_all(&temporary).map_err(|error| Error::io("create", path, error))?;
        write(&temporary)?;
        for file in entries(&temporary)? {
            sync(&file)?;
        }
        sync(&temporary)?;
        if path.exists() {
            drop(fs::remove_dir_all(&replaced));
            fs::rename(path, &replaced).map_err(|error| Error::io("replace", path, error))?;
        }
        fs::rename(&temporary, path).map_err(|error| Error::io("write", path, error))?;
        sync_parent(path)
    };
    finish().inspect_err(|_| drop(fs::remove_dir_all(&temporary)))?;
    drop(fs::remove_dir_all(&replaced));
    Ok(())
}

/// Gives the folders in `parent` that were being replaced when a process ended their names back, unless their successor
/// is there.
pub fn restore_replaced(parent: &Path) -> Result<()> {
    for entry in entries(parent)? {
        if let Some(name) = name_of(&entry).strip_prefix('.').and_then(|name| name.strip_suffix(REPLACED)) {
            let place = parent.join(name);
            if !place.exists() {
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

/// `--output-dir` of a run, made and known to be writable.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
    existing: ExistingRun,
    made: bool,
}

impl RunFolder {
    /// Makes the folder, and answers for it before any time is spent: that it can be written to, and that it holds no
    /// other run unless `existing` says so.
    pub fn create(path: &Path, existing: ExistingRun) -> Result<Self> {
        let made = !path.exists();
        fs::create_dir_all(path).map_err(|error| Error::io("create", path, error))?;
        let folder = Self { path: path.to_owned(), existing, made };
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
        restore_replaced(path)?;
        folder.remove_left_overs()?;
        Ok(folder)
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
            if name.starts_with('.') && (name.ends_with(TEMPORARY) || name.ends_with(REPLACED)) {
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
    /// a user may have put the folder of a model here. Called when nothing can be refused any more.
    pub fn remove_run(&self) -> Result<()> {
        if self.existing != ExistingRun::Overwrite {
            return Ok(());
        }
        for name in ["pytorch_lora_weights.safetensors", "run.json", "metrics.jsonl", "loss.png"] {
            remove_file(&self.join(name))?;
        }
        for entry in entries(&self.path)? {
            let written: fn(&str) -> bool = match name_of(&entry).as_str() {
                "unet" | "text_encoder" => |name| ["adapter_config.json", "adapter_model.safetensors"].contains(&name),
                "logs" => |name| name.starts_with("events.out.tfevents."),
                "samples" => |name| name.starts_with("step-") && name.ends_with(".png"),
                name if super::checkpoint::step_of(name).is_some() => {
                    |name| [super::checkpoint::STATE, super::checkpoint::TENSORS].contains(&name)
                }
                _ => continue,
            };
            if entry.is_dir() {
                for file in entries(&entry)?.iter().filter(|file| written(&name_of(file))) {
                    remove_file(file)?;
                }
                // Fails, rightly, where something else is left in it.
                drop(fs::remove_dir(&entry));
            }
        }
        Ok(())
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
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
            write_folder_atomically(&path, |temporary| {
                touch(temporary, name);
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(entries(&path).unwrap(), [path.join("second")]);
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
        let theirs =
            ["photo.jpg", "unet/diffusion_pytorch_model.safetensors", "checkpoint-9/pytorch_model.bin", "logs/my.txt"];
        let ours =
            ["run.json", "metrics.jsonl", "loss.png", "pytorch_lora_weights.safetensors", "unet/adapter_config.json"];
        let in_folders = ["logs/events.out.tfevents.1.x", "samples/step-000100-0.png", "checkpoint-10/state.json"];
        let half = [".checkpoint-20.lorabooth-tmp/state.safetensors", ".run.json.lorabooth-tmp"];
        for name in theirs.iter().chain(&ours).chain(&in_folders).chain(&half) {
            touch(folder.path(), name);
        }
        let run = RunFolder::create(folder.path(), ExistingRun::Overwrite).unwrap();
        assert!(ours.iter().all(|name| folder.path().join(name).exists()), "removed before the new run begins");
        run.remove_run().unwrap();
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
