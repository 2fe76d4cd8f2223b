//! A run that was stopped and resumed ends with the same bits as one that never was, however it was stopped.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::{self, copy, lorabooth, lorabooth_command, lorabooth_ok, model, photos, stand_in, words};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const STEPS: u64 = 12;

/// A run with everything that has a state: dropout, random crops, two networks, prior preservation, accumulation over the
/// end of an epoch (3 batches in one, 2 a step), a schedule.
fn everything() -> Vec<String> {
    let mut args = plain();
    let text = "--train-text-encoder --lora-dropout 0.1 --lora-text-encoder-dropout 0.2 --with-prior-preservation \
        --class-prompt dog --num-class-images 4 --train-batch-size 2 --gradient-accumulation-steps 2 \
        --lr-scheduler cosine --lr-warmup-steps 3 --max-grad-norm 0.5 --noise-offset 0.1 --cache-latents false \
        --checkpointing-steps 1";
    args.extend(words(text));
    args.extend(["--class-data-dir".to_owned(), photos(4, 7).display().to_string()]);
    args
}

/// A run with nothing special.
fn plain() -> Vec<String> {
    let (model, photos) = (model("tiny"), photos(5, 0));
    let text = format!(
        "train dreambooth --model {} --instance-data-dir {} --instance-prompt sks --resolution 32 --learning-rate 1e-3 \
         --max-train-steps {STEPS} --checkpointing-steps 4 --mixed-precision no --device cpu --threads 1",
        model.display(),
        photos.display()
    );
    text.split_whitespace().map(str::to_owned).collect()
}

fn with(args: &[String], more: &[&str], out: &Path) -> Vec<String> {
    let mut args = args.to_vec();
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    args.extend(["--output-dir".to_owned(), out.display().to_string()]);
    args
}

#[test]
fn deterministic_kernels_change_nothing_on_the_cpu_and_a_card_resumes_with_them_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let [without, asked, on_card, resumed] =
        ["without", "asked", "card", "resumed"].map(|name| folder.path().join(name));
    train(&plain(), &[], &without);
    train(&plain(), &["--deterministic"], &asked);
    assert_same(&asked, &without, "deterministic kernels");
    let train_on_card = |more: &[&str], out: &Path| {
        let more = [&["--device", "cuda", "--deterministic"], more].concat();
        stand_in::on_card_ok(&with(&plain(), &more, out), &[]);
    };
    train_on_card(&[], &on_card);
    train_on_card(&["--max-train-steps", "4"], &resumed);
    train_on_card(&["--resume"], &resumed);
    assert_same(&resumed, &on_card, "resumed on a card");
}

/// Runs to the end.
fn train(args: &[String], more: &[&str], out: &Path) {
    lorabooth_ok(&with(args, more, out));
}

fn start(args: &[String], more: &[&str], out: &Path) -> Child {
    lorabooth_command(&with(args, more, out)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until `ready`, or the process has ended: false.
fn wait(child: &mut Child, mut ready: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while !ready() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "the run hangs");
        std::thread::sleep(Duration::from_micros(200));
    }
    true
}

