//! A certificate that the world trusts, at the door: proved there, served by name, renewed under load.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use polder_control::{DoorReply, DoorRequest, PublicStatus, SecretName, SecretText};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::authority::{Authority, Habits, TestDns};
use crate::house::{House, say, status_of, until};

const PUBLIC: &str = "gpu.example.org";

/// A box, and an authority that looks at the box's own door for proofs.
struct Town {
    house: House,
    authority: Authority,
    _dns: TestDns,
}

impl Town {
    async fn settle() -> Self {
        let (house, dns) = (House::open().await, TestDns::start().await);
        let habits = Habits { http_port: Some(house.port), ..Habits::default() };
        let authority = Authority::open(dns.port, habits).await;
        Self { house, authority, _dns: dns }
    }

    fn wish(&self) {
        let wish = self.authority.wish(&[PUBLIC]);
        self.house.change(|status| status.site.certificate = Some(wish));
    }

    async fn status(&self) -> PublicStatus {
        match self.house.console(DoorRequest::Certificate).await {
            DoorReply::Certificate(status) => status,
            other => panic!("{other:?}"),
        }
    }

    async fn when(&self, what: &str, is: impl Fn(&PublicStatus) -> bool) -> PublicStatus {
        let begun = Instant::now();
        loop {
            let status = self.status().await;
            if is(&status) {
                return status;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{what}: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn certified(&self) -> PublicStatus {
        self.when("a certificate", |status| status.held.is_some() && status.doing.is_none()).await
    }
}

/// Takes any certificate and says which it was: the tests ask whose it is, not whether a browser would take it.
#[derive(Debug, Default)]
struct Any(Mutex<Vec<u8>>);

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap() = own.to_vec();
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A connection under this name, and the certificate that was shown.
async fn connect(port: u16, host: &str) -> std::io::Result<(TlsStream<TcpStream>, Vec<u8>)> {
    let seen = Arc::new(Any::default());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(seen.clone())
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let own = seen.0.lock().unwrap().clone();
    Ok((stream, own))
}

fn health(host: &str) -> String {
    format!("GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
}

async fn curl(arguments: &[&str]) -> String {
    let mut command = tokio::process::Command::new("curl");
    command.args(["-sS", "--max-time", "20", "--noproxy", "*"]).args(arguments);
    let seen = command.output().await.unwrap();
    let text = String::from_utf8_lossy(&[seen.stdout, seen.stderr].concat()).into_owned();
    assert!(seen.status.success(), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_world_and_the_network_each_get_a_certificate_that_they_trust() {
    let town = Town::settle().await;
    town.wish();
    let status = town.certified().await;
    assert_eq!(status.held.unwrap().names, [PUBLIC]);
    // Who does not know the box's authority, and comes by the public name.
    let root = town.house.folder.path().join("world.pem");
    let at = format!("https://127.0.0.1:{}/roots/0", town.authority.management);
    std::fs::write(&root, curl(&["-k", &at]).await).unwrap();
    let port = town.house.port;
    let resolve = |host: &str| format!("{host}:{port}:127.0.0.1");
    let root = root.display().to_string();
    let url = |host: &str| format!("https://{host}:{port}/health");
    for version in ["--http1.1", "--http2"] {
        let asked = [
            version,
            "-w",
            "%{http_code}",
            "--cacert",
            &root,
            "--resolve",
            &resolve(PUBLIC),
            &url(PUBLIC),
        ];
        assert!(curl(&asked).await.ends_with("200"));
    }
    // Everybody else, by name and by number, gets the box's own.
    let own = town.house.ca_file().display().to_string();
    for host in ["oak.local", "127.0.0.1"] {
        let asked =
            ["-w", "%{http_code}", "--cacert", &own, "--resolve", &resolve(host), &url(host)];
        assert!(curl(&asked).await.ends_with("200"), "{host}");
    }
    // A steward does without: the public name is served by the box's own authority again.
    town.house.change(|status| status.site.certificate = None);
    let asked =
        ["-w", "%{http_code}", "--cacert", &own, "--resolve", &resolve(PUBLIC), &url(PUBLIC)];
    town.when("no wish", |status| status.wanted.is_empty()).await;
    assert!(curl(&asked).await.ends_with("200"));
}

#[tokio::test]
async fn the_door_needs_no_authority() {
    let house = House::open().await;
    let dead = Authority::open(1, Habits::default()).await;
    let wish = dead.wish(&[PUBLIC]);
    drop(dead);
    house.change(|status| status.site.certificate = Some(wish));
    let mut failed = None;
    for _ in 0..500 {
        if let DoorReply::Certificate(status) = house.console(DoorRequest::Certificate).await {
            failed = status.failed;
        }
        if failed.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(failed.unwrap().why.contains("cannot be reached"));
    for host in ["oak.local", PUBLIC] {
        let stream = house.tls_to(host, "127.0.0.1", &["http/1.1"]).await.unwrap();
        assert_eq!(status_of(&say(stream, health(host).as_bytes()).await), 200, "{host}");
    }
}

#[tokio::test]
async fn a_secret_given_at_the_console_is_in_its_file_and_nowhere_else() {
    let house = House::open().await;
    let secret = "correct-horse-battery-staple";
    let keep = DoorRequest::KeepSecret { name: SecretName::Hook, text: SecretText::new(secret) };
    assert!(!format!("{keep:?}").contains(secret));
    let DoorReply::Certificate(status) = house.console(keep).await else { panic!("refused") };
    assert_eq!(status.secrets, [SecretName::Hook]);
    let said = house.records.lock().unwrap().join("\n");
    assert!(said.contains("gave the secret of the DNS hook") && !said.contains(secret), "{said}");
    let file = house.folder.path().join("pki/public/secrets.json");
    assert!(std::fs::read_to_string(&file).unwrap().contains(secret));
    let shown = house.ask(&format!("GET /certificate\ncookie: polder={}", house.session), "").await;
    assert_eq!(status_of(&shown), 200);
    assert!(shown.contains("There is one. Empty: it stays.") && !shown.contains(secret));
    assert!(matches!(house.console(DoorRequest::RenewCertificate).await, DoorReply::Refused(_)));
}

/// The figure of `make bench-resilience`: requests while certificates are renewed, and how many of them failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewal_under_load_fails_no_request_and_ends_no_stream() {
    const RENEWALS: usize = 3;
    const VISITORS: usize = 8;
    let town = Town::settle().await;
    town.wish();
    town.certified().await;
    let port = town.house.port;

    // One answer that runs all the time, over a connection with the first certificate.
    let (mut stream, first) = connect(port, PUBLIC).await.unwrap();
    let question = r#"{"stream":true,"tokens":100000,"pause_ms":5}"#;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {PUBLIC}\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{question}",
        town.house.key,
        question.len()
    );
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
    until(&mut stream, "{\"n\":3,").await;
    let running = tokio::spawn(async move {
        let mut last = 3;
        loop {
            let mark = format!("{{\"n\":{},", last + 20);
            let seen = until(&mut stream, &mark);
            if tokio::time::timeout(Duration::from_secs(5), seen).await.is_err() {
                return Err(last);
            }
            last += 20;
            if last > 60 && LET_GO.load(Ordering::SeqCst) {
                return Ok(last);
            }
        }
    });

    let (done, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::new(Mutex::new(BTreeSet::from([first])));
    let over = Arc::new(AtomicBool::new(false));
    let visitors: Vec<_> = (0..VISITORS)
        .map(|_| {
            let (done, failed, seen, over) =
                (done.clone(), failed.clone(), seen.clone(), over.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    let answer = async {
                        let (stream, own) = connect(port, PUBLIC).await.ok()?;
                        let said = say(stream, health(PUBLIC).as_bytes()).await;
                        (status_of(&said) == 200).then_some(own)
                    };
                    match answer.await {
                        Some(own) => drop(seen.lock().unwrap().insert(own)),
                        None => drop(failed.fetch_add(1, Ordering::SeqCst)),
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();

    let begun = Instant::now();
    for renewal in 1..=RENEWALS {
        let before = seen.lock().unwrap().len();
        let DoorReply::Certificate(_) = town.house.console(DoorRequest::RenewCertificate).await
        else {
            panic!("refused")
        };
        soon_shown(&seen, before).await;
        assert_eq!(town.authority.had().1, renewal + 1);
    }
    LET_GO.store(true, Ordering::SeqCst);
    over.store(true, Ordering::SeqCst);
    for visitor in visitors {
        visitor.await.unwrap();
    }
    let tokens = running.await.unwrap().expect("the stream was cut off");
    let (done, failed) = (done.load(Ordering::SeqCst), failed.load(Ordering::SeqCst));
    println!(
        "renewal under load: {RENEWALS} renewals, {done} requests over new connections in {:.1} s, {failed} failed, a stream of {tokens} events went on",
        begun.elapsed().as_secs_f64()
    );
    assert_eq!(failed, 0);
    assert!(done > 50 && seen.lock().unwrap().len() == RENEWALS + 1);
}

static LET_GO: AtomicBool = AtomicBool::new(false);

async fn soon_shown(seen: &Mutex<BTreeSet<Vec<u8>>>, before: usize) {
    for _ in 0..1500 {
        if seen.lock().unwrap().len() > before {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no new certificate was shown within 15 s");
}
