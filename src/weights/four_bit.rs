//! Weights that a file has in few bits already: NF4 as bitsandbytes saves it is read as it is, other kinds are refused by name.

use super::storage::{dynamic_map, BaseWeight, Nf4Form, Nf4Weight};
use super::tensor_source::TensorSource;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// What follows the key of a weight in the name of its description.
const STATE: &str = ".quant_state.bitsandbytes__nf4";

/// Ends of the names that other quantised weights have, and whose they are.
const OTHERS: [(&str, &str); 12] = [
    (".quant_state.bitsandbytes__fp4", "bitsandbytes' FP4"),
    (".SCB", "bitsandbytes' 8 bits"),
    (".weight_format", "bitsandbytes' 8 bits"),
    (".wscales", "Nunchaku's SVDQuant"),
    (".smooth_factor", "Nunchaku's SVDQuant"),
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".weight_packed", "compressed-tensors"),
    (".scale_weight", "fp8 with scales, as ComfyUI has it"),
    (".weight_scale", "8 bits with scales"),
    (".absmax", "bitsandbytes, without its description"),
    (".quant_map", "bitsandbytes, without its description"),
];

/// A tensor of a file.
pub(super) type Named = (Arc<dyn TensorSource>, String);

/// bitsandbytes' description of a weight.
#[derive(Deserialize)]
struct State {
    blocksize: i64,
    dtype: String,
    shape: Vec<i64>,
    nested_blocksize: Option<i64>,
    nested_offset: Option<f64>,
}

/// A weight that its file has in NF4.
pub(super) struct FourBit {
    /// Codes and scales, and where these are quantised their own scales and what their codes stand for.
    parts: Vec<Named>,
    form: Nf4Form,
    kind: Kind,
}

impl FourBit {
    /// Takes the weights in NF4 out of `tensors`, by their keys. Refuses those in other few bits, of the file or folder `origin`.
    pub(super) fn take(tensors: &mut BTreeMap<String, Named>, origin: &Path) -> Result<BTreeMap<String, Self>> {
        let keys: Vec<String> = tensors.keys().filter_map(|name| name.strip_suffix(STATE)).map(str::to_owned).collect();
        let mut taken = BTreeMap::new();
        for key in keys {
            let weight = Self::of(&key, tensors).map_err(|error| match error {
                Error::MissingWeight { .. } => error,
                other => Error::file(origin, format!("weight `{key}` in 4 bits: {other}")),
            })?;
            tensors
                .retain(|name, _| !name.strip_prefix(&key).is_some_and(|end| end.is_empty() || end.starts_with('.')));
            taken.insert(key, weight);
        }
        let of = |end: &str| tensors.keys().find(|name| name.ends_with(end)).cloned();
        match OTHERS.iter().find_map(|(end, whose)| Some((of(end)?, *whose))) {
            Some((name, whose)) => Err(quantised(origin, &format!("{whose}: it has `{name}`"))),
            None => Ok(taken),
        }
    }

    fn of(key: &str, tensors: &BTreeMap<String, Named>) -> Result<Self> {
        let named = |end: &str| {
            let name = format!("{key}{end}");
            let missing = || Error::invalid(format!("`{name}` is not there; download the files again"));
            tensors.get(&name).map(|(file, name)| (file.clone(), name.clone())).ok_or_else(missing)
        };
        let description = read(&named(STATE)?)?;
        let text: Vec<u8> = Vec::try_from(description.f_to_kind(Kind::Uint8)?.f_view([-1])?)?;
        let state: State = serde_json::from_slice(&text)
            .map_err(|error| Error::invalid(format!("its description is not bitsandbytes' ({error})")))?;
        let kind = match state.dtype.as_str() {
            "float32" => Kind::Float,
            "float16" => Kind::Half,
            "bfloat16" => Kind::BFloat16,
            other => {
                return Err(Error::invalid(format!("it stands for {other}; float32, float16 and bfloat16 are read")))
            }
        };
        let mut parts = vec![named("")?, named(".absmax")?];
        let nested = match (state.nested_blocksize, state.nested_offset) {
            (Some(size), Some(offset)) => {
                parts.extend([named(".nested_absmax")?, named(".nested_quant_map")?]);
                Some((size, offset))
            }
            _ => None,
        };
        if state.shape.iter().any(|&size| size < 1) || state.shape.len() < 2 || nested.is_some_and(|(size, _)| size < 1)
        {
            return Err(Error::invalid(format!("its description has the shape {:?}", state.shape)));
        }
        Ok(Self { parts, form: Nf4Form { shape: state.shape, block: state.blocksize, nested }, kind })
    }

    /// The tensor of its codes.
    pub(super) fn codes(&self) -> Named {
        let (file, name) = &self.parts[0];
        (file.clone(), name.clone())
    }

    /// Its shape.
    pub(super) fn shape(&self) -> &[i64] {
        &self.form.shape
    }

    /// The dtype that it stands for.
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// The weight on the CPU, over its file.
    pub(super) fn weight(&self, kind: Kind) -> Result<Nf4Weight> {
        let mut parts = self.parts.iter().map(read).collect::<Result<Vec<Tensor>>>()?;
        // Some files hold the codes as numbers of another dtype.
        parts[0] = parts[0].f_view([-1])?.f_view_dtype(Kind::Uint8)?;
        if let Some(map) = parts.get(3) {
            let known = dynamic_map(true);
            if map.size() != known.size() || *map != known {
                return Err(Error::invalid(format!("`{}` is not bitsandbytes' map of 8 bits", self.parts[3].1)));
            }
        }
        Ok(Nf4Weight::of(self.form.clone(), parts, kind))
    }

    /// The same on `device`, checked.
    pub(super) fn on(&self, device: Device, kind: Kind) -> Result<BaseWeight> {
        let weight = self.weight(kind)?;
        weight.check()?;
        Ok(BaseWeight::Nf4(match device {
            Device::Cpu => weight,
            device => weight.on(device),
        }))
    }

    /// Lets its pages leave memory.
    pub(super) fn let_go(&self) {
        self.parts.iter().for_each(|(file, name)| file.let_go(name));
    }
}

fn read((file, name): &Named) -> Result<Tensor> {
    file.tensor(name)
}

/// The refusal of weights in few bits of a kind that is not read.
pub fn quantised(path: &Path, told_by: &str) -> Error {
    Error::file(
        path,
        format!(
            "its weights are quantised ({told_by}), and such files are not read; those of bitsandbytes' NF4, and of fp8 without scales, \
             are. Take the model that it was made from: ⟨quantize⟩ quantises while it is loaded"
        ),
    )
}