fn lines(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// All that a run leaves that does not tell of time and memory: the adapter files, byte for byte, and the metrics.
fn bits(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut bits = BTreeMap::new();
    for name in [
        "unet/adapter_config.json",
        "unet/adapter_model.safetensors",
        "text_encoder/adapter_config.json",
        "text_encoder/adapter_model.safetensors",
        "pytorch_lora_weights.safetensors",
    ] {
        if let Ok(bytes) = fs::read(out.join(name)) {
            bits.insert(name.to_owned(), bytes);
        }
    }
    for mut line in lines(out) {
        let step = line["step"].as_u64().unwrap();
        for name in ["step_s", "peak_mib"] {
            line.as_object_mut().unwrap().remove(name);
        }
        let before = bits.insert(format!("step {step:03}"), line.to_string().into_bytes());
        assert!(before.is_none(), "step {step} is twice in metrics.jsonl");
    }
    bits
}

fn assert_same(out: &Path, expected: &Path, how: &str) {
    let (actual, expected) = (bits(out), bits(expected));
    assert_eq!(actual.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{how}");
    for (name, bytes) in &actual {
        let text = String::from_utf8_lossy(bytes);
        assert!(*bytes == expected[name], "{how}: {name} differs: {}", &text[..text.len().min(300)]);
    }
    let left: Vec<_> = names(out).into_iter().filter(|name| name.starts_with('.')).collect();
    assert!(left.is_empty(), "{how}: {left:?} is left");
}

fn names(folder: &Path) -> Vec<String> {
    let list = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn checkpoints(out: &Path) -> Vec<String> {
    names(out).into_iter().filter(|name| name.starts_with("checkpoint-")).collect()
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Kills a run again and again, and resumes it each time, until it ends by itself.
fn killed_again_and_again(more: &[&str], after: &[usize]) {
    let (args, folder) = (everything(), tempfile::tempdir().unwrap());
    let [whole, killed] = ["whole", "killed"].map(|name| folder.path().join(name));
    train(&args, more, &whole);
    // After so many lines of metrics, more each time; in between, while a checkpoint is written.
    let mut kills = 0;
    for &goal in after.iter().chain(&[usize::MAX]) {
        for while_saving in [false, true] {
            // One that was killed before it made its folder left nothing to resume.
            let has_begun = killed.is_dir() && !names(&killed).is_empty();
            let resume: Vec<&str> =
                more.iter().copied().chain(["--resume"].into_iter().filter(|_| has_begun)).collect();
            let mut child = start(&args, &resume, &killed);
            let saving = || {
                let unfinished = |name: &String| name.starts_with(".checkpoint-");
                killed.is_dir() && names(&killed).iter().any(unfinished)
            };
            let running = wait(&mut child, || lines(&killed).len() >= goal && (!while_saving || saving()));
            kills += usize::from(running);
            child.kill().ok();
            let status = child.wait().unwrap();
            assert!(running || status.success(), "{}", error_of(&child.wait_with_output().unwrap()));
        }
    }
    assert!(kills > after.len(), "the run was too quick to be killed: {kills} times");
    assert_same(&killed, &whole, &format!("killed {kills} times"));
}

#[test]
fn a_run_killed_at_many_moments_ends_with_the_bits_of_one_never_stopped() {
    killed_again_and_again(&[], &[0, 1, 3, 5, 8, 11]);
}

#[test]
fn so_does_one_with_adam_in_8_bits() {
    killed_again_and_again(&["--use-8bit-adam", "--lora-targets", "all-linear", "--lora-r", "64"], &[0, 4, 9]);
}

#[test]
fn so_does_one_in_float16_with_its_loss_scale() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, killed] = ["whole", "killed"].map(|name| folder.path().join(name));
    // The weight makes the first steps overflow: they are skipped, and the schedule waits for them.
    let (args, more) =
        (everything(), ["--mixed-precision", "fp16", "--prior-loss-weight", "1e5", "--gradient-checkpointing"]);
    train(&args, &more, &whole);
    assert!(support::read_json(whole.join("run.json"))["skipped_steps"].as_u64().unwrap() > 0, "no step overflowed");
    let mut child = start(&args, &more, &killed);
    assert!(wait(&mut child, || killed.join("checkpoint-4").is_dir()), "{:?}", child.wait());
    child.kill().unwrap();
    child.wait().unwrap();
    train(&args, &[&more[..], &["--resume", "latest"]].concat(), &killed);
    assert_same(&killed, &whole, "float16");
}

/// A small disk; unmounted at the end.
struct Disk(tempfile::TempDir);

impl Disk {
    /// None where this user may not mount.
    fn new(options: &str) -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        mount(&["-t", "tmpfs", "-o", options, "tmpfs"], place.path()).then_some(Self(place))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0.path()).status().ok();
    }
}

fn mount(args: &[&str], place: &Path) -> bool {
    let command = Command::new("mount").args(args).arg(place).stderr(Stdio::null()).status();
    command.is_ok_and(|status| status.success())
}

