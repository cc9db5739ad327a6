//! One server in front of application hosts, each a machine of its own as far as
//! the network goes. docs/scaling.md has the figures that these tests print:
//!
//!     cargo test --test integration scaling:: -- --nocapture

mod clients;
mod document;
mod events;
mod load;
mod network;
