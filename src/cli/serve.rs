//! `lorabooth serve`.

use super::{Common, Reporter};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::regular_file::{self, FileKind};
use crate::server::{self, Account, Address, App, DataFolder, Embedding, Limits, Settings};
use clap::Args;
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// Flags of the command.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address to listen at; one that others can reach needs --auth, --auth-file or --no-auth
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), help_heading = "Server")]
    host: IpAddr,
    /// Port to listen at; 0 takes one that is free
    #[arg(long, default_value_t = 7860, help_heading = "Server")]
    port: u16,
    /// Folder for photos, jobs, adapters and pictures; by default lorabooth in the user's data folder
    #[arg(long, help_heading = "Server")]
    data_dir: Option<PathBuf>,
    /// Model to serve: a folder, a .safetensors checkpoint or a hub id; can be given several times. The small model inside the binary
    /// is always there
    #[arg(long, value_name = "MODEL", action = clap::ArgAction::Append, help_heading = "Server")]
    model: Vec<String>,
    /// User and password that have to be signed in with; --auth-file keeps them out of the list of processes
    #[arg(long, value_name = "USER:PASSWORD", conflicts_with_all = ["auth_file", "no_auth"], help_heading = "Server")]
    auth: Option<String>,
    /// File with one line, USER:PASSWORD
    #[arg(long, value_name = "FILE", conflicts_with = "no_auth", help_heading = "Server")]
    auth_file: Option<PathBuf>,
    /// Let everybody in who can reach the address
    #[arg(long, help_heading = "Server")]
    no_auth: bool,
    /// Name that the server is reached by, beside its addresses and localhost, such as demo.example.org; can be given several times
    #[arg(long, value_name = "NAME", action = clap::ArgAction::Append, help_heading = "Server")]
    host_name: Vec<String>,
    /// Site whose pages may show this one in a frame, such as https://huggingface.co; can be given several times
    #[arg(long, value_name = "SITE", action = clap::ArgAction::Append, help_heading = "Server")]
    embed_in: Vec<String>,
    /// Continue jobs that were interrupted when the server last ended
    #[arg(long, help_heading = "Server")]
    resume_jobs: bool,
    /// Serve visitors of whom each sees only their own photos, jobs and pictures
    #[arg(long, help_heading = "Public server")]
    public: bool,
    /// Most photos of a visitor's set
    #[arg(long, default_value_t = 50, requires = "public", help_heading = "Public server")]
    max_photos: u64,
    /// Most steps of a training
    #[arg(long, default_value_t = 1500, requires = "public", help_heading = "Public server")]
    max_steps: u64,
    /// Most minutes of a job
    #[arg(long, default_value_t = 60, requires = "public", help_heading = "Public server")]
    max_minutes: u64,
    /// Most jobs of a visitor that wait or run
    #[arg(long, default_value_t = 2, requires = "public", help_heading = "Public server")]
    max_jobs: u64,
    /// Hours until what a visitor made is deleted
    #[arg(long, default_value_t = 24, requires = "public", help_heading = "Public server")]
    keep_hours: u64,
}

/// Runs the command.
pub fn run(args: &ServeArgs, common: &Common, reporter: &mut Reporter) -> Result<()> {
    let account = args.account()?;
    if !args.host.is_loopback() && account.is_none() && !args.no_auth && !args.public {
        return Err(Error::Usage(format!(
            "--host {} lets others in; protect it with --auth USER:PASSWORD or --auth-file, or say --no-auth",
            args.host
        )));
    }
    let embedding = Embedding::of(&args.embed_in)?;
    let device = common.device(reporter)?;
    let data = DataFolder::open(&args.data_dir()?)?;
    let listener = Address { host: args.host, port: args.port }.listen()?;
    let url = listener.url();
    data.write_address(&url)?;
    let signals = Interrupt::on_signals()?;
    let place = data.root().display().to_string();
    let app = App::start(Settings {
        data,
        models: args.model.clone(),
        device,
        account,
        host_names: args.host_name.clone(),
        embedding,
        resume_jobs: args.resume_jobs,
        limits: args.public.then_some(Limits {
            max_photos: args.max_photos,
            max_steps: args.max_steps,
            max_minutes: args.max_minutes,
            max_jobs: args.max_jobs,
            keep_hours: args.keep_hours,
        }),
    })?;
    reporter.result(
        json!({ "event": "serving", "url": url, "data_dir": place }),
        &format!("lorabooth serves {url} (its data is in {place}; Ctrl-C ends it)"),
    );
    server::serve(app, listener, &signals)
}

impl ServeArgs {
    fn account(&self) -> Result<Option<Account>> {
        match (&self.auth, &self.auth_file) {
            (Some(text), _) => Account::new(text).map(Some),
            (None, Some(file)) => {
                let text = regular_file::read_text(file, FileKind::FLAGS)?;
                Account::new(text.trim_end_matches(['\r', '\n']))
                    .map(Some)
                    .map_err(|error| Error::file(file, error.to_string()))
            }
            (None, None) => Ok(None),
        }
    }

    /// `--data-dir`, or the place that the system has for it.
    fn data_dir(&self) -> Result<PathBuf> {
        if let Some(folder) = &self.data_dir {
            return Ok(folder.clone());
        }
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        match (variable("XDG_DATA_HOME").filter(|folder| folder.is_absolute()), variable("HOME")) {
            (Some(folder), _) => Ok(folder.join("lorabooth")),
            (None, Some(home)) => Ok(home.join(".local/share/lorabooth")),
            (None, None) => Err(Error::invalid("no folder for the server's data: give --data-dir")),
        }
    }
}
