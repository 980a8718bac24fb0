//! The wizard as a person without scripts walks through it: one request after the other.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod fake;

use std::net::IpAddr;

use axum::Router;
use axum::body::Body;
use fake::{BACKUP_KEY, CODE, Fake, KEY, RECOVERY_KEY, fetching};
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use polder_control::{Disk, Lock, RunState, StepState};
use polder_firstboot::{Distance, Setup, Visitor};
use polder_power::around::Heard;
use polder_power::find::Found;
use polder_site::{PowerPlan, SiteChange, UpsLine, UpsRole};
use tower::ServiceExt;

const MODEL: &str = "smollm2-135m-instruct";
const PASSWORD: &str = "four words in a row";

/// A browser: remembers its cookie, follows nothing by itself.
struct Browser {
    door: Router,
    visitor: Visitor,
    cookie: Option<String>,
}

struct Answer {
    status: StatusCode,
    to: String,
    cookies: Vec<String>,
    text: String,
}

fn here() -> Visitor {
    visitor("127.0.0.1", Distance::ThisMachine)
}

fn visitor(from: &str, distance: Distance) -> Visitor {
    let from: IpAddr = from.parse().unwrap();
    Visitor { from, distance, reached: "192.168.1.20".parse().unwrap(), tls: false }
}

impl Browser {
    fn at(fake: &Fake) -> Self {
        Self { door: Setup::new(fake.clone()).routes(), visitor: here(), cookie: None }
    }

    /// The gateway dies and comes back: all that is left is what it kept.
    fn crash(&mut self, fake: &Fake) {
        self.door = Setup::new(fake.clone()).routes();
    }

    async fn get(&mut self, path: &str) -> Answer {
        self.ask("GET", path, String::new()).await
    }

    async fn post(&mut self, path: &str, form: &str) -> Answer {
        self.ask("POST", path, form.to_owned()).await
    }

    async fn ask(&mut self, method: &str, path: &str, form: String) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost:8443")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        if let Some(cookie) = &self.cookie {
            request = request.header(header::COOKIE, format!("other=1; {cookie}"));
        }
        let mut request = request.body(Body::from(form)).unwrap();
        request.extensions_mut().insert(self.visitor);
        let response = self.door.clone().oneshot(request).await.unwrap();
        let headers = response.headers().clone();
        let cookies: Vec<String> = headers
            .get_all(header::SET_COOKIE)
            .iter()
            .map(|value| value.to_str().unwrap().to_owned())
            .collect();
        for cookie in cookies.iter().filter(|cookie| cookie.contains("polder-claim=")) {
            let pair = cookie.split(';').next().unwrap().to_owned();
            self.cookie = (!pair.ends_with('=')).then_some(pair);
        }
        let to = headers.get(header::LOCATION).map(|to| to.to_str().unwrap().to_owned());
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        if headers.contains_key("x-polder-next") {
            assert!(text.is_empty());
        }
        if text.starts_with("<!DOCTYPE") {
            assert_eq!(headers[header::CACHE_CONTROL], "no-store", "{path}");
            check_page(path, &text);
        }
        Answer { status, to: to.unwrap_or_default(), cookies, text }
    }

    /// Walks from wherever the person is to `until`.
    async fn walk(&mut self, fake: &Fake, until: &str) {
        for _ in 0..20 {
            let at = self.get("/setup").await.to;
            if at == until {
                return;
            }
            let page = self.get(&at).await;
            let form = match at.as_str() {
                "/setup/claim" => format!("code={CODE}"),
                "/setup/machine" => String::new(),
                "/setup/model" => format!("recipe={MODEL}"),
                "/setup/import" => {
                    fake.run_is(RunState::Done, vec![StepState::Done; 3]);
                    continue;
                }
                "/setup/address" => "name=dune&reach=here".into(),
                "/setup/power" => {
                    assert_eq!(self.post("/setup/power/on", "").await.to, "/setup/lines");
                    continue;
                }
                "/setup/lines" => {
                    assert_eq!(self.post("/setup/lines/on", "").await.to, "/setup/member");
                    continue;
                }
                "/setup/member" => format!("name=ada&password={PASSWORD}&again={PASSWORD}"),
                other => panic!("led to {other:?}: {}", page.text),
            };
            let answer = self.post(&at, &form.replace(' ', "+")).await;
            assert!(
                answer.status.is_redirection() || answer.status.is_success(),
                "{}",
                answer.text
            );
        }
        panic!("never came to {until}");
    }
}

/// What holds for every page: it can be used with a keyboard, a screen reader and no script.
fn check_page(path: &str, text: &str) {
    assert_eq!(text.matches("<h1").count(), 1, "{path}: one page, one heading");
    assert!(text.contains("<html lang="), "{path}");
    assert!(text.contains("name=\"viewport\""), "{path}");
    assert!(!text.contains("style=\"") && !text.contains("onclick"), "{path}: inline code");
    for outside in ["src=\"http", "href=\"http", "url(http", "src=\"//"] {
        assert!(!text.contains(outside), "{path} loads something from elsewhere");
    }
    // Whatever has to be filled in has a label that names it.
    for input in text.split("<input").skip(1).map(|rest| rest.split('>').next().unwrap()) {
        let id = input.split("id=\"").nth(1).and_then(|rest| rest.split('"').next());
        let id = id.unwrap_or_else(|| panic!("{path}: an input without an id: {input}"));
        assert!(text.contains(&format!("for=\"{id}\"")), "{path}: {id} has no label");
    }
    for reference in text.split("aria-describedby=\"").skip(1) {
        for id in reference.split('"').next().unwrap().split(' ') {
            assert!(text.contains(&format!("id=\"{id}\"")), "{path}: nothing is called {id}");
        }
    }
    // Every form is sent by a button of its own.
    assert_eq!(
        text.matches("<form").count(),
        text.matches("type=\"submit\"").count(),
        "{path}: forms and their buttons"
    );
}

