//! An external service that is asked who somebody is.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use polder_control::PartState;
use polder_members::{Member, Members, Role};
use polder_site::{Verifier, VerifierMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

use crate::house::{House, Wish, new_member, soon, status_of, until};

const CHAT: &str = "POST /v1/chat/completions\n";

/// A verifier whose answer depends on the credential, and that notes every question.
struct Service {
    port: u16,
    seen: Arc<Mutex<Vec<(String, HeaderMap)>>>,
}

impl Service {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let noted = seen.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serve(stream, noted.clone());
            }
        });
        Self { port, seen }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/verify?x=1", self.port)
    }

    fn asked(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// The last question, line by line, sorted.
    fn last(&self) -> Vec<String> {
        let (line, headers) = self.seen.lock().unwrap().last().unwrap().clone();
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort_unstable();
        lines.insert(0, line);
        lines
    }
}

fn serve(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    noted: Arc<Mutex<Vec<(String, HeaderMap)>>>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let line = format!("{} {}", request.method(), request.uri());
        noted.lock().unwrap().push((line, request.headers().clone()));
        judge(request)
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::spawn(connection);
}

async fn judge(request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, std::io::Error> {
    let sent = request.headers().get(AUTHORIZATION).or(request.headers().get("cookie"));
    let sent = sent.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    let what = sent.rsplit([' ', '=']).next().unwrap();
    let answer = Response::builder();
    let answer = match what {
        "stranger" => answer
            .status(401)
            .header("www-authenticate", "Basic realm=\"sso\"")
            .header("www-authenticate", "Negotiate")
            .header("x-auth-request-user", "ada"),
        "forbidden" => answer.status(403).header("x-auth-request-user", "ada"),
        "elsewhere" => answer.status(302).header("location", "https://sso.example/"),
        "broken" => answer.status(500).header("x-auth-request-user", "ada"),
        "nameless" => answer.status(200),
        "two" => answer.header("x-auth-request-user", "ada").header("remote-user", "bob"),
        "talkative" => answer.header("x-auth-request-user", "ada").header("x", "x".repeat(40_000)),
        "hangs" => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            answer
        }
        // The connection ends without an answer.
        "dies" => return Err(std::io::ErrorKind::BrokenPipe.into()),
        name => answer.status(204).header("x-auth-request-user", name).header("set-cookie", "s=1"),
    };
    Ok(answer.body(Empty::new()).unwrap())
}

fn with_bob(members: &Members, _: &Member) {
    members.add_member(&new_member("bob"), Role::Member).unwrap();
}

async fn house() -> House {
    House::open_as(Wish { members: with_bob, ..Wish::default() }).await
}

impl House {
    /// From now on this verifier is asked.
    async fn believe(&mut self, url: &str, mode: VerifierMode) {
        self.site.verifier = Some(Verifier { url: url.parse().unwrap(), mode });
        self.site.check().unwrap();
        self.say(PartState::Ready);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }

    async fn models(&self, header: &str) -> String {
        self.ask(&format!("GET /v1/models\n{header}"), "").await
    }

    /// What a steward does on the page of members.
    async fn disable_bob(&self) {
        let head = format!(
            "POST /members/2/disable\ncookie: polder={}\norigin: http://localhost\n\
             content-type: application/x-www-form-urlencoded",
            self.session
        );
        let answer = self.ask(&head, "disabled=yes").await;
        assert_eq!(status_of(&answer), 303, "{answer}");
    }
}

