//! Folds adapters into the weights of a pipeline: a whole pipeline folder, for tools that know no adapters.
//!
//! One tensor at a time is in memory; dtype and spelling of the keys are the source's.

use super::adapter::{Init, METHODS};
use super::adapter_set::{AdapterSet, Part, PartAdapter};
use super::lora::EMBEDDING_A;
use super::model_folder::{into_folder, Existing};
use super::site::Sites;
use crate::error::{Error, Result};
use crate::regular_file::{self, FileKind};
use crate::weights::tensor_file::{Planned, TensorFileWriter};
use crate::weights::{is_finite, spelling, written_kind, BaseWeight, Op, Placement, Stride, WeightSet};
use crate::whole_file::write_json;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// A pipeline in the diffusers layout, and what to fold into it.
pub struct Merge<'a> {
    /// Its folder.
    pub model: &'a Path,
    /// Which weights to take, such as `fp16`.
    pub variant: Option<&'a str>,
    /// The adapters and their strengths (1 is as trained), folded in in this order.
    pub adapters: &'a [(AdapterSet, f64)],
    /// The dtype to write; none: each weight's own.
    pub kind: Option<Kind>,
}

impl Merge<'_> {
    /// Writes the merged pipeline to the folder `out`, which must not exist or be empty.
    pub fn write(&self, out: &Path) -> Result<()> {
        into_folder(out, Existing::Refuse, |partial| self.write_parts(partial, &mut |_, _| Ok(())))
    }

    /// Writes all parts into the folder `out`; `progress` is that of [`Folding::write`].
    pub(crate) fn write_parts(&self, out: &Path, progress: Progress) -> Result<()> {
        create(out)?;
        let own = OwnFiles::of(self.model)?;
        for entry in sorted(self.model)? {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name == "model_index.json" {
                own.copy(&entry, &out.join(&name))?;
            }
            if entry.is_dir() && !name.starts_with('.') {
                self.write_part(&own, &entry, &out.join(&name), progress)?;
            }
        }
        Ok(())
    }

    fn write_part(&self, own: &OwnFiles, from: &Path, to: &Path, progress: Progress) -> Result<()> {
        create(to)?;
        let name = &*from.file_name().unwrap_or_default().to_string_lossy();
        let files: Vec<PathBuf> = sorted(from)?.into_iter().filter(|path| is_taken(path)).collect();
        for file in files.iter().filter(|file| !is_weights(file)) {
            let target = to.join(file.file_name().unwrap_or_default());
            own.copy(file, &target)?;
            if target.ends_with("config.json") {
                without_quantisation(&target)?;
            }
        }
        if !files.iter().any(|file| is_weights(file)) {
            return Ok(());
        }
        let part = Part::ALL.into_iter().find(|part| part.name() == name);
        let weights = match WeightSet::open_folder(from, self.variant) {
            Ok(weights) => weights,
            // A part that nothing is folded into (a safety checker of pickles) is copied as it is.
            Err(_) if part.is_none() => {
                return files.iter().try_for_each(|file| own.copy(file, &to.join(file.file_name().unwrap_or_default())))
            }
            Err(error) => return Err(error),
        };
        let stem = if name == "unet" || name == "vae" { "diffusion_pytorch_model" } else { "model" };
        let path = to.join(format!("{stem}.safetensors"));
        Folding { kind: self.kind, ..Folding::of_part(&weights, part, self.adapters) }.write(&path, progress)
    }
}

/// Takes what a configuration says of codes of 4 bits out of the file `path`: what is written are the numbers that they stand for.
fn without_quantisation(path: &Path) -> Result<()> {
    let text = regular_file::read_text(path, FileKind::CONFIG)?;
    let Ok(Value::Object(mut fields)) = serde_json::from_str::<Value>(&text) else { return Ok(()) };
    match fields.shift_remove("quantization_config") {
        Some(_) => write_json(path, &Value::Object(fields)),
        None => Ok(()),
    }
}

