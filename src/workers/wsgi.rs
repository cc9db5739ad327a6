//! The Python side of a WSGI worker: which interpreter, and what it is told.
//! `wsgi.py` says what the words mean.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::Folder;
use super::job::{JobOptions, find_program};
use crate::error::StartError;
use crate::gateway::process::Ended;
use crate::gateway::spawn::CONTROL_FD;

const CODE: &str = include_str!("wsgi.py");

/// The one that was chosen; else that of the active virtual environment, of one
/// in the served folder, or of the system.
pub fn interpreter(options: &JobOptions) -> Result<PathBuf, StartError> {
    if let Some(python) = &options.python {
        return find_program(python.as_os_str(), options).ok_or_else(|| {
            StartError::failed(format!(
                "--python: there is no program {}",
                python.display()
            ))
            .hint("name a Python interpreter: `--python .venv/bin/python`")
        });
    }
    let active = options.environment.iter();
    let active = active.filter(|(name, value)| name == "VIRTUAL_ENV" && !value.is_empty());
    let active = active.map(|(_, folder)| PathBuf::from(folder));
    let beside = [".venv", "venv"].map(|name| options.directory.join(name));
    for folder in active.chain(beside) {
        let python = folder.join("bin/python");
        if let Some(python) = find_program(python.as_os_str(), options) {
            return Ok(python);
        }
        // Without what it holds the application would only seem to be broken.
        if folder.join("pyvenv.cfg").exists() {
            let message = format!("{} can't be run", python.display());
            return Err(StartError::failed(message).hint(
                "make the virtual environment anew (`python3 -m venv --clear`), or choose \
                 another Python: `--python PATH`",
            ));
        }
    }
    find_program("python3".as_ref(), options).ok_or_else(|| {
        StartError::failed("there is no Python to run WSGI applications")
            .hint("install python3, or name an interpreter: `--python PATH`")
    })
}

/// Whether a worker that ended so could not load the application: the import
/// raised, or there was no application.
pub fn says_failed_load(ended: Ended) -> bool {
    matches!(ended, Ended::Exit(3 | 4))
}

/// Puts the code where the interpreter can read it.
pub fn code(folder: &Folder) -> io::Result<PathBuf> {
    let file = folder.path().join("wsgi.py");
    std::fs::write(&file, CODE)?;
    Ok(file)
}

pub fn arguments(
    python: &Path,
    code: &Path,
    application: &str,
    options: &JobOptions,
) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec![python.into(), code.into()];
    words.extend(["--control".into(), CONTROL_FD.to_string().into()]);
    words.extend(["--threads".into(), options.threads.to_string().into()]);
    words.push("--pass-files".into());
    if options.multiprocess {
        words.push("--multiprocess".into());
    }
    if options.reload {
        words.push("--files".into());
    }
    if options.preload {
        words.push("--preload".into());
    }
    words.push(application.into());
    words
}
