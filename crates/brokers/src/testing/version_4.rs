//! RabbitMQ 4 beside the installed one: packages of the next Debian, from the archive that this machine uses, unpacked into
//! a folder that is the root of its processes.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Unpacks into `root` of the folder `$1`, unless that was done before. What was begun and not finished is done anew.
const FETCH: &str = r#"
set -eu
mkdir -p "$1" && cd "$1"
exec 9>lock && flock -w 300 9
[ ! -e root ] || exit 0
from=$(apt-get indextargets --format '$(REPO_URI)' | grep '/debian/$' | head -n 1)
[ -n "$from" ] || { echo "no Debian archive is configured" >&2; exit 1; }
rm -rf new && mkdir -p new/lists/partial new/archives/partial
: > new/status
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from trixie main" > new/sources.list
cat > new/apt.conf <<END
Dir::State "$PWD/new";
Dir::State::status "$PWD/new/status";
Dir::Cache "$PWD/new";
Dir::Etc::sourcelist "$PWD/new/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Install-Recommends "false";
END
export APT_CONFIG="$PWD/new/apt.conf"
apt-get -qq update
apt-get -qq -y --download-only install \
    rabbitmq-server dash bash coreutils sed grep mawk findutils hostname >&2
for part in bin sbin lib lib64; do mkdir -p new/root/usr/$part && ln -s usr/$part new/root/$part; done
for package in new/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C new/root --keep-directory-symlink
done
mkdir -p new/root/dev new/root/proc new/root/tmp new/root/etc
ln -sf mawk new/root/usr/bin/awk
echo '127.0.0.1 localhost' > new/root/etc/hosts
echo 'root:x:0:0::/:/bin/sh' > new/root/etc/passwd
mv new/root root && rm -rf new
"#;

/// Runs what follows with the root `$0`, in which the folder `$HOME` is too.
const ENTER: &str = r#"
set -eu
mount -t tmpfs none "$0/tmp" && mkdir -p "$0$HOME"
mount --rbind "$HOME" "$0$HOME" && mount --rbind /dev "$0/dev" && mount -t proc none "$0/proc"
exec chroot "$0" "$@"
"#;

/// The root of RabbitMQ 4, kept in a folder between runs; or why there is none.
pub(super) fn root(cache: &Path) -> Result<PathBuf, String> {
    let output = |command: &mut Command| command.output().map_err(|error| error.to_string());
    let failed = |what: &str, told: &[u8]| {
        let told = String::from_utf8_lossy(told);
        format!("{what}: {}", told.lines().last().unwrap_or_default())
    };
    let mounts = output(Command::new("unshare").args(["-m", "true"]))?;
    if !mounts.status.success() {
        return Err(failed("it needs a root of its own, which only root may give it", &mounts.stderr));
    }
    let fetched = output(Command::new("/bin/sh").args(["-c", FETCH, "fetch"]).arg(cache))?;
    if !fetched.status.success() {
        return Err(failed("its packages cannot be had", &fetched.stderr));
    }
    Ok(cache.join("root"))
}

/// A command that runs with that root.
pub(super) fn command(root: &Path, program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["-m", "/bin/sh", "-c", ENTER]).arg(root).arg(program);
    command
}
