//! The event stream of a page: numbered rows, of which the last ones are kept, so that a page that was away goes on without a gap.

use super::accounts::Owner;
use super::schema::{integer, named, object, one_of, or_null, text};
use super::App;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{json, Value};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

/// Rows that are kept: minutes of a quick training. A page that was away for longer loads everything again.
const KEPT: usize = 8192;
/// A stream that is silent for longer is taken for dead by what lies between.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long rows are gathered, to be sent with one write: for each open page, at least and at most. The writes are what costs, and many
/// pages are not to slow down a training.
const GATHER_FOR_EACH: Duration = Duration::from_millis(5);
const LEAST_GATHER: Duration = Duration::from_millis(100);
const MOST_GATHER: Duration = Duration::from_secs(1);
/// Rows that wait for a slow page.
const WAITING: usize = 64;

struct Row {
    number: u64,
    owner: String,
    data: Arc<str>,
}

struct Ring {
    rows: VecDeque<Row>,
    next: u64,
}

/// All events of the server, of which each visitor gets their own.
pub struct Events {
    ring: Mutex<Ring>,
    /// The number of the last row.
    latest: watch::Sender<u64>,
}

/// What comes behind a row.
pub enum Behind {
    /// These rows, which may be none, and the number of the last row, be it somebody else's.
    Rows(Vec<(u64, Arc<str>)>, u64),
    /// More than is kept; the number of the last row.
    Gone(u64),
}

impl Events {
    /// None yet. Numbers begin above those of every earlier start of the server, so that a page of an earlier one notices.
    pub fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let next = since.as_millis() as u64 * 100;
        Self { ring: Mutex::new(Ring { rows: VecDeque::new(), next }), latest: watch::Sender::new(next - 1) }
    }

    /// Tells the pages of `owner`, or with an empty one of everybody.
    pub fn send(&self, owner: &str, event: &impl Serialize) {
        let Ok(data) = serde_json::to_string(event) else { return };
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let number = ring.next;
        ring.next += 1;
        if ring.rows.len() == KEPT {
            ring.rows.pop_front();
        }
        ring.rows.push_back(Row { number, owner: owner.to_owned(), data: data.into() });
        self.latest.send_replace(number);
    }

    /// The number of the last row.
    pub fn last(&self) -> u64 {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).next - 1
    }

    /// The number of the last row, as it changes.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// What comes behind the row `row` for `owner`.
    pub fn behind(&self, row: u64, owner: &str) -> Behind {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let last = ring.next - 1;
        let first = ring.rows.front().map_or(ring.next, |row| row.number);
        if row > last || row + 1 < first {
            return Behind::Gone(last);
        }
        let wanted =
            ring.rows.iter().skip((row + 1 - first) as usize).filter(|row| row.owner.is_empty() || row.owner == owner);
        Behind::Rows(wanted.map(|row| (row.number, row.data.clone())).collect(), last)
    }
}

/// `GET /api/events`: rows behind `Last-Event-ID` or `?after=`; without either, those to come.
pub async fn stream(State(app): State<App>, owner: Owner, uri: axum::http::Uri, headers: HeaderMap) -> Response {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let given = headers.get("last-event-id").and_then(|value| value.to_str().ok()).and_then(number);
    let after =
        uri.query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("after=")).and_then(number);
    let from = given.or(after).unwrap_or_else(|| app.events.last());
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(follow(app, owner, from, sender));
    let alive = KeepAlive::new().interval(HEARTBEAT).text("");
    let mut response = Sse::new(ReceiverStream::new(receiver)).keep_alive(alive).into_response();
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    response
}

/// A row of the stream.
pub fn schema() -> Value {
    let of = |kind: &str| ("kind", json!({ "const": kind }));
    let fact = object([("name", text()), ("text", text())]);
    let progress = or_null(named("Progress"));
    let piece = [of("text"), ("id", text()), ("piece", text()), ("at", or_null(integer()))];
    one_of([
        object([of("reset")]),
        object([of("adapters")]),
        object([of("job"), ("job", named("Job"))]),
        object([of("deleted"), ("id", text())]),
        object([of("progress"), ("id", text()), ("progress", progress), ("memory_bytes", or_null(integer()))]),
        object([of("step"), ("id", text()), ("metrics", named("Step"))]),
        object([of("image"), ("id", text()), ("image", named("Picture"))]),
        object(piece),
        object([of("log"), ("id", text()), ("line", text())]),
        object([of("warning"), ("id", text()), ("sentence", text())]),
        // Of the server itself.
        object([of("warning"), ("sentence", text())]),
        object([of("fact"), ("id", text()), ("fact", fact)]),
    ])
}

/// Sends rows until the page goes away or the server ends.
async fn follow(app: App, owner: Owner, from: u64, page: mpsc::Sender<Result<Event, Infallible>>) {
    let (mut latest, mut stopping) = (app.events.latest.subscribe(), app.stopping.subscribe());
    let mut at = from;
    loop {
        match app.events.behind(at, owner.name()) {
            Behind::Gone(last) => {
                at = last;
                let reset = json!({ "kind": "reset" }).to_string();
                if page.send(Ok(Event::default().id(last.to_string()).data(reset))).await.is_err() {
                    return;
                }
            }
            Behind::Rows(rows, last) => {
                at = last;
                for (number, data) in rows {
                    if page.send(Ok(Event::default().id(number.to_string()).data(&*data))).await.is_err() {
                        return;
                    }
                }
            }
        }
        if *stopping.borrow() {
            return;
        }
        tokio::select! {
            changed = latest.wait_for(|&last| last > at) => if changed.is_err() { return },
            _ = stopping.wait_for(|&stopping| stopping) => {}
            () = page.closed() => return,
        }
        let pages = u32::try_from(app.events.latest.receiver_count()).unwrap_or(u32::MAX);
        let gather = GATHER_FOR_EACH.saturating_mul(pages).clamp(LEAST_GATHER, MOST_GATHER);
        tokio::select! {
            () = tokio::time::sleep(gather) => {}
            _ = stopping.wait_for(|&stopping| stopping) => {}
            () = page.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(events: &Events, row: u64, owner: &str) -> Option<Vec<String>> {
        match events.behind(row, owner) {
            Behind::Rows(rows, _) => Some(rows.into_iter().map(|(_, data)| data.to_string()).collect()),
            Behind::Gone(_) => None,
        }
    }

    #[test]
    fn a_page_gets_what_came_while_it_was_away_and_its_own_alone() {
        let events = Events::new();
        let begin = events.last();
        events.send("", &1);
        events.send("anna", &2);
        events.send("berta", &3);
        assert_eq!(rows(&events, begin, "anna").unwrap(), ["1", "2"]);
        assert_eq!(rows(&events, begin + 1, "berta").unwrap(), ["3"]);
        assert_eq!(rows(&events, begin + 3, "anna").unwrap(), [""; 0]);
    }

    #[test]
    fn a_page_that_was_away_for_too_long_or_knew_another_server_loads_everything() {
        let events = Events::new();
        let begin = events.last();
        assert!(rows(&events, begin + 1, "").is_none(), "a row that is not there yet");
        assert!(rows(&events, 5, "").is_none(), "an earlier server's");
        (0..=KEPT).for_each(|i| events.send("", &i));
        assert!(rows(&events, begin, "").is_none());
        assert_eq!(rows(&events, begin + 1, "").unwrap().len(), KEPT);
    }
}
