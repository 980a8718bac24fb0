//! Two stewards replace a third: one proposes, another agrees, everybody is told of both, and whoever was replaced is out at once.

use std::path::Path;

use polder_members::{Clock, Members, NewKey, NewMember, Role, Secret};
use polder_stories::{Browser, Running, chat, free_port, import_trial_model};

const PASSWORD: &str = "a heron stands in the reeds";
const PEOPLE: [(&str, Role); 5] = [
    ("Ada", Role::Steward),
    ("Ben", Role::Steward),
    ("Cleo", Role::Steward),
    ("Dan", Role::Member),
    ("Eve", Role::Member),
];

/// Three who are stewards for days and two members, each with a key.
fn collective(state: &Path) -> [String; 5] {
    import_trial_model(state);
    let clock = Clock::system();
    clock.pass(-3 * 24 * 3600);
    let members = Members::open_with_clock(&state.join("polder.db"), clock).unwrap();
    PEOPLE.map(|(name, role)| {
        let password = Secret::new(PASSWORD.into());
        let new = NewMember { name: name.into(), email: None, password };
        let id = members.add_member(&new, role).unwrap().id;
        members.mint_key(id, &NewKey::default()).unwrap().key.expose().to_owned()
    })
}

async fn sign_in(browser: &Browser, home: &str, name: &str) {
    browser.visit(&format!("{home}/sign-in")).await;
    browser.fill("name", name).await;
    browser.fill("password", PASSWORD).await;
    browser.press("Sign in").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_any_two_stewards_replace_a_third_who_is_out_at_once_and_everybody_is_told() {
    let state = tempfile::tempdir().unwrap();
    let keys = collective(state.path());
    let (running, up) = Running::ready_again(state.path(), free_port());
    let home = format!("http://localhost:{}", running.port);
    let client = up.client();
    let told = |name: &str| client.look("/", &client.sign_in(name, PASSWORD)).text;

    // Ben is at work: signed in, with an answer that is being given.
    let bens = Browser::open(1280, 900, false, true).await;
    sign_in(&bens, &home, "Ben").await;
    let ben = client.with_key(Some(&keys[1]));
    let mut long = chat(&up.model, "Tell me a long story.", 2000);
    long["stream"] = true.into();
    long["ignore_eos"] = true.into();
    let mut stream = ben.stream("/v1/chat/completions", &long);
    stream.next().unwrap().unwrap();

    // One proposes.
    let table = Browser::open(1280, 900, false, true).await;
    sign_in(&table, &home, "Ada").await;
    table.visit(&format!("{home}/collective/stewards")).await;
    table.select("[name='target']", "Ben").await;
    table.select("[name='what']", "removed from the box").await;
    table.select("[name='successor']", "Dan").await;
    table.picture("steward-replaced-form").await;
    table.press("Propose it").await;
    table.hear("Proposed: Ben is removed, Dan becomes one").await;
    assert!(!table.shows("form[action$='/agree']").await, "one steward alone replaces another");
    let proposal = "Ada proposes that Ben is removed from the box, and Dan becomes a steward";
    for (name, _) in PEOPLE {
        assert!(told(name).contains(proposal), "{name} was not told of the proposal");
    }
    // Whom it is about reads so, and can neither agree nor say no.
    bens.visit(&home).await;
    bens.hear(proposal).await;
    bens.visit(&format!("{home}/collective/stewards")).await;
    assert!(!bens.shows("form[action$='/agree']").await);
    bens.press("Say no").await;
    bens.hear("one of the other stewards has to say no").await;
    assert_eq!(ben.get("/v1/models").status, 200, "nothing has happened yet");

    // Another one agrees, at the same table.
    table.press_first("form[action='/sign-out'] button").await;
    sign_in(&table, &home, "Cleo").await;
    table.hear(proposal).await;
    table.visit(&format!("{home}/collective/stewards")).await;
    table.press_first("form[action$='/agree'] button").await;
    table.at("/collective?said=replaced").await;
    table.picture("steward-replaced").await;

    // He is out at once, everywhere.
    let rest: Vec<String> = stream.map_while(Result::ok).collect();
    assert!(!rest.iter().any(|data| data == "[DONE]"), "the answer went on to its end");
    assert_eq!(ben.get("/v1/models").status, 401, "a key of somebody who was removed works");
    bens.visit(&format!("{home}/dashboard")).await;
    bens.at("/sign-in").await;
    sign_in(&bens, &home, "Ben").await;
    bens.see("[name='password']").await;
    bens.picture("steward-is-out").await;

    // Everybody who is there is told, and Dan looks after the box from now on.
    let done = "Ada and Cleo decided that Ben is removed from the box, and Dan becomes a steward";
    for (name, _) in PEOPLE.iter().filter(|(name, _)| *name != "Ben") {
        assert!(told(name).contains(done), "{name} was not told");
    }
    sign_in(&bens, &home, "Dan").await;
    bens.hear(done).await;
    bens.press("I have read it").await;
    bens.visit(&format!("{home}/dashboard")).await;
    bens.at("/dashboard").await;
    assert!(!told("Dan").contains(done), "what was read is still announced");
    assert!(told("Eve").contains(done), "one who read it did so for everybody");
    bens.visit(&format!("{home}/audit")).await;
    let trail = bens.words().await;
    for part in ["proposed to replace the steward", "agreed to replace the steward"] {
        assert!(trail.contains(part), "{part} is not in the trail:\n{trail}");
    }
    assert_eq!(client.with_key(Some(&keys[3])).get("/v1/models").status, 200);
    bens.close().await;
    table.close().await;
}
