//! An engine that was taken over, and writes to the door whatever it likes: byte by byte, over the engine's own socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::house::{House, Wish, say, status_of, until};

/// What takes the engine's place; it ends with the test.
struct Hostile {
    /// Bytes that the door took of it.
    taken: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers every request with these bytes; then, if `endless`, with that again and again until nobody takes it.
fn takes_over(house: &House, answer: &[u8], endless: Option<&'static [u8]>) -> Hostile {
    house.engine.kill();
    let socket = house.sockets().engine(&"fast".parse().unwrap());
    let listener = UnixListener::bind(socket).unwrap();
    let (answer, taken) = (answer.to_vec(), Arc::new(AtomicUsize::new(0)));
    let count = taken.clone();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, answer.clone(), endless, count.clone()));
        }
    });
    Hostile { taken, task }
}

async fn serve(
    mut stream: UnixStream,
    answer: Vec<u8>,
    endless: Option<&'static [u8]>,
    taken: Arc<AtomicUsize>,
) {
    let mut seen = Vec::new();
    let mut piece = [0; 4096];
    // A question's head and its end: all questions here are short.
    while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut piece).await {
            Ok(n) if n > 0 => seen.extend_from_slice(&piece[..n]),
            _ => return,
        }
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    if stream.write_all(&answer).await.is_err() {
        return;
    }
    while let Some(more) = endless {
        if stream.write_all(more).await.is_err() {
            return;
        }
        taken.fetch_add(more.len(), Ordering::Relaxed);
    }
    let _ = stream.flush().await;
    // Closed a moment later, as engines do that end.
    tokio::time::sleep(Duration::from_millis(300)).await;
}

fn head_of(answer: &str) -> &str {
    answer.split("\r\n\r\n").next().unwrap()
}

const QUESTION: &str = r#"{"model":"small"}"#;

#[tokio::test]
async fn an_engine_cannot_choose_headers_redirect_or_sign_anybody_in() {
    let house = House::open().await;
    let hostile = [
        "set-cookie: polder=planted; Path=/",
        "set-cookie: __Host-polder=planted; Path=/; Secure",
        "location: https://evil.example/",
        "refresh: 0;url=https://evil.example/",
        "content-security-policy: default-src * 'unsafe-inline'",
        "x-frame-options: ALLOWALL",
        "access-control-allow-origin: *",
        "access-control-allow-credentials: true",
        "clear-site-data: \"*\"",
        "strict-transport-security: max-age=0",
        "alt-svc: h2=\"evil.example:443\"",
        "nel: {\"report_to\":\"x\",\"max_age\":99999}",
        "report-to: {\"group\":\"x\"}",
        "link: <https://evil.example/x.css>; rel=stylesheet",
        "service-worker-allowed: /",
        "www-authenticate: Basic realm=\"your password please\"",
        "x-polder-served-by: another/box",
        "x-auth-request-user: ada",
        "connection: keep-alive, content-security-policy",
        "upgrade: websocket",
        "server: evil",
    ];
    let headers = hostile.join("\r\n");
    let page = "<script>fetch('/keys',{method:'POST'})</script>";
    for status in [
        "200 OK",
        "302 Found",
        "307 Temporary Redirect",
        "401 Unauthorized",
        "101 Switching Protocols",
        "500 Oh",
    ] {
        let text = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/html\r\n{headers}\r\ncontent-length: {}\r\n\r\n{page}",
            page.len()
        );
        let _hostile = takes_over(&house, text.as_bytes(), None);
        let answer = house.chat(QUESTION).await;
        let head = head_of(&answer).to_lowercase();
        for bad in [
            "set-cookie",
            "evil",
            "refresh",
            "access-control",
            "clear-site",
            "allowall",
            "unsafe-inline",
            "basic realm",
            "another/box",
            "x-auth",
            "text/html",
            "websocket",
            "service-worker",
        ] {
            assert!(!head.contains(bad), "{status}: {bad} got through: {head}");
        }
        assert!(head.contains("content-security-policy: default-src 'none'"), "{status}: {head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{status}: {head}");
        assert!(![101, 302, 307, 401].contains(&status_of(&answer)), "{status}: {head}");
    }
}

