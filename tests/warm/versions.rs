//! Another Python than the distribution's, if this machine has one: the newest.
//! `TEST_PYTHON=/path/to/python3.N` names one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::corpus::{EITHER, Names, corpus, group, ready};
use super::ways::Group;
use crate::support::{Rows, Setup, skip};

const DISTRIBUTIONS: &str = "/usr/bin/python3";

#[test]
fn scripts_of_another_python_cannot_tell_how_they_were_started() {
    if !ready() {
        return;
    }
    let Some(python) = another_python() else {
        skip("needs another Python than the distribution's");
        return;
    };
    let lay = |setup: Setup| {
        let setup = setup.tree("warm");
        rename_interpreter(&setup.root().join("python"), &python);
        setup
    };
    let mut rows = Rows::new();
    let mut scripts = corpus("python");
    let unlike = [
        // From 3.12 on exec() counts one reference to the globals more (docs/warm.md).
        "python/main_references.py",
        // It shows whether the library was compiled before.
        "python/import_hook.py",
    ];
    scripts.retain(|script| !unlike.contains(&&**script));
    // Modules that 3.13 has no more.
    let gone: Names = &["python/cgi_module.py", "python/cgitb_module.py"];
    let either = [EITHER, gone].concat();
    let scripts = Group {
        lay: &lay,
        rounds: 2,
        either: &either,
        ..group("another Python", scripts)
    };
    scripts.compare(&mut rows);
    rows.done();
}

fn another_python() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("TEST_PYTHON") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let home = std::env::var_os("HOME").map_or_else(PathBuf::new, PathBuf::from);
    if let Ok(versions) = fs::read_dir(home.join(".pyenv/versions")) {
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    let usual = version_of(Path::new(DISTRIBUTIONS))?;
    (8..=14)
        .rev()
        .filter(|minor| *minor != usual)
        .flat_map(|minor| {
            folders
                .iter()
                .map(move |folder| folder.join(format!("python3.{minor}")))
        })
        .find(|file| is_program(file) && version_of(file).is_some())
}

/// Its minor version.
fn version_of(python: &Path) -> Option<u32> {
    let ask = ["-c", "import sys; print(sys.version_info[1])"];
    let said = Command::new(python).args(ask).output().ok()?;
    String::from_utf8(said.stdout).ok()?.trim().parse().ok()
}

/// Not a wrapper script.
fn is_program(file: &Path) -> bool {
    fs::read(file).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"))
}

fn rename_interpreter(folder: &Path, python: &Path) {
    let line = format!("#!{}", python.display());
    for entry in walkdir::WalkDir::new(folder) {
        let entry = entry.expect("the test's own folder can be read");
        let metadata = entry.metadata().expect("it is there");
        if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
            continue;
        }
        let bytes = fs::read(entry.path()).expect("the test's own file");
        if let Some(rest) = bytes.strip_prefix(b"#!/usr/bin/python3") {
            let renamed = [line.as_bytes(), rest].concat();
            fs::write(entry.path(), renamed).expect("the test's own file");
        }
    }
}
