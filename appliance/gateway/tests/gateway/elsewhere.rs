//! Questions that this box cannot answer, and the servers elsewhere that can: a pretended one of a company, and another Polder box.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use polder_control::{PartState, SecretText};
use polder_members::{Member, Members, NewKey, Role, SpentElsewhere};
use polder_site::{UpstreamKind, UpstreamModel, UpstreamName, UpstreamServer};
use polder_upstream::{Holder, Secrets, fetch_authority};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::house::{House, Wish, new_member, say, soon, status_of, until};

mod late;
mod passed_on;

const KEY: &str = "sk-of-the-collective";

/// Pretends to be a company's server. The question says what it shall do.
struct Cloud {
    port: u16,
    seen: Mutex<Vec<(String, HeaderMap, serde_json::Value)>>,
    dropped: AtomicUsize,
    task: JoinHandle<()>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct Play {
    tokens: u64,
    pause_ms: u64,
    stream: bool,
    /// Breaks off after so many.
    break_after: Option<u64>,
    /// Refuses with this, repeating the key.
    cloud_status: Option<u16>,
    /// Knows the limit of an answer by its newer name only.
    newer: bool,
    max_tokens: Option<u64>,
}

impl Cloud {
    async fn open() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Arc::new_cyclic(|weak: &std::sync::Weak<Self>| {
            let weak = weak.clone();
            let task = tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let weak = weak.clone();
                    tokio::spawn(async move {
                        let service = service_fn(move |request| {
                            let cloud = weak.upgrade().unwrap();
                            async move { cloud.answer(request).await }
                        });
                        let _ = hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    });
                }
            });
            Self { port, seen: Mutex::default(), dropped: AtomicUsize::new(0), task }
        })
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<StreamBody<tokio_stream::wrappers::ReceiverStream<Piece>>>, Infallible>
    {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let play: Play = serde_json::from_value(value.clone()).unwrap_or_default();
        let line = format!("{} {}", parts.method, parts.uri);
        self.seen.lock().unwrap().push((line, parts.headers, value));
        let (sender, receiver) = tokio::sync::mpsc::channel::<Piece>(1);
        let kind = if play.stream { "text/event-stream" } else { "application/json" };
        let mut play = play;
        if play.newer && play.max_tokens.is_some() {
            play.cloud_status = Some(400);
        }
        let response = Response::builder()
            .status(play.cloud_status.unwrap_or(200))
            .header("content-type", kind)
            .header("set-cookie", "cloud=1")
            .header("x-request-id", "of-the-cloud")
            .header("server", "cloud/1");
        tokio::spawn(async move {
            if self.play(&play, &sender).await.is_none() {
                self.dropped.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(response.body(StreamBody::new(receiver.into())).unwrap())
    }

    async fn play(&self, play: &Play, sender: &tokio::sync::mpsc::Sender<Piece>) -> Option<()> {
        let say = async |text: String| sender.send(Ok(Frame::data(Bytes::from(text)))).await.ok();
        let usage = format!("{{\"prompt_tokens\":1000,\"completion_tokens\":{}}}", play.tokens);
        if play.newer && play.cloud_status == Some(400) {
            return say("{\"error\":{\"message\":\"use max_completion_tokens\"}}".to_owned()).await;
        }
        if play.cloud_status.is_some() {
            return say(format!("{{\"error\":{{\"message\":\"no: {KEY} is bad\"}}}}")).await;
        }
        if !play.stream {
            return say(format!("{{\"object\":\"answer\",\"usage\":{usage}}}")).await;
        }
        for n in 0..play.tokens {
            if play.break_after == Some(n) {
                let _ = sender.send(Err(std::io::ErrorKind::BrokenPipe.into())).await;
                return Some(());
            }
            say(format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{n}\"}}}}]}}\n\n"))
                .await?;
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(play.pause_ms)) => {}
                () = sender.closed() => return None,
            }
        }
        say(format!("data: {{\"choices\":[],\"usage\":{usage}}}\n\n")).await?;
        say("data: [DONE]\n\n".to_owned()).await
    }

    fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// As the site names it: a million tokens read cost one, written two, so that a question of a thousand costs at most some thousandths.
    fn as_upstream(&self) -> UpstreamServer {
        let amount = |text: &str| text.parse().unwrap();
        let model = UpstreamModel {
            called: "vendor/small".into(),
            input: amount("1"),
            output: amount("2"),
            cached: None,
            written: None,
            longest: None,
        };
        UpstreamServer {
            kind: UpstreamKind::Cloud,
            url: format!("http://127.0.0.1:{}/v1", self.port).parse().unwrap(),
            authority: None,
            budget: amount("1"),
            currency: Default::default(),
            when_down: true,
            when_full: true,
            full_at: None,
            models: [("small".parse().unwrap(), model)].into(),
        }
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Piece = Result<Frame<Bytes>, std::io::Error>;

fn cloud() -> UpstreamName {
    "cloud".parse().unwrap()
}

/// A box that may ask this server.
async fn house_with(server: UpstreamServer) -> House {
    house_as(server, Wish::default()).await
}

async fn house_as(server: UpstreamServer, wish: Wish) -> House {
    let mut house = House::open_as(wish).await;
    Secrets::of(house.folder.path())
        .keep(Holder::Upstream(&cloud()), &SecretText::new(KEY))
        .unwrap();
    house.site.upstreams.insert(cloud(), server);
    house.heard(PartState::Ready).await;
    house
}

impl House {
    /// What was spent at the cloud, in millionths, and by how many requests, as it is on the disk.
    fn spent(&self) -> (u64, u64) {
        let rows = SpentElsewhere::read(&self.folder.path().join("polder.db"), 1).unwrap();
        rows.iter().fold((0, 0), |(cost, requests), row| (cost + row.cost, requests + row.requests))
    }

    /// The engine is so, and the site as it is here; and the door has heard of it.
    async fn heard(&mut self, state: PartState) {
        let mark = format!("mark-{}.example.org", self.site.door.names.len());
        self.site.door.names.push(mark.clone());
        self.say(state);
        let asked = format!("GET /health HTTP/1.1\r\nhost: {mark}\r\nconnection: close\r\n\r\n");
        for _ in 0..2000 {
            // A name that it answers to is sent on to TLS.
            if status_of(&say(self.here().await, asked.as_bytes()).await) == 308 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the door does not hear what the supervisor says");
    }
}

async fn until_spent(house: &House) -> (u64, u64) {
    soon("the books are written", || house.spent().1 > 0).await;
    house.spent()
}

#[tokio::test]
async fn every_answer_says_who_gave_it_and_the_box_answers_as_long_as_it_can() {
    let cloud = Cloud::open().await;
    let house = house_with(cloud.as_upstream()).await;
    let here = house.chat("{\"model\":\"small\",\"tokens\":1}").await;
    assert!(here.contains("x-polder-served-by: oak/fast\r\n"), "{here}");
    let unknown = house.chat("{\"model\":\"none\"}").await;
    assert!(unknown.contains("x-polder-served-by: oak\r\n"), "{unknown}");
    let models =
        house.ask(&format!("GET /v1/models\nauthorization: Bearer {}", house.key), "").await;
    assert!(models.contains("x-polder-served-by: oak\r\n"), "{models}");
    let stranger = house.ask("GET /v1/models", "").await;
    assert!(status_of(&stranger) == 401 && stranger.contains("x-polder-served-by: oak\r\n"));
    assert_eq!(cloud.requests(), 0);
}

#[tokio::test]
async fn a_box_that_is_down_asks_elsewhere_in_its_own_name_and_counts_what_it_cost() {
    let cloud = Cloud::open().await;
    let mut house = house_with(cloud.as_upstream()).await;
    house.heard(PartState::Stopped).await;
    let key = &house.key;
    let head = format!(
        "POST /v1/chat/completions\nauthorization: Bearer {key}\ncookie: a=b\nx-stainless-os: Linux\nanthropic-version: 1\nuser-agent: agent/1"
    );
    let answer = house.ask(&head, "{\"model\":\"fast\",\"tokens\":500,\"max_tokens\":500}").await;
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(
        answer.contains("x-polder-served-by: cloud\r\n")
            && answer.contains("\"object\":\"answer\""),
        "{answer}"
    );
    for gone in ["set-cookie", "server: cloud", KEY] {
        assert!(!answer.contains(gone), "{gone}: {answer}");
    }
    assert!(answer.contains("x-request-id: of-the-cloud"));
    {
        let seen = cloud.seen.lock().unwrap();
        let (line, headers, body) = seen.last().unwrap();
        assert_eq!(line, "POST /v1/chat/completions");
        assert_eq!(
            (body["model"].as_str(), body["max_tokens"].as_u64()),
            (Some("vendor/small"), Some(500))
        );
        let mut names: Vec<&str> = headers.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "accept",
                "anthropic-version",
                "authorization",
                "content-length",
                "content-type",
                "host",
                "polder-elsewhere",
                "user-agent"
            ]
        );
        assert_eq!(headers["authorization"], format!("Bearer {KEY}"));
        assert_eq!(headers["user-agent"], "polder");
    }
    // A thousand read for a thousandth, five hundred written for another.
    assert_eq!(until_spent(&house).await, (2000, 1));
    assert_eq!(house.engine.requests(), 0);
}

