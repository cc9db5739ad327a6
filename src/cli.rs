//! Every flag and its help. What the flags mean together is in `config`.
#![allow(
    clippy::doc_markdown,
    reason = "these comments are the help that people read"
)]

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

use crate::forwarded::Network;
use crate::log::Format;

/// Serve the files of a folder and run its cgi-bin/ scripts.
///
/// In any folder, `serve-here 8080` puts its files on http://127.0.0.1:8080/ and
/// runs the programs in cgi-bin/ and htbin/. Only this machine can connect;
/// --public lets others in.
#[allow(clippy::struct_excessive_bools, reason = "a flag is a bool")]
#[derive(Debug, Parser)]
#[command(name = "serve-here", version, override_usage = "serve-here [OPTIONS] [PORT] [DIR]", max_term_width = 100, after_help = AFTER_HELP, after_long_help = AFTER_LONG_HELP)]
pub struct Cli {
    /// Port (a number, default 8000, 0 = any free one) and folder, in either order
    ///
    /// A number is the port, anything else the folder; `./8080` is a folder of that name. Without
    /// a port the environment variable PORT counts, then 8000. 0 takes any free port.
    #[arg(value_name = "PORT|DIR", num_args = 0..)]
    pub places: Vec<OsString>,

    /// Address to listen on; repeatable [default: 127.0.0.1]
    ///
    /// A name or address of this machine, with or without a port of its own: `-b ::1`,
    /// `-b localhost`, `-b 192.168.1.5:9000`.
    #[arg(short, long, value_name = "ADDR", help_heading = "Serving")]
    pub bind: Vec<String>,

    /// Listen on all addresses, and print the URLs to reach it
    #[arg(long, conflicts_with = "bind", help_heading = "Serving")]
    pub public: bool,

    /// Folder to serve [default: .]
    #[arg(short, long, value_name = "DIR", help_heading = "Serving")]
    pub directory: Option<PathBuf>,

    /// Port, as in PORT
    ///
    /// `-p HTTP/1.1`, as `python3 -m http.server` has it, is understood as --protocol.
    #[arg(short, long, value_name = "N", help_heading = "Serving")]
    pub port: Option<String>,

    /// HTTP/1.1 (default), or HTTP/1.0: one request a connection
    #[arg(long, value_name = "VERSION", help_heading = "Serving")]
    pub protocol: Option<String>,

    /// Follow symbolic links that lead out of the folder
    #[arg(long, help_heading = "Serving")]
    pub follow_links: bool,

    /// Serve names that start with a dot too (.well-known always is)
    #[arg(long, help_heading = "Serving")]
    pub hidden: bool,

    /// Compress no files; those with a .br, .zst or .gz beside them still are
    ///
    /// Otherwise text, scripts and the like from 1 KiB to 4 MiB are compressed for clients that
    /// accept it. What a CGI script prints never is.
    #[arg(long, help_heading = "Serving")]
    pub no_compress: bool,

