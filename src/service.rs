//! Request → Response: the order of decisions. Knows URLs and who answers
//! them; knows no sockets, no file formats, no processes.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderValue,
    LOCATION, RANGE, TRANSFER_ENCODING,
};
use http::request::Parts;
use http::{Method, StatusCode};

use crate::error::{Diagnosis, Fault};
use crate::error_page;
use crate::files::{self, Files};
use crate::forwarded::Trusted;
use crate::gateway::application::{Application, Verdict};
use crate::gateway::cgi::{Cgi, Outcome};
use crate::gateway::route::Routes;
use crate::gateway::script::{Found, Script, Scripts};
use crate::gateway::upstream::Upstream;
use crate::gateway::variables::{self, Facts, Redirected, Variable};
use crate::log::{Asked, Entry, Line, Log, Sent};
use crate::message::{Body, Connection, Glance, Ran, Ready, Request, RequestTarget, Response};
use crate::target::{Target, UrlPath};

/// Local redirects of one request at most (C98).
const MAX_LOCAL_REDIRECTS: usize = 10;

/// Answers requests. Shared by all connections.
pub struct Service {
    pub files: Files,
    pub site: Site,
    /// `None`: no scripts (`--no-cgi`).
    pub scripts: Option<ScriptHost>,
    pub routes: Routes<Upstream>,
    pub authorizers: Routes<Authorizer>,
    /// Asked before routes and scripts.
    pub statics: Vec<Static>,
    /// Proxies that are believed.
    pub trusted: Trusted,
    pub log: Log,
}

/// `--static`: files of an application, below a path.
pub struct Static {
    pub path: UrlPath,
    pub files: Files,
}

/// Who says whether a request below its pattern may go on.
pub struct Authorizer {
    pub application: Application,
    /// With what it protects, which is withheld from the others.
    pub files: Files,
}

/// Everything it takes to run scripts.
pub struct ScriptHost {
    pub scripts: Scripts,
    pub cgi: Cgi,
    /// Root would run them for other machines (C144).
    pub refused: bool,
}

/// What all programs are told, and may ask for.
pub struct Site {
    /// `DOCUMENT_ROOT`: absolute, links resolved.
    pub root: PathBuf,
    /// `SERVER_NAME` for a client that sends no Host (C5).
    pub server_name: Option<String>,
    /// Scripts see the Authorization field (C32).
    pub pass_authorization: bool,
    /// Where X-Sendfile may point (C106).
    pub sendfile: Option<SendRoot>,
}

/// `--cgi-sendfile`: the folder and its files.
pub struct SendRoot {
    pub root: PathBuf,
    pub files: Files,
}