/// Whether the file `path` of a model's folder holds weights, or is the index of such.
fn is_weights(path: &Path) -> bool {
    const ENDS: [&str; 9] = [".safetensors", ".bin", ".ckpt", ".pt", ".msgpack", ".h5", ".onnx", ".ot", ".gguf"];
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    ENDS.iter().any(|end| name.ends_with(end)) || name.contains(".index.")
}

/// Whether `path` in a model's folder is a file, or is called as one that a model needs: what else lies there instead is refused.
fn is_taken(path: &Path) -> bool {
    let is_needed = || is_weights(path) || path.extension().is_some_and(|ending| ending == "json");
    path.is_file() || (path.exists() && !path.is_dir() && is_needed())
}

/// Copies the files of the folder `from` that are `wanted` into the folder `to`, over those of the same names.
pub(crate) fn copy_files(from: &Path, to: &Path, wanted: impl Fn(&Path) -> bool) -> Result<()> {
    create(to)?;
    let own = OwnFiles::of(from)?;
    let files = sorted(from)?.into_iter().filter(|path| is_taken(path) && wanted(path));
    files.into_iter().try_for_each(|file| own.copy(&file, &to.join(file.file_name().unwrap_or_default())))
}

fn create(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))
}

/// The files that are a model's own: those in its folder and, as the hub's cache has links into it, in the store of its downloads.
/// A link to anything else would carry a file of the user into a folder that is given away.
struct OwnFiles {
    folder: PathBuf,
    blobs: Option<PathBuf>,
}

impl OwnFiles {
    fn of(model: &Path) -> Result<Self> {
        let folder = model.canonicalize().map_err(|e| Error::io("read", model, e))?;
        // REPOSITORY/snapshots/COMMIT/… beside REPOSITORY/blobs.
        let mut parents = folder.ancestors().filter_map(Path::parent);
        let snapshots = parents.find(|parent| parent.file_name().is_some_and(|name| name == "snapshots"));
        let blobs = snapshots.map(|snapshots| snapshots.with_file_name("blobs"));
        // One that is a link itself could lead anywhere.
        let blobs = blobs.filter(|blobs| blobs.canonicalize().is_ok_and(|real| real == *blobs));
        Ok(Self { folder, blobs })
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        let real = from.canonicalize().map_err(|e| Error::io("read", from, e))?;
        if !real.starts_with(&self.folder) && real.parent() != self.blobs.as_deref().or(Some(&self.folder)) {
            return Err(Error::file(
                from,
                "is, or lies behind, a link to a file outside the model's folder, which is not copied; put the file itself there, or \
                 take the link away",
            ));
        }
        let mut source = regular_file::open(&real, FileKind::COPIED)?;
        let mut target = File::create(to).map_err(|e| Error::io("write", to, e))?;
        std::io::copy(&mut source, &mut target).map(|_| ()).map_err(|e| Error::io("write", to, e))
    }
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

/// How weights are shaped that have been shaped in two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shapes {
    /// As in their file.
    AsTheyAre,
    /// The VAE's attention as linear layers, which single-file checkpoints keep as 1×1 convolutions.
    LinearAttention,
}

impl Shapes {
    fn of(self, key: &str, mut shape: Vec<i64>) -> Vec<i64> {
        if self == Self::LinearAttention && key.contains(".attentions.") && shape.ends_with(&[1, 1]) {
            shape.truncate(2);
        }
        shape
    }
}

/// Hears before each tensor of a file how many are done, of how many, and may stop the work with an error.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> Result<()>;

/// The weights of a network, and what to fold into them.
pub(crate) struct Folding<'a> {
    /// The weights.
    pub weights: &'a WeightSet,
    /// The adapters and their strengths.
    pub adapters: Vec<(&'a PartAdapter, f64)>,
    /// Weights that the network gets beside, under keys that there are no weights of: a head that its files lack.
    pub added: BTreeMap<String, Tensor>,
    /// The name in adapters of a weight's key.
    pub spell: fn(&str) -> String,
    /// Last names of modules whose weights are kept transposed, as [in, out]: an adapter's `fan_in_fan_out` tells of one of its modules.
    pub transposed: &'a [&'a str],
    /// How the weights are shaped.
    pub shapes: Shapes,
    /// The dtype of what is written; none: each weight's own.
    pub kind: Option<Kind>,
}

