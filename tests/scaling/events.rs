//! What happens to hosts, one thing after the other, while requests go on: no
//! request that may be repeated fails, none is run twice that must not be, and
//! the host has its share again soon after it is back.

use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use super::load::{Load, Outcome, Result, counted};
use super::network::{Host, Network, Running, listens};
use crate::support::{Server, fixtures, needs, tiny_http_cannot};

const CLIENTS: usize = 6;
const ADDRESSES: [&str; 5] = [
    "10.77.0.1",
    "10.77.0.2",
    "10.77.0.3",
    "10.77.0.4",
    "10.77.0.5",
];
/// The first host is the front, the last one has the clients.
const FRONT: usize = 0;
const APPLICATIONS: [usize; 3] = [1, 2, 3];
const CLIENT: usize = 4;
/// The one that things happen to.
const VICTIM: usize = 2;

/// A program that runs the application, listening on `{address}`.
type Program = &'static str;

const UWSGI: Program = "uwsgi --plugin python3 --socket {address} --wsgi-file application.py \
     --master --processes 2 --die-on-term";
const UWSGI_HTTP: Program = "uwsgi --plugin python3 --http-socket {address} \
     --wsgi-file application.py --master --processes 2 --die-on-term";
const GUNICORN: Program =
    "gunicorn --bind {address} --workers 2 --threads 4 application:application";
const SERVE_HERE: Program = "{serve-here} --bind {host} {port} --wsgi application:application \
     --workers 2 --allow-root --python /usr/bin/python3 --trust-proxy 10.77.0.1";

#[test]
fn equal_hosts_may_go_and_come_under_load_by_uwsgi() {
    if needs("uwsgi") {
        run("uwsgi", [UWSGI; 3]);
    }
}

#[test]
fn unlike_hosts_may_go_and_come_under_load_by_http() {
    if needs("uwsgi") && needs("gunicorn") && needs("python3") {
        run("http", [SERVE_HERE, GUNICORN, UWSGI_HTTP]);
    }
}

fn run(protocol: &str, programs: [Program; 3]) {
    if tiny_http_cannot("listen beyond loopback") {
        return;
    }
    let Some(network) = Network::new(&ADDRESSES) else {
        return;
    };
    // Threads of their own: one that has entered a namespace stays there.
    thread::scope(|scope| {
        let test = scope.spawn(|| {
            network.host(CLIENT).enter();
            Stage::new(&network, protocol, programs).play();
        });
        if let Err(panic) = test.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

struct Stage<'a> {
    network: &'a Network,
    protocol: &'a str,
    programs: [Program; 3],
    folder: TempDir,
    running: Mutex<Vec<(usize, Running)>>,
    front: Server,
    load: Load,
}

impl<'a> Stage<'a> {
    fn new(network: &'a Network, protocol: &'a str, programs: [Program; 3]) -> Self {
        let addresses = APPLICATIONS.map(|number| address(network.host(number)));
        let route = format!("/app/={protocol}:{}", addresses.join(","));
        let front = network.host(FRONT);
        let server = Server::new()
            .under(front.under())
            .args(["--bind", &front.address(), "--route", &route])
            .args(["--route-timeout", "5", "--route-idle", "5"])
            .start();
        let stage = Self {
            network,
            protocol,
            programs,
            folder: tempfile::tempdir().expect("there is a folder for temporary files"),
            running: Mutex::default(),
            load: Load::on(server.address()),
            front: server,
        };
        for number in APPLICATIONS {
            stage.start(number);
        }
        stage
    }

    fn start(&self, number: usize) {
        let host = self.network.host(number);
        let place: SocketAddr = address(host).parse().expect("an address");
        let program = self.programs[number - 1]
            .replace("{address}", &place.to_string())
            .replace("{host}", &place.ip().to_string())
            .replace("{port}", &place.port().to_string())
            .replace("{serve-here}", env!("CARGO_BIN_EXE_serve-here"));
        let folder = fixtures("scaling");
        let words = ["env", "-C", folder.to_str().expect("plain")];
        let words: Vec<String> = words
            .into_iter()
            .chain(program.split_ascii_whitespace())
            .map(str::to_owned)
            .collect();
        let name = name(number);
        let variables = [
            ("APP_HOST", OsStr::new(&name)),
            ("APP_RUNS", self.runs(number).as_os_str()),
            ("PYTHONDONTWRITEBYTECODE", OsStr::new("1")),
        ]
        .map(|(name, value)| (name, value.to_owned()));
        let variables = variables
            .each_ref()
            .map(|(name, value)| (*name, &value[..]));
        let running = host.spawn(&words, &variables);
        self.running
            .lock()
            .expect("nobody panics")
            .push((number, running));
        assert!(listens(&address(host)), "`{program}` does not listen");
    }

    /// Where the host writes down what it has run.
    fn runs(&self, number: usize) -> PathBuf {
        self.folder.path().join(name(number))
    }

    fn play(self) {
        thread::scope(|scope| {
            let _stopped = self.load.stop_on_drop();
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    self.network.host(CLIENT).enter();
                    self.load.run();
                });
            }
            self.load
                .until("every host answers", Instant::now(), |new| {
                    APPLICATIONS.iter().all(|&number| answers(new, number))
                });
            self.events();
        });
        self.check_clients();
        self.check_posts();
    }

    fn events(&self) {
        println!("{}", Report::HEADING);
        let victim = self.network.host(VICTIM);
        self.event("killed", true, || self.kill(), || self.start(VICTIM));
        self.event(
            "hung",
            true,
            || victim.signal(Signal::STOP),
            || victim.signal(Signal::CONT),
        );
        self.event("cut off", true, || victim.cut_off(), || victim.connect());
        self.event("slowed", false, || victim.slow_down(), || victim.speed_up());
    }

    fn kill(&self) {
        self.network.host(VICTIM).signal(Signal::KILL);
        self.running
            .lock()
            .expect("nobody panics")
            .retain(|(number, _)| *number != VICTIM);
    }

    /// Something happens to the victim, and later it is well again. If it
    /// `rests`, the server is to notice.
    fn event(&self, name: &str, rests: bool, happen: impl Fn(), mend: impl Fn()) {
        let log_before = self.front.log().len();
        let began = Instant::now();
        happen();
        let mark = format!("'{}': ", address(self.network.host(VICTIM)));
        let is_noticed = || {
            let log = self.front.log();
            let mut lines = log[log_before..].lines();
            lines.any(|line| line.contains(&mark) && line.contains("it gets no requests"))
        };
        let until = |what: &str, done: &dyn Fn(&[Outcome]) -> bool| {
            let now = Instant::now();
            self.load.until(&format!("{name}: {what}"), now, done);
            now.elapsed()
        };
        let noticed = until("is noticed", &|_| !rests || is_noticed());
        until("goes on so for a while", &|new| new.len() >= 400);
        mend();
        let back = until("the host answers again", &|new| answers(new, VICTIM));
        until("it has its share again", &|new| {
            let here = |one: &&Outcome| one.host() == Some(&self::name(VICTIM));
            new.iter().filter(here).count() >= 20
        });
        // What is under way has to come to something, too.
        let now = Instant::now();
        until("what began before is over", &|_| {
            self.load.oldest().is_none_or(|oldest| oldest > now)
        });
        let log = self.front.log();
        Report {
            outcomes: self.load.since(began),
            repeated: log[log_before..]
                .matches("another address is asked")
                .count(),
            noticed: rests.then_some(noticed),
            back,
        }
        .judge(&format!("{} | {name}", self.protocol), &log);
    }

    /// Hosts that can be told who asked are.
    fn check_clients(&self) {
        let client = self.network.host(CLIENT).address();
        for (number, program) in APPLICATIONS.into_iter().zip(self.programs) {
            let asked = if [UWSGI, SERVE_HERE].contains(&program) {
                &client
            } else {
                &self.network.host(FRONT).address()
            };
            let said = format!("{} {asked} http", name(number));
            let all = self.load.all();
            let mut here = all.iter().filter(|one| one.host() == Some(&name(number)));
            assert!(here.all(|one| one.result == Result::Answer(said.clone())));
        }
    }

    /// None is run twice, and each that was answered was run.
    fn check_posts(&self) {
        let runs: Vec<String> = APPLICATIONS
            .iter()
            .map(|&number| fs::read_to_string(self.runs(number)).unwrap_or_default())
            .collect();
        let runs = counted(runs.iter().flat_map(|lines| lines.lines()));
        let twice: Vec<_> = runs.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "run more than once: {twice:?}");
        let lost: Vec<Outcome> = self
            .load
            .all()
            .into_iter()
            .filter(|one| one.is_post() && one.host().is_some() && !runs.contains_key(&one.id))
            .collect();
        assert!(lost.is_empty(), "answered and not run: {lost:#?}");
        assert!(runs.len() > 100, "{} POSTs", runs.len());
    }
}

