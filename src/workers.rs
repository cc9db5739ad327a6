//! Applications that are started from here: sockets, worker processes, their
//! replacement. What goes over the sockets is the gateway's.
//!
//! Each worker has a place with a listening socket of its own, which stays open
//! here while workers come and go. So nobody is ever refused, and it is known
//! here which worker has which request: how many it has had, when it is idle,
//! and which one doesn't answer. None of that needs the program's help.

mod job;
mod keeper;
mod worker;
mod wsgi;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

pub use job::{Job, JobOptions};

use crate::gateway::backend::{Address, Backend};
use crate::gateway::process::Processes;
use crate::log::Log;
use crate::private_folder::{self, PrivateFolder};
use keeper::Keeper;

/// How many workers there are, and how long each stays.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub workers: usize,
    /// A worker is replaced after so many requests, or up to a tenth more.
    pub max_requests: Option<u64>,
    /// Bytes of memory beyond which it is replaced.
    pub memory: Option<u64>,
    /// Without a request for so long, all workers end until the next one.
    pub idle: Option<Duration>,
    /// For the requests that a worker still has when it is to leave.
    pub leave: Option<Duration>,
    /// Says what happens in the log; failures are always told.
    pub verbose: bool,
}

/// What the server tells all its workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// New workers, then the old ones leave.
    Reload,
    More,
    Fewer,
}

/// The sockets of an application's workers, before there are any.
pub struct Places {
    folder: Arc<Folder>,
    listeners: Vec<OwnedFd>,
    addresses: Vec<Address>,
}

impl Places {
    /// Room for `workers`, for as many more on order, and for those that replace
    /// others.
    pub fn new(folder: &Arc<Folder>, name: &str, workers: usize) -> io::Result<Self> {
        let mut places = Self {
            folder: Arc::clone(folder),
            listeners: Vec::new(),
            addresses: Vec::new(),
        };
        for place in 1..=2 * workers + SPARE_PLACES {
            let path = folder.path().join(format!("{name}-{place}"));
            let listener = std::os::unix::net::UnixListener::bind(&path)?;
            places.listeners.push(listener.into());
            places.addresses.push(Address::Worker(place, path));
        }
        Ok(places)
    }

    pub fn addresses(&self) -> Vec<Address> {
        self.addresses.clone()
    }
}

/// So many workers may be on their way in or out beside those at work.
const SPARE_PLACES: usize = 12;

/// The workers of one application. They end when [`Workers::stop`] is called.
pub struct Workers {
    orders: mpsc::UnboundedSender<Order>,
    stop: oneshot::Sender<()>,
    keeper: tokio::task::JoinHandle<()>,
}

impl Workers {
    /// Starts them, in the background.
    pub fn start(
        job: Job,
        options: Options,
        places: Places,
        backend: &Arc<Backend>,
        processes: &Processes,
        log: &Log,
    ) -> Self {
        let (orders, received) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let keeper = Keeper::new(
            job,
            options,
            places.listeners,
            Arc::clone(backend),
            processes.clone(),
            log.clone(),
        );
        let folder = places.folder;
        let keeper = tokio::spawn(async move {
            keeper.run(received, stopped).await;
            drop(folder);
        });
        Self {
            orders,
            stop,
            keeper,
        }
    }

    pub fn order(&self, order: Order) {
        // They are ending.
        let _ = self.orders.send(order);
    }

    /// Lets go of them: they are told to end, and no others start.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.keeper.await;
    }
}

/// For sockets and the Python side, removed at the end.
pub struct Folder(PrivateFolder);

impl Folder {
    /// Removes also what servers that are no more have left.
    pub fn new() -> io::Result<Self> {
        const PREFIX: &str = "serve-here-workers-";
        private_folder::remove_leftovers(PREFIX);
        PrivateFolder::make(PREFIX).map(Self)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.0.remove();
    }
}
