//! What can't be had exactly is left to exec, and works all the same.

use std::os::unix::fs::symlink;

use rustix::process::Signal;

use super::preparing::{run, signal, until_warm, with, zygotes};
use crate::support::{Rows, Setup, eventually};

const PYTHON: &str = "import json\nprint('Content-Type: text/plain\\n')\nprint('it works')\n";
const PERL: &str = "use POSIX ();\nprint \"Content-Type: text/plain\\n\\nit works\\n\";\n";
/// A folder of the test's for Python; `{root}` stands for the root folder.
const LIB: &[&str] = &["--cgi-env=PYTHONPATH={root}/lib"];
const SITE: &str = "lib/sitecustomize.py";

/// What the scripts are given, and what the log says then; `None`: nothing is
/// even prepared.
struct Case {
    shebang: &'static str,
    args: &'static [&'static str],
    file: Option<(&'static str, &'static str)>,
    note: Option<&'static str>,
}

const fn line(shebang: &'static str) -> Case {
    Case {
        shebang,
        args: &[],
        file: None,
        note: None,
    }
}

const fn given(shebang: &'static str, args: &'static [&'static str]) -> Case {
    Case {
        args,
        ..line(shebang)
    }
}

/// A start-up file that Python reads before the script.
const fn site(text: &'static str, note: &'static str) -> Case {
    Case {
        shebang: "/usr/bin/python3",
        args: LIB,
        file: Some((SITE, text)),
        note: Some(note),
    }
}

const CASES: &[Case] = &[
    // Options that keep the start-up code out, or that mean something else.
    line("/usr/bin/python3 -E"),
    line("/usr/bin/python3 -I"),
    line("/usr/bin/python3 -S"),
    line("/usr/bin/python3 -i"),
    line("/usr/bin/python3 -x"),
    line("/usr/bin/python3 -v"),
    line("/usr/bin/python3 -uE"),
    line("/usr/bin/python3 -X importtime"),
    line("/usr/bin/perl -T"),
    line("/usr/bin/perl -t"),
    line("/usr/bin/perl -s"),
    line("/usr/bin/perl -wT"),
    line("/usr/bin/env -S python3 -u"),
    // Programs that are not what they are called, and wrappers.
    Case {
        note: Some("wrapper/python3: it is a wrapper, no program"),
        ..line("{root}/wrapper/python3")
    },
    Case {
        note: Some("it ended before it was ready, twice within 10 s"),
        ..line("{root}/other/python3")
    },
    given(
        "/usr/bin/env python3",
        &["--cgi-env=PATH={root}/wrapper:/usr/bin:/bin"],
    ),
    given("/usr/bin/env python3", &["--cgi-env=PATH=:/usr/bin:/bin"]),
    // Variables that change how an interpreter starts.
    given("/usr/bin/python3", &["--cgi-env=LD_PRELOAD="]),
    given("/usr/bin/python3", &["--cgi-env=PYTHONTRACEMALLOC=1"]),
    given("/usr/bin/python3", &["--cgi-env=PYTHONPROFILEIMPORTTIME=1"]),
    given("/usr/bin/python3", &["--cgi-env=PYTHONDEVMODE=1"]),
    given("/usr/bin/perl", &["--cgi-env=PERL5OPT=-MPOSIX"]),
    given("/usr/bin/perl", &["--cgi-env=PERL_HASH_SEED=0"]),
    given("/usr/bin/perl", &["--cgi-env=PERL5DB=0"]),
    Case {
        note: Some("PYTHONPATH depends on where a script runs"),
        ..given("/usr/bin/python3", &["--cgi-env=PYTHONPATH=lib"])
    },
    // Interpreters that do more than start.
    site(
        "import sys\nprint('hello', file=sys.stderr)\n",
        "it writes something when it starts",
    ),
    site(
        "import sys, io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer)\n",
        "sys.stdout is not the original",
    ),
    site(
        "import os, sys\nsys.excepthook = lambda *error: os._exit(9)\n",
        "self-test failed",
    ),
    Case {
        note: Some("it writes something when it starts"),
        ..given("/usr/bin/perl", &["--cgi-env=LC_ALL=no_such_locale"])
    },
];

#[test]
fn what_cannot_be_had_exactly_is_left_to_exec() {
    let mut rows = Rows::new();
    for case in CASES {
        let Some(server) = with(|setup| case.lay(setup)) else {
            return;
        };
        let what = format!("{} {:?} {:?}", case.shebang, case.args, case.file);
        let mut ran = Vec::new();
        let known = eventually(|| {
            ran.push(run(&server, "x"));
            ran.len() >= 4 && case.note.is_none_or(|note| server.log().contains(note))
        });
        rows.check(&what, known, || server.log());
        ran.push(run(&server, "x"));
        let plain = ran.iter().all(|how| how == "plain");
        rows.check(&what, plain, || format!("{ran:?}"));
        let none = eventually(|| zygotes(&server).is_empty());
        rows.check(&what, none, || format!("{:?}", server.scripts()));
        let answer = server.get("/cgi-bin/x").text();
        rows.check(&what, answer == "it works\n", || answer.clone());
    }
    rows.done();
}

impl Case {
    fn lay(&self, setup: Setup) -> Setup {
        let root = setup.root().display().to_string();
        let named = |text: &str| text.replace("{root}", &root);
        let text = if self.shebang.contains("perl") || self.shebang.contains("other") {
            PERL
        } else {
            PYTHON
        };
        let setup = setup
            .script("cgi-bin/x", format!("#!{}\n{text}", named(self.shebang)))
            .script(
                "wrapper/python3",
                "#!/bin/sh\nexec /usr/bin/python3 \"$@\"\n",
            )
            .folder("other")
            .args(self.args.iter().map(|arg| named(arg)));
        symlink("/usr/bin/perl", setup.root().join("other/python3")).expect("a new name");
        match self.file {
            Some((name, text)) => setup.file(name, text),
            None => setup,
        }
    }
}

#[test]
fn an_interpreter_that_dies_twice_is_left_alone_for_a_while() {
    let Some(server) = with(|setup| setup.script("cgi-bin/x", format!("#!/usr/bin/perl\n{PERL}")))
    else {
        return;
    };
    for _ in 0..2 {
        until_warm(&server, "x");
        for zygote in zygotes(&server) {
            signal(zygote, Signal::KILL);
        }
    }
    server.wait_for_log("for a minute: it ended, twice within 10 s");
    for _ in 0..4 {
        assert_eq!(run(&server, "x"), "plain");
    }
}

#[test]
fn a_script_whose_client_sends_a_large_environment_is_left_to_exec() {
    let Some(server) = with(|setup| {
        let setup = setup.args(["--max-head", "128K"]);
        setup.script("cgi-bin/x", format!("#!/usr/bin/python3\n{PYTHON}"))
    }) else {
        return;
    };
    until_warm(&server, "x");
    let how = |value: &str| {
        let response = server.request("GET", "/cgi-bin/x", &[("X-Large", value)], b"");
        response.header("X-Serve-Here-Run")
    };
    assert_eq!(how("x").as_deref(), Some("warm"));
    assert_eq!(how(&"x".repeat(70_000)).as_deref(), Some("plain"));
    assert_eq!(how("x").as_deref(), Some("warm"));
}
