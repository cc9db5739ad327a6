//! Headless Chromium, driven by way of chromedriver (W3C WebDriver): a session
//! a browser, JSON over HTTP on loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Process, eventually, needs};

/// A browser on a loaded machine takes its time to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a driver and a browser are started until the test gives up.
const STARTS: usize = 3;

/// Keys that are no letters, as the protocol spells them.
pub(crate) const TAB: &str = "\u{e004}";
pub(crate) const ENTER: &str = "\u{e007}";

pub(crate) struct Browser {
    driver: Child,
    address: SocketAddr,
    /// `/session/…`
    session: String,
    /// Everything that the browser writes.
    profile: TempDir,
}

/// An element of the page.
pub(crate) struct Element(String);

impl Browser {
    /// `None`, and it is said, if there is no Chromium or no driver for it.
    pub(crate) fn start() -> Option<Self> {
        let programs = ["chromium", "chromedriver"].map(needs);
        if programs.contains(&false) {
            return None;
        }
        let profile = tempfile::tempdir().expect("there is a folder for temporary files");
        // Now and then the port that it has chosen is taken a moment later.
        let started = (0..STARTS).find_map(|_| start_driver(profile.path()));
        let (driver, port) = started.expect("chromedriver says its port");
        let mut browser = Self {
            driver,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            session: String::new(),
            profile,
        };
        // Now and then Chromium ends as it starts; that is not what is tested.
        let session = (0..STARTS).find_map(|start| browser.session(start));
        browser.session = session.expect("Chromium starts");
        Some(browser)
    }

    /// A browser with a new profile; `None` if it does not start.
    fn session(&self, start: usize) -> Option<String> {
        let data = self.profile.path().join(start.to_string());
        let options = json!({
            // As root Chromium has no sandbox; what it opens here is ours.
            "args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--disable-dev-shm-usage", "--window-size=1000,720",
                format!("--user-data-dir={}", data.display()),
            ],
        });
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let answer = exchange(self.address, "POST", "/session", &wanted);
        let answer = answer.expect("chromedriver answers");
        let id = answer["value"]["sessionId"].as_str();
        if id.is_none() {
            eprintln!("Chromium does not start: {}", answer["value"]["message"]);
        }
        id.map(|id| format!("/session/{id}"))
    }

    /// Returns when the page is loaded.
    pub(crate) fn open(&self, url: &str) {
        self.post("url", &json!({"url": url}));
    }

    /// The value of a JavaScript expression in the page.
    pub(crate) fn value(&self, expression: &str) -> Value {
        let script = format!("return {expression};");
        self.post("execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until an expression is true.
    pub(crate) fn wait_for(&self, expression: &str) {
        let script = format!(
            "(() => {{ try {{ return !!({expression}); }} catch (e) {{ return false; }} }})()"
        );
        assert!(
            eventually(|| self.value(&script) == true),
            "never true: {expression}; the page is\n{}",
            self.value("document.body.innerText")
        );
    }

    /// The first element of a CSS selector.
    pub(crate) fn find(&self, selector: &str) -> Element {
        let found = self.post(
            "element",
            &json!({"using": "css selector", "value": selector}),
        );
        let name = found.as_object().and_then(|found| found.values().next());
        let name = name.and_then(Value::as_str).expect("an element has a name");
        Element(name.to_owned())
    }

    /// As with a mouse: the element must be in sight and on top.
    pub(crate) fn click(&self, element: &Element) {
        self.post(&format!("element/{}/click", element.0), &json!({}));
    }

    /// Types into an element; for a file field, the path of the file.
    pub(crate) fn fill(&self, element: &Element, text: &str) {
        self.post(
            &format!("element/{}/value", element.0),
            &json!({"text": text}),
        );
    }

    /// Presses a key, wherever the focus is.
    pub(crate) fn press(&self, key: &str) {
        let press = json!({"actions": [{"type": "key", "id": "keys", "actions": [
            {"type": "keyDown", "value": key},
            {"type": "keyUp", "value": key},
        ]}]});
        self.post("actions", &press);
    }

    /// What the page asks of the person: `light` or `dark`.
    pub(crate) fn prefer_colours(&self, scheme: &str) {
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.devtools(
            "Emulation.setEmulatedMedia",
            &json!({"features": [feature]}),
        );
    }

    /// The size of the view in CSS pixels.
    pub(crate) fn resize(&self, width: u32, height: u32) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
    }

    /// The view as a PNG.
    pub(crate) fn screenshot(&self) -> Vec<u8> {
        let picture = self.get("screenshot");
        let picture = picture.as_str().expect("a picture is a string");
        STANDARD.decode(picture).expect("it is Base64")
    }

    /// What the console has to complain about since the last time: refused by
    /// a policy, not found, thrown.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let entries = self.post("se/log", &json!({"type": "browser"}));
        let entries = entries.as_array().expect("a list").iter();
        entries
            .filter(|entry| entry["level"] == "SEVERE")
            .map(|entry| entry["message"].to_string())
            .collect()
    }

    fn devtools(&self, command: &str, parameters: &Value) {
        self.post(
            "goog/cdp/execute",
            &json!({"cmd": command, "params": parameters}),
        );
    }

    fn post(&self, command: &str, body: &Value) -> Value {
        self.command("POST", &format!("{}/{command}", self.session), body)
    }

    fn get(&self, command: &str) -> Value {
        self.command("GET", &format!("{}/{command}", self.session), &Value::Null)
    }

    /// The `value` of the answer; an error fails the test.
    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = exchange(self.address, method, path, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let value = &answer["value"];
        assert!(
            value.get("error").is_none(),
            "{method} {path} {body}: {}: {}",
            value["error"],
            value["message"]
        );
        value.clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            // Ends the browser. The test may have failed because it is gone.
            let _ = exchange(self.address, "DELETE", &self.session, &Value::Null);
        }
        // And what of it did not end: without its driver it would stay for good.
        let left = Process::descendants(self.driver.id());
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        for process in left {
            let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
            // It may have gone in the meantime.
            let _ = kill_process(pid.expect("a process has a number"), Signal::KILL);
        }
    }
}

/// The driver and its port; `None` if it ends at once.
fn start_driver(folder: &Path) -> Option<(Child, u16)> {
    let mut driver = Command::new("chromedriver")
        .arg("--port=0")
        .env("HOME", folder)
        .env("TMPDIR", folder)
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("chromedriver is there");
    let port = BufReader::new(driver.stdout.take().expect("it is a pipe"))
        .lines()
        .map_while(Result::ok)
        .find_map(|line| {
            let (_, port) = line.split_once("started successfully on port ")?;
            port.trim_end_matches('.').parse().ok()
        });
    if port.is_none() {
        // Its output has ended, and it has, too, or does now.
        let _ = driver.kill();
        let _ = driver.wait();
    }
    Some((driver, port?))
}

/// One request on a connection of its own.
fn exchange(address: SocketAddr, method: &str, path: &str, body: &Value) -> std::io::Result<Value> {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\n\
         Content-Type: application/json; charset=utf-8\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    // chromedriver keeps the connection open whatever it is told.
    let mut stream = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some(("content-length", value)) = line.to_ascii_lowercase().split_once(':') {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
    }
    let mut content = vec![0; length];
    stream.read_exact(&mut content)?;
    serde_json::from_slice(&content).map_err(std::io::Error::other)
}
