//! The default engine: HTTP/1.1 and HTTP/1.0 on tokio and `httparse`
//! (RFC 9112), strict about framing and bounded in every phase.
//!
//! A thread per core, each with a runtime of its own that accepts from the same
//! listening sockets and keeps its connections to their end. `head` reads a
//! request's head, `content` its content, `chunked` the chunked coding,
//! `connection` is the life of one connection; what leaves is `wire`'s.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout_at};

use self::connection::{Connection, Phase};
use super::Limits;
use super::listener::Bound;
use super::tcp;
use crate::log::Log;
use crate::os;
use crate::service::Service;

mod connection;
mod content;
#[cfg(fuzzing)]
pub mod fuzz;
mod head;

/// How often connections are looked at for being idle or slow for too long.
const SWEEP: Duration = Duration::from_millis(250);
/// Between attempts to accept when descriptors or memory have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A running engine.
pub struct Engine {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
}

struct Shared {
    service: Arc<Service>,
    limits: Limits,
    log: Log,
    /// No connection goes on after its request.
    stopping: AtomicBool,
    /// Open connections of all workers.
    open: AtomicUsize,
    /// A connection has closed.
    closed: Notify,
    connections: Mutex<Vec<Weak<Connection>>>,
}

/// A thread that serves connections.
struct Worker {
    shared: Arc<Shared>,
}

/// Starts the worker threads. They end with the process.
pub fn start(
    bound: &[Bound],
    service: Arc<Service>,
    limits: Limits,
    log: Log,
) -> io::Result<Engine> {
    let shared = Arc::new(Shared {
        service,
        limits,
        log,
        stopping: AtomicBool::new(false),
        open: AtomicUsize::new(0),
        closed: Notify::new(),
        connections: Mutex::default(),
    });
    let (stop, stopped) = watch::channel(false);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    for core in 0..cores {
        let listeners = bound
            .iter()
            .map(|bound| bound.listener.try_clone())
            .collect::<io::Result<Vec<_>>>()?;
        let worker = Worker {
            shared: Arc::clone(&shared),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let stopped = stopped.clone();
        thread::Builder::new()
            .name(format!("http {core}"))
            .spawn(move || {
                os::let_others_finish();
                runtime.block_on(Arc::new(worker).run(listeners, stopped));
            })?;
    }
    Ok(Engine { shared, stop })
}

impl Engine {
    /// Stops accepting, closes idle connections at once, then waits until the
    /// running requests are answered, at most for `grace`.
    pub async fn stop(self, grace: Duration) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.stop.send_replace(true);
        let deadline = Instant::now() + grace;
        loop {
            let closed = self.shared.closed.notified();
            tokio::pin!(closed);
            closed.as_mut().enable();
            if self.shared.open.load(Ordering::SeqCst) == 0
                || timeout_at(deadline, closed).await.is_err()
            {
                return;
            }
        }
    }
}

impl Worker {
    async fn run(self: Arc<Self>, listeners: Vec<TcpListener>, mut stopped: watch::Receiver<bool>) {
        let mut accepting = Vec::new();
        for listener in listeners {
            match listener
                .set_nonblocking(true)
                .and_then(|()| tokio::net::TcpListener::from_std(listener))
            {
                Ok(listener) => accepting.push(tokio::spawn(Arc::clone(&self).accept(listener))),
                Err(error) => self.shared.log.note(&format!("cannot accept: {error}")),
            }
        }
        loop {
            tokio::select! {
                () = sleep(SWEEP) => self.shared.sweep(),
                _ = stopped.changed() => break,
            }
        }
        // Dropping the listeners refuses new connections from here on.
        for task in accepting {
            task.abort();
        }
        loop {
            self.shared.close_idle();
            sleep(SWEEP).await;
            self.shared.sweep();
        }
    }

    /// Nothing ends this but the server's end.
    async fn accept(self: Arc<Self>, listener: tokio::net::TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    self.make_room().await;
                    self.begin(stream);
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    let text = format!("cannot accept: {error}; trying again");
                    self.shared.log.note(&text);
                    self.shared.close_idlest();
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// At the limit a new connection takes the place of the one that has been
    /// idle longest, or waits until one has closed.
    async fn make_room(&self) {
        let most = self.shared.limits.connections;
        while self.shared.open.load(Ordering::SeqCst) >= most && !self.shared.close_idlest() {
            sleep(ACCEPT_PAUSE).await;
        }
    }

    fn begin(&self, stream: TcpStream) {
        let Ok(connection) = Connection::new(stream, Arc::clone(&self.shared)) else {
            // The client has gone already.
            return;
        };
        let connection = Arc::new(connection);
        self.shared.lock().push(Arc::downgrade(&connection));
        tokio::spawn(connection.serve());
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Connection>>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the waiting of connections whose time is over.
    fn sweep(&self) {
        self.lock().retain(|connection| {
            let Some(connection) = connection.upgrade() else {
                return false;
            };
            connection.expire();
            true
        });
    }

    fn close_idle(&self) {
        for connection in self.lock().iter().filter_map(Weak::upgrade) {
            // Half a head is no running request either.
            if matches!(connection.phase(), Phase::New | Phase::Idle | Phase::Head) {
                tcp::close(&connection.as_fd());
            }
        }
    }

    /// Closes the connection that has waited longest for its client.
    fn close_idlest(&self) -> bool {
        let connections = self.lock();
        let idlest = connections
            .iter()
            .filter_map(Weak::upgrade)
            .filter_map(|connection| Some((connection.idle_since()?, connection)))
            // Those that have had their last answer go first.
            .min_by_key(|(since, connection)| (connection.phase() != Phase::Closing, *since));
        let Some((_, idlest)) = idlest else {
            return false;
        };
        idlest.give_up();
        true
    }
}

/// Errors of `accept` that say nothing about the next connection (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, WouldBlock};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted | WouldBlock
    )
}
