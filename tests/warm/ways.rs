//! Runs a group of scripts three ways: directly, by the server with an
//! interpreter of its own, by the server warm. Compares status, fields, body,
//! standard error and how the process ended, byte by byte.
//!
//! What differs by nature is one word in all: the folder made for the test, and
//! the address of an object. The rest (process numbers, ports, times) the scripts mask themselves, as a
//! relation: the sender puts the parent's number into the field `X-Parent`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::{Report, Response, Rows, Server, Setup, eventually};

/// Requests that are on the way at once.
const CLIENTS: usize = 3;

/// Scripts that are run with the same environment and the same request.
pub(crate) struct Group<'a> {
    pub(crate) name: &'a str,
    /// Below the root, without the first slash.
    pub(crate) scripts: Vec<String>,
    /// Set for the server and so for its scripts.
    pub(crate) environment: &'a [(&'a str, &'a str)],
    /// Of the server, besides those that every group has.
    pub(crate) args: &'a [&'a str],
    /// What the script is given as arguments, by an indexed query.
    pub(crate) arguments: &'a [&'a str],
    /// Words before the server's command, and before the script's when it is
    /// run directly.
    pub(crate) under: &'a [&'a str],
    /// Makes the files.
    pub(crate) lay: &'a (dyn Fn(Setup) -> Setup + Sync),
    /// Sent with POST; without it the method is GET.
    pub(crate) body: Option<&'a [u8]>,
    /// Sent in chunks: the server spools it.
    pub(crate) chunked: bool,
    /// How often each is asked of each server, at least.
    pub(crate) rounds: usize,
    /// Those that always get an interpreter of their own.
    pub(crate) plain: &'a [&'a str],
    /// Those that need not get warm.
    pub(crate) either: &'a [&'a str],
}

/// What a script did, in words that don't depend on who ran it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Answer {
    status: u16,
    fields: Vec<String>,
    body: String,
}

/// All runs of one script by one server.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    answers: BTreeSet<Answer>,
    /// What one run wrote to standard error, for each that wrote something.
    stderr: Vec<Vec<String>>,
    /// What the server says of the runs: how they ended, what was wrong.
    notes: Vec<String>,
}

/// One run without the server.
#[derive(Debug, PartialEq, Eq)]
struct Direct {
    stdout: String,
    stderr: Vec<String>,
    /// As the server would word it; empty for success.
    end: String,
}

/// Whoever runs the tests may have left descriptors open; the server closes them.
const CLOSE: &str = "POSIX::close($_) for 3 .. 1023; exec {$ARGV[0]} @ARGV";

