//! What a person or a machine sees of a job: bars where standard output is a terminal, plain lines where it is not, JSON
//! lines with `--json`.

use super::bars::{Phase, StepTime};
use crate::error::{Error, Result};
use crate::plain_text;
use crate::recipes::training::observer::{Event, Observer};
use crate::recipes::training::run::TRAINING;
use crate::sentence::{flag, with_options};
use crate::train::metrics::StepMetrics;
use console::Term;
use indicatif::ProgressBar;
use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Seconds between two progress lines where there is no bar.
const QUIET_SECONDS: u64 = 10;
/// How much is said.
#[derive(Debug, Clone, Copy)]
pub struct Voice {
    /// JSON lines and no prose.
    pub json: bool,
    /// Warnings and errors alone.
    pub quiet: bool,
    /// Each step a line, where there is no bar.
    pub verbose: bool,
}

/// Where something is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

/// Prints events.
pub struct Reporter {
    voice: Voice,
    terminal: bool,
    /// Where everything goes that is not a result.
    aside: Stream,
    bar: Option<ProgressBar>,
    phase: Phase,
    step_time: Arc<StepTime>,
    last_line: Instant,
    write_error: Option<std::io::Error>,
}

impl Reporter {
    /// A reporter for standard output.
    pub fn new(voice: Voice) -> Self {
        let phase = Phase::new(String::new(), 0, 0, "");
        let terminal = std::io::stdout().is_terminal();
        Self {
            voice,
            terminal,
            aside: Stream::Out,
            bar: None,
            phase,
            step_time: Arc::default(),
            last_line: Instant::now(),
            write_error: None,
        }
    }

    /// The result is a text that another program may read: what else is said in prose goes to standard error.
    pub fn result_is_for_programs(&mut self) {
        if !self.voice.json {
            self.aside = Stream::Err;
            self.terminal = std::io::stderr().is_terminal();
        }
    }

    /// One JSON object in `--json`, one line of prose otherwise.
    pub fn result(&mut self, json: serde_json::Value, prose: &str) {
        match self.voice.json {
            true => self.data(&json.to_string()),
            false => self.print(Stream::Out, &plain_text::lines(prose)),
        }
    }

    /// A line of JSON for programs, with and without `--json`: whole, however long.
    pub fn data(&mut self, json: &str) {
        self.print(Stream::Out, &plain_text::json(json));
    }

    /// The same, but nothing in `--quiet`: the end of a job whose result is in files.
    pub fn summary(&mut self, json: serde_json::Value, prose: &str) {
        if self.voice.json || !self.voice.quiet {
            self.result(json, prose);
        }
    }

    fn say(&mut self, text: &str) {
        if !self.voice.quiet {
            self.print(self.aside, &plain_text::line(text));
        }
    }

