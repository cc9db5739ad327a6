//! Putting the server together, and its end: bind, switch the user, say where
//! it listens, run until a signal, stop.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use crate::cli::EngineName;
use crate::config::{Config, ScriptConfig, WorkerConfig};
use crate::engine::listener::{self, Bound};
use crate::engine::{self, Limits, http1, tiny};
use crate::error::{ExitCode, StartError};
use crate::files::{self, Codings, Files};
use crate::gateway::application::{self, Application};
use crate::gateway::backend::Backend;
use crate::gateway::cgi::{self, Cgi};
use crate::gateway::process::Processes;
use crate::gateway::route::{Pattern, Role, Route, Routes, Staff, Target, Wire};
use crate::gateway::script::{self, Scripts};
use crate::gateway::spawn::close_inherited;
use crate::gateway::upstream::Upstream;
use crate::gateway::variables::{Environment, EnvironmentOptions};
use crate::gateway::warm::{self, Warm};
use crate::log::Log;
use crate::os;
use crate::service::{Authorizer, ScriptHost, SendRoot, Service, Site, Static};
use crate::workers::{self, Folder, Job, JobOptions, Order, Places, Workers};

/// Runs the server until a signal stops it.
pub fn run(config: Config) -> Result<ExitCode, StartError> {
    close_inherited();
    os::set_signals();
    os::give_memory_back();
    let open_files = os::raise_open_files();
    let bound = listener::bind(&config.addresses, config.port)?;
    refuse_tiny_for_others(&config, &bound)?;
    let user = switch_user(config.user.as_deref())?;
    let log = Log::new(config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| StartError::failed(format!("cannot start: {error}")))?;
    let ended = runtime.block_on(serve(config, bound, user, open_files, &log));
    log.flush();
    // Threads that still read a file for a client that is cut off anyway.
    runtime.shutdown_timeout(Duration::from_millis(100));
    ended
}

async fn serve(
    config: Config,
    bound: Vec<Bound>,
    user: Option<os::User>,
    open_files: Option<libc::rlimit>,
    log: &Log,
) -> Result<ExitCode, StartError> {
    let cannot_start = |error: std::io::Error| StartError::failed(format!("cannot start: {error}"));
    // Before the first line is printed: who reads it may send a signal at once.
    let mut signals = Signals::new().map_err(cannot_start)?;
    let addresses: Vec<SocketAddr> = bound.iter().map(|bound| bound.address).collect();
    let processes = Processes::new(Handle::current());
    let refused = scripts_refused(&config.scripts, &addresses);
    let environment = environment(&config.scripts, user.as_ref());
    let warm = if refused {
        None
    } else {
        warm(&config, &environment, open_files, &processes, log).map_err(cannot_start)?
    };
    let cgi = config.scripts.enabled.then(|| {
        Cgi::new(
            cgi_options(&config.scripts, open_files),
            environment,
            processes.clone(),
            warm.clone(),
            log.clone(),
        )
    });
    let mut staffing = Staffing::new(&config, &addresses, user.as_ref(), open_files)?;
    let service = service(&config, cgi, refused, &mut staffing, log)?;
    let engine = Engine::start(&config, bound, service.into(), log).map_err(cannot_start)?;
    announce(&config, &addresses, refused, log);
    let workers = staffing.start(&config, &processes, log);
    signals.until_the_end(&workers, log).await;
    tokio::select! {
        () = engine.stop(config.grace) => {}
        () = signals.until_the_end(&[], log) => {}
    }
    for workers in workers {
        workers.stop().await;
    }
    if let Some(warm) = warm {
        warm.stop().await;
    }
    processes.end_all().await;
    Ok(ExitCode::Stopped)
}

fn service(
    config: &Config,
    cgi: Option<Cgi>,
    refused: bool,
    staffing: &mut Staffing,
    log: &Log,
) -> Result<Service, StartError> {
    let scripts = &config.scripts;
    let sendfile = match &scripts.sendfile {
        Some(root) => Some(SendRoot {
            // What a script answers with is never coded (C118).
            files: open(
                root,
                files::Options {
                    follow_links: config.follow_links,
                    hidden: config.hidden,
                    codings: Codings::None,
                    ..files::Options::default()
                },
            )?,
            root: root.clone(),
        }),
        None => None,
    };
    let host = cgi.map(|cgi| ScriptHost {
        scripts: Scripts::new(
            &config.root,
            script::Options {
                dirs: scripts.dirs.clone(),
                extensions: scripts.extensions.clone(),
                any_file: false,
            },
        ),
        cgi,
        refused,
    });
    Ok(Service {
        files: open(&config.root, file_options(config, None))?,
        site: Site {
            root: config.root.clone(),
            server_name: config.server_name.clone(),
            pass_authorization: scripts.pass_authorization,
            sendfile,
        },
        scripts: host,
        routes: routes(config, staffing, log)?,
        authorizers: authorizers(config, staffing, log)?,
        statics: statics(config)?,
        trusted: config.trusted.clone(),
        log: log.clone(),
    })
}

