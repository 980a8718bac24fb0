use std::collections::BTreeMap;

use jiff::civil::Date;

use crate::{Cents, Entry, Kind, LedgerError, NewEntry};

/// The columns of our own tables.
const COLUMNS: [&str; 9] =
    ["number", "date", "kind", "member", "amount", "month", "note", "entered by", "corrects"];
/// Lines of one table.
pub(crate) const MOST_LINES: usize = 5_000;

/// All entries as a table for spreadsheets. `name` says what a member is called there.
pub fn write_own(entries: &[Entry], name: &dyn Fn(i64) -> String) -> String {
    let mut out =
        csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    let mut line = |cells: [String; 9]| {
        out.write_record(cells).expect("memory takes what is written to it");
    };
    line(COLUMNS.map(str::to_owned));
    for Entry { id, what, by, .. } in entries {
        line([
            id.0.to_string(),
            what.day.to_string(),
            what.kind.word().to_owned(),
            what.member.map(|member| harmless(&name(member))).unwrap_or_default(),
            what.amount.to_string(),
            what.month.map(|month| month.to_string()).unwrap_or_default(),
            harmless(&what.note),
            harmless(&name(*by)),
            what.corrects.map(|id| id.0.to_string()).unwrap_or_default(),
        ]);
    }
    let bytes = out.into_inner().expect("memory takes what is written to it");
    String::from_utf8(bytes).expect("every cell is text")
}

/// A cell that no spreadsheet takes for a formula: one that begins like one gets an apostrophe before it.
pub fn harmless(cell: &str) -> String {
    let begins =
        |c: char| matches!(c, '=' | '+' | '-' | '@' | '\t' | '\r' | '\n' | '\'' | '|' | '%');
    // Spaces in front are dropped by some programs.
    match cell.trim_start().starts_with(begins) || cell.starts_with(begins) {
        true => format!("'{cell}"),
        false => cell.to_owned(),
    }
}

fn as_it_was(cell: &str) -> &str {
    cell.strip_prefix('\'').unwrap_or(cell)
}

/// Reads such a table again. Entries carry what they are known by, so that those that are here already are recognised. `member` finds a
/// member by name. Nothing where the first line is not that of such a table.
pub fn read_own(
    text: &str,
    member: &dyn Fn(&str) -> Option<i64>,
) -> Result<Option<Vec<NewEntry>>, LedgerError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let first = text.lines().next().unwrap_or_default();
    let semicolons = first.matches(';').count() > first.matches(',').count();
    let delimiter = if semicolons { b';' } else { b',' };
    let mut table = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .flexible(true)
        .trim(csv::Trim::Headers)
        .from_reader(text.as_bytes());
    let head = table.headers().map_err(|e| line(1, &e.to_string()))?.clone();
    if !head.iter().eq(COLUMNS) {
        return Ok(None);
    }
    let mut entries = Vec::new();
    for record in table.records() {
        let record = record.map_err(|e| line(0, &e.to_string()))?;
        let at = record.position().map_or(0, csv::Position::line);
        if entries.len() == MOST_LINES {
            return Err(LedgerError::TooLong(MOST_LINES));
        }
        let cell = |column: usize| record.get(column).unwrap_or_default().trim();
        let wrong = |why: &str| line(at, why);
        let kind: Kind = cell(2).parse().map_err(|()| {
            wrong("the kind is none of dues, share, payment, cost and fund; correct it")
        })?;
        let day: Date = cell(1).parse().map_err(|_| {
            wrong(&LedgerError::Day(cell(1).chars().take(40).collect()).to_string())
        })?;
        let amount = Cents::typed(cell(4)).map_err(|e| wrong(&e.to_string()))?;
        let name = as_it_was(cell(3));
        let owner = match kind.has_member() {
            true => Some(member(name).ok_or_else(|| {
                wrong(&format!(
                    "there is no member {:?} here",
                    name.chars().take(40).collect::<String>()
                ))
            })?),
            false => None,
        };
        let month = match cell(5) {
            "" => None,
            text => Some(text.parse().map_err(|e: crate::MonthError| wrong(&e.to_string()))?),
        };
        let corrects = match cell(8) {
            "" => None,
            text => Some(text.parse().map(crate::EntryId).map_err(|_| {
                wrong("the number of the corrected entry is no number; correct it")
            })?),
        };
        let note = as_it_was(record.get(6).unwrap_or_default()).to_owned();
        let known_by = Some(known_by(cell(0), day, kind, amount));
        let entry = NewEntry { day, kind, member: owner, amount, month, note, corrects, known_by };
        entry.check().map_err(|e| wrong(&e.to_string()))?;
        entries.push(entry);
    }
    Ok(Some(entries))
}

