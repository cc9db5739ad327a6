//! The names in a directory, in the order in which people count.
//!
//! Owns which entries are looked at at all, and their order by name. They lie
//! in one buffer: a directory may have a hundred thousand of them, and a client
//! all the time of the world.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::iter::Peekable;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, RawDir, statat};
use rustix::io::Errno;

use crate::files::resolve::{Directory, Refusal, Root};

/// What of a directory is read at once.
const DIRECTORY_BUFFER_BYTES: usize = 64 << 10;
/// Before each name stands its length.
const LENGTH_BYTES: usize = size_of::<u16>();

/// Folders come first.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Names {
    /// In order, each behind its length.
    bytes: Box<[u8]>,
    count: usize,
    /// Where the folders end.
    files: u32,
    /// The place of some in the order depends on what they are linked to.
    have_links: bool,
}

/// A name that has no place in the order yet.
struct Found {
    /// Orders most names without a look at them.
    prefix: u64,
    start: u32,
    length: u16,
    is_directory: bool,
}

impl Names {
    /// All that is shown by its name and is a file, a folder or a link. No entry
    /// is looked at but where the directory doesn't say what it is.
    pub(super) fn read(root: &Root, directory: &Directory) -> Result<Self, Refusal> {
        let descriptor = directory.open()?;
        let mut buffer = Vec::with_capacity(DIRECTORY_BUFFER_BYTES);
        let mut entries = RawDir::new(&descriptor, buffer.spare_capacity_mut());
        let mut bytes = Vec::new();
        let mut found = Vec::new();
        let mut have_links = false;
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || !root.lists(OsStr::from_bytes(name)) {
                continue;
            }
            let kind = entry.file_type();
            have_links |= !matches!(kind, FileType::Directory | FileType::RegularFile);
            let Some(is_directory) = is_directory(&descriptor, name, kind) else {
                continue;
            };
            // Four gigabytes of names are more than memory should hold.
            let place = u32::try_from(bytes.len()).map_err(|_| Errno::OVERFLOW)?;
            found.push(Found {
                prefix: 0,
                start: place,
                length: u16::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?,
                is_directory,
            });
            bytes.extend_from_slice(name);
        }
        Ok(Self {
            have_links,
            ..Self::sorted(&bytes, found)?
        })
    }

    fn sorted(bytes: &[u8], mut found: Vec<Found>) -> Result<Self, Refusal> {
        let name = |found: &Found| {
            let start = found.start as usize;
            &bytes[start..start + usize::from(found.length)]
        };
        let common = common_start(found.iter().map(name));
        for entry in &mut found {
            entry.prefix = prefix(&name(entry)[common..]);
        }
        found.sort_unstable_by(|a, b| {
            let by_prefix = (b.is_directory, a.prefix).cmp(&(a.is_directory, b.prefix));
            by_prefix.then_with(|| {
                let (a, b) = (name(a), name(b));
                natural(&a[common..], &b[common..]).then_with(|| a.cmp(b))
            })
        });
        let mut ordered = Vec::with_capacity(bytes.len() + found.len() * LENGTH_BYTES);
        let mut folders_end = 0;
        for entry in &found {
            ordered.extend_from_slice(&entry.length.to_ne_bytes());
            ordered.extend_from_slice(name(entry));
            if entry.is_directory {
                folders_end = ordered.len();
            }
        }
        // So that every place in it has a number.
        u32::try_from(ordered.len()).map_err(|_| Errno::OVERFLOW)?;
        Ok(Self {
            bytes: ordered.into(),
            count: found.len(),
            files: u32::try_from(folders_end).map_err(|_| Errno::OVERFLOW)?,
            have_links: false,
        })
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Whether some may be links; where they lead shows in no time of the folder.
    pub(super) fn have_links(&self) -> bool {
        self.have_links
    }

    /// What they take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The name at a place, and the place of the next one. The first is at 0.
    pub(super) fn at(&self, place: u32) -> Option<(&[u8], u32)> {
        let (length, rest) = self
            .bytes
            .get(place as usize..)?
            .split_first_chunk::<LENGTH_BYTES>()?;
        let name = &rest[..u16::from_ne_bytes(*length).into()];
        let next = place as usize + LENGTH_BYTES + name.len();
        Some((name, u32::try_from(next).ok()?))
    }

    pub(super) fn is_folder_at(&self, place: u32) -> bool {
        place < self.files
    }
}

