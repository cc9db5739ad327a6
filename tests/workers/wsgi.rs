//! `--wsgi` and `wsgi:` targets. What a single worker does is tested in
//! tests/wsgi; here it is what the server makes of it.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;

use super::{refused, shop, wait_for_workers, with};
use crate::support::{Server, eventually, needs, skip};

#[test]
fn an_application_gets_every_path() {
    if !needs("python3") {
        return;
    }
    let server = shop()
        .file("cgi-bin/x", "")
        .args(["--workers=2", "--threads=2"])
        .start();
    for (method, target, length, expected) in [
        ("GET", "/", 0, " |/ 0 edition 1"),
        ("GET", "/cgi-bin/x", 0, " |/cgi-bin/x 0 edition 1"),
        ("GET", "/shop.py", 0, " |/shop.py 0 edition 1"),
        ("GET", "/caf%C3%A9", 0, " |/caf\u{e9} 0 edition 1"),
        ("POST", "/a/b", 2_000_000, " |/a/b 2000000 edition 1"),
    ] {
        let answer = server.request(method, target, &[], &vec![b'x'; length]);
        assert!(
            answer.text().ends_with(expected),
            "{target}: {}",
            answer.text()
        );
    }
    let chunked = server.request(
        "POST",
        "/c",
        &[("Transfer-Encoding", "chunked")],
        b"5\r\nhello\r\n0\r\n\r\n",
    );
    assert!(
        chunked.text().ends_with("|/c 5 edition 1"),
        "{}",
        chunked.text()
    );
}

#[test]
fn answers_of_every_kind_follow_one_another_on_a_workers_connection() {
    if !needs("python3") {
        return;
    }
    let server = with("results.py")
        .args(["--wsgi=results:app", "--workers=1"])
        .start();
    let mut large = String::new();
    for number in 0..40_000 {
        writeln!(large, "{number:07}").unwrap();
    }
    let rows = [
        ("/list", 200, "a list"),
        ("/large", 200, &large),
        ("/closed", 200, "closed"),
        ("/large-closed", 200, &large),
        ("/newline", 200, "\n"),
        ("/newline-list", 200, "\n"),
        ("/empty", 200, ""),
        ("/stream", 200, "stream"),
        ("/none", 204, ""),
        ("/reset", 205, ""),
        ("/reset-closed", 205, ""),
        ("/same", 304, ""),
    ];
    let check = |method: &str, (path, status, text): (&str, u16, &str)| {
        let answer = server.request(method, path, &[], b"");
        let text = if method == "HEAD" { "" } else { text };
        let is_right = answer.status == status && answer.text() == text;
        assert!(is_right, "{method} {path}: {answer}");
    };
    for first in rows {
        for method in ["GET", "HEAD", "POST"] {
            check(method, first);
            check("GET", ("/list", 200, "a list"));
            check("GET", ("/closed", 200, "closed"));
        }
        for path in ["/elsewhere", "/local"] {
            let answer = server.get(path);
            assert_eq!(answer.status, 302);
            assert!(answer.text().contains("http://example.org/"), "{answer}");
        }
    }
    // Clients that leave in the middle.
    for (path, _, _) in rows {
        let mut client = server.connect();
        client.send(server.wire(format!("GET {path} HTTP/1.1\nHost: {{host}}").as_bytes()));
        drop(client);
        check("GET", ("/large", 200, &large));
    }
    let log = server.log();
    assert!(
        !log.contains("replaced") && !log.contains("more output"),
        "{log}"
    );
}

#[test]
fn several_applications_have_their_own_paths_and_workers() {
    if !needs("python3") {
        return;
    }
    let server = with("shop.py")
        .file("page.html", "a page")
        .args([
            "--route",
            "/one/=wsgi:shop:app",
            "--route",
            "/two=wsgi:shop.py:app",
        ])
        .arg("--workers=1")
        .start();
    wait_for_workers(&server, 2);
    assert!(server.get("/one/x").text().contains(" /one|/x "));
    assert!(server.get("/two/y").text().contains(" /two|/y "));
    assert_eq!(server.get("/page.html").text(), "a page");
}

