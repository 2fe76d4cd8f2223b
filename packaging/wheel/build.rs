//! Links the launcher so that it runs on every system of manylinux_2_28, whatever this one is.
use std::path::Path;
use std::process::Command;

fn main() {
    let (shims, out) = ("../glibc_2_28.c", std::env::var("OUT_DIR").unwrap_or_default());
    let text = std::fs::read_to_string(shims).unwrap_or_default();
    for object in cc::Build::new().pic(true).file(shims).compile_intermediates() {
        println!("cargo:rustc-link-arg-bins={}", object.display());
    }
    for line in text.lines().filter(|line| !line.starts_with("//")) {
        if let Some((name, _)) = line.split_once("__wrap_").and_then(|(_, rest)| rest.split_once('(')) {
            println!("cargo:rustc-link-arg-bins=-Wl,--wrap={name}");
        }
    }
    // Before 2.34 threads and the loader were libraries of their own, which newer systems can load but not link: name them.
    println!("cargo:rustc-link-arg-bins=-Wl,--push-state,--no-as-needed");
    for name in ["libpthread.so.0", "libdl.so.2"] {
        let stub = Path::new(&out).join(name);
        let soname = format!("-Wl,-soname,{name}");
        let arguments = ["-shared", "-nostdlib", &soname, "-x", "c", "/dev/null", "-o"];
        let made = Command::new("cc").args(arguments).arg(&stub).status();
        assert!(made.is_ok_and(|status| status.success()), "cc cannot make {}", stub.display());
        println!("cargo:rustc-link-arg-bins={}", stub.display());
    }
    println!("cargo:rustc-link-arg-bins=-Wl,--pop-state");
    println!("cargo:rerun-if-changed={shims}");
}