#[tokio::test]
async fn a_stream_from_elsewhere_passes_token_by_token_and_says_what_it_used_only_to_whoever_asked()
{
    let cloud = Cloud::open().await;
    let mut house = house_with(cloud.as_upstream()).await;
    house.heard(PartState::Stopped).await;
    let body = "{\"model\":\"small\",\"stream\":true,\"tokens\":3}";
    let answer = house.chat(body).await;
    assert!(answer.contains("\"content\":\"2\"") && answer.contains("data: [DONE]"), "{answer}");
    assert!(!answer.contains("usage"), "{answer}");
    assert!(answer.contains("content-type: text/event-stream"));
    let asked = "{\"model\":\"small\",\"stream\":true,\"tokens\":3,\"stream_options\":{\"include_usage\":true}}";
    assert!(house.chat(asked).await.contains("\"completion_tokens\":3"));
    assert_eq!(cloud.seen.lock().unwrap()[0].2["stream_options"]["include_usage"], true);
    soon("both are in the books", || house.spent() == (2 * 1006, 2)).await;
}

#[tokio::test]
async fn a_stream_that_is_cut_is_counted_once_and_its_server_stops_working() {
    let cloud = Cloud::open().await;
    let mut house = house_with(cloud.as_upstream()).await;
    house.heard(PartState::Stopped).await;
    let body = "{\"model\":\"small\",\"stream\":true,\"tokens\":1000,\"pause_ms\":20}";
    let text = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}",
        house.key,
        body.len()
    );
    let mut stream = house.here().await;
    tokio::io::AsyncWriteExt::write_all(&mut stream, text.as_bytes()).await.unwrap();
    until(&mut stream, "\"content\":\"2\"").await;
    drop(stream);
    soon("its server is let go", || cloud.dropped.load(Ordering::SeqCst) == 1).await;
    let (cost, requests) = until_spent(&house).await;
    // Some seventy bytes of a question, and as many tokens as events went through.
    assert!(requests == 1 && (3..1000).contains(&cost), "{cost}");

    let broken = "{\"model\":\"small\",\"stream\":true,\"tokens\":9,\"break_after\":2}";
    let answer = house.chat(broken).await;
    assert!(answer.contains("elsewhere_stopped") && !answer.contains("[DONE]"), "{answer}");
    soon("it is counted too", || house.spent().1 == 2).await;
}

