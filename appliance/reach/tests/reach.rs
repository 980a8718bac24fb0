//! A relay, boxes and callers, all real, on this machine's own addresses.
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use polder_reach::dial::{Caller, Doors, Knock, LineState, Rank, Tried, Via, hold};
use polder_reach::relay::{Limits, run};
use polder_reach::{Pass, Place, Register};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sha2::Digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

const NAME: &str = "oak.example.org";

struct Relay {
    register: Register,
    at: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Relay {
    async fn start(folder: &Path, at: &str, limits: Limits) -> Self {
        let register = Register::open(folder).unwrap();
        let listener = loop {
            match TcpListener::bind(at).await {
                Ok(listener) => break listener,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        };
        let at = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let running = run(register.clone(), vec![listener], limits, stop.clone());
        let task = tokio::spawn(async move { running.await.unwrap() });
        Self { register, at, stop, task }
    }

    fn pass(&self) -> Pass {
        let at = (self.at.ip().to_string(), self.at.port());
        let pass = self.register.add("oak", &[NAME.to_owned()], (&at.0, at.1)).unwrap();
        // As a steward carries it.
        pass.to_string().parse().unwrap()
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// A box: it holds a line, and says everything back to whoever comes over it, by TLS with its own key.
struct House {
    state: watch::Receiver<LineState>,
    trust: Arc<ClientConfig>,
    callers: Arc<Mutex<Vec<SocketAddr>>>,
    /// The number of the line over which each of them came, from 0.
    over: Arc<Mutex<Vec<usize>>>,
    ranks: Vec<Rank>,
    knock: Knock,
    fingerprint: [u8; 32],
    tasks: Vec<JoinHandle<()>>,
    key: TlsAcceptor,
}

impl House {
    fn new(pass: &Pass) -> Self {
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = made.signing_key.serialize_der().try_into().unwrap();
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let trust = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut house = Self {
            state: watch::channel(LineState::Calling).1,
            trust: Arc::new(trust),
            callers: Arc::default(),
            over: Arc::default(),
            ranks: Vec::new(),
            knock: Knock::default(),
            fingerprint: sha2::Sha256::digest(made.cert.der()).into(),
            tasks: Vec::new(),
            key: TlsAcceptor::from(Arc::new(server)),
        };
        house.state = house.line(pass);
        house
    }

    fn line(&mut self, pass: &Pass) -> watch::Receiver<LineState> {
        let (told, state) = watch::channel(LineState::Calling);
        let (pass, key, callers) = (pass.clone(), self.key.clone(), self.callers.clone());
        let (over, number, rank) = (self.over.clone(), self.ranks.len(), Rank::default());
        self.ranks.push(rank.clone());
        let knock = self.knock.clone();
        let take = move |caller: Caller| {
            callers.lock().unwrap().push(caller.remote);
            over.lock().unwrap().push(number);
            let key = key.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = key.accept(caller.stream).await else { return };
                let mut some = vec![0; 64 << 10];
                while let Ok(count @ 1..) = stream.read(&mut some).await {
                    if stream.write_all(&some[..count]).await.is_err() {
                        return;
                    }
                    let _ = stream.flush().await;
                }
                let _ = stream.shutdown().await;
            });
        };
        self.tasks.push(tokio::spawn(async move {
            hold(&pass, &Via::Any, &rank, &knock, |state| drop(told.send_replace(state)), take)
                .await;
        }));
        state
    }

    async fn call(&self, relay: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(relay).await?;
        let connector = TlsConnector::from(self.trust.clone());
        connector.connect(NAME.try_into().unwrap(), stream).await
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn held(state: &mut watch::Receiver<LineState>) -> LineState {
    let held = state.wait_for(|state| matches!(state, LineState::Held { .. }));
    timeout(Duration::from_secs(10), held).await.expect("a line in time").unwrap().clone()
}

async fn echoes(stream: &mut TlsStream<TcpStream>, text: &[u8]) -> io::Result<()> {
    stream.write_all(text).await?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).await?;
    assert_eq!(back, text);
    Ok(())
}

/// Between a box and its relay: a line that can die without a word, as lines do.
struct Wire {
    at: SocketAddr,
    dead: Arc<AtomicBool>,
}

impl Wire {
    async fn to(relay: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let dead: Arc<AtomicBool> = Arc::default();
        let dies = dead.clone();
        tokio::spawn(async move {
            while let Ok((one, _)) = listener.accept().await {
                let Ok(other) = TcpStream::connect(relay).await else { continue };
                let (one, other) = (one.into_split(), other.into_split());
                for (mut from, mut to) in [(one.0, other.1), (other.0, one.1)] {
                    let dead = dies.clone();
                    tokio::spawn(async move {
                        let mut some = vec![0; 64 << 10];
                        while let Ok(count @ 1..) = from.read(&mut some).await {
                            if dead.load(Ordering::SeqCst) {
                                std::future::pending::<()>().await;
                            }
                            if to.write_all(&some[..count]).await.is_err() {
                                return;
                            }
                        }
                    });
                }
            }
        });
        Self { at, dead }
    }

    /// The same pass, by way of this wire.
    fn pass(&self, pass: &Pass) -> Pass {
        Pass { host: self.at.ip().to_string(), port: self.at.port(), ..pass.clone() }
    }

    fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_relay_that_knocks_says_whether_this_box_answers_there_and_takes_nobody_else_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(folder.path(), "127.0.0.1:0", Limits::default()).await;
    let mut house = House::new(&relay.pass());
    let LineState::Held { tried: None, .. } = held(&mut house.state).await else { panic!() };
    let door = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (own, key) = (door.local_addr().unwrap().port(), house.key.clone());
    house.tasks.push(tokio::spawn(async move {
        while let Ok((stream, _)) = door.accept().await {
            drop(key.accept(stream).await);
        }
    }));
    // A port at which nobody listens: it was somebody's just now.
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = closed.local_addr().unwrap().port();
    drop(closed);
    let fingerprint = house.fingerprint;
    for (mapped, fingerprint, want) in [
        (None, fingerprint, Tried { port: own, open: true }),
        (Some(nobody), fingerprint, Tried { port: nobody, open: false }),
        (Some(own), fingerprint, Tried { port: own, open: true }),
        (Some(own), [9; 32], Tried { port: own, open: false }),
    ] {
        house.knock.set(Some(Doors { own, mapped, fingerprint }));
        let is_so = |state: &LineState| matches!(state, LineState::Held { tried: Some(tried), .. } if *tried == want);
        let waiting = timeout(Duration::from_secs(30), house.state.wait_for(is_so));
        assert!(waiting.await.is_ok(), "{want:?}");
    }
}

#[tokio::test]
async fn callers_reach_a_box_by_its_name_and_are_never_taken_for_somebody_near() {
    // By either family: callers may have none but IPv6.
    for at in ["127.0.0.1:0", "[::1]:0"] {
        callers_reach_a_box_at(at).await;
    }
}

async fn callers_reach_a_box_at(at: &str) {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(folder.path(), at, Limits::default()).await;
    let mut house = House::new(&relay.pass());
    let LineState::Held { names, seen, place, .. } = held(&mut house.state).await else { panic!() };
    assert_eq!((names, seen.ip()), (vec![NAME.to_owned()], relay.at.ip()));
    assert_eq!(place, Place::Router);
    // The handshake is with the box: only its key is trusted here.
    let mut caller = house.call(relay.at).await.unwrap();
    echoes(&mut caller, &vec![7; 3 << 20]).await.unwrap();
    let mut other = house.call(relay.at).await.unwrap();
    echoes(&mut other, b"both at once").await.unwrap();
    echoes(&mut caller, b"and still").await.unwrap();
    assert!(house.callers.lock().unwrap().iter().all(|from| from.ip().is_unspecified()));
    // A caller's end is the box's, and what was said before it comes.
    caller.shutdown().await.unwrap();
    assert_eq!(
        timeout(Duration::from_secs(5), caller.read(&mut [0; 9])).await.unwrap().unwrap(),
        0
    );
    relay.end().await;
}

#[tokio::test]
async fn who_asks_for_another_name_or_does_not_speak_tls_hears_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(folder.path(), "127.0.0.1:0", Limits::default()).await;
    let mut house = House::new(&relay.pass());
    held(&mut house.state).await;
    let connector = TlsConnector::from(house.trust.clone());
    let stream = TcpStream::connect(relay.at).await.unwrap();
    assert!(connector.connect("elm.example.org".try_into().unwrap(), stream).await.is_err());
    let mut stream = TcpStream::connect(relay.at).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: oak.example.org\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut all)).await.unwrap();
    assert!(all.is_empty(), "{all:?}");
    assert!(house.callers.lock().unwrap().is_empty());
    relay.end().await;
}

