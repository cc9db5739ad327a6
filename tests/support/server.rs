//! The program under test on a folder made for the test. `Server::new()` lays
//! out the folder and the command, `start` runs it; dropping it ends it and
//! all it started. If the test failed, the drop prints what there is to know.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::Instant;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::client::{Client, Response};
use super::process::Process;
use super::report::Report;
use super::{DEADLINE, engine, eventually, fixtures, warm};

/// What a test lays out before the server starts.
pub(crate) struct Setup {
    folder: TempDir,
    under: Vec<OsString>,
    args: Vec<OsString>,
    environment: Vec<(OsString, Option<OsString>)>,
}

pub(crate) struct Server {
    folder: TempDir,
    command: String,
    child: Child,
    address: SocketAddr,
    log: Arc<Log>,
}

/// What the server says on standard error, as it comes.
#[derive(Default)]
struct Log {
    bytes: Mutex<Vec<u8>>,
    grew: Condvar,
}

const UNPOISONED: &str = "no thread panics while it holds the log";

impl Setup {
    /// A file below the root, with the folders it needs.
    pub(crate) fn file(self, path: impl AsRef<OsStr>, bytes: impl AsRef<[u8]>) -> Self {
        let path = self.place(path.as_ref());
        fs::write(path, bytes).expect("the test's own folder can be written");
        self
    }

    /// An executable file.
    pub(crate) fn script(self, path: impl AsRef<OsStr>, text: impl AsRef<[u8]>) -> Self {
        self.file(path.as_ref(), text).mode(path, 0o755)
    }

    /// A script that prints these bytes and nothing else.
    pub(crate) fn prints(self, path: impl AsRef<OsStr>, output: impl AsRef<[u8]>) -> Self {
        // From the line after this one on.
        let text = [b"#!/usr/bin/tail -n+2\n", output.as_ref()].concat();
        self.script(path, text)
    }

    pub(crate) fn mode(self, path: impl AsRef<OsStr>, mode: u32) -> Self {
        fs::set_permissions(self.place(path.as_ref()), PermissionsExt::from_mode(mode))
            .expect("the file is the test's own");
        self
    }

    /// Lets a user who is not the test's into the folder made for the test.
    pub(crate) fn for_everyone(self) -> Self {
        let open = |path: &Path, mode| {
            fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("it is the test's");
        };
        open(self.folder.path(), 0o755);
        open(&self.folder.path().join("tmp"), 0o1777);
        self
    }

    pub(crate) fn folder(self, path: impl AsRef<OsStr>) -> Self {
        fs::create_dir_all(self.place(path.as_ref())).expect("the test's own folder");
        self
    }

    /// A symbolic link below the root; `target` as it stands.
    pub(crate) fn link(self, path: impl AsRef<OsStr>, target: impl AsRef<Path>) -> Self {
        std::os::unix::fs::symlink(target, self.place(path.as_ref())).expect("nothing is there");
        self
    }

