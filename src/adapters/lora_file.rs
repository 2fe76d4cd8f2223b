//! Reads one file of low-rank pairs for a pipeline, in whatever spelling: kohya's, diffusers', OneTrainer's, ComfyUI's.
//!
//! What is known is loaded, and a warning names what is left out. What would change the result if it were left out (other
//! kinds of adapters, half a pair) is an error.

use super::adapter_set::{AdapterSet, Part, PartAdapter};
use super::base_model::{of_other_family, BaseModel, Family};
use super::diffusers_file::configurations;
use super::finite;
use super::formats::Format;
use super::lora::{A, B, COLUMN_MAGNITUDE, MAGNITUDE};
use super::lora_keys::{other_kind, parse, Key, Role};
use super::peft_folder::{config_from, respell_config, CONFIG_FILE};
use crate::error::{Error, Result};
use crate::weights::{unet_module, MappedFile};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Kind, Tensor};

/// How many left-out keys a warning names.
const NAMED: usize = 3;
/// Blocks of a level in all published Stable Diffusion models.
const USUAL_LAYERS: usize = 2;

/// What the keys of adapters have, and those of whole models have not.
const MARKS: &[&str] = &["lora", "dora_scale", "hada_", "lokr_", "oft_", "glora", ".diff"];

/// A module's tensors: each role's key in the file.
type Roles = BTreeMap<Role, String>;

/// Reads `file`, for the model `base` where one is at hand; the adapter and the format that its keys are of.
pub(super) fn read(file: &MappedFile, base: Option<&BaseModel>) -> Result<(AdapterSet, Format)> {
    let names = file.names();
    let metadata = file.metadata();
    let by_metadata = Family::of_metadata(&metadata);
    let is_adapter = names.iter().any(|name| MARKS.iter().any(|mark| name.contains(mark)));
    let by_keys = names.iter().filter(|_| is_adapter).filter_map(|name| Family::of_key(name)).max();
    if let Some(family) = by_keys.or(by_metadata).filter(|family| !family.is_supported()) {
        return Err(of_other_family(file.path(), family, base, ""));
    }
    // What fits the shapes of both generations' small models is told apart by what the file says.
    if let (Some(base), Some(family)) = (base, by_keys.or(by_metadata)) {
        if (family == Family::Xl) != (base.family() == Family::Xl) {
            return Err(of_other_family(file.path(), family, Some(base), ""));
        }
    }
    if let Some((key, kind)) = names.iter().find_map(|name| Some((name, other_kind(name)?))) {
        let message = format!("`{key}` is of {kind}, which is not supported; LoRA and DoRA are");
        return Err(Error::file(file.path(), message));
    }
    let keys: BTreeMap<&String, Key> = names.iter().filter_map(|name| Some((name, parse(name)?))).collect();
    let layers = base.map_or_else(|| layers_of(&keys), BaseModel::layers_per_block);
    let modules = modules_of(file, &keys, layers, base.is_some())?;
    let mut set = adapters(file, &modules)?;
    if set.parts().next().is_none() {
        return Err(nothing_known(file, &names));
    }
    let used: BTreeSet<&String> =
        modules.values().filter(|roles| is_pair(roles)).flat_map(|roles| roles.values()).collect();
    let left_out: Vec<&String> = names.iter().filter(|name| !used.contains(name)).collect();
    let why = "not part of a LoRA of a UNet or text encoder";
    set.warnings.extend(left_out_warning(file.path(), &left_out, names.len(), why));
    set.spelling = Some(spelling(&keys));
    set.family = Family::of_set(&set).or(by_keys).or(by_metadata).or(has_blocks_of_xl(&keys).then_some(Family::Xl));
    Ok((set, format_of(&keys)))
}

/// What is told of the keys `left_out` of the `all` tensors of a file, `why` in words.
pub(super) fn left_out_warning(path: &Path, left_out: &[&String], all: usize, why: &str) -> Option<String> {
    let first: Vec<String> = left_out.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
    let more = if left_out.len() > NAMED { ", …" } else { "" };
    let (path, count, first) = (path.display(), left_out.len(), first.join(", "));
    (count > 0).then(|| format!("{path}: left out {count} of its {all} tensors ({why}): {first}{more}"))
}

/// The blocks of a level that the original code's names are of: they say themselves where a model has other ones than is usual.
fn layers_of(keys: &BTreeMap<&String, Key>) -> usize {
    let original: Vec<&Key> = keys.values().filter(|key| key.is_original).collect();
    let fits = |layers: &usize| original.iter().all(|key| unet_module(&key.path, *layers).is_some());
    [USUAL_LAYERS, 1, 3, 4].into_iter().find(fits).unwrap_or(USUAL_LAYERS)
}

