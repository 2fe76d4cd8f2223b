//! The folder that a run writes: each file whole or not at all, and never over another run by accident.

use super::folder_lock::{FolderLock, LOCK_FILE};
use super::whole_folder::{entries, name_of, remove_file, remove_own, restore_replaced};
use crate::error::{Error, Result};
use crate::whole_file::{beside, TEMPORARY};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
pub(super) const PART_FOLDERS: &[&str] = &["unet", "text_encoder", "text_encoder_2"];
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

/// `--output-dir` of a run, made and known to be writable.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
    existing: ExistingRun,
    made: bool,
    /// None where another process writes the run.
    lock: Option<Arc<FolderLock>>,
}

impl RunFolder {
    /// Makes the folder, and answers for it before any time is spent: that it can be written to, that no other process writes
    /// a run to it, and that it holds what `existing` says. `logs` is the folder of TensorBoard events.
    pub fn create(path: &Path, existing: ExistingRun, logs: &Path) -> Result<Self> {
        let made = !path.exists();
        if made && existing == ExistingRun::Resume {
            return Err(no_run_in(path));
        }
        fs::create_dir_all(path).map_err(|error| Error::io("create", path, error))?;
        let was_killed = fs::symlink_metadata(path.join(LOCK_FILE)).is_ok();
        let lock = Some(Arc::new(FolderLock::take(path)?));
        let folder = Self { path: path.to_owned(), existing, made, lock };
        folder.answer(logs, was_killed).inspect_err(|_| folder.remove_if_unused())?;
        Ok(folder)
    }

    /// The folder of a run that another process writes; this one only names it.
    pub fn of_another(path: &Path) -> Self {
        Self { path: path.to_owned(), existing: ExistingRun::Resume, made: false, lock: None }
    }

    /// Whether there are traces of a run in the folder `path`.
    pub fn has_traces(path: &Path) -> bool {
        let is_trace =
            |name: &str| name == "run.json" || name == "metrics.jsonl" || super::checkpoint::step_of(name).is_some();
        entries(path).is_ok_and(|entries| entries.iter().any(|entry| is_trace(&name_of(entry))))
    }

    /// A run that `was_killed` before it wrote anything left its lock: it begins again.
    fn answer(&self, logs: &Path, was_killed: bool) -> Result<()> {
        if let (ExistingRun::Refuse, Some(taken)) = (self.existing, self.in_the_way(logs)?) {
            return Err(taken);
        }
        let path = &self.path;
        // Written and removed, so that a read-only or full disk shows now and not after the first checkpoint.
        let probe = beside(&path.join("probe"), TEMPORARY);
        let mut file = File::create(&probe).map_err(|error| Error::io("write to", path, error))?;
        let written = file.write_all(&[0; 4096]).and_then(|()| file.sync_all());
        drop(fs::remove_file(&probe));
        written.map_err(|error| Error::io("write to", path, error))?;
        restore_replaced(path, &super::checkpoint::files())?;
        if self.existing == ExistingRun::Resume && !was_killed && !self.holds_a_run()? {
            return Err(no_run_in(path));
        }
        self.remove_left_overs()
    }