#[tokio::test]
async fn a_budget_is_never_gone_beyond_by_many_at_once_and_when_it_is_used_up_that_is_said() {
    let cloud = Cloud::open().await;
    let mut server = cloud.as_upstream();
    // A question of this kind may cost up to a little over 3000 (a byte a token, and 1024 for what a server puts around it) and a quarter more,
    // should it be kept there, and costs 1000 + 2 × 1.
    server.budget = "0.0042".parse().unwrap();
    let mut house = house_with(server).await;
    house.heard(PartState::Stopped).await;
    let body = format!(
        "{{\"model\":\"small\",\"tokens\":1,\"max_tokens\":1,\"pad\":\"{}\"}}",
        "x".repeat(2000)
    );
    let asked = (0..8).map(|_| house.chat(&body));
    let answers = futures_util::future::join_all(asked).await;
    let well = answers.iter().filter(|answer| status_of(answer) == 200).count();
    assert_eq!(well, 1, "there is room for one at a time, and for none when that is paid");
    // What costs less may still be answered; what does not fit hears why.
    let refused = house.chat(&body).await;
    assert_eq!(status_of(&refused), 503, "{refused}");
    assert!(
        refused.contains("this month's budget") && refused.contains("retry-after"),
        "{refused}"
    );
    soon("all are in the books", || house.spent().1 == well as u64).await;
    assert!(house.spent().0 <= 3500, "{:?}", house.spent());
}

