//! Compiles the contract (`proto/`, with protox: no protoc needed) and the embedded placeholder's init (`src/image/init.c`).

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    compile_protos(&out)?;
    compile_init(&out)
}

fn compile_protos(out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["nspool/v1/pool.proto", "nspool/v1/admin.proto", "nspool/v1/image.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .file_descriptor_set_path(out.join("nspool.v1.bin"))
        // Nothing that prints a request may print this one's secrets.
        .skip_debug(["nspool.v1.RegistryAuth"])
        .compile_fds(descriptors.clone())?;
    // Written by us: with `compile_fds` the path above is where the builder would have asked protoc to write.
    std::fs::write(out.join("nspool.v1.bin"), prost::Message::encode_to_vec(&descriptors))?;
    Ok(())
}

/// One static executable without a libc, for the architecture nspool itself is built for. The flags are in a file of their own because
/// the aarch64 test compiles the same source with a cross compiler.
fn compile_init(out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (source, flags) = ("src/image/init.c", "src/image/init.flags");
    println!("cargo:rerun-if-changed={source}");
    println!("cargo:rerun-if-changed={flags}");
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH")?;
    if !["x86_64", "aarch64"].contains(&arch.as_str()) {
        return Err(format!("the embedded placeholder ({source}) is written for x86_64 and aarch64, not for {arch}").into());
    }
    // None of cc's own flags (they differ between debug and release), so that the same compiler always gives the same bytes.
    let compiler = cc::Build::new().no_default_flags(true).inherit_rustflags(false).try_get_compiler()?;
    let flags = std::fs::read_to_string(flags)?;
    let status = compiler
        .to_command()
        .args(flags.lines().filter(|line| !line.starts_with('#') && !line.is_empty()))
        .arg("-o")
        .arg(out.join("placeholder-init"))
        .arg(source)
        .status()?;
    if !status.success() {
        return Err(format!("the C compiler ({}) could not build {source}: {status}", compiler.path().display()).into());
    }
    Ok(())
}
