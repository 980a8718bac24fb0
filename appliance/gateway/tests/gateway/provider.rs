//! People sign in with the box on other apps: the client library from npm, and the one of Open WebUI.

use std::process::Command;

use polder_members::{ClientApp, Members, NewClientApp, Role, Secret};
use serde_json::Value;

use crate::house::{House, Wish, new_member, soon, status_of};
use crate::surfer::{Program, Seen, Surfer, free_port, listens, script, tools};

struct Place {
    house: House,
    base: String,
    back: String,
    app: ClientApp,
    secret: Option<Secret>,
}

impl Place {
    async fn open(with_secret: bool, for_stewards: bool) -> Self {
        let house = House::open_as(Wish {
            members: |members, _| {
                members.add_member(&new_member("grace"), Role::Member).unwrap();
            },
            ..Wish::default()
        })
        .await;
        let base = format!("http://localhost:{}", house.port);
        let back = "http://localhost:1/back".to_owned();
        let new = NewClientApp {
            name: "Wiki".into(),
            redirects: vec![back.clone()],
            with_secret,
            for_stewards,
            ..NewClientApp::default()
        };
        let (app, secret) = members(&house).add_client_app(&new).unwrap();
        Self { house, base, back, app, secret }
    }

    fn client(&self) -> Program {
        let secret = self.secret.as_ref().map_or("", Secret::expose);
        let (run, packages) = (script("client.mjs"), tools("openid-client"));
        let all = [&run, &packages, &self.base, &self.app.id, secret, &self.back];
        Program::start(Command::new("node").args(all))
    }

    /// Signs somebody in on the box.
    fn browser(&self, who: &str) -> Surfer {
        let browser = Surfer::new();
        let fields = [("name", who), ("password", "correct horse battery")];
        let page = browser.post(&format!("{}/sign-in", self.base), &fields);
        assert_eq!(page.status, 200, "{page:?}");
        browser
    }

    /// Goes to the app's question; whoever is asked there agrees.
    fn agreeing(&self, browser: &Surfer, to: &str) -> Seen {
        let page = browser.step(to);
        if page.status != 200 || !page.body.contains("action=\"/oidc/agree\"") {
            return page;
        }
        browser.step(&self.says(browser, &page, "yes").url)
    }

    /// Presses a button of the page that asks.
    fn says(&self, browser: &Surfer, page: &Seen, says: &str) -> Seen {
        let value = |name: &str| {
            let rest = page.body.split(&format!("name=\"{name}\" value=\"")).nth(1).unwrap();
            rest.split('"').next().unwrap().replace("&amp;", "&")
        };
        let fields =
            ["question", "member", "asks_models"].map(|name| format!("{name}={}", value(name)));
        browser.curl(&[
            "-H",
            &format!("Origin: {}", self.base),
            "--data-urlencode",
            &fields[0],
            "--data-urlencode",
            &fields[1],
            "--data-urlencode",
            &fields[2],
            "-d",
            &format!("says={says}"),
            &format!("{}/oidc/agree", self.base),
        ])
    }

    /// What the app gets for somebody who is signed in and agrees.
    fn given(&self, browser: &Surfer) -> Value {
        read(&self.redeem(&self.code(browser)).body)
    }

    fn code(&self, browser: &Surfer) -> String {
        let code = self.authorize(browser, "");
        code.url.split("code=").nth(1).unwrap().split('&').next().unwrap().to_owned()
    }

    fn redeem(&self, code: &str) -> Seen {
        let form = format!(
            "grant_type=authorization_code&code={code}&redirect_uri={}&client_id={}&client_secret={}",
            percent(&self.back),
            self.app.id,
            self.secret.as_ref().unwrap().expose()
        );
        Surfer::new().curl(&["-d", &form, &format!("{}/oidc/token", self.base)])
    }

    fn access(&self, browser: &Surfer) -> String {
        self.given(browser)["access_token"].as_str().unwrap().to_owned()
    }

    fn question(&self, change: &str) -> String {
        let scope = "scope=openid+profile+offline_access&response_type=code&state=s";
        let client = format!("client_id={}&redirect_uri={}", self.app.id, percent(&self.back));
        format!("{}/oidc/authorize?{client}&{scope}{change}", self.base)
    }

    /// Whatever somebody signed in asks at the app's wish.
    fn authorize(&self, browser: &Surfer, change: &str) -> Seen {
        self.agreeing(browser, &self.question(change))
    }
}

