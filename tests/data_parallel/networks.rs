//! What several ranks train beside Stable Diffusion 1: both text encoders of XL, and networks whose frozen weights are in few bits.

use super::cards::{large_language_job, of_shared_weights};
use super::faults::{end_of, ranks_of, start, wait_for_steps};
use super::{adapter_bytes, assert_losses, dreambooth, losses, numbers, reference_options, start_of};
use crate::support::{assert_adapters, lorabooth_ok, model, photos, python, read_json};
use serde_json::json;
use std::path::Path;

/// The last layer of the first text encoder has no gradient there, on no rank. Latents come from a folder that ranks and runs share.
#[test]
fn ranks_train_all_three_networks_of_sdxl() {
    let (folder, class) = (tempfile::tempdir().unwrap(), photos(4, 9));
    let flags = format!(
        "--model {} --resolution 128 --center-crop --with-prior-preservation --class-data-dir {} --class-prompt dog \
         --num-class-images 4",
        model("tiny-xl").display(),
        class.display()
    );
    let start = start_of(folder.path(), &flags);
    let theirs = folder.path().join("theirs");
    let more = json!({ "model": model("tiny-xl"), "resolution": 128, "center_crop": true, "with_prior_preservation": true,
        "class_data_dir": class, "class_prompt": "dog" });
    let options = json!({ "ranks": 2, "dreambooth": reference_options(&start, &more) });
    python("data_parallel.py", &[theirs.to_str().unwrap(), &options.to_string()]);
    let expected = read_json(theirs.join("losses.json"));
    let cache = folder.path().join("cache");
    let run = |name: &str, more: &str| {
        let out = folder.path().join(name);
        lorabooth_ok(&dreambooth(&out, &format!("{flags} --init-adapter {} --processes 2 {more}", start.display())));
        out
    };
    let ours = run("ours", "");
    assert_losses("SDXL", &ours, &numbers(&expected, "losses"), 1e-5);
    for part in ["unet", "text_encoder", "text_encoder_2"] {
        assert_adapters(part, &ours.join(part), &theirs.join(part), 1e-3);
    }
    let checkpointed = run("checkpointed", "--gradient-checkpointing");
    assert_losses("SDXL, gradient checkpointing", &checkpointed, &numbers(&expected, "losses"), 1e-5);

    let kept = |cache: &Path| {
        let files = std::fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
        let mut kept: Vec<_> = files.map(|path| (path.clone(), path.metadata().unwrap().modified().unwrap())).collect();
        kept.sort();
        kept
    };
    let with_cache = format!("--cache-dir {}", cache.display());
    assert!(adapter_bytes(&run("fills", &with_cache)) == adapter_bytes(&ours), "writing the cache changes the adapter");
    let filled = kept(&cache);
    // Five photos and four class images, each encoded by one rank.
    assert_eq!(filled.len(), 9);
    assert!(adapter_bytes(&run("reads", &with_cache)) == adapter_bytes(&ours), "reading the cache changes the adapter");
    assert_eq!(kept(&cache), filled);
}

/// Where nothing is learned and there is one photo, a rank's losses are those of a process with its seed.
#[test]
fn ranks_of_networks_in_few_bits_have_the_losses_of_processes_with_their_seeds() {
    let folder = tempfile::tempdir().unwrap();
    for (name, more) in [
        ("tiny", "--quantize int8 --resolution 64"),
        ("tiny", "--quantize nf4 --offload cpu --resolution 64"),
        ("tiny-xl", "--quantize int8 --offload cpu --resolution 128"),
        ("tiny-xl", "--quantize nf4 --resolution 128"),
        ("tiny-xl", "--quantize fp8 --resolution 128"),
    ] {
        let what = format!("{name} {more}");
        let run = |seed: i64, more: &str| {
            let out = folder.path().join(format!("{name}-{seed}"));
            let flags = format!(
                "--model {} --instance-data-dir {} --learning-rate 1e-30 --center-crop --max-train-steps 4 --overwrite \
                 --seed {seed} {more}",
                model(name).display(),
                photos(1, 5).display()
            );
            lorabooth_ok(&dreambooth(&out, &flags));
            losses(&out)
        };
        let (first, second) = (run(7, more), run(7 + 1_000_003, more));
        assert!(first != second, "{what}: the seeds draw the same");
        let wanted: Vec<f64> = first.iter().zip(&second).map(|(a, b)| (a + b) / 2.0).collect();
        run(7, &format!("{more} --processes 2"));
        assert_losses(&what, &folder.path().join(format!("{name}-7")), &wanted, 1e-5);
    }
}

/// Weights that are not used as their file has them are in memory once, and the numbers are those of one process.
#[test]
fn weights_of_the_cpu_are_there_once_for_two_ranks() {
    for (more, weights) in
        [("--mixed-precision no", 10 * 12 * 768 * 768 * 4), ("--quantize nf4", 10 * 12 * 768 * 768 / 2)]
    {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let job = |name: &str, flags: &str| {
            large_language_job(
                &path(name),
                &format!("--device cpu --mixed-precision no --overwrite --no-shuffle {more} {flags}"),
            )
        };
        let child = start(&job("two", "--max-train-steps 6 --processes 2"));
        wait_for_steps(&path("two"), 1);
        let shares = ranks_of(child.id())
            .into_iter()
            .map(|rank| ["Rss", "Pss"].map(|field| of_shared_weights(rank, field) as f64));
        let shares: Vec<[f64; 2]> = shares.collect();
        let ended = end_of(child, 120);
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        println!("{more}: of {weights} bytes each rank has, and has for its share, {shares:?}");
        assert!(shares.len() == 2 && shares.iter().all(|[all, own]| *all > f64::from(weights) && *own < 0.51 * all));
        lorabooth_ok(&job("one", "--max-train-steps 6 --gradient-accumulation-steps 2"));
        assert_losses(more, &path("two"), &losses(&path("one")), 1e-5);
    }
}
