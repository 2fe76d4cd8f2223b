//! All weights of one model by key, from one file, from shards, or from a part of a single-file checkpoint.

use super::four_bit::{FourBit, Named};
use super::keeping::Keeping;
use super::storage::BaseWeight;
use super::tensor_file::tensor_bytes;
use super::tensor_source::TensorSource;
use super::weight_files::{self, WeightFile};
use super::MappedFile;
use crate::error::{Error, Result};
use crate::libtorch::planned::PLANNED;
use crate::plain_text::hex;
use crate::regular_file::{self, FileKind};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Where weights go and in which dtype they are kept there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    /// The device that computes.
    pub device: Device,
    /// The dtype that it computes in.
    pub kind: Kind,
}

impl Placement {
    /// `tensor` there.
    pub fn of(self, tensor: &Tensor) -> Tensor {
        tensor.to_device(self.device).to_kind(self.kind)
    }
}

/// The part of a stored tensor that is the weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    /// Rows `index` of `of` equal bands: OpenCLIP keeps q, k and v in one matrix.
    Band {
        index: i64,
        of: i64,
    },
    /// Rows that llama.cpp put in the order of its rotary positions: in each of `heads`, row i of the first half beside
    /// row i of the second.
    RotaryPairs {
        heads: i64,
    },
    /// Its transpose.
    Transposed,
}

#[derive(Clone)]
struct Entry {
    file: Arc<dyn TensorSource>,
    name: String,
    part: Part,
    four_bit: Option<Packed>,
}

/// A weight that the file has in 4 bits.
#[derive(Clone)]
struct Packed {
    weight: Arc<FourBit>,
    /// The model has it the other way round.
    transposed: bool,
}

impl Packed {
    fn shape(&self) -> Vec<i64> {
        let mut shape = self.weight.shape().to_vec();
        if self.transposed {
            shape.reverse();
        }
        shape
    }
}

/// The weights of one model by key.
pub struct WeightSet {
    origin: PathBuf,
    entries: BTreeMap<String, Entry>,
    keeping: Keeping,
    planned: Option<Planned>,
}

/// Every weight that is asked for is there, without numbers.
#[derive(Clone, Copy)]
struct Planned {
    kind: Kind,
    /// Weights that a model may have in common are the same.
    shares: bool,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// The shard of each key, from an index file.
pub(super) fn shard_names(index: &Path) -> Result<BTreeMap<String, String>> {
    let text = regular_file::read_text(index, FileKind::CONFIG)?;
    let parsed: ShardIndex =
        serde_json::from_str(&text).map_err(|e| Error::file(index, format!("not a shard index: {e}")))?;
    let inside = |shard: &str| {
        let mut parts = Path::new(shard).components();
        matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
    };
    match parsed.weight_map.values().find(|shard| !inside(shard)) {
        Some(shard) => Err(Error::file(index, format!("names a shard outside its folder: {shard}"))),
        None => Ok(parsed.weight_map),
    }
}

impl WeightSet {
    /// The weights of whatever model is loaded from them, stored in `kind`: tensors without numbers. Where the model `shares` weights
    /// between layers, there is one for both.
    pub fn planned(kind: Kind, shares: bool) -> Self {
        let planned = Some(Planned { kind, shares });
        Self { origin: PathBuf::new(), entries: BTreeMap::new(), keeping: Keeping::default(), planned }
    }

    /// Opens one safetensors file.
    pub fn open_file(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let names = file.names();
        let file: Arc<dyn TensorSource> = Arc::new(file);
        Self::of_tensors(path, names.into_iter().map(|name| (name.clone(), (file.clone(), name))).collect())
    }