#[tokio::test]
async fn a_box_with_a_wrong_secret_is_refused_in_words_and_one_with_another_relays_pass_says_no_secret()
 {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(folder.path(), "127.0.0.1:0", Limits::default()).await;
    let pass = relay.pass();
    let mut house = House::new(&Pass { secret: [0; 32], ..pass.clone() });
    let broken = house.state.wait_for(|state| matches!(state, LineState::Broken { .. }));
    let LineState::Broken { why } = broken.await.unwrap().clone() else { panic!() };
    assert!(why.contains("does not know this pass"), "{why}");
    let mut house = House::new(&Pass { fingerprint: [0; 32], ..pass });
    let broken = house.state.wait_for(|state| matches!(state, LineState::Broken { .. }));
    let LineState::Broken { why } = broken.await.unwrap().clone() else { panic!() };
    assert!(why.contains("is not the relay of this pass (its certificate has another"), "{why}");
    relay.end().await;
}

#[tokio::test]
async fn who_calls_while_no_line_is_held_waits_for_one() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(folder.path(), "127.0.0.1:0", Limits::default()).await;
    let pass = relay.pass();
    // The relay looks at its folder every second.
    sleep(Duration::from_millis(1200)).await;
    let mut house = House::new(&Pass { port: 1, ..pass.clone() });
    let (at, trust) = (relay.at, house.trust.clone());
    let call = tokio::spawn(async move {
        let stream = TcpStream::connect(at).await.unwrap();
        TlsConnector::from(trust).connect(NAME.try_into().unwrap(), stream).await
    });
    sleep(Duration::from_millis(500)).await;
    assert!(!call.is_finished());
    held(&mut house.line(&pass)).await;
    echoes(&mut call.await.unwrap().unwrap(), b"there you are").await.unwrap();
    relay.end().await;
}

