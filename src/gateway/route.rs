//! `--route PATTERN=TARGET`: which requests go to an application server, and
//! to which. Owns the spelling of both sides and the split of the path into
//! `SCRIPT_NAME` and `PATH_INFO`; connects to nobody.
//!
//! A pattern without a star is a part of the URL space that belongs to an
//! application, whatever lies on the disk: `/app/`. A pattern with one stands
//! for files below the served folder, which are looked up as scripts are:
//! `*.php`, `/blog/*.php`, `/cgi-bin/*`.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::backend::Address;
use super::script::{self, Found, Script, Scripts};
use super::sticky::Sticky;
use super::variables::host_name;
use crate::error::{Fault, StartError};
use crate::target::UrlPath;

/// One `--route`, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub pattern: Pattern,
    pub role: Role,
    pub target: Target,
}

/// What the target is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The answer.
    Responder,
    /// Whether there may be one.
    Authorizer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// `/app/`, or `/app` without the slash.
    Mount(UrlPath),
    /// Files below a folder, all or those with an ending.
    Files {
        below: Vec<Vec<u8>>,
        ending: Option<String>,
    },
}

/// Who answers, and how it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub protocol: Protocol,
    pub addresses: Vec<Address>,
    /// What is started from here; `addresses` are then its workers.
    pub staff: Option<Staff>,
    /// The document root as the application sees it (C172).
    pub root: Option<PathBuf>,
    /// `SCRIPT_FILENAME` of a mount.
    pub script: Option<PathBuf>,
    /// For HTTP: what the pattern's part of the path becomes; `None`: the path
    /// stays as it is.
    pub path: Option<UrlPath>,
    /// For HTTP: the Host field, instead of the client's.
    pub host: Option<String>,
    /// To an address at once; `None`: no limit.
    pub connections: Option<usize>,
    /// Idle connections that are kept for the next request, for each address.
    pub keep: usize,
    /// How often it is looked whether an address is there.
    pub check: Option<Duration>,
    /// Clients stay with an address.
    pub sticky: Option<Sticky>,
    /// The application gets a request when all of its content is here; `None`: as
    /// the pattern has it.
    pub whole: Option<bool>,
}

/// An application that is started from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Staff {
    /// A program with its arguments.
    Command(Vec<String>),
    /// A WSGI application: `module:callable`.
    Wsgi(String),
    /// `php-cgi`.
    Php,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The answer is that of a CGI script.
    Cgi(Wire),
    Http,
    Https,
}

/// How the variables of a CGI script go to an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    FastCgi,
    Scgi,
    /// The two modifiers of a uwsgi packet (C179).
    Uwsgi(u8, u8),
}

impl Wire {
    pub fn name(self) -> &'static str {
        match self {
            Self::FastCgi => "fastcgi",
            Self::Scgi => "scgi",
            Self::Uwsgi(..) => "uwsgi",
        }
    }
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgi(wire) => wire.name(),
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

const DEFAULT_KEEP: usize = 8;
const FORM: &str = "write `--route PATTERN=TARGET`, such as `--route '/app/=scgi:127.0.0.1:4000'` \
     or `--route '*.php=fastcgi:unix:/run/php/php-fpm.sock'`";

impl Route {
    /// What `--route` was given.
    pub fn parse(text: &str) -> Result<Self, StartError> {
        let wrong = |why: String, hint: String| {
            StartError::usage(format!("--route `{text}`: {why}")).hint(hint)
        };
        let Some((pattern, target)) = text.split_once('=') else {
            return Err(wrong("it has no `=`".into(), FORM.into()));
        };
        let (role, target) = match target.strip_prefix("authorizer+") {
            Some(target) => (Role::Authorizer, target),
            None => (Role::Responder, target),
        };
        let mut route = Self {
            pattern: Pattern::parse(pattern).map_err(|(why, hint)| wrong(why, hint))?,
            role,
            target: Target::parse(target).map_err(|(why, hint)| wrong(why, hint))?,
        };
        if let Some(Sticky::Cookie(path)) = &mut route.target.sticky {
            *path = route.pattern.cookie_path();
        }
        // PHP takes the end of a connection for the end of the content, and runs a
        // script on half of it (C71).
        let script = route.target.script.as_ref();
        let is_php = script.is_some_and(|script| script.extension() == Some("php".as_ref()));
        if is_php || route.pattern.ending().as_deref() == Some("php") {
            route.target.whole.get_or_insert(true);
        }
        if role == Role::Authorizer {
            if route.target.protocol != Protocol::Cgi(Wire::FastCgi) {
                let why = "only `fastcgi:` knows authorizers".into();
                return Err(wrong(why, "write `authorizer+fastcgi:HOST:PORT`".into()));
            }
            if !matches!(route.pattern, Pattern::Mount(_)) {
                let why = "an authorizer needs a pattern without a star".into();
                return Err(wrong(why, "protect a folder: `/private/`".into()));
            }
        }
        Ok(route)
    }
}

