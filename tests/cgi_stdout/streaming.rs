//! Output as it is written, NPH scripts, compression: C115 to C118.

use std::fs;

use super::printing;
use crate::support::{Process, Rows, Server, eventually};

/// Prints a line, then the next only when the file of that number is there.
const STEPS: &str = "#!/bin/sh\nprintf 'Content-Type: text/event-stream\\n\\n'\n\
     for n in 1 2 3; do\n    echo \"data: $n\"\n\
     while [ ! -e \"../$n\" ]; do sleep 0.05; done\ndone\n";

#[test]
fn each_line_arrives_before_the_next_is_written_c115() {
    let server = Server::new().script("cgi-bin/steps", STEPS).start();
    for request in [
        "GET /cgi-bin/steps HTTP/1.1\nHost: {host}\nConnection: close",
        "GET /cgi-bin/steps HTTP/1.0",
    ] {
        let mut client = server.connect();
        client.send(server.wire(request.as_bytes()));
        client.head().expect("it answers");
        for n in 1..=3 {
            let line = format!("data: {n}");
            let mut seen = Vec::new();
            while !String::from_utf8_lossy(&seen).contains(&line) {
                let some = client.some();
                assert!(!some.is_empty(), "the end instead of `{line}`");
                seen.extend(some);
            }
            // The script waits for this, and this for the line.
            fs::write(server.root().join(n.to_string()), "").unwrap();
        }
        client.rest();
        for n in 1..=3 {
            fs::remove_file(server.root().join(n.to_string())).unwrap();
        }
    }
}

#[test]
fn a_fixed_length_is_no_reason_to_hold_back_c115() {
    let server = Server::new()
        .script(
            "cgi-bin/byte",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\nContent-Length: 2\\n\\na'\n\
             while [ ! -e ../go ]; do sleep 0.05; done\nprintf b\n",
        )
        .start();
    let mut client = server.connect();
    client.send(server.wire(b"GET /cgi-bin/byte HTTP/1.1\nHost: {host}"));
    client.head().expect("it answers");
    assert_eq!(client.take(1), (b"a".to_vec(), true));
    fs::write(server.root().join("go"), "").unwrap();
    assert_eq!(client.take(1), (b"b".to_vec(), true));
}

#[test]
fn a_client_that_reads_nothing_stops_the_script_and_fills_no_memory_c115() {
    const BYTES: usize = 64 << 20;
    let server = Server::new()
        .script(
            "cgi-bin/flood",
            format!("#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\nexec head -c {BYTES} /dev/zero\n"),
        )
        .start();
    let mut client = server.connect();
    client.send(server.wire(b"GET /cgi-bin/flood HTTP/1.0"));
    assert!(eventually(|| !server.children().is_empty()));
    let script = server.children()[0].pid;
    let written = || fs::read_to_string(format!("/proc/{script}/io")).unwrap_or_default();
    // Stands still for a while, in a write: nobody takes its output.
    let mut still = 0;
    let mut before = String::new();
    let stopped = eventually(|| {
        let now = written();
        still = if now == before { still + 1 } else { 0 };
        before = now;
        still > 50
    });
    assert!(stopped, "it writes on and on");
    assert!(Process::runs(script), "all of it went somewhere");
    let resident = server.memory("VmHWM");
    assert!(resident < BYTES / 2, "{resident} bytes");
    client.head().expect("it answers");
    let mut received = 0;
    loop {
        match client.some().len() {
            0 => break,
            some => received += some,
        }
    }
    assert_eq!(received, BYTES);
}

#[test]
fn an_nph_script_speaks_to_the_client_itself_c116_c117() {
    let server = Server::new().fixture("nph-x").start();
    let said = "HTTP/1.1 202 Accepted\r\nX-Nph:  as  written\r\nContent-Type: text/plain\r\n\
                Connection: close\r\n\r\nbody\n";
    for request in [
        "GET /cgi-bin/nph-x HTTP/1.1\nHost: {host}",
        "GET /cgi-bin/nph-x HTTP/1.0",
        "HEAD /cgi-bin/nph-x HTTP/1.1\nHost: {host}",
        "POST /cgi-bin/nph-x HTTP/1.1\nHost: {host}\nContent-Length: 3\n\nabc",
    ] {
        let mut client = server.connect();
        client.send(server.wire(request.as_bytes()));
        let received = String::from_utf8_lossy(client.rest()).into_owned();
        assert_eq!(received, said, "{request}");
    }
}