#[tokio::test]
async fn a_person_walks_from_the_code_to_a_key_without_any_script() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    assert_eq!(person.get("/setup").await.to, "/setup/claim");
    let page = person.get("/setup/claim").await;
    assert!(page.text.contains("Step 1 of 8"), "{}", page.text);

    let answer = person.post("/setup/claim", &format!("code={CODE}")).await;
    assert_eq!((answer.status, answer.to.as_str()), (StatusCode::SEE_OTHER, "/setup/machine"));
    assert!(answer.cookies[0].contains("HttpOnly; SameSite=Strict"));
    assert!(!answer.cookies[0].contains("Secure"), "there is no TLS here");

    let page = person.get("/setup/machine").await;
    for fact in ["AMD Ryzen 7 7840U", "16 threads", "not on this machine", "Battery"] {
        assert!(page.text.contains(fact), "{fact} is missing");
    }
    assert_eq!(person.post("/setup/machine", "").await.to, "/setup/model");

    let page = person.get("/setup/model").await;
    assert!(page.text.contains("SmolLM2 135M"));
    assert!(page.text.contains("tiny and often wrong"));
    assert_eq!(person.post("/setup/model", &format!("recipe={MODEL}")).await.to, "/setup/import");
    let page = person.get("/setup/import").await;
    assert!(page.text.contains("<progress") && page.text.contains("43 MiB of 94 MiB"));
    assert!(page.text.contains("3.0 MiB/s · about 17 s left"), "{}", page.text);
    assert!(page.text.contains("<noscript><meta http-equiv=\"refresh\" content=\"2\">"));

    fake.run_is(
        RunState::Running,
        vec![StepState::Done, StepState::Running(None), StepState::Waiting],
    );
    assert!(person.get("/setup/import").await.text.contains("Start the engine fast"));
    fake.run_is(RunState::Done, vec![StepState::Done; 3]);
    assert_eq!(person.get("/setup/import").await.to, "/setup/address");

    let page = person.get("/setup/address").await;
    assert!(page.text.contains("192.168.1.20") && page.text.contains("9F:86:D0:81"));
    assert!(!page.text.contains("href=\"/trust\""), "its name is not final yet");
    let answer = person.post("/setup/address", "name=Dune&reach=here").await;
    assert!(answer.text.contains("takes its name"), "{}", answer.text);
    assert_eq!(person.get("/setup/address").await.to, "/setup/power");
    assert_eq!(fake.state().site.name.as_str(), "dune");
    assert!(person.get("/setup/power").await.text.contains("found none"));
    assert_eq!(person.post("/setup/power/on", "").await.to, "/setup/lines");
    assert_eq!(person.post("/setup/lines/on", "").await.to, "/setup/member");

    let page = person.get("/setup/member").await;
    assert!(page.text.contains("dune") && page.text.contains("Step 8 of 8"));
    let form = "name=ada&password=four+words+in+a+row&again=four+words+in+a+row";
    let done = person.post("/setup/member", form).await;
    assert_eq!(done.status, StatusCode::OK);
    assert!(done.text.contains(KEY));
    assert!(
        done.text.contains("--cacert &#39;/var/lib/polder")
            || done.text.contains("--cacert '/var/lib/polder"),
        "{}",
        done.text
    );
    assert!(done.text.contains("https://localhost:8443/v1"));
    assert!(done.text.contains("href=\"/trust\"") && done.text.contains("9F:86:D0:81"));
    assert!(done.cookies.iter().any(|c| c.starts_with("session=")));
    assert!(
        done.cookies.iter().any(|c| c.starts_with("polder-claim=;") && c.contains("Max-Age=0"))
    );

    assert_eq!(fake.state().applied.len(), 2);
    for gone in ["/setup", "/setup/claim", "/setup/machine", "/setup/member", "/setup/planner"] {
        assert_eq!(person.get(gone).await.to, "/", "{gone}");
    }
    assert_eq!(person.post("/setup/member", form).await.to, "/");
    assert!(!Setup::new(fake).is_open().await.unwrap());
}