    /// A named pipe below the root.
    pub(crate) fn fifo(self, path: impl AsRef<OsStr>) -> Self {
        let path = self.place(path.as_ref());
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o755), 0)
            .expect("nothing is there");
        self
    }

    /// A script of tests/fixtures/cgi, under its name in `cgi-bin`.
    pub(crate) fn fixture(self, name: &str) -> Self {
        let path = format!("cgi-bin/{name}");
        self.fixture_at(name, path)
    }

    /// The same, elsewhere below the root.
    pub(crate) fn fixture_at(self, name: &str, path: impl AsRef<OsStr>) -> Self {
        let from = fixtures("cgi").join(name);
        fs::copy(&from, self.place(path.as_ref()))
            .unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        self
    }

    /// All of a folder of tests/fixtures, with one modification time, so that
    /// Last-Modified is known.
    pub(crate) fn tree(self, folder: &str) -> Self {
        let from = fixtures(folder);
        for entry in walkdir::WalkDir::new(&from) {
            let entry = entry.expect("the fixtures can be read");
            if entry.file_type().is_file() {
                let path = entry.path().strip_prefix(&from).expect("it is below");
                let to = self.place(path.as_os_str());
                fs::copy(entry.path(), &to).expect("the test's own folder can be written");
                let file = fs::File::options().append(true).open(&to);
                file.and_then(|file| {
                    file.set_modified(httpdate::parse_http_date(MODIFIED).unwrap())
                })
                .expect("the file is the test's own");
            }
        }
        self
    }

    /// More of the command line, after port and folder.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// A program, with its arguments, that sets something up and then becomes
    /// the server: `nohup`, `prlimit --nofile=64`.
    pub(crate) fn under<A: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = A>) -> Self {
        let words = words.into_iter().map(|word| word.as_ref().to_owned());
        self.under.extend(words);
        self
    }

    /// A variable of the server's own environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        let value = value.as_ref().to_owned();
        self.environment.push((name.into(), Some(value)));
        self
    }

    pub(crate) fn env_remove(mut self, name: &str) -> Self {
        self.environment.push((name.into(), None));
        self
    }

    /// The folder that is served.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Runs the program and waits for the line that says where it listens.
    pub(crate) fn start(self) -> Server {
        let mut command = self.command();
        let shown = format!("{command:?}");
        let mut child = command.spawn().expect("the program can be run");
        let log = Log::of(child.stderr.take().expect("it is a pipe"));
        let banner = first_line(child.stdout.take().expect("it is a pipe"));
        let Some(address) = banner.as_deref().and_then(address_of) else {
            // Its end is not of interest, only that it ends.
            let _ = child.kill();
            let _ = child.wait();
            panic!(
                "{shown} does not say where it listens, but {banner:?}; standard error:\n{}",
                log.text()
            );
        };
        Server {
            folder: self.folder,
            command: shown,
            child,
            address,
            log,
        }
    }

    /// An environment of which every variable is known, and a PATH on which the
    /// system's interpreters come before a version manager's.
    fn command(&self) -> Command {
        let mut path = OsString::from("/usr/local/bin:/usr/bin:/bin:");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut words = self.under.iter().map(OsString::as_os_str);
        let program = OsStr::new(env!("CARGO_BIN_EXE_serve-here"));
        let mut command = match words.next() {
            None => Command::new(program),
            Some(first) => Command::new(first),
        };
        if !self.under.is_empty() {
            command.args(words).arg(program);
        }
        command
            .arg("0")
            .arg(self.root())
            .args(engine().map(|name| format!("--engine={name}")))
            .args(warm())
            .args(&self.args)
            .env_clear()
            .env("PATH", path)
            .env("TMPDIR", self.folder.path().join("tmp"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// A path below the root whose folder exists.
    fn place(&self, path: &OsStr) -> PathBuf {
        let path = self.root().join(path);
        let folder = path.parent().expect("it is below the root");
        fs::create_dir_all(folder).expect("the test's own folder can be written");
        path
    }
}

/// The modification time of every file that [`Setup::tree`] copies.
pub(crate) const MODIFIED: &str = "Mon, 01 Jan 2024 00:00:00 GMT";

impl Server {
    /// An empty root and the plain command: port 0, nothing else.
    #[expect(
        clippy::new_ret_no_self,
        reason = "the start of a chain that ends in a Server"
    )]
    pub(crate) fn new() -> Setup {
        let folder = tempfile::Builder::new()
            .prefix("serve-here-")
            .tempdir()
            .expect("there is a folder for temporary files");
        for part in ["root", "tmp"] {
            fs::create_dir(folder.path().join(part)).expect("it was just made");
        }
        Setup {
            folder,
            under: Vec::new(),
            args: Vec::new(),
            environment: Vec::new(),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// As it stands in a Host field.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The folder that is served.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// The folder for temporary files of the server and of scripts.
    pub(crate) fn temporary_files(&self) -> Vec<PathBuf> {
        fs::read_dir(self.folder.path().join("tmp"))
            .expect("it is the test's own")
            .map(|entry| entry.expect("it can be read").path())
            .collect()
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// GET on a connection of its own.
    pub(crate) fn get(&self, target: impl AsRef<[u8]>) -> Response {
        self.request("GET", target, &[], b"")
    }

    /// One request on a connection of its own. Host, Connection and, with a
    /// body, Content-Length are added where `headers` do not have them.
    pub(crate) fn request(
        &self,
        method: &str,
        target: impl AsRef<[u8]>,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        let host = self.host();
        let length = body.len().to_string();
        let mut head = [method.as_bytes(), b" ", target.as_ref(), b" HTTP/1.1\r\n"].concat();
        let has = |name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        let own = [
            ("Host", host.as_str(), !has("Host")),
            ("Connection", "close", !has("Connection")),
            (
                "Content-Length",
                &length,
                !body.is_empty() && !has("Content-Length") && !has("Transfer-Encoding"),
            ),
        ];
        let own = own.iter().filter(|field| field.2).map(|f| (f.0, f.1));
        for (name, value) in own.chain(headers.iter().copied()) {
            head.extend(format!("{name}: {value}\r\n").into_bytes());
        }
        head.extend(b"\r\n");
        let mut client = self.connect();
        client.send(head);
        client.send_beside(body.to_vec());
        client.response_to(method)
    }

    /// What the fixture `env` says to a GET.
    pub(crate) fn report(&self, target: impl AsRef<[u8]>) -> Report {
        Report::of(&self.get(target))
    }

    /// A request of a table on a connection of its own: lines end in `\n` and
    /// an empty line starts the body, `{host}` and `{port}` are filled in. `None`
    /// if the connection ends without an answer.
    pub(crate) fn ask(&self, request: impl AsRef<[u8]>) -> Option<Response> {
        let request = self.wire(request.as_ref());
        let method = request.split(|&byte| byte == b' ').next();
        let method = String::from_utf8_lossy(method.unwrap_or_default()).into_owned();
        let mut client = self.connect();
        // The server may refuse the head before it has read all of it.
        client.send_beside(request);
        client.try_response_to(&method)
    }

    /// The bytes of a request of a table.
    pub(crate) fn wire(&self, request: &[u8]) -> Vec<u8> {
        let empty_line = request.windows(2).position(|pair| pair == b"\n\n");
        let (head, body) = match empty_line {
            Some(at) => (&request[..at], &request[at + 2..]),
            None => (request, &b""[..]),
        };
        let mut wire = Vec::new();
        for line in head.split(|&byte| byte == b'\n') {
            wire.extend_from_slice(line);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"\r\n");
        wire.extend_from_slice(body);
        self.filled(&wire)
    }

    /// `{host}` and `{port}` become the server's own.
    pub(crate) fn filled(&self, bytes: &[u8]) -> Vec<u8> {
        let port = self.address.port().to_string();
        let mut filled = Vec::new();
        let mut rest = bytes;
        while let Some(byte) = rest.first() {
            let (with, length) = if rest.starts_with(b"{host}") {
                (self.host().into_bytes(), 6)
            } else if rest.starts_with(b"{port}") {
                (port.clone().into_bytes(), 6)
            } else {
                (vec![*byte], 1)
            };
            filled.extend(with);
            rest = &rest[length..];
        }
        filled
    }

    /// All of standard error so far.
    pub(crate) fn log(&self) -> String {
        self.log.text()
    }

    /// Waits for `text` on standard error and returns all of it.
    pub(crate) fn wait_for_log(&self, text: &str) -> String {
        let end = Instant::now() + DEADLINE;
        let mut bytes = self.log.bytes.lock().expect(UNPOISONED);
        loop {
            let log = String::from_utf8_lossy(&bytes).into_owned();
            if log.contains(text) {
                return log;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // The report of the failure needs the log too.
                drop(bytes);
                panic!("`{text}` is not on standard error:\n{log}");
            }
            (bytes, _) = self.log.grew.wait_timeout(bytes, left).expect(UNPOISONED);
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first whole line on standard error that starts so. Waits for it.
    pub(crate) fn log_line(&self, start: &str) -> String {
        let mut found = None;
        eventually(|| {
            let log = self.log();
            let mut lines = log.split_inclusive('\n');
            found = lines
                .find(|line| line.starts_with(start) && line.ends_with('\n'))
                .map(|line| line.trim_end().to_owned());
            found.is_some()
        });
        found.unwrap_or_else(|| panic!("no line starts with `{start}`:\n{}", self.log()))
    }

    /// Open descriptors of the server.
    pub(crate) fn fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("the server runs")
            .count()
    }

    /// Connections that the server holds open, by /proc/net.
    pub(crate) fn connections(&self) -> usize {
        const LISTEN: &str = "0A";
        let fds = fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the server runs");
        let held: Vec<String> = fds
            .filter_map(|fd| {
                fs::read_link(fd.ok()?.path())
                    .ok()?
                    .into_os_string()
                    .into_string()
                    .ok()
            })
            .collect();
        let tables = ["tcp", "tcp6"].map(|table| {
            // Without IPv6 there is no table of it.
            fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default()
        });
        let lines = tables.iter().flat_map(|table| table.lines().skip(1));
        lines
            .filter(|line| {
                let fields: Vec<&str> = line.split_ascii_whitespace().collect();
                fields[3] != LISTEN && held.contains(&format!("socket:[{}]", fields[9]))
            })
            .count()
    }

    /// The descriptors of a server that has answered before and has nothing to
    /// do now: what [`settles_to`](Self::settles_to) compares with.
    pub(crate) fn idle_fds(&self) -> usize {
        self.get("/");
        assert!(
            eventually(|| self.connections() == 0),
            "a connection stays open"
        );
        self.fds()
    }

    /// A figure of the server's memory in bytes: `VmRSS` for now, `VmHWM` for
    /// the most there ever was.
    pub(crate) fn memory(&self, name: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("the server runs");
        let figure = status.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = figure.and_then(|rest| {
            rest.trim_matches([':', ' ', '\t', 'k', 'B'])
                .parse::<usize>()
                .ok()
        });
        kilobytes.expect("the kernel counts it") << 10
    }

    /// Open descriptors of the server when it has answered once and rests.
    pub(crate) fn fds_at_rest(&self) -> usize {
        self.get("/");
        let (mut fds, mut same) = (0, 0);
        eventually(|| {
            let now = self.fds();
            same = if now == fds { same + 1 } else { 0 };
            fds = now;
            same == 20
        });
        fds
    }

    /// Every process that descends from the server, zombies included.
    pub(crate) fn children(&self) -> Vec<Process> {
        Process::descendants(self.pid())
    }

    /// The scripts that run: the server's own children.
    pub(crate) fn scripts(&self) -> Vec<Process> {
        let mut children = self.children();
        children.retain(|process| process.parent == self.pid() && process.state != 'Z');
        children
    }

    /// Waits until the server has no more descriptors open than before, no
    /// process below it and no temporary file.
    pub(crate) fn settles_to(&self, fds: usize) {
        let settled = eventually(|| {
            self.fds() <= fds && self.children().is_empty() && self.temporary_files().is_empty()
        });
        let children: Vec<String> = self.children().iter().map(Process::to_string).collect();
        assert!(
            settled,
            "left behind: {} descriptors where {fds} were, processes {children:?}, files {:?}",
            self.fds(),
            self.temporary_files()
        );
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// Waits for the end of the server.
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        match end_of(&mut self.child) {
            Some(status) => status,
            None => panic!("the server does not end"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            self.describe();
        }
        // What outlives the server must not outlive the test, and it must not
        // wait for scripts that never end.
        for child in self.children() {
            send_signal(child.pid, Signal::KILL);
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::TERM);
            if end_of(&mut self.child).is_none() {
                // It did not go by itself. Only its end counts now.
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}

impl Server {
    /// For the log of a failed test: the command, the folder, standard error.
    fn describe(&self) {
        eprintln!("\n$ {}", self.command);
        let root = self.root();
        for entry in walkdir::WalkDir::new(&root)
            .sort_by_file_name()
            .into_iter()
            .flatten()
        {
            let path = entry.path().strip_prefix(&root).unwrap_or(entry.path());
            let (mode, length) = entry
                .metadata()
                .map_or((0, 0), |m| (m.permissions().mode(), m.len()));
            eprintln!("{mode:06o} {length:>9} {}", path.display());
        }
        eprintln!("--- standard error ---\n{}---", self.log());
    }
}

impl Log {
    /// Collects in a thread of its own: a full pipe would stop the server.
    fn of(mut stderr: impl Read + Send + 'static) -> Arc<Self> {
        let log = Arc::new(Self::default());
        let own = Arc::clone(&log);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut bytes) {
                let mut log = own.bytes.lock().expect(UNPOISONED);
                log.extend_from_slice(&bytes[..count]);
                own.grew.notify_all();
            }
        });
        log
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect(UNPOISONED)).into_owned()
    }
}

/// The first line, if it comes; the rest is read and dropped.
fn first_line(stdout: impl Read + Send + 'static) -> Option<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // Nobody waits for the later lines.
            let _ = sender.send(line);
        }
    });
    receiver.recv_timeout(DEADLINE).ok()
}

/// `Serving HTTP on 127.0.0.1 port 8080 (…) ...`
fn address_of(banner: &str) -> Option<SocketAddr> {
    let words = banner.strip_prefix("Serving HTTP on ")?;
    let (host, rest) = words.split_once(" port ")?;
    let port = rest.split(' ').next()?.parse().ok()?;
    Some(SocketAddr::new(host.parse().ok()?, port))
}

fn end_of(child: &mut Child) -> Option<ExitStatus> {
    let mut status = None;
    eventually(|| {
        status = child.try_wait().expect("it is our child");
        status.is_some()
    });
    status
}

fn send_signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // It may have gone in the meantime.
    let _ = kill_process(pid.expect("a process has a positive number"), signal);
}
