//! Scripts and what runs them (RFC 3875).
//!
//! What every kind of gateway shares: which script a path names, what the
//! script is told about the request, and what its response says.

pub mod application;
mod attempt;
pub mod backend;
pub mod cgi;
mod content;
mod diagnosis;
mod fastcgi;
pub mod http;
pub mod process;
mod proxy;
pub mod reply;
pub mod route;
mod scgi;
pub mod script;
mod sending;
pub mod spawn;
mod stderr;
mod stdin;
pub mod sticky;
pub mod stream;
mod trust;
pub mod unchunk;
pub mod upstream;
mod uwsgi;
pub mod variables;
pub mod warm;