#[tokio::test]
async fn a_disk_is_sealed_only_after_its_recovery_key_was_typed_back() {
    let fake = Fake::new();
    let open = Disk { lock: Lock::Open, chip: true, secure_boot: false, signed: true };
    fake.state().disk = Some(open);
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    assert!(person.get("/setup/machine").await.text.contains("what opens the disk"));
    assert_eq!(person.post("/setup/machine", "").await.to, "/setup/disk");
    // Nobody gets past it by the address alone.
    assert_eq!(person.get("/setup/model").await.to, "/setup/machine");

    let page = person.get("/setup/disk").await;
    assert!(page.text.contains("passphrase is empty") && page.text.contains("Secure Boot is off"));
    check_page("/setup/disk", &page.text);
    let page = person.post("/setup/disk/seal", "").await;
    // Each group in one piece, however narrow the page is.
    assert!(page.text.replace("</span><span>", "").contains(RECOVERY_KEY));
    check_page("/setup/disk/seal", &page.text);

    let refused = person.post("/setup/disk/confirm", "key=eujukuik").await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.text.contains("eight words") && !refused.text.contains(RECOVERY_KEY));
    let other = RECOVERY_KEY.replace("euj", "cuj");
    let refused = person.post("/setup/disk/confirm", &format!("key={other}")).await;
    assert!(refused.text.contains("does not open with that key"));
    assert_eq!(fake.state().disk, Some(open));

    let spaced = RECOVERY_KEY.to_uppercase().replace('-', "+");
    let done = person.post("/setup/disk/confirm", &format!("key={spaced}")).await;
    assert_eq!(done.to, "/setup/model");
    assert_eq!(fake.state().disk.unwrap().lock, Lock::Sealed);
    assert!(person.get("/setup/disk").await.text.contains("opens only in this machine"));
}

#[tokio::test]
async fn a_disk_stays_open_where_the_steward_says_so_and_where_there_is_no_chip() {
    for chip in [true, false] {
        let fake = Fake::new();
        let open = Disk { lock: Lock::Open, chip, secure_boot: true, signed: true };
        fake.state().disk = Some(open);
        let mut person = Browser::at(&fake);
        person.post("/setup/claim", &format!("code={CODE}")).await;
        let page = person.get("/setup/disk").await;
        assert_eq!(page.text.contains("Seal the disk"), chip);
        assert_eq!(page.text.contains("has no TPM 2.0"), !chip);
        assert_eq!(person.post("/setup/disk/leave", "").await.to, "/setup/model");
        assert_eq!(fake.state().disk, Some(open));
    }
}

#[tokio::test]
async fn a_box_is_restored_instead_of_set_up_with_its_place_and_the_key_from_paper() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    // Nobody without a claim.
    assert_ne!(person.get("/setup/restore").await.status, StatusCode::OK);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    assert!(person.get("/setup/machine").await.text.contains("/setup/restore"));
    check_page("/setup/restore", &person.get("/setup/restore").await.text);
    let page = person.get("/setup/restore").await.text;
    assert!(
        page.contains("value=\"disk:SAFE@1C2E-44AF\"") && !page.contains("Empty one"),
        "{page}"
    );
    let chosen =
        person.post("/setup/restore", "disk=disk%3ASAFE%401C2E-44AF&from=&key=wrong").await;
    assert!(chosen.text.contains("does not open") && chosen.text.contains(" checked"));
    let refused = person.post("/setup/restore", "from=usb&key=x").await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.text.contains("no place for backups"), "{}", refused.text);
    let refused = person.post("/setup/restore", "from=%2Fmnt%2Fusb&key=wrong").await;
    assert!(refused.text.contains("does not open") && refused.text.contains("/mnt/usb"));
    assert!(!refused.text.contains("wrong"), "the key is shown again");
    let form = format!("from=%2Fmnt%2Fusb&key={BACKUP_KEY}");
    assert_eq!(person.post("/setup/restore", &form).await.to, "/setup/restore/going");
    let going = person.get("/setup/restore/going").await.text;
    assert!(
        going.contains("put-in-place from /mnt/usb") && going.contains("1.0 MiB of 4.0 MiB"),
        "{going}"
    );
    check_page("/setup/restore/going", &going);
    fake.run_is(RunState::Failed("the disk is full".into()), Vec::new());
    assert!(person.get("/setup/restore/going").await.text.contains("The disk is full"));
}

#[tokio::test]
async fn a_crash_at_any_step_leaves_the_person_where_they_were() {
    for until in ["machine", "model", "import", "address", "power", "lines", "member"]
        .map(|step| format!("/setup/{step}"))
    {
        let until = until.as_str();
        let fake = Fake::new();
        let mut person = Browser::at(&fake);
        person.post("/setup/claim", &format!("code={CODE}")).await;
        person.walk(&fake, until).await;
        person.crash(&fake);
        assert_eq!(person.get("/setup").await.to, until);
        let page = person.get(until).await;
        assert_eq!(page.status, StatusCode::OK, "{until}: {}", page.text);
        person.walk(&fake, "/").await;
        assert_eq!(fake.state().steward.as_deref(), Some("ada"));
    }
}

#[tokio::test]
async fn of_two_claimers_at_once_exactly_one_gets_in() {
    for _ in 0..20 {
        let fake = Fake::new();
        let (mut one, mut two) = (Browser::at(&fake), Browser::at(&fake));
        two.door = one.door.clone();
        let form = format!("code={CODE}");
        let (a, b) = tokio::join!(one.post("/setup/claim", &form), two.post("/setup/claim", &form));
        let mut statuses = [a.status, b.status];
        statuses.sort();
        assert_eq!(statuses, [StatusCode::SEE_OTHER, StatusCode::FORBIDDEN]);
        let inside =
            [one.get("/setup/machine").await.status, two.get("/setup/machine").await.status];
        assert_eq!(inside.iter().filter(|s| **s == StatusCode::OK).count(), 1);
    }
}

