//! The collective gets another model: a few try it, everybody hears when it comes, and one press brings the old one back. Programs
//! keep the name that they use.

use std::time::{Duration, Instant};

use polder_control::{Actor, BoxStatus, PartState, Reply, Request};
use polder_site::{SiteChange, Stage, SuccessionStep};
use polder_stories::{Browser, Client, Running, chat, free_port, import_trial_model, polder};

use crate::wizard::{claim_link, walk};

const MODEL: &str = "smollm2-135m-instruct";

/// What waits, off the browser's threads.
fn wait<T>(look: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(look)
}

/// Waits until a slot answers to a name: the door hears of the site a moment after the supervisor has it.
fn until_served(client: &Client, name: &str, slot: &str) {
    let begun = Instant::now();
    loop {
        let answer = client.chat(name, "Say hello.");
        let by = answer.header("x-polder-served-by").unwrap_or_default();
        if answer.status == 200 && by.rsplit('/').next() == Some(slot) {
            return;
        }
        let waited = begun.elapsed() < Duration::from_secs(60);
        assert!(waited, "{name}: {by} answers, not {slot}: {} {}", answer.status, answer.text);
    }
}

/// Presses a step, looks at what would happen, and agrees.
async fn press(browser: &Browser, label: &str) {
    browser.press(label).await;
    browser.hear("Do it").await;
    browser.press("Do it").await;
    browser.at("/runs/").await;
    browser.hear("Done.").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_another_model_is_tried_announced_switched_and_brought_back_under_one_name() {
    let state = tempfile::tempdir().unwrap();
    import_trial_model(state.path());
    let running = Running::start(state.path(), free_port(), &[]);
    let steward = Browser::open(1280, 900, false, true).await;
    let key = walk(&steward, &claim_link(&running), None).await;
    let home = format!("http://localhost:{}", running.port);
    let url = format!("https://localhost:{}", running.port);
    let client = Client::new(&url, &state.path().join("pki/ca.pem"), Some(&key));
    // With a budget of its own the old model is not started again when another one comes.
    let serve = ["site", "serve", MODEL, "--as", "fast", "--memory", "1 GiB", "--state"];
    assert!(polder(&serve).arg(state.path()).output().unwrap().status.success());
    let first = wait(|| running.engine_pid());

    steward.visit(&format!("{home}/models")).await;
    steward.press("Change the model").await;
    steward.at("/models/change").await;
    steward.select("[name='recipe']", "SmolLM2 135M Instruct").await;
    steward.fill("alias", "house").await;
    steward.fill("memory", "1 GiB").await;
    steward.press_first("label[for^='tester-']").await;
    steward.picture("model-change-1-begin").await;
    steward.fits_its_window().await;
    steward.is_usable_by_ear_and_keyboard().await;
    press(&steward, "Show the steps").await;
    assert_eq!(wait(|| running.engine_pid()), first, "the old one served on");
    until_served(&client, "fast-2", "fast-2");
    until_served(&client, "house", "fast");
    let ids = client.get("/v1/models").text;
    assert!(ids.contains("\"house\"") && ids.contains("\"fast-2\""), "{ids}");

    // Who wants it has it under the usual name too, and who is not chosen any more has it under none.
    steward.visit(&home).await;
    steward.hear("You try SmolLM2").await;
    steward.press_first("#under_alias").await;
    steward.press("Save").await;
    until_served(&client, "house", "fast-2");
    steward.visit(&format!("{home}/models/change")).await;
    steward.press_first("label[for^='tester-']").await;
    steward.press("Let these try it, and nobody else").await;
    let begun = Instant::now();
    while client.chat("fast-2", "Hi.").status != 403 {
        assert!(begun.elapsed() < Duration::from_secs(60), "anybody tries it");
    }
    until_served(&client, "house", "fast");
    let ids = client.get("/v1/models").text;
    assert!(!ids.contains("fast-2"), "{ids}");

    // Announced, and done by the box; an answer under way is finished by whom it was begun.
    let far = jiff_in(3600);
    let announce = |at| {
        let change = SiteChange::Succession(SuccessionStep::Announce { at });
        wait(|| running.ask(&Request::Apply { change, by: Actor::Console }))
    };
    assert!(matches!(announce(far), Reply::Accepted(_)));
    let announced = |s: &BoxStatus| s.site.succession.as_ref().is_some_and(|s| s.at.is_some());
    wait(|| running.until("the announcement", announced));
    for page in ["", "status", "chat"] {
        // A page as it was a moment ago says nothing of it; the door hears of the site after the supervisor wrote it.
        let begun = Instant::now();
        loop {
            steward.visit(&format!("{home}/{page}")).await;
            if steward.words().await.contains("makes room for") {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "/{page} announces nothing");
        }
    }
    steward.picture("model-change-2-announced").await;
    let mut long = chat("house", "Tell me a long story.", 300);
    long["ignore_eos"] = true.into();
    long["stream"] = true.into();
    let mut stream = client.stream("/v1/chat/completions", &long);
    stream.next().unwrap().unwrap();
    let begun = Instant::now();
    while !matches!(announce(jiff_in(0)), Reply::Accepted(_)) {
        assert!(begun.elapsed() < Duration::from_secs(60), "the box stays busy");
    }
    let switched =
        |s: &BoxStatus| s.site.succession.as_ref().is_some_and(|s| s.stage == Stage::Switched);
    wait(|| running.until("the switch", switched));
    until_served(&client, "house", "fast-2");
    let rest: Vec<String> = stream.map(|event| event.expect("the stream was cut")).collect();
    assert_eq!(rest.last().map(String::as_str), Some("[DONE]"));

    steward.visit(&format!("{home}/models/change")).await;
    press(&steward, "Return to the former model").await;
    until_served(&client, "house", "fast");
    steward.visit(&format!("{home}/models/change")).await;
    press(&steward, "Call the change off").await;
    let status = wait(|| running.status());
    assert_eq!(status.engines.len(), 1);
    assert_eq!(status.engines[0].part.state, PartState::Ready);
    until_served(&client, "house", "fast");
    steward.close().await;
}

fn jiff_in(seconds: i64) -> jiff::Timestamp {
    jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds)
}
