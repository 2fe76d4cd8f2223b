//! Ids and secrets from the system's random numbers.

use crate::error::{Error, Result};
use std::fmt::Write;

/// An id of 16 hexadecimal digits.
pub fn new_id() -> Result<String> {
    random_hex(8)
}

/// `bytes` random bytes as hexadecimal digits.
pub fn random_hex(bytes: usize) -> Result<String> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random)
        .map_err(|error| Error::Internal(format!("the system gives no random numbers: {error}")))?;
    Ok(hex(&random))
}

/// `bytes` as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
