//! Where other servers deviate from CGI: one test for each way, all seen in at
//! least one widely used server. Each shows that this one does not.

use std::fs;

use crate::support::{Client, Process, Report, Response, Server, eventually};

fn ask(server: &Server, request: &str) -> Response {
    server
        .ask(request)
        .unwrap_or_else(|| panic!("no answer to {request}"))
}

fn env() -> Server {
    Server::new().fixture("env").start()
}

fn report(server: &Server, request: &str) -> Report {
    Report::of(&ask(server, request))
}

/// One script `/cgi-bin/x` that prints this.
fn printing(output: impl AsRef<[u8]>) -> Server {
    Server::new().prints("cgi-bin/x", output).start()
}

fn open(server: &Server, request: &str) -> Client {
    let mut client = server.connect();
    client.send(server.wire(request.as_bytes()));
    client
}

const GET: &str = "GET /cgi-bin/x HTTP/1.1\nHost: {host}";

#[test]
fn a_chunked_request_is_decoded_and_has_a_length_c65() {
    let server = Server::new().fixture("echo").fixture("env").start();
    let rest =
        "HTTP/1.1\nHost: {host}\nTransfer-Encoding: chunked\n\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let echo = ask(&server, &format!("POST /cgi-bin/echo {rest}"));
    assert_eq!(echo.text(), "abcde");
    assert_eq!(echo.header("X-Content-Length").as_deref(), Some("5"));
    let report = report(&server, &format!("POST /cgi-bin/env {rest}"));
    assert_eq!(report.text("HTTP_TRANSFER_ENCODING"), None);
}

#[test]
fn output_before_input_is_no_deadlock_c67() {
    let server = Server::new().fixture("outfirst").start();
    let response = server.request("POST", "/cgi-bin/outfirst", &[], &vec![b'a'; 1 << 20]);
    assert!(response.complete);
    assert!(response.text().ends_with("1048576\n"));
}

#[test]
fn a_late_answer_to_unread_input_arrives_c68() {
    let server = Server::new().fixture("closein").start();
    let response = server.request("POST", "/cgi-bin/closein", &[], &vec![b'a'; 1 << 20]);
    assert_eq!(response.text(), "closed stdin\n");
}

#[test]
fn continue_is_sent_once_and_never_behind_the_answer_c69() {
    let server = Server::new()
        .script(
            "cgi-bin/x",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nfirst '\nwc -c\n",
        )
        .start();
    let expect = "POST /cgi-bin/x HTTP/1.1\nHost: {host}\nExpect: 100-continue\nContent-Length: 3";
    for _ in 0..20 {
        let mut client = open(&server, expect);
        assert_eq!(client.head().expect("it asks for the body").status, 100);
        client.send("abc");
        let response = client.response();
        assert_eq!(response.text(), "first 3\n");
        assert!(response.interim.is_empty());
    }
}

#[test]
fn input_ends_where_its_length_says_c62() {
    let server = Server::new().fixture("echo").start();
    let next = "GET /cgi-bin/echo HTTP/1.1\r\nHost: x\r\n\r\n";
    let request =
        format!("POST /cgi-bin/echo HTTP/1.1\nHost: {{host}}\nContent-Length: 4\n\nbody{next}");
    let mut client = open(&server, &request);
    assert_eq!(client.response().text(), "body");
    assert_eq!(client.response().text(), "");
}

#[test]
fn name_and_port_are_the_servers_c5_c7() {
    let server = env();
    let port = server.address().port().to_string();
    for (request, name) in [
        ("GET /cgi-bin/env HTTP/1.1\nHost: x.example:99", "x.example"),
        ("GET /cgi-bin/env HTTP/1.1\nHost: [::1]:99", "[::1]"),
        ("GET /cgi-bin/env HTTP/1.0", "127.0.0.1"),
    ] {
        let report = report(&server, request);
        assert_eq!(report.text("SERVER_NAME").as_deref(), Some(name));
        assert_eq!(report.text("SERVER_PORT"), Some(port.clone()));
    }
}

