//! A box that cannot answer itself: it asks another real box, and llama.cpp's server takes its engine's place.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use polder_control::{
    Client as Control, DoorReply, DoorRequest, PartState, RunState, SecretText, Sockets,
};
use polder_site::{
    EngineKind, EngineSlot, Served, SiteChange, UpstreamKind, UpstreamModel, UpstreamServer,
};
use polder_stories::{Answer, Client, Running, Up, chat, free_port, need};
use polder_upstream::{Holder, Secrets};
use serde_json::json;

const MODEL: &str = "smollm2-135m-instruct";
const PATIENCE: Duration = Duration::from_secs(90);

/// A box that has a door and a steward's key, and no model.
struct Bare {
    running: Running,
    client: Client,
}

impl Bare {
    fn open(state: &Path) -> Self {
        let port = free_port();
        let running = Running::start(state, port, &[]);
        running.line_with("#claim=");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let key = runtime.block_on(async {
            let socket = Sockets::of(state).gateway();
            let mut door: Control<DoorRequest, DoorReply> =
                Control::connect(&socket).await.unwrap();
            match door.ask(&DoorRequest::UpKey).await.unwrap() {
                DoorReply::Key(key) => key,
                other => panic!("{other:?}"),
            }
        });
        let url = format!("https://localhost:{port}");
        let client = Client::new(&url, &state.join("pki/ca.pem"), Some(&key));
        Self { running, client }
    }

    fn may_ask(&self, name: &str, key: Option<&str>, server: UpstreamServer) {
        let name = name.parse().unwrap();
        if let Some(key) = key {
            Secrets::of(&self.running.state)
                .keep(Holder::Upstream(&name), &SecretText::new(key))
                .unwrap();
        }
        let change = SiteChange::Upstream { name, upstream: Box::new(server) };
        assert_eq!(self.running.change(change), RunState::Done);
    }

    /// The door hears of what was changed a moment after it is.
    fn until_served_by(&self, who: &str) -> Answer {
        self.until(who, |answer| {
            answer.status == 200 && answer.header("x-polder-served-by") == Some(who)
        })
    }

