//! An authority, a DNS and a box's state folder.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_acme::{Acme, Patience};
use polder_control::{BoxStatus, PartState, PartStatus, PublicStatus};
use polder_pki::PublicChain;
use polder_site::{PublicCertificate, Site};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) const DNS_SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Ends with its owner.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(command: &mut Command, package: &str) -> Running {
    let missing =
        format!("a program is missing: install Debian's {package}, as `make tools-test` does");
    Running(command.stdin(Stdio::null()).spawn().expect(&missing))
}

/// How an authority is.
#[derive(Clone, Default)]
pub(crate) struct Habits {
    /// Percent of nonces that it refuses.
    pub(crate) bad_nonces: u32,
    /// It takes up to so many seconds to look at proofs.
    pub(crate) slow: u32,
    /// It serves only accounts that it gave.
    pub(crate) bound: bool,
    /// Where it asks boxes for proofs; a free port without.
    pub(crate) http_port: Option<u16>,
    /// Seconds that its certificates last; five years without.
    pub(crate) lasts: Option<u32>,
}

/// Debian's pebble.
pub(crate) struct Authority {
    pub(crate) port: u16,
    /// `/roots/0` there is the certificate by which its own are trusted.
    pub(crate) management: u16,
    pub(crate) http_port: u16,
    dns_port: u16,
    habits: Habits,
    folder: tempfile::TempDir,
    running: Option<Running>,
}

pub(crate) const BOUND_TO: &str = "kid-1";
pub(crate) const BOUND_BY: &str =
    "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

impl Authority {
    pub(crate) async fn open(dns_port: u16, habits: Habits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        certify_localhost(folder.path());
        let (port, management) = (free_port(), free_port());
        let http_port = habits.http_port.unwrap_or_else(free_port);
        let mut authority =
            Self { port, management, http_port, dns_port, habits, folder, running: None };
        authority.begin().await;
        authority
    }

    /// Starts it; all that it knew before it has forgotten.
    pub(crate) async fn begin(&mut self) {
        self.running = None;
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let mut settings = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.port),
            "managementListenAddress": format!("127.0.0.1:{}", self.management),
            "certificate": at("cert.pem"),
            "privateKey": at("key.pem"),
            "httpPort": self.http_port,
            "tlsPort": 1,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": self.habits.bound,
            "externalAccountMACKeys": { BOUND_TO: BOUND_BY },
        }});
        if let Some(lasts) = self.habits.lasts {
            settings["pebble"]["certificateValidityPeriod"] = lasts.into();
        }
        std::fs::write(at("pebble.json"), settings.to_string()).unwrap();
        let log = File::options().create(true).append(true).open(at("log")).unwrap();
        let mut command = Command::new("pebble");
        command
            .args([
                "-config",
                &at("pebble.json"),
                "-dnsserver",
                &format!("127.0.0.1:{}", self.dns_port),
            ])
            .env("PEBBLE_WFE_NONCEREJECT", self.habits.bad_nonces.to_string())
            .env("PEBBLE_AUTHZREUSE", "0")
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        match self.habits.slow {
            0 => command.env("PEBBLE_VA_NOSLEEP", "1"),
            seconds => command.env("PEBBLE_VA_SLEEPTIME", seconds.to_string()),
        };
        self.running = Some(start(&mut command, "pebble"));
        reachable(self.port).await;
    }

    /// With its certificate and key.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn root(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("ca.pem")).unwrap()
    }

    /// Orders that it ever had, and certificates that it signed.
    pub(crate) fn had(&self) -> (usize, usize) {
        let mut log = String::new();
        File::open(self.folder.path().join("log")).unwrap().read_to_string(&mut log).unwrap();
        let count = |what| log.lines().filter(|line| line.contains(what)).count();
        (count(" to the db").max(count("orders in the db")), count("Issued certificate"))
    }

    /// What a box is told to have signed by it.
    pub(crate) fn wish(&self, names: &[&str]) -> PublicCertificate {
        PublicCertificate {
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            directory: format!("https://localhost:{}/dir", self.port).parse().unwrap(),
            account: None,
            contact: None,
            root: Some(self.root()),
            dns_update: None,
            dns_hook: None,
        }
    }
}

