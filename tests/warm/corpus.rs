//! The corpus: every script of tests/fixtures/warm, one aspect each, run three
//! ways; and the environments, requests and interpreters that some need.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use super::ways::Group;
use crate::support::{Rows, Setup, first_core, fixtures, needs, needs_perl_module};

/// Scripts that always get an interpreter of their own, for what they ask in
/// their first line.
const PLAIN: Names = &[
    "perl/option_check.pl",
    "perl/option_lines.pl",
    "perl/option_loop.pl",
    "perl/option_module.pl",
    "perl/option_skip.pl",
    "perl/option_switches.pl",
    "perl/option_unicode.pl",
    "perl/taint.pl",
    "perl/taint_warn.pl",
    "python/option_ignore_environment.py",
    "python/option_inspect.py",
    "python/option_isolated.py",
    "python/option_no_site.py",
    "python/option_skip_line.py",
];

/// Scripts that may, as they don't get to compile or don't answer: their
/// messages are the interpreter's own then.
pub(super) const EITHER: Names = &[
    "perl/begin_dies.pl",
    "perl/begin_fails.pl",
    "perl/dies_first.pl",
    "perl/missing_brace.pl",
    "perl/module_broken.pl",
    "perl/return_at_top.pl",
    "perl/syntax_error.pl",
    "python/bad_utf8.py",
    "python/bad_utf8_string.py",
    "python/coding_latin.py",
    "python/coding_unknown.py",
    "python/deprecated_escape.py",
    "python/env_split.py",
    "python/indentation_error.py",
    "python/nul_in_source.py",
    "python/syntax_error.py",
    "python/syntax_error_late.py",
    "python/syntax_warning.py",
    "python/traceback_before_header.py",
    "python/warn_resource.py",
];

type Variables = &'static [(&'static str, &'static str)];
pub(super) type Names = &'static [&'static str];