impl Group<'_> {
    /// Adds a row for everything that is not the same.
    pub(crate) fn compare(&self, rows: &mut Rows) {
        let seed = seed();
        let order = format!("{}, seed {seed} (TEST_SEED={seed} repeats it)", self.name);
        let mut random = Random(seed);
        let plain = self.start(&["--no-warm"]);
        let direct: BTreeMap<&String, Direct> = self
            .scripts
            .iter()
            .map(|script| (script, self.directly(&plain, script, rows)))
            .collect();
        let by_plain = self.ask_all(plain, &mut random, false, rows);
        for (script, direct) in &direct {
            let what = format!("{script}: directly and by the server, {order}");
            compare_direct(&what, direct, &by_plain[*script], rows);
        }
        let by_warm = self.ask_all(
            self.start(&["--warm-max", "64", "--warm-all"]),
            &mut random,
            true,
            rows,
        );
        for script in &self.scripts {
            let what = format!("{script}: plain and warm, {order}");
            compare_servers(&what, &by_plain[script], &by_warm[script], rows);
        }
    }

    fn start(&self, args: &[&str]) -> Server {
        let setup = Server::new()
            .args([
                "--log",
                "json",
                "--cgi-dir",
                "/python",
                "--cgi-dir",
                "/perl",
            ])
            .args(["--cgi-dir", "/cgi-bin", "--cgi-jobs", "8"])
            .args(args)
            .args(self.args)
            .args((!self.arguments.is_empty()).then_some("--cgi-args"))
            .fixture("env");
        let setup = if self.under.is_empty() {
            setup
        } else {
            setup.under(self.under)
        };
        let setup = self.environment.iter().fold(setup, |setup, (name, value)| {
            let folder = setup.root().parent().unwrap().display().to_string();
            setup.arg(format!(
                "--cgi-env={name}={}",
                value.replace("{folder}", &folder)
            ))
        });
        (self.lay)(setup).start()
    }

    fn request(&self, server: &Server, script: &str) -> Response {
        let method = if self.body.is_some() { "POST" } else { "GET" };
        let parent = server.pid().to_string();
        let mut fields = vec![("X-Parent", &*parent)];
        let mut body = self.body.unwrap_or_default().to_vec();
        if self.body.is_some() {
            fields.push(("Content-Type", "application/x-www-form-urlencoded"));
        }
        if self.chunked {
            fields.push(("Transfer-Encoding", "chunked"));
            let size = format!("{:x}\r\n", body.len());
            body = [size.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
        }
        let query = if self.arguments.is_empty() {
            "a=1&b=%20c".to_owned()
        } else {
            self.arguments.join("+")
        };
        server.request(method, format!("/{script}?{query}"), &fields, &body)
    }

    /// With the environment that the server gives, twice: what is not the same
    /// then is the script's own doing.
    fn directly(&self, server: &Server, script: &str, rows: &mut Rows) -> Direct {
        let report = Report::of(&self.request(server, "cgi-bin/env"));
        let run = || self.run(server, script, &report.environment);
        let (first, second) = (run(), run());
        rows.check(
            &format!("{script}: twice directly, {}", self.name),
            first == second,
            || format!("{first:?}\n    {second:?}"),
        );
        second
    }

    fn run(&self, server: &Server, script: &str, environment: &[Vec<u8>]) -> Direct {
        let root = server.root();
        let file = root.join(script);
        // In the order of the server's; std::process would sort it.
        let environment = environment.iter().map(|variable| {
            let text = String::from_utf8_lossy(variable);
            let (name, value) = text.split_once('=').expect("it is a variable");
            let own = match name {
                "HTTP_X_PARENT" => std::process::id().to_string(),
                "SCRIPT_FILENAME" | "SCRIPT_NAME" | "REQUEST_URI" => {
                    value.replace("cgi-bin/env", script)
                }
                "CONTEXT_PREFIX" | "CONTEXT_DOCUMENT_ROOT" => value.replace(
                    "/cgi-bin",
                    &format!("/{}", script.split('/').next().unwrap()),
                ),
                _ => value.to_owned(),
            };
            format!("{name}={own}")
        });
        let folder = if self.args.contains(&"--cgi-cwd=root") {
            &*root
        } else {
            file.parent().unwrap()
        };
        let launch = [
            "setpriv",
            "--pdeathsig",
            "TERM",
            "perl",
            "-MPOSIX",
            "-e",
            CLOSE,
        ];
        let mut words = self.under.iter().chain(&launch);
        let mut child = Command::new(words.next().expect("there are words"))
            .args(words)
            .args(["env", "-i"])
            .args(environment)
            .arg(&file)
            .args(self.arguments)
            .current_dir(folder)
            .process_group(0)
            .stdin(self.stdin())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the test asked `needs`");
        if let (Some(mut stdin), Some(body)) = (child.stdin.take(), self.body) {
            let body = body.to_vec();
            // A script may answer first, or want none of it.
            thread::spawn(move || drop(stdin.write_all(&body)));
        }
        let output = child.wait_with_output().expect("it is our child");
        let end = match (output.status.code(), output.status.signal()) {
            (Some(0), _) => String::new(),
            (Some(code), _) => format!("exit status {code}"),
            (None, signal) => format!("ended by signal {}", signal.unwrap_or_default()),
        };
        Direct {
            stdout: masked(&output.stdout, &root).escape_ascii().to_string(),
            stderr: lines(&masked(&output.stderr, &root)),
            end,
        }
    }

    /// The kind of descriptor that the server would give.
    fn stdin(&self) -> Stdio {
        match self.body {
            None => Stdio::null(),
            Some(body) if self.chunked => {
                let mut file = tempfile::tempfile().expect("there is room");
                file.write_all(body)
                    .and_then(|()| file.rewind())
                    .expect("there is room");
                file.into()
            }
            Some(_) => Stdio::piped(),
        }
    }

    /// Asks in a shuffled order, several at once; stops the server for the last
    /// lines of its log.
    fn ask_all(
        &self,
        mut server: Server,
        random: &mut Random,
        warm: bool,
        rows: &mut Rows,
    ) -> BTreeMap<String, Seen> {
        let answers = Mutex::new(Vec::new());
        let ask = |script: &String| {
            let response = self.request(&server, script);
            let answer = Answer::of(&response, &server.root());
            answers.lock().unwrap().push((script.clone(), answer));
        };
        if warm {
            let exempt = [self.plain, self.either].concat();
            for script in &self.scripts {
                if exempt.contains(&script.as_str()) {
                    continue;
                }
                let is_warm = eventually(|| {
                    ask(script);
                    warm_runs(&server.log(), script) > 0
                });
                rows.check(
                    &format!("{script}: gets warm, {}", self.name),
                    is_warm,
                    || "no run is warm in the access log".to_owned(),
                );
            }
        }
        let mut order: Vec<&String> = (0..self.rounds).flat_map(|_| &self.scripts).collect();
        random.shuffle(&mut order);
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    while let Some(script) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                        ask(script);
                    }
                });
            }
        });
        let answers = answers.into_inner().unwrap();
        let mut expected: BTreeMap<String, Seen> = BTreeMap::new();
        let mut asked: BTreeMap<&String, usize> = BTreeMap::new();
        for (script, answer) in &answers {
            *asked.entry(script).or_default() += 1;
            expected
                .entry(script.clone())
                .or_default()
                .answers
                .insert(answer.clone());
        }
        server.signal(rustix::process::Signal::TERM);
        server.wait_exit();
        let log = server.log();
        for script in self.plain {
            let runs = warm_runs(&log, script);
            rows.check(
                &format!("{script}: stays plain, {}", self.name),
                runs == 0,
                || format!("{runs} runs were warm"),
            );
        }
        for (script, seen) in &mut expected {
            let root = server.root();
            let log = String::from_utf8_lossy(&masked(log.as_bytes(), &root)).into_owned();
            seen.read(&log, script);
            let what = format!("{script}: as often as asked, {}, warm: {warm}", self.name);
            seen.once_a_run(&what, asked[script], rows);
        }
        expected
    }
}

