//! Which key a command sends, and to whom.
//!
//! A key that a person names (`--token-file`, `TRUSTGRAPH_TOKEN`) goes to the address that the person names. The admin key
//! that lies in the data folder was named by nobody: an address is easily another than one thinks, and another user of
//! the machine may listen where the server listened yesterday. So it is sent only to a loopback address, and only after
//! the server there has proved that it knows the key ([`sluice_iam::proof`]); anything else takes a named key.

use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use reqwest::Url;
use reqwest::header::HeaderValue;
use tokio::sync::OnceCell;
use url::Host;

use crate::cli::Target;
use crate::exit::Told;

/// How long a loopback address may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The variable that names a key.
const TOKEN: &str = "TRUSTGRAPH_TOKEN";

/// The key of a connection to one gateway.
#[derive(Clone)]
pub(crate) enum Key {
    /// There is none.
    None,
    /// A person named it.
    Named(String),
    /// There is one in the data folder, which is not for this address.
    Elsewhere(PathBuf),
    /// The one of the data folder, for a server on this machine that still has to prove itself.
    Local(Arc<Local>),
}

/// The admin key of a data folder.
pub(crate) struct Local {
    pub(crate) key: String,
    pub(crate) file: PathBuf,
    /// The server's address, as it is dialled.
    pub(crate) address: SocketAddr,
    /// Whether the key is sent, once that is settled: a server that asks for no key gets none.
    pub(crate) is_sent: OnceCell<bool>,
}

impl Key {
    /// The key for a gateway that is dialled at `local`, or elsewhere.
    pub(crate) fn find(
        target: &Target,
        folder: Option<&Path>,
        local: Option<SocketAddr>,
    ) -> anyhow::Result<Self> {
        if let Some(file) = &target.token_file {
            let bytes = std::fs::read(file)
                .with_context(|| format!("the token file '{}' cannot be read", file.display()))?;
            return sendable(
                &String::from_utf8_lossy(&bytes),
                &format!("the token file '{}'", file.display()),
            )
            .map(Self::Named);
        }
        if let Some(token) = std::env::var_os(TOKEN).filter(|token| !token.is_empty()) {
            // What is no text cannot be sent either, and must not be passed over.
            return sendable(&token.to_string_lossy(), TOKEN).map(Self::Named);
        }
        // A pipe in its place is not waited for.
        let file = folder.map(|folder| folder.join("admin.key")).filter(|file| file.is_file());
        let Some((file, key)) =
            file.and_then(|file| std::fs::read_to_string(&file).ok().map(|key| (file, key)))
        else {
            return Ok(Self::None);
        };
        Ok(match local {
            None => Self::Elsewhere(file),
            Some(address) => {
                let key = key.trim().to_owned();
                Self::Local(Arc::new(Local { key, file, address, is_sent: OnceCell::new() }))
            }
        })
    }
}

/// A key as it is sent, without the line end that editors and files add.
pub(crate) fn sendable(text: &str, from: &str) -> anyhow::Result<String> {
    let key = text.trim();
    let is_sendable = !key.contains(char::REPLACEMENT_CHARACTER) && HeaderValue::from_str(key).is_ok();
    if is_sendable {
        return Ok(key.to_owned());
    }
    let what = "it holds a line break or another character that no header can have";
    Err(Told::usage(format!("the key in {from} cannot be sent: {what}"))
        .next("give the key alone, in one line, with TRUSTGRAPH_TOKEN or --token-file FILE")
        .into())
}

/// Where a URL leads when it leads to this machine for certain: by a loopback address, or by the name `localhost`. Of the
/// addresses that the name has, the first where somebody listens.
pub(crate) fn loopback(url: &Url) -> Option<SocketAddr> {
    let port = url.port_or_known_default()?;
    let candidates: Vec<SocketAddr> = match url.host()? {
        Host::Ipv4(address) => vec![(address, port).into()],
        Host::Ipv6(address) => vec![(IpAddr::V6(address).to_canonical(), port).into()],
        Host::Domain(name) if name.trim_end_matches('.').eq_ignore_ascii_case("localhost") => {
            ("localhost", port).to_socket_addrs().ok()?.collect()
        }
        Host::Domain(_) => return None,
    };
    let local: Vec<SocketAddr> =
        candidates.into_iter().filter(|address| address.ip().is_loopback()).collect();
    let listens = |address: &&SocketAddr| {
        local.len() == 1 || TcpStream::connect_timeout(address, CONNECT_TIMEOUT).is_ok()
    };
    local.iter().find(listens).or(local.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_no_header_can_have_is_refused_by_where_it_came_from() {
        assert_eq!(sendable(" tg_a\r\n", "TRUSTGRAPH_TOKEN").unwrap(), "tg_a");
        for wrong in ["hush\nhush", "hush\0", "hush\u{7f}", "hush\u{fffd}"] {
            let told = sendable(wrong, "TRUSTGRAPH_TOKEN").unwrap_err().to_string();
            assert!(
                told.contains("the key in TRUSTGRAPH_TOKEN cannot be sent") && !told.contains("hush"),
                "{told}"
            );
        }
    }

    #[test]
    fn only_loopback_addresses_and_localhost_are_this_machine_for_certain() {
        let check = |url: &str, expected: Option<&str>| {
            let found = loopback(&url.parse().unwrap()).map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{url}");
        };
        check("http://127.0.0.1:8888/", Some("127.0.0.1:8888"));
        check("http://127.1:8888/", Some("127.0.0.1:8888"));
        check("https://[::1]/", Some("[::1]:443"));
        check("http://[::ffff:127.0.0.1]:1/", Some("127.0.0.1:1"));
        for elsewhere in [
            "http://192.0.2.1:8888/",
            "http://0.0.0.0:8888/",
            "http://sluice.example.org/",
            "http://localhost.example.org:8888/",
            "http://127.0.0.1.example.org/",
            "http://127.0.0.1@example.org/",
        ] {
            check(elsewhere, None);
        }
        assert!(
            loopback(&"http://LOCALHOST:1/".parse().unwrap()).is_some_and(|found| found.ip().is_loopback())
        );
    }
}