    /// Asks until the answer is as it will be soon.
    fn until(&self, what: &str, mut is: impl FnMut(&Answer) -> bool) -> Answer {
        let begun = Instant::now();
        loop {
            let answer = self.client.chat(MODEL, "What is the capital of France?");
            if is(&answer) {
                return answer;
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: {answer:?}; {}", self.running.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn server(
    kind: UpstreamKind,
    url: &str,
    authority: Option<&Path>,
    price: &str,
    budget: &str,
) -> UpstreamServer {
    let amount = |text: &str| text.parse().unwrap();
    let model = UpstreamModel {
        called: MODEL.into(),
        input: amount(price),
        output: amount(price),
        cached: None,
        // What it keeps from then on costs no more than reading.
        written: Some(amount(price)),
        longest: None,
    };
    UpstreamServer {
        kind,
        url: url.parse().unwrap(),
        authority: authority.map(|file| std::fs::read_to_string(file).unwrap()),
        budget: amount(budget),
        currency: Default::default(),
        when_down: true,
        when_full: false,
        full_at: None,
        models: [(MODEL.parse().unwrap(), model)].into(),
    }
}

fn elm(up: &Up) -> UpstreamServer {
    server(UpstreamKind::Polder, &format!("{}/v1", up.url), Some(&up.ca_file), "0", "0")
}

/// llama.cpp's server with the trial model.
struct Llama(Child);

impl Llama {
    fn start(port: u16) -> Self {
        let server = Command::new(need("POLDER_LLAMA_SERVER"))
            .arg("--model")
            .arg(need("POLDER_SMOLLM2"))
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--ctx-size", "1024", "--parallel", "1", "--threads", "2"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(server)
    }
}

impl Drop for Llama {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_box_without_an_engine_answers_by_another_box_and_with_its_own_keys() {
    let (elms, oaks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_elm, up) = Running::ready(elms.path());
    let oak = Bare::open(oaks.path());
    let nobody = oak.client.chat(MODEL, "Hi.");
    assert_eq!(nobody.status, 503, "{}", nobody.text);
    oak.may_ask("elm", Some(&up.api_key), elm(&up));

    let here = oak.until_served_by("elm");
    let models = oak.client.get("/v1/models").json();
    assert_eq!(
        (models["data"][0]["id"].as_str(), models["data"][0]["owned_by"].as_str()),
        (Some(MODEL), Some("elm"))
    );
    let asked = "What is the capital of France?";
    let there = up.client().chat(MODEL, asked);
    assert_eq!(there.header("x-polder-served-by"), Some("polder/fast"));
    assert_eq!(here.words(), there.words());

    let mut body = chat(MODEL, asked, 12);
    body["stream"] = json!(true);
    let events: Vec<String> =
        oak.client.stream("/v1/chat/completions", &body).map(Result::unwrap).collect();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    assert!(
        events.len() > 3 && !events.iter().any(|event| event.contains("prompt_tokens\":")),
        "{events:?}"
    );
    let message = json!({ "model": MODEL, "max_tokens": 8, "messages": [{ "role": "user", "content": asked }] });
    let message = oak.client.post("/v1/messages", &message);
    assert_eq!(
        (message.status, message.json()["type"].as_str()),
        (200, Some("message")),
        "{}",
        message.text
    );
    // elm's own key is elm's and oak's: a member of oak has nothing to do with it.
    assert!(!oak.running.log().contains(&up.api_key));
    let wrong = oak.client.with_key(Some(&up.api_key)).chat(MODEL, "Hi.");
    assert_eq!(wrong.status, 401);
}

#[test]
fn llama_cpp_serves_a_slot_and_when_it_is_gone_another_box_answers_within_a_budget() {
    let (elms, oaks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_elm, up) = Running::ready(elms.path());
    let oak = Bare::open(oaks.path());
    let port = free_port();
    let llama = Llama::start(port);
    let url = format!("http://127.0.0.1:{port}/v1");
    let served =
        Some(Box::new(Served { url: url.parse().unwrap(), authority: None, called: None }));
    let slot =
        EngineSlot { kind: EngineKind::Url, served, ..EngineSlot::serving(MODEL.parse().unwrap()) };
    let change = SiteChange::Engine { name: "fast".parse().unwrap(), slot };
    assert_eq!(oak.running.change(change), RunState::Done, "{}", oak.running.log());
    let answer = oak.until_served_by("polder/fast");
    assert!(!answer.words().is_empty());
    let mut body = chat(MODEL, "Count to three.", 12);
    body["stream"] = json!(true);
    let events: Vec<String> =
        oak.client.stream("/v1/chat/completions", &body).map(Result::unwrap).collect();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));

    // It goes: for a while with a price, so that the money is used up by what elm says that it used.
    // Six are set aside for each (a byte a token, and what a server puts around it), and a third of one it costs.
    let dear = UpstreamServer {
        budget: "7".parse().unwrap(),
        ..server(UpstreamKind::Polder, &format!("{}/v1", up.url), Some(&up.ca_file), "5000", "7")
    };
    oak.may_ask("elm", Some(&up.api_key), dear);
    drop(llama);
    oak.running
        .until("the slot is down", |status| status.engines[0].part.state != PartState::Ready);
    let mut refused = oak.until_served_by("elm");
    for _ in 0..20 {
        refused = oak.client.chat(MODEL, "Hi.");
        if refused.status != 200 {
            break;
        }
    }
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.error().contains("this month's budget"), "{}", refused.text);
    // A steward raises it, and it goes on; llama.cpp comes back, and answers itself.
    oak.may_ask("elm", None, elm(&up));
    oak.until_served_by("elm");
    let _llama = Llama::start(port);
    oak.until_served_by("polder/fast");
}
