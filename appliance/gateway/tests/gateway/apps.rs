//! Other web apps behind the box's sign-in.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use polder_control::PartState;
use polder_members::{Members, NewKey, Role};
use polder_site::{App, Audience};
use tokio::io::AsyncWriteExt;

use crate::house::{House, Wish, new_member, say, status_of, until};

type Seen = Arc<Mutex<Vec<String>>>;

/// A small app: it notes what it was asked, and answers.
struct Wiki {
    port: u16,
    seen: Seen,
}

impl Wiki {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Seen::default();
        let noted = seen.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let noted = noted.clone();
                let service = service_fn(move |request| wiki(noted.clone(), request));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        Self { port, seen }
    }

    fn last(&self) -> String {
        self.seen.lock().unwrap().last().unwrap().clone()
    }
}

async fn wiki(
    noted: Seen,
    request: http::Request<hyper::body::Incoming>,
) -> Result<http::Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let (parts, _) = request.into_parts();
    let mut text = format!("{} {}\n", parts.method, parts.uri);
    for (name, value) in &parts.headers {
        text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
    }
    noted.lock().unwrap().push(text);
    let response = http::Response::builder()
        .header("set-cookie", "theme=dark")
        .header("set-cookie", "__Host-polder=planted; Path=/; Secure")
        .header("x-frame-options", "SAMEORIGIN");
    let body = match parts.uri.path() {
        "/slow" => StreamBody::new(futures_util::stream::unfold(0, |n| async move {
            tokio::time::sleep(Duration::from_secs(n * 60)).await;
            Some((Ok(http_body::Frame::data(Bytes::from("first piece\n"))), n + 1))
        }))
        .boxed(),
        _ => Full::from("a page of the wiki").boxed(),
    };
    Ok(response.body(body).unwrap())
}

