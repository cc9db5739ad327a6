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

use crate::cli::EngineName;
use crate::config::{Config, ScriptConfig};
use crate::engine::listener::{self, Bound};
use crate::engine::{self, Limits, http1, tiny};
use crate::error::{ExitCode, StartError};
use crate::files::{self, Codings, Files};
use crate::gateway::application::{self, Application};
use crate::gateway::cgi::{self, Cgi};
use crate::gateway::process::Processes;
use crate::gateway::route::{Pattern, Role, Routes, Target, Wire};
use crate::gateway::script::{self, Scripts};
use crate::gateway::spawn::close_inherited;
use crate::gateway::upstream::Upstream;
use crate::gateway::variables::{Environment, EnvironmentOptions};
use crate::gateway::warm::{self, Warm};
use crate::log::Log;
use crate::os;
use crate::service::{Authorizer, ScriptHost, SendRoot, Service, Site};

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
    let environment = environment(&config.scripts, user);
    let warm = if refused {
        None
    } else {
        warm(&config, &environment, open_files, &processes, log).map_err(cannot_start)?
    };
    let service = service(
        &config,
        processes.clone(),
        environment,
        warm.clone(),
        open_files,
        refused,
        log,
    )?;
    let engine = Engine::start(&config, bound, service.into(), log).map_err(cannot_start)?;
    announce(&config, &addresses, refused, log);
    signals.first().await;
    tokio::select! {
        () = engine.stop(config.grace) => {}
        () = signals.first() => {}
    }
    if let Some(warm) = warm {
        warm.stop().await;
    }
    processes.end_all().await;
    Ok(ExitCode::Stopped)
}

fn service(
    config: &Config,
    processes: Processes,
    environment: Environment,
    warm: Option<Warm>,
    open_files: Option<libc::rlimit>,
    refused: bool,
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
    let host = scripts.enabled.then(|| ScriptHost {
        scripts: Scripts::new(
            &config.root,
            script::Options {
                dirs: scripts.dirs.clone(),
                extensions: scripts.extensions.clone(),
                any_file: false,
            },
        ),
        cgi: Cgi::new(
            cgi_options(scripts, open_files),
            environment,
            processes,
            warm,
            log.clone(),
        ),
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
        routes: routes(config, log)?,
        authorizers: authorizers(config, log)?,
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
    let endings = routes().filter_map(|route| route.pattern.ending());
    files::Options {
        follow_links: config.follow_links,
        hidden: config.hidden,
        withheld: folders.chain(scripts.dirs.iter().map(Into::into)).collect(),
        withheld_extensions: endings.chain(scripts.extensions.iter().cloned()).collect(),
        codings: config.codings,
    }
}

fn application_options(config: &Config) -> application::Options {
    application::Options {
        answer: config.routes.answer,
        pause: config.routes.pause,
        max_body: config.scripts.max_body,
        sendfile: config.scripts.sendfile.is_some(),
    }
}

fn authorizers(config: &Config, log: &Log) -> Result<Routes<Authorizer>, StartError> {
    let options = application_options(config);
    let routes = config.routes.routes.iter();
    let routes = routes.filter(|route| route.role == Role::Authorizer);
    let routes = routes.map(|route| {
        // It is asked for one thing on a connection: nothing is kept.
        let target = Target {
            keep: 0,
            ..route.target.clone()
        };
        let connect = config.routes.connect;
        let authorizer = Authorizer {
            application: Application::new(Wire::FastCgi, target, connect, options, log.clone()),
            files: open(&config.root, file_options(config, Some(&route.pattern)))?,
        };
        Ok((route.clone(), authorizer))
    });
    let routes: Vec<_> = routes.collect::<Result<_, _>>()?;
    Ok(Routes::new(&config.root, routes))
}

fn routes(config: &Config, log: &Log) -> Result<Routes<Upstream>, StartError> {
    let options = application_options(config);
    let connect = config.routes.connect;
    let routes = config.routes.routes.iter();
    let routes = routes.filter(|route| route.role == Role::Responder);
    let routes = routes.map(|route| {
        let target = route.target.clone();
        let upstream = Upstream::new(target, connect, options, log.clone())?;
        Ok((route.clone(), upstream))
    });
    let routes: Vec<_> = routes.collect::<Result<_, _>>()?;
    Ok(Routes::new(&config.root, routes))
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
fn environment(scripts: &ScriptConfig, user: Option<os::User>) -> Environment {
    let options = EnvironmentOptions {
        pass: scripts.pass.clone(),
        set: scripts.set.clone(),
        inherit_all: scripts.inherit_environment,
    };
    let of_user = user.map(|user| [("HOME", user.home), ("USER", user.name)]);
    let changed: Vec<(OsString, OsString)> = of_user
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.into(), value))
        .collect();
    let own = std::env::vars_os()
        .filter(|(name, _)| !changed.iter().any(|(other, _)| other == name))
        .collect::<Vec<_>>();
    Environment::new(&options, own.into_iter().chain(changed.clone()))
}

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

/// SIGTERM, SIGINT and SIGHUP, as far as they weren't ignored from the start.
struct Signals(Vec<Signal>);

impl Signals {
    fn new() -> std::io::Result<Self> {
        let kinds = [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
        ];
        let kinds = kinds
            .into_iter()
            .filter(|kind| !os::is_ignored(kind.as_raw_value()));
        kinds.map(signal).collect::<Result<_, _>>().map(Self)
    }

    /// The first that comes.
    async fn first(&mut self) {
        std::future::poll_fn(|cx| {
            let came = self
                .0
                .iter_mut()
                .any(|signal| signal.poll_recv(cx).is_ready());
            if came {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
    }
}
