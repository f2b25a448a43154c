//! `grpc.health.v1`, and server reflection: what tools ask before they know us.
//!
//! `nspool.v1.NamespacePool` and the server as a whole (the empty name) are SERVING while a slot can be handed out or made: not stopping, not
//! cordoned, and the engine up or something ready. An empty pool with its engine up is SERVING: it is being filled. `nspool.v1.PoolAdmin` is
//! SERVING until the stop, `nspool.v1.ImageCache` as well, where there is a container engine. The levels are followed within [`PACE`], the cordon and the engine at once.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tonic_reflection::server::{Builder, Error};

use super::{DaemonStatus, EngineState, Shared};
use crate::level;
use crate::pool::state::State;
use crate::proto;

const POOL: &str = "nspool.v1.NamespacePool";
const ADMIN: &str = "nspool.v1.PoolAdmin";
const IMAGES: &str = "nspool.v1.ImageCache";

/// How often the pool's counts are looked at while they change.
const PACE: Duration = Duration::from_millis(100);

/// Both reflection versions and health, and the end by which health is told.
pub(super) fn and_reflection(max_message: usize) -> Result<(HealthReporter, Routes), Error> {
    let builder = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let reporter = HealthReporter::new();
    let health = HealthServer::new(HealthService::from_health_reporter(reporter.clone())).max_decoding_message_size(max_message);
    let routes = Routes::new(health)
        .add_service(builder().build_v1()?.max_decoding_message_size(max_message))
        .add_service(builder().build_v1alpha()?.max_decoding_message_size(max_message))
        .prepare();
    Ok((reporter, routes))
}

/// Tells the reporter, until the stop; then says NOT_SERVING and ends the watchers' streams.
pub(super) async fn follow(shared: Arc<Shared>, mut reporter: HealthReporter) {
    reporter.set_service_status(ADMIN, ServingStatus::Serving).await;
    let images = if shared.images.is_some() { ServingStatus::Serving } else { ServingStatus::NotServing };
    reporter.set_service_status(IMAGES, images).await;
    let mut status = shared.status.clone();
    let mut told = None;
    loop {
        // Subscribe, then look.
        let mut news = pin!(shared.pool.news());
        let mut changed = pin!(shared.pool.changed());
        news.as_mut().enable();
        changed.as_mut().enable();
        let now = pool_serves(&shared, &mut status);
        if told != Some(now) {
            told = Some(now);
            set(&reporter, now).await;
        }
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => break,
            () = news => {}
            // A daemon that dropped its end is about to stop.
            Ok(()) = status.changed() => {}
            () = async { tokio::time::sleep(PACE).await; changed.await } => {}
        }
    }
    set(&reporter, ServingStatus::NotServing).await;
    for service in [ADMIN, IMAGES] {
        reporter.set_service_status(service, ServingStatus::NotServing).await;
    }
    for service in ["", POOL, ADMIN, IMAGES] {
        reporter.clear_service_status(service).await;
    }
}

async fn set(reporter: &HealthReporter, now: ServingStatus) {
    for service in ["", POOL] {
        reporter.set_service_status(service, now).await;
    }
}

fn pool_serves(shared: &Shared, status: &mut level::Receiver<DaemonStatus>) -> ServingStatus {
    let (up, records) = {
        let status = status.borrow_and_update();
        (status.engine == EngineState::Up, status.ledger_error.is_empty())
    };
    let ((cordoned, _), ready) = shared.pool.read(|state: &State| (state.doors(), state.usage().ready));
    if !cordoned && records && (up || ready > 0) { ServingStatus::Serving } else { ServingStatus::NotServing }
}
