//! A public server, of which each visitor sees their own part.

use super::client::{photo, text, training, Server};
use crate::support::push_hub::{HubServer, TOKEN};
use serde_json::{json, Value};

/// A visitor by their cookie.
pub struct Visitor<'a> {
    pub server: &'a Server,
    pub cookie: String,
}

impl<'a> Visitor<'a> {
    pub fn new(server: &'a Server) -> Self {
        let response = server.request("GET", "/api/state").call().unwrap();
        let cookie = response.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        Self { server, cookie }
    }

    pub fn send(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let request = self.server.request(method, path).set("cookie", &self.cookie);
        let result = match body {
            Some(body) => request.set("content-type", "application/json").send_string(&body.to_string()),
            None => request.call(),
        };
        let response = match result {
            Ok(response) | Err(ureq::Error::Status(_, response)) => response,
            Err(error) => panic!("{error}"),
        };
        let status = response.status();
        (status, serde_json::from_str(&response.into_string().unwrap_or_default()).unwrap_or(Value::Null))
    }

    pub fn get(&self, path: &str) -> Value {
        self.send("GET", path, None).1
    }

    pub fn set_of(&self, count: usize) -> Value {
        let (_, set) = self.send("POST", "/api/sets", Some(&json!({})));
        let photos: Vec<(&str, Vec<u8>)> = (0..count).map(|index| ("a.png", photo(1 + index % 6))).collect();
        let (body, kind) = super::client::form("files", &photos);
        let path = format!("/api/sets/{}/files", text(&set, "/id"));
        let request = self.server.request("POST", &path).set("cookie", &self.cookie).set("content-type", &kind);
        serde_json::from_str(&request.send_bytes(&body).unwrap().into_string().unwrap()).unwrap()
    }
}