    /// Takes the lock of the folder that has this name now, where the one that was locked was removed.
    pub fn lock_again(&mut self) -> Result<()> {
        if self.lock.as_ref().is_some_and(|lock| !lock.is_of_its_path()) {
            self.lock = Some(Arc::new(FolderLock::take(&self.path)?));
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

    /// The refusal of a folder in which this run would replace something: of another run, or of anybody's.
    fn in_the_way(&self, logs: &Path) -> Result<Option<Error>> {
        let is_trace =
            |name: &String| name == "run.json" || name == "metrics.jsonl" || super::checkpoint::step_of(name).is_some();
        let names = entries(&self.path)?.iter().map(|entry| name_of(entry)).collect::<Vec<_>>();
        if let Some(trace) = names.into_iter().find(is_trace) {
            return Ok(Some(Error::is_of_a_run(self.join(&trace))));
        }
        let in_folders = PART_FOLDERS.iter().chain([&BEST]).flat_map(|folder| {
            let files = ADAPTER_FILES.iter().chain([&BEST_EVALUATION]);
            files.map(move |file| format!("{folder}/{file}"))
        });
        let own = FILES.iter().chain(ADAPTER_FILES).map(|name| (*name).to_owned()).chain(in_folders);
        let there = own.map(|name| self.join(&name)).find(|path| fs::symlink_metadata(path).is_ok());
        // A file in the place of a folder could not stay either.
        let folders = PART_FOLDERS.iter().chain([&BEST, &SAMPLES]).map(|name| self.join(name));
        let no_folder = folders.into_iter().find(|path| path.exists() && !path.is_dir());
        let mut taken = there.or(no_folder);
        if taken.is_none() {
            taken = first_where(&self.join(SAMPLES), is_sample)?;
        }
        if taken.is_none() && logs.starts_with(&self.path) {
            taken = first_where(logs, is_events)?;
        }
        Ok(taken.map(|path| Error::is_there(path, "⟨output_dir⟩")))
    }

    /// Whether there is a run to go on with.
    fn holds_a_run(&self) -> Result<bool> {
        let is_whole = |entry: &PathBuf| {
            super::checkpoint::step_of(&name_of(entry)).is_some() && entry.join(super::checkpoint::STATE).exists()
        };
        let logs = ["run.json", "metrics.jsonl"].iter().any(|name| self.join(name).exists());
        Ok(logs || entries(&self.path)?.iter().any(is_whole))
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
        if let (true, Some(lock)) = (self.made, &self.lock) {
            lock.remove_file();
            // Fails, rightly, where something is in it.
            drop(fs::remove_dir(&self.path));
        }
    }

    /// Removes the checkpoints and the samples of more than `step` steps: of a run that is resumed from there, and goes on otherwise.
    pub fn remove_later(&self, step: u64) -> Result<()> {
        for entry in entries(&self.path)?.iter().filter(|entry| entry.is_dir()) {
            match name_of(entry).as_str() {
                SAMPLES => remove_where(entry, |name| is_later_than(step, name))?,
                name if is_later_than(step, name) => remove_own(entry, &super::checkpoint::files())?,
                _ => {}
            }
        }
        Ok(())
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
            remove_where(logs, is_events)?;
        }
        for entry in entries(&self.path)?.iter().filter(|entry| entry.is_dir()) {
            match name_of(entry).as_str() {
                name if name == BEST || PART_FOLDERS.contains(&name) => {
                    remove_own(entry, &[ADAPTER_FILES, &[BEST_EVALUATION]].concat())?;
                }
                SAMPLES => remove_where(entry, is_sample)?,
                name if super::checkpoint::step_of(name).is_some() => remove_own(entry, &super::checkpoint::files())?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether `name` is of a checkpoint or a sample of more than `step` steps.
fn is_later_than(step: u64, name: &str) -> bool {
    let of_sample = |name: &str| is_sample(name).then(|| name.split('-').nth(1)?.parse().ok()).flatten();
    super::checkpoint::step_of(name).or_else(|| of_sample(name)).is_some_and(|n| n > step)
}

fn no_run_in(path: &Path) -> Error {
    Error::file(
        path,
        "holds no run that ⟨resume⟩ could continue; leave ⟨resume⟩ out to start one, or give a run's folder as ⟨output_dir⟩",
    )
}

fn is_sample(name: &str) -> bool {
    name.starts_with("step-") && name.ends_with(".png")
}

fn is_events(name: &str) -> bool {
    name.starts_with("events.out.tfevents.")
}

/// The first file of `folder`, which need not be there, whose name is `written` by a run.
fn first_where(folder: &Path, written: impl Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    match folder.is_dir() {
        true => Ok(entries(folder)?.into_iter().find(|path| written(&name_of(path)))),
        false => Ok(None),
    }
}

/// Removes the files of `folder` whose names are `written` by a run, and itself where it is empty then.
fn remove_where(folder: &Path, written: impl Fn(&str) -> bool) -> Result<()> {
    let files = entries(folder)?;
    let names: Vec<String> = files.iter().filter(|file| !file.is_dir()).map(|file| name_of(file)).collect();
    remove_own(folder, &names.iter().map(String::as_str).filter(|name| written(name)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::super::whole_folder::write_folder_atomically;
    use super::*;

    fn touch(folder: &Path, name: &str) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
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
        RunFolder::create(folder.path(), ExistingRun::Resume, &folder.path().join("logs")).unwrap();
        assert!(["state.json", "notes.txt", "deep/er.txt", "more.txt"].iter().all(|name| path.join(name).exists()));
        assert!(!path.join("state.safetensors").exists());
        assert_eq!(entries(folder.path()).unwrap(), [path]);
    }

    #[test]
    fn a_folder_whose_replacing_was_cut_short_is_restored() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), ".checkpoint-4.lorabooth-old/state.json");
        RunFolder::create(folder.path(), ExistingRun::Resume, &folder.path().join("logs")).unwrap();
        assert!(folder.path().join("checkpoint-4/state.json").exists());
    }

    #[test]
    fn a_folder_with_another_run_is_refused_with_the_choices() {
        for trace in ["run.json", "metrics.jsonl", "checkpoint-10/state.json"] {
            let folder = tempfile::tempdir().unwrap();
            touch(folder.path(), trace);
            let message = RunFolder::create(folder.path(), ExistingRun::Refuse, &folder.path().join("logs"))
                .unwrap_err()
                .to_string();
            assert!(message.contains("⟨resume⟩") && message.contains("⟨overwrite⟩"), "{message}");
            assert!(folder.path().join(trace).exists());
            RunFolder::create(folder.path(), ExistingRun::Resume, &folder.path().join("logs")).unwrap();
            assert!(folder.path().join(trace).exists());
        }
    }

    #[test]
    fn what_no_run_wrote_is_refused_too_and_stays() {
        let names = [FILES, ADAPTER_FILES].concat();
        let more = [
            "unet/adapter_config.json",
            "text_encoder/adapter_model.safetensors",
            "best/evaluation.json",
            "best/classes.json",
        ];
        let others = ["samples/step-000100-0.png", "logs/events.out.tfevents.1.x", "unet", "samples"];
        for name in names.iter().chain(&more).chain(&others) {
            let folder = tempfile::tempdir().unwrap();
            touch(folder.path(), name);
            let create = |existing| RunFolder::create(folder.path(), existing, &folder.path().join("logs"));
            let message = create(ExistingRun::Refuse).unwrap_err().to_string();
            assert!(message.contains("⟨overwrite⟩") && message.contains(name), "{message}");
            assert_eq!(fs::read(folder.path().join(name)).unwrap(), b"x", "{name}");
            if !["run.json", "metrics.jsonl"].contains(name) {
                assert!(!message.contains("⟨resume⟩"), "{message}");
                let message = create(ExistingRun::Resume).unwrap_err().to_string();
                assert!(message.contains("no run that ⟨resume⟩"), "{name}: {message}");
            }
            assert_eq!(entries(folder.path()).unwrap().len(), 1, "{name}");
        }
    }

    #[test]
    fn what_a_run_does_not_write_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "notes.txt",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "samples/mine.png",
            "logs/mine.txt",
        ] {
            touch(folder.path(), name);
        }
        RunFolder::create(folder.path(), ExistingRun::Refuse, &folder.path().join("logs")).unwrap();
    }

    #[test]
    fn a_run_that_is_not_there_cannot_be_resumed_and_leaves_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let message = RunFolder::create(&path, ExistingRun::Resume, &path.join("logs")).unwrap_err().to_string();
        assert!(message.contains("holds no run that ⟨resume⟩ could continue") && !path.exists(), "{message}");
        touch(&path, LOCK_FILE);
        RunFolder::create(&path, ExistingRun::Resume, &path.join("logs")).unwrap();
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
        let run = RunFolder::create(folder.path(), ExistingRun::Overwrite, &folder.path().join("logs")).unwrap();
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
        let message = RunFolder::create(&folder.path().join("file/run"), ExistingRun::Refuse, Path::new("logs"))
            .unwrap_err()
            .to_string();
        assert!(message.starts_with("cannot create") && message.contains("file/run"), "{message}");
    }
}
