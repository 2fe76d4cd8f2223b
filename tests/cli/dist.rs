//! What `make dist` makes, tried in empty folders without one variable set: the folder, the wheel, what stays when they go.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

#[path = "../../packaging/wheel/src/find.rs"]
#[allow(dead_code, missing_docs, reason = "the launcher's module, for its unit tests")]
mod find;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use tempfile::{tempdir, TempDir};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where the packages of this build lie; made once.
static DIST: LazyLock<PathBuf> = LazyLock::new(|| {
    let own = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let out = own.join("dist");
    let mut packing = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/dist.sh"));
    packing.arg(env!("CARGO_BIN_EXE_lorabooth")).arg(&out);
    packing.env("LORABOOTH_DIST_LEVEL", "1").env("LORABOOTH_LAUNCHER_TARGET", own.join("launcher"));
    run(packing);
    out
});

/// The Python of the reference libraries, whose PyTorch the wheel runs on.
static REFERENCE: LazyLock<PathBuf> = LazyLock::new(|| {
    let named = std::env::var_os("LORABOOTH_PYTHON").map(PathBuf::from);
    named.unwrap_or_else(|| cache().join("venv/bin/python"))
});

fn cache() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    cache.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap()).join(".cache")).join("lorabooth")
}

/// Runs a command; its standard output. Panics with what it said if it fails.
fn run(mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let [out, error] = texts(&output);
    assert!(output.status.success(), "{command:?} ended with {}:\n{out}{error}", output.status);
    out
}

