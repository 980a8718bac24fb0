//! Ports that a router may hold open for ever because this box asked for them: `STATE/uplinks/owed.json`, so that one that lost its power gives
//! back later what it does not want any more.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use polder_portmap::{Asked, Book, Debt, Ending, Way, Wish, creditor, settle};
use serde::{Deserialize, Serialize};

/// More are not remembered: a box has two uplinks, and a router five ports to try. For a newer one the oldest is forgotten.
const MOST: usize = 16;
/// More than that is not read: sixteen take a tenth.
const LONGEST: u64 = 32 << 10;
/// What a router says that it is, and what its list calls a port, at most.
const LONGEST_ID: usize = 256;

/// What is owed to routers. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Owed(Arc<Mutex<List>>);

#[derive(Default)]
struct List {
    /// Nowhere in tests, and at the end.
    path: Option<PathBuf>,
    ports: Vec<Port>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Port {
    router: Ipv4Addr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    to: SocketAddrV4,
    outside: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    called: Option<String>,
    /// A book of this life of the box has it: it is wanted.
    #[serde(skip)]
    held: bool,
}

impl Owed {
    /// As the state folder has it. A file that cannot be read is begun anew: what it said is told nobody any more.
    pub(crate) fn read(state: &Path) -> Self {
        let path = state.join("uplinks/owed.json");
        let ports = match read(&path) {
            Ok(ports) => ports,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                log::warn!(
                    "{} cannot be read, so that a port that a router was asked for ever may stay open; look in the router's settings: {error}",
                    path.display()
                );
                Vec::new()
            }
        };
        Self(Arc::new(Mutex::new(List { path: Some(path), ports })))
    }

    /// The book of what one router is asked for one port; what has no end in it is written down here.
    pub(crate) fn book(&self, way: &Way, wish: &Wish) -> Book {
        let (owed, router, called) = (self.clone(), way.router, wish.called());
        let to = SocketAddrV4::new(way.own, wish.port);
        Book::new(move |asked| owed.list().hold(router, to, &called, asked))
    }

    /// A book is closed: what is still open by it is owed.
    pub(crate) fn let_go(&self, way: &Way, port: u16) {
        let to = SocketAddrV4::new(way.own, port);
        let mut list = self.list();
        let its = list.ports.iter_mut().filter(|p| (p.router, p.to) == (way.router, to));
        its.for_each(|port| port.held = false);
        let mut seen = Vec::new();
        list.ports.retain(|port| {
            let new = !seen.contains(port);
            seen.push(port.clone());
            new
        });
    }

    /// What a router with this address may hold that nobody wants.
    pub(crate) fn dues(&self, router: Ipv4Addr) -> Dues {
        Dues(self.list().unwanted(router).cloned().collect())
    }

    /// Gives back to this router what nobody wants any more, of what was owed at a moment. Whether the router was there to be asked.
    pub(crate) async fn pay(&self, way: &Way, dues: &Dues) -> bool {
        let Some(found) = creditor(way).await else { return false };
        for port in &dues.0 {
            // It may be wanted again since.
            if !self.list().unwanted(way.router).any(|owed| owed == port) {
                continue;
            }
            let what = match settle(way, &found, &port.debt()).await {
                Ending::Closed => "is closed",
                Ending::Elsewhere => "leads elsewhere and is not ours any more",
                Ending::Open => continue,
            };
            log::info!(
                "port {} of the router {}, which it was asked for ever before, {what}",
                port.outside,
                port.router
            );
            let mut list = self.list();
            // Unless it is wanted again by now.
            list.ports.retain(|known| known != port);
            list.write_or_say();
        }
        true
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was owed at a moment: where it is the same later, nothing has come to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dues(Vec<Port>);

impl Dues {
    /// Nothing is.
    pub(crate) fn are_none(&self) -> bool {
        self.0.is_empty()
    }
}

impl Port {
    fn debt(&self) -> Debt {
        let (id, called) = (self.id.clone(), self.called.clone());
        Debt { router: self.router, id, to: self.to, outside: self.outside, called }
    }
}

impl List {
    /// What a router of this address may hold that nobody wants: a book may have the same one again.
    fn unwanted(&self, router: Ipv4Addr) -> impl Iterator<Item = &Port> {
        let held = |port: &Port| {
            let mut held = self.ports.iter().filter(|known| known.held);
            held.any(|held| {
                (held.router, held.to, held.outside) == (port.router, port.to, port.outside)
            })
        };
        self.ports.iter().filter(move |port| !port.held && port.router == router && !held(port))
    }

    /// What one book has, instead of what it had.
    fn hold(
        &mut self,
        router: Ipv4Addr,
        to: SocketAddrV4,
        called: &str,
        asked: &[Asked],
    ) -> io::Result<()> {
        let before = self.ports.clone();
        self.ports.retain(|port| !port.held || (port.router, port.to) != (router, to));
        self.ports.extend(asked.iter().map(|asked| Port {
            router,
            id: asked.router_id().map(str::to_owned),
            to,
            outside: asked.outside,
            called: Some(called.to_owned()),
            held: true,
        }));
        while self.ports.len() > MOST {
            let Some(oldest) = self.ports.iter().position(|port| !port.held) else { break };
            let port = self.ports.remove(oldest);
            log::warn!(
                "port {} of the router {} may be open for ever and is not remembered any more; look in its settings",
                port.outside,
                port.router
            );
        }
        let written = self.write();
        if written.is_err() {
            self.ports = before;
        }
        written
    }

    fn write(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if let Some(folder) = path.parent() {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let text = serde_json::to_vec_pretty(&self.ports).map_err(io::Error::other)?;
        polder_site::write_durably(path, &text)
    }

    fn write_or_say(&self) {
        if let Err(error) = self.write() {
            log::warn!("what is owed to routers could not be written down: {error}");
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<Port>> {
    use io::Read;
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(LONGEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long"));
    }
    let mut ports: Vec<Port> = serde_json::from_slice(&text).map_err(io::Error::other)?;
    let short = |word: &Option<String>| word.as_ref().is_none_or(|word| word.len() <= LONGEST_ID);
    ports.retain(|port| short(&port.id) && short(&port.called));
    ports.truncate(MOST);
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_somebody_spoilt_costs_what_it_said_and_nothing_else() {
        let state = tempfile::tempdir().unwrap();
        let at = state.path().join("uplinks/owed.json");
        assert!(Owed::read(state.path()).list().ports.is_empty());
        std::fs::create_dir(state.path().join("uplinks")).unwrap();
        let one = |n: usize| {
            format!(r#"{{"router":"192.168.1.1","to":"192.168.1.7:443","outside":{}}}"#, n + 1)
        };
        let many = |count| format!("[{}]", (0..count).map(one).collect::<Vec<_>>().join(","));
        for (text, left) in
            [(many(3), 3), (many(40), MOST), ("[{".into(), 0), (many(4000), 0), (String::new(), 0)]
        {
            std::fs::write(&at, text).unwrap();
            assert_eq!(Owed::read(state.path()).list().ports.len(), left);
        }
    }
}
