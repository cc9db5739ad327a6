//! What a script's first line says about the interpreter, and whether it is one
//! that can be prepared. Whatever is in doubt is left to exec.
//!
//! The line is read as Linux reads it (`binfmt_script`): 256 bytes at most, one
//! argument at most, which may hold spaces.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What Linux reads of a file to judge it.
pub const HEAD_BYTES: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    Python,
    Perl,
}

/// An interpreter that can be prepared, as the script names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shebang {
    pub language: Language,
    pub interpreter: Interpreter,
    pub option: Option<CString>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Interpreter {
    Path(PathBuf),
    /// `#!/usr/bin/env NAME`: looked up on the script's PATH.
    Name(CString),
}

impl Shebang {
    /// `head` is the beginning of the file, up to `HEAD_BYTES`. The error is why
    /// it is left to exec.
    pub fn parse(head: &[u8]) -> Result<Self, &'static str> {
        let rest = head.strip_prefix(b"#!").ok_or("no script")?;
        let end = memchr::memchr(b'\n', rest).ok_or("no end of the first line")?;
        let line = trim(&rest[..end]);
        if line.contains(&0) {
            return Err("a NUL");
        }
        let (path, argument) = match line.iter().position(|&b| is_blank(b)) {
            Some(at) => (&line[..at], Some(trim(&line[at..]))),
            None => (line, None),
        };
        if !path.starts_with(b"/") {
            return Err("not absolute");
        }
        if matches!(path, b"/usr/bin/env" | b"/bin/env") {
            return by_name(argument.ok_or("env without a name")?);
        }
        let path = Path::new(OsStr::from_bytes(path));
        let name = path.file_name().map_or(&b""[..], OsStrExt::as_bytes);
        let language = Language::of(name).ok_or("another interpreter")?;
        let option = argument.map(|option| language.option(option)).transpose()?;
        Ok(Self {
            language,
            interpreter: Interpreter::Path(path.to_owned()),
            option,
        })
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn trim(mut line: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = line {
        line = rest;
    }
    line
}

/// All after `env` is one word to it: a name, an option or an assignment.
fn by_name(name: &[u8]) -> Result<Shebang, &'static str> {
    let language = Language::of(name).ok_or("env with something else than a name")?;
    Ok(Shebang {
        language,
        interpreter: Interpreter::Name(c_string(name)?),
        option: None,
    })
}

fn c_string(bytes: &[u8]) -> Result<CString, &'static str> {
    CString::new(bytes).map_err(|_| "a NUL")
}

impl Language {
    /// By the program's name: `python`, `python3`, `python3.12`, `perl`,
    /// `perl5.36.0`. What it really is, it says when it is prepared.
    fn of(name: &[u8]) -> Option<Self> {
        let versioned = |rest: &[u8]| rest.iter().all(|b| b.is_ascii_digit() || *b == b'.');
        if name.strip_prefix(b"python").is_some_and(versioned) {
            return Some(Self::Python);
        }
        name.strip_prefix(b"perl")
            .is_some_and(versioned)
            .then_some(Self::Perl)
    }

    /// Options under which a prepared interpreter is the same as a new one.
    fn option(self, option: &[u8]) -> Result<CString, &'static str> {
        let letters: &[u8] = match self {
            Self::Python => b"uOBsPbq",
            Self::Perl => b"wWX",
        };
        let cluster = option.strip_prefix(b"-").unwrap_or_default();
        let known = match cluster {
            [] => false,
            // One word to the kernel: `-W ignore` has a space in its value.
            [b'W', value @ ..] if self == Self::Python => is_word(value),
            [b'X', value @ ..] if self == Self::Python => {
                matches!(value, b"utf8" | b"utf8=0" | b"utf8=1")
            }
            letters_given => letters_given.iter().all(|b| letters.contains(b)),
        };
        if known {
            c_string(option)
        } else {
            Err("an option that needs an interpreter of its own")
        }
    }
}

