//! One request over TLS to a certificate authority or a hook, and its whole answer. Each has a connection of its own: there are
//! a dozen of them in three months.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, HeaderValue, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// From the look-up of the name to the last byte.
const WITHIN: Duration = Duration::from_secs(30);
/// A chain of certificates is a few thousand bytes.
const LONGEST: usize = 1 << 20;

/// No answer came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebError {
    #[error("{0} is not an address over TLS")]
    Address(String),
    #[error("{host} cannot be reached ({why}); check that the box has a way to the internet")]
    Unreachable { host: String, why: String },
    #[error("{0} did not answer within 30 s")]
    Silent(String),
    #[error("the certificate in certificate.root cannot be read")]
    Root,
}

/// Asks over TLS.
#[derive(Clone)]
pub(crate) struct Web {
    tls: Arc<ClientConfig>,
    /// Until when the last answer wants to be left alone, Unix seconds. instant-acme does not tell.
    not_before: Arc<Mutex<Option<i64>>>,
}

impl Web {
    /// Trusts what browsers trust, and these certificates (PEM) too.
    pub(crate) fn trusting(root: Option<&str>) -> Result<Self, WebError> {
        let mut roots = RootCertStore::empty();
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        if let Some(pem) = root {
            for root in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let root = root.map_err(|_| WebError::Root)?;
                roots.add(root).map_err(|_| WebError::Root)?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| WebError::Root)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: Arc::new(tls), not_before: Arc::default() })
    }

    /// What the last refusals said of when to come back; forgotten then.
    pub(crate) fn take_not_before(&self) -> Option<i64> {
        self.not_before.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, WebError> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let answer = timeout(WITHIN, self.exchange(request));
        let answer = answer.await.map_err(|_| WebError::Silent(host))??;
        let busy = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if busy.contains(&answer.status()) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
            let said = answer.headers().get(RETRY_AFTER).and_then(|after| retry_after(after, now));
            let mut kept = self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
            *kept = said.max(*kept);
        }
        Ok(answer)
    }

    async fn exchange(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, WebError> {
        let address = || WebError::Address(request.uri().to_string());
        let authority = request.uri().authority().cloned().ok_or_else(address)?;
        if request.uri().scheme_str() != Some("https") {
            return Err(address());
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| address())?;
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let header = HeaderValue::try_from(authority.as_str()).map_err(|_| address())?;
        let unreachable = |why: &dyn std::fmt::Display| WebError::Unreachable {
            host: host.clone(),
            why: why.to_string(),
        };
        let to = (host.as_str(), authority.port_u16().unwrap_or(443));
        let stream = TcpStream::connect(to).await.map_err(|why| unreachable(&why))?;
        let tls = TlsConnector::from(self.tls.clone());
        let stream = tls.connect(name, stream).await.map_err(|why| unreachable(&why))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|why| unreachable(&why))?;
        request.headers_mut().insert(HOST, header);
        let length = request.body().len();
        if length > 0 {
            request.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        *request.uri_mut() = path.parse().map_err(|_| WebError::Address(path.clone()))?;
        let exchange = async {
            let (head, body) = sender.send_request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, LONGEST).collect().await?.to_bytes();
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Response::from_parts(head, body))
        };
        let mut connection = std::pin::pin!(connection);
        let mut exchange = std::pin::pin!(exchange);
        let done = tokio::select! {
            done = exchange.as_mut() => done,
            // Its end may be the answer's, too.
            _ = connection.as_mut() => exchange.await,
        };
        done.map_err(|why| unreachable(&why))
    }
}

impl HttpClient for Web {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let web = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(never) => match never {},
            };
            let answer = web.send(Request::from_parts(head, body)).await;
            let answer = answer.map_err(|error| instant_acme::Error::Other(Box::new(error)))?;
            // Where there is no problem to be read there is at least a status.
            let plain = answer
                .headers()
                .get(http::header::CONTENT_TYPE)
                .is_none_or(|kind| !kind.to_str().is_ok_and(|kind| kind.contains("json")));
            let bad = answer.status().is_client_error() || answer.status().is_server_error();
            if bad && plain {
                let why = format!("it answered {}", answer.status());
                return Err(instant_acme::Error::Other(why.into()));
            }
            Ok(BytesResponse::from(answer.map(Full::new)))
        })
    }
}

/// Seconds from now, or a date.
fn retry_after(value: &HeaderValue, now: i64) -> Option<i64> {
    let text = value.to_str().ok()?.trim();
    match text.parse::<u32>() {
        Ok(seconds) => Some(now + i64::from(seconds)),
        Err(_) => {
            let date = jiff::fmt::rfc2822::parse(&text.replace("GMT", "+0000")).ok()?;
            Some(date.timestamp().as_second())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let read = |text: &'static str| retry_after(&HeaderValue::from_static(text), 1_000);
        assert_eq!(read("120"), Some(1_120));
        assert_eq!(read("Fri, 31 Dec 1999 23:59:59 GMT"), Some(946_684_799));
        for odd in ["", "soon", "-5", "99999999999"] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }
}
