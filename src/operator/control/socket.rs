//! Where the control socket is, and how it is claimed.
//!
//! In: the identity of a job (source and target), or a path. Out: a listening socket of mode 0600 whose file goes away with
//! its guard. Invariants: a directory made here has mode 0700, and one that others may write is not used; a socket that
//! a dead process left is replaced, one that answers is not: then the same job is running already.

use crate::engine::settings::Endpoint;
use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// Longest path that the kernel takes for a Unix socket.
const PATH_BYTES_MAX: usize = 107;
/// Characters of a file name that tell source and target to people.
const NAME_CHARS_MAX: usize = 48;

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("the control socket {path} answers: the same job is running already (df2redis stop ends it)", path = .0.display())]
    Running(PathBuf),
    #[error("the control socket {path} cannot be made: {cause}", path = .path.display())]
    Failed { path: PathBuf, cause: io::Error },
}

/// A claimed socket's file; removed when dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever starts next replaces what is left behind.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The directory of control sockets where none is named.
pub fn default_dir() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let uid = own_uid();
    // systemd gives a service its own directory, and a user's session another.
    match (set("RUNTIME_DIRECTORY"), set("XDG_RUNTIME_DIR"), uid) {
        // Of several, the first.
        (Some(dirs), ..) => PathBuf::from(dirs.to_string_lossy().split(':').next().unwrap_or_default()),
        (None, Some(dir), _) => dir.join("df2redis"),
        (None, None, 0) => PathBuf::from("/run/df2redis"),
        (None, None, uid) => std::env::temp_dir().join(format!("df2redis-{uid}")),
    }
}

/// The file name of a job's socket, the same for the same source and target.
pub fn file_name(source: &Endpoint, target: &Endpoint) -> String {
    let whole = format!("{}:{}>{}:{}", source.host, source.port, target.host, target.port);
    let readable: String = format!("{}-{}_{}-{}", source.host, source.port, target.host, target.port)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' })
        .take(NAME_CHARS_MAX)
        .collect();
    let digest = twox_hash::XxHash64::oneshot(0, whole.as_bytes());
    format!("{readable}-{:08x}.sock", digest as u32)
}

/// Sockets in the default directory at which a job answers: one that was killed leaves its file behind.
pub fn found() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(default_dir()) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "sock") && answers(path))
        .collect();
    paths.sort();
    paths
}

fn answers(path: &Path) -> bool {
    // Of one that belongs to somebody else nothing is known.
    !UnixStream::connect(path)
        .is_err_and(|error| matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound))
}

/// Listens at `path`. Must be called inside a tokio runtime. (tokio-uring's own listener asks for SO_REUSEPORT, which newer
/// kernels refuse for Unix sockets.)
pub fn claim(path: &Path) -> Result<(UnixListener, SocketFile), ClaimError> {
    let failed = |cause| ClaimError::Failed { path: path.to_path_buf(), cause };
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(failed(io::Error::other(format!("its path is longer than {PATH_BYTES_MAX} bytes"))));
    }
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    make_dir(dir).map_err(failed)?;
    // Two that start at once must not both find a stale socket and remove each other's new one.
    let lock = File::open(dir).map_err(failed)?;
    lock.lock().map_err(failed)?;
    match UnixStream::connect(path) {
        Ok(_) => return Err(ClaimError::Running(path.to_path_buf())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            // Nobody listens any more. What is no socket is somebody's file, and stays.
            if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
                std::fs::remove_file(path).map_err(failed)?;
            }
        }
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let file = SocketFile(path.to_path_buf());
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok((listener, file))
}

/// The user that this process runs as.
pub fn own_uid() -> u32 {
    std::fs::metadata("/proc/self").map_or(u32::MAX, |metadata| metadata.uid())
}

/// Makes the directory of a socket if it is not there; refuses one in which others could replace the socket.
fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).recursive(true).create(dir)?;
    let metadata = std::fs::metadata(dir)?;
    let (mode, uid) = (metadata.mode(), metadata.uid());
    // A sticky directory such as /tmp lets nobody replace another's file.
    let others_write = mode & 0o022 != 0 && mode & 0o1000 == 0;
    if others_write || (uid != own_uid() && uid != 0) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("others may write in {} (mode {:o}, owner {uid})", dir.display(), mode & 0o7777),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::settings::Secret;

    fn endpoint(host: &str, port: u16) -> Endpoint {
        Endpoint { host: host.into(), port, tls: None, user: Secret::default(), password: Secret::default() }
    }

    #[test]
    fn a_socket_that_a_killed_job_left_is_no_job() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(answers(&path));
        drop(listener);
        assert!(path.exists() && !answers(&path));
        assert!(!answers(&dir.path().join("none.sock")));
    }

    #[test]
    fn names_tell_jobs_apart_and_are_no_paths() {
        let name = file_name(&endpoint("10.0.0.5", 6379), &endpoint("cache.example", 6380));
        assert!(name.starts_with("10.0.0.5-6379_cache.example-6380-"), "{name}");
        let other = file_name(&endpoint("10.0.0.5", 6380), &endpoint("cache.example", 6379));
        assert_ne!(name, other);
        let long = file_name(&endpoint(&"../x".repeat(100), 1), &endpoint("::1", 2));
        assert!(!long.contains('/') && long.len() < 70, "{long}");
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        tokio_uring::start(async {
            let (_listener, file) = claim(&path).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
            assert!(matches!(claim(&path), Err(ClaimError::Running(_))));
            drop(file);
            assert!(!path.exists());
            std::fs::write(&path, "not a socket").unwrap();
            assert!(claim(&path).is_err() && path.exists());
        });
    }

    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        tokio_uring::start(async {
            assert!(matches!(claim(&open.join("job.sock")), Err(ClaimError::Failed { .. })));
            assert!(claim(&dir.path().join("made/job.sock")).is_ok());
        });
        assert_eq!(std::fs::metadata(dir.path().join("made")).unwrap().mode() & 0o777, 0o700);
    }
}