#[test]
fn so_does_one_whose_disk_was_full_and_then_read_only() {
    let (args, folder) = (plain(), tempfile::tempdir().unwrap());
    let (whole, more) = (folder.path().join("whole"), ["--checkpointing-steps", "1"]);
    train(&args, &more, &whole);
    // Room for a few checkpoints of 200 kB.
    let Some(disk) = Disk::new("size=700k") else { return };
    let out = disk.0.path().join("out");
    let stopped = |more: &[&str], says: &str| {
        let output = lorabooth(&with(&args, more, &out));
        let error = error_of(&output);
        assert_eq!((output.status.code(), error.trim().lines().count()), (Some(1), 1), "{error}");
        assert!(error.contains(says), "{error}");
        let names = names(&out);
        assert!(names.contains(&"checkpoint-1".to_owned()) && !names.contains(&"unet".to_owned()), "{names:?}");
        assert!(!names.iter().any(|name| name.starts_with('.')), "{names:?}");
    };
    stopped(&more, "no space left on device");
    let resume = [&more[..], &["--resume"]].concat();
    stopped(&resume, "no space left on device");
    assert!(mount(&["-o", "remount,ro"], disk.0.path()));
    stopped(&resume, "read-only file system");
    assert!(mount(&["-o", "remount,rw,size=20m"], disk.0.path()));
    train(&args, &resume, &out);
    assert_same(&out, &whole, "a full disk");
}

#[test]
fn ctrl_c_saves_the_state_and_names_the_way_on() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, stopped] = ["whole", "stopped"].map(|name| folder.path().join(name));
    let args = plain();
    train(&args, &[], &whole);
    for (signal, goal) in [("-INT", 2), ("-TERM", 7)] {
        let more: &[&str] = if goal == 2 { &[] } else { &["--resume"] };
        let mut child = start(&args, more, &stopped);
        assert!(wait(&mut child, || lines(&stopped).len() >= goal));
        let killed = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let output = child.wait_with_output().unwrap();
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(130), "{error}");
        let saved = checkpoints(&stopped);
        assert!(saved.iter().any(|name| error.contains(name.as_str())) && error.contains("--resume"), "{error}");
        assert_eq!(error.trim().lines().count(), 1, "{error}");
    }
    train(&args, &["--resume"], &stopped);
    assert_same(&stopped, &whole, "Ctrl-C");
}

#[test]
fn a_run_goes_on_from_the_checkpoint_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, again] = ["whole", "again"].map(|name| folder.path().join(name));
    let args = everything();
    train(&args, &[], &whole);
    copy(&whole, &again);
    train(&args, &["--resume-from-checkpoint", "checkpoint-5", "--overwrite"], &again);
    assert_same(&again, &whole, "a name");
    let other = folder.path().join("other");
    train(&args, &["--resume-from-checkpoint", whole.join("checkpoint-8").to_str().unwrap()], &other);
    assert_eq!(lines(&other).len() as u64, STEPS - 8);
    for name in ["unet", "text_encoder"].map(|part| format!("{part}/adapter_model.safetensors")) {
        assert!(fs::read(other.join(&name)).unwrap() == fs::read(whole.join(&name)).unwrap(), "{name}");
    }
}

/// What came after the named checkpoint is kept unless it is given up, and then no later `--resume` takes it.
#[test]
fn a_run_that_goes_back_keeps_one_history() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, back] = ["whole", "back"].map(|name| folder.path().join(name));
    let args = [plain(), words("--validation-prompt sks --validation-steps 4 --num-validation-images 1")].concat();
    train(&args, &[], &whole);
    copy(&whole, &back);
    let refused = |which: &str, says: &[&str]| {
        let output = lorabooth(&with(&args, &["--resume", which], &back));
        let error = error_of(&output);
        assert_eq!((output.status.code(), error.trim().lines().count()), (Some(1), 1), "{error}");
        says.iter().for_each(|word| assert!(error.contains(word), "no {word}: {error}"));
        assert_eq!((checkpoints(&back), lines(&back).len() as u64), (checkpoints(&whole), STEPS));
    };
    refused("checkpoint-4", &["2 checkpoints were saved after it", "checkpoint-8", "checkpoint-12", "--overwrite"]);
    refused(back.join("checkpoint-8").to_str().unwrap(), &["checkpoint-12 was saved after it", "metrics.jsonl"]);
    fs::write(back.join("checkpoint-12/notes.txt"), "mine").unwrap();
    train(&args, &["--resume", "checkpoint-4", "--overwrite", "--max-train-steps", "6"], &back);
    assert_eq!(checkpoints(&back), ["checkpoint-12", "checkpoint-4", "checkpoint-6"]);
    assert_eq!(names(&back.join("checkpoint-12")), ["notes.txt"]);
    let steps: Vec<u64> = lines(&back).iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    let samples = names(&back.join("samples"));
    assert!(samples.len() >= 2 && !samples.iter().any(|name| name.contains("step-000008")), "{samples:?}");
    let said = lorabooth_ok(&with(&args, &["--resume"], &back));
    assert!(said.contains("checkpoint-6"), "{said}");
    assert_same(&back, &whole, "a run that went back");
}