#[tokio::test]
async fn nothing_is_shown_or_taken_before_the_code() {
    let fake = Fake::new();
    let mut stranger = Browser::at(&fake);
    for path in [
        "machine",
        "model",
        "planner",
        "import",
        "import/progress",
        "address",
        "power",
        "lines",
        "member",
    ] {
        let answer = stranger.get(&format!("/setup/{path}")).await;
        assert_eq!(answer.to, "/setup/claim", "{path}");
        assert!(!answer.text.contains("Ryzen"));
    }
    for path in [
        "machine",
        "model",
        "import",
        "import/stop",
        "address",
        "power",
        "lines",
        "lines/on",
        "lines/confirm",
        "power/on",
        "member",
    ] {
        let form = "recipe=x&name=eve&password=long+enough+word&again=long+enough+word&reach=here";
        assert_eq!(
            stranger.post(&format!("/setup/{path}"), form).await.to,
            "/setup/claim",
            "{path}"
        );
    }
    stranger.cookie = Some("polder-claim=guessed".into());
    assert_eq!(stranger.get("/setup/machine").await.to, "/setup/claim");
    assert!(fake.state().notes.is_none() && fake.state().applied.is_empty());
}

#[tokio::test]
async fn somebody_from_another_network_is_refused_even_with_the_code() {
    let fake = Fake::new();
    let mut foreign = Browser::at(&fake);
    foreign.visitor = visitor("203.0.113.9", Distance::Foreign);
    for answer in [
        foreign.get("/setup/claim").await,
        foreign.post("/setup/claim", &format!("code={CODE}")).await,
    ] {
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        assert!(answer.text.contains("own network"));
        assert!(!answer.text.contains("<form"));
    }
    assert_eq!(fake.state().claims, 0);
}

#[tokio::test]
async fn a_wrong_code_says_so_and_too_many_say_how_long_to_wait() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    for _ in 0..3 {
        let answer = person.post("/setup/claim", "code=nonsense").await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        assert!(answer.text.contains("aria-invalid=\"true\"") && answer.text.contains("mistyped"));
        assert!(!answer.text.contains("nonsense"));
    }
    let answer = person.post("/setup/claim", &format!("code={CODE}")).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(answer.text.contains("40 seconds"));
    fake.state().wrong_codes = 0;
    assert_eq!(person.post("/setup/claim", &format!("code={CODE}")).await.to, "/setup/machine");
}

#[tokio::test]
async fn a_closed_window_says_how_to_open_it_and_a_new_code_takes_the_box_back() {
    let fake = Fake::new();
    fake.state().code = None;
    let mut one = Browser::at(&fake);
    let page = one.get("/setup/claim").await;
    assert!(page.text.contains("polder claim reopen") && !page.text.contains("<form"));
    fake.open_claim("one");
    one.post("/setup/claim", "code=one").await;
    one.walk(&fake, "/setup/model").await;

    let mut two = Browser::at(&fake);
    assert!(two.get("/setup/claim").await.text.contains("another browser"));
    fake.open_claim("two");
    assert_eq!(two.post("/setup/claim", "code=two").await.to, "/setup/model");
    assert_eq!(one.get("/setup/model").await.to, "/setup/claim");
}

#[tokio::test]
async fn a_box_with_an_owners_key_takes_a_proof_and_no_code() {
    let fake = Fake::new();
    fake.state().owner = Some("signed".to_owned());
    let mut person = Browser::at(&fake);
    let page = person.get("/setup/claim").await;
    assert!(page.text.contains("data-text=\"signed\"") && !page.text.contains("name=\"code\""));
    let refused = person.post("/setup/claim", &format!("code={CODE}")).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(refused.text.contains("That key file is not this box's"), "{}", refused.text);
    assert_eq!(person.get("/setup/machine").await.to, "/setup/claim");
    assert_eq!(person.post("/setup/claim", "signature=signed").await.to, "/setup/machine");
}

#[tokio::test]
async fn a_failed_import_says_why_and_trying_again_begins_anew() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    person.walk(&fake, "/setup/import").await;
    let why = "the disk has 10 MB left and the model needs 98 MB; free some space & try again";
    fake.run_is(
        RunState::Failed(why.into()),
        vec![StepState::Failed("no space".into()), StepState::Waiting, StepState::Waiting],
    );
    assert_eq!(person.get("/setup/import/progress").await.status, StatusCode::NO_CONTENT);
    let page = person.get("/setup/import").await;
    assert!(page.text.contains("needs 98 MB; free some space &amp; try again"));
    assert!(page.text.contains("Try again"));
    person.crash(&fake);
    assert!(person.get("/setup/import").await.text.contains("needs 98 MB"));
    person.post("/setup/import", "").await;
    assert_eq!(fake.state().runs.len(), 2);
    // A second press while it runs begins nothing.
    person.post("/setup/import", "").await;
    assert_eq!(fake.state().runs.len(), 2);
}

#[tokio::test]
async fn a_stopped_or_forgotten_import_can_go_on_and_a_running_one_keeps_its_model() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    person.walk(&fake, "/setup/import").await;
    let progress = person.get("/setup/import/progress").await;
    assert!(
        progress.text.contains("data-say=\"Import smollm2-135m-instruct (98.4 MB): 40 percent\""),
        "{}",
        progress.text
    );

    person.post("/setup/import/stop", "").await;
    let page = person.get("/setup/import").await;
    assert!(page.text.contains("goes on where it stopped"));
    person.post("/setup/import", "").await;
    assert_eq!(fake.state().runs.len(), 2);

    // The supervisor was restarted and knows of nothing.
    fake.state().runs.clear();
    assert!(person.get("/setup/import").await.text.contains("goes on where it stopped"));
    person.post("/setup/import", "").await;
    assert_eq!(fake.state().runs.len(), 1);
}

