//! The command line: one file a subcommand, which holds its flags and the call.

mod adapter;
mod arguments;
mod bars;
mod command_text;
mod complete;
mod completion;
mod demo;
mod doctor;
mod evaluate;
mod generate;
mod help;
mod launch;
mod plan;
mod reporter;
mod serve;
mod tokenize;
mod train;

use crate::error::{Error, Result};
use crate::interrupt::{self, Interrupt};
use crate::libtorch::failure::{self, catching};
use crate::libtorch::{file_map, host_allocator, memory, openmp_waiting, startup, threads};
use crate::plain_text;
use crate::recipes::training::observer::Observer;
use crate::sentence::{flag, with_options};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use command_text::shell_line;
use reporter::{Reporter, Voice};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use tch::Device;

/// More threads than any machine has cores only fill memory with stacks.
const MAX_THREADS: i32 = 1024;

/// DreamBooth LoRA for Stable Diffusion and PEFT fine-tuning of language models, without Python
#[derive(Parser)]
#[command(name = "lorabooth", version, args_override_self = true, infer_subcommands = false)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train an adapter
    #[command(subcommand)]
    Train(train::TrainCommand),
    /// Generate images from a prompt, with any number of adapters
    #[command(args_override_self = true)]
    Generate(Box<crate::options::generate::GenerateConfig>),
    /// Continue, answer or classify a text with a language model, with any number of adapters
    #[command(args_override_self = true)]
    Complete(crate::options::complete::CompleteConfig),
    /// Evaluate a language model, with any number of adapters, on records
    #[command(args_override_self = true)]
    Evaluate(Box<crate::options::evaluate::EvaluateConfig>),
    /// Inspect, merge, convert or push an adapter
    #[command(subcommand)]
    Adapter(adapter::AdapterCommand),
    /// Predict the memory and time of a training run, and what makes it fit a card
    #[command(subcommand)]
    Plan(plan::PlanCommand),
    /// Run DreamBooth from start to end on a small built-in model, in minutes and without a download
    #[command(args_override_self = true)]
    Demo(crate::options::demo::DemoConfig),
    /// Serve a page and an API: train on photos, watch, try, take the adapter home
    #[command(args_override_self = true)]
    Serve(serve::ServeArgs),
    /// Print a text's token ids
    #[command(args_override_self = true)]
    Tokenize(tokenize::TokenizeArgs),
    /// Print the completion script for a shell
    Completion(completion::CompletionArgs),
    /// Write the manual pages, for packages
    #[command(hide = true)]
    Man(completion::ManArgs),
    /// Check this machine: libtorch, CUDA, memory; each problem with its solution
    Doctor,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Device: auto, cpu, cuda or cuda:N
    #[arg(long, global = true, default_value = "auto", help_heading = "Common")]
    device: String,
    /// Number of CPU threads; by default the physical cores
    #[arg(long, global = true, help_heading = "Common")]
    threads: Option<i32>,
    /// Random seed
    #[arg(long, global = true, default_value_t = 0, allow_negative_numbers = true, help_heading = "Common")]
    seed: i64,
    /// TOML file with flags, such as `lora_r = 8`, or the run.json of an earlier run to repeat it; flags on the command line
    /// take precedence
    // Taken from the command line before clap reads it (`arguments`); here for --help.
    #[arg(long, global = true, value_name = "FILE.toml|run.json", help_heading = "Common")]
    config: Option<PathBuf>,
    /// Print one JSON object a line instead of text and progress bars
    #[arg(long, global = true, help_heading = "Common")]
    json: bool,
    /// Print every step where there is no progress bar
    #[arg(short, long, global = true, help_heading = "Common")]
    verbose: bool,
    /// Print only warnings and errors
    #[arg(short, long, global = true, help_heading = "Common")]
    quiet: bool,
    /// The command line as it was typed, without secrets.
    #[arg(skip)]
    command: String,
}

