//! Transcripts: what is sent and what is expected, as files a reviewer reads.
//!
//! - `> text` is sent, followed by CRLF; a `\` at its end leaves that out.
//! - `< text` is a line of the response: head lines, then the lines of the body
//!   with chunked coding removed. A body that ends without a line end is
//!   followed by `\` likewise. `< [closed]`: the server ends the connection.
//! - `---` starts another connection. Anything else is a remark.
//!
//! `\r`, `\n`, `\t`, `\\` and `\xHH` are escapes on both sides; `{host}` and
//! `{port}` stand for the server's; `[..]` matches any text inside a line, and
//! any number of lines where it stands alone. `UPDATE_TRANSCRIPTS=1` rewrites the expected lines that do not match.

use std::fs;
use std::path::Path;

use super::{Client, Head, Response, Server, fixtures};

/// Alone on a line: any number of lines.
const ANY: &str = "[..]";

const CLOSED: &str = "[closed]";

/// Fields whose value is another at each run or on each machine.
const VOLATILE: [&str; 4] = ["Date", "ETag", "Server", "Last-Modified"];

/// Lines of one kind that stand together.
enum Block {
    Remark(Vec<String>),
    Sent(Vec<String>),
    Expected(Vec<String>),
    NewConnection,
}

/// Runs a file of tests/transcripts against `server`; a name without `.txt`.
pub(crate) fn run(name: &str, server: &Server) {
    let path = fixtures("../transcripts").join(format!("{name}.txt"));
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let seen = replay(&text, server);
    if seen == text {
        return;
    }
    assert!(
        std::env::var_os("UPDATE_TRANSCRIPTS").is_some(),
        "tests/transcripts/{name}.txt has another course:\n{}\
         UPDATE_TRANSCRIPTS=1 takes it over",
        difference(&text, &seen)
    );
    fs::write(&path, seen).expect("the transcript can be written");
}

/// All names in tests/transcripts.
pub(crate) fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(fixtures("../transcripts"))
        .expect("the folder is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "txt"))
        .filter_map(|path| Some(Path::file_stem(&path)?.to_str()?.to_owned()))
        .collect();
    names.sort_unstable();
    names
}

/// The transcript as it really goes; lines that match stay as they stand.
fn replay(text: &str, server: &Server) -> String {
    let mut seen = String::new();
    let mut client = None;
    let mut method = String::new();
    for block in blocks(text) {
        match block {
            Block::Remark(lines) => push(&mut seen, "", &lines),
            Block::NewConnection => {
                client = None;
                push(&mut seen, "", &["---".to_owned()]);
            }
            Block::Sent(lines) => {
                let first = lines.first().map_or("", String::as_str);
                if let Some((word, _)) = first.split_once(' ')
                    && first.contains(" HTTP/")
                {
                    word.clone_into(&mut method);
                }
                let bytes: Vec<u8> = lines
                    .iter()
                    .flat_map(|line| bytes_of(line, server))
                    .collect();
                client.get_or_insert_with(|| server.connect()).send(bytes);
                push(&mut seen, "> ", &lines);
            }
            Block::Expected(expected) => {
                let client = client.as_mut().expect("something was sent before");
                let actual = received(client, &method, &expected, server);
                push(&mut seen, "< ", &reconciled(&expected, &actual));
            }
        }
    }
    seen
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for line in text.lines() {
        let side = |mark: char| {
            let rest = line.strip_prefix(mark)?;
            Some(rest.strip_prefix(' ').unwrap_or(rest).to_owned())
        };
        let block = match (side('>'), side('<')) {
            _ if line == "---" => Block::NewConnection,
            (Some(sent), _) => Block::Sent(vec![sent]),
            (_, Some(expected)) => Block::Expected(vec![expected]),
            _ => Block::Remark(vec![line.to_owned()]),
        };
        match (blocks.last_mut(), block) {
            (Some(Block::Remark(lines)), Block::Remark(more))
            | (Some(Block::Sent(lines)), Block::Sent(more))
            | (Some(Block::Expected(lines)), Block::Expected(more)) => lines.extend(more),
            (_, block) => blocks.push(block),
        }
    }
    blocks
}

/// As many responses as are expected, as lines.
fn received(
    client: &mut Client,
    method: &str,
    expected: &[String],
    server: &Server,
) -> Vec<String> {
    let mut lines = Vec::new();
    let mut missing = false;
    for head in expected.iter().filter(|line| line.starts_with("HTTP/")) {
        // After an interim response the client speaks again before the final one.
        let some = if head.starts_with("HTTP/1.1 1") {
            client.head().map(|head| head_lines(&head))
        } else {
            client
                .try_response_to(method)
                .map(|response| lines_of(&response))
        };
        missing |= some.is_none();
        lines.extend(some.unwrap_or_default());
    }
    let closed = missing || expected.iter().any(|line| line == CLOSED);
    if closed && client.is_closed() {
        lines.push(CLOSED.to_owned());
    }
    let (host, port) = (server.host(), format!(":{}", server.address().port()));
    for line in &mut lines {
        *line = line.replace(&host, "{host}").replace(&port, ":{port}");
    }
    lines
}

fn lines_of(response: &Response) -> Vec<String> {
    let mut lines: Vec<String> = response.interim.iter().flat_map(head_lines).collect();
    lines.extend(head_lines(&response.head));
    let mut body: Vec<String> = response
        .body
        .split(|&byte| byte == b'\n')
        .map(escaped)
        .collect();
    match body.pop() {
        Some(last) if !last.is_empty() => body.push(format!("{last}\\")),
        _ => {}
    }
    lines.extend(body);
    if !response.complete {
        lines.push("[incomplete]".to_owned());
    }
    lines
}

