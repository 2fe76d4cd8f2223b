//! Tensors of adapter files, refused where they hold what is no finite number: a training that went wrong is told from its
//! file, not from black images.

use crate::error::{Error, Result};
use crate::weights::{is_finite, with_room, MappedFile};
use tch::Tensor;

/// The tensor `key` of `file`.
pub(super) fn tensor(file: &MappedFile, key: &str) -> Result<Tensor> {
    let tensor = with_room(file.tensor(key)?)?;
    match is_finite(&tensor)? {
        true => Ok(tensor),
        false => Err(Error::file(
            file.path(),
            format!(
                "`{key}` holds NaN or infinity, so this adapter cannot be used; take an earlier checkpoint of its training, \
                 or download it again"
            ),
        )),
    }
}