impl Common {
    /// The device that `--device` names, be it in this machine or not; none for `auto`.
    fn named_device(&self) -> Result<Option<Device>> {
        Ok(Some(match self.device.as_str() {
            "auto" => return Ok(None),
            "cpu" => Device::Cpu,
            "cuda" => Device::Cuda(0),
            other => match other.strip_prefix("cuda:").and_then(|index| index.parse::<usize>().ok()) {
                Some(index) => Device::Cuda(index),
                None => return Err(Error::invalid(format!("--device {other} is not one of auto, cpu, cuda, cuda:N"))),
            },
        }))
    }

    /// The device of a process that is number `local_rank` of its machine: its own card, where none is named by a number.
    fn device_of_rank(&self, local_rank: usize, is_on_cpu: bool, observer: &mut dyn Observer) -> Result<Device> {
        if is_on_cpu && self.device == "auto" {
            return Ok(Device::Cpu);
        }
        match self.device(observer)? {
            Device::Cuda(_) if local_rank > 0 && ["auto", "cuda"].contains(&self.device.as_str()) => {
                let own = Device::Cuda(local_rank);
                match is_present(own) {
                    true => Ok(own),
                    false => Err(Error::invalid(format!(
                        "process {local_rank} of this machine has no GPU of its own: {} were found; start as many processes as there \
                         are GPUs",
                        startup::cuda_devices()
                    ))),
                }
            }
            device => Ok(device),
        }
    }

    /// The device asked for, or the best there is. A card that cannot be used is not passed over in silence.
    fn device(&self, observer: &mut dyn Observer) -> Result<Device> {
        let named = self.named_device()?;
        if let (None, Some(reason)) = (named, startup::why_no_cuda()) {
            observer.warning(format!(
                "the CPU is used, since {reason} (`lorabooth doctor` says what to do; --device cpu if that is meant)"
            ));
        }
        let device = named.unwrap_or_else(startup::best_device);
        match is_present(device) {
            true => Ok(device),
            false => Err(Error::invalid(format!(
                "--device {}: {} CUDA devices were found; `lorabooth doctor` says why",
                self.device,
                startup::cuda_devices()
            ))),
        }
    }
}

/// Whether `device` is in this machine.
fn is_present(device: Device) -> bool {
    match device {
        Device::Cuda(index) => (index as i64) < startup::cuda_devices(),
        _ => true,
    }
}

/// The whole command line with its help.
fn whole_command() -> clap::Command {
    help::arranged(Cli::command())
}

