//! Why a script did not start, from the error number and a look at its first
//! line (contract C140): each way to fail has its own words and its own way out.

use std::io::{self, Read};
use std::path::Path;

use http::StatusCode;
use rustix::io::Errno;

use super::cgi::signal_name;
use super::process::Ended;
use super::reply::Invalid;
use super::script::{self, Script, has_execute_bit};
use super::spawn::{SpawnError, Step};
use crate::error::{Diagnosis, Fault};
use crate::log::escape;

/// Linux cuts the `#!` line here (C143).
const SHEBANG_BYTES: u64 = 256;

/// The fault for a script that could not be started.
pub fn cannot_start(script: &Script, failed: &SpawnError) -> Fault {
    let errno = Errno::from_io_error(&failed.error).unwrap_or(Errno::IO);
    match failed.step {
        Step::Fork => return out_of_resources(script, &failed.error),
        Step::Prepare => {
            return internal(
                script,
                "prepare",
                format!("its process could not be prepared: {errno}"),
            );
        }
        Step::Directory => {
            return internal(
                script,
                "directory",
                format!("its working directory can't be entered: {errno}"),
            )
            .hinting("the user who runs serve-here needs `x` permission on the folder");
        }
        Step::Exec => {}
    }
    let head = FirstLine::read(&script.file);
    match errno {
        Errno::NOENT if !script.file.exists() => Start::new(
            StatusCode::NOT_FOUND,
            "vanished",
            "the script does not exist",
        ),
        Errno::NOENT => missing_interpreter(&head),
        Errno::ACCESS => denied(script, &head),
        Errno::NOEXEC => not_a_program(&head),
        Errno::TXTBSY => Start::error("busy", "the file is open for writing, so it can't be run")
            .hint("close the program that writes it, then ask again"),
        Errno::TOOBIG => Start::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "too-big",
            "the request's header fields are too large for a process's environment",
        ),
        Errno::LOOP => Start::error("loop", "its interpreter or its links lead in a circle"),
        other => Start::error("exec", format!("it could not be run: {other}")),
    }
    .into_fault(script)
}

/// The script ended before its header block was complete (C124).
pub fn ended_early(script: &Script, ended: Option<Ended>, invalid: &Invalid) -> Diagnosis {
    let how = match ended {
        None | Some(Ended::Exit(0)) => String::new(),
        Some(Ended::Exit(status)) => format!("exit status {status}: "),
        Some(Ended::Signal(signal)) => format!("ended by {}: ", signal_name(signal)),
    };
    let mut diagnosis = invalid_block(script, &how, invalid);
    if let Some(Ended::Exit(126 | 127)) = ended {
        diagnosis.reason = "command-not-found";
        diagnosis.hint = Some(if FirstLine::read(&script.file).crlf {
            "line 1 ends with CRLF (Windows line endings): sed -i 's/\\r$//' {file}".into()
        } else {
            "a command inside the script was not found or is not executable; look at its PATH"
                .into()
        });
    }
    diagnosis
}

/// The header block breaks the rules (C82).
pub fn invalid(script: &Script, invalid: &Invalid) -> Diagnosis {
    invalid_block(script, "", invalid)
}

fn invalid_block(script: &Script, how: &str, invalid: &Invalid) -> Diagnosis {
    Diagnosis {
        reason: invalid.reason,
        subject: script.subject.clone(),
        fault: format!("{how}{}", invalid.message),
        hint: None,
        file: Some(script.file.clone()),
        ..Diagnosis::default()
    }
}

/// 503: the machine, not the script, is at its end (C139).
pub fn out_of_resources(script: &Script, error: &io::Error) -> Fault {
    Fault::unavailable(1).because(Diagnosis {
        reason: "resources",
        subject: script.subject.clone(),
        fault: format!("no process, descriptor or memory left to run it ({error})"),
        hint: Some("raise `ulimit -u` and `ulimit -n`, or lower `--cgi-jobs`".into()),
        file: Some(script.file.clone()),
        ..Diagnosis::default()
    })
}

fn missing_interpreter(head: &FirstLine) -> Start {
    let Some(interpreter) = head.interpreter() else {
        return Start::error("no-loader", "the program's dynamic loader is missing")
            .hint("it was built for another system; build it here");
    };
    if head.crlf {
        return Start::error(
            "crlf",
            format!("line 1 ends with CRLF (Windows line endings), so the interpreter `{interpreter}\\r` is not found"),
        )
        .hint("sed -i 's/\\r$//' {file}");
    }
    let name = Path::new(&interpreter)
        .file_name()
        .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    Start::error(
        "no-interpreter",
        format!("the interpreter `{interpreter}` named in line 1 is not found"),
    )
    .hint(format!(
        "install it, or name the right path: `command -v {name}` prints it"
    ))
}

