//! The environment a script is given (RFC 3875 §4.1): C1 to C39. Each row is a
//! request to the fixture `env` and what variables it must see.

use std::net::{Ipv6Addr, TcpListener};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::support::{Report, Rows, Server, shown, skip, tiny_http_cannot};

/// Rule, request, variables: `None` is absent from the block.
type Row = (
    &'static str,
    &'static str,
    &'static [(&'static str, Option<&'static str>)],
);

/// Nothing but what HTTP wants.
const GET: &str = "GET /cgi-bin/env HTTP/1.1\nHost: {host}";
const GET_1_0: &str = "GET /cgi-bin/env HTTP/1.0";

/// Asks each row; `{host}`, `{port}` and `{root}` in values are the server's.
fn hold(server: &Server, rows: &[Row]) {
    let root = server.root().into_os_string().into_string().unwrap();
    let mut all = Rows::new();
    for (rule, request, variables) in rows {
        let what = format!("{rule}: {request:?}");
        let response = server.ask(request);
        let Some(report) = response.as_ref().and_then(Report::read) else {
            let answer = response.map_or("no answer".to_owned(), |r| r.to_string());
            all.check(&what, false, || answer);
            continue;
        };
        for (name, expected) in *variables {
            let expected = expected.map(|value| {
                let value = value.replace("{root}", &root);
                server.filled(value.as_bytes())
            });
            all.check(&what, report.var(name) == expected.as_deref(), || {
                format!(
                    "{name} is {:?}, expected {:?}",
                    report.text(name),
                    expected.as_deref().map(shown)
                )
            });
        }
    }
    all.done();
}

fn server() -> Server {
    Server::new()
        .fixture("env")
        .fixture_at("env", "cgi-bin/sub/env")
        .link("cgi-bin/link", "env")
        .start()
}

#[test]
fn variables_that_are_always_set_have_their_values_c2_to_c11() {
    hold(
        &server(),
        &[
            ("C2", GET, &[("GATEWAY_INTERFACE", Some("CGI/1.1"))]),
            ("C4", GET, &[("SERVER_PROTOCOL", Some("HTTP/1.1"))]),
            ("C4", GET_1_0, &[("SERVER_PROTOCOL", Some("HTTP/1.0"))]),
            // The host part of what the client addressed.
            (
                "C5",
                "GET /cgi-bin/env HTTP/1.1\nHost: example.org:99",
                &[("SERVER_NAME", Some("example.org"))],
            ),
            (
                "C5",
                "GET /cgi-bin/env HTTP/1.1\nHost: [::1]:80",
                &[("SERVER_NAME", Some("[::1]"))],
            ),
            (
                "C5",
                "GET http://absolute.example:81/cgi-bin/env HTTP/1.1\nHost: other.example",
                &[("SERVER_NAME", Some("absolute.example"))],
            ),
            ("C5", GET_1_0, &[("SERVER_NAME", Some("127.0.0.1"))]),
            // The port of the socket, not the one in Host.
            (
                "C7",
                "GET /cgi-bin/env HTTP/1.1\nHost: x:99",
                &[("SERVER_PORT", Some("{port}"))],
            ),
            ("C7", GET_1_0, &[("SERVER_PORT", Some("{port}"))]),
            // Any method reaches the script, in its own case.
            (
                "C8",
                "get /cgi-bin/env HTTP/1.1\nHost: {host}",
                &[("REQUEST_METHOD", Some("get"))],
            ),
            (
                "C8",
                "PUT /cgi-bin/env HTTP/1.1\nHost: {host}",
                &[("REQUEST_METHOD", Some("PUT"))],
            ),
            (
                "C8",
                "PATCH /cgi-bin/env HTTP/1.1\nHost: {host}",
                &[("REQUEST_METHOD", Some("PATCH"))],
            ),
            (
                "C8",
                "DELETE /cgi-bin/env HTTP/1.1\nHost: {host}",
                &[("REQUEST_METHOD", Some("DELETE"))],
            ),
            (
                "C8",
                "OPTIONS /cgi-bin/env HTTP/1.1\nHost: {host}",
                &[("REQUEST_METHOD", Some("OPTIONS"))],
            ),
            (
                "C8",
                "M-SEARCH /cgi-bin/env HTTP/1.1\nHost: {host}",
                &[("REQUEST_METHOD", Some("M-SEARCH"))],
            ),
            (
                "C8",
                "a!#$%&'*+-.^_`|~9 /cgi-bin/env HTTP/1.1\nHost: {host}",
                &[("REQUEST_METHOD", Some("a!#$%&'*+-.^_`|~9"))],
            ),
            ("C9", GET, &[("QUERY_STRING", Some(""))]),
            (
                "C9",
                "GET /cgi-bin/env? HTTP/1.1\nHost: {host}",
                &[("QUERY_STRING", Some(""))],
            ),
            (
                "C9",
                "GET /cgi-bin/env?a=%20b&c+d?e=/../%zz HTTP/1.1\nHost: {host}",
                &[("QUERY_STRING", Some("a=%20b&c+d?e=/../%zz"))],
            ),
            ("C10", GET, &[("REMOTE_ADDR", Some("127.0.0.1"))]),
            (
                "C11",
                "GET /cgi-bin/env/more HTTP/1.1\nHost: {host}",
                &[("SCRIPT_NAME", Some("/cgi-bin/env"))],
            ),
            (
                "C11",
                "GET //cgi-bin/./x/..//%65nv/ HTTP/1.1\nHost: {host}",
                &[("SCRIPT_NAME", Some("/cgi-bin/env"))],
            ),
            (
                "C11",
                "GET /cgi-bin/sub/env HTTP/1.1\nHost: {host}",
                &[("SCRIPT_NAME", Some("/cgi-bin/sub/env"))],
            ),
        ],
    );
}