/// Status line, fields, empty line.
fn head_lines(head: &Head) -> Vec<String> {
    let mut lines = vec![format!("{} {} {}", head.version, head.status, head.reason)];
    for (name, value) in &head.headers {
        let line = format!("{name}: {}", escaped(value));
        lines.push(line.trim_end().to_owned());
    }
    lines.push(String::new());
    lines
}

/// The expected line where it matches, the actual one where not, with what
/// changes from run to run left open.
fn reconciled(expected: &[String], actual: &[String]) -> Vec<String> {
    let mut expected = expected.iter().peekable();
    let mut lines = Vec::new();
    let mut open = false;
    for line in actual {
        if expected.next_if(|&pattern| pattern == ANY).is_some() {
            open = true;
            lines.push(ANY.to_owned());
        }
        // Lines that no longer come are passed over, so that one change does
        // not rewrite the rest; not past a gap, where any line may stand.
        let mut ahead = expected.clone().take_while(|&pattern| pattern != ANY);
        let at = if open {
            let next = expected.peek();
            next.is_some_and(|pattern| matches(pattern, line))
                .then_some(0)
        } else {
            ahead.position(|pattern| matches(pattern, line))
        };
        match at {
            Some(at) => {
                open = false;
                lines.extend(expected.nth(at).cloned());
            }
            None if open => {}
            None => lines.push(opened(line)),
        }
    }
    if expected.next_if(|&pattern| pattern == ANY).is_some() {
        lines.push(ANY.to_owned());
    }
    lines
}

fn opened(line: &str) -> String {
    match line.split_once(": ") {
        Some((name, _)) if VOLATILE.contains(&name) => format!("{name}: [..]"),
        _ => line.to_owned(),
    }
}

/// Whether `line` is `pattern` with any text at each `[..]`.
fn matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split("[..]");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        if let Some(part) = last.replace(part) {
            let Some(at) = rest.find(part) else {
                return false;
            };
            rest = &rest[at + part.len()..];
        }
    }
    match last {
        Some(part) => rest.ends_with(part),
        None => rest.is_empty(),
    }
}

fn bytes_of(line: &str, server: &Server) -> Vec<u8> {
    let line = String::from_utf8(server.filled(line.as_bytes())).expect("it was text before");
    // An escaped backslash at the end is no mark.
    let marks = line.len() - line.trim_end_matches('\\').len();
    let (line, end) = if marks % 2 == 1 {
        (&line[..line.len() - 1], &b""[..])
    } else {
        (&line[..], &b"\r\n"[..])
    };
    let mut bytes = Vec::new();
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match (c, if c == '\\' { rest.next() } else { None }) {
            ('\\', Some('r')) => bytes.push(b'\r'),
            ('\\', Some('n')) => bytes.push(b'\n'),
            ('\\', Some('t')) => bytes.push(b'\t'),
            ('\\', Some('\\')) => bytes.push(b'\\'),
            ('\\', Some('x')) => {
                let digits: String = rest.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(&digits, 16).expect("`\\x` and two digits"));
            }
            ('\\', other) => panic!("`\\{}` is no escape", other.unwrap_or(' ')),
            (c, _) => bytes.extend(c.to_string().bytes()),
        }
    }
    bytes.extend(end);
    bytes
}

/// Text as a transcript shows it: UTF-8 stays readable.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' | '\0'..='\x1f' | '\x7f' => {
                    let byte = u8::try_from(c).expect("the pattern is ASCII");
                    text.push_str(&byte.escape_ascii().to_string());
                }
                c => text.push(c),
            }
        }
        text.push_str(&chunk.invalid().escape_ascii().to_string());
    }
    text
}

fn push(text: &mut String, mark: &str, lines: &[String]) {
    for line in lines {
        text.push_str(format!("{mark}{line}").trim_end());
        text.push('\n');
    }
}

/// Both sides from the first line that differs.
fn difference(expected: &str, seen: &str) -> String {
    let same = expected
        .lines()
        .zip(seen.lines())
        .take_while(|(a, b)| a == b)
        .count();
    let tail = |text: &str| -> String {
        let lines: Vec<&str> = text.lines().skip(same).take(30).collect();
        lines.join("\n")
    };
    format!(
        "from line {}; expected:\n{}\n--- came ---\n{}\n---\n",
        same + 1,
        tail(expected),
        tail(seen)
    )
}

#[test]
fn a_pattern_matches_with_any_text_at_its_gaps() {
    for (pattern, line, expected) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("a[..]", "abc", true),
        ("a[..]c", "abc", true),
        ("a[..]c", "ac", true),
        ("a[..]d", "abc", false),
        ("[..]b[..]", "abc", true),
        ("a[..]b[..]b", "ab", false),
    ] {
        assert_eq!(matches(pattern, line), expected, "{pattern} / {line}");
    }
}

#[test]
fn only_lines_that_match_stay_as_they_are_expected() {
    for (expected, actual, seen) in [
        ("a b", "a b", "a b"),
        ("a b", "a c", "a c"),
        ("a b", "a b c", "a b c"),
        ("a b c", "a c", "a c"),
        ("a [..]", "a b c", "a [..]"),
        ("a [..]", "a", "a [..]"),
        ("a [..] c", "a b b c", "a [..] c"),
        ("a [..] c", "a c", "a [..] c"),
        ("a [..] c", "a b", "a [..]"),
        ("a [..] c", "a c d", "a [..] c d"),
        ("a [..] c [..]", "a b c d", "a [..] c [..]"),
    ] {
        let lines = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
        let result = reconciled(&lines(expected), &lines(actual)).join(" ");
        assert_eq!(result, seen, "{expected} / {actual}");
    }
}
