//! How OpenMP's threads wait for each other: spinning where the machine is ours, sleeping where it is not.
//!
//! GNU's libgomp, which libtorch computes with, spins for milliseconds before a thread sleeps. On a quiet machine that saves an
//! eighth of a step; where another program takes one of two cores, the spinning thread holds the core that the other waits for, and
//! steps were 50 times slower (measured). Its environment variables (`OMP_WAIT_POLICY`, `GOMP_SPINCOUNT`) would decide it for good and
//! before the process starts. But it also spins for a moment only (100 turns) whenever it manages more threads than there are
//! cores, and an idle team of threads sees to that, for as long as it lives.

use super::threads;
use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Sender};
use std::time::{Duration, Instant};

/// `GOMP_parallel` of libgomp's ABI, since GCC 4.9: runs a function on so many threads.
type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// Between two looks at the load.
const PERIOD: Duration = Duration::from_millis(500);
/// Cores that others use from which on threads sleep, and below which they spin again.
const BUSY: f64 = 0.2;
const QUIET: f64 = 0.05;

/// Watches what other programs compute, from a thread of its own, for as long as the process lives: once, however often it is called.
/// Does nothing where the user decided by an environment variable, or without GNU's libgomp, or without Linux' /proc.
pub fn sleep_while_others_compute() {
    static WATCHES: AtomicBool = AtomicBool::new(false);
    if WATCHES.swap(true, Ordering::Relaxed) {
        return;
    }
    let decided = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"].iter().any(|name| std::env::var_os(name).is_some());
    let (Some(parallel), Some(mut before), false) = (gomp_parallel(), Load::now(), decided) else { return };
    // Where the system gives no more threads, they wait as libgomp has it.
    drop(std::thread::Builder::new().name("load".into()).spawn(move || {
        // Until the first look, the safe way.
        let mut team = IdleTeam::start(parallel);
        loop {
            std::thread::sleep(PERIOD);
            let Some(now) = Load::now() else { return };
            let others = now.cores_of_others_since(&before);
            before = now;
            if others > BUSY && team.is_none() {
                team = IdleTeam::start(parallel);
            } else if others < QUIET {
                team = None;
            }
        }
    }));
}

fn gomp_parallel() -> Option<Parallel> {
    // SAFETY: a constant NUL-terminated name.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"GOMP_parallel".as_ptr()) };
    // SAFETY: the function of that name has that signature; null is `None`.
    unsafe { std::mem::transmute::<*mut c_void, Option<Parallel>>(found) }
}

/// A team of one thread more than there are cores. It counts as long as the thread that called for it lives: until this is dropped.
struct IdleTeam {
    _until_dropped: Sender<()>,
}

impl IdleTeam {
    fn start(parallel: Parallel) -> Option<Self> {
        extern "C" fn nothing(_: *mut c_void) {}
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        // libgomp ends the process where it cannot have a thread. Those that compute may not all be there yet.
        let wanted = cores + 1 + threads::needed();
        if threads::available(wanted) < wanted {
            return None;
        }
        let threads = c_uint::try_from(cores + 1).unwrap_or(c_uint::MAX);
        let (sender, receiver) = channel::<()>();
        let team = move || {
            // SAFETY: what it runs touches nothing.
            unsafe { parallel(nothing, std::ptr::null_mut(), threads, 0) };
            let _ = receiver.recv();
        };
        std::thread::Builder::new().name("idle team".into()).spawn(team).ok()?;
        Some(Self { _until_dropped: sender })
    }
}

/// Processor time of the machine and of this process, in hundredths of a second.
struct Load {
    machine: u64,
    own: u64,
    at: Instant,
}

impl Load {
    fn now() -> Option<Self> {
        let [stat, own] = ["/proc/stat", "/proc/self/stat"].map(std::fs::read_to_string);
        Some(Self { machine: busy_of_machine(&stat.ok()?)?, own: busy_of_process(&own.ok()?)?, at: Instant::now() })
    }

    fn cores_of_others_since(&self, before: &Self) -> f64 {
        let machine = self.machine.saturating_sub(before.machine);
        let own = self.own.saturating_sub(before.own);
        machine.saturating_sub(own) as f64 / 100.0 / (self.at - before.at).as_secs_f64().max(0.01)
    }
}

/// All but idle time and waiting for disks, from the first line of /proc/stat (proc(5)).
fn busy_of_machine(stat: &str) -> Option<u64> {
    let numbers: Vec<u64> = stat.lines().next()?.split_whitespace().skip(1).flat_map(str::parse).collect();
    let busy = [0, 1, 2, 5, 6, 7]; // user, nice, system, irq, softirq, steal
    busy.iter().map(|&i| numbers.get(i).copied()).sum()
}

/// User and system time from /proc/self/stat, counted from the end of the program's name, which may hold anything.
fn busy_of_process(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_times_are_read_from_the_kernels_lines() {
        assert_eq!(busy_of_machine("cpu  10 20 30 4000 500 6 7 8 0 0\ncpu0 1 1\n"), Some(10 + 20 + 30 + 6 + 7 + 8));
        assert_eq!(busy_of_machine("cpu 1 2"), None);
        let line = "12 (a) b) c) R 1 2 3 4 5 6 7 8 9 10 110 22 0 0 20";
        assert_eq!(busy_of_process(line), Some(132));
        assert_eq!(busy_of_process("12 (name"), None);
    }

    #[test]
    fn the_load_of_others_is_what_is_left_of_the_machines() {
        let at = Instant::now();
        let before = Load { machine: 1000, own: 500, at };
        let now = Load { machine: 1150, own: 600, at: at + Duration::from_secs(1) };
        assert!((now.cores_of_others_since(&before) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn an_idle_team_starts_and_ends() {
        let parallel = gomp_parallel().expect("libtorch brings libgomp");
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        let team = IdleTeam::start(parallel);
        let wait = |done: &dyn Fn() -> bool| {
            (0..200).any(|_| {
                done() || {
                    std::thread::sleep(PERIOD / 50);
                    false
                }
            })
        };
        assert!(wait(&|| threads() > before), "no thread was started");
        drop(team);
        assert!(wait(&|| threads() <= before), "the team's threads are still there");
    }
}