fn open(root: &Path, options: files::Options) -> Result<Files, StartError> {
    Files::new(root, options).map_err(|error| {
        StartError::failed(format!("cannot serve {}: {error}", root.display()))
            .hint("choose a folder that you may read")
    })
}

/// What is sent as files: not what belongs to scripts and applications, nor what
/// an authorizer protects, other than the one that has let the request in.
fn file_options(config: &Config, let_in: Option<&Pattern>) -> files::Options {
    let scripts = &config.scripts;
    let inside = let_in.and_then(Pattern::folder);
    let is_inside = |folder: &PathBuf| {
        let inside = inside.as_ref();
        inside.is_some_and(|inside| inside.starts_with(folder))
    };
    let routes = || config.routes.routes.iter();
    let folders = routes().filter_map(|route| {
        let folder = route.pattern.folder()?;
        let open = route.role == Role::Authorizer && is_inside(&folder);
        (!open).then_some(folder)
    });
    files::Options {
        follow_links: config.follow_links,
        hidden: config.hidden,
        withheld: folders.chain(scripts.dirs.iter().map(Into::into)).collect(),
        withheld_extensions: source_endings(config),
        codings: config.codings,
    }
}

/// The endings of files that are programs, and never sent as they are.
fn source_endings(config: &Config) -> Vec<String> {
    let routes = config.routes.routes.iter();
    let endings = routes.filter_map(|route| route.pattern.ending());
    endings
        .chain(config.scripts.extensions.iter().cloned())
        .collect()
}

fn application_options(config: &Config) -> application::Options {
    application::Options {
        answer: config.routes.answer,
        pause: config.routes.pause,
        max_body: config.scripts.max_body,
        sendfile: config.scripts.sendfile.is_some(),
    }
}

fn statics(config: &Config) -> Result<Vec<Static>, StartError> {
    let statics = config.routes.statics.iter().map(|own| {
        let options = files::Options {
            follow_links: config.follow_links,
            hidden: config.hidden,
            codings: config.codings,
            withheld_extensions: source_endings(config),
            ..files::Options::default()
        };
        Ok(Static {
            path: own.path.clone(),
            files: open(&own.folder, options)?,
        })
    });
    statics.collect()
}

fn authorizers(
    config: &Config,
    staffing: &mut Staffing,
    log: &Log,
) -> Result<Routes<Authorizer>, StartError> {
    let options = application_options(config);
    let routes = config.routes.routes.iter();
    let routes = routes.filter(|route| route.role == Role::Authorizer);
    let routes = routes.map(|route| {
        // It is asked for one thing on a connection: nothing is kept.
        let mut target = Target {
            keep: 0,
            ..route.target.clone()
        };
        let connect = config.routes.connect;
        let staff = staffing.place(&mut target)?;
        let application =
            Application::new(Wire::FastCgi, target, connect, options, None, log.clone());
        staffing.add(staff, application.backend());
        let authorizer = Authorizer {
            application,
            files: open(&config.root, file_options(config, Some(&route.pattern)))?,
        };
        Ok((route.clone(), authorizer))
    });
    let routes: Vec<_> = routes.collect::<Result<_, _>>()?;
    Ok(Routes::new(&config.root, routes))
}

fn routes(
    config: &Config,
    staffing: &mut Staffing,
    log: &Log,
) -> Result<Routes<Upstream>, StartError> {
    let options = application_options(config);
    let connect = config.routes.connect;
    let routes = config.routes.routes.iter();
    let mut made: Vec<(Route, Upstream)> = Vec::new();
    for route in routes.filter(|route| route.role == Role::Responder) {
        let mut target = route.target.clone();
        let staff = staffing.place(&mut target)?;
        let beside = made
            .iter()
            .find(|(other, _)| route.target.is_beside(&other.target));
        let beside = beside.map(|(_, upstream)| upstream);
        let upstream = Upstream::new(target, connect, options, beside, log.clone())?;
        if let Upstream::Application(application) = &upstream {
            staffing.add(staff, application.backend());
        }
        made.push((route.clone(), upstream));
    }
    Ok(Routes::new(&config.root, made))
}