/// Who answers for a path.
enum Whose<'a> {
    Files,
    /// A file of that name in the folder.
    Static(&'a Files, Target),
    Script(&'a ScriptHost, Script),
    Upstream(&'a Upstream, Script),
    /// Nobody yet: it lacks its slash.
    Moved(String),
}

/// Whether a request may go on.
enum LetIn<'a> {
    /// Nobody is asked.
    Everybody,
    /// To these files, or to a program that is told these variables.
    Granted(&'a Files, Vec<Variable>),
    Refused(Response),
}

/// Where a request stands among its local redirects.
struct Step {
    target: Target,
    redirected: Option<Redirected>,
}

impl Service {
    /// Answers a request, whatever becomes of it.
    pub async fn respond(&self, request: Request) -> Response {
        let (mut head, body) = request.into_parts();
        self.trusted.unwrap(&mut head);
        let answer = self.answer(&head, body).await;
        self.finish(&head, answer)
    }

    /// Whether a field of a request can change the answer to it; one that has
    /// none is a [`Glance`].
    pub fn heeds(field: &[u8]) -> bool {
        files::is_heeded(field)
    }

    /// The answer that was given before, if it still holds; found without
    /// waiting. Its line in the access log is `sent_again` if it is sent at
    /// once, else the entry that `sending_again` starts.
    pub fn respond_again(&self, request: &Glance<'_>) -> Option<Ready> {
        if self.trusted.is_trusted(request.connection.remote.ip()) {
            // Whose it is stands in its header.
            return None;
        }
        if let Some(host) = request.host {
            check_authority(host).ok()?;
        }
        self.files
            .respond_again(request.target, request.accept_encoding)
    }

    /// All of the answer, with `bytes` of content, is sent.
    pub fn sent_again(&self, request: &Glance<'_>, bytes: u64, took: Duration) {
        self.log.access(&Line {
            remote: request.connection.remote,
            method: request.method.as_str(),
            target: request.target,
            version: request.version,
            host: request.host,
            referer: request.referer,
            user_agent: request.user_agent,
            status: StatusCode::OK,
            bytes,
            complete: true,
            took,
            ran: None,
        });
    }

    /// Some of the answer is left to send.
    pub fn sending_again(&self, request: &Glance<'_>) -> Sent {
        let field = |value: Option<&[u8]>| HeaderValue::from_bytes(value?).ok();
        Sent::new(self.log.entry(Asked {
            remote: request.connection.remote,
            method: request.method.clone(),
            target: Bytes::copy_from_slice(request.target),
            version: request.version,
            host: field(request.host),
            referer: field(request.referer),
            user_agent: field(request.user_agent),
        }))
    }

    /// Answers a message that the engine could not take for a request.
    pub fn refuse(&self, request: http::Request<()>, fault: Fault) -> Response {
        let mut head = request.into_parts().0;
        self.trusted.unwrap(&mut head);
        self.finish(&head, Err(fault))
    }

    /// The order of decisions: is it a request to this server at all, does it
    /// name a program, else it is for the files.
    async fn answer(&self, head: &Parts, body: Body) -> Result<Response, Fault> {
        let raw = raw_target(head);
        if let Some(host) = head.headers.get(HOST) {
            check_authority(host.as_bytes())?;
        }
        match head.method {
            // RFC 9110 §9.3.6, §9.3.8: never for a script (C8).
            Method::CONNECT | Method::TRACE => {
                return Err(Fault::method_not_allowed("GET, HEAD, POST, OPTIONS"));
            }
            Method::OPTIONS if raw == "*" => return Ok(options()),
            _ => {}
        }
        let original = Target::parse(&raw).map_err(|_| Fault::bad_request())?;
        if let Some(authority) = &original.authority {
            check_authority(authority)?;
        }
        let programs = self.scripts.is_some() || !self.routes.is_empty();
        if !programs && self.authorizers.is_empty() && self.statics.is_empty() {
            return self.files.respond(head, &original).await;
        }
        self.answer_step_by_step(head, original, body).await
    }

    /// An application first, since somebody named its part of the URL space;
    /// then a script.
    fn whose(&self, path: &UrlPath) -> Result<Whose<'_>, Fault> {
        if let Some((files, target)) = self.statics.iter().find_map(|own| own.find(path)) {
            return Ok(Whose::Static(files, target?));
        }
        if let Some((upstream, found)) = self.routes.find(path) {
            return Ok(match found? {
                Found::Script(script) => Whose::Upstream(upstream, script),
                Found::Redirect(location) => Whose::Moved(location),
            });
        }
        let Some(host) = &self.scripts else {
            return Ok(Whose::Files);
        };
        match host.scripts.find(path) {
            None => Ok(Whose::Files),
            Some(Ok(Found::Script(script))) if host.refused => Err(refused_for_root(&script)),
            Some(Ok(Found::Script(script))) => Ok(Whose::Script(host, script)),
            Some(Ok(Found::Redirect(location))) => Ok(Whose::Moved(location)),
            Some(Err(fault)) => Err(fault),
        }
    }

    /// Asks the authorizer of a path, if it has one.
    async fn let_in(
        &self,
        head: &Parts,
        step: &Step,
        original: &Target,
    ) -> Result<LetIn<'_>, Fault> {
        let path = &step.target.path;
        let asked = self.authorizers.find(path);
        // Some applications take an escaped slash for one, and the path for another
        // than was looked at here (C45).
        if let Some(other) = path.split_decoded() {
            let other = other.map_err(|_| Fault::not_found())?;
            let other = self.authorizers.find(&other).map(|found| found.0);
            let is_same = match (&asked, other) {
                (Some((asked, _)), Some(other)) => std::ptr::eq(*asked, other),
                (asked, None) => asked.is_none(),
                (None, Some(_)) => false,
            };
            if !is_same {
                return Err(Fault::not_found());
            }
        }
        let Some((authorizer, found)) = asked else {
            return Ok(LetIn::Everybody);
        };
        let script = match found? {
            Found::Script(script) => script,
            Found::Redirect(location) => {
                return Ok(LetIn::Refused(moved(&location, &step.target.query)));
            }
        };
        let facts = self.site.facts(head, step, original, &script);
        Ok(match authorizer.application.authorize(facts).await? {
            Verdict::Granted(variables) => LetIn::Granted(&authorizer.files, variables),
            Verdict::Refused(response) => LetIn::Refused(response),
        })
    }

    /// Links are followed to a program, but not to one that another authorizer
    /// protects than the one of the path, if any.
    fn check_way(&self, path: &UrlPath, script: &Script) -> Result<(), Fault> {
        let Ok(file) = script.file.canonicalize() else {
            // There is no such file: the application knows its own.
            return Ok(());
        };
        let Ok(below) = file.strip_prefix(&self.site.root) else {
            return Ok(());
        };
        let real = UrlPath {
            segments: below.iter().map(|part| part.as_bytes().into()).collect(),
            trailing_slash: false,
        };
        let of = |path| {
            self.authorizers
                .find(path)
                .map(|(authorizer, _)| authorizer)
        };
        match (of(path), of(&real)) {
            (_, None) => Ok(()),
            (Some(asked), Some(protects)) if std::ptr::eq(asked, protects) => Ok(()),
            _ => Err(Fault::forbidden().because(Diagnosis {
                reason: "link-around",
                subject: script.subject.clone(),
                fault: "a symbolic link leads to what an authorizer protects".into(),
                file: Some(script.file.clone()),
                ..Diagnosis::default()
            })),
        }
    }

    /// A program may answer with a local redirect: the next step.
    async fn answer_step_by_step(
        &self,
        head: &Parts,
        original: Target,
        body: Body,
    ) -> Result<Response, Fault> {
        let mut step = Step {
            target: original.clone(),
            redirected: None,
        };
        let mut inner_head;
        let mut head = head;
        let mut body = body;
        let mut place = None;
        for _ in 0..=MAX_LOCAL_REDIRECTS {
            let body = std::mem::take(&mut body);
            let let_in = if self.authorizers.is_empty() {
                LetIn::Everybody
            } else {
                Box::pin(self.let_in(head, &step, &original)).await?
            };
            let (files, granted) = match let_in {
                LetIn::Everybody => (&self.files, Vec::new()),
                LetIn::Granted(files, granted) => (files, granted),
                LetIn::Refused(response) => return Ok(response),
            };
            let whose = self.whose(&step.target.path)?;
            if let Whose::Script(_, script) | Whose::Upstream(_, script) = &whose
                && !self.authorizers.is_empty()
            {
                self.check_way(&step.target.path, script)?;
            }
            let (outcome, script) = match whose {
                Whose::Files => return Box::pin(files.respond(head, &step.target)).await,
                Whose::Static(files, target) => {
                    let answer = Box::pin(files.respond(head, &target)).await?;
                    return statically(&target.path, answer);
                }
                Whose::Moved(location) => return Ok(moved(&location, &step.target.query)),
                Whose::Script(host, script) => {
                    let facts = self.site.facts(head, &step, &original, &script);
                    let facts = facts.granted(&granted);
                    let run = Box::pin(host.cgi.run(facts, body, place.take()));
                    (run.await?, script)
                }
                Whose::Upstream(upstream, script) => {
                    let facts = self.site.facts(head, &step, &original, &script);
                    let facts = facts.granted(&granted);
                    (upstream.run(facts, body).await?, script)
                }
            };
            match outcome {
                Outcome::Response(response) => return Ok(response),
                Outcome::SendFile(name, status, fields) => {
                    let fields = (status, fields);
                    let sending = self.site.send_file(head, &script, &name, fields);
                    return Box::pin(sending).await;
                }
                Outcome::LocalRedirect(location, kept) => {
                    let method = head.method.clone();
                    step = step.follow(&script, &location, method)?;
                    inner_head = redirected_head(head);
                    head = &inner_head;
                    place = kept;
                }
            }
        }
        Err(
            Fault::new(StatusCode::INTERNAL_SERVER_ERROR).because(Diagnosis {
                reason: "redirect-loop",
                subject: crate::log::escape(step.target.raw.strip_prefix(b"/").unwrap_or(b"")),
                fault: format!("more than {MAX_LOCAL_REDIRECTS} local redirects"),
                ..Diagnosis::default()
            }),
        )
    }

    /// The error page, if it is one; the access log's entry.
    fn finish(&self, head: &Parts, answer: Result<Response, Fault>) -> Response {
        let mut response = answer.unwrap_or_else(|fault| {
            if let Some(diagnosis) = &fault.diagnosis {
                self.log.diagnosis(diagnosis);
            }
            error_page::response(head, fault)
        });
        let mut entry: Entry = self.log.entry(asked(head));
        entry.status = response.status();
        entry.ran = response.extensions().get::<Ran>().copied();
        response.extensions_mut().insert(Sent::new(entry));
        response
    }
}

