//! The life of a collective: somebody leaves, and in the end the box is everybody else's.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use polder_control::EndedBox;
use polder_members::{Clock, Members, NewKey, NewMember, Role, Secret};
use polder_stories::{
    Client, Running, Up, chat, free_port, import_trial_model, scaled, send_signal,
};

const PASSWORD: &str = "a heron stands in the reeds";
/// Names that are nowhere else: what is looked for when nothing may be left.
const PEOPLE: [&str; 3] =
    ["Adelheid Canaryfinch", "Bartholomew Canaryfinch", "Cleopatra Canaryfinch"];

/// A box whose first two people are its stewards for days; each with a key.
fn collective(state: &Path) -> [String; 3] {
    import_trial_model(state);
    let clock = Clock::system();
    clock.pass(-3 * 24 * 3600);
    let members = Members::open_with_clock(&state.join("polder.db"), clock).unwrap();
    let mut roles = [Role::Steward, Role::Steward, Role::Member].into_iter();
    PEOPLE.map(|name| {
        let new = NewMember {
            name: name.into(),
            email: Some("canary@marsh.example".into()),
            password: Secret::new(PASSWORD.into()),
        };
        let id = members.add_member(&new, roles.next().unwrap()).unwrap().id;
        let new = NewKey { label: "canary of the marsh".into(), ..NewKey::default() };
        members.mint_key(id, &new).unwrap().key.expose().to_owned()
    })
}

#[test]
fn a_member_takes_their_data_along_leaves_and_nothing_of_theirs_works_any_more() {
    let state = tempfile::tempdir().unwrap();
    let keys = collective(state.path());
    let (_running, up) = Running::ready_again(state.path(), free_port());
    let client = up.client();
    let cleo = client.with_key(Some(&keys[2]));
    let mut long = chat(&up.model, "Tell me a long story.", 2000);
    long["stream"] = true.into();
    long["ignore_eos"] = true.into();
    let mut stream = cleo.stream("/v1/chat/completions", &long);
    stream.next().unwrap().unwrap();

    let cookie = client.sign_in(PEOPLE[2], PASSWORD);
    let data = client.form("/account/export", &cookie, &[]);
    assert_eq!((data.status, data.header("content-type")), (200, Some("application/zip")));
    let page = client.look("/account/leave", &cookie).text;
    assert!(page.contains("API keys (1)") && page.contains("kept of your conversations"), "{page}");
    let refused =
        client.form("/account/leave", &cookie, &[("name", PEOPLE[2]), ("password", "no")]);
    assert_eq!(refused.status, 400);
    let left =
        client.form("/account/leave", &cookie, &[("name", PEOPLE[2]), ("password", PASSWORD)]);
    assert!(left.status == 200 && left.text.contains("You have left"), "{}", left.text);

    let rest: Vec<String> = stream.map_while(Result::ok).collect();
    assert!(!rest.iter().any(|data| data == "[DONE]"), "the answer went on to its end");
    assert_eq!(cleo.chat(&up.model, "Hi.").status, 401);
    assert_eq!(client.look("/", &cookie).status, 303, "the browser is still signed in");
    let again = client.form("/sign-in", "", &[("name", PEOPLE[2]), ("password", PASSWORD)]);
    assert_eq!(again.status, 403);
    let gone = std::fs::read_to_string(state.path().join("gone.jsonl")).unwrap();
    assert!(gone.contains("\"member\"") && !gone.contains("Canaryfinch"), "{gone}");
    // The others notice nothing.
    assert_eq!(client.with_key(Some(&keys[0])).chat(&up.model, "Hi.").status, 200);
}

