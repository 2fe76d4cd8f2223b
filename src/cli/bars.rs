//! Progress bars on a terminal: one line that is always erased whole, also after the window was made narrower.

use crate::plain_text;
use console::{measure_text_width, truncate_str, Term};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle, TermLike};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The bar takes what the terminal's width leaves, so that what stands behind it is never cut off.
const UNITS: &str = "{msg:<13} {wide_bar:.cyan/blue} {pos}/{len}{unit} · {prefix}{pace}{left}";
const BYTES: &str = "{msg:<13} {wide_bar:.cyan/blue} {bytes}/{total_bytes} · {bytes_per_sec}{left}";
/// Work of one piece has no length to show.
const ONE: &str = "{msg:<13} {spinner} {elapsed}";
/// Columns at the right that stay free: for the `^C` of a terminal, which would begin a new line there.
const MARGIN: u16 = 4;
const DRAWS_A_SECOND: u8 = 15;

/// Columns that the bar takes on the screen: there is one at a time.
static DRAWN: AtomicUsize = AtomicUsize::new(0);

/// A terminal on which a bar stays within one line.
#[derive(Debug)]
struct BarTerminal {
    term: Term,
}

impl BarTerminal {
    /// Rows on which `columns` columns lie in a window `width` wide: terminals wrap a line anew that has become too long.
    fn rows(columns: usize, width: usize) -> usize {
        columns.div_ceil(width.max(1)).max(1)
    }
}

/// Takes the bar off the screen.
fn erase(term: &Term) -> io::Result<()> {
    let width = usize::from(term.size().1);
    let rows = BarTerminal::rows(DRAWN.swap(0, Ordering::Relaxed), width);
    if rows > 1 {
        term.move_cursor_up(rows - 1)?;
        term.write_str("\r")?;
        return term.clear_to_end_of_screen();
    }
    term.clear_line()
}

/// Takes a bar that there is off the screen: for a process that ends at once.
pub fn erase_at_the_end() {
    if DRAWN.load(Ordering::Relaxed) > 0 {
        drop(erase(&Term::stderr()));
    }
}

impl TermLike for BarTerminal {
    fn width(&self) -> u16 {
        self.term.size().1.saturating_sub(MARGIN).max(1)
    }

    fn height(&self) -> u16 {
        self.term.size().0
    }

    // The bar is one line, whatever indicatif makes of its length before it is cut: nothing to move between.
    fn move_cursor_up(&self, _n: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _n: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _n: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _n: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        DRAWN.store(0, Ordering::Relaxed);
        self.term.write_line(text)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        // indicatif fills the line up with spaces, which a narrower window would wrap.
        if text.trim().is_empty() {
            return Ok(());
        }
        let text = truncate_str(text, usize::from(self.width()), "");
        DRAWN.store(measure_text_width(&text), Ordering::Relaxed);
        self.term.write_str(&text)
    }

    fn clear_line(&self) -> io::Result<()> {
        erase(&self.term)
    }

    fn flush(&self) -> io::Result<()> {
        self.term.flush()
    }
}

/// The work of known length that is being done.
#[derive(Debug, Clone)]
pub struct Phase {
    /// What is done.
    pub name: String,
    /// Units of it.
    pub total: u64,
    /// What is counted; empty where the name says it.
    pub unit: &'static str,
    /// The units are bytes.
    pub in_bytes: bool,
    before: u64,
    began: Instant,
    /// Where steps report their own time, that of one of them.
    step: Option<Arc<StepTime>>,
}

impl Phase {
    /// A phase that begins now, with `before` units of `total` done.
    pub fn new(name: String, total: u64, before: u64, unit: &'static str) -> Self {
        Self { name, total, unit, in_bytes: false, before, began: Instant::now(), step: None }
    }

    /// The download of a file of `total` bytes.
    pub fn of_bytes(name: String, total: u64, before: u64) -> Self {
        Self { in_bytes: true, ..Self::new(name, total, before, "") }
    }

    /// The same, of steps that take `step` each, whatever is done between them.
    pub fn paced_by(self, step: &Arc<StepTime>) -> Self {
        Self { step: Some(step.clone()), ..self }
    }

