//! Each rank tells the others, by the store, that it lives and how far it is. All that goes to the store after the ranks have come together
//! goes through one thread: on a cut wire it waits for a long time, and nothing else with it.

use super::launch::Launch;
use crate::error::{Error, Result};
use crate::libtorch::process_group::{self, Store};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a rank says that it lives.
const PULSE: Duration = Duration::from_millis(500);
/// The same while ranks wait for each other.
const QUICK_PULSE: Duration = Duration::from_millis(5);
/// A rank of which nothing is heard for so long is the cause of an exchange that failed.
const SILENCE: Duration = Duration::from_secs(3);
/// How long it is asked why an exchange failed, or whether all have heard of an end.
const PATIENCE: Duration = Duration::from_secs(6);

/// What a rank says of itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Sign {
    /// Counts up.
    pulse: u64,
    /// Meetings that it has come to since the last trouble.
    meeting: u64,
    /// How often it has called all together anew, and why it did so last: the device whose memory was full, and what libtorch said.
    troubles: u64,
    trouble: Option<(String, String)>,
    /// Optimizer steps done.
    step: u64,
    host: String,
    end: Option<End>,
}

/// How a rank ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum End {
    /// All is done.
    Done,
    /// It was asked to stop.
    Interrupted,
    /// For the reason that is given; the rank whose end it is.
    Failed(String, usize),
}

/// What is known of a rank.
#[derive(Debug)]
struct Heard {
    sign: Sign,
    at: Instant,
}

#[derive(Debug)]
struct State {
    own: Sign,
    /// By rank; what this one says is not heard.
    heard: Vec<Heard>,
    /// Something is to be said at once.
    is_news: bool,
    /// Ranks wait for each other.
    is_meeting: bool,
    /// Another one has called all together anew, which this one is told.
    is_called: bool,
    /// When the store last answered, and why it does not any more.
    answered: Instant,
    store_is_lost: Option<String>,
    is_closing: bool,
}

