//! `sluice conformance`: puts a server through the cases of the bus contract, which are what Sluice relies on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use sluice_bus::conformance::{self, Backend, Case, Conclusion, Ends};
use sluice_bus::{BoxFuture, BrokerAdmin, Config, Embedded, Error, TopicSpec};
use sluice_schema::system;
use tokio_util::sync::CancellationToken;

use super::{doc, up};
use crate::bus::{Bus, Remote};
use crate::cli::{Conformance, Target};
use crate::exit::{Code, Told};
use crate::output::{show, table, text};

/// How long a server has to say what it is, and what is read there.
const LOOK_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) async fn run(target: &Target, command: Conformance) -> anyhow::Result<Code> {
    let Conformance { words, broker } = command;
    let is_wanted = |case: &Case| words.is_empty() || words.iter().any(|word| case.name.contains(word));
    let cases: Vec<Case> = conformance::cases().into_iter().filter(is_wanted).collect();
    if cases.is_empty() {
        return Err(Told::usage(format!("no case has '{}' in its name", words.join("' or '")))
            .next("sluice conformance, which names them all")
            .into());
    }
    let given_up = CancellationToken::new();
    let (server, backend): (Value, Box<dyn Backend>) = match up::remote(broker)? {
        Some(remote) => (look(&remote).await?, Box::new(Server { remote, given_up: given_up.clone() })),
        None => {
            let own = Own::open(given_up.clone())?;
            (json!({"product": own.now().product().await, "served": []}), Box::new(own))
        }
    };
    let mut interrupted = std::pin::pin!(up::interrupted()?);
    let mut running = std::pin::pin!(run_all(&*backend, &cases));
    let rows = tokio::select! {
        rows = &mut running => rows,
        () = &mut interrupted => {
            given_up.cancel();
            running.await
        }
    };
    let code = code_of(&rows);
    show(target.output, &answer_of(server, rows), matrix)?;
    if given_up.is_cancelled() {
        return Err(Told::new(Code::Failed, "interrupted before every case was tried")
            .next("run it again; what the cases made is removed")
            .into());
    }
    Ok(code)
}

/// What a server is, and whether somebody serves there, which the cases leave alone and a person should know.
async fn look(remote: &Remote) -> anyhow::Result<Value> {
    let bus = Bus::connect(remote).await?;
    let looked = tokio::time::timeout(LOOK_TIMEOUT, async {
        Ok::<_, Error>((bus.admin.product().await, served(&*bus.admin).await?))
    });
    let looked = looked.await;
    bus.close().await;
    let (product, served) = looked
        .map_err(|_| Told::new(Code::TimedOut, "the server did not say what it is in time"))?
        .context("it cannot be seen whether a Sluice runs at this server")?;
    if !served.is_empty() {
        eprintln!(
            "note: a Sluice or TrustGraph runs at this server (read there: {}). The cases leave its topics alone, and add to the \
             server's load.",
            served.join(", ")
        );
    }
    Ok(json!({"product": product, "served": served}))
}

/// Subscriptions of system services that somebody reads, or that may be read where the server does not show readers.
async fn served(admin: &dyn BrokerAdmin) -> Result<Vec<&'static str>, Error> {
    let known = system::global_subscriptions();
    let specs: Vec<_> = known.iter().map(|(topic, name)| TopicSpec::with(topic.clone(), *name)).collect();
    let seen = admin.observe(&specs).await?;
    let is_read = |name: &str, seen: &sluice_bus::Seen| {
        seen.subscriptions.iter().any(|one| one.name == name && one.exists && one.consumers != Some(0))
    };
    let read = known.iter().zip(&seen).filter(|((_, name), seen)| is_read(name, seen));
    let mut read: Vec<_> = read.map(|((_, name), _)| *name).collect();
    read.dedup();
    Ok(read)
}

/// How each case ends, one after the other.
async fn run_all(backend: &dyn Backend, cases: &[Case]) -> Vec<Value> {
    let bar = doc::bar(cases.len() as u64, "{bar:30} {pos}/{len} cases  {elapsed}  {msg}");
    let mut rows = Vec::with_capacity(cases.len());
    for case in cases {
        bar.set_message(case.name);
        let begun = Instant::now();
        let ended = match backend.given_up().now_or_never() {
            Some(()) => Ok(Conclusion::NotRun { why: "it was given up" }),
            None => case.run(backend).await,
        };
        rows.push(row(case.name, &ended, begun.elapsed()));
        bar.inc(1);
    }
    bar.finish_and_clear();
    rows
}

fn row(case: &str, ended: &Result<Conclusion, String>, took: Duration) -> Value {
    let (result, why) = match ended {
        Ok(Conclusion::Kept { without }) => {
            let left_out = without.iter().map(|(what, why)| format!("not promised: {} ({why})", what.text()));
            ("kept", left_out.collect::<Vec<_>>().join("; "))
        }
        Ok(Conclusion::NotPromised { why }) => ("not-promised", (*why).to_owned()),
        Ok(Conclusion::NotRun { why }) => ("not-run", (*why).to_owned()),
        Err(why) => ("failed", why.clone()),
    };
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    json!({"case": case, "result": result, "why": why, "took-ms": took_ms})
}

const RESULTS: [&str; 4] = ["kept", "not-promised", "not-run", "failed"];

