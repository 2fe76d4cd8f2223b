//! What can go wrong, one variant for each thing that a user can act on. Options in messages are as [`crate::sentence`] has them.

use crate::sentence;
use std::path::{Path, PathBuf};

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Each message is one plain sentence: what is at fault, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {path}: {cause}", path = .path.display(), cause = plain_cause(.source))]
    Io {
        /// "read", "write", "create", …
        action: &'static str,
        /// The file or folder at fault.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is there but its content is not what it must be.
    #[error("{path}{} {message}", colon(.message), path = .path.display())]
    File {
        /// The file at fault.
        path: PathBuf,
        /// What is wrong with it and what to do: beginning with its verb, one of [`VERBS`], or a sentence of its own.
        message: String,
    },
    /// A weight that the model needs is not in its files.
    #[error("{path} has no weight `{key}`; is it the right model, and complete?", path = .path.display())]
    MissingWeight {
        /// The file or folder that was searched.
        path: PathBuf,
        /// The key in the model's own spelling.
        key: String,
    },
    /// A weight has another shape than the model's configuration asks for.
    #[error("weight `{key}` in {path} has shape {found:?}, the model expects {expected:?}", path = .path.display())]
    WeightShape {
        /// The file or folder.
        path: PathBuf,
        /// The weight's key.
        key: String,
        /// The shape in the file.
        found: Vec<i64>,
        /// The shape that follows from the configuration.
        expected: Vec<i64>,
    },
    /// An option, a flag or a configuration field has a value that cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// Flags that do not go together.
    #[error("{0}")]
    Usage(String),
    /// Libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(String),
    /// A mistake of ours.
    #[error("an internal check failed ({0}); please report it with the command line")]
    Internal(String),
    /// An adapter is for modules that the model does not have.
    #[error("{0}")]
    NoTarget(String),
    /// The device's memory is full.
    #[error("out of memory on {device} ({cause}); {advice}")]
    OutOfMemory {
        /// The device's name.
        device: String,
        /// What libtorch said.
        cause: String,
        /// What to turn on, in order of cost.
        advice: String,
    },
    /// The loss or the weights stopped being numbers.
    #[error("{0}")]
    Diverged(String),
    /// Another process of a data parallel run died, hangs, or ended.
    #[error("{0}")]
    OtherRank(String),
    /// The processes of a data parallel run were started with something that is not the same for all, as each of them finds.
    #[error("{0}")]
    RanksDiffer(String),
    /// The user stopped the run; its state was saved.
    #[error("interrupted: {0}")]
    Interrupted(String),
}

/// What a training run can do where memory is full.
const TRAIN_IN_LESS: &str = "turn on ⟨gradient_checkpointing⟩, or lower ⟨resolution⟩, ⟨train_batch_size⟩ or ⟨lora_r⟩ \
    (`lorabooth plan` says what fits)";

/// The words that a message begins with whose subject is the file.
const VERBS: &[&str] = &[
    "already", "begins", "cannot", "changed", "claims", "does", "ends", "has", "holds", "is", "lacks", "names",
    "needs", "was",
];

/// What stands between a file's name and `message`: nothing where the file is its subject.
fn colon(message: &str) -> &'static str {
    let first = message.split(' ').next().unwrap_or_default();
    if VERBS.contains(&first) {
        ""
    } else {
        ":"
    }
}

/// The system's message without the "(os error N)" that no user can act on.
fn plain_cause(source: &std::io::Error) -> String {
    if source.raw_os_error() == Some(libc::EFAULT) {
        // Bytes were to be written from a mapped file that has them no more.
        return "a file that is read for it was cut short by another program".to_owned();
    }
    let text = source.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

/// Libtorch's words on memory that it did not get, without what it says to its developers.
fn plain_allocation(line: &str) -> String {
    let cause = line.split_once("DefaultCPUAllocator: ").map_or(line, |(_, cause)| cause);
    let cause = cause.trim_start_matches("CUDA out of memory. ");
    cause.split(". Error code").next().unwrap_or(cause).trim_end_matches([' ', '.']).to_owned()
}

impl Error {
    /// The option at fault, such as `lora_r`, where it is one: the message begins with it.
    pub fn option(&self) -> Option<&str> {
        match self {
            Error::Invalid(message) | Error::Usage(message) | Error::Diverged(message) => sentence::subject(message),
            _ => None,
        }
    }

    /// An [`Error::Io`] for `path`.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { action, path: path.as_ref().to_owned(), source }
    }

    /// An [`Error::File`] for `path`.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_owned(), message: message.into() }
    }

    /// The refusal to replace what is at `path` unasked; `option` names another place, as a sentence has it.
    pub fn is_there(path: impl AsRef<Path>, option: &str) -> Self {
        Error::file(path, format!("already exists; replace it with ⟨overwrite⟩, or choose another {option}"))
    }

    /// The same of what a training run wrote, which can go on.
    pub fn is_of_a_run(path: impl AsRef<Path>) -> Self {
        let cures = "continue it with ⟨resume⟩, replace it with ⟨overwrite⟩, or name another ⟨output_dir⟩";
        Error::file(path, format!("already exists, from another run; {cures}"))
    }

    /// The same, where memory is full with `advice` for the job that it was full in.
    pub fn advising(self, advice: &str) -> Self {
        match self {
            Error::OutOfMemory { device, cause, .. } => Error::OutOfMemory { device, cause, advice: advice.to_owned() },
            other => other,
        }
    }

    /// The error where the system gives no thread.
    pub fn no_thread(source: std::io::Error) -> Self {
        let cause = plain_cause(&source);
        Self::invalid(format!("cannot start a thread ({cause}); end other programs, or raise the limit (`ulimit -u`)"))
    }

    /// An [`Error::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::Invalid(message.into())
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        let text = error.to_string();
        // Libtorch appends its C++ backtrace; the first line is the message.
        let line = text.lines().next().unwrap_or_default().trim_start_matches("Internal torch error: ").to_owned();
        if line.contains("out of memory")
            || line.contains("can't allocate memory")
            || line.contains("not enough memory")
        {
            return Error::OutOfMemory {
                device: if line.contains("CUDA") { "the GPU".into() } else { "the host".into() },
                cause: plain_allocation(&line),
                advice: TRAIN_IN_LESS.to_owned(),
            };
        }
        Error::Torch(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_subject_of_what_is_said_of_it() {
        let said = |message: &str| Error::file("a.json", message).to_string();
        assert_eq!(said("has no `r`"), "a.json has no `r`");
        assert_eq!(said("already exists; choose another"), "a.json already exists; choose another");
        assert_eq!(said("its `r` is 0"), "a.json: its `r` is 0");
        assert_eq!(said("issue 3"), "a.json: issue 3");
    }
}
