//! nspool: a prefork namespace pool sidecar.

pub mod proto;

pub mod pool;

pub mod nanny;
pub mod observer;
pub mod recovery;
pub mod supervisor;

pub mod coalesce;
pub mod engine;
pub mod image;
pub mod netns;
pub mod process;

pub mod api;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod lock;
pub mod systemd;
pub mod telemetry;