#[tokio::test]
async fn models_that_no_engine_here_can_run_are_shown_and_cannot_be_chosen() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    person.walk(&fake, "/setup/model").await;
    let page = person.get("/setup/model").await;
    assert!(page.text.contains("Qwen3-235B") || page.text.contains("Qwen3 235B"), "{}", page.text);
    assert!(!page.text.contains("value=\"qwen3-235b-a22b\""));
    for bad in ["qwen3-235b-a22b", "no-such-model", "", "../../etc/passwd", "%3Cscript%3E"] {
        let answer = person.post("/setup/model", &format!("recipe={bad}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}");
        assert!(answer.text.contains("role=\"alert\"") && !answer.text.contains("<script>"));
    }
    assert!(fake.state().applied.is_empty());
}

#[tokio::test]
async fn later_pages_lead_back_and_earlier_ones_can_be_looked_at_again() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    for later in [
        "/setup/model",
        "/setup/import",
        "/setup/address",
        "/setup/power",
        "/setup/lines",
        "/setup/member",
    ] {
        assert_eq!(person.get(later).await.to, "/setup/machine");
        assert_eq!(person.post(later, "name=a&recipe=b").await.to, "/setup/machine");
    }
    person.walk(&fake, "/setup/address").await;
    for earlier in ["/setup/machine", "/setup/model", "/setup/import"] {
        assert_eq!(person.get(earlier).await.status, StatusCode::OK, "{earlier}");
    }
    // Choosing the model that is there already fetches nothing.
    person.post("/setup/model", &format!("recipe={MODEL}")).await;
    assert_eq!(person.get("/setup").await.to, "/setup/address");
    assert_eq!(fake.state().runs.len(), 1);
}

#[tokio::test]
async fn opening_the_door_keeps_loopback_and_the_address_the_person_came_by() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    person.walk(&fake, "/setup/address").await;
    for (form, why) in [
        ("name=dune&reach=network", "No address is picked"),
        ("name=dune&reach=network&address=8.8.8.8", "not an address of this machine"),
        ("name=du+ne&reach=here", "not usable"),
        ("name=&reach=here", "not usable"),
    ] {
        let answer = person.post("/setup/address", form).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{form}");
        assert!(answer.text.contains(why), "{form}: {}", answer.text);
    }
    assert_eq!(fake.state().applied.len(), 1, "only the import");

    person.visitor = visitor("192.168.1.30", Distance::LocalNetwork);
    let answer = person.post("/setup/address", "name=dune&reach=here").await;
    assert!(answer.text.contains("lock yourself out"));
    let answer =
        person.post("/setup/address", "name=dune&reach=network&address=192.168.1.20").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.text.contains("takes its name"));
    assert_eq!(
        person.get("/setup/address/opening").await.status,
        StatusCode::OK,
        "the name is left"
    );
    assert_eq!(person.get("/setup/address/opening").await.status, StatusCode::NO_CONTENT);
    assert_eq!(person.get("/setup").await.to, "/setup/power");
    let site = fake.state().site.clone();
    let listen: Vec<String> = site.door.listen.iter().map(IpAddr::to_string).collect();
    assert_eq!(listen, ["127.0.0.1", "192.168.1.20"]);
    assert_eq!(site.name.as_str(), "dune");
    let applied = fake.state().applied.clone();
    assert!(matches!(&applied[1..], [SiteChange::Door { .. }, SiteChange::Rename(_)]));
}

#[tokio::test]
async fn a_box_that_is_open_to_its_networks_stays_so_unless_somebody_says_otherwise() {
    let fake = Fake::new();
    let everywhere: Vec<IpAddr> = ["0.0.0.0", "::"].map(|a| a.parse().unwrap()).into();
    fake.state().site.door.listen = everywhere.clone();
    fake.state().site.door.port = 443;
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    person.walk(&fake, "/setup/address").await;
    person.visitor = visitor("192.168.1.30", Distance::LocalNetwork);
    let page = person.get("/setup/address").await.text;
    let picked = page.split("<input").find(|input| input.contains("value=\"everywhere\"")).unwrap();
    assert!(picked.split('>').next().unwrap().contains("checked"), "{picked}");
    assert!(page.contains("https://NAME.local.") && !page.contains(":443"));
    person.post("/setup/address", "name=polder&reach=everywhere").await;
    assert_eq!(person.get("/setup").await.to, "/setup/power");
    assert_eq!(fake.state().site.door.listen, everywhere);
}

#[tokio::test]
async fn a_gateway_that_dies_in_the_middle_of_a_new_door_finishes_what_it_began() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    person.walk(&fake, "/setup/address").await;
    let form = "name=dune&reach=network&address=10.0.0.7";
    person.post("/setup/address", form).await;
    // Still at it, whatever is asked meanwhile.
    fake.run_is(RunState::Running, vec![StepState::Running(None)]);
    for _ in 0..3 {
        person.crash(&fake);
        let page = person.get("/setup/address").await;
        assert!(page.text.contains("http-equiv=\"refresh\""), "{}", page.text);
        assert_eq!(person.get("/setup/member").await.to, "/setup/address");
    }
    assert_eq!(fake.state().applied.len(), 2);
    fake.run_is(RunState::Done, vec![StepState::Done]);
    person.get("/setup/address").await;
    person.crash(&fake);
    assert_eq!(person.get("/setup/address").await.to, "/setup/power");
    assert_eq!(fake.state().applied.len(), 3);
}

