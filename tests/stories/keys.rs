//! Keys, quotas and invites, made where people make them: on the box's own pages.

use polder_stories::{Browser, Client, Running, chat, free_port, import_trial_model};

use crate::wizard::{claim_link, walk};

const MODEL: &str = "smollm2-135m-instruct";

/// Makes a key on the home page, with these fields filled in, and reads it off.
async fn make_key(browser: &Browser, home: &str, fields: &[(&str, &str)]) -> String {
    browser.visit(home).await;
    browser.press("Make a new key").await;
    browser.press("Limits and other choices").await;
    for (name, text) in fields {
        browser.fill(name, text).await;
    }
    browser.press("Make the key").await;
    browser.see(".copyable code").await;
    let key = browser.read(".copyable code").await;
    assert!(key.starts_with("plk_"), "the page shows {key:?}");
    key
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_a_key_is_made_and_revoked_a_quota_is_reached_and_a_friend_is_invited() {
    let state = tempfile::tempdir().unwrap();
    import_trial_model(state.path());
    let running = Running::start(state.path(), free_port(), &[]);
    let steward = Browser::open(1280, 900, false, true).await;
    let first = walk(&steward, &claim_link(&running), None).await;
    let home = format!("http://localhost:{}/", running.port);
    let url = format!("https://localhost:{}", running.port);
    let client = Client::new(&url, &state.path().join("pki/ca.pem"), Some(&first));

    // Revoked in the middle of an answer: that answer ends, and the key opens nothing any more.
    let laptop = make_key(&steward, &home, &[("label", "laptop")]).await;
    steward.picture("key-made").await;
    let mut long = chat(MODEL, "Tell me a story.", 2000);
    long["stream"] = true.into();
    long["ignore_eos"] = true.into();
    let mut stream = client.with_key(Some(&laptop)).stream("/v1/chat/completions", &long);
    stream.next().unwrap().unwrap();
    steward.visit(&home).await;
    steward.press_labelled("Revoke laptop").await;
    steward.agree().await;
    let rest: Vec<String> = stream.map_while(Result::ok).collect();
    assert!(!rest.iter().any(|data| data == "[DONE]"), "the answer went on to its end");
    let refused = client.with_key(Some(&laptop)).chat(MODEL, "Hi.");
    assert_eq!(refused.status, 401, "{}", refused.text);
    assert_eq!(client.chat(MODEL, "Hi.").status, 200, "another key died with it");

    // A quota binds from the request after the one that crossed it.
    let small = make_key(&steward, &home, &[("label", "small"), ("month", "40")]).await;
    let small = client.with_key(Some(&small));
    assert_eq!(small.chat(MODEL, "Say hello.").status, 200);
    let full = small.chat(MODEL, "Say hello.");
    assert_eq!(full.status, 429, "{}", full.text);
    assert!(full.header("retry-after").is_some());
    assert!(full.error().contains("month"), "{}", full.error());

    // A friend comes by the link, once.
    steward.visit(&format!("{home}members")).await;
    steward.fill("note", "Grace").await;
    steward.press("Make the link").await;
    let link = steward.read(".copyable code").await;
    steward.picture("invite-made").await;
    let friend = Browser::open(320, 700, true, true).await;
    let link = link.replace(&url, home.trim_end_matches('/'));
    friend.visit(&link).await;
    friend.fill("name", "Grace").await;
    friend.fill("password", "a lamp beside the harbour").await;
    friend.fill("again", "a lamp beside the harbour").await;
    friend.press("Join").await;
    friend.hear("Grace").await;
    for page in ["", "chat", "usage", "connect", "account"] {
        friend.visit(&format!("{home}{page}")).await;
        friend.see("h1").await;
        friend
            .picture(&format!("member-narrow-{}", if page.is_empty() { "home" } else { page }))
            .await;
        friend.fits_its_window().await;
        friend.is_usable_by_ear_and_keyboard().await;
    }
    friend.visit(&format!("{home}audit")).await;
    assert!(
        !friend.words().await.contains("made the first steward"),
        "a member reads the audit trail"
    );
    friend.close().await;
    let stranger = Browser::open(1280, 900, false, true).await;
    stranger.visit(&link).await;
    assert!(!stranger.words().await.contains("Join"), "the link worked a second time");
    stranger.close().await;

    // She gets twice as much of the machine as others, and what everybody's programs send is read once.
    steward.visit(&format!("{home}members")).await;
    steward.press_labelled("Change Grace").await;
    steward.select("[open] [name=percent]", "twice the usual").await;
    steward.fill_first("[open] [name=at_once]", "4").await;
    steward.look_at("[aria-label='Change Grace']").await;
    steward.picture("share").await;
    steward.press_first("[open] form[action$=share] button").await;
    steward.hear("2 times the usual, at most 4 answers at once").await;
    steward.visit(&format!("{home}models")).await;
    steward.press("Add some").await;
    steward.fill("title", "code agent").await;
    steward.fill("text", "You are an agent.\nYou write code.\n").await;
    steward.press("Add").await;
    steward.hear("code agent").await;
    steward.look_at("form[action='/common/remove']").await;
    steward.picture("common").await;

    // Everything that was done is in the trail, and no secret is.
    steward.visit(&format!("{home}audit")).await;
    let trail = steward.words().await;
    for part in ["laptop", "Grace", "2 times the usual", "code agent"] {
        assert!(trail.contains(part), "{part} is not in the trail:\n{trail}");
    }
    let written =
        std::fs::read_to_string(state.path().join("audit/trail.jsonl")).unwrap() + &running.log();
    for secret in [&first, &laptop, "four quiet brown otters", "a lamp beside the harbour"] {
        assert!(!written.contains(secret), "a secret is in the trail or the log");
    }
    steward.close().await;
}
