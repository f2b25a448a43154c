//! The server itself: info, usage, health, reflection, limits, deadlines, and how it stops.

use std::time::{Duration, Instant};

use nspool::api::EngineState;
use nspool::pool::state::State;
use nspool::proto::{
    AllocateRequest, AllocateResponse, GetInfoRequest, GetUsageRequest, KeepAliveRequest, ReleaseRequest, ResumeRequest, WatchRequest,
};
use tonic::{Code, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::HealthCheckResponse;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

use crate::served::*;

const POOL: &str = "nspool.v1.NamespacePool";
const ADMIN: &str = "nspool.v1.PoolAdmin";
const IMAGES: &str = "nspool.v1.ImageCache";

#[tokio::test]
async fn info_and_usage_say_who_answers_and_how_things_are() {
    let mut setup = Setup::default();
    setup.config.pool.networks = vec!["bridge".into(), "backend".into()];
    let served = Served::start(setup).await;
    let mut agent = served.agent().await;
    let info = agent.get_info(GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.pool.as_str(), info.incarnation.as_str(), info.reuse.as_str()), ("default", "incarnation-1", "always"));
    assert_eq!((info.networks, info.engine.unwrap().id), (vec!["bridge".to_owned(), "backend".to_owned()], "fake-1".to_owned()));
    assert!(info.started_at.is_some() && !info.version.is_empty());

    allocate(&mut agent, AllocateRequest { network: "backend".into(), ..request("a") }).await.unwrap();
    served.status.send_modify(|status| {
        status.engine = EngineState::Away;
        status.engine_error = "connect: no such file".into();
    });
    let usage = agent.get_usage(GetUsageRequest {}).await.unwrap().into_inner();
    let total = usage.total.unwrap();
    assert_eq!((total.ready, total.leased, total.target, total.max, total.allocations), (1, 1, 2, 2, 1));
    assert_eq!((usage.networks["bridge"].ready, usage.networks["backend"].leased), (1, 1));
    assert_eq!((usage.engine_state.as_str(), usage.engine_error.as_str()), ("away", "connect: no such file"));
    assert_eq!((usage.image_state.as_str(), usage.pool.as_str()), ("ready", "default"));
}

async fn until_health(stream: &mut Streaming<HealthCheckResponse>, wanted: ServingStatus) {
    loop {
        let answer = soon(stream.message()).await.unwrap().unwrap();
        if answer.status() == wanted {
            return;
        }
    }
}

#[tokio::test]
async fn health_follows_engine_cordon_and_stop() {
    let mut served = Served::start(Setup { engine_up: false, fill: false, ..Setup::default() }).await;
    let mut health = HealthClient::new(served.channel().await);
    let ask = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let mut pool = health.watch(ask(POOL)).await.unwrap().into_inner();
    let mut whole = health.watch(ask("")).await.unwrap().into_inner();
    until_health(&mut pool, ServingStatus::NotServing).await;
    for service in [ADMIN, IMAGES] {
        assert_eq!(health.check(ask(service)).await.unwrap().into_inner().status(), ServingStatus::Serving, "{service}");
    }

    served.status.send_modify(|status| status.engine = EngineState::Up);
    until_health(&mut pool, ServingStatus::Serving).await;
    until_health(&mut whole, ServingStatus::Serving).await;
    served.pool.with(|state, _| state.cordon(false));
    until_health(&mut pool, ServingStatus::NotServing).await;
    served.pool.with(|state, _| state.uncordon());
    until_health(&mut pool, ServingStatus::Serving).await;
    served.status.send_modify(|status| status.ledger_error = "no space left".into());
    until_health(&mut pool, ServingStatus::NotServing).await;
    served.status.send_modify(|status| status.ledger_error.clear());
    until_health(&mut pool, ServingStatus::Serving).await;

    // Without an engine as long as something is ready.
    served.hand.fill(true);
    served.until(|state| state.usage().ready == 2).await;
    served.status.send_modify(|status| status.engine = EngineState::Away);
    assert_eq!(health.check(ask(POOL)).await.unwrap().into_inner().status(), ServingStatus::Serving);
    let mut agent = served.agent().await;
    for id in ["a", "b"] {
        allocate(&mut agent, request(id)).await.unwrap();
    }
    until_health(&mut pool, ServingStatus::NotServing).await;
    served.status.send_modify(|status| status.engine = EngineState::Up);
    until_health(&mut pool, ServingStatus::Serving).await;

    served.stop.cancel();
    until_health(&mut pool, ServingStatus::NotServing).await;
    assert!(soon(pool.message()).await.unwrap().is_none(), "the stream ends");
    soon(served.ended()).await.unwrap();
}

