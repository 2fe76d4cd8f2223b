//! A table of vectors by id.

use super::loader::{Bias, Loader};
use crate::adapters::{Site, SiteTraits};
use crate::error::Result;
use crate::weights::Op;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Rows of a table, with the adapters of its site.
pub struct Embedding(Rc<Site>);

impl Embedding {
    /// Loads a table `[rows, width]`.
    pub fn load(loader: &Loader, rows: i64, width: i64) -> Result<Self> {
        Ok(Self(loader.site(Op::Embedding, &[rows, width], Bias::No, SiteTraits::default())?))
    }

    /// Loads a table `[rows, width]` that waits in its file for a GPU.
    pub fn load_waiting(loader: &Loader, rows: i64, width: i64) -> Result<Self> {
        let traits = SiteTraits { waits_in_file: true, ..SiteTraits::default() };
        Ok(Self(loader.site(Op::Embedding, &[rows, width], Bias::No, traits)?))
    }

    /// Loads a small table, which stays where it computes also where weights are streamed.
    pub(super) fn load_small(loader: &Loader, rows: i64, width: i64) -> Result<Self> {
        Ok(Self(loader.put(Op::Embedding, loader.weight(&[rows, width])?, None)))
    }

    /// The table of `shared` under the path of `loader`, with adapters of its own.
    pub fn tied(loader: &Loader, shared: &Embedding) -> Result<Self> {
        Ok(Self(loader.tied(Op::Embedding, &shared.0, SiteTraits::default())?))
    }

    /// `[..] -> [.., width]`, from int64 ids, which may be on the host: a table that waits there needs them there.
    pub fn forward(&self, ids: &Tensor) -> Tensor {
        self.0.forward(ids)
    }

    /// The first `n` rows: `[n, width]`.
    pub fn first(&self, n: i64) -> Tensor {
        self.forward(&Tensor::arange(n, (Kind::Int64, Device::Cpu)))
    }

    /// The site of the table `[rows, width]`, which may be the weight of another layer too.
    pub(super) fn site(&self) -> &Site {
        &self.0
    }
}