impl<'a> Folding<'a> {
    /// The weights of `part`, where an adapter can be for them, of a pipeline.
    pub(crate) fn of_part(weights: &'a WeightSet, part: Option<Part>, adapters: &'a [(AdapterSet, f64)]) -> Self {
        let of_part = |(set, scale): &'a (AdapterSet, f64)| Some((set.part(part?)?, *scale));
        let spell = match part {
            Some(Part::TextEncoder | Part::TextEncoder2) => {
                |key: &str| spelling::clip_text_with_projection(key).unwrap_or_else(|| key.to_owned())
            }
            _ => str::to_owned,
        };
        let adapters = adapters.iter().filter_map(of_part).collect();
        Self {
            weights,
            adapters,
            added: BTreeMap::new(),
            spell,
            transposed: &[],
            shapes: Shapes::AsTheyAre,
            kind: None,
        }
    }

    /// Writes the file `path`, one tensor after another.
    pub(crate) fn write(&self, path: &Path, progress: Progress) -> Result<()> {
        self.check()?;
        let (weights, mut planned) = (self.weights, Vec::new());
        for key in weights.keys() {
            let shape = self.shapes.of(key, weights.shape(key).unwrap_or_default());
            planned.push(Planned { name: key.to_owned(), shape, kind: self.written(weights.kind(key)?) });
        }
        for (name, tensor) in &self.added {
            planned.push(Planned { name: name.clone(), shape: tensor.size(), kind: self.written(tensor.kind()) });
        }
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let (mut done, total) = (0, planned.len() as u64);
        TensorFileWriter::create(path, planned, &metadata)?.write_all(|planned| {
            progress(done, total)?;
            done += 1;
            self.folded(planned)
        })
    }

    /// The dtype in which a tensor of `kind` is written.
    fn written(&self, kind: Kind) -> Kind {
        written_kind(kind, self.kind)
    }

    /// Refuses adapters for weights that there are none of.
    pub(crate) fn check(&self) -> Result<()> {
        let keys: BTreeSet<String> = self.weights.keys().map(self.spell).collect();
        let has = |key: String| keys.contains(&key) || self.added.contains_key(&key);
        let mut names = self.adapters.iter().flat_map(|(adapter, _)| adapter.tensors.keys());
        match names.find(|name| !has(weight_of(name))) {
            None => Ok(()),
            Some(name) => {
                Err(Error::invalid(format!("the adapter does not fit this model, which has no `{}`", weight_of(name))))
            }
        }
    }

    /// The weight `key` with the adapters folded in, in `kind`.
    pub(crate) fn fold(&self, key: &str, kind: Kind) -> Result<Tensor> {
        let shape = self.shapes.of(key, self.weights.shape(key).unwrap_or_default());
        self.folded(&Planned { name: key.to_owned(), shape, kind })
    }

    fn folded(&self, planned: &Planned) -> Result<Tensor> {
        if let Some(added) = self.added.get(&planned.name) {
            return Ok(added.to_kind(planned.kind));
        }
        // Folded in in the weight's own dtype, which may be wider than the one that is written.
        let placement = Placement { device: Device::Cpu, kind: self.weights.kind(&planned.name)? };
        let weight = self.weights.load(&planned.name, &planned.shape, placement)?;
        let key = (self.spell)(&planned.name);
        let merged = self.adapters.iter().try_fold(None, |so_far: Option<Tensor>, &(adapter, scale)| {
            let start = || so_far.as_ref().map_or_else(|| weight.to_kind(Kind::Float), Tensor::shallow_clone);
            Ok::<_, Error>(merged(&key, start, adapter, scale, self.transposed)?.or(so_far))
        })?;
        self.weights.let_go(&planned.name);
        let Some(merged) = merged else { return Ok(weight.to_kind(planned.kind)) };
        if merged.size() != weight.size() {
            return Err(Error::invalid(format!(
                "the adapter does not fit this model: its `{key}` has shape {:?}, the model's {:?}",
                merged.size(),
                weight.size()
            )));
        }
        // Only floating-point numbers have room for a change.
        self.weights.check(&planned.name, &planned.shape)?;
        let written = merged.to_kind(planned.kind);
        if is_finite(&written)? {
            return Ok(written);
        }
        Err(Error::invalid(match is_finite(&weight)? {
            true => format!(
                "with the adapter folded in, `{key}` is not a number in places in {:?}; merge it with a scale near 1, or with ⟨dtype⟩ \
                 bf16 or fp32",
                planned.kind
            ),
            false => format!("the model's own `{key}` is not a number in places"),
        }))
    }
}

