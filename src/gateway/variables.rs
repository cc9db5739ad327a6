//! What a script is told about the request: the meta-variables (RFC 3875 §4.1),
//! the environment they stand in, and the words of an indexed query (§4.4).
//!
//! The only place that spells a meta-variable. Every protocol sends the list
//! made here; only the framing differs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, HOST, HeaderName};
use http::{Method, Version};

use super::script::Script;
use crate::message::{Connection, SERVER_SOFTWARE};
use crate::target::{Target, decode};

/// Name and value. Names are ASCII; values are bytes as they came (C35).
pub type Variable = (Cow<'static, str>, Vec<u8>);

/// What the meta-variables are made of.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    pub head: &'a http::request::Parts,
    /// What this run is for; after a local redirect, its location.
    pub target: &'a Target,
    /// What the client sent.
    pub original: &'a Target,
    pub connection: &'a Connection,
    pub script: &'a Script,
    /// The document root, absolute.
    pub root: &'a Path,
    /// The name to go by if the client doesn't say one.
    pub server_name: Option<&'a str>,
    /// In bytes; `None` if the request has no body (C12).
    pub content_length: Option<u64>,
    /// Whether the script checks credentials itself (C32).
    pub pass_authorization: bool,
    pub redirected: Option<&'a Redirected>,
    /// What an authorizer has said of the request. Stands before all else.
    pub granted: &'a [Variable],
}

impl<'a> Facts<'a> {
    /// With what an authorizer has said.
    #[must_use]
    pub fn granted(self, granted: &'a [Variable]) -> Self {
        Self { granted, ..self }
    }
}

/// The run whose script answered with a local redirect (C97).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirected {
    /// Its path.
    pub url: Vec<u8>,
    pub query: Bytes,
    pub method: Method,
}

/// The meta-variables, each name once, always in the same order. What has no
/// value is not in the list.
///
/// `AUTH_TYPE` and `REMOTE_USER` tell who was let in; as nobody's credentials
/// are checked here, they are set only by an authorizer (C16).
pub fn variables(facts: &Facts) -> Vec<Variable> {
    let mut list = List(Vec::with_capacity(48));
    list.add_specified(facts);
    list.add_customary(facts);
    list.add_redirect(facts);
    list.add_fields(facts);
    list.grant(facts.granted);
    list.0
}

struct List(Vec<Variable>);

impl List {
    fn add(&mut self, name: &'static str, value: impl Into<Vec<u8>>) {
        self.0.push((Cow::Borrowed(name), value.into()));
    }

