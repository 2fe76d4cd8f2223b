//! The server's life: it listens, answers, and ends with the running job saved.

use super::live::Stop;
use super::{router, visitors, App};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWrite;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Connections at a time; more wait.
const MAX_CONNECTIONS: usize = 1024;
/// A request's head must be here by then, and a connection is idle for no longer.
const HEAD: Duration = Duration::from_secs(5);
/// How long and how much a client may go on sending what was refused, and how long it may be silent meanwhile.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_BYTES: usize = 16 << 30;
const LINGER_SILENT: Duration = Duration::from_secs(5);
/// How long the running job has to come to the end of its step and be saved.
const SAVING: Duration = Duration::from_secs(30);
/// How long streams have to end.
const STREAMS: Duration = Duration::from_secs(2);
/// How often signals and the time of a job are looked at.
const TICK: Duration = Duration::from_millis(100);

/// Where a server listens.
#[derive(Debug, Clone, Copy)]
pub struct Address {
    /// The address.
    pub host: IpAddr,
    /// The port; 0 for any that is free.
    pub port: u16,
}

/// A place that is listened at.
pub struct Listener(std::net::TcpListener);

impl Address {
    /// Listens there, so that a port that is taken shows before anything is opened.
    pub fn listen(self) -> Result<Listener> {
        let address = SocketAddr::new(self.host, self.port);
        let failed = |error: std::io::Error| {
            match error.kind() {
            std::io::ErrorKind::AddrInUse => Error::invalid(format!(
                "⟨port⟩ {port} is in use by another program, which `ss -ltnp 'sport = :{port}'` names; end it, or give ⟨port⟩ 0 for a \
                 free port",
                port = self.port
            )),
            std::io::ErrorKind::AddrNotAvailable => {
                Error::invalid(format!("⟨host⟩ {} is no address of this machine", self.host))
            }
            std::io::ErrorKind::PermissionDenied => {
                Error::invalid(format!("⟨port⟩ {} is only for the administrator; give one above 1023", self.port))
            }
            _ => Error::invalid(format!("cannot listen at {address}: {error}")),
        }
        };
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Listener(listener))
    }
}

impl Listener {
    /// The address as a browser takes it.
    pub fn url(&self) -> String {
        match self.0.local_addr() {
            Ok(address) if address.ip().is_unspecified() => format!("http://127.0.0.1:{}", address.port()),
            Ok(address) => format!("http://{address}"),
            Err(_) => String::new(),
        }
    }
}

/// Serves until `signals` is set; then saves the running job, ends every stream, and returns.
pub fn serve(app: App, listener: Listener, signals: &Interrupt) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::no_thread)?;
    let served = runtime.block_on(async {
        let listener = TcpListener::from_std(listener.0).map_err(|error| Error::invalid(format!("cannot listen: {error}")))?;
        let accept = tokio::spawn(accept(app.clone(), listener));
        watch(&app, signals).await;
        // In this order: pages hear of the job's end before their streams end.
        app.worker.close();
        accept.abort();
        let waiting = app.clone();
        let is_saved = tokio::task::spawn_blocking(move || waiting.worker.wait_for_the_end(SAVING)).await.unwrap_or(false);
        app.stopping.send_replace(true);
        tokio::time::sleep(Duration::from_millis(200)).await;
        match is_saved {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "the running job did not come to the end of its step within {} seconds; it goes on from its last checkpoint",
                SAVING.as_secs()
            ))),
        }
    });
    runtime.shutdown_timeout(STREAMS);
    served
}

/// Waits for `signals`; meanwhile ends jobs that take longer than they may, and deletes what is too old.
async fn watch(app: &App, signals: &Interrupt) {
    let mut cleaned: Option<Instant> = None;
    let most = app.limits.map(|limits| Duration::from_secs(limits.max_minutes.saturating_mul(60)));
    while !signals.requested() {
        if let Some(id) = most.and_then(|most| app.worker.overdue(most)) {
            app.worker.stop(&id, Stop::Time);
        }
        if app.limits.is_some() && cleaned.is_none_or(|at| at.elapsed() > visitors::BETWEEN) {
            cleaned = Some(Instant::now());
            let shared = app.clone();
            tokio::task::spawn_blocking(move || drop(visitors::clean(&shared)));
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Takes connections; hyper rather than axum's own loop, which waits for half a request for ever.
async fn accept(app: App, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let service = TowerToHyperService::new(router(app));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((socket, _)) = listener.accept().await else {
            // Out of file descriptors, or the like: some are given back in a moment.
            tokio::time::sleep(TICK).await;
            continue;
        };
        drop(socket.set_nodelay(true));
        let service = service.clone();
        tokio::spawn(async move {
            answer(socket, service).await;
            drop(place);
        });
    }
}

/// Answers what comes over a connection, until either side has had enough.
async fn answer(socket: TcpStream, service: TowerToHyperService<Router>) {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD);
    // hyper ends a connection whose last request was answered before all of it had come.
    if let Ok(ended) = builder.serve_connection(TokioIo::new(socket), service).without_shutdown().await {
        drop(timeout(LINGER, linger(ended.io.into_inner())).await);
    }
}

/// Says that nothing more is sent, and throws away what still comes. A socket that is closed with bytes unread resets the connection,
/// and most clients then lose the answer that they have not read yet: browsers send the whole of a body before they read.
async fn linger(mut socket: TcpStream) {
    if poll_fn(|context| Pin::new(&mut socket).poll_shutdown(context)).await.is_err() {
        return;
    }
    let (mut thrown_away, mut count) = (vec![0; 64 << 10], 0);
    while let Ok(Ok(())) = timeout(LINGER_SILENT, socket.readable()).await {
        match socket.try_read(&mut thrown_away) {
            Ok(0) => return,
            Ok(read) => count += read,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        if count > LINGER_BYTES {
            return;
        }
        // One client that sends fast does not keep the others from their turn.
        tokio::task::yield_now().await;
    }
}
