//! What pages of other sites get from a gateway that their user's browser reaches.

use std::sync::atomic::Ordering;

use sluice_gateway::Options;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::world::{PATIENCE, World, options, wait_for};

const LIST: &str = r#"{"operation":"list","type":"tool"}"#;

/// A way to ask, with the status that it has when it is let in.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Get,
    TextPost,
    JsonPost,
    Upgrade,
}

const WAYS: [(Way, u16); 4] =
    [(Way::Get, 200), (Way::TextPost, 200), (Way::JsonPost, 200), (Way::Upgrade, 101)];

/// An answer as it came.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

/// Whether all of an answer is there; a refused upgrade leaves its connection open.
fn is_whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    head.starts_with("http/1.1 101")
        || head.starts_with("http/1.1 204")
        || length.is_some_and(|length: usize| body.len() >= length)
}

async fn exchange(world: &World, line: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut stream = TcpStream::connect(world.gateway.local_addr).await.unwrap();
    let mut request = format!("{line} HTTP/1.1\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    request.push_str(body);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    let read = async {
        let mut part = [0; 4_096];
        loop {
            let text = String::from_utf8_lossy(&said).into_owned();
            if is_whole(&text) {
                return text;
            }
            match stream.read(&mut part).await.unwrap() {
                0 => return text,
                bytes => said.extend_from_slice(&part[..bytes]),
            }
        }
    };
    let text = tokio::time::timeout(PATIENCE, read).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

async fn ask(world: &World, way: Way, headers: &[(&str, &str)]) -> Answer {
    let length = LIST.len().to_string();
    let close = [("Connection", "close")];
    let with = |more: &[(&'static str, &str)]| -> Vec<(String, String)> {
        let all = headers.iter().chain(more);
        all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let post = |kind: &str| with(&[("Content-Type", kind), ("Content-Length", &length), close[0]]);
    let (line, headers, body) = match way {
        Way::Get => ("GET /api/metrics", with(&close), ""),
        Way::TextPost => ("POST /api/v1/config", post("text/plain"), LIST),
        Way::JsonPost => ("POST /api/v1/config", post("application/json"), LIST),
        Way::Upgrade => (
            "GET /api/v1/socket",
            with(&[
                ("Connection", "Upgrade"),
                ("Upgrade", "websocket"),
                ("Sec-WebSocket-Version", "13"),
                ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ]),
            "",
        ),
    };
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    exchange(world, line, &headers, body).await
}

/// A system where nobody needs a key. The gateway knows it from its settings, or learns it from the identity service.
async fn open(known: Option<bool>, more: impl FnOnce(&mut Options)) -> World {
    let mut options = options();
    options.open = known;
    more(&mut options);
    let world = World::with(options).await;
    world.iam.no_auth.store(true, Ordering::SeqCst);
    world
}

#[tokio::test]
async fn pages_of_other_sites_and_foreign_hosts_are_kept_out_as_the_table_says() {
    let worlds = [
        ("no key, known", open(Some(true), |_| {}).await),
        ("no key, asked", open(None, |_| {}).await),
        ("a key, asked", World::new().await),
        ("a key, known", {
            let mut options = options();
            options.open = Some(false);
            World::with(options).await
        }),
    ];
    for (regime, world) in &worlds {
        let is_open = regime.starts_with("no key");
        let own = world.gateway.local_addr.to_string();
        let loopback = format!("LocalHost.:{}", world.gateway.local_addr.port());
        for host in [own.as_str(), &loopback, "evil.example"] {
            let same = format!("http://{host}");
            for origin in [None, Some(same.as_str()), Some("https://evil.example:8443"), Some("null")] {
                for (way, let_in) in WAYS {
                    let mut headers = vec![("Host", host)];
                    headers.extend(origin.map(|origin| ("Origin", origin)));
                    if !is_open {
                        headers.push(("Authorization", "Bearer tg_admin"));
                    }
                    let is_ours = origin.is_none() || origin == Some(&same);
                    // The table: a foreign host never; a foreign page only where a key keeps it out.
                    let expected = match (host == "evil.example", is_open && !is_ours) {
                        (false, false) => let_in,
                        (true, _) | (_, true) => 403,
                    };
                    let case = format!("{regime}: {way:?} Host {host} Origin {origin:?}");
                    let answer = ask(world, way, &headers).await;
                    assert_eq!(answer.status, expected, "{case}: {}", answer.body);
                    assert_eq!(answer.header("access-control-allow-origin"), None, "{case}");
                    if expected == 403 {
                        let helps = answer.body.contains("--allow-host evil.example")
                            || answer.body.contains("--allow-origin");
                        assert!(helps && answer.header("x-request-id").is_some(), "{case}: {}", answer.body);
                    }
                    if !is_open && expected != 403 && way != Way::Upgrade {
                        // Without the key, such a page gets nothing.
                        headers.pop();
                        assert_eq!(ask(world, way, &headers).await.status, 401, "{case}");
                    }
                }
            }
        }
        let metric = world.metric("sluice_gateway_foreign_requests_total");
        assert!(metric.is_some_and(|refused| refused >= 16.0), "{regime}: {metric:?}");
    }
}

#[tokio::test]
async fn a_browser_that_says_that_a_page_is_foreign_is_believed() {
    let world = open(None, |_| {}).await;
    let host = world.gateway.local_addr.to_string();
    for (way, let_in) in WAYS {
        for (site, expected) in
            [("same-origin", let_in), ("none", let_in), ("same-site", 403), ("cross-site", 403)]
        {
            let answer = ask(&world, way, &[("Host", &host), ("Sec-Fetch-Site", site)]).await;
            assert_eq!(answer.status, expected, "{way:?} {site}: {}", answer.body);
        }
    }
    // Health is no exception: what is refused is the page, whatever it asks for.
    for path in ["/", "/healthz", "/readyz", "/nowhere"] {
        let line = format!("GET {path}");
        let foreign = [("Host", host.as_str()), ("Origin", "https://evil.example"), ("Connection", "close")];
        assert_eq!(exchange(&world, &line, &foreign, "").await.status, 403, "{path}");
    }
}

#[tokio::test]
async fn pages_of_an_allowed_origin_can_call_and_read_answers() {
    const PAGE: &str = "https://app.example.org";
    for is_open in [true, false] {
        let allow = |options: &mut Options| options.allow_origins.push(PAGE.parse().unwrap());
        let world = if is_open {
            open(None, allow).await
        } else {
            let mut options = options();
            allow(&mut options);
            World::with(options).await
        };
        let host = world.gateway.local_addr.to_string();
        let page = [("Host", host.as_str()), ("Origin", PAGE), ("Sec-Fetch-Site", "cross-site")];
        let preflight = [
            &page[..],
            &[
                ("Access-Control-Request-Method", "POST"),
                ("Access-Control-Request-Headers", "authorization,content-type"),
                ("Access-Control-Request-Private-Network", "true"),
                ("Connection", "close"),
            ],
        ]
        .concat();
        for path in ["/api/v1/config", "/api/v1/flow/f/service/embeddings", "/api/metrics"] {
            let answer = exchange(&world, &format!("OPTIONS {path}"), &preflight, "").await;
            assert_eq!(answer.status, 204, "{}", answer.body);
            assert_eq!(answer.header("access-control-allow-origin"), Some(PAGE));
            let lists = |name: &str, what: &str| answer.header(name).is_some_and(|list| list.contains(what));
            assert!(lists("access-control-allow-headers", "authorization"), "{}", answer.head);
            assert!(lists("access-control-allow-headers", "content-type"), "{}", answer.head);
            assert!(lists("access-control-allow-methods", "POST"), "{}", answer.head);
            assert!(lists("access-control-allow-private-network", "true"), "{}", answer.head);
            assert!(lists("vary", "origin"), "{}", answer.head);
            assert_eq!(answer.header("access-control-allow-credentials"), None);
        }
        let with_key = [&page[..], &[("Authorization", "Bearer tg_admin")]].concat();
        for (way, let_in) in WAYS {
            let answer = ask(&world, way, &with_key).await;
            assert_eq!(answer.status, let_in, "{way:?}: {}", answer.body);
            assert_eq!(answer.header("access-control-allow-origin"), Some(PAGE), "{way:?}");
            let exposed = answer.header("access-control-expose-headers").unwrap_or_default();
            assert!(
                exposed.contains("x-request-id") && answer.header("vary") == Some("origin"),
                "{}",
                answer.head
            );
        }
        if !is_open {
            // A page can read why it was refused.
            let answer = ask(&world, Way::JsonPost, &page).await;
            assert_eq!((answer.status, answer.header("access-control-allow-origin")), (401, Some(PAGE)));
        }
        // Others gain nothing by it, and answers say that they depend on the origin.
        let others = [
            ("Host", host.as_str()),
            ("Origin", "https://evil.example"),
            ("Authorization", "Bearer tg_admin"),
        ];
        let answer = ask(&world, Way::JsonPost, &others).await;
        assert_eq!(answer.status, if is_open { 403 } else { 200 });
        assert_eq!(
            (answer.header("access-control-allow-origin"), answer.header("vary")),
            (None, Some("origin"))
        );
    }
}

#[tokio::test]
async fn a_proxy_may_send_a_host_that_the_settings_allow() {
    let world = open(None, |options| options.allow_hosts.push("sluice.example.org".parse().unwrap())).await;
    let proxied = [("Host", "sluice.example.org"), ("Origin", "https://sluice.example.org")];
    for (way, let_in) in WAYS {
        assert_eq!(ask(&world, way, &proxied).await.status, let_in, "{way:?}");
        let other = [("Host", "other.example.org"), ("Origin", "https://other.example.org")];
        assert_eq!(ask(&world, way, &other).await.status, 403, "{way:?}");
    }
}

#[tokio::test]
async fn where_a_request_comes_from_is_believed_only_of_listed_proxies() {
    let seen = async |trusted: &[&str]| {
        let mut options = options();
        options.trusted_proxies = trusted.iter().map(|network| network.parse().unwrap()).collect();
        let world = World::with(options).await;
        let host = world.gateway.local_addr.to_string();
        let headers = [
            ("Host", host.as_str()),
            ("X-Forwarded-For", "203.0.113.66, 198.51.100.7"),
            ("Authorization", "Bearer tg_admin"),
        ];
        assert_eq!(ask(&world, Way::JsonPost, &headers).await.status, 200);
        let last = || world.iam.client_ip.lock().unwrap().clone();
        wait_for("a question to the identity service", || async { !last().is_empty() }).await;
        last()
    };
    assert_eq!(seen(&[]).await, "127.0.0.1");
    assert_eq!(seen(&["10.0.0.0/8"]).await, "127.0.0.1");
    assert_eq!(seen(&["127.0.0.0/8"]).await, "198.51.100.7");
}

/// What the pages on proxies promise, with the headers that their recipes send.
#[tokio::test]
async fn the_recipes_for_proxies_are_let_in_with_the_flags_that_stand_beside_them() {
    let page = include_str!("../../../../docs/proxy.md");
    for told in [
        "--allow-host sluice.example.org --trusted-proxy 127.0.0.1",
        "proxy_set_header Host $host",
        "$proxy_add_x_forwarded_for",
    ] {
        assert!(page.contains(told), "docs/proxy.md does not say {told}");
    }
    let mut options = options();
    options.allow_hosts.push("sluice.example.org".parse().unwrap());
    options.trusted_proxies.push("127.0.0.1".parse().unwrap());
    let world = World::with(options).await;
    let proxied = [
        ("Host", "sluice.example.org"),
        ("Origin", "https://sluice.example.org"),
        ("Sec-Fetch-Site", "same-origin"),
        ("X-Forwarded-For", "198.51.100.9"),
        ("Authorization", "Bearer tg_admin"),
    ];
    for (way, let_in) in WAYS {
        assert_eq!(ask(&world, way, &proxied).await.status, let_in, "{way:?}");
    }
    assert_eq!(*world.iam.client_ip.lock().unwrap(), "198.51.100.9");
}
