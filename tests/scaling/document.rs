//! The commands of docs/scaling.md, as they stand there, on machines with the
//! addresses that it uses.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::thread;

use tempfile::TempDir;

use super::network::{Network, Running, listens};
use crate::support::{curl, eventually, fixtures, needs, skip, tiny_http_cannot};

const ADDRESSES: [&str; 5] = [
    "10.0.0.1",
    "10.0.0.11",
    "10.0.0.12",
    "10.0.0.13",
    "10.0.0.100",
];
/// In the document the hosts' commands are those of the first one.
const FIRST: &str = "10.0.0.11";
const CLIENT: &str = "10.0.0.100";

#[test]
fn php_by_php_fpm() {
    let Some(stage) = Stage::new(&["php-fpm8.2"]) else {
        return;
    };
    let [pool, front] = blocks("### PHP by php-fpm");
    // The pool as Debian has it, with what the document says.
    let file = |own: &str| {
        let fixed = "[global]\nerror_log = /dev/stderr\n[www]\nuser = www-data\ngroup = www-data\n";
        format!("{fixed}{own}\n")
    };
    stage.on_hosts(9000, |folder, address| {
        let path = folder.join(format!("{address}.conf"));
        fs::write(&path, file(&pool.replace(FIRST, address))).expect("the test's own folder");
        format!("php-fpm8.2 --nodaemonize --fpm-config {}", path.display())
    });
    stage.front(&front);
    assert_eq!(stage.get("/who.php"), format!("php {CLIENT}"));
}

#[test]
fn python_by_uwsgi() {
    let Some(stage) = Stage::new(&["uwsgi"]) else {
        return;
    };
    let [hosts, front] = blocks("### Python by uWSGI");
    stage.on_hosts(3031, |_, address| hosts.replace(FIRST, address));
    stage.front(&front);
    assert_eq!(stage.get("/shop/"), format!("shop {CLIENT} http"));
}

#[test]
fn python_by_gunicorn() {
    let Some(stage) = Stage::new(&["gunicorn"]) else {
        return;
    };
    let [hosts, front] = blocks("### Python by gunicorn");
    stage.on_hosts(8000, |_, address| hosts.replace(FIRST, address));
    stage.front(&front);
    // Gunicorn leaves it to the application to read the field.
    assert_eq!(stage.get("/"), "shop 10.0.0.1 http");
}

#[test]
fn scripts_and_applications_by_serve_here() {
    for (line, from, path, answer) in [
        (0, "", "/cgi-bin/who", "script"),
        (1, "/cgi-bin/=", "/", "shop"),
    ] {
        let Some(stage) = Stage::new(&["python3"]) else {
            return;
        };
        let [hosts, front] = blocks("### Scripts and applications");
        let command = hosts.lines().nth(line).expect("one for each").to_owned();
        stage.on_hosts(8000, |_, address| command.replace(FIRST, address));
        stage.front(&front.replace(from, if from.is_empty() { "" } else { "/=" }));
        assert_eq!(stage.get(path), format!("{answer} {CLIENT} http"));
    }
}

#[test]
fn several_behind_nginx() {
    let Some(stage) = Stage::new(&["nginx"]) else {
        return;
    };
    let [hosts, nginx, _] = blocks("## Several behind a balancer");
    stage.on_hosts(8000, |_, address| hosts.replace(FIRST, address));
    let folder = stage.folder.path().display();
    let file = format!(
        "events {{}}\npid {folder}/pid;\nerror_log {folder}/error;\nhttp {{\n{nginx}\n}}\n"
    );
    stage.balance("nginx -g 'daemon off;' -c", &file);
}

#[test]
fn several_behind_haproxy() {
    let Some(stage) = Stage::new(&["haproxy"]) else {
        return;
    };
    let [hosts, _, haproxy] = blocks("## Several behind a balancer");
    stage.on_hosts(8000, |_, address| hosts.replace(FIRST, address));
    stage.balance("haproxy -f", &format!("{haproxy}\n"));
}

struct Stage {
    /// Ended before the network is.
    running: std::sync::Mutex<Vec<Running>>,
    network: Network,
    /// What is in /srv in the document, and the programs under their names.
    folder: TempDir,
}

