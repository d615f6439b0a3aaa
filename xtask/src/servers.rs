//! Real servers that tests start themselves: put in place when they are missing and that can be done without asking.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

const RABBITMQ: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
/// Debian asks this program whether a package may start its service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs what is missing. Where that cannot be done, tests list what they leave out by name.
pub(crate) fn prepare() {
    if std::env::var_os("SLUICE_TEST_AMQP_URL").is_some() || Path::new(RABBITMQ).exists() {
        return;
    }
    if let Err(error) = install("rabbitmq-server") {
        println!(
            "rabbitmq-server is not there and was not installed ({error:#}): its cases are ignored, by name"
        );
    }
}

fn install(package: &str) -> Result<()> {
    if !is_root() || !Path::new("/usr/bin/apt-get").exists() {
        bail!("that takes root and apt-get");
    }
    println!("── installing {package} for the tests; its service is not started");
    let _policy = NoServices::hold()?;
    apt(&["update"])?;
    apt(&["install", "-y", "--no-install-recommends", package])
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn apt(args: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.arg("-q").args(args).env("DEBIAN_FRONTEND", "noninteractive");
    crate::run(command)
}

/// Keeps packages from starting services, until dropped. A policy that is there already stays as it is.
struct NoServices {
    is_ours: bool,
}

impl NoServices {
    fn hold() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { is_ours: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("writing {POLICY}"))?;
        let held = Self { is_ours: true };
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {POLICY} a program"))?;
        Ok(held)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.is_ours {
            // Left behind, it would keep services from starting after later installs; but it can only fail if it is gone.
            let _ = fs::remove_file(POLICY);
        }
    }
}