fn raw_target(head: &Parts) -> Bytes {
    let RequestTarget(raw) = head
        .extensions
        .get()
        .expect("every engine says what the target was");
    raw.clone()
}

fn connection(head: &Parts) -> &Connection {
    head.extensions
        .get()
        .expect("every engine says where the request came from")
}

fn asked(head: &Parts) -> Asked {
    Asked::new(
        connection(head).remote,
        head.method.clone(),
        raw_target(head),
        head.version,
        &head.headers,
    )
}

impl Static {
    /// The file that a path names below this one.
    fn find(&self, path: &UrlPath) -> Option<(&Files, Result<Target, Fault>)> {
        let rest = path.segments.strip_prefix(&self.path.segments[..])?;
        let encoded: Vec<String> = rest
            .iter()
            .map(|part| crate::target::encode_segment(part))
            .collect();
        let target = Target::parse(&format!("/{}", encoded.join("/")).into());
        let is_folder = rest.is_empty() || path.trailing_slash;
        let target = target.map_err(|_| Fault::not_found());
        // Which files there are is the application's to tell.
        let target = target.and_then(|target| {
            if is_folder {
                Err(Fault::not_found())
            } else {
                Ok(target)
            }
        });
        Some((&self.files, target))
    }
}

/// The answer for a file of `--static`. Under a name that changes with the
/// content it is good for ever (RFC 8246).
fn statically(path: &UrlPath, mut answer: Response) -> Result<Response, Fault> {
    if answer.status() == StatusCode::MOVED_PERMANENTLY {
        // A folder.
        return Err(Fault::not_found());
    }
    let name = path.segments.last().map_or(&b""[..], Vec::as_slice);
    if has_hash(name) {
        let forever = HeaderValue::from_static("public, max-age=31536000, immutable");
        answer.headers_mut().insert(CACHE_CONTROL, forever);
    }
    Ok(answer)
}

