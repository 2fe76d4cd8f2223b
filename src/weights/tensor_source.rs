//! What a set of weights reads from, whatever the file's format.

use crate::error::Result;
use std::path::Path;
use tch::{Kind, Tensor};

/// A file of tensors by name.
pub(super) trait TensorSource: Send + Sync {
    /// The file.
    fn path(&self) -> &Path;

    /// Shape of the tensor `name`, and the dtype that [`TensorSource::tensor`] gives it.
    fn info(&self, name: &str) -> Option<(Vec<i64>, Result<Kind>)>;

    /// The tensor `name` on the CPU. It can lie over the mapped file and must not be written to.
    fn tensor(&self, name: &str) -> Result<Tensor>;

    /// Lets the file's pages of the tensor `name` leave memory, after it was copied elsewhere.
    fn let_go(&self, name: &str);
}
