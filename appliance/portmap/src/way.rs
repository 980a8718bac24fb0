//! The way to one router: every packet leaves through the uplink that it is about, and only the router itself is heard.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use crate::pcp;
use crate::upnp::{self, Action, Control, Said};

/// How long an answer is waited for before the question is sent again; the last one is the end.
const PATIENCE: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_millis(1000)];
/// All routers that want to be found have said so by then.
const SEARCHING: Duration = Duration::from_millis(2500);
/// For one page of a router.
const PAGE: Duration = Duration::from_secs(4);
/// Packets of others that are passed over while one waits for an answer.
pub(crate) const MOST_STRAYS: usize = 64;

/// The way to one router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The interface.
    pub device: String,
    /// Found by the kernel's rules; 0 for none.
    pub mark: u32,
    /// This machine's address there.
    pub own: Ipv4Addr,
    /// The router.
    pub router: Ipv4Addr,
}

/// Asks over UDP, again where nothing comes; nothing where nothing does, and in any case where it may still come to. The kernel passes on only what the router itself sends.
pub(crate) async fn exchange<T>(
    way: &Way,
    message: &[u8],
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<(Option<T>, UdpSocket)> {
    let socket = udp(way)?;
    socket.connect(SocketAddr::from((way.router, pcp::PORT))).await?;
    let mut bytes = [0; pcp::LONGEST + 1];
    for patience in PATIENCE {
        socket.send(message).await?;
        let until = Instant::now() + patience;
        for _ in 0..MOST_STRAYS {
            match timeout_at(until, socket.recv(&mut bytes)).await {
                Ok(count) => {
                    if let Some(answer) = read(&bytes[..count?]) {
                        return Ok((Some(answer), socket));
                    }
                }
                Err(_) => break,
            }
        }
    }
    Ok((None, socket))
}

/// Finds the page of the router that gives ports.
pub(crate) async fn search(way: &Way) -> io::Result<Option<Control>> {
    let socket = udp(way)?;
    let until = Instant::now() + SEARCHING;
    for search in upnp::searches() {
        // To the router alone too: not every network carries what is meant for many.
        for to in [SocketAddr::from(upnp::SEARCH), (way.router, upnp::SEARCH.port()).into()] {
            if let Err(error) = socket.send_to(search.as_bytes(), to).await
                && to.ip() == way.router
            {
                return Err(error);
            }
        }
    }
    let mut bytes = [0; upnp::LONGEST_FOUND + 1];
    let mut seen: Vec<(u16, String)> = Vec::new();
    for _ in 0..MOST_STRAYS {
        let Ok(came) = timeout_at(until, socket.recv_from(&mut bytes)).await else { break };
        let Ok((count, from)) = came else { continue };
        if from.ip() != way.router {
            continue;
        }
        let Some(page) = upnp::found(&bytes[..count], way.router) else { continue };
        // It says the same again and again.
        if seen.contains(&page) || seen.len() >= 4 {
            continue;
        }
        seen.push(page.clone());
        let (port, path) = page;
        let described = fetch(way, port, http::Request::get(path).body(Bytes::new())).await;
        if let Ok(described) = described
            && let Some(control) = upnp::control(&described, way.router, port)
        {
            return Ok(Some(control));
        }
    }
    Ok(None)
}

/// Asks the router's page; nothing where its answer cannot be read.
pub(crate) async fn act(
    way: &Way,
    control: &Control,
    action: Action<'_>,
) -> io::Result<Option<Said>> {
    let (service, name) = (control.service, action.name());
    let request = http::Request::post(control.path.as_str())
        .header("content-type", "text/xml; charset=\"utf-8\"")
        .header("soapaction", format!("\"{service}#{name}\""))
        .body(Bytes::from(action.page(service)));
    Ok(upnp::said(action, &fetch(way, control.port, request).await?))
}

/// A page of the router, whatever its status: a refusal comes as an error of the server with words in it.
async fn fetch(
    way: &Way,
    port: u16,
    request: http::Result<http::Request<Bytes>>,
) -> io::Result<String> {
    let odd = |error: &dyn std::fmt::Display| {
        io::Error::new(io::ErrorKind::InvalidData, format!("its page cannot be read: {error}"))
    };
    let (mut parts, body) = request.map_err(|error| odd(&error))?.into_parts();
    let host = format!("{}:{port}", way.router).parse().expect("an address is a header");
    parts.headers.insert(http::header::HOST, host);
    let fetching = async {
        let socket = TcpSocket::from_std_stream(prepared(way, Type::STREAM)?.into());
        let stream = TokioIo::new(socket.connect((way.router, port).into()).await?);
        let (mut send, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(32 << 10)
            .handshake(stream)
            .await
            .map_err(|error| odd(&error))?;
        let asking = async {
            let request = http::Request::from_parts(parts, Full::new(body));
            let answer = send.send_request(request).await.map_err(|error| odd(&error))?;
            let body = Limited::new(answer.into_body(), upnp::LONGEST_PAGE).collect().await;
            let body = body.map_err(|error| odd(&error))?.to_bytes();
            String::from_utf8(body.into()).map_err(|error| odd(&error))
        };
        tokio::pin!(asking, connection);
        let mut open = true;
        loop {
            tokio::select! {
                page = &mut asking => return page,
                _ended = &mut connection, if open => open = false,
            }
        }
    };
    timeout(PAGE, fetching).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn udp(way: &Way) -> io::Result<UdpSocket> {
    let socket = prepared(way, Type::DGRAM)?;
    socket.set_multicast_if_v4(&way.own)?;
    socket.set_multicast_ttl_v4(2)?;
    UdpSocket::from_std(socket.into())
}

/// A socket whose packets leave through the uplink, whatever else the machine uses: two routers may have the same address.
fn prepared(way: &Way, kind: Type) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
    if way.mark != 0 {
        socket.set_mark(way.mark)?;
    }
    socket.bind_device(Some(way.device.as_bytes()))?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((way.own, 0)).into())?;
    Ok(socket)
}
