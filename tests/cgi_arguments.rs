//! A script's command line (RFC 3875 §4.4): C57 to C61.

use std::os::unix::ffi::OsStrExt;

use crate::support::{Report, Rows, Server, shown};

/// Rule, request line up to the version, arguments after the script's own name.
type Row = (&'static str, &'static str, &'static [&'static str]);

fn hold(server: &Server, rows: &[Row]) {
    let mut all = Rows::new();
    for (rule, line, expected) in rows {
        let request = format!("{line} HTTP/1.1\nHost: {{host}}\nContent-Length: 0");
        let response = server.ask(&request).expect("it is answered");
        let what = format!("{rule}: {line}");
        let Some(report) = Report::read(&response) else {
            all.check(&what, false, || response.to_string());
            continue;
        };
        let given: Vec<String> = report.argv[1..].iter().map(|arg| shown(arg)).collect();
        let wanted: Vec<String> = expected.iter().map(|arg| shown(arg.as_bytes())).collect();
        all.check(&what, given == wanted, || {
            format!("arguments {given:?}, expected {wanted:?}")
        });
        let query = line.split_once('?').map_or("", |(_, query)| query);
        all.check(
            &what,
            report.var("QUERY_STRING") == Some(query.as_bytes()),
            || format!("QUERY_STRING is {:?}", report.text("QUERY_STRING")),
        );
    }
    all.done();
}

#[test]
fn a_query_gives_no_arguments_unless_asked_for_c58_c59_c60() {
    hold(
        &Server::new().fixture("env").start(),
        &[
            ("C60", "GET /cgi-bin/env", &[]),
            ("C60", "GET /cgi-bin/env?", &[]),
            ("C58", "GET /cgi-bin/env?word", &[]),
            ("C60", "GET /cgi-bin/env?two+words", &[]),
            ("C59", "GET /cgi-bin/env?-s", &[]),
            ("C59", "GET /cgi-bin/env?-d+allow_url_include%3Don", &[]),
            ("C59", "GET /cgi-bin/env?%ADs", &[]),
        ],
    );
}

#[test]
fn the_words_of_an_indexed_query_are_arguments_on_request_c57_c60() {
    hold(
        &Server::new().fixture("env").arg("--cgi-args").start(),
        &[
            ("C57", "GET /cgi-bin/env", &[]),
            ("C57", "GET /cgi-bin/env?", &[]),
            ("C57", "GET /cgi-bin/env?word", &["word"]),
            ("C57", "GET /cgi-bin/env?two+words", &["two", "words"]),
            ("C57", "GET /cgi-bin/env?a%20b+c%2Bd", &["a b", "c+d"]),
            // What a shell would act on has a backslash before it, for good.
            ("C57", "GET /cgi-bin/env?b;ar+$HOME", &["b\\;ar", "\\$HOME"]),
            ("C57", "GET /cgi-bin/env?%22a%5Cb%22", &["\\\"a\\\\b\\\""]),
            // An unencoded `=` makes it a form, an encoded one does not.
            ("C57", "GET /cgi-bin/env?a=b", &[]),
            ("C57", "GET /cgi-bin/env?a%3Db", &["a=b"]),
            // Words that can't be passed, or are options to whatever parses them.
            ("C57", "GET /cgi-bin/env?a+b%00c", &[]),
            ("C57", "GET /cgi-bin/env?a+%zz", &[]),
            ("C59", "GET /cgi-bin/env?-s", &[]),
            ("C59", "GET /cgi-bin/env?-d+allow_url_include%3Don", &[]),
            ("C60", "GET /cgi-bin/env?word+-s", &[]),
            ("C60", "GET /cgi-bin/env?word+%2Ds", &[]),
            ("C60", "GET /cgi-bin/env?%ADs", &[]),
            ("C60", "GET /cgi-bin/env?%C2%ADs", &[]),
            ("C60", "GET /cgi-bin/env?a++b", &[]),
            ("C60", "GET /cgi-bin/env?a+", &[]),
            ("C60", "POST /cgi-bin/env?two+words", &[]),
            ("C60", "PUT /cgi-bin/env?two+words", &[]),
        ],
    );
}

#[test]
fn no_shell_reads_an_argument_c60() {
    let server = Server::new().fixture("env").arg("--cgi-args").start();
    let report = server.report("/cgi-bin/env?$(touch%20made);`touch%20made`+*");
    assert!(report.argv.len() <= 3, "a word was split or expanded");
    assert!(!server.root().join("cgi-bin/made").exists());
}

#[test]
fn a_script_is_called_by_its_absolute_path_c61() {
    let server = Server::new().fixture("env").start();
    let report = server.report("/cgi-bin/env/info");
    let path = server.root().join("cgi-bin/env");
    assert_eq!(shown(&report.argv[0]), shown(path.as_os_str().as_bytes()));
}

#[test]
fn a_program_is_called_by_its_absolute_path_c61() {
    // A shell is a program whose standard input says what to report.
    let shell = std::fs::read("/bin/sh").expect("every system has one");
    let server = Server::new().script("cgi-bin/program", shell).start();
    let commands = b"printf 'Content-Type: text/plain\\n\\n%s' \"$0\"";
    let response = server.request("POST", "/cgi-bin/program", &[], commands);
    let path = server.root().join("cgi-bin/program");
    assert_eq!(response.text(), path.to_string_lossy(), "{response}");
}
