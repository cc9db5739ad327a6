//! What the flags mean together, checked once. Nothing after this asks again
//! whether an option was given.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::{Cli, EngineName, WorkingDirectory};
use crate::engine::Limits;
use crate::engine::listener::Address;
use crate::engine::patience::Patience;
use crate::error::{StartError, shell_word};
use crate::files::Codings;
use crate::forwarded::Trusted;
use crate::gateway::route::Route;
use crate::gateway::variables::{host_name, is_meta_variable};
use crate::log::Format;
use crate::target::UrlPath;

const DEFAULT_PORT: u16 = 8000;
const DEFAULT_SCRIPT_DIRS: [&str; 2] = ["cgi-bin", "htbin"];

/// Everything the server is told.
pub struct Config {
    pub addresses: Vec<Address>,
    pub port: u16,
    /// Absolute, links resolved.
    pub root: PathBuf,
    pub follow_links: bool,
    pub hidden: bool,
    pub codings: Codings,
    pub server_name: Option<String>,
    pub user: Option<String>,
    pub scripts: ScriptConfig,
    pub routes: RouteConfig,
    /// Proxies that are believed.
    pub trusted: Trusted,
    pub workers: WorkerConfig,
    pub engine: EngineName,
    pub limits: Limits,
    /// For running requests at the end.
    pub grace: Duration,
    pub log: Format,
    pub quiet: bool,
}

#[allow(clippy::struct_excessive_bools, reason = "each is one decision")]
pub struct ScriptConfig {
    pub enabled: bool,
    /// Below the root, without slashes at the ends.
    pub dirs: Vec<String>,
    /// Endings without a dot.
    pub extensions: Vec<String>,
    pub timeout: Option<Duration>,
    pub jobs: usize,
    pub queue: usize,
    pub wait: Duration,
    pub pass: Vec<String>,
    pub set: Vec<(String, String)>,
    pub inherit_environment: bool,
    pub arguments: bool,
    /// The working directory; `None`: the script's own.
    pub directory: Option<PathBuf>,
    pub finish: bool,
    pub pass_authorization: bool,
    /// Absolute, links resolved.
    pub sendfile: Option<PathBuf>,
    pub allow_root: bool,
    pub max_body: u64,
    /// `None`: no interpreters are prepared.
    pub warm: Option<WarmConfig>,
    /// Answers say how a script was run.
    pub verbose: bool,
}

/// Interpreters that are prepared for scripts.
pub struct WarmConfig {
    /// At once.
    pub most: usize,
    /// Bytes that all hold together at most.
    pub memory: u64,
    pub idle: Duration,
    /// Of one, before it is replaced.
    pub requests: u64,
    /// URL paths or names of scripts that get none.
    pub except: Vec<String>,
    /// For Perl scripts without modules too.
    pub all: bool,
    pub full_end: bool,
    /// The first request of a script waits for its interpreter.
    pub at_once: bool,
}

/// Application servers, and the time they have.
pub struct RouteConfig {
    pub routes: Vec<Route>,
    pub statics: Vec<StaticFolder>,
    /// For a connection to be made.
    pub connect: Duration,
    /// For the header of an answer.
    pub answer: Option<Duration>,
    /// The longest pause in an answer.
    pub pause: Option<Duration>,
}

/// Applications that are started from here.
pub struct WorkerConfig {
    /// Of each application.
    pub workers: usize,
    /// Requests at a time in a WSGI worker.
    pub threads: usize,
    pub python: Option<PathBuf>,
    pub reload: bool,
    pub preload: bool,
    /// `None`: as is usual for the program.
    pub max_requests: Option<u64>,
    /// In bytes.
    pub memory: Option<u64>,
    pub idle: Option<Duration>,
}

/// `--static`: a folder below a path.
pub struct StaticFolder {
    pub path: UrlPath,
    /// Absolute, links resolved.
    pub folder: PathBuf,
}

