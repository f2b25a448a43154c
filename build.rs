//! Compiles the contract (`proto/`, with protox: no protoc needed) and the embedded placeholder's init (`src/image/init.c`).

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    compile_protos(&out)
}

fn compile_protos(out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["nspool/v1/pool.proto", "nspool/v1/admin.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().file_descriptor_set_path(out.join("nspool.v1.bin")).compile_fds(descriptors.clone())?;
    // Written by us: with `compile_fds` the path above is where the builder would have asked protoc to write.
    std::fs::write(out.join("nspool.v1.bin"), prost::Message::encode_to_vec(&descriptors))?;
    Ok(())
}
