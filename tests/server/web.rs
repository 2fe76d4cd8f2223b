//! The page of `lorabooth serve` in a real browser; what is done there is in `tests/web/`.
//!
//! With `LORABOOTH_SCREENSHOTS=FOLDER` each tab is drawn there, in light and dark, on a desk and on a phone.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use super::client::Server;
use crate::support::push_hub::{HubServer, TOKEN};
use crate::support::{interpreter, jobs};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tempfile::TempDir;

const PHOTOS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/subject");

/// A browser takes a core of its own.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Whether there is a browser, by the names that `tests/web/` looks for.
fn has_browser() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&path).any(|folder| names.iter().any(|name| folder.join(name).exists()))
}

/// Runs `tests/web/SCRIPT` on the page of a new server with `flags`.
fn browse(script: &str, flags: &[&str], args: &[&str]) {
    browse_in(script, flags, &[], args);
}

/// The same on a server with more in its environment.
fn browse_in(script: &str, flags: &[&str], environment: &[(&str, &str)], args: &[&str]) {
    let data = TempDir::new().unwrap();
    let server = Server::start_in(data.path(), flags, environment);
    let url = format!("{}/", server.url);
    run(script, &[&[url.as_str()], args].concat());
}

/// Runs `tests/web/SCRIPT`, and panics with what it printed if it fails.
fn run(script: &str, args: &[&str]) {
    if !has_browser() {
        eprintln!("skipped: {script} needs Chromium; `make browser` installs it");
        return;
    }
    let _one_at_a_time = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/web");
    let output = interpreter().current_dir(scripts).arg(script).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{script} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_person_drops_photos_trains_watches_tries_and_takes_the_file_home() {
    let (temporary, data) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = Server::start(data.path());
    let model = data.path().join("models/demo");
    let [temporary, model] = [temporary.path(), &model].map(|path| path.to_str().unwrap());
    run("train_and_try.py", &[&format!("{}/", server.url), PHOTOS, temporary, model]);
}

#[test]
fn two_browsers_see_what_the_other_one_does() {
    browse("two_browsers.py", &[], &[PHOTOS]);
}

#[test]
fn adapters_of_other_programs_come_in_and_draw() {
    let temporary = TempDir::new().unwrap();
    browse("imports.py", &[], &[temporary.path().to_str().unwrap()]);
}

#[test]
fn an_adapter_is_pushed_from_the_form() {
    let hub = HubServer::start();
    let environment = [("HF_ENDPOINT", hub.address.as_str()), ("HF_HUB_OFFLINE", "0"), ("HF_HOME", "/none")];
    browse_in("push.py", &[], &environment, &[&hub.address, TOKEN]);
    let kept = hub.kept();
    assert!(kept.is_private && String::from_utf8_lossy(&kept.files["README.md"]).contains("license: \"mit\""));
}

#[test]
fn a_reload_in_the_middle_loses_nothing() {
    let model = jobs::slow_llama().folder.join("model").display().to_string();
    browse("reloads.py", &["--model", &model], &[]);
}

#[test]
fn a_server_that_is_killed_goes_on_to_the_same_bits() {
    let data = TempDir::new().unwrap();
    run("killed.py", &[env!("CARGO_BIN_EXE_lorabooth"), data.path().to_str().unwrap()]);
}

#[test]
fn every_tab_is_for_everybody() {
    let folder = std::env::var("LORABOOTH_SCREENSHOTS").ok().map(PathBuf::from);
    let folder = folder.map(|folder| std::path::absolute(folder).unwrap().display().to_string());
    browse("every_tab.py", &[], &[&[PHOTOS], folder.as_deref().as_slice()].concat());
}

#[test]
fn the_page_is_small_and_asks_no_other_host() {
    browse("page_alone.py", &[], &[]);
}

#[test]
fn thousands_of_steps_and_hundreds_of_pictures_stay_smooth() {
    browse("many_rows.py", &[], &[]);
}

#[test]
fn a_language_model_answers_and_learns() {
    let job = jobs::gpt2(false);
    let [model, records] = ["model", "train.jsonl"].map(|name| job.folder.join(name).display().to_string());
    browse("texts.py", &["--model", &model], &[&records]);
}

#[test]
fn two_visitors_of_a_public_server_see_nothing_of_each_other() {
    browse("two_visitors.py", &["--public"], &[PHOTOS]);
}

#[test]
fn another_site_shows_the_page_in_a_frame_where_it_may() {
    browse("in_a_frame.py", &["--public", "--embed-in", "http://localhost:*"], &[]);
}

#[test]
fn a_password_comes_before_everything() {
    browse("password.py", &["--auth", "anna:correct horse"], &["anna", "correct horse"]);
}
