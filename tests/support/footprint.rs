//! What a server takes of the machine, before and after it was abused.

use std::fs;
use std::time::{Duration, Instant};

use super::server::Server;

/// Threads that have nothing more to do are kept for some seconds.
const REST: Duration = Duration::from_secs(30);

/// Of a server that has nothing to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footprint {
    descriptors: usize,
    threads: usize,
    /// In bytes.
    memory: usize,
}

impl Server {
    pub(crate) fn footprint(&self) -> Footprint {
        let descriptors = self.idle_fds();
        Footprint {
            descriptors,
            threads: self.threads(),
            memory: self.memory("VmRSS"),
        }
    }

    /// Waits until the server takes no more than before: no descriptor, no
    /// thread, no process, no temporary file, and of memory no more than
    /// `margin` bytes, which the allocator may keep.
    pub(crate) fn returns_to(&self, before: Footprint, margin: usize) {
        let end = Instant::now() + REST;
        let returned = |server: &Self| {
            server.fds() <= before.descriptors
                && server.threads() <= before.threads
                && server.children().is_empty()
                && server.temporary_files().is_empty()
                && server.memory("VmRSS") <= before.memory + margin
        };
        while !returned(self) {
            assert!(
                Instant::now() < end,
                "left behind: {} descriptors, {} threads, {} bytes of memory where there was \
                 {before:?}, processes {:?}, files {:?}",
                self.fds(),
                self.threads(),
                self.memory("VmRSS"),
                self.children(),
                self.temporary_files()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn threads(&self) -> usize {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid()));
        tasks.expect("the server runs").count()
    }
}