#[test]
fn variables_set_on_a_condition_are_absent_without_it_c12_to_c18() {
    hold(
        &server(),
        &[
            ("C12", GET, &[("CONTENT_LENGTH", None)]),
            (
                "C12",
                "POST /cgi-bin/env HTTP/1.1\nHost: {host}",
                &[("CONTENT_LENGTH", None)],
            ),
            (
                "C12",
                "POST /cgi-bin/env HTTP/1.1\nHost: {host}\nContent-Length: 0",
                &[("CONTENT_LENGTH", Some("0"))],
            ),
            (
                "C12",
                "POST /cgi-bin/env HTTP/1.1\nHost: {host}\nContent-Length: 5\n\nhello",
                &[("CONTENT_LENGTH", Some("5"))],
            ),
            (
                "C12",
                "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nContent-Length: 5\n\nhello",
                &[("CONTENT_LENGTH", Some("5"))],
            ),
            (
                "C12",
                "POST /cgi-bin/env HTTP/1.1\nHost: {host}\nTransfer-Encoding: chunked\n\n\
                 5\r\nhello\r\n0\r\n\r\n",
                &[("CONTENT_LENGTH", Some("5"))],
            ),
            (
                "C13",
                "POST /cgi-bin/env HTTP/1.1\nHost: {host}\nContent-Length: 1\n\nx",
                &[("CONTENT_TYPE", None)],
            ),
            (
                "C13",
                "POST /cgi-bin/env HTTP/1.1\nHost: {host}\nContent-Length: 1\n\
                 Content-Type: Text/Plain ;  charset=\"UTF-8\"\n\nx",
                &[("CONTENT_TYPE", Some("Text/Plain ;  charset=\"UTF-8\""))],
            ),
            ("C14", GET, &[("PATH_INFO", None)]),
            (
                "C14",
                "GET /cgi-bin/env/ HTTP/1.1\nHost: {host}",
                &[("PATH_INFO", Some("/"))],
            ),
            (
                "C14",
                "GET /cgi-bin/env/a%20b/c?d HTTP/1.1\nHost: {host}",
                &[("PATH_INFO", Some("/a b/c"))],
            ),
            ("C15", GET, &[("PATH_TRANSLATED", None)]),
            (
                "C15",
                "GET /cgi-bin/env/no/such%20file HTTP/1.1\nHost: {host}",
                &[("PATH_TRANSLATED", Some("{root}/no/such file"))],
            ),
            (
                "C15",
                "GET /cgi-bin/env/a/../b//c HTTP/1.1\nHost: {host}",
                &[("PATH_TRANSLATED", Some("{root}/b/c"))],
            ),
            // Nobody checked these credentials.
            (
                "C16",
                "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nAuthorization: Basic dXNlcjpwYXNz",
                &[("AUTH_TYPE", None), ("REMOTE_USER", None)],
            ),
            (
                "C16",
                "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nRemote-User: admin",
                &[("REMOTE_USER", None)],
            ),
            ("C17", GET, &[("REMOTE_HOST", Some("127.0.0.1"))]),
            ("C18", GET, &[("REMOTE_IDENT", None)]),
        ],
    );
}

