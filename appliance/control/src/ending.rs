use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::messages::AuditHead;

/// In the state folder: the box is being ended, and nothing of it may start before that is done.
pub const END: &str = "end.json";
/// In the state folder of a box that was ended and that nobody owns yet: what was done. No name is in it.
pub const ENDED: &str = "ended.json";
/// No file of ours is longer.
const LONGEST: u64 = 64 << 10;

/// The end of a box, to be printed and kept by those who decided it. The box itself keeps no copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndRecord {
    /// What the box was called.
    pub name: String,
    /// When it was decided, RFC 3339, UTC.
    pub at: String,
    /// Who decided it, in order.
    pub by: Vec<String>,
    /// SHA-256 of the certificate of its own authority.
    pub fingerprint: String,
    /// The models stay for whoever has the box next.
    pub keep_models: bool,
    /// What is erased, one line each, as it was shown to them.
    pub steps: Vec<String>,
    /// The last entry of who did what: with it a copy of the trail that somebody kept can be told from a forged one.
    pub audit: AuditHead,
}

impl EndRecord {
    /// As it is printed.
    pub fn text(&self) -> String {
        let mut text = format!(
            "RECORD OF THE END of the box {}\n\nDecided: {}\nBy: {}\nIts certificate authority: {}\nIts audit trail ended with entry {}, {}\n\nWhat was done:\n",
            self.name,
            self.at,
            self.by.join(", then "),
            self.fingerprint,
            self.audit.number,
            self.audit.hash
        );
        for (number, step) in self.steps.iter().enumerate() {
            text += &format!("  {}. {step}\n", number + 1);
        }
        text += "\nThe box shows at its first page, until somebody owns it, that this was carried out, how it was verified, and the fingerprint of this text (SHA-256 over its bytes).\n";
        text
    }
}

/// What the end of a box has done, on the box that is new since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedBox {
    /// When it was done, RFC 3339, UTC.
    pub at: String,
    /// SHA-256 of the record's text, by which the paper is known again.
    pub record: String,
    /// The last entry of the trail that was.
    pub audit: AuditHead,
    /// Files that were overwritten and removed.
    pub overwritten: u64,
    /// Files that were only removed: models, and what was encrypted with keys that were overwritten.
    pub removed: u64,
    /// The models stayed.
    pub keep_models: bool,
    /// What was found when it was looked again; nothing, where all went as it should.
    pub left: Vec<String>,
    /// What became of the disk's own key: nothing to say where that is not the box's affair.
    pub disk: Option<String>,
}

impl EndedBox {
    /// What the state folder says, if the box was ended and is nobody's yet.
    pub fn read(state: &Path) -> Option<Self> {
        use std::io::Read;
        let mut text = Vec::new();
        let file = std::fs::File::open(state.join(ENDED)).ok()?;
        file.take(LONGEST).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_says_what_when_by_whom_and_how_the_trail_ended() {
        let record = EndRecord {
            name: "birch".into(),
            at: "2026-11-27T10:00:00Z".into(),
            by: vec!["Ada".into(), "Ben".into()],
            fingerprint: "AB:CD".into(),
            keep_models: true,
            steps: vec!["Overwrite the keys".into()],
            audit: AuditHead { number: 12, hash: "ef".repeat(32) },
        };
        let text = record.text();
        let hash = "ef".repeat(32);
        for part in ["birch", "2026-11-27", "Ada, then Ben", "AB:CD", "entry 12", &hash, "1. Over"]
        {
            assert!(text.contains(part), "{part}");
        }
    }

    #[test]
    fn a_file_that_is_none_of_ours_says_nothing() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(EndedBox::read(state.path()), None);
        std::fs::write(state.path().join(ENDED), vec![b'['; 1 << 20]).unwrap();
        assert_eq!(EndedBox::read(state.path()), None);
    }
}
