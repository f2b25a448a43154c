//! One file per part of the contract.

mod admin;
mod allocate;
mod images;
mod leases;
mod pushes;
mod seen;
mod serving;
mod watch;
