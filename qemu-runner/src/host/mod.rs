//! What the host must have: found, or got with the user's knowledge.

pub mod debian;
pub mod tools;

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::Error;

/// Where everything about guests is cached.
pub fn cache_dir() -> PathBuf {
    image_builder::machine::target_dir().join("guest")
}

/// Holds a lock while it lives: several runners and tests may prepare things at the same time.
#[derive(Debug)]
pub struct Lock(std::fs::File);

impl Lock {
    /// Waits for the lock.
    ///
    /// # Errors
    /// The lock file cannot be made.
    pub fn take(path: &Path) -> Result<Self, Error> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(Error::path(parent))?;
        }
        let file = std::fs::File::create(path).map_err(Error::path(path))?;
        file.lock().map_err(Error::path(path))?;
        Ok(Self(file))
    }

    /// Takes the lock if nobody has it.
    ///
    /// # Errors
    /// The lock file cannot be made.
    pub fn try_take(path: &Path) -> Result<Option<Self>, Error> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(Error::path(parent))?;
        }
        let file = std::fs::File::create(path).map_err(Error::path(path))?;
        Ok(file.try_lock().is_ok().then_some(Self(file)))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file would do the same.
        let _ = self.0.unlock();
    }
}

/// SHA-256 in hexadecimal.
pub fn sha256(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a file so that nobody ever sees half of it.
///
/// # Errors
/// I/O.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(Error::path(dir))?;
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(Error::path(dir))?;
    std::io::Write::write_all(&mut file, bytes).map_err(Error::path(path))?;
    file.persist(path).map_err(|e| Error::Usage(format!("{}: {e}", path.display())))?;
    Ok(())
}