/// What is wrong, and what would be right.
type Wrong = (String, String);

impl Pattern {
    fn parse(text: &str) -> Result<Self, Wrong> {
        let wrong = |why: &str, hint: &str| Err((format!("pattern `{text}`: {why}"), hint.into()));
        let Some((folder, ending)) = text.split_once('*') else {
            if !text.starts_with('/') {
                return wrong(
                    "it starts with neither `/` nor `*`",
                    "patterns are a path such as `/app/`, or files such as `*.php`",
                );
            }
            return match UrlPath::parse(text.as_bytes()) {
                Ok(path) => Ok(Self::Mount(path)),
                Err(_) => wrong("it is no URL path", "write it as it stands in a URL"),
            };
        };
        let folder = if folder.is_empty() { "/" } else { folder };
        let below = match UrlPath::parse(folder.as_bytes()) {
            Ok(path) if folder.ends_with('/') => path.segments,
            _ => {
                return wrong(
                    "the star must follow a slash or come first",
                    "such as `*.php`, `/blog/*.php` or `/cgi-bin/*`",
                );
            }
        };
        let plain = |ending: &str| {
            !ending.is_empty() && !ending.contains(['/', '*', '?', '%']) && !ending.contains(' ')
        };
        match ending.strip_prefix('.') {
            Some(ending) if plain(ending) => Ok(Self::Files {
                below,
                ending: Some(ending.to_owned()),
            }),
            None if ending.is_empty() => Ok(Self::Files {
                below,
                ending: None,
            }),
            _ => wrong(
                "after the star comes nothing, or a dot and an ending",
                "such as `*.php`, `/blog/*.php` or `/cgi-bin/*`",
            ),
        }
    }

    /// The folder whose files are never sent as they are: they may be source,
    /// or hide behind the application. `None` for the root, where that would be
    /// all there is.
    pub fn folder(&self) -> Option<PathBuf> {
        let segments = match self {
            Self::Mount(path) => &path.segments,
            Self::Files {
                below,
                ending: None,
            } => below,
            Self::Files { .. } => return None,
        };
        (!segments.is_empty())
            .then(|| UrlPath::join(segments))
            .flatten()
    }

    /// The ending whose files are never sent as they are, wherever they lie.
    pub fn ending(&self) -> Option<String> {
        match self {
            Self::Files { ending, .. } => ending.clone(),
            Self::Mount(_) => None,
        }
    }

    /// The path below which it can be, for a cookie.
    fn cookie_path(&self) -> String {
        let path = match self {
            Self::Mount(path) => path.encoded(),
            Self::Files { below, .. } => UrlPath {
                segments: below.clone(),
                trailing_slash: true,
            }
            .encoded(),
        };
        // A semicolon would end it.
        path.replace(';', "%3B")
    }

    /// How much of a path it says; the longest wins.
    fn weight(&self) -> usize {
        let length = |segments: &[Vec<u8>]| -> usize {
            segments.iter().map(|segment| segment.len() + 1).sum()
        };
        match self {
            Self::Mount(path) => length(&path.segments) + usize::from(path.trailing_slash),
            Self::Files { below, ending } => {
                let slash = usize::from(!below.is_empty());
                length(below) + slash + ending.as_ref().map_or(0, |ending| ending.len() + 1)
            }
        }
    }
}