async fn house_with(wiki: &Wiki, open_to: Audience) -> House {
    fn with_bob(members: &Members, steward: &polder_members::Member) {
        let bob = members.add_member(&new_member("bob"), Role::Member).unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(members.path().with_file_name(name), text).unwrap();
        };
        write("bob", members.begin_session(bob.id).unwrap().1.expose());
        let api_only = members.mint_key(steward.id, &NewKey::default()).unwrap();
        write("api-only", api_only.key.expose());
    }
    let mut house = House::open_as(Wish { members: with_bob, ..Wish::default() }).await;
    let upstream = format!("http://127.0.0.1:{}", wiki.port).parse().unwrap();
    house.site.apps.insert("wiki".parse().unwrap(), App { upstream, open_to });
    house.say(PartState::Ready);
    for _ in 0..250 {
        if house.tls_to("wiki.oak.local", "127.0.0.1", &[]).await.is_ok() {
            return house;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the certificate does not follow the site");
}

impl House {
    fn kept(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    /// One request over TLS, and its answer.
    async fn visit(&self, host: &str, line: &str, headers: &[&str]) -> String {
        let port = self.port;
        let mut text = format!("{line} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n");
        for header in headers {
            text += &format!("{header}\r\n");
        }
        text += "\r\n";
        say(self.tls_to(host, "127.0.0.1", &[]).await.unwrap(), text.as_bytes()).await
    }

    /// Without the host that a whole address names.
    fn path_at(&self, host: &str, address: &str) -> String {
        let own = format!("https://{host}:{}", self.port);
        address.strip_prefix(&own).unwrap_or_else(|| panic!("{address}")).to_owned()
    }

    /// The whole way in for a browser that is signed in on the box: its cookie for the app.
    async fn way_in(&self, session: &str, path: &str) -> String {
        let (app, page) = ("wiki.oak.local", "accept: text/html");
        let sent = self.visit(app, &format!("GET {path}"), &[page]).await;
        assert_eq!(status_of(&sent), 303, "{sent}");
        let way = format!("cookie: {}", cookie(&sent, "__Host-polder-way"));
        let there = self.path_at("oak.local", &after(&sent, "location: "));
        let session = format!("cookie: __Host-polder={session}");
        let passed = self.visit("oak.local", &format!("GET {there}"), &[&session]).await;
        assert_eq!(status_of(&passed), 200, "{passed}");
        let back = self.path_at(app, &after(&passed, "refresh: 0; url="));
        let entered = self.visit(app, &format!("GET {back}"), &[&way]).await;
        assert_eq!(status_of(&entered), 303, "{entered}");
        assert_eq!(after(&entered, "location: "), path);
        let again = self.visit(app, &format!("GET {back}"), &[&way]).await;
        assert!(!again.contains("__Host-polder-app"), "a ticket is good once: {again}");
        cookie(&entered, "__Host-polder-app")
    }
}

fn after(answer: &str, mark: &str) -> String {
    let at = answer.find(mark).unwrap_or_else(|| panic!("no {mark:?} in {answer}")) + mark.len();
    answer[at..].split("\r\n").next().unwrap().to_owned()
}

fn cookie(answer: &str, name: &str) -> String {
    let line = after(answer, &format!("set-cookie: {name}="));
    assert!(line.ends_with("; HttpOnly; SameSite=Lax; Secure"), "{line}");
    format!("{name}={}", line.split(';').next().unwrap())
}

#[tokio::test]
async fn a_stranger_is_led_to_the_sign_in_page_and_a_program_is_told() {
    let wiki = Wiki::start().await;
    let house = house_with(&wiki, Audience::Members).await;
    let sent = house.visit("wiki.oak.local", "GET /a?b=c", &["accept: text/html"]).await;
    let path = house.path_at("oak.local", &after(&sent, "location: "));
    assert!(path.ends_with("&back=/a%3Fb%3Dc"), "{path}");
    let to_sign_in = house.visit("oak.local", &format!("GET {path}"), &[]).await;
    assert!(after(&to_sign_in, "location: ").starts_with("/sign-in?next=/apps/wiki/enter"));
    let told = house.visit("wiki.oak.local", "GET /api", &["accept: application/json"]).await;
    assert_eq!(status_of(&told), 401);
    let forged = house.visit("wiki.oak.local", "GET /", &["cookie: __Host-polder-app=x"]).await;
    assert_eq!(status_of(&forged), 401);
    // On this machine's plain HTTP as anywhere else: over TLS, or not at all.
    let plain = b"GET / HTTP/1.1\r\nhost: wiki.localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(status_of(&say(house.here().await, plain).await), 308);
    assert!(wiki.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_member_is_let_in_and_the_app_learns_who_they_are_and_nothing_to_act_with() {
    let wiki = Wiki::start().await;
    let house = house_with(&wiki, Audience::Members).await;
    let known = house.way_in(&house.kept("bob"), "/start?x=1").await;
    let cookies = format!("cookie: {known}; theme=light; polder=x");
    let headers = [
        cookies.as_str(),
        "X-Auth-Request-User: mallory",
        "X_Auth_Request_User: mallory",
        "X.Auth.Request.User: mallory",
        "X-Forwarded-For: 203.0.113.1",
        "Connection: X-Secret",
        "X-Secret: 1",
        "Authorization: Basic YXBw",
    ];
    let answer = house.visit("wiki.oak.local", "GET /page", &headers).await;
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(answer.ends_with("a page of the wiki"), "{answer}");
    for kept in ["set-cookie: theme=dark", "x-frame-options: SAMEORIGIN"] {
        assert!(answer.contains(kept), "{kept}: {answer}");
    }
    assert!(!answer.contains("planted") && !answer.contains("content-security-policy"), "{answer}");
    let seen = wiki.last();
    let host = format!("host: wiki.oak.local:{}\n", house.port);
    for told in [
        "GET /page\n",
        "x-auth-request-user: bob\n",
        "x-auth-request-groups: member\n",
        "x-auth-request-email: member-2@oak.local\n",
        "x-forwarded-for: 127.0.0.1\n",
        "x-forwarded-proto: https\n",
        &format!("x-forwarded-{host}"),
        &format!("\n{host}"),
        "cookie: theme=light\n",
        "authorization: Basic YXBw\n",
    ] {
        assert!(seen.contains(told), "{told}: {seen}");
    }
    for hidden in ["mallory", "polder=", "203.0.113.1", "x-secret", "polder-app"] {
        assert!(!seen.contains(hidden), "{hidden}: {seen}");
    }
}

#[tokio::test]
async fn what_was_let_in_ends_with_the_session_on_the_box() {
    let wiki = Wiki::start().await;
    let house = house_with(&wiki, Audience::Members).await;
    let header = format!("cookie: {}", house.way_in(&house.session, "/").await);
    let headers = [header.as_str()];
    let visit = || house.visit("wiki.oak.local", "GET /", &headers);
    assert_eq!(status_of(&visit().await), 200);
    let session = format!("cookie: __Host-polder={}", house.session);
    let origin = format!("origin: https://oak.local:{}", house.port);
    let sign_out = [session.as_str(), &origin, "content-length: 0"];
    let mut stream = house.tls_to("wiki.oak.local", "127.0.0.1", &[]).await.unwrap();
    let text = format!("GET /slow HTTP/1.1\r\nhost: wiki.oak.local\r\n{header}\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    until(&mut stream, "first piece").await;
    let out = house.visit("oak.local", "POST /sign-out", &sign_out).await;
    assert_eq!(status_of(&out), 303, "{out}");
    assert_eq!(status_of(&visit().await), 401);
    // So does what was still coming, and not as if it were complete.
    let rest = say(stream, b"").await;
    assert!(!rest.contains("0\r\n\r\n"), "{rest}");
}

#[tokio::test]
async fn another_browsers_ticket_lets_nobody_in_and_nobody_is_led_elsewhere() {
    let wiki = Wiki::start().await;
    let house = house_with(&wiki, Audience::Members).await;
    // What somebody who wants another to work under their name has to offer.
    let session = format!("cookie: __Host-polder={}", house.session);
    let path = format!("GET /apps/wiki/enter?way={}&back=//evil.example", "a".repeat(52));
    let passed = house.visit("oak.local", &path, &[&session]).await;
    let ticket = house.path_at("wiki.oak.local", &after(&passed, "refresh: 0; url="));
    assert!(ticket.ends_with("&back=/"), "{ticket}");
    for cookies in ["x: y".to_owned(), format!("cookie: __Host-polder-way={}", "b".repeat(52))] {
        let refused = house.visit("wiki.oak.local", &format!("GET {ticket}"), &[&cookies]).await;
        assert!(status_of(&refused) == 303 && !refused.contains("set-cookie"), "{refused}");
    }
}

#[tokio::test]
async fn an_app_for_stewards_is_for_stewards() {
    let wiki = Wiki::start().await;
    let house = house_with(&wiki, Audience::Stewards).await;
    house.way_in(&house.session, "/").await;
    let bob = format!("cookie: __Host-polder={}", house.kept("bob"));
    let path = format!("GET /apps/wiki/enter?way={}&back=/", "a".repeat(52));
    let refused = house.visit("oak.local", &path, &[&bob]).await;
    assert_eq!(status_of(&refused), 403, "{refused}");
    assert!(!refused.contains("ticket="), "{refused}");
    // Who was a steward when they came in.
    let known = format!("cookie: {}", house.way_in(&house.session, "/").await);
    let change = |id: u8, role: &'static str| {
        let session = format!("cookie: polder={}\norigin: http://localhost", house.session);
        let kind = "content-type: application/x-www-form-urlencoded";
        let head = format!("POST /members/{id}/role\n{session}\n{kind}");
        let house = &house;
        async move { house.ask(&head, &format!("role={role}")).await }
    };
    for (id, role) in [(2, "steward"), (1, "member")] {
        let done = change(id, role).await;
        assert_eq!(status_of(&done), 303, "{done}");
    }
    let refused = house.visit("wiki.oak.local", "GET /", &[&known, "accept: text/html"]).await;
    assert_eq!(status_of(&refused), 403, "{refused}");
    let own = format!("<base href=\"https://oak.local:{}/\">", house.port);
    for shown in ["content-type: text/html", "This app is for stewards of the box", &own] {
        assert!(refused.contains(shown), "{shown}: {refused}");
    }
    let told = house.visit("wiki.oak.local", "GET /", &[&known]).await;
    assert!(told.contains("\"not_permitted\""), "{told}");
}

#[tokio::test]
async fn a_key_opens_apps_if_it_may_and_stops_at_the_door() {
    let wiki = Wiki::start().await;
    let house = house_with(&wiki, Audience::Members).await;
    let key = format!("authorization: Bearer {}", house.key);
    let answer = house.visit("wiki.oak.local", "GET /api", &[&key]).await;
    assert_eq!(status_of(&answer), 200, "{answer}");
    let seen = wiki.last();
    assert!(seen.contains("x-auth-request-user: ada") && !seen.contains("plk_"), "{seen}");
    let api_only = format!("x-api-key: {}", house.kept("api-only"));
    let refused = house.visit("wiki.oak.local", "GET /api", &[&api_only]).await;
    assert_eq!(status_of(&refused), 403, "{refused}");
}

#[tokio::test]
async fn an_apps_answer_streams_and_an_upgrade_is_refused_by_name() {
    let wiki = Wiki::start().await;
    let house = house_with(&wiki, Audience::Members).await;
    let key = format!("x-api-key: {}", house.key);
    let mut stream = house.tls_to("wiki.oak.local", "127.0.0.1", &[]).await.unwrap();
    let text = format!("GET /slow HTTP/1.1\r\nhost: wiki.oak.local\r\n{key}\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    until(&mut stream, "first piece").await;
    let upgrade = ["connection: upgrade", "upgrade: websocket", &key];
    let refused = house.visit("wiki.oak.local", "GET /live", &upgrade).await;
    assert_eq!(status_of(&refused), 501);
    assert!(refused.contains("WebSocket"), "{refused}");
}

#[tokio::test]
async fn another_sites_page_changes_nothing_in_an_app_and_a_dead_app_is_named() {
    let wiki = Wiki::start().await;
    let mut house = house_with(&wiki, Audience::Members).await;
    let known = format!("cookie: {}", house.way_in(&house.session, "/").await);
    // The box's own page is another site here, and so is any other app's.
    let origin = |host: &str| format!("origin: https://{host}:{}", house.port);
    let (theirs, ours) = (origin("oak.local"), origin("wiki.oak.local"));
    let post = ["content-length: 0", &known, &theirs];
    let refused = house.visit("wiki.oak.local", "POST /save", &post).await;
    assert_eq!(status_of(&refused), 403, "{refused}");
    let post = ["content-length: 0", &known, &ours];
    assert_eq!(status_of(&house.visit("wiki.oak.local", "POST /save", &post).await), 200);
    let app = house.site.apps.values_mut().next().unwrap();
    app.upstream = "unix:/nowhere/wiki.sock".parse().unwrap();
    house.say(PartState::Ready);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let dead = house.visit("wiki.oak.local", "GET /", &[&known]).await;
    assert_eq!(status_of(&dead), 502);
    assert!(dead.contains("the app wiki does not answer"), "{dead}");
    let dead = house.visit("wiki.oak.local", "GET /", &[&known, "accept: text/html"]).await;
    assert!(status_of(&dead) == 502 && dead.contains("<h1>That did not work</h1>"), "{dead}");
    let post = ["content-length: 0", "accept: text/html", &ours];
    let stranger = house.visit("wiki.oak.local", "POST /save", &post).await;
    assert!(status_of(&stranger) == 401 && stranger.contains("Nobody is signed in"), "{stranger}");
}
