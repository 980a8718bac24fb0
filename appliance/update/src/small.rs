//! Short texts from disks that somebody plugged in, or that a program of the box may write to. What is there is hostile:
//! a link, a pipe, a file without an end, or one of four gigabytes that would all be read into memory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};

/// The text of a plain file that has at most `longest` bytes.
pub(crate) fn read(path: &Path, longest: usize) -> io::Result<String> {
    // Without waiting for whoever writes into a pipe, and not where a link leads.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no plain file"));
    }
    let mut text = String::new();
    file.take(longest as u64 + 1).read_to_string(&mut text)?;
    match text.len() > longest {
        true => Err(io::Error::other("it is too long to be one")),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_short_plain_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("plain"), "text").unwrap();
        assert_eq!(read(&at("plain"), 4).unwrap(), "text");
        assert!(read(&at("plain"), 3).unwrap_err().to_string().contains("too long"));
        std::os::unix::fs::symlink(at("plain"), at("link")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("endless")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        // Four gigabytes, of which none is written.
        File::create(at("huge")).unwrap().set_len(4 << 30).unwrap();
        std::fs::write(at("bytes"), [0xff, 0xfe]).unwrap();
        for bad in ["link", "endless", "pipe", "folder", "huge", "bytes", "nothing"] {
            assert!(read(&at(bad), 1000).is_err(), "{bad}");
        }
    }
}
