//! Links the kernel image with its own script; the library needs nothing.

fn main() {
    println!("cargo:rerun-if-changed=linker.ld");
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rustc-link-arg-bin=kernel-image=-T{dir}/linker.ld");
}
