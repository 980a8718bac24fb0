//! Who has blocks here, and under which key.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use crate::index::MemberNo;
use crate::keys::{KeyId, MemberKey};

/// All members with a key.
#[derive(Debug, Default)]
pub(crate) struct Members {
    names: HashMap<Box<str>, MemberNo>,
    keys: HashMap<MemberNo, Arc<MemberKey>>,
    /// Keys from before the start, whose member has not been heard of since.
    unnamed: Vec<MemberNo>,
    next: u32,
    /// Keys of forgotten members whose files could not be destroyed yet.
    unburied: HashMap<Box<str>, Vec<Arc<MemberKey>>>,
}

impl Members {
    /// Takes in a key that was found on disk.
    pub(crate) fn load(&mut self, key: MemberKey) -> MemberNo {
        let number = self.number();
        self.keys.insert(number, Arc::new(key));
        self.unnamed.push(number);
        number
    }

    /// The member with this name, if they have a key.
    pub(crate) fn find(&mut self, name: &str) -> Option<MemberNo> {
        if let Some(number) = self.names.get(name) {
            return Some(*number);
        }
        let keys = &self.keys;
        let at = self.unnamed.iter().position(|no| keys.get(no).is_some_and(|k| k.is_of(name)))?;
        let number = self.unnamed.swap_remove(at);
        self.names.insert(name.into(), number);
        Some(number)
    }

    /// The member with this name, with a new key if they have none.
    pub(crate) fn enter(&mut self, name: &str) -> io::Result<MemberNo> {
        if let Some(number) = self.find(name) {
            return Ok(number);
        }
        let key = Arc::new(MemberKey::generate(name)?);
        let number = self.number();
        self.keys.insert(number, key);
        self.names.insert(name.into(), number);
        Ok(number)
    }

    /// A member's key, until they are forgotten.
    pub(crate) fn key(&self, member: MemberNo) -> Option<&Arc<MemberKey>> {
        self.keys.get(&member)
    }

    /// Takes a member out, with all their keys that must be destroyed: this one and those left from before.
    pub(crate) fn leave(&mut self, name: &str) -> (Option<MemberNo>, Vec<Arc<MemberKey>>) {
        let mut keys = self.unburied.remove(name).unwrap_or_default();
        let number = self.find(name);
        if let Some(number) = number {
            self.names.remove(name);
            keys.extend(self.keys.remove(&number));
        }
        (number, keys)
    }

    /// Remembers a key whose file could not be destroyed.
    pub(crate) fn bury_later(&mut self, name: &str, key: Arc<MemberKey>) {
        self.unburied.entry(name.into()).or_default().push(key);
    }

    /// Takes out those for whom nothing is kept.
    pub(crate) fn retain(&mut self, has: impl Fn(MemberNo) -> bool) -> Vec<Arc<MemberKey>> {
        let gone: Vec<MemberNo> = self.keys.keys().copied().filter(|no| !has(*no)).collect();
        self.unnamed.retain(|number| has(*number));
        self.names.retain(|_, number| has(*number));
        gone.iter().filter_map(|number| self.keys.remove(number)).collect()
    }

    /// Every key's number and member.
    pub(crate) fn by_key(&self) -> HashMap<KeyId, MemberNo> {
        self.keys.iter().map(|(number, key)| (key.id, *number)).collect()
    }

    fn number(&mut self) -> MemberNo {
        self.next += 1;
        MemberNo(self.next)
    }
}
