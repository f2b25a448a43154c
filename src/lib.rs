//! nspool: a prefork namespace pool sidecar.

pub mod proto;

pub mod pool;

pub mod nanny;
pub mod supervisor;
pub mod recovery;
pub mod observer;

pub mod engine;
pub mod image;
pub mod netns;

pub mod api;
pub mod client;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod systemd;
pub mod telemetry;
