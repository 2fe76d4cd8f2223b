//! One HTTP request on a thread of its own: looking up a name, connecting and reading can last, and whoever waits for the answer
//! can stop waiting at any time.

use super::failure::{Attempted, Failure};
use super::Listener;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

/// How often the listener is asked whether to stop.
const POLL: Duration = Duration::from_millis(50);
/// Bytes that are read at once.
const BLOCK: usize = 1 << 16;
/// Blocks that wait to be taken.
const WAITING: usize = 16;
/// A stream that brings less than this in the time of a few time-outs has stopped.
const FEWEST: usize = 1 << 10;
/// Time-outs that an answer's headers, or [`FEWEST`] bytes of it, may take: each read has one of its own.
const TIMEOUTS: u32 = 3;
/// A redirect's text that is read, so that its connection can be used again.
const REDIRECT_TEXT: u64 = 1 << 14;

/// Status and headers of an answer.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    fn of(response: &ureq::Response) -> Self {
        let values =
            |name: &String| response.all(name).into_iter().map(|value| (name.clone(), value.to_owned())).collect();
        let mut names = response.headers_names();
        names.sort();
        names.dedup();
        Self { status: response.status(), headers: names.iter().flat_map(|name| -> Vec<_> { values(name) }).collect() }
    }

    /// The header `name` (in lowercase), the first where it is there more than once.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The header `name` (in lowercase), each time that it is there.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn is_redirect(&self) -> bool {
        matches!(self.status, 301 | 302 | 303 | 307 | 308)
    }
}

/// What comes from the thread, in this order.
enum Piece {
    /// So many bytes of the request's body went out.
    Sent(u64),
    Head(Head),
    Bytes(Vec<u8>),
    End,
    Failed(Failure),
}

/// What a request carries.
pub(super) enum Payload {
    /// Nothing.
    None,
    /// Text or bytes.
    Bytes(Vec<u8>),
    /// A file, of which so many bytes go.
    File(File, u64),
}

/// A request under way. Dropped, its thread ends at the next bytes or time-out.
pub(super) struct Exchange {
    pieces: Receiver<Piece>,
    patience: Duration,
    /// Time that was waited, and bytes that came in it.
    pace: (Duration, usize),
}

impl Exchange {
    /// Sends `request`; a single read may take `patience`.
    pub(super) fn start(request: ureq::Request, patience: Duration) -> Attempted<Self> {
        Self::sending(request, Payload::None, patience)
    }

    /// The same with a body.
    pub(super) fn sending(request: ureq::Request, payload: Payload, patience: Duration) -> Attempted<Self> {
        let (sender, pieces) = sync_channel(WAITING);
        std::thread::Builder::new()
            .name("hub".into())
            .spawn(move || {
                // A panic in the client is a connection that broke: the other end of the channel finds it closed.
                _ = crate::libtorch::failure::catching(|| {
                    work(request, payload, &sender);
                    Ok(())
                });
            })
            .map_err(|error| Failure::NoThread(error.to_string()))?;
        Ok(Self { pieces, patience, pace: (Duration::ZERO, 0) })
    }

    /// Waits for the headers.
    pub(super) fn head(&mut self, listener: &mut dyn Listener) -> Attempted<Head> {
        self.head_after(listener, &mut |_, _| {})
    }

    /// The same; `sent` hears of the bytes of the request's body as they go out.
    pub(super) fn head_after(
        &mut self,
        listener: &mut dyn Listener,
        sent: &mut dyn FnMut(&mut dyn Listener, u64),
    ) -> Attempted<Head> {
        let piece = loop {
            match self.next(listener)? {
                Piece::Sent(bytes) => {
                    self.pace = (Duration::ZERO, 0);
                    sent(listener, bytes);
                }
                piece => break piece,
            }
        };
        match piece {
            Piece::Head(head) => {
                self.pace = (Duration::ZERO, 0);
                Ok(head)
            }
            Piece::Failed(failure) => Err(failure),
            Piece::Sent(_) | Piece::Bytes(_) | Piece::End => Err(Failure::Broken("it closed the connection".into())),
        }
    }

