//! What to do about an error of reading or writing a file.

use std::io;

use rustix::io::Errno;

/// What to do about an error, for the end of its line, such as `: check the path`. Nothing for errors that a program made itself,
/// which say it, and where there is nothing to say.
#[must_use]
pub fn advice(cause: &io::Error) -> &'static str {
    if cause.get_ref().is_some() {
        return "";
    }
    let is = |errno: Errno| cause.raw_os_error() == Some(errno.raw_os_error());
    match cause.kind() {
        io::ErrorKind::NotFound => ": check the path",
        io::ErrorKind::PermissionDenied => ": check its permissions",
        io::ErrorKind::ReadOnlyFilesystem => ": give a place that can be written to",
        io::ErrorKind::IsADirectory => ": give a file, not a folder",
        io::ErrorKind::NotADirectory => ": check the path: a part of it is a file, not a folder",
        io::ErrorKind::InvalidFilename => ": give a shorter path",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ": free some space",
        io::ErrorKind::FileTooLarge => {
            ": give a place that takes larger files, or raise the limit (ulimit -f)"
        }
        io::ErrorKind::CrossesDevices => ": give a place on the same drive",
        io::ErrorKind::ResourceBusy | io::ErrorKind::ExecutableFileBusy => {
            ": wait until the program that uses it has ended"
        }
        io::ErrorKind::OutOfMemory => ": close other programs",
        io::ErrorKind::UnexpectedEof => ": it was cut short, copy it again",
        io::ErrorKind::StaleNetworkFileHandle | io::ErrorKind::TimedOut => {
            ": check the connection to its drive"
        }
        _ if is(Errno::LOOP) => ": its links lead in a circle, remove one",
        _ if is(Errno::MFILE) || is(Errno::NFILE) => ": close other files, or raise the limit (ulimit -n)",
        _ if is(Errno::IO) || is(Errno::NODEV) || is(Errno::NXIO) => {
            ": check the drive or card and its cable"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_of_files_has_advice() {
        let known = [
            (Errno::NOENT, "check the path"),
            (Errno::NOTDIR, "check the path"),
            (Errno::ACCESS, "check its permissions"),
            (Errno::PERM, "check its permissions"),
            (Errno::ROFS, "can be written to"),
            (Errno::ISDIR, "give a file"),
            (Errno::NAMETOOLONG, "shorter path"),
            (Errno::NOSPC, "free some space"),
            (Errno::DQUOT, "free some space"),
            (Errno::FBIG, "ulimit -f"),
            (Errno::XDEV, "on the same drive"),
            (Errno::BUSY, "wait until"),
            (Errno::TXTBSY, "wait until"),
            (Errno::NOMEM, "close other programs"),
            (Errno::STALE, "the connection"),
            (Errno::TIMEDOUT, "the connection"),
            (Errno::LOOP, "in a circle"),
            (Errno::MFILE, "ulimit -n"),
            (Errno::NFILE, "ulimit -n"),
            (Errno::IO, "the drive or card"),
            (Errno::NODEV, "the drive or card"),
            (Errno::NXIO, "the drive or card"),
        ];
        for (errno, says) in known {
            let said = advice(&errno.into());
            assert!(said.starts_with(": ") && said.contains(says), "{errno:?}: {said}");
        }
        assert_eq!(advice(&io::ErrorKind::UnexpectedEof.into()), ": it was cut short, copy it again");
        // What says it already is not told again.
        assert_eq!(advice(&io::Error::new(io::ErrorKind::NotFound, "no such model: check the name")), "");
        assert_eq!(advice(&Errno::INTR.into()), "");
    }
}
