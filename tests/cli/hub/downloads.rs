//! Downloads that are cut, shared, stopped, or find no room.

use crate::support;
use crate::support::hub_mirror::*;
use lorabooth::error::Error;
use lorabooth::weights::hub::{Download, Listener, Request};
use serde_json::json;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// An answer that is cut after so many bytes.
fn cut_after(count: usize) -> Option<Mischief> {
    about(WEIGHTS, move |asked, stream| {
        let all = weights(50_000);
        let length = (all.len() - asked.from()).to_string();
        let end = (asked.from() + count).min(all.len());
        let range = format!("bytes {}-{}/{}", asked.from(), all.len() - 1, all.len());
        let etag = format!("\"{}\"", sha256(&all));
        let headers = [
            ("etag", etag.as_str()),
            ("x-repo-commit", COMMIT),
            ("content-range", &range),
            ("content-length", &length),
        ];
        answer(stream, "206 Partial Content", &headers, &all[asked.from()..end]);
    })
}

#[test]
fn a_download_continues_where_it_was_cut() {
    let place = Place::new(model(), cut_after(60_000));
    let folder = place.fetch().unwrap();
    assert!(content(&folder, WEIGHTS) == weights(50_000));
    let from: Vec<usize> = place.server.asked().iter().filter(|a| a.is_for(WEIGHTS)).map(Asked::from).collect();
    assert!(from.contains(&60_000) && from.contains(&120_000) && from.contains(&180_000), "{from:?}");

    // Cut too often, it fails, and the next command continues.
    let place = Place::new(model(), cut_after(40_000));
    let message = place.fails("cut");
    assert!(message.contains("broke off") && message.contains("continues where it stopped"), "{message}");
    let length = std::fs::metadata(place.incomplete(&weights(50_000))).unwrap().len();
    assert_eq!(length, 160_000);
    place.server.misbehave(None);
    place.server.asked();
    let folder = place.fetch().unwrap();
    assert!(content(&folder, WEIGHTS) == weights(50_000));
    assert!(place.server.asked().iter().any(|asked| asked.is_for(WEIGHTS) && asked.from() == 160_000));
    place.check_that_all_is_in_order("cut");
}

#[test]
fn whatever_an_earlier_attempt_left_the_file_is_right() {
    let all = weights(50_000);
    let too_long = [all.as_slice(), b"more"].concat();
    let of_another = vec![7; 1000];
    for (case, left) in
        [("all of it", all.as_slice()), ("too long", &too_long), ("another file's", &of_another), ("none", b"")]
    {
        let place = Place::new(model(), None);
        let incomplete = place.incomplete(&all);
        std::fs::create_dir_all(incomplete.parent().unwrap()).unwrap();
        std::fs::write(&incomplete, left).unwrap();
        let folder = place.fetch().unwrap_or_else(|message| panic!("{case}: {message}"));
        assert!(content(&folder, WEIGHTS) == all, "{case}");
        place.check_that_all_is_in_order(case);
        assert!(!incomplete.exists(), "{case}");
    }
}

#[test]
fn servers_that_cannot_continue_begin_again() {
    let whole = |status: &'static str| {
        about(WEIGHTS, move |asked, stream| {
            let all = weights(50_000);
            let etag = format!("\"{}\"", sha256(&all));
            let headers = [("etag", etag.as_str()), ("x-repo-commit", COMMIT)];
            match status {
                // Refuses to continue.
                "416" if asked.from() > 0 => answer(stream, "416 Range Not Satisfiable", &headers, b""),
                // Refuses any range.
                "416 always" if asked.headers.contains_key("range") => {
                    answer(stream, "416 Range Not Satisfiable", &headers, b"");
                }
                _ => answer(stream, "200 OK", &headers, &all),
            }
        })
    };
    for status in ["200", "416", "416 always"] {
        let place = Place::new(model(), whole(status));
        let incomplete = place.incomplete(&weights(50_000));
        std::fs::create_dir_all(incomplete.parent().unwrap()).unwrap();
        std::fs::write(&incomplete, &weights(50_000)[..1000]).unwrap();
        let folder = place.fetch().unwrap_or_else(|message| panic!("{status}: {message}"));
        assert!(content(&folder, WEIGHTS) == weights(50_000), "{status}");
    }
    // An empty file has no first byte.
    let mut files = model();
    files.insert("merges.txt".to_owned(), Vec::new());
    let place = Place::new(
        files,
        about("merges.txt", |_, stream| {
            let etag = format!("\"{}\"", sha256(b""));
            let headers = [("etag", etag.as_str()), ("x-repo-commit", COMMIT), ("content-range", "bytes */0")];
            answer(stream, "416 Range Not Satisfiable", &headers, b"");
        }),
    );
    assert_eq!(content(&place.fetch().unwrap(), "merges.txt"), b"");
}