/// One that was damaged is no history to keep: the error names the checkpoint to take, and it is taken.
#[test]
fn a_damaged_checkpoint_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, out] = ["whole", "out"].map(|name| folder.path().join(name));
    let args = plain();
    train(&args, &[], &whole);
    copy(&whole, &out);
    let tensors = out.join("checkpoint-12/state.safetensors");
    let mut bytes = fs::read(&tensors).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&tensors, bytes).unwrap();
    let error = error_of(&lorabooth(&with(&args, &["--resume"], &out)));
    assert!(error.contains("damaged") && error.contains("--resume") && error.contains("checkpoint-8"), "{error}");
    train(&args, &["--resume", "checkpoint-8"], &out);
    assert_same(&out, &whole, "a damaged one");
}

#[test]
fn what_there_is_not_cannot_be_resumed_and_another_folder_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, other] = ["whole", "other"].map(|name| folder.path().join(name));
    let args = plain();
    let refused = |more: &[&str], out: &Path, words: &[&str]| {
        let output = lorabooth(&with(&args, more, out));
        let error = error_of(&output);
        assert_eq!((output.status.code(), error.trim().lines().count()), (Some(1), 1), "{error}");
        words.iter().for_each(|word| assert!(error.contains(word), "no {word}: {error}"));
    };
    refused(&["--resume"], &other, &["other", "holds no run", "--resume"]);
    assert!(!other.exists());
    fs::create_dir(&other).unwrap();
    fs::write(other.join("notes.txt"), "mine").unwrap();
    refused(&["--resume"], &other, &["other", "holds no run", "--resume"]);
    refused(&["--resume", "checkpoint-3"], &other, &["--resume checkpoint-3", "no such checkpoint"]);
    assert_eq!(names(&other), ["notes.txt"]);
    // A checkpoint of another folder goes on here, where nothing is in its way.
    train(&args, &[], &whole);
    fs::create_dir(other.join("unet")).unwrap();
    fs::write(other.join("unet/adapter_config.json"), "theirs").unwrap();
    let checkpoint = whole.join("checkpoint-8");
    let resume = ["--resume", checkpoint.to_str().unwrap()];
    refused(&resume, &other, &["unet/adapter_config.json", "--overwrite"]);
    assert_eq!(fs::read_to_string(other.join("unet/adapter_config.json")).unwrap(), "theirs");
    train(&args, &[&resume[..], &["--overwrite"]].concat(), &other);
    assert_eq!(lines(&other).len() as u64, STEPS - 8);
    let run = support::read_json(other.join("run.json"));
    let began = support::read_json(whole.join("run.json"));
    assert_eq!(
        (&run["date"], &run["command"], &run["resumed"]["step"]),
        (&began["date"], &began["command"], &8.into())
    );
}

#[test]
fn averages_of_short_groups_are_resumed_exactly_and_not_changed_on_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    // Three groups an epoch of five photos, the last of one photo: the first part stops before it.
    let (args, present) =
        (plain(), ["--gradient-accumulation-steps", "2", "--gradient-accumulation-average", "present"]);
    train(&args, &present, &whole);
    train(&args, &[&present[..], &["--max-train-steps", "2"]].concat(), &parts);
    let full = lorabooth(&with(&args, &[&present[..3], &["full", "--resume"]].concat(), &parts));
    let error = error_of(&full);
    assert!(error.contains("--gradient-accumulation-average was present and is not given now"), "{error}");
    train(&args, &[&present[..], &["--resume"]].concat(), &parts);
    assert_same(&parts, &whole, "averages of what is there");
}

