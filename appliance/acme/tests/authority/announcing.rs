//! An authority that says when it wants a certificate renewed (ARI, RFC 9773). Debian's pebble does not: a relay before it does, which
//! passes everything else on as it is.

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::house::{Authority, Habits, TestDns, TheBox, quick};

/// What it says, and what it was asked.
#[derive(Default)]
struct Heard {
    /// Seconds from now, of the window that it names.
    window: (i64, i64),
    /// Certificates that were asked about.
    asked: Vec<String>,
    /// Certificates that new orders said they were to replace.
    replaced: Vec<String>,
}

struct Announcer {
    port: u16,
    heard: Arc<Mutex<Heard>>,
    running: tokio::task::JoinHandle<()>,
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Announcer {
    async fn before(authority: &Authority) -> Self {
        let read = |name: &str| std::fs::read(authority.folder().join(name)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let own = CertificateDer::from_pem_slice(&read("cert.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_slice(&read("key.pem")).unwrap();
        let server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own], key)
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&read("ca.pem")).unwrap()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (server, client) =
            (TlsAcceptor::from(Arc::new(server)), TlsConnector::from(Arc::new(client)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, behind) = (listener.local_addr().unwrap().port(), authority.port);
        let heard = Arc::<Mutex<Heard>>::default();
        let hears = heard.clone();
        let running = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (server, client, heard) = (server.clone(), client.clone(), hears.clone());
                tokio::spawn(async move {
                    let Ok(mut caller) = server.accept(stream).await else { return };
                    let (head, body) = whole(&mut caller).await;
                    let answer = match answer(&head, &body, &heard) {
                        Some(answer) => answer.into_bytes(),
                        None => {
                            let stream = TcpStream::connect(("127.0.0.1", behind)).await.unwrap();
                            let name = "localhost".try_into().unwrap();
                            let mut there = client.connect(name, stream).await.unwrap();
                            // It makes its addresses out of the host that is asked for, which stays.
                            let head = head.replacen("\r\n", "\r\nconnection: close\r\n", 1);
                            there.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
                            let mut answer = Vec::new();
                            let _ = there.read_to_end(&mut answer).await;
                            answer
                        }
                    };
                    let answer = match head.starts_with("GET /dir ") {
                        true => announced(&String::from_utf8(answer).unwrap(), port).into_bytes(),
                        false => answer,
                    };
                    let _ = caller.write_all(&answer).await;
                    let _ = caller.shutdown().await;
                });
            }
        });
        Self { port, heard, running }
    }
}

/// A request's head, with the empty line, and its body.
async fn whole(caller: &mut (impl AsyncRead + Unpin)) -> (String, Vec<u8>) {
    let mut text = Vec::new();
    loop {
        let head = text.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        if let Some(end) = head {
            let head = String::from_utf8(text[..end].to_vec()).unwrap();
            let length = |line: &str| {
                line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok()
            };
            let length: usize = head.lines().find_map(length).unwrap_or(0);
            if text.len() >= end + length {
                return (head, text.split_off(end));
            }
        }
        if caller.read_buf(&mut text).await.unwrap_or(0) == 0 {
            return (String::new(), Vec::new());
        }
    }
}

/// The directory, with one more address in it.
fn announced(answer: &str, port: u16) -> String {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut directory: serde_json::Value = serde_json::from_str(body).unwrap();
    directory["renewalInfo"] = format!("https://localhost:{port}/ari").into();
    json(200, "", &directory)
}

fn json(status: u16, more: &str, body: &serde_json::Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} It is so\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{more}connection: close\r\n\r\n{body}",
        body.len()
    )
}

/// What it says by itself.
fn answer(head: &str, body: &[u8], heard: &Mutex<Heard>) -> Option<String> {
    let mut heard = heard.lock().unwrap();
    if let Some(rest) = head.strip_prefix("GET /ari/") {
        heard.asked.push(rest.split(' ').next().unwrap().to_owned());
        let now = jiff::Timestamp::now().as_second();
        let at = |after: i64| jiff::Timestamp::from_second(now + after).unwrap().to_string();
        let window = serde_json::json!({ "start": at(heard.window.0), "end": at(heard.window.1) });
        return Some(json(
            200,
            "retry-after: 21600\r\n",
            &serde_json::json!({ "suggestedWindow": window }),
        ));
    }
    let signed: serde_json::Value = serde_json::from_slice(body).ok()?;
    let said = URL_SAFE_NO_PAD.decode(signed["payload"].as_str()?).ok()?;
    let said: serde_json::Value = serde_json::from_slice(&said).ok()?;
    heard.replaced.push(said["replaces"].as_str()?.to_owned());
    None
}

#[tokio::test]
async fn a_certificate_is_renewed_when_its_authority_wants_it_and_the_order_says_what_it_replaces()
{
    let dns = TestDns::start().await;
    // Without a word of its authority such a one is renewed after 76 to 80 seconds; with one after five at the earliest.
    let authority =
        Authority::open(dns.port, Habits { lasts: Some(120), ..Habits::default() }).await;
    let announcer = Announcer::before(&authority).await;
    announcer.heard.lock().unwrap().window = (-20, -10);
    let mut wish = authority.wish(&["gpu.example.org"]);
    wish.directory = format!("https://localhost:{}/dir", announcer.port).parse().unwrap();
    let mut oak = TheBox::new(wish, quick());
    oak.open_door(authority.http_port).await;
    oak.follow();
    oak.until("the first certificate", |status| status.held.is_some()).await;
    // Its authority wants it back: it may have signed it by mistake. The next one it likes for a while.
    let begun = std::time::Instant::now();
    while announcer.heard.lock().unwrap().replaced.is_empty() {
        assert!(begun.elapsed().as_secs() < 40, "{:?}", oak.acme.status());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    announcer.heard.lock().unwrap().window = (45, 50);
    let likes = |status: &polder_control::PublicStatus| {
        let held = status.held.as_ref().filter(|_| status.doing.is_none());
        held.is_some_and(|held| (40..=55).contains(&(held.renews - held.from)))
    };
    oak.until("the second certificate, and what its authority says of it", likes).await;
    let heard = announcer.heard.lock().unwrap();
    assert_eq!(authority.had().1, 2);
    // By its authority's key and its own number, as the first question named it.
    assert_eq!(heard.replaced, heard.asked[..1], "{:?}", heard.asked);
    assert_eq!(heard.asked.len(), 2, "{:?}", heard.asked);
    assert!(heard.asked[0].split('.').count() == 2 && heard.asked[0] != heard.asked[1]);
}