#[test]
fn variables_that_scripts_rely_on_are_there_c19_to_c26() {
    hold(
        &server(),
        &[
            ("C19", GET, &[("DOCUMENT_ROOT", Some("{root}"))]),
            // As received, whatever it stands for.
            (
                "C20",
                "GET //x/../cgi-bin/%65nv//a%2fb?q=%41 HTTP/1.1\nHost: {host}",
                &[("REQUEST_URI", Some("//x/../cgi-bin/%65nv//a%2fb?q=%41"))],
            ),
            (
                "C20",
                "GET http://absolute.example:81/cgi-bin/env?q HTTP/1.1\nHost: {host}",
                &[("REQUEST_URI", Some("/cgi-bin/env?q"))],
            ),
            (
                "C20",
                "GET /cgi-bin/env? HTTP/1.1\nHost: {host}",
                &[("REQUEST_URI", Some("/cgi-bin/env?"))],
            ),
            (
                "C21",
                "GET /cgi-bin/env/more HTTP/1.1\nHost: {host}",
                &[("SCRIPT_FILENAME", Some("{root}/cgi-bin/env"))],
            ),
            (
                "C21",
                "GET /cgi-bin/link HTTP/1.1\nHost: {host}",
                &[("SCRIPT_FILENAME", Some("{root}/cgi-bin/link"))],
            ),
            ("C22", GET, &[("SERVER_ADDR", Some("127.0.0.1"))]),
            (
                "C23",
                GET,
                &[("REQUEST_SCHEME", Some("http")), ("HTTPS", None)],
            ),
            // Only the connection counts, not what the target says of itself.
            (
                "C23",
                "GET https://{host}/cgi-bin/env HTTP/1.1\nHost: {host}\nHttps: on",
                &[("REQUEST_SCHEME", Some("http")), ("HTTPS", None)],
            ),
            ("C24", GET, &[("REDIRECT_STATUS", Some("200"))]),
            (
                "C25",
                "GET /cgi-bin/sub/env HTTP/1.1\nHost: {host}",
                &[
                    ("CONTEXT_PREFIX", Some("/cgi-bin")),
                    ("CONTEXT_DOCUMENT_ROOT", Some("{root}/cgi-bin")),
                ],
            ),
            (
                "C26",
                GET,
                &[
                    ("SERVER_SIGNATURE", None),
                    ("SERVER_ADMIN", None),
                    ("UNIQUE_ID", None),
                ],
            ),
        ],
    );
}

