//! Whether the disk can hold it, asked before the first byte is moved.

use std::path::Path;

use crate::WeightsError;

/// Bytes that an import leaves free, so that the box can still write its own records.
pub(crate) const RESERVE: u64 = 64 << 20;

/// Bytes that this process may still write to the disk under `folder`.
pub(crate) fn free(folder: &Path) -> Result<u64, WeightsError> {
    let disk = rustix::fs::statvfs(folder)
        .map_err(|e| WeightsError::store("ask for the free space of", folder)(e.into()))?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Refuses what does not fit.
pub(crate) fn check(what: &str, needed: u64, free: u64, folder: &Path) -> Result<(), WeightsError> {
    let needed = needed.saturating_add(RESERVE);
    if needed <= free || needed == RESERVE {
        return Ok(());
    }
    Err(WeightsError::NoSpace { what: what.to_owned(), needed, free, folder: folder.to_owned() })
}

/// `98.4 MB`: decimal, as disks are sold.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    let mut unit = "bytes";
    for larger in ["kB", "MB", "GB", "TB", "PB"] {
        if value < 999.95 {
            break;
        }
        value /= 1000.0;
        unit = larger;
    }
    if unit == "bytes" { format!("{count} bytes") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        let said = check("llama", 60_000_000_000, 1_000_000_000, Path::new("/state"));
        let said = said.unwrap_err().to_string();
        assert!(said.contains("needs 60.1 GB more") && said.contains("1.0 GB free"), "{said}");
        check("llama", 1_000_000, 1 << 30, Path::new("/state")).unwrap();
    }
    #[test]
    fn what_is_already_here_needs_no_space() {
        check("llama", 0, 0, Path::new("/state")).unwrap();
    }
    #[test]
    fn bytes_are_written_as_disks_are_sold() {
        assert_eq!(bytes(0), "0 bytes");
        assert_eq!(bytes(999), "999 bytes");
        assert_eq!(bytes(98_362_432), "98.4 MB");
        assert_eq!(bytes(u64::MAX), "18446.7 PB");
    }
}