fn certify_localhost(folder: &Path) {
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    // Two of one name would be taken for each other.
    ca.distinguished_name.push(rcgen::DnType::CommonName, folder.display().to_string());
    write("ca.pem", ca.self_signed(&ca_key).unwrap().pem());
    let issuer = Issuer::new(ca, ca_key);
    let own = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    write("cert.pem", own.signed_by(&key, &issuer).unwrap().pem());
    write("key.pem", key.serialize_pem());
}

pub(crate) async fn reachable(port: u16) {
    for _ in 0..200 {
        if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("nobody listens on port {port}");
}

/// Debian's BIND, with the zone example.org, in which the key `box` may write.
pub(crate) struct Bind {
    pub(crate) port: u16,
    _running: Running,
    _folder: tempfile::TempDir,
}

impl Bind {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let at = folder.path().display();
        let settings = format!(
            "options {{ directory \"{at}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; pid-file none; session-keyfile none; recursion no; dnssec-validation no; }};\n\
             controls {{ }};\n\
             key \"box\" {{ algorithm hmac-sha256; secret \"{DNS_SECRET}\"; }};\n\
             zone \"example.org\" {{ type master; file \"zone\"; update-policy {{ grant box zonesub ANY; }}; }};\n"
        );
        let zone = "$TTL 60\n@ SOA ns root 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\ngpu A 127.0.0.1\n";
        std::fs::write(folder.path().join("named.conf"), settings).unwrap();
        std::fs::write(folder.path().join("zone"), zone).unwrap();
        let mut command = Command::new("/usr/sbin/named");
        command.args(["-g", "-c"]).arg(folder.path().join("named.conf")).stderr(Stdio::null());
        let running = start(&mut command, "bind9");
        reachable(port).await;
        Self { port, _running: running, _folder: folder }
    }

    pub(crate) fn texts(&self, name: &str) -> Vec<String> {
        let port = self.port.to_string();
        let asked = Command::new("dig")
            .args(["@127.0.0.1", "-p", &port, "+short", "+time=1", name, "TXT"])
            .output()
            .expect("dig is missing: install Debian's bind9-dnsutils, as `make tools-test` does");
        String::from_utf8(asked.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    pub(crate) fn proof(&self) -> polder_site::DnsUpdate {
        polder_site::DnsUpdate {
            server: format!("127.0.0.1:{}", self.port).parse().unwrap(),
            zone: "example.org".into(),
            key: "box".into(),
            wait: 0,
        }
    }
}

/// pebble's own DNS, which says what it is told.
pub(crate) struct TestDns {
    pub(crate) port: u16,
    management: u16,
    _running: Running,
}

impl TestDns {
    pub(crate) async fn start() -> Self {
        let (port, management) = (free_port(), free_port());
        let mut command = Command::new("pebble-challtestsrv");
        command
            .args(["-management", &format!("127.0.0.1:{management}")])
            .args(["-dns01", &format!("127.0.0.1:{port}")])
            .args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", ""])
            .args(["-defaultIPv6", "", "-defaultIPv4", "127.0.0.1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // Its version in bookworm knows no -doh.
        let known = Command::new("pebble-challtestsrv").arg("-help").output();
        let knows_doh =
            known.is_ok_and(|help| String::from_utf8_lossy(&help.stderr).contains("-doh"));
        if !knows_doh {
            let mut plain = Command::new("pebble-challtestsrv");
            plain
                .args(["-management", &format!("127.0.0.1:{management}")])
                .args(["-dns01", &format!("127.0.0.1:{port}")])
                .args(["-http01", "", "-https01", "", "-tlsalpn01", ""])
                .args(["-defaultIPv6", "", "-defaultIPv4", "127.0.0.1"])
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command = plain;
        }
        let running = start(&mut command, "pebble");
        reachable(management).await;
        Self { port, management, _running: running }
    }

    pub(crate) fn management(&self) -> u16 {
        self.management
    }
}

/// Tells pebble's DNS something.
pub(crate) fn tell(management: u16, path: &str, body: &str) {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", management)).unwrap();
    let length = body.len();
    write!(stream, "POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 "), "{path} {body}: {answer}");
}

/// A box's state folder, and what looks after its certificate.
pub(crate) struct TheBox {
    pub(crate) folder: Arc<tempfile::TempDir>,
    pub(crate) acme: Arc<Acme>,
    pub(crate) site: watch::Sender<Arc<BoxStatus>>,
    pub(crate) served: watch::Receiver<Option<PublicChain>>,
    serve: watch::Sender<Option<PublicChain>>,
    following: Option<JoinHandle<()>>,
    door: Option<JoinHandle<()>>,
}

impl Drop for TheBox {
    fn drop(&mut self) {
        for task in self.following.iter().chain(&self.door) {
            task.abort();
        }
    }
}

pub(crate) fn quick() -> Patience {
    Patience { first: Duration::from_millis(50), most: Duration::from_secs(20) }
}

impl TheBox {
    pub(crate) fn new(wish: PublicCertificate, patience: Patience) -> Self {
        Self::again(Arc::new(tempfile::tempdir().unwrap()), wish, patience)
    }

    /// The same box after a power cut.
    pub(crate) fn again(
        folder: Arc<tempfile::TempDir>,
        wish: PublicCertificate,
        patience: Patience,
    ) -> Self {
        let acme = Acme::open(folder.path(), patience).unwrap();
        let (site, _) = watch::channel(Arc::new(status(Some(wish))));
        let (serve, served) = watch::channel(None);
        Self { folder, acme, site, served, serve, following: None, door: None }
    }

    /// Lets it look after its certificate.
    pub(crate) fn follow(&mut self) {
        let (acme, site, serve) = (self.acme.clone(), self.site.subscribe(), self.serve.clone());
        self.following = Some(tokio::spawn(async move {
            acme.follow(site, move |chain| drop(serve.send_replace(chain))).await;
        }));
    }

    /// Answers an authority at this port as the gateway would.
    pub(crate) async fn open_door(&mut self, port: u16) {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let acme = self.acme.clone();
        self.door = Some(tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = vec![0; 4096];
                let length = stream.read(&mut head).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..length]).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default();
                let answer = match acme.proofs().answer(path) {
                    Some(text) => format!("HTTP/1.0 200 OK\r\n\r\n{text}"),
                    None => "HTTP/1.0 404 Not Found\r\n\r\n".to_owned(),
                };
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }));
    }

    pub(crate) async fn until(
        &self,
        what: &str,
        is: impl Fn(&PublicStatus) -> bool,
    ) -> PublicStatus {
        let begun = Instant::now();
        loop {
            let status = self.acme.status();
            if is(&status) {
                return status;
            }
            assert!(begun.elapsed() < Duration::from_secs(40), "{what}: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn certified(&self) -> PublicStatus {
        self.until("a certificate", |status| status.held.is_some() && status.doing.is_none()).await
    }

    pub(crate) async fn failed(&self) -> String {
        self.until("a failure", |status| status.failed.is_some()).await.failed.unwrap().why
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("pki/public").join(name)
    }
}

fn status(certificate: Option<PublicCertificate>) -> BoxStatus {
    let mut site = Site::unclaimed(8443);
    site.certificate = certificate;
    let gateway = PartStatus { state: PartState::Ready, restarts: 0, pid: None };
    BoxStatus {
        site,
        gateway,
        engines: Vec::new(),
        safe: false,
        supply: None,
        closed: None,
        others: Vec::new(),
    }
}

/// A web service over TLS that hands every request to `answer`: method, path, headers and body in, a status out.
pub(crate) fn hook(
    folder: &Path,
    answer: impl Fn(&str, &str) -> u16 + Send + Sync + 'static,
) -> SocketAddr {
    certify_localhost(folder);
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    use rustls_pki_types::pem::PemObject;
    let certificate = rustls_pki_types::CertificateDer::from_pem_slice(&read("cert.pem")).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(&read("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, answer) = (tls.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = tls.accept(stream).await else { return };
                let mut all = Vec::new();
                let (head, body) = loop {
                    let mut piece = [0; 4096];
                    let Ok(length @ 1..) = stream.read(&mut piece).await else { return };
                    all.extend_from_slice(&piece[..length]);
                    let text = String::from_utf8_lossy(&all).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let length = head.to_ascii_lowercase();
                    let length = length.split("content-length: ").nth(1).unwrap_or("0");
                    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
                    if body.len() >= length {
                        break (head.to_owned(), body.to_owned());
                    }
                };
                let status =
                    tokio::task::spawn_blocking(move || answer(&head, &body)).await.unwrap();
                let line = format!("HTTP/1.1 {status} -\r\ncontent-length: 0\r\n\r\n");
                let _ = stream.write_all(line.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    address
}
