//! The threads that work the queue off, each a job at a time: one owns the device and all tensors on it, another does what needs no device.

use super::failure::of_option;
use super::jobs::{self, End, Job};
use super::live::{Live, Request, Stop};
use super::observer::JobObserver;
use super::state::{JobKind, JobState, Lane};
use super::{drawing, language_training, library, pushing, training, writing, App};
use crate::error::{Error, Result};
use crate::libtorch::failure::catching;
use crate::libtorch::memory;
use crate::plain_text::counted;
use crate::plan::{Rates, Work};
use crate::recipes::complete::TextModel;
use crate::recipes::generate::ImageModel;
use crate::recipes::training::control::Control;
use serde_json::{json, Value};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use tch::{Device, Kind};

/// So many plans wait for a measurement, and so many measurements are kept: the newest.
const MOST_WAITING: usize = 4;
const MOST_KEPT: usize = 64;

/// Work whose speed a plan asks for, in a dtype.
#[derive(Debug, Clone)]
struct Timed {
    kind: Kind,
    work: Work,
}

impl Timed {
    /// Whether both are made of the same products, however often.
    fn is_like(&self, other: &Self) -> bool {
        self.kind == other.kind && self.work.products.keys().eq(other.work.products.keys())
    }
}

/// What requests may ask of the threads.
pub struct Worker {
    /// At most one a lane.
    live: Mutex<Vec<Live>>,
    /// Whether there may be a job to take, whether the server ends, and whether the threads have ended.
    signs: Mutex<Signs>,
    changed: Condvar,
}

#[derive(Default)]
struct Signs {
    /// Lanes that may have a job to take.
    woken: Vec<Lane>,
    /// Plans ask how fast the device is.
    wants_rates: VecDeque<Timed>,
    rates: VecDeque<(Timed, Option<Rates>)>,
    is_closing: bool,
    /// Lanes whose threads have ended.
    ended: Vec<Lane>,
}

impl Worker {
    /// One without threads yet.
    pub fn new() -> Self {
        Self { live: Mutex::default(), signs: Mutex::default(), changed: Condvar::new() }
    }

    fn live(&self) -> MutexGuard<'_, Vec<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signs(&self) -> MutexGuard<'_, Signs> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `look` says of the job `id`, with how it stands if it has its turn.
    pub fn with<T>(&self, id: &str, look: impl FnOnce(Option<&Live>) -> T) -> T {
        look(self.live().iter().find(|live| live.id == id))
    }

    /// Changes how the job `id` is shown; none where it does not have its turn.
    pub fn update<T>(&self, id: &str, change: impl FnOnce(&mut Live) -> T) -> Option<T> {
        self.live().iter_mut().find(|live| live.id == id).map(change)
    }

    /// There is a job to take.
    pub fn wake(&self) {
        self.signs().woken = Lane::ALL.to_vec();
        self.changed.notify_all();
    }

    /// Tells the job `id` to stop; false where it does not have its turn.
    pub fn stop(&self, id: &str, why: Stop) -> bool {
        self.update(id, |live| live.stop(why)).unwrap_or(false)
    }

    /// Asks something of the job `id`; false where it does not have its turn, or is about to end.
    pub fn ask(&self, id: &str, request: Request) -> bool {
        self.with(id, |live| match live.filter(|live| live.goes_on()) {
            Some(live) => {
                live.ask(request);
                true
            }
            None => false,
        })
    }

    /// A job that has had its turn for longer than `most`.
    pub fn overdue(&self, most: Duration) -> Option<String> {
        let is_overdue = |live: &&Live| live.lasts() > most && live.goes_on();
        self.live().iter().find(is_overdue).map(|live| live.id.clone())
    }

    /// Has the present jobs stop, and takes no other.
    pub fn close(&self) {
        self.signs().is_closing = true;
        self.changed.notify_all();
        for live in self.live().iter_mut() {
            live.stop(Stop::Server);
        }
    }

    /// Waits until the threads have ended, but not longer than `most`; whether they have.
    pub fn wait_for_the_end(&self, most: Duration) -> bool {
        let is_at_work = |signs: &mut Signs| signs.ended.len() < Lane::ALL.len();
        let wait = self.changed.wait_timeout_while(self.signs(), most, is_at_work);
        wait.unwrap_or_else(PoisonError::into_inner).0.ended.len() == Lane::ALL.len()
    }

