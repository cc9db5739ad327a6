//! What a client sees of a fault: a page for browsers, short text for others.
//! A client on this machine also sees the diagnosis; no other does (C125).

use std::fmt::Write as _;

use http::StatusCode;
use http::header::{
    ACCEPT, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;

use crate::error::{Diagnosis, Fault};
use crate::html::escape;
use crate::message::{Body, Connection, Response};

const PAGE: &str = include_str!("error_page.html");
/// The page has one style block and nothing else that loads or runs.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Turns a fault into its response.
pub fn response(head: &Parts, fault: Fault) -> Response {
    let diagnosis = fault.diagnosis.as_deref().filter(|_| is_local(head));
    let (text, media_type) = if wants_html(head) {
        (html(fault.status, diagnosis), "text/html; charset=utf-8")
    } else {
        (plain(fault.status, diagnosis), "text/plain; charset=utf-8")
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = fault.status;
    *response.headers_mut() = fault.headers;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.append(VARY, HeaderValue::from_static("Accept"));
    if fault.close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(ran) = fault.ran {
        response.extensions_mut().insert(ran);
    }
    response
}

/// Whether the person who asks sits at this machine. Behind a proxy every
/// client comes from it; the proxy's fields give that away.
fn is_local(head: &Parts) -> bool {
    const FORWARDED: [&str; 5] = [
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-real-ip",
        "via",
    ];
    let loopback = head
        .extensions
        .get::<Connection>()
        .is_some_and(|c| c.remote.ip().to_canonical().is_loopback());
    loopback
        && !FORWARDED
            .iter()
            .any(|name| head.headers.contains_key(*name))
}

fn wants_html(head: &Parts) -> bool {
    let fields = head.headers.get_all(ACCEPT).iter();
    fields.into_iter().any(|value| {
        value
            .as_bytes()
            .to_ascii_lowercase()
            .windows(9)
            .any(|word| word == b"text/html")
    })
}

fn phrase(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("Error")
}

/// One sentence for someone who followed a link.
fn explanation(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "The request could not be understood.",
        403 => "This can't be shown.",
        404 => "There is nothing at this address.",
        405 => "This can't be done with that method here.",
        406 => "There is no form of this that the client accepts.",
        408 => "The request did not arrive in time.",
        412 => "It has changed, or is not what was expected.",
        413 => "The content is too large.",
        416 => "The file has no such part.",
        417 => "The expectation can't be met.",
        431 => "The request's header fields are too large.",
        500 => "The program at this address failed. Its error is in the server's log.",
        501 => "The server can't do this.",
        502 => "The application at this address failed. Its error is in the server's log.",
        503 => "The server is busy. Please try again in a moment.",
        504 => "The program at this address did not answer in time.",
        _ => "The request could not be answered.",
    }
}

fn plain(status: StatusCode, diagnosis: Option<&Diagnosis>) -> String {
    let mut text = format!("{} {}\n", status.as_u16(), phrase(status));
    if let Some(
        diagnosis @ Diagnosis {
            subject,
            fault,

            stderr,
            ..
        },
    ) = diagnosis
    {
        let _ = writeln!(text, "\n{subject}: {fault}");
        if let Some(hint) = diagnosis.hint_for_client() {
            let _ = writeln!(text, "hint: {hint}");
        }
        if !stderr.is_empty() {
            let _ = writeln!(text, "\nstandard error:\n{}", stderr.join("\n"));
        }
    }
    text
}

fn html(status: StatusCode, diagnosis: Option<&Diagnosis>) -> String {
    let mut details = String::new();
    if let Some(
        diagnosis @ Diagnosis {
            subject,
            fault,

            stderr,
            ..
        },
    ) = diagnosis
    {
        let _ = writeln!(
            details,
            "<p><strong>{}</strong>: {}</p>",
            escape(subject),
            escape(fault)
        );
        if let Some(hint) = diagnosis.hint_for_client() {
            let _ = write!(
                details,
                "<p>To mend it:</p>\n<pre>{}</pre>\n",
                escape(&hint)
            );
        }
        if !stderr.is_empty() {
            let _ = write!(
                details,
                "<p>Its last lines of standard error:</p>\n<pre>{}</pre>\n",
                escape(&stderr.join("\n"))
            );
        }
        details.push_str(
            "<footer>You see these details because you ask from this machine.</footer>\n",
        );
    }
    // The template's names first: the details may hold braces of their own.
    PAGE.replace("{status}", status.as_str())
        .replace("{phrase}", phrase(status))
        .replace("{text}", explanation(status))
        .replace("{diagnosis}", &details)
}
