//! Nobody can keep the door from others: by waiting, by trickling, by coming in numbers.

use std::time::{Duration, Instant};

use polder_gateway::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::house::{House, say, status_of};

const PARTIAL: &[u8] = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-a: ";

fn short() -> Limits {
    Limits {
        handshake: Duration::from_millis(300),
        head: Duration::from_millis(400),
        idle: Duration::from_millis(600),
        body_bytes: 10_000,
        body_grace: Duration::from_millis(400),
        body_rate: 1 << 20,
        connections: 24,
        kept: 4,
        per_address: 8,
        ..Limits::default()
    }
}

/// How long the other side keeps the connection open.
async fn kept_open(mut stream: TcpStream) -> Duration {
    let begun = Instant::now();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(8), stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "still open after 8 s");
    begun.elapsed()
}

#[tokio::test]
async fn a_client_that_says_nothing_or_begins_no_tls_is_shown_out() {
    let house = House::open_with(short()).await;
    let silent = kept_open(house.here().await).await;
    assert!(silent >= Duration::from_millis(250) && silent < Duration::from_secs(3), "{silent:?}");
    let mut half = house.here().await;
    half.write_all(b"\x16\x03\x01").await.unwrap();
    let half = kept_open(half).await;
    assert!(half >= Duration::from_millis(250) && half < Duration::from_secs(3), "{half:?}");
}

#[tokio::test]
async fn a_head_that_trickles_is_shown_out() {
    let house = House::open_with(short()).await;
    let mut stream = house.here().await;
    stream.write_all(PARTIAL).await.unwrap();
    let begun = Instant::now();
    // One byte at a time does not buy time.
    let mut answer = [0; 256];
    loop {
        let _ = stream.write_all(b"x").await;
        let read = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut answer)).await;
        if let Ok(Ok(0) | Err(_)) = read {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "still open");
    }
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn an_idle_connection_is_closed_between_requests() {
    let house = House::open_with(short()).await;
    let mut stream = house.here().await;
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let open = kept_open(stream).await;
    assert!(open >= Duration::from_millis(300) && open < Duration::from_secs(4), "{open:?}");
}

