use std::fmt;

use qrcode::{Color, EcLevel, QrCode};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::RecoveryError;

/// As many are made.
pub const SHEETS: u8 = 3;

/// What a box keeps of a sheet.
pub type Digest = [u8; 32];

/// Letters that lie on the same keys all over the world.
const LETTERS: &[u8; 16] = b"cbdefghijklnrtuv";
/// Random bytes, after one for the number, and before those that show a slip of the pen.
const RANDOM: usize = 16;
const CHECK: usize = 3;
const ALL: usize = 1 + RANDOM + CHECK;

/// What is on one sheet: ten groups of four letters, with their number in them. Never written to a log, wiped when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Sheet {
    number: u8,
    letters: String,
}

impl Sheet {
    /// A new one; `number` is 1 to 3.
    pub fn make(number: u8) -> Result<Self, RecoveryError> {
        let mut bytes = [0; RANDOM];
        getrandom::fill(&mut bytes).map_err(|e| RecoveryError::Random(e.to_string()))?;
        let sheet = Self::of(number, &bytes);
        bytes.zeroize();
        Ok(sheet)
    }

    fn of(number: u8, bytes: &[u8; RANDOM]) -> Self {
        let head = [number];
        let check = Sha256::new().chain_update(head).chain_update(bytes).finalize();
        let letters: Vec<u8> = head
            .iter()
            .chain(bytes)
            .chain(&check[..CHECK])
            .flat_map(|byte| [byte >> 4, byte & 15])
            .map(|half| LETTERS[usize::from(half)])
            .collect();
        let groups: Vec<&str> =
            letters.chunks(4).map(|four| std::str::from_utf8(four).expect("ASCII")).collect();
        Self { number, letters: groups.join("-") }
    }

    /// As somebody typed it: capitals, spaces and missing hyphens are no mistakes, a wrong letter is. `which` is how the refusal calls it.
    pub fn typed(text: &str, which: &'static str) -> Result<Self, RecoveryError> {
        let wrong = || RecoveryError::Mistyped(which);
        let mut halves = Vec::with_capacity(ALL * 2);
        for c in text.chars().take(400).filter(|c| !c.is_whitespace() && *c != '-') {
            let half = LETTERS.iter().position(|l| char::from(*l) == c.to_ascii_lowercase());
            halves.push(half.ok_or_else(wrong)? as u8);
        }
        if halves.len() != ALL * 2 {
            return Err(wrong());
        }
        let mut bytes = [0; ALL];
        for (byte, pair) in bytes.iter_mut().zip(halves.chunks(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        let number = bytes[0];
        let mut random = [0; RANDOM];
        random.copy_from_slice(&bytes[1..=RANDOM]);
        let sheet = Self::of(number, &random);
        let typed: Vec<u8> = halves.iter().map(|half| LETTERS[usize::from(*half)]).collect();
        let meant = sheet.letters.bytes().filter(|c| *c != b'-');
        let same = meant.eq(typed);
        random.zeroize();
        bytes.zeroize();
        if same && (1..=SHEETS).contains(&number) { Ok(sheet) } else { Err(wrong()) }
    }

    /// 1 to 3.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// As it is written down.
    pub fn expose(&self) -> &str {
        &self.letters
    }

    /// The groups, to be laid out on a page.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.letters.split('-')
    }

    /// What is kept of it.
    pub fn digest(&self) -> Digest {
        Sha256::digest(self.letters.as_bytes()).into()
    }

    /// As a picture: an SVG path over a grid of so many fields, with four light ones around.
    pub fn svg_path(&self) -> (String, usize) {
        let code = QrCode::with_error_correction_level(&self.letters, EcLevel::Q)
            .expect("a sheet of 49 letters fits into a code");
        let width = code.width();
        let mut path = String::new();
        for (at, _) in code.to_colors().iter().enumerate().filter(|(_, c)| **c == Color::Dark) {
            path += &format!("M{} {}h1v1h-1z", at % width + 4, at / width + 4);
        }
        (path, width + 8)
    }
}

impl fmt::Debug for Sheet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sheet {{ number: {}, (hidden) }}", self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_is_taken_however_it_is_spaced_and_says_its_number() {
        for number in 1..=SHEETS {
            let sheet = Sheet::make(number).unwrap();
            assert_eq!(sheet.groups().count(), 10);
            assert!(sheet.groups().all(|group| group.len() == 4));
            let spaced = format!(" {}\n", sheet.expose().to_uppercase().replace('-', "  "));
            let typed = Sheet::typed(&spaced, "the first sheet").unwrap();
            assert_eq!((typed.number(), typed.digest()), (number, sheet.digest()));
            assert!(!format!("{sheet:?}").contains(sheet.expose()));
        }
    }

    #[test]
    fn one_wrong_letter_anywhere_is_noticed() {
        let sheet = Sheet::make(2).unwrap();
        let letters: Vec<char> = sheet.expose().chars().collect();
        for at in (0..letters.len()).filter(|at| letters[*at] != '-') {
            let mut slip = letters.clone();
            slip[at] = if slip[at] == 'c' { 'b' } else { 'c' };
            let slip: String = slip.into_iter().collect();
            assert!(Sheet::typed(&slip, "it").is_err(), "{slip}");
        }
    }

    #[test]
    fn the_picture_has_the_three_corners_that_cameras_look_for() {
        let (path, width) = Sheet::make(1).unwrap().svg_path();
        let last = width - 5;
        for (x, y) in [(4, 4), (last, 4), (4, last)] {
            assert!(path.contains(&format!("M{x} {y}h1")), "{x} {y}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_is_typed_makes_it_panic(text in ".{0,120}") {
            let _ = Sheet::typed(&text, "it");
        }
        #[test]
        fn only_the_numbers_that_there_are_are_taken(number in 0u8.., bytes: [u8; 16]) {
            let made = Sheet::of(number, &bytes);
            let typed = Sheet::typed(made.expose(), "it");
            proptest::prop_assert_eq!(typed.is_ok(), (1..=SHEETS).contains(&number));
        }
    }
}