#[test]
fn one_seed_gives_one_result_and_another_seed_another() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second, other] = ["first", "second", "other"].map(|name| folder.path().join(name));
    let args = everything();
    train(&args, &["--seed", "3"], &first);
    train(&args, &["--seed", "3"], &second);
    train(&args, &["--seed", "4"], &other);
    assert_same(&second, &first, "the same seed");
    let (first, other) = (bits(&first), bits(&other));
    for name in ["unet/adapter_model.safetensors", "text_encoder/adapter_model.safetensors", "step 001"] {
        assert!(first[name] != other[name], "another seed: {name} is the same");
    }
}

#[test]
fn a_killed_generation_of_class_images_goes_on_without_overwriting() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let args: Vec<String> = with(&plain(), &["--max-train-steps", "1"], &path("out"));
    let flags = |class: &Path| -> Vec<String> {
        let more = ["--with-prior-preservation", "--class-prompt", "dog", "--num-class-images", "4"];
        let more = more.into_iter().chain(["--sample-batch-size", "1", "--overwrite", "--class-data-dir"]);
        args.iter().cloned().chain(more.map(str::to_owned)).chain([class.display().to_string()]).collect()
    };
    lorabooth_ok(&flags(&path("whole")));
    let images = |class: &Path| -> BTreeMap<String, Vec<u8>> {
        let visible = names(class).into_iter().filter(|name| !name.starts_with('.'));
        visible.map(|name| (name.clone(), fs::read(class.join(name)).unwrap())).collect()
    };
    let whole = images(&path("whole"));
    assert_eq!(whole.len(), 4);

    let class = path("class");
    let mut child = lorabooth_command(&flags(&class)).stdout(Stdio::null()).spawn().unwrap();
    assert!(wait(&mut child, || class.is_dir() && images(&class).len() == 2));
    child.kill().unwrap();
    child.wait().unwrap();
    // As a kill in the middle of writing leaves it.
    fs::write(class.join(".2-0123456789abcdef.jpg.part"), [0xff, 0xd8, 0xff]).unwrap();
    let before = images(&class);
    lorabooth_ok(&flags(&class));
    let after = images(&class);
    assert!(before.iter().all(|(name, bytes)| after[name] == *bytes), "an image was overwritten");
    assert!(after == whole, "{:?} are not {:?}", after.keys(), whole.keys());
    assert_eq!(names(&class).len(), 4, "something unfinished is left: {:?}", names(&class));

    // Drawn in groups, it goes on from the middle of one; a deleted image comes again.
    let grouped = |class: &Path| [flags(class), vec!["--sample-batch-size".into(), "3".into()]].concat();
    lorabooth_ok(&grouped(&path("groups")));
    let whole = images(&path("groups"));
    for missing in [&[2][..], &[1, 3]] {
        let part = path("part");
        copy(&path("groups"), &part);
        for name in names(&part).iter().filter(|name| missing.iter().any(|i| name.starts_with(&format!("{i}-")))) {
            fs::remove_file(part.join(name)).unwrap();
        }
        lorabooth_ok(&grouped(&part));
        assert!(images(&part) == whole, "without {missing:?}: {:?} are not {:?}", names(&part), whole.keys());
        fs::remove_dir_all(part).unwrap();
    }
}

#[test]
fn only_as_many_checkpoints_stay_as_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    train(&plain(), &["--checkpointing-steps", "2", "--keep-checkpoints", "2"], folder.path());
    assert_eq!(checkpoints(folder.path()), ["checkpoint-10", "checkpoint-12"]);
}