#[test]
fn every_field_of_the_request_is_passed_and_duplicates_are_joined_c27_c29() {
    let report = report(
        &env(),
        "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nX-Some-Thing: a\nDNT: 1\nAccept: b\nX-Some-Thing: c\nIf-None-Match: \"d\"",
    );
    for (name, value) in [
        ("HTTP_X_SOME_THING", "a, c"),
        ("HTTP_DNT", "1"),
        ("HTTP_ACCEPT", "b"),
        ("HTTP_IF_NONE_MATCH", "\\\"d\\\""),
    ] {
        assert_eq!(report.text(name).as_deref(), Some(value), "{name}");
    }
}

#[test]
fn cookies_are_joined_by_semicolons_c29() {
    let report = report(
        &env(),
        "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nCookie: a=1\nCookie: b=2",
    );
    assert_eq!(report.text("HTTP_COOKIE").as_deref(), Some("a=1; b=2"));
}

#[test]
fn a_proxy_field_sets_no_proxy_c30() {
    let report = report(
        &env(),
        "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nProxy: http://evil.example/",
    );
    assert_eq!(report.text("HTTP_PROXY"), None);
}

#[test]
fn other_spellings_of_a_field_spoof_nothing_c28() {
    let report = report(
        &env(),
        "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nX_Forwarded_For: 1\nX.Forwarded.For: 2\nX~Forwarded~For: 3",
    );
    let seen = report.environment.iter().find(|entry| {
        entry
            .to_ascii_uppercase()
            .windows(9)
            .any(|window| window == b"FORWARDED")
    });
    assert!(seen.is_none(), "{seen:?}");
}

#[test]
fn unchecked_credentials_make_no_user_c16() {
    let report = report(
        &env(),
        "GET /cgi-bin/env HTTP/1.1\nHost: {host}\nAuthorization: Basic cm9vdDpyb290",
    );
    assert_eq!(report.text("REMOTE_USER"), None);
    assert_eq!(report.text("AUTH_TYPE"), None);
}

#[test]
fn the_servers_environment_does_not_leak_c37() {
    let server = Server::new()
        .fixture("env")
        .env("A_SECRET", "s")
        .env("PATH_INFO", "s")
        .env("REMOTE_USER", "s")
        .env("HTTP_COOKIE", "s")
        .start();
    let report = server.report("/cgi-bin/env");
    for name in ["A_SECRET", "PATH_INFO", "REMOTE_USER", "HTTP_COOKIE"] {
        assert_eq!(report.text(name), None, "{name}");
    }
}

#[test]
fn a_query_is_no_argument_c58() {
    let server = env();
    for query in ["", "?", "?-s", "?a+b", "?-d+allow_url_include%3Don"] {
        let report = report(
            &server,
            &format!("GET /cgi-bin/env{query} HTTP/1.1\nHost: {{host}}"),
        );
        assert_eq!(report.argv.len(), 1, "{query}");
    }
}

#[test]
fn the_working_directory_is_the_scripts_c126() {
    let server = env();
    let folder = fs::canonicalize(server.root().join("cgi-bin")).unwrap();
    let cwd = server.report("/cgi-bin/env").fact("cwd");
    assert_eq!(cwd, Some(folder.display().to_string()));
}

#[test]
fn a_script_in_a_subdirectory_runs_c49() {
    let server = Server::new().fixture("sub/x").start();
    assert_eq!(server.get("/cgi-bin/sub/x").text(), "ran /cgi-bin/sub/x\n");
}

#[test]
fn an_escaped_nul_or_question_mark_cuts_nothing_c40_c41() {
    let server = env();
    for (target, status) in [("env%00.html", 400), ("env%3fa=1", 404)] {
        let response = ask(
            &server,
            &format!("GET /cgi-bin/{target} HTTP/1.1\nHost: {{host}}"),
        );
        assert_eq!(response.status, status, "{response}");
    }
}