fn texts(output: &Output) -> [String; 2] {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

/// A program with an empty environment, but for a home that is a folder of its own.
fn alone(program: &Path, args: &[&str], home: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(args).env_clear().env("HOME", home).env("PATH", "/usr/bin:/bin").current_dir(home);
    command
}

/// All paths below a folder, but for Python's caches.
fn below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(next).unwrap().map(Result::unwrap).filter(|entry| entry.file_name() != "__pycache__")
        {
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// The one package whose name ends so.
fn package(end: &str) -> PathBuf {
    let files = fs::read_dir(&*DIST).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.to_str().unwrap().ends_with(end)).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

/// The folder, unpacked into a folder of its own.
fn unpacked() -> (TempDir, PathBuf) {
    let place = tempdir().unwrap();
    let name = format!("lorabooth-{VERSION}-linux-x86_64");
    let script =
        "import sys, zstandard; zstandard.ZstdDecompressor().copy_stream(open(sys.argv[1], 'rb'), sys.stdout.buffer)";
    let unpack = format!("set -o pipefail; \"$0\" -c \"{script}\" \"$1\" | tar -x -C \"$2\"");
    let mut tar = Command::new("bash");
    let tools = std::env::var_os("LORABOOTH_TOOLS").map_or_else(|| cache().join("packaging"), PathBuf::from);
    tar.args(["-c", &unpack]).arg(tools.join("bin/python")).arg(package(&format!("{name}.tar.zst"))).arg(place.path());
    run(tar);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    let folder = place.path().join(name);
    (place, folder)
}

/// A short demo leaves its results in the folder where it runs, and nothing in the home.
fn demo_leaves_its_folder_alone(program: &Path) {
    let (home, folder) = (tempdir().unwrap(), tempdir().unwrap());
    let mut demo = alone(program, &["demo", "--device", "cpu", "--max-train-steps", "2"], home.path());
    demo.current_dir(folder.path());
    run(demo);
    let made: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(made, ["lorabooth-demo"]);
    let sheet = image::open(folder.path().join("lorabooth-demo/contact-sheet.png")).unwrap();
    assert!(sheet.width() > 1000);
    assert_eq!(below(home.path()), BTreeSet::new());
}

#[test]
fn the_folder_runs_wherever_it_lies_and_is_all_there_is_to_remove() {
    let (place, folder) = unpacked();
    let libraries: BTreeSet<_> = below(&folder.join("lib"));
    let names: Vec<_> = libraries.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert!(["libc10.so", "libgomp.so.1", "libtorch_cpu.so"].iter().all(|name| names.contains(name)), "{names:?}");
    assert!(names.iter().all(|name| !name.contains("torch_cuda") && !name.contains("python")), "{names:?}");

    // Elsewhere, beside a libtorch that is none.
    let (home, moved, other) = (tempdir().unwrap(), place.path().join("moved here"), place.path().join("other"));
    fs::rename(&folder, &moved).unwrap();
    fs::create_dir(&other).unwrap();
    fs::write(other.join("libtorch_cpu.so"), "not a library").unwrap();
    let program = moved.join("lorabooth");
    let mut doctor = alone(&program, &["doctor"], home.path());
    doctor.env("LD_LIBRARY_PATH", &other);
    let said = run(doctor);
    assert!(said.contains(&*moved.join("lib/libtorch_cpu.so").to_string_lossy()), "{said}");
    demo_leaves_its_folder_alone(&program);
    assert_eq!(below(home.path()), BTreeSet::new());
}

#[test]
fn the_folder_needs_the_c_and_cxx_libraries_of_a_system_and_nothing_else() {
    let namespaces = Command::new("unshare").args(["--map-root-user", "--mount", "true"]).output();
    if !namespaces.is_ok_and(|output| output.status.success()) {
        eprintln!("not tried: this system lets nobody make a namespace, which an empty root folder takes");
        return;
    }
    let (place, folder) = unpacked();
    let root = place.path().join("root");
    for name in ["lib64", "lib/x86_64-linux-gnu", "proc", "home", "tmp"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let list = Command::new("ldconfig").arg("-p").env("PATH", "/usr/sbin:/sbin:/usr/bin").output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    for name in ["c", "m", "dl", "rt", "util", "pthread", "gcc_s", "stdc++"] {
        let line =
            list.lines().find(|line| line.trim().starts_with(&format!("lib{name}.so.")) && line.contains("x86-64"));
        let path = Path::new(line.unwrap_or_else(|| panic!("no lib{name}")).split("=> ").nth(1).unwrap());
        fs::copy(path, root.join("lib/x86_64-linux-gnu").join(path.file_name().unwrap())).unwrap();
    }
    fs::copy("/lib64/ld-linux-x86-64.so.2", root.join("lib64/ld-linux-x86-64.so.2")).unwrap();
    fs::rename(folder, root.join("opt")).unwrap();
    let enter = "mount --rbind /proc \"$0/proc\" && exec chroot \"$0\" /opt/lorabooth doctor --json";
    let mut doctor = Command::new("unshare");
    doctor.args(["--map-root-user", "--mount", "sh", "-c", enter]).arg(&root);
    doctor.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/home");
    let report: serde_json::Value = serde_json::from_str(run(doctor).trim()).unwrap();
    assert!(report["threads"].as_u64().unwrap() > 0 && report["cuda_loaded"] == false, "{report:#}");
}

#[test]
fn licences_of_all_that_is_inside_go_along() {
    let (_place, folder) = unpacked();
    let text = |name: &str| {
        fs::read_to_string(folder.join("licences").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    assert!(
        text("LICENSE-MIT").contains("Permission is hereby granted")
            && text("LICENSE-APACHE").contains("Apache License")
    );
    assert!(text("libtorch-LICENSE").contains("PyTorch") && text("libtorch-NOTICE").len() > 1000);
    assert!(
        text("libgomp-LICENSE").contains("GCC RUNTIME LIBRARY EXCEPTION")
            && text("mkl-LICENSE").contains("Intel Simplified")
    );
    for library in below(&folder.join("lib")) {
        let name = library.file_name().unwrap().to_str().unwrap().to_owned();
        let licence = match name.split('.').next().unwrap() {
            "libtorch_cpu" | "libc10" => "libtorch-LICENSE",
            "libgomp" => "libgomp-LICENSE",
            "libcudart" => "nvidia-cuda-runtime-LICENSE",
            "libcupti" => "nvidia-cuda-cupti-LICENSE",
            _ => panic!("no licence for {name}"),
        };
        assert!(text(licence).len() > 1000, "{licence}");
    }
    let third = text("THIRD-PARTY.txt");
    for crates in ["tch 0.24", "safetensors 0.", "tokenizers 0.", "torch-sys 0.24"] {
        let mut lines = third.lines().filter(|line| line.starts_with(crates));
        assert!(lines.next().is_some_and(|line| line.contains("MIT") || line.contains("Apache")), "{crates}");
    }
    // A crate that ships no text has its authors in the usual one.
    assert!(third.contains("Copyright (c) Laurent Mazare"), "torch-sys has no holder");
}

/// A venv with the reference libraries' PyTorch in it.
fn venv(place: &Path, more: &[&str]) -> PathBuf {
    let venv = place.join("venv");
    let mut make = Command::new(base_python());
    make.args(["-m", "venv"]).args(more).arg(&venv);
    run(make);
    symlink(reference_torch(), site(&venv).join("torch")).unwrap();
    venv
}

/// The folder of packages in a prefix.
fn site(prefix: &Path) -> PathBuf {
    let libs = fs::read_dir(prefix.join("lib")).unwrap().map(|entry| entry.unwrap().path().join("site-packages"));
    libs.into_iter().find(|path| path.is_dir()).unwrap()
}

fn reference_torch() -> PathBuf {
    site(REFERENCE.parent().unwrap().parent().unwrap()).join("torch")
}

/// The Python that the reference venv was made from.
fn base_python() -> PathBuf {
    let mut ask = Command::new(&*REFERENCE);
    ask.args(["-c", "import sys; print(sys._base_executable)"]);
    PathBuf::from(run(ask).trim())
}

/// pip, which asks no registry: only what is needed from the wheel itself.
fn pip(python: &Path, args: &[&str], home: &Path) {
    let mut pip = alone(python, &["-m", "pip", "--disable-pip-version-check", "-q"], home);
    pip.args(args).env("PIP_BREAK_SYSTEM_PACKAGES", "1").env("PIP_ROOT_USER_ACTION", "ignore");
    if args[0] == "install" {
        pip.args(["--no-deps", "--no-index"]).arg(package(".whl"));
    }
    run(pip);
}

#[test]
fn the_wheel_runs_on_the_venvs_torch_with_its_cuda_part_and_leaves_nothing() {
    let wheel = package(".whl");
    let name = wheel.file_name().unwrap().to_str().unwrap();
    assert_eq!(name, format!("lorabooth-{VERSION}-py3-none-manylinux_2_28_x86_64.whl"));
    let (place, home) = (tempdir().unwrap(), tempdir().unwrap());
    let venv = venv(place.path(), &[]);
    let (python, program, before) = (venv.join("bin/python"), venv.join("bin/lorabooth"), below(&venv));
    pip(&python, &["install"], home.path());
    let metadata = site(&venv).join(format!("lorabooth-{VERSION}.dist-info/METADATA"));
    assert!(fs::read_to_string(metadata).unwrap().contains("Requires-Dist: torch==2.11.*"));

    let said = run(alone(&program, &["doctor"], home.path()));
    let libtorch = fs::canonicalize(reference_torch()).unwrap().join("lib/libtorch_cpu.so");
    assert!(said.contains(&*libtorch.to_string_lossy()), "{said}");
    let no_driver = !Path::new("/dev/nvidiactl").exists();
    let cuda = if no_driver { "CUDA part was loaded, but this machine has no NVIDIA driver" } else { "cuda:0" };
    assert!(said.contains(cuda), "{said}");
    assert!(run(alone(&program, &["--version"], home.path())).contains(VERSION));
    demo_leaves_its_folder_alone(&program);

    pip(&python, &["uninstall", "-y", "lorabooth"], home.path());
    assert_eq!(below(&venv), before);
}

#[test]
fn the_wheel_finds_torch_in_user_and_target_installs_and_below_a_venv() {
    let place = tempdir().unwrap();
    let home = place.path().join("home");
    fs::create_dir(&home).unwrap();
    let runs = |program: &Path| {
        let said = run(alone(program, &["doctor"], &home));
        assert!(said.contains("libtorch_cpu.so"), "{said}");
    };
    let python = base_python();

    pip(&python, &["install", "--user"], &home);
    let user = home.join(".local");
    let program = user.join("bin/lorabooth");
    let output = alone(&program, &["doctor"], &home).env("PATH", "/nowhere").output().unwrap();
    let [_, error] = texts(&output);
    if !output.status.success() {
        assert!(output.status.code() == Some(1) && error.trim().lines().count() == 1, "{error}");
        assert!(error.contains("pip install 'torch==2.11.*'"), "{error}");
    }
    symlink(reference_torch(), site(&user).join("torch")).unwrap();
    runs(&program);

    // A venv that sees the user's and the system's packages.
    let venv = place.path().join("venv");
    let mut make = Command::new(&python);
    make.args(["-m", "venv", "--system-site-packages"]).arg(&venv);
    run(make);
    pip(&venv.join("bin/python"), &["install", "--ignore-installed"], &home);
    runs(&venv.join("bin/lorabooth"));

    let target = place.path().join("target");
    pip(&python, &["install", "--target", target.to_str().unwrap()], &home);
    symlink(reference_torch(), target.join("torch")).unwrap();
    runs(&target.join("bin/lorabooth"));

    fs::remove_file(site(&user).join("torch")).unwrap();
    pip(&python, &["uninstall", "-y", "lorabooth"], &home);
    let left = below(&home);
    assert!(left.iter().all(|path| !path.to_string_lossy().contains("lorabooth")), "{left:?}");
}

#[test]
fn the_dockerfile_takes_the_files_that_are_made() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("Dockerfile")).unwrap();
    let copied: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("COPY dist/")?.split(' ').next()).collect();
    assert_eq!(copied.len(), 2);
    for pattern in copied {
        let (start, end) = pattern.split_once('*').unwrap();
        let name = package(end).file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.starts_with(start), "{name} is not {pattern}");
    }
    // What the last image runs is where the folder's own layout puts it.
    let (_place, folder) = unpacked();
    assert!(
        text.contains("--strip-components=1")
            && text.contains("ENV PATH=/opt/lorabooth:")
            && folder.join("lorabooth").is_file()
    );
}