    /// Seconds for one unit of work; none while nothing is known.
    fn seconds_each(&self, done: u64) -> Option<f64> {
        if let Some(step) = &self.step {
            return step.seconds();
        }
        let new = done.saturating_sub(self.before);
        (new > 0).then(|| self.began.elapsed().as_secs_f64() / new as f64)
    }

    /// How fast it goes.
    pub fn pace(&self, done: u64) -> String {
        match self.seconds_each(done) {
            Some(seconds) if seconds < 1.0 => format!("{:.1}/s", 1.0 / seconds.max(1e-6)),
            Some(seconds) => format!("{seconds:.1} s each"),
            None => "…".to_owned(),
        }
    }

    /// The time that is left; empty while nothing is known.
    pub fn left(&self, done: u64) -> String {
        let left = |seconds: f64| format!("{} left", duration(seconds * self.total.saturating_sub(done) as f64));
        self.seconds_each(done).map_or(String::new(), left)
    }

    /// A bar of it on `term`.
    pub fn bar(&self, term: Term) -> ProgressBar {
        let template = match (self.in_bytes, self.total) {
            (true, _) => BYTES,
            (false, ..=1) => ONE,
            _ => UNITS,
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        // The phase's own times: the bar's would begin with what was done before.
        let [phase, timed] = [self.clone(), self.clone()];
        let unit = if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
        let style = style
            .with_key("pace", move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
                _ = text.write_str(&phase.pace(state.pos()));
            })
            .with_key("left", move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
                let left = timed.left(state.pos());
                if !left.is_empty() {
                    _ = write!(text, " · {left}");
                }
            })
            .with_key("unit", move |_: &ProgressState, text: &mut dyn std::fmt::Write| _ = text.write_str(&unit));
        let terminal = BarTerminal { term };
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(terminal), DRAWS_A_SECOND);
        let bar = ProgressBar::with_draw_target(Some(self.total), target)
            .with_position(self.before)
            .with_style(style)
            .with_message(plain_text::value(&self.name));
        bar.enable_steady_tick(Duration::from_millis(500));
        bar
    }
}

/// How long a training step takes, by the steps' own measure: evaluations, samples and checkpoints between them do not count.
#[derive(Debug, Default)]
pub struct StepTime(AtomicU64);

/// Share of the newest step in the mean.
const NEWEST: f64 = 0.1;

impl StepTime {
    /// A step took `seconds`.
    pub fn add(&self, seconds: f64) {
        let mean = self.seconds().map_or(seconds, |mean| mean + (seconds - mean) * NEWEST);
        self.0.store(mean.to_bits(), Ordering::Relaxed);
    }

    /// Seconds a step; none before the first.
    fn seconds(&self) -> Option<f64> {
        Some(f64::from_bits(self.0.load(Ordering::Relaxed))).filter(|seconds| *seconds > 0.0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_as_people_say_them() {
        let said = [0.0, 59.4, 100.0, 3600.0, 7200.0, f64::INFINITY].map(duration);
        assert_eq!(said[..5], ["0 s", "59 s", "2 min", "60 min", "2.0 h"]);
    }

    #[test]
    fn a_steps_time_leaves_out_what_is_between_steps() {
        let step = Arc::new(StepTime::default());
        let phase = Phase::new("training".into(), 100, 0, "steps").paced_by(&step);
        assert_eq!((phase.pace(0), phase.left(0)), ("…".to_owned(), String::new()));
        (0..50).for_each(|_| step.add(2.0));
        // Whatever the clock says of the phase, in which almost no time has passed here.
        assert_eq!((phase.pace(50).as_str(), phase.left(50).as_str()), ("2.0 s each", "2 min left"));
        // A phase that begins anew, as after an evaluation, knows it at once.
        let again = Phase::new("training".into(), 100, 50, "steps").paced_by(&step);
        assert_eq!(again.left(50), "2 min left");
    }

    #[test]
    fn a_line_lies_on_as_many_rows_as_a_narrower_window_makes_of_it() {
        assert_eq!(
            [(0, 80), (76, 80), (76, 40), (76, 38), (76, 10)].map(|(n, w)| BarTerminal::rows(n, w)),
            [1, 1, 2, 2, 8]
        );
    }
}