#[tokio::test]
async fn a_door_that_cannot_be_opened_says_why_and_asks_again() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    person.walk(&fake, "/setup/address").await;
    person.post("/setup/address", "name=dune&reach=network&address=10.0.0.7").await;
    let before = polder_site::Site::unclaimed(8443);
    fake.state().site.door = before.door;
    let why = RunState::Failed("the address is gone".into());
    fake.run_is(why, vec![StepState::Failed("gone".into())]);
    assert_eq!(person.get("/setup/address/opening").await.status, StatusCode::NO_CONTENT);
    let page = person.get("/setup/address").await;
    assert!(page.text.contains("The address is gone.") && page.text.contains("name=\"reach\""));
    person.post("/setup/address", "name=polder&reach=here").await;
    assert_eq!(person.get("/setup").await.to, "/setup/power");
}

#[tokio::test]
async fn passwords_that_differ_or_are_refused_come_back_with_the_name_and_without_the_password() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    person.walk(&fake, "/setup/member").await;
    for (form, why) in [
        ("name=ada&password=longenough1&again=longenough2", "not the same"),
        ("name=ada&password=short&again=short", "too short"),
    ] {
        let answer = person.post("/setup/member", form).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.text.contains(why) && answer.text.contains("value=\"ada\""));
        assert!(!answer.text.contains("longenough") && !answer.text.contains("\"short\""));
    }
    assert!(fake.state().steward.is_none());
}

#[tokio::test]
async fn hostile_names_are_shown_as_text() {
    let fake = Fake::new();
    fake.state().machine.cpu = "<script>alert(1)</script>".into();
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    assert!(!person.get("/setup/machine").await.text.contains("<script>alert"));
    person.walk(&fake, "/setup/import").await;
    let run = RunState::Failed("<b>bad</b>".into());
    fake.run_is(run, vec![fetching(1, 2), StepState::Failed("<i>".into()), StepState::Waiting]);
    let page = person.get("/setup/import").await;
    assert!(!page.text.contains("<b>bad") && !page.text.contains("<i>"));
    person.walk(&fake, "/setup/address").await;
    assert!(!person.get("/setup/address").await.text.contains("<img"));
    let answer = person.post("/setup/address", "name=%22%3E%3Cimg%3E&reach=here").await;
    assert!(!answer.text.contains("<img"));
    person.walk(&fake, "/setup/member").await;
    let form = "name=%3Cscript%3Ealert(1)&password=a&again=b";
    assert!(!person.post("/setup/member", form).await.text.contains("<script>alert"));
}

#[tokio::test]
async fn a_full_disk_stops_the_wizard_with_a_sentence_and_nothing_is_skipped() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    fake.state().cannot_save = true;
    let answer = person.post("/setup/machine", "").await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(answer.text.contains("disk is full"));
    fake.state().cannot_save = false;
    assert_eq!(person.get("/setup").await.to, "/setup/machine");
}

#[tokio::test]
async fn a_supervisor_that_is_away_is_a_sentence_and_not_the_end() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    person.walk(&fake, "/setup/model").await;
    fake.state().away = true;
    for path in ["/setup/machine", "/setup/model"] {
        let answer = person.get(path).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.text.contains("does not answer"));
    }
    fake.state().away = false;
    person.walk(&fake, "/").await;
}

#[tokio::test]
async fn damaged_notes_begin_anew_with_a_sentence_for_whoever_holds_the_claim() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    person.walk(&fake, "/setup/address").await;
    fake.state().notes = Some("{\"version\":1,\"wiz".into());
    person.crash(&fake);
    assert_eq!(person.get("/setup").await.to, "/setup/machine");
    assert!(person.get("/setup/machine").await.text.contains("begins again"));
    person.post("/setup/machine", "").await;
    assert!(!person.get("/setup/model").await.text.contains("begins again"));
    person.walk(&fake, "/").await;
}

#[tokio::test]
async fn a_box_that_got_its_steward_elsewhere_has_no_wizard() {
    let fake = Fake::new();
    fake.state().steward = Some("up".into());
    fake.state().code = None;
    let mut person = Browser::at(&fake);
    assert_eq!(person.get("/setup").await.to, "/");
    assert_eq!(person.get("/setup/claim").await.to, "/");
    assert_eq!(person.post("/setup/claim", &format!("code={CODE}")).await.to, "/");
}

#[tokio::test]
async fn a_reopened_wizard_asks_for_a_code_again_and_makes_no_second_first_member() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    person.walk(&fake, "/").await;
    assert_eq!(person.get("/setup").await.to, "/");

    fake.open_claim("again");
    assert_eq!(person.get("/setup").await.to, "/setup/claim");
    assert_eq!(person.post("/setup/claim", "code=again").await.to, "/setup/machine");
    assert_eq!(person.post("/setup/machine", "").await.to, "/setup/model");
    assert_eq!(person.get("/setup").await.to, "/setup/address");
    person.post("/setup/address", "name=other&reach=here").await;
    assert_eq!(person.get("/setup/address").await.to, "/setup/power");
    assert_eq!(person.post("/setup/power/on", "").await.to, "/setup/lines");
    assert!(person.get("/setup/lines").await.text.contains("that is all"));
    assert_eq!(person.post("/setup/lines/on", "").await.to, "/");
    assert_eq!(fake.state().site.name.as_str(), "other");
    assert_eq!(fake.state().steward.as_deref(), Some("ada"));
    assert_eq!(person.get("/setup").await.to, "/");
}