#[tokio::test]
async fn when_a_line_dies_without_a_word_callers_come_over_the_other_and_cut_answers_end() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(folder.path(), "127.0.0.1:0", Limits::default()).await;
    let pass = relay.pass();
    let (first, second) = (Wire::to(relay.at).await, Wire::to(relay.at).await);
    let mut house = House::new(&first.pass(&pass));
    held(&mut house.state).await;
    let mut newest = house.line(&second.pass(&pass));
    held(&mut newest).await;
    // The newest line has it, once the relay has heard that its welcome came.
    sleep(Duration::from_millis(100)).await;
    let mut open = house.call(relay.at).await.unwrap();
    echoes(&mut open, b"before").await.unwrap();
    second.die();
    let began = Instant::now();
    let mut caller = house.call(relay.at).await.unwrap();
    echoes(&mut caller, b"after").await.unwrap();
    let took = began.elapsed();
    let end = timeout(Duration::from_secs(8), open.read(&mut [0; 9])).await.expect("a clear end");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    println!(
        "a new request over the other line after {:.2} s; the cut stream ended after {:.2} s",
        took.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    assert!(took < Duration::from_secs(5), "{took:?}");
    // The box notices as well.
    let broken = newest.wait_for(|state| matches!(state, LineState::Broken { .. }));
    timeout(Duration::from_secs(8), broken).await.unwrap().unwrap();
    relay.end().await;
}

