//! The binary: parses the command line, runs it, and prints one line for an error.

use std::process::ExitCode;

fn main() -> ExitCode {
    lorabooth::cli::main(std::env::args_os().collect())
}
