//! Connections of this machine, and the end of those that hang: the kernel's `sock_diag` family, for which no crate knows
//! how to destroy. Two messages, written and read by hand.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

/// A connection over TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connection {
    /// Our end.
    pub(crate) here: SocketAddr,
    /// Theirs.
    pub(crate) there: SocketAddr,
    /// It carries data both ways; not only being made or taken down.
    pub(crate) established: bool,
    family: u8,
    /// `struct inet_diag_sockid`, as the kernel gave it.
    id: [u8; ID],
}

/// `sizeof(struct inet_diag_sockid)`.
const ID: usize = 48;
/// `sizeof(struct nlmsghdr)`.
const HEADER: usize = 16;
/// Of `struct inet_diag_req_v2`, what comes before the id.
const REQUEST: usize = 8;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const ESTABLISHED: u8 = 1;
/// All but those that wait (6), are closed (7) or listen (10): bit n is state n.
const STATES: u32 = 0b1011_0011_1110;

/// Every connection over TCP that there is.
pub(crate) fn list() -> io::Result<Vec<Connection>> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let socket = open()?;
        let message = request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, STATES, &[0; ID]);
        socket.send(&message, 0)?;
        loop {
            let (bytes, _) = socket.recv_from_full()?;
            if read(&bytes, &mut found)? {
                break;
            }
        }
    }
    Ok(found)
}

/// Ends a connection: whoever waits at it hears `ECONNABORTED`, and the other side a reset if it can be reached. Whether it was
/// still there.
pub(crate) fn destroy(connection: &Connection) -> io::Result<bool> {
    let socket = open()?;
    let message = request(SOCK_DESTROY, NLM_F_ACK, connection.family, u32::MAX, &connection.id);
    socket.send(&message, 0)?;
    let (bytes, _) = socket.recv_from_full()?;
    match error_in(&bytes) {
        Some(0) => Ok(true),
        Some(-2) => Ok(false),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// `struct nlmsghdr`, then `struct inet_diag_req_v2`.
fn request(kind: u16, flags: u16, family: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let length = u32::try_from(HEADER + REQUEST + ID).expect("it is 72");
    let mut message = Vec::with_capacity(HEADER + REQUEST + ID);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, IPPROTO_TCP, 0, 0]);
    message.extend(states.to_ne_bytes());
    message.extend(id);
    message
}

/// Reads what the kernel sent, one message after the other; whether that was the last of it.
fn read(mut bytes: &[u8], found: &mut Vec<Connection>) -> io::Result<bool> {
    while let Some((kind, payload, rest)) = next(bytes) {
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                return Err(io::Error::from_raw_os_error(-code));
            }
            SOCK_DIAG_BY_FAMILY => found.extend(connection(payload)),
            _ => {}
        }
        bytes = rest;
    }
    Ok(false)
}

fn error_in(bytes: &[u8]) -> Option<i32> {
    let (kind, payload, _) = next(bytes)?;
    (kind == NLMSG_ERROR).then_some(i32::from_ne_bytes(*payload.first_chunk()?))
}

/// The kind and content of the first message, and what comes after it.
fn next(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let payload = bytes.get(HEADER..length)?;
    // Messages begin at multiples of four.
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, payload, rest))
}

/// `struct inet_diag_msg`.
fn connection(payload: &[u8]) -> Option<Connection> {
    let (family, state) = (*payload.first()?, *payload.get(1)?);
    let id: [u8; ID] = *payload.get(4..)?.first_chunk()?;
    let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 16] = *id.get(at..)?.first_chunk()?;
        match family {
            AF_INET => Some(IpAddr::V4(Ipv4Addr::from([bytes[0], bytes[1], bytes[2], bytes[3]]))),
            // A socket of both families shows IPv4 inside of IPv6.
            AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()),
            _ => None,
        }
    };
    Some(Connection {
        here: SocketAddr::new(address(4)?, port(0)),
        there: SocketAddr::new(address(20)?, port(2)),
        established: state == ESTABLISHED,
        family,
        id,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_connection_of_this_process_is_found_and_listeners_are_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let stream = std::net::TcpStream::connect(at).unwrap();
        let here = stream.local_addr().unwrap();
        let list = list().unwrap();
        let mine: Vec<_> = list.iter().filter(|c| c.here == here).collect();
        assert_eq!(mine.len(), 1, "{list:?}");
        assert!(mine[0].established && mine[0].there == at);
        assert!(list.iter().all(|c| c.there.port() != 0), "{list:?}");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes, &mut Vec::new());
            let _ = error_in(&bytes);
        }
    }
}