/// Whether the blocks of kohya's keys, by the original code's names, are those of SDXL with attention: kohya's files for
/// Stable Diffusion 1.x and 2.x have diffusers' names, and their first level has attention.
fn has_blocks_of_xl(keys: &BTreeMap<&String, Key>) -> bool {
    let blocks: BTreeSet<(&str, u32)> = keys
        .values()
        .filter(|key| key.is_original && key.start == "lora_unet_" && key.path.contains(".transformer_blocks."))
        .filter_map(|key| {
            let mut names = key.path.split('.');
            Some((names.next()?, names.next()?.parse().ok()?))
        })
        .collect();
    let is_of_xl = |&(side, number): &(&str, u32)| match side {
        "input_blocks" => [4, 5, 7, 8].contains(&number),
        "output_blocks" => number < 6,
        _ => true,
    };
    blocks.iter().any(|(side, _)| *side == "input_blocks") && blocks.iter().all(is_of_xl)
}

/// The modules that the file has tensors for. A module that is spelled in two ways is refused.
fn modules_of(
    file: &MappedFile,
    keys: &BTreeMap<&String, Key>,
    layers: usize,
    has_model: bool,
) -> Result<BTreeMap<(Part, String), Roles>> {
    let mut modules: BTreeMap<(Part, String), Roles> = BTreeMap::new();
    for (name, key) in keys {
        let path = match key.is_original.then(|| unet_module(&key.path, layers)) {
            None => key.path.clone(),
            Some(Some(path)) => path,
            // Fits no module, of which the model's check says more.
            Some(None) if has_model => key.path.clone(),
            Some(None) => {
                let message = format!("`{name}` is of a block that no UNet of Stable Diffusion has");
                return Err(Error::file(file.path(), message));
            }
        };
        let roles = modules.entry((key.part, path)).or_default();
        if let Some(first) = roles.insert(key.role, (*name).clone()) {
            let message =
                format!("`{first}` and `{name}` are the same tensor of the same module; take one of them out");
            return Err(Error::file(file.path(), message));
        }
    }
    Ok(modules)
}

fn is_pair(roles: &Roles) -> bool {
    roles.contains_key(&Role::A) && roles.contains_key(&Role::B)
}

/// The adapters of the networks.
fn adapters(file: &MappedFile, modules: &BTreeMap<(Part, String), Roles>) -> Result<AdapterSet> {
    let failed = |message: String| Error::file(file.path(), message);
    let mut tensors: BTreeMap<Part, BTreeMap<String, Tensor>> = BTreeMap::new();
    let mut alphas: BTreeMap<Part, BTreeMap<String, f64>> = BTreeMap::new();
    for ((part, path), roles) in modules {
        if !is_pair(roles) {
            match roles.iter().find(|(role, _)| **role != Role::Alpha) {
                // An alpha alone changes nothing.
                None => continue,
                Some((_, key)) => {
                    return Err(failed(format!("has `{key}` without the rest of its pair; is the file whole?")))
                }
            }
        }
        let tensor = |role: &Role| roles.get(role).map(|key| finite::tensor(file, key)).transpose();
        let (Some(mut a), Some(b)) = (tensor(&Role::A)?, tensor(&Role::B)?) else { continue };
        let key = &roles[&Role::A];
        if a.numel() == 0 || b.numel() == 0 {
            return Err(failed(format!("`{key}` has the shape {:?}, a pair of rank 0; is the file whole?", a.size())));
        }
        if let Some(middle) = tensor(&Role::Middle)? {
            a = with_middle(&a, &middle)
                .ok_or_else(|| failed(format!("`{}` does not fit its pair's shapes", roles[&Role::Middle])))?;
        }
        let of_part = tensors.entry(*part).or_default();
        if let Some(key) = roles.get(&Role::Magnitude) {
            let (end, magnitude) = magnitude(finite::tensor(file, key)?, key.ends_with(".dora_scale"), a.dim());
            of_part.insert(format!("{path}{end}"), magnitude);
        }
        of_part.insert(format!("{path}{A}"), a);
        of_part.insert(format!("{path}{B}"), b);
        if let Some(key) = roles.get(&Role::Alpha) {
            let alpha = finite::tensor(file, key)?;
            if alpha.numel() != 1 {
                return Err(failed(format!("`{key}` has the shape {:?} and must be one number", alpha.size())));
            }
            alphas.entry(*part).or_default().insert(path.clone(), alpha.f_sum(Kind::Double)?.f_double_value(&[])?);
        }
    }
    let configurations = configurations(file)?;
    let mut set = AdapterSet::default();
    for (part, mut tensors) in tensors {
        leave_out_zeros(&mut tensors);
        let adapter = match configurations.get(&part) {
            Some(config) => {
                let mut config = config_from(config.clone()).map_err(|error| failed(error.to_string()))?;
                respell_config(&mut config);
                let said = alphas.get(&part).into_iter().flatten();
                if let Some((path, alpha)) = said.into_iter().find(|(path, alpha)| config.alpha_of(path) != **alpha) {
                    return Err(failed(format!(
                        "says alpha {alpha} of `{path}` in its tensors, and {} in its metadata; remove one of the two",
                        config.alpha_of(path)
                    )));
                }
                PartAdapter { config, tensors }.checked()
            }
            None => PartAdapter::inferred(tensors, alphas.get(&part).unwrap_or(&BTreeMap::new())),
        };
        set.set(part, adapter.map_err(|error| failed(error.to_string()))?);
    }
    Ok(set)
}

