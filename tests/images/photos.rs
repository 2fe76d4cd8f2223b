//! Photos become the tensors that Pillow and torchvision make of them, and bad files cost a warning.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support::dreambooth_commands::{generate, train};
use crate::support::{self, lorabooth, model, photos};
use image::RgbImage;
use lorabooth::data::dreambooth_dataset::DreamBoothDataset;
use lorabooth::data::photo_transform::to_tensor;
use lorabooth::data::photos::PhotoFolder;
use lorabooth::data::prefetch::Prefetch;
use lorabooth::libtorch::random::Generator;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tch::Tensor;

fn read(path: &Path) -> BTreeMap<String, Tensor> {
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

/// Lossless files to the bit. JPEG decoders differ: on average by less than 1/255, in a scale where that is 2/255.
fn check_close(name: &str, ours: &Tensor, theirs: &Tensor) {
    let difference = (ours - theirs).abs();
    let (largest, mean) = (difference.max().double_value(&[]), difference.mean(tch::Kind::Float).double_value(&[]));
    let close = if name.contains(".jp") { mean < 2.0 / 255.0 } else { largest == 0.0 };
    assert!(close, "{name}: max {largest}, mean {mean}");
}

#[test]
fn photos_equal_what_pillow_and_torchvision_make_of_them() {
    let folder = tempfile::tempdir().unwrap();
    support::python("photo_cases.py", &[folder.path().to_str().unwrap()]);
    let expected = read(&folder.path().join("expected.safetensors"));
    let draws = read(&folder.path().join("draws.safetensors"));
    let mut compared = 0;
    for size in [32, 80, 136] {
        let open = || PhotoFolder::open(&folder.path().join("photos"), size).unwrap();
        assert_eq!(open().warnings, [""; 0]);
        let central = DreamBoothDataset::new(open(), "", None, true).unwrap();
        let random = DreamBoothDataset::new(open(), "", None, false).unwrap();
        for photo in 0..central.photos().len() {
            let name = central.photos()[photo].path().file_name().unwrap().to_str().unwrap();
            let pixels = central.pixels(photo, central.fixed_crop(photo).unwrap()).unwrap();
            let key = format!("{name}@{size}");
            check_close(&key, &to_tensor(&pixels, size).unwrap().squeeze_dim(0), &expected[&key]);
            for seed in [1, 2] {
                let crop = random.photos()[photo].crop_range().draw(&mut Generator::new(seed));
                let pixels = random.pixels(photo, crop).unwrap();
                let key = format!("{name}@{size}@{seed}");
                check_close(&key, &to_tensor(&pixels, size).unwrap().squeeze_dim(0), &draws[&key]);
                compared += 1;
            }
        }
    }
    assert_eq!(compared, draws.len());
}

fn png(path: &Path, width: u32, height: u32) {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 99])).save(path).unwrap();
}

/// A PNG whose header claims 100,000 x 100,000 pixels, with a right checksum.
fn bomb() -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(100_000u32.to_be_bytes());
    header.extend(100_000u32.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut remainder = u32::MAX;
    for &byte in &header {
        remainder ^= u32::from(byte);
        for _ in 0..8 {
            remainder = (remainder >> 1) ^ (0xedb8_8320 * (remainder & 1));
        }
    }
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    file.extend(&header);
    file.extend((!remainder).to_be_bytes());
    // An empty IDAT chunk, with its checksum.
    file.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    file
}

#[test]
fn files_that_are_no_images_are_named_and_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    png(&at("good.png"), 70, 40);
    fs::write(at("good.txt"), "\u{feff}  a photo of sks dog on a beach \n").unwrap();
    fs::write(at(".DS_Store"), "hidden").unwrap();
    fs::create_dir(at("folder")).unwrap();
    RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * y) as u8, y as u8, x as u8])).save(at("whole.jpg")).unwrap();
    let jpeg = fs::read(at("whole.jpg")).unwrap();
    fs::write(at("bad1_cut.jpg"), &jpeg[..jpeg.len() * 2 / 3]).unwrap();
    fs::write(at("bad2_text.jpg"), "this is a text").unwrap();
    fs::write(at("bad3_bomb.png"), bomb()).unwrap();
    fs::write(at("bad4_empty.png"), "").unwrap();
    let whole = fs::read(at("good.png")).unwrap();
    fs::write(at("bad5_cut.png"), &whole[..whole.len() - 30]).unwrap();
    fs::write(at("bad6_data.csv"), "a,b").unwrap();

    let opened = PhotoFolder::open(folder.path(), 32).unwrap();
    let names: Vec<_> = opened.photos.iter().map(|photo| photo.path().file_name().unwrap()).collect();
    assert_eq!(names, ["good.png", "whole.jpg"]);
    assert_eq!(opened.photos[0].caption(), Some("a photo of sks dog on a beach"));
    assert_eq!(opened.photos[1].caption(), None);
    let says = ["cut short", "not an image", "100000 x 100000", "is empty", "damaged", "not an image"];
    assert_eq!(opened.warnings.len(), says.len(), "{:#?}", opened.warnings);
    for (index, (warning, says)) in opened.warnings.iter().zip(says).enumerate() {
        assert!(warning.contains(&format!("bad{}_", index + 1)) && warning.contains(says), "{warning}");
        assert!(!warning.contains('\n'), "{warning}");
    }

    // Those of one reason are one line.
    for i in 0..5 {
        fs::write(at(&format!("notes{i}.doc")), "text").unwrap();
    }
    let said = PhotoFolder::open(folder.path(), 32).unwrap().warnings;
    let line = said.iter().find(|line| line.contains("6 files in")).unwrap();
    assert!(line.contains("(bad2_text.jpg, notes0.doc, notes1.doc, …): each is not an image"), "{line}");
    assert_eq!(said.len(), says.len(), "{said:#?}");

    let dataset = DreamBoothDataset::new(opened, "a photo of sks dog", None, false).unwrap();
    assert_eq!(dataset.prompt(0), "a photo of sks dog on a beach");
    assert_eq!(dataset.prompt(1), "a photo of sks dog");
}