/// `app.27e20196a850.js`, `main-3f9ac01d.css`: at least eight hexadecimal digits
/// before the ending, as Django and bundlers write them. With a digit among
/// them, else it may be a word.
fn has_hash(name: &[u8]) -> bool {
    let parts: Vec<&[u8]> = name.split(|&b| b == b'.' || b == b'-').collect();
    let is_hash = |part: &[u8]| {
        part.len() >= 8
            && part.iter().all(u8::is_ascii_hexdigit)
            && part.iter().any(u8::is_ascii_digit)
            && part.iter().any(u8::is_ascii_alphabetic)
    };
    let last = parts.len().saturating_sub(1);
    name.contains(&b'.') && parts[..last].iter().skip(1).any(|part| is_hash(part))
}

/// RFC 9112 §3.2: a Host that is no host is refused before anything trusts it (C6).
fn check_authority(authority: &[u8]) -> Result<(), Fault> {
    match variables::host_name(authority) {
        Some(_) => Ok(()),
        // An empty Host is what a client sends that has no authority.
        None if authority.is_empty() => Ok(()),
        None => Err(Fault::bad_request().closing()),
    }
}

/// `OPTIONS *` (RFC 9110 §9.3.7).
fn options() -> Response {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, OPTIONS"));
    response
}