    /// Prints what has gone through [`plain_text`].
    fn print(&mut self, stream: Stream, text: &str) {
        let write = || match stream {
            Stream::Out => writeln!(std::io::stdout(), "{text}"),
            Stream::Err => writeln!(std::io::stderr(), "{text}"),
        };
        let written = match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        };
        if stream == Stream::Out {
            self.note_failure(written);
        }
    }

    /// A reader that has closed its end, as `head` does, has seen what it wanted.
    fn note_failure(&mut self, written: std::io::Result<()>) {
        if let Err(error) = written {
            if error.kind() != ErrorKind::BrokenPipe {
                self.write_error.get_or_insert(error);
            }
        }
    }

    /// The first line that could not be written to standard output, as the error that it is.
    pub fn check_output(&mut self) -> Result<()> {
        let flushed = std::io::stdout().flush().err().filter(|error| error.kind() != ErrorKind::BrokenPipe);
        match self.write_error.take().or(flushed) {
            Some(error) => Err(Error::io("write to", "standard output", error)),
            None => Ok(()),
        }
    }

    /// A piece of a text as it is written, without a line's end; in `--json` a line of its own. A program gets the model's very
    /// characters, a terminal none that steers it.
    pub fn text(&mut self, piece: &str) {
        if self.voice.json {
            return self.data(&serde_json::json!({ "event": "text", "text": piece }).to_string());
        }
        let mut out = std::io::stdout();
        let written = match out.is_terminal() {
            true => out.write_all(plain_text::prose(piece).as_bytes()),
            false => out.write_all(piece.as_bytes()),
        };
        self.note_failure(written.and_then(|()| out.flush()));
    }

    /// The end of a text that came in pieces; in `--json`, the line `json` with all of it.
    pub fn end_text(&mut self, json: serde_json::Value) {
        self.result(json, "");
    }

    fn begin(&mut self, phase: Phase) {
        self.end();
        self.last_line = Instant::now();
        if !self.voice.quiet && self.terminal {
            let term = if self.aside == Stream::Out { Term::stdout() } else { Term::stderr() };
            self.bar = Some(phase.bar(term));
        }
        self.phase = phase;
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Moves the bar; without one, a line now and then.
    fn progress(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if self.last_line.elapsed().as_secs() >= QUIET_SECONDS {
            self.last_line = Instant::now();
            let phase = &self.phase;
            let amount = match (phase.in_bytes, phase.unit) {
                (true, _) => format!("{:.1} of {:.1} MB", done as f64 / 1e6, phase.total as f64 / 1e6),
                (false, "") => format!("{done}/{}  {}", phase.total, phase.pace(done)),
                (false, unit) => format!("{done}/{} {unit}  {}", phase.total, phase.pace(done)),
            };
            self.say(&format!("{:>13}  {amount}  {}", phase.name, phase.left(done)));
        }
    }

    fn step(&mut self, metrics: &StepMetrics, total: u64) {
        self.step_time.add(metrics.step_s);
        let loss = metrics.loss.map_or("overflow, step skipped".to_owned(), |loss| format!("loss {loss:.4}"));
        let memory = format!("{:.2} GiB", metrics.peak_mib / 1024.0);
        if let Some(bar) = &self.bar {
            bar.set_prefix(format!("{loss} · {memory} · "));
            bar.set_position(metrics.step);
            return;
        }
        let due = self.last_line.elapsed().as_secs() >= QUIET_SECONDS;
        if due || self.voice.verbose || metrics.step == 1 || metrics.step == total {
            self.last_line = Instant::now();
            let mut line = format!("{:>13}  {}/{total}  {loss}  ", self.phase.name, metrics.step);
            _ = write!(line, "{:.2} s a step  {}  peak {memory}", metrics.step_s, self.phase.left(metrics.step));
            self.say(&line);
        }
    }

    /// A fact, its name before its first line.
    fn fact(&mut self, name: &str, text: &str) {
        for (i, line) in text.lines().enumerate() {
            let name = if i == 0 { name.replace('_', " ") } else { String::new() };
            self.say(&format!("{name:>13}  {line}"));
        }
    }

    fn wrote_images(&mut self, paths: &[PathBuf], grid: Option<&Path>) {
        let line = match (paths, grid) {
            ([], None) => return,
            (paths, Some(grid)) => format!("{}, of {} images in the same folder", grid.display(), paths.len()),
            ([path], None) => path.display().to_string(),
            ([first, .., last], None) => {
                let last = last.file_name().unwrap_or_default().display();
                format!("{} images, {} to {last}", paths.len(), first.display())
            }
        };
        self.say(&format!("{:>13}  {line}", "wrote"));
    }
}

/// The event with the options in its sentences as flags.
fn with_flags(event: Event) -> Event {
    match event {
        Event::Warning { text } => Event::Warning { text: with_options(&text, flag) },
        Event::Fact { name, text, fields } => Event::Fact { name, text: with_options(&text, flag), fields },
        other => other,
    }
}

impl Observer for Reporter {
    fn on(&mut self, event: Event) {
        if !event.is_for_screens() {
            return;
        }
        if let Event::Text { text } = &event {
            return self.text(text);
        }
        let event = with_flags(event);
        if self.voice.json {
            let events: Vec<Event> = match event {
                Event::WroteImages { paths, grid } => {
                    paths.into_iter().chain(grid).map(|path| Event::Wrote { path }).collect()
                }
                event => vec![event],
            };
            events.iter().filter_map(|event| serde_json::to_string(event).ok()).for_each(|text| self.data(&text));
            return;
        }
        match event {
            Event::Warning { text } => self.print(Stream::Err, &plain_text::line(&format!("warning: {text}"))),
            Event::Fact { name, text, .. } => self.fact(&name, &text),
            Event::Wrote { path } => self.say(&format!("{:>13}  {}", "wrote", path.display())),
            Event::WroteImages { paths, grid } => self.wrote_images(&paths, grid.as_deref()),
            Event::Begin { phase, total, done, unit } => {
                let is_training = phase == TRAINING;
                let phase = Phase::new(phase, total, done, unit);
                self.begin(if is_training { phase.paced_by(&self.step_time) } else { phase });
            }
            Event::Download { file, total, done } => {
                if self.phase.name != file {
                    self.begin(Phase::of_bytes(file, total, done));
                }
                self.progress(done);
            }
            Event::Progress { done } => self.progress(done),
            Event::Step { metrics, total } => self.step(&metrics, total),
            Event::End => self.end(),
            Event::Text { .. }
            | Event::Image { .. }
            | Event::Completed { .. }
            | Event::Checkpoint { .. }
            | Event::Paused { .. }
            | Event::Continued { .. } => {}
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.end();
    }
}
