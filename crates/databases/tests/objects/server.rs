//! A real S3-compatible server from a package of PyPI, on a free port of this machine, ended with its guard.

#![allow(dead_code, reason = "not every test that uses it uses all of it")]
#![allow(clippy::disallowed_methods, reason = "it is started before there is a runtime")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PACKAGE: &str = "moto[s3,server]==5.1.12";
const START_TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) struct Server {
    process: Child,
    pub(crate) port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It keeps nothing that must be written.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    /// Starts it; or why that cannot be done here.
    pub(crate) fn start() -> Result<Self, String> {
        let program = installed()?;
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        let port = listener.local_addr().map_err(|error| error.to_string())?.port();
        drop(listener);
        let process = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        let server = Self { process, port };
        let begun = Instant::now();
        while server.request("GET", "/").is_none() {
            if begun.elapsed() > START_TIMEOUT {
                return Err("the server did not answer".to_owned());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn make_bucket(&self, name: &str) {
        let answer = self.request("PUT", &format!("/{name}")).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Keys of objects in a bucket, as the server itself lists them.
    pub(crate) fn keys(&self, bucket: &str) -> Vec<String> {
        let listed = self.request("GET", &format!("/{bucket}?list-type=2")).unwrap();
        listed
            .split("<Key>")
            .skip(1)
            .filter_map(|rest| Some(rest.split_once("</Key>")?.0.to_owned()))
            .collect()
    }

    /// Removes everything in a bucket, as somebody else would.
    #[allow(dead_code, reason = "not every test uses every part")]
    pub(crate) fn clear(&self, bucket: &str) {
        for key in self.keys(bucket) {
            let answer = self.request("DELETE", &format!("/{bucket}/{key}")).unwrap();
            assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
        }
    }

    /// Uploads that were begun and neither finished nor given up.
    pub(crate) fn uploads(&self, bucket: &str) -> usize {
        self.request("GET", &format!("/{bucket}?uploads")).unwrap().matches("<UploadId>").count()
    }

    fn request(&self, method: &str, path: &str) -> Option<String> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        // Nobody may remove anything without a name; the signature is not looked at.
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: 0\r\nConnection: close\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x\r\n\r\n",
            self.port
        );
        socket.write_all(head.as_bytes()).ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}

/// The program, installed once into a folder under `target`.
fn installed() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("object-store");
    let (venv, mark) = (folder.join("venv"), folder.join("holds"));
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let lock = std::fs::File::create(folder.join("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    if std::fs::read_to_string(&mark).is_ok_and(|holds| holds == PACKAGE) {
        return Ok(venv.join("bin/moto_server"));
    }
    step(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    let mut pip = Command::new(venv.join("bin/python"));
    step(pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE]))?;
    std::fs::write(&mark, PACKAGE).map_err(|error| error.to_string())?;
    Ok(venv.join("bin/moto_server"))
}

fn step(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("no {command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{PACKAGE} was not installed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