    /// Tensors by their names, those that make up a weight in 4 bits as one.
    fn of_tensors(origin: &Path, mut tensors: BTreeMap<String, Named>) -> Result<Self> {
        let packed = FourBit::take(&mut tensors, origin)?;
        let mut entries: BTreeMap<String, Entry> =
            tensors.into_iter().map(|(key, (file, name))| (key, Entry::whole(&file, name))).collect();
        for (key, weight) in packed {
            let (file, name) = weight.codes();
            let four_bit = Some(Packed { weight: Arc::new(weight), transposed: false });
            entries.insert(key, Entry { four_bit, ..Entry::whole(&file, name) });
        }
        Ok(Self { origin: origin.to_owned(), entries, keeping: Keeping::default(), planned: None })
    }

    /// The same weights, where those in 4 bits of modules called as one of `names` are the other way round than the model has them:
    /// bitsandbytes turns transformers' `Conv1D` into linear layers.
    pub fn with_transposed(mut self, names: &[&str]) -> Self {
        for (key, entry) in &mut self.entries {
            let module = key.rsplit('.').nth(1).unwrap_or_default();
            if let Some(packed) = entry.four_bit.as_mut().filter(|_| names.contains(&module)) {
                packed.transposed = true;
            }
        }
        self
    }

    /// Whether the weight `key` is in 4 bits in its file.
    pub fn is_four_bit(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.four_bit.is_some())
    }

    /// The weight `key`, which is in 4 bits in its file, as it is there.
    pub fn packed(&self, key: &str, placement: Placement) -> Result<BaseWeight> {
        let missing = || Error::Internal(format!("`{key}` is not in 4 bits"));
        self.entry(key)?.four_bit.as_ref().ok_or_else(missing)?.weight.on(placement.device, placement.kind)
    }

    /// The weight `key` of `shape` as it is in its file, where that has it in 4 bits: `[out, in]`, to be computed with at `placement`.
    pub fn four_bit(&self, key: &str, shape: &[i64], placement: Placement) -> Result<Option<BaseWeight>> {
        let Some(packed) = &self.entry(key)?.four_bit else { return Ok(None) };
        self.check(key, shape)?;
        Ok(Some(packed.weight.on(placement.device, placement.kind)?))
    }