impl Answer {
    fn of(response: &Response, root: &Path) -> Self {
        let fields = response.head.headers.iter();
        let fields = fields
            .filter(|(name, _)| !is_passing(name))
            .map(|(name, value)| field(name, &masked(value, root).escape_ascii().to_string()));
        let end = if response.complete { "" } else { "(cut off)" };
        Self {
            status: response.status,
            fields: fields.collect(),
            body: format!("{}{end}", masked(&response.body, root).escape_ascii()),
        }
    }
}

impl Seen {
    /// What the log says of a script.
    fn read(&mut self, log: &str, script: &str) {
        let mut runs: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let start = format!("cgi '{script}'");
        for line in log.lines().filter_map(|line| line.strip_prefix(&*start)) {
            if let Some(note) = line.strip_prefix(": ") {
                self.notes.push(note.to_owned());
            } else if let Some((pid, text)) = line[1..].split_once("]: ") {
                runs.entry(pid).or_default().push(text.to_owned());
            }
        }
        self.stderr = runs.into_values().collect();
    }

    /// All runs are alike, and there are as many as requests: none was lost,
    /// none was done twice. Of the rest one run stays.
    fn once_a_run(&mut self, what: &str, asked: usize, rows: &mut Rows) {
        rows.check(what, self.answers.len() == 1, || {
            let mut answers = self.answers.iter().map(|answer| format!("{answer:?}"));
            let two = [answers.next(), answers.next()].map(Option::unwrap_or_default);
            let first = first_difference(&two[0], &two[1]);
            format!("{} answers: {first}", self.answers.len())
        });
        let runs = self.stderr.len();
        rows.check(what, runs == 0 || runs == asked, || {
            format!(
                "{runs} of {asked} runs wrote to standard error: {:#?}",
                self.stderr
            )
        });
        let mut notes: BTreeMap<&String, usize> = BTreeMap::new();
        for note in &self.notes {
            *notes.entry(note).or_default() += 1;
        }
        rows.check(what, notes.values().all(|&count| count == asked), || {
            format!("{asked} runs, but {notes:#?}")
        });
        self.stderr.sort();
        self.stderr.dedup();
        rows.check(what, self.stderr.len() < 2, || {
            format!("not the same on standard error: {:#?}", self.stderr)
        });
        self.notes.sort();
        self.notes.dedup();
    }
}

fn compare_direct(what: &str, direct: &Direct, seen: &Seen, rows: &mut Rows) {
    let logged: &[String] = seen.stderr.first().map_or(&[], Vec::as_slice);
    rows.check(what, direct.stderr == logged, || {
        format!("standard error {:#?}\n    {logged:#?}", direct.stderr)
    });
    let says_end = |note: &String| {
        note.starts_with(&direct.end) && !note[direct.end.len()..].starts_with(char::is_numeric)
    };
    let ended = if direct.end.is_empty() {
        let unusual =
            |note: &String| note.starts_with("exit status") || note.starts_with("ended by");
        !seen.notes.iter().any(unusual)
    } else {
        seen.notes.iter().any(says_end)
    };
    rows.check(what, ended, || {
        format!("`{}`, but the log has {:?}", direct.end, seen.notes)
    });
    for answer in &seen.answers {
        let Some((head, body)) = parts(&direct.stdout) else {
            rows.check(what, answer.status == 500, || {
                format!("{direct:?}\n    {answer:?}")
            });
            continue;
        };
        if answer.status == 500 && !head.contains("Status: 500") {
            let invalid = !head.contains("Content-Type");
            rows.check(what, invalid, || format!("{direct:?}\n    {answer:?}"));
            continue;
        }
        rows.check(
            what,
            body == answer.body.trim_end_matches("(cut off)"),
            || format!("{body}\n    {}", answer.body),
        );
        for line in head.split("\\n") {
            let line = line.trim_end_matches("\\r");
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let holds = if is_passing(name) {
                true
            } else if name.eq_ignore_ascii_case("Status") {
                value.trim().starts_with(&answer.status.to_string())
            } else {
                answer.fields.contains(&field(name, value.trim()))
            };
            rows.check(what, holds, || format!("{line}\n    {answer:?}"));
        }
    }
}

