//! A way on this machine to the spare: a certificate that is pinned says nothing of addresses, and restic goes by them.
//!
//! Bytes are passed on as they are. The encryption is between restic and the spare, and whoever else on this machine comes in here stands
//! before the spare without a certificate.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// To connect to the spare.
const PATIENCE: Duration = Duration::from_secs(10);
/// A spare that is silent for so long in the middle is away.
const SILENCE: Duration = Duration::from_secs(120);

/// Open until it is dropped.
pub(crate) struct Passage {
    local: SocketAddr,
    closed: Arc<AtomicBool>,
}

impl Passage {
    /// To `HOST:PORT`, which is reached once before anybody is sent there.
    pub(crate) fn to(address: &str) -> io::Result<Self> {
        drop(reach(address)?);
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let local = listener.local_addr()?;
        let closed = Arc::new(AtomicBool::new(false));
        let (ends, address) = (closed.clone(), address.to_owned());
        std::thread::Builder::new().name("passage".to_owned()).spawn(move || {
            for caller in listener.incoming() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(caller) = caller else { continue };
                let address = address.clone();
                let passing = std::thread::Builder::new().name("passage".to_owned());
                if let Err(error) = passing.spawn(move || pass(caller, &address)) {
                    log::warn!("nobody is let through to the spare: {error}");
                }
            }
        })?;
        Ok(Self { local, closed })
    }

    /// Where it is on this machine.
    pub(crate) fn address(&self) -> String {
        self.local.to_string()
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        // Whoever waits for callers hears of it by being called.
        drop(TcpStream::connect(self.local));
    }
}

fn pass(caller: TcpStream, address: &str) {
    let spare = match reach(address) {
        Ok(spare) => spare,
        Err(error) => return log::debug!("{address}: {error}"),
    };
    let (Ok(from_caller), Ok(from_spare)) = (caller.try_clone(), spare.try_clone()) else { return };
    let forth = std::thread::Builder::new().name("passage".to_owned());
    let forth = forth.spawn(move || copy(from_caller, spare));
    copy(from_spare, caller);
    if let Ok(forth) = forth {
        let _ = forth.join();
    }
}

/// Until one side has said all; the other one is told.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

fn reach(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "nobody knows where that is");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(SILENCE))?;
                stream.set_write_timeout(Some(SILENCE))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn bytes_go_both_ways_until_it_is_dropped_and_nobody_is_sent_to_a_spare_that_is_away() {
        let spare = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = spare.local_addr().unwrap().to_string();
        let answers = std::thread::spawn(move || {
            // The first only looks whether anybody is there.
            drop(spare.accept().unwrap());
            let (mut caller, _) = spare.accept().unwrap();
            let mut text = String::new();
            caller.read_to_string(&mut text).unwrap();
            caller.write_all(text.to_uppercase().as_bytes()).unwrap();
        });
        let passage = Passage::to(&address).unwrap();
        let mut caller = TcpStream::connect(passage.address()).unwrap();
        caller.write_all(b"hello").unwrap();
        caller.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        caller.read_to_string(&mut text).unwrap();
        assert_eq!(text, "HELLO");
        answers.join().unwrap();
        let local = passage.address();
        drop(passage);
        assert!(Passage::to(&address).is_err());
        // The one who waits for callers is gone, soon.
        while TcpStream::connect(&local).is_ok() {
            std::thread::yield_now();
        }
    }
}
