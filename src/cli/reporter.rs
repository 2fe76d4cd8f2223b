//! What a person or a machine sees of a job: bars where standard output is a terminal, plain lines where it is not, JSON
//! lines with `--json`.

use crate::recipes::observer::{Event, Observer};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Seconds between two progress lines where there is no bar.
const QUIET_SECONDS: u64 = 10;

/// Prints events.
pub struct Reporter {
    json: bool,
    quiet: bool,
    terminal: bool,
    bar: Option<ProgressBar>,
    phase: String,
    last_line: Instant,
}

impl Reporter {
    /// A reporter for standard output.
    pub fn new(json: bool, quiet: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { json, quiet, terminal, bar: None, phase: String::new(), last_line: Instant::now() }
    }

    /// One JSON object in `--json`, one line of prose otherwise.
    pub fn result(&mut self, json: serde_json::Value, prose: &str) {
        match self.json {
            true => self.line(&json.to_string()),
            false => self.line(prose),
        }
    }

    /// A line of prose; nothing in `--json` and `--quiet`.
    pub fn say(&mut self, text: &str) {
        if !self.json && !self.quiet {
            self.line(text);
        }
    }

    fn line(&mut self, text: &str) {
        let write = || drop(writeln!(std::io::stdout(), "{text}"));
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn begin(&mut self, phase: String, total: u64, done: u64) {
        self.phase = phase;
        self.last_line = Instant::now();
        if self.quiet || !self.terminal {
            return;
        }
        let template = "{msg:<18} {bar:30.cyan/blue} {pos}/{len}  {prefix}{per_sec} · {elapsed} · {eta} left";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stdout()).with_style(style);
        bar.set_message(self.phase.clone());
        bar.set_position(done);
        bar.reset_eta();
        bar.enable_steady_tick(Duration::from_millis(500));
        self.bar = Some(bar);
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn gib(mib: f64) -> String {
    format!("{:.2} GiB", mib / 1024.0)
}

impl Observer for Reporter {
    fn on(&mut self, event: Event) {
        if self.json {
            if let Ok(text) = serde_json::to_string(&event) {
                self.line(&text);
            }
            return;
        }
        match event {
            Event::Warning { text } => {
                let text = super::one_line(&text);
                let write = || drop(writeln!(std::io::stderr(), "warning: {text}"));
                match &self.bar {
                    Some(bar) => bar.suspend(write),
                    None => write(),
                }
            }
            Event::Fact { name, text } => self.say(&format!("{name:>13}  {text}")),
            Event::Wrote { path } => self.say(&format!("{:>13}  {}", "wrote", path.display())),
            Event::Begin { phase, total, done } => self.begin(phase, total, done),
            Event::Progress { done } => {
                if let Some(bar) = &self.bar {
                    bar.set_position(done);
                }
            }
            Event::Step { metrics, total } => {
                let loss = metrics.loss.map_or("overflow, step skipped".to_owned(), |loss| format!("loss {loss:.4}"));
                if let Some(bar) = &self.bar {
                    bar.set_position(metrics.step);
                    bar.set_prefix(format!("{loss} · {} · ", gib(metrics.peak_mib)));
                } else if metrics.step == 1
                    || metrics.step == total
                    || self.last_line.elapsed().as_secs() >= QUIET_SECONDS
                {
                    self.last_line = Instant::now();
                    let left = (total - metrics.step.min(total)) as f64 * metrics.step_s;
                    self.say(&format!(
                        "{:>13}  {}/{total}  {loss}  {:.2} s a step  {:.0} s left  peak {}",
                        self.phase,
                        metrics.step,
                        metrics.step_s,
                        left,
                        gib(metrics.peak_mib)
                    ));
                }
            }
            Event::End => self.end(),
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.end();
    }
}