#[test]
fn header_fields_become_variables_by_the_rules_c27_to_c35() {
    hold(
        &server(),
        &[
            (
                "C27",
                "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nx-Custom-Field2: Some Value",
                &[("HTTP_X_CUSTOM_FIELD2", Some("Some Value"))],
            ),
            // What another spelling could forge.
            (
                "C28",
                "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nX_Forwarded_For: 6.6.6.6\n\
                 X.Forwarded.For: 6.6.6.6\nX~Forwarded~For: 6.6.6.6",
                &[
                    ("HTTP_X_FORWARDED_FOR", None),
                    ("HTTP_X.FORWARDED.FOR", None),
                    ("HTTP_X~FORWARDED~FOR", None),
                ],
            ),
            (
                "C29",
                "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nX-List: one\nAccept: a/b\n\
                 x-list: two, three\nX-LIST: four",
                &[("HTTP_X_LIST", Some("one, two, three, four"))],
            ),
            (
                "C29",
                "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nCookie: a=1; b=2\nCookie: c=3",
                &[("HTTP_COOKIE", Some("a=1; b=2; c=3"))],
            ),
            (
                "C30",
                "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nProxy: evil.example:3128",
                &[("HTTP_PROXY", None)],
            ),
            (
                "C31",
                "POST /cgi-bin/env HTTP/1.1\nHost: {host}\nContent-Length: 1\n\
                 Content-Type: text/plain\n\nx",
                &[("HTTP_CONTENT_LENGTH", None), ("HTTP_CONTENT_TYPE", None)],
            ),
            (
                "C32",
                "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nAuthorization: Bearer abc\n\
                 Proxy-Authorization: Basic dTpw",
                &[
                    ("HTTP_AUTHORIZATION", Some("Bearer abc")),
                    ("HTTP_PROXY_AUTHORIZATION", None),
                ],
            ),
            (
                "C33",
                "POST /cgi-bin/env HTTP/1.1\nHost: {host}\nTransfer-Encoding: chunked\n\
                 TE: trailers\nTrailer: X-T\nKeep-Alive: timeout=5\nProxy-Connection: keep-alive\n\
                 Expect: 100-continue\n\n0\r\n\r\n",
                &[
                    ("HTTP_TRANSFER_ENCODING", None),
                    ("HTTP_TE", None),
                    ("HTTP_TRAILER", None),
                    ("HTTP_KEEP_ALIVE", None),
                    ("HTTP_PROXY_CONNECTION", None),
                    ("HTTP_EXPECT", None),
                ],
            ),
            (
                "C34",
                "GET /cgi-bin/env HTTP/1.1\nHost: Example.ORG:099\nX-Empty:",
                &[
                    ("HTTP_HOST", Some("Example.ORG:099")),
                    ("HTTP_X_EMPTY", Some("")),
                ],
            ),
            (
                "C35",
                "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nX-Tab: a\tb",
                &[("HTTP_X_TAB", Some("a\tb"))],
            ),
        ],
    );
}

#[test]
fn each_variable_stands_once_in_the_block_c1() {
    let report = server().report("/cgi-bin/env/info?query");
    let mut names: Vec<&[u8]> = report
        .environment
        .iter()
        .map(|string| string.split(|&byte| byte == b'=').next().unwrap())
        .collect();
    for string in &report.environment {
        assert!(string.contains(&b'='), "no variable: {}", shown(string));
    }
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all, "a variable stands twice");
}

#[test]
fn server_software_is_the_server_field_of_the_response_c3() {
    let response = server().get("/cgi-bin/env");
    let report = Report::of(&response);
    assert_eq!(report.text("SERVER_SOFTWARE"), response.header("Server"));
    let product = report.text("SERVER_SOFTWARE").unwrap();
    assert!(product.starts_with("serve-here"), "{product}");
}

#[test]
fn without_a_host_field_the_configured_name_is_the_server_name_c5() {
    let server = Server::new()
        .fixture("env")
        .args(["--server-name", "configured.example"])
        .start();
    hold(
        &server,
        &[
            (
                "C5",
                GET_1_0,
                &[("SERVER_NAME", Some("configured.example"))],
            ),
            (
                "C5",
                "GET /cgi-bin/env HTTP/1.0\nHost: sent.example",
                &[("SERVER_NAME", Some("sent.example"))],
            ),
        ],
    );
}