fn cgi_options(scripts: &ScriptConfig, open_files: Option<libc::rlimit>) -> cgi::Options {
    cgi::Options {
        timeout: scripts.timeout,
        jobs: scripts.jobs,
        queue: scripts.queue,
        wait: scripts.wait,
        arguments: scripts.arguments,
        directory: scripts.directory.clone(),
        finish: scripts.finish,
        max_body: scripts.max_body,
        sendfile: scripts.sendfile.is_some(),
        open_files,
        verbose: scripts.verbose,
    }
}

/// Interpreters that are prepared for scripts, if they are.
fn warm(
    config: &Config,
    environment: &Environment,
    open_files: Option<libc::rlimit>,
    processes: &Processes,
    log: &Log,
) -> std::io::Result<Option<Warm>> {
    let scripts = &config.scripts;
    let Some(warm) = scripts.warm.as_ref().filter(|_| scripts.enabled) else {
        return Ok(None);
    };
    let options = warm::Options {
        most: warm.most,
        memory: warm.memory,
        idle: warm.idle,
        requests: warm.requests,
        except: warm.except.clone(),
        all: warm.all,
        full_end: warm.full_end,
        at_once: warm.at_once,
        notes: !config.quiet,
    };
    Warm::new(
        options,
        environment,
        open_files,
        processes.clone(),
        log.clone(),
    )
    .map(Some)
}

/// After a switch of the user HOME and USER are the new one's.
fn environment(scripts: &ScriptConfig, user: Option<&os::User>) -> Environment {
    let options = EnvironmentOptions {
        pass: scripts.pass.clone(),
        set: scripts.set.clone(),
        inherit_all: scripts.inherit_environment,
    };
    Environment::new(&options, own_environment(user).into_iter())
}

fn own_environment(user: Option<&os::User>) -> Vec<(OsString, OsString)> {
    let of_user = user.map(|user| [("HOME", user.home.clone()), ("USER", user.name.clone())]);
    let changed: Vec<(OsString, OsString)> = of_user
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.into(), value))
        .collect();
    let own = std::env::vars_os()
        .filter(|(name, _)| !changed.iter().any(|(other, _)| other == name))
        .collect::<Vec<_>>();
    own.into_iter().chain(changed).collect()
}

/// Applications that are started from here, until they are.
struct Staffing {
    options: JobOptions,
    workers: usize,
    folder: Option<Arc<Folder>>,
    ready: Vec<(Job, Places, Arc<Backend>)>,
}

impl Staffing {
    fn new(
        config: &Config,
        addresses: &[SocketAddr],
        user: Option<&os::User>,
        open_files: Option<libc::rlimit>,
    ) -> Result<Self, StartError> {
        let any = config.routes.routes.iter();
        let any = any.clone().any(|route| route.target.staff.is_some());
        if any && scripts_refused(&config.scripts, addresses) {
            return Err(
                StartError::failed("root would run applications for other machines")
                    .hint("use `--user NAME`, or `--allow-root`"),
            );
        }
        let WorkerConfig {
            workers, threads, ..
        } = config.workers;
        Ok(Self {
            options: JobOptions {
                directory: config.root.clone(),
                environment: own_environment(user),
                open_files,
                python: config.workers.python.clone(),
                threads,
                multiprocess: workers > 1,
                reload: config.workers.reload,
                preload: config.workers.preload,
            },
            workers,
            folder: None,
            ready: Vec::new(),
        })
    }

    /// Sockets for the workers of a target, if it is to have some.
    fn place(&mut self, target: &mut Target) -> Result<Option<(Job, Places)>, StartError> {
        let Some(staff) = &target.staff else {
            return Ok(None);
        };
        let no_folder = |error: std::io::Error| {
            StartError::failed(format!("cannot make sockets for workers: {error}"))
                .hint("set TMPDIR to a folder that can be written, with a short name")
        };
        let folder = match &self.folder {
            Some(folder) => Arc::clone(folder),
            None => Arc::clone(
                self.folder
                    .insert(Arc::new(Folder::new().map_err(no_folder)?)),
            ),
        };
        let (job, at_once) = match staff {
            Staff::Command(words) => (Job::command(target.name(), words, &self.options)?, 1),
            Staff::Php => (Job::php(&self.options)?, 1),
            Staff::Wsgi(application) => {
                let job = Job::wsgi(application, &folder, &self.options)?;
                (job, self.options.threads)
            }
        };
        let name = self.ready.len().to_string();
        let places = Places::new(&folder, &name, self.workers).map_err(no_folder)?;
        target.addresses = places.addresses();
        target.connections.get_or_insert(at_once);
        Ok(Some((job, places)))
    }

