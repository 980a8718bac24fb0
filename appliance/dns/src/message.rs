//! The wire format: what is sent, and what comes back from a server that may be anybody.

use crate::name::Name;
use crate::tsig::{self, Key, Signed};
use crate::update::{Change, Data};

const HEADER: usize = 12;
const SOA: u16 = 6;
const TSIG: u16 = 250;
const CLASS_IN: u16 = 1;
const CLASS_NONE: u16 = 254;
const CLASS_ANY: u16 = 255;
/// An update; shifted to its place.
const UPDATE: u16 = 5 << 11;
const ANSWER: u16 = 1 << 15;

/// A request as it is sent, and its signature, which the answer's goes on from.
pub(crate) struct Request {
    pub(crate) bytes: Vec<u8>,
    pub(crate) id: u16,
    pub(crate) mac: Vec<u8>,
}

/// Why an answer is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Odd {
    /// Cut short, or not of this format.
    Garbled,
    /// To another question.
    NotOurs,
    /// Good news that nobody signed, or somebody else.
    Unsigned,
}

/// What the server says: its code and that of the signature; 0 and 0 where all is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) code: u8,
    pub(crate) signature: u16,
}

/// Builds a signed update of `zone`.
pub(crate) fn request(id: u16, zone: &Name, changes: &[Change], key: &Key, at: u64) -> Request {
    let mut out = Vec::with_capacity(256);
    for word in [id, UPDATE, 1, 0, changes.len() as u16, 0] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    zone.write(&mut out);
    put(&mut out, &[SOA, CLASS_IN]);
    for change in changes {
        record(&mut out, change);
    }
    let signed = Signed { at, fudge: tsig::FUDGE, error: 0, other: Vec::new() };
    let mac = key.sign(&out, &signed);
    // One more record, which the signature does not count.
    out[11] = 1;
    key.name.write(&mut out);
    put(&mut out, &[TSIG, CLASS_ANY, 0, 0]);
    let mut data = Vec::with_capacity(64);
    tsig::algorithm(&mut data);
    data.extend_from_slice(&at.to_be_bytes()[2..]);
    put(&mut data, &[tsig::FUDGE, mac.len() as u16]);
    data.extend_from_slice(&mac);
    put(&mut data, &[id, 0, 0]);
    put(&mut out, &[data.len() as u16]);
    out.extend_from_slice(&data);
    Request { bytes: out, id, mac }
}

fn record(out: &mut Vec<u8>, change: &Change) {
    let (name, kind, class, ttl, data) = match change {
        Change::Add { name, ttl, data } => (name, data.kind(), CLASS_IN, *ttl, Some(data)),
        Change::Remove { name, data } => (name, data.kind(), CLASS_NONE, 0, Some(data)),
        Change::RemoveAll { name, like } => (name, like.kind(), CLASS_ANY, 0, None),
    };
    name.write(out);
    put(out, &[kind, class]);
    out.extend_from_slice(&ttl.to_be_bytes());
    let data = data.map(bytes).unwrap_or_default();
    put(out, &[data.len() as u16]);
    out.extend_from_slice(&data);
}

fn bytes(data: &Data) -> Vec<u8> {
    match data {
        Data::A(address) => address.octets().to_vec(),
        Data::Aaaa(address) => address.octets().to_vec(),
        Data::Txt(text) => {
            // 255 bytes a piece.
            let pieces = text.as_bytes().chunks(255);
            pieces.flat_map(|p| std::iter::once(p.len() as u8).chain(p.iter().copied())).collect()
        }
    }
}