    /// RFC 3875 §4.1, in its order.
    fn add_specified(&mut self, facts: &Facts) {
        let Facts { head, script, .. } = facts;
        let remote = facts.connection.remote.ip().to_canonical().to_string();
        // A local redirect is a request without content (C96).
        if facts.redirected.is_none() {
            if let Some(length) = facts.content_length {
                self.add("CONTENT_LENGTH", length.to_string());
            }
            if let Some(media_type) = head.headers.get(CONTENT_TYPE) {
                self.add("CONTENT_TYPE", media_type.as_bytes());
            }
        }
        self.add("GATEWAY_INTERFACE", "CGI/1.1");
        if let Some(path_info) = &script.path_info {
            self.add("PATH_INFO", path_info.as_slice());
            self.add("PATH_TRANSLATED", below(facts.root, path_info));
        }
        self.add("QUERY_STRING", &facts.target.query[..]);
        self.add("REMOTE_ADDR", remote.clone());
        // No name is looked up; the address may stand for it (C17).
        self.add("REMOTE_HOST", remote);
        self.add("REQUEST_METHOD", request_method(facts));
        self.add("SCRIPT_NAME", script.name.as_slice());
        self.add("SERVER_NAME", server_name(facts));
        self.add("SERVER_PORT", facts.connection.local.port().to_string());
        self.add(
            "SERVER_PROTOCOL",
            match head.version {
                Version::HTTP_09 | Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
        );
        self.add("SERVER_SOFTWARE", SERVER_SOFTWARE);
    }

    /// What scripts rely on though no specification has it (C19 to C25).
    fn add_customary(&mut self, facts: &Facts) {
        let Facts {
            connection, script, ..
        } = facts;
        self.add("CONTEXT_DOCUMENT_ROOT", below(facts.root, &script.prefix));
        self.add("CONTEXT_PREFIX", script.prefix.as_slice());
        self.add("DOCUMENT_ROOT", below(facts.root, b""));
        if connection.secure {
            self.add("HTTPS", "on");
        }
        // php-cgi refuses to run without it.
        self.add("REDIRECT_STATUS", "200");
        let port = connection.remote.port();
        if port != 0 {
            self.add("REMOTE_PORT", port.to_string());
        }
        self.add("REQUEST_SCHEME", connection.scheme());
        self.add("REQUEST_URI", &facts.original.raw[..]);
        // An application that is mounted somewhere is no file.
        if !script.file.as_os_str().is_empty() {
            self.add("SCRIPT_FILENAME", script.file.as_os_str().as_bytes());
        }
        let local = connection.local.ip().to_canonical();
        self.add("SERVER_ADDR", local.to_string());
    }

    fn add_redirect(&mut self, facts: &Facts) {
        let Some(redirected) = facts.redirected else {
            return;
        };
        if !redirected.query.is_empty() {
            self.add("REDIRECT_QUERY_STRING", &redirected.query[..]);
        }
        self.add("REDIRECT_REQUEST_METHOD", redirected.method.as_str());
        self.add("REDIRECT_URL", redirected.url.as_slice());
    }

    fn grant(&mut self, granted: &[Variable]) {
        self.0
            .retain(|(name, _)| !granted.iter().any(|(other, _)| other == name));
        self.0.extend_from_slice(granted);
    }

    /// The request's header fields (RFC 3875 §4.1.18).
    fn add_fields(&mut self, facts: &Facts) {
        let headers = &facts.head.headers;
        for field in headers.keys() {
            let kept_back = field == AUTHORIZATION && !facts.pass_authorization;
            if kept_back || !is_passed(field) {
                continue;
            }
            // Cookies are no list (RFC 9113 §8.2.3).
            let separator: &[u8] = if field == COOKIE { b"; " } else { b", " };
            let values: Vec<&[u8]> = headers
                .get_all(field)
                .iter()
                .map(http::HeaderValue::as_bytes)
                .collect();
            let name = field.as_str().to_ascii_uppercase().replace('-', "_");
            self.0
                .push((format!("HTTP_{name}").into(), values.join(separator)));
        }
    }
}

/// Whether a field becomes a variable. `Authorization` is for the caller.
fn is_passed(field: &HeaderName) -> bool {
    // `X_Y` would pass for `X-Y` (C28).
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    field.as_str().bytes().all(is_plain)
        && !matches!(
            field.as_str(),
            // Have names of their own (C31).
            "content-length" | "content-type"
            // httpoxy: HTTP_PROXY steers the script's own requests (C30).
            | "proxy"
            // Meant for this server or already dealt with (C32, C33).
            | "proxy-authorization" | "transfer-encoding" | "te" | "trailer"
            | "keep-alive" | "proxy-connection" | "expect"
        )
}

/// A local redirect is fetched with GET, or with HEAD if that was asked (C96).
fn request_method<'a>(facts: &Facts<'a>) -> &'a str {
    match &facts.head.method {
        method if facts.redirected.is_none() || method == Method::HEAD => method.as_str(),
        _ => "GET",
    }
}

/// The host the client addressed, never with a port and never empty (C5).
fn server_name(facts: &Facts) -> String {
    let authority = facts.original.authority.as_deref();
    let host = || {
        facts
            .head
            .headers
            .get(HOST)
            .map(http::HeaderValue::as_bytes)
    };
    let addressed = authority.or_else(host).and_then(host_name);
    let is_said = |name: &&str| !name.is_empty();
    let named = addressed
        .filter(is_said)
        .or(facts.server_name.filter(is_said));
    named.map_or_else(
        || match facts.connection.local.ip().to_canonical() {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        },
        str::to_owned,
    )
}