/// What an entry of our own is known by, wherever it is brought in.
pub(crate) fn known_by(number: &str, day: Date, kind: Kind, amount: Cents) -> String {
    format!("own {number} {day} {} {amount}", kind.word())
}

impl Entry {
    /// What this entry is known by in a table of [`write_own`].
    pub fn known_here(&self) -> String {
        known_by(&self.id.0.to_string(), self.what.day, self.what.kind, self.what.amount)
    }
}

pub(crate) fn line(line: u64, why: &str) -> LedgerError {
    let why: String = why.chars().filter(|c| !c.is_control()).take(200).collect();
    LedgerError::Line { line, why }
}

/// Names of members in lower case, to be found in what a bank writes.
pub(crate) fn by_name(members: &[(i64, String)]) -> BTreeMap<String, i64> {
    members.iter().map(|(id, name)| (name.to_lowercase(), *id)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::EntryId;

    fn entry(n: i64, what: NewEntry) -> Entry {
        Entry { id: EntryId(n), what, by: 1, at: 0 }
    }

    fn names(member: i64) -> String {
        ["=Ada", "Ben; O'Hara", "Cy \"x\""][member as usize % 3].to_owned()
    }

    #[test]
    fn no_cell_of_a_table_is_a_formula() {
        for cell in ["=1+1", "+1", "-1", "@x", "\t=1", " =1", "\r=1", "'=1", "|x", "%0A"] {
            assert!(harmless(cell).starts_with('\''), "{cell:?}");
        }
        assert_eq!(harmless("server, November"), "server, November");
        let day = "2026-11-27".parse().unwrap();
        let mut what = NewEntry::of(Kind::Payment, day, Some(0), Cents(1250));
        what.note = "=HYPERLINK(\"http://evil\")".into();
        let text = write_own(&[entry(1, what)], &names);
        let second = text.lines().nth(1).unwrap();
        let expected =
            "1,2026-11-27,payment,'=Ada,12.50,,\"'=HYPERLINK(\"\"http://evil\"\")\",Ben; O'Hara,";
        assert_eq!(second, expected);
    }

    #[test]
    fn a_line_that_cannot_be_read_is_told_by_its_number() {
        let head = COLUMNS.join(",");
        let read = |rest: &str| read_own(&format!("{head}\n{rest}"), &|_| None);
        assert_eq!(read_own("date,amount\n", &|_| None), Ok(None));
        assert_eq!(read(""), Ok(Some(Vec::new())));
        for (rest, says) in [
            ("1,2026-11-27,gift,,1.00,,,,", "the kind"),
            ("1,27.11.2026,cost,,1.00,,,,", "is no day"),
            ("1,2026-11-27,cost,,one,,,,", "no amount"),
            ("1,2026-11-27,payment,Zoe,1.00,,,,", "no member"),
            ("1,2026-11-27,cost,,1.00,soon,,,", "no month"),
            ("1,2026-11-27,cost,,0,,,,", "amount is 0"),
        ] {
            let why = read(rest).unwrap_err().to_string();
            assert!(why.starts_with("line 2: ") && why.contains(says), "{rest}: {why}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_out_reads_back(
            all in prop::collection::vec((0..5_usize, 0..3_i64, 1..Cents::MOST, "[^\\p{Cc}]{0,20}"), 0..20),
            semicolons in any::<bool>(),
        ) {
            let day = "2026-11-27".parse().unwrap();
            let entries: Vec<Entry> = all.into_iter().enumerate().map(|(n, (kind, member, cents, note))| {
                let kind = Kind::ALL[kind];
                let what = NewEntry::of(kind, day, kind.has_member().then_some(member), Cents(cents));
                entry(n as i64 + 1, NewEntry { note, ..what })
            }).collect();
            let mut text = write_own(&entries, &names);
            if semicolons {
                // As a spreadsheet of another country keeps it.
                let mut table = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
                let mut out = csv::WriterBuilder::new().delimiter(b';').from_writer(Vec::new());
                for record in table.records() { out.write_record(&record.unwrap()).unwrap(); }
                text = String::from_utf8(out.into_inner().unwrap()).unwrap();
            }
            let find = |name: &str| (0..3).find(|member| names(*member) == name);
            let back = read_own(&text, &find).unwrap().unwrap();
            prop_assert_eq!(back.len(), entries.len());
            for (back, entry) in back.iter().zip(&entries) {
                prop_assert_eq!(back.known_by.clone(), Some(entry.known_here()));
                let plain = NewEntry { known_by: None, ..back.clone() };
                prop_assert_eq!(&plain, &entry.what);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = read_own(&text, &|_| Some(1));
            let _ = read_own(&format!("{}\n{text}", COLUMNS.join(",")), &|_| Some(1));
        }
    }
}