#[test]
fn an_exception_is_an_error_page_with_the_traceback_for_this_machine_c191() {
    if !needs("python3") {
        return;
    }
    let server = shop().arg("--workers=1").start();
    let answer = server.get("/raises");
    assert_eq!(answer.status, 500);
    let text = answer.text();
    for part in ["ValueError: out of <stock>", "shop.py\", line 12, in app"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(answer.header("X-CGI-Error").is_none());
    // Somebody behind a proxy learns nothing of it.
    let answer = server.request("GET", "/raises", &[("X-Forwarded-For", "9.9.9.9")], b"");
    assert_eq!(answer.text(), "500 Internal Server Error\n");
    server.wait_for_log("(exception)");
}

#[test]
fn a_failed_import_is_told_on_the_terminal_and_in_the_page_and_mended_without_a_restart_c197() {
    if !needs("python3") {
        return;
    }
    let server = Server::new()
        .file("shop.py", "from inside import app\n")
        .file("inside.py", "app = undefined_name\n")
        .args(["--wsgi", "shop:app", "--workers=1"])
        .start();
    let answer = server.get("/");
    assert_eq!(answer.status, 502);
    let log = server.wait_for_log("NameError: name 'undefined_name' is not defined");
    for part in ["inside.py\", line 1", "shop.py\", line 1", "undefined_name"] {
        assert!(answer.text().contains(part), "{}", answer.text());
        assert!(log.contains(part), "{log}");
    }
    fs::write(
        server.root().join("inside.py"),
        "def app(e, s):\n    s('200 OK', [])\n    return [b'mended, as it is']\n",
    )
    .unwrap();
    assert!(eventually(|| server.get("/").text() == "mended, as it is"));
}

#[test]
fn a_changed_file_brings_new_workers_with_reload() {
    if !needs("python3") {
        return;
    }
    let server = shop().args(["--workers=1", "--reload"]).start();
    assert!(server.get("/").text().ends_with("edition 1"));
    let file = server.root().join("shop.py");
    let code = fs::read_to_string(&file).unwrap();
    fs::write(&file, code.replace("EDITION = 1", "EDITION = 222")).unwrap();
    assert!(eventually(|| server
        .get("/")
        .text()
        .ends_with("edition 222")));
    fs::write(&file, "oops(").unwrap();
    server.wait_for_log("the old workers stay");
    fs::write(&file, code.replace("EDITION = 1", "EDITION = 33333")).unwrap();
    assert!(eventually(|| server
        .get("/")
        .text()
        .ends_with("edition 33333")));
    // What is missing is no file of the application, until it is there.
    let missing = "from missing import EDITION\n";
    fs::write(&file, code.replace("EDITION = 1\n", missing)).unwrap();
    server.wait_for_log("No module named 'missing'");
    fs::write(server.root().join("missing.py"), "EDITION = 4444\n").unwrap();
    assert!(eventually(|| server
        .get("/")
        .text()
        .ends_with("edition 4444")));
}

#[test]
fn a_failure_is_told_in_full_once_and_in_a_line_from_then_on_c197() {
    if !needs("python3") {
        return;
    }
    let server = Server::new()
        .file("shop.py", "app = undefined_name\n")
        .args(["--wsgi", "shop:app", "--workers=2"])
        .start();
    let log = server.wait_for_log("the next try is in 1 s");
    assert_eq!(log.matches("Traceback").count(), 1, "{log}");
    let brief = "cannot load it, as before: NameError: name 'undefined_name' is not defined";
    assert!(log.matches(brief).count() >= 2, "{log}");
    // Who asks for it again gets it again.
    server.signal(rustix::process::Signal::HUP);
    assert!(eventually(|| server.log().matches("Traceback").count() == 2));
}

#[test]
fn a_file_is_sent_by_the_server_itself_from_where_it_stands_c185() {
    if !needs("python3") {
        return;
    }
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let server = shop().file("large.bin", &large).arg("--workers=1").start();
    for _ in 0..3 {
        let answer = server.get("/file");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("Content-Length").as_deref(), Some("2999993"));
        assert!(answer.header("X-CGI-File").is_none());
        assert!(answer.complete && answer.body == large[7..]);
    }
    let head = server.request("HEAD", "/file", &[], b"");
    assert!(head.status == 200 && head.body.is_empty());
    let idle = server.fds_at_rest();
    server.get("/file");
    assert!(eventually(|| server.fds() <= idle));
}