/// Environments, and the scripts for which they make a difference.
const ENVIRONMENTS: &[(Variables, Names)] = &[
    (&[("LANG", "C.UTF-8")], ENCODINGS),
    (&[("LC_ALL", "C")], ENCODINGS),
    (&[("LC_ALL", "POSIX")], ENCODINGS),
    (&[("LC_ALL", "no_such_locale")], ENCODINGS),
    (&[("LANG", "C.UTF-8"), ("LC_NUMERIC", "C")], ENCODINGS),
    (&[("PYTHONIOENCODING", "latin-1:replace")], ENCODINGS),
    (
        &[("LC_ALL", "C"), ("PYTHONIOENCODING", ":backslashreplace")],
        ENCODINGS,
    ),
    (
        &[
            ("PYTHONUTF8", "0"),
            ("LC_ALL", "C"),
            ("PYTHONCOERCECLOCALE", "0"),
        ],
        ENCODINGS,
    ),
    (&[("PYTHONUTF8", "1")], ENCODINGS),
    (&[("PYTHONCOERCECLOCALE", "warn")], ENCODINGS),
    (
        &[("PERL_UNICODE", "SDA")],
        &[
            "perl/encodings.pl",
            "perl/stdin_lines.pl",
            "perl/special_variables.pl",
        ],
    ),
    (&[("TZ", "Asia/Kolkata")], TIMES),
    (&[("TZ", ":Europe/London")], TIMES),
    (&[("TZ", "NZST-12NZDT,M9.5.0,M4.1.0/3")], TIMES),
    (
        &[("PYTHONHASHSEED", "7")],
        &["python/hash_order.py", "python/environment.py"],
    ),
    (
        &[("PERL_HASH_SEED", "0"), ("PERL_PERTURB_KEYS", "0")],
        &["perl/hash_order.pl", "perl/environment.pl"],
    ),
    (
        &[("PYTHONUNBUFFERED", "1")],
        &[
            "python/streams.py",
            "python/stdout_mixed.py",
            "python/os_exit.py",
            "python/unflushed.py",
        ],
    ),
    (
        &[("PYTHONDONTWRITEBYTECODE", "1")],
        &["python/sys_values.py", "python/import_beside.py"],
    ),
    (
        &[("PYTHONPYCACHEPREFIX", "{folder}/tmp/caches")],
        &[
            "python/sys_values.py",
            "python/import_beside.py",
            "python/module_state.py",
        ],
    ),
    (
        &[("PYTHONOPTIMIZE", "1")],
        &[
            "python/sys_values.py",
            "python/option_optimise.py",
            "python/docstring.py",
        ],
    ),
    (
        &[(
            "PYTHONWARNINGS",
            "error::DeprecationWarning,default::UserWarning",
        )],
        WARNINGS,
    ),
    (&[("PYTHONWARNINGS", "always")], WARNINGS),
    (&[("PYTHONDEVMODE", "1")], WARNINGS),
    (
        &[("PYTHONFAULTHANDLER", "1")],
        &["python/aborted.py", "python/signals.py"],
    ),
    (
        &[("PYTHONSAFEPATH", "1")],
        &["python/sys_values.py", "python/import_beside.py"],
    ),
    (
        &[("PYTHONNOUSERSITE", "1")],
        &["python/site_module.py", "python/sys_values.py"],
    ),
    (
        &[("PYTHONPATH", "{folder}/root/python/other:{folder}/nowhere")],
        PATHS,
    ),
    (&[("PYTHONPATH", "")], PATHS),
    (&[("PYTHONPATH", "spaces")], PATHS),
    (
        &[("PYTHONINSPECT", "1")],
        &["python/exit_number.py", "python/frames.py"],
    ),
    (
        &[("PYTHONTRACEMALLOC", "2")],
        &["python/warn_resource.py", "python/frames.py"],
    ),
    (
        &[("PYTHONMALLOC", "debug")],
        &["python/frames.py", "python/gc_state.py"],
    ),
    (
        &[("PYTHONINTMAXSTRDIGITS", "640")],
        &["python/sys_values.py"],
    ),
    (&[("PERL5OPT", "-w")], PERL_WARNINGS),
    (&[("PERL5OPT", "-Mstrict -MData::Dumper")], PERL_WARNINGS),
    (
        &[("PERL5LIB", "{folder}/root/perl/other:{folder}/nowhere")],
        &["perl/inc.pl", "perl/inc_use.pl", "perl/environment.pl"],
    ),
    (
        &[("PERL5DB", "BEGIN { require './part.inc' }")],
        &["perl/caller.pl"],
    ),
    (
        &[("HOME", "{folder}/root")],
        &[
            "python/site_module.py",
            "python/sys_values.py",
            "perl/environment.pl",
        ],
    ),
    (
        &[("EMPTY", ""), ("ODD", "a=b\\nc é"), ("LD_BIND_NOW", "1")],
        &[
            "python/environment.py",
            "python/environment_c.py",
            "perl/environment.pl",
        ],
    ),
];

/// Variables with which no interpreter is prepared.
const UNPREPARED: Names = &[
    "PERL5DB",
    "PERL5OPT",
    "PERL_HASH_SEED",
    "PYTHONDEVMODE",
    "PYTHONINSPECT",
    "PYTHONTRACEMALLOC",
];

/// Settings with which the interpreter of a language says something each time it
/// starts, which a prepared one can't: it need not get warm.
const SPEAKING: &[(&str, &str, &str)] = &[
    ("LC_ALL", "no_such_locale", "perl"),
    ("PYTHONCOERCECLOCALE", "warn", "python"),
];

const ENCODINGS: Names = &[
    "python/streams.py",
    "python/locale_settings.py",
    "python/encoded_output.py",
    "python/codecs_state.py",
    "python/environment.py",
    "python/environment_c.py",
    "python/exit_string.py",
    "python/stderr_unbuffered.py",
    "python/own_file.py",
    "python/signal_children.py",
    "perl/encodings.pl",
    "perl/locale.pl",
    "perl/environment.pl",
];

const TIMES: Names = &["python/time_zone.py", "perl/time_zone.pl"];

const WARNINGS: Names = &[
    "python/warn_stacklevel.py",
    "python/warn_deprecated.py",
    "python/warn_resource.py",
    "python/syntax_warning.py",
    "python/modules_order.py",
    "python/sys_values.py",
];

const PATHS: Names = &[
    "python/sys_values.py",
    "python/environment.py",
    "python/environment_c.py",
    "python/import_machinery.py",
    "python/module_state.py",
    "python/subprocess_python.py",
];