#[test]
fn a_damaged_file_in_the_cache_is_downloaded_again() {
    let place = Place::new(model(), None);
    let folder = place.fetch().unwrap();
    for (name, damage) in [("config.json", b"{ ".as_slice()), (WEIGHTS, &weights(50_000)[..1000]), (WEIGHTS, b"")] {
        std::fs::write(folder.join(name), damage).unwrap();
        assert_eq!(place.fetch().unwrap(), folder);
        assert!(content(&folder, name) == model()[name], "{name}");
        place.check_that_all_is_in_order(name);
    }
    place.server.asked();
    place.fetch().unwrap();
    assert_eq!(place.server.asked().len(), 1, "what is whole is not fetched again");
}

#[test]
fn two_at_once_share_one_download() {
    // Slow enough to overlap.
    let slow = about(WEIGHTS, |asked, stream| {
        std::thread::sleep(Duration::from_millis(200));
        file(stream, asked.from(), &weights(50_000), &[]);
    });
    let mut place = Place::new(model(), slow);
    place.hub.patience = Duration::from_secs(5);
    let both = std::thread::scope(|scope| {
        let [one, other] = [0, 1].map(|_| scope.spawn(|| place.fetch()));
        [one.join().unwrap(), other.join().unwrap()]
    });
    for folder in both {
        assert!(content(&folder.unwrap(), WEIGHTS) == weights(50_000));
    }
    place.check_that_all_is_in_order("two at once");
    assert!(place.blobs().iter().all(|blob| blob.extension().is_none()), "{:?}", place.blobs());
}

/// Wants to stop once it is asked so often.
struct Impatient(usize);

impl Listener for Impatient {
    fn on(&mut self, _download: Download) {}

    fn check(&mut self) -> lorabooth::error::Result<()> {
        self.0 = self.0.saturating_sub(1);
        match self.0 {
            0 => Err(Error::Interrupted("enough".into())),
            _ => Ok(()),
        }
    }
}

#[test]
fn a_listener_can_stop_a_download_before_its_first_byte() {
    for mischief in [in_the_list(silence), about("config.json", |_, stream| silence(stream))] {
        let mut place = Place::new(model(), mischief);
        place.hub.patience = Duration::from_secs(60);
        let began = Instant::now();
        let request = Request { id: ID, weights_of: &[""], ..Request::default() };
        let error = place.hub.fetch_language_model(&request, &mut Impatient(10)).unwrap_err();
        assert!(matches!(error, Error::Interrupted(_)) && began.elapsed() < Duration::from_secs(5), "{error}");
    }
}

/// An adapter of a language model.
fn adapter_in(folder: &Path) -> String {
    let config =
        json!({ "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 1, "target_modules": ["c_attn"] });
    let key = |end: &str| format!("base_model.model.transformer.h.0.attn.c_attn.lora_{end}.weight");
    let header = json!({
        key("A"): { "dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8] },
        key("B"): { "dtype": "F32", "shape": [2, 1], "data_offsets": [8, 16] },
    })
    .to_string();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 16]].concat();
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), file).unwrap();
    folder.display().to_string()
}

