//! Malformed and treacherous requests, byte by byte.

use tokio::io::AsyncWriteExt;

use crate::house::{House, say, status_of};

/// Every request of the battery carries this second one inside; it must never be answered.
const SMUGGLED: &str = "GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-smuggled: 1\r\n\r\n";

/// How many answers came back.
fn answers(text: &str) -> usize {
    text.matches("HTTP/1.1 ").count() + text.matches("HTTP/1.0 ").count()
}

#[tokio::test]
async fn no_malformed_request_is_taken_for_two() {
    let house = House::open().await;
    let key = &house.key;
    let post = format!("POST /v1/completions HTTP/1.1\r\nx-api-key: {key}\r\n");
    let host = "host: localhost\r\n";
    let inside = SMUGGLED;
    let n = inside.len();
    // What is sent, and what the only answer may be; 0: none at all.
    let battery: Vec<(&str, String, &[u16])> = vec![
        (
            "two lengths that differ",
            format!("{post}{host}content-length: 0\r\ncontent-length: {n}\r\n\r\n{inside}"),
            &[400],
        ),
        (
            "two lengths in one",
            format!("{post}{host}content-length: 0, {n}\r\n\r\n{inside}"),
            &[400],
        ),
        (
            "a hexadecimal length",
            format!("{post}{host}content-length: 0x5\r\n\r\n{inside}"),
            &[400],
        ),
        ("a signed length", format!("{post}{host}content-length: +5\r\n\r\n{inside}"), &[400]),
        ("a negative length", format!("{post}{host}content-length: -1\r\n\r\n{inside}"), &[400]),
        ("an empty length", format!("{post}{host}content-length: \r\n\r\n{inside}"), &[400]),
        (
            "a length beyond all numbers",
            format!("{post}{host}content-length: 99999999999999999999999\r\n\r\n{inside}"),
            &[400],
        ),
        (
            "an unknown encoding",
            format!("{post}{host}transfer-encoding: xchunked\r\n\r\n{inside}"),
            &[400, 501],
        ),
        (
            "identity encoding",
            format!("{post}{host}transfer-encoding: identity\r\ncontent-length: 0\r\n\r\n{inside}"),
            &[400, 501],
        ),
        (
            "chunked, then identity",
            format!("{post}{host}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{inside}"),
            &[400, 501],
        ),
        (
            "gzip, then chunked",
            format!("{post}{host}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n{inside}"),
            &[400, 501],
        ),
        (
            "chunked twice",
            format!(
                "{post}{host}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{inside}"
            ),
            &[400, 501],
        ),
        (
            "a tab before chunked",
            format!("{post}{host}transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n{inside}"),
            &[400, 501],
        ),
        (
            "a space before the colon",
            format!("{post}{host}transfer-encoding : chunked\r\n\r\n0\r\n\r\n{inside}"),
            &[400],
        ),
        (
            "HTTP/1.0 with chunks",
            format!(
                "POST /v1/completions HTTP/1.0\r\nx-api-key: {key}\r\n{host}transfer-encoding: chunked\r\n\r\n0\r\n\r\n{inside}"
            ),
            &[400],
        ),
        (
            "a folded header",
            format!("{post}{host}x-a: b\r\n content-length: {n}\r\n\r\n{inside}"),
            &[400],
        ),
        ("NUL in a value", format!("{post}{host}x-a: b\0c\r\ncontent-length: 0\r\n\r\n"), &[400]),
        ("a bare CR in a value", format!("{post}{host}x-a: b\rcontent-length: 3\r\n\r\n"), &[400]),
        ("a control character in a name", format!("{post}{host}x\x01a: b\r\n\r\n"), &[400]),
        ("no colon", format!("{post}{host}nonsense\r\n\r\n"), &[400]),
        (
            "a chunk size that is none",
            format!("{post}{host}transfer-encoding: chunked\r\n\r\nzz\r\n{inside}"),
            &[400],
        ),
        (
            "a chunk size beyond all numbers",
            format!("{post}{host}transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{inside}"),
            &[400],
        ),
        (
            "a chunk without its end",
            format!("{post}{host}transfer-encoding: chunked\r\n\r\n2\r\n{{}}XX0\r\n\r\n{inside}"),
            &[400],
        ),
        ("no host", format!("{post}content-length: 0\r\n\r\n"), &[400]),
        ("two hosts", format!("{post}{host}{host}content-length: 0\r\n\r\n"), &[400]),
        (
            "another's host",
            format!("{post}host: evil.example\r\ncontent-length: 0\r\n\r\n"),
            &[421],
        ),
        (
            "a list of hosts",
            format!("{post}host: localhost, evil.example\r\ncontent-length: 0\r\n\r\n"),
            &[400],
        ),
        (
            "a host with a user",
            format!("{post}host: localhost@evil.example\r\ncontent-length: 0\r\n\r\n"),
            &[400],
        ),
        (
            "absolute form for another",
            format!(
                "POST http://evil.example/v1/completions HTTP/1.1\r\n{host}content-length: 0\r\n\r\n"
            ),
            &[400],
        ),
        ("CONNECT", format!("CONNECT localhost:1 HTTP/1.1\r\n{host}\r\n"), &[400, 405]),
        ("TRACE", format!("TRACE /health HTTP/1.1\r\n{host}\r\n"), &[405]),
        ("an unknown version", format!("GET /health HTTP/3.7\r\n{host}\r\n"), &[400, 505]),
        ("no version", "GET /health\r\n\r\n".to_owned(), &[400]),
        (
            "the preface of HTTP/2 in the clear",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            &[400, 405, 505, 0],
        ),
        ("nonsense", "\u{1}\u{2}\u{3}\r\n\r\n".to_owned(), &[400]),
    ];
    for (what, text, wanted) in battery {
        let answer = say(house.here().await, text.as_bytes()).await;
        assert!(answers(&answer) <= 1, "{what}: taken for two:\n{answer}");
        assert!(wanted.contains(&status_of(&answer)), "{what}: {answer}");
    }
    assert_eq!(house.engine.requests(), 0, "an engine was asked");
}