impl Config {
    /// `port_variable` is the environment's PORT.
    pub fn new(cli: Cli, port_variable: Option<&str>) -> Result<Self, StartError> {
        let mut places = Places::sort(&cli)?;
        let http_1_0 = protocol_is_1_0(places.protocol.take())?;
        let port = match (places.port, port_variable) {
            (Some(port), _) => port,
            (None, Some(text)) => text.parse().map_err(|_| {
                StartError::usage(format!("the environment's PORT is no port: `{text}`"))
                    .hint("give one: `serve-here 8080`")
            })?,
            (None, None) => DEFAULT_PORT,
        };
        let root = folder(&places.directory.take().unwrap_or_else(|| ".".into()))?;
        let limits = Limits {
            body: Patience {
                most: time(cli.body_timeout),
                rate: cli.min_rate,
            },
            write: Patience {
                most: time(cli.write_timeout),
                rate: cli.min_rate,
            },
            idle: time(cli.idle_timeout),
            head: time(cli.head_timeout),
            head_bytes: usize::try_from(cli.max_head).unwrap_or(usize::MAX),
            fields: cli.max_fields as usize,
            connections: cli.max_connections.map_or(usize::MAX, |most| most as usize),
            http_1_0,
        };
        Ok(Self {
            addresses: addresses(&cli),
            port,
            follow_links: cli.follow_links,
            hidden: cli.hidden,
            codings: if cli.no_compress {
                Codings::Beside
            } else {
                Codings::OnTheFly
            },
            server_name: server_name(cli.server_name.clone())?,
            user: cli.user.clone(),
            engine: cli.engine,
            limits,
            grace: Duration::from_secs_f64(cli.grace),
            log: if cli.quiet { Format::Off } else { cli.log },
            quiet: cli.quiet,
            routes: RouteConfig::new(&cli)?,
            trusted: Trusted::new(cli.trust_proxy.clone()),
            workers: WorkerConfig::new(&cli),
            scripts: ScriptConfig::new(cli, &root)?,
            root,
        })
    }
}

impl ScriptConfig {
    fn new(cli: Cli, root: &Path) -> Result<Self, StartError> {
        let warm = WarmConfig::new(&cli);
        let (set, pass) = environment(cli.cgi_env)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            enabled: !cli.no_cgi,
            dirs: script_dirs(&cli.cgi_dir)?,
            extensions: cli
                .cgi_ext
                .iter()
                .map(|ext| ext.trim_start_matches(['.', '*']).to_owned())
                .filter(|ext| !ext.is_empty())
                .collect(),
            timeout: (cli.cgi_timeout > 0.0).then(|| Duration::from_secs_f64(cli.cgi_timeout)),
            jobs: cli
                .cgi_jobs
                .map_or((4 * cores).max(8), |jobs| jobs as usize),
            queue: cli.cgi_queue as usize,
            wait: Duration::from_secs_f64(cli.cgi_wait),
            pass,
            set,
            inherit_environment: cli.cgi_inherit_env,
            arguments: cli.cgi_args,
            directory: (cli.cgi_cwd == WorkingDirectory::Root).then(|| root.to_owned()),
            finish: cli.cgi_finish,
            pass_authorization: !cli.no_cgi_authorization,
            sendfile: cli.cgi_sendfile.as_deref().map(folder).transpose()?,
            warm,
            verbose: cli.verbose,
            allow_root: cli.allow_root,
            max_body: cli.max_body,
        })
    }
}

impl WarmConfig {
    fn new(cli: &Cli) -> Option<Self> {
        let off = cli.warm_max == 0 || cli.no_warm.iter().any(|pattern| pattern == "*");
        (!off).then(|| Self {
            most: cli.warm_max as usize,
            memory: cli.warm_memory,
            idle: time(cli.warm_idle),
            requests: cli.warm_requests,
            except: cli.no_warm.clone(),
            all: cli.warm_all,
            full_end: cli.warm_full_end,
            at_once: cli.warm_at_once,
        })
    }
}