#[tokio::test]
async fn no_bytes_of_an_engine_begin_a_second_answer() {
    let house = House::open().await;
    let second = "HTTP/1.1 200 OK\r\nset-cookie: polder=planted\r\ncontent-length: 2\r\n\r\nhi";
    let answers = [
        // A line break in a header's value, and a header's name that is none.
        format!("HTTP/1.1 200 OK\r\nx-request-id: a\r\n\r\n{second}"),
        format!(
            "HTTP/1.1 200 OK\r\nx-request-id: a\rset-cookie: a=b\r\ncontent-length: 2\r\n\r\nhi{second}"
        ),
        format!("HTTP/1.1 200 OK\r\nx request id: a\r\ncontent-length: 2\r\n\r\nhi{second}"),
        // Two lengths, and both framings.
        format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 99\r\n\r\nhi{second}"),
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n{second}"
        ),
        format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nhi{second}"
        ),
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-2\r\nhi{second}"),
        format!("HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\nhi{second}"),
        // Two in one breath: the second is for nobody's question.
        format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi{second}"),
        format!(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: <//evil.example>\r\n\r\n{second}"
        ),
        // No HTTP at all.
        format!("SSH-2.0-evil\r\n{second}"),
        "\0\0\0\0\0\0".to_owned(),
    ];
    for bytes in &answers {
        let _hostile = takes_over(&house, bytes.as_bytes(), None);
        // Two questions in one breath over one connection; each gets one answer at most, by the door's own framing. (Where
        // nothing of an answer has left yet when it breaks off, the connection just ends.)
        let key = &house.key;
        let ask = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\ncontent-length: {}\r\n\r\n{QUESTION}",
            QUESTION.len()
        );
        let health = "GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let answer = say(house.here().await, format!("{ask}{health}").as_bytes()).await;
        let heads = heads(&answer);
        assert!(heads.len() <= 2, "{bytes:?} became {} answers: {answer}", heads.len());
        for head in heads {
            assert!(!head.to_lowercase().contains("set-cookie"), "{bytes:?}: {head}");
        }
    }
}

/// The heads of the answers in what came over one connection, by their own framing.
fn heads(text: &str) -> Vec<String> {
    let mut rest = text;
    let mut all = Vec::new();
    while rest.starts_with("HTTP/1.1 ") {
        let Some((head, body)) = rest.split_once("\r\n\r\n") else { break };
        all.push(head.to_owned());
        let length = head.lines().find_map(|line| {
            line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned)
        });
        rest = match length {
            Some(length) => body.get(length.parse().unwrap()..).unwrap_or_default(),
            // Chunked: up to the last chunk; broken off: there is no more.
            None => body.split_once("0\r\n\r\n").map_or("", |(_, rest)| rest),
        };
    }
    all
}

#[tokio::test]
async fn an_engines_figures_are_text_and_never_a_page() {
    let house = House::open().await;
    let page = "<script>alert(1)</script>";
    let text = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nset-cookie: polder=planted\r\ncontent-security-policy: default-src *\r\nlocation: //evil.example\r\ncontent-length: {}\r\n\r\n{page}",
        page.len()
    );
    let _hostile = takes_over(&house, text.as_bytes(), None);
    let answer = house
        .ask(&format!("GET /metrics?engine=fast\nauthorization: Bearer {}", house.key), "")
        .await;
    let head = head_of(&answer).to_lowercase();
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(head.contains("content-type: text/plain"), "{head}");
    for bad in ["set-cookie", "default-src *", "evil", "text/html"] {
        assert!(!head.contains(bad), "{bad}: {head}");
    }
}

