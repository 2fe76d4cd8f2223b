//! A hub that lies: nothing outside the cache is touched, nothing bad is kept in it, and the user reads one sentence.

use crate::support::hub_mirror::*;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Fetches a model from a hub with each mischief, and finds the words in what is said.
fn each_is_refused(cases: Vec<(&str, Option<Mischief>, &[&str])>) {
    for (case, mischief, words) in cases {
        let place = Place::new(model(), mischief);
        let message = place.fails(case);
        words.iter().for_each(|word| assert!(message.contains(word), "{case}: `{message}` lacks `{word}`"));
        // The rules kept again, the same command has all of it.
        place.server.misbehave(None);
        let folder = place.fetch().unwrap_or_else(|message| panic!("{case}: {message}"));
        model().iter().for_each(|(name, bytes)| assert!(content(&folder, name) == *bytes, "{case}: {name}"));
        place.check_that_all_is_in_order(case);
    }
}

/// A file whose headers are these instead.
fn headers(pairs: &'static [(&'static str, &'static str)]) -> Option<Mischief> {
    about("config.json", move |asked, stream| file(stream, asked.from(), b"{}", pairs))
}

#[test]
fn names_from_a_hub_never_leave_the_cache() {
    let victim = tempfile::tempdir().unwrap();
    let absolute = victim.path().join("victim");
    std::fs::write(&absolute, "mine").unwrap();
    let path: &'static str = Box::leak(format!("\"{}\"", absolute.display()).into_boxed_str());
    let headers_of = |name: &'static str, value: &'static str| {
        about("config.json", move |asked, stream| file(stream, asked.from(), b"{}", &[(name, value)]))
    };
    let mut cases = Vec::new();
    let etag: &[&str] = &["`config.json` of `someone/a-model`", "ETag"];
    for value in [path, "\"../../../victim\"", "\"..\"", "\"a/b\"", "\"a\\b\"", "\".hidden\"", "\"x.incomplete\""] {
        cases.push((value, headers_of("etag", value), etag));
        cases.push((value, headers_of("x-linked-etag", value), etag));
    }
    let commit: &[&str] = &["`config.json` of `someone/a-model`", "another commit"];
    for value in ["../../../victim", "/tmp", "fedcba9876543210fedcba9876543210fedcba98", "main"] {
        cases.push((value, headers_of("x-repo-commit", value), commit));
    }
    for sha in ["../../../../victim", "", "main", "/etc", "0123"] {
        let reply = json!({ "sha": sha, "siblings": [{ "rfilename": "config.json" }] }).to_string();
        let list = in_the_list(move |stream| answer(stream, "200 OK", &[], reply.as_bytes()));
        cases.push((sha, list, &["`someone/a-model`", "names no commit"]));
    }
    each_is_refused(cases);
    assert_eq!(std::fs::read_to_string(&absolute).unwrap(), "mine");
}

#[test]
fn files_with_unsafe_names_are_not_fetched() {
    let mut files = model();
    for name in
        ["../../../victim", "/etc/victim", "a\\..\\victim.safetensors", "tokenizer/../../vocab.json", "a\u{1b}[2J"]
    {
        files.insert(name.to_owned(), b"evil".to_vec());
    }
    let place = Place::new(files, None);
    place.fetch().unwrap();
    place.check_that_all_is_in_order("names in the list");
    assert!(!place.server.asked().iter().any(|asked| asked.path.contains("victim")));

    // Nor those that an index of shards speaks of.
    for shard in ["../../../victim", "/etc/victim", "other.safetensors"] {
        let index = json!({ "weight_map": { "a": shard } }).to_string().into_bytes();
        let files = [("config.json", b"{}".to_vec()), ("model.safetensors.index.json", index)];
        let place = Place::new(files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect(), None);
        let message = place.fails(shard);
        assert!(message.contains("model.safetensors.index.json"), "{message}");
    }
}

#[test]
fn a_planted_link_is_not_written_through() {
    for planted in ["blobs", "snapshots", &format!("snapshots/{COMMIT}"), ".locks"] {
        let place = Place::new(model(), None);
        let outside = place.victim().with_file_name("hub").join("../victims");
        std::fs::create_dir_all(&outside).unwrap();
        let folder = match planted {
            ".locks" => place.hub.cache.clone(),
            _ => place.hub.cache.join("models--someone--a-model"),
        };
        std::fs::create_dir_all(folder.join(planted).parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&outside, folder.join(planted)).unwrap();
        let message = place.fetch().unwrap_err();
        assert!(message.contains("leads out of the cache") && message.contains(planted), "{message}");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{planted}");
    }
}