#[tokio::test]
async fn chunked_wins_over_a_length_and_the_connection_closes() {
    let house = House::open().await;
    let text = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\ncontent-length: 4\r\n\
         transfer-encoding: chunked\r\n\r\nc\r\n{{\"tokens\":1}}\r\n0\r\n\r\n{SMUGGLED}",
        house.key
    );
    let answer = say(house.here().await, text.as_bytes()).await;
    assert_eq!((answers(&answer), status_of(&answer)), (1, 200), "{answer}");
    let headers = house.engine.last_headers();
    assert_eq!(headers["content-length"], "12", "framed anew, by us");
    assert!(!headers.contains_key("transfer-encoding"));
    assert_eq!(house.engine.seen.lock().unwrap()[0].2, "{\"tokens\":1}");
}

#[tokio::test]
async fn bare_line_feeds_end_one_request_and_hide_none() {
    let house = House::open().await;
    let text = "GET /health HTTP/1.1\nhost: localhost\nconnection: close\n\n";
    let answer = say(house.here().await, text.as_bytes()).await;
    assert_eq!((answers(&answer), status_of(&answer)), (1, 200), "{answer}");
}

#[tokio::test]
async fn two_honest_requests_in_one_breath_get_two_answers() {
    let house = House::open().await;
    let text = "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let answer = say(house.here().await, text.as_bytes()).await;
    assert_eq!(answers(&answer), 2, "{answer}");
}

#[tokio::test]
async fn the_box_answers_to_its_own_names_only() {
    let house = House::open().await;
    for (host, wanted) in [
        ("localhost", 200),
        ("127.0.0.1", 200),
        // Its names are its own, but plain HTTP is for localhost.
        ("oak.local", 308),
        ("gpu.example.org", 308),
        ("rebound.example", 421),
        ("192.0.2.7", 421),
    ] {
        let text = format!("GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = say(house.here().await, text.as_bytes()).await;
        assert_eq!(status_of(&answer), wanted, "{host}: {answer}");
    }
}

#[tokio::test]
async fn plain_http_from_another_machine_is_sent_to_tls() {
    let house = House::open().await;
    let text = "GET /a?b=c HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let answer = say(house.from("127.0.0.2").await, text.as_bytes()).await;
    assert_eq!(status_of(&answer), 308);
    let to = format!("location: https://localhost:{}/a?b=c\r\n", house.port);
    assert!(answer.contains(&to), "{answer}");
}

#[tokio::test]
async fn another_sites_page_cannot_act_for_a_member() {
    let house = House::open().await;
    let cookie = format!("cookie: polder={}", house.session);
    let ask = async |headers: &str| {
        status_of(&house.ask(&format!("POST /nowhere\n{cookie}\n{headers}"), "x=1").await)
    };
    assert_eq!(ask("origin: http://evil.example").await, 403);
    assert_eq!(ask("").await, 403);
    assert_eq!(ask("sec-fetch-site: cross-site").await, 403);
    assert_eq!(ask("origin: null").await, 403);
    // Taken, and then there is no such page.
    assert_eq!(ask("sec-fetch-site: same-origin").await, 404);
    assert_eq!(ask("origin: http://localhost").await, 404);
}

#[tokio::test]
async fn every_answer_forbids_frames_sniffing_and_foreign_parts() {
    let house = House::open().await;
    for path in ["/health", "/nowhere", "/v1/models"] {
        let answer = house.ask(&format!("GET {path}"), "").await;
        for wanted in [
            "content-security-policy: default-src 'none'",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: same-origin",
        ] {
            assert!(answer.contains(wanted), "{path}: {wanted}: {answer}");
        }
        assert!(!answer.contains("strict-transport-security"), "not on localhost: {answer}");
    }
}

#[tokio::test]
async fn errors_on_the_api_have_openais_shape_and_others_are_plain() {
    let house = House::open().await;
    let api = house.ask("GET /v1/nothing/here", "").await;
    assert_eq!(status_of(&api), 404);
    assert!(api.contains("\r\n\r\n{\"error\":{\"message\":"), "{api}");
    let page = house.ask("GET /nowhere", "").await;
    assert_eq!(status_of(&page), 404);
    assert!(!page.contains("\"error\""), "{page}");
}

#[tokio::test]
async fn random_bytes_are_refused_and_the_door_stays_open() {
    let house = House::open().await;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..60 {
        let mut bytes = Vec::new();
        for _ in 0..40 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend(state.to_le_bytes());
        }
        let mut stream = house.here().await;
        // Some begin like TLS.
        if state & 1 == 0 {
            bytes[0] = 0x16;
        }
        let _ = stream.write_all(&bytes).await;
    }
    assert_eq!(status_of(&house.ask("GET /health", "").await), 200);
}
