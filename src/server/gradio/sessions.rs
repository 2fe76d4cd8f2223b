//! The sessions of clients: messages that wait for a session's stream, and the events that they are of.

use super::super::failure::{Answer, Failure};
use super::super::ids::new_id;
use super::messages::{Message, CLOSE, HEARTBEAT, NAMED_HEARTBEAT};
use axum::body::Bytes;
use axum::http::StatusCode;
use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Between two signs of life, also of a stream that has nothing to tell.
const BETWEEN: Duration = Duration::from_secs(15);
/// Events that are open at a time, of everybody and of one owner.
const MAX_OPEN: usize = 1000;
const MAX_OPEN_OF_ONE: usize = 100;
/// Messages that wait for a slow client.
const MAX_WAITING: usize = 2000;
/// Events that can be cancelled, be it that nobody listens any more.
const KNOWN: usize = 4096;

/// Whose session it is, and its hash.
pub type Key = (String, String);

/// What waits for a session's stream.
#[derive(Default)]
struct Mail {
    messages: VecDeque<(String, Message)>,
    /// Events that are not over.
    open: HashSet<String>,
    /// The number of the stream that listens; 0 before the first one.
    reader: u64,
    is_gone: bool,
}

/// A session as its events and its stream share it.
struct Session {
    key: Key,
    mail: watch::Sender<Mail>,
}

/// What an event does, for those who cancel it.
struct Known {
    owner: String,
    /// The job that it began.
    job: Option<String>,
    is_cancelled: bool,
}

#[derive(Default)]
struct Table {
    sessions: HashMap<Key, Arc<Session>>,
    known: HashMap<String, Known>,
    /// The oldest first.
    order: VecDeque<String>,
}

/// All sessions.
#[derive(Default)]
pub struct Sessions(Mutex<Table>);

impl Sessions {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new event of `owner` in the session `hash`; with none in one of its own, which has the event's id.
    pub fn open(&self, owner: &str, hash: Option<&str>) -> Answer<Mailbox> {
        let event = new_id()?;
        let key = (owner.to_owned(), hash.unwrap_or(&event).to_owned());
        let mut table = self.table();
        let open = |session: &Arc<Session>| session.mail.borrow().open.len();
        let all: usize = table.sessions.values().map(open).sum();
        let own: usize =
            table.sessions.iter().filter(|((of, _), _)| of == owner).map(|(_, session)| open(session)).sum();
        if all >= MAX_OPEN || own >= MAX_OPEN_OF_ONE {
            let sentence = "too many calls are open; wait until one is done";
            return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, sentence));
        }
        let new = || Arc::new(Session { key: key.clone(), mail: watch::Sender::new(Mail::default()) });
        table.sessions.retain(|_, session| !session.mail.borrow().is_gone);
        let session = table.sessions.entry(key.clone()).or_insert_with(new).clone();
        session.mail.send_modify(|mail| {
            mail.open.insert(event.clone());
        });
        let known = Known { owner: owner.to_owned(), job: None, is_cancelled: false };
        table.known.insert(event.clone(), known);
        table.order.push_back(event.clone());
        if table.order.len() > KNOWN {
            let oldest = table.order.pop_front();
            oldest.map(|oldest| table.known.remove(&oldest));
        }
        Ok(Mailbox { event, session })
    }

    /// The event has begun the job `job`; whether it was cancelled meanwhile.
    pub fn note_job(&self, event: &str, job: &str) -> bool {
        self.table().known.get_mut(event).is_some_and(|known| {
            known.job = Some(job.to_owned());
            known.is_cancelled
        })
    }

    /// Ends the event `event` of `owner`: the job that it began, which is to be stopped.
    pub fn cancel(&self, owner: &str, event: &str) -> Option<String> {
        let mut table = self.table();
        let known = table.known.get_mut(event).filter(|known| known.owner == owner)?;
        known.is_cancelled = true;
        let job = known.job.clone();
        for session in table.sessions.values().filter(|session| session.key.0 == owner) {
            session.finish(event, Message::Failed("stopped".to_owned()));
        }
        job
    }

    /// A stream's place at the session `key`; the stream that was there before ends.
    pub fn listen(&self, key: &Key) -> Option<Listener> {
        let session = self.table().sessions.get(key)?.clone();
        let mut number = 0;
        session.mail.send_modify(|mail| {
            mail.reader += 1;
            number = mail.reader;
        });
        Some(Listener { session, number })
    }

    /// Ends the session `session` if nothing waits in it; whether it has.
    fn close(&self, session: &Arc<Session>) -> bool {
        let mut table = self.table();
        let is_over = |mail: &Mail| mail.open.is_empty() && mail.messages.is_empty();
        // Events are added under the table's lock alone.
        let is_over = session.mail.send_if_modified(|mail| {
            mail.is_gone |= is_over(mail);
            mail.is_gone
        });
        if is_over && table.sessions.get(&session.key).is_some_and(|found| Arc::ptr_eq(found, session)) {
            table.sessions.remove(&session.key);
        }
        is_over
    }

    /// Nobody will listen to the session any more.
    fn abandon(&self, session: &Arc<Session>) {
        let mut table = self.table();
        session.mail.send_modify(|mail| mail.is_gone = true);
        if table.sessions.get(&session.key).is_some_and(|found| Arc::ptr_eq(found, session)) {
            table.sessions.remove(&session.key);
        }
    }
}

