//! Room for large answers: taken before they are made, and by no workspace so that others find none.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{BrokerAdmin, Client, Embedded, TopicSpec};
use sluice_schema::listing::Page;
use sluice_schema::message::{Error, FlowRequest, FlowResponse};
use sluice_schema::{Topic, exchange};
use sluice_sdk::service::serve;
use sluice_sdk::{Point, Process, Responder};
use tokio_util::sync::CancellationToken;

const MIB: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    process: Process,
    broker: Embedded,
    /// Ends what holds room.
    enough: CancellationToken,
}

impl World {
    fn start() -> Self {
        let broker = Embedded::in_memory();
        let process = Process::new(Arc::new(broker.clone()), CancellationToken::new());
        Self { process, broker, enough: CancellationToken::new() }
    }

    /// A service of a workspace: `hold` keeps 64 MiB, `ask` takes as much and gives it back, `list` names as many as it is told.
    async fn serve(&self, workspace: &str) -> Client<exchange::Flow> {
        let request: Topic = format!("request:tg:flow:{workspace}").parse().unwrap();
        let response: Topic = format!("response:tg:flow:{workspace}").parse().unwrap();
        self.broker.ensure(&TopicSpec::with(request.clone(), "svc")).await.unwrap();
        self.broker.ensure(&TopicSpec::bare(response.clone())).await.unwrap();
        let point = Point::new(request.clone(), response.clone(), "svc");
        let enough = self.enough.clone();
        let handler = move |request: FlowRequest, responder: Responder<exchange::Flow>| {
            let enough = enough.clone();
            async move { answer(&request, &responder, &enough).await }
        };
        let stop = self.process.stop.child_token();
        serve::<exchange::Flow, _, _>(&self.process, point, stop, handler).cancelled().await;
        Client::new(&self.process.replies, request, &response).await.unwrap()
    }
}

async fn answer(
    request: &FlowRequest,
    responder: &Responder<exchange::Flow>,
    enough: &CancellationToken,
) -> Result<FlowResponse, Error> {
    if request.operation == "list" {
        let names: Vec<String> =
            (0..request.flow_id.parse().unwrap()).map(|n| format!("{n:01000}")).collect();
        let list = |page: Page<String>| {
            let items = names.iter().map(|name| (&**name, name.clone()));
            std::future::ready(page.fill("", items, String::len))
        };
        let page = responder.list(0, list).await?;
        return Ok(FlowResponse { blueprint_names: page.items, ..Default::default() });
    }
    responder.room(64 * MIB).await?;
    if request.operation == "hold" {
        enough.cancelled().await;
    }
    Ok(FlowResponse::default())
}

fn asked(operation: &str, count: usize) -> FlowRequest {
    FlowRequest { operation: operation.to_owned(), flow_id: count.to_string(), ..Default::default() }
}

#[tokio::test]
async fn workspaces_that_ask_for_much_leave_room_to_others() {
    let world = World::start();
    let (one, two, other) = (world.serve("w1").await, world.serve("w2").await, world.serve("w3").await);
    let hold = asked("hold", 0);
    let holding = async {
        let all_of_one = (0..24).map(|_| one.call(&hold, PATIENCE));
        let all_of_two = (0..24).map(async |_| {
            tokio::time::sleep(Duration::from_millis(300)).await;
            two.call(&hold, PATIENCE).await
        });
        tokio::join!(futures_util::future::join_all(all_of_one), futures_util::future::join_all(all_of_two))
    };
    let beside = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let answer = other.call(&asked("ask", 0), PATIENCE).await.unwrap();
        assert_eq!(answer.error, None, "all room is taken by others and what waits of them");
        tokio::time::sleep(Duration::from_secs(6)).await;
        world.enough.cancel();
    };
    let ((of_one, of_two), ()) = tokio::join!(holding, beside);
    let refused = |held: Vec<sluice_bus::Result<FlowResponse>>| {
        held.into_iter()
            .filter_map(|answer| answer.unwrap().error)
            .map(|error| error.r#type)
            .collect::<Vec<_>>()
    };
    assert_eq!(refused(of_one), ["overloaded"; 20], "four times 64 MiB are all, which one alone may have");
    assert_eq!(refused(of_two), ["overloaded"; 22], "half of all are the part of the second");
    let answer = one.call(&asked("ask", 0), PATIENCE).await.unwrap();
    assert_eq!(answer.error, None, "what was taken is given back");
    assert_eq!(world.process.shutdown(PATIENCE).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_list_takes_room_once_it_is_not_small() {
    let world = World::start();
    let client = world.serve("w1").await;
    let taken = world.process.take_all_room();
    for count in [0, 300] {
        let answer = client.call(&asked("list", count), PATIENCE).await.unwrap();
        assert_eq!((answer.error, answer.blueprint_names.len()), (None, count), "small ones need none");
    }
    let answer = client.call(&asked("list", 400), PATIENCE).await.unwrap();
    assert_eq!(answer.error.map(|error| error.r#type).as_deref(), Some("overloaded"));
    drop(taken);
    let answer = client.call(&asked("list", 400), PATIENCE).await.unwrap();
    assert_eq!((answer.error, answer.blueprint_names.len()), (None, 400));
    assert_eq!(world.process.shutdown(PATIENCE).await, Vec::<String>::new());
}