#[tokio::test]
async fn somebody_whom_the_verifier_knows_uses_the_api_and_is_counted() {
    let (service, mut house) = (Service::start().await, house().await);
    house.site.usage.per_member = true;
    house.believe(&service.url(), VerifierMode::Nginx).await;
    let head = format!(
        "{CHAT}authorization: Bearer bob\ncookie: sso=1; polder-x=2\nx-auth-request-user: ada\n\
         x_auth_request_user: ada\nremote-user: ada\nx-original-uri: /elsewhere\nx-secret: 1"
    );
    // The door takes what carries a cookie and changes something only from its own pages.
    let foreign = house.ask(&format!("{CHAT}cookie: sso=bob"), "{}").await;
    assert_eq!(status_of(&foreign), 403, "{foreign}");
    // Browsers send a password along with what another site's page asks, too.
    let evil = format!("{CHAT}authorization: Basic bob\norigin: https://evil.example");
    assert_eq!(status_of(&house.ask(&evil, "{}").await), 403);
    assert_eq!(service.asked(), 0);
    let answer = house.ask(&head, r#"{"tokens":5}"#).await;
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(!answer.contains("set-cookie"), "{answer}");
    let host = format!("host: 127.0.0.1:{}", service.port);
    let expected = [
        "GET /verify?x=1",
        "authorization: Bearer bob",
        "cookie: sso=1",
        &host,
        "x-original-method: POST",
        "x-original-uri: /v1/chat/completions",
    ];
    assert_eq!(service.last(), expected);
    let headers = house.engine.last_headers();
    assert_eq!(headers["x-polder-member"], "2");
    assert!(!headers.contains_key("authorization") && !headers.contains_key("cookie"));
    // A steward by the verifier's word sees the figures; a member does not.
    let figures = |who: &str| format!("GET /metrics\nauthorization: Basic {who}");
    assert_eq!(status_of(&house.ask(&figures("ada"), "").await), 200);
    assert_eq!(status_of(&house.ask(&figures("bob"), "").await), 403);
    house.stop();
    soon("the door closed", || house.gateway.is_finished()).await;
    let members = Members::open(&house.folder.path().join("polder.db")).unwrap();
    let used = members.usage_of_all(2).unwrap();
    assert_eq!(used.len(), 1, "{used:?}");
    assert_eq!((used[0].requests, used[0].prompt, used[0].completion), (1, 7, 5));
    assert_eq!(used[0].member.0, 2);
}

#[tokio::test]
async fn in_the_other_mode_it_hears_what_caddy_and_traefik_say() {
    let (service, mut house) = (Service::start().await, house().await);
    house.believe(&service.url(), VerifierMode::Forward).await;
    let lies = "x-forwarded-for: 10.9.9.9\nx-forwarded-uri: /elsewhere\nx-forwarded-host: evil";
    let answer = house.ask(&format!("GET /auth?x=2\ncookie: sso=bob\n{lies}"), "").await;
    assert_eq!(status_of(&answer), 202, "{answer}");
    assert!(answer.contains("x-auth-request-user: bob\r\n"), "{answer}");
    assert!(answer.contains("x-auth-request-groups: member\r\n"), "{answer}");
    let host = format!("host: 127.0.0.1:{}", service.port);
    let expected = [
        "GET /verify?x=1",
        "cookie: sso=bob",
        &host,
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: localhost",
        "x-forwarded-method: GET",
        "x-forwarded-proto: http",
        "x-forwarded-uri: /auth?x=2",
    ];
    assert_eq!(service.last(), expected);
    let login = house.models("cookie: sso=elsewhere").await;
    assert_eq!(status_of(&login), 401, "{login}");
    assert!(!login.contains("sso.example"), "{login}");
}

#[tokio::test]
async fn a_no_is_a_no_and_every_other_answer_lets_nobody_in() {
    let (service, mut house) = (Service::start().await, house().await);
    house.believe(&service.url(), VerifierMode::Nginx).await;
    let no = house.models("authorization: Basic stranger").await;
    assert_eq!(status_of(&no), 401, "{no}");
    assert!(no.contains("www-authenticate: Basic realm=\"sso\"\r\n"), "{no}");
    assert!(no.contains("www-authenticate: Negotiate\r\n"), "{no}");
    assert!(!no.contains("Bearer realm") && no.contains("verifier_denied"), "{no}");
    for (credential, status, code) in [
        ("forbidden", 403, "verifier_denied"),
        ("elsewhere", 502, "verifier_answer"),
        ("broken", 502, "verifier_answer"),
        ("nameless", 502, "verifier_answer"),
        ("two", 502, "verifier_answer"),
        ("eve", 403, "unknown_member"),
        ("Ada", 403, "unknown_member"),
        ("ada,bob", 403, "unknown_member"),
        ("dies", 503, "verifier_unavailable"),
        ("talkative", 503, "verifier_unavailable"),
    ] {
        let asked = service.asked();
        let head = format!("{CHAT}authorization: Basic {credential}");
        let answer = house.ask(&head, "{}").await;
        assert_eq!(status_of(&answer), status, "{credential}: {answer}");
        assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{credential}: {answer}");
        assert!(answer.contains(&format!("http://127.0.0.1:{}/verify", service.port)), "{answer}");
        assert_eq!(service.asked(), asked + 1, "{credential} was asked about once");
    }
    assert_eq!(house.engine.requests(), 0);
}

#[tokio::test]
async fn a_verifier_that_hangs_talks_nonsense_or_is_gone_lets_nobody_in() {
    let (service, mut house) = (Service::start().await, house().await);
    house.believe(&service.url(), VerifierMode::Nginx).await;
    let begun = Instant::now();
    let hangs = house.models("authorization: Basic hangs").await;
    assert_eq!(status_of(&hangs), 503, "{hangs}");
    assert!(hangs.contains("verifier_unavailable") && hangs.contains("send a key"), "{hangs}");
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(5), "{took:?}");

    let nonsense = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = nonsense.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = nonsense.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"220 ready X-Auth-Request-User: ada\r\n\r\n").await;
        }
    });
    let url = |port: u16| format!("http://127.0.0.1:{port}/");
    house.believe(&url(port), VerifierMode::Nginx).await;
    assert_eq!(status_of(&house.models("authorization: Basic ada").await), 503);

    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    house.believe(&url(gone), VerifierMode::Nginx).await;
    assert_eq!(status_of(&house.models("authorization: Basic ada").await), 503);
    // Whoever has a key does not notice.
    assert_eq!(status_of(&house.chat(r#"{"tokens":1}"#).await), 200);
}

#[tokio::test]
async fn our_own_credentials_count_alone_and_without_a_verifier_nothing_is_asked() {
    let (service, mut house) = (Service::start().await, house().await);
    assert_eq!(status_of(&house.models("authorization: Basic ada").await), 401);
    house.believe(&service.url(), VerifierMode::Nginx).await;
    let (key, session) = (&house.key, &house.session);
    for (header, status) in [
        (format!("authorization: Bearer {key}\ncookie: sso=ada"), 200),
        (format!("x-api-key: {key}\nauthorization: Basic ada"), 200),
        ("x-api-key: foreign\nauthorization: Basic ada".to_owned(), 401),
        ("authorization: Bearer plk_no_no\ncookie: sso=ada".to_owned(), 401),
        (format!("cookie: polder={session}\nauthorization: Basic ada"), 401),
        ("x-auth-request-user: ada\nremote-user: ada".to_owned(), 401),
        ("x: y".to_owned(), 401),
    ] {
        let answer = house.models(&header).await;
        assert_eq!(status_of(&answer), status, "{header}: {answer}");
    }
    let auth = house.ask(&format!("GET /auth\ncookie: polder={session}; sso=bob"), "").await;
    assert!(auth.contains("x-auth-request-user: ada\r\n"), "{auth}");
    assert_eq!(service.asked(), 0);
    house.site.verifier = None;
    house.say(PartState::Ready);
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(status_of(&house.models("authorization: Basic ada").await), 401);
    assert_eq!(service.asked(), 0);
}

#[tokio::test]
async fn what_it_said_is_good_for_ten_seconds_but_not_for_a_member_who_was_sent_away() {
    let (service, mut house) = (Service::start().await, house().await);
    house.believe(&service.url(), VerifierMode::Nginx).await;
    let bob = "authorization: Basic bob";
    for _ in 0..5 {
        assert_eq!(status_of(&house.models(bob).await), 200);
    }
    assert_eq!(service.asked(), 1);
    // Another credential and another page are other questions; a no is asked about each time.
    assert_eq!(status_of(&house.models("authorization: Bearer bob").await), 200);
    assert_eq!(status_of(&house.ask(&format!("GET /auth\n{bob}"), "").await), 202);
    assert_eq!(service.asked(), 3);
    for n in 4..6 {
        assert_eq!(status_of(&house.models("authorization: Basic stranger").await), 401);
        assert_eq!(service.asked(), n);
    }

    // An answer under way ends, and the next question is refused.
    let body = r#"{"stream":true,"tokens":100000,"pause_ms":20}"#;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{bob}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = house.here().await;
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    until(&mut stream, "\"n\":3").await;
    house.disable_bob().await;
    until(&mut stream, "member_sent_away").await;
    let asked = service.asked();
    let refused = house.models(bob).await;
    assert_eq!(status_of(&refused), 403, "{refused}");
    assert!(refused.contains("member_sent_away"), "{refused}");
    assert_eq!(service.asked(), asked, "it was still known what the verifier had said");

    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(status_of(&house.models("authorization: Bearer bob").await), 403);
    assert_eq!(service.asked(), asked + 1);
}

#[tokio::test]
async fn a_verifier_may_listen_at_a_socket() {
    let mut house = house().await;
    let path = house.folder.path().join("verifier.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let seen = Arc::<Mutex<Vec<_>>>::default();
    let noted = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            serve(stream, noted.clone());
        }
    });
    house.believe(&format!("unix:{}:/verify", path.display()), VerifierMode::Nginx).await;
    assert_eq!(status_of(&house.models("authorization: Basic bob").await), 200);
    assert_eq!(seen.lock().unwrap()[0].0, "GET /verify");
    assert_eq!(status_of(&house.models("authorization: Basic stranger").await), 401);
}

/// Ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An nginx that knows people by their passwords, at a socket in this folder.
async fn nginx(folder: &Path) -> (Running, String) {
    let at = folder.display();
    std::fs::write(folder.join("passwords"), "bob:{PLAIN}four words\neve:{PLAIN}evil\n").unwrap();
    let text = format!(
        "daemon off; master_process off; pid {at}/nginx.pid; error_log {at}/nginx.log;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off;\n\
         client_body_temp_path {at}/n1; proxy_temp_path {at}/n2; fastcgi_temp_path {at}/n3;\n\
         uwsgi_temp_path {at}/n4; scgi_temp_path {at}/n5;\n\
         server {{ listen unix:{at}/nginx.sock;\n\
           location = /verify {{ auth_basic \"the collective\";\n\
             auth_basic_user_file {at}/passwords;\n\
             add_header X-Auth-Request-User $remote_user always;\n\
             try_files /nothing =204; }}\n\
         }} }}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    let child = Command::new("nginx")
        .arg("-p")
        .arg(folder)
        .arg("-c")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nginx is installed (Debian: nginx-light)");
    let (running, socket) = (Running(child), folder.join("nginx.sock"));
    soon("nginx listens", || socket.exists()).await;
    (running, format!("unix:{}:/verify", socket.display()))
}

#[tokio::test]
async fn nginx_with_passwords_is_a_verifier() {
    let mut house = house().await;
    let (_nginx, url) = nginx(house.folder.path()).await;
    house.believe(&url, VerifierMode::Nginx).await;
    // bob:four words, bob:wrong, eve:evil.
    let (bob, wrong, eve) = ("Ym9iOmZvdXIgd29yZHM=", "Ym9iOndyb25n", "ZXZlOmV2aWw=");
    let ask = async |pass: &str| {
        house.ask(&format!("{CHAT}authorization: Basic {pass}"), r#"{"tokens":3}"#).await
    };
    let answer = ask(bob).await;
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert_eq!(house.engine.last_headers()["x-polder-member"], "2");
    let refused = ask(wrong).await;
    assert_eq!(status_of(&refused), 401, "{refused}");
    assert!(refused.contains("www-authenticate: Basic realm=\"the collective\"\r\n"), "{refused}");
    let unknown = ask(eve).await;
    assert_eq!(status_of(&unknown), 403, "{unknown}");
    assert!(unknown.contains("unknown_member") && unknown.contains("eve"), "{unknown}");
    let none = house.ask(CHAT, "{}").await;
    assert!(none.contains("www-authenticate: Bearer realm=\"polder\""), "{none}");
    assert_eq!(house.engine.requests(), 1);
}
