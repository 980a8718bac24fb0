//! The thread that writes: blocks on their way to disk, entries that tell a later use, slots to be cleared, and what is too
//! old.

use std::collections::BTreeSet;
use std::io;
use std::sync::PoisonError;
use std::time::Duration;

use crate::index::{Spill, Written};
use crate::keys::random;
use crate::record::{seal_block, seal_entry};
use crate::store::{Disk, Shared};

/// How often to look for what is too old.
const LOOK_EVERY: u64 = 60;
/// How often to note the time.
const NOTE_EVERY: u64 = 3600;
/// The system holds about so many bytes that it has not written. More would push the model out of memory.
const UNWRITTEN: usize = 64 << 20;

struct Spiller<'a> {
    shared: &'a Shared,
    /// One block, sealed.
    sealed: Vec<u8>,
    /// Bytes written since the system was asked to write them.
    unwritten: usize,
    /// Segments that were written to since then.
    touched: BTreeSet<u64>,
    looked: Option<u64>,
    noted: Option<u64>,
}

/// The work of the thread that writes, until the store closes.
pub(crate) fn spill_blocks(shared: &Shared) {
    let mut spiller = Spiller {
        shared,
        sealed: Vec::new(),
        unwritten: 0,
        touched: BTreeSet::new(),
        looked: None,
        noted: None,
    };
    let mut waited_long = false;
    loop {
        let (wanted, over) = {
            let state = shared.lock();
            (state.rounds_wanted, state.rounds_over)
        };
        // Little by little would be a sync for each block.
        if !spiller.round(waited_long || wanted > over) {
            return;
        }
        let mut state = shared.lock();
        state.rounds_over = wanted;
        shared.round_over.notify_all();
        let idle = state.index.spills() == 0
            && !state.index.has_uncleared()
            && !state.index.has_stamps()
            && state.rounds_wanted == wanted;
        if idle && !state.closing {
            let wait = Duration::from_secs(LOOK_EVERY);
            let waited = shared.work.wait_timeout(state, wait);
            waited_long = waited.unwrap_or_else(PoisonError::into_inner).1.timed_out();
        }
    }
}

impl Spiller<'_> {
    /// Does what is to be done, and has the system write what it holds, where that is wanted. False when the store closes.
    fn round(&mut self, sync: bool) -> bool {
        let Some(disk) = &self.shared.disk else {
            self.look(None);
            return !self.shared.lock().closing;
        };
        self.looked = None;
        loop {
            self.look(Some(disk));
            let mut state = self.shared.lock();
            if state.closing {
                return false;
            }
            let result = if let Some(slot) = state.index.next_uncleared() {
                drop(state);
                self.clear(disk, slot)
            } else if let Some(written) = state.index.next_stamp() {
                drop(state);
                self.write_entry(disk, &written)
            } else if let Some(spill) = state.index.next_spill() {
                drop(state);
                self.spill(disk, &spill)
            } else {
                drop(state);
                if sync { self.settle(disk).map(|()| false) } else { Ok(false) }
            };
            match result {
                Ok(true) => {}
                Ok(false) => return true,
                Err(error) => self.switch_off(&error),
            }
        }
    }

    /// Drops what is too old, now and then, and notes the time.
    fn look(&mut self, disk: Option<&Disk>) {
        let mut state = self.shared.lock();
        let now = state.now(&*self.shared.system);
        if self.looked.is_some_and(|at| now.saturating_sub(at) < LOOK_EVERY) {
            return;
        }
        self.looked = Some(now);
        loop {
            let more = state.index.expire(now, self.shared.retention, 256);
            let trash = state.index.take_trash();
            drop(state);
            drop(trash);
            if !more {
                break;
            }
            state = self.shared.lock();
        }
        let due = self.noted.is_none_or(|at| now.saturating_sub(at) >= NOTE_EVERY);
        if let Some(disk) = disk
            && due
        {
            self.noted = Some(now);
            if let Err(error) = disk.folder.note(now) {
                self.switch_off(&error);
            }
        }
    }

    fn clear(&self, disk: &Disk, slot: u64) -> io::Result<bool> {
        disk.segments.clear(slot)?;
        self.shared.lock().index.cleared(slot);
        Ok(true)
    }

    /// Writes a block and then its entry: without the entry nobody looks at the block, and without the block the entry's
    /// nonce opens nothing.
    fn spill(&mut self, disk: &Disk, spill: &Spill) -> io::Result<bool> {
        let (nonce, entry_nonce) = (random()?, random()?);
        let free = self.shared.system.free_bytes(&disk.folder.path).unwrap_or(0);
        let may_grow = free >= disk.reserve.saturating_add(disk.geometry.cost());
        let mut state = self.shared.lock();
        let Some(key) = state.members.key(spill.at.member).cloned() else {
            state.index.skip_spill();
            return Ok(true);
        };
        let slot = state.index.slot_for(spill, may_grow);
        let trash = state.index.take_trash();
        let Some(slot) = slot else {
            state.index.skip_spill();
            return Ok(true);
        };
        drop(state);
        drop(trash);
        let written = Written {
            at: spill.at,
            parent: spill.parent,
            position: spill.position,
            used: spill.used,
            slot,
            nonce,
        };
        let result = disk.folder.keys.keep(&key).and_then(|known| {
            if known {
                self.sealed.clear();
                self.sealed.extend_from_slice(&spill.bytes);
                let (store, digest) = (&disk.folder.identity, &spill.at.digest);
                seal_block(store, &key, digest, spill.position, nonce, &mut self.sealed);
                disk.segments.write_block(slot, &self.sealed)?;
                let entry = seal_entry(store, &key, &written, entry_nonce);
                disk.segments.write_entry(slot, &entry)?;
            }
            Ok(known)
        });
        let mut state = self.shared.lock();
        match result {
            Ok(true) => state.index.spilled(&written),
            Ok(false) => state.index.unwritten(slot),
            Err(error) => {
                state.index.unwritten(slot);
                return Err(error);
            }
        }
        drop(state);
        self.touched.insert(disk.segments.segment_of(slot));
        self.unwritten += self.sealed.len();
        if self.unwritten >= UNWRITTEN {
            self.settle(disk)?;
        }
        Ok(true)
    }

    fn write_entry(&mut self, disk: &Disk, written: &Written) -> io::Result<bool> {
        let key = self.shared.lock().members.key(written.at.member).cloned();
        if let Some(key) = key {
            let entry = seal_entry(&disk.folder.identity, &key, written, random()?);
            disk.segments.write_entry(written.slot, &entry)?;
            self.touched.insert(disk.segments.segment_of(written.slot));
        }
        Ok(true)
    }

    /// Has the system write what it holds.
    fn settle(&mut self, disk: &Disk) -> io::Result<()> {
        self.unwritten = 0;
        while let Some(segment) = self.touched.pop_first() {
            disk.segments.settle(segment)?;
        }
        Ok(())
    }

    /// After this nothing is written. What is on disk can still be read.
    fn switch_off(&mut self, error: &io::Error) {
        let mut state = self.shared.lock();
        if !std::mem::replace(&mut state.index.counts.disk_off, true) {
            log::warn!(
                error:% = error;
                "KV is not kept on disk any more, because writing it failed; free some room or check the disk, and start the engine again"
            );
        }
        state.index.stop_spilling();
    }
}
