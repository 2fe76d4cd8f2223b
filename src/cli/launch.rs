//! `--gpus N` and `--processes N`: the same command in N processes of this machine, and what becomes of them.

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::libtorch::child_signal;
use crate::libtorch::process_group::Store;
use crate::options::ranks::RanksArgs;
use crate::plain_text;
use crate::train::data_parallel::launch::LAUNCHER_SERVES_STORE;
use signal_hook::consts::SIGINT;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// How often processes are asked whether they have ended.
const LOOK: Duration = Duration::from_millis(50);
/// How long the others have to end by themselves once one has failed: they say which one it was.
const GRACE: Duration = Duration::from_secs(7);

/// A process, until it has ended.
struct Started {
    rank: usize,
    child: Child,
    ended: Option<ExitStatus>,
}

/// Runs the command of this process in as many as `args` asks for, each on `threads`, and gives the exit code of all.
pub fn run(args: &RanksArgs, threads: Option<i32>, interrupt: &Interrupt) -> Result<u8> {
    let count = args.count() as usize;
    let (_store, port) = Store::serve(args.timeout())?;
    let threads = threads.unwrap_or((tch::get_num_threads() / count as i32).max(1));
    let mut processes = Vec::new();
    for rank in 0..count {
        match start(rank, count, port, threads) {
            Ok(child) => processes.push(Started { rank, child, ended: None }),
            Err(error) => {
                end(&mut processes);
                return Err(error);
            }
        }
    }
    Ok(wait(&mut processes, interrupt))
}

fn start(rank: usize, count: usize, port: u16, threads: i32) -> Result<Child> {
    let program = std::env::current_exe().map_err(|error| Error::io("find", "the program", error))?;
    let mut command = Command::new(&program);
    command.args(std::env::args_os().skip(1));
    for (name, value) in [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", count), ("LOCAL_WORLD_SIZE", count)] {
        command.env(name, value.to_string());
    }
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string()).env(LAUNCHER_SERVES_STORE, "True");
    command.env("OMP_NUM_THREADS", threads.to_string());
    // Ctrl-C at the terminal comes here alone, and is handed on once.
    command.process_group(0);
    command.spawn().map_err(|error| Error::io("start", &program, error))
}

/// Hands signals on, and ends the others where one fails.
fn wait(processes: &mut [Started], interrupt: &Interrupt) -> u8 {
    let (mut is_handed_on, mut failed_at, mut code) = (false, None, 0);
    loop {
        for process in processes.iter_mut().filter(|process| process.ended.is_none()) {
            let Ok(Some(status)) = process.child.try_wait() else { continue };
            process.ended = Some(status);
            if let Some(signal) = status.signal() {
                let text = format!("[rank {}] the process was ended by signal {signal}", process.rank);
                drop(writeln!(std::io::stderr(), "{}", plain_text::line(&text)));
            }
            if !status.success() {
                failed_at.get_or_insert_with(Instant::now);
                // The first rank says why; else the first that failed.
                let own = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
                code = if process.rank == 0 || code == 0 { own } else { code };
            }
        }
        if processes.iter().all(|process| process.ended.is_some()) {
            return code;
        }
        if interrupt.requested() && !is_handed_on {
            is_handed_on = true;
            processes.iter().filter(|process| process.ended.is_none()).for_each(|process| {
                child_signal::send(&process.child, SIGINT);
            });
        }
        if failed_at.is_some_and(|at: Instant| at.elapsed() > GRACE) && code != 130 {
            end(processes);
        }
        std::thread::sleep(LOOK);
    }
}

/// Ends what still runs.
fn end(processes: &mut [Started]) {
    for process in processes.iter_mut().filter(|process| process.ended.is_none()) {
        // It may have ended by itself just now.
        drop(process.child.kill());
    }
}