#[test]
fn a_host_outside_its_grammar_is_refused_c6() {
    let server = server();
    let mut all = Rows::new();
    for host in [
        "a b",
        "a/b",
        "a\\b",
        "user@host",
        "host:abc",
        "host:80:80",
        "[::1",
        "::1",
        "[zz]",
        "<x>",
        "a\"b",
        "%zz",
        "a?b",
        "a#b",
    ] {
        let request = format!("GET /cgi-bin/env HTTP/1.1\nHost: {host}");
        let status = server.ask(&request).map(|response| response.status);
        all.check(&format!("C6: Host: {host}"), status == Some(400), || {
            format!("{status:?}")
        });
    }
    all.done();
}

#[test]
fn the_host_itself_answers_connect_and_trace_c8() {
    let server = server();
    for request in [
        "TRACE /cgi-bin/env HTTP/1.1\nHost: {host}\nX-Secret: value",
        "CONNECT {host} HTTP/1.1\nHost: {host}",
    ] {
        let response = server.ask(request).expect("it is answered");
        assert!(
            matches!(response.status, 400 | 405 | 501),
            "{request}: {response}"
        );
        assert!(!response.text().contains("X-Secret"), "{response}");
    }
}

#[test]
fn addresses_of_an_ipv6_connection_are_plain_c10_c22() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        skip("needs IPv6 on loopback");
        return;
    }
    let server = Server::new().fixture("env").args(["--bind", "::1"]).start();
    hold(
        &server,
        &[(
            "C10, C22, C5",
            GET_1_0,
            &[
                ("REMOTE_ADDR", Some("::1")),
                ("SERVER_ADDR", Some("::1")),
                ("SERVER_NAME", Some("[::1]")),
            ],
        )],
    );
}

#[test]
fn an_ipv4_client_of_an_ipv6_socket_has_an_ipv4_address_c10_c22() {
    if tiny_http_cannot("listen beyond loopback") {
        return;
    }
    if TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_err() {
        skip("needs IPv6");
        return;
    }
    let server = Server::new()
        .fixture("env")
        .args(["--bind", "::", "--allow-root"])
        .start();
    let mut client =
        crate::support::Client::connect(([127, 0, 0, 1], server.address().port()).into());
    client.send("GET /cgi-bin/env HTTP/1.0\r\n\r\n");
    let report = Report::of(&client.response());
    assert_eq!(report.text("REMOTE_ADDR").as_deref(), Some("127.0.0.1"));
    assert_eq!(report.text("SERVER_ADDR").as_deref(), Some("127.0.0.1"));
}

#[test]
fn remote_port_is_that_of_the_client_c22() {
    let server = server();
    let mut client = server.connect();
    client.send("GET /cgi-bin/env HTTP/1.0\r\n\r\n");
    let report = Report::of(&client.response());
    let port = client.address().port().to_string();
    assert_eq!(report.text("REMOTE_PORT"), Some(port));
}

#[test]
fn an_option_drops_the_authorization_field_c32() {
    let server = Server::new()
        .fixture("env")
        .arg("--no-cgi-authorization")
        .start();
    hold(
        &server,
        &[(
            "C32",
            "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nAuthorization: Bearer abc",
            &[("HTTP_AUTHORIZATION", None)],
        )],
    );
}

#[test]
fn control_characters_in_a_field_are_refused_c35() {
    let server = server();
    let mut all = Rows::new();
    for value in ["a\0b", "a\x01b", "a\rb", "a\x1bb", "a\x7fb"] {
        let request = format!("{GET}\nX-Field: {value}");
        let status = server.ask(&request).map(|response| response.status);
        all.check(&format!("C35: {value:?}"), status == Some(400), || {
            format!("{status:?}")
        });
    }
    all.done();
}

#[test]
fn a_folded_field_is_refused_or_unfolded_c35() {
    let server = server();
    let folded = "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nX-Folded: one\n two";
    let response = server.ask(folded).expect("it is answered");
    if response.status != 400 {
        let report = Report::of(&response);
        assert_eq!(report.text("HTTP_X_FOLDED").as_deref(), Some("one two"));
    }
}