/// Whether an entry is listed among the folders; `None`: it is not listed. Who
/// lists it looks closer.
fn is_directory(directory: &OwnedFd, name: &[u8], kind: FileType) -> Option<bool> {
    let kind_now = |flags| {
        let stat = statat(directory, name, flags).ok()?;
        Some(FileType::from_raw_mode(stat.st_mode))
    };
    let kind = match kind {
        FileType::Unknown => kind_now(AtFlags::SYMLINK_NOFOLLOW)?,
        kind => kind,
    };
    let kind = match kind {
        FileType::Symlink => kind_now(AtFlags::empty())?,
        kind => kind,
    };
    match kind {
        FileType::Directory => Some(true),
        FileType::RegularFile => Some(false),
        _ => None,
    }
}

/// How much at the start of all names is the same and tells nothing about
/// their order: ASCII, and no part of a number.
fn common_start<'a>(mut names: impl Iterator<Item = &'a [u8]>) -> usize {
    let Some(first) = names.next() else {
        return 0;
    };
    let ascii = first.iter().take_while(|byte| byte.is_ascii()).count();
    let common = names.fold(ascii, |common, name| {
        let same = first[..common].iter().zip(name);
        same.take_while(|(a, b)| a == b).count()
    });
    let number = first[..common].iter().rev();
    common - number.take_while(|byte| byte.is_ascii_digit()).count()
}

/// `a9` before `a10`, `B` after `a`: letters count the same in both cases, runs
/// of digits are compared as numbers.
fn natural(a: &[u8], b: &[u8]) -> Ordering {
    if a.is_ascii() && b.is_ascii() {
        compare(folded_ascii(a).peekable(), folded_ascii(b).peekable())
    } else {
        compare(folded(a).peekable(), folded(b).peekable())
    }
}