    fn add(&mut self, staff: Option<(Job, Places)>, backend: &Arc<Backend>) {
        self.ready
            .extend(staff.map(|(job, places)| (job, places, Arc::clone(backend))));
    }

    fn start(self, config: &Config, processes: &Processes, log: &Log) -> Vec<Workers> {
        let start = |(job, places, backend): (Job, Places, _)| {
            let usual = (job.name == "php").then_some(PHP_REQUESTS);
            let options = workers::Options {
                workers: config.workers.workers,
                max_requests: config
                    .workers
                    .max_requests
                    .or(usual)
                    .filter(|&most| most > 0),
                memory: config.workers.memory,
                idle: config.workers.idle,
                leave: config.routes.answer,
                verbose: !config.quiet,
            };
            Workers::start(job, options, places, &backend, processes, log)
        };
        self.ready.into_iter().map(start).collect()
    }
}

/// Extensions may leak. php-cgi itself leaves after 500, which halves the rate of
/// short requests: a new one takes as long to start as hundreds of them.
const PHP_REQUESTS: u64 = 10_000;

/// `tiny_http` has no limits that strangers could be let near.
fn refuse_tiny_for_others(config: &Config, bound: &[Bound]) -> Result<(), StartError> {
    let open = bound.iter().find(|bound| !bound.address.ip().is_loopback());
    match open {
        Some(open) if config.engine == EngineName::TinyHttp => {
            let message = format!("--engine tiny-http can't serve {}", open.address);
            Err(StartError::usage(message)
                .hint("it is for loopback addresses; leave --engine away"))
        }
        _ => Ok(()),
    }
}

fn switch_user(name: Option<&str>) -> Result<Option<os::User>, StartError> {
    let Some(name) = name else { return Ok(None) };
    let error = |why: String| {
        StartError::failed(format!("cannot switch to user {name}: {why}"))
            .hint("`--user` needs a known user, and root to start from")
    };
    let user = os::User::named(name).map_err(|e| error(e.to_string()))?;
    let user = user.ok_or_else(|| error("no such user".into()))?;
    user.become_for_good().map_err(|e| error(e.to_string()))?;
    Ok(Some(user))
}

/// C144: root runs scripts for its own machine, not for others.
fn scripts_refused(scripts: &ScriptConfig, addresses: &[SocketAddr]) -> bool {
    let open = addresses.iter().any(|address| !address.ip().is_loopback());
    open && rustix::process::geteuid().is_root() && !scripts.allow_root
}

/// Says where it listens on standard output, one line an address, and what
/// somebody should know on standard error.
fn announce(config: &Config, addresses: &[SocketAddr], refused: bool, log: &Log) {
    let mut stdout = std::io::stdout().lock();
    for address in addresses {
        // Nobody may read it; the server runs all the same.
        let _ = writeln!(
            stdout,
            "Serving HTTP on {} port {} (http://{address}/) ...",
            address.ip(),
            address.port()
        );
    }
    let _ = stdout.flush();
    if config.quiet {
        return;
    }
    let shared: Vec<&SocketAddr> = addresses
        .iter()
        .filter(|address| !address.ip().is_loopback())
        .collect();
    match shared.first() {
        None => log.note("only this machine can connect; `--public` shares it with others"),
        Some(_) => reachable(&shared, log),
    }
    if config.scripts.enabled {
        announce_scripts(config, !shared.is_empty(), refused, log);
    }
}

/// The URLs that other machines can use, and the first as a QR code for a phone.
fn reachable(shared: &[&SocketAddr], log: &Log) {
    let interfaces: Vec<IpAddr> = if_addrs::get_if_addrs()
        .unwrap_or_default()
        .into_iter()
        .map(|interface| interface.ip())
        // A link-local IPv6 address needs a zone, which a URL can't carry.
        .filter(|ip| {
            !ip.is_loopback() && !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
        })
        .collect();
    let mut urls: Vec<String> = Vec::new();
    for address in shared {
        let ips = if address.ip().is_unspecified() {
            interfaces.clone()
        } else {
            vec![address.ip()]
        };
        let usable = ips
            .into_iter()
            .filter(|ip| ip.is_ipv4() || address.is_ipv6());
        urls.extend(usable.map(|ip| format!("http://{}/", SocketAddr::new(ip, address.port()))));
    }
    for url in &urls {
        log.note(&format!("others reach it at {url}"));
    }
    if let Some(url) = urls.first()
        && std::io::stdout().is_terminal()
        && let Ok(code) = qrcode::QrCode::new(url)
    {
        println!(
            "{}",
            code.render::<qrcode::render::unicode::Dense1x2>().build()
        );
    }
}

