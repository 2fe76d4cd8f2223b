//! The one thread that owns all tensors: it works the queue off, a job at a time, and knows how the present one stands.

use super::failure::of_option;
use super::jobs::{self, End, Job};
use super::observer::JobObserver;
use super::state::{JobKind, JobState, Phase, Progress};
use super::{drawing, language_training, library, pushing, training, writing, App};
use crate::error::{Error, Result};
use crate::libtorch::failure::catching;
use crate::libtorch::memory;
use crate::plain_text::counted;
use crate::recipes::complete::TextModel;
use crate::recipes::generate::ImageModel;
use crate::recipes::training::control::{Control, SampleRequest};
use crate::train::memory_plan::{Rates, Work};
use serde_json::{json, Value};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tch::{Device, Kind};

/// Why a job was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A person wants it.
    Asked,
    /// The server ends.
    Server,
    /// It took as long as a job may.
    Time,
}

/// What can be asked of a training beside that it stops.
#[derive(Debug)]
pub enum Request {
    /// A checkpoint.
    Save,
    /// A sample with the weights as they are.
    Sample(SampleRequest),
    /// To wait.
    Pause,
    /// To go on.
    Continue,
}

/// The job that has its turn.
pub struct Live {
    id: String,
    control: Control,
    stop: Option<Stop>,
    is_paused: bool,
    phase: Option<Phase>,
    memory_bytes: Option<u64>,
    began: Instant,
    /// How it ended, and with what error, until that is written down.
    over: Option<(JobState, Option<String>)>,
}

impl Live {
    /// Where it stands.
    pub fn state(&self) -> JobState {
        match (&self.over, self.stop, self.is_paused) {
            (Some((state, _)), ..) => *state,
            (None, Some(_), _) => JobState::Stopping,
            (None, None, true) => JobState::Paused,
            (None, None, false) => JobState::Running,
        }
    }

    /// What it ended with.
    pub fn error(&self) -> Option<String> {
        self.over.as_ref().and_then(|(_, error)| error.clone())
    }

    /// How far it is in its present phase.
    pub fn progress(&self) -> Option<&Progress> {
        self.phase.as_ref().map(Phase::progress)
    }

    /// The most memory that it took so far.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.memory_bytes
    }
}

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

/// What requests may ask of the thread.
pub struct Worker {
    live: Mutex<Option<Live>>,
    /// Whether there may be a job to take, whether the server ends, and whether the thread has ended.
    signs: Mutex<Signs>,
    changed: Condvar,
}

#[derive(Default)]
struct Signs {
    is_woken: bool,
    /// Plans ask how fast the device is.
    wants_rates: VecDeque<Timed>,
    rates: VecDeque<(Timed, Option<Rates>)>,
    is_closing: bool,
    has_ended: bool,
}

impl Worker {
    /// One without a thread yet.
    pub fn new() -> Self {
        Self { live: Mutex::new(None), signs: Mutex::default(), changed: Condvar::new() }
    }

    fn live(&self) -> MutexGuard<'_, Option<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signs(&self) -> MutexGuard<'_, Signs> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `look` says of the job `id`, with how it stands if it has its turn.
    pub fn with<T>(&self, id: &str, look: impl FnOnce(Option<&Live>) -> T) -> T {
        look(self.live().as_ref().filter(|live| live.id == id))
    }

    /// Changes how the present job is shown.
    pub fn update(&self, change: impl FnOnce(&mut Live)) {
        if let Some(live) = self.live().as_mut() {
            change(live);
        }
    }

    /// There is a job to take.
    pub fn wake(&self) {
        self.signs().is_woken = true;
        self.changed.notify_all();
    }

    /// Tells the job `id` to stop; false where it does not have its turn.
    pub fn stop(&self, id: &str, why: Stop) -> bool {
        match self.live().as_mut().filter(|live| live.id == id && live.over.is_none()) {
            Some(live) => {
                live.stop.get_or_insert(why);
                live.control.stop();
                true
            }
            None => false,
        }
    }

    /// Asks something of the job `id`; false where it does not have its turn.
    pub fn ask(&self, id: &str, request: Request) -> bool {
        let live = self.live();
        let Some(live) = live.as_ref().filter(|live| live.id == id && live.stop.is_none() && live.over.is_none())
        else {
            return false;
        };
        match request {
            Request::Save => live.control.save(),
            Request::Sample(sample) => live.control.sample(sample),
            Request::Pause => live.control.pause(),
            Request::Continue => live.control.go_on(),
        }
        true
    }

