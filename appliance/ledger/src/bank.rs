use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use sha2::{Digest, Sha256};

use crate::sheet::{MOST_LINES, by_name, line};
use crate::{Cents, Kind, LedgerError, NewEntry};

/// A line of a bank's table, and what it means here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The day.
    pub day: Date,
    /// What came in; less than nothing for what went out.
    pub amount: Cents,
    /// Who and what for, as the bank writes it.
    pub text: String,
    /// What comes of it.
    pub found: Found,
}

/// What comes of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is written down.
    New(NewEntry),
    /// It was brought in before.
    Known,
    /// Money came in, and no name of one member stands there: somebody has to enter it by hand.
    Whose,
    /// Nothing.
    Empty,
}

/// Headings of columns, in small letters, in the languages of a few banks.
const DAY: &[&str] = &[
    "date",
    "datum",
    "buchungstag",
    "booking date",
    "buchungsdatum",
    "transaction date",
    "boekdatum",
    "fecha",
];
const AMOUNT: &[&str] = &[
    "amount",
    "betrag",
    "bedrag",
    "montant",
    "importe",
    "umsatz",
    "amount (eur)",
    "betrag (eur)",
    "bedrag (eur)",
];
const TEXT: &[&str] = &[
    "name",
    "text",
    "description",
    "payee",
    "reference",
    "note",
    "details",
    "counterparty",
    "verwendungszweck",
    "buchungstext",
    "beguenstigter/zahlungspflichtiger",
    "auftraggeber/empfänger",
    "zahlungsempfänger*in",
    "naam / omschrijving",
    "mededelingen",
    "omschrijving",
    "libellé",
    "concepto",
];

/// Reads a bank's table. What came in is a payment of the member whose name stands there; what went out is a cost. `known` has what
/// was brought in before.
pub fn read_bank(
    text: &str,
    members: &[(i64, String)],
    known: &BTreeSet<String>,
) -> Result<Vec<Row>, LedgerError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let first = text.lines().next().unwrap_or_default();
    let delimiter =
        [b';', b'\t', b','].into_iter().max_by_key(|d| first.bytes().filter(|b| b == d).count());
    let mut table = csv::ReaderBuilder::new()
        .delimiter(delimiter.unwrap_or(b','))
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let head = table.headers().map_err(|e| line(1, &e.to_string()))?.clone();
    let column =
        |names: &[&str]| head.iter().position(|cell| names.contains(&cell.to_lowercase().as_str()));
    let day = column(DAY).ok_or(LedgerError::Column("the date"))?;
    let amount = column(AMOUNT).ok_or(LedgerError::Column("the amount"))?;
    let texts: Vec<usize> = (0..head.len())
        .filter(|at| head.get(*at).is_some_and(|cell| TEXT.contains(&cell.to_lowercase().as_str())))
        .collect();
    if texts.is_empty() {
        return Err(LedgerError::Column("the text"));
    }
    // Some banks write amounts without a sign, and which way the money went beside them.
    let side = column(&["af bij", "debit/credit", "soll/haben", "s/h"]);
    let members = by_name(members);
    let (mut rows, mut seen) = (Vec::new(), BTreeMap::new());
    for record in table.records() {
        let record = record.map_err(|e| line(0, &e.to_string()))?;
        let at = record.position().map_or(0, csv::Position::line);
        if rows.len() == MOST_LINES {
            return Err(LedgerError::TooLong(MOST_LINES));
        }
        let cell = |at: usize| record.get(at).unwrap_or_default();
        let day = day_of(cell(day)).map_err(|e| line(at, &e.to_string()))?;
        let amount = Cents::typed(cell(amount)).map_err(|e| line(at, &e.to_string()))?;
        let goes_out = side.is_some_and(|at| {
            ["af", "debit", "soll", "s"].contains(&cell(at).to_lowercase().as_str())
        });
        let amount = if goes_out { -amount.size() } else { amount };
        let text = texts.iter().map(|at| cell(*at)).filter(|text| !text.is_empty());
        let text = plain(&text.collect::<Vec<_>>().join(" · "));
        // The same line twice in one table is two transfers.
        let times = seen.entry((day, amount, text.clone())).or_insert(0_u32);
        *times += 1;
        let known_by = key(day, amount, &text, *times);
        let found = match amount.0 {
            0 => Found::Empty,
            _ if known.contains(&known_by) => Found::Known,
            1.. => match whose(&text, &members) {
                Some(member) => {
                    let entry = NewEntry::of(Kind::Payment, day, Some(member), amount);
                    Found::New(NewEntry { note: text.clone(), known_by: Some(known_by), ..entry })
                }
                None => Found::Whose,
            },
            _ => {
                let entry = NewEntry::of(Kind::Cost, day, None, -amount);
                Found::New(NewEntry { note: text.clone(), known_by: Some(known_by), ..entry })
            }
        };
        if let Found::New(entry) = &found {
            entry.check().map_err(|e| line(at, &e.to_string()))?;
        }
        rows.push(Row { day, amount, text, found });
    }
    Ok(rows)
}