#[test]
fn odd_lists_of_files_are_one_sentence() {
    let list = |status: &'static str, headers: &'static [(&'static str, &'static str)], body: &'static [u8]| {
        in_the_list(move |stream| answer(stream, status, headers, body))
    };
    let page: &[u8] = b"<!DOCTYPE html><html><form>Log in</form></html>";
    let redirect = |to: &'static [(&'static str, &'static str)]| list("302 Found", to, b"");
    each_is_refused(vec![
        ("login page", list("200 OK", &[("content-type", "text/html")], page), &["web page", "HF_ENDPOINT"]),
        ("empty", list("200 OK", &[], b""), &["empty", "HF_ENDPOINT"]),
        ("half", list("200 OK", &[], br#"{"sha": "01234567"#), &["ends too early"]),
        ("cut", list("200 OK", &[("content-length", "100")], br#"{"sha": ""#), &["broke off", "`someone/a-model`"]),
        ("other JSON", list("200 OK", &[], b"[1, 2]"), &["not the list of files"]),
        ("no HTTP", in_the_list(|stream| drop(stream.write_all(b"SSH-2.0-OpenSSH\r\n"))), &["`someone/a-model`"]),
        ("no content", list("204 No Content", &[], b""), &["status is 204"]),
        ("teapot", list("418 I'm a teapot", &[], b""), &["status 418"]),
        ("broken", list("500 Internal Server Error", &[], b""), &["failed (status 500)", "try again later"]),
        ("later", list("503 Unavailable", &[("retry-after", "3600")], b""), &["status 503", "60 minutes"]),
        ("too many", list("429 Too Many", &[("retry-after", "90")], b""), &["too many requests", "90 seconds"]),
        ("token", list("403 Forbidden", &[], b""), &["does not let HF_TOKEN read"]),
        ("compressed", list("200 OK", &[("content-encoding", "gzip")], b"\x1f\x8b"), &["compressed (gzip)"]),
        ("nowhere", redirect(&[]), &["redirects to nowhere"]),
        ("a file", redirect(&[("location", "file:///etc/passwd")]), &["not on the web"]),
        ("no address", redirect(&[("location", "http://[::1")]), &["not an address"]),
        ("loop", redirect(&[("location", "/api/models/again")]), &["redirects more than 10 times"]),
        ("claims gigabytes", list("200 OK", &[("content-length", "99999999999")], b"{"), &["larger than 16 MiB"]),
    ]);
}

#[test]
fn odd_files_are_one_sentence() {
    let file_of = "`config.json` of `someone/a-model`";
    let reply = |status: &'static str, headers: &'static [(&'static str, &'static str)], body: &'static [u8]| {
        about("config.json", move |_, stream| answer(stream, status, headers, body))
    };
    let sized: &[(&str, &str)] =
        &[("x-repo-commit", COMMIT), ("etag", "\"abc\""), ("transfer-encoding", "chunked"), ("x-linked-size", "2")];
    let unknown: &[(&str, &str)] = &[("x-repo-commit", COMMIT), ("etag", "\"abc\""), ("transfer-encoding", "chunked")];
    let huge: &[(&str, &str)] = &[("x-repo-commit", COMMIT), ("etag", "\"abc\""), ("content-length", "99999999999")];
    each_is_refused(vec![
        ("login page", reply("200 OK", &[("content-type", "text/html")], b"<html>"), &[file_of, "web page"]),
        ("no commit", headers(&[("x-repo-commit", "")]), &[file_of, "X-Repo-Commit"]),
        ("no etag", headers(&[("etag", "")]), &[file_of, "ETag"]),
        ("no size", reply("200 OK", unknown, b"2\r\n{}\r\n0\r\n\r\n"), &[file_of, "how large"]),
        ("too much", reply("200 OK", sized, b"4\r\n{  }\r\n0\r\n\r\n"), &[file_of, "more than the 2 bytes"]),
        ("other size", headers(&[("x-linked-size", "3")]), &[file_of, "2 bytes where the hub says 3"]),
        ("huge", reply("200 OK", huge, b"{"), &[file_of, "99999999999 bytes for a file without weights"]),
        ("no size at all", headers(&[("x-linked-size", "-1")]), &[file_of, "not a size"]),
        ("other bytes", headers(&[("content-range", "bytes 1-2/3")]), &[file_of, "other bytes"]),
        ("past the end", headers(&[("content-range", "bytes 0-9/2")]), &[file_of, "other bytes"]),
        ("no range", headers(&[("content-range", "")]), &[file_of, "how large"]),
        ("compressed", headers(&[("content-encoding", "br")]), &[file_of, "compressed (br)"]),
        ("forbidden", reply("403 Forbidden", &[], b""), &["HF_TOKEN", ID]),
        ("gone", reply("404 Not Found", &[("x-error-code", "EntryNotFound")], b""), &["has no file config.json"]),
        ("unavailable", reply("503 Unavailable", &[("retry-after", "600")], b""), &["status 503", "10 minutes"]),
        ("loop", reply("302 Found", &[("location", "config.json")], b""), &[file_of, "more than 10 times"]),
        ("a file", reply("302 Found", &[("location", "file:///etc/passwd")], b""), &[file_of, "not on the web"]),
        ("script", reply("302 Found", &[("location", "javascript:alert(1)")], b""), &[file_of, "not on the web"]),
    ]);
}

#[test]
fn other_bytes_than_the_hub_names_are_dropped() {
    let evil = weights(50_000).into_iter().map(|byte| byte ^ 1).collect::<Vec<u8>>();
    let honest: &'static str = Box::leak(format!("\"{}\"", sha256(&weights(50_000))).into_boxed_str());
    let mischief = about(WEIGHTS, move |asked, stream| file(stream, asked.from(), &evil, &[("etag", honest)]));
    each_is_refused(vec![(
        "evil weights",
        mischief,
        &["`model.safetensors` of `someone/a-model`", "damaged", "run the command again"],
    )]);
    // Nothing of it stays, and a git blob's name is verified, too.
    let place = Place::new(
        model(),
        about("config.json", |asked, stream| {
            file(
                stream,
                asked.from(),
                b"{]",
                &[("etag", Box::leak(format!("\"{}\"", sha256(b"{}")).into_boxed_str()))],
            );
        }),
    );
    place.fails("damaged");
    assert_eq!(place.blobs(), Vec::<std::path::PathBuf>::new());
    let mischief = about("config.json", |asked, stream| {
        file(stream, asked.from(), b"{}", &[("etag", "\"b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0\"")]);
    });
    each_is_refused(vec![("git", mischief, &["`config.json`", "damaged"])]);
}

#[test]
fn nothing_is_waited_for_for_ever() {
    let endless_list = |stream: &mut TcpStream| {
        _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        endlessly(stream, &[b"10000\r\n".as_slice(), &vec![b' '; 0x10000], b"\r\n"].concat());
    };
    let endless_header = |stream: &mut TcpStream| {
        _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ");
        endlessly(stream, &[b'a'; 4096]);
    };
    let endless_headers = |stream: &mut TcpStream| {
        _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        endlessly(stream, b"x-a: b\r\n");
    };
    let drip = |stream: &mut TcpStream| {
        _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ");
        while stream.write_all(b"a").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let began = Instant::now();
    let list: &[&str] = &["`someone/a-model`"];
    each_is_refused(vec![
        ("endless list", in_the_list(endless_list), &["larger than 16 MiB"]),
        ("endless header", in_the_list(endless_header), list),
        ("endless headers", in_the_list(endless_headers), list),
        ("silence", in_the_list(silence), &["HF_HUB_DOWNLOAD_TIMEOUT"]),
        ("a byte now and then", in_the_list(drip), &["HF_HUB_DOWNLOAD_TIMEOUT"]),
    ]);
    let silent_file = about(WEIGHTS, |_, stream| silence(stream));
    let stuck = about(WEIGHTS, |asked, stream| {
        let headers = [("content-length", "200000"), ("content-range", "bytes 0-199999/200000")];
        if asked.from() == 0 {
            file(stream, 0, b"some", &headers);
        }
        silence(stream);
    });
    each_is_refused(vec![
        ("silent file", silent_file, &["`model.safetensors`", "HF_HUB_DOWNLOAD_TIMEOUT"]),
        ("stuck file", stuck, &["`model.safetensors`", "continues where it stopped"]),
    ]);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn the_token_stays_with_the_hub() {
    // Another host (its port tells them apart) keeps the weights, as the hub's storage does.
    let bytes = weights(50_000);
    let stored = BTreeMap::from([("stored".to_owned(), bytes.clone())]);
    let storage = Server::start(
        stored,
        Some(Arc::new(move |asked, stream| {
            file(stream, asked.from(), &weights(50_000), &[("etag", "\"other\""), ("x-repo-commit", "../x")]);
            true
        })),
    );
    let (location, etag) = (format!("{}/stored?signature=secret", storage.address), format!("\"{}\"", sha256(&bytes)));
    let size = bytes.len().to_string();
    let redirect = about(WEIGHTS, move |_, stream| {
        let headers = [
            ("location", location.as_str()),
            ("x-linked-etag", &etag),
            ("x-linked-size", &size),
            ("x-repo-commit", COMMIT),
            ("etag", "\"of-the-redirect\""),
        ];
        answer(stream, "302 Found", &headers, b"moved");
    });
    let place = Place::new(model(), redirect);
    let folder = place.fetch().unwrap();
    assert!(content(&folder, WEIGHTS) == bytes);
    place.check_that_all_is_in_order("redirect");
    let of_hub = place.server.asked();
    assert!(of_hub.iter().all(|asked| asked.headers["authorization"] == format!("Bearer {TOKEN}")), "{of_hub:?}");
    let of_storage = storage.asked();
    assert!(!of_storage.is_empty() && of_storage.iter().all(|asked| !asked.headers.contains_key("authorization")));

    // What the storage says in refusal names its host, and not the signed address.
    storage.misbehave(Some(Arc::new(|_, stream| {
        answer(stream, "403 Forbidden", &[], b"");
        true
    })));
    std::fs::remove_dir_all(&place.hub.cache).unwrap();
    let message = place.fails("storage");
    assert!(
        message.contains("127.0.0.1") && message.contains("status 403") && !message.contains("signature"),
        "{message}"
    );
}