impl Target {
    fn parse(text: &str) -> Result<Self, Wrong> {
        let wrong = |why: String, hint: &str| Err((why, hint.to_owned()));
        let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
        let protocol = match scheme {
            "fastcgi" | "php" => Protocol::Cgi(Wire::FastCgi),
            "scgi" | "wsgi" => Protocol::Cgi(Wire::Scgi),
            "uwsgi" => Protocol::Cgi(Wire::Uwsgi(0, 0)),
            "http" => Protocol::Http,
            "https" => Protocol::Https,
            _ => {
                return wrong(
                    format!("the protocol `{scheme}` is unknown"),
                    "targets start with `fastcgi:`, `scgi:`, `uwsgi:`, `http:`, `https:`, `wsgi:` \
                     or `authorizer+fastcgi:`",
                );
            }
        };
        let mut target = Self::of(protocol);
        if scheme == "wsgi" {
            let application = target.set_trailing(rest)?;
            if application.is_empty() {
                return wrong(
                    "it names no application".into(),
                    "write `wsgi:MODULE:CALLABLE`, such as `wsgi:shop.wsgi:application`",
                );
            }
            target.staff = Some(Staff::Wsgi(application.to_owned()));
            return Ok(target);
        }
        if scheme == "php" {
            target.set_trailing(rest)?;
            target.staff = Some(Staff::Php);
            return Ok(target);
        }
        if let Some(command) = rest.strip_prefix("spawn:") {
            if !matches!(protocol, Protocol::Cgi(Wire::FastCgi | Wire::Scgi)) {
                return wrong(
                    format!("`{scheme}:` programs can't be started from here"),
                    "write `fastcgi:spawn:COMMAND` or `scgi:spawn:COMMAND`",
                );
            }
            let command = target.set_trailing(command)?;
            let Some(words) = words(command).filter(|words| !words.is_empty()) else {
                return wrong(
                    format!("`{command}` is no command"),
                    "write a program and its arguments, quoted as for a shell",
                );
            };
            target.staff = Some(Staff::Command(words));
            return Ok(target);
        }
        let is_http = matches!(protocol, Protocol::Http | Protocol::Https);
        let rest = match rest.strip_prefix("//") {
            Some(rest) if is_http => rest,
            _ => rest,
        };
        for item in rest.split(',') {
            match option(item) {
                Some((name, value)) => target.set(name, value)?,
                None => target.addresses.push(Address::parse(item).ok_or_else(|| {
                    (
                        format!("`{item}` is no address"),
                        "an address is HOST:PORT or unix:PATH; several are parted by commas".into(),
                    )
                })?),
            }
        }
        if target.addresses.is_empty() {
            return wrong(
                "it names no address".into(),
                "an address is HOST:PORT or unix:PATH; several are parted by commas",
            );
        }
        Ok(target)
    }

    fn of(protocol: Protocol) -> Self {
        Self {
            protocol,
            addresses: Vec::new(),
            staff: None,
            root: None,
            script: None,
            path: None,
            host: None,
            connections: None,
            keep: DEFAULT_KEEP,
            check: None,
            sticky: None,
            whole: None,
        }
    }

    /// The first word of its lines in the log.
    pub fn name(&self) -> &'static str {
        match self.staff {
            Some(Staff::Wsgi(_)) => "wsgi",
            Some(Staff::Php) => "php",
            Some(Staff::Command(_)) | None => self.protocol.name(),
        }
    }

    /// Whether connections for `other` can be used for this, too: both name the
    /// same application, and nothing of it is started from here.
    pub fn is_beside(&self, other: &Self) -> bool {
        let is_elsewhere =
            |target: &Self| target.staff.is_none() && matches!(target.protocol, Protocol::Cgi(_));
        is_elsewhere(self)
            && is_elsewhere(other)
            && self.name() == other.name()
            && self.addresses == other.addresses
            && self.connections == other.connections
            && (self.keep, self.check) == (other.keep, other.check)
    }

    /// Takes the options off the end of a text that may hold commas itself, and
    /// returns the rest.
    fn set_trailing<'t>(&mut self, mut text: &'t str) -> Result<&'t str, Wrong> {
        const OPTIONS: [&str; 5] = ["connections", "content", "keep", "root", "script"];
        while let Some((rest, item)) = text.rsplit_once(',')
            && let Some((name, value)) = option(item)
            && OPTIONS.contains(&name)
        {
            self.set(name, value)?;
            text = rest;
        }
        Ok(text)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Wrong> {
        let bad = |hint: &str| {
            Err((
                format!("`{name}={value}` can't be understood"),
                hint.to_owned(),
            ))
        };
        let number = || value.parse::<usize>().ok();
        let is_http = matches!(self.protocol, Protocol::Http | Protocol::Https);
        match name {
            "path" | "host" if !is_http => return bad("it is for `http:` and `https:` only"),
            "root" | "script" if is_http => return bad("it is not for `http:` and `https:`"),
            "content" => match value {
                "whole" => self.whole = Some(true),
                "streamed" => self.whole = Some(false),
                _ => return bad("give `whole` or `streamed`"),
            },
            "path" => match UrlPath::parse(value.as_bytes()) {
                Ok(path) => self.path = Some(path),
                Err(_) => return bad("give a URL path, such as `/` or `/api/`"),
            },
            "host" => match host_name(value.as_bytes()) {
                Some(name) if !name.is_empty() => self.host = Some(value.to_owned()),
                _ => return bad("give a name, with a port if it needs one"),
            },
            "root" | "script" if !value.starts_with('/') => {
                return bad("give the path as the application sees it, from `/` on");
            }
            "root" => self.root = Some(value.into()),
            "script" => self.script = Some(value.into()),
            "connections" => match number() {
                Some(most @ 1..) => self.connections = Some(most),
                _ => return bad("give the number of connections to an address at once"),
            },
            "check" => match value.parse::<f64>() {
                Ok(seconds @ 0.1..=86_400.0) => self.check = Some(Duration::from_secs_f64(seconds)),
                _ => return bad("give the seconds between two looks, from 0.1 on"),
            },
            "sticky" => match value {
                "cookie" => self.sticky = Some(Sticky::Cookie("/".into())),
                "client" => self.sticky = Some(Sticky::Client),
                _ => return bad("give `cookie` or `client`"),
            },
            "keep" => match number() {
                Some(keep) => self.keep = keep,
                None => {
                    return bad("give the number of idle connections that are kept, 0 for none");
                }
            },
            "modifier1" | "modifier2" => {
                let (Protocol::Cgi(Wire::Uwsgi(one, two)), Ok(number)) =
                    (&mut self.protocol, value.parse())
                else {
                    return bad("modifiers are numbers from 0 to 255, for `uwsgi:` only");
                };
                *(if name == "modifier1" { one } else { two }) = number;
            }
            _ => {
                return Err((
                    format!("the option `{name}` is unknown"),
                    "there are connections, keep, check, sticky, content, root, script, path, host, modifier1 and modifier2"
                        .into(),
                ));
            }
        }
        Ok(())
    }
}