/// This process's memory in bytes.
fn memory() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn endless_heads_lines_and_answers_do_not_fill_the_door() {
    const MANY: &[u8] = &[b'x'; 64 << 10];
    const HEADERS: &[u8] =
        b"x-more: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n";
    let house = House::open().await;
    let before = memory();
    // A head without an end is no answer.
    let hostile = takes_over(&house, b"HTTP/1.1 200 OK\r\n", Some(HEADERS));
    let answer = house.chat(QUESTION).await;
    assert!(status_of(&answer) >= 500, "{answer}");
    drop(hostile);
    // A line without an end, which nobody reads: the engine waits.
    let hostile = takes_over(
        &house,
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: ",
        Some(MANY),
    );
    let mut client = house.here().await;
    let ask = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\ncontent-length: {}\r\n\r\n{QUESTION}",
        house.key,
        QUESTION.len()
    );
    client.write_all(ask.as_bytes()).await.unwrap();
    until(&mut client, "data: xxx").await;
    let mut last = usize::MAX;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = hostile.taken.load(Ordering::Relaxed);
        if now == last {
            break;
        }
        last = now;
    }
    assert!(last < 32 << 20, "{last} bytes went somewhere");
    // Read, it goes on, and still nothing piles up.
    let mut piece = vec![0; 1 << 20];
    let mut read = 0;
    while read < 64 << 20 {
        read += client.read(&mut piece).await.unwrap();
    }
    drop(client);
    let grown = memory().saturating_sub(before);
    assert!(grown < 64 << 20, "the door holds {grown} bytes more");
    // The chat page's reader gives up on such a line, and an endless list of what is common is not read whole.
    let chat = format!(
        "POST /chat\ncookie: polder={}\norigin: http://localhost:{}\ncontent-type: application/x-www-form-urlencoded",
        house.session, house.port
    );
    let shown =
        tokio::time::timeout(Duration::from_secs(20), house.ask(&chat, "message=hello")).await;
    assert!(shown.is_ok(), "the chat page reads on for ever");
    assert!(memory().saturating_sub(before) < 96 << 20);
    assert_eq!(status_of(&house.ask("GET /health", "").await), 200);
}

#[tokio::test]
async fn letters_that_are_cut_anywhere_arrive_whole() {
    let house = House::open().await;
    house.engine.kill();
    let socket = house.sockets().engine(&"fast".parse().unwrap());
    let listener = UnixListener::bind(socket).unwrap();
    let text = "data: {\"t\":\"Grüße, 世界 🌍\"}\n\ndata: [DONE]\n\n";
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut piece = [0; 4096];
        let _ = stream.read(&mut piece).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        // Every byte is a piece of its own, so that every letter is cut.
        for byte in text.as_bytes() {
            stream.write_all(&[b'1', b'\r', b'\n', *byte, b'\r', b'\n']).await.unwrap();
            stream.flush().await.unwrap();
        }
        // Bytes that are no letters go through as they are, and end nothing.
        stream.write_all(b"2\r\n\xff\xfe\r\n0\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    });
    let mut client = house.here().await;
    let ask = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-api-key: {}\r\ncontent-length: {}\r\n\r\n{QUESTION}",
        house.key,
        QUESTION.len()
    );
    client.write_all(ask.as_bytes()).await.unwrap();
    let mut raw = Vec::new();
    client.read_to_end(&mut raw).await.unwrap();
    task.await.unwrap();
    let begin = raw.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let body = unchunked(&raw[begin..]);
    assert_eq!(body, [text.as_bytes(), b"\xff\xfe"].concat());
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        whole.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 4 + size..];
    }
    whole
}

#[tokio::test]
async fn made_up_figures_do_not_break_the_books() {
    let house = House::open_as(Wish::default()).await;
    house.change(|now| now.site.usage.per_member = true);
    tokio::time::sleep(Duration::from_millis(200)).await;
    for used in [
        "prompt=18446744073709551615,completion=18446744073709551615",
        "prompt=9223372036854775807,completion=9223372036854775807",
        "prompt=-1,completion=-1",
        "prompt=99999999999999999999999,completion=1",
        "prompt=,completion=",
    ] {
        let text = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntrailer: x-polder-usage\r\nx-polder-prompt-tokens: 18446744073709551615\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\nx-polder-usage: {used}\r\n\r\n"
        );
        let _hostile = takes_over(&house, text.as_bytes(), None);
        for _ in 0..3 {
            let answer = house.chat(QUESTION).await;
            assert_eq!(status_of(&answer), 200, "{used}: {answer}");
        }
    }
    // The page adds up what was counted, and still has something to show.
    let page = house.ask(&format!("GET /usage\ncookie: polder={}", house.session), "").await;
    assert_eq!(status_of(&page), 200, "{page}");
    assert!(!page.contains("Nothing yet."), "{page}");
}