/// Of an event.
struct Report {
    outcomes: Vec<Outcome>,
    /// How often another address was asked.
    repeated: usize,
    /// Until the host got no more requests.
    noticed: Option<Duration>,
    /// Until it answered again.
    back: Duration,
}

impl Report {
    const HEADING: &str = "| protocol | event | requests | of these waited over 0.25 s | the longest, s \
         | asked elsewhere | cut off | GET failed | POST failed | noticed after, s | back after, s |";

    /// A line of docs/scaling.md.
    fn judge(&self, name: &str, log: &str) {
        let all = &self.outcomes;
        let failed = |post: bool| -> Vec<&Outcome> {
            let failed = |one: &&Outcome| matches!(one.result, Result::Failed(_));
            let failed = all.iter().filter(failed);
            failed.filter(|one| one.is_post() == post).collect()
        };
        let (gets, posts) = (failed(false), failed(true));
        let cut = all.iter().filter(|one| one.result == Result::Cut).count();
        let slow = |one: &&Outcome| one.took > Duration::from_millis(250);
        let cells = [
            all.len().to_string(),
            all.iter().filter(slow).count().to_string(),
            seconds(all.iter().map(|one| one.took).max()),
            self.repeated.to_string(),
            cut.to_string(),
            gets.len().to_string(),
            posts.len().to_string(),
            seconds(self.noticed),
            seconds(Some(self.back)),
        ];
        println!("| {name} | {} |", cells.join(" | "));
        assert!(gets.is_empty(), "{name}: {gets:#?}\n{log}");
        // Only what was with the host when it went: nobody knows whether it was run.
        let lost = posts.len() + cut;
        assert!(lost <= CLIENTS, "{name}: {posts:#?}\n{log}");
    }
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or("-".into(), |time| format!("{:.1}", time.as_secs_f32()))
}

fn address(host: Host<'_>) -> String {
    format!("{}:8000", host.address())
}

fn name(number: usize) -> String {
    format!("host{number}")
}

fn answers(outcomes: &[Outcome], number: usize) -> bool {
    outcomes.iter().any(|one| one.host() == Some(&name(number)))
}
