//! What a path may reach: nothing outside the folder, nothing hidden, nothing
//! that is no file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{Mode, OFlags, open};

use crate::support::{Rows, Server, Setup, curl, eventually, needs, skip};

/// What must never be read.
const SECRET: &str = "the secret outside";

/// A root beside a file and a folder with a secret.
fn beside_a_secret() -> (Setup, PathBuf) {
    let setup = Server::new().file("file", "inside");
    let outside = setup.root().parent().expect("it is below").join("outside");
    fs::create_dir(&outside).expect("nothing is there");
    fs::write(outside.join("secret"), SECRET).expect("it is the test's own");
    (setup, outside)
}

#[test]
fn no_spelling_of_a_path_leads_out_of_the_folder() {
    let (setup, outside) = beside_a_secret();
    let server = setup.file("folder/file", "inside").start();
    let whole = format!("{}/secret", outside.display());
    let mut rows = Rows::new();
    for target in [
        "/../outside/secret",
        "/folder/../../outside/secret",
        "/./.././outside/secret",
        "/%2e%2e/outside/secret",
        "/%2E%2E/outside/secret",
        "/.%2e/outside/secret",
        "/%2e./outside/secret",
        "/..%2foutside%2fsecret",
        "/..%2Foutside/secret",
        "/folder%2f..%2f..%2foutside%2fsecret",
        "/%252e%252e/outside/secret",
        "/%252e%252e%252foutside%252fsecret",
        "/..%255coutside%255csecret",
        "/..\\outside\\secret",
        "/..%5coutside%5csecret",
        "/%5c..%5coutside%5csecret",
        "/%c0%ae%c0%ae/outside/secret",
        "/%e0%80%ae%e0%80%ae/outside/secret",
        "/%uff0e%uff0e/outside/secret",
        "/.../outside/secret",
        "/..;/outside/secret",
        "/..%00/outside/secret",
        "/%00/../../outside/secret",
        "/file%00/../../outside/secret",
        "//../outside/secret",
        "/folder//../../outside/secret",
        "/folder/..%2f../outside/secret",
        "http://{host}/../outside/secret",
        "http://{host}/%2e%2e/outside/secret",
        &format!("/{whole}"),
        &format!("/%2f{whole}"),
        "/~root/secret",
        "/file/../../outside/secret",
    ] {
        let target = target.replace("{host}", &server.host());
        let response = server.get(&target);
        let holds = response.status >= 400 && !response.text().contains(SECRET);
        rows.check(&target, holds, || response.to_string());
    }
    // A request-target that is no path.
    for target in ["../outside/secret", "outside", "file:///etc/passwd", "\\"] {
        let response = server.get(target);
        rows.check(target, response.status == 400, || response.to_string());
    }
    rows.done();
    // Dot segments within are harmless, and a client may leave them in.
    assert_eq!(server.get("/folder/../file").text(), "inside");
    assert_eq!(server.get("/folder/%2e%2e/file").text(), "inside");
    if needs("curl") {
        let url = server.url("/folder/../../outside/secret");
        let output = curl(&["--path-as-is", &url]);
        assert!(!String::from_utf8_lossy(&output.stdout).contains(SECRET));
    }
}

#[test]
fn a_path_is_decoded_once() {
    let server = Server::new()
        .file("%41", "percent")
        .file("A", "letter")
        .file("a+b c", "plus and space")
        .file("q?#", "question")
        .start();
    let mut rows = Rows::new();
    for (target, expected) in [
        ("/%41", "letter"),
        ("/%2541", "percent"),
        ("/a+b%20c", "plus and space"),
        ("/q%3f%23", "question"),
        ("/q%3F%23?query", "question"),
    ] {
        let text = server.get(target).text();
        rows.check(target, text == expected, || text);
    }
    for target in ["/%", "/%4", "/%4x", "/%00", "/A%00", "/a%2Fb"] {
        let status = server.get(target).status;
        rows.check(target, matches!(status, 400 | 404), || status.to_string());
    }
    rows.done();
}

