//! What the image store promises: images come in whole or not at all, whoever is killed when, whatever the power does, and however many write at once;
//! nothing that somebody counts on is swept; bad archives leave nothing; engines are loaded from it once.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod store {
    pub mod bad_input;
    pub mod command;
    pub mod crashes;
    pub mod full;
    pub mod images;
    pub mod import;
    pub mod model;
    pub mod power;
    pub mod sweeps;
    pub mod transfer;
    pub mod writers;
}
