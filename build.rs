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
    for file in shims
        .iter()
        .map(|path| path.display().to_string())
        .chain(["shim.h", "process_group.h", "planned.h", "cuda_kernels.h", "mod.rs"].map(in_libtorch))
    {
        println!("cargo:rerun-if-changed={file}");
    }
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false)
        .debug(false)
        .flag("-std=c++17")
        .flag("-D_GLIBCXX_USE_CXX11_ABI=1")
        .includes([root.join("include"), root.join("include/torch/csrc/api/include")])
        .include("src/libtorch/gloo_declarations")
        .files(shims)
        .compile("lorabooth_libtorch");
    println!("cargo:rustc-link-search=native={}", lib.display());
    // First a libtorch that is shipped beside the binary, then the one it was built with.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/libtorch/lib");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    run_on_older_systems();
}

fn in_libtorch(name: &str) -> String {
    format!("src/libtorch/{name}")
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