/// Links of every kind beside a secret.
fn linked() -> (Setup, PathBuf) {
    let (setup, outside) = beside_a_secret();
    let file = setup.root().join("file");
    let folder = setup.root().join("folder");
    let setup = setup
        .file("folder/inner", "inner")
        .link("relative", "folder/inner")
        .link("absolute", &file)
        .link("folder/up", "../file")
        .link("to-folder", &folder)
        .link("chain", "relative")
        .link("out", outside.join("secret"))
        .link("out-relative", "../outside/secret")
        .link("out-folder", &outside)
        .link("out-chain", "out")
        .link("broken", "nothing")
        .link("loop", "loop")
        .link("zero", "/dev/zero");
    (setup, outside)
}

#[test]
fn links_within_the_folder_are_followed_and_links_out_of_it_are_not() {
    let (setup, _) = linked();
    let server = setup.start();
    let mut rows = Rows::new();
    for (target, expected) in [
        ("/relative", Ok("inner")),
        ("/absolute", Ok("inside")),
        ("/folder/up", Ok("inside")),
        ("/to-folder/inner", Ok("inner")),
        ("/to-folder/up", Ok("inside")),
        ("/chain", Ok("inner")),
        ("/out", Err(403)),
        ("/out-relative", Err(403)),
        ("/out-folder/secret", Err(403)),
        ("/out-folder/", Err(403)),
        ("/out-folder", Err(403)),
        ("/out-chain", Err(403)),
        ("/zero", Err(403)),
        ("/broken", Err(404)),
    ] {
        let response = server.get(target);
        let holds = match expected {
            Ok(text) => response.status == 200 && response.text() == text,
            Err(status) => response.status == status && !response.text().contains(SECRET),
        };
        rows.check(target, holds, || response.to_string());
    }
    rows.done();
    let looped = server.get("/loop");
    assert!(matches!(looped.status, 403 | 404), "{looped}");
    // Whoever runs the server hears of it, and how to allow it.
    server.wait_for_log("--follow-links");
}

#[test]
fn follow_links_lets_links_lead_out_and_paths_not() {
    let (setup, _) = linked();
    let server = setup.arg("--follow-links").start();
    for target in [
        "/out",
        "/out-relative",
        "/out-folder/secret",
        "/out-chain",
        "/out-folder/../out",
    ] {
        assert_eq!(server.get(target).text(), SECRET, "{target}");
    }
    assert!(server.get("/out-folder/").text().contains("./secret"));
    for target in ["/../outside/secret", "/out-folder/..%2foutside/secret"] {
        let response = server.get(target);
        assert!(response.status >= 400, "{target}: {response}");
        assert!(!response.text().contains(SECRET), "{target}");
    }
    // What a link names is still no file.
    assert_eq!(server.get("/zero").status, 403);
}

#[test]
fn names_that_start_with_a_dot_are_there_only_with_hidden() {
    let files = [".env", ".git/config", "folder/.hidden/inner", ".folder/x"];
    let setup = || {
        files
            .iter()
            .fold(Server::new(), |setup, name| setup.file(name, "hidden"))
            .file(".well-known/security.txt", "known")
            .file(".well-known/.x", "hidden")
    };
    let server = setup().start();
    for name in files.iter().chain(&[".well-known/.x"]) {
        for target in [format!("/{name}"), format!("/%2e{}", &name[1..])] {
            assert_eq!(server.get(&target).status, 404, "{target}");
        }
    }
    assert_eq!(server.get("/.well-known/security.txt").text(), "known");
    let listing = server.get("/?format=json").text();
    assert!(!listing.contains(".env") && !listing.contains(".git"));
    assert!(listing.contains(".well-known"), "{listing}");

    let server = setup().arg("--hidden").start();
    for name in files {
        assert_eq!(server.get(format!("/{name}")).text(), "hidden", "{name}");
    }
    assert!(server.get("/?format=json").text().contains(".env"));
}