    /// Opens the weights in a model's folder: `model.safetensors` or `diffusion_pytorch_model.safetensors`, their
    /// `variant` (`model.fp16.safetensors`), or the shards that an index names.
    pub fn open_folder(folder: &Path, variant: Option<&str>) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::file(folder, "no such folder; a diffusers model has one for each of its parts"));
        }
        match weight_files::choose(|name| folder.join(name).exists(), variant) {
            Some(WeightFile::Single(name)) => return Self::open_file(&folder.join(name)),
            Some(WeightFile::ShardIndex(name)) => return Self::open_shards(&folder.join(name)),
            None => {}
        }
        let pickle = std::fs::read_dir(folder)
            .map_err(|e| Error::io("read", folder, e))?
            .flatten()
            .find(|entry| weight_files::is_pickle(&entry.file_name().to_string_lossy()));
        match pickle {
            Some(pickle) => Self::open_file(&pickle.path()),
            None => Err(Error::file(folder, "holds no .safetensors weights")),
        }
    }

    /// Whether `folder` has weights of `variant`.
    pub fn has_variant(folder: &Path, variant: &str) -> bool {
        weight_files::choose(|name| folder.join(name).exists(), Some(variant)).is_some()
    }

    fn open_shards(index: &Path) -> Result<Self> {
        let shards = shard_names(index)?;
        let folder = index.parent().unwrap_or(Path::new("."));
        let mut files: BTreeMap<String, Arc<dyn TensorSource>> = BTreeMap::new();
        let mut tensors: BTreeMap<String, Named> = BTreeMap::new();
        for (key, shard) in shards {
            if !files.contains_key(&shard) {
                files.insert(shard.clone(), Arc::new(MappedFile::open(&folder.join(&shard))?));
            }
            let file = &files[&shard];
            if file.info(&key).is_none() {
                return Err(Error::MissingWeight { path: file.path().to_owned(), key });
            }
            tensors.insert(key.clone(), (file.clone(), key));
        }
        Self::of_tensors(folder, tensors)
    }

    /// Tensors of one file under keys: each key with its tensor's name and the part of it that is the weight.
    pub(super) fn of_file(file: Arc<dyn TensorSource>, weights: impl Iterator<Item = (String, String, Part)>) -> Self {
        let entry = |(key, name, part)| (key, Entry { part, ..Entry::whole(&file, name) });
        let (origin, entries) = (file.path().to_owned(), weights.map(entry).collect());
        Self { origin, entries, keeping: Keeping::default(), planned: None }
    }

    /// The same weights under other keys; `spell` returns `None` for weights that are not of this model.
    pub fn respelled(self, spell: impl Fn(&str) -> Option<String>) -> Self {
        let entries =
            self.entries.into_iter().filter_map(|(key, entry)| spell(&key).map(|new_key| (new_key, entry))).collect();
        Self { entries, ..self }
    }

    /// The same weights, that of `key` under the key `other` too.
    pub fn with_copy(mut self, key: &str, other: &str) -> Result<Self> {
        let copy = self.entry(key)?.clone();
        self.entries.insert(other.to_owned(), copy);
        Ok(self)
    }

    /// Like [`WeightSet::respelled`], where one stored tensor can be several weights.
    pub(super) fn taken_apart(&self, spell: impl Fn(&str) -> Vec<(String, Part)>) -> Self {
        let mut entries = BTreeMap::new();
        for (key, entry) in &self.entries {
            for (new_key, part) in spell(key) {
                entries.insert(new_key, Entry { part, ..entry.clone() });
            }
        }
        Self { origin: self.origin.clone(), entries, keeping: self.keeping.clone(), planned: self.planned }
    }

    /// The same weights, to be kept so.
    pub fn stored_in(self, keeping: impl Into<Keeping>) -> Self {
        Self { keeping: keeping.into(), ..self }
    }

    /// How they are to be kept.
    pub fn keeping(&self) -> &Keeping {
        &self.keeping
    }

    /// The file or folder that the weights are from.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether there is a weight `key`.
    pub fn contains(&self, key: &str) -> bool {
        self.planned.is_some() || self.entries.contains_key(key)
    }

    /// The shape of the weight `key`.
    pub fn shape(&self, key: &str) -> Option<Vec<i64>> {
        let entry = self.entries.get(key)?;
        if let Some(packed) = &entry.four_bit {
            return Some(packed.shape());
        }
        let (mut shape, _) = entry.file.info(&entry.name)?;
        match (entry.part, shape.first_mut()) {
            (Part::Band { of, .. }, Some(rows)) => *rows /= of,
            (Part::Transposed, _) => shape.reverse(),
            _ => {}
        }
        Some(shape)
    }

    /// The dtype of the weight `key` in its file, or of the numbers that its codes of 4 or 8 bits stand for.
    pub fn kind(&self, key: &str) -> Result<Kind> {
        if let Some(planned) = self.planned {
            return Ok(planned.kind);
        }
        let entry = self.entry(key)?;
        if let Some(packed) = &entry.four_bit {
            return Ok(packed.weight.kind());
        }
        let missing = || Error::MissingWeight { path: self.origin.clone(), key: key.to_owned() };
        let stored = entry.file.info(&entry.name).ok_or_else(missing)?.1?;
        Ok(if is_fp8(stored) { Kind::Half } else { stored })
    }

    /// Refuses the weight `key` where it is not there, has no floating-point numbers, or another shape than `shape`.
    ///
    /// A trailing `1, 1` more or less is the same weight: old VAEs keep their linear layers as 1×1 convolutions.
    pub fn check(&self, key: &str, shape: &[i64]) -> Result<()> {
        let kind = self.kind(key)?;
        if !is_float(kind) {
            let message = format!("weight `{key}` is {kind:?}; a model's weights must be f32, f16 or bf16");
            return Err(Error::file(&self.origin, message));
        }
        if self.planned.is_some() {
            return Ok(());
        }
        let found = self.shape(key).unwrap_or_default();
        let core = |shape: &[i64]| shape.strip_suffix(&[1, 1]).unwrap_or(shape).to_vec();
        match found == shape || core(&found) == core(shape) {
            true => Ok(()),
            false => Err(Error::WeightShape {
                path: self.origin.clone(),
                key: key.to_owned(),
                found,
                expected: shape.to_vec(),
            }),
        }
    }

    /// The weight `key` as `shape` at `placement`. Where dtype and device are the file's, the tensor lies over the
    /// mapped file and must not be written to; else it is converted and the file's pages are let go.
    pub fn load(&self, key: &str, shape: &[i64], placement: Placement) -> Result<Tensor> {
        if self.planned.is_some() {
            return Ok(Tensor::f_empty(shape, (placement.kind, PLANNED))?);
        }
        if is_float(placement.kind) {
            self.check(key, shape)?;
        }
        let entry = self.entry(key)?;
        if let Some(packed) = &entry.four_bit {
            let dense = packed.weight.on(Device::Cpu, placement.kind)?.dense(placement.kind);
            packed.weight.let_go();
            let laid_out = if packed.transposed { dense.f_t_copy()? } else { dense };
            return Ok(laid_out.f_view(shape)?.f_to_device(placement.device)?);
        }
        let tensor = entry.part.of(&with_room(entry.file.tensor(&entry.name)?)?)?;
        let tensor = if tensor.size() == shape { tensor } else { tensor.f_view(shape)? };
        if tensor.kind() == placement.kind && placement.device == Device::Cpu {
            if entry.part.is_copied() {
                entry.file.let_go(&entry.name);
            }
            return Ok(tensor);
        }
        let placed = tensor.f_to_device(placement.device)?.f_to_kind(placement.kind)?;
        entry.file.let_go(&entry.name);
        Ok(placed)
    }

    /// Whether two weights are the same numbers.
    pub fn are_equal(&self, one: &str, other: &str) -> Result<bool> {
        if let Some(planned) = self.planned {
            return Ok(planned.shares);
        }
        let (one, other) = (self.entry(one)?, self.entry(other)?);
        let equal = one.part.of(&one.file.tensor(&one.name)?)? == other.part.of(&other.file.tensor(&other.name)?)?;
        [one, other].iter().for_each(|entry| entry.file.let_go(&entry.name));
        Ok(equal)
    }

    fn entry(&self, key: &str) -> Result<&Entry> {
        let missing = || Error::MissingWeight { path: self.origin.clone(), key: key.to_owned() };
        self.entries.get(key).ok_or_else(missing)
    }

    /// Where the weights are in their files: the name of each stored tensor, and the keys of the weights that it holds, from its
    /// first row down.
    pub fn stored(&self) -> BTreeMap<String, Vec<String>> {
        let mut stored: BTreeMap<String, Vec<(i64, String)>> = BTreeMap::new();
        for (key, entry) in &self.entries {
            let place = match entry.part {
                Part::Band { index, .. } => index,
                Part::Whole | Part::RotaryPairs { .. } | Part::Transposed => 0,
            };
            stored.entry(entry.name.clone()).or_default().push((place, key.clone()));
        }
        let in_order = |mut keys: Vec<(i64, String)>| {
            keys.sort();
            keys.into_iter().map(|(_, key)| key).collect()
        };
        stored.into_iter().map(|(name, keys)| (name, in_order(keys))).collect()
    }

    /// The stored tensor whose weights are `parts`, in the order of [`WeightSet::stored`]; `key` is the first one's.
    pub fn put_together(&self, key: &str, parts: &[Tensor]) -> Result<Tensor> {
        Ok(match (self.entry(key)?.part, parts) {
            (Part::Transposed, [whole]) => whole.f_tr()?.f_contiguous()?,
            (_, [whole]) => whole.shallow_clone(),
            (_, bands) => Tensor::f_cat(bands, 0)?,
        })
    }

    /// A number of all the weights and their keys: the same for the same numbers in the same dtypes, wherever they lie.
    pub fn fingerprint(&self) -> Result<String> {
        let mut digest = Sha256::new();
        for (key, entry) in &self.entries {
            let tensor = entry.part.of(&entry.file.tensor(&entry.name)?)?;
            digest.update(format!("{key} {:?} {:?}\0", tensor.kind(), tensor.size()));
            digest.update(tensor_bytes(&tensor)?);
            entry.file.let_go(&entry.name);
        }
        Ok(hex(&digest.finalize()))
    }

    /// The first key whose weight holds what is no finite number.
    pub fn first_not_finite(&self) -> Result<Option<String>> {
        for (key, entry) in self.entries.iter().filter(|(_, entry)| entry.four_bit.is_none()) {
            let tensor = entry.file.tensor(&entry.name)?;
            let tensor = with_room(tensor)?;
            let is_number = !is_float(tensor.kind()) || is_finite(&tensor)?;
            entry.file.let_go(&entry.name);
            if !is_number {
                return Ok(Some(key.clone()));
            }
        }
        Ok(None)
    }

    /// Lets the file's pages of `key` leave memory, after the weight was copied elsewhere.
    pub fn let_go(&self, key: &str) {
        match self.entries.get(key) {
            Some(Entry { four_bit: Some(packed), .. }) => packed.weight.let_go(),
            Some(entry) => entry.file.let_go(&entry.name),
            None => {}
        }
    }
}

