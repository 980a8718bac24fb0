//! Sockets that were open before we began: the init system holds the public ports, so that nobody
//! is turned away while the gateway is started again, and so that it needs no privilege for them.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};

use listenfd::ListenFd;
use polder_site::Door;
use rustix::net::sockopt;

/// Where browsers go that were not told to use TLS.
pub(crate) const PLAIN_PORT: u16 = 80;

/// Listening sockets that were handed over.
#[derive(Debug, Default)]
pub struct Handed(Vec<Socket>);

#[derive(Debug)]
struct Socket {
    address: SocketAddr,
    /// An IPv6 socket that also takes IPv4.
    dual: bool,
    listener: TcpListener,
}

impl Handed {
    /// Those that this process was started with (`LISTEN_FDS`). Once per process: they are taken.
    pub fn over() -> Self {
        let mut given = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..given.len() {
            let socket = match given.take_tcp_listener(index) {
                Ok(Some(listener)) => Socket::of(listener),
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            match socket {
                Ok(socket) => sockets.push(socket),
                Err(error) => log::warn!("a socket that was handed over is of no use: {error}"),
            }
        }
        Self(sockets)
    }

    /// The socket for this address, if it was handed over. It can be asked for again after it was
    /// closed: whoever handed it over holds it open all the time.
    pub(crate) fn open(&self, address: SocketAddr) -> Option<io::Result<TcpListener>> {
        let socket = self.0.iter().find(|socket| covers(socket.address, socket.dual, address))?;
        Some(socket.listener.try_clone())
    }

    /// Where plain HTTP comes in to be sent on to TLS; none if the door itself is there.
    pub(crate) fn plain(&self, door: &Door) -> impl Iterator<Item = SocketAddr> {
        let apart = door.port != PLAIN_PORT;
        let addresses = self.0.iter().map(|socket| socket.address);
        addresses.filter(move |address| apart && address.port() == PLAIN_PORT)
    }
}

impl Socket {
    fn of(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let dual = address.is_ipv6() && !sockopt::ipv6_v6only(&listener)?;
        Ok(Self { address, dual, listener })
    }
}

/// Whether who listens at `own` can be reached at `asked`, so that nobody else can listen there.
fn covers(own: SocketAddr, dual: bool, asked: SocketAddr) -> bool {
    let both = own.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && dual;
    let everywhere = asked.ip() == IpAddr::from([0, 0, 0, 0]);
    own == asked || (both && everywhere && own.port() == asked.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_stands_for_its_own_address_and_a_dual_one_for_ipv4_as_well() {
        let covers = |own: &str, dual, asked: &str| {
            super::covers(own.parse().unwrap(), dual, asked.parse().unwrap())
        };
        assert!(covers("[::]:443", true, "[::]:443"));
        assert!(covers("[::]:443", true, "0.0.0.0:443"));
        assert!(covers("0.0.0.0:443", false, "0.0.0.0:443"));
        assert!(!covers("[::]:443", false, "0.0.0.0:443"));
        assert!(!covers("[::]:443", true, "0.0.0.0:8443"));
        assert!(!covers("[::1]:443", true, "0.0.0.0:443"));
        // It would be reached from outside as well.
        assert!(!covers("[::]:443", true, "127.0.0.1:443"));
    }

    #[test]
    fn a_socket_can_be_had_again_and_what_was_not_handed_over_cannot() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let handed = Handed(vec![Socket::of(listener).unwrap()]);
        for _ in 0..2 {
            let open = handed.open(address).unwrap().unwrap();
            assert_eq!(open.local_addr().unwrap(), address);
        }
        assert!(handed.open(SocketAddr::new(address.ip(), 1)).is_none());
    }
}