#[test]
fn the_request_side_of_an_nph_script_is_that_of_cgi_c116_c117() {
    let server = Server::new()
        .script(
            "cgi-bin/nph-echo",
            "#!/bin/sh\nprintf 'HTTP/1.0 200 OK\\r\\n\\r\\n%s %s %s ' \"$SERVER_PROTOCOL\" \"$PATH_INFO\" \"$CONTENT_LENGTH\"\ncat\n",
        )
        .start();
    for version in ["1.0", "1.1"] {
        let mut client = server.connect();
        let fields = "Host: {host}\nContent-Length: 5\n\nhello";
        client.send(
            server
                .wire(format!("POST /cgi-bin/nph-echo/a%20b HTTP/{version}\n{fields}").as_bytes()),
        );
        let received = String::from_utf8_lossy(client.rest()).into_owned();
        let expected = format!("HTTP/1.0 200 OK\r\n\r\nHTTP/{version} /a b 5 hello");
        assert_eq!(received, expected);
    }
}

#[test]
fn an_nph_script_is_not_held_back_c116() {
    let server = Server::new()
        .script(
            "cgi-bin/nph-steps",
            "#!/bin/sh\nprintf 'HTTP/1.1 200 OK\\r\\n\\r\\nfirst'\n\
             while [ ! -e ../go ]; do sleep 0.05; done\nprintf second\n",
        )
        .start();
    let mut client = server.connect();
    client.send(server.wire(b"GET /cgi-bin/nph-steps HTTP/1.1\nHost: {host}"));
    client
        .head()
        .expect("the head comes while the script waits");
    assert_eq!(client.take(5).0, b"first");
    fs::write(server.root().join("go"), "").unwrap();
    assert_eq!(client.rest(), b"second");
}

#[test]
fn an_nph_script_without_output_is_a_fault_c116() {
    let server = Server::new().prints("cgi-bin/nph-empty", "").start();
    let response = server.get("/cgi-bin/nph-empty");
    assert_eq!(response.status, 500, "{response}");
    server.log_line("cgi 'cgi-bin/nph-empty': the script printed nothing");
}

#[test]
fn only_the_base_name_makes_an_nph_script_c116() {
    let server = Server::new()
        .prints("cgi-bin/nph-dir/plain", "Content-Type: text/plain\n\nplain")
        .prints("cgi-bin/x-nph-x", "Content-Type: text/plain\n\nplain")
        .start();
    for target in ["/cgi-bin/nph-dir/plain", "/cgi-bin/x-nph-x/nph-x"] {
        let response = server.get(target);
        assert_eq!((response.status, &*response.text()), (200, "plain"));
    }
}

#[test]
fn a_scripts_output_is_not_compressed_c118() {
    let text = "compressible ".repeat(1000);
    let server = printing([
        format!("Content-Type: text/html\n\n{text}").as_bytes(),
        format!("Content-Type: text/event-stream\n\n{text}").as_bytes(),
        format!("Content-Type: text/html\nContent-Encoding: x-own\n\n{text}").as_bytes(),
    ]);
    let mut all = Rows::new();
    for (n, coding) in [None, None, Some("x-own")].into_iter().enumerate() {
        let accepts = [("Accept-Encoding", "gzip, br, zstd, deflate")];
        let response = server.request("GET", format!("/cgi-bin/{n}"), &accepts, b"");
        let holds = response.header("Content-Encoding").as_deref() == coding
            && response.text() == text
            && response.header("Vary").is_none();
        all.check(&format!("C118: {n}"), holds, || response.to_string());
    }
    all.done();
}
