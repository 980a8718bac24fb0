//! The certificates that the door shows, asked for as a visitor would.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use polder_control::Sockets;
use polder_pin::{Known, Versions};
use polder_site::Site;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::seen::Certificate;

const PATIENCE: Duration = Duration::from_secs(5);
/// A box has a few names; each costs a handshake.
const MOST_NAMES: usize = 8;

/// What the door shows under each of the box's names, and the box's own authority. Names under which it shows the same are
/// one.
pub(crate) fn certificates(site: &Site, state: &Path) -> Result<Vec<Certificate>, String> {
    let address = inside(site);
    let mut found: BTreeMap<Vec<u8>, Certificate> = BTreeMap::new();
    for name in site.host_names().iter().filter(|name| *name != "localhost").take(MOST_NAMES) {
        let shown = shown(address, name)?;
        let (from, until) =
            validity(&shown).ok_or("the door shows a certificate that cannot be read")?;
        let certificate = || Certificate { on: name.clone(), authority: false, from, until };
        found.entry(shown).or_insert_with(certificate);
    }
    let mut all: Vec<Certificate> = found.into_values().collect();
    all.sort_by(|a, b| a.on.cmp(&b.on));
    // A stranger's look at the door does not show the authority's whole life.
    let pem = std::fs::read(Sockets::of(state).authority())
        .map_err(|e| format!("the authority's certificate: {e}"))?;
    let pem = x509_parser::pem::Pem::iter_from_buffer(&pem).next();
    let authority = pem.and_then(Result::ok).and_then(|pem| validity(&pem.contents));
    all.extend(authority.map(|(from, until)| Certificate {
        on: "the box's own authority".to_owned(),
        authority: true,
        from,
        until,
    }));
    Ok(all)
}

/// Where the door is from inside the machine.
pub(crate) fn inside(site: &Site) -> SocketAddr {
    let loopback = |address: &IpAddr| address.is_loopback();
    let first = site.door.listen.iter().find(|a| loopback(a)).or(site.door.listen.first());
    let address = match first.copied() {
        Some(IpAddr::V4(address)) if !address.is_unspecified() => IpAddr::V4(address),
        Some(IpAddr::V6(address)) if !address.is_unspecified() => IpAddr::V6(address),
        Some(IpAddr::V6(_)) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    SocketAddr::new(address, site.door.port)
}

fn shown(address: SocketAddr, name: &str) -> Result<Vec<u8>, String> {
    let say = |e: &dyn std::fmt::Display| format!("the door at {address} does not answer: {e}");
    // Any certificate will do, because it is looked at and not trusted; nothing is said over the connection.
    let config = polder_pin::calling(Known::anybody(), Versions::Both)
        .map_err(|e| say(&e))?
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).map_err(|e| say(&e))?;
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(|e| say(&e))?;
    let mut socket = TcpStream::connect_timeout(&address, PATIENCE).map_err(|e| say(&e))?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(|e| say(&e))?;
    socket.set_write_timeout(Some(PATIENCE)).map_err(|e| say(&e))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket).map_err(|e| say(&e))?;
    }
    let shown = connection.peer_certificates().and_then(|chain| chain.first());
    shown.map(|own| own.to_vec()).ok_or_else(|| say(&"it shows no certificate"))
}

fn validity(der: &[u8]) -> Option<(i64, i64)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ServerConfig, ServerConnection};

    use super::*;

    /// A door that shows one certificate to whoever comes, of a box whose authority it is too.
    fn door(state: &Path) -> Site {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut asked = rcgen::CertificateParams::new(vec!["oak.local".to_owned()]).unwrap();
        asked.not_before = rcgen::date_time_ymd(2026, 1, 1);
        asked.not_after = rcgen::date_time_ymd(2027, 1, 1);
        let certificate = asked.self_signed(&key).unwrap();
        std::fs::create_dir(state.join("run")).unwrap();
        std::fs::write(Sockets::of(state).authority(), certificate.pem()).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let site = Site::unclaimed(listener.local_addr().unwrap().port());
        std::thread::spawn(move || {
            for mut socket in listener.incoming().flatten() {
                let mut connection = ServerConnection::new(config.clone()).unwrap();
                while connection.is_handshaking() && connection.complete_io(&mut socket).is_ok() {}
            }
        });
        site
    }

    #[test]
    fn what_a_door_shows_is_read_once_for_all_names_with_the_authoritys_own() {
        let state = tempfile::tempdir().unwrap();
        let site = door(state.path());
        let found = certificates(&site, state.path()).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!((found[0].on.as_str(), found[0].authority), ("polder", false));
        assert_eq!((found[0].from, found[0].until), (1_767_225_600, 1_798_761_600));
        assert!(found[1].authority);
    }

    #[test]
    fn a_door_that_is_shut_is_told_with_its_address() {
        let state = tempfile::tempdir().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let why = certificates(&Site::unclaimed(free), state.path()).unwrap_err();
        assert!(why.contains(&format!("127.0.0.1:{free} does not answer")), "{why}");
    }
}
