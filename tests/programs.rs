//! Real CGI programs as their makers wrote them, and frameworks by way of CGI,
//! with the clients that people use on them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::support::{
    Response, Rows, Server, Setup, curl, eventually, fixtures, needs, needs_perl_module, skip,
};

/// What curl got, which must have gone well: a status of 400 or more has not.
fn fetch(args: &[&str]) -> Vec<u8> {
    let output = curl(&[&["--fail-with-body"], args].concat());
    assert!(
        output.status.success(),
        "curl {args:?}: {}\n{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    output.stdout
}

fn text(args: &[&str]) -> String {
    String::from_utf8_lossy(&fetch(args)).into_owned()
}

/// A program of tests/fixtures/programs in `cgi-bin`.
fn program(name: &str) -> Setup {
    let source = fs::read(fixtures("programs").join(name)).expect("the repository has it");
    Server::new().script(format!("cgi-bin/{name}"), source)
}

/// Bytes that do not compress: the same at each run.
fn noise(count: usize) -> Vec<u8> {
    let mut block = Sha256::digest(b"noise");
    let mut bytes = Vec::with_capacity(count + block.len());
    while bytes.len() < count {
        bytes.extend_from_slice(&block);
        block = Sha256::digest(block);
    }
    bytes.truncate(count);
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    let digits = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>();
    digits.concat()
}

/// A program that a package installs outside of PATH.
fn needs_file(path: &Path) -> bool {
    let found = path.is_file();
    if !found {
        skip(&format!("needs {}", path.display()));
    }
    found
}

/// Bare repositories in `projects`, and a place for clones.
struct Git {
    folder: TempDir,
}

impl Git {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("there is a folder for temporary files");
        fs::create_dir(folder.path().join("projects")).expect("it is empty");
        Self { folder }
    }

    fn projects(&self) -> PathBuf {
        self.folder.path().join("projects")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// git without the user's own settings, so that it says what it always says.
    fn try_run<A: AsRef<OsStr>>(&self, folder: &str, args: impl IntoIterator<Item = A>) -> Output {
        Command::new("git")
            .args(args)
            .current_dir(self.path(folder))
            .env("HOME", self.folder.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_TRACE_CURL", self.path("trace"))
            .env("GIT_TRACE_CURL_NO_DATA", "1")
            .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "A U Thor")))
            .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "a@example.com")))
            .output()
            .expect("git is there: the test asked `needs`")
    }

    fn run<A: AsRef<OsStr> + Clone>(&self, folder: &str, args: &[A]) -> String {
        let output = self.try_run(folder, args);
        let shown: Vec<_> = args.iter().map(AsRef::as_ref).collect();
        assert!(
            output.status.success(),
            "git {shown:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// What the client's requests and their answers had as header fields.
    fn trace(&self) -> String {
        fs::read_to_string(self.path("trace"))
            .unwrap_or_default()
            .to_ascii_lowercase()
    }

    /// A bare repository that takes pushes, and a clone of it with `commits`
    /// commits that are not pushed.
    fn repository(&self, name: &str, commits: usize) {
        let bare = format!("projects/{name}.git");
        self.run(".", &["init", "--quiet", "--bare", "-b", "main", &bare]);
        self.run(&bare, &["config", "http.receivepack", "true"]);
        let description = format!("The repository <{name}>\n");
        fs::write(self.path(&bare).join("description"), description).expect("it is ours");
        self.run(".", &["init", "--quiet", "-b", "main", name]);
        self.commits(name, commits);
    }

    fn commits(&self, clone: &str, count: usize) {
        for number in 0..count {
            let file = format!("file-{}.txt", number % 7);
            let content = format!("{clone} {number}\n<&> {}\n", sha256(&[7; 9]));
            fs::write(self.path(clone).join(&file), content).expect("it is ours");
            self.run(clone, &["add", "."]);
            let message = format!("Change {file} <{number}>");
            self.run(clone, &["commit", "--quiet", "-m", &message]);
        }
    }

    fn head(&self, folder: &str) -> String {
        self.run(folder, &["rev-parse", "main"])
    }
}

/// A program that is installed elsewhere, as its own copy in `cgi-bin`.
fn installed(setup: Setup, file: &Path) -> Setup {
    let name = file.file_name().expect("it is a file");
    let name = name.to_str().expect("its name is ASCII");
    let bytes = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    setup.script(format!("cgi-bin/{name}"), bytes)
}

/// git-http-backend for the repositories of `git`; `None` if it is not there.
fn git_server(git: &Git) -> Option<Server> {
    let folder = git.run(".", &["--exec-path"]);
    let backend = Path::new(&folder).join("git-http-backend");
    if !needs_file(&backend) {
        return None;
    }
    let root = format!("GIT_PROJECT_ROOT={}", git.projects().display());
    let server = installed(Server::new(), &backend)
        .args(["--cgi-env", &root])
        .args(["--cgi-env", "GIT_HTTP_EXPORT_ALL=1"])
        .start();
    Some(server)
}

#[test]
fn git_pushes_and_clones_hundreds_of_objects_by_git_http_backend() {
    if !needs("git") {
        return;
    }
    let git = Git::new();
    let Some(server) = git_server(&git) else {
        return;
    };
    git.repository("small", 120);
    let url = server.url("/cgi-bin/git-http-backend/small.git");
    git.run("small", &["remote", "add", "origin", &url]);
    git.run("small", &["push", "--quiet", "origin", "main"]);
    assert_eq!(git.head("small"), git.head("projects/small.git"));

    git.run(".", &["clone", "--quiet", &url, "clone"]);
    git.run("clone", &["fsck", "--strict"]);
    assert_eq!(git.head("clone"), git.head("small"));
    let count = git.run("clone", &["rev-list", "--objects", "--all"]);
    assert!(count.lines().count() > 300, "{count}");

    // Much to negotiate about: the client says what it has in a gzipped body.
    git.commits("clone", 100);
    git.commits("small", 3);
    git.run("small", &["push", "--quiet", "origin", "main"]);
    git.run("clone", &["fetch", "--quiet"]);
    assert_eq!(
        git.run("clone", &["rev-parse", "origin/main"]),
        git.head("small")
    );
    assert!(
        git.trace().contains("content-encoding: gzip"),
        "no request of git's was gzipped"
    );

    // The older protocol makes other requests.
    let older = [
        "-c",
        "protocol.version=0",
        "clone",
        "--quiet",
        &url,
        "older",
    ];
    git.run(".", &older);
    assert_eq!(git.head("older"), git.head("small"));
}

#[test]
fn git_pushes_and_clones_megabytes_in_chunks() {
    if !needs("git") {
        return;
    }
    let git = Git::new();
    let Some(server) = git_server(&git) else {
        return;
    };
    git.repository("large", 1);
    let picture = noise(6 << 20);
    fs::write(git.path("large/picture"), &picture).expect("it is ours");
    git.run("large", &["add", "."]);
    git.run("large", &["commit", "--quiet", "-m", "Add a picture"]);
    let url = server.url("/cgi-bin/git-http-backend/large.git");
    git.run("large", &["push", "--quiet", &url, "main"]);
    assert!(
        git.trace().contains("transfer-encoding: chunked"),
        "git did not push in chunks"
    );
    assert_eq!(git.head("large"), git.head("projects/large.git"));

    git.run(".", &["clone", "--quiet", &url, "clone"]);
    let cloned = fs::read(git.path("clone/picture")).expect("it was cloned");
    assert!(cloned == picture, "the picture has changed on its way");
    assert!(eventually(|| server.temporary_files().is_empty()));
}

#[test]
fn git_hears_why_a_push_or_a_clone_is_refused() {
    if !needs("git") {
        return;
    }
    let git = Git::new();
    let Some(server) = git_server(&git) else {
        return;
    };
    git.repository("closed", 1);
    let closed = "projects/closed.git";
    git.run(closed, &["config", "http.receivepack", "false"]);
    let url = |name: &str| server.url(&format!("/cgi-bin/git-http-backend/{name}"));
    let push = git.try_run("closed", ["push", &url("closed.git"), "main"]);
    let said = String::from_utf8_lossy(&push.stderr).into_owned();
    assert!(!push.status.success() && said.contains("403"), "{said}");

    let clone = git.try_run(".", ["clone", &url("missing.git")]);
    let said = String::from_utf8_lossy(&clone.stderr).into_owned();
    assert!(
        !clone.status.success() && said.contains("not found"),
        "{said}"
    );
    // The program would leave its folder if the path let it.
    let outside = server.get("/cgi-bin/git-http-backend/../../etc/passwd");
    assert!(outside.status >= 400, "{outside}");
}

/// A repository with a few commits, right in the place of the bare ones.
fn published(git: &Git) -> String {
    git.repository("demo", 5);
    git.run("demo", &["push", "--quiet", "../projects/demo.git", "main"]);
    git.head("demo")
}

#[test]
fn gitweb_lists_projects_and_shows_commits_and_snapshots() {
    let gitweb = Path::new("/usr/share/gitweb/gitweb.cgi");
    if !needs("git") || !needs_file(gitweb) || !needs_perl_module("CGI") {
        return;
    }
    let git = Git::new();
    let commit = published(&git);
    let settings = git.path("gitweb.conf");
    let lines = format!(
        "$projectroot = '{}';\n$feature{{'snapshot'}}{{'default'}} = ['tgz'];\n1;\n",
        git.projects().display()
    );
    fs::write(&settings, lines).expect("it is ours");
    let server = installed(Server::new(), gitweb)
        .args([
            "--cgi-env",
            &format!("GITWEB_CONFIG={}", settings.display()),
        ])
        .start();
    let get = |rest: &str| {
        let response = server.get(format!("/cgi-bin/gitweb.cgi{rest}"));
        assert_eq!(response.status, 200, "{rest}: {response}");
        assert!(response.complete);
        response
    };
    let list = get("").text();
    assert!(list.contains("The repository &lt;demo&gt;"), "{list}");
    for page in [
        format!("?p=demo.git;a=commit;h={commit}"),
        format!("/demo.git/commit/{commit}"),
    ] {
        let page = get(&page).text();
        assert!(page.contains("Change file-4.txt &lt;4&gt;"), "{page}");
        assert!(page.contains(&commit), "{page}");
    }
    let blob = get("?p=demo.git;a=blob_plain;f=file-1.txt;hb=main");
    let file = fs::read(git.path("demo/file-1.txt")).expect("it is there");
    assert_eq!(blob.body, file);
    let missing = server.get("/cgi-bin/gitweb.cgi?p=none.git");
    assert_eq!(missing.status, 404);

    let snapshot = get(&format!("?p=demo.git;a=snapshot;h={commit};sf=tgz"));
    let names = unpacked_names(&snapshot);
    for file in ["file-0.txt", "file-4.txt"] {
        let has = names.iter().any(|name| name.ends_with(file));
        assert!(has, "no {file} in {names:?}");
    }
}

/// What `tar` finds in an archive.
fn unpacked_names(response: &Response) -> Vec<String> {
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    let archive = folder.path().join("archive.tar.gz");
    fs::write(&archive, &response.body).expect("it is the test's own");
    let output = Command::new("tar").arg("-tzf").arg(archive).output();
    let output = output.expect("tar is there");
    assert!(output.status.success(), "{output:?}");
    let names = String::from_utf8_lossy(&output.stdout);
    names.lines().map(str::to_owned).collect()
}

#[test]
fn cgit_shows_repositories_by_the_rest_of_the_path() {
    let cgit = Path::new("/usr/lib/cgit/cgit.cgi");
    if !needs("git") || !needs_file(cgit) {
        return;
    }
    let git = Git::new();
    let commit = published(&git);
    let settings = git.path("cgitrc");
    let lines = format!(
        "snapshots=tar.gz\nrepo.url=demo\nrepo.path={}\nrepo.desc=The repository <demo>\n",
        git.projects().join("demo.git").display()
    );
    fs::write(&settings, lines).expect("it is ours");
    let server = installed(Server::new(), cgit)
        .args(["--cgi-env", &format!("CGIT_CONFIG={}", settings.display())])
        .start();
    let file = fs::read_to_string(git.path("demo/file-1.txt")).expect("it is there");
    let mut rows = Rows::new();
    for (rest, expected) in [
        ("", "The repository &lt;demo&gt;"),
        ("/demo/log/", "Change file-4.txt &lt;4&gt;"),
        (&format!("/demo/commit/?id={commit}"), &commit[..]),
        ("/demo/tree/", "file-1.txt"),
        ("/demo/plain/file-1.txt", &file),
        ("/demo/diff/?h=main", "+demo 4"),
        ("?url=demo/log/", "Change file-4.txt &lt;4&gt;"),
    ] {
        let page = server.get(format!("/cgi-bin/cgit.cgi{rest}"));
        let holds = page.status == 200 && page.complete && page.text().contains(expected);
        rows.check(rest, holds, || page.to_string());
    }
    rows.done();
    let snapshot = server.get("/cgi-bin/cgit.cgi/demo/snapshot/demo-main.tar.gz");
    let names = unpacked_names(&snapshot);
    assert!(
        names.contains(&"demo-main/file-1.txt".to_owned()),
        "{names:?}"
    );
    let missing = server.get("/cgi-bin/cgit.cgi/none/");
    assert_eq!(missing.status, 404);
}

#[test]
fn a_cgi_pm_program_takes_megabytes_and_sends_them_back() {
    if !needs("curl") || !needs_perl_module("CGI") {
        return;
    }
    let server = program("back.pl").start();
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    let [file, back, head] = ["file.bin", "back", "head"].map(|name| folder.path().join(name));
    let content = noise(5 << 20);
    fs::write(&file, &content).expect("it is the test's own");
    let form = format!("file=@{};type=image/x-noise", file.display());
    let [to, dump] = [&back, &head].map(|path| path.to_str().expect("its name is ASCII"));
    // curl sends `Expect: 100-continue` with so much, and once more in chunks.
    for more in [&[][..], &["--header", "Transfer-Encoding: chunked"]] {
        let url = server.url("/cgi-bin/back.pl");
        let args = ["--form", &form, "--output", to, "--dump-header", dump, &url];
        fetch(&[more, &args].concat());
        let same = fs::read(&back).expect("curl wrote it") == content;
        assert!(same, "the file has changed on its way, {more:?}");
        let head = fs::read_to_string(&head).expect("curl wrote it");
        for line in [
            "Content-Type: image/x-noise",
            "Set-Cookie: note=a%20b&c%3Bd; path=/",
            "Content-Disposition: attachment; filename=\"file.bin\"",
        ] {
            let has = head.lines().any(|l| l.eq_ignore_ascii_case(line));
            assert!(has, "no `{line}` in:\n{head}");
        }
    }
}

#[test]
fn a_php_program_has_its_form_cookies_files_and_redirects() {
    if !needs("curl") || !needs("php-cgi") {
        return;
    }
    let server = program("page.php").start();
    let url = |rest: &str| server.url(&format!("/cgi-bin/page.php{rest}"));

    let form = text(&["--data", "name=Ada+%26+co&list[]=1&list[]=2", &url("/more")]);
    assert_eq!(
        form,
        "POST /cgi-bin/page.php\npath info: /more\nuser: none\nname = Ada & co\nlist = 1|2\n"
    );
    let user = text(&["--user", "ada:secret", &url("")]);
    assert!(user.contains("user: ada\n"), "{user}");

    let sent_on = server.get("/cgi-bin/page.php?do=redirect");
    assert_eq!(sent_on.status, 302);
    assert_eq!(
        sent_on.header("Location").as_deref(),
        Some("page.php?do=landed")
    );
    let landed = text(&["--location", &url("?do=redirect")]);
    assert!(landed.starts_with("GET /cgi-bin/page.php\n"), "{landed}");

    let teapot = server.get("/cgi-bin/page.php?do=teapot");
    assert_eq!((teapot.status, &*teapot.text()), (418, "short and stout"));

    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let jar = path("jar");
    for count in 1..=3 {
        let args = ["--cookie", &jar, "--cookie-jar", &jar, &url("?do=cookie")];
        assert_eq!(text(&args), format!("count {count}"));
    }
    let content = noise(1 << 20);
    fs::write(path("file.bin"), &content).expect("it is the test's own");
    let form = format!("file=@{}", path("file.bin"));
    assert_eq!(
        text(&["--form", &form, &url("?do=file")]),
        format!("file.bin {} {}", content.len(), sha256(&content))
    );
    let json = ["--header", "Content-Type: application/json", "--data"];
    assert_eq!(
        text(&[&json[..], &["{\"a\":[1,\"é\"]}", &url("?do=input")]].concat()),
        "{\"got\":{\"a\":[1,\"\\u00e9\"]}}"
    );
}

/// The Flask application with the Python in which scripts/test installs Flask.
fn flask() -> Option<Setup> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.venv/bin/python");
    let found = Command::new(&python)
        .args(["-c", "import flask"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !found {
        skip("needs Flask in tests/.venv");
        return None;
    }
    let source = fs::read_to_string(fixtures("programs").join("flask_app.py"));
    let source = source.expect("the repository has it");
    let script = format!("#!{}\n{source}", python.display());
    Some(Server::new().script("cgi-bin/app.py", script))
}

#[test]
fn a_flask_application_answers_as_under_any_other_server() {
    let Some(setup) = flask().filter(|_| needs("curl")) else {
        return;
    };
    let server = setup.start();
    let url = |rest: &str| server.url(&format!("/cgi-bin/app.py{rest}"));
    assert_eq!(text(&[&url("/")]), "Hello, world!");
    assert_eq!(text(&[&url("/?name=Gr%C3%A4fin")]), "Hello, Gräfin!");
    assert_eq!(
        text(&["--location", "--data", "name=Ada+B", &url("/form")]),
        "Thank you, Ada B."
    );
    let json = ["--header", "Content-Type: application/json", "--data"];
    let answer = text(&[&json[..], &["{\"numbers\":[1,2,39]}", &url("/json")]].concat());
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("it is JSON");
    assert_eq!(answer, serde_json::json!({"total": 42, "path": "/json"}));

    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    let content = noise(2 << 20);
    let file = folder.path().join("file.bin");
    fs::write(&file, &content).expect("it is the test's own");
    let form = format!("file=@{}", file.display());
    assert!(fetch(&["--form", &form, &url("/upload")]) == content);

    let visit = server.get("/cgi-bin/app.py/visits");
    let cookies = visit.headers.iter().filter(|(n, _)| n == "Set-Cookie");
    assert_eq!(cookies.count(), 2, "{visit}");

    for (method, rest, status) in [
        ("GET", "/form/none", 404),
        ("GET", "/json", 405),
        ("GET", "/broken", 500),
        ("HEAD", "/", 200),
        ("OPTIONS", "/form", 200),
    ] {
        let response = server.request(method, format!("/cgi-bin/app.py{rest}"), &[], b"");
        assert_eq!(response.status, status, "{method} {rest}: {response}");
    }
    // The traceback goes to the one who runs the server.
    server.wait_for_log("RuntimeError: a program's own fault");
}

#[test]
fn a_flask_application_streams_line_by_line() {
    let Some(setup) = flask() else {
        return;
    };
    let server = setup.start();
    let sign = server.root().join("go-on");
    let mut client = server.connect();
    client.send(format!(
        "GET /cgi-bin/app.py/stream?after={} HTTP/1.0\r\n\r\n",
        sign.display()
    ));
    assert_eq!(client.head().expect("it answers").status, 200);
    let (first, complete) = client.take(4);
    assert!(complete && first == b"one\n");
    fs::write(&sign, "").expect("it is the test's own");
    assert_eq!(client.rest(), b"two\n");
}

#[test]
fn a_python_program_with_the_old_cgi_module_runs_as_it_did() {
    if !needs("curl") || !needs("python3") {
        return;
    }
    let found = Command::new("/usr/bin/python3")
        .args(["-W", "ignore", "-c", "import cgi, cgitb"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !found {
        skip("needs a Python with the module cgi, before 3.13");
        return;
    }
    let server = program("legacy.py").start();
    let url = server.url("/cgi-bin/legacy.py");
    assert_eq!(
        text(&["--get", "--data", "b=2&a=%C3%A9", &url]),
        "a = é\nb = 2\n"
    );
    assert_eq!(text(&["--data", "b=2&a=%C3%A9", &url]), "a = é\nb = 2\n");
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    let content = noise(1 << 20);
    let file = folder.path().join("file.bin");
    fs::write(&file, &content).expect("it is the test's own");
    let form = format!("file=@{}", file.display());
    assert_eq!(
        text(&["--form", "a=b", "--form", &form, &url]),
        format!(
            "a = b\nfile: file.bin, {} bytes, {}\n",
            content.len(),
            sha256(&content)
        )
    );
}
