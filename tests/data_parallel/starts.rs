//! Ranks that cannot come together, or were not started alike: each says why, and none waits.

use super::dreambooth;
use super::faults::end_of;
use crate::support::{lorabooth_command, photos};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};

/// Rank `rank` of two, as torchrun's variables say it, without a launcher that serves the store.
fn start(rank: usize, address: &str, port: u16, command: &[String]) -> Child {
    let mut started = lorabooth_command(command);
    for (name, value) in [
        ("RANK", rank.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("WORLD_SIZE", "2".to_owned()),
        ("LOCAL_WORLD_SIZE", "2".to_owned()),
        ("MASTER_ADDR", address.to_owned()),
        ("MASTER_PORT", port.to_string()),
    ] {
        started.env(name, value);
    }
    started.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What a rank says that has failed within `seconds`: one line.
fn refusal(child: Child, seconds: u64) -> String {
    let ended = end_of(child, seconds);
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success() && text.trim().lines().count() <= 1, "{}: {text}", ended.status);
    println!("{}", text.trim());
    text
}

fn a_free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_wrong_address_and_a_taken_port_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let command = dreambooth(&folder.path().join("out"), "--timeout 5");
    let said = refusal(start(1, "no-such-machine.invalid", 29_511, &command), 25);
    assert!(
        said.contains("[rank 1] no machine called no-such-machine.invalid") && said.contains("MASTER_ADDR"),
        "{said}"
    );
    // Of an address for documents (RFC 5737): nobody is there.
    let said = refusal(start(1, "203.0.113.1", 29_511, &command), 25);
    assert!(said.contains("[rank 1] cannot reach the other ranks at 203.0.113.1:29511 ("), "{said}");
    let taken = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).unwrap();
    let port = taken.local_addr().unwrap().port();
    let said = refusal(start(0, "127.0.0.1", port, &command), 25);
    assert!(
        said.contains(&format!("another program listens at port {port}")) && said.contains("MASTER_PORT"),
        "{said}"
    );
    // The other one is not there within the timeout: each of them is named.
    for (rank, before, behind) in
        [(0, "rank 1 has not come to 127.0.0.1:", " within "), (1, "cannot reach", "rank 0 must have been")]
    {
        let said = refusal(start(rank, "127.0.0.1", a_free_port(), &command), 25);
        assert!(said.contains(before) && said.contains(behind), "{said}");
    }
    assert!(!folder.path().join("out").exists());
}

#[test]
fn ranks_with_different_options_or_photos_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let both = |first: &str, second: &str| {
        let port = a_free_port();
        let children = [(0, first), (1, second)].map(|(rank, more)| {
            let own: &Path = if rank == 0 { &out } else { Path::new("/nowhere") };
            start(rank, "127.0.0.1", port, &dreambooth(own, more))
        });
        children.map(|child| refusal(child, 60))
    };
    for (first, second, words) in [
        ("", "--learning-rate 0.01", "--learning-rate is 0.001 for rank 0 on "),
        ("", "--checkpointing-steps 3", "--checkpointing-steps is 500 for rank 0 on "),
        ("--seed 1", "--seed 2", "--seed is 1 for rank 0 on "),
        ("", "--validation-prompt sks", "--validation-prompt is not given for rank 0 on "),
    ] {
        let [said, other] = both(first, second);
        assert!(said.contains("the ranks were started with different options") && said.contains(words), "{said}");
        assert!(said.contains("for rank 1 on ") && other.is_empty(), "{said}{other}");
    }
    // The same path, but another folder on the other machine.
    let link = folder.path().join("photos");
    let (mine, theirs) = (photos(5, 0), photos(5, 3));
    let script = "mount --bind \"$0\" \"$1\" && shift && exec \"$@\"";
    std::fs::create_dir(&link).unwrap();
    let port = a_free_port();
    let children: Vec<Child> = [mine, theirs]
        .iter()
        .enumerate()
        .map(|(rank, of_machine)| {
            let command = dreambooth(&out, &format!("--instance-data-dir {}", link.display()));
            let mut started = std::process::Command::new("unshare");
            started
                .args(["--mount", "sh", "-c", script])
                .arg(of_machine)
                .arg(&link)
                .arg(env!("CARGO_BIN_EXE_lorabooth"))
                .args(command);
            for (name, value) in
                [("RANK", rank.to_string()), ("LOCAL_RANK", rank.to_string()), ("MASTER_PORT", port.to_string())]
            {
                started.env(name, value);
            }
            started.envs([("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")]);
            started.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let said: Vec<String> = children.into_iter().map(|child| refusal(child, 60)).collect();
    if said[0].contains("unshare") || said[0].contains("mount") {
        return println!("skipped: nothing can be mounted here");
    }
    assert!(said[0].contains("the ranks have different photos: rank 0 ") && said[0].contains("same files"), "{said:?}");
    assert!(said[1].is_empty(), "{said:?}");
    assert!(!out.exists());
}