#[test]
fn a_folder_without_an_image_is_an_error_that_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let message = |path: &Path| PhotoFolder::open(path, 32).unwrap_err().to_string();
    assert!(message(folder.path()).contains("no image in this folder"));
    fs::write(folder.path().join("a.jpg"), "text").unwrap();
    assert!(message(folder.path()).contains("a.jpg is not an image"), "{}", message(folder.path()));
    assert!(message(&folder.path().join("missing")).contains("cannot read"));
    // A single row of pixels would become gigabytes.
    png(&folder.path().join("a.jpg.png"), 60_000, 1);
    assert!(PhotoFolder::open(folder.path(), 512).unwrap_err().to_string().contains("no image that can be read"));
}

#[test]
fn a_resumed_run_prepares_the_batches_of_one_never_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let (instances, classes) = (folder.path().join("instance"), folder.path().join("class"));
    for (folder, count) in [(&instances, 3), (&classes, 5)] {
        fs::create_dir(folder).unwrap();
        (0..count).for_each(|index| png(&folder.join(format!("{index}.png")), 50 + index, 40));
    }
    let class = PhotoFolder::open(&classes, 24).unwrap();
    let dataset =
        DreamBoothDataset::new(PhotoFolder::open(&instances, 24).unwrap(), "sks", Some((class, "dog")), false);
    let dataset = std::sync::Arc::new(dataset.unwrap());
    let order = dataset.order(2, 7, true).unwrap();
    let prepare = |from: usize| {
        let (dataset, order) = (dataset.clone(), order.clone());
        Prefetch::new((from..9).map(move |step| {
            dataset.prepare(order.micro_batch(step), Generator::new(7 + step as i64), |_| false).unwrap()
        }))
        .unwrap()
    };
    let (whole, resumed) = (prepare(0).skip(4), prepare(4));
    for (mut one, mut other) in whole.zip(resumed) {
        assert_eq!(one.batch, other.batch);
        assert_eq!(one.crops, other.crops);
        assert_eq!(one.pixels().unwrap(), other.pixels().unwrap());
        assert_eq!(one.generator.randn(&[8]), other.generator.randn(&[8]));
        assert_eq!(one.batch.photos.len(), 2 * one.batch.instance_count);
        assert!(one.batch.photos[..one.batch.instance_count].iter().all(|&photo| dataset.prompt(photo) == "sks"));
        assert!(one.batch.photos[one.batch.instance_count..].iter().all(|&photo| dataset.prompt(photo) == "dog"));
    }
    assert_eq!(order.batches_per_epoch(), 3);
}

/// What a command that works prints: to standard output, and beside it.
fn said(args: &[String]) -> [String; 2] {
    let output = lorabooth(args);
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{args:?}: {said:?}");
    said
}

/// Photos of the tests in `folder`, called as `names` say.
fn photos_called(folder: &Path, names: &[&str]) {
    for (photo, name) in names.iter().enumerate() {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(photos(3, 0).join(format!("{:02}.png", photo % 3)), path).unwrap();
    }
}

#[test]
fn the_first_screen_counts_captions_and_the_last_line_tries_a_trained_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("photos");
    photos_called(&data, &["a.png", "B.PNG", "c.png"]);
    let write = |name: &str, text: &[u8]| fs::write(data.join(name), text).unwrap();
    write("A.TXT", b"a photo of one");
    write("b.caption", b"a photo of two");
    write("c.png.txt", b"\xff\xfea\0 \0c\0");
    let train = |out: &str| train(&model("tiny"), &data, &folder.path().join(out), &[]);
    let [out, beside] = said(&train("all"));
    assert!(out.contains("photos  3 photos, 3 with captions; such as \"a photo of two\""), "{out}");
    // In the order of names, B.PNG is the first.
    assert!(out.contains("--prompt 'a photo of two'") && beside.is_empty(), "{out}{beside}");

    write("b.caption", "\u{feff}\n".as_bytes());
    write("d.txt", b"a photo of nothing");
    let [out, beside] = said(&train("some"));
    assert!(
        out.contains("3 photos, 2 with captions; such as \"a photo of one\"; the others are trained with \"sks\""),
        "{out}"
    );
    assert!(out.contains("--prompt sks"), "{out}");
    let warnings: Vec<&str> = beside.lines().collect();
    assert!(warnings.len() == 2 && warnings[0].contains("b.caption is blank"), "{beside}");
    assert!(warnings[1].contains("d.txt: belongs to no photo; a caption has its photo's name"), "{beside}");
}