/// The key of the weight that an adapter's tensor changes.
pub(crate) fn weight_of(name: &str) -> String {
    match name.find(".lora_") {
        Some(end) => format!("{}.weight", &name[..end]),
        None => name.replace(".base_layer.", "."),
    }
}

/// The weight `key` (float32) with `adapter` folded in, if it changes it. A `scale` is of low-rank changes: what is trained whole
/// counts in full, as it does beside a model.
fn merged(
    key: &str,
    weight: impl FnOnce() -> Tensor,
    adapter: &PartAdapter,
    scale: f64,
    transposed: &[&str],
) -> Result<Option<Tensor>> {
    let _no_grad = tch::no_grad_guard();
    let (module, what) = key.rsplit_once('.').unwrap_or(("", key));
    // PEFT keeps a copy of a table beside the pair that is trained on it.
    let of_target = || adapter.tensors.get(&format!("{module}.base_layer.{what}")).filter(|_| what != "weight");
    if let Some(trained) = adapter.tensors.get(key).or_else(of_target) {
        return Ok(Some(trained.to_kind(Kind::Float)));
    }
    if what != "weight" || !adapter.tensors.keys().any(|name| weight_of(name) == key) {
        return Ok(None);
    }
    let method = METHODS
        .iter()
        .find(|method| method.peft_type == adapter.config.peft_type)
        .ok_or_else(|| Error::invalid(format!("{} adapters cannot be merged", adapter.config.peft_type)))?;
    let weight = weight();
    let op = match weight.dim() {
        4 => Op::Conv2d(Stride { stride: 1, padding: 0 }),
        dimensions if dimensions != 2 => {
            return Err(Error::invalid(format!("`{key}` has shape {:?}, which no adapter fits", weight.size())))
        }
        _ if adapter.tensors.contains_key(&format!("{module}{EMBEDDING_A}")) => Op::Embedding,
        _ => Op::Linear,
    };
    let name = module.rsplit('.').next().unwrap_or(module);
    let transposed = transposed.contains(&name) && op == Op::Linear;
    let weight = if transposed { weight.tr() } else { weight };
    let site = Sites::new().register(module, op, BaseWeight::Dense(weight.shallow_clone()), None);
    let (made, _) = (method.make)(&site, &adapter.config, &mut Init::Tensors(&adapter.tensors))?;
    let merged = made.merged(&site, weight, scale).detach();
    let merged = if transposed { merged.tr().contiguous() } else { merged };
    Ok(Some(merged))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::LoraConfig;
    use crate::libtorch::random::Generator;

    #[test]
    fn weights_that_are_kept_transposed_are_merged_so() {
        let mut generator = Generator::new(1);
        let tensors = BTreeMap::from([
            ("h.lora_A.weight".to_owned(), generator.randn(&[2, 6])),
            ("h.lora_B.weight".to_owned(), generator.randn(&[4, 2])),
        ]);
        let weight = generator.randn(&[6, 4]);
        let config = LoraConfig { r: 2, lora_alpha: 3.0, ..LoraConfig::default() };
        let adapter = PartAdapter { config, tensors };
        let change = adapter.tensors["h.lora_B.weight"].matmul(&adapter.tensors["h.lora_A.weight"]) * (1.5 * 0.5);
        let expected = &weight + change.tr();
        let merged = merged("h.weight", || weight, &adapter, 0.5, &["h"]).unwrap().unwrap();
        assert!(f64::try_from((merged - expected).abs().max()).unwrap() < 1e-6);
    }
}