impl Site {
    fn facts<'a>(
        &'a self,
        head: &'a Parts,
        step: &'a Step,
        original: &'a Target,
        script: &'a Script,
    ) -> Facts<'a> {
        Facts {
            head,
            target: &step.target,
            original,
            connection: connection(head),
            script,
            root: &self.root,
            server_name: self.server_name.as_deref(),
            content_length: None,
            pass_authorization: self.pass_authorization,
            redirected: step.redirected.as_ref(),
            granted: &[],
        }
    }

    /// X-Sendfile: the file as if it had been asked for, with the script's own
    /// fields on top; Range and validators are the file's (C106).
    async fn send_file(
        &self,
        head: &Parts,
        script: &Script,
        name: &[u8],
        (status, fields): (StatusCode, HeaderMap),
    ) -> Result<Response, Fault> {
        let refused = |fault: &str| {
            Fault::new(StatusCode::INTERNAL_SERVER_ERROR).because(Diagnosis {
                reason: "sendfile",
                subject: script.subject.clone(),
                fault: fault.into(),
                file: Some(script.file.clone()),
                ..Diagnosis::default()
            })
        };
        let send = self
            .sendfile
            .as_ref()
            .ok_or_else(|| refused("X-Sendfile is not enabled"))?;
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(name));
        let below = path.strip_prefix(&send.root).unwrap_or(path);
        if below.is_absolute() {
            return Err(refused(
                "X-Sendfile names a file outside the `--cgi-sendfile` folder",
            ));
        }
        let encoded: Vec<String> = below
            .iter()
            .map(|part| crate::target::encode_segment(part.as_bytes()))
            .collect();
        let target = Target::parse(&format!("/{}", encoded.join("/")).into())
            .map_err(|_| refused("X-Sendfile names a file outside the `--cgi-sendfile` folder"))?;
        let mut head = redirected_head(head);
        if status != StatusCode::OK {
            // What the script sends with an error is sent whole.
            head.headers.remove(RANGE);
        }
        let mut response = send.files.respond(&head, &target).await?;
        if response.status() == StatusCode::OK {
            *response.status_mut() = status;
        }
        for name in fields.keys() {
            response.headers_mut().remove(name);
        }
        for (name, value) in &fields {
            response.headers_mut().append(name, value.clone());
        }
        Ok(response)
    }
}

fn refused_for_root(script: &Script) -> Fault {
    Fault::forbidden().because(Diagnosis {
        reason: "root",
        subject: script.subject.clone(),
        fault: "root doesn't run scripts for other machines".into(),
        hint: Some("start with `--user NAME`, or with `--allow-root`".into()),
        file: Some(script.file.clone()),
        ..Diagnosis::default()
    })
}

/// A script folder without its slash: the query is kept (C51).
fn moved(location: &str, query: &[u8]) -> Response {
    let mut location = location.as_bytes().to_vec();
    if !query.is_empty() {
        location.push(b'?');
        location.extend_from_slice(query);
    }
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    // Every byte of a target that was taken apart can stand in a field.
    if let Ok(location) = HeaderValue::from_bytes(&location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

impl Step {
    /// The next step of a local redirect (RFC 3875 §6.2.2). A fragment is
    /// dropped (C96).
    fn follow(self, script: &Script, location: &Bytes, method: Method) -> Result<Self, Fault> {
        let end = location
            .iter()
            .position(|&b| b == b'#')
            .unwrap_or(location.len());
        let target = Target::parse(&location.slice(..end)).map_err(|_| {
            Fault::new(StatusCode::INTERNAL_SERVER_ERROR).because(Diagnosis {
                reason: "bad-location",
                subject: script.subject.clone(),
                fault: format!(
                    "its Location is no path: `{}`",
                    crate::log::escape(location)
                ),
                file: Some(script.file.clone()),
                ..Diagnosis::default()
            })
        })?;
        let redirected = Redirected {
            url: self.target.path.decoded(),
            query: self.target.query,
            method,
        };
        Ok(Self {
            target,
            redirected: Some(redirected),
        })
    }
}

/// The request inside the server: GET, or HEAD if it was HEAD, without content (C96).
fn redirected_head(head: &Parts) -> Parts {
    let mut inner = head.clone();
    if inner.method != Method::HEAD {
        inner.method = Method::GET;
    }
    for name in [CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, EXPECT] {
        inner.headers.remove(name);
    }
    inner
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_hash_is_told_from_one_without() {
        for (name, expected) in [
            ("base.27e20196a850.css", true),
            ("main-3f9ac01d.js", true),
            ("chunk.3f9ac01d.min.js", true),
            ("app.js", false),
            ("app.12345678.js", false),
            ("photo-20240101.jpg", false),
            ("app.deadbeef.js", false),
            ("app.3f9ac0.js", false),
            ("27e20196a850.css", false),
            ("x.27e20196a850", false),
        ] {
            assert_eq!(has_hash(name.as_bytes()), expected, "{name}");
        }
    }
}
