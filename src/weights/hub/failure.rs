//! What went wrong with the hub, in one sentence.

use super::Hub;
use crate::error::Error;
use std::time::Duration;

/// A pause that a server may ask for before another attempt; where it asks for more, the user hears of it instead.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// The pause before the second attempt; it doubles from one to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// What an attempt gives.
pub(super) type Attempted<T> = Result<T, Failure>;

/// Why an attempt to get something failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection: what the system says.
    Unreachable(String),
    /// The connection broke while an answer came.
    Broken(String),
    /// Nothing came for too long.
    TimedOut,
    /// A status that is an error.
    Refused {
        status: u16,
        /// The hub's own word for it; of an upload, its sentence.
        code: String,
        /// How long the server asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// An answer that cannot be used, and why.
    Odd(String),
    /// What came is not what the hub names.
    Damaged,
    /// The system gives no thread to wait on.
    NoThread(String),
    /// The same, at another host than the hub.
    At(String, Box<Failure>),
    /// Something of this machine, or the user's wish to stop.
    Here(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Here(error)
    }
}

impl Failure {
    /// Whether the hub cannot be used at present: what was fetched before is as good as it gets.
    pub(super) fn is_absence(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Broken(_) | Self::TimedOut => true,
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::At(_, failure) => failure.is_absence(),
            _ => false,
        }
    }

    /// Whether nobody answered, so that to ask again at once is in vain.
    pub(super) fn is_without_answer(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TimedOut => true,
            Self::At(_, failure) => failure.is_without_answer(),
            _ => false,
        }
    }

    /// Whether the connection broke while an answer came.
    pub(super) fn is_cut(&self) -> bool {
        match self {
            Self::Broken(_) => true,
            Self::At(_, failure) => failure.is_cut(),
            _ => false,
        }
    }

    /// The pause before attempt number `next` (the first is 0); none where another attempt helps nobody.
    pub(super) fn pause(&self, next: u32) -> Option<Duration> {
        let usual = FIRST_PAUSE * (1 << next.min(5).saturating_sub(1));
        match self {
            Self::Unreachable(_) | Self::Broken(_) => Some(usual),
            // Each takes long enough.
            Self::TimedOut | Self::Damaged => Some(usual).filter(|_| next <= 1),
            Self::Refused { status: 429 | 500 | 502..=504, retry_after, .. } => {
                Some(retry_after.unwrap_or(usual)).filter(|pause| *pause <= LONGEST_PAUSE)
            }
            Self::At(_, failure) => failure.pause(next),
            _ => None,
        }
    }
}

/// What is being asked for.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) hub: &'a Hub,
    pub(super) id: &'a str,
    pub(super) revision: &'a str,
}

impl Attempt<'_> {
    pub(super) fn not_cached(&self) -> Error {
        Error::invalid(format!(
            "`{}` is not (or not whole) in the cache {} and HF_HUB_OFFLINE is set; unset it to download",
            self.id,
            self.hub.cache.display()
        ))
    }

    /// `error` said of the repository.
    pub(super) fn of_repository(&self, error: Error) -> Error {
        match error {
            Error::Invalid(message) => Error::Invalid(format!("`{}` {message}", self.id)),
            other => other,
        }
    }

    /// `failure` as the user's error, about the repository's list of files or its `file`.
    pub(super) fn error(&self, failure: Failure, file: Option<&str>) -> Error {
        let (host, failure) = match failure {
            Failure::At(host, failure) => (Some(host), *failure),
            failure => (None, failure),
        };
        let server = host.clone().unwrap_or_else(|| self.hub.address());
        let id = self.id;
        let what = file.map_or_else(|| format!("`{id}`"), |file| format!("`{file}` of `{id}`"));
        Error::Invalid(match failure {
            Failure::Here(error) => return error,
            Failure::Unreachable(cause) => format!(
                "cannot reach {server} for {what}: {cause}; check the connection and HF_ENDPOINT; models that were fetched before are found without it"
            ),
            Failure::Broken(cause) => format!(
                "the download of {what} ({}) broke off: {cause}; run the command again, and it continues where it stopped",
                self.revision
            ),
            Failure::TimedOut => format!(
                "{server} sent next to nothing of {what} for {} seconds; run the command again, and it continues where it stopped, or set HF_HUB_DOWNLOAD_TIMEOUT to more seconds",
                self.hub.patience.as_secs_f64()
            ),
            Failure::Odd(oddity) => format!("{server} gave a strange answer about {what}: {oddity}; is HF_ENDPOINT right?"),
            Failure::Damaged => format!(
                "{what} arrived damaged from {server}: its checksum is not the one that the hub names; nothing of it was kept, so run the command again, or try another HF_ENDPOINT"
            ),
            Failure::NoThread(cause) => {
                format!("cannot start a thread for the download of {what}: {cause}; raise the limit of processes (ulimit -u)")
            }
            Failure::At(..) => format!("{server} cannot be used for {what}; is HF_ENDPOINT right?"),
            Failure::Refused { status, retry_after, .. } if host.is_some() => match status {
                429 | 500.. => busy(&server, status, retry_after),
                _ => format!(
                    "{server}, where the hub keeps {what}, refused it with status {status}; run the command again, and it continues where it stopped"
                ),
            },
            Failure::Refused { status, code, retry_after } => self.refused(status, &code, retry_after, file),
        })
    }

    fn refused(&self, status: u16, code: &str, retry_after: Option<Duration>, file: Option<&str>) -> String {
        let (endpoint, Attempt { hub: Hub { token, .. }, id, revision }) = (self.hub.address(), self);
        match (status, code) {
            (_, "GatedRepo") => {
                format!("`{id}` is gated: accept its terms at {endpoint}/{id}, then set HF_TOKEN to a token of yours")
            }
            (_, "RevisionNotFound") => format!("`{id}` has no revision `{revision}`"),
            (404, "EntryNotFound") if file.is_some() => {
                format!(
                    "`{id}` has no file {} at {endpoint}, though it lists it; try another `⟨revision⟩`",
                    file.unwrap_or("")
                )
            }
            (404, _) | (_, "RepoNotFound") => {
                format!("there is no model `{id}` at {endpoint}, or it is private: check the name, or set HF_TOKEN")
            }
            (401 | 403, _) if token.is_some() => {
                format!("{endpoint} does not let HF_TOKEN read `{id}`: check the token and the model's terms at {endpoint}/{id}")
            }
            (401 | 403, _) => {
                format!("`{id}` is not open to everyone: accept its terms at {endpoint}/{id} and set HF_TOKEN")
            }
            (429 | 500.., _) => busy(&endpoint, status, retry_after),
            _ => format!("{endpoint} refused `{id}` with status {status}; is HF_ENDPOINT right?"),
        }
    }
}

pub(super) fn busy(server: &str, status: u16, retry_after: Option<Duration>) -> String {
    let later = match retry_after.map(|pause| pause.as_secs()) {
        Some(seconds @ 1..=119) => format!("try again in {seconds} seconds"),
        Some(seconds @ 120..) => format!("try again in {} minutes", seconds.div_ceil(60)),
        _ if status == 429 => "wait a few minutes".to_owned(),
        _ => "try again later".to_owned(),
    };
    match status {
        429 => format!("{server} says that there were too many requests; {later}, or set HF_TOKEN"),
        _ => format!("{server} failed (status {status}); {later}"),
    }
}