impl RouteConfig {
    fn new(cli: &Cli) -> Result<Self, StartError> {
        let mut typed = cli.route.clone();
        typed.extend(cli.wsgi.iter().map(|wsgi| format!("/=wsgi:{wsgi}")));
        let php = cli.php.as_ref();
        typed.extend(php.map(|address| match address {
            Some(address) => format!("*.php=fastcgi:{address}"),
            None => "*.php=php:".to_owned(),
        }));
        let routes = typed.iter().map(|text| Route::parse(text));
        let routes: Vec<Route> = routes.collect::<Result<_, _>>()?;
        for (at, route) in routes.iter().enumerate() {
            let same = |other: &Route| other.pattern == route.pattern && other.role == route.role;
            if routes[..at].iter().any(same) {
                let message = format!("--route: two for the pattern of `{}`", typed[at]);
                return Err(StartError::usage(message)
                    .hint("several addresses of one application are parted by commas"));
            }
        }
        let limit = |seconds: f64| (seconds > 0.0).then(|| Duration::from_secs_f64(seconds));
        let statics = cli.static_files.iter().map(|text| static_folder(text));
        Ok(Self {
            routes,
            statics: statics.collect::<Result<_, _>>()?,
            connect: time(cli.route_connect),
            answer: limit(cli.route_timeout),
            pause: limit(cli.route_idle),
        })
    }
}

impl WorkerConfig {
    fn new(cli: &Cli) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            workers: cli.workers.map_or(cores, |workers| workers as usize),
            threads: cli.threads as usize,
            python: cli.python.clone(),
            reload: cli.reload,
            preload: cli.preload,
            max_requests: cli.max_requests,
            memory: Some(cli.worker_memory).filter(|&memory| memory > 0),
            idle: (cli.workers_idle > 0.0).then(|| Duration::from_secs_f64(cli.workers_idle)),
        }
    }
}

fn static_folder(text: &str) -> Result<StaticFolder, StartError> {
    let form = "write `--static /PATH/=DIR`, such as `--static /static/=staticfiles`";
    let wrong = || StartError::usage(format!("--static `{text}` can't be understood")).hint(form);
    let (path, dir) = text.split_once('=').ok_or_else(wrong)?;
    let path = UrlPath::parse(path.as_bytes()).map_err(|_| wrong())?;
    if path.segments.is_empty() || !path.trailing_slash {
        return Err(wrong());
    }
    let folder = folder(Path::new(dir))?;
    Ok(StaticFolder { path, folder })
}

/// No time limit at all is a very long one.
fn time(seconds: f64) -> Duration {
    const TEN_YEARS: Duration = Duration::from_secs(315_576_000);
    if seconds > 0.0 {
        Duration::from_secs_f64(seconds)
    } else {
        TEN_YEARS
    }
}

/// The positional arguments and the options that say the same.
#[derive(Default)]
struct Places {
    port: Option<u16>,
    directory: Option<PathBuf>,
    protocol: Option<String>,
}

impl Places {
    fn sort(cli: &Cli) -> Result<Self, StartError> {
        let mut places = Self {
            directory: cli.directory.clone(),
            protocol: cli.protocol.clone(),
            port: None,
        };
        if let Some(text) = &cli.port {
            // `python3 -m http.server -p HTTP/1.1`: there it is the protocol.
            if text.to_ascii_uppercase().starts_with("HTTP/") {
                if places.protocol.replace(text.clone()).is_some() {
                    return Err(twice("protocols", "--protocol"));
                }
            } else {
                places.set_port(text)?;
            }
        }
        for place in &cli.places {
            match place.to_str() {
                Some(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
                    places.set_port(text)?;
                }
                _ => {
                    if places.directory.replace(place.into()).is_some() {
                        return Err(twice("folders", "DIR or --directory"));
                    }
                }
            }
        }
        Ok(places)
    }

    fn set_port(&mut self, text: &str) -> Result<(), StartError> {
        let port = text.parse().map_err(|_| {
            StartError::usage(format!("`{text}` is no port")).hint(format!(
                "ports go from 0 to 65535; a folder of that name is `./{text}`"
            ))
        })?;
        if self.port.replace(port).is_some() {
            return Err(twice("ports", "PORT or --port"));
        }
        Ok(())
    }
}

fn twice(what: &str, once: &str) -> StartError {
    StartError::usage(format!("two {what} are given")).hint(format!("give {once} once"))
}