fn compare<A, B>(mut a: Peekable<A>, mut b: Peekable<B>) -> Ordering
where
    A: Iterator<Item = char>,
    B: Iterator<Item = char>,
{
    loop {
        let order = match (a.peek(), b.peek()) {
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                compare_numbers(&mut a, &mut b)
            }
            (None, None) => return Ordering::Equal,
            _ => a.next().cmp(&b.next()),
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// The one with more digits is larger; leading zeros don't count.
fn compare_numbers<A, B>(a: &mut Peekable<A>, b: &mut Peekable<B>) -> Ordering
where
    A: Iterator<Item = char>,
    B: Iterator<Item = char>,
{
    while a.next_if_eq(&'0').is_some() {}
    while b.next_if_eq(&'0').is_some() {}
    let mut order = Ordering::Equal;
    loop {
        match (
            a.next_if(char::is_ascii_digit),
            b.next_if(char::is_ascii_digit),
        ) {
            (Some(x), Some(y)) => order = order.then(x.cmp(&y)),
            (None, None) => return order,
            (x, y) => return x.cmp(&y),
        }
    }
}

/// A number for the start of a name: names whose numbers differ have the order
/// of their numbers.
fn prefix(name: &[u8]) -> u64 {
    if name.is_ascii() {
        prefix_of(folded_ascii(name).peekable())
    } else {
        prefix_of(folded(name).peekable())
    }
}

/// The bytes of the name. For a run of digits, first how many there are, as a
/// digit, then these: so numbers have their order, and their place among the
/// characters too.
fn prefix_of(mut name: Peekable<impl Iterator<Item = char>>) -> u64 {
    const BYTES: usize = size_of::<u64>();
    /// And more.
    const MANY: usize = 9;
    let mut bytes = [0; BYTES];
    let mut length = 0;
    let mut push = |part: &[u8]| {
        for (byte, &part) in bytes[length..].iter_mut().zip(part) {
            *byte = part;
            length += 1;
        }
        length < BYTES
    };
    while let Some(c) = name.next() {
        let goes_on = if c.is_ascii_digit() {
            let mut number = [0; 1 + MANY];
            let mut digits = 0;
            let mut digit = Some(c);
            while let Some(c) = digit {
                if digits < MANY && (digits > 0 || c != '0') {
                    digits += 1;
                    number[digits] = c as u8;
                }
                digit = name.next_if(char::is_ascii_digit);
            }
            number[0] = b"0123456789"[digits];
            if digits == MANY {
                push(&number[..1]);
                false
            } else {
                push(&number[..=digits])
            }
        } else {
            push(c.encode_utf8(&mut [0; 4]).as_bytes())
        };
        if !goes_on {
            break;
        }
    }
    u64::from_be_bytes(bytes)
}

fn folded_ascii(name: &[u8]) -> impl Iterator<Item = char> {
    name.iter()
        .map(|byte| char::from(byte.to_ascii_lowercase()))
}

/// In lower case; what is no UTF-8 counts as U+FFFD.
fn folded(name: &[u8]) -> impl Iterator<Item = char> {
    let chars = name.utf8_chunks().flat_map(|chunk| {
        let broken = (!chunk.invalid().is_empty()).then_some('\u{fffd}');
        chunk.valid().chars().chain(broken)
    });
    chars.flat_map(char::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_ordered_as_people_count() {
        let mut names = ["b", "a10", "a9", "a", "a01b", "A1a", "a1", "é", "É2", ""];
        names.sort_by(|a, b| natural(a.as_bytes(), b.as_bytes()));
        assert_eq!(
            names,
            ["", "a", "a1", "A1a", "a01b", "a9", "a10", "b", "é", "É2"]
        );
    }

    fn found(names: &[(Vec<u8>, bool)]) -> (Vec<u8>, Vec<Found>) {
        let mut bytes = Vec::new();
        let found = names.iter().map(|(name, is_directory)| {
            let start = u32::try_from(bytes.len()).unwrap();
            bytes.extend_from_slice(name);
            Found {
                prefix: 0,
                start,
                length: u16::try_from(name.len()).unwrap(),
                is_directory: *is_directory,
            }
        });
        let found = found.collect();
        (bytes, found)
    }

    fn name() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            "[a-cA-C0-2/:!]{0,3}".prop_map(String::into_bytes),
            "0{0,2}[0-9]{0,12}".prop_map(String::into_bytes),
            "[éÉ\u{212a}Σσß]".prop_map(String::into_bytes),
            Just(vec![0xff]),
        ];
        let start = prop_oneof![Just(&b"file-0"[..]), Just(&b""[..])];
        (start, proptest::collection::vec(part, 0..4))
            .prop_map(|(start, parts)| [start, &parts.concat()].concat())
    }

    proptest! {
        #[test]
        fn the_prefix_never_contradicts_the_order(a in name(), b in name()) {
            let by_prefix = prefix(&a).cmp(&prefix(&b));
            let order = natural(&a, &b);
            prop_assert!(by_prefix.is_eq() || by_prefix == order, "{by_prefix:?} {order:?}");
            prop_assert_eq!(natural(&b, &a), order.reverse());
        }

        #[test]
        fn the_buffer_holds_all_names_in_their_order(
            names in proptest::collection::btree_map(name(), any::<bool>(), 0..12),
        ) {
            let mut names: Vec<_> = names.into_iter().collect();
            let (bytes, found) = found(&names);
            let Ok(sorted) = Names::sorted(&bytes, found) else {
                return Err(TestCaseError::fail("too long"));
            };
            names.sort_by(|(a, a_is), (b, b_is)| {
                b_is.cmp(a_is).then_with(|| natural(a, b)).then_with(|| a.cmp(b))
            });
            prop_assert_eq!(sorted.count(), names.len());
            let mut place = 0;
            for (name, is_directory) in &names {
                prop_assert_eq!(sorted.is_folder_at(place), *is_directory);
                let (other, next) = sorted.at(place).unwrap();
                prop_assert_eq!(other, &name[..]);
                place = next;
            }
            prop_assert!(sorted.at(place).is_none());
        }
    }
}
