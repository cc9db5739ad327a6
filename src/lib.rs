//! `serve-here` as a library: the life of a request.
//!
//! A listener accepts, an *engine* reads a request from the socket, the
//! *service* decides what it names and who answers, *files* or *gateway*
//! answer, and the engine writes the response. One direction, no globals.

pub mod cli;
mod clock;
pub mod config;
pub mod engine;
pub mod error;
mod error_page;
pub mod files;
pub mod forwarded;
pub mod gateway;
mod html;
pub mod log;
pub mod message;
mod os;
mod private_folder;
pub mod server;
pub mod service;
pub mod target;
pub mod workers;