#[tokio::test]
async fn a_member_and_a_key_can_say_that_nothing_leaves_the_box() {
    static KEYS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    fn members(members: &Members, _: &Member) {
        let bob = members.add_member(&new_member("bob"), Role::Member).unwrap();
        let plain = members.mint_key(bob.id, &NewKey::default()).unwrap();
        let stays = NewKey { stays_here: true, ..NewKey::default() };
        let stays = members.mint_key(bob.id, &stays).unwrap();
        let carol = members.add_member(&new_member("carol"), Role::Member).unwrap();
        let carols = members.mint_key(carol.id, &NewKey::default()).unwrap();
        members.set_stays_here(carol.id, true).unwrap();
        *KEYS.lock().unwrap() = [plain, stays, carols].map(|k| k.key.expose().to_owned()).into();
    }
    let cloud = Cloud::open().await;
    let mut house = house_as(cloud.as_upstream(), Wish { members, ..Wish::default() }).await;
    house.heard(PartState::Stopped).await;
    let keys = KEYS.lock().unwrap().clone();
    let ask = async |key: &str| {
        let head = format!("POST /v1/chat/completions\nauthorization: Bearer {key}");
        house.ask(&head, "{\"model\":\"small\",\"tokens\":1}").await
    };
    assert_eq!(status_of(&ask(&keys[0]).await), 200);
    for stays in &keys[1..] {
        let answer = ask(stays).await;
        assert_eq!(status_of(&answer), 503, "{answer}");
        assert!(answer.contains("lets nothing leave the box"), "{answer}");
    }
    assert_eq!(cloud.requests(), 1);
}

#[tokio::test]
async fn a_box_that_is_full_asks_elsewhere_by_its_queue_or_by_its_engines_word() {
    let cloud = Cloud::open().await;
    let mut server = cloud.as_upstream();
    (server.when_down, server.full_at) = (false, Some(1));
    let house = house_with(server).await;
    let refused = house.chat("{\"model\":\"small\",\"status\":429,\"tokens\":1}").await;
    assert!(refused.contains("x-polder-served-by: cloud\r\n"), "{refused}");
    let slow = house.chat("{\"model\":\"small\",\"think_ms\":1500,\"tokens\":1}");
    let second = async {
        soon("the first one waits", || house.engine.requests() >= 2).await;
        house.chat("{\"model\":\"small\",\"tokens\":1}").await
    };
    let (first, second) = tokio::join!(slow, second);
    assert!(
        first.contains("oak/fast") && second.contains("x-polder-served-by: cloud\r\n"),
        "{second}"
    );
    // With the queue gone, here again; and an engine's own refusal stands where nobody else answers.
    assert!(house.chat("{\"model\":\"small\",\"tokens\":1}").await.contains("oak/fast"));
    cloud.task.abort();
    let both =
        house.chat("{\"model\":\"small\",\"status\":429,\"cloud_status\":500,\"tokens\":1}").await;
    assert!(status_of(&both) == 429 && both.contains("oak/fast"), "{both}");
}

