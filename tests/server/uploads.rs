//! Sets of photos.

use super::client::{photo, photos, text, Server};
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::{json, Value};
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;

pub fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        archive.start_file(*name, SimpleFileOptions::default()).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

pub fn refused<'a>(set: &'a Value, name: &str) -> &'a str {
    let refused = set["refused"].as_array().unwrap().iter().find(|one| one["name"] == name);
    text(refused.unwrap_or_else(|| panic!("{name} is not refused: {set}")), "/sentence")
}

#[test]
fn photos_are_told_by_their_content_and_bad_files_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let mut large = Vec::new();
    RgbImage::from_pixel(300, 200, Rgb([9, 8, 7])).write_to(&mut Cursor::new(&mut large), ImageFormat::Jpeg).unwrap();
    let set = server.set_of(&[
        ("blob", photo(1)),
        ("../../../etc/cron.d/evil.png", photo(2)),
        ("second.png", photo(3)),
        ("again.png", photo(1)),
        ("large.jpg", large.clone()),
        ("page.png", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>".to_vec()),
        ("cut.jpg", large[..large.len() / 2].to_vec()),
        ("empty.png", Vec::new()),
        ("large.txt", b"a grey\n field".to_vec()),
        ("nobody.txt", b"of no photo".to_vec()),
    ]);
    let names: Vec<&str> = set["photos"].as_array().unwrap().iter().map(|photo| text(photo, "/name")).collect();
    assert_eq!(names, ["blob", "evil.png", "second.png", "again.png", "large.jpg"]);
    assert!(refused(&set, "page.png").contains("not an image"));
    assert!(refused(&set, "cut.jpg").contains("cut short"));
    assert!(refused(&set, "empty.png").contains("not an image"));
    assert!(refused(&set, "nobody.txt").contains("no photo"));
    let [first, again, large] = [0, 3, 4].map(|index| &set["photos"][index]);
    assert_eq!(
        (&large["width"], &large["height"], &large["caption"]),
        (&json!(300), &json!(200), &json!("a grey field"))
    );
    assert!(again["warnings"][0].as_str().unwrap().contains("same picture as blob"));
    assert_eq!(first["warnings"], json!([]));
    let (bytes, kind, _) = server.bytes(text(first, "/url"));
    assert_eq!((bytes, kind.as_str()), (photo(1), "image/png"));
    let (small, kind, _) = server.bytes(text(large, "/thumbnail"));
    let small = image::load_from_memory(&small).unwrap();
    assert_eq!((kind.as_str(), small.width(), small.height()), ("image/jpeg", 256, 171));
    // Nothing was written but where the server keeps photos.
    let sets = server.data.join("sets");
    assert_eq!(std::fs::read_dir(&sets).unwrap().count(), 1);
    assert!(std::fs::read_dir(server.data.join("temporary")).unwrap().next().is_none());
}

#[test]
fn a_zip_is_unpacked_and_a_bomb_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let good = zip_of(&[
        ("photos/dog.png", &photo(1)),
        ("photos/dog.txt", b"a photo of sks dog"),
        ("../../../outside.png", &photo(2)),
        ("/absolute.png", &photo(3)),
        ("__MACOSX/photos/._dog.png", b"clutter"),
        ("photos/.DS_Store", b"clutter"),
        ("photos/readme.md", b"hello"),
    ]);
    let zeros = vec![0; 200 << 20];
    let bomb = zip_of(&[("bomb.png", &zeros)]);
    assert!(bomb.len() < 1 << 20);
    let names: Vec<String> = (0..10_001).map(|number| format!("{number}.png")).collect();
    let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let set = server.set_of(&[
        ("photos.zip", good.clone()),
        ("bomb.zip", bomb),
        ("many.zip", zip_of(&many)),
        ("cut.zip", good[..good.len() / 2].to_vec()),
    ]);
    let photos = set["photos"].as_array().unwrap();
    let names: Vec<&str> = photos.iter().map(|photo| text(photo, "/name")).collect();
    assert_eq!(names, ["dog.png", "outside.png", "absolute.png"]);
    assert_eq!(photos[0]["caption"], "a photo of sks dog");
    assert!(refused(&set, "readme.md").contains("not an image"));
    assert!(refused(&set, "bomb.png").contains("larger than 128 MB"));
    assert!(refused(&set, "many.zip").contains("10000"));
    assert!(refused(&set, "cut.zip").contains("damaged"));
    for place in [folder.path().parent().unwrap(), std::path::Path::new("/")] {
        assert!(!place.join("outside.png").exists() && !place.join("absolute.png").exists());
    }
}

#[test]
fn captions_are_changed_and_photos_are_taken_out() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let files = photos(2);
    let set = server.set_of(&[(&files[0].0, files[0].1.clone()), (&files[1].0, files[1].1.clone())]);
    let id = text(&set, "/id");
    let [first, second] = [0, 1].map(|index| format!("/api/sets/{id}/photos/{}", text(&set["photos"][index], "/id")));
    let (status, changed) = server.send("PATCH", &first, &json!({ "caption": "sks bird\non a   stone" }));
    assert_eq!((status, &changed["photos"][0]["caption"]), (200, &json!("sks bird on a stone")));
    let captions = || {
        let entries = std::fs::read_dir(server.data.join("sets").join(id).join("photos")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.extension().unwrap() == "txt")
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(captions(), ["sks bird on a stone"]);
    let (status, refused) = server.send("PATCH", &first, &json!({ "caption": "x".repeat(5000) }));
    assert_eq!((status, text(&refused, "/error/field")), (422, "caption"));
    let (status, rest) = server.ask("DELETE", &second);
    assert_eq!((status, rest["photos"].as_array().unwrap().len()), (200, 1));
    server.send("PATCH", &first, &json!({ "caption": "" }));
    assert!(captions().is_empty());
    assert_eq!(server.ask("DELETE", &second).0, 404);
}
