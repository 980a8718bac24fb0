//! The engine's door: a Unix socket that only its owner may open.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::EngineError;

/// A bound socket; its file goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) listener: UnixListener,
    path: PathBuf,
}

impl Door {
    /// Binds `path`, in place of a socket that nobody listens to any more. The file appears
    /// under its name only once it is for its owner alone.
    pub(crate) fn open(path: &Path) -> Result<Self, EngineError> {
        let failed = |source| EngineError::Bind { path: path.to_owned(), source };
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(failed(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "there is a file that is no socket; move it away",
                )));
            }
            Ok(_) => {
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    return Err(EngineError::InUse { path: path.to_owned() });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(failed)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| std::fs::rename(&fresh, path))
            .map_err(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::debug!(error:% = error; "the engine's socket file was gone already");
        }
    }
}
