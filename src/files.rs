//! The files of a folder as responses (RFC 9110): what a request for a file or
//! a directory comes to, and how that is said.
//!
//! Deciding and answering are apart: what touches the disk ends in an
//! `Outcome`, and only `Outcome::answer` turns that into status, header
//! fields and body. Nothing here knows scripts; folders and endings that belong
//! to them are withheld on the caller's word.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_DISPOSITION,
    CONTENT_ENCODING, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderName,
    HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
    LAST_MODIFIED, LOCATION, RANGE, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{Area, Diagnosis, Fault};
use crate::message::{Body, FileBody, Ready, Response};
use crate::target::{self, Target, UrlPath};

use archive::{Archive, Format};
use cache::{Basis, Cache};
use compression::Coder;
use listing::{Form, Listing, Listings, View};
use negotiation::{Accepted, Coding};
use precondition::{Validators, Verdict};
use range::{ByteRanges, Selection, Span};
use representation::{Asked, Data};
use resolve::{Directory, Node, Refusal, RegularFile, Root};

mod archive;
mod cache;
mod civil;
mod compression;
#[cfg(fuzzing)]
pub mod fuzz;
mod listing;
mod media_type;
mod negotiation;
mod precondition;
mod range;
mod representation;
mod resolve;
#[cfg(test)]
mod tests;

const ALLOWED: &str = "GET, HEAD, OPTIONS";
/// What stands unescaped in `filename*` (RFC 8187 §3.2.1, and fewer).
const ATTRIBUTE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');
/// What stands for a directory, in this order.
const INDEX_NAMES: [&str; 2] = ["index.html", "index.htm"];

/// What of the folder is served.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Symbolic links may lead out of the root.
    pub follow_links: bool,
    /// Names that start with a dot are served too.
    pub hidden: bool,
    /// Folders, relative to the root, whose contents are never served, listed
    /// or archived (script folders).
    pub withheld: Vec<PathBuf>,
    /// File endings without dot whose files are never served as files (scripts
    /// by ending).
    pub withheld_extensions: Vec<String>,
    pub codings: Codings,
}

/// Which content codings files are sent in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codings {
    /// None; Accept-Encoding is not looked at.
    #[default]
    None,
    /// Those that lie beside a file: `app.js.gz` for `app.js`.
    Beside,
    /// Others too, made when they are asked for.
    OnTheFly,
}

/// A folder whose files are served.
pub struct Files {
    /// Shared with the tasks that read directories.
    root: Arc<Root>,
    cache: Cache,
    codings: Codings,
    coder: Coder,
    listings: Listings,
}

/// What a request comes to, if it is not refused.
#[allow(clippy::large_enum_variant, reason = "moved once")]
enum Outcome {
    /// The methods there are, for OPTIONS (RFC 9110 §9.3.7).
    Methods,
    /// The directory was named without its slash.
    Moved(HeaderValue),
    NotModified {
        validators: Validators,
        /// The field that another answer could depend on.
        varies: Option<HeaderName>,
    },
    Listing {
        listing: Listing,
        view: View,
    },
    Archive {
        /// Of the folder.
        name: Vec<u8>,
        format: Format,
        archive: Archive,
    },
    Content {
        content: Content,
        validators: Validators,
        media_type: String,
        /// Accept-Encoding was, or would have been, of importance.
        negotiated: bool,
        /// What a copy of the answer rests on, if one may be kept.
        basis: Option<Basis>,
    },
}

/// What is sent of a file.
enum Content {
    /// Of the bytes as they are, never [`Selection::Unsatisfiable`].
    Selected(Arc<File>, u64, Selection),
    /// In a coding; always the whole.
    Coded(Coding, Body),
}

impl Files {
    /// Serves what lies below `root`. Held open from now on.
    pub fn new(root: &Path, options: Options) -> io::Result<Self> {
        Ok(Self {
            codings: options.codings,
            coder: Coder::default(),
            root: Arc::new(Root::new(root, options)?),
            cache: Cache::default(),
            listings: Listings::default(),
        })
    }

