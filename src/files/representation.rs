//! The forms a file can be sent in (RFC 9110 §3.2): as it is, as its owner has
//! compressed it beforehand (`app.js.br` beside `app.js`), or in a coding made
//! on the fly; and which of them a client gets.
//!
//! The client's weights come first. Among codings that it likes alike one that
//! lies beside the file wins, br before zstd before gzip; then the one that is
//! made fastest.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderMap;

use super::cache::{Basis, Neighbours, Stamp};
use super::compression::{self, BY_SPEED, Coder};
use super::negotiation::{Accepted, Coding};
use super::precondition::Validators;
use super::resolve::{Folder, Node, Refusal, RegularFile, Root};
use crate::message::Body;

/// A form of a file. What it is recognised by is known before it is made.
pub(super) struct Representation {
    pub(super) validators: Validators,
    form: Form,
}

enum Form {
    Stored(Option<Coding>, Stored),
    /// To be made of this file. Nothing else will do if it is `needed`.
    Made {
        file: Arc<File>,
        stamp: Stamp,
        coding: Coding,
        needed: bool,
    },
}

/// What lies on the disk.
struct Stored {
    file: Arc<File>,
    path: PathBuf,
    stamp: Stamp,
}

/// The bytes of a representation.
pub(super) enum Data {
    /// The file as it is, and its length.
    Plain(Arc<File>, u64),
    /// In a coding.
    Coded(Coding, Body),
}

impl Representation {
    /// `None` if it can't be made, or not now.
    pub(super) async fn data(&self, coder: &Coder) -> Option<Data> {
        match &self.form {
            Form::Stored(coding, Stored { file, stamp, .. }) => {
                let (file, length) = (Arc::clone(file), stamp.length);
                Some(match *coding {
                    None => Data::Plain(file, length),
                    Some(coding) => Data::Coded(coding, Body::whole(file, length)),
                })
            }
            Form::Made {
                file,
                stamp,
                coding,
                needed,
            } => {
                let form = coder.code(file, *stamp, *coding, *needed).await;
                form.map(|form| Data::Coded(*coding, Body::Bytes(form)))
            }
        }
    }
}

/// What there is to send.
pub(super) struct Choice {
    /// Best first: what comes later is for when the one before can't be made.
    /// None if the client takes nothing that there is.
    pub(super) representations: Vec<Representation>,
    /// What a copy of an answer with the first of them rests on, if one may be
    /// kept.
    pub(super) basis: Option<Basis>,
}

/// A request for a file.
pub(super) struct Asked<'a> {
    pub(super) root: &'a Root,
    /// Below the root.
    pub(super) path: &'a Path,
    pub(super) headers: &'a HeaderMap,
    /// `None`: such a file is sent as it is, whatever the client says.
    pub(super) accepted: Option<Accepted>,
    /// Codings may be made, not only found.
    pub(super) on_the_fly: bool,
}

