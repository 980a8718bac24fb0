//! TLS as curl sees it, HTTP/2, changes of the door, and its closing.

use std::process::Output;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use polder_control::PartState;
use polder_gateway::Limits;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::house::{House, Wish, say, soon, status_of, until};

async fn curl(house: &House, arguments: &[&str], url: &str) -> Output {
    let resolve = format!("oak.local:{}:127.0.0.1", house.port);
    let mut command = tokio::process::Command::new("curl");
    command
        .args(["-sS", "-i", "--max-time", "20", "--noproxy", "*", "--cacert"])
        .arg(house.ca_file())
        .args(["--resolve", &resolve])
        .args(arguments)
        .arg(url);
    command.output().await.unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn curl_trusts_the_box_over_both_versions_of_http() {
    let house = House::open().await;
    let url = format!("https://oak.local:{}/health", house.port);
    for (version, line) in [("--http1.1", "HTTP/1.1 200"), ("--http2", "HTTP/2 200")] {
        let seen = curl(&house, &[version], &url).await;
        assert!(out(&seen).starts_with(line), "{version}: {seen:?}");
        assert!(out(&seen).contains("strict-transport-security: max-age="), "{seen:?}");
    }
    let address = format!("https://127.0.0.1:{}/health", house.port);
    let seen = curl(&house, &[], &address).await;
    assert!(out(&seen).contains(" 200"), "{seen:?}");
    assert!(!out(&seen).contains("strict-transport-security"), "not for an address: {seen:?}");
    let old = curl(&house, &["--tls-max", "1.1"], &url).await;
    assert!(!old.status.success(), "TLS 1.1 was taken");
}

#[tokio::test]
async fn http2_names_one_host_too() {
    let house = House::open().await;
    let url = format!("https://oak.local:{}/health", house.port);
    let evil = curl(&house, &["--http2", "-H", "Host: evil.example"], &url).await;
    assert!(out(&evil).starts_with("HTTP/2 421"), "{evil:?}");
}

#[tokio::test]
async fn an_answer_streams_over_http2() {
    let house = House::open().await;
    let url = format!("https://oak.local:{}/v1/chat/completions", house.port);
    let key = format!("Authorization: Bearer {}", house.key);
    let question = r#"{"stream":true,"tokens":50}"#;
    let seen = curl(&house, &["--http2", "-N", "-H", &key, "-d", question], &url).await;
    let text = out(&seen);
    assert!(text.starts_with("HTTP/2 200") && text.contains("{\"n\":49"), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn a_refusal_over_http2_is_heard_by_curl_whole() {
    let house = House::open().await;
    let url = format!("https://oak.local:{}/v1/chat/completions", house.port);
    // Early answers race with the body, so once would prove little.
    for _ in 0..8 {
        let question = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(20_000));
        let header = "Authorization: Bearer plk_wrong";
        let seen = curl(&house, &["--http2", "-H", header, "-d", &question], &url).await;
        assert!(seen.status.success(), "{seen:?}");
        assert!(out(&seen).starts_with("HTTP/2 401"), "{seen:?}");
    }
}

/// An HTTP/2 client that takes little at a time.
async fn http2(house: &House) -> (SendRequest<Full<Bytes>>, tokio::task::JoinHandle<()>) {
    let stream = house.tls_from("127.0.0.2", &["h2"]).await.unwrap();
    let (client, connection) =
        hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
            .initial_stream_window_size(16 << 10)
            .handshake(hyper_util::rt::TokioIo::new(stream))
            .await
            .unwrap();
    (client, tokio::spawn(async move { drop(connection.await) }))
}

#[tokio::test]
async fn an_http2_client_that_takes_nothing_is_given_up_and_told_why() {
    let limits = Limits { stall: Duration::from_millis(600), ..Limits::default() };
    let house = House::open_with(limits).await;
    let (mut client, _connection) = http2(&house).await;
    let question = r#"{"stream":true,"tokens":1000,"fat":4000}"#;
    let request = http::Request::post("https://oak.local/v1/completions")
        .header("x-api-key", &house.key)
        .body(Full::new(Bytes::from(question)))
        .unwrap();
    let mut answer = client.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    soon("the engine is free", || {
        house.engine.dropped.load(std::sync::atomic::Ordering::SeqCst) == 1
    })
    .await;
    // What was on its way comes still, then the reason.
    let mut last = Bytes::new();
    while let Some(frame) = answer.frame().await {
        last = frame.unwrap().into_data().unwrap_or(last);
    }
    assert!(String::from_utf8_lossy(&last).contains("client_too_slow"), "{last:?}");
}

#[tokio::test]
async fn an_idle_http2_connection_is_closed() {
    let limits = Limits {
        head: Duration::from_millis(200),
        idle: Duration::from_millis(500),
        ..Limits::default()
    };
    let house = House::open_with(limits).await;
    let (mut client, connection) = http2(&house).await;
    let request =
        http::Request::get("https://oak.local/health").body(Full::new(Bytes::new())).unwrap();
    let answer = client.send_request(request).await.unwrap();
    drop(answer.into_body().collect().await);
    let begun = Instant::now();
    soon("the connection is closed", || connection.is_finished()).await;
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn openssl_finds_no_old_protocol() {
    let house = House::open().await;
    for (protocol, wanted) in [("-tls1_3", true), ("-tls1_2", true), ("-tls1_1", false)] {
        let output = tokio::process::Command::new("openssl")
            .args(["s_client", protocol, "-verify_return_error", "-servername", "oak.local"])
            .args(["-CAfile", house.ca_file().to_str().unwrap()])
            .args(["-connect", &format!("127.0.0.1:{}", house.port)])
            .stdin(std::process::Stdio::null())
            .output()
            .await
            .unwrap();
        assert_eq!(output.status.success(), wanted, "{protocol}: {output:?}");
    }
}

#[tokio::test]
async fn closing_the_door_lets_streams_finish_and_takes_nothing_new() {
    let mut house = House::open().await;
    let mut stream = house.here().await;
    let body = r#"{"stream":true,"tokens":20,"pause_ms":40}"#;
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\ncontent-length: {}\r\n\r\n{body}",
        house.key,
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    until(&mut stream, "{\"n\":1").await;
    house.stop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(TcpStream::connect(("127.0.0.1", house.port)).await.is_err(), "it still listens");
    assert!(!house.gateway.is_finished(), "it did not wait");
    until(&mut stream, "[DONE]").await;
    soon("the door is closed", || house.gateway.is_finished()).await;
}

#[tokio::test]
async fn closing_the_door_does_not_wait_for_ever() {
    let limits = Limits { drain: Duration::from_millis(300), ..Limits::default() };
    let mut house = House::open_with(limits).await;
    let mut stream = house.here().await;
    let body = r#"{"stream":true,"tokens":20000,"pause_ms":40}"#;
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\ncontent-length: {}\r\n\r\n{body}",
        house.key,
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    until(&mut stream, "{\"n\":1").await;
    let begun = Instant::now();
    house.stop();
    soon("the door is closed", || house.gateway.is_finished()).await;
    assert!(begun.elapsed() >= Duration::from_millis(250));
    soon("the engine is free", || {
        house.engine.dropped.load(std::sync::atomic::Ordering::SeqCst) == 1
    })
    .await;
}

#[tokio::test]
async fn a_changed_door_opens_and_closes_addresses_without_a_restart() {
    let mut house =
        House::open_as(Wish { listen: vec!["127.0.0.1", "127.0.0.5"], ..Wish::default() }).await;
    let port = house.port;
    assert!(TcpStream::connect(("127.0.0.5", port)).await.is_ok());
    let mut open = house.here().await;
    house.site.door.listen = vec!["127.0.0.1".parse().unwrap(), "127.0.0.6".parse().unwrap()];
    house.say(PartState::Ready);
    for _ in 0..100 {
        let opened = TcpStream::connect(("127.0.0.6", port)).await.is_ok();
        let closed = TcpStream::connect(("127.0.0.5", port)).await.is_err();
        if opened && closed {
            let text = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
            open.write_all(b"").await.unwrap();
            assert_eq!(status_of(&say(open, text).await), 200, "open connections stay");
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the door did not follow the site");
}

#[tokio::test]
async fn a_renamed_box_has_a_certificate_for_its_new_name() {
    let mut house = House::open().await;
    house.site.name = "elm".parse().unwrap();
    house.say(PartState::Ready);
    let url = format!("https://elm.local:{}/health", house.port);
    let resolve = format!("elm.local:{}:127.0.0.1", house.port);
    for _ in 0..100 {
        let seen = curl(&house, &["--resolve", &resolve], &url).await;
        if out(&seen).contains(" 200") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    panic!("no certificate for the new name");
}
