//! Where the first rank of a run stands, for the others.

use crate::error::{Error, Result};
use crate::train::precision::ScalerState;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// All of it but tensors.
#[derive(Serialize, Deserialize)]
pub(super) struct SharedState {
    /// Optimizer steps done.
    pub step: u64,
    /// Of them those of an earlier process.
    pub resumed_at: u64,
    /// Batches done.
    pub micro_step: u64,
    /// An evaluation was interrupted.
    pub evaluation_is_owed: bool,
    /// Of float16 training.
    pub scaler: Option<ScalerState>,
    /// The optimizer's tensors.
    pub optimizer: Vec<Shape>,
}

/// A tensor's name, dtype and shape.
#[derive(Serialize, Deserialize)]
pub(super) struct Shape {
    name: String,
    kind: String,
    size: Vec<i64>,
}

impl Shape {
    /// That of `tensor`.
    pub fn of(name: &str, tensor: &Tensor) -> Self {
        Self { name: name.to_owned(), kind: format!("{:?}", tensor.kind()), size: tensor.size() }
    }

    /// A tensor of it.
    pub fn zeros(&self, device: Device) -> Result<(String, Tensor)> {
        let kinds = [Kind::Float, Kind::Double, Kind::Uint8, Kind::Int, Kind::Int64];
        let kind = kinds.into_iter().find(|kind| format!("{kind:?}") == self.kind);
        let kind = kind.ok_or_else(|| Error::Internal(format!("no optimizer has {}", self.kind)))?;
        Ok((self.name.clone(), Tensor::zeros(&self.size, (kind, device))))
    }
}