const PERL_WARNINGS: Names = &[
    "perl/warnings.pl",
    "perl/inc.pl",
    "perl/special_variables.pl",
];

/// Scripts that look at what the client sent.
const READERS: Names = &[
    "perl/cgi_pm.pl",
    "perl/cgi_pm_state.pl",
    "perl/die_plain.pl",
    "perl/environment.pl",
    "perl/handles_copied.pl",
    "perl/process.pl",
    "perl/stdin_for_child.pl",
    "perl/stdin_form.pl",
    "perl/stdin_lines.pl",
    "perl/stdin_parts.pl",
    "perl/stdin_sysread.pl",
    "perl/warning_lines.pl",
    "python/cgi_module.py",
    "python/descriptors.py",
    "python/environment.py",
    "python/exit_builtin.py",
    "python/input_function.py",
    "python/stdin_child.py",
    "python/stdin_descriptor.py",
    "python/stdin_form.py",
    "python/stdin_lines.py",
    "python/stdin_read.py",
    "python/stdin_unread.py",
    "python/streams.py",
];

/// Those of them that a file is as good to as a pipe.
const FILE_READERS: Names = &[
    "perl/cgi_pm.pl",
    "perl/stdin_for_child.pl",
    "perl/stdin_form.pl",
    "perl/stdin_lines.pl",
    "perl/stdin_parts.pl",
    "perl/stdin_sysread.pl",
    "python/cgi_module.py",
    "python/stdin_child.py",
    "python/stdin_form.py",
    "python/stdin_lines.py",
    "python/stdin_read.py",
    "python/stdin_unread.py",
    "python/streams.py",
];

/// Scripts that look at their process.
const PROCESSES: Names = &[
    "perl/process.pl",
    "perl/used_by_children.pl",
    "python/descriptors.py",
    "python/process.py",
    "python/signal_children.py",
    "python/signals.py",
    "python/state_is_not_kept.py",
    "python/used_by_children.py",
];

/// Scripts that look at their names and arguments.
const NAMES: Names = &[
    "perl/beside.pl",
    "perl/caller.pl",
    "perl/name.pl",
    "perl/option_switches.pl",
    "perl/process.pl",
    "perl/special_variables.pl",
    "python/argument_parser.py",
    "python/env_interpreter.py",
    "python/environment.py",
    "python/exec_itself.py",
    "python/multiprocessing_spawn.py",
    "python/option_unbuffered.py",
    "python/own_file.py",
    "python/process.py",
    "python/sys_values.py",
];

const LARGE_ENVIRONMENT: Names = &[
    "perl/caller.pl",
    "python/environment_c.py",
    "python/frames.py",
];

#[test]
fn python_scripts_cannot_tell_how_they_were_started() {
    if ready() {
        let mut rows = Rows::new();
        group("as it is", corpus("python")).compare(&mut rows);
        rows.done();
    }
}

#[test]
fn perl_scripts_cannot_tell_how_they_were_started() {
    if ready() {
        let mut rows = Rows::new();
        group("as it is", corpus("perl")).compare(&mut rows);
        rows.done();
    }
}

#[test]
fn scripts_find_what_the_client_sent_on_standard_input() {
    if !ready() {
        return;
    }
    let long = [&b"a=1&b=%20c&text="[..], &b"0123456789 \xff\n".repeat(6000)].concat();
    let mut rows = Rows::new();
    for (name, body) in [
        ("a form", &b"a=1&b=%20c"[..]),
        ("lines", b"one\ntwo \xc3\xa9\r\nthree"),
        ("a long body", &long),
    ] {
        let readers = Group {
            body: Some(body),
            ..group(name, names(READERS))
        };
        readers.compare(&mut rows);
    }
    let of_a_file = Group {
        body: Some(&long),
        chunked: true,
        ..group("a body of unknown length", names(FILE_READERS))
    };
    of_a_file.compare(&mut rows);
    rows.done();
}

