use qrcode::{Color, EcLevel, QrCode};

use crate::KitKey;

/// The emergency kit: all that a person needs, besides the backups, to have the box again. To be printed.
#[derive(Debug, Clone)]
pub struct Kit {
    /// What the box is called.
    pub name: String,
    /// Where its backups go, once it is known.
    pub place: Option<String>,
    /// SHA-256 of its authority's certificate, by which a restored box is known again.
    pub fingerprint: String,
    /// Opens the backups.
    pub key: KitKey,
}

impl Kit {
    /// The key as a square of dark and light fields, row by row.
    pub fn squares(&self) -> Vec<Vec<bool>> {
        let code = QrCode::with_error_correction_level(self.key.expose(), EcLevel::Q)
            .expect("a key of 44 letters fits into a code");
        let width = code.width();
        let dark: Vec<bool> = code.to_colors().into_iter().map(|c| c == Color::Dark).collect();
        dark.chunks(width).map(<[bool]>::to_vec).collect()
    }

    /// The key as a picture: an SVG path over a grid of so many fields, with four light ones around.
    pub fn svg_path(&self) -> (String, usize) {
        let squares = self.squares();
        let mut path = String::new();
        for (y, row) in squares.iter().enumerate() {
            for (x, _) in row.iter().enumerate().filter(|(_, dark)| **dark) {
                path += &format!("M{} {}h1v1h-1z", x + 4, y + 4);
            }
        }
        (path, squares.len() + 8)
    }

    /// The same for a terminal or a printer of plain text.
    pub fn text(&self) -> String {
        let groups: Vec<&str> = self.key.groups().collect();
        let key: String =
            groups.chunks(3).map(|line| format!("    {}\n", line.join("  "))).collect();
        let place = self.place.as_deref().unwrap_or("(not chosen yet; write it here)");
        format!(
            "EMERGENCY KIT of the box {}\n\nKey of its backups:\n\n{key}\nWhere they are: {place}\nFingerprint of its certificate authority:\n  {}\n\n\
             Whoever has this sheet and the backups has the box, with all its members' keys. Keep it where\n\
             the box is not. To have the box again on another machine, open its first page and choose\n\
             \"Restore a box from its backups\", or type there:\n  polder backup restore --from PLACE\n\
             Without Polder, restic opens the backups too: the key, with its hyphens, is the password.\n",
            self.name, self.fingerprint
        )
    }

    /// The code for a terminal, two rows in one line. Light on dark terminals, which cameras read as well.
    pub fn code(&self) -> String {
        let squares = self.squares();
        let dark =
            |x: usize, y: usize| *squares.get(y).and_then(|row| row.get(x)).unwrap_or(&false);
        let mut text = String::new();
        let margin = " ".repeat(2);
        for y in (0..squares.len()).step_by(2) {
            text += &margin;
            for x in 0..squares.len() {
                text.push(match (dark(x, y), dark(x, y + 1)) {
                    (true, true) => '█',
                    (true, false) => '▀',
                    (false, true) => '▄',
                    (false, false) => ' ',
                });
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sheet_has_all_that_a_restore_asks_for_and_the_key_can_be_typed_from_it() {
        let kit = Kit {
            name: "birch".to_owned(),
            place: Some("/mnt/usb".to_owned()),
            fingerprint: "AB:CD".to_owned(),
            key: KitKey::make().unwrap(),
        };
        let text = kit.text();
        for part in ["birch", "/mnt/usb", "AB:CD", "polder backup restore"] {
            assert!(text.contains(part), "{part}");
        }
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("    ")).collect();
        assert_eq!(KitKey::typed(&lines.join(" ")).unwrap(), kit.key);
        let squares = kit.squares();
        assert!(squares.iter().all(|row| row.len() == squares.len()));
        // The three corners that cameras look for.
        let last = squares.len() - 1;
        assert!(squares[0][0] && squares[0][last] && squares[last][0]);
        let (path, width) = kit.svg_path();
        assert_eq!(path.matches('M').count(), squares.iter().flatten().filter(|d| **d).count());
        assert_eq!(width, squares.len() + 8);
    }
}