/// Header block and body of what a script printed, escaped.
fn parts(stdout: &str) -> Option<(&str, &str)> {
    let ends = ["\\n\\n", "\\n\\r\\n"];
    let found = ends
        .iter()
        .filter_map(|end| Some((stdout.find(end)?, end.len())));
    let (at, length) = found.min()?;
    Some((&stdout[..at], &stdout[at + length..]))
}

fn compare_servers(what: &str, plain: &Seen, warm: &Seen, rows: &mut Rows) {
    for answer in warm.answers.difference(&plain.answers) {
        for expected in &plain.answers {
            let (expected, answer) = (format!("{expected:?}"), format!("{answer:?}"));
            rows.check(what, false, || first_difference(&expected, &answer));
        }
    }
    for (expected, seen) in [
        (format!("{:?}", plain.stderr), format!("{:?}", warm.stderr)),
        (format!("{:?}", plain.notes), format!("{:?}", warm.notes)),
    ] {
        rows.check(what, expected == seen, || {
            first_difference(&expected, &seen)
        });
    }
}

/// Where two texts part, with what is around it.
fn first_difference(one: &str, other: &str) -> String {
    let same = one.chars().zip(other.chars()).take_while(|(a, b)| a == b);
    let from = same.count().saturating_sub(60);
    let part = |text: &str| text.chars().skip(from).take(200).collect::<String>();
    format!("{}\n    {}", part(one), part(other))
}

/// Requests of a script that the access log calls warm.
pub(crate) fn warm_runs(log: &str, script: &str) -> usize {
    access_lines(log, script)
        .filter(|line| line["warm"] == Value::Bool(true))
        .count()
}

fn access_lines<'a>(log: &'a str, script: &str) -> impl Iterator<Item = Value> + 'a {
    let target = format!("/{script}");
    log.lines()
        // Before it is parsed: the log is long.
        .filter({
            let target = target.clone();
            move |line| line.starts_with('{') && line.contains(&target)
        })
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(move |line| {
            let asked = line["target"].as_str().unwrap_or_default();
            asked.split('?').next() == Some(&*target)
        })
}

/// The folder made for the test is another for each server.
fn masked(bytes: &[u8], root: &Path) -> Vec<u8> {
    let folder = root.parent().unwrap().as_os_str().as_encoded_bytes();
    let mut masked = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = memchr::memmem::find(rest, folder) {
        masked.extend_from_slice(&rest[..at]);
        masked.extend_from_slice(b"{folder}");
        rest = &rest[at + folder.len()..];
    }
    masked.extend_from_slice(rest);
    without_addresses(&masked)
}

/// Of objects and threads: ` at 0x7f1a2b3c`, `thread 0x00007f1a`.
fn without_addresses(bytes: &[u8]) -> Vec<u8> {
    let mut without = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = memchr::memmem::find(rest, b" 0x") {
        let (before, after) = rest.split_at(at + 3);
        without.extend_from_slice(before);
        rest = after;
        if before.ends_with(b" at 0x") || before.ends_with(b"thread 0x") {
            let digits = after.iter().take_while(|byte| byte.is_ascii_hexdigit());
            rest = &after[digits.count()..];
        }
    }
    without.extend_from_slice(rest);
    without
}

/// As the log shows lines.
fn lines(bytes: &[u8]) -> Vec<String> {
    let Some(last) = bytes.last() else {
        return Vec::new();
    };
    let bytes = if *last == b'\n' {
        &bytes[..bytes.len() - 1]
    } else {
        bytes
    };
    bytes
        .split(|&byte| byte == b'\n')
        .map(|line| serve_here::log::escape(line.strip_suffix(b"\r").unwrap_or(line)))
        .collect()
}

fn field(name: &str, value: &str) -> String {
    format!("{}: {value}", name.to_ascii_lowercase())
}

/// The time, and the framing, which goes by how output came.
fn is_passing(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["date", "expires", "transfer-encoding", "content-length"].contains(&&*name)
}

/// Of the order in which scripts are asked.
fn seed() -> u64 {
    let given = std::env::var("TEST_SEED").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::from(now.subsec_nanos())
    })
}

/// Good enough for an order: a linear congruential generator (Knuth's MMIX).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or_default() % end
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for end in (1..list.len()).rev() {
            list.swap(end, self.below(end + 1));
        }
    }
}