    /// The job that has had its turn for longer than `most`.
    pub fn overdue(&self, most: Duration) -> Option<String> {
        self.live().as_ref().filter(|live| live.began.elapsed() > most).map(|live| live.id.clone())
    }

    /// Has the present job stop, and takes no other.
    pub fn close(&self) {
        self.signs().is_closing = true;
        self.changed.notify_all();
        if let Some(live) = self.live().as_mut() {
            live.stop.get_or_insert(Stop::Server);
            live.control.stop();
        }
    }

    /// Waits until the thread has ended, but not longer than `most`; whether it has.
    pub fn wait_for_the_end(&self, most: Duration) -> bool {
        let wait = self.changed.wait_timeout_while(self.signs(), most, |signs| !signs.has_ended);
        wait.unwrap_or_else(PoisonError::into_inner).0.has_ended
    }

    /// How fast the device computes `work` in `kind`, measured once between two jobs, for which this waits, but not longer than `most`.
    /// Where a job has its turn, or it takes longer, what was measured of other work in this dtype is the answer.
    pub fn rates(&self, kind: Kind, work: Work, most: Duration) -> Option<Rates> {
        let wanted = Timed { kind, work };
        let is_busy = self.live().is_some();
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

    /// Waits for something to do; false where the server ends.
    fn wait_for_work(&self) -> bool {
        let is_idle = |signs: &mut Signs| !signs.is_woken && !signs.is_closing && signs.wants_rates.is_empty();
        let wait = self.changed.wait_while(self.signs(), is_idle);
        let mut signs = wait.unwrap_or_else(PoisonError::into_inner);
        signs.is_woken = false;
        !signs.is_closing
    }

    fn is_closing(&self) -> bool {
        self.signs().is_closing
    }
}

impl Live {
    /// Whether it waits.
    pub fn set_paused(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    /// The present phase.
    pub fn set_phase(&mut self, phase: Option<Phase>) {
        self.phase = phase;
    }

    /// The present phase, to be advanced.
    pub fn phase(&mut self) -> Option<&mut Phase> {
        self.phase.as_mut()
    }

    /// It has taken so much memory.
    pub fn note_memory(&mut self, bytes: u64) {
        self.memory_bytes = Some(self.memory_bytes.map_or(bytes, |before| before.max(bytes)));
    }
}

/// Starts the thread.
pub fn start(app: &App) -> Result<()> {
    let app = app.clone();
    app.worker.wake();
    thread::Builder::new().name("jobs".to_owned()).spawn(move || work(&app)).map_err(Error::no_thread).map(drop)
}

fn work(app: &App) {
    let mut models = Loaded::default();
    while app.worker.wait_for_work() {
        loop {
            app.worker.measure(app.device);
            match jobs::take_next(app) {
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
    app.worker.signs().has_ended = true;
    app.worker.changed.notify_all();
}

/// A job from start to end.
fn turn(app: &App, models: &mut Loaded, job: Job) {
    let control = Control::new();
    *app.worker.live() = Some(Live {
        id: job.id.clone(),
        control: control.clone(),
        stop: None,
        is_paused: false,
        phase: None,
        memory_bytes: None,
        began: Instant::now(),
        over: None,
    });
    // The server may have been told to end since the job was taken.
    if app.worker.is_closing() {
        app.worker.stop(&job.id, Stop::Server);
    }
    app.data.keep_reserve();
    memory::reset_host_peak();
    drop(jobs::tell_now(app, &job.id));
    jobs::tell_those_who_wait(app);
    let mut observer = JobObserver::new(app, &job);
    let outcome = catching(|| run(app, models, &job, &control, &mut observer));
    let (stop, memory_bytes) = {
        let live = app.worker.live();
        (live.as_ref().and_then(|live| live.stop), live.as_ref().and_then(Live::memory_bytes))
    };
    let end = ended(app, job.kind, outcome, stop);
    let over = End { memory_bytes, ..end };
    if over.state == JobState::Failed {
        if let Some((sentence, _)) = &over.error {
            observer.log(sentence);
        }
    }
    write_down(app, &job, &over);
    *app.worker.live() = None;
    drop(jobs::tell_now(app, &job.id));
    app.events.send(&job.owner, &json!({ "kind": "adapters" }));
    drop(memory::release_cached(app.device));
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
            app.worker.update(|live| live.over = Some((end.state, sentence)));
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
