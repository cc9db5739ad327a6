//! Requests that differ, one after the other: nothing of one is left for the
//! next, whichever interpreter they share.

use super::edits::until_warm;
use crate::support::{Rows, Server, needs};

/// Each prints its variables, but for those that differ by nature, and its
/// standard input.
const SHOWS: [(&str, &str); 3] = [
    (
        "cgi-bin/shows.py",
        "#!/usr/bin/python3\nimport json, os, sys\nprint('Content-Type: text/plain\\n')\n\
         for name in sorted(os.environ):\n    if not name.endswith('_PORT'): print(name, os.environ[name])\n\
         print(sys.argv[1:], repr(sys.stdin.read()), os.umask(0o77))\nos.environ['HTTP_LEFT'] = 'left'\n",
    ),
    (
        "cgi-bin/again.py",
        "#!/usr/bin/python3\nimport json, subprocess, sys\nprint('Content-Type: text/plain\\n', flush=True)\n\
         subprocess.run('env | grep -v _PORT= | sort; cat', shell=True)\n",
    ),
    (
        "cgi-bin/shows.pl",
        "#!/usr/bin/perl\nuse POSIX ();\nprint \"Content-Type: text/plain\\n\\n\";\n\
         print \"$_ $ENV{$_}\\n\" for grep !/_PORT$/, sort keys %ENV;\nprint \"@ARGV \", <STDIN>, umask 077, \"\\n\";\n\
         $ENV{HTTP_LEFT} = 'left';\n",
    ),
];

/// Method, what follows the script's name, fields, body.
type Request = (&'static str, &'static str, Fields, &'static [u8]);
type Fields = &'static [(&'static str, &'static str)];

#[test]
fn a_request_leaves_nothing_for_the_next() {
    if !(needs("python3") && needs("perl")) {
        return;
    }
    let setup = Server::new().args(["--log", "json", "--cgi-args"]);
    let server = SHOWS
        .iter()
        .fold(setup, |setup, (name, text)| setup.script(name, text))
        .start();
    for (script, _) in SHOWS {
        until_warm(&server, script);
    }
    let requests: [Request; 6] = [
        ("GET", "", &[], b""),
        (
            "POST",
            "/extra/%C3%A9?x=1",
            &[("Cookie", "secret=1"), ("Content-Type", "text/plain")],
            b"sent once",
        ),
        (
            "GET",
            "?one+two",
            &[("Authorization", "Basic c2VjcmV0")],
            b"",
        ),
        (
            "PUT",
            "?y=2",
            &[("X-Own", "1"), ("Accept-Language", "de")],
            b"put",
        ),
        (
            "OPTIONS",
            "/path",
            &[("Referer", "http://x/"), ("Host", "elsewhere")],
            b"",
        ),
        ("GET", "", &[("User-Agent", "")], b""),
    ];
    let mut rows = Rows::new();
    for (script, _) in SHOWS {
        let ask = |number: usize| {
            let (method, target, fields, body) = requests[number];
            server
                .request(method, format!("/{script}{target}"), fields, body)
                .text()
        };
        let first: Vec<String> = (0..requests.len()).map(ask).collect();
        // Each after each other one, itself included.
        for before in 0..requests.len() {
            for (number, expected) in first.iter().enumerate() {
                ask(before);
                let said = ask(number);
                rows.check(
                    &format!("{script}: {number} after {before}"),
                    said == *expected,
                    || format!("{expected}\n    {said}"),
                );
            }
        }
        rows.check(
            script,
            !first[0].contains("secret") && !first[0].contains("left"),
            || first[0].clone(),
        );
        rows.check(script, first[1].contains("sent once"), || first[1].clone());
    }
    rows.done();
}

#[test]
fn the_answer_to_head_is_that_to_get_without_its_body() {
    if !(needs("python3") && needs("perl")) {
        return;
    }
    let setup = Server::new().args(["--log", "json"]);
    let server = SHOWS
        .iter()
        .fold(setup, |setup, (name, text)| setup.script(name, text))
        .start();
    for (script, _) in SHOWS {
        until_warm(&server, script);
        for _ in 0..3 {
            let response = server.request("HEAD", format!("/{script}"), &[], b"");
            assert_eq!(response.status, 200, "{script}: {response}");
            assert_eq!(
                response.header("Content-Type").as_deref(),
                Some("text/plain")
            );
        }
    }
}
