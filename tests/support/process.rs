//! Processes as /proc shows them.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// One process, as it was when asked.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// `R`, `S`, `Z` for a zombie, …
    pub(crate) state: char,
    pub(crate) parent: u32,
    command: String,
}

impl Process {
    /// `None` if it is gone.
    pub(crate) fn find(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command stands in brackets and may hold brackets and spaces.
        let (open, close) = (stat.find('(')?, stat.rfind(')')?);
        let mut fields = stat[close + 1..].split_ascii_whitespace();
        Some(Self {
            pid,
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            command: stat[open + 1..close].to_owned(),
        })
    }

    /// Whether it still runs: a zombie does not.
    pub(crate) fn runs(pid: u32) -> bool {
        Self::find(pid).is_some_and(|process| process.state != 'Z')
    }

    /// Whether it is an interpreter that waits for requests. A script that came
    /// from one has its command line, but a name of its own.
    pub(crate) fn is_prepared(&self) -> bool {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let is_interpreter = ["python", "perl"]
            .iter()
            .any(|name| self.command.starts_with(name));
        is_interpreter && (line.contains("serve_here_zygote") || line.contains("/serve-here-warm-"))
    }

    /// All that descend from `pid`, zombies included.
    pub(crate) fn descendants(pid: u32) -> Vec<Self> {
        let all: Vec<Self> = fs::read_dir("/proc")
            .expect("/proc can be read")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(Self::find)
            .collect();
        let mut family = vec![pid];
        let mut found: Vec<Self> = Vec::new();
        // A child can have a lower number than its parent: until nothing new.
        loop {
            let new: Vec<Self> = all
                .iter()
                .filter(|p| family.contains(&p.parent) && !family.contains(&p.pid))
                .cloned()
                .collect();
            if new.is_empty() {
                return found;
            }
            family.extend(new.iter().map(|p| p.pid));
            found.extend(new);
        }
    }
}

/// Ends a process that a script has left behind.
pub(crate) fn end(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // It may have gone by itself.
    let _ = kill_process(pid.expect("a process has a positive number"), Signal::KILL);
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ({})", self.pid, self.command, self.state)
    }
}
