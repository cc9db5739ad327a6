//! A peer of `benches/compare`: what one gets from `tiny_http` in the plainest
//! way. Threads that share one `Server`, a file opened for each request and
//! handed to `Response::from_file`; no cache, no listing, no script.
//!
//! `plain_tiny_http ADDRESS FOLDER`; it is for a benchmark on loopback and
//! checks nothing but that the path has no `..` in it.

use std::fs::File;
use std::path::Path;
use std::{env, process, thread};

use tiny_http::{Response, Server};

const THREADS: usize = 4;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    // `cargo bench` starts it too, with options of its own.
    let [address, folder] = arguments.as_slice() else {
        eprintln!("usage: plain_tiny_http ADDRESS FOLDER (see benches/compare)");
        return;
    };
    let server = match Server::http(address) {
        Ok(server) => server,
        Err(error) => {
            eprintln!("plain_tiny_http: cannot listen on {address}: {error}");
            process::exit(1);
        }
    };
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| serve(&server, Path::new(folder)));
        }
    });
}

fn serve(server: &Server, folder: &Path) {
    while let Ok(request) = server.recv() {
        let path = request.url().trim_start_matches('/');
        let file = if path.contains("..") {
            None
        } else {
            File::open(folder.join(path)).ok()
        };
        // A client that has left is no fault of the server.
        let _ = match file {
            Some(file) => request.respond(Response::from_file(file)),
            None => request.respond(Response::empty(404)),
        };
    }
}