#[test]
fn a_slash_after_a_script_is_its_path_c54() {
    let server = Server::new()
        .fixture("env")
        .prints("cgi-bin/index.cgi", "Content-Type: text/plain\n\nindex")
        .start();
    let report = server.report("/cgi-bin/env/");
    assert_eq!(report.text("PATH_INFO").as_deref(), Some("/"));
}

#[test]
fn bytes_that_are_no_text_arrive_as_they_are_c47() {
    let report = report(&env(), "GET /cgi-bin/env/%ff%fe%e9 HTTP/1.1\nHost: {host}");
    assert_eq!(report.var("PATH_INFO"), Some(&b"/\xff\xfe\xe9"[..]));
}

#[test]
fn a_path_above_the_root_is_refused_c43() {
    let server = env();
    for target in [
        "/../cgi-bin/env",
        "/cgi-bin/../../env",
        "/%2e%2e/cgi-bin/env",
    ] {
        let response = ask(&server, &format!("GET {target} HTTP/1.1\nHost: {{host}}"));
        assert_eq!(response.status, 400, "{target}: {response}");
    }
}

#[test]
fn text_without_a_header_is_not_sent_c82() {
    for output in ["just text\n", "", "\nContent-Type: text/plain\n\nx"] {
        assert_eq!(printing(output).get("/cgi-bin/x").status, 500, "{output:?}");
    }
}

#[test]
fn a_bad_line_a_cr_or_a_nul_is_refused_c77_c80() {
    for line in [
        "no field",
        "X-A: a\rX-B: b",
        "X-A: a\0b",
        "X-A : b",
        " X-A: b",
    ] {
        let server = printing(format!("Content-Type: text/plain\n{line}\n\nbody"));
        let response = server.get("/cgi-bin/x");
        assert_eq!(response.status, 500, "{line:?}: {response}");
        assert_eq!(response.header("X-B"), None);
    }
}

#[test]
fn a_type_is_not_guessed_c83() {
    let server = Server::new()
        .prints("cgi-bin/x.html", "X-A: b\n\n<p>body")
        .start();
    let response = server.get("/cgi-bin/x.html");
    assert_eq!(response.status, 200, "{response}");
    assert_eq!(response.header("Content-Type"), None);
}

#[test]
fn a_status_is_taken_if_it_is_one_c87_to_c89() {
    for (status, code, reason) in [
        ("204", 204, "No Content"),
        ("404 Own Words", 404, "Own Words"),
        ("600", 500, "Internal Server Error"),
        ("1000", 500, "Internal Server Error"),
        ("abc", 500, "Internal Server Error"),
    ] {
        let server = printing(format!("Content-Type: text/plain\nStatus: {status}\n\n"));
        let response = server.get("/cgi-bin/x");
        assert_eq!((response.status, &*response.reason), (code, reason));
        assert_eq!(response.header("Status"), None);
    }
}

#[test]
fn a_local_redirect_is_followed_here_c93() {
    let server = Server::new()
        .prints("cgi-bin/x", "Location: /page\n\n")
        .file("page", "page\n")
        .start();
    let response = server.get("/cgi-bin/x");
    assert_eq!((response.status, &*response.text()), (200, "page\n"));
    let mut client = open(
        &server,
        "HEAD /cgi-bin/x HTTP/1.1\nHost: {host}\nConnection: close",
    );
    assert_eq!(client.response_to("HEAD").status, 200);
    assert!(client.is_closed(), "HEAD has a body");
}

#[test]
fn early_hints_are_an_interim_response_c90() {
    let server = printing("Status: 103\nLink: </a>\n\nContent-Type: text/plain\n\nbody");
    let response = server.get("/cgi-bin/x");
    assert_eq!(response.interim.len(), 1);
    assert_eq!((response.status, &*response.text()), (200, "body"));
}

#[test]
fn an_answer_to_head_has_no_body_c112() {
    let server = printing("Content-Type: text/plain\n\nbody");
    let mut client = open(
        &server,
        "HEAD /cgi-bin/x HTTP/1.1\nHost: {host}\nConnection: close",
    );
    assert_eq!(client.response_to("HEAD").status, 200);
    assert!(client.is_closed());
}

