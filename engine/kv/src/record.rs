//! What lies on disk, sealed: a block's bytes, and the entry that says which block it is.
//!
//! ```text
//! entry, 128 bytes:  key id 12 | nonce 12 | sealed: digest 32, parent 32, position 4, last use 8, block's nonce 12 | tag 16
//! block:             sealed bytes | tag 16
//! ```
//!
//! An entry is sealed for its slot, a block for its address, both for this store, and both under the member's key. What was written
//! for another slot, block, member, model or store therefore does not open.

use ring::aead::{Aad, NONCE_LEN, Nonce as RingNonce};

use crate::digest::ChainDigest;
use crate::index::{Address, MemberNo, Written};
use crate::keys::{KEY_ID, KeyId, MemberKey};

/// Bytes of an entry. Four of them make a sector, so that none lies in two.
pub(crate) const ENTRY: usize = 128;

/// Bytes that sealing adds.
pub(crate) const TAG: usize = 16;

pub(crate) type Nonce = [u8; NONCE_LEN];

/// A digest of everything that two stores must share to understand each other, and of what they never share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoreIdentity(pub(crate) [u8; 32]);

const SEALED: usize = 32 + 32 + 4 + 8 + NONCE_LEN;

/// Whose key an entry names. None for one that was cleared or never written.
pub(crate) fn key_id(entry: &[u8; ENTRY]) -> Option<KeyId> {
    let mut id = [0; KEY_ID];
    id.copy_from_slice(&entry[..KEY_ID]);
    (id != [0; KEY_ID]).then_some(KeyId(id))
}

/// Writes an entry. `nonce` must be new.
pub(crate) fn seal_entry(
    store: &StoreIdentity,
    key: &MemberKey,
    written: &Written,
    nonce: Nonce,
) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[..KEY_ID].copy_from_slice(&key.id.0);
    entry[KEY_ID..][..NONCE_LEN].copy_from_slice(&nonce);
    let mut plain = [0; SEALED];
    plain[..32].copy_from_slice(&written.at.digest.0);
    plain[32..64].copy_from_slice(&written.parent.0);
    plain[64..68].copy_from_slice(&written.position.to_le_bytes());
    plain[68..76].copy_from_slice(&written.used.to_le_bytes());
    plain[76..].copy_from_slice(&written.nonce);
    let tag = key.seal(nonce, &entry_context(store, written.slot), &mut plain);
    entry[KEY_ID + NONCE_LEN..][..SEALED].copy_from_slice(&plain);
    entry[KEY_ID + NONCE_LEN + SEALED..].copy_from_slice(&tag);
    entry
}

/// Reads an entry of a slot. None where it is not what was written.
pub(crate) fn open_entry(
    store: &StoreIdentity,
    member: MemberNo,
    key: &MemberKey,
    slot: u64,
    entry: &[u8; ENTRY],
) -> Option<Written> {
    let mut nonce = [0; NONCE_LEN];
    nonce.copy_from_slice(&entry[KEY_ID..][..NONCE_LEN]);
    let mut sealed = entry[KEY_ID + NONCE_LEN..].to_vec();
    if !key.open(nonce, &entry_context(store, slot), &mut sealed) {
        return None;
    }
    let array = |from: usize| -> [u8; 32] {
        let mut array = [0; 32];
        array.copy_from_slice(&sealed[from..from + 32]);
        array
    };
    let mut position = [0; 4];
    position.copy_from_slice(&sealed[64..68]);
    let mut used = [0; 8];
    used.copy_from_slice(&sealed[68..76]);
    nonce.copy_from_slice(&sealed[76..SEALED]);
    Some(Written {
        at: Address { member, digest: ChainDigest(array(0)) },
        parent: ChainDigest(array(32)),
        position: u32::from_le_bytes(position),
        used: u64::from_le_bytes(used),
        slot,
        nonce,
    })
}

/// Seals a block's bytes in place and appends the tag. `nonce` must be new.
pub(crate) fn seal_block(
    store: &StoreIdentity,
    key: &MemberKey,
    digest: &ChainDigest,
    position: u32,
    nonce: Nonce,
    bytes: &mut Vec<u8>,
) {
    let tag = key.seal(nonce, &block_context(store, digest, position), bytes);
    bytes.extend_from_slice(&tag);
}