    /// Waits for more of the body; none at its end.
    pub(super) fn bytes(&mut self, listener: &mut dyn Listener) -> Attempted<Option<Vec<u8>>> {
        match self.next(listener)? {
            Piece::Bytes(bytes) => {
                self.pace.1 += bytes.len();
                if self.pace.1 >= FEWEST {
                    self.pace = (Duration::ZERO, 0);
                }
                Ok(Some(bytes))
            }
            Piece::Failed(failure) => Err(failure),
            Piece::Sent(_) | Piece::Head(_) | Piece::End => Ok(None),
        }
    }

    fn next(&mut self, listener: &mut dyn Listener) -> Attempted<Piece> {
        loop {
            listener.check()?;
            if self.pace.0 >= self.patience * TIMEOUTS {
                return Err(Failure::TimedOut);
            }
            let began = Instant::now();
            let received = self.pieces.recv_timeout(POLL);
            self.pace.0 += began.elapsed();
            match received {
                Ok(piece) => return Ok(piece),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::Broken("the connection was given up".into()));
                }
            }
        }
    }
}

/// A body that tells how it goes out, and breaks off once nobody listens.
struct Told<'a, R> {
    from: R,
    pieces: &'a SyncSender<Piece>,
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, block: &mut [u8]) -> std::io::Result<usize> {
        let read = self.from.read(block)?;
        self.pieces
            .send(Piece::Sent(read as u64))
            .map_err(|_| std::io::Error::new(ErrorKind::BrokenPipe, "the upload was given up"))?;
        Ok(read)
    }
}

/// Sends the request, and hands on what comes as long as somebody takes it.
fn work(request: ureq::Request, payload: Payload, pieces: &SyncSender<Piece>) {
    let answer = match payload {
        Payload::None => request.call(),
        Payload::Bytes(bytes) => {
            let length = bytes.len() as u64;
            request.set("content-length", &length.to_string()).send(Told { from: bytes.as_slice(), pieces })
        }
        Payload::File(file, length) => {
            request.set("content-length", &length.to_string()).send(Told { from: file.take(length), pieces })
        }
    };
    let response = match answer {
        Ok(response) | Err(ureq::Error::Status(_, response)) => response,
        Err(ureq::Error::Transport(error)) => return drop(pieces.send(Piece::Failed(of_transport(&error)))),
    };
    let head = Head::of(&response);
    let mut body = response.into_reader();
    if head.is_redirect() {
        _ = std::io::copy(&mut body.take(REDIRECT_TEXT), &mut std::io::sink());
        return drop(pieces.send(Piece::Head(head)));
    }
    if pieces.send(Piece::Head(head)).is_err() {
        return;
    }
    let mut block = vec![0; BLOCK];
    loop {
        let piece = match body.read(&mut block) {
            Ok(0) => return drop(pieces.send(Piece::End)),
            Ok(count) => Piece::Bytes(block[..count].to_vec()),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return drop(pieces.send(Piece::Failed(of_reading(&error)))),
        };
        if pieces.send(piece).is_err() {
            return;
        }
    }
}

fn of_reading(error: &std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Failure::TimedOut,
        _ => Failure::Broken(plain(&error.to_string())),
    }
}

fn of_transport(error: &ureq::Transport) -> Failure {
    use ureq::ErrorKind::{BadHeader, BadStatus, ConnectionFailed, Dns, Io, ProxyConnect, ProxyUnauthorized};
    let source = std::error::Error::source(error).map(ToString::to_string);
    let source_kind =
        std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>()).map(|e| e.kind());
    // The message may name addresses; a URL, which can hold a signature, is not in it.
    let cause = plain(&error.message().map(str::to_owned).or(source).unwrap_or_else(|| error.kind().to_string()));
    match (error.kind(), source_kind) {
        (Io | ConnectionFailed, Some(ErrorKind::TimedOut | ErrorKind::WouldBlock)) => Failure::TimedOut,
        (Dns | ConnectionFailed, _) => Failure::Unreachable(cause),
        (ProxyConnect | ProxyUnauthorized, _) => Failure::Unreachable(format!("the proxy refused ({cause})")),
        (BadStatus | BadHeader, _) => Failure::Odd(format!("its answer is not HTTP ({cause})")),
        _ => Failure::Broken(cause),
    }
}

/// `text` without the "(os error N)" that no user can act on.
fn plain(text: &str) -> String {
    text.find(" (os error").map_or(text, |end| &text[..end]).to_owned()
}