#[tokio::test]
async fn what_a_server_elsewhere_refuses_or_fails_is_one_sentence_without_its_key() {
    let cloud = Cloud::open().await;
    let mut house = house_with(cloud.as_upstream()).await;
    house.heard(PartState::Stopped).await;
    let ask = async |status: u16| {
        house.chat(&format!("{{\"model\":\"small\",\"cloud_status\":{status}}}")).await
    };
    for (status, told, part) in [
        (400, 400, "refused the question"),
        (401, 503, "does not take the key"),
        (404, 503, "vendor/small"),
        (429, 503, "no room"),
        (500, 503, "status 500"),
    ] {
        let answer = ask(status).await;
        assert_eq!(status_of(&answer), told, "{answer}");
        assert!(answer.contains(part) && !answer.contains(KEY), "{answer}");
    }
    // Each once: nobody is asked twice for what it refused.
    assert_eq!(cloud.requests(), 5);
    assert_eq!(house.spent(), (0, 0));
}

#[tokio::test]
async fn the_next_server_is_asked_where_one_is_away() {
    let cloud = Cloud::open().await;
    let mut house = {
        let mut house = house_with(cloud.as_upstream()).await;
        let mut away = cloud.as_upstream();
        away.url = "http://127.0.0.1:9/v1".parse().unwrap();
        // The cheapest, so the first.
        away.models.values_mut().for_each(|m| (m.input, m.output) = Default::default());
        house.site.upstreams.insert("away".parse().unwrap(), away);
        house
    };
    house.heard(PartState::Stopped).await;
    let answer = house.chat("{\"model\":\"small\",\"tokens\":1}").await;
    assert!(answer.contains("x-polder-served-by: cloud\r\n"), "{answer}");
    assert_eq!(until_spent(&house).await.1, 1);
}

#[tokio::test]
async fn a_box_without_any_engine_serves_what_lives_elsewhere() {
    let cloud = Cloud::open().await;
    let mut house = house_with(cloud.as_upstream()).await;
    house.site.engines.clear();
    house.heard(PartState::Ready).await;
    let key = &house.key;
    let models = house.ask(&format!("GET /v1/models\nauthorization: Bearer {key}"), "").await;
    assert!(
        models.contains("\"id\":\"small\"") && models.contains("\"owned_by\":\"cloud\""),
        "{models}"
    );
    for body in ["{\"model\":\"small\",\"tokens\":1}", "{\"tokens\":1}"] {
        let answer = house.chat(body).await;
        assert!(
            status_of(&answer) == 200 && answer.contains("x-polder-served-by: cloud"),
            "{answer}"
        );
    }
    let messages = house
        .ask(&format!("POST /v1/messages\nauthorization: Bearer {key}"), "{\"model\":\"small\"}")
        .await;
    assert_eq!(status_of(&messages), 400, "{messages}");
    assert!(
        messages.contains("/v1/chat/completions") && messages.contains("\"type\":\"error\""),
        "{messages}"
    );
    assert_eq!(house.engine.requests(), 0);
}

