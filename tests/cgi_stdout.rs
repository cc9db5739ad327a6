//! What a script prints and what becomes of it (RFC 3875 §6): C76 to C118.

mod fields; // what of the header goes on: C101 to C107
mod framing; // how the body is delimited: C108 to C114
mod header; // the header block: C76 to C86
mod redirect; // the kinds of response: C92 to C100
mod status; // Status and interim blocks: C87 to C91
mod streaming; // as it is written; NPH; compression: C115 to C118

use crate::support::{Response, Rows, Server};

/// Stands in bodies that must not get out.
const SECRET: &str = "SECRET BODY";

/// One script for each output, `/cgi-bin/0` and so on.
fn printing<'a>(outputs: impl IntoIterator<Item = &'a [u8]>) -> Server {
    let outputs = outputs.into_iter().enumerate();
    outputs
        .fold(Server::new(), |setup, (n, output)| {
            setup.prints(format!("cgi-bin/{n}"), output)
        })
        .start()
}

/// Runs a script that prints `output`.
fn answer_to(output: impl AsRef<[u8]>) -> Response {
    printing([output.as_ref()]).get("/cgi-bin/0")
}

/// Each output is no response: 500 with nothing of it, and the log quotes
/// `quote` beside the script's name. Rule, output, quote.
fn refused(rows: &[(&str, &[u8], &str)]) {
    let server = printing(rows.iter().map(|row| row.1));
    let mut all = Rows::new();
    for (n, (rule, output, quote)) in rows.iter().enumerate() {
        let what = format!("{rule}: {}", output.escape_ascii());
        // Not from this machine: no diagnosis, which would quote the line too.
        let afar = [("X-Forwarded-For", "192.0.2.1")];
        let response = server.request("GET", format!("/cgi-bin/{n}"), &afar, b"");
        let held = response.status == 500 && !response.text().contains(SECRET);
        all.check(&what, held, || response.to_string());
        let fields = &response.head.headers;
        let own = |name: &str| name.to_ascii_lowercase().starts_with("x-from");
        all.check(&what, !fields.iter().any(|field| own(&field.0)), || {
            format!("a field of the script got out: {response}")
        });
        let line = server.log_line(&format!("cgi 'cgi-bin/{n}': "));
        all.check(&what, line.contains(quote), || {
            format!("the log says: {line}")
        });
    }
    all.done();
}