impl Asked<'_> {
    pub(super) fn choose(&self, found: RegularFile) -> Choice {
        let RegularFile {
            file,
            metadata,
            linked,
        } = found;
        let file = Arc::new(file);
        let mut representations = Vec::new();
        let mut neighbours = None;
        // What can be run may become a script by a link made later (C50).
        let mut keep = !linked && metadata.mode() & 0o111 == 0;
        if let Some(accepted) = self.accepted.filter(|accepted| accepted.any()) {
            let mut search = Search::new(self, &metadata);
            let best = accepted.sets().find_map(|set| {
                let stored = set.iter().find_map(|&coding| search.stored(coding));
                stored.or_else(|| self.made(&set, &file, &metadata))
            });
            representations.extend(best);
            neighbours = search.finish();
            keep &= neighbours.is_some();
        }
        if self.accepted.is_none_or(|accepted| accepted.identity) {
            representations.push(self.stored(None, self.path.into(), file, &metadata));
        }
        let basis = || {
            Some(Basis {
                path: self.path.to_owned(),
                stamp: Stamp::of(&metadata),
                accepted: self.accepted,
                neighbours,
                content: match &representations.first()?.form {
                    Form::Stored(_, stored) => Some((stored.path.clone(), stored.stamp)),
                    Form::Made { .. } => None,
                },
            })
        };
        Choice {
            basis: keep.then(basis).flatten(),
            representations,
        }
    }

    fn stored(
        &self,
        coding: Option<Coding>,
        path: PathBuf,
        file: Arc<File>,
        metadata: &Metadata,
    ) -> Representation {
        Representation {
            validators: self.validators(&file, metadata, coding),
            form: Form::Stored(
                coding,
                Stored {
                    file,
                    path,
                    stamp: Stamp::of(metadata),
                },
            ),
        }
    }

    /// The one of the set that is made fastest, if any may be made.
    fn made(
        &self,
        set: &[Coding],
        file: &Arc<File>,
        metadata: &Metadata,
    ) -> Option<Representation> {
        let needed = self.accepted.is_some_and(|accepted| !accepted.identity);
        if !self.on_the_fly || !compression::has_right_length(metadata.len(), needed) {
            return None;
        }
        let coding = BY_SPEED.into_iter().find(|coding| set.contains(coding))?;
        Some(Representation {
            validators: self.validators(file, metadata, Some(coding)),
            form: Form::Made {
                file: Arc::clone(file),
                stamp: Stamp::of(metadata),
                coding,
                needed,
            },
        })
    }

    fn validators(&self, file: &File, metadata: &Metadata, coding: Option<Coding>) -> Validators {
        let validators = Validators::of_file(file, metadata, self.headers, SystemTime::now());
        match coding {
            Some(coding) => validators.coded(coding),
            None => validators,
        }
    }
}

/// A search for forms of a file that lie beside it.
struct Search<'a> {
    asked: &'a Asked<'a>,
    /// When the file itself was changed last.
    modified: (i64, i64),
    /// As it was before the first look.
    folder: Option<(Folder, Stamp)>,
    /// What was found, to be used or not.
    seen: Vec<(OsString, Stamp)>,
    /// Something was found that a look at this folder can't tell a change of.
    elsewhere: bool,
}

impl<'a> Search<'a> {
    fn new(asked: &'a Asked<'a>, metadata: &Metadata) -> Self {
        let folder = asked.root.folder_of(asked.path);
        Self {
            asked,
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            folder: folder.and_then(|folder| {
                let stamp = Stamp::of_stat(&folder.stat()?)?;
                Some((folder, stamp))
            }),
            seen: Vec::new(),
            elsewhere: false,
        }
    }

    /// The file's form in a coding, if it is at least as new as the file. It is
    /// opened by the rules for every file.
    fn stored(&mut self, coding: Coding) -> Option<Representation> {
        let mut name = self.asked.path.file_name()?.to_owned();
        name.push(ending(coding));
        let path = self.asked.path.with_file_name(&name);
        let RegularFile {
            file,
            metadata,
            linked,
        } = match self.asked.root.open_node(&path) {
            Ok(Node::File(found)) => found,
            Err(Refusal::Missing) => {
                // A link may lead to nothing, for now.
                let there = self.folder.as_ref().and_then(|(f, _)| f.stat_of(&name));
                self.elsewhere |= there.is_some();
                return None;
            }
            Ok(Node::Directory(_)) | Err(_) => {
                self.elsewhere = true;
                return None;
            }
        };
        self.elsewhere |= linked || metadata.mode() & 0o111 != 0;
        self.seen.push((name, Stamp::of(&metadata)));
        let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
        // brotli gives its file the time of the other one, in whole seconds.
        let is_new = (seconds, nanoseconds) >= self.modified
            || nanoseconds == 0 && seconds == self.modified.0;
        // No coding has a form of no bytes: it is being made.
        let usable = metadata.len() > 0 && is_new;
        usable.then(|| {
            let file = Arc::new(file);
            self.asked.stored(Some(coding), path, file, &metadata)
        })
    }

    /// What says that all would be found again as it was.
    fn finish(self) -> Option<Neighbours> {
        let (_, folder) = self.folder.filter(|_| !self.elsewhere)?;
        Some(Neighbours {
            folder,
            files: self.seen,
        })
    }
}

/// What is added to the name of a file whose form it is.
fn ending(coding: Coding) -> &'static str {
    match coding {
        Coding::Br => ".br",
        Coding::Zstd => ".zst",
        Coding::Gzip => ".gz",
    }
}