fn is_word(value: &[u8]) -> bool {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b":._".contains(b);
    !value.is_empty() && value.iter().all(plain)
}

/// Whether a Perl script takes modules that cost something to load. Preparing
/// gains nothing where it does not. A word in a comment may deceive it, to no harm.
pub fn loads_modules(text: &[u8]) -> bool {
    const CHEAP: [&[u8]; 12] = [
        b"strict",
        b"warnings",
        b"utf8",
        b"lib",
        b"vars",
        b"integer",
        b"bytes",
        b"feature",
        b"subs",
        b"less",
        b"sort",
        b"re",
    ];
    let is_name = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b == b':';
    let mut words = text
        .split(|b| b.is_ascii_whitespace() || b";{}()".contains(b))
        .filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        if !matches!(word, b"use" | b"require" | b"do") {
            continue;
        }
        let Some(next) = words.next() else { break };
        let end = next.iter().position(|b| !is_name(b)).unwrap_or(next.len());
        let module = &next[..end];
        // A file in quotes or in a variable; not a version.
        let is_file = matches!(next, [b'"' | b'\'' | b'$', ..]);
        if is_file
            || module.first().is_some_and(u8::is_ascii_alphabetic) && !CHEAP.contains(&module)
        {
            // `v5.36` is a version too.
            let digits = module.strip_prefix(b"v").unwrap_or_default();
            if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                return true;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_prepared_is_told_from_what_is_left_to_exec() {
        let rows: &[(&str, Option<(&str, &str)>)] = &[
            // The line, and the interpreter with its option; none: exec.
            ("#!/usr/bin/python3\n", Some(("/usr/bin/python3", ""))),
            ("#! /usr/bin/python3 \t\n", Some(("/usr/bin/python3", ""))),
            ("#!/usr/bin/python\n", Some(("/usr/bin/python", ""))),
            (
                "#!/opt/v/bin/python3.13\n",
                Some(("/opt/v/bin/python3.13", "")),
            ),
            ("#!/usr/bin/env python3\n", Some(("python3", ""))),
            ("#!/bin/env perl\n", Some(("perl", ""))),
            ("#!/usr/bin/perl -w\n", Some(("/usr/bin/perl", "-w"))),
            ("#!/usr/bin/perl5.36.0\n", Some(("/usr/bin/perl5.36.0", ""))),
            ("#!/usr/bin/python3 -u\n", Some(("/usr/bin/python3", "-u"))),
            (
                "#!/usr/bin/python3 -OO\n",
                Some(("/usr/bin/python3", "-OO")),
            ),
            (
                "#!/usr/bin/python3 -uB\n",
                Some(("/usr/bin/python3", "-uB")),
            ),
            (
                "#!/usr/bin/python3 -Wignore::DeprecationWarning\n",
                Some(("/usr/bin/python3", "-Wignore::DeprecationWarning")),
            ),
            (
                "#!/usr/bin/python3 -Xutf8\n",
                Some(("/usr/bin/python3", "-Xutf8")),
            ),
            // No script, or not as Linux reads it.
            ("\x7fELF", None),
            ("", None),
            ("#!/usr/bin/python3", None),
            ("#!/usr/bin/python3\r\n", None),
            ("#!python3\n", None),
            ("#!\n", None),
            (" #!/usr/bin/python3\n", None),
            ("#!/usr/bin/python3\0\n", None),
            ("\u{feff}#!/usr/bin/python3\n", None),
            // Other interpreters.
            ("#!/bin/sh\n", None),
            ("#!/usr/bin/pypy3\n", None),
            ("#!/usr/bin/python3-config\n", None),
            ("#!/usr/bin/perldoc\n", None),
            ("#!/usr/bin/env ruby\n", None),
            // Options of env, or more than a name.
            ("#!/usr/bin/env\n", None),
            ("#!/usr/bin/env -S python3 -u\n", None),
            ("#!/usr/bin/env python3 -u\n", None),
            ("#!/usr/bin/env A=1 python3\n", None),
            ("#!/usr/bin/env ./python3\n", None),
            ("#!/usr/local/bin/env python3\n", None),
            // Options of the interpreter.
            ("#!/usr/bin/python3 -E\n", None),
            ("#!/usr/bin/python3 -I\n", None),
            ("#!/usr/bin/python3 -S\n", None),
            ("#!/usr/bin/python3 -uS\n", None),
            ("#!/usr/bin/python3 -i\n", None),
            ("#!/usr/bin/python3 -x\n", None),
            ("#!/usr/bin/python3 -m\n", None),
            ("#!/usr/bin/python3 -c\n", None),
            ("#!/usr/bin/python3 -v\n", None),
            ("#!/usr/bin/python3 -d\n", None),
            ("#!/usr/bin/python3 -R\n", None),
            ("#!/usr/bin/python3 -u -O\n", None),
            ("#!/usr/bin/python3 -W ignore\n", None),
            ("#!/usr/bin/python3 -W\n", None),
            ("#!/usr/bin/python3 -Xdev\n", None),
            ("#!/usr/bin/python3 -Ximporttime\n", None),
            ("#!/usr/bin/python3 --check\n", None),
            ("#!/usr/bin/python3 -\n", None),
            ("#!/usr/bin/python3 x\n", None),
            ("#!/usr/bin/perl -T\n", None),
            ("#!/usr/bin/perl -wT\n", None),
            ("#!/usr/bin/perl -t\n", None),
            ("#!/usr/bin/perl -s\n", None),
            ("#!/usr/bin/perl -x\n", None),
            ("#!/usr/bin/perl -i\n", None),
            ("#!/usr/bin/perl -S\n", None),
            ("#!/usr/bin/perl -d\n", None),
            ("#!/usr/bin/perl -n\n", None),
            ("#!/usr/bin/perl -CSD\n", None),
            ("#!/usr/bin/perl -l\n", None),
            ("#!/usr/bin/perl -MCGI\n", None),
        ];
        for (line, expected) in rows {
            let got = Shebang::parse(line.as_bytes()).ok().map(|shebang| {
                let interpreter = match shebang.interpreter {
                    Interpreter::Path(path) => path.display().to_string(),
                    Interpreter::Name(name) => name.into_string().unwrap(),
                };
                let option = shebang
                    .option
                    .map_or(String::new(), |o| o.into_string().unwrap());
                (interpreter, option)
            });
            let got = got.as_ref().map(|(a, b)| (a.as_str(), b.as_str()));
            assert_eq!(got, *expected, "{line:?}");
        }
    }

    #[test]
    fn a_first_line_that_linux_would_cut_off_is_left_to_exec() {
        let line = format!("#!/{}/python3\n", "a".repeat(HEAD_BYTES));
        assert!(Shebang::parse(&line.as_bytes()[..HEAD_BYTES]).is_err());
    }

    #[test]
    fn perl_scripts_that_load_modules_are_told_from_those_that_do_not() {
        for text in [
            "use CGI;\n",
            "use CGI qw(:standard);",
            "  require JSON::PP;",
            "BEGIN { require Foo }",
            "use strict;use POSIX;",
            "require 'lib.pl';",
            "do \"x.pl\";",
            "use constant X => 1;",
            "use v5.36;\nuse open ':utf8';",
            "use parent -norequire, 'A';",
        ] {
            assert!(loads_modules(text.as_bytes()), "{text}");
        }
        for text in [
            "",
            "print 1;",
            "use strict;\nuse warnings;\n",
            "use 5.010;",
            "use v5.36;",
            "useful;",
            "do { 1 } while (0);",
            "use utf8; use feature 'say';",
        ] {
            assert!(!loads_modules(text.as_bytes()), "{text}");
        }
    }
}