    /// How fast the device computes `work` in `kind`, measured once between two jobs, for which this waits, but not longer than `most`.
    /// Where a job has its turn, or it takes longer, what was measured of other work in this dtype is the answer.
    pub fn rates(&self, kind: Kind, work: Work, most: Duration) -> Option<Rates> {
        let wanted = Timed { kind, work };
        let is_busy = self.live().iter().any(Live::is_on_the_device);
        let known =
            |signs: &Signs| signs.rates.iter().find(|(of, _)| of.is_like(&wanted)).map(|(_, rates)| rates.clone());
        let of_other_work = |signs: &Signs| {
            signs.rates.iter().rev().filter(|(of, _)| of.kind == kind).find_map(|(_, rates)| rates.clone())
        };
        let mut signs = self.signs();
        if known(&signs).is_none() {
            if let Some(rates) = of_other_work(&signs).filter(|_| is_busy) {
                return Some(rates);
            }
            if !signs.wants_rates.iter().any(|waiting| waiting.is_like(&wanted)) {
                signs.wants_rates.push_back(wanted.clone());
            }
            let too_many = signs.wants_rates.len().saturating_sub(MOST_WAITING);
            signs.wants_rates.drain(..too_many);
            self.changed.notify_all();
        }
        let is_unknown = |signs: &mut Signs| known(signs).is_none() && !signs.is_closing;
        let wait = self.changed.wait_timeout_while(signs, most, is_unknown);
        let signs = wait.unwrap_or_else(PoisonError::into_inner).0;
        known(&signs).flatten().or_else(|| of_other_work(&signs))
    }

    /// Measures what plans ask for.
    fn measure(&self, device: Device) {
        // The lock is given back before the loop.
        let wanted = std::mem::take(&mut self.signs().wants_rates);
        for timed in wanted {
            let rates = catching(|| Rates::measure(device, timed.kind, &timed.work)).ok();
            let mut signs = self.signs();
            signs.rates.push_back((timed, rates));
            let too_many = signs.rates.len().saturating_sub(MOST_KEPT);
            signs.rates.drain(..too_many);
            self.changed.notify_all();
        }
    }

    /// Waits for something to do in `lane`; false where the server ends.
    fn wait_for_work(&self, lane: Lane) -> bool {
        let is_idle = |signs: &mut Signs| {
            let measures = lane == Lane::Device && !signs.wants_rates.is_empty();
            !signs.woken.contains(&lane) && !signs.is_closing && !measures
        };
        let wait = self.changed.wait_while(self.signs(), is_idle);
        let mut signs = wait.unwrap_or_else(PoisonError::into_inner);
        signs.woken.retain(|woken| *woken != lane);
        !signs.is_closing
    }

    fn is_closing(&self) -> bool {
        self.signs().is_closing
    }
}

/// Starts the threads.
pub fn start(app: &App) -> Result<()> {
    app.worker.wake();
    for (lane, name) in [(Lane::Device, "jobs"), (Lane::Hub, "uploads")] {
        let app = app.clone();
        thread::Builder::new().name(name.to_owned()).spawn(move || work(&app, lane)).map_err(Error::no_thread)?;
    }
    Ok(())
}

fn work(app: &App, lane: Lane) {
    let mut models = Loaded::default();
    while app.worker.wait_for_work(lane) {
        loop {
            if lane == Lane::Device {
                app.worker.measure(app.device);
            }
            match jobs::take_next(app, lane) {
                Ok(Some(job)) => turn(app, &mut models, job),
                Ok(None) => break,
                // The disk is full, or the like: no job can be written down, so none is begun.
                Err(error) => {
                    app.events.send("", &json!({ "kind": "warning", "sentence": error.to_string() }));
                    thread::sleep(Duration::from_secs(5));
                }
            }
            if app.worker.is_closing() {
                break;
            }
        }
    }
    app.worker.signs().ended.push(lane);
    app.worker.changed.notify_all();
}