#[test]
fn the_interpreter_is_the_neighbouring_environments_the_active_ones_or_the_chosen_one() {
    if !needs("python3") {
        return;
    }
    let application = "import sys\ndef app(e, s):\n    s('200 OK', [])\n    return [sys.argv[0].encode(), b' ', sys.prefix.encode()]\n";
    let setup = || {
        let setup = Server::new()
            .file("who.py", application)
            .file(".venv/pyvenv.cfg", "home = /usr/bin\n")
            .file("other/pyvenv.cfg", "home = /usr/bin\n")
            .folder(".venv/bin")
            .folder("other/bin")
            .args(["--wsgi", "who:app", "--workers=1"]);
        for name in [".venv", "other"] {
            let link = setup.root().join(name).join("bin/python");
            symlink("/usr/bin/python3", link).unwrap();
        }
        setup
    };
    let other = setup();
    let active = other.root().join("other");
    for (server, end) in [
        (setup().start(), "/.venv"),
        (other.env("VIRTUAL_ENV", active).start(), "/other"),
        (setup().arg("--python=other/bin/python").start(), "/other"),
        (setup().arg("--python=/usr/bin/python3").start(), " /usr"),
    ] {
        let text = server.get("/").text();
        assert!(text.ends_with(end), "{text} {end}");
    }
}

#[test]
fn a_flask_and_a_django_application_run() {
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/.venv/bin/python");
    let has = |module: &str| {
        let mut import = std::process::Command::new(python);
        import.args(["-c", &format!("import {module}")]);
        import
            .stderr(std::process::Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    for (module, folder, application, target) in [
        ("flask", "wsgi/flask_hello", "app:create_app()", "/"),
        ("django", "wsgi/django_hello", "hello.wsgi:application", "/"),
    ] {
        if !has(module) {
            skip(&format!("needs {module} in tests/.venv"));
            continue;
        }
        let server = Server::new()
            .tree(folder)
            .args(["--wsgi", application, "--workers=1", "--python", python])
            .start();
        // Django answers for the names in its settings alone.
        let answer = server.request("GET", target, &[("Host", "localhost:8080")], b"");
        assert_eq!(
            answer.status,
            200,
            "{module}: {}\n{}",
            answer.text(),
            server.log()
        );
    }
}

#[test]
fn a_process_that_the_application_forks_never_serves_in_its_workers_place() {
    if !needs("python3") {
        return;
    }
    let server = Server::new()
        .file(
            "forks.py",
            "import os, sys\n\
             def app(environ, start_response):\n\
             \x20   path = environ['PATH_INFO']\n\
             \x20   if path != '/' and os.fork() == 0:\n\
             \x20       if path == '/raises': raise RuntimeError('job failed')\n\
             \x20       if path == '/exits': sys.exit(3)\n\
             \x20   elif path != '/':\n\
             \x20       status = os.waitstatus_to_exitcode(os.wait()[1])\n\
             \x20       path += ' %d' % status\n\
             \x20   start_response('200 OK', [])\n\
             \x20   return [b'%d %s' % (os.getpid(), path.encode())]\n",
        )
        .args(["--wsgi=forks:app", "--workers=1"])
        .start();
    let first = server.get("/").text();
    let (worker, _) = first.split_once(' ').expect("a number first");
    for (path, status) in [("/raises", 1), ("/exits", 3), ("/returns", 0)] {
        for _ in 0..3 {
            assert_eq!(server.get(path).text(), format!("{worker} {path} {status}"));
            let next = server.request("POST", "/", &[], b"").text();
            assert_eq!(next, format!("{worker} /"));
        }
    }
    assert!(server.log().contains("RuntimeError: job failed"));
}

#[test]
fn a_virtual_environment_without_its_python_is_an_error() {
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    let programs = folder.path().join(".venv/bin");
    fs::create_dir_all(&programs).expect("it is the test's own");
    fs::write(folder.path().join(".venv/pyvenv.cfg"), "home = /gone\n").expect("so is this");
    symlink("/gone/python3", programs.join("python")).expect("so is this");
    let folder = folder.path().to_str().expect("plain");
    let output = refused(&["0", folder, "--wsgi=plain:app"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains(".venv/bin/python can't be run"), "{error}");
}

#[test]
fn an_application_that_does_not_get_ready_is_said_so() {
    if !needs("python3") {
        return;
    }
    let server = Server::new()
        .file("sleeps.py", "import time\ntime.sleep(1000)\n")
        .args(["--wsgi=sleeps:app", "--route-timeout=1"])
        .start();
    let answer = server.get("/");
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("still starting"), "{answer}");
}