    /// Answers a request for what `target` names. The engine adds what depends
    /// on the connection and leaves the body away for HEAD.
    pub async fn respond(&self, head: &Parts, target: &Target) -> Result<Response, Fault> {
        let mut outcome = self.decide(head, target).await?;
        let basis = match &mut outcome {
            Outcome::Content { basis, .. } => basis.take(),
            _ => None,
        };
        let response = outcome.answer()?;
        if let Some(basis) = basis
            && head.method == Method::GET
            && !head.headers.keys().any(|name| is_heeded(name.as_ref()))
            && !target.raw.contains(&b'?')
            && !may_be_outdone(&basis.path, &target.path)
        {
            self.cache.put(&target.raw, basis, &response);
        }
        Ok(response)
    }

    /// The answer to GET or HEAD if it was given before and the file is what it
    /// was: one stat, or two where a coding may lie beside it. `raw` is the
    /// request-target, `accepted` the Accept-Encoding field; no field [`is_heeded`].
    pub fn respond_again(&self, raw: &[u8], accepted: Option<&[u8]>) -> Option<Ready> {
        let accepted = Accepted::of(accepted.into_iter());
        self.cache.get(raw, accepted, &self.root)
    }

    async fn decide(&self, head: &Parts, target: &Target) -> Result<Outcome, Fault> {
        if !matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS) {
            // Whether or not there is something (C56).
            return Err(Fault::method_not_allowed(ALLOWED));
        }
        let path = target.path.relative().ok_or_else(Fault::not_found)?;
        let refused = |refusal| fault(refusal, &target.path);
        let node = self.root.find(&path).map_err(refused)?;
        if matches!(node, Node::File(_)) && target.path.trailing_slash {
            return Err(Fault::not_found());
        }
        if head.method == Method::OPTIONS {
            return Ok(Outcome::Methods);
        }
        match node {
            Node::File(file) => Box::pin(self.decide_file(&path, file, head)).await,
            Node::Directory(_) if needs_slash(&target.path) => {
                Ok(Outcome::Moved(with_slash(target)))
            }
            Node::Directory(directory) => {
                if let Some(format) =
                    parameter(&target.query, "archive").and_then(|format| Format::of(&format))
                {
                    return self.pack(&directory, &target.path, format, head);
                }
                let view = View::of(&target.query, &head.headers);
                // A form that the query names is meant, index or not.
                if view.negotiated
                    && let Some((path, file)) = self.index(&path).map_err(refused)?
                {
                    return Box::pin(self.decide_file(&path, file, head)).await;
                }
                self.list(directory, &target.path, view, head).await
            }
        }
    }

    async fn list(
        &self,
        directory: Directory,
        path: &UrlPath,
        view: View,
        head: &Parts,
    ) -> Result<Outcome, Fault> {
        // Of little use to all other requests, whose futures it would make larger.
        let listing = Box::pin(self.listings.get(&self.root, directory, path, view));
        let listing = listing.await.map_err(|refusal| fault(refusal, path))?;
        let Some(validators) = listing.validators() else {
            // There is nothing yet that a condition could be about.
            return Ok(Outcome::Listing { listing, view });
        };
        match precondition::evaluate(&head.headers, validators) {
            Verdict::Proceed => Ok(Outcome::Listing { listing, view }),
            Verdict::NotModified => Ok(Outcome::NotModified {
                validators: validators.clone(),
                varies: view.negotiated.then_some(ACCEPT),
            }),
            Verdict::Failed => Err(Fault::new(StatusCode::PRECONDITION_FAILED)),
        }
    }

    fn pack(
        &self,
        directory: &Directory,
        path: &UrlPath,
        format: Format,
        head: &Parts,
    ) -> Result<Outcome, Fault> {
        // A folder that can't be read is refused now, not sent empty.
        directory
            .open()
            .map_err(|errno| fault(errno.into(), path))?;
        let name = match path.segments.last() {
            Some(name) => name.clone(),
            None => self.root.name().as_bytes().to_owned(),
        };
        let archive = if head.method == Method::HEAD {
            Archive::Ended
        } else {
            Archive::new(Arc::clone(&self.root), directory, &name, format)
        };
        Ok(Outcome::Archive {
            name,
            format,
            archive,
        })
    }

    /// The file that stands for the directory. One that is there and can't be
    /// served is an error: the owner did not mean to show a listing.
    fn index(&self, directory: &Path) -> Result<Option<(PathBuf, RegularFile)>, Refusal> {
        for name in INDEX_NAMES {
            let path = directory.join(name);
            // The folder was found a moment ago, and no such name is hidden.
            match self.root.open_node(&path) {
                Ok(Node::File(file)) => return Ok(Some((path, file))),
                Ok(Node::Directory(_)) | Err(Refusal::Missing | Refusal::Special) => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(None)
    }

    /// The representation, then preconditions, then ranges (RFC 9110 §13.2.2).
    /// What it keeps while a coding is made is much: to be boxed.
    async fn decide_file(
        &self,
        path: &Path,
        file: RegularFile,
        head: &Parts,
    ) -> Result<Outcome, Fault> {
        let media_type = media_type::of(path, &file.file);
        let accepted = accepted(head);
        let codes = self.codings != Codings::None;
        let negotiated = codes && compression::is_compressible(&media_type);
        let varying = |fault: Fault| {
            if negotiated {
                fault.with_header(VARY, ACCEPT_ENCODING.into())
            } else {
                fault
            }
        };
        if codes && !negotiated && !accepted.identity {
            return Err(not_acceptable());
        }
        let asked = Asked {
            root: &self.root,
            path,
            headers: &head.headers,
            accepted: negotiated.then_some(accepted),
            on_the_fly: self.codings == Codings::OnTheFly,
        };
        let choice = asked.choose(file);
        let mut basis = choice.basis;
        for representation in choice.representations {
            match precondition::evaluate(&head.headers, &representation.validators) {
                Verdict::Proceed => {}
                Verdict::NotModified => {
                    return Ok(Outcome::NotModified {
                        validators: representation.validators,
                        varies: negotiated.then_some(ACCEPT_ENCODING),
                    });
                }
                Verdict::Failed => {
                    return Err(varying(Fault::new(StatusCode::PRECONDITION_FAILED)));
                }
            }
            let Some(data) = representation.data(&self.coder).await else {
                // The next one is only for now.
                basis = None;
                continue;
            };
            let content = select(head, &representation.validators, data).map_err(varying)?;
            return Ok(Outcome::Content {
                basis: basis.filter(|_| content.is_whole()),
                content,
                validators: representation.validators,
                media_type,
                negotiated,
            });
        }
        Err(not_acceptable())
    }
}

/// The client refuses the bytes as they are, and there are no others for it
/// (RFC 9110 §12.5.3): an answer that it said it can't read would be worse.
fn not_acceptable() -> Fault {
    Fault::new(StatusCode::NOT_ACCEPTABLE).with_header(VARY, ACCEPT_ENCODING.into())
}

/// What the client takes for this request. A range is one of the bytes as they
/// are: a client that goes on with a download counts these, whether or not it
/// takes a coding.
fn accepted(head: &Parts) -> Accepted {
    let accepted = Accepted::of(
        head.headers
            .get_all(ACCEPT_ENCODING)
            .iter()
            .map(HeaderValue::as_bytes),
    );
    if accepted.identity && head.method == Method::GET && head.headers.contains_key(RANGE) {
        Accepted::IDENTITY
    } else {
        accepted
    }
}

/// The part that is asked for. Of a coded representation it is always the whole
/// (RFC 9110 §14.2 lets a server ignore Range).
fn select(head: &Parts, validators: &Validators, data: Data) -> Result<Content, Fault> {
    let (file, length) = match data {
        Data::Plain(file, length) => (file, length),
        Data::Coded(coding, body) => return Ok(Content::Coded(coding, body)),
    };
    let headers = &head.headers;
    let obeyed = head.method == Method::GET && precondition::if_range_allows(headers, validators);
    let selection = if obeyed {
        range::select(headers, length)
    } else {
        Selection::Whole
    };
    if selection == Selection::Unsatisfiable {
        let length = header_value(format!("bytes */{length}"));
        return Err(
            Fault::new(StatusCode::RANGE_NOT_SATISFIABLE).with_header(CONTENT_RANGE, length)
        );
    }
    Ok(Content::Selected(file, length, selection))
}

impl Content {
    fn is_whole(&self) -> bool {
        !matches!(self, Self::Selected(_, _, selection) if *selection != Selection::Whole)
    }
}

/// Whether `file` stands for the folder at `url` only as long as the first of
/// [`INDEX_NAMES`] isn't there.
fn may_be_outdone(file: &Path, url: &UrlPath) -> bool {
    url.relative().as_deref() != Some(file) && !file.ends_with(INDEX_NAMES[0])
}

/// Whether a field can make the answer another one than the whole file.
pub fn is_heeded(name: &[u8]) -> bool {
    const CONDITIONS: [HeaderName; 6] = [
        IF_MATCH,
        IF_NONE_MATCH,
        IF_MODIFIED_SINCE,
        IF_UNMODIFIED_SINCE,
        IF_RANGE,
        RANGE,
    ];
    matches!(name.first(), Some(b'i' | b'I' | b'r' | b'R'))
        && CONDITIONS
            .iter()
            .any(|known| name.eq_ignore_ascii_case(known.as_str().as_bytes()))
}

fn needs_slash(path: &UrlPath) -> bool {
    !path.trailing_slash && !path.segments.is_empty()
}

/// The same directory with its slash; the query is kept as it came.
fn with_slash(target: &Target) -> HeaderValue {
    let mut location = target.path.encoded().into_bytes();
    location.push(b'/');
    if !target.query.is_empty() {
        location.push(b'?');
        location.extend_from_slice(&target.query);
    }
    HeaderValue::from_bytes(&location).expect("a request-target holds no control characters")
}

/// The one place where a refusal becomes a status. Where the owner of the
/// folder can do something about it, the diagnosis says what.
fn fault(refusal: Refusal, path: &UrlPath) -> Fault {
    let subject = match path.encoded().trim_start_matches('/') {
        "" => "/".to_owned(),
        path => path.to_owned(),
    };
    let diagnosis = |reason, fault: &str, hint: &str| Diagnosis {
        area: Area::File,
        reason,
        subject,
        fault: fault.to_owned(),
        hint: Some(hint.to_owned()),
        ..Diagnosis::default()
    };
    match refusal {
        Refusal::Missing => Fault::not_found(),
        Refusal::Special | Refusal::Script => Fault::forbidden(),
        Refusal::Outside => Fault::forbidden().because(diagnosis(
            "link-outside",
            "a symbolic link leads out of the served folder",
            "start with --follow-links if that is meant",
        )),
        Refusal::System(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Fault::forbidden().because(diagnosis(
                "unreadable",
                "the server may not read it",
                "chmod o+r for a file, o+rx for its folders",
            ))
        }
        Refusal::System(error) => Fault::from_file_error(&error),
    }
}

impl Outcome {
    fn answer(self) -> Result<Response, Fault> {
        match self {
            Self::Methods => {
                let mut response = response(StatusCode::NO_CONTENT, Body::Empty);
                let allowed = HeaderValue::from_static(ALLOWED);
                response.headers_mut().insert(ALLOW, allowed);
                Ok(response)
            }
            Self::Moved(location) => {
                let mut response = response(StatusCode::MOVED_PERMANENTLY, Body::Empty);
                response.headers_mut().insert(LOCATION, location);
                Ok(response)
            }
            Self::NotModified { validators, varies } => {
                let mut response = response(StatusCode::NOT_MODIFIED, Body::Empty);
                say_validators(&mut response, &validators);
                if let Some(field) = varies {
                    say_negotiated(&mut response, field);
                }
                Ok(response)
            }
            Self::Listing { listing, view } => Ok(listing_response(listing, view)),
            Self::Archive {
                name,
                format,
                archive,
            } => Ok(download(&name, format, archive)),
            Self::Content {
                content,
                validators,
                media_type,
                negotiated,
                basis: _,
            } => {
                // Only of the bytes as they are ranges can be had.
                let has_ranges = matches!(content, Content::Selected(..));
                let mut response = match content {
                    Content::Selected(file, length, selection) => {
                        part(file, length, media_type, selection)?
                    }
                    Content::Coded(coding, body) => coded(coding, body, media_type),
                };
                say_validators(&mut response, &validators);
                if has_ranges {
                    let unit = HeaderValue::from_static("bytes");
                    response.headers_mut().insert(ACCEPT_RANGES, unit);
                }
                if negotiated {
                    say_negotiated(&mut response, ACCEPT_ENCODING);
                }
                Ok(response)
            }
        }
    }
}

/// An archive, to be saved under the name of its folder (RFC 6266).
fn download(name: &[u8], format: Format, archive: Archive) -> Response {
    let mut response = response(StatusCode::OK, Body::stream(None, archive));
    let name = String::from_utf8_lossy(name);
    let plain: String = name
        .chars()
        .map(|c| match c {
            '"' | '\\' | '%' => '_',
            ' '..='~' => c,
            _ => '_',
        })
        .collect();
    let exact = percent_encode(name.as_bytes(), ATTRIBUTE);
    let ending = format.ending();
    let disposition =
        format!("attachment; filename=\"{plain}.{ending}\"; filename*=UTF-8''{exact}.{ending}");
    let headers = response.headers_mut();
    headers.insert(CONTENT_DISPOSITION, header_value(disposition));
    let media_type = HeaderValue::from_static(format.media_type());
    headers.insert(CONTENT_TYPE, media_type);
    response
}

fn listing_response(listing: Listing, view: View) -> Response {
    let mut response = response(StatusCode::OK, Body::Empty);
    if let Some(validators) = listing.validators() {
        say_validators(&mut response, validators);
    }
    let headers = response.headers_mut();
    let media_type = match view.form {
        Form::Html => {
            let policy = HeaderValue::from_static(listing::CONTENT_SECURITY_POLICY);
            headers.insert(CONTENT_SECURITY_POLICY, policy);
            "text/html; charset=utf-8"
        }
        Form::Json => "application/json; charset=utf-8",
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    if view.negotiated {
        say_negotiated(&mut response, ACCEPT);
    }
    *response.body_mut() = listing.into_body();
    response
}

/// The whole of a representation in a coding.
fn coded(coding: Coding, body: Body, media_type: String) -> Response {
    let mut response = response(StatusCode::OK, body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, header_value(media_type));
    let token = HeaderValue::from_static(coding.token());
    headers.insert(CONTENT_ENCODING, token);
    response
}

/// 200 or 206 (RFC 9110 §15.3.7).
fn part(
    file: Arc<File>,
    length: u64,
    media_type: String,
    selection: Selection,
) -> Result<Response, Fault> {
    let span = match selection {
        Selection::Whole | Selection::Unsatisfiable => Span { offset: 0, length },
        Selection::One(span) => span,
        Selection::Many(spans) => {
            let boundary = boundary()?;
            let parts = ByteRanges::new(file, length, spans, &media_type, &boundary);
            let body = Body::stream(Some(parts.length()), parts);
            let mut response = response(StatusCode::PARTIAL_CONTENT, body);
            let media_type = header_value(format!("multipart/byteranges; boundary={boundary}"));
            response.headers_mut().insert(CONTENT_TYPE, media_type);
            return Ok(response);
        }
    };
    let body = Body::File(FileBody {
        file,
        offset: span.offset,
        length: span.length,
    });
    let mut response = response(StatusCode::OK, body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, header_value(media_type));
    if selection != Selection::Whole {
        headers.insert(CONTENT_RANGE, header_value(span.content_range(length)));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// Sixteen random bytes; no content has them by chance.
fn boundary() -> Result<String, Fault> {
    let mut bytes = [0; 16];
    let filled = getrandom(&mut bytes, GetRandomFlags::empty());
    if filled != Ok(bytes.len()) {
        return Err(Fault::new(StatusCode::INTERNAL_SERVER_ERROR));
    }
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// What every response has. `no-cache`: a browser asks again before it shows a
/// copy, so that an edit is seen at the next request (RFC 9111 §5.2.2.4).
fn response(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn say_validators(response: &mut Response, validators: &Validators) {
    let headers = response.headers_mut();
    headers.insert(ETAG, validators.tag.to_header());
    if let Some(modified) = validators.modified {
        let date = httpdate::fmt_http_date(modified);
        headers.insert(LAST_MODIFIED, header_value(date));
    }
}

/// Another value of the field could have been answered otherwise (RFC 9110
/// §12.5.5).
fn say_negotiated(response: &mut Response, field: HeaderName) {
    response.headers_mut().insert(VARY, field.into());
}

/// The decoded value of the first `name=` in a query.
fn parameter(query: &[u8], name: &str) -> Option<Vec<u8>> {
    query.split(|&b| b == b'&').find_map(|pair| {
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        target::decode(value).ok()
    })
}

fn header_value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("dates, numbers and media types are visible characters")
}
