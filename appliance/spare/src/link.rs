use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::{Certificate, Folders, Identity, Peer, SpareError, tls};

/// To connect, and to answer a short question.
const PATIENCE: Duration = Duration::from_secs(10);
/// As the field of IPv4 has it: the two lowest bits are somebody else's.
const LOWER_EFFORT: u8 = 1 << 2;
/// Bytes that wait in the kernel.
const QUEUE: usize = 256 << 10;
/// Bytes of an answer to one.
const LONGEST: usize = 1 << 20;

/// A body that goes over the link.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// The main box's side of the link: asks the pinned spare.
pub struct Link {
    address: String,
    name: String,
    config: Arc<ClientConfig>,
    kept: Mutex<Option<SendRequest<Body>>>,
}

impl Link {
    /// To the spare that this box is paired with.
    pub fn of(folders: &Folders) -> Result<Self, SpareError> {
        let peer = Peer::read(folders)?.ok_or(SpareError::Alone)?;
        let address = peer.address.clone().ok_or(SpareError::Alone)?;
        let config = Arc::new(tls::client(&Identity::of_box(folders)?, &peer.certificate)?);
        Ok(Self { address, name: peer.name, config, kept: Mutex::new(None) })
    }

    /// Where the spare is.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Asks a short question with a JSON body, over a connection that is kept, and reads the JSON answer. An empty answer is `null`.
    pub async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        question: &Q,
    ) -> Result<A, SpareError> {
        let text = serde_json::to_vec(question).map_err(|error| self.foreign(error))?;
        let ask = async {
            let mut kept = self.kept.lock().await;
            // The answer before may be read and its connection not yet ready for the next question.
            let mut sender = kept.take();
            let ready = match &mut sender {
                Some(sender) => sender.ready().await.is_ok(),
                None => false,
            };
            let mut sender = match sender {
                Some(sender) if ready => sender,
                _ => connect(&self.address, self.config.clone()).await?.0,
            };
            let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
            let answer = sender.send_request(request(method, path, body)?).await;
            let answer = answer.map_err(|error| away(&self.address, &error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LONGEST).collect().await;
            let body = body.map_err(|error| self.foreign(error))?.to_bytes();
            *kept = Some(sender);
            Ok::<_, SpareError>((status, body))
        };
        let (status, body) = timeout(PATIENCE, ask).await.map_err(|_| slow(&self.address))??;
        if !status.is_success() {
            return Err(self.refused(status, &body));
        }
        let body = if body.is_empty() { Bytes::from_static(b"null") } else { body };
        serde_json::from_slice(&body).map_err(|error| self.foreign(error))
    }

    /// Sends one request over a connection of its own and gives the answer as it comes: for what is large. A status that is no success is
    /// an answer too.
    pub async fn open(&self, request: Request<Body>) -> Result<Response<Incoming>, SpareError> {
        let connect = timeout(PATIENCE, connect_as(&self.address, self.config.clone(), true));
        let (mut sender, _) = connect.await.map_err(|_| slow(&self.address))??;
        sender.send_request(request).await.map_err(|error| away(&self.address, &error))
    }

    /// The same for a method and path without a body.
    pub async fn get(&self, path: &str) -> Result<Response<Incoming>, SpareError> {
        let body = Full::new(Bytes::new()).map_err(|never| match never {}).boxed();
        self.open(request(Method::GET, path, body)?).await
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> SpareError {
        SpareError::Refused { who: self.name.clone(), why: words(status, body) }
    }

    fn foreign(&self, why: impl ToString) -> SpareError {
        SpareError::Foreign { who: self.name.clone(), why: why.to_string() }
    }
}

/// What an answer that is no success says, in a line.
pub(crate) fn words(status: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line: String = text.trim().chars().filter(|c| !c.is_control()).take(300).collect();
    if line.is_empty() { status.to_string() } else { line }
}

pub(crate) fn request(method: Method, path: &str, body: Body) -> Result<Request<Body>, SpareError> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, crate::identity::NAME)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|error| SpareError::Foreign { who: "this box".to_owned(), why: error.to_string() })
}

/// What is large goes behind everything else, where the network between the two tells one from the other: the class for that (LE, RFC 8622), and no more
/// in the kernel's own queue than is needed.
fn behind_others(stream: &TcpStream) {
    use rustix::net::sockopt;
    let class = match stream.peer_addr() {
        Ok(peer) if peer.is_ipv6() => sockopt::set_ipv6_tclass(stream, u32::from(LOWER_EFFORT)),
        _ => sockopt::set_ip_tos(stream, LOWER_EFFORT),
    };
    let queue = sockopt::set_socket_send_buffer_size(stream, QUEUE);
    if let Err(error) = class.and(queue) {
        log::debug!("what is sent cannot go behind everything else: {error}");
    }
}

/// Connects, and says which certificate the other side showed.
pub(crate) async fn connect(
    address: &str,
    config: Arc<ClientConfig>,
) -> Result<(SendRequest<Body>, Certificate), SpareError> {
    connect_as(address, config, false).await
}

async fn connect_as(
    address: &str,
    config: Arc<ClientConfig>,
    behind: bool,
) -> Result<(SendRequest<Body>, Certificate), SpareError> {
    let stream = TcpStream::connect(address).await.map_err(|error| away(address, &error))?;
    let _ = stream.set_nodelay(true);
    if behind {
        behind_others(&stream);
    }
    let connected = TlsConnector::from(config).connect(tls::name(), stream).await;
    let stream = connected.map_err(|error| away(address, &error))?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|shown| shown.first());
    let shown = shown.map(Certificate::of).ok_or_else(|| SpareError::Away {
        address: address.to_owned(),
        why: "it shows no certificate".to_owned(),
    })?;
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| away(address, &error))?;
    // It ends with its sender.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            log::debug!("a connection of the link ended: {error}");
        }
    });
    Ok((sender, shown))
}

pub(crate) fn away(address: &str, error: &dyn std::error::Error) -> SpareError {
    let mut why = error.to_string();
    if let Some(source) = error.source() {
        why += &format!(": {source}");
    }
    if why.contains("ApplicationVerificationFailure") {
        why = "it shows another certificate than when the two were paired".to_owned();
    }
    SpareError::Away { address: address.to_owned(), why }
}

pub(crate) fn slow(address: &str) -> SpareError {
    SpareError::Away { address: address.to_owned(), why: "it does not answer in time".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_large_goes_behind_everything_else() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = tokio::net::TcpListener::bind(address).await else { continue };
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            behind_others(&stream);
            let class = match address.starts_with('[') {
                true => rustix::net::sockopt::ipv6_tclass(&stream).unwrap(),
                false => u32::from(rustix::net::sockopt::ip_tos(&stream).unwrap()),
            };
            assert_eq!(class, u32::from(LOWER_EFFORT), "{address}");
        }
    }
}
