//! Whether bytes are those that an ETag names.

use super::names::is_hex;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// What is known of bytes that come in pieces.
pub(super) enum Digest {
    /// Large files are named by the SHA-256 of their bytes.
    Sha256(Sha256),
    /// Small ones by that of git: the SHA-1 of `blob SIZE`, a zero byte and their bytes
    /// (<https://git-scm.com/book/en/v2/Git-Internals-Git-Objects>). Some mirrors give that of the bytes alone.
    Sha1 { git: Sha1, plain: Sha1 },
    /// Any other name says nothing of the bytes.
    None,
}

impl Digest {
    /// The one that says whether `size` bytes are those of `etag`.
    pub(super) fn of(etag: &str, size: u64) -> Self {
        match (etag.len(), is_hex(etag)) {
            (64, true) => Self::Sha256(Sha256::new()),
            (40, true) => Self::Sha1 { git: Sha1::new().chain_update(format!("blob {size}\0")), plain: Sha1::new() },
            _ => Self::None,
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(sha) => sha.update(bytes),
            Self::Sha1 { git, plain } => {
                git.update(bytes);
                plain.update(bytes);
            }
            Self::None => {}
        }
    }

    /// Whether the bytes are those of `etag`, as far as it says.
    pub(super) fn matches(self, etag: &str) -> bool {
        match self {
            Self::Sha256(sha) => hex(&sha.finalize()) == etag,
            Self::Sha1 { git, plain } => hex(&git.finalize()) == etag || hex(&plain.finalize()) == etag,
            Self::None => true,
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(etag: &str, bytes: &[u8]) -> bool {
        let mut digest = Digest::of(etag, bytes.len() as u64);
        bytes.chunks(2).for_each(|piece| digest.update(piece));
        digest.matches(etag)
    }

    #[test]
    fn bytes_are_compared_with_each_kind_of_name() {
        // `printf hello | sha256sum`, `git hash-object`, `sha1sum`.
        let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let (git, sha1) = ("b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0", "aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d");
        for etag in [sha256, git, sha1] {
            assert!(matches(etag, b"hello") && !matches(etag, b"hellO"), "{etag}");
        }
        assert!(matches("any-name", b"hello"));
    }
}