/// A job from start to end.
fn turn(app: &App, models: &mut Loaded, job: Job) {
    let control = Control::new();
    let is_on_the_device = job.kind.lane() == Lane::Device;
    app.worker.live().push(Live::new(job.id.clone(), job.kind, control.clone()));
    // The server may have been told to end since the job was taken.
    if app.worker.is_closing() {
        app.worker.stop(&job.id, Stop::Server);
    }
    app.data.keep_reserve();
    if is_on_the_device {
        memory::reset_host_peak();
    }
    drop(jobs::tell_now(app, &job.id));
    jobs::tell_those_who_wait(app);
    let mut observer = JobObserver::new(app, &job);
    let outcome = catching(|| run(app, models, &job, &control, &mut observer));
    let (stop, memory_bytes, text) = app
        .worker
        .with(&job.id, |live| live.map(|live| (live.told_to_stop(), live.memory_bytes(), live.text().to_owned())))
        .unwrap_or_default();
    let end = ended(app, job.kind, outcome, stop);
    // What was written before a stop is worth keeping.
    let answer = end.answer.or_else(|| (!text.is_empty()).then(|| json!({ "text": text })));
    let over = End { memory_bytes, answer, ..end };
    if over.state == JobState::Failed {
        if let Some((sentence, _)) = &over.error {
            observer.log(sentence);
        }
    }
    write_down(app, &job, &over);
    app.worker.live().retain(|live| live.id != job.id);
    drop(jobs::tell_now(app, &job.id));
    app.events.send(&job.owner, &json!({ "kind": "adapters" }));
    if is_on_the_device {
        drop(memory::release_cached(app.device));
    }
}

/// Writes down how a job ended. Where the disk is full that waits until there is room, and no other job begins; the job is shown as over
/// meanwhile.
fn write_down(app: &App, job: &Job, end: &End) {
    let warn = |error: &Error| {
        app.events.send(&job.owner, &json!({ "kind": "warning", "sentence": error.to_string() }));
    };
    let registered = library::register(app, &job.id);
    let mut is_told = false;
    while let Err(error) = jobs::finish(app, &job.id, end.clone()) {
        if !is_told {
            is_told = true;
            let sentence = end.error.as_ref().map(|(sentence, _)| sentence.clone());
            app.worker.update(&job.id, |live| live.end(end.state, sentence));
            drop(jobs::tell_now(app, &job.id));
            warn(&error);
        }
        if app.worker.is_closing() {
            return;
        }
        app.data.give_reserve();
        thread::sleep(Duration::from_millis(500));
    }
    // There may be room by now.
    if let Err(error) = registered.or_else(|_| library::register(app, &job.id)) {
        warn(&error);
    }
}

fn run(
    app: &App,
    models: &mut Loaded,
    job: &Job,
    control: &Control,
    observer: &mut JobObserver,
) -> Result<Option<Value>> {
    let interrupt = control.interrupt();
    match job.kind {
        JobKind::TrainDreambooth => {
            models.unload(app);
            training::dreambooth(app, job, control, observer).map(|()| None)
        }
        JobKind::TrainLlm => {
            models.unload(app);
            language_training::train(app, job, control, observer).map(|()| None)
        }
        JobKind::Complete => writing::complete(app, models, job, interrupt, observer).map(Some),
        JobKind::Generate | JobKind::Grid => drawing::draw(app, models, job, interrupt, observer).map(|()| None),
        JobKind::Push => pushing::push(app, job, interrupt, observer).map(Some),
    }
}

/// Models that stay in memory between jobs.
#[derive(Default)]
pub struct Loaded {
    /// The last one that drew.
    pub images: Option<ImageModel>,
    /// The last one that wrote.
    pub texts: Option<TextModel>,
}

impl Loaded {
    /// Frees them, for what needs the memory.
    pub fn unload(&mut self, app: &App) {
        self.images = None;
        self.texts = None;
        drop(memory::release_cached(app.device));
    }
}

fn ended(app: &App, kind: JobKind, outcome: Result<Option<Value>>, stop: Option<Stop>) -> End {
    let end = |state, error| End { state, error, answer: None, memory_bytes: None };
    match (outcome, stop) {
        (Ok(answer), _) => End { answer, ..end(JobState::Finished, None) },
        (Err(Error::Interrupted(_)), Some(Stop::Server)) => end(JobState::Interrupted, None),
        (Err(Error::Interrupted(_)), Some(Stop::Time)) => {
            let most = counted(app.limits.map_or(0, |limits| limits.max_minutes) as usize, "minute");
            end(JobState::Failed, Some((format!("stopped after {most}, the most that a job may take here"), None)))
        }
        (Err(Error::Interrupted(_)), _) => end(JobState::Stopped, None),
        (Err(error), _) => {
            let (sentence, field) = of_option(&error.to_string());
            let field = match kind {
                JobKind::Generate | JobKind::Grid => field.as_deref().map(drawing::name_here),
                _ => field,
            };
            end(JobState::Failed, Some((app.data.without_root(&sentence), field)))
        }
    }
}