#[test]
fn options_that_would_change_the_numbers_are_refused_by_name_when_resuming() {
    let folder = tempfile::tempdir().unwrap();
    let (args, out) = (plain(), folder.path().join("out"));
    let schedule = ["--lr-scheduler", "cosine"];
    train(&args, &[&schedule[..], &["--max-train-steps", "4"]].concat(), &out);
    let before = bits(&out);
    let (prompted, other_photos) = (folder.path().join("photos"), photos(4, 0));
    copy(&photos(5, 0), &prompted);
    fs::write(prompted.join("00.txt"), "a caption").unwrap();
    let changes: [(&[&str], &str); 15] = [
        (&["--lora-rank-pattern", "to_q=4"], "--lora-rank-pattern was not given and is {\"to_q\":4} now"),
        (&["--lora-alpha-pattern", "to_q=4"], "--lora-alpha-pattern was not given"),
        (&["--lora-exclude-modules", "mid_block.*"], "--lora-exclude-modules was not given and is mid_block.* now"),
        (&["--lora-modules-to-save", "conv_in"], "--lora-modules-to-save was not given and is conv_in now"),
        (&["--lora-init", "gaussian"], "--lora-init was true and is gaussian now"),
        (&["--learning-rate", "2e-3"], "--learning-rate was 0.001 and is 0.002 now"),
        (&["--lora-r", "4"], "--lora-r was 8 and is 4 now"),
        (&["--lora-dropout", "0.5"], "--lora-dropout was 0 and is 0.5 now"),
        (&["--seed", "1"], "--seed was 0 and is 1 now"),
        (&["--train-batch-size", "2"], "--train-batch-size was 1 and is 2 now"),
        (&["--gradient-accumulation-steps", "2"], "--gradient-accumulation-steps was 1 and is 2 now"),
        (&["--max-train-steps", "8"], "--max-train-steps was 4 and is 8 now"),
        (&["--use-8bit-adam"], "--use-8bit-adam was not given and is given now"),
        (&["--instance-data-dir", other_photos.to_str().unwrap()], "learned from other photos"),
        (&["--instance-data-dir", prompted.to_str().unwrap()], "learned from other photos"),
    ];
    for (change, words) in changes {
        let more = [&schedule[..], &["--max-train-steps", "4", "--resume"], change].concat();
        let output = lorabooth(&with(&args, &more, &out));
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(1), "{change:?}: {error}");
        assert!(error.contains(words) && error.contains("--output-dir"), "{change:?}: {error}");
        assert_eq!(error.trim().lines().count(), 1, "{error}");
    }
    assert!(bits(&out) == before, "a refused resume changed the run");
}

#[test]
fn a_finished_run_at_a_constant_rate_goes_on_to_more_steps() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, longer] = ["whole", "longer"].map(|name| folder.path().join(name));
    train(&plain(), &[], &whole);
    train(&plain(), &["--max-train-steps", "6"], &longer);
    train(&plain(), &["--resume"], &longer);
    assert_same(&longer, &whole, "more steps");
}

#[test]
fn a_torn_checkpoint_is_passed_over_for_the_one_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, torn] = ["whole", "torn"].map(|name| folder.path().join(name));
    let args = plain();
    train(&args, &[], &whole);
    let tensors: PathBuf = torn.join("checkpoint-12/state.safetensors");
    for cut in [0, 100, 20_000] {
        copy(&whole, &torn);
        fs::File::options().write(true).open(&tensors).unwrap().set_len(cut).unwrap();
        let output = lorabooth(&with(&args, &["--resume", "checkpoint-12"], &torn));
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("damaged") && error.contains("checkpoint-8"), "{error}");
        let said = lorabooth_ok(&with(&args, &["--resume", "latest"], &torn));
        assert!(said.contains("checkpoint-8 at step 8"), "{said}");
        assert_same(&torn, &whole, "a torn checkpoint");
        fs::remove_dir_all(&torn).unwrap();
    }
    // A flipped bit shows in the hash alone: refused, with the one to take.
    copy(&whole, &torn);
    let mut bytes = fs::read(&tensors).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&tensors, bytes).unwrap();
    let output = lorabooth(&with(&args, &["--resume"], &torn));
    assert_eq!(output.status.code(), Some(1));
    assert!(error_of(&output).contains("checkpoint-8"), "{}", error_of(&output));
    // Where no other is left the run does not begin anew by itself.
    for older in ["checkpoint-4", "checkpoint-8"] {
        fs::remove_dir_all(torn.join(older)).unwrap();
    }
    fs::write(torn.join("checkpoint-12/state.json"), "{").unwrap();
    let (output, log) = (lorabooth(&with(&args, &["--resume"], &torn)), torn.join("metrics.jsonl"));
    assert_eq!(output.status.code(), Some(1));
    assert!(error_of(&output).contains("checkpoint-12: this checkpoint is damaged"), "{}", error_of(&output));
    assert_eq!(fs::read(log).unwrap(), fs::read(whole.join("metrics.jsonl")).unwrap());
}