#[test]
fn ctrl_c_ends_every_command_that_downloads() {
    let place = Place::new(model(), in_the_list(silence));
    let folder = place.victim().parent().unwrap().join("hub");
    std::fs::create_dir_all(&folder).unwrap();
    let records = folder.join("records.jsonl");
    std::fs::write(&records, "{\"text\": \"a red house\"}\n").unwrap();
    let photos = support::photos(2, 0);
    let (records, photos) = (records.to_str().unwrap(), photos.to_str().unwrap());
    let adapter = adapter_in(&folder);
    let out = folder.join("out").display().to_string();
    let commands: [&[&str]; 8] = [
        &["train", "llm", "--device", "cpu", "--task", "causal-lm", "--train-file", records, "--output-dir", &out],
        &[
            "train",
            "dreambooth",
            "--device",
            "cpu",
            "--instance-data-dir",
            photos,
            "--instance-prompt",
            "x",
            "--output-dir",
            &out,
        ],
        &["plan", "llm", "--device", "cpu", "--task", "causal-lm"],
        &["generate", "--device", "cpu", "--prompt", "x", "--output", &out],
        &["complete", "--device", "cpu", "--prompt", "x"],
        &["evaluate", "--device", "cpu", "--task", "causal-lm", "--validation-file", records],
        &["tokenize", "x"],
        &["adapter", "merge", "--lora", &adapter, "--output-dir", &out],
    ];
    for args in commands {
        for signal in ["-INT", "-TERM"] {
            place.server.asked();
            let mut command = support::lorabooth_command(args);
            command.args(["--model", ID]).env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", &place.hub.endpoint);
            command.env("HF_HUB_CACHE", &place.hub.cache).env("HF_HUB_DOWNLOAD_TIMEOUT", "60");
            let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let began = Instant::now();
            while place.server.asked().is_empty() {
                assert!(began.elapsed() < Duration::from_secs(60), "{args:?} asked for nothing");
                std::thread::sleep(Duration::from_millis(20));
            }
            let began = Instant::now();
            assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
            let output = child.wait_with_output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(130), "{args:?} {signal}: {error}");
            assert!(error.contains("interrupted: ") && error.contains("continues the download"), "{args:?}: {error}");
            assert!(began.elapsed() < Duration::from_secs(5), "{args:?}: {:?}", began.elapsed());
        }
    }
}

#[test]
fn after_a_download_ctrl_c_does_what_it_always_does() {
    let model = super::jobs::gpt2(true).folder.join("model");
    let entries = std::fs::read_dir(&model).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let place = Place::new(entries.map(|path| (name(&path), std::fs::read(&path).unwrap())).collect(), None);
    place.fetch().unwrap();
    place.server.asked();
    // All is there but the prompt, which is waited for.
    let mut command = support::lorabooth_command(&["complete", "--device", "cpu", "--prompt", "-", "--model", ID]);
    command.env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", &place.hub.endpoint).env("HF_HUB_CACHE", &place.hub.cache);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while place.server.asked().is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it asked for the model");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_secs(3));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().signal(), Some(2));
}

#[test]
fn pythons_library_finds_the_model_in_the_cache() {
    let place = Place::new(model(), None);
    let folder = place.fetch().unwrap();
    let code = "
import sys
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
cache, name, folder = sys.argv[1:]
here = dict(cache_dir=cache, local_files_only=True)
assert snapshot_download(name, **here) == folder
assert hf_hub_download(name, 'config.json', **here) == folder + '/config.json'
found = scan_cache_dir(cache)
assert not found.warnings, found.warnings
(repository,) = found.repos
(revision,) = repository.revisions
assert repository.repo_id == name and repository.nb_files == 3 and revision.refs == {'main'}, repository
";
    let (cache, folder) = (place.hub.cache.to_str().unwrap(), folder.to_str().unwrap());
    support::python_alone("-c", &[code, cache, ID, folder]);
}

#[test]
fn a_full_disk_is_a_sentence_and_the_download_continues_on_a_larger_one() {
    let place = Place::new(model(), None);
    let command = |limit: &str| {
        let script = format!("ulimit -f {limit}; exec \"$0\" complete --device cpu --prompt x --model {ID}");
        let mut command = Command::new("sh");
        command
            .args(["-c", &script, env!("CARGO_BIN_EXE_lorabooth")])
            .env("HF_HUB_OFFLINE", "0")
            .env("OMP_NUM_THREADS", "1");
        command.env("HF_ENDPOINT", &place.hub.endpoint).env("HF_HUB_CACHE", &place.hub.cache);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // In blocks of 512 bytes: half of the weights.
    let (code, error) = command("200");
    assert_eq!(code, Some(1), "{error}");
    for word in ["no room", "`model.safetensors` of `someone/a-model`", "HF_HUB_CACHE"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(std::fs::metadata(place.incomplete(&weights(50_000))).unwrap().len(), 102_400);
    place.check_that_all_is_in_order("full disk");
    place.server.asked();
    place.fetch().unwrap();
    assert!(place.server.asked().iter().any(|asked| asked.is_for(WEIGHTS) && asked.from() == 102_400));
}