/// Both stewards decide the end; what the page of the second one says.
fn decide(client: &Client, models: &str) -> String {
    let [ada, ben] = [PEOPLE[0], PEOPLE[1]].map(|name| client.sign_in(name, PASSWORD));
    let plan = client.look("/collective/end", &ada).text;
    assert!(
        plan.contains("Overwrite the members") && plan.contains("What this cannot do"),
        "{plan}"
    );
    let asked = client.form("/collective/end/ask", &ada, &[("name", "polder"), ("models", models)]);
    assert_eq!(asked.header("location"), Some("/collective/end?said=end-asked"), "{}", asked.text);
    let alone = client.form("/collective/end/agree", &ada, &[("name", "polder")]);
    assert_eq!(alone.status, 400, "one steward ended the box");
    let agreed = client.form("/collective/end/agree", &ben, &[("name", "polder")]);
    assert_eq!(agreed.status, 200, "{}", agreed.text);
    agreed.text
}

/// Waits until the box that was ended is a new one; where it can be claimed, and what it says of the end.
fn claimable(running: &Running) -> (String, EndedBox) {
    let deadline = Instant::now() + scaled(Duration::from_secs(60));
    while running.state.join("end.json").exists() || !running.state.join("ended.json").exists() {
        assert!(Instant::now() < deadline, "it is not erased; {}", running.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    let link = running.line_with("http://localhost");
    let ended = EndedBox::read(&running.state).expect("it says what was done");
    assert_eq!(ended.left, Vec::<String>::new());
    assert!(ended.audit.number > 3, "{ended:?}");
    (link.trim().to_owned(), ended)
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}

/// Which files have any of these words.
fn with(state: &Path, words: &[&[u8]]) -> Vec<PathBuf> {
    let mut all = Vec::new();
    files(state, &mut all);
    all.retain(|path| {
        // Models are public, and long.
        if path.strip_prefix(state).unwrap().starts_with("weights/blobs") {
            return false;
        }
        let mut bytes = Vec::new();
        let read = std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
        read.is_ok() && words.iter().any(|word| bytes.windows(word.len()).any(|w| w == *word))
    });
    all
}

/// Nothing of before is left or works, and whoever stands at the box claims it.
fn is_somebody_elses(running: &Running, up: &Up, keys: &[String; 3], ca: &[u8], link: &str) {
    let state = &running.state;
    let key: Vec<u8> = keys[0].as_bytes()[..16].to_vec();
    // Its signature, near the end.
    let ca: Vec<u8> = ca[ca.len() - 120..ca.len() - 60].to_vec();
    let words: [&[u8]; 5] = [b"Canaryfinch", b"canary", b"marsh.example", &key, &ca];
    assert_eq!(with(state, &words), Vec::<PathBuf>::new(), "something is left");
    let new = Client::new(&up.url, &state.join("pki/ca.pem"), Some(&keys[0]));
    assert_eq!(new.chat(&up.model, "Hi.").status, 401, "an old key works");
    let first = new.look("/", "__Host-polder=0123456789abcdef");
    assert_eq!(first.header("location"), Some("/setup"), "{}", first.text);
    let record = new.look("/ended", "").text;
    assert!(record.contains("It is a new box"), "{record}");
    assert!(new.look("/setup/claim", "").text.contains("ended it"));
    let code = link.rsplit(['#', '=']).next().unwrap();
    let claimed = new.form("/setup/claim", "", &[("code", code)]);
    assert_eq!(claimed.status, 303, "{link}: {}", claimed.text);
    assert!(claimed.header("location").unwrap().starts_with("/setup/"), "{claimed:?}");
}

fn open_again(running: &Running) {
    let begun = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", running.port)).is_err() {
        assert!(begun.elapsed() < scaled(Duration::from_secs(60)), "{}", running.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What is on a recovery sheet, read off the page.
fn written_on(page: &str) -> String {
    let lines = page.split("<strong><code>").skip(1);
    lines.filter_map(|rest| rest.split("</code>").next()).collect::<Vec<_>>().join(" ")
}

#[test]
fn when_no_steward_is_left_two_of_three_sheets_make_one_after_a_day_in_which_nobody_said_no() {
    let state = tempfile::tempdir().unwrap();
    let keys = collective(state.path());
    let port = free_port();
    let (running, up) = Running::ready_again(state.path(), port);
    let client = up.client();
    let cookies = PEOPLE.map(|name| client.sign_in(name, PASSWORD));
    // The three of them are the first in the database.
    let holders = [("first", "1"), ("second", "2"), ("third", "3")];
    let made = client.form("/collective/sheets/make", &cookies[0], &holders);
    assert_eq!(made.header("location"), Some("/collective/sheets?said=sheets"), "{}", made.text);
    let sheets = cookies.each_ref().map(|cookie| {
        let sheet = written_on(&client.form("/collective/sheets/show", cookie, &[]).text);
        let typed = client.form("/collective/sheets/confirm", cookie, &[("sheet", &sheet)]);
        assert_eq!(typed.status, 303, "{}", typed.text);
        sheet
    });
    assert_eq!(client.with_key(Some(&keys[1])).get("/v1/models").status, 200);
    // Both stewards are gone; who is left has a sheet, and another one is found among what they left.
    let asked = |first: &str, second: &str| {
        let fields = [("first", first), ("second", second), ("name", PEOPLE[2])];
        client.form("/locked-out", "", &fields)
    };
    assert_eq!(asked(&sheets[2], &sheets[2]).status, 403);
    let answer = asked(&sheets[2], &sheets[1]);
    assert!(answer.text.contains("Every member is told"), "{}", answer.text);
    assert!(client.look("/", &cookies[2]).text.contains("recovery sheets were used"));
    assert_eq!(client.look("/members", &cookies[2]).status, 403);
    assert!(running.stop().success());

    let running = Running::start_hours_later(state.path(), port, 20);
    open_again(&running);
    let early = client.look("/members", &cookies[2]);
    assert_eq!(early.status, 403, "{}", running.log());
    assert!(running.stop().success());
    let running = Running::start_hours_later(state.path(), port, 25);
    open_again(&running);
    let begun = Instant::now();
    while client.look("/members", &cookies[2]).status != 200 {
        assert!(begun.elapsed() < scaled(Duration::from_secs(30)), "{}", running.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    let told = client.look("/audit", &cookies[2]).text;
    assert!(told.contains("made a steward by recovery sheets"), "{told}");
    for sheet in &sheets {
        assert!(with(state.path(), &[sheet.as_bytes()]).is_empty(), "a sheet is on the disk");
    }
}

#[test]
fn after_the_end_nothing_of_the_members_is_left_and_others_claim_the_box() {
    let state = tempfile::tempdir().unwrap();
    let keys = collective(state.path());
    let (running, up) = Running::ready_again(state.path(), free_port());
    let client = up.client();
    assert_eq!(client.with_key(Some(&keys[2])).chat(&up.model, "Hi.").status, 200);
    // What is looked for afterwards is there before.
    assert!(!with(state.path(), &[b"Canaryfinch"]).is_empty());
    let ca = std::fs::read(&up.ca_file).unwrap();
    let record = decide(&client, "stay");
    assert!(record.contains("RECORD OF THE END of the box polder"), "{record}");
    assert!(record.contains(&format!("{}, then {}", PEOPLE[0], PEOPLE[1])), "{record}");
    let (link, ended) = claimable(&running);
    assert!(ended.keep_models && state.path().join("weights/manifests").exists());
    is_somebody_elses(&running, &up, &keys, &ca, &link);
}

#[test]
fn a_power_cut_in_the_middle_of_the_end_is_gone_on_from() {
    let state = tempfile::tempdir().unwrap();
    let keys = collective(state.path());
    let port = free_port();
    let (mut running, up) = Running::ready_again(state.path(), port);
    let ca = std::fs::read(&up.ca_file).unwrap();
    decide(&up.client(), "go");
    // It is written down, and nothing is erased yet.
    assert!(state.path().join("end.json").exists());
    send_signal(running.pid(), rustix::process::Signal::KILL);
    running.wait();
    // Half of it is done, as if the power had gone later.
    std::fs::remove_file(state.path().join("pki/ca.pem")).unwrap();
    std::fs::remove_file(state.path().join("site.toml")).unwrap();
    let running = Running::start(state.path(), port, &[]);
    let (link, ended) = claimable(&running);
    assert!(!ended.keep_models && !state.path().join("weights/blobs").exists());
    is_somebody_elses(&running, &up, &keys, &ca, &link);
}