/// The host of `host[:port]` if it keeps to the grammar of RFC 3986 §3.2.2, as
/// Host and an absolute-form authority must (C6). Empty for an empty value: a
/// client may send that when it knows no host (RFC 9112 §3.2).
pub fn host_name(authority: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(authority).ok()?;
    if text.is_empty() {
        return Some(text);
    }
    let (host, rest) = if let Some(inner) = text.strip_prefix('[') {
        let end = inner.find(']')?;
        is_ip_literal(&inner[..end]).then_some(())?;
        text.split_at(end + 2)
    } else {
        let (host, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
        (!host.is_empty() && is_reg_name(host)).then_some((host, rest))?
    };
    let port = match rest.strip_prefix(':') {
        Some(port) => port,
        None if rest.is_empty() => rest,
        None => return None,
    };
    port.bytes().all(|b| b.is_ascii_digit()).then_some(host)
}

/// Between the brackets: an IPv6 address, without a zone, or what a later
/// version may bring.
fn is_ip_literal(text: &str) -> bool {
    let Some(future) = text.strip_prefix(['v', 'V']) else {
        return text.parse::<Ipv6Addr>().is_ok();
    };
    future.split_once('.').is_some_and(|(version, address)| {
        !version.is_empty()
            && version.bytes().all(|b| b.is_ascii_hexdigit())
            && !address.is_empty()
            && address.bytes().all(|b| is_reg_name_byte(b) || b == b':')
    })
}

fn is_reg_name(text: &str) -> bool {
    // An escape that decodes; what it decodes to is nobody's business here.
    text.bytes().all(|b| is_reg_name_byte(b) || b == b'%') && decode(text.as_bytes()).is_ok()
}

/// unreserved or sub-delims.
fn is_reg_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

/// A decoded, normalised URL path as a path below the root, whether or not it
/// exists (C15). It can't leave the root: it holds no dot segments.
fn below(root: &Path, path: &[u8]) -> Vec<u8> {
    let root = root.as_os_str().as_bytes();
    let end = root.iter().rposition(|&b| b != b'/').map_or(0, |at| at + 1);
    match [&root[..end], path].concat() {
        nothing if nothing.is_empty() => b"/".to_vec(),
        full => full,
    }
}

/// What besides the meta-variables stands in a script's environment.
#[derive(Clone, Debug, Default)]
pub struct EnvironmentOptions {
    /// Passed from the server's own environment.
    pub pass: Vec<String>,
    /// Set to a fixed value.
    pub set: Vec<(String, String)>,
    /// Pass all there is, as Python's `http.server --cgi` did.
    pub inherit_all: bool,
}

/// The part of the environment that is the same for every request; the rest is
/// built from nothing (C37).
#[derive(Clone, Debug)]
pub struct Environment {
    variables: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What scripts need of the server's environment to run at all (C38); `LC_*` too.
const INHERITED: [&str; 8] = [
    "PATH",
    "TZ",
    "LANG",
    "HOME",
    "USER",
    "TMPDIR",
    "VIRTUAL_ENV",
    LIBRARY_PATH,
];

const LIBRARY_PATH: &str = if cfg!(target_os = "macos") {
    "DYLD_LIBRARY_PATH"
} else {
    "LD_LIBRARY_PATH"
};

const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

impl Environment {
    pub fn new(
        options: &EnvironmentOptions,
        process_env: impl Iterator<Item = (OsString, OsString)>,
    ) -> Self {
        let is_wanted = |name: &[u8]| {
            options.inherit_all
                || name.starts_with(b"LC_")
                || INHERITED.iter().any(|known| known.as_bytes() == name)
                || options.pass.iter().any(|passed| passed.as_bytes() == name)
        };
        let mut variables = BTreeMap::new();
        for (name, value) in process_env {
            let name = name.into_vec();
            if is_wanted(&name) && !is_meta_variable(&name) && !is_never_set(&name) {
                // Of two with one name, programs see the first.
                variables.entry(name).or_insert(value.into_vec());
            }
        }
        variables
            .entry(b"PATH".to_vec())
            .or_insert(DEFAULT_PATH.to_vec());
        for (name, value) in &options.set {
            let is_name = !name.is_empty() && !name.contains('=');
            if is_name && !is_meta_variable(name.as_bytes()) {
                variables.insert(name.clone().into_bytes(), value.clone().into_bytes());
            }
        }
        Self { variables }
    }

    /// Of a script without a request: what is the same for all of them.
    pub fn constants(&self) -> Vec<CString> {
        let constant = |name: &'static str, value: &str| (name.into(), value.into());
        self.block(&[
            constant("GATEWAY_INTERFACE", "CGI/1.1"),
            constant("REDIRECT_STATUS", "200"),
            constant("SERVER_SOFTWARE", SERVER_SOFTWARE),
        ])
    }

    /// The whole block for exec.
    pub fn block(&self, variables: &[Variable]) -> Vec<CString> {
        let own = self.variables.iter();
        let own = own.map(|(name, value)| entry(name, value));
        let meta = variables.iter();
        let meta = meta.map(|(name, value)| entry(name.as_bytes(), value));
        own.chain(meta).flatten().collect()
    }
}

/// `NAME=value`. What holds a NUL can't be passed; no request has one, nor the
/// server's own environment.
fn entry(name: &[u8], value: &[u8]) -> Option<CString> {
    CString::new([name, b"=", value].concat()).ok()
}

/// Whether the name belongs to the request: it is never inherited and can't be
/// set (C37, C39), even where this request gives it no value. A script could
/// not tell the difference.
pub fn is_meta_variable(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 26] = [
        b"AUTH_TYPE",
        b"CONTENT_LENGTH",
        b"CONTENT_TYPE",
        b"CONTEXT_DOCUMENT_ROOT",
        b"CONTEXT_PREFIX",
        b"DOCUMENT_ROOT",
        b"GATEWAY_INTERFACE",
        b"HTTPS",
        b"PATH_INFO",
        b"PATH_TRANSLATED",
        b"QUERY_STRING",
        b"REMOTE_ADDR",
        b"REMOTE_HOST",
        b"REMOTE_IDENT",
        b"REMOTE_PORT",
        b"REMOTE_USER",
        b"REQUEST_METHOD",
        b"REQUEST_SCHEME",
        b"REQUEST_URI",
        b"SCRIPT_FILENAME",
        b"SCRIPT_NAME",
        b"SERVER_ADDR",
        b"SERVER_NAME",
        b"SERVER_PORT",
        b"SERVER_PROTOCOL",
        b"SERVER_SOFTWARE",
    ];
    name.starts_with(b"HTTP_") || name.starts_with(b"REDIRECT_") || NAMES.contains(&name)
}

/// Known from other servers and not set here (C26); only the user's own choice
/// puts it there.
fn is_never_set(name: &[u8]) -> bool {
    matches!(name, b"SERVER_ADMIN" | b"SERVER_SIGNATURE" | b"UNIQUE_ID")
}

/// The words of an indexed query (RFC 3875 §4.4), for GET and HEAD and only
/// where the user asked for it. All or none: a word that looks like an option
/// was php-cgi's CVE-2012-1823 (C59, C60).
pub fn arguments(query: &[u8]) -> Vec<CString> {
    if query.is_empty() || query.contains(&b'=') {
        return Vec::new();
    }
    let words: Option<Vec<CString>> = query.split(|&b| b == b'+').map(argument).collect();
    words.unwrap_or_default()
}

fn argument(word: &[u8]) -> Option<CString> {
    let decoded = decode(word).ok()?;
    if decoded.is_empty() || looks_like_option(word) || looks_like_option(&decoded) {
        return None;
    }
    CString::new(escape_for_shell(&decoded)).ok()
}

/// A hyphen, or a soft hyphen in UTF-8 or Latin-1, which some systems turn into
/// one (CVE-2024-4577).
fn looks_like_option(word: &[u8]) -> bool {
    matches!(word, [b'-' | 0xad, ..] | [0xc2, 0xad, ..])
}

/// RFC 3875 §7.2: what is active in the Bourne shell has a backslash in front,
/// literally, since no shell removes it. The set is Apache's.
fn escape_for_shell(word: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(word.len());
    for &byte in word {
        if b"&;`'\"|*?~<>^()[]{}$\\\n".contains(&byte) {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::path::PathBuf;

    /// A request and everything around it; a test changes what it is about.
    struct Case {
        request: http::request::Builder,
        target: &'static str,
        original: Option<&'static str>,
        connection: Connection,
        script: Script,
        root: &'static str,
        server_name: Option<&'static str>,
        content_length: Option<u64>,
        pass_authorization: bool,
        redirected: Option<Redirected>,
    }

    fn case() -> Case {
        Case {
            request: http::Request::builder().header("host", "example.org:99"),
            target: "/cgi-bin/x",
            original: None,
            connection: Connection {
                remote: "192.0.2.7:4711".parse().unwrap(),
                local: "127.0.0.1:8080".parse().unwrap(),
                secure: false,
            },
            script: Script {
                file: PathBuf::from("/srv/cgi-bin/x"),
                name: b"/cgi-bin/x".to_vec(),
                path_info: None,
                subject: "cgi-bin/x".to_owned(),
                prefix: b"/cgi-bin".to_vec(),
            },
            root: "/srv",
            server_name: None,
            content_length: None,
            pass_authorization: true,
            redirected: None,
        }
    }

    impl Case {
        fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
            let value = http::HeaderValue::from_bytes(value.as_ref()).unwrap();
            self.request = self.request.header(name, value);
            self
        }

        fn list(self) -> Vec<Variable> {
            let (head, ()) = self.request.body(()).unwrap().into_parts();
            let target = Target::parse(&Bytes::from(self.target)).unwrap();
            let original = self.original.unwrap_or(self.target);
            let original = Target::parse(&Bytes::from(original)).unwrap();
            variables(&Facts {
                head: &head,
                target: &target,
                original: &original,
                connection: &self.connection,
                script: &self.script,
                root: Path::new(self.root),
                server_name: self.server_name,
                content_length: self.content_length,
                pass_authorization: self.pass_authorization,
                redirected: self.redirected.as_ref(),
                granted: &[],
            })
        }

        fn get(self, name: &str) -> Option<String> {
            value_of(&self.list(), name).map(str::to_owned)
        }
    }

    fn value_of<'a>(list: &'a [Variable], name: &str) -> Option<&'a str> {
        let (_, value) = list.iter().find(|(known, _)| known == name)?;
        Some(std::str::from_utf8(value).unwrap())
    }

    #[test]
    fn a_plain_request_has_exactly_these_variables_c1_to_c26() {
        let software = SERVER_SOFTWARE;
        let expected = [
            ("GATEWAY_INTERFACE", "CGI/1.1"),          // C2
            ("QUERY_STRING", ""),                      // C9
            ("REMOTE_ADDR", "192.0.2.7"),              // C10
            ("REMOTE_HOST", "192.0.2.7"),              // C17
            ("REQUEST_METHOD", "GET"),                 // C8
            ("SCRIPT_NAME", "/cgi-bin/x"),             // C11
            ("SERVER_NAME", "example.org"),            // C5
            ("SERVER_PORT", "8080"),                   // C7
            ("SERVER_PROTOCOL", "HTTP/1.1"),           // C4
            ("SERVER_SOFTWARE", software),             // C3
            ("CONTEXT_DOCUMENT_ROOT", "/srv/cgi-bin"), // C25
            ("CONTEXT_PREFIX", "/cgi-bin"),
            ("DOCUMENT_ROOT", "/srv"),             // C19
            ("REDIRECT_STATUS", "200"),            // C24
            ("REMOTE_PORT", "4711"),               // C22
            ("REQUEST_SCHEME", "http"),            // C23
            ("REQUEST_URI", "/cgi-bin/x"),         // C20
            ("SCRIPT_FILENAME", "/srv/cgi-bin/x"), // C21
            ("SERVER_ADDR", "127.0.0.1"),          // C22
            ("HTTP_HOST", "example.org:99"),       // C34
        ];
        let list = case().list();
        let list: Vec<(&str, &str)> = list
            .iter()
            .map(|(name, value)| (&name[..], std::str::from_utf8(value).unwrap()))
            .collect();
        assert_eq!(list, expected);
    }

    #[test]
    fn the_request_line_reaches_the_script_as_it_came_c4_c8_c9_c20() {
        let mut put = case();
        put.request = put.request.method("pRoP").version(Version::HTTP_10);
        put.target = "http://h:1/%63gi-bin//x?a=%zz&b?c";
        let list = put.list();
        for (name, expected) in [
            ("REQUEST_METHOD", "pRoP"),
            ("SERVER_PROTOCOL", "HTTP/1.0"),
            ("QUERY_STRING", "a=%zz&b?c"),
            ("REQUEST_URI", "/%63gi-bin//x?a=%zz&b?c"),
            ("SERVER_NAME", "h"),
            ("HTTP_HOST", "example.org:99"),
        ] {
            assert_eq!(value_of(&list, name), Some(expected), "{name}");
        }
    }

    #[test]
    fn the_server_name_is_the_host_addressed_c5() {
        let named = |host: Option<&str>, configured, local: &str| {
            let mut case = case();
            case.request = http::Request::builder();
            if let Some(host) = host {
                case = case.header("host", host);
            }
            case.server_name = configured;
            case.connection.local = local.parse().unwrap();
            case.get("SERVER_NAME").unwrap()
        };
        let v4 = "127.0.0.1:80";
        assert_eq!(named(Some("a.b:81"), Some("c"), v4), "a.b");
        assert_eq!(named(Some("[::1]:81"), None, v4), "[::1]");
        assert_eq!(named(Some(""), Some("c"), v4), "c");
        assert_eq!(named(None, Some("c"), v4), "c");
        assert_eq!(named(None, None, v4), "127.0.0.1");
        assert_eq!(named(None, Some(""), "[2001:db8::1]:80"), "[2001:db8::1]");
        assert_eq!(named(None, None, "[::ffff:10.0.0.1]:80"), "10.0.0.1");
    }

    #[test]
    fn a_host_keeps_to_the_grammar_c6() {
        for (authority, host) in [
            ("example.org", Some("example.org")),
            ("example.org:8080", Some("example.org")),
            ("example.org:", Some("example.org")),
            ("127.0.0.1:1", Some("127.0.0.1")),
            ("a_b-c~1!$&'()*+,;=", Some("a_b-c~1!$&'()*+,;=")),
            ("a%20b", Some("a%20b")),
            ("[::1]", Some("[::1]")),
            ("[::ffff:1.2.3.4]:80", Some("[::ffff:1.2.3.4]")),
            ("[v1.a:b]", Some("[v1.a:b]")),
            ("", Some("")),
            (":80", None),
            ("a:b", None),
            ("a:80:81", None),
            ("a b", None),
            ("a/b", None),
            ("a\\b", None),
            ("a?b", None),
            ("a#b", None),
            ("user@a", None),
            ("a\"b", None),
            ("<a>", None),
            ("a%2", None),
            ("a%zz", None),
            ("a%00", None),
            ("é", None),
            ("::1", None),
            ("[::1", None),
            ("[::1]x", None),
            ("[::1]:x", None),
            ("[]", None),
            ("[a]", None),
            ("[fe80::1%25eth0]", None),
            ("[v.a]", None),
            ("[v1.]", None),
            ("[v1.a b]", None),
        ] {
            assert_eq!(host_name(authority.as_bytes()), host, "{authority}");
        }
        assert_eq!(host_name(b"a\xff"), None);
    }

    #[test]
    fn addresses_are_written_plainly_c10_c22() {
        let mut mapped = case();
        mapped.connection.remote = "[::ffff:192.0.2.1]:1".parse().unwrap();
        mapped.connection.local = "[fe80::2%3]:80".parse().unwrap();
        let list = mapped.list();
        assert_eq!(value_of(&list, "REMOTE_ADDR"), Some("192.0.2.1"));
        assert_eq!(value_of(&list, "SERVER_ADDR"), Some("fe80::2"));
        assert_eq!(value_of(&list, "SERVER_PORT"), Some("80"));
    }

    #[test]
    fn https_is_on_only_under_tls_c23() {
        let mut secure = case();
        secure.connection.secure = true;
        let list = secure.list();
        assert_eq!(value_of(&list, "HTTPS"), Some("on"));
        assert_eq!(value_of(&list, "REQUEST_SCHEME"), Some("https"));
        assert_eq!(case().get("HTTPS"), None);
    }

    #[test]
    fn a_body_has_its_length_and_a_type_only_if_one_was_sent_c12_c13_c31() {
        let mut post = case();
        post.content_length = Some(0);
        assert_eq!(post.get("CONTENT_LENGTH").as_deref(), Some("0"));
        assert_eq!(case().get("CONTENT_LENGTH"), None);
        assert_eq!(case().get("CONTENT_TYPE"), None);
        let list = case()
            .header("content-type", "Text/X ;a=\"b\"")
            .header("content-length", "5")
            .list();
        assert_eq!(value_of(&list, "CONTENT_TYPE"), Some("Text/X ;a=\"b\""));
        assert_eq!(value_of(&list, "CONTENT_LENGTH"), None);
        assert_eq!(value_of(&list, "HTTP_CONTENT_TYPE"), None);
        assert_eq!(value_of(&list, "HTTP_CONTENT_LENGTH"), None);
    }

    #[test]
    fn the_extra_path_is_translated_below_the_root_c14_c15_c19() {
        for (root, info, translated, document_root) in [
            ("/srv", "/a/b", "/srv/a/b", "/srv"),
            ("/srv/", "/a/", "/srv/a/", "/srv"),
            ("/srv", "/", "/srv/", "/srv"),
            ("/", "/a", "/a", "/"),
        ] {
            let mut extra = case();
            extra.root = root;
            extra.script.path_info = Some(info.as_bytes().to_vec());
            let list = extra.list();
            assert_eq!(value_of(&list, "PATH_INFO"), Some(info));
            assert_eq!(value_of(&list, "PATH_TRANSLATED"), Some(translated));
            assert_eq!(value_of(&list, "DOCUMENT_ROOT"), Some(document_root));
        }
    }

    #[test]
    fn bytes_are_passed_unchanged_c35_c47() {
        let mut raw = case().header("x-raw", b"\xe9\t\xff");
        raw.script.path_info = Some(b"/\xff\n".to_vec());
        let list = raw.list();
        let bytes = |name: &str| &list.iter().find(|(known, _)| known == name).unwrap().1;
        assert_eq!(bytes("HTTP_X_RAW"), b"\xe9\t\xff");
        assert_eq!(bytes("PATH_INFO"), b"/\xff\n");
        assert_eq!(bytes("PATH_TRANSLATED"), b"/srv/\xff\n");
    }

    #[test]
    fn fields_become_variables_by_rule_c27_to_c34() {
        for (fields, name, expected) in [
            // C27, C34
            (&[("X-A-b", "1")][..], "HTTP_X_A_B", Some("1")),
            (&[("x-1", "")], "HTTP_X_1", Some("")),
            (&[("host", "b")], "HTTP_HOST", Some("example.org:99, b")),
            // C28
            (&[("x_forwarded_for", "1")], "HTTP_X_FORWARDED_FOR", None),
            (&[("x.a", "1")], "HTTP_X_A", None),
            (&[("x.a", "1")], "HTTP_X.A", None),
            (&[("x~a", "1")], "HTTP_X~A", None),
            // C29
            (
                &[("a", "1"), ("b", "x"), ("A", "2")],
                "HTTP_A",
                Some("1, 2"),
            ),
            (
                &[("cookie", "a=1"), ("cookie", "b=2")],
                "HTTP_COOKIE",
                Some("a=1; b=2"),
            ),
            // C30
            (&[("proxy", "http://evil")], "HTTP_PROXY", None),
            // C32, C33
            (
                &[("authorization", "Basic eA==")],
                "HTTP_AUTHORIZATION",
                Some("Basic eA=="),
            ),
            (&[("authorization", "Basic eA==")], "REMOTE_USER", None),
            (&[("authorization", "Basic eA==")], "AUTH_TYPE", None),
            (
                &[("proxy-authorization", "x")],
                "HTTP_PROXY_AUTHORIZATION",
                None,
            ),
            (
                &[("transfer-encoding", "chunked")],
                "HTTP_TRANSFER_ENCODING",
                None,
            ),
            (&[("te", "trailers")], "HTTP_TE", None),
            (&[("trailer", "x")], "HTTP_TRAILER", None),
            (&[("keep-alive", "1")], "HTTP_KEEP_ALIVE", None),
            (&[("proxy-connection", "x")], "HTTP_PROXY_CONNECTION", None),
            (&[("expect", "100-continue")], "HTTP_EXPECT", None),
        ] {
            let mut case = case();
            for (field, value) in fields {
                case = case.header(field, value);
            }
            assert_eq!(case.get(name).as_deref(), expected, "{fields:?}");
        }
        let mut guarded = case().header("authorization", "Basic eA==");
        guarded.pass_authorization = false;
        assert_eq!(guarded.get("HTTP_AUTHORIZATION"), None);
    }

    #[test]
    fn after_a_local_redirect_the_request_is_a_get_without_content_c96_c97() {
        let redirected = |method: Method, query: &'static str| {
            let mut case = case()
                .header("content-type", "text/plain")
                .header("cookie", "a=1");
            case.request = case.request.method(method.clone());
            case.content_length = Some(3);
            case.target = "/cgi-bin/x?new";
            case.original = Some("http://first:1/cgi-bin/old?q");
            case.redirected = Some(Redirected {
                url: b"/cgi-bin/old".to_vec(),
                query: Bytes::from(query),
                method,
            });
            case.list()
        };
        let list = redirected(Method::POST, "q");
        for (name, expected) in [
            ("CONTENT_LENGTH", None),
            ("CONTENT_TYPE", None),
            ("REQUEST_METHOD", Some("GET")),
            ("QUERY_STRING", Some("new")),
            ("REQUEST_URI", Some("/cgi-bin/old?q")),
            ("SERVER_NAME", Some("first")),
            ("HTTP_COOKIE", Some("a=1")),
            ("REDIRECT_STATUS", Some("200")),
            ("REDIRECT_URL", Some("/cgi-bin/old")),
            ("REDIRECT_QUERY_STRING", Some("q")),
            ("REDIRECT_REQUEST_METHOD", Some("POST")),
        ] {
            assert_eq!(value_of(&list, name), expected, "{name}");
        }
        let head = redirected(Method::HEAD, "");
        assert_eq!(value_of(&head, "REQUEST_METHOD"), Some("HEAD"));
        assert_eq!(value_of(&head, "REDIRECT_QUERY_STRING"), None);
    }

    fn environment(options: &EnvironmentOptions, process: &[(&str, &str)]) -> Environment {
        let process = process
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        Environment::new(options, process)
    }

    fn texts(block: &[CString]) -> Vec<&str> {
        block.iter().map(|entry| entry.to_str().unwrap()).collect()
    }

    #[test]
    fn only_named_variables_are_inherited_c37_c38() {
        let own = [
            ("PATH", "/bin"),
            ("TZ", "UTC"),
            ("TZ", "second"),
            ("LC_ALL", "C"),
            ("SECRET", "x"),
            ("PATH_INFO", "/leak"),
            ("LCX", "x"),
        ];
        let default = environment(&EnvironmentOptions::default(), &own);
        assert_eq!(
            texts(&default.block(&[])),
            ["LC_ALL=C", "PATH=/bin", "TZ=UTC"]
        );
        let bare = environment(&EnvironmentOptions::default(), &[]);
        assert_eq!(
            texts(&bare.block(&[])),
            ["PATH=/usr/local/bin:/usr/bin:/bin"]
        );
    }

    #[test]
    fn no_meta_variable_is_ever_inherited_c30_c37() {
        let own = [
            ("HTTP_PROXY", "x"),
            ("HTTP_COOKIE", "x"),
            ("REMOTE_USER", "x"),
            ("HTTPS", "on"),
            ("REDIRECT_URL", "x"),
            ("UNIQUE_ID", "x"),
            ("SERVER_ADMIN", "x"),
            ("http_proxy", "kept"),
            ("PATH", "/bin"),
        ];
        let options = EnvironmentOptions {
            inherit_all: true,
            pass: own.iter().map(|(name, _)| (*name).to_owned()).collect(),
            ..EnvironmentOptions::default()
        };
        let block = environment(&options, &own).block(&[]);
        assert_eq!(texts(&block), ["PATH=/bin", "http_proxy=kept"]);
    }

    #[test]
    fn what_the_user_sets_wins_over_the_inherited_and_never_over_the_request_c39() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let options = EnvironmentOptions {
            pass: vec!["PASSED".to_owned()],
            set: vec![
                pair("TZ", "set"),
                pair("NEW", "a=b"),
                pair("SERVER_ADMIN", "me"),
                pair("QUERY_STRING", "set"),
                pair("PATH_INFO", "set"),
                pair("HTTP_X", "set"),
                pair("", "x"),
                pair("A=B", "x"),
                pair("NUL", "\0"),
            ],
            inherit_all: false,
        };
        let own = [("TZ", "own"), ("PASSED", "own"), ("PATH", "/bin")];
        let list = [(Cow::Borrowed("QUERY_STRING"), b"q".to_vec())];
        let block = environment(&options, &own).block(&list);
        assert_eq!(
            texts(&block),
            [
                "NEW=a=b",
                "PASSED=own",
                "PATH=/bin",
                "SERVER_ADMIN=me",
                "TZ=set",
                "QUERY_STRING=q"
            ]
        );
    }

    #[test]
    fn every_variable_made_here_is_known_as_one_c37() {
        let mut full = case().header("content-type", "a/b");
        full.connection.secure = true;
        full.content_length = Some(1);
        full.script.path_info = Some(b"/".to_vec());
        let mut redirected = case();
        redirected.redirected = Some(Redirected {
            url: b"/".to_vec(),
            query: Bytes::from("q"),
            method: Method::GET,
        });
        for (name, _) in full.list().into_iter().chain(redirected.list()) {
            assert!(is_meta_variable(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn an_indexed_query_becomes_words_all_or_none_c57_c59_c60() {
        for (query, expected) in [
            ("a", &["a"][..]),
            ("a+b%20c+%2B", &["a", "b c", "+"]),
            ("b%3Bar", &[r"b\;ar"]),
            ("$(x)%60'%22%5C%0A", &["\\$\\(x\\)\\`\\'\\\"\\\\\\\n"]),
            ("a-b", &["a-b"]),
            ("a%3Db", &["a=b"]),
            ("", &[]),
            ("a=b", &[]),
            ("a+b=", &[]),
            ("-s", &[]),
            ("%2Ds", &[]),
            ("-d+allow_url_include%3Don", &[]),
            ("a+-b", &[]),
            ("%C2%ADs", &[]),
            ("%ADs", &[]),
            ("a++b", &[]),
            ("a+", &[]),
            ("a%00", &[]),
            ("a+%zz", &[]),
        ] {
            assert_eq!(texts(&arguments(query.as_bytes())), expected, "{query}");
        }
    }

    proptest! {
        #[test]
        fn each_name_stands_once_c29_c163(fields in proptest::collection::vec(
            ("[a-zA-Z0-9_.-]{1,6}", "[ -~]{0,4}"), 0..12)) {
            let mut case = case();
            for (name, value) in &fields {
                case = case.header(name, value.trim());
            }
            let list = case.list();
            let names: HashSet<_> = list.iter().map(|(name, _)| name).collect();
            prop_assert_eq!(names.len(), list.len());
        }

        #[test]
        fn no_host_name_holds_what_could_be_misread_c6(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            if let Some(host) = host_name(&bytes) {
                prop_assert!(!host.bytes().any(|b| b <= b' ' || b"/?#@\\<>\"".contains(&b)));
            }
        }

        #[test]
        fn no_word_of_a_query_is_an_option_c60(query in proptest::collection::vec(any::<u8>(), 0..16)) {
            for word in arguments(&query) {
                prop_assert!(!word.as_bytes().starts_with(b"-"));
                prop_assert!(!word.is_empty());
            }
        }
    }
}
