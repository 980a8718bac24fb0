//! Two boxes on loopback: they pair, keep in touch and part, and whoever should not come in does not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use polder_control::{
    Actor, AuditEntry, AuditHead, Client, ControlError, Handler, Outlet, Reply, Sockets,
    SpareReply, SpareRequest, SpareStatus,
};
use polder_site::{Site, Spare, SpareRole};
use polder_spare::{
    Answer, Beat, Caller, Code, Folders, Identity, Link, Mounts, Peer, SpareError, Tombstones,
    pair, serve,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// On a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries to listen.
const AGAIN: Duration = Duration::from_millis(50);

/// One side, running until it is dropped.
struct Side {
    state: PathBuf,
    port: u16,
    running: JoinHandle<Result<(), SpareError>>,
    _folder: Option<tempfile::TempDir>,
}

impl Drop for Side {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Side {
    async fn start(name: &str, role: SpareRole) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port =
            std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let state = folder.path().to_owned();
        let mut side = Self::at(&state, name, role, port).await;
        side._folder = Some(folder);
        side
    }

    async fn at(state: &Path, name: &str, role: SpareRole, port: u16) -> Self {
        let mut site = Site::unclaimed(8443);
        site.name = name.parse().unwrap();
        site.spare = Some(Spare { port, ..Spare::of(role) });
        let at = state.to_owned();
        let hand = axum::Router::new().route(
            "/who",
            axum::routing::get(async |axum::Extension(caller): axum::Extension<Caller>| {
                caller.certificate.short()
            }),
        );
        let running = tokio::spawn(async move {
            loop {
                let mounts = Mounts { hand: hand.clone() };
                match serve(&at, &site, mounts, std::future::pending()).await {
                    // Between two lives somebody's connection may have been given its port.
                    Err(SpareError::Listen { .. }) => tokio::time::sleep(AGAIN).await,
                    ended => return ended,
                }
            }
        });
        let side = Self { state: state.to_owned(), port, running, _folder: None };
        until("it answers", async || side.ask(&SpareRequest::Status).await.is_ok()).await;
        side
    }

    /// As after a crash of the part.
    async fn restart(self, name: &str, role: SpareRole) -> Self {
        self.restart_after(name, role, || {}).await
    }

    /// The same with something that happens while it is off.
    async fn restart_after(mut self, name: &str, role: SpareRole, off: impl FnOnce()) -> Self {
        self.running.abort();
        // Until it is gone its socket counts as somebody's.
        let _ = (&mut self.running).await;
        off();
        let folder = self._folder.take();
        let mut side = Self::at(&self.state, name, role, self.port).await;
        side._folder = folder;
        side
    }

    async fn ask(&self, request: &SpareRequest) -> Result<SpareReply, ControlError> {
        let mut part: Client<SpareRequest, SpareReply> =
            Client::connect(&Sockets::of(&self.state).spare()).await?;
        part.ask_within(PATIENCE, request).await
    }

    async fn status(&self) -> SpareStatus {
        match self.ask(&SpareRequest::Status).await.unwrap() {
            SpareReply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    async fn code(&self) -> Code {
        match self.ask(&SpareRequest::ShowCode).await.unwrap() {
            SpareReply::Code { code, seconds } => {
                assert!((500..=600).contains(&seconds));
                code.parse().unwrap()
            }
            other => panic!("{other:?}"),
        }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn folders(&self) -> Folders {
        Folders::of(&self.state)
    }
}

async fn until(what: &str, done: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !done().await {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A spare, and the state folder of a main box that is paired with it.
async fn paired() -> (Side, tempfile::TempDir) {
    let spare = Side::start("ash", SpareRole::ForAnother).await;
    let main = paired_at(&spare, &spare.address()).await;
    (spare, main)
}

async fn paired_at(spare: &Side, address: &str) -> tempfile::TempDir {
    let main = tempfile::tempdir().unwrap();
    let code = spare.code().await;
    let key = Some("cbde-fghi".to_owned());
    let peer = pair(main.path(), address, &code, "elm", key).await.unwrap();
    assert!(peer.settled);
    main
}

fn wrong(code: &Code) -> Code {
    let digits: u16 = code.expose()[..4].parse().unwrap();
    format!("{:04}{}", (digits + 1) % 10_000, &code.expose()[4..]).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_boxes_pair_with_the_code_and_each_shows_the_others_name_and_fingerprint() {
    let (spare, main) = paired().await;
    let own = |state: &Path| Identity::of_box(&Folders::of(state)).unwrap().certificate().short();
    let seen = Peer::read(&Folders::of(main.path())).unwrap().unwrap();
    assert_eq!((seen.name.as_str(), seen.certificate.short()), ("ash", own(&spare.state)));
    let status = spare.status().await;
    let peer = status.peer.unwrap();
    assert_eq!((peer.name, peer.fingerprint), ("elm".to_owned(), own(main.path())));
    assert!(peer.settled && status.code.is_none() && status.own == own(&spare.state));
    // The key to the backups came over the pinned link, and is nobody else's to read.
    let key = spare.folders().main_key();
    assert_eq!(std::fs::read_to_string(&key).unwrap(), "cbde-fghi\n");
    let mode = std::os::unix::fs::PermissionsExt::mode(&key.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // A spare has one main box, and a main box one spare.
    let refused = spare.ask(&SpareRequest::ShowCode).await.unwrap();
    assert!(matches!(refused, SpareReply::Refused(why) if why.contains("elm")));
    let code = Code::make().unwrap();
    let again = pair(main.path(), &spare.address(), &code, "elm", None).await.unwrap_err();
    assert!(matches!(again, SpareError::Taken(name) if name == "ash"));
    // What is mounted there knows who calls.
    let link = Link::of(&Folders::of(main.path())).unwrap();
    let body = link.get("/hand/who").await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), own(main.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_boxes_in_a_house_that_has_only_ipv6_pair_and_keep_in_touch() {
    let spare = Side::start("ash", SpareRole::ForAnother).await;
    let main = paired_at(&spare, &format!("[::1]:{}", spare.port)).await;
    let link = Link::of(&Folders::of(main.path())).unwrap();
    assert_eq!(link.get("/hand/who").await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_letter_a_fourth_try_and_a_spare_without_a_code_pair_nobody() {
    let spare = Side::start("ash", SpareRole::ForAnother).await;
    let main = tempfile::tempdir().unwrap();
    let attempt = async |code: &Code| {
        let tried = pair(main.path(), &spare.address(), code, "elm", None).await;
        tried.map(drop).map_err(|error| error.to_string())
    };
    let none = attempt(&Code::make().unwrap()).await.unwrap_err();
    assert!(none.contains("shows no code now"), "{none}");
    let code = spare.code().await;
    for said in ["2 more", "1 more", "third wrong code"] {
        let why = attempt(&wrong(&code)).await.unwrap_err();
        assert!(why.contains(said), "{why}");
    }
    assert!(attempt(&code).await.unwrap_err().contains("shows no code now"));
    let status = spare.status().await;
    assert_eq!((status.tries.len(), status.peer), (3, None));
    assert!(status.tries[0].contains("from 127.0.0.1"), "{:?}", status.tries);
    assert!(Peer::read(&Folders::of(main.path())).unwrap().is_none());
    // The next code is good again.
    let code = spare.code().await;
    attempt(&code).await.unwrap();
}

/// Somebody between the two who passes everything on, over TLS of their own at each end.
async fn in_the_middle(spare: String) -> (String, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let pem = {
        Identity::of_box(&Folders::of(folder.path())).unwrap();
        std::fs::read(Folders::of(folder.path()).identity()).unwrap()
    };
    use rustls_pki_types::pem::PemObject;
    let certificate = rustls_pki_types::CertificateDer::from_pem_slice(&pem).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(&pem).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    let shown = shown_by(&spare).await;
    roots.add(shown).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
        while let Ok((caller, _)) = listener.accept().await {
            let Ok(mut caller) = acceptor.accept(caller).await else { continue };
            let stream = TcpStream::connect(&spare).await.unwrap();
            let name = "localhost".try_into().unwrap();
            let mut spare = connector.connect(name, stream).await.unwrap();
            let _ = copy_bidirectional(&mut caller, &mut spare).await;
        }
    });
    (address, folder)
}

/// The certificate that somebody shows, from a handshake that trusts nobody.
async fn shown_by(address: &str) -> rustls_pki_types::CertificateDer<'static> {
    // A spare's certificate is no secret; the tests take it from where it lies.
    let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
    let found = SPARES.lock().unwrap().iter().find(|(at, _)| *at == port).cloned();
    let (_, state) = found.unwrap();
    Identity::of_box(&Folders::of(&state)).unwrap().certificate().der().clone()
}

static SPARES: std::sync::Mutex<Vec<(u16, PathBuf)>> = std::sync::Mutex::new(Vec::new());

#[tokio::test(flavor = "multi_thread")]
async fn whoever_stands_between_the_two_is_found_out_even_with_the_right_code() {
    let spare = Side::start("ash", SpareRole::ForAnother).await;
    SPARES.lock().unwrap().push((spare.port, spare.state.clone()));
    let (between, _folder) = in_the_middle(spare.address()).await;
    let main = tempfile::tempdir().unwrap();
    let code = spare.code().await;
    let why = pair(main.path(), &between, &code, "elm", None).await.unwrap_err().to_string();
    assert!(why.contains("not the code that it shows"), "{why}");
    assert!(Peer::read(&Folders::of(main.path())).unwrap().is_none());
    assert_eq!(spare.status().await.peer, None);
    // Without anybody between them the same code is good.
    pair(main.path(), &spare.address(), &code, "elm", None).await.unwrap();
    // And whoever stands there afterwards does not even get past the handshake.
    let folders = Folders::of(main.path());
    let mut peer = Peer::read(&folders).unwrap().unwrap();
    peer.address = Some(between);
    peer.keep(&folders).unwrap();
    let link = Link::of(&folders).unwrap();
    let asked = link.ask::<_, Answer>(Method::POST, "/link/beat", &Beat::default()).await;
    let why = asked.unwrap_err().to_string();
    assert!(why.contains("another certificate"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_dies_with_a_restart_and_a_pairing_that_was_done_does_not() {
    let spare = Side::start("ash", SpareRole::ForAnother).await;
    let main = tempfile::tempdir().unwrap();
    let code = spare.code().await;
    let spare = spare.restart("ash", SpareRole::ForAnother).await;
    let why = pair(main.path(), &spare.address(), &code, "elm", None).await.unwrap_err();
    assert!(why.to_string().contains("shows no code now"), "{why}");
    let code = spare.code().await;
    pair(main.path(), &spare.address(), &code, "elm", None).await.unwrap();
    let spare = spare.restart("ash", SpareRole::ForAnother).await;
    assert!(spare.status().await.peer.unwrap().settled);
    let link = Link::of(&Folders::of(main.path())).unwrap();
    link.ask::<_, Answer>(Method::POST, "/link/beat", &Beat::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_may_pair_and_nothing_else_and_another_certificate_not_even_that() {
    let (spare, main) = paired().await;
    // A box that was never paired, with a certificate of its own, and one that shows none.
    let stranger = tempfile::tempdir().unwrap();
    let folders = Folders::of(stranger.path());
    let peer = Peer::read(&Folders::of(main.path())).unwrap().unwrap();
    peer.keep(&folders).unwrap();
    let link = Link::of(&folders).unwrap();
    let asked = link.ask::<_, Answer>(Method::POST, "/link/beat", &Beat::default()).await;
    assert!(matches!(asked, Err(SpareError::Away { .. })), "{asked:?}");

    SPARES.lock().unwrap().push((spare.port, spare.state.clone()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(shown_by(&spare.address()).await).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = |only: &'static rustls::SupportedProtocolVersion| {
        rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[only])
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth()
    };
    let stream = TcpStream::connect(spare.address()).await.unwrap();
    let old = tokio_rustls::TlsConnector::from(Arc::new(versions(&rustls::version::TLS12)));
    assert!(old.connect("localhost".try_into().unwrap(), stream).await.is_err(), "TLS 1.2");
    for (path, status) in [
        ("/link/beat", "404"),
        ("/backup/config", "404"),
        ("/hand/who", "404"),
        ("/pair/begin", "415"),
    ] {
        let stream = TcpStream::connect(spare.address()).await.unwrap();
        let new = tokio_rustls::TlsConnector::from(Arc::new(versions(&rustls::version::TLS13)));
        let mut stream = new.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        let asked = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}"
        );
        stream.write_all(asked.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text).await;
        let text = String::from_utf8_lossy(&text);
        assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_end_of_a_pairing_an_open_connection_is_good_for_nothing() {
    let (spare, main) = paired().await;
    let link = Link::of(&Folders::of(main.path())).unwrap();
    let beat = async || link.ask::<_, Answer>(Method::POST, "/link/beat", &Beat::default()).await;
    beat().await.unwrap();
    assert_eq!(spare.ask(&SpareRequest::Unpair).await.unwrap(), SpareReply::Done);
    // The connection that is kept, and then a new one.
    let why = beat().await.unwrap_err().to_string();
    assert!(why.contains("not paired any more"), "{why}");
    let again = Link::of(&Folders::of(main.path())).unwrap();
    assert!(again.ask::<_, Answer>(Method::POST, "/link/beat", &Beat::default()).await.is_err());
    assert!(!spare.folders().main_key().exists());
    let status = spare.status().await;
    assert_eq!(status.peer, None);
}

/// A supervisor with a trail of so many entries.
struct Trail(Arc<AtomicUsize>);

impl Handler<polder_control::Request, Reply> for Trail {
    async fn handle(
        &self,
        question: polder_control::Request,
        outlet: &mut Outlet<Reply>,
    ) -> Result<(), ControlError> {
        let entries = self.0.load(Ordering::Relaxed) as u64;
        let hash = |number: u64| format!("{number:064x}");
        let reply = match question {
            polder_control::Request::AuditHead => {
                Reply::AuditHead(AuditHead { number: entries, hash: hash(entries) })
            }
            polder_control::Request::Audit { before, .. } => {
                let number = before.unwrap_or(u64::MAX).saturating_sub(1).min(entries);
                let entry = AuditEntry {
                    number,
                    at: String::new(),
                    by: Actor::Itself,
                    what: String::new(),
                    on: String::new(),
                    hash: hash(number),
                };
                Reply::Audit(vec![entry])
            }
            _ => Reply::Refused("not here".into()),
        };
        outlet.send(&reply).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_box_keeps_in_touch_sends_what_it_revoked_and_what_its_trail_ended_with() {
    let spare = Side::start("ash", SpareRole::ForAnother).await;
    let folder = tempfile::tempdir().unwrap();
    let code = spare.code().await;
    pair(folder.path(), &spare.address(), &code, "elm", None).await.unwrap();
    let entries = Arc::new(AtomicUsize::new(7));
    let control = Sockets::of(folder.path()).control();
    let handler = Arc::new(Trail(entries.clone()));
    let trail = tokio::spawn(async move { polder_control::serve(&control, handler).await });
    let gone = |id: &str| {
        format!("{{\"number\":1,\"at\":1,\"what\":{{\"kind\":\"key\",\"key\":\"{id}\"}}}}\n")
    };
    std::fs::write(folder.path().join("gone.jsonl"), gone("a")).unwrap();
    let main = Side::at(folder.path(), "elm", SpareRole::OfThis, 0).await;

    until("they hear each other", async || {
        main.status().await.silent.is_some_and(|s| s < 60)
            && spare.status().await.silent.is_some_and(|s| s < 60)
    })
    .await;
    until("the trail's end is there", async || spare.status().await.head == Some(7)).await;
    until("the first key is gone there", async || main.status().await.confirmed == 1).await;
    // At once: within a beat or two.
    std::fs::write(folder.path().join("gone.jsonl"), gone("a") + &gone("b")).unwrap();
    until("the second one too", async || main.status().await.confirmed == 2).await;
    assert_eq!(Tombstones::all(&spare.folders()).unwrap(), [gone("a").trim(), gone("b").trim()]);

    // The spare was away for a while: what was revoked meanwhile comes when it is back.
    spare.running.abort();
    until("it is missed", async || main.status().await.trouble.is_some()).await;
    std::fs::write(folder.path().join("gone.jsonl"), gone("a") + &gone("b") + &gone("c")).unwrap();
    let spare = spare.restart("ash", SpareRole::ForAnother).await;
    until("the third one too", async || spare.status().await.confirmed == 3).await;
    until("it is missed no more", async || main.status().await.trouble.is_none()).await;

    // A trail that was cut off shows on both sides.
    entries.store(4, Ordering::Relaxed);
    drop(main);
    let main = Side::at(folder.path(), "elm", SpareRole::OfThis, 0).await;
    until("it shows", async || {
        main.status().await.truncated.is_some() && spare.status().await.truncated.is_some()
    })
    .await;
    match main.ask(&SpareRequest::Heads).await.unwrap() {
        SpareReply::Heads(heads) => assert_eq!(heads[0].0, 4),
        other => panic!("{other:?}"),
    }

    // While it is heard the spare may not take over.
    let refused = spare.ask(&SpareRequest::RaiseEpoch).await.unwrap();
    assert!(
        matches!(&refused, SpareReply::Refused(why) if why.contains("may still serve")),
        "{refused:?}"
    );
    // As a takeover that is cut off leaves it: the term has begun, and nobody serves in it yet. Neither of the two may forget the other.
    drop(main);
    let lease = spare.state.join("spare/lease.json");
    let cut_off = || {
        let text = std::fs::read(&lease).unwrap();
        let mut kept: serde_json::Value = serde_json::from_slice(&text).unwrap();
        (kept["epoch"], kept["began"]) = (1.into(), 1.into());
        std::fs::write(&lease, kept.to_string()).unwrap();
    };
    let spare = spare.restart_after("ash", SpareRole::ForAnother, cut_off).await;
    let link = Link::of(&Folders::of(folder.path())).unwrap();
    polder_takeover::Term::first(polder_takeover::Side::Spare).keep(&spare.state).unwrap();
    let refused = spare.ask(&SpareRequest::Unpair).await.unwrap();
    assert!(
        matches!(&refused, SpareReply::Refused(why) if why.contains("about to take over")),
        "{refused:?}"
    );
    let refused = link.ask::<_, ()>(Method::POST, "/link/unpair", &()).await.unwrap_err();
    assert!(refused.to_string().contains("about to take over"), "{refused}");
    assert_eq!(spare.status().await.began, Some(1));
    assert!(spare.status().await.may_be_left);
    polder_takeover::Term::forget(&spare.state).unwrap();
    // The main box that comes back hears that another serves.
    let main = Side::at(folder.path(), "elm", SpareRole::OfThis, 0).await;
    until("it is fenced", async || {
        let status = main.status().await;
        status.fenced && status.must_ask && status.peer_epoch == 1
    })
    .await;

    // Parting on the main box is heard on the spare.
    assert_eq!(main.ask(&SpareRequest::Unpair).await.unwrap(), SpareReply::Done);
    assert_eq!(spare.status().await.peer, None);
    assert!(Peer::read(&Folders::of(folder.path())).unwrap().is_none());
    trail.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_takes_what_its_name_says_once_and_gives_nothing_away_but_locks() {
    let (_spare, main) = paired().await;
    let link = Link::of(&Folders::of(main.path())).unwrap();
    let send = async |method: Method, path: &str, body: &'static [u8]| {
        let body = Full::new(body.into()).map_err(|never| match never {}).boxed();
        let request = Request::builder().method(method).uri(format!("/backup{path}")).body(body);
        link.open(request.unwrap()).await.unwrap().status()
    };
    let get = async |path: &str, range: Option<&str>, accept: &str| {
        let body = Full::new("".into()).map_err(|never| match never {}).boxed();
        let mut request = Request::get(format!("/backup{path}")).header("accept", accept);
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let answer = link.open(request.body(body).unwrap()).await.unwrap();
        let status = answer.status();
        (status, answer.into_body().collect().await.unwrap().to_bytes())
    };
    let name = digest(b"hello");
    let v2 = "application/vnd.x.restic.rest.v2";
    assert_eq!(send(Method::POST, "/?create=true", b"").await, StatusCode::OK);
    assert_eq!(send(Method::HEAD, "/config", b"").await, StatusCode::NOT_FOUND);
    assert_eq!(send(Method::POST, "/config", b"conf").await, StatusCode::OK);
    assert_eq!(send(Method::POST, "/config", b"other").await, StatusCode::FORBIDDEN);
    for kind in ["data", "locks", "snapshots"] {
        let path = format!("/{kind}/{name}");
        assert_eq!(send(Method::POST, &path, b"hullo").await, StatusCode::BAD_REQUEST);
        assert_eq!(get(&path, None, v2).await.0, StatusCode::NOT_FOUND, "nothing half is there");
        assert_eq!(send(Method::POST, &path, b"hello").await, StatusCode::OK, "{kind}");
        assert_eq!(send(Method::POST, &path, b"hello").await, StatusCode::FORBIDDEN, "{kind}");
        assert_eq!(get(&path, None, v2).await, (StatusCode::OK, "hello".into()));
        let part = get(&path, Some("bytes=1-3"), v2).await;
        assert_eq!(part, (StatusCode::PARTIAL_CONTENT, "ell".into()));
        let beyond = get(&path, Some("bytes=9-"), v2).await.0;
        assert_eq!(beyond, StatusCode::RANGE_NOT_SATISFIABLE);
        let listed = get(&format!("/{kind}/"), None, v2).await.1;
        assert_eq!(listed, format!("[{{\"name\":\"{name}\",\"size\":5}}]"));
        assert_eq!(get(&format!("/{kind}/"), None, "*/*").await.1, format!("[\"{name}\"]"));
        let removed = send(Method::DELETE, &path, b"").await;
        let expected = if kind == "locks" { StatusCode::OK } else { StatusCode::FORBIDDEN };
        assert_eq!(removed, expected, "{kind}");
    }
    for (method, path) in [(Method::DELETE, "/".to_owned()), (Method::DELETE, "/config".to_owned())]
    {
        assert_eq!(send(method, &path, b"").await, StatusCode::FORBIDDEN, "{path}");
    }
    for path in [
        format!("/data/{}", "A".repeat(64)),
        "/data/..%2f..%2fpeer.json".to_owned(),
        "/data/short".to_owned(),
        format!("/parts/{name}"),
        format!("/data/{}/{name}", &name[..2]),
    ] {
        let status = send(Method::POST, &path, b"hello").await;
        assert!(status.is_client_error(), "{path}: {status}");
    }
}

fn digest(text: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The spare stands in, as the supervisor writes it down when it has taken over.
fn stands_in(spare: &Side) {
    let mut term = polder_takeover::Term::first(polder_takeover::Side::Spare);
    term.raise();
    term.serving().keep(&spare.state).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_that_stands_in_parts_with_nobody_and_the_main_box_does_not_forget_it_then() {
    let (spare, main_folder) = paired().await;
    let main = Side::at(main_folder.path(), "elm", SpareRole::OfThis, 0).await;
    stands_in(&spare);
    for side in [&main, &spare] {
        match side.ask(&SpareRequest::Unpair).await.unwrap() {
            SpareReply::Refused(why) => assert!(why.contains("stands in for the other"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    let there = |side: &Side| Peer::read(&side.folders()).unwrap().is_some();
    assert!(there(&main) && there(&spare), "one side forgot the other");
    until("they stay in touch", async || main.status().await.silent == Some(0)).await;
    // Given back, both agree.
    polder_takeover::Term::first(polder_takeover::Side::Spare).keep(&spare.state).unwrap();
    assert_eq!(main.ask(&SpareRequest::Unpair).await.unwrap(), SpareReply::Done);
    assert!(!there(&main) && !there(&spare));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_main_box_that_is_gone_for_good_hears_so_for_years_and_its_certificate_opens_nothing() {
    let (spare, main_folder) = paired().await;
    let early = spare.ask(&SpareRequest::Retire).await.unwrap();
    assert!(matches!(early, SpareReply::Refused(why) if why.contains("does not stand in")));
    stands_in(&spare);
    assert_eq!(spare.ask(&SpareRequest::Retire).await.unwrap(), SpareReply::Done);
    assert_eq!(Peer::read(&spare.folders()).unwrap(), None);
    let link = Link::of(&Folders::of(main_folder.path())).unwrap();
    let says = async |method: Method, path: &str| {
        let asked = link.ask::<_, serde_json::Value>(method, path, &()).await;
        asked.unwrap_err().to_string()
    };
    // While the spare's part runs as before, and as a main box, and when it has no spare.
    let mut other = Some(spare);
    for role in [None, Some(SpareRole::OfThis)] {
        if let Some(role) = role {
            // The disk has lost the list, and the second copy of it tells that box all the same.
            std::fs::write(other.as_ref().unwrap().folders().formers(), "{").unwrap();
            other = Some(other.take().unwrap().restart("oak", role).await);
        }
        for (method, path) in [
            (Method::GET, "/backup/config"),
            (Method::POST, "/link/unpair"),
            (Method::GET, "/link/heads"),
            (Method::GET, "/hand/given"),
        ] {
            let why = says(method, path).await;
            assert!(why.contains("for good"), "{path}: {why}");
        }
        let answer: Answer = link.ask(Method::POST, "/link/beat", &Beat::default()).await.unwrap();
        assert!(answer.retired && answer.epoch >= 2, "{answer:?}");
    }
    // It comes back, hears it, keeps it, and parts with nobody.
    let main = Side::at(main_folder.path(), "oak", SpareRole::OfThis, 0).await;
    until("it hears that it is out", async || main.status().await.retired).await;
    drop(other);
    let main = main.restart("oak", SpareRole::OfThis).await;
    assert!(main.status().await.retired, "it forgot");
    match main.ask(&SpareRequest::Unpair).await.unwrap() {
        SpareReply::Refused(why) => assert!(why.contains("never is again"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(Peer::read(&main.folders()).unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_former_main_boxes_that_cannot_be_read_stops_nobody_in_any_role() {
    for role in [SpareRole::ForAnother, SpareRole::OfThis] {
        let folder = tempfile::tempdir().unwrap();
        let folders = Folders::of(folder.path());
        Identity::of_box(&folders).unwrap();
        for path in [folders.formers(), folders.formers_copy()] {
            std::fs::write(path, "[{]").unwrap();
        }
        let side = Side::at(folder.path(), "ash", role, 0).await;
        let aside = side.status().await.formers_aside;
        assert_eq!(aside, Some(folders.formers_aside().display().to_string()));
        // And once more, with what was set aside.
        let side = side.restart("ash", role).await;
        assert!(side.status().await.formers_aside.is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_of_a_term_that_nothing_could_follow_is_refused_in_a_sentence() {
    let (spare, main) = paired().await;
    let link = Link::of(&Folders::of(main.path())).unwrap();
    let beat = |epoch| Beat { epoch, ..Beat::default() };
    let refused = link.ask::<_, Answer>(Method::POST, "/link/beat", &beat(u64::MAX)).await;
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("no two boxes change places so often"), "{why}");
    assert_eq!(spare.status().await.peer_epoch, 0);
    let answer: Answer = link.ask(Method::POST, "/link/beat", &beat(7)).await.unwrap();
    assert_eq!((answer.epoch, spare.status().await.peer_epoch), (0, 7));
}
