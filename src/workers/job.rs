//! What a worker is: the program, its arguments, its environment.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::{Folder, wsgi};
use crate::error::StartError;
use crate::gateway::spawn::Program;
use crate::gateway::variables::is_meta_variable;

/// Everything needed to start one more worker.
pub struct Job {
    /// The first word of its lines in the log.
    pub name: &'static str,
    /// What was asked for: the command, or the application.
    pub subject: String,
    pub file: PathBuf,
    pub arguments: Vec<OsString>,
    pub environment: Vec<(OsString, OsString)>,
    pub directory: PathBuf,
    /// The limit of open files that the server was started with.
    pub open_files: Option<libc::rlimit>,
    /// It is our own code, and tells what it does on a control socket.
    pub tells: bool,
    /// Its files are watched.
    pub reload: bool,
    /// One process loads the application, and workers are forked from it.
    pub preload: bool,
}

/// What all jobs have in common.
pub struct JobOptions {
    /// The served folder, where workers start.
    pub directory: PathBuf,
    pub environment: Vec<(OsString, OsString)>,
    pub open_files: Option<libc::rlimit>,
    /// `--python`.
    pub python: Option<PathBuf>,
    pub threads: usize,
    /// More than one worker.
    pub multiprocess: bool,
    pub reload: bool,
    pub preload: bool,
}

impl Job {
    /// A `FastCGI` or SCGI program that listens on its descriptor 0.
    pub fn command(
        name: &'static str,
        words: &[String],
        options: &JobOptions,
    ) -> Result<Self, StartError> {
        let subject = words.join(" ");
        let Some(file) = find_program(OsStr::new(&words[0]), options) else {
            let message = format!("there is no program `{}` to start", words[0]);
            return Err(StartError::failed(message)
                .hint("name one on the PATH, or a path from the served folder on"));
        };
        Ok(Self {
            name,
            subject,
            file,
            arguments: words.iter().map(OsString::from).collect(),
            // What a request says comes with it, or not at all (C37): php-cgi gives
            // its scripts the rest of its environment, too.
            environment: options
                .environment
                .iter()
                .filter(|(name, _)| !is_meta_variable(name.as_bytes()))
                .cloned()
                .collect(),
            directory: options.directory.clone(),
            open_files: options.open_files,
            tells: false,
            reload: false,
            preload: false,
        })
    }

    /// php-cgi. One request at a time, and as many as are given to it: how many
    /// is counted here, so that none meets a worker that leaves (C167).
    pub fn php(options: &JobOptions) -> Result<Self, StartError> {
        let Ok(job) = Self::command("php", &["php-cgi".into()], options) else {
            return Err(
                StartError::failed("--php: there is no program `php-cgi`").hint(
                    "install it (Debian: `apt-get install php-cgi`), or name a php-fpm: \
                 `--php=unix:/run/php/php-fpm.sock`",
                ),
            );
        };
        let mut environment = job.environment;
        environment.retain(|(name, _)| !name.as_bytes().starts_with(b"PHP_FCGI_"));
        environment.push(("PHP_FCGI_MAX_REQUESTS".into(), "0".into()));
        Ok(Self { environment, ..job })
    }

    /// A WSGI application, run by our own code in `folder`.
    pub fn wsgi(
        application: &str,
        folder: &Folder,
        options: &JobOptions,
    ) -> Result<Self, StartError> {
        let file = wsgi::interpreter(options)?;
        let code = wsgi::code(folder).map_err(|error| {
            let place = folder.path().display();
            StartError::failed(format!("cannot write to {place}: {error}"))
                .hint("set TMPDIR to a folder that can be written")
        })?;
        Ok(Self {
            name: "wsgi",
            subject: application.to_owned(),
            arguments: wsgi::arguments(&file, &code, application, options),
            file,
            environment: options.environment.clone(),
            directory: options.directory.clone(),
            open_files: options.open_files,
            tells: true,
            reload: options.reload,
            preload: options.preload,
        })
    }

    /// Ready to be started.
    pub fn program(&self) -> io::Result<Box<Program>> {
        let environment = self.environment.iter().map(|(name, value)| {
            let pair = [name.as_bytes(), b"=", value.as_bytes()].concat();
            Ok(CString::new(pair)?)
        });
        let arguments = self.arguments.iter();
        Ok(Box::new(Program {
            file: CString::new(self.file.as_os_str().as_bytes())?,
            arguments: arguments
                .map(|word| Ok(CString::new(word.as_bytes())?))
                .collect::<io::Result<_>>()?,
            environment: environment.collect::<io::Result<_>>()?,
            directory: CString::new(self.directory.as_os_str().as_bytes())?,
            open_files: self.open_files,
        }))
    }
}

/// As a shell looks for it, which stands in the served folder.
pub fn find_program(word: &OsStr, options: &JobOptions) -> Option<PathBuf> {
    let runs = |file: &Path| file.is_file() && rustix::fs::access(file, Access::EXEC_OK).is_ok();
    if word.as_bytes().contains(&b'/') {
        let file = options.directory.join(word);
        return runs(&file).then_some(file);
    }
    let path = options.environment.iter().find(|(name, _)| name == "PATH");
    let path = path.map_or(OsStr::new("/usr/local/bin:/usr/bin:/bin"), |(_, path)| path);
    std::env::split_paths(path)
        .map(|folder| options.directory.join(folder).join(word))
        .find(|file| runs(file))
}
