//! The load: kept-alive HTTP/1.1 connections, closed loop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use tokio::net::{TcpStream, UnixStream};

use crate::upstream::now;

/// Where to send requests.
pub(crate) enum Target {
    Unix(PathBuf),
    Tls { port: u16, connector: tokio_rustls::TlsConnector, key: String },
}

impl Target {
    pub(crate) fn unix(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }

    pub(crate) fn tls(port: u16, trust: &Path, key: &str) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in rustls::pki_types::CertificateDer::pem_file_iter(trust)
            .expect("the certificate can be read")
        {
            roots
                .add(certificate.expect("the file is PEM"))
                .expect("the certificate can be trusted");
        }
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring speaks TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
        Self::Tls { port, connector: Arc::new(config).into(), key: key.to_owned() }
    }

    async fn connect(&self) -> SendRequest<Full<Bytes>> {
        match self {
            Self::Unix(path) => {
                begin(TokioIo::new(UnixStream::connect(path).await.expect("the upstream listens")))
                    .await
            }
            Self::Tls { port, connector, .. } => {
                let stream =
                    TcpStream::connect(("127.0.0.1", *port)).await.expect("the door listens");
                stream.set_nodelay(true).expect("TCP has the option");
                let name = ServerName::try_from("localhost").expect("a valid name");
                begin(TokioIo::new(
                    connector.connect(name, stream).await.expect("the door speaks TLS 1.3"),
                ))
                .await
            }
        }
    }

    fn request(&self, stream: bool) -> http::Request<Full<Bytes>> {
        let body = format!(
            r#"{{"model": "bench", "stream": {stream}, "messages": [{{"role": "user", "content": "Hello, box."}}]}}"#
        );
        let mut request = http::Request::post("/v1/chat/completions")
            .header("host", self.host())
            .header("content-type", "application/json");
        if let Self::Tls { key, .. } = self {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        request.body(Full::new(body.into())).expect("a valid request")
    }

    fn host(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Tls { port, .. } => format!("localhost:{port}"),
        }
    }
}

async fn begin<S>(io: TokioIo<S>) -> SendRequest<Full<Bytes>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(io).await.expect("the peer speaks HTTP/1.1");
    tokio::spawn(connection);
    sender
}

/// Microseconds, and how long it took to gather them.
#[derive(Default)]
pub(crate) struct Samples {
    micros: Vec<f64>,
    seconds: f64,
    sorted: bool,
}

impl Samples {
    pub(crate) fn add(&mut self, other: Self) {
        self.micros.extend(other.micros);
        self.seconds += other.seconds;
        self.sorted = false;
    }

    pub(crate) fn percentile(&mut self, percent: f64) -> f64 {
        if !self.sorted {
            self.micros.sort_by(f64::total_cmp);
            self.sorted = true;
        }
        let last = self.micros.len().checked_sub(1).expect("something was measured");
        self.micros[(last as f64 * percent / 100.0).round() as usize]
    }

    pub(crate) fn count(&self) -> usize {
        self.micros.len()
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.micros.len() as f64 / self.seconds
    }
}

/// As many requests as fit in `time`, each connection one after the other.
pub(crate) async fn requests(target: &Target, connections: usize, time: Duration) -> Samples {
    let mut senders = Vec::new();
    for _ in 0..connections {
        senders.push(target.connect().await);
    }
    let start = Instant::now();
    let loops = senders.into_iter().map(|mut sender| async move {
        let mut micros = Vec::new();
        while start.elapsed() < time {
            sender.ready().await.expect("the connection stays open");
            let began = Instant::now();
            let answer = sender.send_request(target.request(false)).await.expect("an answer");
            assert_eq!(answer.status(), 200);
            answer.into_body().collect().await.expect("a whole body");
            micros.push(began.elapsed().as_secs_f64() * 1e6);
        }
        micros
    });
    let micros = futures_util::future::join_all(loops).await.concat();
    Samples { micros, seconds: start.elapsed().as_secs_f64(), sorted: false }
}

async fn open(target: &Target) -> (SendRequest<Full<Bytes>>, Incoming) {
    let mut sender = target.connect().await;
    let answer = sender.send_request(target.request(true)).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    (sender, answer.into_body())
}

/// The delay of each event of `streams` streams, `events` each.
pub(crate) async fn streams(target: &Target, streams: usize, events: usize) -> Samples {
    let start = Instant::now();
    let all = (0..streams).map(|_| async {
        let (_sender, mut body) = open(target).await;
        let mut micros = Vec::with_capacity(events);
        while micros.len() < events {
            let frame =
                body.frame().await.expect("the stream goes on").expect("the stream is whole");
            let read = now();
            let Ok(data) = frame.into_data() else { continue };
            let text = String::from_utf8_lossy(&data);
            for event in text.split("\n\n").filter_map(|e| e.strip_prefix("data: ")) {
                let written: u128 = event.parse().expect("an event is a time");
                micros.push((read - written) as f64 / 1e3);
            }
        }
        micros
    });
    let micros = futures_util::future::join_all(all).await.concat();
    Samples { micros, seconds: start.elapsed().as_secs_f64(), sorted: false }
}

/// Opens streams and keeps them open, read to their first event.
pub(crate) async fn hold(
    target: &Target,
    streams: usize,
) -> Vec<(SendRequest<Full<Bytes>>, Incoming)> {
    let mut held = Vec::new();
    for _ in 0..streams {
        let (sender, mut body) = open(target).await;
        body.frame().await.expect("the stream goes on").expect("the stream is whole");
        held.push((sender, body));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    held
}