#[test]
fn scripts_find_what_the_server_was_started_with() {
    const LIMITS: &str =
        "umask 027; ulimit -S -n 256; ulimit -S -s 4096; ulimit -c 0; exec nice -n 5 \"$@\"";
    if !ready() {
        return;
    }
    let core = first_core();
    let mut rows = Rows::new();
    for under in [
        &["sh", "-c", LIMITS, "sh"][..],
        &["setpriv", "--no-new-privs", "--groups=4,5"],
        &["setpriv", "--bounding-set=-sys_boot,-sys_time"],
        &["taskset", "-c", &core],
        &["choom", "-n", "100", "--"],
    ] {
        let name = format!("{under:?}");
        let processes = Group {
            under,
            rounds: 1,
            ..group(&name, names(PROCESSES))
        };
        processes.compare(&mut rows);
    }
    rows.done();
}

#[test]
fn scripts_find_their_arguments_and_their_folder() {
    if !ready() {
        return;
    }
    let mut rows = Rows::new();
    for (name, args, arguments) in [
        ("arguments", &[][..], &["one", "two.three", "4"][..]),
        ("in the root", &["--cgi-cwd=root"], &[]),
        ("both", &["--cgi-cwd=root"], &["x"]),
    ] {
        let named = Group {
            args,
            arguments,
            rounds: 2,
            ..group(name, names(NAMES))
        };
        named.compare(&mut rows);
    }
    rows.done();
}

#[test]
fn scripts_too_large_or_too_odd_to_prepare_run_all_the_same() {
    if !ready() {
        return;
    }
    let large = "x".repeat(70_000);
    let large = [("LARGE", &*large)];
    let mut rows = Rows::new();
    let environment = Group {
        environment: &large,
        rounds: 2,
        plain: LARGE_ENVIRONMENT,
        ..group("a large environment", names(LARGE_ENVIRONMENT))
    };
    environment.compare(&mut rows);
    let odd = ["large.py", "large.pl", "setuid.pl", "setuid.py"];
    let odd = odd.map(|name| format!("cgi-bin/{name}"));
    let files = Group {
        lay: &lay_odd_files,
        plain: &odd.each_ref().map(|name| &**name),
        ..group("odd files", odd.to_vec())
    };
    files.compare(&mut rows);
    rows.done();
}

fn lay_odd_files(setup: Setup) -> Setup {
    const PYTHON: &str = "#!/usr/bin/python3\nimport json, sys\nprint('Content-Type: text/plain\\n')\n\
        print(sys._getframe().f_back, sys.argv)\n";
    const PERL: &str =
        "#!/usr/bin/perl\nuse POSIX ();\nprint \"Content-Type: text/plain\\n\\n$0\\n\";\n";
    let comment = "# a long comment\n".repeat(80_000);
    setup
        .script("cgi-bin/large.py", format!("{PYTHON}{comment}"))
        .script("cgi-bin/large.pl", format!("{PERL}{comment}"))
        .script("cgi-bin/setuid.py", PYTHON)
        .mode("cgi-bin/setuid.py", 0o4755)
        .script("cgi-bin/setuid.pl", PERL)
        .mode("cgi-bin/setuid.pl", 0o6755)
}

#[test]
fn scripts_find_the_environment_that_the_server_was_told_to_give() {
    if !ready() {
        return;
    }
    let mut rows = Rows::new();
    for (environment, scripts) in ENVIRONMENTS {
        let name = format!("{environment:?}");
        // A relative path goes by where the script runs.
        let is_plain = |(name, value): &(&str, &str)| {
            UNPREPARED.contains(name) || (*name, *value) == ("PYTHONPATH", "spaces")
        };
        let plain = if environment.iter().any(is_plain) {
            scripts
        } else {
            PLAIN
        };
        let speak = |script: &&&str| {
            SPEAKING.iter().any(|(name, value, language)| {
                environment.contains(&(name, value)) && script.starts_with(language)
            })
        };
        let speaking: Vec<&str> = scripts.iter().filter(speak).copied().collect();
        let scripts = Group {
            environment,
            rounds: 1,
            plain,
            either: &[EITHER, &speaking].concat(),
            ..group(&name, names(scripts))
        };
        scripts.compare(&mut rows);
    }
    rows.done();
}