/// Opens a block's bytes in place and cuts the tag off. False where they are not what was written; they mean nothing
/// then.
pub(crate) fn open_block(
    store: &StoreIdentity,
    key: &MemberKey,
    written: &Written,
    bytes: &mut Vec<u8>,
) -> bool {
    let context = block_context(store, &written.at.digest, written.position);
    let opened = key.open(written.nonce, &context, bytes);
    bytes.truncate(bytes.len().saturating_sub(TAG));
    opened
}

fn entry_context(store: &StoreIdentity, slot: u64) -> Aad<[u8; 41]> {
    let mut context = [0; 41];
    context[0] = b'e';
    context[1..33].copy_from_slice(&store.0);
    context[33..].copy_from_slice(&slot.to_le_bytes());
    Aad::from(context)
}

fn block_context(store: &StoreIdentity, digest: &ChainDigest, position: u32) -> Aad<[u8; 69]> {
    let mut context = [0; 69];
    context[0] = b'b';
    context[1..33].copy_from_slice(&store.0);
    context[33..65].copy_from_slice(&digest.0);
    context[65..].copy_from_slice(&position.to_le_bytes());
    Aad::from(context)
}

impl MemberKey {
    fn seal<A: AsRef<[u8]>>(&self, nonce: Nonce, context: &Aad<A>, bytes: &mut [u8]) -> [u8; TAG] {
        let nonce = RingNonce::assume_unique_for_key(nonce);
        let context = Aad::from(context.as_ref());
        let tag = self
            .cipher
            .seal_in_place_separate_tag(nonce, context, bytes)
            .expect("a block is far below the 64 GiB that one nonce is good for");
        let mut array = [0; TAG];
        array.copy_from_slice(tag.as_ref());
        array
    }

    fn open<A: AsRef<[u8]>>(&self, nonce: Nonce, context: &Aad<A>, bytes: &mut [u8]) -> bool {
        let nonce = RingNonce::assume_unique_for_key(nonce);
        self.cipher.open_in_place(nonce, Aad::from(context.as_ref()), bytes).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(digest: u8) -> Written {
        let at = Address { member: MemberNo(3), digest: ChainDigest([digest; 32]) };
        let parent = ChainDigest([8; 32]);
        Written { at, parent, position: 7, used: 1234, slot: 5, nonce: [9; 12] }
    }

    #[test]
    fn an_entry_opens_in_its_slot_of_its_store_with_its_key_only() {
        let (store, key) = (StoreIdentity([1; 32]), MemberKey::generate("ada").unwrap());
        let entry = seal_entry(&store, &key, &written(7), [2; 12]);
        assert_eq!(key_id(&entry), Some(key.id));
        let open =
            |store: &_, key: &_, slot, entry: &_| open_entry(store, MemberNo(3), key, slot, entry);
        assert_eq!(open(&store, &key, 5, &entry), Some(written(7)));
        assert_eq!(open(&store, &key, 6, &entry), None);
        assert_eq!(open(&StoreIdentity([2; 32]), &key, 5, &entry), None);
        assert_eq!(open(&store, &MemberKey::generate("ada").unwrap(), 5, &entry), None);
        for bit in 8 * KEY_ID..8 * ENTRY {
            let mut wrong = entry;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&store, &key, 5, &wrong), None, "bit {bit}");
        }
        assert_eq!(key_id(&[0; ENTRY]), None);
    }

    #[test]
    fn a_block_opens_at_its_place_only() {
        let (store, key) = (StoreIdentity([1; 32]), MemberKey::generate("ada").unwrap());
        let mut sealed = vec![42; 100];
        seal_block(&store, &key, &ChainDigest([7; 32]), 7, [9; 12], &mut sealed);
        assert_eq!(sealed.len(), 100 + TAG);
        let opens = |store: &_, key: &_, written: Written| {
            let mut bytes = sealed.clone();
            open_block(store, key, &written, &mut bytes) && bytes == [42; 100]
        };
        assert!(opens(&store, &key, written(7)));
        assert!(!opens(&store, &key, written(6)));
        assert!(!opens(&store, &key, Written { position: 8, ..written(7) }));
        assert!(!opens(&store, &key, Written { nonce: [8; 12], ..written(7) }));
        assert!(!opens(&StoreIdentity([2; 32]), &key, written(7)));
        assert!(!opens(&store, &MemberKey::generate("ada").unwrap(), written(7)));
        assert!(!open_block(&store, &key, &written(7), &mut Vec::new()));
    }
}