#[test]
fn a_connection_goes_on_with_chunks_c108() {
    let server = printing("Content-Type: text/plain\n\nbody");
    let mut client = server.connect();
    for _ in 0..3 {
        client.send(server.wire(GET.as_bytes()));
        let response = client.response();
        assert_eq!(
            response.header("Transfer-Encoding").as_deref(),
            Some("chunked")
        );
        assert_eq!(response.text(), "body");
    }
}

#[test]
fn a_chunked_body_is_not_chunked_again_c102() {
    let server =
        printing("Content-Type: text/plain\nTransfer-Encoding: chunked\n\n4\r\nbody\r\n0\r\n\r\n");
    assert_eq!(server.get("/cgi-bin/x").text(), "body");
}

#[test]
fn a_short_body_is_not_hidden_c110() {
    let response =
        printing("Content-Type: text/plain\nContent-Length: 9\n\nbody").get("/cgi-bin/x");
    assert_eq!(response.header("Content-Length").as_deref(), Some("9"));
    assert!(!response.complete);
}

#[test]
fn a_crash_in_mid_body_is_visible_c122() {
    let server = Server::new().fixture("crashmid").start();
    for version in ["HTTP/1.1\nHost: {host}", "HTTP/1.0"] {
        let response = ask(&server, &format!("GET /cgi-bin/crashmid {version}"));
        assert!(!response.complete, "{version}");
    }
}

#[test]
fn hop_by_hop_fields_are_not_forwarded_c101() {
    let server = printing(
        "Content-Type: text/plain\nConnection: X-Named, keep-alive\nKeep-Alive: timeout=5\nUpgrade: h2c\nTE: trailers\nTrailer: X\nX-Named: a\n\nbody",
    );
    let mut client = open(&server, GET);
    let response = client.response();
    for name in [
        "Connection",
        "Keep-Alive",
        "Upgrade",
        "TE",
        "Trailer",
        "X-Named",
    ] {
        assert_eq!(response.header(name), None, "{name}");
    }
}

#[test]
fn small_writes_are_not_held_back_c115() {
    let server = Server::new()
        .script(
            "cgi-bin/x",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\na'\nwhile [ ! -e ../go ]; do sleep 0.05; done\n",
        )
        .start();
    let mut client = open(&server, "GET /cgi-bin/x HTTP/1.0");
    client.head().expect("it answers");
    assert_eq!(client.take(1).0, b"a");
    fs::write(server.root().join("go"), "").unwrap();
}

#[test]
fn a_full_status_line_is_understood_or_left_alone_c91_c116() {
    let output = "HTTP/1.1 202 Fine\r\nContent-Type: text/plain\r\n\r\nbody";
    let server = Server::new()
        .prints("cgi-bin/x", output)
        .prints("cgi-bin/nph-x", output)
        .start();
    let response = server.get("/cgi-bin/x");
    assert_eq!((response.status, &*response.reason), (202, "Fine"));
    assert_eq!(response.text(), "body");
    let mut client = open(&server, "GET /cgi-bin/nph-x HTTP/1.1\nHost: {host}");
    assert_eq!(client.rest(), output.as_bytes());
}

#[test]
fn any_method_reaches_a_script_as_it_is_spelled_c8() {
    let server = env();
    for method in [
        "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "get", "X-own",
    ] {
        let report = report(
            &server,
            &format!("{method} /cgi-bin/env HTTP/1.1\nHost: {{host}}"),
        );
        assert_eq!(report.text("REQUEST_METHOD").as_deref(), Some(method));
    }
}

#[test]
fn standard_output_can_be_opened_by_name_c64() {
    let server = Server::new()
        .script(
            "cgi-bin/x",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n' > /dev/stdout\ncat /dev/stdin > /dev/stdout\n",
        )
        .start();
    let response = server.request("POST", "/cgi-bin/x", &[], b"body");
    assert_eq!(response.text(), "body");
}