/// Runs the command line `args` (the program's name first).
pub fn main(args: Vec<OsString>) -> ExitCode {
    // From the first moment on: what reads the command line takes a while.
    if arguments::command(&args).is_some_and(|command| ["train", "demo"].iter().any(|job| command == *job)) {
        drop(Interrupt::on_signals());
    }
    let typed = shell_line(&args);
    let expanded = match arguments::expand(args) {
        Ok(expanded) => expanded,
        Err(error) => return failed(&error, false, 2),
    };
    let mut command = whole_command();
    let matches = command.try_get_matches_from_mut(&expanded.args);
    let mut cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return misused(error, &expanded),
    };
    cli.common.command = typed;
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !failure::is_caught() {
            hook(info);
        }
    }));
    // A file that grows over the user's limit is an error of the write, not the end of the process.
    drop(signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()));
    memory::return_freed_memory();
    host_allocator::install();
    startup::silence_warnings();
    startup::use_onednn_matmul();
    if let Some(threads) = cli.common.threads {
        if !(1..=MAX_THREADS).contains(&threads) {
            let error = Error::invalid(format!("--threads is {threads}; it must be 1 to {MAX_THREADS}"));
            return failed(&error, cli.common.json, 2);
        }
        tch::set_num_threads(threads);
    }
    let repeats = match &cli.command {
        Command::Train(command) => command.is_deterministic(),
        // A job of the page can ask for it.
        Command::Serve(_) => true,
        _ => false,
    };
    if repeats {
        startup::let_cublas_repeat();
    }
    let json = cli.common.json;
    if json {
        file_map::report_as_json();
    }
    if let Err(error) = threads::check() {
        return failed(&error, json, 1);
    }
    openmp_waiting::sleep_while_others_compute();
    interrupt::at_a_sudden_end(bars::erase_at_the_end);
    let mut reporter = Reporter::new(Voice { json, quiet: cli.common.quiet, verbose: cli.common.verbose });
    // A plan that says "no" has done what it should, and scripts ask its exit code; processes of a training have said why they failed.
    let mut code = 0;
    let outcome = catching(|| match cli.command {
        Command::Train(command) => train::run(command, &cli.common, &mut reporter).map(|own| code = own),
        Command::Generate(args) => generate::run(&args, &cli.common, &mut reporter),
        Command::Complete(args) => complete::run(args, &cli.common, &mut reporter),
        Command::Evaluate(config) => evaluate::run(&config, &cli.common, &mut reporter),
        Command::Adapter(command) => adapter::run(command, &mut reporter),
        Command::Plan(command) => plan::run(command, &cli.common, &mut reporter).map(|fits| code = u8::from(!fits)),
        Command::Demo(config) => demo::run(&config, &cli.common, &mut reporter),
        Command::Serve(args) => serve::run(&args, &cli.common, &mut reporter),
        Command::Tokenize(args) => tokenize::run(args, &mut reporter),
        Command::Completion(args) => completion::completion(&args, &mut reporter),
        Command::Man(args) => completion::man(&args, &mut reporter),
        Command::Doctor => doctor::run(&mut reporter),
    });
    let outcome = outcome.and_then(|()| reporter.check_output());
    drop(reporter);
    match outcome {
        Ok(()) => ExitCode::from(code),
        Err(error @ Error::Interrupted(_)) => failed(&error, json, 130),
        Err(error @ Error::Usage(_)) => failed(&error, json, 2),
        Err(error) => failed(&error, json, 1),
    }
}

/// Prints what clap says, with the name of the TOML file where the flag is from there, and makes the exit code.
fn misused(mut error: clap::Error, expanded: &arguments::Expanded) -> ExitCode {
    use clap::error::{ContextKind, ContextValue};
    // Help and version are no mistakes: clap tells them apart.
    if !error.use_stderr() {
        drop(error.print());
        return ExitCode::SUCCESS;
    }
    let flag = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(flag)) => flag.split([' ', '=']).next(),
        _ => None,
    };
    let file = flag.and_then(|flag| expanded.file_of(flag));
    // What was typed, as a sentence may have it.
    let context: Vec<_> = error.context().map(|(kind, value)| (kind, value.clone())).collect();
    for (kind, value) in context {
        let value = match value {
            ContextValue::String(text) => ContextValue::String(plain_text::value(&text)),
            ContextValue::Strings(texts) => {
                ContextValue::Strings(texts.iter().map(|text| plain_text::value(text)).collect())
            }
            other => other,
        };
        error.insert(kind, value);
    }
    let mut text = error.to_string();
    if let Some(file) = file {
        text = text.replacen("error: ", &format!("error: {}: ", plain_text::value(&file.to_string_lossy())), 1);
    }
    let is_json = expanded.args.iter().any(|arg| arg == "--json");
    if is_json {
        let text = text.trim_start_matches("error: ").trim_end();
        return failed(&Error::invalid(text), true, 2);
    }
    let _ = write!(std::io::stderr(), "{}", plain_text::lines(&text));
    ExitCode::from(2)
}

/// Prints an error as one line, and makes its exit code.
fn failed(error: &Error, json: bool, code: u8) -> ExitCode {
    let text = with_options(&error.to_string(), flag);
    // What the user asked for is no error.
    let (event, before) = match error {
        Error::Interrupted(_) => ("interrupted", ""),
        _ => ("error", "error: "),
    };
    let _ = match json {
        true => {
            let line = serde_json::json!({ "event": event, "text": text }).to_string();
            writeln!(std::io::stdout(), "{}", plain_text::json(&line))
        }
        false => writeln!(std::io::stderr(), "{}", plain_text::line(&format!("{before}{text}"))),
    };
    ExitCode::from(code)
}