    /// What speaks HTTP: http1 (default), or tiny-http, on loopback only
    #[arg(
        long,
        value_name = "NAME",
        default_value = "http1",
        hide_default_value = true,
        help_heading = "Serving"
    )]
    pub engine: EngineName,

    /// SERVER_NAME for clients that send no Host field
    #[arg(long, value_name = "NAME", help_heading = "Serving")]
    pub server_name: Option<String>,

    /// Believe what a proxy says of its clients, such as 10.0.0.1 or 10.0.0.0/24; repeatable
    ///
    /// A request that comes from that address is its client's, as `X-Forwarded-For` and
    /// `X-Forwarded-Proto` have it: for scripts, applications and the log. docs/scaling.md
    /// says what to do at the proxy.
    #[arg(long, value_name = "ADDR[/BITS]", help_heading = "Serving")]
    pub trust_proxy: Vec<Network>,

    /// Switch to this user after binding the port
    ///
    /// Group, supplementary groups and user are all switched; if one can't be, the server does
    /// not start.
    #[arg(long, value_name = "NAME", help_heading = "Serving")]
    pub user: Option<String>,

    /// Run scripts (the default)
    #[arg(long, overrides_with = "no_cgi", help_heading = "Scripts")]
    pub cgi: bool,

    /// Run no scripts; script folders are not shown either
    #[arg(long, overrides_with = "cgi", help_heading = "Scripts")]
    pub no_cgi: bool,

    /// Script folder, as a URL prefix; repeatable [default: /cgi-bin /htbin]
    #[arg(
        long,
        value_name = "PREFIX",
        conflicts_with = "no_cgi",
        help_heading = "Scripts"
    )]
    pub cgi_dir: Vec<String>,

    /// Run files with these endings anywhere, such as `cgi,pl`
    #[arg(
        long,
        value_name = "EXT,…",
        conflicts_with = "no_cgi",
        value_delimiter = ',',
        help_heading = "Scripts"
    )]
    pub cgi_ext: Vec<String>,

    /// End a script that prints nothing for so long [default: 60; 0 = never]
    ///
    /// Its header must be complete in that time, counted from the last of the request's content:
    /// else the client gets 504. After the header the connection is cut.
    #[arg(long, value_name = "SECS", default_value = "60", hide_default_value = true, value_parser = seconds, help_heading = "Scripts")]
    pub cgi_timeout: f64,

    /// Scripts that run at once [default: 4 per core, at least 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Scripts")]
    pub cgi_jobs: Option<u32>,

    /// Requests that wait for a place; more get 503 [default: 256]
    #[arg(
        long,
        value_name = "N",
        default_value_t = 256,
        hide_default_value = true,
        help_heading = "Scripts"
    )]
    pub cgi_queue: u32,

    /// Longest wait for a place, then 503 [default: 30]
    #[arg(long, value_name = "SECS", default_value = "30", hide_default_value = true, value_parser = seconds, help_heading = "Scripts")]
    pub cgi_wait: f64,

    /// Give scripts a variable, the server's own or set here; repeatable
    ///
    /// `--cgi-env NAME` passes the server's, `--cgi-env NAME=VALUE` sets one. Meta-variables such
    /// as PATH_INFO can't be set.
    #[arg(long, value_name = "NAME[=VALUE]", help_heading = "Scripts")]
    pub cgi_env: Vec<String>,

    /// Give scripts the server's whole environment
    ///
    /// As `python3 -m http.server --cgi` did. Secrets in it reach every script.
    #[arg(long, help_heading = "Scripts")]
    pub cgi_inherit_env: bool,

    /// Pass queries without `=` as arguments (RFC 3875 §4.4)
    #[arg(long, help_heading = "Scripts")]
    pub cgi_args: bool,

    /// Where scripts start: `script` (their folder) or `root` [default: script]
    #[arg(
        long,
        value_name = "WHERE",
        default_value = "script",
        hide_default_value = true,
        help_heading = "Scripts"
    )]
    pub cgi_cwd: WorkingDirectory,

    /// Let scripts run to their end when the client has left
    #[arg(long, help_heading = "Scripts")]
    pub cgi_finish: bool,

    /// Keep the Authorization field from scripts
    #[arg(long, help_heading = "Scripts")]
    pub no_cgi_authorization: bool,

    /// Obey X-Sendfile for files below this folder
    #[arg(long, value_name = "DIR", help_heading = "Scripts")]
    pub cgi_sendfile: Option<PathBuf>,

    /// Start no Python and Perl scripts from prepared interpreters, or not these; repeatable
    ///
    /// `--no-warm` alone switches it off. `--no-warm='/cgi-bin/a*'` leaves scripts with such a URL
    /// path or name to interpreters of their own; `*` and `?` stand for others.
    #[arg(
        long,
        value_name = "PATTERN",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "*",
        help_heading = "Scripts"
    )]
    pub no_warm: Vec<String>,

    /// Prepared interpreters at once [default: 8; 0 = none]
    #[arg(long, value_name = "N", default_value_t = 8, hide_default_value = true, value_parser = clap::value_parser!(u32).range(0..=1000), help_heading = "Scripts")]
    pub warm_max: u32,

    /// Memory of all prepared interpreters together; those asked for least go [default: 256M]
    #[arg(long, value_name = "SIZE", default_value = "256M", hide_default_value = true, value_parser = size, help_heading = "Scripts")]
    pub warm_memory: u64,

    /// End a prepared interpreter that nobody asks for [default: 60; 0 = never]
    #[arg(long, value_name = "SECS", default_value = "60", hide_default_value = true, value_parser = seconds, help_heading = "Scripts")]
    pub warm_idle: f64,

    /// Replace a prepared interpreter after so many requests [default: 1000]
    #[arg(long, value_name = "N", default_value_t = 1000, hide_default_value = true, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Scripts")]
    pub warm_requests: u64,

    /// Run an interpreter's own end to the last step after each warm script
    ///
    /// Without it the end of a Python script is cut short where nothing of what is left out
    /// could show.
    #[arg(long, help_heading = "Scripts")]
    pub warm_full_end: bool,

    /// Have the first request of a script wait for its interpreter
    #[arg(long, hide = true)]
    pub warm_at_once: bool,

    /// Prepare Perl for scripts that load no modules too, which gains little
    #[arg(long, hide = true)]
    pub warm_all: bool,

    /// Run scripts as root on addresses that others can reach
    #[arg(long, help_heading = "Scripts")]
    pub allow_root: bool,

    /// Hand requests to an application server, such as /app/=scgi:127.0.0.1:4000; repeatable
    ///
    /// PATTERN is a path (`/app/`: all that lies below it) or files (`*.php`, `/blog/*.php`,
    /// `/cgi-bin/*`); the longest wins. TARGET is a protocol, addresses and options:
    /// `fastcgi:unix:/run/php.sock`, `uwsgi:10.0.0.1:3031,10.0.0.2:3031,connections=8`. The
    /// protocols are fastcgi, scgi, uwsgi, http and https. `fastcgi:spawn:COMMAND`, `scgi:spawn:COMMAND`
    /// and `wsgi:MODULE:CALLABLE` start the application, too. docs/routes.md says it all.
    #[arg(long, value_name = "PATTERN=TARGET", help_heading = "Applications")]
    pub route: Vec<String>,

    /// Serve a WSGI application by Python workers, such as shop.wsgi:application
    ///
    /// `MODULE:CALLABLE`, `file.py:app`, or a factory: `shop:create_app()`. It gets every path; for a
    /// part of them write `--route /api/=wsgi:api.app:app`. The module is looked for in the served
    /// folder. docs/applications.md says it all.
    #[arg(long, value_name = "MODULE:CALLABLE", help_heading = "Applications")]
    pub wsgi: Option<String>,

    /// Run *.php files by php-cgi workers, or by the php-fpm at ADDR
    #[arg(
        long,
        value_name = "ADDR",
        num_args = 0..=1,
        require_equals = true,
        help_heading = "Applications"
    )]
    #[allow(clippy::option_option, reason = "given, and given with a value")]
    pub php: Option<Option<String>>,

    /// Send files of a folder below a path before any application; repeatable
    ///
    /// Names with a hash, such as `app.27e20196a850.js`, may be kept by browsers for a year.
    #[arg(
        long = "static",
        value_name = "/PATH/=DIR",
        help_heading = "Applications"
    )]
    pub static_files: Vec<String>,

    /// Workers of each application started from here [default: one per core]
    ///
    /// While it runs, the signals TTIN and TTOU make them one more or one fewer, and HUP replaces
    /// all of them without losing a request.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Applications")]
    pub workers: Option<u32>,

    /// Requests at a time in each WSGI worker [default: 1]
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true, value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Applications")]
    pub threads: u32,

    /// Python interpreter for WSGI [default: the virtual environment's]
    ///
    /// That of the active one ($VIRTUAL_ENV), else of .venv or venv in the served folder, else python3.
    #[arg(long, value_name = "FILE", help_heading = "Applications")]
    pub python: Option<PathBuf>,

    /// Replace WSGI workers when a file of the application changes
    #[arg(long, help_heading = "Applications")]
    pub reload: bool,

    /// Load each WSGI application once and fork its workers from that
    ///
    /// They start at once and share memory. A reload (HUP, --reload) loads it anew. Threads that the
    /// application starts while it is loaded are in none of the workers.
    #[arg(long, help_heading = "Applications")]
    pub preload: bool,

    /// Replace a worker after so many requests [default: 0 = never; php 10000]
    #[arg(long, value_name = "N", help_heading = "Applications")]
    pub max_requests: Option<u64>,

    /// Replace a worker that has more memory [default: 0 = never]
    #[arg(long, value_name = "SIZE", default_value = "0", hide_default_value = true, value_parser = size, help_heading = "Applications")]
    pub worker_memory: u64,

    /// End all workers after so long without a request [default: 0 = never]
    ///
    /// Then they start with the next request, and with the first one.
    #[arg(long, value_name = "SECS", default_value = "0", hide_default_value = true, value_parser = seconds, help_heading = "Applications")]
    pub workers_idle: f64,

    /// For a connection to an application [default: 5]
    #[arg(long, value_name = "SECS", default_value = "5", hide_default_value = true, value_parser = seconds, help_heading = "Applications")]
    pub route_connect: f64,

    /// For an application's answer to begin, then 504 [default: 60; 0 = no limit]
    ///
    /// Its header must be complete in that time, counted from the last of the request's content.
    #[arg(long, value_name = "SECS", default_value = "60", hide_default_value = true, value_parser = seconds, help_heading = "Applications")]
    pub route_timeout: f64,

    /// Longest pause in its answer, then the connection is cut [default: 60; 0 = no limit]
    #[arg(long, value_name = "SECS", default_value = "60", hide_default_value = true, value_parser = seconds, help_heading = "Applications")]
    pub route_idle: f64,

    /// Refuse longer request content; bytes, or with K, M, G [default: 16G]
    #[arg(long, value_name = "SIZE", default_value = "16G", hide_default_value = true, value_parser = size, help_heading = "Limits")]
    pub max_body: u64,

    /// Longest request head; 414 or 431 beyond it [default: 64K]
    #[arg(long, value_name = "SIZE", default_value = "64K", hide_default_value = true, value_parser = size, help_heading = "Limits")]
    pub max_head: u64,

    /// Fields in a request head; 431 beyond it [default: 100]
    #[arg(long, value_name = "N", default_value_t = 100, hide_default_value = true, value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Limits")]
    pub max_fields: u32,

    /// Connections at once [default: what the limit of open files allows]
    ///
    /// At the limit the connections that have been idle longest are closed; then accepting waits.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits")]
    pub max_connections: Option<u32>,

    /// For a whole request head, then 408 [default: 10; 0 = none]
    #[arg(long, value_name = "SECS", default_value = "10", hide_default_value = true, value_parser = seconds, help_heading = "Limits")]
    pub head_timeout: f64,

    /// For the next request on an open connection [default: 60; 0 = none]
    #[arg(long, value_name = "SECS", default_value = "60", hide_default_value = true, value_parser = seconds, help_heading = "Limits")]
    pub idle_timeout: f64,

    /// For a client to take data, then the connection is cut [default: 60; 0 = none]
    #[arg(long, value_name = "SECS", default_value = "60", hide_default_value = true, value_parser = seconds, help_heading = "Limits")]
    pub write_timeout: f64,

    /// Longest pause in request content, then 408 [default: 60; 0 = none]
    #[arg(long, value_name = "SECS", default_value = "60", hide_default_value = true, value_parser = seconds, help_heading = "Limits")]
    pub body_timeout: f64,

    /// Least bytes a second of a client that is waited for [default: 100; 0 = none]
    ///
    /// --body-timeout and --write-timeout are what a client may use up in waiting, all in all.
    /// Each so many bytes that it sends or takes give a second of it back. Time in which a script
    /// is slower than the client costs nothing.
    #[arg(long, value_name = "SIZE", default_value = "100", hide_default_value = true, value_parser = size, help_heading = "Limits")]
    pub min_rate: u64,

    /// For running requests when the server is told to stop [default: 10]
    #[arg(long, value_name = "SECS", default_value = "10", hide_default_value = true, value_parser = seconds, help_heading = "Limits")]
    pub grace: f64,

    /// Access log on standard error [default: common]
    #[arg(
        long,
        value_name = "FORM",
        default_value = "common",
        hide_default_value = true,
        help_heading = "Logging"
    )]
    pub log: Format,

    /// Answers say how a script was run (X-Serve-Here-Run: warm or plain)
    #[arg(short, long, help_heading = "Logging")]
    pub verbose: bool,

    /// No access log and no notes; faults and scripts' errors still show
    #[arg(short, long, help_heading = "Logging")]
    pub quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineName {
    Http1,
    TinyHttp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum WorkingDirectory {
    Script,
    Root,
}

const AFTER_HELP: &str = "`serve-here --help` says more.";

const AFTER_LONG_HELP: &str = "\
Examples:
  serve-here                      this folder on http://127.0.0.1:8000/
  serve-here 8080 ~/site          that folder on port 8080
  serve-here --public             reachable from other machines
  serve-here --cgi-ext cgi,pl     scripts by ending, in every folder

Exit codes: 0 stopped by a signal, 1 could not start or run, 2 wrong usage.";

/// The longest time that any option takes: ten years.
const MAX_SECONDS: f64 = 315_576_000.0;

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=MAX_SECONDS).contains(&seconds) => Ok(seconds),
        _ => Err("expected a number of seconds, such as 30 or 0.5".into()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    let upper = text.to_ascii_uppercase();
    let (digits, factor) = match upper.as_bytes().last() {
        Some(b'K') => (&upper[..upper.len() - 1], 1 << 10),
        Some(b'M') => (&upper[..upper.len() - 1], 1 << 20),
        Some(b'G') => (&upper[..upper.len() - 1], 1 << 30),
        _ => (&upper[..], 1),
    };
    let number = digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(factor));
    number.ok_or_else(|| "expected bytes, such as 65536, 100M or 2G".into())
}