#[test]
fn no_descriptor_leaks_c128() {
    let server = Server::new().fixture("env").fixture("trapterm").start();
    let mut other = open(&server, "GET /cgi-bin/trapterm HTTP/1.1\nHost: {host}");
    other.head().expect("it answers");
    assert_eq!(server.report("/cgi-bin/env").descriptors(), [0, 1, 2]);
}

#[test]
fn no_signal_is_ignored_c129() {
    let bits = env().report("/cgi-bin/env").fact("SigIgn").unwrap();
    assert!(bits.bytes().all(|digit| digit == b'0'), "{bits}");
}

#[test]
fn a_script_leads_a_process_group_c127() {
    let report = env().report("/cgi-bin/env");
    assert_eq!(report.fact("group"), report.fact("pid"));
}

#[test]
fn a_silent_script_ends_when_its_client_leaves_c132() {
    let server = Server::new().fixture("hang").start();
    let client = open(&server, "GET /cgi-bin/hang HTTP/1.1\nHost: {host}");
    assert!(eventually(|| !server.scripts().is_empty()));
    let script = server.scripts()[0].pid;
    client.reset();
    assert!(eventually(|| !Process::runs(script)), "it runs on");
}

#[test]
fn a_header_that_never_comes_is_a_timeout_c131() {
    let server = Server::new()
        .fixture("halfhdr")
        .args(["--cgi-timeout", "0.3"])
        .start();
    assert_eq!(server.get("/cgi-bin/halfhdr").status, 504);
}

#[test]
fn stuck_scripts_do_not_block_other_requests_c138() {
    let setup = Server::new().fixture("hang").file("page", "page\n");
    let server = setup.args(["--cgi-jobs", "1", "--cgi-queue", "0"]).start();
    let _stuck = open(&server, "GET /cgi-bin/hang HTTP/1.1\nHost: {host}");
    assert!(eventually(|| !server.scripts().is_empty()));
    let busy = server.get("/cgi-bin/hang");
    assert_eq!(busy.status, 503, "{busy}");
    assert!(busy.header("Retry-After").is_some());
    assert_eq!(server.get("/page").text(), "page\n");
}

#[test]
fn a_long_header_line_passes_c81() {
    let value = "v".repeat(32_000);
    let server = printing(format!("Content-Type: text/plain\nX-Long: {value}\n\nbody"));
    assert_eq!(server.get("/cgi-bin/x").header("X-Long"), Some(value));
}

#[test]
fn a_script_that_can_not_start_is_explained_c140() {
    let server = Server::new()
        .fixture("nointerp")
        .fixture("noshebang")
        .fixture("nonexec")
        .start();
    for (script, status, words) in [
        ("nointerp", 500, "interpreter `/no/such/interpreter`"),
        ("noshebang", 500, "no `#!` line"),
        ("nonexec", 403, "not executable"),
    ] {
        assert_eq!(server.get(format!("/cgi-bin/{script}")).status, status);
        let line = server.log_line(&format!("cgi 'cgi-bin/{script}': "));
        assert!(line.contains(words), "{line}");
    }
}

#[test]
fn date_and_server_come_once_c103() {
    let server = printing(
        "Content-Type: text/plain\nDate: Mon, 01 Jan 2024 00:00:00 GMT\nServer: own/1\n\nbody",
    );
    let response = server.get("/cgi-bin/x");
    // `header` fails the test where a field comes twice.
    assert_eq!(response.header("Server").as_deref(), Some("own/1"));
    assert!(response.header("Date").is_some());
}

#[test]
fn a_file_to_send_is_neither_obeyed_nor_leaked_c106() {
    for name in ["X-Sendfile", "X-LIGHTTPD-send-file", "X-Accel-Redirect"] {
        let server = printing(format!(
            "Content-Type: text/plain\n{name}: /etc/passwd\n\nown"
        ));
        let response = server.get("/cgi-bin/x");
        assert_eq!(response.header(name), None);
        assert_eq!(response.text(), "own");
    }
}