#[test]
fn a_fold_that_looks_like_a_field_is_none_c35() {
    if tiny_http_cannot("tell a fold from a field") {
        return;
    }
    let server = server();
    let folded = "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nX-Folded: one\n X-Forged: two";
    let response = server.ask(folded).expect("it is answered");
    if response.status != 400 {
        let report = Report::of(&response);
        assert_eq!(report.var("HTTP_X_FORGED"), None);
    }
}

#[test]
fn bytes_beyond_ascii_are_passed_as_they_are_c35() {
    if tiny_http_cannot("take bytes beyond ASCII") {
        return;
    }
    let server = server();
    let request = [GET.as_bytes(), b"\nX-Latin: l\xe9on\nX-Text: l\xc3\xa9on"].concat();
    let report = Report::of(&server.ask(request).expect("it is answered"));
    for (name, value) in [
        ("HTTP_X_LATIN", &b"l\xe9on"[..]),
        ("HTTP_X_TEXT", b"l\xc3\xa9on"),
    ] {
        assert_eq!(report.var(name).map(shown), Some(shown(value)), "{name}");
    }
}

#[test]
fn a_head_beyond_the_limits_is_refused_by_its_part_c36() {
    if tiny_http_cannot("bound a head") {
        return;
    }
    let server = server();
    let long = |length: usize| "x".repeat(length);
    let many = format!("\nX-Field: {}", long(40)).repeat(4000);
    let mut all = Rows::new();
    for (what, request, expected) in [
        (
            "a target of 130 KiB",
            format!(
                "GET /cgi-bin/env?{} HTTP/1.1\nHost: {{host}}",
                long(130 << 10)
            ),
            414,
        ),
        (
            "a field of 130 KiB",
            format!(
                "GET /cgi-bin/env HTTP/1.1\nHost: {{host}}\nX-Long: {}",
                long(130 << 10)
            ),
            431,
        ),
        (
            "4000 fields",
            format!("GET /cgi-bin/env HTTP/1.1\nHost: {{host}}{many}"),
            431,
        ),
        (
            "a cookie of 8 KB",
            format!(
                "GET /cgi-bin/env HTTP/1.1\nHost: {{host}}\nCookie: {}",
                long(8000)
            ),
            200,
        ),
    ] {
        let status = server.ask(&request).map(|response| response.status);
        all.check(&format!("C36: {what}"), status == Some(expected), || {
            format!("{status:?}, expected {expected}")
        });
    }
    all.done();
}

#[test]
fn an_environment_too_large_for_exec_is_431_c36() {
    let server = Server::new()
        .fixture("env")
        .arg("--cgi-env")
        .arg(format!("LARGE={}", "x".repeat(120 << 10)))
        .start();
    // With a small stack Linux takes no more than 128 KiB of arguments and
    // environment (execve(2)).
    let pid = Pid::from_raw(server.pid().try_into().unwrap());
    let stack = Rlimit {
        current: Some(256 << 10),
        maximum: Some(8 << 20),
    };
    prlimit(pid, Resource::Stack, stack).unwrap();
    let cookie = "x".repeat(7 << 10);
    assert_eq!(server.ask(GET).unwrap().status, 200);
    let more = format!("{GET}\nCookie: {cookie}\nX-More: {cookie}");
    assert_eq!(server.ask(&more).unwrap().status, 431);
}

#[test]
fn nothing_of_the_servers_environment_leaks_c30_c37() {
    let server = Server::new()
        .fixture("env")
        .env("SECRET_TOKEN", "s3cret")
        .env("HTTP_PROXY", "inherited")
        .env("HTTP_X_FORGED", "inherited")
        .env("HTTPS", "on")
        .env("PATH_INFO", "/inherited")
        .env("PATH_TRANSLATED", "/inherited")
        .env("REMOTE_USER", "inherited")
        .env("AUTH_TYPE", "inherited")
        .env("REMOTE_IDENT", "inherited")
        .env("CONTENT_LENGTH", "7")
        .env("CONTENT_TYPE", "inherited")
        .env("QUERY_STRING", "inherited")
        .start();
    hold(
        &server,
        &[(
            "C30, C37",
            GET,
            &[
                ("SECRET_TOKEN", None),
                ("HTTP_PROXY", None),
                ("HTTP_X_FORGED", None),
                ("HTTPS", None),
                ("PATH_INFO", None),
                ("PATH_TRANSLATED", None),
                ("REMOTE_USER", None),
                ("AUTH_TYPE", None),
                ("REMOTE_IDENT", None),
                ("CONTENT_LENGTH", None),
                ("CONTENT_TYPE", None),
                ("QUERY_STRING", Some("")),
            ],
        )],
    );
}

