//! Photos become the tensors that Pillow and torchvision make of them, and bad files cost a warning.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

mod support;

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
    let says = ["cut short", "no image", "100000 x 100000", "is empty", "damaged", "no image"];
    assert_eq!(opened.warnings.len(), says.len(), "{:#?}", opened.warnings);
    for (index, (warning, says)) in opened.warnings.iter().zip(says).enumerate() {
        assert!(warning.contains(&format!("bad{}_", index + 1)) && warning.contains(says), "{warning}");
        assert!(!warning.contains('\n'), "{warning}");
    }

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
    assert!(message(folder.path()).contains("a.jpg: is no image"), "{}", message(folder.path()));
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
        let dataset = dataset.clone();
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
