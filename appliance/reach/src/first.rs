//! The first message of a connection: whom does it want? Nothing is answered and no key is needed.

use std::io::Cursor;

use rustls::server::Acceptor;

use crate::line::PROTOCOL;

/// A first message is no longer than this; browsers with new kinds of keys send two kilobytes.
pub(crate) const LONGEST: usize = 16 << 10;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum First {
    /// Not all of it is there.
    More,
    /// A box that wants to hold a line.
    Box,
    /// Somebody who wants the box of this name, lower case.
    Caller(String),
    /// Nothing that can be passed on.
    Nobody,
}

/// Reads what has come so far.
pub(crate) fn first(bytes: &[u8]) -> First {
    // Whoever does not begin a handshake need not be waited for.
    if bytes.first().is_some_and(|byte| *byte != 0x16) || bytes.len() > LONGEST {
        return First::Nobody;
    }
    let mut acceptor = Acceptor::default();
    let mut left = Cursor::new(bytes);
    loop {
        match acceptor.read_tls(&mut left) {
            Ok(0) => return First::More,
            Ok(_) => {}
            Err(_) => return First::Nobody,
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let line = hello.alpn().into_iter().flatten().any(|name| name == PROTOCOL);
                return match (line, hello.server_name()) {
                    (true, _) => First::Box,
                    (false, Some(name)) => First::Caller(name.to_ascii_lowercase()),
                    (false, None) => First::Nobody,
                };
            }
            Err(_) => return First::Nobody,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn hello(name: &str, protocols: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let name = name.to_owned().try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_name_that_is_asked_for_is_read_from_any_beginning_that_has_it() {
        let bytes = hello("Oak.Example.org", &[b"h2"]);
        for length in 0..bytes.len() {
            assert_eq!(first(&bytes[..length]), First::More, "{length}");
        }
        assert_eq!(first(&bytes), First::Caller("oak.example.org".into()));
        let longer = [bytes, b"and more".to_vec()].concat();
        assert_eq!(first(&longer), First::Caller("oak.example.org".into()));
    }

    #[test]
    fn a_box_is_told_by_what_it_speaks_and_an_address_is_nobody() {
        assert_eq!(first(&hello("relay.example.org", &[PROTOCOL])), First::Box);
        assert_eq!(first(&hello("192.0.2.1", &[b"h2"])), First::Nobody);
        assert_eq!(first(b"GET / HTTP/1.1\r\n"), First::Nobody);
    }

    proptest! {
        #[test]
        fn whatever_comes_first_is_no_reason_to_fall_over(mut bytes in prop::collection::vec(any::<u8>(), 0..600), tls: bool) {
            if tls && bytes.len() > 3 {
                bytes[..3].copy_from_slice(&[0x16, 3, 1]);
            }
            first(&bytes);
        }

        #[test]
        fn a_first_message_with_a_changed_byte_is_read_or_refused(at in 0_usize..200, byte: u8) {
            let mut bytes = hello("oak.example.org", &[b"h2"]);
            let at = at % bytes.len();
            bytes[at] = byte;
            first(&bytes);
        }
    }
}
