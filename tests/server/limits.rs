//! What ends by itself: what visitors made, jobs that take too long, room on the disk; and how long the others wait.

use super::client::{photo, subject, text, training, Server};
use super::visitors::Visitor;
use rusqlite::Connection;
use serde_json::{json, Value};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The database of a server that has ended.
fn database(data: &Path) -> Connection {
    Connection::open(data.join("server.sqlite")).unwrap()
}

/// The names in a folder of the data folder.
fn inside(data: &Path, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(data.join(folder)).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn wait(visitor: &Visitor, id: &str) -> Value {
    loop {
        let job = visitor.get(&format!("/api/jobs/{id}"));
        if !["queued", "running", "paused", "stopping"].contains(&text(&job, "/state")) {
            return job;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Everything that a visitor can make, by its kind: the addresses where it is.
fn make_everything(visitor: &Visitor) -> [String; 5] {
    let set = visitor.set_of(2);
    let options = json!({
        "validation_prompt": "a bird", "num_validation_images": 1, "with_prior_preservation": true, "class_prompt": "a bird",
        "num_class_images": 1,
    });
    let (status, job) = visitor.send("POST", "/api/jobs", Some(&training(text(&set, "/id"), 1, &options)));
    assert_eq!(status, 201, "{job}");
    let job = wait(visitor, text(&job, "/id"));
    assert_eq!(job["state"], "finished", "{job}");
    let id = text(&job, "/id");
    let picture = text(&job, "/results/images/0/url").to_owned();
    assert_eq!(visitor.send("GET", &format!("{picture}?thumbnail=1"), None).0, 200);
    [
        format!("/api/sets/{}", text(&set, "/id")),
        text(&set, "/photos/0/url").to_owned(),
        format!("/api/jobs/{id}"),
        picture,
        format!("/api/adapters/{id}/download?format=kohya"),
    ]
}

#[test]
fn what_a_visitor_made_goes_when_its_time_is_over_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    let data = folder.path();
    let flags = ["--public", "--keep-hours", "24"];
    let server = Server::start_with(data, &flags);
    let (anna, berta) = (Visitor::new(&server), Visitor::new(&server));
    let (of_anna, of_berta) = (make_everything(&anna), make_everything(&berta));
    let cookies = [anna, berta].map(|visitor| visitor.cookie);
    let folders = ["sets", "inputs", "runs", "thumbnails", "class-images"];
    let before = folders.map(|name| inside(data, name));
    assert!(before.iter().all(|names| names.len() >= 2), "{before:?}");
    assert_eq!(server.end("-TERM").0, Some(0));

    let job = of_anna[2].rsplit('/').next().unwrap();
    let db = database(data);
    let owner: String = db.query_row("SELECT owner FROM jobs WHERE id = ?1", [job], |row| row.get(0)).unwrap();
    for table in ["sets", "jobs", "adapters"] {
        for (whose, hours) in [("=", "-25 hours"), ("!=", "-23 hours")] {
            let sql = format!(
                "UPDATE {table} SET created = strftime('%Y-%m-%dT%H:%M:%SZ', created, ?1) WHERE owner {whose} ?2"
            );
            assert_eq!(db.execute(&sql, [hours, &owner]).unwrap(), 1, "{sql}");
        }
    }
    drop(db);

    let server = Server::start_with(data, &flags);
    let [anna, berta] = cookies.map(|cookie| Visitor { server: &server, cookie });
    let began = Instant::now();
    while anna.send("GET", &of_anna[2], None).0 != 404 || inside(data, "sets").len() > 1 {
        assert!(began.elapsed() < Duration::from_secs(60), "it is still there");
        std::thread::sleep(Duration::from_millis(50));
    }
    for (gone, kept) in of_anna.iter().zip(&of_berta) {
        assert_eq!((anna.send("GET", gone, None).0, berta.send("GET", kept, None).0), (404, 200), "{gone} {kept}");
    }
    let after = folders.map(|name| inside(data, name));
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(after.len() * 2, before.len(), "{before:?} {after:?}");
    }
    assert_eq!(server.end("-TERM").0, Some(0));
    let db = database(data);
    for table in ["lines", "images", "photos"] {
        let of =
            if table == "photos" { "set_id NOT IN (SELECT id FROM sets)" } else { "job NOT IN (SELECT id FROM jobs)" };
        let count = |of: &str| -> i64 {
            db.query_row(&format!("SELECT count(*) FROM {table} WHERE {of}"), [], |row| row.get(0)).unwrap()
        };
        assert_eq!((count(of), count("1") > 0), (0, true), "{table}");
    }
}

#[test]
fn a_job_of_more_minutes_than_it_may_take_is_ended_with_a_checkpoint_even_if_it_is_paused() {
    let folder = TempDir::new().unwrap();
    let flags = ["--public", "--max-minutes", "1", "--max-steps", "100000"];
    let server = Server::start_with(folder.path(), &flags);
    let visitor = Visitor::new(&server);
    let set = visitor.set_of(1);
    let began = Instant::now();
    let (_, job) = visitor.send("POST", "/api/jobs", Some(&training(text(&set, "/id"), 100_000, &json!({}))));
    let id = text(&job, "/id").to_owned();
    let path = format!("/api/jobs/{id}");
    while visitor.get(&path)["progress"]["done"].as_u64() < Some(2) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(visitor.send("POST", &format!("{path}/pause"), None).0, 200);
    let job = wait(&visitor, &id);
    assert!(began.elapsed() >= Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(
        (text(&job, "/state"), text(&job, "/error")),
        ("failed", "stopped after 1 minute, the most that a job may take here")
    );
    assert_eq!(job["actions"], json!(["resume"]));
    let done = visitor.get(&format!("{path}/metrics")).as_array().unwrap().len();
    assert!(folder.path().join("runs").join(&id).join(format!("checkpoint-{done}/state.json")).exists(), "{done}");
    // The next one has its turn.
    let (_, next) = visitor.send("POST", "/api/jobs", Some(&training(text(&set, "/id"), 1, &json!({}))));
    assert_eq!(wait(&visitor, text(&next, "/id"))["state"], "finished");
}

#[test]
fn a_queued_job_waits_for_as_long_as_such_jobs_took_and_says_nothing_where_nobody_knows() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(folder.path());
    let set = subject(&server, 1);
    let add = |server: &Server, steps: u64| {
        text(&server.post("/api/jobs", &training(&set, steps, &json!({}))), "/id").to_owned()
    };
    let shown = |server: &Server, id: &str| server.get(&format!("/api/jobs/{id}"));
    let finished = add(&server, 1);
    server.wait_until_over(&finished);
    let usual = |seconds: f64| {
        let db = database(folder.path());
        assert_eq!(db.execute("UPDATE jobs SET seconds = ?1 WHERE state = 'finished'", [seconds]).unwrap(), 1);
    };
    assert_eq!(server.end("-TERM").0, Some(0));
    usual(1000.0);

    let server = Server::start(folder.path());
    let running = add(&server, 100_000);
    server.wait_for(&running, |job| job["progress"]["phase"] == "training");
    let began = Instant::now();
    server.post(&format!("/api/jobs/{running}/pause"), &json!({}));
    let [first, second] = [1, 1].map(|steps| add(&server, steps));
    let draw = json!({ "kind": "generate", "options": { "prompt": "a bird", "steps": 1 } });
    let [drawn, last] = [(); 2].map(|()| text(&server.post("/api/jobs", &draw), "/id").to_owned());
    let passed = 60.0 + began.elapsed().as_secs_f64();
    for (place, (id, jobs)) in (1..).zip([(&first, 1.0), (&second, 2.0), (&drawn, 3.0)]) {
        let job = shown(&server, id);
        let seconds = job["wait_seconds"].as_f64().unwrap_or_else(|| panic!("{job}"));
        assert_eq!(job["position"], place);
        assert!((1000.0 * jobs - passed..=1000.0 * jobs).contains(&seconds), "{seconds} of {jobs}");
    }
    // Behind a picture, of which none was ever finished.
    assert_eq!((&shown(&server, &last)["position"], &shown(&server, &last)["wait_seconds"]), (&json!(4), &Value::Null));
    assert_eq!(
        (&shown(&server, &running)["position"], &shown(&server, &running)["wait_seconds"]),
        (&Value::Null, &Value::Null)
    );
    for id in [&first, &drawn, &last] {
        assert_eq!(server.ask("DELETE", &format!("/api/jobs/{id}")).0, 204);
    }
    assert_eq!(shown(&server, &second)["position"], 1);
    assert_eq!(server.end("-TERM").0, Some(0));
    usual(0.01);

    // The one that has its turn takes longer than such jobs did.
    let server = Server::start_with(folder.path(), &["--resume-jobs"]);
    server.wait_for(&running, |job| job["state"] == "running");
    server.wait_for(&second, |job| job["position"] == 1 && job["wait_seconds"].is_null());
}

/// A small disk; unmounted at the end.
struct Disk(TempDir);

impl Disk {
    /// None where this user may not mount.
    fn new(size: &str) -> Option<Self> {
        let place = TempDir::new().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(place.path()).stderr(Stdio::null());
        let is_mounted = mount.status().is_ok_and(|status| status.success());
        if !is_mounted {
            eprintln!("not tried: this user may not mount a small disk");
        }
        is_mounted.then_some(Self(place))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0.path()).status().ok();
    }
}

/// Leaves no byte of the disk free, but in the file that it returns.
fn fill(disk: &Disk) -> std::path::PathBuf {
    let path = disk.0.path().join("of-somebody-else");
    let mut file = std::fs::File::create(&path).unwrap();
    for size in [1 << 20, 4096, 1] {
        let bytes = vec![0; size];
        while std::io::Write::write_all(&mut file, &bytes).is_ok() {}
    }
    path
}

#[test]
fn no_job_begins_without_room_for_it() {
    let Some(disk) = Disk::new("200m") else { return };
    let server = Server::start(disk.0.path());
    let set = text(&server.post("/api/sets", &json!({ "example": "penguin" })), "/id").to_owned();
    let job = server.send("POST", "/api/jobs", &training(&set, 1, &json!({})));
    let photos = server.upload(&format!("/api/sets/{set}/files"), "files", &[("new.png", photo(1))]);
    for (status, refused) in [job, photos] {
        assert_eq!(status, 507, "{refused}");
        assert!(text(&refused, "/error/sentence")
            .ends_with("MB are free on the disk of the data folder; delete jobs, or make room on it"));
    }
    assert_eq!(server.get("/api/jobs"), json!([]));
}

#[test]
fn a_full_disk_is_a_sentence_and_what_is_deleted_makes_room() {
    let Some(disk) = Disk::new("600m") else { return };
    let server = Server::start(disk.0.path());
    let set = subject(&server, 2);
    let id = text(&server.post("/api/jobs", &training(&set, 100_000, &json!({ "checkpointing_steps": 5 }))), "/id")
        .to_owned();
    let path = format!("/api/jobs/{id}");
    server.wait_for(&id, |job| job["progress"]["phase"] == "training" && job["progress"]["done"].as_u64() > Some(1));
    let others = fill(&disk);
    // The training cannot save any more.
    let job = server.wait_until_over(&id);
    assert_eq!(job["state"], "failed", "{job}");
    assert!(text(&job, "/error").to_lowercase().contains("no space left"), "{job}");
    let (status, refused) = server.upload(&format!("/api/sets/{set}/files"), "files", &[("new.png", photo(3))]);
    assert!(status == 507 && text(&refused, "/error/sentence").contains("disk"), "{status} {refused}");
    let (status, refused) = server.send("POST", "/api/jobs", &training(&set, 1, &json!({})));
    assert!(status == 507 && text(&refused, "/error/sentence").contains("disk"), "{status} {refused}");
    assert_eq!(
        (server.get("/api/state")["signed_in"].clone(), server.get(&path)["state"].clone()),
        (json!(true), json!("failed"))
    );
    assert_eq!(server.ask("DELETE", &path).0, 204);
    assert_eq!(server.ask("GET", &path).0, 404);
    std::fs::remove_file(others).unwrap();
    let id = text(&server.post("/api/jobs", &training(&set, 1, &json!({}))), "/id").to_owned();
    assert_eq!(server.wait_until_over(&id)["state"], "finished");
}
