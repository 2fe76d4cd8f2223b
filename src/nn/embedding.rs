//! A table of vectors by id.

use super::loader::Loader;
use crate::adapters::Param;
use crate::error::Result;
use std::rc::Rc;
use tch::Tensor;

/// Rows of a table.
pub struct Embedding(Rc<Param>);

impl Embedding {
    /// Loads a table `[rows, width]`.
    pub fn load(loader: &Loader, rows: i64, width: i64) -> Result<Self> {
        Ok(Self(loader.table("weight", &[rows, width])?))
    }

    /// Loads a small table, which stays where it computes also where weights are streamed.
    pub(super) fn load_small(loader: &Loader, rows: i64, width: i64) -> Result<Self> {
        Ok(Self(loader.param("weight", &[rows, width])?))
    }

    /// `[..] -> [.., width]`, from int64 ids.
    pub fn forward(&self, ids: &Tensor) -> Tensor {
        self.0.rows(ids)
    }

    /// The first `n` rows: `[n, width]`.
    pub fn first(&self, n: i64) -> Tensor {
        self.0.get().narrow(0, 0, n)
    }

    /// The whole table `[rows, width]`, which may be the weight of another layer too.
    pub(super) fn table(&self) -> &Param {
        &self.0
    }
}
