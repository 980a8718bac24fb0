//! Carries one request to a server elsewhere, or in a container, and brings its answer back. Each has a connection of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT,
};
use http::{HeaderMap, HeaderName, Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use polder_control::SecretText;
use polder_pin::{Known, Versions};
use polder_site::UpstreamUrl;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// The look-up of a name, the connection and TLS may each take so long.
const CONNECT: Duration = Duration::from_secs(5);
/// A server may think so long before its answer begins.
const HEAD: Duration = Duration::from_secs(300);
/// Most of a short answer that is read whole.
const LONGEST_SHORT: usize = 1 << 20;

/// How often a question was passed on before, in every question that a box puts to a server at an address. Another Polder box goes by it, so
/// that no question goes round in a circle; others do not know it.
pub const ELSEWHERE: HeaderName = HeaderName::from_static("polder-elsewhere");

/// How often the question with these headers was passed on already. What is no number counts as more than any box passes on.
pub fn hops(headers: &HeaderMap) -> u8 {
    let Some(value) = headers.get(ELSEWHERE) else { return 0 };
    value.to_str().ok().and_then(|text| text.trim().parse().ok()).unwrap_or(u8::MAX)
}

/// No answer began. Each sentence is fit for a person and has no key in it.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// It was not reached: it has not seen the request.
    #[error("{host} cannot be reached ({why})")]
    Unreachable {
        /// Who.
        host: String,
        /// Why not.
        why: String,
    },
    /// It was reached and is not the one that is trusted: it has not seen the request.
    #[error(
        "{host} did not show a certificate that is trusted ({why}); a steward can look at its address and its authority"
    )]
    Untrusted {
        /// Who.
        host: String,
        /// Why not.
        why: String,
    },
    /// It may have seen the request.
    #[error("{host} broke off before it answered")]
    Broke {
        /// Who.
        host: String,
    },
    /// It may be at work on it.
    #[error("{host} did not begin to answer within {seconds} s")]
    Silent {
        /// Who.
        host: String,
        /// How long was waited.
        seconds: u64,
    },
    /// What is trusted cannot be read.
    #[error("the certificate of its authority cannot be read; put it in again")]
    Authority,
    /// Its key cannot be sent.
    #[error("its key cannot be sent; put it in again")]
    Key,
}

impl WireError {
    /// The server has certainly not seen the request, so that it may be put again.
    pub fn unseen(&self) -> bool {
        !matches!(self, Self::Broke { .. } | Self::Silent { .. })
    }
}

/// Where a server is.
#[derive(Clone)]
pub enum Place {
    /// At an address, over TLS where the configuration is there.
    Web(UpstreamUrl, Option<Arc<ClientConfig>>),
    /// At a port of this process's own loopback: that of a container, where it has no other network.
    Near(u16),
}

/// The way to one server.
#[derive(Clone)]
pub struct Wire {
    place: Place,
    key: Option<HeaderValue>,
    head: Duration,
}

impl Wire {
    /// To a server at an address, trusting its authority (PEM) alone where one is named, else whom browsers trust.
    pub fn to(
        url: &UpstreamUrl,
        authority: Option<&str>,
        key: Option<&SecretText>,
    ) -> Result<Self, WireError> {
        let tls = match url.is_tls() {
            true => Some(Arc::new(trusting(authority)?)),
            false => None,
        };
        Self::at(Place::Web(url.clone(), tls), key)
    }

