//! Application servers for the tests: real programs on a Unix socket of their
//! own, and fake ones that a test makes break the rules.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use crate::support::{DEADLINE, Server, eventually, fixtures, skip};

/// A program that listens on `socket` in a folder of its own. Ended, with all
/// that it started, when it is dropped.
pub(super) struct Program {
    folder: TempDir,
    child: Child,
}

impl Program {
    /// `{socket}` in an argument becomes the path of the socket.
    pub(super) fn start<A: AsRef<OsStr>>(command: &str, args: impl IntoIterator<Item = A>) -> Self {
        let folder = tempfile::Builder::new().prefix("peer-").tempdir();
        let folder = folder.expect("there is a folder for temporary files");
        Self::start_in(folder, command, args)
    }

    fn start_in<A: AsRef<OsStr>>(
        folder: TempDir,
        command: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let child = spawn(command, args, folder.path().join("socket"));
        let program = Self { folder, child };
        program.wait();
        program
    }

    fn wait(&self) {
        let listens = eventually(|| UnixStream::connect(self.socket()).is_ok());
        assert!(listens, "it does not listen on its socket");
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// As a target of `--route` names it.
    pub(super) fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }
}

fn spawn<A: AsRef<OsStr>>(
    command: &str,
    args: impl IntoIterator<Item = A>,
    socket: PathBuf,
) -> Child {
    let socket = socket.into_os_string().into_string().expect("plain");
    let args = args.into_iter().map(|arg| {
        let arg = arg.as_ref().to_str().expect("plain").to_owned();
        arg.replace("{socket}", &socket)
    });
    Command::new(command)
        .args(args)
        .env("PHP_FCGI_CHILDREN", "2")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("the program is there: the test asked `needs`")
}

impl Drop for Program {
    fn drop(&mut self) {
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // It may have ended by itself.
        let _ = kill_process_group(group.expect("a positive number"), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// A file of tests/fixtures/gateway.
pub(super) fn fixture(name: &str) -> String {
    let path = fixtures("gateway").join(name);
    path.into_os_string().into_string().expect("plain")
}

pub(super) fn php() -> Program {
    Program::start("php-cgi", ["-b", "{socket}"])
}

/// php-fpm with so many children, which also says who it is under `/ping` and
/// `/status`. `None`, and it is said, if it isn't there.
pub(super) fn php_fpm(children: usize) -> Option<Program> {
    let Some(program) = php_fpm_program() else {
        skip("needs php-fpm");
        return None;
    };
    let folder = tempfile::Builder::new().prefix("peer-").tempdir();
    let folder = folder.expect("there is a folder for temporary files");
    let here = folder.path().display();
    // Only root can become somebody else, and has to say whom.
    let (user, flag) = if rustix::process::geteuid().is_root() {
        ("user = root\ngroup = root\n", "-R")
    } else {
        ("", "-F")
    };
    let settings = format!(
        "[global]\nerror_log = {here}/log\ndaemonize = no\n[www]\n{user}\
         listen = {here}/socket\nlisten.backlog = 511\npm = static\n\
         pm.max_children = {children}\npm.status_path = /status\nping.path = /ping\n\
         catch_workers_output = yes\nsecurity.limit_extensions = .php\n"
    );
    let file = folder.path().join("php-fpm.conf");
    std::fs::write(&file, settings).expect("the folder is the test's own");
    let file = file.to_str().expect("plain");
    let program = program.to_str().expect("plain");
    Some(Program::start_in(folder, program, ["-F", flag, "-y", file]))
}

/// Debian names it after its version, and keeps it from the paths of most users.
fn php_fpm_program() -> Option<PathBuf> {
    let names = std::fs::read_dir("/usr/sbin").ok()?;
    let paths = names.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .filter(|path| path.to_string_lossy().contains("/php-fpm"))
        .max()
}

pub(super) fn fcgiwrap() -> Program {
    Program::start("fcgiwrap", ["-c", "3", "-s", "unix:{socket}"])
}

pub(super) fn perl_responder() -> Program {
    let script = fixture("responder.pl");
    Program::start("/usr/bin/perl", [&script, "{socket}"])
}

pub(super) fn uwsgi(option: &str) -> Program {
    let file = fixture("application.py");
    let args = ["--plugin", "python3", option, "{socket}", "--wsgi-file"];
    let more = ["--master", "--processes", "2", "--die-on-term"];
    Program::start("uwsgi", args.into_iter().chain([&file[..]]).chain(more))
}

/// A gunicorn with two workers, which runs `application.py`.
pub(super) fn gunicorn() -> Program {
    let file = PathBuf::from(fixture("application.py"));
    let folder = file.parent().expect("a folder").to_str().expect("plain");
    let args = [
        "-b",
        "unix:{socket}",
        "-w",
        "2",
        "-k",
        "gthread",
        "--threads",
        "2",
    ];
    let application = ["--chdir", folder, "application"];
    Program::start("gunicorn", args.into_iter().chain(application))
}

pub(super) fn scgi_server() -> Program {
    let script = fixture("scgi_server.py");
    Program::start("/usr/bin/python3", [&script, "{socket}"])
}

/// A peer on TCP that does what the test says, a thread for each connection.
pub(super) struct Fake {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Fake {
    /// `serve` is given each connection with its number, from 0.
    pub(super) fn new(serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let accepted = Arc::new(AtomicUsize::new(0));
        let (serve, count) = (Arc::new(serve), Arc::clone(&accepted));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let number = count.fetch_add(1, Ordering::SeqCst);
                let limit = stream.set_read_timeout(Some(DEADLINE));
                limit.expect("the timeout is not zero");
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(stream, number));
            }
        });
        Self { address, accepted }
    }