#[tokio::test]
async fn over_tls_the_claim_cookie_is_bound_to_this_host_alone() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    person.visitor.tls = true;
    let answer = person.post("/setup/claim", &format!("code={CODE}")).await;
    assert!(answer.cookies[0].starts_with("__Host-polder-claim="));
    assert!(answer.cookies[0].ends_with("; Secure"));
    assert_eq!(person.get("/setup/machine").await.status, StatusCode::OK);
}

#[tokio::test]
async fn of_two_first_members_at_once_exactly_one_is_made() {
    let fake = Fake::new();
    let mut one = Browser::at(&fake);
    one.post("/setup/claim", &format!("code={CODE}")).await;
    one.walk(&fake, "/setup/member").await;
    let mut two = Browser { door: one.door.clone(), visitor: here(), cookie: one.cookie.clone() };
    let form = |name: &str| format!("name={name}&password=longenough1&again=longenough1");
    let (a, b) = (form("ada"), form("eve"));
    let (a, b) = tokio::join!(one.post("/setup/member", &a), two.post("/setup/member", &b));
    assert_eq!([&a, &b].iter().filter(|answer| answer.text.contains(KEY)).count(), 1);
}

#[tokio::test]
async fn the_planner_works_every_number_out_and_refuses_nonsense_with_a_sentence() {
    let fake = Fake::new().with_gpu();
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    let page = person.get("/setup/planner").await;
    assert!(page.text.contains("SmolLM2 135M Instruct") && page.text.contains("(computed)"));
    let page =
        person.get("/setup/planner?model=qwen3-235b-a22b&members=50&box=dgx-station-gb300").await;
    for fact in
        ["It fits", "192,512", "For each member, each month", "How fast an answer is written"]
    {
        assert!(page.text.contains(fact), "{fact} is missing");
    }
    for (query, why) in [
        ("members=0", "makes no sense"),
        ("members=-1", "has to be from 1"),
        ("members=99999999999999", "has to be from 1"),
        ("model=%3Cscript%3E", "no model"),
        ("box=laptop", "no box"),
    ] {
        let page = person.get(&format!("/setup/planner?{query}")).await;
        assert_eq!(page.status, StatusCode::OK);
        assert!(
            page.text.contains(why) && !page.text.contains("<script>"),
            "{query}: {}",
            page.text
        );
    }
    // Looking changes nothing.
    assert_eq!(person.get("/setup").await.to, "/setup/machine");
}

/// A UPS to which NUT on some machine listens.
fn heard(address: &str) -> Heard {
    Heard {
        address: address.parse().unwrap(),
        name: "Eaton 5E".into(),
        on_mains: Some(true),
        charge: Some(100),
        runtime: Some(std::time::Duration::from_secs(12 * 60)),
    }
}

