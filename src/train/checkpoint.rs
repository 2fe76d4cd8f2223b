//! A training run's whole state in a folder `checkpoint-N`, N optimizer steps in. The folder takes its name when its
//! content is durable, so that a run killed at any moment leaves its previous checkpoint as it was.

use super::measure::Taken;
use super::precision::ScalerState;
use super::run_folder::{ADAPTER_FILES, PART_FOLDERS};
use super::whole_folder::{entries, remove_own, restore_replaced, write_folder_atomically};
use super::Parameters;
use crate::error::{Error, Result};
use crate::plain_text::hex;
use crate::regular_file::{self, FileKind};
use crate::sentence;
use crate::weights::tensor_file;
use crate::whole_file::write_json;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};

/// The numbers.
pub(super) const STATE: &str = "state.json";
/// The tensors.
const TENSORS: &str = "state.safetensors";
/// All files of a checkpoint, those that make it one first; whatever else is in its folder is a user's.
pub(super) fn files() -> Vec<String> {
    let adapters = ADAPTER_FILES.iter().map(|file| (*file).to_owned());
    let in_folders =
        PART_FOLDERS.iter().flat_map(|part| ADAPTER_FILES.iter().map(move |file| format!("{part}/{file}")));
    [STATE, TENSORS].into_iter().map(str::to_owned).chain(adapters).chain(in_folders).collect()
}
const PARAMETER: &str = "param/";
const OPTIMIZER: &str = "optimizer/";

/// Where a run stands, apart from its tensors. The draws of each step follow from the seed and `micro_step`, so no
/// generator's state is needed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingState {
    /// Optimizer steps, skipped ones included.
    pub step: u64,
    /// Micro-steps: batches that went through the model.
    pub micro_step: u64,
    /// The epoch that the next batch belongs to.
    pub epoch: u64,
    /// Batches of an epoch; 0: not known, as they stay as many.
    #[serde(default)]
    pub batches_per_epoch: u64,
    /// The run's seed.
    pub seed: i64,
    /// Of float16 training.
    pub scaler: Option<ScalerState>,
    /// Length of metrics.jsonl: what lies behind is of steps that will be done again.
    pub metrics_bytes: u64,
    /// The run was interrupted during an evaluation, which the resumed run does first.
    #[serde(default, alias = "look_is_owed")]
    pub evaluation_is_owed: bool,
    /// Processes of the run.
    #[serde(default = "one")]
    pub ranks: usize,
    /// What the run has changed of itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measures: Vec<Taken>,
    /// What the numbers depend on: options, flag → value in words, and the data by its name → fingerprint.
    pub options: BTreeMap<String, String>,
}

/// Of checkpoints that do not name a number of processes.
fn one() -> usize {
    1
}

impl TrainingState {
    /// Refuses to go on with options, or data, that would end in other numbers than the run began with.
    pub fn check_options(&self, now: &BTreeMap<String, String>) -> Result<()> {
        let names: BTreeSet<&String> = self.options.keys().chain(now.keys()).collect();
        let changed = names.into_iter().filter(|name| self.options.get(*name) != now.get(*name));
        let (flags, contents): (Vec<&String>, Vec<&String>) = changed.partition(|name| name.starts_with("--"));
        let value = |options: &BTreeMap<String, String>, name: &String| {
            options.get(name).map_or("not given".into(), String::clone)
        };
        let option = |flag: &String| sentence::option(&flag.trim_start_matches("--").replace('-', "_"));
        let was = |name: &String| {
            format!("{} was {} and is {} now", option(name), value(&self.options, name), value(now, name))
        };
        let what = match (flags.as_slice(), contents.as_slice()) {
            ([], []) => return Ok(()),
            // Other options, such as a shorter text, make other contents: they are the cause.
            ([], [content, ..]) => format!("learned from other {content}; give the same ones"),
            _ => {
                let changes: Vec<String> = flags.into_iter().map(was).collect();
                format!("had other options: {}; give the same ones", changes.join(", "))
            }
        };
        Err(Error::invalid(format!("the run to resume {what}, or start again in another ⟨output_dir⟩")))
    }
}

/// What [`load`] brings back.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where the run stood.
    pub state: TrainingState,
    /// The trained tensors, float32, without `requires_grad`: to be copied into the run's own ([`restore_parameters`]).
    pub params: BTreeMap<String, Tensor>,
    /// The optimizer's.
    pub optimizer: BTreeMap<String, Tensor>,
}