    /// A `FastCGI` application that says `output` to each request, and that it
    /// has ended.
    pub(super) fn responder(output: impl Into<Vec<u8>>) -> Self {
        let output = output.into();
        Self::new(move |mut stream, _| {
            while read_request(&mut stream).is_some() {
                let answer = [stdout(&output), end(0, 0)].concat();
                if stream.write_all(&answer).is_err() {
                    return;
                }
            }
        })
    }

    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Connections so far.
    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// An address of this machine on which nobody listens.
pub(super) fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("it is bound").to_string()
}

pub(super) const ABORT_REQUEST: u8 = 2;

/// A `FastCGI` request as the application sees it.
#[derive(Default)]
pub(super) struct Request {
    pub(super) flags: u8,
    pub(super) params: Vec<u8>,
    pub(super) stdin: Vec<u8>,
}

impl Request {
    /// Whether a pair with short lengths is among the parameters.
    pub(super) fn has(&self, name: &str, value: &str) -> bool {
        let lengths = [name.len(), value.len()].map(|n| u8::try_from(n).expect("short"));
        let pair = [&lengths[..], name.as_bytes(), value.as_bytes()].concat();
        self.params.windows(pair.len()).any(|window| window == pair)
    }
}

/// `None`: the connection ended before a whole record.
pub(super) fn read_record(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut header = [0; 8];
    stream.read_exact(&mut header).ok()?;
    let [version, kind, 0, 1, high, low, padding, _] = header else {
        panic!("no record for request 1: {header:?}");
    };
    assert_eq!(version, 1);
    let length = usize::from(u16::from_be_bytes([high, low]));
    let mut content = vec![0; length + usize::from(padding)];
    stream.read_exact(&mut content).ok()?;
    content.truncate(length);
    Some((kind, content))
}

/// Up to the end of its content; fails the test if the order is wrong (C150).
pub(super) fn read_request(stream: &mut TcpStream) -> Option<Request> {
    const BEGIN_REQUEST: u8 = 1;
    const PARAMS: u8 = 4;
    const STDIN: u8 = 5;
    let mut request = Request::default();
    let (kind, begin) = read_record(stream)?;
    assert_eq!((kind, &begin[..2]), (BEGIN_REQUEST, &[0, 1][..]));
    request.flags = begin[2];
    for (stream_kind, to) in [(PARAMS, &mut request.params), (STDIN, &mut request.stdin)] {
        loop {
            let (kind, content) = read_record(stream)?;
            assert_eq!(kind, stream_kind);
            if content.is_empty() {
                break;
            }
            to.extend(content);
        }
    }
    Some(request)
}

/// A record of an application.
pub(super) fn record(kind: u8, id: u8, content: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    // Odd lengths of padding, which a reader has to skip.
    for content in content.chunks(65535) {
        let [high, low] = u16::try_from(content.len()).expect("short").to_be_bytes();
        let padding = low % 5;
        all.extend([1, kind, 0, id, high, low, padding, 0]);
        all.extend(content);
        all.extend(vec![0xaa; usize::from(padding)]);
    }
    all
}

pub(super) fn stdout(output: &[u8]) -> Vec<u8> {
    record(6, 1, output)
}

pub(super) fn stderr(output: &[u8]) -> Vec<u8> {
    record(7, 1, output)
}

pub(super) fn end(status: u8, protocol: u8) -> Vec<u8> {
    record(3, 1, &[0, 0, 0, status, protocol, 7, 7, 7])
}

/// Waits until the server has closed the connection, and reads nothing of it.
pub(super) fn wait_for_end(stream: &TcpStream) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let _ = poll(&mut fds, Some(&limit));
}

/// As [`Server::settles_to`], for a server that may have kept connections: they
/// close after ten seconds.
pub(super) fn settles_to(server: &Server, fds: usize) {
    eventually(|| server.fds() <= fds);
    server.settles_to(fds);
}
