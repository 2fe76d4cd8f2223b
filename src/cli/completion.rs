//! `lorabooth completion` and `lorabooth man`: what a shell and a manual know of the command line, made from its description.

use super::{whole_command, Reporter};
use crate::error::{Error, Result};
use crate::recipes::training::observer::{Event, Observer};
use crate::whole_file::write_whole;
use clap::{Args, Command};
use clap_complete::Shell;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Flags of `completion`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Flags of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder for the pages: lorabooth.1, lorabooth-train.1 and so on
    #[arg(long, visible_alias = "output-dir", value_name = "DIR")]
    output: PathBuf,
    /// Replace pages that are already there
    #[arg(long)]
    overwrite: bool,
}

/// Prints the script for a shell.
pub fn completion(args: &CompletionArgs, reporter: &mut Reporter) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut whole_command(), "lorabooth", &mut script);
    reporter.text(&String::from_utf8_lossy(&script));
    Ok(())
}

/// Writes the manual pages.
pub fn man(args: &ManArgs, reporter: &mut Reporter) -> Result<()> {
    let folder = &args.output;
    let mut pages = BTreeMap::new();
    let mut command = with_other_names(whole_command().disable_help_subcommand(true));
    // Gives commands within commands their whole names.
    command.build();
    collect(&command, &mut pages)?;
    let taken = pages.keys().map(|name| folder.join(name)).find(|path| path.exists());
    if let Some(taken) = taken.filter(|_| !args.overwrite) {
        return Err(Error::file(taken, "already exists; name another --output, or replace it with --overwrite"));
    }
    std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    for (name, page) in pages {
        let path = folder.join(name);
        write_whole(&path, &page)?;
        reporter.on(Event::Wrote { path });
    }
    Ok(())
}

/// `command` with the other names of flags in their descriptions, which manual pages lack otherwise.
fn with_other_names(mut command: Command) -> Command {
    let below: Vec<String> = command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    for name in below {
        command = command.mut_subcommand(name, with_other_names);
    }
    command.mut_args(|arg| {
        let names: Vec<String> =
            arg.get_visible_aliases().into_iter().flatten().map(|name| format!("--{name}")).collect();
        match (names.is_empty(), arg.get_help()) {
            (false, Some(help)) => {
                let text = format!("{help} (also {})", names.join(", "));
                arg.help(text.clone()).long_help(text)
            }
            // A page shows the long help alone.
            (true, Some(help)) if arg.get_long_help().is_none() => {
                let text = help.clone();
                arg.long_help(text)
            }
            _ => arg,
        }
    })
}

/// The pages of `command` and of those below it.
fn collect(command: &Command, pages: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    let mut page = Vec::new();
    let version = concat!("lorabooth ", env!("CARGO_PKG_VERSION"));
    let manual = clap_mangen::Man::new(command.clone()).source(version).manual("lorabooth");
    manual.render(&mut page).map_err(|error| Error::Internal(error.to_string()))?;
    pages.insert(manual.get_filename(), page);
    command.get_subcommands().filter(|below| !below.is_hide_set()).try_for_each(|below| collect(below, pages))
}