#[test]
fn what_a_program_needs_to_run_is_inherited_c38() {
    let server = Server::new()
        .fixture("env")
        .env("TZ", "Europe/Berlin")
        .env("LANG", "C.UTF-8")
        .env("LC_ALL", "C")
        .env("LC_TIME", "C")
        .env("HOME", "/home/nobody")
        .env("USER", "nobody")
        .env("LD_LIBRARY_PATH", "/nonexistent")
        .env("VIRTUAL_ENV", "/venv")
        .env("PATH", "/usr/bin:/bin:/opt/bin")
        .start();
    hold(
        &server,
        &[(
            "C38",
            GET,
            &[
                ("TZ", Some("Europe/Berlin")),
                ("LANG", Some("C.UTF-8")),
                ("LC_ALL", Some("C")),
                ("LC_TIME", Some("C")),
                ("HOME", Some("/home/nobody")),
                ("USER", Some("nobody")),
                ("LD_LIBRARY_PATH", Some("/nonexistent")),
                ("VIRTUAL_ENV", Some("/venv")),
                ("PATH", Some("/usr/bin:/bin:/opt/bin")),
            ],
        )],
    );
    assert!(server.report("/cgi-bin/env").var("TMPDIR").is_some());
}

#[test]
fn a_server_without_a_path_gives_scripts_the_usual_one_c38() {
    let server = Server::new().fixture("env").env_remove("PATH").start();
    hold(
        &server,
        &[(
            "C38",
            GET,
            &[("PATH", Some("/usr/local/bin:/usr/bin:/bin"))],
        )],
    );
}

#[test]
fn options_pass_and_set_variables_c39() {
    let server = Server::new()
        .fixture("env")
        .env("PASSED", "from the server")
        .env("LANG", "inherited")
        .args(["--cgi-env", "PASSED", "--cgi-env", "FIXED=a=b c"])
        .args(["--cgi-env", "LANG=set", "--cgi-env", "NOT_THERE"])
        .start();
    hold(
        &server,
        &[(
            "C39",
            "GET /cgi-bin/env?real HTTP/1.1\nHost: {host}",
            &[
                ("PASSED", Some("from the server")),
                ("FIXED", Some("a=b c")),
                ("LANG", Some("set")),
                ("NOT_THERE", None),
            ],
        )],
    );
}

#[test]
fn an_option_passes_all_but_what_the_request_decides_c37_c39() {
    let server = Server::new()
        .fixture("env")
        .env("SECRET_TOKEN", "s3cret")
        .env("HTTP_PROXY", "inherited")
        .env("HTTP_X_FORGED", "inherited")
        .env("HTTPS", "on")
        .env("REMOTE_USER", "inherited")
        .env("PATH_INFO", "/inherited")
        .env("SERVER_NAME", "inherited")
        .arg("--cgi-inherit-env")
        .start();
    hold(
        &server,
        &[(
            "C37, C39",
            "GET /cgi-bin/env HTTP/1.1\nHost: real.example",
            &[
                ("SECRET_TOKEN", Some("s3cret")),
                ("HTTP_PROXY", None),
                ("HTTP_X_FORGED", None),
                ("HTTPS", None),
                ("REMOTE_USER", None),
                ("PATH_INFO", None),
                ("SERVER_NAME", Some("real.example")),
            ],
        )],
    );
}