#[test]
fn a_fifo_a_socket_or_a_device_is_never_opened() {
    let setup = Server::new()
        .fifo("pipe")
        .fifo("folder/index.html")
        .file("folder/file", "")
        .link("to-pipe", "pipe")
        .link("to-null", "/dev/null");
    let socket = UnixListener::bind(setup.root().join("socket")).expect("nothing is there");
    socket.set_nonblocking(true).expect("it is a socket");
    let server = setup.arg("--follow-links").start();

    // Opening a FIFO to write waits until somebody opens it to read. So these
    // two wait for ever, unless the server opens what it must not.
    let opened = Arc::new(AtomicBool::new(false));
    let pipes = ["pipe", "folder/index.html"].map(|name| server.root().join(name));
    let writers = pipes.clone().map(|path| {
        let opened = Arc::clone(&opened);
        thread::spawn(move || {
            let written = fs::File::options().write(true).open(path);
            opened.store(true, Ordering::SeqCst);
            written.is_ok()
        })
    });
    for _ in 0..5 {
        for target in ["/pipe", "/to-pipe", "/to-null", "/socket"] {
            assert_eq!(server.get(target).status, 403, "{target}");
        }
        for target in ["/folder/index.html", "/pipe?archive=zip"] {
            assert_eq!(server.get(target).status, 403, "{target}");
        }
        // In the place of an index it is as if it were not there.
        for target in ["/", "/folder/", "/?format=json", "/?archive=tar.gz"] {
            let response = server.get(target);
            assert!(response.status == 200 && response.complete, "{target}");
        }
        let listing = server.get("/?format=json").text();
        for name in ["pipe", "socket", "to-null"] {
            assert!(!listing.contains(name), "{name} in {listing}");
        }
    }
    assert!(!opened.load(Ordering::SeqCst), "a FIFO was opened");
    assert!(socket.accept().is_err(), "the socket was connected to");

    // Let the writers go; that they come loose shows that they could have.
    let readers = pipes.map(|path| {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        open(&path, flags, Mode::empty()).expect("it is the test's own")
    });
    for writer in writers {
        assert!(writer.join().expect("it does not panic"));
    }
    drop(readers);
}

#[test]
fn what_the_server_may_not_read_is_403() {
    let setup = Server::new()
        .file("file", "content")
        .file("closed", SECRET)
        .file("folder/index.html", SECRET)
        .file("folder/other", "")
        .file("shut/file", SECRET)
        .file("unlisted/file", "content")
        .mode("closed", 0o000)
        .mode("folder/index.html", 0o000)
        .mode("shut", 0o000)
        .mode("unlisted", 0o711);
    let root = rustix::process::geteuid().is_root();
    // The folder that was made for the test is closed to others.
    let above = setup.root().parent().expect("it is below").to_owned();
    open_to_all(&above);
    let setup = if root {
        setup.args(["--user", "nobody"])
    } else {
        setup
    };
    let server = setup.start();
    let mut rows = Rows::new();
    for (target, expected) in [
        ("/file", 200),
        ("/closed", 403),
        // The index is meant: no listing in its place.
        ("/folder/", 403),
        ("/folder/index.html", 403),
        ("/folder/other", 200),
        ("/shut/", 403),
        ("/shut/file", 403),
        ("/unlisted/file", 200),
        // For its owner, who may look into it, another row below.
        ("/unlisted/", if root { 403 } else { 200 }),
    ] {
        let response = server.get(target);
        let holds = response.status == expected && !response.text().contains(SECRET);
        rows.check(target, holds, || response.to_string());
    }
    rows.done();
    server.wait_for_log("chmod o+r");
    // The test's own folder must be removable for who is no root.
    fs::set_permissions(server.root().join("shut"), mode(0o755)).expect("it is ours");
}

fn open_to_all(folder: &Path) {
    fs::set_permissions(folder, mode(0o755)).expect("it is the test's own");
}

fn mode(bits: u32) -> fs::Permissions {
    fs::Permissions::from_mode(bits)
}

#[test]
fn a_link_that_is_swapped_while_it_is_asked_for_never_leads_out() {
    let (setup, outside) = beside_a_secret();
    let server = setup.link("swapped", "file").start();
    let path = server.root().join("swapped");
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = {
        let (stop, path) = (Arc::clone(&stop), path.clone());
        thread::spawn(move || {
            let next = path.with_extension("next");
            let targets = [PathBuf::from("file"), outside.join("secret")];
            for target in targets.iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                std::os::unix::fs::symlink(target, &next).expect("nothing is there");
                fs::rename(&next, &path).expect("it is the test's own");
            }
        })
    };
    let mut seen = [false; 2];
    let both = eventually(|| {
        for _ in 0..20 {
            let response = server.get("/swapped");
            match response.status {
                200 => assert_eq!(response.text(), "inside"),
                _ => assert_eq!(response.status, 403, "{response}"),
            }
            seen[usize::from(response.status == 200)] = true;
        }
        seen == [true; 2]
    });
    stop.store(true, Ordering::Relaxed);
    swapper.join().expect("the swaps go well");
    if !both {
        skip("the swaps never met the requests");
    }
}
