//! What the fixture script `env` reports about how it was started.

use super::client::Response;
use super::shown;

pub(crate) struct Report {
    /// The environment block in its order, a string each.
    pub(crate) environment: Vec<Vec<u8>>,
    facts: Vec<Vec<u8>>,
    /// The interpreter is not part of it.
    pub(crate) argv: Vec<Vec<u8>>,
}

impl Report {
    /// The answer of `env`; anything else fails the test with what it was.
    pub(crate) fn of(response: &Response) -> Self {
        Self::read(response).unwrap_or_else(|| panic!("no report of `env` in:\n{response}"))
    }

    /// `None` if the answer is not that of `env`.
    pub(crate) fn read(response: &Response) -> Option<Self> {
        if response.status != 200 || !response.complete {
            return None;
        }
        let mut strings = response
            .body
            .strip_suffix(b"\0")?
            .split(|&byte| byte == 0)
            .map(<[u8]>::to_vec);
        let mut section = || {
            let mut part = Vec::new();
            for string in strings.by_ref() {
                if string.is_empty() {
                    return Some(part);
                }
                part.push(string);
            }
            None
        };
        Some(Self {
            environment: section()?,
            facts: section()?,
            argv: strings.skip(1).collect(),
        })
    }

    /// A variable's value; `None` if it is not in the block at all (C1).
    pub(crate) fn var(&self, name: &str) -> Option<&[u8]> {
        value(&self.environment, name)
    }

    /// The same as text, escaped where it is none.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.var(name).map(shown)
    }

    /// `cwd`, `umask`, `pid`, `parent`, `group`, `session`, `fd0`…, `SigIgn`, `SigBlk`.
    pub(crate) fn fact(&self, name: &str) -> Option<String> {
        value(&self.facts, name).map(shown)
    }

    /// The numbers of the descriptors a program of the script inherits.
    pub(crate) fn descriptors(&self) -> Vec<u32> {
        let mut numbers: Vec<u32> = self
            .facts
            .iter()
            .filter_map(|fact| fact.strip_prefix(b"fd"))
            .filter_map(|fact| {
                std::str::from_utf8(fact)
                    .ok()?
                    .split('=')
                    .next()?
                    .parse()
                    .ok()
            })
            .collect();
        numbers.sort_unstable();
        numbers
    }
}

fn value<'a>(strings: &'a [Vec<u8>], name: &str) -> Option<&'a [u8]> {
    strings
        .iter()
        .find_map(|string| string.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}