#[tokio::test]
async fn reflection_lists_the_services_in_both_versions() {
    let served = served().await;
    let expected = ["grpc.health.v1.Health", POOL, ADMIN, IMAGES];
    let ask = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(served.channel().await);
    let mut answers = client.server_reflection_info(tokio_stream_of(ask)).await.unwrap().into_inner();
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        soon(answers.message()).await.unwrap().unwrap().message_response
    else {
        panic!("a list")
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    assert!(expected.iter().all(|name| names.iter().any(|known| known == name)), "{names:?}");

    let ask = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(served.channel().await);
    let mut answers = client.server_reflection_info(tokio_stream_of(ask)).await.unwrap().into_inner();
    let Some(v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        soon(answers.message()).await.unwrap().unwrap().message_response
    else {
        panic!("a list")
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    assert!(expected.iter().all(|name| names.iter().any(|known| known == name)), "{names:?}");
}

fn tokio_stream_of<T: Send + 'static>(one: T) -> impl futures::Stream<Item = T> + Send + 'static {
    futures::stream::iter([one])
}

#[tokio::test]
async fn a_message_that_is_too_large_and_a_method_nobody_knows_keep_the_protocols_codes() {
    let served = served().await;
    let mut agent = served.agent().await;
    let owner = "x".repeat((64 << 10) + 1);
    let status = agent.resume(ResumeRequest { owner }).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    agent.get_info(GetInfoRequest {}).await.expect("the connection is as good as before");
    for path in ["/nspool.v1.NamespacePool/Nothing", "/nspool.v1.Nothing/Nothing", "/"] {
        let mut grpc = tonic::client::Grpc::new(served.channel().await);
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<ReleaseRequest, AllocateResponse>::default();
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
        let status = grpc.unary(tonic::Request::new(ReleaseRequest::default()), path, codec).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    }
}

#[tokio::test]
async fn a_call_whose_message_never_comes_ends_at_the_deadline() {
    let mut setup = Setup::default();
    setup.config.api.timeout = Duration::from_millis(200);
    let served = Served::start(setup).await;
    let mut grpc = tonic::client::Grpc::new(served.channel().await);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<AllocateRequest, AllocateResponse>::default();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/nspool.v1.NamespacePool/Allocate");
    let never = tonic::Request::new(futures::stream::pending());
    let status = soon(grpc.client_streaming(never, path, codec)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert_eq!(served.pool.read(State::usage).allocations, 0);
}

#[tokio::test]
async fn a_stop_ends_waits_and_streams_with_a_reason_and_comes_back() {
    let mut served = served_one().await;
    let mut agent = served.agent().await;
    allocate(&mut agent, request("a")).await.unwrap();
    let mut watch = agent.watch(WatchRequest::default()).await.unwrap().into_inner();
    soon(watch.message()).await.unwrap().unwrap();
    let (_ask, asked) = futures::channel::mpsc::channel::<KeepAliveRequest>(1);
    let mut kept = agent.keep_alive(asked).await.unwrap().into_inner();
    let mut waiter = agent.clone();
    let wait = tokio::spawn(async move { allocate(&mut waiter, waiting("b", SOON)).await });
    served.until(|state| state.usage().waiting == 1).await;

    let stopped = Instant::now();
    served.stop.cancel();
    assert_refused(soon(wait).await.unwrap(), Code::Unavailable, "STOPPING");
    let status = loop {
        if let Err(status) = soon(watch.message()).await {
            break status;
        }
    };
    assert_eq!(refusal(&status), (Code::Unavailable, "STOPPING".to_owned()));
    assert_refused(soon(kept.message()).await, Code::Unavailable, "STOPPING");
    soon(served.ended()).await.unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(4), "nothing had to be cut");
    assert_eq!(served.pool.read(State::usage).waiting, 0);
    assert!(tokio::net::UnixStream::connect(&served.path).await.is_err(), "the listener is closed");
}

#[tokio::test]
async fn a_stop_cuts_what_does_not_end_by_itself() {
    let mut served = Served::start(Setup { grace: Duration::from_millis(200), ..Setup::default() }).await;
    let mut grpc = tonic::client::Grpc::new(served.channel().await);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<AllocateRequest, AllocateResponse>::default();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/nspool.v1.NamespacePool/Allocate");
    let call = tokio::spawn(async move {
        let never = tonic::Request::new(futures::stream::pending());
        grpc.client_streaming::<_, _, AllocateResponse, _>(never, path, codec).await.map(|_| ())
    });
    // The call is there once a later one on another connection is answered; were it not, the stop would only be easier.
    served.agent().await.get_info(GetInfoRequest {}).await.unwrap();
    served.stop.cancel();
    soon(served.ended()).await.unwrap();
    assert!(soon(call).await.unwrap().is_err());
}

#[tokio::test]
async fn a_server_that_is_dropped_lets_go_of_its_connections() {
    let served = served().await;
    let mut agent = served.agent().await;
    let mut watch = agent.watch(WatchRequest::default()).await.unwrap().into_inner();
    soon(watch.message()).await.unwrap().unwrap();
    let path = served.path.clone();
    drop(served);
    loop {
        if soon(watch.message()).await.is_err() {
            break;
        }
    }
    let gone = async {
        while tokio::net::UnixStream::connect(&path).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    soon(gone).await;
}
