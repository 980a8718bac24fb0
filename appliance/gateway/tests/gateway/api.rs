//! Keys, engines and streams.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use polder_control::{DoorReply, DoorRequest, PartState};
use polder_gateway::Limits;
use polder_members::{KeyLimits, NewKey};
use tokio::io::AsyncWriteExt;

use crate::house::{Engine, House, Wish, new_member, say, soon, status_of, until};

#[tokio::test]
async fn a_key_gets_an_answer_and_nothing_of_the_engines_own_talk() {
    let house = House::open().await;
    let answer = house.chat(r#"{"model":"small","tokens":3}"#).await;
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(answer.contains("\"tokens\":3"), "{answer}");
    assert!(answer.contains("x-polder-served-by: oak/fast\r\n"), "{answer}");
    assert!(answer.contains("x-polder-ignored: next_months_field\r\n"), "{answer}");
    for hidden in ["x-polder-prompt-tokens", "x-polder-usage", "set-cookie", "x-hop", "trailer"] {
        assert!(!answer.contains(hidden), "{hidden}: {answer}");
    }
}

#[tokio::test]
async fn the_engine_hears_whose_request_it_is_and_no_credential() {
    let house = House::open().await;
    let key = &house.key;
    let head = format!(
        "POST /v1/chat/completions?a=b\nauthorization: Bearer {key}\nx_polder_member: 99\n\
         X-Polder-Member: 99\ncookie: a=b\nx-odd: 1\nconnection: close, x-odd\nodd_name: 2\n\
         content-type: application/json"
    );
    assert_eq!(status_of(&house.ask(&head, "{}").await), 200);
    let headers = house.engine.last_headers();
    assert_eq!(headers["x-polder-member"], "1");
    assert_eq!(headers["x-polder-strict"], "0");
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers.get_all("x-polder-member").iter().count(), 1);
    for gone in ["authorization", "cookie", "x-odd", "odd_name", "x_polder_member"] {
        assert!(!headers.contains_key(gone), "{gone} was passed on");
    }
    assert_eq!(house.engine.seen.lock().unwrap()[0].0, "POST /v1/chat/completions?a=b");
}