/// A with the kernel that LyCORIS puts between two 1×1 matrices multiplied in, which makes it a convolution's: its
/// `[r, r, k, k]` and A's `[r, in, 1, 1]` are `[r, in, k, k]`. (LyCORIS `functional/general.py`, `rebuild_tucker`.)
fn with_middle(a: &Tensor, middle: &Tensor) -> Option<Tensor> {
    let (inner, kernel) = (a.size(), middle.size());
    let is_plain = inner.len() >= 2 && inner.iter().skip(2).all(|&side| side == 1);
    if kernel.len() != 4 || !is_plain || kernel[0] != inner[0] || kernel[1] != inner[0] {
        return None;
    }
    let flat = a.flatten(1, -1).to_kind(Kind::Float);
    Tensor::f_einsum("abkl,bi->aikl", &[middle.to_kind(Kind::Float), flat], None::<&[i64]>).ok()
}

/// A magnitude by our name and shape, beside a pair of so many `dimensions`. `[1, in]` and `[1, in, 1, 1]` have a number for
/// each input column, and are kept as they are. Other shapes have one for each output row, and become PEFT's: `[out]`, or
/// `[1, out, 1, 1]` of a convolution, which a file with `dora_scale` writes `[out, 1, 1, 1]`.
fn magnitude(scale: Tensor, is_dora_scale: bool, dimensions: usize) -> (&'static str, Tensor) {
    let shape = scale.size();
    let ones_behind = |from: usize| shape.iter().skip(from).all(|&side| side == 1);
    match shape[..] {
        [1, columns, ..] if columns > 1 && ones_behind(2) && (is_dora_scale || shape.len() == 2) => {
            (COLUMN_MAGNITUDE, scale)
        }
        [rows, ..] if ones_behind(1) && dimensions == 4 => (MAGNITUDE, scale.reshape([1, rows, 1, 1])),
        [rows, ..] if ones_behind(1) => (MAGNITUDE, scale.reshape([rows])),
        _ => (MAGNITUDE, scale),
    }
}

/// Takes pairs out whose A and B are zero, which no training makes: markers, which our kohya files have for diffusers.
fn leave_out_zeros(tensors: &mut BTreeMap<String, Tensor>) {
    let is_zero = |name: &String| tensors.get(name).is_some_and(|t| t.abs().max().double_value(&[]) == 0.0);
    let names = |module: &str| [A, B].map(|end| format!("{module}{end}"));
    let zeros: Vec<String> = tensors
        .keys()
        .filter_map(|name| name.strip_suffix(A))
        .filter(|module| module.ends_with(".out_proj") && names(module).iter().all(is_zero))
        .map(str::to_owned)
        .collect();
    for name in zeros.iter().flat_map(|module| names(module)) {
        tensors.remove(&name);
    }
}

fn nothing_known(file: &MappedFile, names: &[String]) -> Error {
    let first = names.first().map(String::as_str).unwrap_or_default();
    let has = |starts: &[&str]| names.iter().any(|name| starts.iter().any(|start| name.starts_with(start)));
    let message = if first.starts_with("base_model.model.") {
        format!("is PEFT's, whose {CONFIG_FILE} must be in the same folder")
    } else if has(&["model.diffusion_model.", "down_blocks.", "text_model."]) {
        format!("holds a model's own weights and no adapter (its first key is `{first}`); a model is given with ⟨model⟩, where a command takes one")
    } else if has(&["emb_params", "string_to_param", "clip_l", "clip_g"]) {
        "is a textual inversion embedding, which is not supported; LoRA and DoRA are".to_owned()
    } else if names.is_empty() {
        "holds no tensors".to_owned()
    } else {
        format!("is not an adapter in a known format (its first key is `{first}`)")
    };
    Error::file(file.path(), message)
}

fn format_of(keys: &BTreeMap<&String, Key>) -> Format {
    let starts = |test: &dyn Fn(&str) -> bool| keys.values().any(|key| test(key.start));
    if starts(&|start| start.ends_with('_')) {
        Format::Kohya
    } else if starts(&|start| start.contains("diffusion_model.") || start.starts_with("text_encoders.")) {
        Format::ComfyUi
    } else {
        Format::Diffusers
    }
}

/// What the keys look like, in words.
fn spelling(keys: &BTreeMap<&String, Key>) -> String {
    let pairs = || keys.values().filter(|key| matches!(key.role, Role::A | Role::Magnitude));
    let distinct = |of: &dyn Fn(&Key) -> String| {
        let found: BTreeSet<String> = pairs().map(of).collect();
        found.into_iter().collect::<Vec<_>>().join(" and ")
    };
    let keys = distinct(&|key| format!("{}*{}", key.start, key.end));
    match pairs().any(|key| key.is_original) {
        true => format!("{keys}, with the original code's names of blocks"),
        false => keys,
    }
}