/// Whether numbers of `kind` are floating-point numbers that models have.
pub fn is_float(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Double)
}

/// The dtype in which a tensor that is `stored` in one is written where `wanted` is asked for: what is no floating-point number stays what it is.
pub fn written_kind(stored: Kind, wanted: Option<Kind>) -> Kind {
    wanted.filter(|_| is_float(stored)).unwrap_or(stored)
}

/// Whether numbers of `kind` have 8 bits, all of which float16 holds.
fn is_fp8(kind: Kind) -> bool {
    matches!(kind, Kind::Float8e4m3fn | Kind::Float8e5m2)
}

/// `tensor`, where its numbers have 8 bits in float16: nothing is computed in fewer.
pub fn with_room(tensor: Tensor) -> Result<Tensor> {
    Ok(if is_fp8(tensor.kind()) { tensor.f_to_kind(Kind::Half)? } else { tensor })
}

/// Whether all of `tensor` is finite. Waits for the device.
pub fn is_finite(tensor: &Tensor) -> Result<bool> {
    Ok(f64::try_from(tensor.f_isfinite()?.f_all()?.f_to_kind(Kind::Float)?)? == 1.0)
}

impl Part {
    /// The weight in the stored `tensor`.
    fn of(self, tensor: &Tensor) -> Result<Tensor> {
        let size = tensor.size();
        let rows = size.first().copied().unwrap_or(0);
        match self {
            Self::Whole => Ok(tensor.shallow_clone()),
            Self::Band { index, of } => Ok(tensor.f_narrow(0, index * (rows / of), rows / of)?),
            Self::RotaryPairs { heads } => {
                let pairs = [&[heads, rows / heads / 2, 2], size.get(1..).unwrap_or_default()].concat();
                Ok(tensor.f_view(pairs.as_slice())?.f_transpose(1, 2)?.f_reshape(&size)?)
            }
            Self::Transposed => Ok(tensor.f_tr()?.f_contiguous()?),
        }
    }

    /// Whether the weight no longer lies over its file.
    fn is_copied(self) -> bool {
        matches!(self, Self::RotaryPairs { .. } | Self::Transposed)
    }
}

impl Entry {
    fn whole(file: &Arc<dyn TensorSource>, name: String) -> Self {
        Self { file: file.clone(), name, part: Part::Whole, four_bit: None }
    }
}