/// A day as banks write it: 2026-11-27, 27.11.2026, 27.11.26, 27/11/2026, 27-11-2026, 20261127. The month is never first.
fn day_of(text: &str) -> Result<Date, LedgerError> {
    let wrong = || LedgerError::Day(text.chars().take(40).collect());
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|c| c.is_ascii_digit());
    if let Ok(day) = text.parse() {
        return Ok(day);
    }
    let parts: Vec<&str> = match text.len() {
        8 if digits(text) => vec![&text[6..], &text[4..6], &text[..4]],
        _ => text.split(['.', '/', '-']).collect(),
    };
    let [day, month, year] = parts[..] else { return Err(wrong()) };
    if ![day, month, year].iter().all(|part| digits(part)) || day.len() > 2 || month.len() > 2 {
        return Err(wrong());
    }
    let year: i16 = match year.len() {
        2 => 2000 + year.parse::<i16>().map_err(|_| wrong())?,
        4 => year.parse().map_err(|_| wrong())?,
        _ => return Err(wrong()),
    };
    let number = |part: &str| part.parse::<i8>().map_err(|_| wrong());
    Date::new(year, number(month)?, number(day)?).map_err(|_| wrong())
}

/// One line that can be printed, as long as a note may be.
fn plain(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(200).collect()
}

/// The one member whose name stands in a text, as a whole word; nobody where there are two.
fn whose(text: &str, members: &BTreeMap<String, i64>) -> Option<i64> {
    let text = text.to_lowercase();
    let stands = |name: &str| {
        text.match_indices(name).any(|(at, _)| {
            let before = text[..at].chars().next_back();
            let after = text[at + name.len()..].chars().next();
            ![before, after].into_iter().flatten().any(char::is_alphanumeric)
        })
    };
    let named: Vec<&String> =
        members.keys().filter(|name| !name.is_empty() && stands(name)).collect();
    // "Ann Lee" is Ann Lee, also where there is an Ann.
    let longest = named.iter().max_by_key(|name| name.len())?;
    let parts = named.iter().all(|name| longest.contains(name.as_str()));
    parts.then(|| members[*longest])
}