fn members(house: &House) -> Members {
    Members::open(&house.folder.path().join("polder.db")).unwrap()
}

fn percent(text: &str) -> String {
    text.replace(':', "%3A").replace('/', "%2F").replace('?', "%3F").replace('=', "%3D")
}

fn read(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|_| panic!("the client says: {line}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_signs_in_at_an_app_with_the_box_and_is_gone_there_when_they_are_gone_here() {
    for with_secret in [true, false] {
        let place = Place::open(with_secret, false).await;
        let mut client = place.client();
        let browser = Surfer::new();
        // Nobody is signed in yet: the box asks, and goes on with the app's question.
        let to = client.ask("begin");
        let form = browser.get(&to);
        assert!(form.url.contains("/sign-in?next="), "{form:?}");
        let next = form.body.split("name=\"next\" value=\"").nth(1).unwrap();
        let next = next.split('"').next().unwrap().replace("&amp;", "&");
        let sent = browser.curl(&[
            "-H",
            &format!("Origin: {}", place.base),
            "--data-urlencode",
            "name=ada",
            "--data-urlencode",
            "password=correct horse battery",
            "--data-urlencode",
            &format!("next={next}"),
            &format!("{}/sign-in", place.base),
        ]);
        assert!(sent.url.contains("/oidc/authorize?"), "{sent:?}");
        let back = place.agreeing(&browser, &sent.url);
        assert!(back.url.starts_with("http://localhost:1/back?code="), "{back:?}");
        let said = read(&client.ask(&back.url));
        assert_eq!(said["proof"]["iss"], place.base.as_str());
        assert_eq!(said["proof"]["sub"], "member-1");
        assert_eq!(said["told"]["name"], "ada");
        assert_eq!(said["told"]["groups"], serde_json::json!(["stewards", "members"]));
        assert_eq!(said["told"]["email"], "member-1@oak.local");
        assert_eq!(said["told"]["email_verified"], false);
        // A code is good once, and who brings it again loses what it was good for.
        assert_eq!(client.ask("refresh"), "{}");
        assert_eq!(read(&client.ask("who"))["sub"], "member-1");
        assert!(client.ask(&back.url).contains("invalid_grant"));
        assert!(client.ask("who").starts_with("no "));
        // Signed in here means signed in there, without a question; signed out here means out there.
        let back = browser.step(&client.ask("begin"));
        read(&client.ask(&back.url));
        assert_eq!(read(&client.ask("who"))["sub"], "member-1");
        browser.post(&format!("{}/sign-out", place.base), &[]);
        assert!(client.ask("who").starts_with("no "));
        assert!(client.ask("refresh").contains("invalid_grant"));
        // A member who is removed.
        let grace = place.browser("grace");
        let back = place.agreeing(&grace, &client.ask("begin"));
        let said = read(&client.ask(&back.url));
        assert_eq!(said["told"]["groups"], serde_json::json!(["members"]));
        let db = members(&place.house);
        let id = db.members().unwrap().into_iter().find(|m| m.name == "grace").unwrap().id;
        db.remove_member(id).unwrap();
        assert!(client.ask("who").starts_with("no "));
        assert!(client.ask("refresh").contains("invalid_grant"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_webuis_client_signs_people_in_over_tls_with_the_boxs_own_authority() {
    let place = Place::open(true, false).await;
    let port = free_port();
    let callback = format!("http://127.0.0.1:{port}/oauth/oidc/callback");
    let new = NewClientApp {
        name: "Open WebUI".into(),
        redirects: vec![callback.clone()],
        with_secret: true,
        ..NewClientApp::default()
    };
    let (app, secret) = members(&place.house).add_client_app(&new).unwrap();
    let tls = format!("https://localhost:{}", place.house.port);
    let ca = place.house.folder.path().join("pki/ca.pem");
    let _app = Program::begin(
        Command::new(tools("venv-oidc/bin/python"))
            .args([&script("webui.py"), &port.to_string()])
            .env("OAUTH_CLIENT_ID", &app.id)
            .env("OAUTH_CLIENT_SECRET", secret.unwrap().expose())
            .env("OPENID_PROVIDER_URL", format!("{tls}/.well-known/openid-configuration"))
            .env("OPENID_REDIRECT_URI", &callback)
            .env("OAUTH_SCOPES", "openid email profile groups")
            .env("OAUTH_CODE_CHALLENGE_METHOD", "S256")
            .env("OAUTH_USERNAME_CLAIM", "name")
            .env("OAUTH_ROLES_CLAIM", "groups")
            .env("OAUTH_ALLOWED_ROLES", "members")
            .env("OAUTH_ADMIN_ROLES", "stewards")
            .env("SSL_CERT_FILE", &ca),
    );
    listens(port);
    let ca = ca.display().to_string();
    for (who, role) in [("ada", "admin"), ("grace", "user")] {
        let browser = Surfer::new();
        let trusting = |arguments: &[&str]| browser.curl(&[&["--cacert", &ca], arguments].concat());
        let fields = format!("name={who}&password=correct+horse+battery");
        let origin = format!("Origin: {tls}");
        let signed_in = trusting(&["-H", &origin, "-d", &fields, &format!("{tls}/sign-in")]);
        assert_eq!(signed_in.status, 303, "{signed_in:?}");
        let login = format!("http://127.0.0.1:{port}/oauth/oidc/login");
        let page = trusting(&["-L", "--max-redirs", "9", &login]);
        assert!(page.body.contains("Sign in at Open WebUI?"), "{page:?}");
        let question = page.body.split("name=\"question\" value=\"").nth(1).unwrap();
        let question = question.split('"').next().unwrap().replace("&amp;", "&");
        let question = format!("question={question}");
        let member = page.body.split("name=\"member\" value=\"").nth(1).unwrap();
        let member = format!("member={}", member.split('"').next().unwrap());
        let agree = format!("{tls}/oidc/agree");
        let yes =
            ["-H", &origin, "--data-urlencode", &question, "-d", &member, "-d", "says=yes", &agree];
        let page = trusting(&[&["-L", "--max-redirs", "9"], &yes[..]].concat());
        assert_eq!(page.status, 200, "{page:?}");
        let told = read(&page.body);
        assert_eq!((told["name"].as_str(), told["role"].as_str()), (Some(who), Some(role)));
        assert!(told["email"].as_str().unwrap().ends_with("@oak.local"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_a_steward_lets_asks_models_in_a_members_name_until_they_sign_out() {
    let place = Place::open(true, false).await;
    let back = place.back.clone();
    let new = NewClientApp {
        name: "Chat".into(),
        redirects: vec![back],
        with_secret: true,
        asks_models: true,
        ..NewClientApp::default()
    };
    let (app, secret) = members(&place.house).add_client_app(&new).unwrap();
    let place = Place { app, secret, ..place };
    let grace = place.browser("grace");
    let page = grace.step(&place.question(""));
    assert!(page.body.contains("Ask models in your name"), "{page:?}");
    let given = place.given(&grace);
    let access = given["access_token"].as_str().unwrap();
    let listed = async |token: &str| {
        let ask = format!("GET /v1/models\nauthorization: Bearer {token}");
        status_of(&place.house.ask(&ask, "").await)
    };
    assert_eq!(listed(access).await, 200);
    // It opens the API and nothing else, and no other token of theirs does.
    let refresh = given["refresh_token"].as_str().unwrap();
    assert_eq!(listed(refresh).await, 401);
    assert_eq!(listed(&access.to_uppercase()).await, 401);
    let auth = format!("GET /auth\nauthorization: Bearer {access}");
    assert_eq!(status_of(&place.house.ask(&auth, "").await), 401);
    let figures = format!("GET /metrics\nauthorization: Bearer {access}");
    assert_eq!(status_of(&place.house.ask(&figures, "").await), 403, "grace is no steward");
    // What they agreed to is on their own page; taken back, it opens nothing from that moment on.
    let account = grace.get(&format!("{}/account", place.base));
    assert!(account.body.contains("asks models in your name"), "{account:?}");
    let taken = format!("{}/account/apps/take-back", place.base);
    let page = grace.post(&taken, &[("app", &place.app.id)]);
    assert!(page.url.ends_with("/account?said=app-back"), "{page:?}");
    assert!(!page.body.contains("asks models in your name"), "{page:?}");
    assert_eq!(listed(access).await, 401);
    let renew = format!(
        "grant_type=refresh_token&refresh_token={refresh}&client_id={}&client_secret={}",
        place.app.id,
        place.secret.as_ref().unwrap().expose()
    );
    let renewed = Surfer::new().curl(&["-d", &renew, &format!("{}/oidc/token", place.base)]);
    assert!(renewed.status == 400 && renewed.body.contains("invalid_grant"), "{renewed:?}");
    // Agreed to anew, and ended by signing out, or by a code that comes a second time: an answer that is just being given ends with it.
    let code = place.code(&grace);
    let again = || place.redeem(&code);
    let signs_out = || grace.post(&format!("{}/sign-out", place.base), &[]);
    let by_code = read(&again().body)["access_token"].as_str().unwrap().to_owned();
    let by_session = place.access(&grace);
    let endings: [(&str, &(dyn Fn() -> Seen + Sync)); 2] =
        [(&by_code, &again), (&by_session, &signs_out)];
    for (access, ends) in endings {
        assert_eq!(listed(access).await, 200);
        let before = place.house.engine.requests();
        let head = format!("POST /v1/chat/completions\nauthorization: Bearer {access}");
        let question = "{\"model\":\"small\",\"stream\":true,\"tokens\":4000,\"pause_ms\":50}";
        let ending = async {
            soon("the engine is asked", || place.house.engine.requests() > before).await;
            tokio::task::block_in_place(ends)
        };
        let (answer, _) = tokio::join!(place.house.ask(&head, question), ending);
        assert_eq!(status_of(&answer), 200, "{answer}");
        assert!(answer.contains("app_taken_back") && !answer.contains("[DONE]"), "{answer}");
        assert_eq!(listed(access).await, 401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn before_an_app_learns_anything_its_member_is_asked_once_and_again_when_it_wants_more() {
    let place = Place::open(true, false).await;
    let grace = place.browser("grace");
    let page = grace.step(&place.question("&prompt=none"));
    assert!(page.url.contains("error=consent_required"), "{page:?}");
    let page = grace.step(&place.question(""));
    assert_eq!(page.status, 200, "{page:?}");
    for words in [
        "Sign in at Wiki?",
        "Your name: <strong>grace",
        "Nothing. It asks this box only",
        "When you signed in on this box",
    ] {
        assert!(page.body.contains(words), "{words}: {page:?}");
    }
    assert!(!page.body.contains("e-mail address") && !page.body.contains("more than you agreed"));
    // No is told to the app, and is no yes.
    let no = place.says(&grace, &page, "no");
    assert!(no.url.contains("error=access_denied") && no.url.contains("state=s"), "{no:?}");
    // Another site's page cannot press the button, and nobody says it for somebody else.
    let foreign = grace.curl(&[
        "-H",
        "Origin: https://evil.example",
        "-d",
        "says=yes",
        &format!("{}/oidc/agree", place.base),
    ]);
    assert_eq!(foreign.status, 403, "{foreign:?}");
    assert_eq!(grace.step(&place.question("")).status, 200, "asked until they say yes");
    assert!(place.agreeing(&grace, &place.question("")).url.contains("code="));
    assert!(grace.step(&place.question("&prompt=none")).url.contains("code="));
    assert!(grace.step(&place.question("")).url.contains("code="));
    let other = place.browser("ada").step(&place.question(""));
    assert!(other.status == 200 && other.body.contains("Sign in at Wiki?"), "{other:?}");
    // A page that was shown to somebody else who was signed in here before agrees to nothing.
    let old = place.says(&grace, &other, "yes");
    assert!(old.status == 400 && old.body.contains("omebody else signed in"), "{old:?}");
    // An app that asks them to be asked, and one that wants to see more.
    let page = grace.step(&place.question("&prompt=consent"));
    assert!(page.status == 200 && !page.body.contains("more than you agreed"), "{page:?}");
    let on = place.says(&grace, &page, "yes");
    assert!(grace.step(&on.url).url.contains("code="), "{on:?}");
    let more = place.question("").replace("openid+profile", "openid+profile+email");
    let page = grace.step(&more);
    for words in ["more than you agreed to before", "member-2@oak.local"] {
        assert!(page.body.contains(words), "{words}: {page:?}");
    }
    // A question that was changed on the way through the browser is judged like any other.
    let bent = format!("client_id={}&redirect_uri=https://evil.example&scope=openid", place.app.id);
    let origin = format!("Origin: {}", place.base);
    let bent = format!("question={bent}");
    let to = format!("{}/oidc/agree", place.base);
    let page = grace.curl(&["-H", &origin, "--data-urlencode", &bent, "-d", "says=yes", &to]);
    assert!(page.status == 400 && !page.heads.contains("location"), "{page:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_sent_to_an_address_that_a_steward_did_not_write_down() {
    let place = Place::open(true, false).await;
    let browser = place.browser("ada");
    let good = place.authorize(&browser, "");
    assert!(good.status == 303 && good.url.contains("code="), "{good:?}");
    let issuer = percent(&place.base);
    assert!(good.url.contains("&state=s&iss=") && good.url.ends_with(&issuer), "{good:?}");
    for question in [
        format!("client_id={}&redirect_uri=https%3A%2F%2Fevil.example", place.app.id),
        format!("client_id={}", place.app.id),
        format!("client_id=other&redirect_uri={}", percent(&place.back)),
        format!("client_id={0}&client_id={0}&redirect_uri={1}", place.app.id, percent(&place.back)),
    ] {
        let address =
            format!("{}/oidc/authorize?{question}&response_type=code&scope=openid", place.base);
        let page = browser.step(&address);
        assert_eq!(page.status, 400, "{question}: {page:?}");
        assert!(!page.heads.contains("location"), "{question}: {page:?}");
    }
    // The first state counts as the question has it: one that comes twice is refused.
    assert_eq!(place.authorize(&browser, "&state=t").status, 400);
    // A program that may ask nobody anything.
    let stranger = place.authorize(&Surfer::new(), "&prompt=none");
    assert!(stranger.url.contains("error=login_required"), "{stranger:?}");
    assert!(place.authorize(&browser, "&prompt=none").url.contains("code="));
    // One that wants them to sign in anew.
    let again = place.authorize(&browser, "&prompt=login&max_age=9999");
    if again.url.contains("/sign-in?") {
        assert!(again.url.ends_with("&again=yes") && !again.url.contains("prompt"), "{again:?}");
        assert_eq!(
            browser.step(&again.url).status,
            200,
            "whoever is signed in is asked all the same"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_for_stewards_tells_a_member_so_and_one_that_is_removed_gets_nothing() {
    let place = Place::open(true, true).await;
    let denied = place.authorize(&place.browser("grace"), "");
    assert!(denied.url.contains("error=access_denied"), "{denied:?}");
    let ada = place.browser("ada");
    let code = place.authorize(&ada, "");
    let code = code.url.split("code=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    // An app is no browser: it has no cookies.
    let program = Surfer::new();
    let token = |extra: &str| {
        let form = format!(
            "grant_type=authorization_code&code={code}&redirect_uri={}{extra}",
            percent(&place.back)
        );
        program.curl(&["-d", &form, &format!("{}/oidc/token", place.base)])
    };
    let id = &place.app.id;
    let secret = place.secret.as_ref().unwrap().expose();
    // Whoever has no secret, a wrong one, or two ways to say so gets nothing, and the code stays good.
    for extra in [
        String::new(),
        format!("&client_id={id}"),
        format!("&client_id={id}&client_secret=wrong"),
        format!("&client_id=other&client_secret={secret}"),
    ] {
        let refused = token(&extra);
        assert!([400, 401].contains(&refused.status), "{extra}: {refused:?}");
        assert!(refused.heads.contains("cache-control: no-store"), "{refused:?}");
    }
    let good = token(&format!("&client_id={id}&client_secret={secret}"));
    assert_eq!(good.status, 200, "{good:?}");
    let given = read(&good.body);
    let who = |token: &str| {
        let bearer = format!("Authorization: Bearer {token}");
        program.curl(&["-H", &bearer, &format!("{}/oidc/userinfo", place.base)])
    };
    let access = given["access_token"].as_str().unwrap();
    assert_eq!(who(access).status, 200);
    // A key of the box is no such token, and such a token is no key.
    assert_eq!(who(&place.house.key).status, 401);
    let key = format!("GET /v1/models\nauthorization: Bearer {access}");
    assert_eq!(status_of(&place.house.ask(&key, "").await), 401);
    members(&place.house).remove_client_app(id).unwrap();
    assert_eq!(who(access).status, 401);
    assert!(place.authorize(&ada, "").status == 400);
    for path in ["/.well-known/openid-configuration", "/oidc/keys"] {
        assert_eq!(ada.step(&format!("{}{path}", place.base)).status, 404);
    }
}