impl Stage {
    fn new(programs: &[&str]) -> Option<Self> {
        let has_user = Command::new("id").args(["-u", "www-data"]).output();
        if !has_user.is_ok_and(|id| id.status.success()) {
            skip("needs a user www-data");
            return None;
        }
        let there = programs.iter().all(|program| needs(program));
        if !there || !needs("curl") || tiny_http_cannot("listen beyond loopback") {
            return None;
        }
        let network = Network::new(&ADDRESSES)?;
        let folder = tempfile::tempdir().expect("there is a folder for temporary files");
        let stage = Self {
            running: std::sync::Mutex::default(),
            network,
            folder,
        };
        stage.furnish();
        Some(stage)
    }

    fn furnish(&self) {
        let folder = self.folder.path();
        let open = |path: &Path| {
            let mode = PermissionsExt::from_mode(0o755);
            fs::set_permissions(path, mode).expect("the test's own folder");
        };
        open(folder);
        for part in ["srv/site/cgi-bin", "srv/shop", "bin"] {
            fs::create_dir_all(folder.join(part)).expect("the test's own folder");
        }
        let program = env!("CARGO_BIN_EXE_serve-here");
        symlink(program, folder.join("bin/serve-here")).expect("nothing is there");
        let script = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\n\
             printf %s \"script $REMOTE_ADDR $REQUEST_SCHEME\"\n";
        let file = |path: &str, text: &[u8]| {
            let path = folder.join("srv").join(path);
            fs::write(&path, text).expect("the test's own folder");
            open(&path);
        };
        file("site/cgi-bin/who", script.as_bytes());
        file(
            "site/who.php",
            b"<?php echo \"php {$_SERVER['REMOTE_ADDR']}\";",
        );
        let application = fixtures("scaling").join("application.py");
        file("shop/shop.py", &fs::read(application).expect("it is there"));
    }

    /// Starts a command on each host, and waits until it listens on the port.
    fn on_hosts(&self, port: u16, command: impl Fn(&Path, &str) -> String) {
        for (number, address) in ADDRESSES.iter().enumerate().skip(1).take(3) {
            self.start(number, &command(self.folder.path(), address));
            self.expect(&format!("{address}:{port}"));
        }
    }

    fn front(&self, command: &str) {
        self.start(0, command);
        self.expect("10.0.0.1:80");
    }

    /// The same with a balancer, which is started with a file; asks what the hosts
    /// say of the client.
    fn balance(&self, command: &str, file: &str) {
        let path = self.folder.path().join("balancer.conf");
        fs::write(&path, file).expect("the test's own folder");
        self.front(&format!("{command} {}", path.display()));
        // HAProxy may look first whether they are there.
        assert!(eventually(
            || self.get("/cgi-bin/who") == format!("script {CLIENT} http")
        ));
    }

    fn start(&self, number: usize, command: &str) {
        let folder = self.folder.path().display();
        let command = command.replace("/srv/", &format!("{folder}/srv/"));
        let path = std::env::var("PATH").unwrap_or_default();
        let words = ["sh", "-c", &command].map(str::to_owned);
        let path = format!("{folder}/bin:{path}");
        let variables = [
            ("PATH", OsStr::new(&path)),
            ("APP_HOST", OsStr::new("shop")),
        ];
        let running = self.network.host(number).spawn(&words, &variables);
        self.running.lock().expect("nobody panics").push(running);
    }

    fn expect(&self, address: &str) {
        assert!(self.as_client(|| listens(address)), "{address}");
    }

    fn get(&self, path: &str) -> String {
        let url = format!("http://10.0.0.1{path}");
        let output = self.as_client(|| curl(&[&url]));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// On the client's machine. A thread that has gone there stays.
    fn as_client<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                self.network.host(4).enter();
                act()
            });
            there.join().expect("nobody panics")
        })
    }
}

/// The indented blocks below a heading of the document.
fn blocks<const N: usize>(heading: &str) -> [String; N] {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/scaling.md");
    let document = fs::read_to_string(document).expect("it is there");
    let (_, section) = document
        .split_once(heading)
        .expect("there is such a section");
    let (section, _) = section.split_once("\n## ").unwrap_or((section, ""));
    let (section, _) = section.split_once("\n### ").unwrap_or((section, ""));
    let mut blocks: Vec<String> = Vec::new();
    let mut is_inside = false;
    for line in section.lines() {
        match line.strip_prefix("    ") {
            Some(line) if is_inside => {
                let block = blocks.last_mut().expect("it has begun");
                block.push('\n');
                block.push_str(line);
            }
            Some(line) => blocks.push(line.to_owned()),
            None => {}
        }
        is_inside = line.starts_with("    ");
    }
    blocks.try_into().expect("so many blocks")
}