async fn at_the_battery(fake: &Fake) -> Browser {
    let mut person = Browser::at(fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    person.walk(fake, "/setup/power").await;
    person
}

#[tokio::test]
async fn a_ups_that_is_plugged_in_is_named_and_used_with_one_button() {
    let fake = Fake::new();
    let (name, id) = ("Eaton 5E".to_owned(), "0463:ffff".to_owned());
    fake.state().around.usb = vec![Found { name, driver: "usbhid-ups", id }];
    let mut person = at_the_battery(&fake).await;
    let page = person.get("/setup/power").await.text;
    assert!(page.contains("An Eaton 5E is plugged in") && page.contains("Listen to the UPS"));
    assert_eq!(person.post("/setup/power", "ups=usb").await.to, "/setup/power");
    let plan = fake.state().site.power.clone().unwrap();
    assert_eq!(plan, PowerPlan::attached(UpsLine::Usb));
    let page = person.get("/setup/power").await.text;
    assert!(page.contains("The box listens to its UPS"), "{page}");

    // While it is being listened for, a crash changes nothing, and going on is the person's affair.
    fake.run_is(RunState::Running, vec![StepState::Done, StepState::Running(None)]);
    person.crash(&fake);
    let page = person.get("/setup/power").await.text;
    assert!(page.contains("may take a minute") && page.contains("content=\"2\""), "{page}");
    assert!(person.get("/setup/power/progress").await.text.contains("Listen to the UPS"));
    fake.run_is(RunState::Done, vec![StepState::Done; 2]);
    assert_eq!(person.get("/setup/power/progress").await.status, StatusCode::NO_CONTENT);
    assert_eq!(person.get("/setup").await.to, "/setup/power");
    assert_eq!(person.post("/setup/power/on", "").await.to, "/setup/lines");
    person.walk(&fake, "/").await;
}

#[tokio::test]
async fn a_ups_that_is_not_heard_is_said_so_and_another_can_be_tried_or_none() {
    let fake = Fake::new();
    fake.state().around.here = vec![heard("ups@localhost")];
    let mut person = at_the_battery(&fake).await;
    let page = person.get("/setup/power").await.text;
    assert!(page.contains("NUT on this machine listens to it") && page.contains("12 minutes"));
    person.post("/setup/power", "ups=ups%40localhost").await;
    fake.run_is(RunState::Failed("the driver does not hear the UPS".into()), Vec::new());
    fake.state().site.power = None;
    let page = person.get("/setup/power").await.text;
    assert!(page.contains("The driver does not hear the UPS.") && page.contains("Live off it"));
    assert_eq!(person.post("/setup/power/on", "").await.to, "/setup/lines");
}

#[tokio::test]
async fn a_ups_of_another_machines_is_found_by_that_machines_address() {
    let fake = Fake::new();
    fake.state().elsewhere = vec![heard("cellar@10.0.0.2")];
    let mut person = at_the_battery(&fake).await;
    let page = person.get("/setup/power?at=10.0.0.9").await.text;
    assert!(page.contains("No machine at 10.0.0.9") && page.contains("value=\"snmp:10.0.0.9\""));
    let page = person.get("/setup/power?at=10.0.0.2").await.text;
    assert!(page.contains("10.0.0.2 listens to it") && page.contains("does not wait"), "{page}");
    let form = "ups=cellar%4010.0.0.2&password=the+other%27s+word";
    assert_eq!(person.post("/setup/power", form).await.to, "/setup/power");
    let plan = fake.state().site.power.clone().unwrap();
    assert_eq!((plan.role, plan.ups.name()), (UpsRole::Secondary, "cellar"));
    assert_eq!(fake.state().ups_password.as_deref(), Some("the other's word"));
    assert!(!fake.state().notes.as_ref().unwrap().contains("word"), "the notes keep no password");

    for bad in ["ups=", "ups=serial%3Asda", "ups=%3Cscript%3E", ""] {
        let refused = person.post("/setup/power", bad).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{bad}");
        assert!(refused.text.contains("role=\"alert\"") && !refused.text.contains("<script>"));
    }
}

#[tokio::test]
async fn a_box_that_is_only_a_program_says_that_it_cannot_drive_a_ups_by_itself() {
    let fake = Fake::new();
    fake.state().image = false;
    let (name, id) = ("Eaton 5E".to_owned(), "0463:ffff".to_owned());
    fake.state().around.usb = vec![Found { name, driver: "usbhid-ups", id }];
    let mut person = at_the_battery(&fake).await;
    let page = person.get("/setup/power").await.text;
    assert!(page.contains("plugged in") && page.contains("Set NUT up on this machine."), "{page}");
    assert!(!page.contains("value=\"usb\""));
    let refused = person.post("/setup/power", "ups=usb").await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(fake.state().site.power.is_none());
}

#[tokio::test]
async fn a_second_line_is_named_tried_and_kept_when_the_person_still_sees_the_box() {
    let fake = Fake::new();
    let port = |name: &str| polder_control::Port { name: name.into(), connected: true };
    fake.state().machine.ports = vec![port("enp1s0"), port("wwan0")];
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    person.walk(&fake, "/setup/lines").await;
    let page = person.get("/setup/lines").await.text;
    assert!(page.contains("This machine has: enp1s0, wwan0"), "{page}");
    let refused = person.post("/setup/lines", "first=enp1s0&second=enp1s0").await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.text.contains("role=\"alert\""), "{}", refused.text);
    let form = "first=enp1s0&second=wwan0&second_metered=yes";
    assert_eq!(person.post("/setup/lines", form).await.to, "/setup/lines");

    // It waits for a word, also after a crash, and the person is not led on without it.
    person.crash(&fake);
    let page = person.get("/setup/lines").await.text;
    assert!(page.contains("Keep it") && page.contains("content=\"2\""), "{page}");
    assert!(person.get("/setup/lines/progress").await.text.contains("Keep it"));
    // Nor from another tab that still shows the form.
    assert_eq!(person.post("/setup/lines/on", "").await.to, "/setup/lines");
    assert!(person.get("/setup/lines").await.text.contains("Keep it"));
    assert_eq!(person.post("/setup/lines/confirm", "").await.to, "/setup/lines");
    assert_eq!(person.get("/setup/lines/progress").await.status, StatusCode::NO_CONTENT);
    let page = person.get("/setup/lines").await.text;
    assert!(page.contains("wwan0") && page.contains("metered"), "{page}");
    let uplinks = fake.state().site.uplinks.clone();
    assert_eq!(uplinks.values().map(|u| u.metered).collect::<Vec<_>>(), [false, true]);
    assert_eq!(person.post("/setup/lines/on", "").await.to, "/setup/member");
    person.walk(&fake, "/").await;
}

#[tokio::test]
async fn a_line_that_cut_the_person_off_is_taken_back_and_said_so() {
    let fake = Fake::new();
    let mut person = Browser::at(&fake);
    person.post("/setup/claim", &format!("code={CODE}")).await;
    person.walk(&fake, "/setup/lines").await;
    person.post("/setup/lines", "first=enp9s0").await;
    fake.run_is(RunState::Failed("nobody confirmed it, so it is undone".into()), Vec::new());
    fake.state().site.uplinks.clear();
    let page = person.get("/setup/lines").await.text;
    assert!(page.contains("Nobody confirmed it") && page.contains("Look after these"), "{page}");
    // A word that comes too late changes nothing.
    assert_eq!(person.post("/setup/lines/confirm", "").await.to, "/setup/lines");
    assert!(fake.state().site.uplinks.is_empty());
}
