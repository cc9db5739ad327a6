//! Machines made of network namespaces: a switch, and hosts that hang on it by
//! one cable each. Dropping it ends all that runs there and takes it down.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::support::{Process, eventually, needs, skip};

const FOLDER: &str = "/run/netns";
const PREFIX: &str = "serve-here-";

pub(super) struct Network {
    /// `serve-here-PID-NUMBER`
    name: String,
    addresses: &'static [&'static str],
}

/// A machine on it.
#[derive(Clone, Copy)]
pub(super) struct Host<'a> {
    network: &'a Network,
    number: usize,
}

impl Network {
    /// A machine for each address; `None`, and it says so, if that can't be had
    /// here.
    pub(super) fn new(addresses: &'static [&'static str]) -> Option<Self> {
        static NETWORKS: AtomicUsize = AtomicUsize::new(0);
        if !needs("ip") || !needs("nft") || !needs("tc") {
            return None;
        }
        remove_stale();
        let number = NETWORKS.fetch_add(1, Ordering::SeqCst);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let network = Self { name, addresses };
        if !ip(&["netns", "add", &network.switch()]) {
            skip("needs the right to make network namespaces");
            return None;
        }
        network.wire();
        Some(network)
    }

    fn wire(&self) {
        let switch = self.switch();
        expect_ip(&["-n", &switch, "link", "add", "switch", "type", "bridge"]);
        expect_ip(&["-n", &switch, "link", "set", "switch", "up"]);
        for host in self.all() {
            let (name, port) = (host.name(), host.port());
            expect_ip(&["netns", "add", &name]);
            expect_ip(&["-n", &name, "link", "set", "lo", "up"]);
            let cable = ["link", "add", &port, "type", "veth", "peer", "name", "eth0"];
            let ends = ["-n", &switch].into_iter().chain(cable);
            expect_ip(&ends.chain(["netns", &name]).collect::<Vec<_>>());
            expect_ip(&[
                "-n", &switch, "link", "set", &port, "master", "switch", "up",
            ]);
            let address = format!("{}/24", host.address());
            expect_ip(&["-n", &name, "address", "add", &address, "dev", "eth0"]);
            expect_ip(&["-n", &name, "link", "set", "eth0", "up"]);
        }
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.name)
    }

    pub(super) fn host(&self, number: usize) -> Host<'_> {
        assert!(number < self.addresses.len());
        Host {
            network: self,
            number,
        }
    }

    fn all(&self) -> impl Iterator<Item = Host<'_>> {
        (0..self.addresses.len()).map(|number| self.host(number))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in self.all() {
            host.signal(Signal::KILL);
            ip(&["netns", "delete", &host.name()]);
        }
        ip(&["netns", "delete", &self.switch()]);
    }
}

impl Host<'_> {
    fn name(&self) -> String {
        format!("{}-{}", self.network.name, self.number)
    }

    pub(super) fn address(&self) -> String {
        self.network.addresses[self.number].to_owned()
    }

    /// Its place at the switch.
    fn port(&self) -> String {
        format!("port{}", self.number)
    }

    /// What goes before a command that is to run there.
    pub(super) fn under(&self) -> [String; 4] {
        ["ip".into(), "netns".into(), "exec".into(), self.name()]
    }

    /// Starts a program there. Its standard error is the test's.
    pub(super) fn spawn(&self, words: &[String], variables: &[(&str, &OsStr)]) -> Running {
        let [program, under @ ..] = self.under();
        let child = Command::new(program)
            .args(under)
            .args(words)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ip is there");
        Running(child)
    }

    /// Sends a signal to all that runs there.
    pub(super) fn signal(&self, signal: Signal) {
        let listed = Command::new("ip")
            .args(["netns", "pids", &self.name()])
            .output()
            .expect("ip is there");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        for pid in listed.split_ascii_whitespace() {
            let pid = pid.parse().ok().and_then(Pid::from_raw);
            // It may have gone in the meantime.
            let _ = kill_process(pid.expect("a process number"), signal);
        }
    }

    /// This thread is on that machine from now on.
    pub(super) fn enter(&self) {
        let path = format!("{FOLDER}/{}", self.name());
        let file = File::open(path).expect("the namespace has a name");
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), network)
            .expect("whoever may make it may enter it");
    }

    /// Drops all that comes or goes.
    pub(super) fn cut_off(&self) {
        for line in [
            "add table inet cut",
            "add chain inet cut in { type filter hook input priority 0; policy drop; }",
            "add chain inet cut out { type filter hook output priority 0; policy drop; }",
        ] {
            self.run("nft", &[line]);
        }
    }

    pub(super) fn connect(&self) {
        self.run("nft", &["delete table inet cut"]);
    }

    /// What it sends goes through a thin line: 20 kbit/s, any queue.
    pub(super) fn slow_down(&self) {
        let line = "qdisc add dev eth0 root tbf rate 20kbit burst 1600 limit 1000000";
        self.run("tc", &line.split(' ').collect::<Vec<_>>());
    }

    pub(super) fn speed_up(&self) {
        self.run("tc", &["qdisc", "del", "dev", "eth0", "root"]);
    }

    fn run(&self, program: &str, args: &[&str]) {
        let [ip, under @ ..] = self.under();
        let ran = Command::new(ip)
            .args(under)
            .arg(program)
            .args(args)
            .output();
        let ran = ran.expect("ip is there");
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.success(), "{program} {args:?}: {said}");
    }
}

/// Killed when it is dropped, with what it has started if that lets it go.
pub(super) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ip(args: &[&str]) -> bool {
    let ran = Command::new("ip").args(args).output();
    ran.expect("ip is there").status.success()
}

fn expect_ip(args: &[&str]) {
    assert!(ip(args), "ip {}", args.join(" "));
}

/// Namespaces of tests that were killed before they could tidy up.
fn remove_stale() {
    let Ok(entries) = fs::read_dir(FOLDER) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if let Some(pid) = pid.and_then(|pid| pid.parse().ok())
            && Process::find(pid).is_none()
        {
            ip(&["netns", "delete", &name]);
        }
    }
}

/// Whether anything listens there; to be asked from another host.
pub(super) fn listens(address: &str) -> bool {
    eventually(|| std::net::TcpStream::connect(address).is_ok())
}