/// `name=value`; an address has none of these before an equals sign.
fn option(item: &str) -> Option<(&str, &str)> {
    let (name, value) = item.split_once('=')?;
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    plain.then_some((name, value))
}

/// The words of a command as a shell would part them, without anything else
/// that a shell does; `None` if a quotation doesn't end.
fn words(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut rest = command.chars();
    while let Some(c) = rest.next() {
        match (quote, c) {
            (Some(mark), c) if c == mark => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().push(rest.next()?),
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// Routes in the order they are asked, each with what answers for it.
pub struct Routes<A> {
    entries: Vec<Entry<A>>,
}

struct Entry<A> {
    pattern: Pattern,
    /// For a pattern of files.
    scripts: Option<Scripts>,
    /// `SCRIPT_FILENAME` of a mount.
    script: Option<PathBuf>,
    application: A,
}

impl<A> Routes<A> {
    /// `root` is the served folder, absolute.
    pub fn new(root: &Path, routes: impl IntoIterator<Item = (Route, A)>) -> Self {
        let entry = |(route, application): (Route, A)| Entry {
            scripts: scripts(root, &route.pattern),
            script: route.target.script,
            pattern: route.pattern,
            application,
        };
        let mut entries: Vec<_> = routes.into_iter().map(entry).collect();
        // Stable: of two that say as much, the first one given.
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.pattern.weight()));
        Self { entries }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The application that a path belongs to, and what of the path is the
    /// application's name.
    pub fn find(&self, path: &UrlPath) -> Option<(&A, Result<Found, Fault>)> {
        self.entries.iter().find_map(|entry| {
            let found = entry.find(path)?;
            Some((&entry.application, found))
        })
    }
}

fn scripts(root: &Path, pattern: &Pattern) -> Option<Scripts> {
    let Pattern::Files { below, ending } = pattern else {
        return None;
    };
    let folder = || String::from_utf8_lossy(&below.join(&b'/')).into_owned();
    let options = script::Options {
        dirs: ending.is_none().then(folder).into_iter().collect(),
        extensions: ending.iter().cloned().collect(),
        any_file: true,
    };
    Some(Scripts::new(root, options))
}

impl<A> Entry<A> {
    fn find(&self, path: &UrlPath) -> Option<Result<Found, Fault>> {
        match &self.pattern {
            Pattern::Mount(mount) => self.find_mounted(mount, path),
            Pattern::Files { below, .. } => {
                let inside = path.segments.starts_with(below);
                inside.then(|| self.scripts.as_ref()?.find(path)).flatten()
            }
        }
    }

    /// `SCRIPT_NAME`. PHP programs look for the name of the script in it, to
    /// know below which path they are.
    fn name_below(&self, mount: &UrlPath) -> Vec<u8> {
        let file = self.script.as_ref().and_then(|script| script.file_name());
        let file = file.map(OsStrExt::as_bytes);
        match file.filter(|name| name.ends_with(b".php")) {
            Some(name) => script::joined(&[&mount.segments[..], &[name.to_vec()]].concat()),
            None => script::joined(&mount.segments),
        }
    }

    fn find_mounted(&self, mount: &UrlPath, path: &UrlPath) -> Option<Result<Found, Fault>> {
        let rest = path.segments.strip_prefix(&mount.segments[..])?;
        if rest.is_empty() && mount.trailing_slash && !path.trailing_slash {
            return Some(Ok(Found::Redirect(script::with_slash(path))));
        }
        let script = script::path_info(rest, path.trailing_slash).map(|path_info| {
            Found::Script(Script {
                file: self.script.clone().unwrap_or_default(),
                name: self.name_below(mount),
                path_info,
                subject: script::subject(&path.segments),
                prefix: Vec::new(),
            })
        });
        Some(script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Route, String> {
        Route::parse(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_route_is_a_pattern_and_a_target() {
        let route = parse("/app/=uwsgi:10.0.0.1:3031,[::1]:3032,unix:/run/a.sock,modifier1=5");
        let route = route.unwrap();
        assert_eq!(
            route.pattern,
            Pattern::Mount(UrlPath::parse(b"/app/").unwrap())
        );
        assert_eq!(route.target.protocol, Protocol::Cgi(Wire::Uwsgi(5, 0)));
        let addresses: Vec<String> = route
            .target
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            addresses,
            ["10.0.0.1:3031", "[::1]:3032", "unix:/run/a.sock"]
        );
        let route = parse("/a/*.php=fastcgi:localhost:9000,root=/srv/www,keep=0,connections=4");
        let route = route.unwrap();
        assert_eq!(
            route.pattern,
            Pattern::Files {
                below: vec![b"a".to_vec()],
                ending: Some("php".into())
            }
        );
        assert_eq!(route.target.root, Some("/srv/www".into()));
        assert_eq!((route.target.keep, route.target.connections), (0, Some(4)));
    }

    #[test]
    fn a_command_keeps_its_commas_and_quotations() {
        let staff = |text: &str| parse(text).unwrap().target.staff.unwrap();
        let command =
            |words: &[&str]| Staff::Command(words.iter().copied().map(str::to_owned).collect());
        for (text, expected) in [
            ("/=scgi:spawn:./a -x", command(&["./a", "-x"])),
            (
                r#"/=scgi:spawn:a 'b c' "d\"e" '' f\ g"#,
                command(&["a", "b c", "d\"e", "", "f g"]),
            ),
            ("/=fastcgi:spawn:a,b=1,keep=0", command(&["a,b=1"])),
            (
                "/=wsgi:m:make(1, key=2)",
                Staff::Wsgi("m:make(1, key=2)".into()),
            ),
        ] {
            assert_eq!(staff(text), expected, "{text}");
        }
        assert_eq!(
            parse("/=fastcgi:spawn:a,b=1,keep=0").unwrap().target.keep,
            0
        );
    }

    #[test]
    fn a_route_that_is_none_is_explained() {
        for (text, part) in [
            ("/app/", "it has no `=`"),
            ("app=scgi:h:1", "starts with neither"),
            ("=scgi:h:1", "starts with neither"),
            ("/a%zz=scgi:h:1", "no URL path"),
            ("/../=scgi:h:1", "no URL path"),
            ("x*.php=scgi:h:1", "the star must"),
            ("*php=scgi:h:1", "after the star"),
            ("*.=scgi:h:1", "after the star"),
            ("*.a*=scgi:h:1", "after the star"),
            ("/=ftp:h:1", "protocol `ftp` is unknown"),
            ("/=scgi", "`` is no address"),
            ("/=scgi:", "`` is no address"),
            ("/=scgi:host", "`host` is no address"),
            ("/=scgi:host:0", "`host:0` is no address"),
            ("/=scgi:host:70000", "`host:70000` is no address"),
            ("/=scgi:unix:", "`unix:` is no address"),
            ("/=scgi:::1:80", "`::1:80` is no address"),
            ("/=scgi:h:1,", "`` is no address"),
            ("/=scgi:keep=1", "names no address"),
            ("/=scgi:h:1,modifier1=5", "can't be understood"),
            ("/=uwsgi:h:1,modifier1=256", "can't be understood"),
            ("/=scgi:h:1,connections=0", "can't be understood"),
            ("/=fastcgi:h:1,root=www", "can't be understood"),
            ("/=scgi:h:1,colour=red", "option `colour` is unknown"),
            ("/=scgi:h:1,path=/", "can't be understood"),
            ("/=http:h:1,path=x", "can't be understood"),
            ("/=http:h:1,host=a/b", "can't be understood"),
            ("/=http:h:1,script=/x", "can't be understood"),
            ("/=http://h:1/x", "is no address"),
            ("/=authorizer+scgi:h:1", "knows authorizers"),
            ("*.php=authorizer+fastcgi:h:1", "without a star"),
            ("/=uwsgi:spawn:x", "can't be started from here"),
            ("/=scgi:spawn:", "is no command"),
            ("/=scgi:spawn:a 'b", "is no command"),
            ("/=wsgi:", "names no application"),
            ("/=wsgi:a:b,connections=0", "can't be understood"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
            assert!(error.contains("\nhint: "), "{text}: {error}");
        }
    }

    /// `NAME + PATH_INFO` of what a path comes to among routes, and whose it is.
    fn ask(patterns: &[&str], path: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("blog/sub")).unwrap();
        for file in ["x.php", "blog/y.php", "blog/note.txt", "blog/index.php"] {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        let routes = patterns.iter().map(|pattern| {
            let route = parse(&format!("{pattern}=scgi:h:1")).unwrap();
            (route, (*pattern).to_owned())
        });
        let routes = Routes::new(folder.path(), routes);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match routes.find(&UrlPath::parse(path.as_bytes()).unwrap()) {
            None => "files".into(),
            Some((whose, Ok(Found::Redirect(to)))) => format!("{whose} to {to}"),
            Some((whose, Err(fault))) => format!("{whose} {}", fault.status.as_u16()),
            Some((whose, Ok(Found::Script(script)))) => {
                let info = script.path_info.map_or("-".into(), |info| text(&info));
                format!("{whose} `{}` {info}", text(&script.name))
            }
        }
    }

    #[test]
    fn a_mount_takes_what_lies_below_it_and_the_longest_wins() {
        let routes = ["/", "/app/", "/app/deep", "/caf%C3%A9/"];
        for (path, expected) in [
            ("/", "/ `` /"),
            ("/x/y", "/ `` /x/y"),
            ("/x/", "/ `` /x/"),
            ("/app", "/app/ to /app/"),
            ("/app/", "/app/ `/app` /"),
            ("/app/x", "/app/ `/app` /x"),
            ("/application", "/ `` /application"),
            ("/app/deep", "/app/deep `/app/deep` -"),
            ("/app/deep/", "/app/deep `/app/deep` /"),
            ("/app/deeper", "/app/ `/app` /deeper"),
            ("/app/%2e%2e/x", "/ `` /x"),
            ("/app/a%2Fb", "/app/ `/app` /a/b"),
            ("/caf%C3%A9/x", "/caf%C3%A9/ `/café` /x"),
        ] {
            assert_eq!(ask(&routes, path), expected, "{path}");
        }
        assert_eq!(ask(&["/app/"], "/other"), "files");
    }

    #[test]
    fn a_pattern_of_files_takes_files_that_are_there_c169_c171() {
        let routes = ["*.php", "/blog/*.php"];
        for (path, expected) in [
            ("/x.php", "*.php `/x.php` -"),
            ("/x.php/a/b", "*.php `/x.php` /a/b"),
            ("/none.php", "*.php 404"),
            ("/blog/y.php", "/blog/*.php `/blog/y.php` -"),
            ("/blog/", "/blog/*.php `/blog/index.php` -"),
            ("/blog/sub/", "files"),
            ("/blog/note.txt", "files"),
            ("/blog/note.txt/y.php", "files"),
            ("/", "files"),
        ] {
            assert_eq!(ask(&routes, path), expected, "{path}");
        }
        assert_eq!(
            ask(&["/blog/*"], "/blog/note.txt"),
            "/blog/* `/blog/note.txt` -"
        );
        assert_eq!(ask(&["/blog/*"], "/x.php"), "files");
        assert_eq!(
            ask(&["*.php", "/blog/"], "/blog/y.php"),
            "/blog/ `/blog` /y.php"
        );
        assert_eq!(ask(&["*.php", "/"], "/x.php"), "*.php `/x.php` -");
    }
}