fn denied(script: &Script, head: &FirstLine) -> Start {
    // On such a mount nothing is executable; it is the mount that says so.
    let forbidden = script::is_mounted_noexec(&script.file) && has_execute_bit(&script.file);
    let executable = rustix::fs::access(&script.file, rustix::fs::Access::EXEC_OK).is_ok();
    match head.interpreter() {
        _ if !executable && !forbidden => Start::new(
            StatusCode::FORBIDDEN,
            "not-executable",
            "the file is not executable",
        )
        .hint("chmod +x {file}"),
        Some(interpreter) if Path::new(&interpreter).is_dir() => Start::error(
            "interpreter-folder",
            format!("the interpreter `{interpreter}` named in line 1 is a folder"),
        )
        .hint("name the program in it"),
        Some(interpreter)
            if rustix::fs::access(&interpreter, rustix::fs::Access::EXEC_OK).is_err() =>
        {
            Start::error(
                "interpreter-denied",
                format!("the interpreter `{interpreter}` is not executable"),
            )
            .hint(format!("chmod +x {interpreter}"))
        }
        _ => Start::error(
            "noexec",
            "the file system that holds it forbids running programs (mounted `noexec`)",
        )
        .hint("move the script to another file system, or remount it with `exec`"),
    }
}

fn not_a_program(head: &FirstLine) -> Start {
    if head.start.is_empty() {
        return Start::error("empty", "the file is empty");
    }
    if head.start.trim_ascii_start().starts_with(b"#!") && !head.bytes.starts_with(b"#!") {
        return Start::error(
            "late-shebang",
            "there is white space before the `#!`, which must be the first of the file",
        )
        .hint("sed -z -i 's/^[[:space:]]*//' {file}");
    }
    if let Some(coding) = head.utf16() {
        return Start::error("utf16", format!("the file is written in {coding}")).hint(format!(
            "iconv -f {coding} -t UTF-8 {{file}}, and leave the byte order mark out"
        ));
    }
    if head.bytes.starts_with(b"\xef\xbb\xbf") {
        return Start::error(
            "bom",
            "the file starts with a byte order mark (BOM), which hides the `#!`",
        )
        .hint("sed -i '1s/^\\xef\\xbb\\xbf//' {file}");
    }
    if head.bytes.starts_with(b"\x7fELF") {
        return Start::error(
            "wrong-format",
            "the program was built for another processor or system",
        )
        .hint("build it on this machine");
    }
    if head.bytes.starts_with(b"#!") {
        return Start::error(
            "shebang",
            format!("line 1 can't be used: `{}`", head.text()),
        )
        .hint("write `#!/usr/bin/env INTERPRETER` there");
    }
    let missing = Start::error(
        "no-shebang",
        "there is no `#!` line, so nothing says what runs it",
    );
    if head.start.trim_ascii_start().starts_with(b"<?") {
        return missing.hint("sed -i '1i #!/usr/bin/env php-cgi' {file}");
    }
    missing.hint("sed -i '1i #!/bin/sh' {file}  (or the interpreter it was written for)")
}

fn internal(script: &Script, reason: &'static str, fault: String) -> Fault {
    Start::error(reason, fault).into_fault(script)
}

impl Fault {
    fn hinting(mut self, hint: &str) -> Self {
        if let Some(diagnosis) = &mut self.diagnosis {
            diagnosis.hint = Some(hint.into());
        }
        self
    }
}

/// A diagnosis before it knows its script.
struct Start {
    status: StatusCode,
    reason: &'static str,
    fault: String,
    hint: Option<String>,
}

impl Start {
    fn new(status: StatusCode, reason: &'static str, fault: impl Into<String>) -> Self {
        Self {
            status,
            reason,
            fault: fault.into(),
            hint: None,
        }
    }

    fn error(reason: &'static str, fault: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, reason, fault)
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn into_fault(self, script: &Script) -> Fault {
        Fault::new(self.status).because(Diagnosis {
            reason: self.reason,
            subject: script.subject.clone(),
            fault: self.fault,
            hint: self.hint,
            file: Some(script.file.clone()),
            ..Diagnosis::default()
        })
    }
}

/// The first line of the file, as far as the kernel looks.
struct FirstLine {
    /// As far, whatever the lines are.
    start: Vec<u8>,
    /// Without its end.
    bytes: Vec<u8>,
    crlf: bool,
}

impl FirstLine {
    fn read(file: &Path) -> Self {
        let mut start = Vec::new();
        // What can't be read shows as an empty line; the diagnosis then rests
        // on the error number.
        if let Ok(file) = std::fs::File::open(file) {
            let _ = file.take(SHEBANG_BYTES).read_to_end(&mut start);
        }
        let mut bytes = start.clone();
        if let Some(end) = bytes.iter().position(|&b| b == b'\n') {
            bytes.truncate(end);
        }
        let crlf = bytes.last() == Some(&b'\r');
        if crlf {
            bytes.pop();
        }
        Self { start, bytes, crlf }
    }

    /// As some editors on Windows save text.
    fn utf16(&self) -> Option<&'static str> {
        match &self.start[..] {
            [0xff, 0xfe, ..] | [b'#', 0, b'!', 0, ..] => Some("UTF-16LE"),
            [0xfe, 0xff, ..] | [0, b'#', 0, b'!', ..] => Some("UTF-16BE"),
            _ => None,
        }
    }

    fn interpreter(&self) -> Option<String> {
        let rest = self.bytes.strip_prefix(b"#!")?.trim_ascii_start();
        let end = rest
            .iter()
            .position(u8::is_ascii_whitespace)
            .unwrap_or(rest.len());
        (end > 0).then(|| escape(&rest[..end]))
    }

    fn text(&self) -> String {
        escape(&self.bytes)
    }
}