#[test]
fn folders_inside_are_trained_on_with_their_repeats_and_class_images_in_them_are_not_drawn_again() {
    let folder = tempfile::tempdir().unwrap();
    let (img, reg) = (folder.path().join("img"), folder.path().join("img/classes"));
    photos_called(&img, &["10_sks dog/a.png", "10_sks dog/b.png", "c.png"]);
    photos_called(&reg, &["1_dog/d.png", "1_dog/e.png"]);
    let prior = ["--with-prior-preservation", "--class-prompt", "dog", "--num-class-images", "2", "--class-data-dir"];
    let more = [&prior[..], &[reg.to_str().unwrap()]].concat();
    let args = train(&model("tiny"), &img, &folder.path().join("out"), &more);
    let [out, beside] = said(&args);
    assert!(beside.is_empty(), "{beside}");
    assert!(
        out.contains("3 photos, 0 with captions") && out.contains("and 2 class images trained with \"dog\""),
        "{out}"
    );
    assert!(out.contains("img/10_sks dog: 2 photos, 10 repeats an epoch"), "{out}");
    assert!(out.contains("classes/1_dog: 2 photos, 1 repeat an epoch"), "{out}");
    // 1 step of 21 places.
    assert!(out.contains("schedule  1 step (less than 0.1 epochs)"), "{out}");
    assert_eq!(fs::read_dir(&reg).unwrap().count(), 1);

    let steps = |args: &[String]| {
        let mut plan = [&["plan".to_owned()], &args[1..], &["--json".to_owned()]].concat();
        let place = plan.iter().position(|arg| arg == "--max-train-steps").unwrap();
        plan.splice(place..place + 2, ["--num-train-epochs".to_owned(), "2".to_owned()]);
        let [out, _] = said(&plan);
        serde_json::from_str::<serde_json::Value>(out.lines().last().unwrap()).unwrap()["steps"].clone()
    };
    assert_eq!(steps(&args), 2 * 21);
    let parent = train(&model("tiny"), folder.path(), &folder.path().join("none"), &[]);
    fs::rename(&reg, folder.path().join("reg")).unwrap();
    let output = lorabooth(&parent);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("--class-data-dir") && error.contains("/reg"), "{error}");
}

#[test]
fn what_is_cut_off_prompts_and_what_is_no_word_is_said_wherever_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let (data, class) = (folder.path().join("photos"), folder.path().join("class"));
    photos_called(&data, &["a.png", "b.png"]);
    photos_called(&class, &["c.png"]);
    let long = format!("{} [the] end", "red, green, blue, ".repeat(20));
    fs::write(data.join("a.caption"), &long).unwrap();
    let class_dir = class.to_str().unwrap();
    let more = [
        ["--instance-prompt", &long],
        ["--class-prompt", &long],
        ["--validation-prompt", &long],
        ["--num-validation-images", "1"],
        ["--num-class-images", "1"],
        ["--class-data-dir", class_dir],
    ]
    .concat();
    let more = [&more[..], &["--with-prior-preservation"]].concat();
    let args = train(&model("tiny"), &data, &folder.path().join("out"), &more);
    let plan = [&["plan".to_owned()], &args[1..]].concat();
    for args in [&args, &plan] {
        let [_, beside] = said(args);
        for place in ["--instance-prompt", "--class-prompt", "--validation-prompt", "a.caption"] {
            let cut = |line: &&str| line.contains(&format!("{place} has 12")) && line.contains("reads the first 75");
            let line = beside.lines().find(cut).unwrap_or_else(|| panic!("{place} in {beside}"));
            assert!(line.contains("these words are lost: \"") && line.len() < 300, "{line}");
        }
        assert_eq!(beside.lines().count(), 5, "{beside}");
        assert!(beside.contains("--instance-prompt: `[the]` (and in 3 more) gives words less weight"), "{beside}");
    }
    let [prompt, negative] = ["a (red:1.4) dog <lora:my-dog:0.8>", &long].map(str::to_owned);
    let image = folder.path().join("image.png");
    let [_, beside] = said(&generate(&model("tiny"), &image, &["--prompt", &prompt, "--negative-prompt", &negative]));
    for words in ["--negative-prompt has 12", "--prompt: `(red:1.4)`", "--lora my-dog.safetensors=0.8", "`[the]`"] {
        assert!(beside.contains(words), "{words} in {beside}");
    }
    assert_eq!(beside.lines().count(), 4, "{beside}");
}