fn key(day: Date, amount: Cents, text: &str, times: u32) -> String {
    let digest = Sha256::digest(format!("{day}\n{amount}\n{text}\n{times}"));
    digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members() -> Vec<(i64, String)> {
        vec![
            (1, "Ada Lovelace".into()),
            (2, "Ben".into()),
            (3, "Ann".into()),
            (4, "Ann Lee".into()),
        ]
    }

    const TABLE: &str = "\u{feff}Buchungstag;Auftraggeber/Empfänger;Verwendungszweck;Betrag\n\
        27.11.2026;ADA LOVELACE;Beitrag November;12,50\n\
        26.11.26;Stadtwerke;=Strom;-1.234,56\n\
        2026-11-25;Benedict;Dues;5,00\n\
        25.11.2026;Ann Lee;Dues;5,00\n\
        24.11.2026;Ben;for me and Ann;10,00\n\
        24.11.2026;Ben;twice;1,00\n\
        24.11.2026;Ben;twice;1,00\n";

    #[test]
    fn what_came_in_is_a_members_payment_and_what_went_out_a_cost() {
        let rows = read_bank(TABLE, &members(), &BTreeSet::new()).unwrap();
        let said: Vec<_> = rows
            .iter()
            .map(|row| match &row.found {
                Found::New(entry) => (entry.kind.word(), entry.member, entry.amount.0),
                Found::Whose => ("whose", None, row.amount.0),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            said,
            [
                ("payment", Some(1), 1250),
                ("cost", None, 123_456),
                ("whose", None, 500),
                ("payment", Some(4), 500),
                ("whose", None, 1000),
                ("payment", Some(2), 100),
                ("payment", Some(2), 100),
            ]
        );
    }

    #[test]
    fn which_way_the_money_went_may_stand_beside_an_amount_without_a_sign() {
        let table = "Datum;Bedrag (EUR);Af Bij;Mededelingen\n20261127;12,50;Af;power\n20261127;12,50;Bij;who knows\n";
        let rows = read_bank(table, &members(), &BTreeSet::new()).unwrap();
        let amounts: Vec<i64> = rows.iter().map(|row| row.amount.0).collect();
        assert_eq!(amounts, [-1250, 1250]);
        assert!(matches!(&rows[0].found, Found::New(entry) if entry.kind == Kind::Cost));
    }

    #[test]
    fn a_table_that_was_brought_in_is_recognised_line_by_line() {
        let rows = read_bank(TABLE, &members(), &BTreeSet::new()).unwrap();
        let known: BTreeSet<String> = rows
            .iter()
            .filter_map(|row| match &row.found {
                Found::New(entry) => entry.known_by.clone(),
                _ => None,
            })
            .collect();
        assert_eq!(known.len(), 5, "two equal transfers are two");
        let longer = format!("{TABLE}28.11.2026;Ben;more;2,00\n");
        let again = read_bank(&longer, &members(), &known).unwrap();
        let new = again.iter().filter(|row| matches!(row.found, Found::New(_))).count();
        let old = again.iter().filter(|row| row.found == Found::Known).count();
        assert_eq!((new, old), (1, 5));
    }

    #[test]
    fn a_table_that_is_none_says_what_is_lacking() {
        let read = |text: &str| read_bank(text, &members(), &BTreeSet::new());
        assert_eq!(read(""), Err(LedgerError::Column("the date")));
        assert_eq!(read("date,text\n"), Err(LedgerError::Column("the amount")));
        assert_eq!(read("date,amount\n"), Err(LedgerError::Column("the text")));
        let head = "date,amount,text\n";
        for (row, says) in [
            ("soon,1.00,x", "is no day"),
            ("2026-13-01,1.00,x", "is no day"),
            ("31.02.2026,1.00,x", "is no day"),
            ("2026-11-27,much,x", "no amount"),
        ] {
            let why = read(&format!("{head}{row}")).unwrap_err().to_string();
            assert!(why.starts_with("line 2: ") && why.contains(says), "{row}: {why}");
        }
        let long = format!("{head}{}", "2026-11-27,1.00,x\n".repeat(MOST_LINES + 1));
        assert_eq!(read(&long), Err(LedgerError::TooLong(MOST_LINES)));
        assert_eq!(read(&format!("{head}2026-11-27,0,x")).unwrap()[0].found, Found::Empty);
    }

    proptest! {
        #[test]
        fn no_table_panics(text in "\\PC{0,200}", rows in "[0-9.,;/\\-\"\n a-z]{0,200}") {
            let _ = read_bank(&text, &members(), &BTreeSet::new());
            let _ = read_bank(&format!("date;amount;text\n{rows}"), &members(), &BTreeSet::new());
        }
    }
}