#[tokio::test]
async fn an_engine_that_ran_while_the_door_was_closed_is_told_what_is_common_only_where_it_knows_something_else()
 {
    let told = |house: &House| house.engine.requests();
    for says_common in [200, 404] {
        let house = House::open_as(Wish { says_common, ..Wish::default() }).await;
        soon("it is asked", || house.engine.asked_common.load(Ordering::SeqCst) == 1).await;
        house.change(|now| now.site.sharing.trusting = true);
        // Each process once.
        house.change(|now| now.engines[0].part.restarts += 1);
        soon("it is asked again", || house.engine.asked_common.load(Ordering::SeqCst) == 2).await;
        assert_eq!(told(&house), 0);
        // What is new to it comes first.
        house.change(|now| drop(now.site.common.insert("Agent".into(), "Be brief.".into())));
        soon("it is told", || told(&house) == 1).await;
        assert_eq!(*house.engine.common.lock().unwrap(), "[\"Be brief.\"]");
    }
    let house = House::open_as(Wish { common: "[\"Of yesterday.\"]", ..Wish::default() }).await;
    soon("it is told", || told(&house) == 1).await;
    assert_eq!(*house.engine.common.lock().unwrap(), "[]");
    assert_eq!(house.engine.asked_common.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_engine_that_cannot_be_asked_is_told_and_one_that_fails_to_say_is_asked_again() {
    let common = "[\"Of yesterday.\"]";
    let knows = |house: &House| house.engine.common.lock().unwrap().clone();
    let asked = |house: &House| house.engine.asked_common.load(Ordering::SeqCst);
    // One of the version before.
    let house = House::open_as(Wish { common, says_common: 405, ..Wish::default() }).await;
    soon("it is told", || knows(&house) == "[]").await;
    assert_eq!((asked(&house), house.engine.requests()), (1, 1));
    // One that is not well, or says what is no list.
    for (common, says_common) in [(common, 503), ("{\"error\":\"busy\"}", 200)] {
        let house = House::open_as(Wish { common, says_common, ..Wish::default() }).await;
        soon("it is asked", || asked(&house) > 0).await;
        let before = asked(&house);
        house.change(|now| now.site.sharing.trusting = true);
        soon("it is asked again", || asked(&house) > before).await;
        assert_eq!(house.engine.requests(), 0);
        "[\"Of yesterday.\"]".clone_into(&mut house.engine.common.lock().unwrap());
        house.engine.says_common.store(200, Ordering::SeqCst);
        house.change(|now| now.site.sharing.trusting = false);
        soon("it is told", || knows(&house) == "[]").await;
        assert_eq!(house.engine.requests(), 1);
    }
}

#[tokio::test]
async fn an_engine_that_does_not_say_what_it_knows_keeps_no_other_waiting_and_is_asked_again() {
    let house = House::open().await;
    let asked = |engine: &Engine| engine.asked_common.load(Ordering::SeqCst);
    soon("the first one is asked", || asked(&house.engine) == 1).await;
    let socket = house.sockets().engine(&"slow".parse().unwrap());
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let other = Engine::start(&socket);
    "[\"Of yesterday.\"]".clone_into(&mut other.common.lock().unwrap());
    house.engine.says_common.store(0, Ordering::SeqCst);
    let begun = Instant::now();
    house.change(|now| {
        let mut slow = now.engines[0].clone();
        slow.name = "slow".parse().unwrap();
        slow.socket = socket;
        now.engines.push(slow);
        now.engines[0].part.restarts += 1;
    });
    soon("the other one is told", || *other.common.lock().unwrap() == "[]").await;
    assert!(begun.elapsed() < Duration::from_secs(3));
    soon("the first one is asked too", || asked(&house.engine) == 2).await;
    house.change(|now| now.site.sharing.trusting = true);
    tokio::time::sleep(Duration::from_secs(3)).await;
    soon("the first one is asked again", || asked(&house.engine) == 3).await;
    assert_eq!(asked(&other), 1);
}

#[tokio::test]
async fn engines_are_told_the_common_instructions_when_they_start_and_when_these_change() {
    let house = House::open().await;
    let told = |house: &House| {
        let seen = house.engine.seen.lock().unwrap();
        seen.iter()
            .filter(|(line, ..)| line == "PUT /beginnings")
            .map(|seen| seen.2.clone())
            .collect::<Vec<_>>()
    };
    // Nothing is common, and the engine knows that.
    house.chat("{}").await;
    assert!(told(&house).is_empty());
    house.change(|now| drop(now.site.common.insert("Agent".into(), "Be brief.".into())));
    soon("the engine is told", || told(&house) == ["[\"Be brief.\"]"]).await;
    // It is told again when it starts again, and not for whatever else changes.
    house.change(|now| now.site.sharing.trusting = true);
    "[]".clone_into(&mut house.engine.common.lock().unwrap());
    house.change(|now| now.engines[0].part.restarts += 1);
    soon("the next one too", || told(&house).len() == 2).await;
    house.change(|now| now.site.common.clear());
    soon("nothing is common any more", || told(&house).last().unwrap() == "[]").await;
    assert_eq!(told(&house).len(), 3);
}

#[tokio::test]
async fn a_steward_gives_a_member_another_share_and_the_engine_hears_of_it_with_the_next_question()
{
    let house = House::open().await;
    house.chat("{}").await;
    let headers = house.engine.last_headers();
    assert_eq!(headers["x-polder-weight"], "100");
    assert!(!headers.contains_key("x-polder-most-running"));
    assert_eq!(headers["x-polder-background"], "0");
    let head = format!(
        "POST /members/1/share\ncookie: polder={}\norigin: http://localhost\n\
         content-type: application/x-www-form-urlencoded",
        house.session
    );
    for (form, status) in [
        ("percent=5&at_once=", 400),
        ("percent=200&at_once=0", 400),
        ("percent=much&at_once=", 400),
        ("percent=200&at_once=70000", 400),
        ("percent=200&at_once=2", 303),
    ] {
        assert_eq!(status_of(&house.ask(&head, form).await), status, "{form}");
    }
    // The key is the same one: nobody has to make a new one.
    house.chat("{}").await;
    let headers = house.engine.last_headers();
    assert_eq!(
        (&headers["x-polder-weight"], &headers["x-polder-most-running"]),
        (&"200".parse().unwrap(), &"2".parse().unwrap(),)
    );
}

#[tokio::test]
async fn what_is_asked_with_a_key_for_the_background_says_so() {
    let house = House::open().await;
    let head = format!(
        "POST /keys\ncookie: polder={}\norigin: http://localhost\n\
         content-type: application/x-www-form-urlencoded",
        house.session
    );
    let page = house.ask(&head, "label=night&background=yes").await;
    let key = page.split("plk_").nth(1).unwrap().split(['<', '"', ' ']).next().unwrap();
    let chat = format!("POST /v1/chat/completions\nx-api-key: plk_{key}");
    assert_eq!(status_of(&house.ask(&chat, "{}").await), 200);
    assert_eq!(house.engine.last_headers()["x-polder-background"], "1");
}

#[tokio::test]
async fn the_engine_hears_that_members_trust_each_other_only_where_the_site_says_so() {
    let mut house = House::open().await;
    let chat = format!("POST /v1/chat/completions\nx-api-key: {}\nx-polder-trusting: 1", house.key);
    house.ask(&chat, "{}").await;
    assert_eq!(house.engine.last_headers()["x-polder-trusting"], "0");
    house.site.sharing.trusting = true;
    house.say(PartState::Ready);
    tokio::time::sleep(Duration::from_millis(100)).await;
    house.ask(&chat, "{}").await;
    assert_eq!(house.engine.last_headers()["x-polder-trusting"], "1");
}

#[tokio::test]
async fn without_a_good_key_there_is_one_clear_sentence() {
    let house = House::open().await;
    let none = house.ask("POST /v1/chat/completions", "{}").await;
    assert_eq!(status_of(&none), 401);
    assert!(none.contains("www-authenticate: Bearer"), "{none}");
    assert!(none.contains("\"missing_api_key\"") && none.contains("\"message\":"), "{none}");
    let bad = house.ask("GET /v1/models\nx-api-key: plk_nobody_nothing", "").await;
    assert_eq!(status_of(&bad), 401);
    assert!(bad.contains("invalid_api_key"), "{bad}");
    assert_eq!(house.engine.requests(), 0);
}

#[tokio::test]
async fn models_are_told_from_what_the_box_runs() {
    let house = House::open().await;
    let key = &house.key;
    let list = house.ask(&format!("GET /v1/models\nx-api-key: {key}"), "").await;
    assert!(list.contains(r#"{"object":"list","data":[{"id":"small","object":"model""#), "{list}");
    let one = house.ask(&format!("GET /v1/models/small\nx-api-key: {key}"), "").await;
    assert_eq!(status_of(&one), 200);
    let other = house.ask(&format!("GET /v1/models/gpt-4o\nx-api-key: {key}"), "").await;
    assert_eq!(status_of(&other), 404);
    assert!(other.contains("model_not_found") && other.contains("it serves small"), "{other}");
}

#[tokio::test]
async fn a_model_may_be_called_by_its_slot() {
    let house = House::open().await;
    let answer = house.chat(r#"{"model":"fast","tokens":1}"#).await;
    assert_eq!(status_of(&answer), 200, "{answer}");
    let asked = house.engine.seen.lock().unwrap()[0].2.clone();
    assert_eq!(asked, r#"{"model":"small","tokens":1}"#);
}

#[tokio::test]
async fn tokens_come_through_one_by_one() {
    let house = House::open().await;
    let mut stream = house.here().await;
    let body = r#"{"stream":true,"tokens":3,"pause_ms":300}"#;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\ncontent-length: {}\r\n\r\n",
        house.key,
        body.len()
    );
    stream.write_all((head + body).as_bytes()).await.unwrap();
    let begun = Instant::now();
    let first = until(&mut stream, "{\"n\":0").await;
    assert!(begun.elapsed() < Duration::from_millis(280), "the first token waited");
    assert!(!first.contains("{\"n\":1"));
    let rest = until(&mut stream, "[DONE]").await;
    assert!(rest.contains("{\"n\":2"));
    // The connection is good for another question.
    let again = say(
        stream,
        format!(
            "GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\nconnection: close\r\n\r\n",
            house.key
        )
        .as_bytes(),
    )
    .await;
    assert!(again.contains("200 OK") && !again.contains("x-polder-usage"), "{again}");
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_work() {
    let house = House::open().await;
    for streams in [true, false] {
        let mut stream = house.here().await;
        let body = match streams {
            true => r#"{"stream":true,"tokens":10000,"pause_ms":20}"#,
            false => r#"{"think_ms":60000}"#,
        };
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\ncontent-length: {}\r\n\r\n{body}",
            house.key,
            body.len()
        );
        let before = house.engine.begun.load(Ordering::SeqCst);
        stream.write_all(head.as_bytes()).await.unwrap();
        soon("the work began", || house.engine.begun.load(Ordering::SeqCst) > before).await;
        if streams {
            until(&mut stream, "{\"n\":2").await;
            drop(stream);
            soon("the stream was dropped", || house.engine.dropped.load(Ordering::SeqCst) == 1)
                .await;
        }
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_makes_the_engine_wait() {
    let house =
        House::open_with(Limits { stall: Duration::from_secs(2), ..Limits::default() }).await;
    let mut stream = house.here().await;
    let body = r#"{"stream":true,"tokens":100000,"fat":20000}"#;
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\ncontent-length: {}\r\n\r\n{body}",
        house.key,
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The kernel takes a few megabytes for its own; then nothing more may be pulled.
    let (mut written, mut still) = (0, 0);
    while still < 5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = house.engine.written.load(Ordering::SeqCst);
        still = if now == written && now > 0 { still + 1 } else { 0 };
        written = now;
        assert!(written < 2000, "{written} pieces of 20 kB were taken for nobody");
    }
    soon("the work was given up", || house.engine.dropped.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_revoked_key_ends_its_streams_at_once() {
    let house = House::open().await;
    let DoorReply::Key(key) = house.console(DoorRequest::UpKey).await else { panic!("no key") };
    let mut stream = house.here().await;
    let body = r#"{"stream":true,"tokens":10000,"pause_ms":20}"#;
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    until(&mut stream, "{\"n\":2").await;
    // Minting the next one revokes its predecessor.
    let DoorReply::Key(next) = house.console(DoorRequest::UpKey).await else { panic!("no key") };
    assert_ne!(key, next);
    let end = until(&mut stream, "\r\n0\r\n\r\n").await;
    assert!(end.contains("data: {\"error\":") && end.contains("key_revoked"), "{end}");
    soon("the engine stopped", || house.engine.dropped.load(Ordering::SeqCst) == 1).await;
    let refused = house.ask(&format!("GET /v1/models\nx-api-key: {key}"), "").await;
    assert_eq!(status_of(&refused), 401);
    assert_eq!(status_of(&house.ask(&format!("GET /v1/models\nx-api-key: {next}"), "").await), 200);
}

#[tokio::test]
async fn an_engine_that_dies_mid_stream_ends_it_with_a_clear_error() {
    let house = House::open().await;
    let answer = house.chat(r#"{"stream":true,"tokens":9,"pause_ms":5,"break_after":3}"#).await;
    assert!(answer.contains("{\"n\":2"), "{answer}");
    assert!(answer.contains("data: {\"error\":{\"message\":\"the engine stopped"), "{answer}");
    assert!(!answer.contains("[DONE]") && answer.ends_with("0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn anthropics_clients_are_answered_and_refused_in_their_own_words() {
    let house = House::open().await;
    let key = &house.key;
    let head = format!("POST /v1/messages/count_tokens\nx-api-key: {key}\nanthropic-version: 1");
    let answer = house.ask(&head, r#"{"model":"small","tokens":3}"#).await;
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert_eq!(house.engine.last_headers()["anthropic-version"], "1");
    assert_eq!(house.engine.seen.lock().unwrap()[0].0, "POST /v1/messages/count_tokens");

    let nobody = house.ask("POST /v1/messages", r#"{"model":"small"}"#).await;
    assert_eq!(status_of(&nobody), 401);
    let has = |answer: &str, kind: &str| {
        let body = answer.split("\r\n\r\n").nth(1).unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        (body["type"].clone(), body["error"]["type"].clone()) == ("error".into(), kind.into())
    };
    assert!(has(&nobody, "authentication_error"), "{nobody}");
    let other =
        house.ask(&format!("POST /v1/messages\nx-api-key: {key}"), r#"{"model":"claude"}"#).await;
    assert_eq!(status_of(&other), 404);
    assert!(has(&other, "not_found_error"), "{other}");

    let body = r#"{"stream":true,"tokens":9,"pause_ms":5,"break_after":3}"#;
    let broken = house.ask(&format!("POST /v1/messages\nx-api-key: {key}"), body).await;
    let last = broken.split("event: error\n").nth(1).unwrap();
    assert!(last.starts_with("data: {") && last.contains("\"api_error\""), "{broken}");
    assert!(last.contains("the engine stopped"), "{broken}");
}

#[tokio::test]
async fn a_request_waits_while_the_engine_restarts() {
    let house = House::open().await;
    house.engine.kill();
    house.say(PartState::Waiting { retry_ms: 300, why: "it was killed".to_owned() });
    let (answer, ()) = tokio::join!(house.chat(r#"{"tokens":1}"#), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(house.engine.requests(), 0);
        house.engine.resume();
        house.say(PartState::Ready);
    });
    assert_eq!(status_of(&answer), 200, "{answer}");
}

#[tokio::test]
async fn a_request_waits_for_an_engine_that_is_ready_but_not_quite() {
    let house = House::open().await;
    house.engine.kill();
    let (answer, ()) = tokio::join!(house.chat(r#"{"tokens":1}"#), async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        house.engine.resume();
    });
    assert_eq!(status_of(&answer), 200, "{answer}");
}

#[tokio::test]
async fn patience_ends_with_a_503_that_says_when_to_come_back() {
    let limits = Limits { patience: Duration::from_millis(300), ..Limits::default() };
    let house = House::open_with(limits).await;
    house.say(PartState::Starting);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let answer = house.chat("{}").await;
    assert_eq!(status_of(&answer), 503);
    assert!(
        answer.contains("retry-after: 10\r\n") && answer.contains("still starting"),
        "{answer}"
    );
    house.say(PartState::GaveUp("it died five times in a minute.".to_owned()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let begun = Instant::now();
    let answer = house.chat("{}").await;
    assert_eq!(status_of(&answer), 503);
    assert!(begun.elapsed() < Duration::from_millis(250), "nothing to wait for");
    assert!(answer.contains("(it died five times in a minute)"), "{answer}");
}

#[tokio::test]
async fn the_door_works_while_the_supervisor_is_away() {
    let limits = Limits { patience: Duration::from_millis(300), ..Limits::default() };
    let house = House::open_as(Wish { limits, supervised: false, ..Wish::default() }).await;
    assert_eq!(status_of(&house.chat("{}").await), 200, "the engine itself is asked");
    house.engine.kill();
    assert_eq!(status_of(&house.chat("{}").await), 503);
}

#[tokio::test]
async fn a_supervisor_that_comes_back_is_followed_again() {
    let mut house = House::open().await;
    house.lose_supervisor().await;
    assert_eq!(status_of(&house.chat("{}").await), 200, "engines go on without it");
    house.site.door.names = vec!["new.example.org".to_owned()];
    house.say(PartState::Ready);
    let text = b"GET / HTTP/1.1\r\nhost: new.example.org\r\n\r\n";
    assert_eq!(status_of(&say(house.here().await, text).await), 421, "nobody told the door");
    house.start_supervisor();
    for _ in 0..200 {
        if status_of(&say(house.here().await, text).await) == 308 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the new name never came");
}

#[tokio::test]
async fn odd_bodies_are_refused_before_any_engine_sees_them() {
    let house = House::open().await;
    for body in ["[1]", "{\"model\":7}", "{\"model\":\"a\",\"model\":\"b\"}", "not json", "{} x"] {
        let answer = house.chat(body).await;
        assert_eq!(status_of(&answer), 400, "{body}: {answer}");
        assert!(answer.contains("invalid_json"), "{answer}");
    }
    assert_eq!(house.engine.requests(), 0);
}

#[tokio::test]
async fn quotas_are_kept_and_told() {
    // The key's text comes out of there through a file.
    fn limited(members: &polder_members::Members, steward: &polder_members::Member) {
        let limits = KeyLimits { requests_per_minute: Some(2), ..KeyLimits::default() };
        let key = members.mint_key(steward.id, &NewKey { limits, ..NewKey::default() }).unwrap();
        std::fs::write(members.path().with_file_name("limited"), key.key.expose()).unwrap();
    }
    let house = House::open_as(Wish { members: limited, ..Wish::default() }).await;
    let key = std::fs::read_to_string(house.folder.path().join("limited")).unwrap();
    let head = format!("POST /v1/completions\nauthorization: Bearer {key}");
    assert_eq!(status_of(&house.ask(&head, "{}").await), 200);
    assert_eq!(status_of(&house.ask(&head, "{}").await), 200);
    let refused = house.ask(&head, "{}").await;
    assert_eq!(status_of(&refused), 429);
    assert!(
        refused.contains("retry-after: ") && refused.contains("rate_limit_exceeded"),
        "{refused}"
    );
    assert_eq!(house.engine.requests(), 2);
    // A key without the scope for other apps does not open them.
    let auth = house.ask(&format!("GET /auth\nauthorization: Bearer {key}"), "").await;
    assert_eq!(status_of(&auth), 403);
}

#[tokio::test]
async fn what_was_used_is_counted_however_the_answer_ended() {
    let mut house = House::open().await;
    house.site.usage.per_member = true;
    house.say(PartState::Ready);
    tokio::time::sleep(Duration::from_millis(100)).await;
    // To its end (7 + 5), and broken after 3 of 9 (7 + 3).
    house.chat(r#"{"stream":true,"tokens":5}"#).await;
    house.chat(r#"{"stream":true,"tokens":9,"break_after":3}"#).await;
    house.stop();
    soon("the door closed", || house.gateway.is_finished()).await;
    let members = polder_members::Members::open(&house.folder.path().join("polder.db")).unwrap();
    let used = members.usage_of_all(2).unwrap();
    assert_eq!(used.len(), 1, "{used:?}");
    assert_eq!((used[0].requests, used[0].prompt, used[0].completion), (2, 14, 8));
    assert_eq!(used[0].model, "small");
}

#[tokio::test]
async fn a_question_whose_client_leaves_before_the_answer_is_counted() {
    let mut house = House::open().await;
    house.site.usage.per_member = true;
    house.say(PartState::Ready);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let body =
        r#"{"think_ms":60000,"tokens":1,"filling":"0123456789012345678901234567890123456789"}"#;
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\ncontent-length: {}\r\n\r\n{body}",
        house.key,
        body.len()
    );
    let mut stream = house.here().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    soon("the work began", || house.engine.begun.load(Ordering::SeqCst) == 1).await;
    drop(stream);
    house.stop();
    soon("the door closed", || house.gateway.is_finished()).await;
    let members = polder_members::Members::open(&house.folder.path().join("polder.db")).unwrap();
    let used = members.usage_of_all(2).unwrap();
    assert_eq!(used.len(), 1, "{used:?}");
    let expected = (1, body.len() as u64 / 4, 0);
    assert_eq!((used[0].requests, used[0].prompt, used[0].completion), expected);
}

#[tokio::test]
async fn a_key_that_expires_ends_its_streams() {
    fn short_lived(members: &polder_members::Members, steward: &polder_members::Member) {
        let expires_in = Some(Duration::from_secs(3));
        let new = NewKey { expires_in, ..NewKey::default() };
        let key = members.mint_key(steward.id, &new).unwrap();
        std::fs::write(members.path().with_file_name("short"), key.key.expose()).unwrap();
    }
    let house = House::open_as(Wish { members: short_lived, ..Wish::default() }).await;
    let key = std::fs::read_to_string(house.folder.path().join("short")).unwrap();
    // The engine says nothing more after its first word: the end must not wait for the second.
    let body = r#"{"stream":true,"tokens":9,"pause_ms":60000}"#;
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = house.here().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    until(&mut stream, "{\"n\":0").await;
    let end = until(&mut stream, "\r\n0\r\n\r\n").await;
    assert!(end.contains("key_expired"), "{end}");
    soon("the engine stopped", || house.engine.dropped.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_long_question_to_a_slot_arrives_whole_under_the_models_name() {
    let house = House::open().await;
    let filling = "x".repeat(1 << 20);
    let answer =
        house.chat(&format!(r#"{{"model":"fast","tokens":1,"filling":"{filling}"}}"#)).await;
    assert_eq!(status_of(&answer), 200);
    let seen = house.engine.seen.lock().unwrap();
    assert_eq!(seen[0].2, format!(r#"{{"model":"small","tokens":1,"filling":"{filling}"}}"#));
}

#[tokio::test]
async fn connections_to_an_engine_are_kept_and_a_dead_one_is_noticed() {
    // Each thread keeps its own.
    let house = House::open_with(Limits { threads: 1, ..Limits::default() }).await;
    let asked = || house.engine.asked_common.load(Ordering::SeqCst) == 1;
    soon("the engine is asked what is common, by a thread that answers nobody", asked).await;
    let connections = || house.engine.connections.load(Ordering::SeqCst) - 1;
    for _ in 0..5 {
        assert_eq!(status_of(&house.chat(r#"{"tokens":1}"#).await), 200);
        assert_eq!(status_of(&house.chat(r#"{"stream":true,"tokens":3}"#).await), 200);
    }
    assert_eq!(connections(), 1);
    house.engine.kill();
    house.engine.resume();
    let begun = Instant::now();
    assert_eq!(status_of(&house.chat(r#"{"tokens":1}"#).await), 200);
    assert!(begun.elapsed() < Duration::from_millis(200), "no second try was needed");
    assert_eq!(connections(), 2);
}

#[tokio::test]
async fn figures_are_for_stewards_and_health_says_nothing() {
    fn with_bob(members: &polder_members::Members, _: &polder_members::Member) {
        let bob = members.add_member(&new_member("bob"), polder_members::Role::Member).unwrap();
        let key = members.mint_key(bob.id, &NewKey::default()).unwrap();
        std::fs::write(members.path().with_file_name("bob"), key.key.expose()).unwrap();
    }
    let house = House::open_as(Wish { members: with_bob, ..Wish::default() }).await;
    let bob = std::fs::read_to_string(house.folder.path().join("bob")).unwrap();
    assert_eq!(status_of(&house.ask("GET /metrics", "").await), 401);
    assert_eq!(status_of(&house.ask(&format!("GET /metrics\nx-api-key: {bob}"), "").await), 403);
    let mine = house.ask(&format!("GET /metrics\nx-api-key: {}", house.key), "").await;
    assert!(mine.contains("polder_gateway_connections "), "{mine}");
    let health = house.ask("GET /health", "").await;
    assert!(health.ends_with("{\"status\":\"ok\"}"), "{health}");
}

#[tokio::test]
async fn the_console_opens_claims_and_the_trail_hears_of_it() {
    let house = House::open().await;
    let DoorReply::Ready { ca_file, fingerprint, claimed, .. } =
        house.console(DoorRequest::Ready).await
    else {
        panic!("not ready")
    };
    assert_eq!(ca_file, house.ca_file());
    assert!(claimed && fingerprint.len() == 95);
    assert!(matches!(house.console(DoorRequest::OpenClaim).await, DoorReply::Claimed));
    let DoorReply::Claim(claim) = house.console(DoorRequest::ReopenSetup).await else {
        panic!("no code")
    };
    assert_eq!(claim.seconds, 1800);
    assert_eq!(
        house.records.lock().unwrap().as_slice(),
        ["somebody at the console reopened the set-up the box"]
    );
}

#[tokio::test]
async fn a_member_is_forgotten_by_every_engine_also_by_one_that_comes_back_later() {
    let house = House::open().await;
    let forget =
        format!("POST /account/forget\ncookie: polder={}\norigin: http://localhost", house.session);
    let told = || {
        let seen = house.engine.seen.lock().unwrap();
        let told = seen.iter().filter(|(line, _, _)| line == "DELETE /kv");
        told.map(|(_, headers, _)| headers["x-polder-member"].to_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let answer = house.ask(&forget, "").await;
    assert_eq!(status_of(&answer), 303, "{answer}");
    assert!(answer.contains("location: /account?said=conversations\r\n"), "{answer}");
    assert_eq!(told(), ["1"]);
    soon("the audit trail has it", || {
        house.records.lock().unwrap().iter().any(|record| record.contains("had the models forget"))
    })
    .await;

    house.engine.kill();
    house.say(PartState::Starting);
    let answer = house.ask(&forget, "").await;
    assert!(answer.contains("location: /account?said=conversations-soon\r\n"), "{answer}");
    assert_eq!(told().len(), 1);
    house.engine.resume();
    house.say(PartState::Ready);
    soon("the engine hears of it", || told().len() == 2).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    house.say(PartState::Ready);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(told(), ["1", "1"], "once is enough");
}
