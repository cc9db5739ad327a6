//! Bodies far larger than the memory the server may take: files, output of
//! scripts, request content.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, Output, Stdio};

use crate::support::{Server, needs};

const GIB: u64 = 1 << 30;
/// What the process may have resident at its worst.
const MOST: usize = 64 << 20;

/// curl without a limit of its own; what a test waits for here is work.
fn curl(args: &[&str], stdin: Stdio) -> Child {
    Command::new("curl")
        .args(["--silent", "--show-error", "--no-buffer"])
        .args(args)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("curl is there: the test asked `needs`")
}

/// Reads all of the body and keeps nothing. curl fails if the framing says
/// that something is missing.
fn count(mut client: Child) -> u64 {
    let mut body = client.stdout.take().expect("it is a pipe");
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match body.read(&mut buffer).expect("a pipe can be read") {
            0 => break,
            count => bytes += count as u64,
        }
    }
    let output = client.wait_with_output().expect("it is our child");
    assert_success(&output);
    bytes
}

fn assert_success(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "curl: {} {said}", output.status);
}

fn assert_small(server: &Server) {
    let resident = server.memory("VmHWM");
    assert!(resident < MOST, "{} MiB resident", resident >> 20);
}

#[test]
fn a_file_of_three_gib_is_sent_from_little_memory() {
    if !needs("curl") {
        return;
    }
    let server = Server::new().file("large", "").start();
    let file = File::options()
        .write(true)
        .open(server.root().join("large"));
    // Sparse: takes no room on the disk.
    file.and_then(|file| file.set_len(3 * GIB))
        .expect("the file system has large files");
    assert_eq!(
        count(curl(&[&server.url("/large")], Stdio::null())),
        3 * GIB
    );
    assert_small(&server);
}

#[test]
fn a_gib_from_a_script_is_sent_from_little_memory() {
    if !needs("curl") {
        return;
    }
    let server = Server::new()
        .script(
            "cgi-bin/gib",
            "#!/bin/sh\nprintf 'Content-Type: application/octet-stream\\n\\n'\nexec head -c 1G /dev/zero\n",
        )
        .start();
    assert_eq!(
        count(curl(&[&server.url("/cgi-bin/gib")], Stdio::null())),
        GIB
    );
    assert_small(&server);
}

/// Posts a GiB; returns what the script says of it.
fn post(fields: &[&str], body: &str) -> String {
    let server = Server::new()
        .script(
            "cgi-bin/counts",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n%s ' \"$CONTENT_LENGTH\"\nwc -c\n",
        )
        .file("large", "")
        .start();
    let file = server.root().join("large");
    File::options()
        .write(true)
        .open(&file)
        .and_then(|file| file.set_len(GIB))
        .expect("the file system has large files");
    let stdin = File::open(&file).expect("it was just made");
    let url = server.url("/cgi-bin/counts");
    let file = file.display().to_string();
    let upload = body.replace("FILE", &file);
    let mut args = vec!["--request", "POST", "--upload-file", &upload];
    args.extend(fields);
    args.push(&url);
    let output = curl(&args, stdin.into())
        .wait_with_output()
        .expect("it is our child");
    assert_success(&output);
    assert_small(&server);
    assert!(server.temporary_files().is_empty());
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn a_gib_of_known_length_reaches_a_script_through_little_memory() {
    if !needs("curl") {
        return;
    }
    assert_eq!(post(&[], "FILE"), format!("{GIB} {GIB}"));
}

#[test]
fn a_gib_in_chunks_reaches_a_script_through_little_memory() {
    if !needs("curl") {
        return;
    }
    // From a stream curl can't know the length.
    let fields = ["--header", "Transfer-Encoding: chunked"];
    assert_eq!(post(&fields, "-"), format!("{GIB} {GIB}"));
}