fn put(out: &mut Vec<u8>, words: &[u16]) {
    for word in words {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

/// Reads what came back. Bad news is believed from anybody: it changes nothing. Good news only with the signature.
pub(crate) fn read(answer: &[u8], request: &Request, key: &Key) -> Result<Said, Odd> {
    let mut read = Reader { bytes: answer, at: 0 };
    let head: Vec<u16> = (0..6).map(|_| read.word()).collect::<Option<_>>().ok_or(Odd::Garbled)?;
    if head[0] != request.id || head[1] & (ANSWER | 0x7800) != ANSWER | UPDATE {
        return Err(Odd::NotOurs);
    }
    let code = (head[1] & 15) as u8;
    let signature = match (last_tsig(&mut read, &head), code) {
        (Some(found), _) => found,
        (None, 0) => return Err(Odd::Unsigned),
        (None, code) => return Ok(Said { code, signature: 0 }),
    };
    if code == 0 && signature.signed.error == 0 {
        // As it was before it was signed: one record less.
        let mut before = answer[..signature.begins].to_vec();
        before[HEADER - 2..HEADER].copy_from_slice(&(head[5] - 1).to_be_bytes());
        if !key.verifies(&request.mac, &before, &signature.signed, &signature.mac) {
            return Err(Odd::Unsigned);
        }
    }
    Ok(Said { code, signature: signature.signed.error })
}

struct Signature {
    /// Where its record begins.
    begins: usize,
    signed: Signed,
    mac: Vec<u8>,
}

/// The last record of all, if it is a signature.
fn last_tsig(read: &mut Reader<'_>, head: &[u16]) -> Option<Signature> {
    for _ in 0..head[2] {
        read.skip_name()?;
        read.skip(4)?;
    }
    let records = u32::from(head[3]) + u32::from(head[4]) + u32::from(head[5]);
    let mut last = None;
    for _ in 0..records {
        let begins = read.at;
        read.skip_name()?;
        let kind = read.word()?;
        read.skip(6)?;
        let length = read.word()?;
        let data = read.take(usize::from(length))?;
        last = Some((begins, kind, data));
    }
    let (begins, _, data) = last.filter(|(_, kind, _)| *kind == TSIG && head[5] > 0)?;
    let mut read = Reader { bytes: data, at: 0 };
    read.skip_name()?;
    let at = read.take(6)?.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
    let fudge = read.word()?;
    let mac = read.word()?;
    let mac = read.take(usize::from(mac))?.to_vec();
    let _original = read.word()?;
    let error = read.word()?;
    let other = read.word()?;
    let other = read.take(usize::from(other))?.to_vec();
    Some(Signature { begins, signed: Signed { at, fudge, error, other }, mac })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn skip(&mut self, length: usize) -> Option<()> {
        self.take(length).map(drop)
    }

    fn word(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    /// To its end, or to where it goes on elsewhere.
    fn skip_name(&mut self) -> Option<()> {
        loop {
            match self.take(1)?[0] {
                0 => return Some(()),
                length @ 1..=63 => self.skip(usize::from(length))?,
                0xc0.. => return self.skip(1),
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> Key {
        Key::new("polder", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=").unwrap()
    }

    fn ours() -> Request {
        let (zone, name) = ("example".parse().unwrap(), "a.example".parse().unwrap());
        let change = Change::Add { name, ttl: 60, data: Data::Txt("x".into()) };
        request(7, &zone, &[change], &key(), 1_800_000_000)
    }

    /// What a server would say that has the key.
    fn answer(request: &Request, code: u16, with: &Key) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, &[request.id, ANSWER | UPDATE | code, 0, 0, 0, 0]);
        let signed = Signed { at: 1_800_000_001, fudge: 300, error: 0, other: Vec::new() };
        let mut all = (request.mac.len() as u16).to_be_bytes().to_vec();
        all.extend_from_slice(&request.mac);
        all.extend_from_slice(&out);
        let mac = with.sign(&all, &signed);
        out[11] = 1;
        with.name.write(&mut out);
        put(&mut out, &[TSIG, CLASS_ANY, 0, 0]);
        let mut data = Vec::new();
        tsig::algorithm(&mut data);
        data.extend_from_slice(&signed.at.to_be_bytes()[2..]);
        put(&mut data, &[300, mac.len() as u16]);
        data.extend_from_slice(&mac);
        put(&mut data, &[request.id, 0, 0]);
        put(&mut out, &[data.len() as u16]);
        out.extend_from_slice(&data);
        out
    }

    #[test]
    fn good_news_is_taken_with_the_right_signature_and_no_other() {
        let request = ours();
        let done = Ok(Said { code: 0, signature: 0 });
        assert_eq!(read(&answer(&request, 0, &key()), &request, &key()), done);
        let other = Key::new("polder", "c29tZWJvZHkgZWxzZSdzIHNlY3JldA==").unwrap();
        assert_eq!(read(&answer(&request, 0, &other), &request, &key()), Err(Odd::Unsigned));
        let mut bare = Vec::new();
        put(&mut bare, &[7, ANSWER | UPDATE, 0, 0, 0, 0]);
        assert_eq!(read(&bare, &request, &key()), Err(Odd::Unsigned));
    }

    #[test]
    fn bad_news_needs_no_signature_and_an_answer_to_another_question_is_none() {
        let request = ours();
        let mut bare = Vec::new();
        put(&mut bare, &[7, ANSWER | UPDATE | 9, 0, 0, 0, 0]);
        assert_eq!(read(&bare, &request, &key()), Ok(Said { code: 9, signature: 0 }));
        bare[1] = 8;
        assert_eq!(read(&bare, &request, &key()), Err(Odd::NotOurs));
        assert_eq!(read(&request.bytes, &request, &key()), Err(Odd::NotOurs));
        assert_eq!(read(&[0; 5], &request, &key()), Err(Odd::Garbled));
    }

    #[test]
    fn a_long_text_goes_in_pieces() {
        let data = bytes(&Data::Txt("x".repeat(300)));
        assert_eq!((data.len(), data[0], data[256]), (302, 255, 45));
    }

    proptest! {
        #[test]
        fn no_answer_panics_or_is_good_news_unless_it_is_signed(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            ours_at_first in any::<bool>(),
        ) {
            let request = ours();
            let mut bytes = bytes;
            if ours_at_first && bytes.len() > 3 {
                bytes[0..3].copy_from_slice(&[0, 7, 0xa8]);
            }
            if let Ok(said) = read(&bytes, &request, &key()) {
                prop_assert_ne!((said.code, said.signature), (0, 0));
            }
        }

        #[test]
        fn one_changed_byte_is_never_good_news(at in 0usize..200, by in 1u8..) {
            let request = ours();
            let mut bytes = answer(&request, 0, &key());
            let at = at % bytes.len();
            bytes[at] ^= by;
            // What is not signed: the names, the type and the class and the TTL of the signature's own record, and the
            // original number in it.
            let done = matches!(read(&bytes, &request, &key()), Ok(Said { code: 0, signature: 0 }));
            let mac = bytes.len() - 6 - 32;
            let signed = (0..12).contains(&at) || (mac..mac + 32).contains(&at);
            prop_assert!(!(done && signed), "byte {at}");
        }
    }
}
