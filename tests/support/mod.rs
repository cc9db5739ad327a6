//! What the tests share: a server on a folder made for the test, a client that
//! sees every byte, and views of processes and logs. No test lives here.

mod client;
mod footprint;
mod process;
mod report;
mod server;
pub(crate) mod transcript;
pub(crate) mod webdriver;

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

pub(crate) use client::{Client, Head, Response};
pub(crate) use process::{Process, end};
pub(crate) use report::Report;
pub(crate) use server::{Server, Setup};

/// How long anything may take before the test says that it hangs. Generous: a
/// loaded machine is no failure.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Polls until `done`; false if it was not before the deadline.
pub(crate) fn eventually(mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + DEADLINE;
    while !done() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Whether a program is there. If not, says so past libtest's capture, so that
/// whoever runs all tests can count what was not tried.
pub(crate) fn needs(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    if !found {
        skip(&format!("needs {program}"));
    }
    found
}

/// Whether the system's Perl has a module; as [`needs`].
pub(crate) fn needs_perl_module(name: &str) -> bool {
    let found = Command::new("/usr/bin/perl")
        .args([&format!("-M{name}"), "-e", "1"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !found {
        skip(&format!("needs {name}.pm for Perl"));
    }
    found
}

/// The line that tells what was not tried, and why; scripts/test counts the tests
/// in these lines, because libtest says of them that they passed.
pub(crate) fn skip(why: &str) {
    let thread = std::thread::current();
    // libtest gives each thread the name of its test.
    let test = thread.name().unwrap_or("a test");
    // A lost line loses no test.
    let _ = std::io::stderr().write_all(format!("skipped: {why} (in {test})\n").as_bytes());
}

/// The engine all tests run on, if not the default: `--engine`.
pub(crate) fn engine() -> Option<String> {
    std::env::var("TEST_ENGINE").ok()
}

/// How scripts are run in all tests, if not as ever: all of them from prepared
/// interpreters, where that can be, or none.
pub(crate) fn warm() -> &'static [&'static str] {
    match std::env::var("TEST_WARM").as_deref() {
        Ok("at-once") => &["--warm-at-once", "--warm-max=64"],
        Ok("off") => &["--no-warm"],
        _ => &[],
    }
}

/// Whether this is a run on an engine that can't do `what` (docs/limits.md);
/// says so.
pub(crate) fn tiny_http_cannot(what: &str) -> bool {
    let it_is = engine().is_some_and(|name| name == "tiny-http");
    if it_is {
        skip(&format!("tiny-http cannot {what}"));
    }
    it_is
}

/// An IPv4 address of this machine that is not loopback.
pub(crate) fn outward() -> Option<IpAddr> {
    let all = if_addrs::get_if_addrs().ok()?;
    let mut addresses = all.into_iter().map(|interface| interface.ip());
    addresses.find(|ip| ip.is_ipv4() && !ip.is_loopback())
}

/// Real curl, silent but for errors, never longer than the deadline.
pub(crate) fn curl(args: &[&str]) -> Output {
    let limit = DEADLINE.as_secs().to_string();
    Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", &limit])
        .args(args)
        .output()
        .expect("curl is there: the test asked `needs`")
}

/// The first core that this process may use.
pub(crate) fn first_core() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .expect("proc(5)");
    let end = list.find(['-', ',']).unwrap_or(list.len());
    list[..end].trim().to_owned()
}

/// A folder of tests/fixtures.
pub(crate) fn fixtures(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(folder)
}

/// Bytes for a message: escaped where they are no text.
pub(crate) fn shown(bytes: &[u8]) -> String {
    bytes
        .escape_ascii()
        .to_string()
        .replace("\\r\\n", "\\r\\n\n")
}

/// Runs rows of a table to the end and fails with all that went wrong, each
/// with its rule and what was asked.
pub(crate) struct Rows(Vec<String>);

impl Rows {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// `what` names the rule and the request of the row.
    pub(crate) fn check(&mut self, what: &str, holds: bool, saw: impl FnOnce() -> String) {
        if !holds {
            self.0.push(format!("{what}\n    {}", saw()));
        }
    }

    /// Those of another table.
    pub(crate) fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(crate) fn done(self) {
        assert!(
            self.0.is_empty(),
            "{} rows do not hold:\n{}",
            self.0.len(),
            self.0.join("\n")
        );
    }
}
