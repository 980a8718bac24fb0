//! The kernel's log: what drivers of graphics cards report, and memory that ran out.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use crate::seen::{KernelEvent, KernelWord};

/// More records than any kernel keeps.
const MOST: usize = 100_000;
/// The last of what was found; the rest is history.
const KEPT: usize = 500;

/// Everything of interest that the kernel still remembers.
pub(crate) fn read(now: i64, up: f64) -> io::Result<Vec<KernelEvent>> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open("/dev/kmsg")?;
    let (mut events, mut record) = (Vec::new(), [0; 8192]);
    for _ in 0..MOST {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]);
                events.extend(event(&text, now, up));
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            // A record that was overwritten meanwhile: the next read goes on after it.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
            Err(e) => return Err(e),
        }
    }
    let surplus = events.len().saturating_sub(KEPT);
    Ok(events.split_off(surplus))
}

/// A record as `/dev/kmsg` gives it: `6,1234,5678901234,-;text`, with the microseconds since the start. `up` is how many
/// seconds ago that was.
fn event(record: &str, now: i64, up: f64) -> Option<KernelEvent> {
    let (head, text) = record.split_once(';')?;
    let at: f64 = head.split(',').nth(2)?.parse::<u64>().ok()? as f64 / 1e6;
    // Lines that begin with a space are about the record, not of it.
    let text = text.lines().next()?.replace("\\x0a", " ");
    let ago = (up - at).clamp(0.0, 1e10) as i64;
    Some(KernelEvent { at: now.saturating_sub(ago), what: word(&text)? })
}

/// What one message says, whatever stands before it.
pub(crate) fn word(text: &str) -> Option<KernelWord> {
    if let Some(rest) = after(text, "NVRM: Xid (PCI:") {
        let (bus, rest) = rest.split_once(')')?;
        let code: String =
            rest.trim_start_matches([':', ' ']).chars().take_while(char::is_ascii_digit).collect();
        return Some(KernelWord::Xid { bus: place(bus)?, code: code.parse().ok()? });
    }
    // A card that is not there when its driver looks for it has no number.
    if text.contains("fallen off the bus") {
        let rest = after(text, "NVRM: GPU ").or_else(|| after(text, "The NVIDIA GPU "))?;
        return Some(KernelWord::Xid { bus: place(rest.split_whitespace().next()?)?, code: 79 });
    }
    let rest = after(text, "Out of memory: Killed process ")?;
    let name = rest.split_once('(')?.1.split_once(')')?.0;
    let process = name.chars().filter(|c| !c.is_control()).take(32).collect();
    Some(KernelWord::OutOfMemory { process })
}

fn after<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    text.find(mark).map(|at| &text[at + mark.len()..])
}

/// `0000:01:00.0:` and `0000:01:00` are one place.
fn place(bus: &str) -> Option<String> {
    let bus = bus.trim_end_matches(':');
    let bus = bus.split('.').next()?.to_ascii_lowercase();
    let good = bus.len() <= 16 && bus.chars().all(|c| c.is_ascii_hexdigit() || c == ':');
    (good && !bus.is_empty()).then_some(bus)
}

/// What the lines of a log say. Lines that begin with spaces go on with the one before, as dmesg shows them.
#[cfg(test)]
pub(crate) fn words(log: &str) -> Vec<KernelWord> {
    let mut records: Vec<String> = Vec::new();
    for line in log.lines() {
        match (line.starts_with("   "), records.last_mut()) {
            (true, Some(last)) => *last += line,
            _ => records.push(line.to_owned()),
        }
    }
    records.iter().filter_map(|record| word(record)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_drivers_really_wrote_is_read_with_card_and_number() {
        let xid = |bus: &str, code| KernelWord::Xid { bus: bus.to_owned(), code };
        assert_eq!(
            words(include_str!("../../fixtures/xid.log")),
            [
                xid("0000:cb:00", 13),
                xid("0000:cb:00", 109),
                xid("0000:00:06", 31),
                xid("0000:01:00", 79),
                xid("0000:01:00", 79),
                xid("0000:9b:00", 119),
                xid("0000:9b:00", 94),
                xid("0019:01:00", 149),
                xid("0000:b3:00", 79),
            ]
        );
    }

    #[test]
    fn a_record_of_the_kernel_has_its_time() {
        let record = "3,1042,7200000000,-;NVRM: Xid (PCI:0000:01:00): 79, pid=1122, GPU has fallen off the bus.\n SUBSYSTEM=pci\n";
        let found = event(record, 1_000_000, 10_800.0).unwrap();
        assert_eq!(found.at, 1_000_000 - 3600);
        let killed =
            "3,5,1,-;Out of memory: Killed process 4242 (polder) total-vm:123kB, anon-rss:1kB";
        let what = KernelWord::OutOfMemory { process: "polder".into() };
        assert_eq!(event(killed, 0, 0.0).unwrap().what, what);
        assert_eq!(event("5,0,0,-;Linux version 6.18.44", 0, 0.0), None);
    }

    #[test]
    fn this_machines_own_log_can_be_read_or_says_why_not() {
        match read(1_000_000, 1000.0) {
            Ok(events) => assert!(events.len() <= KEPT),
            Err(error) => assert!(matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound
            )),
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_reading_panic(text in "\\PC{0,80}", up in any::<f64>()) {
            let _ = word(&text);
            let _ = word(&format!("NVRM: Xid (PCI:{text}"));
            let _ = event(&format!("3,1,{text};{text}"), 0, up);
        }
    }
}