fn protocol_is_1_0(protocol: Option<String>) -> Result<bool, StartError> {
    match protocol.map(|text| text.to_ascii_uppercase()).as_deref() {
        None | Some("HTTP/1.1") => Ok(false),
        Some("HTTP/1.0") => Ok(true),
        Some(other) => Err(
            StartError::usage(format!("the protocol `{other}` is unknown"))
                .hint("use `--protocol HTTP/1.1` (the default) or HTTP/1.0"),
        ),
    }
}

fn addresses(cli: &Cli) -> Vec<Address> {
    if cli.public {
        return vec![Address::Public];
    }
    if cli.bind.is_empty() {
        return vec![Address::Host("127.0.0.1".into())];
    }
    cli.bind.iter().cloned().map(Address::Host).collect()
}

/// A host, without a port: scripts make URLs of it.
fn server_name(name: Option<String>) -> Result<Option<String>, StartError> {
    match name {
        Some(name) if name.is_empty() || host_name(name.as_bytes()) != Some(&name) => Err(
            StartError::usage(format!("`{name}` is no name of a server"))
                .hint("give a host without a port: `--server-name www.example.org`"),
        ),
        name => Ok(name),
    }
}

/// A folder that can be served, absolute and with its links resolved.
fn folder(path: &Path) -> Result<PathBuf, StartError> {
    if path.as_os_str().is_empty() {
        return Err(StartError::usage("the folder's name is empty")
            .hint("leave it away to serve this folder, or check the variable it comes from"));
    }
    let shown = path.display();
    let word = |path: &Path| shell_word(path.as_os_str().as_bytes());
    let error = |why: &str, hint: String| {
        StartError::failed(format!("cannot serve {shown}: {why}")).hint(hint)
    };
    let absolute = path.canonicalize().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => error(
            "no such folder",
            format!("check the name, or make it: `mkdir -p {}`", word(path)),
        ),
        std::io::ErrorKind::PermissionDenied => error(
            "permission denied",
            "choose a folder that you may read".into(),
        ),
        _ => error(&e.to_string(), "choose another folder".into()),
    })?;
    if !absolute.is_dir() {
        let parent = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        return Err(error(
            "it is a file, not a folder",
            format!(
                "serve the folder that holds it: `serve-here {}`",
                word(parent)
            ),
        ));
    }
    std::fs::read_dir(&absolute).map_err(|_| {
        error(
            "permission denied",
            "choose a folder that you may read".into(),
        )
    })?;
    Ok(absolute)
}

fn script_dirs(prefixes: &[String]) -> Result<Vec<String>, StartError> {
    if prefixes.is_empty() {
        return Ok(DEFAULT_SCRIPT_DIRS.map(str::to_owned).to_vec());
    }
    prefixes
        .iter()
        .map(|prefix| {
            let trimmed = prefix.trim_matches('/');
            let plain = !trimmed.is_empty()
                && trimmed
                    .split('/')
                    .all(|part| !matches!(part, "" | "." | ".."));
            if plain {
                Ok(trimmed.to_owned())
            } else {
                Err(StartError::usage(format!("`{prefix}` is no script folder"))
                    .hint("name a folder below the served one: `--cgi-dir /bin`"))
            }
        })
        .collect()
}

type Named = (Vec<(String, String)>, Vec<String>);

fn environment(options: Vec<String>) -> Result<Named, StartError> {
    let (mut set, mut pass) = (Vec::new(), Vec::new());
    for option in options {
        let name = option.split_once('=').map_or(&option[..], |(name, _)| name);
        if name.is_empty() {
            return Err(StartError::usage("--cgi-env needs a name")
                .hint("write `--cgi-env NAME=VALUE` or `--cgi-env NAME`"));
        }
        if is_meta_variable(name.as_bytes()) {
            let message = format!("--cgi-env can't set {name}: it belongs to the request");
            return Err(StartError::usage(message).hint("choose another name"));
        }
        match option.split_once('=') {
            Some((name, value)) => set.push((name.to_owned(), value.to_owned())),
            None => pass.push(option),
        }
    }
    Ok((set, pass))
}
