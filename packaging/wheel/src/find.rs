//! Where the program and PyTorch lie, by the folders in which Python itself looks for packages.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// The release series whose libtorch the program was built with: its C++ symbols are those of no other.
const SERIES: &str = "2.11.";
/// Names an installed `torch` folder where none is found by itself.
const VARIABLE: &str = "LORABOOTH_TORCH";

/// An environment variable by its name.
pub type Variable<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The program that was installed together with the launcher under `prefix`; its name has the version, since two Pythons can share one prefix.
pub fn program(prefix: &Path) -> Option<PathBuf> {
    let name = concat!("lorabooth/lorabooth-", env!("CARGO_PKG_VERSION"));
    own_sites(prefix).into_iter().map(|site| site.join(name)).find(|path| path.is_file())
}

/// The `torch` folder that fits, for a program installed under `prefix`: the first of the right version in Python's order.
pub fn torch(prefix: &Path, variable: Variable) -> Result<PathBuf, String> {
    if let Some(named) = variable(VARIABLE).map(PathBuf::from) {
        return match version(&named) {
            Some(version) if version.starts_with(SERIES) => Ok(named),
            Some(version) => {
                Err(format!("{VARIABLE} names {}, PyTorch {version}, but lorabooth needs {SERIES}*", named.display()))
            }
            None => Err(format!("{VARIABLE} names {}, which is not PyTorch's `torch` folder", named.display())),
        };
    }
    let mut others = Vec::new();
    for site in sites(prefix, variable) {
        let torch = site.join("torch");
        match version(&torch) {
            Some(version) if version.starts_with(SERIES) => return Ok(torch),
            Some(version) => others.push(format!("PyTorch {version} in {}", torch.display())),
            None => {}
        }
    }
    let found = if others.is_empty() { "found no PyTorch".to_owned() } else { format!("found {}", others.join(", ")) };
    Err(format!(
        "lorabooth runs on PyTorch {SERIES}* but {found}; run `pip install 'torch=={SERIES}*'` in the environment of lorabooth, \
         or set {VARIABLE} to an installed `torch` folder"
    ))
}

/// The version of the `torch` folder, if it is one with libtorch in it.
fn version(torch: &Path) -> Option<String> {
    if !torch.join("lib/libtorch_cpu.so").exists() {
        return None;
    }
    let text = fs::read_to_string(torch.join("version.py")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("__version__"))?;
    line.split(['\'', '"']).nth(1).map(str::to_owned)
}

/// Folders of packages, each once, in the order in which they count.
fn sites(prefix: &Path, variable: Variable) -> Vec<PathBuf> {
    let paths = |name: &str| {
        let value = variable(name).unwrap_or_default();
        std::env::split_paths(&value).filter(|path| path.is_absolute()).collect::<Vec<_>>()
    };
    let mut roots = paths("PYTHONPATH");
    roots.extend(own_sites(prefix));
    let user =
        variable("PYTHONUSERBASE").or_else(|| Some(Path::new(&variable("HOME")?).join(".local").into_os_string()));
    let user: Vec<PathBuf> = user.iter().flat_map(|user| packages(Path::new(user))).collect();
    let isolated = match base_of_venv(prefix) {
        // A venv without the system's packages sees nothing else.
        Some(Base { system: false, .. }) => true,
        Some(Base { folder, .. }) => {
            roots.extend(user.iter().cloned());
            roots.extend(installed(&folder));
            false
        }
        None => false,
    };
    if !isolated {
        roots.extend(user);
        let pythons = paths("PATH").into_iter().filter(|bin| bin.join("python3").exists());
        roots.extend(pythons.filter_map(|bin| bin.parent().map(Path::to_owned)).flat_map(|prefix| installed(&prefix)));
        roots.extend(["/usr/local", "/usr"].iter().flat_map(|prefix| packages(Path::new(prefix))));
    }
    // `lib64` is often a link to `lib`.
    let mut seen = BTreeSet::new();
    let all = roots.into_iter().flat_map(|root| std::iter::once(root.clone()).chain(path_files(&root)));
    all.filter(|site| fs::canonicalize(site).is_ok_and(|real| seen.insert(real))).collect()
}

/// Package folders of the prefix itself; that of `pip install --target` is the prefix.
fn own_sites(prefix: &Path) -> Vec<PathBuf> {
    std::iter::once(prefix.to_owned()).chain(packages(prefix)).collect()
}

/// The Python that a venv was made from.
struct Base {
    folder: PathBuf,
    system: bool,
}

/// What `pyvenv.cfg` says, if `prefix` is a venv.
fn base_of_venv(prefix: &Path) -> Option<Base> {
    let text = fs::read_to_string(prefix.join("pyvenv.cfg")).ok()?;
    let value = |key: &str| {
        let mut pairs = text.lines().filter_map(|line| line.split_once('='));
        pairs.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
    };
    let folder = value("home").and_then(|home| Path::new(&home).parent().map(Path::to_owned)).unwrap_or_default();
    let system = value("include-system-site-packages").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    Some(Base { folder, system })
}

/// Package folders of a Python installed under `prefix`; Debian keeps pip's under `local`.
fn installed(prefix: &Path) -> Vec<PathBuf> {
    [prefix.join("local"), prefix.to_owned()].iter().flat_map(|prefix| packages(prefix)).collect()
}

/// Package folders of each Python version under `prefix`, the newest first.
fn packages(prefix: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for lib in ["lib", "lib64"] {
        let entries = fs::read_dir(prefix.join(lib)).into_iter().flatten().flatten();
        let named = entries.filter_map(|entry| {
            let minor = entry.file_name().to_str()?.strip_prefix("python3")?.trim_start_matches('.').to_owned();
            // Debian's own packages lie in `python3`, the free-threaded build's in `python3.14t`.
            Some((minor.trim_end_matches('t').parse::<u32>().unwrap_or(0), entry.path()))
        });
        found.extend(named);
    }
    found.sort_by(|(a, a_path), (b, b_path)| b.cmp(a).then_with(|| a_path.cmp(b_path)));
    found.into_iter().flat_map(|(_, lib)| [lib.join("site-packages"), lib.join("dist-packages")]).collect()
}

/// Folders that the `.pth` files of a package folder add to it.
fn path_files(site: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(site).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "pth")).collect();
    files.sort();
    let text = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect::<Vec<_>>().join("\n");
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with(['#']));
    let lines = lines.filter(|line| !line.starts_with("import ") && !line.starts_with("import\t"));
    lines.map(|line| site.join(line)).filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
#[path = "find_tests.rs"]
mod tests;
