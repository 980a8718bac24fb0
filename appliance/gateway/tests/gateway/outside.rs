//! Members outside, by way of a relay.

use std::net::SocketAddr;
use std::time::Duration;

use polder_reach::Register;
use polder_reach::relay::{Limits, run};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::house::{House, say, soon, status_of, until};

const NAME: &str = "gpu.example.org";

struct Relay {
    _folder: tempfile::TempDir,
    register: Register,
    at: SocketAddr,
    _stop: tokio_util::sync::DropGuard,
}

async fn relay() -> Relay {
    let folder = tempfile::tempdir().unwrap();
    let register = Register::open(folder.path()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let running = run(register.clone(), vec![listener], Limits::default(), stop.clone());
    tokio::spawn(async move { running.await.unwrap() });
    Relay { _folder: folder, register, at, _stop: stop.drop_guard() }
}

impl Relay {
    fn pass(&self) -> String {
        let names = [NAME.to_owned()];
        self.register.add("oak", &names, ("127.0.0.1", self.at.port())).unwrap().to_string()
    }

    /// As a member's program outside: it knows the box's name, and trusts the box's own authority.
    async fn call(
        &self,
        house: &House,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        house.tls_over(TcpStream::connect(self.at).await?, NAME, &["http/1.1"]).await
    }
}

impl House {
    async fn steward(&self, line: &str, form: &str) -> String {
        let session = &self.session;
        let head = format!(
            "{line}\ncookie: polder={session}\norigin: http://localhost\ncontent-type: application/x-www-form-urlencoded"
        );
        self.ask(&head, form).await
    }

    async fn gives(&self, pass: &str) -> String {
        let pass = pass.replace('#', "%23").replace('/', "%2F").replace(':', "%3A");
        self.steward("POST /outside", &format!("pass={pass}")).await
    }
}

#[tokio::test]
async fn a_member_outside_asks_over_the_relay_and_gets_streams_as_at_home() {
    let (house, relay) = (House::open().await, relay().await);
    // The relay looks at its folder every second.
    let pass = relay.pass();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let answer = house.gives(&pass).await;
    assert_eq!(status_of(&answer), 303, "{answer}");
    // Whoever calls before the line is there is waited for.
    let mut stream = relay.call(&house).await.unwrap();
    let page = say(
        &mut stream,
        format!("GET /sign-in HTTP/1.1\r\nhost: {NAME}\r\nconnection: close\r\n\r\n").as_bytes(),
    )
    .await;
    assert_eq!(status_of(&page), 200, "{page}");
    let body = r#"{"model":"small","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let ask = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {NAME}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        house.key,
        body.len()
    );
    let mut stream = relay.call(&house).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, ask.as_bytes()).await.unwrap();
    let answer = until(&mut stream, "[DONE]").await;
    assert_eq!(status_of(&answer), 200, "{answer}");
    let shown = house.steward("GET /outside", "").await;
    assert!(shown.contains("line held") && shown.contains("the box answers"), "{shown}");
    let secret = pass.split(['@', ':']).nth(2).unwrap();
    assert!(!shown.contains(secret));
    assert!(!house.records.lock().unwrap().iter().any(|record| record.contains(secret)));
}

#[tokio::test]
async fn a_pass_that_is_taken_away_hangs_up_and_nonsense_is_refused_in_words() {
    let (house, relay) = (House::open().await, relay().await);
    let answer = house.gives("polder-relay://half").await;
    assert_eq!(status_of(&answer), 400);
    assert!(answer.contains("This is no pass of a relay"), "{answer}");
    let pass = relay.pass();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    house.gives(&pass).await;
    let stream = relay.call(&house).await.unwrap();
    drop(stream);
    let answer = house.steward("POST /outside/remove", "").await;
    assert_eq!(status_of(&answer), 303, "{answer}");
    assert!(!house.folder.path().join("relay.pass").exists());
    let records = house.records.clone();
    soon("both are in the audit trail", || {
        let records = records.lock().unwrap();
        records.iter().any(|r| r.contains("gave the box"))
            && records.iter().any(|r| r.contains("took the relay"))
    })
    .await;
    let call = tokio::time::timeout(Duration::from_secs(2), relay.call(&house)).await;
    assert!(!matches!(call, Ok(Ok(_))), "a line was held still");
}

#[tokio::test]
async fn a_relay_that_is_away_is_told_to_whoever_looks_after_health_until_it_is_back() {
    use polder_control::{DoorReply, DoorRequest, OutsideSeen};
    let (house, relay) = (House::open().await, relay().await);
    let seen = async || match house.console(DoorRequest::Outside).await {
        DoorReply::Outside(seen) => seen,
        other => panic!("{other:?}"),
    };
    assert_eq!(seen().await, OutsideSeen::default());
    let page = house.steward("GET /outside", "").await;
    assert!(page.contains("Without a relay nobody knocks from outside"), "{page}");
    // The relay does not know the box yet: nothing is held.
    let names = [NAME.to_owned()];
    let other = Register::open(relay._folder.path().join("other").as_path()).unwrap();
    let pass = other.add("oak", &names, ("127.0.0.1", relay.at.port())).unwrap().to_string();
    house.gives(&pass).await;
    let begun = std::time::Instant::now();
    let broken = loop {
        let seen = seen().await;
        assert_eq!(seen.relay.as_deref(), Some("127.0.0.1"));
        if let [line] = &seen.lines[..]
            && let Some((seconds, why)) = line.broken.clone()
            && seconds > 0
        {
            break why;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{seen:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(!broken.is_empty());
    let pass = relay.pass();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    house.gives(&pass).await;
    while seen().await.lines.iter().any(|line| line.broken.is_some()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "the line is not held");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