#[tokio::test]
async fn another_box_is_trusted_by_its_own_authority_and_nobody_else_gets_the_key() {
    let elm = House::open().await;
    let amount = |text: &str| text.parse().unwrap();
    let model = UpstreamModel {
        called: "small".into(),
        input: amount("0"),
        output: amount("0"),
        cached: None,
        written: None,
        longest: None,
    };
    let authority = std::fs::read_to_string(elm.ca_file()).unwrap();
    let server = UpstreamServer {
        kind: UpstreamKind::Polder,
        url: format!("https://localhost:{}/v1", elm.port).parse().unwrap(),
        authority: Some(authority.clone()),
        budget: amount("0"),
        currency: Default::default(),
        when_down: true,
        when_full: false,
        full_at: None,
        models: [("small".parse().unwrap(), model)].into(),
    };
    let mut house = house_with(server.clone()).await;
    Secrets::of(house.folder.path())
        .keep(Holder::Upstream(&cloud()), &SecretText::new(&elm.key))
        .unwrap();
    house.heard(PartState::Stopped).await;
    let answer = house.chat("{\"model\":\"small\",\"stream\":true,\"tokens\":2}").await;
    assert!(status_of(&answer) == 200 && answer.contains("x-polder-served-by: cloud"), "{answer}");
    let head = format!("POST /v1/messages\nauthorization: Bearer {}", house.key);
    assert_eq!(status_of(&house.ask(&head, "{\"model\":\"small\",\"tokens\":1}").await), 200);
    assert_eq!(elm.engine.requests(), 2);

    // By the fingerprint that elm's own screen shows, and by no other.
    let polder_control::DoorReply::Ready { fingerprint, .. } =
        elm.console(polder_control::DoorRequest::Ready).await
    else {
        panic!()
    };
    assert_eq!(fetch_authority(&server.url, &fingerprint).await.unwrap().trim(), authority.trim());
    let wrong = fetch_authority(&server.url, &"AB".repeat(32)).await.unwrap_err();
    assert!(wrong.contains("another fingerprint"), "{wrong}");

    // Whom the authority did not sign gets nothing.
    let strangers = std::fs::read_to_string(house.ca_file()).unwrap();
    house.site.upstreams.get_mut(&cloud()).unwrap().authority = Some(strangers);
    house.heard(PartState::Stopped).await;
    let answer = house.chat("{\"model\":\"small\",\"tokens\":1}").await;
    assert!(status_of(&answer) == 503 && answer.contains("certificate"), "{answer}");
    assert_eq!(elm.engine.requests(), 2);
}

#[tokio::test]
async fn an_answer_without_a_limit_gets_one_where_it_costs_money_by_the_name_that_its_server_knows()
{
    let cloud = Cloud::open().await;
    let mut house = house_with(cloud.as_upstream()).await;
    house.heard(PartState::Stopped).await;
    assert_eq!(status_of(&house.chat("{\"model\":\"small\",\"tokens\":1}").await), 200);
    assert_eq!(cloud.seen.lock().unwrap()[0].2["max_tokens"], 4096);
    let newer = house.chat("{\"model\":\"small\",\"tokens\":1,\"newer\":true}").await;
    assert_eq!(status_of(&newer), 200, "{newer}");
    {
        let seen = cloud.seen.lock().unwrap();
        assert_eq!((seen.len(), &seen[2].2["max_completion_tokens"]), (3, &4096.into()));
        assert!(seen[2].2.get("max_tokens").is_none());
    }
    // What nobody can say the price of is not passed on, nor a limit that is none.
    let picture = "{\"model\":\"small\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"https://a/b\"}}]}]}";
    let refused = house.chat(picture).await;
    assert!(status_of(&refused) == 503 && refused.contains("cannot be told before"), "{refused}");
    let endless = house.chat("{\"model\":\"small\",\"max_tokens\":-1}").await;
    assert!(status_of(&endless) == 400 && endless.contains("max_tokens"), "{endless}");
    assert_eq!(cloud.requests(), 3);
    soon("only two cost anything", || house.spent() == (2 * 1002, 2)).await;
}