/// What an interpreter is started by, besides its own name.
#[test]
fn scripts_run_by_the_interpreter_that_their_first_line_names() {
    if !ready() {
        return;
    }
    let scripts = ["venv.py", "link.py", "shim.py", "env_shim.py", "shim.pl"];
    let plain = ["cgi-bin/shim.py", "cgi-bin/env_shim.py", "cgi-bin/shim.pl"];
    let mut rows = Rows::new();
    let interpreters = Group {
        environment: &[("PATH", "{folder}/root/bin:/usr/bin:/bin")],
        lay: &lay_interpreters,
        plain: &plain,
        ..group(
            "interpreters",
            scripts.map(|name| format!("cgi-bin/{name}")).to_vec(),
        )
    };
    interpreters.compare(&mut rows);
    rows.done();
}

fn lay_interpreters(setup: Setup) -> Setup {
    const SHOWS: &str = "import sys, site\nprint('Content-Type: text/plain\\n')\n\
        print(sys.argv, sys.orig_argv, sys.executable, sys.prefix, sys.base_prefix, sys.path, sys.flags)\n\
        print(site.ENABLE_USER_SITE, sys._getframe().f_back, list(sys.modules)[-3:], __file__)\n";
    let root = setup.root();
    let with = |interpreter: &str| format!("#!{}/bin/{interpreter}\n{SHOWS}", root.display());
    let setup = setup
        .script(
            "bin/shim",
            "#!/bin/sh\nSHIMMED=1 exec /usr/bin/python3 \"$@\"\n",
        )
        .script(
            "bin/pythonx",
            "#!/bin/sh\nexec /usr/bin/python3 -u \"$@\"\n",
        )
        .script("bin/perlx", "#!/bin/sh\nexec /usr/bin/perl -w \"$@\"\n")
        .script("cgi-bin/venv.py", with("venv/bin/python3"))
        .script("cgi-bin/link.py", with("python3"))
        .script("cgi-bin/shim.py", with("shim"))
        .script(
            "cgi-bin/env_shim.py",
            format!("#!/usr/bin/env pythonx\n{SHOWS}"),
        )
        .script(
            "real/elsewhere.py",
            format!("#!/usr/bin/python3\n{SHOWS}import near\n"),
        )
        .file("real/near.py", "print('near')\n")
        .script(
            "cgi-bin/shim.pl",
            "#!/usr/bin/env perlx\nprint \"Content-Type: text/plain\\n\\n$0 $^X $^W\\n\";\n",
        )
        .link("cgi-bin/linked.py", "../real/elsewhere.py");
    symlink("/usr/bin/python3", root.join("bin/python3")).expect("nothing is there");
    let made = Command::new("/usr/bin/python3")
        .args(["-m", "venv", "--without-pip"])
        .arg(root.join("bin/venv"))
        .status();
    assert!(made.is_ok_and(|status| status.success()), "no venv");
    let packages = root.join("bin/venv/lib/python3.11/site-packages");
    if packages.is_dir() {
        fs::write(packages.join("sitecustomize.py"), "mark = 'of the venv'\n").unwrap();
    }
    setup
}

pub(super) fn group(name: &str, scripts: Vec<String>) -> Group<'_> {
    Group {
        name,
        scripts,
        environment: &[],
        args: &[],
        arguments: &[],
        under: &[],
        lay: &|setup| setup.tree("warm"),
        body: None,
        chunked: false,
        rounds: 3,
        plain: PLAIN,
        either: EITHER,
    }
}

fn names(scripts: &[&str]) -> Vec<String> {
    scripts.iter().map(ToString::to_string).collect()
}

pub(super) fn ready() -> bool {
    needs("setpriv") && needs("python3") && needs_perl_module("CGI")
}

/// The executable files below a folder of tests/fixtures/warm; the others are
/// what they import.
pub(super) fn corpus(language: &str) -> Vec<String> {
    let all = fixtures("warm");
    let files = walkdir::WalkDir::new(all.join(language)).sort_by_file_name();
    files
        .into_iter()
        .map(|entry| entry.expect("the fixtures can be read"))
        .filter(|entry| {
            let metadata = entry.metadata().expect("it is there");
            metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
        })
        .map(|entry| {
            let path = entry.path().strip_prefix(&all).expect("it is below");
            path.to_str().expect("fixtures have plain names").to_owned()
        })
        .collect()
}