/// C145: that scripts run, from where, as whom, and for whom.
fn announce_scripts(config: &Config, shared: bool, refused: bool, log: &Log) {
    let present = config
        .scripts
        .dirs
        .iter()
        .map(|dir| config.root.join(dir))
        .filter(|dir| dir.is_dir());
    let mut places: Vec<String> = present.map(|dir| dir.display().to_string()).collect();
    places.extend(
        config
            .scripts
            .extensions
            .iter()
            .map(|ext| format!("*.{ext} below {}", config.root.display())),
    );
    if places.is_empty() {
        return;
    }
    let places = places.join(", ");
    if refused {
        log.note(&format!("scripts in {places} are refused: root would run them for other machines; use `--user NAME`, or `--allow-root`"));
        return;
    }
    let user = os::User::current().ok().flatten().map_or_else(
        || "an unnamed user".into(),
        |user| user.name.to_string_lossy().into_owned(),
    );
    let root = rustix::process::geteuid().is_root();
    log.note(&format!("scripts in {places} run as {user}"));
    if root {
        log.note("warning: scripts run as root; `--user NAME` lowers that");
    }
    if shared {
        log.note("warning: other machines can run these scripts");
    }
}

/// The engine that was chosen.
enum Engine {
    Http1(http1::Engine),
    Tiny(tiny::Engine),
}

impl Engine {
    fn start(
        config: &Config,
        bound: Vec<Bound>,
        service: Arc<Service>,
        log: &Log,
    ) -> std::io::Result<Self> {
        match config.engine {
            EngineName::TinyHttp => {
                tiny::start(bound, service, config.limits, log.clone()).map(Self::Tiny)
            }
            EngineName::Http1 => {
                let open_files = os::open_files();
                let most = engine::most_connections(open_files, config.scripts.jobs);
                let connections = config.limits.connections.min(most);
                let limits = Limits {
                    connections,
                    ..config.limits
                };
                http1::start(&bound, service, limits, log.clone()).map(Self::Http1)
            }
        }
    }

    /// Lets running requests finish, at most for `grace`.
    async fn stop(self, grace: Duration) {
        match self {
            Self::Http1(engine) => engine.stop(grace).await,
            Self::Tiny(engine) => engine.stop(grace).await,
        }
    }
}

/// How often is looked whether the terminal is still there.
const TERMINAL_LOOK: Duration = Duration::from_secs(1);

/// Those that are obeyed, as far as they weren't ignored from the start.
struct Signals(Vec<(SignalKind, Signal)>);

impl Signals {
    fn new() -> std::io::Result<Self> {
        let kinds = [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
            SignalKind::from_raw(libc::SIGTTIN),
            SignalKind::from_raw(libc::SIGTTOU),
        ];
        let kinds = kinds
            .into_iter()
            .filter(|kind| !os::is_ignored(kind.as_raw_value()));
        let kinds = kinds.map(|kind| Ok((kind, signal(kind)?)));
        kinds.collect::<Result<_, _>>().map(Self)
    }

    /// Until a signal ends the server. Others are for the workers.
    async fn until_the_end(&mut self, workers: &[Workers], log: &Log) {
        let mut had_terminal = has_terminal();
        // Looks in a row at which it was gone.
        let mut gone = 0;
        loop {
            let kind = tokio::select! {
                kind = self.next() => kind,
                () = sleep(TERMINAL_LOOK), if had_terminal && !workers.is_empty() => {
                    gone = if has_terminal() { 0 } else { gone + 1 };
                    // A shell would have passed it on by now.
                    if gone == 2 {
                        had_terminal = false;
                        log.note("its terminal is gone; the server goes on");
                    }
                    continue;
                }
            };
            let order = match kind.as_raw_value() {
                libc::SIGTTIN => Order::More,
                libc::SIGTTOU => Order::Fewer,
                // A terminal that is closed says it, too.
                libc::SIGHUP if !workers.is_empty() && has_terminal() == had_terminal => {
                    Order::Reload
                }
                _ => return,
            };
            for workers in workers {
                workers.order(order);
            }
        }
    }

    /// The first that comes.
    async fn next(&mut self) -> SignalKind {
        std::future::poll_fn(|cx| {
            for (kind, signal) in &mut self.0 {
                if signal.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*kind);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// Whether there is a terminal that controls this process.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}
