use super::*;
use std::collections::BTreeMap;

/// A folder for one test, and what is laid out in it.
struct Layout {
    root: PathBuf,
    variables: BTreeMap<&'static str, OsString>,
}

impl Layout {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("lorabooth-find-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        let variables = BTreeMap::from([("HOME", root.join("home").into_os_string())]);
        Self { root, variables }
    }

    /// A `torch` folder of a version.
    fn torch(&self, site: &str, version: &str) -> PathBuf {
        let torch = self.root.join(site).join("torch");
        self.file(&format!("{site}/torch/lib/libtorch_cpu.so"), "");
        self.file(
            &format!("{site}/torch/version.py"),
            &format!("from x import y\n__version__ = '{version}'\ndebug = False\n"),
        );
        torch
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn set(&mut self, name: &'static str, paths: &[&str]) {
        let paths = paths.iter().map(|path| self.root.join(path));
        self.variables.insert(name, std::env::join_paths(paths).unwrap());
    }

    fn find(&self, prefix: &str) -> Result<PathBuf, String> {
        torch(&self.root.join(prefix), &|name| self.variables.get(name).cloned())
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

#[test]
fn torch_is_found_in_the_programs_own_environment() {
    let sites = [
        ("venv", "venv/lib/python3.12/site-packages"),
        ("fedora", "fedora/lib64/python3.13/site-packages"),
        ("debian", "debian/lib/python3.11/dist-packages"),
        ("threads", "threads/lib/python3.14t/site-packages"),
        ("target", "target"),
    ];
    for (prefix, site) in sites {
        let layout = Layout::new(prefix);
        let torch = layout.torch(site, "2.11.0+cu130");
        assert_eq!(layout.find(prefix), Ok(torch), "{prefix}");
    }
}

#[test]
fn another_version_is_passed_over_and_named_where_none_fits() {
    let layout = Layout::new("versions");
    layout.file("venv/pyvenv.cfg", "home = /nowhere/bin\ninclude-system-site-packages = false\n");
    let old = layout.torch("venv/lib/python3.13/site-packages", "2.9.1+cpu");
    let error = layout.find("venv").unwrap_err();
    assert!(error.contains(&format!("found PyTorch 2.9.1+cpu in {}", old.display())), "{error}");
    assert!(error.contains("pip install 'torch==2.11.*'"), "{error}");
    let fits = layout.torch("venv/lib/python3.9/site-packages", "2.11.1");
    assert_eq!(layout.find("venv"), Ok(fits));
    // 2.110 and 2.1 are no 2.11.
    for version in ["2.110.0", "2.1.1"] {
        layout.torch("venv/lib/python3.9/site-packages", version);
        assert!(layout.find("venv").is_err(), "{version}");
    }
}

#[test]
fn a_venv_sees_the_systems_packages_only_where_it_says_so() {
    for (system, places) in [
        ("true", &["base/local/lib/python3.11/dist-packages", "base/lib/python3.11/site-packages"][..]),
        ("false", &[]),
    ] {
        let mut layout = Layout::new(&format!("system-{system}"));
        let home = layout.root.join("base/bin");
        layout.file("base/bin/python3", "");
        layout.set("PATH", &["base/bin"]);
        layout.file(
            "venv/pyvenv.cfg",
            &format!("home = {}\ninclude-system-site-packages = {system}\nversion = 3.11\n", home.display()),
        );
        layout.torch("home/.local/lib/python3.10/site-packages", "2.7.0");
        for place in places {
            let torch = layout.torch(place, "2.11.0");
            assert_eq!(layout.find("venv"), Ok(torch.clone()), "{place}");
            fs::remove_dir_all(torch).unwrap();
        }
        layout.torch("base/lib/python3.11/site-packages", "2.11.0");
        assert_eq!(layout.find("venv").is_ok(), system == "true");
    }
}

#[test]
fn a_user_install_finds_the_torch_of_the_python_on_the_path() {
    let mut layout = Layout::new("user");
    layout.set("PATH", &["empty/bin", "conda/bin"]);
    layout.file("conda/bin/python3", "");
    let shared = layout.torch("conda/lib/python3.12/site-packages", "2.11.0+cu130");
    assert_eq!(layout.find("home/.local"), Ok(shared));
    let own = layout.torch("home/.local/lib/python3.12/site-packages", "2.11.0");
    assert_eq!(layout.find("home/.local"), Ok(own.clone()));
    // And a program in the system's own bin finds the user's.
    assert_eq!(layout.find("usr"), Ok(own));
}

#[test]
fn pythons_own_variables_and_path_files_count() {
    let mut layout = Layout::new("pythonpath");
    let linked = layout.torch("elsewhere", "2.11.0");
    layout.file("venv/pyvenv.cfg", "home = /nowhere/bin\n");
    let line = layout.root.join("elsewhere");
    layout.file(
        "venv/lib/python3.12/site-packages/a.pth",
        &format!("# comment\nimport sys\n{}\n/nowhere\n", line.display()),
    );
    assert_eq!(layout.find("venv"), Ok(linked));
    let first = layout.torch("modules", "2.11.0");
    layout.set("PYTHONPATH", &["nowhere", "modules"]);
    assert_eq!(layout.find("venv"), Ok(first));
}

#[test]
fn a_named_folder_is_taken_or_refused_by_name() {
    let mut layout = Layout::new("named");
    layout.torch("venv/lib/python3.12/site-packages", "2.11.0");
    let named = layout.torch("mine", "2.11.0a0+git1234");
    layout.set(VARIABLE, &["mine/torch"]);
    assert_eq!(layout.find("venv"), Ok(named));
    layout.torch("mine", "2.4.0");
    assert!(layout.find("venv").unwrap_err().contains("LORABOOTH_TORCH names"));
    layout.set(VARIABLE, &["mine"]);
    assert!(layout.find("venv").unwrap_err().contains("not PyTorch's `torch` folder"));
}

#[test]
fn the_program_is_the_launchers_own_version() {
    let layout = Layout::new("program");
    let name = concat!("lorabooth/lorabooth-", env!("CARGO_PKG_VERSION"));
    layout.file("prefix/lib/python3.13/site-packages/lorabooth/lorabooth-0.0.0", "");
    assert_eq!(program(&layout.root.join("prefix")), None);
    for site in ["prefix/lib/python3.12/site-packages", "target"] {
        layout.file(&format!("{site}/{name}"), "");
        let prefix = layout.root.join(site.split('/').next().unwrap());
        assert_eq!(program(&prefix), Some(layout.root.join(site).join(name)));
    }
}