    /// To a server at this place.
    pub fn at(place: Place, key: Option<&SecretText>) -> Result<Self, WireError> {
        let bearer = |key: &SecretText| {
            let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose()))
                .map_err(|_| WireError::Key)?;
            value.set_sensitive(true);
            Ok(value)
        };
        Ok(Self { place, key: key.map(bearer).transpose()?, head: HEAD })
    }

    /// Waits only so long for an answer to begin.
    pub fn within(mut self, head: Duration) -> Self {
        self.head = head;
        self
    }

    /// Who it is, for sentences.
    fn host(&self) -> String {
        match &self.place {
            Place::Web(url, _) => url.authority(),
            Place::Near(port) => format!("port {port} in the container"),
        }
    }

    /// Asks. Of the client's own headers only those go along that say what dialect it speaks, and how often it was passed on; `sent` is set once the server may have
    /// seen the request.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        from_client: &HeaderMap,
        body: Bytes,
        sent: &AtomicBool,
    ) -> Result<Response<WireBody>, WireError> {
        let host = self.host();
        let unreachable = |why: String| WireError::Unreachable { host: host.clone(), why };
        let stream = self.connect().await?;
        let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = timeout(CONNECT, shaken)
            .await
            .map_err(|_| unreachable("it takes too long".to_owned()))?
            .map_err(|error| unreachable(error.to_string()))?;
        let worked = Worked(tokio::spawn(async move { drop(connection.await) }));
        let request = self.request(method, path, from_client, body)?;
        sent.store(true, Ordering::Relaxed);
        match timeout(self.head, sender.send_request(request)).await {
            Ok(Ok(answer)) => Ok(answer.map(|body| WireBody { body, _worked: worked })),
            Ok(Err(_)) => Err(WireError::Broke { host }),
            Err(_) => Err(WireError::Silent { host, seconds: self.head.as_secs() }),
        }
    }

    /// Whether a connection to it comes about within this time.
    pub(crate) async fn is_there(&self, within: Duration) -> bool {
        timeout(within, self.connect()).await.is_ok_and(|stream| stream.is_ok())
    }

    /// Asks for something short, and reads it whole.
    pub async fn fetch(&self, path: &str) -> Result<Response<Bytes>, WireError> {
        let none = HeaderMap::new();
        let answer =
            self.ask(Method::GET, path, &none, Bytes::new(), &AtomicBool::new(false)).await?;
        let (head, body) = answer.into_parts();
        let broke = || WireError::Broke { host: self.host() };
        let body = timeout(self.head, Limited::new(body, LONGEST_SHORT).collect()).await;
        let body = body.map_err(|_| broke())?.map_err(|_| broke())?.to_bytes();
        Ok(Response::from_parts(head, body))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        from_client: &HeaderMap,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, WireError> {
        let (host, before) = match &self.place {
            Place::Web(url, _) => (url.authority(), url.path()),
            Place::Near(_) => ("localhost".to_owned(), ""),
        };
        let broke = || WireError::Broke { host: self.host() };
        let mut request = Request::new(Full::new(body.clone()));
        *request.uri_mut() = format!("{before}{path}").parse().map_err(|_| broke())?;
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::try_from(host).map_err(|_| broke())?);
        headers.insert(USER_AGENT, HeaderValue::from_static("polder"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        if method != Method::GET {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        for name in DIALECT {
            if let Some(value) = from_client.get(name) {
                headers.insert(HeaderName::from_static(name), value.clone());
            }
        }
        if matches!(self.place, Place::Web(..)) {
            headers.insert(
                ELSEWHERE,
                HeaderValue::from(u16::from(hops(from_client).saturating_add(1))),
            );
        }
        if let Some(key) = &self.key {
            headers.insert(AUTHORIZATION, key.clone());
        }
        *request.method_mut() = method;
        Ok(request)
    }

    async fn connect(&self) -> Result<Stream, WireError> {
        let host = self.host();
        let unreachable = |why: String| WireError::Unreachable { host: host.clone(), why };
        let late = |_| unreachable(format!("no answer within {} s", CONNECT.as_secs()));
        match &self.place {
            Place::Near(port) => {
                let to = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
                let stream = timeout(CONNECT, TcpStream::connect(to)).await.map_err(late)?;
                let stream = stream.map_err(|error| unreachable(error.to_string()))?;
                let _ = stream.set_nodelay(true);
                Ok(Box::new(stream))
            }
            Place::Web(url, tls) => {
                let to = (url.host(), url.port());
                let stream = timeout(CONNECT, TcpStream::connect(to)).await.map_err(late)?;
                let stream = stream.map_err(|error| unreachable(error.to_string()))?;
                // A token is a small packet that somebody waits for.
                let _ = stream.set_nodelay(true);
                let Some(tls) = tls else { return Ok(Box::new(stream)) };
                let name = ServerName::try_from(url.host().to_owned())
                    .map_err(|error| unreachable(error.to_string()))?;
                let shaken = TlsConnector::from(tls.clone()).connect(name, stream);
                let shaken = timeout(CONNECT, shaken).await.map_err(late)?;
                Ok(Box::new(shaken.map_err(|error| {
                    let why = error.to_string();
                    match error.get_ref().is_some_and(|e| e.is::<rustls::Error>()) {
                        true => WireError::Untrusted { host: host.clone(), why },
                        false => unreachable(why),
                    }
                })?))
            }
        }
    }
}

/// What Anthropic's clients say of what they understand.
const DIALECT: [&str; 2] = ["anthropic-version", "anthropic-beta"];

trait Both: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Both for T {}
type Stream = Box<dyn Both>;

/// Ends the work on a connection with whoever wanted it.
#[derive(Debug)]
struct Worked(JoinHandle<()>);

impl Drop for Worked {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An answer as its server writes it. Dropping it closes the connection, and the server stops working on it.
#[derive(Debug)]
pub struct WireBody {
    body: Incoming,
    _worked: Worked,
}

impl Body for WireBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn trusting(authority: Option<&str>) -> Result<ClientConfig, WireError> {
    let mut roots = RootCertStore::empty();
    match authority {
        Some(pem) => {
            for root in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let root = root.map_err(|_| WireError::Authority)?;
                roots.add(root).map_err(|_| WireError::Authority)?;
            }
            if roots.is_empty() {
                return Err(WireError::Authority);
            }
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| WireError::Authority)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

/// Fetches another Polder box's own authority, PEM, and takes it only with this fingerprint (SHA-256), as that box's screen and its page
/// "Trust this box" show it. The way there is not trusted, and nothing secret goes over it.
pub async fn fetch_authority(url: &UpstreamUrl, fingerprint: &str) -> Result<String, String> {
    let wanted: String = fingerprint.chars().filter(char::is_ascii_hexdigit).collect();
    let wanted = wanted.to_ascii_uppercase();
    if wanted.len() != 64 {
        return Err("a fingerprint has 64 digits and letters from A to F; read it off the other box's screen".to_owned());
    }
    if !url.is_tls() {
        return Err(
            "an address on this machine without TLS has no fingerprint; leave it empty".to_owned()
        );
    }
    let say = |error: WireError| error.to_string();
    // Any certificate is taken on the way: what is fetched is compared with its fingerprint.
    let mut tls = polder_pin::calling(Known::anybody(), Versions::Both)
        .map_err(|_| say(WireError::Authority))?
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let bare: UpstreamUrl = format!("https://{}/", url.authority())
        .parse()
        .map_err(|error: polder_site::UpstreamFault| error.to_string())?;
    let wire = Wire::at(Place::Web(bare, Some(Arc::new(tls))), None).map_err(say)?;
    let answer = wire.within(Duration::from_secs(10)).fetch("/ca.crt").await.map_err(say)?;
    let none = || format!("{} gives no certificate; is it a Polder box?", url.authority());
    let der = CertificateDer::from_pem_slice(answer.body()).map_err(|_| none())?;
    let found = polder_pin::fingerprint(&der);
    let found: String = found.iter().map(|byte| format!("{byte:02X}")).collect();
    match found == wanted {
        true => String::from_utf8(answer.into_body().to_vec()).map_err(|_| none()),
        false => Err(format!(
            "the certificate of {} has another fingerprint than this one; read it off the other box's screen again, and if it is the same there, somebody is in between",
            url.authority()
        )),
    }
}