/// The watch over the other ranks.
#[derive(Debug)]
pub(super) struct Watch {
    launch: Launch,
    timeout: Duration,
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Watch {
    /// Begins it with keys of `store` that begin with `prefix`.
    pub fn begin(mut store: Store, prefix: String, launch: Launch, timeout: Duration) -> Result<Self> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let (own, now) = (Sign { host, ..Sign::default() }, Instant::now());
        let heard = (0..launch.count).map(|_| Heard { sign: Sign::default(), at: now }).collect();
        let state = State {
            own,
            heard,
            is_news: true,
            is_meeting: false,
            is_called: false,
            answered: now,
            store_is_lost: None,
            is_closing: false,
        };
        let shared = Arc::new((Mutex::new(state), Condvar::new()));
        let (of_thread, rank) = (shared.clone(), launch.rank);
        let work = move || {
            let (state, changed) = &*of_thread;
            loop {
                let mut guard = lock(state);
                guard.own.pulse += 1;
                guard.is_news = false;
                let (own, ranks, is_closing) = (guard.own.clone(), guard.heard.len(), guard.is_closing);
                drop(guard);
                let exchanged = exchange(&mut store, &prefix, rank, ranks, &own);
                let mut guard = lock(state);
                match exchanged {
                    Ok(signs) => {
                        guard.hear(signs);
                        if guard.others(rank).any(|heard| matches!(heard.sign.end, Some(End::Failed(..)))) {
                            process_group::give_up_sums();
                        }
                    }
                    Err(error) => guard.store_is_lost = Some(error.to_string()),
                }
                let is_over = is_closing || guard.store_is_lost.is_some();
                changed.notify_all();
                if is_over {
                    guard.is_closing = true;
                    return;
                }
                let pulse = if guard.is_meeting { QUICK_PULSE } else { PULSE };
                drop(changed.wait_timeout_while(guard, pulse, |state| !state.is_news));
            }
        };
        std::thread::Builder::new().name("ranks".to_owned()).spawn(work).map_err(Error::no_thread)?;
        Ok(Self { launch, timeout, shared })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.0)
    }

    /// Says something of itself at once.
    fn say(&self, change: impl FnOnce(&mut Sign)) {
        let mut state = self.state();
        change(&mut state.own);
        state.is_news = true;
        self.shared.1.notify_all();
    }

    /// So many steps are done. An error where another rank has ended, or is not heard of.
    pub fn has_done(&self, step: u64) -> Result<()> {
        let mut state = self.state();
        state.own.step = step;
        match self.found(&state, self.timeout) {
            // It stops after this step, as this one is about to.
            None | Some(Error::Interrupted(_)) => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// Waits until every rank has come as often as this one. There is no limit to it while all of them live.
    pub fn meet(&self) -> Result<()> {
        let mut state = self.state();
        state.own.meeting += 1;
        (state.is_meeting, state.is_news) = (true, true);
        self.shared.1.notify_all();
        let own = (state.own.troubles, state.own.meeting);
        self.wait_for_all(state, |sign| (sign.troubles, sign.meeting) >= own)
    }

    /// Has all ranks leave what they wait for each other in, and waits until they have: memory of one was full. Those that did not call learn
    /// of it at their next meeting, and come here too. `why` is the device whose memory was full, and what libtorch
    /// said.
    pub fn come_together_anew(&self, why: Option<(String, String)>) -> Result<()> {
        let mut state = self.state();
        let why = why.filter(|_| !std::mem::take(&mut state.is_called));
        (state.own.troubles, state.own.meeting, state.own.trouble) = (state.own.troubles + 1, 0, why);
        (state.is_meeting, state.is_news) = (true, true);
        self.shared.1.notify_all();
        let own = state.own.troubles;
        self.wait_for_all(state, |sign| sign.troubles >= own)
    }

    /// Waits until the signs of all others are as `is_there` wants them.
    fn wait_for_all(&self, mut state: MutexGuard<'_, State>, is_there: impl Fn(&Sign) -> bool) -> Result<()> {
        loop {
            let called = (0..self.launch.count).filter(|&rank| state.heard[rank].sign.troubles > state.own.troubles);
            // One that answers a call gives no reason.
            if let Some(rank) = called.max_by_key(|&rank| state.heard[rank].sign.trouble.is_some()) {
                (state.is_meeting, state.is_called) = (false, true);
                let name = self.name(&state, rank);
                return Err(match state.heard[rank].sign.trouble.clone() {
                    Some((device, cause)) => full_elsewhere(format!("{device} of {name}"), cause),
                    None => full_elsewhere(name, "it says so"),
                });
            }
            if state.others(self.launch.rank).all(|heard| is_there(&heard.sign)) {
                state.is_meeting = false;
                return Ok(());
            }
            if let Some(error) = self.found(&state, self.timeout) {
                state.is_meeting = false;
                return Err(error);
            }
            state = self.wait(state, PULSE);
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, at_most: Duration) -> MutexGuard<'a, State> {
        self.shared.1.wait_timeout(state, at_most).unwrap_or_else(PoisonError::into_inner).0
    }

    /// The rank that is the cause of an exchange that failed with `error`.
    pub fn cause_of(&self, error: &Error) -> Error {
        let until = Instant::now() + PATIENCE;
        let mut state = self.state();
        loop {
            if let Some(found) = self.found(&state, SILENCE) {
                return found;
            }
            if Instant::now() > until {
                let steps: Vec<String> = (0..self.launch.count)
                    .filter(|&rank| rank != self.launch.rank)
                    .map(|rank| format!("{} is at step {}", self.name(&state, rank), state.heard[rank].sign.step))
                    .collect();
                return Error::OtherRank(format!(
                    "no answer of another rank within {} s (⟨timeout⟩) at step {}: {} ({error})",
                    self.timeout.as_secs(),
                    state.own.step,
                    steps.join(", ")
                ));
            }
            state = self.wait(state, PULSE);
        }
    }

    /// What this rank is called elsewhere.
    pub fn own_name(&self) -> String {
        format!("rank {} on {}", self.launch.rank, self.state().own.host)
    }

    fn name(&self, state: &State, rank: usize) -> String {
        format!("rank {rank} on {}", state.heard[rank].sign.host)
    }

    /// A rank that has ended, or of which nothing was heard for as long as `silence`.
    fn found(&self, state: &State, silence: Duration) -> Option<Error> {
        let others = || (0..self.launch.count).filter(|&rank| rank != self.launch.rank);
        for rank in others() {
            match &state.heard[rank].sign.end {
                Some(End::Failed(text, of)) if *of == rank => {
                    let step = state.heard[rank].sign.step;
                    return Some(Error::OtherRank(format!("{} ended at step {step}: {text}", self.name(state, rank))));
                }
                Some(End::Failed(text, _)) => return Some(Error::OtherRank(text.clone())),
                Some(End::Interrupted) => return Some(Error::Interrupted(String::new())),
                _ => {}
            }
        }
        if let Some(text) = &state.store_is_lost {
            let text = text.split(". This may").next().unwrap_or(text);
            let step = state.heard[0].sign.step;
            return Some(Error::OtherRank(match self.launch.launcher_serves {
                false => format!("{} has died after step {step}: its store is gone ({text})", self.name(state, 0)),
                true => format!(
                    "the launcher at {}:{} is gone, after step {} ({text})",
                    self.launch.host, self.launch.port, state.own.step
                ),
            }));
        }
        // Where the store does not answer, nobody can be heard.
        if state.answered.elapsed() > silence {
            let (seconds, host) = (state.answered.elapsed().as_secs(), &self.launch.host);
            let (who, step) = match self.launch.launcher_serves {
                true => ("the launcher".to_owned(), state.own.step),
                false => (self.name(state, 0), state.heard[0].sign.step),
            };
            return Some(Error::OtherRank(format!(
                "{who} at {host} has not been heard of for {seconds} s, after step {step}"
            )));
        }
        let lost = others().find(|&rank| state.heard[rank].at.elapsed() > silence)?;
        let Heard { sign, at } = &state.heard[lost];
        Some(Error::OtherRank(match sign.pulse {
            0 => format!(
                "rank {lost} has not come to {}:{} within {} s (⟨timeout⟩); was it started, and can it reach that address?",
                self.launch.host,
                self.launch.port,
                at.elapsed().as_secs()
            ),
            _ => format!(
                "{} died or hangs: nothing was heard of it for {} s, after step {}",
                self.name(state, lost),
                at.elapsed().as_secs(),
                sign.step
            ),
        }))
    }

    /// Tells the others of the end, and waits until they have heard of it where this process serves the store.
    pub fn end(&self, end: End) {
        let is_done = end == End::Done;
        let lingers = self.launch.serves() && !is_done;
        self.say(|own| own.end = Some(end));
        let until = Instant::now() + PATIENCE;
        let mut state = self.state();
        let said = state.own.pulse + 2;
        while Instant::now() < until && !state.is_closing {
            let all_ended = state.others(self.launch.rank).all(|heard| heard.sign.end.is_some());
            if all_ended || !lingers && state.own.pulse >= said {
                break;
            }
            state.is_news = true;
            self.shared.1.notify_all();
            state = self.wait(state, QUICK_PULSE);
        }
        state.is_closing = is_done;
        state.is_news = true;
        self.shared.1.notify_all();
    }

    /// Whether the first rank has ended by itself, or does within a second, so that it says why.
    pub fn first_has_ended(&self) -> bool {
        let until = Instant::now() + Duration::from_secs(1);
        let mut state = self.state();
        loop {
            match &state.heard[0].sign.end {
                Some(End::Failed(_, 0) | End::Interrupted) => return true,
                None if Instant::now() < until && state.store_is_lost.is_none() => {}
                _ => return false,
            }
            state = self.wait(state, PULSE / 10);
        }
    }
}

/// Memory of the rank `name` is full.
pub(super) fn full_elsewhere(name: impl Into<String>, cause: impl Into<String>) -> Error {
    Error::OutOfMemory { device: name.into(), cause: cause.into(), advice: String::new() }
}

impl State {
    fn others(&self, own: usize) -> impl Iterator<Item = &Heard> {
        self.heard.iter().enumerate().filter(move |(rank, _)| *rank != own).map(|(_, heard)| heard)
    }

    fn hear(&mut self, signs: Vec<Option<Sign>>) {
        self.answered = Instant::now();
        for (heard, sign) in self.heard.iter_mut().zip(signs) {
            if let Some(sign) = sign.filter(|sign| sign.pulse != heard.sign.pulse) {
                *heard = Heard { sign, at: self.answered };
            }
        }
    }
}

/// Says `own`, and hears the others.
fn exchange(store: &mut Store, prefix: &str, rank: usize, ranks: usize, own: &Sign) -> Result<Vec<Option<Sign>>> {
    let key = |rank: usize| format!("{prefix}/alive/{rank}");
    let text = serde_json::to_vec(own).map_err(|error| Error::Internal(error.to_string()))?;
    store.set(&key(rank), &text)?;
    let other = |of: usize| match of == rank {
        true => Ok(None),
        false => Ok(store.get(&key(of))?.and_then(|text| serde_json::from_slice(&text).ok())),
    };
    (0..ranks).map(other).collect()
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