#[test]
fn visitors_see_nothing_of_each_other_and_their_limits_hold() {
    let folder = tempfile::tempdir().unwrap();
    let server =
        Server::start_with(folder.path(), &["--public", "--max-photos", "2", "--max-steps", "5", "--max-jobs", "2"]);
    let (anna, berta) = (Visitor::new(&server), Visitor::new(&server));
    let state = anna.get("/api/state");
    assert_eq!((&state["public"], &state["limits"]["max_photos"]), (&json!(true), &json!(2)));
    let set = anna.set_of(3);
    assert_eq!((set["photos"].as_array().unwrap().len(), set["refused"].as_array().unwrap().len()), (2, 1));
    let set = text(&set, "/id");
    let train = |steps: u64| anna.send("POST", "/api/jobs", Some(&training(set, steps, &json!({}))));
    let (status, refused) = train(6);
    assert_eq!((status, text(&refused, "/error/field")), (422, "max_train_steps"));
    let (_, model) = anna.send("POST", "/api/jobs", Some(&training(set, 1, &json!({ "model": "owner/name" }))));
    assert_eq!(text(&model, "/error/field"), "model");
    let (status, job) = train(3);
    assert_eq!(status, 201, "{job}");
    let id = text(&job, "/id").to_owned();
    while anna.get(&format!("/api/jobs/{id}"))["state"] != "finished" {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let photo = text(&anna.get(&format!("/api/sets/{set}"))["photos"][0], "/url").to_owned();
    assert_eq!(anna.send("GET", &photo, None).0, 200);
    for path in [
        format!("/api/jobs/{id}"),
        format!("/api/jobs/{id}/metrics"),
        format!("/api/sets/{set}"),
        photo,
        format!("/api/adapters/{id}/download"),
    ] {
        assert_eq!(berta.send("GET", &path, None).0, 404, "{path}");
    }
    for (method, path) in [
        ("DELETE", format!("/api/jobs/{id}")),
        ("DELETE", format!("/api/adapters/{id}")),
        ("POST", format!("/api/jobs/{id}/stop")),
    ] {
        assert_eq!(berta.send(method, &path, None).0, 404, "{path}");
    }
    let (status, _) = berta.send("POST", "/api/jobs", Some(&training(set, 1, &json!({}))));
    assert_eq!(status, 404);
    assert_eq!((berta.get("/api/jobs"), berta.get("/api/adapters")), (json!([]), json!([])));
    assert_eq!(anna.get("/api/adapters").as_array().unwrap().len(), 1);
    assert_eq!(anna.send("POST", "/api/visitor/delete", None).0, 204);
    assert_eq!((anna.get("/api/jobs"), anna.get("/api/adapters")), (json!([]), json!([])));
    for left in ["sets", "runs", "inputs", "pictures"] {
        assert!(std::fs::read_dir(server.data.join(left)).unwrap().next().is_none(), "{left}");
    }
}

#[test]
fn a_visitor_pushes_with_a_token_of_their_own_and_not_with_the_servers() {
    let (folder, hub) = (tempfile::tempdir().unwrap(), HubServer::start());
    let environment = [("HF_ENDPOINT", hub.address.as_str()), ("HF_HUB_OFFLINE", "0"), ("HF_TOKEN", TOKEN)];
    let server = Server::start_in(folder.path(), &["--public"], &environment);
    let visitor = Visitor::new(&server);
    let set = visitor.set_of(1);
    let (_, job) = visitor.send("POST", "/api/jobs", Some(&training(text(&set, "/id"), 1, &json!({}))));
    let id = text(&job, "/id").to_owned();
    let wait = |id: &str| loop {
        let job = visitor.get(&format!("/api/jobs/{id}"));
        if !["queued", "running"].contains(&text(&job, "/state")) {
            break job;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    };
    assert_eq!(wait(&id)["state"], "finished");
    let path = format!("/api/adapters/{id}/push");
    let (status, refused) = visitor.send("POST", &path, Some(&json!({ "repo": "me/dog" })));
    assert_eq!((status, text(&refused, "/error/field")), (422, "token"), "{refused}");
    let (_, pushed) = visitor.send("POST", &path, Some(&json!({ "repo": "me/dog", "token": "hf_of_the_visitor" })));
    let job = wait(text(&pushed, "/id"));
    assert!(text(&job, "/error").contains("does not take this token"), "{job}");
    assert!(hub.kept().asked.iter().all(|asked| !asked.headers["authorization"].contains(TOKEN)));
    let (status, _) = Visitor::new(&server).send("POST", &path, Some(&json!({ "repo": "me/dog", "token": TOKEN })));
    assert_eq!(status, 404);
}

#[test]
fn what_a_client_without_a_cookie_made_is_deleted_by_its_session() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_with(folder.path(), &["--public"]);
    let functions = server.get("/config")["dependencies"].clone();
    let generate = functions.as_array().unwrap().iter().find(|function| function["api_name"] == "generate").unwrap();
    let call = json!({ "data": ["a bird", "", 1, "", 1, null, 5], "fn_index": generate["id"], "session_hash": "mine" });
    server.post("/gradio_api/queue/join", &call);
    let told = server.request("GET", "/gradio_api/queue/data?session_hash=mine").call().unwrap().into_string().unwrap();
    assert!(told.contains("\"success\":true"), "{told}");
    let pictures = || std::fs::read_dir(server.data.join("pictures")).unwrap().count();
    assert_eq!(pictures(), 1);
    let delete = |body: &Value| server.send("POST", "/api/visitor/delete", body).0;
    assert_eq!(Visitor::new(&server).send("POST", "/api/visitor/delete", None).0, 204);
    assert_eq!((delete(&json!({})), delete(&json!({ "session_hash": "another" })), pictures()), (204, 204, 1));
    assert_eq!((delete(&json!({ "session_hash": "mine" })), pictures()), (204, 0));
    assert_eq!(delete(&json!({ "session": "mine" })), 400);
}
