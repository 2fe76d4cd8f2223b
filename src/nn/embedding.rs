//! A table of vectors by id.

use super::loader::Loader;
use crate::adapters::Site;
use crate::error::Result;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Rows of a table, with the adapters of its site.
pub struct Embedding(Rc<Site>);

impl Embedding {
    /// Loads a table `[rows, width]`.
    pub fn load(loader: &Loader, rows: i64, width: i64) -> Result<Self> {
        Ok(Self(loader.table(&[rows, width])?))
    }

    /// The table of `shared` under the path of `loader`, with adapters of its own.
    pub fn tied(loader: &Loader, shared: &Embedding) -> Self {
        Self(loader.put_table(shared.table(), true))
    }

    /// `[..] -> [.., width]`, from int64 ids.
    pub fn forward(&self, ids: &Tensor) -> Tensor {
        self.0.forward(ids)
    }

    /// The first `n` rows: `[n, width]`.
    pub fn first(&self, n: i64) -> Tensor {
        let device = self.0.with_weight(|weight| weight.device());
        self.forward(&Tensor::arange(n, (Kind::Int64, device)))
    }

    /// The whole table `[rows, width]` as it was loaded, which may be the weight of another layer too.
    pub(super) fn table(&self) -> Tensor {
        self.0.with_weight(|weight| weight.dense(weight.kind()))
    }
}