#[tokio::test]
async fn slow_loris_takes_its_own_places_and_nobody_elses() {
    let limits = Limits { head: Duration::from_secs(10), ..short() };
    let house = House::open_with(limits).await;
    let mut loris = Vec::new();
    for _ in 0..40 {
        let mut stream = house.from("127.0.0.2").await;
        let _ = stream.write_all(PARTIAL).await;
        loris.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    let text = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let other = say(house.from("127.0.0.3").await, text).await;
    assert_eq!(status_of(&other), 308, "another address is served");
    assert!(begun.elapsed() < Duration::from_secs(1));
    let same = say_quietly(house.from("127.0.0.2").await, text).await;
    assert_eq!(same, "", "its own ninth connection is not");
}

#[tokio::test]
async fn a_full_box_still_has_a_place_for_its_steward() {
    let limits = Limits { head: Duration::from_secs(10), ..short() };
    let house = House::open_with(limits).await;
    // A steward has been on the dashboard from another address.
    let dashboard = format!(
        "GET /dashboard HTTP/1.1\r\nhost: oak.local\r\nconnection: close\r\ncookie: __Host-polder={}\r\n\r\n",
        house.session
    );
    let stream = house.tls_from("127.0.0.7", &[]).await.unwrap();
    assert_eq!(status_of(&say(stream, dashboard.as_bytes()).await), 200);
    // Their place is free again a moment after they have seen the end; the crowd shall get it.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut crowd = Vec::new();
    for address in ["127.0.0.2", "127.0.0.3", "127.0.0.4"] {
        for _ in 0..8 {
            let mut stream = house.from(address).await;
            let _ = stream.write_all(PARTIAL).await;
            crowd.push(stream);
        }
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let text = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(say_quietly(house.from("127.0.0.9").await, text).await, "", "the box is full");
    assert_eq!(status_of(&say(house.here().await, text).await), 200, "but not for this machine");
    let steward = house.tls_from("127.0.0.7", &[]).await.expect("and not for the steward");
    assert_eq!(status_of(&say(steward, dashboard.as_bytes()).await), 200);
    drop(crowd);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(status_of(&say(house.from("127.0.0.9").await, text).await), 308);
}

#[tokio::test]
async fn long_heads_are_refused_with_the_right_number() {
    let house =
        House::open_with(Limits { uri_bytes: 1000, headers: 40, head_bytes: 16 << 10, ..short() })
            .await;
    let long = "x".repeat(2000);
    let uri = house.ask(&format!("GET /{long}"), "").await;
    assert_eq!(status_of(&uri), 414, "{uri}");
    let many: String = (0..60).map(|n| format!("x-{n}: 1\n")).collect();
    assert_eq!(status_of(&house.ask(&format!("GET /health\n{many}"), "").await), 431);
    let wide = "x".repeat(20 << 10);
    let mut stream = house.here().await;
    let _ = stream
        .write_all(
            format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx-a: {wide}\r\n\r\n").as_bytes(),
        )
        .await;
    let mut answer = [0; 64];
    let n = stream.read(&mut answer).await.unwrap_or(0);
    assert!(n == 0 || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn large_and_slow_bodies_are_refused() {
    let house = House::open_with(short()).await;
    let key = &house.key;
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\nconnection: close\r\n"
    );
    let told =
        say_quietly(house.here().await, format!("{head}content-length: 10001\r\n\r\n").as_bytes())
            .await;
    assert_eq!(status_of(&told), 413, "{told}");
    let chunk = format!("2000\r\n{}\r\n", "x".repeat(0x2000));
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n");
    let grown = say_quietly(house.here().await, chunked.as_bytes()).await;
    assert_eq!(status_of(&grown), 413, "{grown}");
    let mut slow = house.here().await;
    slow.write_all(format!("{head}content-length: 100\r\n\r\n{{").as_bytes()).await.unwrap();
    let begun = Instant::now();
    let answer = say_quietly(slow, b" ").await;
    assert_eq!(status_of(&answer), 408, "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert_eq!(house.engine.requests(), 0);
}

#[tokio::test]
async fn a_strangers_body_is_not_read() {
    let house = House::open().await;
    let text =
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 30000000\r\n\r\n{";
    let begun = Instant::now();
    let mut stream = house.here().await;
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = [0; 256];
    let n = stream.read(&mut answer).await.unwrap();
    assert_eq!(status_of(&String::from_utf8_lossy(&answer[..n])), 401);
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_program_with_a_wrong_key_that_is_still_sending_hears_so_and_keeps_its_connection() {
    let house = House::open().await;
    let mut stream = house.here().await;
    let question = "{\"model\":\"small\"}";
    for _ in 0..2 {
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: plk_wrong\r\ncontent-length: {}\r\n\r\n",
            question.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
        stream.write_all(question.as_bytes()).await.unwrap();
        let answer = crate::house::until(&mut stream, "invalid_api_key").await;
        assert_eq!(status_of(&answer), 401, "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
    }
    // Who asks whether to send it at all is told at once.
    let mut polite = house.here().await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: plk_wrong\r\nexpect: 100-continue\r\ncontent-length: 20\r\n\r\n";
    polite.write_all(head.as_bytes()).await.unwrap();
    let answer = crate::house::until(&mut polite, "invalid_api_key").await;
    assert_eq!(status_of(&answer), 401, "{answer}");
}

#[tokio::test]
async fn places_come_back_when_connections_end() {
    let house = House::open_with(short()).await;
    for _ in 0..5 {
        let mut streams = Vec::new();
        for _ in 0..8 {
            streams.push(house.from("127.0.0.2").await);
        }
        drop(streams);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut last = String::new();
    for _ in 0..20 {
        let text = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
        last = say_quietly(house.from("127.0.0.2").await, text).await;
        if status_of(&last) == 308 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no place came back: {last}");
}

/// Like `say`, for a connection that may be closed under our hands.
async fn say_quietly(mut stream: TcpStream, text: &[u8]) -> String {
    let _ = stream.write_all(text).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(8), stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}