/// What is known of a server: how many cases ended in each way, and each of them.
fn answer_of(mut server: Value, rows: Vec<Value>) -> Value {
    for result in RESULTS {
        let count = rows.iter().filter(|row| row["result"] == result).count();
        server[result] = json!(count);
    }
    server["cases"] = Value::Array(rows);
    server
}

fn code_of(rows: &[Value]) -> Code {
    if rows.iter().any(|row| row["result"] == "failed") { Code::Differs } else { Code::Ok }
}

/// The answer for people.
fn matrix(answer: &Value) -> String {
    const COLUMNS: [&str; 3] = ["case", "result", "why"];
    let cases = answer["cases"].as_array().into_iter().flatten();
    let plain = |result: &str| result.replace('-', " ");
    let cells = |row: &Value| vec![text(row, "case"), plain(&text(row, "result")), text(row, "why")];
    let rows = cases.map(cells).collect();
    let product = answer["product"].as_str().unwrap_or("a server that does not say what it is");
    let counted = RESULTS.map(|result| format!("{} {}", answer[result], plain(result)));
    format!("Server: {product}\n\n{}\n\n{}.", table(&COLUMNS, rows, "No case."), counted.join(", "))
}

/// A server that others use too.
struct Server {
    remote: Remote,
    given_up: CancellationToken,
}

impl Backend for Server {
    fn connect(&self) -> BoxFuture<'_, sluice_bus::Result<Ends>> {
        Box::pin(async {
            let Remote { url, settings } = &self.remote;
            let connection = sluice_brokers::connect(url.reveal(), settings.clone()).await?;
            Ok(Ends { broker: connection.broker.clone(), admin: connection.admin.clone() })
        })
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn given_up(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.given_up.cancelled())
    }
}

/// An embedded broker in a folder of its own, which may be killed.
struct Own {
    now: Mutex<Embedded>,
    folder: tempfile::TempDir,
    given_up: CancellationToken,
}

impl Own {
    fn open(given_up: CancellationToken) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("no folder for the embedded broker could be made")?;
        let now = Mutex::new(Embedded::open(Config::in_dir(folder.path()))?);
        Ok(Self { now, folder, given_up })
    }

    fn now(&self) -> Embedded {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Backend for Own {
    fn connect(&self) -> BoxFuture<'_, sluice_bus::Result<Ends>> {
        let now = Arc::new(self.now());
        Box::pin(async { Ok(Ends { broker: now.clone(), admin: now }) })
    }

    fn restart(&self) -> BoxFuture<'_, sluice_bus::Result<bool>> {
        Box::pin(async {
            self.now().crash().await;
            let again = Embedded::open(Config::in_dir(self.folder.path()))?;
            *self.now.lock().unwrap_or_else(PoisonError::into_inner) = again;
            Ok(true)
        })
    }

    fn given_up(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.given_up.cancelled())
    }
}

#[cfg(test)]
mod tests {
    use sluice_bus::{Address, Broker, Inbox, Limits, Message, Result, Subscription};

    use super::*;

    /// A broker that takes a request although nobody will get it.
    #[derive(Clone)]
    struct Swallowing(Embedded);

    impl Broker for Swallowing {
        fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, Result<()>> {
            Box::pin(async move {
                match self.0.publish(to, message).await {
                    Err(Error::Unroutable { .. }) => Ok(()),
                    other => other,
                }
            })
        }

        fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, Result<Box<dyn Inbox>>> {
            self.0.subscribe(to)
        }

        fn limits(&self) -> Limits {
            self.0.limits()
        }
    }

    impl Backend for Swallowing {
        fn connect(&self) -> BoxFuture<'_, Result<Ends>> {
            let broker = Arc::new(self.clone());
            Box::pin(async { Ok(Ends { broker, admin: Arc::new(self.0.clone()) }) })
        }
    }

    #[tokio::test]
    async fn a_broker_that_breaks_a_promise_is_told_by_its_case_and_the_exit_code() {
        let rows = run_all(&Swallowing(Embedded::in_memory()), &conformance::cases()).await;
        let failed: Vec<_> = rows.iter().filter(|row| row["result"] == "failed").collect();
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert_eq!(failed[0]["case"], "a_request_without_subscription_is_unroutable");
        assert_eq!(code_of(&rows), Code::Differs);
        let told = matrix(&answer_of(json!({}), rows));
        assert!(told.contains("not run") && told.ends_with("2 not run, 1 failed."), "{told}");
    }

    #[test]
    fn what_is_left_out_of_a_case_is_told_with_it() {
        let without = vec![(sluice_bus::Promise::ReadersAreShown, "it is blind")];
        let row = row("counts_are_exact", &Ok(Conclusion::Kept { without }), Duration::from_millis(7));
        let why = "not promised: readers are counted (it is blind)";
        assert_eq!(row, json!({"case": "counts_are_exact", "result": "kept", "why": why, "took-ms": 7}));
        assert_eq!(code_of(&[row]), Code::Ok);
    }

    #[tokio::test]
    async fn cases_that_were_given_up_are_told_as_not_run() {
        let own = Own::open(CancellationToken::new()).unwrap();
        own.given_up.cancel();
        let rows = run_all(&own, &conformance::cases()).await;
        assert!(rows.iter().all(|row| row["result"] == "not-run"), "{rows:?}");
    }
}
