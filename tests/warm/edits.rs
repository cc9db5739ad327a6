//! Files that change between two requests: what runs is what is there, however
//! long its interpreter has been prepared.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::ways::warm_runs;
use crate::support::{Rows, Server, eventually, needs};

/// A script in both languages; `{}` stands for what it says.
const SAYS: [(&str, &str); 2] = [
    (
        "x.py",
        "#!/usr/bin/python3\nimport json\nprint('Content-Type: text/plain\\n')\nprint('{}')\n",
    ),
    (
        "x.pl",
        "#!/usr/bin/perl\nuse POSIX ();\nprint \"Content-Type: text/plain\\n\\n{}\\n\";\n",
    ),
];

#[test]
fn an_edited_script_runs_as_it_is_now() {
    if !(needs("python3") && needs("perl")) {
        return;
    }
    for (name, text) in SAYS {
        let script = format!("cgi-bin/{name}");
        let server = Server::new()
            .script(&script, text.replace("{}", "first"))
            .args(["--log", "json"])
            .start();
        let mut rows = Rows::new();
        let file = server.root().join(&script);
        let says = |what: &str, word: &str, rows: &mut Rows| {
            for _ in 0..3 {
                let said = server.get(format!("/{script}")).text();
                rows.check(
                    &format!("{name}: {what}"),
                    said == format!("{word}\n"),
                    || said,
                );
            }
        };
        until_warm(&server, &script);
        says("as it was", "first", &mut rows);

        write(&file, &text.replace("{}", "again"));
        says("same length", "again", &mut rows);

        let before = fs::metadata(&file).unwrap().modified().unwrap();
        write(&file, &text.replace("{}", "third"));
        let file_of = fs::File::options().append(true).open(&file).unwrap();
        file_of.set_modified(before).unwrap();
        drop(file_of);
        says("same length and time", "third", &mut rows);

        let beside = file.with_extension("new");
        write(&beside, &text.replace("{}", "a new file"));
        fs::rename(&beside, &file).unwrap();
        says("another file of that name", "a new file", &mut rows);

        write(&beside, &text.replace("{}", "linked"));
        fs::remove_file(&file).unwrap();
        fs::hard_link(&beside, &file).unwrap();
        says("a hard link", "linked", &mut rows);
        write(&beside, &text.replace("{}", "by the other name"));
        says("edited by its other name", "by the other name", &mut rows);

        fs::remove_file(&file).unwrap();
        rows.check(
            "removed",
            server.get(format!("/{script}")).status == 404,
            || format!("{name} is still there"),
        );
        write(
            &file,
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nby the shell\\n'\n",
        );
        says("another language", "by the shell", &mut rows);
        write(&file, &text.replace("{}", "back"));
        says("its own again", "back", &mut rows);
        rows.done();
    }
}

#[test]
fn an_edit_that_does_not_compile_is_told_and_can_be_mended() {
    if !(needs("python3") && needs("perl")) {
        return;
    }
    for (name, text) in SAYS {
        let script = format!("cgi-bin/{name}");
        let server = Server::new()
            .script(&script, text.replace("{}", "first"))
            .args(["--log", "json"])
            .start();
        let file = server.root().join(&script);
        until_warm(&server, &script);
        write(&file, &text.replace("print", "if print ("));
        for _ in 0..2 {
            assert_eq!(server.get(format!("/{script}")).status, 500);
        }
        let words = if name == "x.py" {
            "SyntaxError"
        } else {
            "syntax error"
        };
        server.wait_for_log(words);
        write(&file, &text.replace("{}", "mended"));
        for _ in 0..3 {
            assert_eq!(server.get(format!("/{script}")).text(), "mended\n");
        }
    }
}

#[test]
fn an_edited_first_line_counts_at_once() {
    if !needs("python3") {
        return;
    }
    let with = |line: &str| {
        format!(
            "{line}\nimport sys\nprint('Content-Type: text/plain\\n')\n\
             print(sys.flags.optimize, sys.stdout.write_through, sys.orig_argv[1:-1])\n"
        )
    };
    let server = Server::new()
        .script("cgi-bin/x.py", with("#!/usr/bin/python3"))
        .args(["--log", "json"])
        .start();
    until_warm(&server, "cgi-bin/x.py");
    for (line, says) in [
        ("#!/usr/bin/python3", "0 False []\n"),
        ("#!/usr/bin/python3 -O", "1 False ['-O']\n"),
        ("#!/usr/bin/python3 -u", "0 True ['-u']\n"),
        ("#!/usr/bin/env -S python3 -O -u", "1 True ['-O', '-u']\n"),
        ("#!/usr/bin/python3", "0 False []\n"),
    ] {
        write(&server.root().join("cgi-bin/x.py"), &with(line));
        for _ in 0..3 {
            assert_eq!(server.get("/cgi-bin/x.py").text(), says, "{line}");
        }
    }
}

