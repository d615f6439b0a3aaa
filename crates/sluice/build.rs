//! Lists the sample documents, so that `sluice demo` carries them.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples");
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut files: Vec<_> = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "md" || ending == "txt"))
        .collect();
    files.sort();
    let mut list = String::from("[\n");
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name != "README.md" {
            let path = fs::canonicalize(&file).unwrap_or_else(|_| file.clone());
            writeln!(list, "    ({name:?}, include_str!({:?})),", path.to_string_lossy())
                .expect("a string takes all");
        }
    }
    list.push(']');
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::write(Path::new(&out).join("samples.rs"), list).expect("the build folder can be written");
}
