//! The private folder that the interpreters' start-up code lies in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::private_folder::{self, PrivateFolder};

const PREFIX: &str = "serve-here-warm-";

const PYTHON: &str = include_str!("zygote.py");
const PERL: &str = include_str!("zygote.pl");

pub struct Folder(PrivateFolder);

impl Folder {
    /// The error names the folder that it can't be made in.
    pub fn make() -> io::Result<Self> {
        let folder = Self(PrivateFolder::make(PREFIX)?);
        let filled = folder.fill();
        if filled.is_err() {
            folder.remove();
        }
        filled.map(|()| folder)
    }

    fn fill(&self) -> io::Result<()> {
        fs::create_dir(self.python())?;
        fs::write(self.python().join("sitecustomize.py"), PYTHON)?;
        fs::write(self.perl(), PERL)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The file Python imports before it looks at its command line.
    pub fn python(&self) -> PathBuf {
        self.path().join("python")
    }

    pub fn perl(&self) -> PathBuf {
        self.path().join("zygote.pl")
    }

    pub fn remove(&self) {
        self.0.remove();
    }

    /// What an interpreter that has ended may have left.
    pub fn forget(&self, pid: u32) {
        let _ = fs::remove_file(self.path().join(format!("learn-{pid}")));
    }
}

/// Removes the folders of this user's servers that are no more.
pub fn remove_leftovers() {
    private_folder::remove_leftovers(PREFIX);
}
