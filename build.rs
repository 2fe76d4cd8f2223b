//! Compiles the C++ shims of `src/libtorch` against the libtorch that torch-sys found, and lets the
//! binary find that libtorch when it runs with no environment set.
use std::path::{Path, PathBuf};

fn main() {
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        panic!("torch-sys told no libtorch folder; run `make setup`, or set LIBTORCH to a libtorch 2.11");
    };
    let lib = PathBuf::from(lib);
    let root = lib.parent().unwrap_or(Path::new("."));
    let shims: Vec<PathBuf> = std::fs::read_dir("src/libtorch")
        .map(|dir| dir.flatten().map(|entry| entry.path()).collect::<Vec<_>>())
        .unwrap_or_default()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ext| ext == "cpp"))
        .collect();
    // Not the folder: a change of Rust alone compiles no C++ again. A new shim has a new module in mod.rs.
    let headers: Vec<PathBuf> =
        ["shim.h", "process_group.h", "cuda_kernels.h", "planned.h", "quiet_registration.h"].map(in_libtorch).into();
    for file in shims.iter().chain(&headers).chain(&[in_libtorch("mod.rs")]) {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let mut compiler = cc::Build::new();
    compiler
        .cpp(true)
        .pic(true)
        .warnings(false)
        .debug(false)
        .flag("-std=c++17")
        .flag("-D_GLIBCXX_USE_CXX11_ABI=1")
        .includes([root.join("include"), root.join("include/torch/csrc/api/include")])
        .include("src/libtorch/gloo_declarations");
    let objects = objects(&compiler, &shims, &headers);
    cc::Build::new().cpp(true).objects(objects).compile("lorabooth_libtorch");
    println!("cargo:rustc-link-search=native={}", lib.display());
    // First a libtorch that is shipped beside the binary, then the one it was built with.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/libtorch/lib");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    run_on_older_systems();
}

fn in_libtorch(name: &str) -> PathBuf {
    Path::new("src/libtorch").join(name)
}

/// The objects of `shims`. Each takes seconds to compile, so those that no change has reached stay as they are.
fn objects(compiler: &cc::Build, shims: &[PathBuf], headers: &[PathBuf]) -> Vec<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let object = |shim: &PathBuf| folder.join(shim.with_extension("o").file_name().unwrap_or_default());
    let changed = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    // The compiler and all that it is told: another libtorch, another way to optimise.
    let (command, told) = (format!("{:?}", compiler.get_compiler()), folder.join("shims.txt"));
    let same = std::fs::read_to_string(&told).is_ok_and(|before| before == command);
    let newest_header = headers.iter().map(|header| changed(header)).max().flatten();
    let fresh = |shim: &&PathBuf| {
        same && changed(&object(shim)).is_some_and(|made| {
            [changed(shim), newest_header].iter().all(|source| source.is_some_and(|source| source < made))
        })
    };
    let stale: Vec<&PathBuf> = shims.iter().filter(|shim| !fresh(shim)).collect();
    for shim in &stale {
        // One that fails to compile is stale the next time too.
        let _ = std::fs::remove_file(object(shim));
    }
    let shared = precompile_what_all_include(compiler, &folder, stale.len());
    let made = compiler.clone().flag("-include").flag(&shared).files(&stale).compile_intermediates();
    // It is large.
    let _ = std::fs::remove_file(shared.with_extension("h.gch"));
    for (shim, made) in std::iter::zip(stale, made) {
        if let Err(error) = std::fs::rename(&made, object(shim)) {
            panic!("{}: {error}", made.display());
        }
    }
    if let Err(error) = std::fs::write(&told, command) {
        panic!("{}: {error}", told.display());
    }
    shims.iter().map(object).collect()
}

/// A header that includes `shim.h`, and beside it, where so many shims are worth it, what the compiler makes of it once for all: ATen's headers
/// are two thirds of what a shim takes to compile. A compiler that cannot use that reads the header.
fn precompile_what_all_include(compiler: &cc::Build, folder: &Path, shims: usize) -> PathBuf {
    let header = folder.join("shared.h");
    let shim = std::path::absolute(in_libtorch("shim.h")).unwrap_or_default();
    if let Err(error) = std::fs::write(&header, format!("#include \"{}\"\n", shim.display())) {
        panic!("{}: {error}", header.display());
    }
    if shims > 3 {
        let mut command = compiler.get_compiler().to_command();
        let _ = command.args(["-x", "c++-header"]).arg(&header).arg("-o").arg(header.with_extension("h.gch")).output();
    }
    header
}

/// Links the program, but no test, so that it runs on every system of manylinux_2_28, whatever this one is.
fn run_on_older_systems() {
    let target =
        ["ARCH", "OS", "ENV"].map(|part| std::env::var(format!("CARGO_CFG_TARGET_{part}")).unwrap_or_default());
    if target != ["x86_64", "linux", "gnu"] {
        return;
    }
    let (c, cpp) = ("packaging/glibc_2_28.c", "packaging/libstdcxx_8.cpp");
    let mut objects = cc::Build::new().pic(true).file(c).compile_intermediates();
    objects.extend(cc::Build::new().cpp(true).pic(true).flag("-std=c++17").file(cpp).compile_intermediates());
    for object in objects {
        println!("cargo:rustc-link-arg-bins={}", object.display());
    }
    let text = std::fs::read_to_string(c).unwrap_or_default();
    for line in text.lines().filter(|line| !line.starts_with("//")) {
        if let Some((name, _)) = line.split_once("__wrap_").and_then(|(_, rest)| rest.split_once('(')) {
            println!("cargo:rustc-link-arg-bins=-Wl,--wrap={name}");
        }
    }
    println!("cargo:rerun-if-changed={c}\ncargo:rerun-if-changed={cpp}");
}