#[tokio::test]
async fn callers_come_over_the_line_that_the_box_prefers_and_over_another_when_it_changes_its_mind()
{
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(folder.path(), "127.0.0.1:0", Limits::default()).await;
    let pass = relay.pass();
    let mut house = House::new(&pass);
    held(&mut house.state).await;
    held(&mut house.line(&pass)).await;
    for preferred in [0, 1, 0] {
        house.ranks.iter().enumerate().for_each(|(n, rank)| rank.set(u8::from(n != preferred)));
        let begun = Instant::now();
        // The relay hears of it with its next ping.
        loop {
            echoes(&mut house.call(relay.at).await.unwrap(), b"hello").await.unwrap();
            if house.over.lock().unwrap().last() == Some(&preferred) {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "still not over {preferred}");
            sleep(Duration::from_millis(50)).await;
        }
        echoes(&mut house.call(relay.at).await.unwrap(), b"once more").await.unwrap();
        assert_eq!(house.over.lock().unwrap().last(), Some(&preferred));
    }
    relay.end().await;
}

#[tokio::test]
async fn a_box_that_was_removed_at_the_relay_loses_its_line_and_its_callers() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(folder.path(), "127.0.0.1:0", Limits::default()).await;
    let mut house = House::new(&relay.pass());
    held(&mut house.state).await;
    let mut caller = house.call(relay.at).await.unwrap();
    echoes(&mut caller, b"before").await.unwrap();
    relay.register.remove("oak").unwrap();
    let end = timeout(Duration::from_secs(5), caller.read(&mut [0; 9])).await.expect("an end");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    let refused = house.state.wait_for(
        |state| matches!(state, LineState::Broken { why } if why.contains("does not know")),
    );
    timeout(Duration::from_secs(5), refused).await.unwrap().unwrap();
    assert!(house.call(relay.at).await.is_err());
    relay.end().await;
}

#[tokio::test]
async fn a_relay_that_starts_again_has_its_boxes_back_in_a_moment() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(folder.path(), "127.0.0.1:0", Limits::default()).await;
    let at = relay.at;
    let mut house = House::new(&relay.pass());
    held(&mut house.state).await;
    relay.end().await;
    house.state.wait_for(|state| matches!(state, LineState::Broken { .. })).await.unwrap();
    let relay = Relay::start(folder.path(), &at.to_string(), Limits::default()).await;
    let began = Instant::now();
    held(&mut house.state).await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    echoes(&mut house.call(relay.at).await.unwrap(), b"again").await.unwrap();
    relay.end().await;
}

#[tokio::test]
async fn who_begins_and_says_nothing_is_shown_out_and_keeps_nobody_else_out() {
    let folder = tempfile::tempdir().unwrap();
    let limits =
        Limits { beginning: Duration::from_millis(600), of_one_address: 20, ..Limits::default() };
    let relay = Relay::start(folder.path(), "127.0.0.1:0", limits).await;
    let mut house = House::new(&relay.pass());
    held(&mut house.state).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(relay.at).await.unwrap();
        let _ = stream.write_all(&[0x16, 3, 1]).await;
        silent.push(stream);
    }
    sleep(Duration::from_millis(900)).await;
    for stream in &mut silent {
        let end = timeout(Duration::from_secs(1), stream.read(&mut [0; 9])).await.unwrap();
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    echoes(&mut house.call(relay.at).await.unwrap(), b"hello").await.unwrap();
    relay.end().await;
}
