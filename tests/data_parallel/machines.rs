//! Two network namespaces as two machines: what goes over the wire between them, and what becomes of a run when it is cut.

use super::faults::{assert_whole, end_of, wait_for_steps};
use super::{adapter_bytes, dreambooth};
use crate::support::{lorabooth_ok, read_json};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Two namespaces with a cable between them, until it is dropped.
struct Machines {
    names: [String; 2],
}

fn ip(words: &str) -> bool {
    let output = Command::new("ip").args(words.split_whitespace()).output();
    output.is_ok_and(|output| output.status.success())
}

impl Machines {
    /// None where the system lets nobody make them.
    fn new() -> Option<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let names = ["a", "b"].map(|end| format!("lb{}-{number}{end}", std::process::id()));
        let [a, b] = &names;
        if !ip(&format!("netns add {a}")) {
            println!("skipped: no network namespaces can be made here");
            return None;
        }
        let made = Self { names: names.clone() };
        let lines = [
            format!("netns add {b}"),
            format!("link add wire{a} type veth peer name wire{b}").replace("wirelb", "w"),
            format!("link set w{} netns {a}", &a[2..]),
            format!("link set w{} netns {b}", &b[2..]),
        ];
        let inside = |name: &String, address: &str| {
            let wire = format!("w{}", &name[2..]);
            [
                format!("-n {name} addr add {address}/24 dev {wire}"),
                format!("-n {name} link set {wire} up"),
                format!("-n {name} link set lo up"),
            ]
        };
        let lines = lines.into_iter().chain(inside(a, "10.77.0.1")).chain(inside(b, "10.77.0.2"));
        for line in lines {
            if !ip(&line) {
                println!("skipped: `ip {line}` is not permitted here");
                return None;
            }
        }
        Some(made)
    }

    fn start(&self, rank: usize, command: &[String]) -> Child {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.names[rank], env!("CARGO_BIN_EXE_lorabooth")]).args(command);
        for (name, value) in [
            ("RANK", rank.to_string()),
            ("WORLD_SIZE", "2".to_owned()),
            ("LOCAL_RANK", "0".to_owned()),
            ("LOCAL_WORLD_SIZE", "1".to_owned()),
            ("MASTER_ADDR", "10.77.0.1".to_owned()),
            ("MASTER_PORT", "29555".to_owned()),
            ("OMP_NUM_THREADS", "1".to_owned()),
        ] {
            inside.env(name, value);
        }
        inside.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Bytes that the second machine has sent.
    fn sent(&self) -> u64 {
        let name = &self.names[1];
        let path = format!("/sys/class/net/w{}/statistics/tx_bytes", &name[2..]);
        let output = Command::new("ip").args(["netns", "exec", name, "cat", &path]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }

    fn cut(&self) {
        let name = &self.names[1];
        assert!(ip(&format!("-n {name} link set w{} down", &name[2..])));
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        let _ = self.names.iter().map(|name| ip(&format!("netns del {name}"))).count();
    }
}

fn run(machines: &Machines, out: &Path, other: &Path, more: &str) {
    let children = [(0, out), (1, other)].map(|(rank, out)| machines.start(rank, &dreambooth(out, more)));
    for child in children {
        let ended = end_of(child, 120);
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
}

/// The second machine has a disk of its own: nothing is written there. A step costs the adapter's bytes each way.
#[test]
fn two_machines_train_as_two_processes_do_and_exchange_no_more_than_the_adapter() {
    let Some(machines) = Machines::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let flags = "--lora-r 64 --lora-text-encoder-r 64 --gradient-accumulation-steps 2";
    lorabooth_ok(&dreambooth(&path("here"), &format!("{flags} --processes 2")));
    run(&machines, &path("there"), &path("other"), flags);
    assert_eq!(adapter_bytes(&path("there")), adapter_bytes(&path("here")));
    assert!(!path("other").exists());

    let of_steps = |name: &str, steps: u64| {
        let before = machines.sent();
        run(&machines, &path(name), &path("other"), &format!("{flags} --max-train-steps {steps}"));
        (machines.sent() - before) as f64
    };
    let (few, many) = (of_steps("few", 5), of_steps("many", 45));
    let adapter = 4.0 * read_json(path("few").join("run.json"))["trainable_parameters"].as_f64().unwrap();
    let a_step = (many - few) / 40.0;
    println!(
        "{a_step:.0} bytes a step over the wire, headers and signs of life included; the adapter has {adapter:.0}"
    );
    assert!(a_step > 0.99 * adapter && a_step < 1.1 * adapter, "{a_step} bytes a step, the adapter has {adapter}");
}

#[test]
fn a_cable_that_is_pulled_ends_both_machines_within_the_timeout() {
    let Some(machines) = Machines::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (out, other) = (folder.path().join("out"), folder.path().join("other"));
    let flags = "--max-train-steps 5000 --checkpointing-steps 2 --timeout 6";
    let children = [(0, &out), (1, &other)].map(|(rank, out)| machines.start(rank, &dreambooth(out, flags)));
    wait_for_steps(&out, 5);
    machines.cut();
    for (rank, child) in children.into_iter().enumerate() {
        let ended = end_of(child, 6 + 14);
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(!ended.status.success());
        assert!(text.contains(&format!("rank {}", 1 - rank)) && text.contains("step"), "rank {rank}: {text}");
    }
    assert_whole(&out);
}