#[test]
fn an_edited_module_beside_a_script_is_read_anew() {
    if !(needs("python3") && needs("perl")) {
        return;
    }
    let python = "#!/usr/bin/python3\nimport near, json\nprint('Content-Type: text/plain\\n')\nprint(near.WORD)\n";
    let perl = "#!/usr/bin/perl\nuse FindBin;\nuse lib $FindBin::Bin;\nuse Near;\n\
                print \"Content-Type: text/plain\\n\\n$Near::WORD\\n\";\n";
    let server = Server::new()
        .script("cgi-bin/x.py", python)
        .script("cgi-bin/x.pl", perl)
        .args(["--log", "json"])
        .start();
    let folder = server.root().join("cgi-bin");
    // Each longer than the one before: Python's own cache goes by seconds and length.
    for (number, word) in ["a", "bb", "ccc", "dddd"].iter().enumerate() {
        fs::write(folder.join("near.py"), format!("WORD = '{word}'\n")).unwrap();
        let module = format!("package Near;\nour $WORD = '{word}';\n1;\n");
        fs::write(folder.join("Near.pm"), module).unwrap();
        if number == 0 {
            until_warm(&server, "cgi-bin/x.py");
            until_warm(&server, "cgi-bin/x.pl");
        }
        for _ in 0..3 {
            for script in ["x.py", "x.pl"] {
                let said = server.get(format!("/cgi-bin/{script}")).text();
                assert_eq!(said, format!("{word}\n"), "{script}");
            }
        }
    }
}

#[test]
fn a_module_that_appears_before_a_standard_one_wins_at_once() {
    if !(needs("python3") && needs("perl")) {
        return;
    }
    let python = "#!/usr/bin/python3\nimport json, tempfile, random, urllib.parse\n\
        print('Content-Type: text/plain\\n')\n\
        print(getattr(random, 'WHO', 'standard'), getattr(json, 'WHO', 'standard'))\n";
    let perl = "#!/usr/bin/perl\nuse FindBin;\nuse lib \"$FindBin::Bin/lib\";\nuse Text::Wrap;\nuse POSIX ();\n\
        print \"Content-Type: text/plain\\n\\n\", $Text::Wrap::WHO || 'standard', \"\\n\";\n";
    let server = Server::new()
        .script("cgi-bin/x.py", python)
        .script("cgi-bin/x.pl", perl)
        .folder("cgi-bin/lib/Text")
        .args(["--log", "json"])
        .start();
    let folder = server.root().join("cgi-bin");
    let says = |step: &str, script: &str, words: &str| {
        for _ in 0..3 {
            let said = server.get(format!("/cgi-bin/{script}")).text();
            assert_eq!(said, format!("{words}\n"), "{script}, {step}");
        }
    };
    until_warm(&server, "cgi-bin/x.py");
    until_warm(&server, "cgi-bin/x.pl");
    says("before", "x.py", "standard standard");
    says("before", "x.pl", "standard");

    let random = "WHO = 'beside'\nclass Random:\n    choices = None\n";
    fs::write(folder.join("random.py"), random).unwrap();
    let wrap = folder.join("lib/Text/Wrap.pm");
    fs::write(&wrap, "package Text::Wrap;\nour $WHO = 'beside';\n1;\n").unwrap();
    says("a module appears", "x.py", "beside standard");
    says("a module appears", "x.pl", "beside");

    fs::create_dir(folder.join("json")).unwrap();
    fs::write(folder.join("json/__init__.py"), "WHO = 'a package'\n").unwrap();
    says("a package appears", "x.py", "beside a package");

    fs::remove_file(folder.join("random.py")).unwrap();
    fs::remove_dir_all(folder.join("json")).unwrap();
    fs::remove_file(&wrap).unwrap();
    says("they are gone", "x.py", "standard standard");
    says("it is gone", "x.pl", "standard");
}

#[test]
fn what_the_interpreter_reads_at_its_start_may_change() {
    if !needs("python3") {
        return;
    }
    let text = "#!/usr/bin/python3\nimport sys, json\nprint('Content-Type: text/plain\\n')\n\
        print(getattr(sys.modules.get('sitecustomize'), 'WORD', 'none'))\n";
    let server = Server::new();
    let lib = server.root().join("lib");
    let server = server
        .script("cgi-bin/x.py", text)
        .file("lib/sitecustomize.py", "WORD = 'first'\n")
        .arg(format!("--cgi-env=PYTHONPATH={}", lib.display()))
        .args(["--log", "json"])
        .start();
    until_warm(&server, "cgi-bin/x.py");
    assert_eq!(server.get("/cgi-bin/x.py").text(), "first\n");
    fs::write(lib.join("sitecustomize.py"), "WORD = 'the second'\n").unwrap();
    for _ in 0..3 {
        assert_eq!(server.get("/cgi-bin/x.py").text(), "the second\n");
    }
}

