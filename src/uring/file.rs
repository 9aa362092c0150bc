//! A file without a name that a ring writes chunks to and reads them back from: worth nothing to anyone but this process.
//!
//! It is readable by its owner only, and gone when its last holder is, however the process ends. The ring's operations
//! hold it (through `Rc`) until they have completed. Invariant: no name leads to it, so that nobody else can open it.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// An open file without a name.
#[derive(Debug)]
pub struct UnnamedFile {
    file: File,
}

/// Names tried where a file must have one for a moment.
const NAMES_MAX: u32 = 100;

impl UnnamedFile {
    /// In `dir`, which must exist, with mode 0600. Where the file system cannot make one without a name, it has one for a
    /// moment.
    pub fn open(dir: &Path) -> io::Result<Self> {
        ignore_size_signal();
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        match options.clone().custom_flags(libc::O_TMPFILE | libc::O_EXCL).open(dir) {
            Ok(file) => return Ok(Self { file }),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {}
            Err(e) => return Err(e),
        }
        static LAST: AtomicU32 = AtomicU32::new(0);
        options.create_new(true);
        let mut tries = 0;
        loop {
            let number = LAST.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!(".df2redis-spool-{}-{number}", std::process::id()));
            match options.open(&path) {
                Ok(file) => {
                    std::fs::remove_file(&path)?;
                    return Ok(Self { file });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && tries < NAMES_MAX => tries += 1,
                Err(e) => return Err(e),
            }
        }
    }

    pub(super) fn raw(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The file itself, for tests that damage it.
    #[cfg(test)]
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

/// For tests: any file.
#[cfg(test)]
impl From<File> for UnnamedFile {
    fn from(file: File) -> Self {
        Self { file }
    }
}

/// Bytes that an ordinary user may still write to the file system of `dir`.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: an all-zero statvfs is valid: plain numbers.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a terminated string, and the structure is writable; both live through the call.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64))
}

/// A write beyond RLIMIT_FSIZE shall fail with EFBIG, and not end the process as well.
fn ignore_size_signal() {
    // SAFETY: SIG_IGN runs no code of ours, and nothing else in this process handles SIGXFSZ.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn it_has_no_name_and_no_other_reader() {
        let dir = tempfile::tempdir().unwrap();
        let unnamed = UnnamedFile::open(dir.path()).unwrap();
        let metadata = unnamed.file().metadata().unwrap();
        assert_eq!((metadata.nlink(), metadata.permissions().mode() & 0o777), (0, 0o600));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(UnnamedFile::open(&dir.path().join("none")).is_err());
        assert!(free_bytes(dir.path()).unwrap() > 0 && free_bytes(&dir.path().join("none")).is_err());
    }
}