impl Session {
    /// The last message of `event`, unless it is over.
    fn finish(&self, event: &str, message: Message) {
        self.mail.send_if_modified(|mail| {
            let is_open = mail.open.remove(event);
            if is_open {
                mail.messages.push_back((event.to_owned(), message));
            }
            is_open
        });
    }
}

/// Where what is to be told of an event goes.
pub struct Mailbox {
    /// The event's id.
    pub event: String,
    session: Arc<Session>,
}

impl Mailbox {
    /// Tells it, unless the event is over or nobody listens; a client that takes nothing any more is given up.
    pub fn send(&self, message: Message) {
        self.session.mail.send_if_modified(|mail| {
            let is_open = mail.open.contains(&self.event) && !mail.is_gone;
            if is_open {
                mail.messages.push_back((self.event.clone(), message));
            }
            if mail.messages.len() > MAX_WAITING {
                mail.messages.clear();
                mail.is_gone = true;
            }
            is_open
        });
    }

    /// Tells it, which is the last of the event.
    pub fn finish(&self, message: Message) {
        self.session.finish(&self.event, message);
    }

    /// Waits until somebody listens and has taken what was told so far, but not longer than `most`; whether somebody does.
    pub async fn wait_for_a_listener(&self, sessions: &Sessions, most: Duration) -> bool {
        let mut mail = self.session.mail.subscribe();
        let is_ready = |mail: &Mail| mail.is_gone || mail.reader > 0 && mail.messages.is_empty();
        let waited = tokio::time::timeout(most, mail.wait_for(is_ready)).await.is_ok();
        if !waited {
            sessions.abandon(&self.session);
        }
        !self.session.mail.borrow().is_gone
    }

    /// Waits until there is nothing more to tell: the event was cancelled, or nobody listens any more.
    pub async fn over(&self) {
        let mut mail = self.session.mail.subscribe();
        drop(mail.wait_for(|mail| mail.is_gone || !mail.open.contains(&self.event)).await);
    }
}

/// How a stream writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As the clients read it.
    Session,
    /// With named events, as curl shows it.
    Named,
}

/// A stream's place at a session.
pub struct Listener {
    session: Arc<Session>,
    number: u64,
}

impl Listener {
    /// Sends what is told until no event is open, or the client goes away.
    pub async fn stream(self, sessions: &Sessions, form: Form, client: mpsc::Sender<Result<Bytes, Infallible>>) {
        let mut mail = self.session.mail.subscribe();
        loop {
            let news = mail.wait_for(|mail| {
                mail.reader != self.number || mail.is_gone || !mail.messages.is_empty() || mail.open.is_empty()
            });
            let is_silent = tokio::select! {
                _ = news => false,
                () = tokio::time::sleep(BETWEEN) => true,
                () = client.closed() => break,
            };
            let mut messages = VecDeque::new();
            let mut is_other = false;
            self.session.mail.send_if_modified(|mail| {
                is_other = mail.reader != self.number || mail.is_gone;
                if !is_other {
                    messages = std::mem::take(&mut mail.messages);
                }
                !messages.is_empty()
            });
            if is_other {
                return;
            }
            let mut text: String = messages
                .iter()
                .filter_map(|(event, message)| match form {
                    Form::Session => Some(message.of_session(event)),
                    Form::Named => message.named(),
                })
                .collect();
            let is_over = sessions.close(&self.session);
            match (form, is_over, is_silent && text.is_empty()) {
                (Form::Session, true, _) => text.push_str(CLOSE),
                (Form::Session, false, true) => text.push_str(HEARTBEAT),
                (Form::Named, false, true) => text.push_str(NAMED_HEARTBEAT),
                _ => {}
            }
            if !text.is_empty() && client.send(Ok(Bytes::from(text))).await.is_err() {
                break;
            }
            if is_over {
                return;
            }
        }
        let is_ours = self.session.mail.borrow().reader == self.number;
        if is_ours {
            sessions.abandon(&self.session);
        }
    }
}
