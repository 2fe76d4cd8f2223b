//! What a person or a machine sees of a job: bars where standard output is a terminal, plain lines where it is not, JSON
//! lines with `--json`.

use crate::error::{Error, Result};
use crate::plain_text;
use crate::recipes::observer::{Event, Observer};
use crate::train::metrics::StepMetrics;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Seconds between two progress lines where there is no bar.
const QUIET_SECONDS: u64 = 10;
/// The bar takes what the terminal's width leaves, so that what stands behind it is never cut off.
const UNITS: &str = "{msg:<13} {wide_bar:.cyan/blue} {pos}/{len}  {prefix}{pace}{left}";
const BYTES: &str = "{msg:<13} {wide_bar:.cyan/blue} {bytes}/{total_bytes} · {bytes_per_sec}{left}";

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
    last_line: Instant,
    write_error: Option<std::io::Error>,
}

/// The work of known length that is being done.
#[derive(Clone)]
struct Phase {
    name: String,
    total: u64,
    before: u64,
    began: Instant,
    in_bytes: bool,
}

impl Phase {
    fn new(name: String, total: u64, before: u64, in_bytes: bool) -> Self {
        Self { name, total, before, began: Instant::now(), in_bytes }
    }

    /// Seconds for one unit of work, over all that was done since the phase began.
    fn seconds_each(&self, done: u64) -> f64 {
        self.began.elapsed().as_secs_f64() / done.saturating_sub(self.before).max(1) as f64
    }

    fn left(&self, done: u64) -> String {
        let seconds = self.seconds_each(done) * self.total.saturating_sub(done) as f64;
        format!("{} left", duration(seconds))
    }
}

impl Reporter {
    /// A reporter for standard output.
    pub fn new(voice: Voice) -> Self {
        let phase = Phase::new(String::new(), 0, 0, false);
        let terminal = std::io::stdout().is_terminal();
        Self { voice, terminal, aside: Stream::Out, bar: None, phase, last_line: Instant::now(), write_error: None }
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
        self.phase = phase;
        let phase = &self.phase;
        if self.voice.quiet || !self.terminal {
            return;
        }
        let template = if phase.in_bytes { BYTES } else { UNITS };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        // The phase's own times: the bar's would begin with what was done before. Nothing is known before the first unit is done.
        let timed = phase.clone();
        let style = style.with_key("pace", move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
            let known = state.pos() > timed.before;
            _ = text.write_str(&pace(if known { timed.seconds_each(state.pos()) } else { f64::INFINITY }));
        });
        let timed = phase.clone();
        let style = style.with_key("left", move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
            if state.pos() > timed.before {
                _ = write!(text, " · {}", timed.left(state.pos()));
            }
        });
        let target = match self.aside {
            Stream::Out => ProgressDrawTarget::stdout(),
            Stream::Err => ProgressDrawTarget::stderr(),
        };
        let bar = ProgressBar::with_draw_target(Some(phase.total), target)
            .with_position(phase.before)
            .with_style(style)
            .with_message(plain_text::value(&phase.name));
        bar.enable_steady_tick(Duration::from_millis(500));
        self.bar = Some(bar);
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
            let amount = match phase.in_bytes {
                true => format!("{:.1} of {:.1} MB", done as f64 / 1e6, phase.total as f64 / 1e6),
                false => format!("{done}/{}  {}", phase.total, pace(phase.seconds_each(done))),
            };
            self.say(&format!("{:>13}  {amount}  {}", phase.name, phase.left(done)));
        }
    }

    fn step(&mut self, metrics: &StepMetrics, total: u64) {
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
}

/// Seconds as a person says them.
pub fn duration(seconds: f64) -> String {
    match seconds.max(0.0).round() as u64 {
        seconds @ 0..=99 => format!("{seconds} s"),
        seconds @ 100..=5999 => format!("{} min", (seconds + 30) / 60),
        seconds => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}

/// How fast work goes, given the seconds for one unit of it.
fn pace(seconds_each: f64) -> String {
    match seconds_each.is_finite() {
        true if seconds_each < 1.0 => format!("{:.1}/s", 1.0 / seconds_each.max(1e-6)),
        true => format!("{seconds_each:.1} s each"),
        false => "…".to_owned(),
    }
}

impl Observer for Reporter {
    fn on(&mut self, event: Event) {
        if self.voice.json {
            if let Ok(text) = serde_json::to_string(&event) {
                self.data(&text);
            }
            return;
        }
        match event {
            Event::Warning { text } => self.print(Stream::Err, &plain_text::line(&format!("warning: {text}"))),
            Event::Fact { name, text } => self.say(&format!("{name:>13}  {text}")),
            Event::Wrote { path } => self.say(&format!("{:>13}  {}", "wrote", path.display())),
            Event::Begin { phase, total, done } => self.begin(Phase::new(phase, total, done, false)),
            Event::Download { file, total, done } => {
                if self.phase.name != file {
                    self.begin(Phase::new(file, total, done, true));
                }
                self.progress(done);
            }
            Event::Progress { done } => self.progress(done),
            Event::Step { metrics, total } => self.step(&metrics, total),
            Event::End => self.end(),
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_as_people_say_them() {
        let said = [0.0, 59.4, 100.0, 3600.0, 7200.0, f64::INFINITY].map(duration);
        assert_eq!(said[..5], ["0 s", "59 s", "2 min", "60 min", "2.0 h"]);
        assert_eq!([pace(0.25), pace(12.34), pace(f64::INFINITY)], ["4.0/s", "12.3 s each", "…"]);
    }
}