#[test]
fn an_edited_virtual_environment_counts() {
    if !needs("python3") {
        return;
    }
    let setup = Server::new();
    let venv = setup.root().join("venv");
    let text = format!(
        "#!{}/bin/python3\nimport json, site\nprint('Content-Type: text/plain\\n')\n\
         print(site.ENABLE_USER_SITE is None, len(site.getsitepackages()))\n",
        venv.display()
    );
    let setup = setup.script("cgi-bin/x.py", text);
    let made = Command::new("/usr/bin/python3")
        .args(["-m", "venv", "--without-pip"])
        .arg(&venv)
        .status();
    assert!(made.is_ok_and(|status| status.success()), "no venv");
    let server = setup.args(["--log", "json"]).start();
    until_warm(&server, "cgi-bin/x.py");
    let alone = server.get("/cgi-bin/x.py").text();
    let file = venv.join("pyvenv.cfg");
    let settings = fs::read_to_string(&file).unwrap();
    let with = settings.replace("site-packages = false", "site-packages = true");
    assert_ne!(settings, with);
    fs::write(&file, with).unwrap();
    let shared = server.get("/cgi-bin/x.py").text();
    assert_ne!(alone, shared);
    fs::write(&file, settings).unwrap();
    for _ in 0..3 {
        assert_eq!(server.get("/cgi-bin/x.py").text(), alone);
    }
}

#[test]
fn an_interpreter_that_was_replaced_is_not_used_again() {
    if !needs("python3") {
        return;
    }
    let setup = Server::new();
    let interpreter = setup.root().join("bin/python");
    let text = format!(
        "#!{}\nimport json\nprint('Content-Type: text/plain\\n')\nprint(__debug__)\n",
        interpreter.display()
    );
    let setup = setup.script("cgi-bin/x.py", text).folder("bin");
    symlink("/usr/bin/python3", &interpreter).unwrap();
    let server = setup.args(["--log", "json"]).start();
    until_warm(&server, "cgi-bin/x.py");
    assert_eq!(server.get("/cgi-bin/x.py").text(), "True\n");
    let next = interpreter.with_extension("new");
    write(&next, "#!/bin/sh\nexec /usr/bin/python3 -O \"$@\"\n");
    fs::rename(&next, &interpreter).unwrap();
    for _ in 0..3 {
        assert_eq!(server.get("/cgi-bin/x.py").text(), "False\n");
    }
}

#[test]
fn a_folder_that_was_replaced_is_the_new_one() {
    if !(needs("python3") && needs("perl")) {
        return;
    }
    let python = "#!/usr/bin/python3\nimport json\nprint('Content-Type: text/plain\\n')\nprint(open('word').read())\n";
    let perl = "#!/usr/bin/perl\nuse POSIX ();\nopen my $word, '<', 'word';\nprint \"Content-Type: text/plain\\n\\n\", <$word>, \"\\n\";\n";
    let server = Server::new()
        .script("cgi-bin/sub/x.py", python)
        .script("cgi-bin/sub/x.pl", perl)
        .file("cgi-bin/sub/word", "old")
        .args(["--log", "json"])
        .start();
    until_warm(&server, "cgi-bin/sub/x.py");
    until_warm(&server, "cgi-bin/sub/x.pl");
    let sub = server.root().join("cgi-bin/sub");
    fs::rename(&sub, server.root().join("away")).unwrap();
    fs::create_dir(&sub).unwrap();
    write(&sub.join("x.py"), python);
    write(&sub.join("x.pl"), perl);
    fs::write(sub.join("word"), "new").unwrap();
    for script in ["x.py", "x.pl"] {
        for _ in 0..3 {
            assert_eq!(
                server.get(format!("/cgi-bin/sub/{script}")).text(),
                "new\n",
                "{script}"
            );
        }
    }
}

/// Asks until a run was warm.
pub(super) fn until_warm(server: &Server, script: &str) {
    let is_warm = eventually(|| {
        server.get(format!("/{script}"));
        warm_runs(&server.log(), script) > 0
    });
    assert!(is_warm, "{script} does not get warm");
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).unwrap();
    fs::set_permissions(file, PermissionsExt::from_mode(0o755)).unwrap();
}
