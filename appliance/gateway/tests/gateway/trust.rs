//! The handbook's attackers against every address that the box answers, read from the sources: one that is added
//! later is tried as well.

use std::collections::BTreeSet;

use polder_members::Role;

use crate::house::{House, Wish, new_member, say, soon, status_of};

/// Where routes are written down.
const SOURCES: [&str; 2] =
    [include_str!("../../src/pages/mod.rs"), include_str!("../../src/api.rs")];

/// A way to ask: the method, and an address with something in place of what varies.
type Route = (&'static str, String);

/// Every route of the pages and the API.
fn routes() -> BTreeSet<Route> {
    let mut all = BTreeSet::new();
    for text in SOURCES {
        for piece in text.split(".route(\"").skip(1) {
            let (path, how) = piece.split_once('"').unwrap();
            let how = how.lines().next().unwrap();
            let path = filled(path);
            for (word, method) in
                [("get(", "GET"), ("post(", "POST"), ("put(", "PUT"), ("anthropic(", "POST")]
            {
                if how.contains(word) {
                    all.insert((method, path.clone()));
                }
            }
        }
    }
    assert!(all.len() > 60, "routes are written otherwise now: {all:?}");
    all
}

/// `/members/{id}/role` with names that are there.
fn filled(path: &str) -> String {
    let parts = path.split('/').map(|part| match part {
        "{id}" => "1",
        "{model}" => "small",
        "{name}" => "fast",
        "{port}" => "enp1s0",
        "{recipe}" => "smollm2-135m-instruct",
        "{token}" => "not-a-token",
        "{chapter}" => "this-box",
        "{*path}" => "anything",
        other => {
            assert!(!other.contains('{'), "what stands for {other}?");
            other
        }
    });
    parts.collect::<Vec<_>>().join("/")
}

/// What a stranger may see or do.
const FOR_STRANGERS: [(&str, &str); 20] = [
    // In the box's own network, to those who hold two recovery sheets.
    ("GET", "/locked-out"),
    ("POST", "/locked-out"),
    // Of a box that is nobody's.
    ("GET", "/ended"),
    ("GET", "/sign-in"),
    ("POST", "/sign-in"),
    // Say that there is no such way in, or none that was begun.
    ("GET", "/sign-in/with"),
    ("GET", "/sign-in/back"),
    // Say that no app lets people sign in with the box, or which one it would be.
    ("GET", "/.well-known/openid-configuration"),
    ("GET", "/oidc/keys"),
    ("GET", "/oidc/authorize"),
    ("POST", "/oidc/token"),
    ("GET", "/oidc/end"),
    // Ends a session that is not there.
    ("POST", "/sign-out"),
    // Says that there is no such invite.
    ("GET", "/invite/not-a-token"),
    ("POST", "/invite/not-a-token"),
    ("GET", "/handbook"),
    ("GET", "/handbook/this-box"),
    ("GET", "/ca"),
    ("GET", "/ca.crt"),
    ("GET", "/health"),
];
/// The API's own description says nothing of this box.
const DESCRIPTION: (&str, &str) = ("GET", "/openapi.json");

fn is_for_strangers(route: &Route) -> bool {
    let route = (route.0, route.1.as_str());
    FOR_STRANGERS.contains(&route) || route == DESCRIPTION
}

/// What a member may do besides what strangers may: by its beginning, or whole with `$`.
const FOR_MEMBERS: [&str; 26] = [
    "/oidc/agree$",
    "/collective$",
    "/collective/read$",
    "/collective/sheets$",
    "/collective/sheets/show$",
    "/collective/sheets/confirm$",
    "/collective/end$",
    "/collective/end/sheets$",
    "/status$",
    "/$",
    "/keys$",
    "/keys/",
    "/chat",
    "/connect$",
    "/account",
    "/usage/forget$",
    // Takes no session: apps ask there with what they were given.
    "/oidc/userinfo$",
    "/money$",
    "/money/mine.csv$",
    "/money/agree$",
    "/trial$",
    "/v1/",
    "/tokenize$",
    "/detokenize$",
    "/auth$",
    "/apps/fast/enter$",
];

fn is_for_members((method, path): &Route) -> bool {
    let begins = FOR_MEMBERS.iter().any(|known| match known.strip_suffix('$') {
        Some(whole) => path == whole,
        None => path.starts_with(known),
    });
    begins || (*method, path.as_str()) == ("GET", "/usage")
}

/// Asks over plain HTTP from this machine, with these headers and a form.
async fn ask(house: &House, (method, path): &Route, headers: &str) -> String {
    let body = match *method {
        "GET" => "",
        _ if path.starts_with("/v1") || path.ends_with("tokenize") => "{\"model\":\"small\"}",
        _ => "role=member&disabled=yes&password=x&name=x&days=1&disk_percent=5&percent=100&label=x",
    };
    let kind = match body.starts_with('{') {
        true => "application/json",
        false => "application/x-www-form-urlencoded",
    };
    let head = format!("{method} {path}\ncontent-type: {kind}\n{headers}");
    house.ask(&head, body).await
}

fn leads_to_sign_in(answer: &str) -> bool {
    status_of(answer) == 303 && answer.contains("location: /sign-in")
}

#[tokio::test]
async fn a_stranger_reaches_no_route_but_those_for_strangers() {
    let house = House::open().await;
    for route in routes() {
        for headers in ["", "cookie: polder=not-a-session\norigin: http://localhost"] {
            let answer = ask(&house, &route, headers).await;
            let status = status_of(&answer);
            if is_for_strangers(&route) {
                assert!(![401, 421].contains(&status) && status < 500, "{route:?}: {answer}");
                continue;
            }
            let kept_out = leads_to_sign_in(&answer) || status == 401 || status == 404;
            assert!(kept_out, "{route:?} answered a stranger: {answer}");
        }
    }
    let heard = house.engine.seen.lock().unwrap();
    assert!(heard.is_empty(), "an engine heard a stranger: {heard:?}");
}

/// A box with a member beside the steward; what is written down is their session.
async fn with_member() -> (House, String) {
    let house = House::open_as(Wish {
        members: |members, _| {
            let grace = members.add_member(&new_member("grace"), Role::Member).unwrap();
            let session = members.begin_session(grace.id).unwrap().1.expose().to_owned();
            SESSION.with(|kept| *kept.borrow_mut() = session);
        },
        ..Wish::default()
    })
    .await;
    (house, SESSION.with(|kept| kept.borrow().clone()))
}

thread_local! {
    static SESSION: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

#[tokio::test]
async fn a_member_reaches_no_route_of_stewards() {
    let (house, session) = with_member().await;
    let headers = |session: &str| format!("cookie: polder={session}\norigin: http://localhost");
    let mut refused = 0;
    for route in routes() {
        // These end the session that the others are tried with.
        if ["/sign-out", "/account/password", "/account/sign-out-everywhere"]
            .contains(&route.1.as_str())
        {
            continue;
        }
        let answer = ask(&house, &route, &headers(&session)).await;
        if is_for_strangers(&route) || is_for_members(&route) {
            assert!(!answer.contains("This is for stewards"), "{route:?} is no member's: {answer}");
            continue;
        }
        if route == ("GET", "/metrics".to_owned()) {
            assert_eq!(status_of(&answer), 401, "{answer}");
            continue;
        }
        assert_eq!(status_of(&answer), 403, "{route:?} answered a member: {answer}");
        assert!(answer.contains("for stewards"), "{route:?}: {answer}");
        refused += 1;
    }
    assert!(refused > 30, "{refused}");
    // The same session does open what is a member's.
    let own = ask(&house, &("GET", "/account".into()), &headers(&session)).await;
    assert_eq!(status_of(&own), 200, "{own}");
}

#[tokio::test]
async fn a_stolen_key_opens_the_api_and_no_page() {
    let house = House::open().await;
    // A steward's, which opens all that a key can.
    let key = &house.key;
    for headers in [
        format!("authorization: Bearer {key}"),
        format!("x-api-key: {key}"),
        format!("cookie: polder={key}\norigin: http://localhost"),
    ] {
        for route in routes() {
            let program =
                ["/v1/", "/tokenize", "/detokenize", "/metrics", "/auth", "/oidc/userinfo"];
            if is_for_strangers(&route) || program.iter().any(|p| route.1.starts_with(p)) {
                continue;
            }
            let answer = ask(&house, &route, &headers).await;
            assert!(leads_to_sign_in(&answer), "{route:?} took a key for a person: {answer}");
        }
    }
    let models = ask(&house, &("GET", "/v1/models".into()), &format!("x-api-key: {key}")).await;
    assert_eq!(status_of(&models), 200, "{models}");
    assert!(house.records.lock().unwrap().is_empty(), "something was changed");
}

#[tokio::test]
async fn another_sites_name_reaches_no_route() {
    let house = House::open().await;
    let session = &house.session;
    for (method, path) in routes() {
        for host in
            ["evil.example", "localhost.evil.example", "oak.local.evil.example", "192.0.2.7"]
        {
            let text = format!(
                "{method} {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncookie: polder={session}\r\norigin: http://{host}:{port}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
                port = house.port
            );
            let answer = say(house.here().await, text.as_bytes()).await;
            assert_eq!(status_of(&answer), 421, "{method} {path} at {host}: {answer}");
            assert!(!answer.contains("ada"), "{answer}");
        }
    }
}

#[tokio::test]
async fn another_sites_page_changes_nothing_and_reads_nothing() {
    let house = House::open().await;
    let session = &house.session;
    let from = [
        "origin: https://evil.example",
        "origin: null",
        "sec-fetch-site: cross-site",
        "origin: http://localhost:1\nsec-fetch-site: same-site",
    ];
    for route in routes() {
        for page in from {
            let answer = ask(&house, &route, &format!("cookie: polder={session}\n{page}")).await;
            assert!(!answer.contains("access-control-allow"), "{route:?}: {answer}");
            if route.0 != "GET" {
                assert_eq!(status_of(&answer), 403, "{route:?} from {page}: {answer}");
            }
        }
        // What a browser asks first, before it sends a key or JSON for another site's page.
        let asked = format!(
            "OPTIONS {}\norigin: https://evil.example\naccess-control-request-method: POST\naccess-control-request-headers: authorization",
            route.1
        );
        let answer = house.ask(&asked, "").await;
        assert!(!answer.contains("access-control-allow"), "{route:?}: {answer}");
    }
    let records = house.records.lock().unwrap();
    assert!(records.is_empty(), "something was changed: {records:?}");
    // Pages that are only looked at may ask an engine how it is.
    let heard = house.engine.seen.lock().unwrap();
    assert!(heard.iter().all(|(line, ..)| line.starts_with("GET ")), "{heard:?}");
}

#[tokio::test]
async fn what_a_stranger_types_cannot_write_a_line_of_its_own_into_an_answers_head() {
    let house = House::open().await;
    for path in [
        "/sign-in?next=/%0d%0aset-cookie:%20a=b",
        "/invite/%0d%0aset-cookie:%20a=b",
        "/audit?x=%0d%0aset-cookie:%20a=b",
        "/v1/%0d%0aset-cookie:%20a=b",
        "//evil.example/%2e%2e",
        "/handbook/..%2f..%2fetc%2fpasswd",
        "/handbook/%00",
    ] {
        let answer = house.ask(&format!("GET {path}"), "").await;
        let head = answer.split("\r\n\r\n").next().unwrap();
        assert!(!head.to_lowercase().contains("\r\nset-cookie: a=b"), "{path}: {head}");
        assert!(
            !head.contains("location: //") && !head.contains("location: http"),
            "{path}: {head}"
        );
        assert!(
            (300..500).contains(&status_of(&answer)) || path.starts_with("/sign-in"),
            "{path}: {answer}"
        );
    }
}

#[tokio::test]
async fn a_session_is_a_new_one_at_every_sign_in_and_an_old_one_ends_with_it_signed_out() {
    let house = House::open().await;
    let origin = "origin: http://localhost";
    let form = "content-type: application/x-www-form-urlencoded";
    let sign_in = "name=ada&password=correct+horse+battery";
    let mut seen = BTreeSet::new();
    for planted in ["", "cookie: polder=planted-by-somebody"] {
        let answer =
            house.ask(&format!("POST /sign-in\n{form}\n{origin}\n{planted}"), sign_in).await;
        let cookie = answer.lines().find_map(|l| l.strip_prefix("set-cookie: polder=")).unwrap();
        let token = cookie.split(';').next().unwrap().to_owned();
        assert_ne!(token, "planted-by-somebody");
        assert!(seen.insert(token));
    }
    let token = seen.first().unwrap();
    let with = format!("cookie: polder={token}\n{origin}");
    assert_eq!(status_of(&house.ask(&format!("GET /account\n{with}"), "").await), 200);
    house.ask(&format!("POST /sign-out\n{form}\n{with}"), "").await;
    assert!(leads_to_sign_in(&house.ask(&format!("GET /account\n{with}"), "").await));
}

/// Whoever can make the supervisor fail must not be able to do something that nobody can look up later.
#[tokio::test]
async fn what_the_audit_trail_could_not_be_told_is_told_at_the_next_start() {
    let noted = |members: &polder_members::Members, _: &polder_members::Member| {
        members.note_deed("{").unwrap();
        let deed = r#"{"by":{"member":"Ada"},"what":"made key","on":"laptop"}"#;
        members.note_deed(deed).unwrap();
    };
    let house = House::open_as(Wish { members: noted, ..Wish::default() }).await;
    let told = |records: &[String]| {
        records.iter().any(|record| {
            record.starts_with("Ada made key laptop (at 20") && record.ends_with("UTC, told later)")
        })
    };
    soon("the deed of an earlier life", || told(&house.records.lock().unwrap())).await;
}

/// While the supervisor is away, what a member does is noted, and told to nobody as if it were done.
#[tokio::test]
async fn a_key_made_while_the_supervisor_is_away_is_noted_for_the_audit_trail() {
    let house = House::open_as(Wish { supervised: false, ..Wish::default() }).await;
    let head = format!(
        "POST /keys\ncookie: polder={}\norigin: http://localhost\ncontent-type: application/x-www-form-urlencoded",
        house.session
    );
    let made = house.ask(&head, "label=laptop").await;
    assert_eq!(status_of(&made), 200, "{made}");
    let members = polder_members::Members::open(&house.folder.path().join("polder.db")).unwrap();
    let untold = members.untold_deeds().unwrap();
    assert!(untold.iter().any(|deed| deed.text.contains("made key")), "{untold:?}");
}

/// A full disk takes the key's row as the last thing, and then neither the trail's line nor the note about it.
#[tokio::test]
async fn a_deed_that_no_disk_takes_is_noted_as_soon_as_there_is_room() {
    let house = House::open_as(Wish { supervised: false, ..Wish::default() }).await;
    let path = house.folder.path().join("polder.db");
    let full = rusqlite::Connection::open(&path).unwrap();
    full.execute_batch(
        "CREATE TRIGGER full BEFORE INSERT ON deeds BEGIN SELECT RAISE(ABORT, 'full'); END",
    )
    .unwrap();
    let head = format!(
        "POST /keys\ncookie: polder={}\norigin: http://localhost\ncontent-type: application/x-www-form-urlencoded",
        house.session
    );
    assert_eq!(status_of(&house.ask(&head, "label=laptop").await), 200);
    let members = polder_members::Members::open(&path).unwrap();
    assert_eq!(members.untold_deeds().unwrap(), []);
    full.execute_batch("DROP TRIGGER full").unwrap();
    let noted = |members: &polder_members::Members| {
        members.untold_deeds().unwrap().iter().any(|deed| deed.text.contains("made key"))
    };
    soon("the deed is noted", || noted(&members)).await;
}
