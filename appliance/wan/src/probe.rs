//! Asks targets whether an uplink leads anywhere: a connection that is marked for that uplink's table and bound to its interface.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_site::TargetKind;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

/// The way that a probe takes.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    /// Found by the kernel's rules.
    pub(crate) mark: u32,
    /// The interface.
    pub(crate) device: String,
}

/// What an `https` target is asked with. Certificates are checked against the roots that browsers trust.
#[derive(Clone)]
pub struct Pages(Arc<ClientConfig>);

impl Pages {
    /// With the usual roots.
    pub fn usual() -> Self {
        Self::trusting(webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect())
    }

    /// With these roots only.
    pub fn trusting(roots: rustls::RootCertStore) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self(Arc::new(config))
    }
}

/// Asks one target at one address. Gives the time that the connection took.
pub(crate) async fn ask(
    target: &TargetKind,
    at: SocketAddr,
    way: &Way,
    pages: &Pages,
) -> io::Result<Duration> {
    let begun = Instant::now();
    let stream = connect(at, way).await?;
    let delay = begun.elapsed();
    if let TargetKind::Https { host, path, .. } = target {
        page(stream, host, path, pages).await?;
    }
    Ok(delay)
}

async fn connect(at: SocketAddr, way: &Way) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_mark(way.mark)?;
    socket.bind_device(Some(way.device.as_bytes()))?;
    // Nothing of a probe should linger, least of all on an uplink that is dead.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_nonblocking(true)?;
    TcpSocket::from_std_stream(socket.into()).connect(at).await
}

/// Asks for a page; any answer of a web server that can prove its name is one.
async fn page(stream: TcpStream, host: &str, path: &str, pages: &Pages) -> io::Result<()> {
    let strange = || io::Error::from(io::ErrorKind::InvalidData);
    let name = ServerName::try_from(host.to_owned()).map_err(|_| strange())?;
    let mut stream = TlsConnector::from(pages.0.clone()).connect(name, stream).await?;
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let request = format!(
        "HEAD {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nUser-Agent: polder\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = [0; 9];
    stream.read_exact(&mut answer).await?;
    if answer.starts_with(b"HTTP/1.") { Ok(()) } else { Err(strange()) }
}

/// Where a target is, with the family that the uplink has; nowhere if it has none that fits.
pub(crate) fn place(
    target: &TargetKind,
    known: &[IpAddr],
    speaks: impl Fn(bool) -> bool,
) -> Option<SocketAddr> {
    match target {
        TargetKind::Tcp(at) => speaks(at.is_ipv6()).then_some(*at),
        TargetKind::Https { host, port, .. } => {
            let literal = host.parse().ok();
            let places = literal.as_slice().iter().chain(known);
            places.copied().find(|ip| speaks(ip.is_ipv6())).map(|ip| SocketAddr::new(ip, *port))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_asked_where_the_uplink_can_reach_it() {
        let at = |target: &str, known: &[&str], four, six| {
            let target: polder_site::Target = target.parse().unwrap();
            let known: Vec<IpAddr> = known.iter().map(|ip| ip.parse().unwrap()).collect();
            place(target.kind(), &known, |v6| if v6 { six } else { four }).map(|at| at.to_string())
        };
        assert_eq!(at("9.9.9.9:443", &[], true, false).as_deref(), Some("9.9.9.9:443"));
        assert_eq!(at("[2620:fe::fe]:443", &[], true, false), None);
        let both = ["2001:db8::1", "192.0.2.1"];
        assert_eq!(at("https://a.example", &both, true, false).as_deref(), Some("192.0.2.1:443"));
        assert_eq!(
            at("https://a.example:8443/x", &both, true, true).as_deref(),
            Some("[2001:db8::1]:8443")
        );
        assert_eq!(at("https://a.example", &[], true, true), None);
        assert_eq!(at("https://[fd00::1]:1/", &[], true, true).as_deref(), Some("[fd00::1]:1"));
    }
}
