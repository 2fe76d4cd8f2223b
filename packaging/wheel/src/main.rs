//! `lorabooth` as pip installs it: finds the PyTorch of the same Python environment and starts the program on its libtorch.
//!
//! No Python runs. The program itself lies among the environment's packages; it becomes this process.

mod find;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let message = match program() {
        Ok(program) => start(&program),
        Err(message) => message,
    };
    eprintln!("error: {message}");
    ExitCode::FAILURE
}

/// The program, and the folder of libtorch that it is to run on.
struct Program {
    path: PathBuf,
    libraries: PathBuf,
}

/// Finds both from where this file lies.
fn program() -> Result<Program, String> {
    let own = std::env::current_exe().map_err(|error| format!("cannot find this program's own path: {error}"))?;
    let prefix = own.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    let Some(path) = find::program(prefix) else {
        return Err(format!("{} was moved, or is half installed; install the wheel again", own.display()));
    };
    let libraries = find::torch(prefix, &|name| std::env::var_os(name))?.join("lib");
    Ok(Program { path, libraries })
}

/// Replaces this process by the program; returns only with what went wrong.
fn start(program: &Program) -> String {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "lorabooth".into());
    let mut search = OsString::from(&program.libraries);
    if let Some(more) = std::env::var_os("LD_LIBRARY_PATH").filter(|more| !more.is_empty()) {
        search.push(":");
        search.push(more);
    }
    let error = Command::new(&program.path).arg0(name).args(arguments).env("LD_LIBRARY_PATH", search).exec();
    format!("cannot start {}: {error}", program.path.display())
}
