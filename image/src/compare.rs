//! Whether two builds are the same, byte for byte.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use polder_recipes::Digest;
use sha2::{Digest as _, Sha256};

use crate::workshop::{News, Order, Workshop};
use crate::{ImageError, Product};

impl Workshop {
    /// Makes an image a second time, from nothing but the packages and the compiled program, and compares
    /// all that is handed out. Says what the files are, by name.
    pub fn verify(
        &self,
        order: &Order,
        tell: &mut dyn FnMut(News<'_>),
    ) -> Result<Vec<(String, Digest)>, ImageError> {
        let first = self.build(order, tell)?;
        let scratch = self.cache.scratch("verify")?;
        let apart = self.apart(&scratch.0.join("cache"))?;
        // Compiling takes longest, and is the compiler's own promise.
        let program = self.product(Product::Program, order)?;
        let place = apart.place_of(Product::Program, order)?;
        fs::create_dir(&place).map_err(ImageError::file("make", &place))?;
        let (from, to) = (program.join("polder"), place.join("polder"));
        fs::copy(&from, &to).map_err(ImageError::file("write", &to))?;
        let again = Order { out: scratch.0.join("out"), ..order.clone() };
        let second = apart.build(&again, tell)?;
        first.files().into_iter().zip(second.files()).map(|(a, b)| same(a, b)).collect()
    }
}

/// Reads both files to their ends. `first` gives the name.
fn same(first: &Path, second: &Path) -> Result<(String, Digest), ImageError> {
    let name = first.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let open = |path: &Path| File::open(path).map_err(ImageError::file("read", path));
    let (mut a, mut b) = (open(first)?, open(second)?);
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let (mut hash, mut before) = (Sha256::new(), 0);
    loop {
        let n = fill(&mut a, &mut ours).map_err(ImageError::file("read", first))?;
        let m = fill(&mut b, &mut theirs).map_err(ImageError::file("read", second))?;
        if ours[..n] != theirs[..m] {
            let pairs = ours[..n].iter().zip(&theirs[..m]);
            let at = pairs.take_while(|(a, b)| a == b).count() as u64;
            return Err(ImageError::Differs { file: name, at: before + at });
        }
        if n == 0 {
            return Ok((name, Digest::from_bytes(hash.finalize().into())));
        }
        hash.update(&ours[..n]);
        before += n as u64;
    }
}

/// Reads as much as fits, up to the end of the file.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut full = 0;
    while full < buffer.len() {
        match file.read(&mut buffer[full..]) {
            Ok(0) => break,
            Ok(n) => full += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(a: &[u8], b: &[u8]) -> Result<(String, Digest), ImageError> {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("root.erofs"), folder.path().join("other"));
        fs::write(&first, a).unwrap();
        fs::write(&second, b).unwrap();
        same(&first, &second)
    }

    #[test]
    fn equal_files_are_told_by_name_and_digest() {
        for content in [vec![], vec![7; 10], vec![7; 1 << 20], vec![9; (2 << 20) + 1]] {
            let digest = Digest::from_bytes(Sha256::digest(&content).into());
            assert_eq!(compared(&content, &content).unwrap(), ("root.erofs".to_owned(), digest));
        }
    }

    #[test]
    fn the_first_byte_that_differs_is_told_wherever_it_is() {
        let whole = vec![7u8; (2 << 20) + 5];
        for at in [0, 1, (1 << 20) - 1, 1 << 20, whole.len() - 1] {
            let mut other = whole.clone();
            other[at] ^= 1;
            let error = compared(&whole, &other).unwrap_err().to_string();
            assert_eq!(error, format!("two builds differ in root.erofs: first at byte {at}"));
        }
    }

    #[test]
    fn a_file_that_goes_on_differs_where_the_other_ends() {
        let whole = vec![7u8; 1 << 20];
        for end in [0, 5, (1 << 20) - 1] {
            for (a, b) in [(&whole[..], &whole[..end]), (&whole[..end], &whole[..])] {
                let error = compared(a, b).unwrap_err().to_string();
                assert!(error.ends_with(&format!("first at byte {end}")), "{error}");
            }
        }
    }
}