/// `state.json`: the state, and how the tensors' file is known to be whole.
#[derive(Serialize, Deserialize)]
struct StateFile {
    #[serde(flatten)]
    state: TrainingState,
    tensors: Fingerprint,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Fingerprint {
    bytes: u64,
    sha256: String,
}

impl Fingerprint {
    fn of(path: &Path) -> Result<Self> {
        let (bytes, sha256) = size_and_hash(path)?;
        Ok(Self { bytes, sha256 })
    }
}

/// The number of a file's bytes, and their SHA-256.
pub fn size_and_hash(path: &Path) -> Result<(u64, String)> {
    let failed = |error| Error::io("read", path, error);
    let mut digest = Sha256::new();
    let bytes = std::io::copy(&mut regular_file::open(path, FileKind::SAFETENSORS)?, &mut digest).map_err(failed)?;
    Ok((bytes, hex(&digest.finalize())))
}

/// The N of a name `checkpoint-N`.
pub(super) fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("checkpoint-")?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn step_of_folder(path: &Path) -> Option<u64> {
    path.file_name().and_then(|name| step_of(&name.to_string_lossy()))
}

/// Writes `output_dir/checkpoint-N` for step N of `state`, and with `write_adapter` beside it the adapter as other programs read it.
pub fn save(
    output_dir: &Path,
    state: &TrainingState,
    params: &Parameters,
    optimizer: &BTreeMap<String, Tensor>,
    write_adapter: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let folder = output_dir.join(format!("checkpoint-{}", state.step));
    let on_host = |prefix: &str, (name, tensor): (&String, &Tensor)| {
        (format!("{prefix}{name}"), tensor.detach().to_device(Device::Cpu).contiguous())
    };
    let mut tensors: BTreeMap<String, Tensor> = params.iter().map(|entry| on_host(PARAMETER, entry)).collect();
    tensors.extend(optimizer.iter().map(|entry| on_host(OPTIMIZER, entry)));
    write_folder_atomically(&folder, &files(), |temporary| {
        write_adapter(temporary)?;
        let path = temporary.join(TENSORS);
        tensor_file::save(&path, &tensors, &BTreeMap::new())?;
        let file = StateFile { state: state.clone(), tensors: Fingerprint::of(&path)? };
        write_json(&temporary.join(STATE), &file)
    })
}

/// Reads a checkpoint onto `device`. A damaged one is refused, with the name of the one to take instead.
pub fn load(folder: &Path, device: Device) -> Result<Checkpoint> {
    if !folder.is_dir() {
        return Err(Error::file(folder, "is not a checkpoint folder; name a checkpoint-N, or `latest`"));
    }
    let whole = read_state(folder).and_then(|file| {
        let path = folder.join(TENSORS);
        match Fingerprint::of(&path)? == file.tensors {
            true => Ok((file.state, Tensor::read_safetensors(&path)?)),
            false => Err(Error::file(&path, "is not what was saved")),
        }
    });
    let (state, tensors) = whole.map_err(|error| damaged(folder, &error))?;
    let mut checkpoint = Checkpoint { state, params: BTreeMap::new(), optimizer: BTreeMap::new() };
    for (name, tensor) in tensors {
        let tensor = tensor.to_device(device);
        if let Some(name) = name.strip_prefix(PARAMETER) {
            checkpoint.params.insert(name.to_owned(), tensor);
        } else if let Some(name) = name.strip_prefix(OPTIMIZER) {
            checkpoint.optimizer.insert(name.to_owned(), tensor);
        }
    }
    Ok(checkpoint)
}

fn damaged(folder: &Path, cause: &Error) -> Error {
    let step = step_of_folder(folder).unwrap_or(u64::MAX);
    let parent = folder.parent().unwrap_or(Path::new("."));
    let all = complete(parent).unwrap_or_default();
    let advice = match all.iter().rev().find(|(n, _)| *n < step) {
        Some((_, previous)) => format!("resume from the one before it with ⟨resume⟩ {}", previous.display()),
        None => "there is none before it: start again with ⟨overwrite⟩".to_owned(),
    };
    Error::file(folder, format!("this checkpoint is damaged ({cause}); {advice}"))
}

fn read_state(folder: &Path) -> Result<StateFile> {
    let path = folder.join(STATE);
    let text = regular_file::read(&path, FileKind::RUN)?;
    serde_json::from_slice(&text).map_err(|error| Error::file(&path, error.to_string()))
}

/// Step and folder of each complete checkpoint, ascending.
fn complete(output_dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for path in entries(output_dir)? {
        let Some(step) = step_of_folder(&path) else { continue };
        let bytes = fs::metadata(path.join(TENSORS)).map(|data| data.len());
        if read_state(&path).is_ok_and(|file| bytes.is_ok_and(|bytes| bytes == file.tensors.bytes)) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// What the run had changed of itself whose checkpoint is in `folder`; nothing where it cannot be read, which is refused later.
pub fn measures_of(folder: &Path) -> Vec<Taken> {
    read_state(folder).map_or_else(|_| Vec::new(), |file| file.state.measures)
}

/// The intact checkpoints of `output_dir` that hold more steps than the checkpoint `folder`: of what is to be done again by a run that
/// resumes from it.
pub fn later_than(folder: &Path, output_dir: &Path) -> Result<Vec<PathBuf>> {
    // One that cannot be read is refused when it is loaded.
    let Ok(StateFile { state: TrainingState { step, .. }, .. }) = read_state(folder) else { return Ok(Vec::new()) };
    let is_intact = |path: &Path| {
        read_state(path).is_ok_and(|file| Fingerprint::of(&path.join(TENSORS)).is_ok_and(|found| found == file.tensors))
    };
    let later = complete(output_dir)?.into_iter().filter(|(n, path)| *n > step && is_intact(path));
    Ok(later.map(|(_, path)| path).collect())
}

/// The complete checkpoint of the most steps in `output_dir`, if there is one.
pub fn latest(output_dir: &Path) -> Result<Option<PathBuf>> {
    if !output_dir.is_dir() {
        return Ok(None);
    }
    restore_replaced(output_dir, &files())?;
    Ok(complete(output_dir)?.pop().map(|(_, path)| path))
}

/// Checkpoints of more steps than the complete one `latest` that are not complete themselves.
pub fn damaged_behind(output_dir: &Path, latest: Option<&Path>) -> Result<Vec<PathBuf>> {
    let reached = latest.and_then(step_of_folder);
    let is_behind =
        |path: &PathBuf| step_of_folder(path).is_some_and(|step| reached.is_none_or(|reached| step > reached));
    match output_dir.is_dir() {
        true => Ok(entries(output_dir)?.into_iter().filter(is_behind).collect()),
        false => Ok(Vec::new()),
    }
}

/// Removes all complete checkpoints but the `keep` of the most steps (at least one).
pub fn prune(output_dir: &Path, keep: usize) -> Result<()> {
    let all = complete(output_dir)?;
    for (_, path) in &all[..all.len().saturating_sub(keep.max(1))] {
        // What makes it count as complete goes first: a half removed one must not be taken for a checkpoint.
        remove_own(path, &files())?;
    }
    Ok(())
}

/// Copies the values of a checkpoint into the run's own leaves, which must have its names and shapes.
pub fn restore_parameters(params: &Parameters, saved: &BTreeMap<String, Tensor>) -> Result<()> {
    let _guard = tch::no_grad_guard();
    if let Some(name) = saved.keys().find(|name| !params.contains_key(*name)) {
        return Err(Error::invalid(format!("the checkpoint is of another run: `{name}` is not trained here")));
    }
    for (name, param) in params {
        let Some(value) = saved.get(name) else {
            return Err(Error::invalid(format!("the checkpoint is of another run: it has no `{name}`")));
        };
        if value.size() != param.size() {
            let (found, expected) = (value.size(), param.size());
            return Err(Error::invalid(format!(
                "the checkpoint is of another run: `{name}` has shape {found:?} there and {expected:?} here"
            )));
        }
        param.shallow_clone().f_copy_(value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::measure::{Because, Measure};
    use super::*;
    use tch::Kind;

    fn state(step: u64) -> TrainingState {
        let options = [("--rank", "8"), ("records", "these")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        TrainingState {
            step,
            micro_step: 2 * step,
            epoch: 1,
            batches_per_epoch: 7,
            seed: 3,
            scaler: None,
            metrics_bytes: 77,
            evaluation_is_owed: true,
            ranks: 1,
            measures: vec![Taken {
                step,
                because: Because::MemoryWasFull,
                measure: Measure::Batch { size: 1, accumulation: 4 },
                saves_bytes: 9,
                costs: "time".to_owned(),
            }],
            options: options.into(),
        }
    }

    fn params(value: f64) -> Parameters {
        let tensor = Tensor::full([2, 3], value, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        Parameters::from([("unet.a".to_owned(), tensor)])
    }

    fn saved(folder: &Path, steps: &[u64]) {
        for &step in steps {
            let optimizer = BTreeMap::from([("unet.a.step".to_owned(), Tensor::from(step as f32))]);
            save(folder, &state(step), &params(step as f64), &optimizer, |_| Ok(())).unwrap();
        }
    }

    #[test]
    fn a_checkpoint_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        saved(folder.path(), &[5, 10, 10]);
        let path = latest(folder.path()).unwrap().unwrap();
        assert_eq!(path, folder.path().join("checkpoint-10"));
        let checkpoint = load(&path, Device::Cpu).unwrap();
        assert_eq!(checkpoint.state, state(10));
        assert_eq!(f64::try_from(&checkpoint.optimizer["unet.a.step"]).unwrap(), 10.);
        let mine = params(0.);
        restore_parameters(&mine, &checkpoint.params).unwrap();
        assert_eq!(mine["unet.a"], params(10.)["unet.a"]);
        assert!(mine["unet.a"].requires_grad());
    }

    #[test]
    fn the_latest_is_by_number_and_never_an_unfinished_one() {
        let folder = tempfile::tempdir().unwrap();
        saved(folder.path(), &[9, 100]);
        let unfinished = folder.path().join(".checkpoint-200.lorabooth-tmp");
        fs::create_dir(&unfinished).unwrap();
        fs::copy(folder.path().join("checkpoint-9").join(TENSORS), unfinished.join(TENSORS)).unwrap();
        fs::create_dir(folder.path().join("checkpoint-300")).unwrap();
        assert_eq!(latest(folder.path()).unwrap(), Some(folder.path().join("checkpoint-100")));
        assert_eq!(latest(&folder.path().join("absent")).unwrap(), None);
    }

    #[test]
    fn a_damaged_checkpoint_is_refused_with_the_one_before_it() {
        let folder = tempfile::tempdir().unwrap();
        saved(folder.path(), &[10, 20]);
        let (path, tensors) = (folder.path().join("checkpoint-20"), folder.path().join("checkpoint-20").join(TENSORS));
        let mut bytes = fs::read(&tensors).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&tensors, &bytes).unwrap();
        let message = load(&path, Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("damaged") && message.contains("checkpoint-10"), "{message}");
        fs::write(&tensors, &bytes[..bytes.len() / 2]).unwrap();
        assert!(load(&path, Device::Cpu).unwrap_err().to_string().contains("checkpoint-10"));
        assert_eq!(latest(folder.path()).unwrap(), Some(folder.path().join("checkpoint-10")));
        fs::write(path.join(STATE), "{").unwrap();
        assert!(load(&path, Device::Cpu).unwrap_err().to_string().contains("checkpoint-10"));
    }

    #[test]
    fn pruning_keeps_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        saved(folder.path(), &[1, 2, 3, 10]);
        prune(folder.path(), 2).unwrap();
        let left: Vec<u64> = complete(folder.path()).unwrap().into_iter().map(|(step, _)| step).collect();
        assert_eq!(left, [3, 10]);
    }

    #[test]
    fn other_options_are_named_and_other_data_where_no_option_explains_it() {
        let refused = |now: [(&str, &str); 2]| {
            let now = now.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            state(1).check_options(&now).unwrap_err().to_string()
        };
        let message = refused([("--rank", "16"), ("records", "other")]);
        assert!(message.contains("had other options: ⟨rank⟩ was 8 and is 16 now; give"), "{message}");
        assert!(!message.contains("records"), "{message}");
        let message = refused([("--rank", "8"), ("--use-dora", "given")]);
        assert!(message.contains("⟨use_dora⟩ was not given and is given now"), "{message}");
        let message = refused([("--rank", "8"), ("records", "other")]);
        assert!(message.contains("learned from other records; give the same ones"), "{message}");
        state(1).check_options(&state(2).options).unwrap();
    }
}
