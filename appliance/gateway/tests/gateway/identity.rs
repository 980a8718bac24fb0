//! People come in with what their collective has: two services by other people, neither of which knows this box.

use std::process::Command;
use std::time::Duration;

use polder_members::{Members, Role};
use polder_site::SignIn;

use crate::house::{House, Wish, status_of};
use crate::surfer::{Program, Seen, Surfer, free_port, listens, script, tools};
use crate::window::Window;

const SECRET: &str = "the secret of the box";

struct Place {
    house: House,
    base: String,
    site: SignIn,
    service: Option<Program>,
}

impl Place {
    /// A box beside npm's oidc-provider, which is strict.
    async fn strict(algorithm: &str, change: impl FnOnce(&mut SignIn)) -> Self {
        let house = House::open_as(Wish::default()).await;
        let (base, port) = (format!("http://localhost:{}", house.port), free_port());
        let back = format!("{base}/sign-in/back");
        let service = Program::start(Command::new("node").args([
            &script("service.mjs"),
            &tools("oidc-provider"),
            &port.to_string(),
            algorithm,
            &back,
        ]));
        Self::beside(house, base, port, Some(service), change).await
    }

    /// A box beside PyPI's oidc-provider-mock, which takes any client.
    async fn easy(change: impl FnOnce(&mut SignIn)) -> Self {
        let house = House::open_as(Wish::default()).await;
        let (base, port) = (format!("http://localhost:{}", house.port), free_port());
        let person = |sub: &str, groups: &str| {
            format!(
                "{{\"sub\":\"{sub}\",\"name\":\"{sub}\",\"email\":\"{sub}@example.org\",\"email_verified\":true,\"groups\":[{groups}]}}"
            )
        };
        let service = Program::begin(
            Command::new(tools("venv-oidc/bin/python"))
                .args(["-m", "oidc_provider_mock", "--port", &port.to_string()])
                .args(["--require-nonce", "true"])
                .args(["--user-claims", &person("zoe", "\"house\",\"keepers\"")]),
        );
        listens(port);
        Self::beside(house, base, port, Some(service), change).await
    }

    async fn beside(
        house: House,
        base: String,
        port: u16,
        service: Option<Program>,
        change: impl FnOnce(&mut SignIn),
    ) -> Self {
        let issuer = format!("http://127.0.0.1:{port}");
        let mut site = SignIn::at("our house", issuer.parse().unwrap(), "box");
        site.new_people = true;
        change(&mut site);
        let place = Self { house, base, site, service };
        let folder = place.house.folder.path().join("pki/identity");
        std::fs::create_dir_all(&folder).unwrap();
        let kept = serde_json::json!({ "issuer": issuer, "client": "box", "secret": SECRET });
        std::fs::write(folder.join("secret.json"), kept.to_string()).unwrap();
        place.name(Some(place.site.clone())).await;
        place
    }

    async fn name(&self, site: Option<SignIn>) {
        self.house.status.send_modify(|status| status.site.sign_in = site.clone());
        for _ in 0..500 {
            let page = self.house.ask("GET /sign-in", "").await;
            if page.contains("Sign in with our house") == site.is_some() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the door did not hear of it");
    }

    fn members(&self) -> Members {
        Members::open(&self.house.folder.path().join("polder.db")).unwrap()
    }

    fn role(&self, name: &str) -> Option<Role> {
        self.members().members().unwrap().into_iter().find(|m| m.name == name).map(|m| m.role)
    }

    fn go(&self, surfer: &Surfer, next: &str) -> Seen {
        surfer.get(&format!("{}/sign-in/with?next={next}", self.base))
    }

    /// Signs in at the strict service as this person.
    fn sign_in(&self, surfer: &Surfer, who: &str, next: &str) -> Seen {
        let form = self.go(surfer, next);
        assert!(form.body.contains("name=\"login\""), "{form:?}");
        let fields = [("prompt", "login"), ("login", who), ("password", "x")];
        let consent = surfer.post(&form.form(), &fields);
        assert!(consent.body.contains("value=\"consent\""), "{consent:?}");
        surfer.post(&consent.form(), &[("prompt", "consent")])
    }
}

fn groups(site: &mut SignIn) {
    site.members = vec!["house".into()];
    site.stewards = vec!["keepers".into()];
}

#[tokio::test(flavor = "multi_thread")]
async fn people_come_in_by_a_strict_service_and_become_what_its_groups_say() {
    for algorithm in ["RS256", "ES256"] {
        let place = Place::strict(algorithm, |site| {
            groups(site);
            site.tell_email = true;
        })
        .await;
        let bo = Surfer::new();
        let page = place.sign_in(&bo, "bo", "/account");
        assert_eq!(page.url, format!("{}/?said=welcome", place.base), "{page:?}");
        assert!(!page.heads.contains(SECRET) && !page.heads.contains("code_verifier"), "{page:?}");
        assert_eq!(place.role("bo"), Some(Role::Member));
        // The second time the service knows them, and they end up where they wanted to go.
        bo.post(&format!("{}/sign-out", place.base), &[]);
        let page = place.go(&bo, "/account");
        assert_eq!(
            (page.status, page.url.as_str()),
            (200, format!("{}/account", place.base).as_str())
        );
        assert!(page.body.contains("You can sign in with our house"), "{}", page.body);
        // An app behind a web server hears the address that is proven, and only that.
        let auth = bo.step(&format!("{}/auth", place.base));
        assert_eq!(auth.status, 202);
        assert!(auth.heads.contains("x-auth-request-email: bo@example.org"), "{}", auth.heads);
        let mallory = Surfer::new();
        place.sign_in(&mallory, "mallory", "/");
        let auth = mallory.step(&format!("{}/auth", place.base));
        assert!(auth.heads.contains("x-auth-request-email: member-3@oak.local"), "{}", auth.heads);
        // The service's steward is another person than the box's of the same name.
        let page = place.sign_in(&Surfer::new(), "ada", "/");
        assert!(page.url.ends_with("/?said=welcome"), "{page:?}");
        assert_eq!(place.role("ada 2"), Some(Role::Steward));
        assert_eq!(place.role("ada"), Some(Role::Steward));
        // Somebody from elsewhere is told why not, on the page with the other way in.
        let page = place.sign_in(&Surfer::new(), "stranger", "/");
        assert_eq!(page.status, 403, "{page:?}");
        assert!(
            page.body.contains("none of the groups") && page.body.contains("Password"),
            "{page:?}"
        );
        let records = place.house.records.lock().unwrap().join("\n");
        assert!(records.contains("bo joined through our house as member"), "{records}");
        assert!(records.contains("ada 2 joined through our house as steward"), "{records}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn people_come_in_by_another_service_and_one_who_says_no_does_not() {
    let place = Place::easy(groups).await;
    let zoe = Surfer::new();
    let form = place.go(&zoe, "/usage");
    assert!(form.body.contains("name=\"sub\""), "{form:?}");
    // It forgets whose question it denies, so that the box cannot know either and shows nothing of what it sends along.
    let denied = zoe.post(&form.url, &[("action", "deny")]);
    assert_eq!(denied.status, 400, "{denied:?}");
    assert!(denied.body.contains("begin again"), "{}", denied.body);
    let form = place.go(&zoe, "/usage");
    let page = zoe.post(&form.url, &[("sub", "zoe")]);
    assert!(page.url.ends_with("/?said=welcome"), "{page:?}");
    assert_eq!(place.role("zoe"), Some(Role::Steward));
    // The address is told nobody where the site does not say so.
    let auth = zoe.step(&format!("{}/auth", place.base));
    assert!(auth.heads.contains("x-auth-request-email: member-2@oak.local"), "{}", auth.heads);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_did_not_begin_it_ends_nothing_and_an_answer_is_good_once() {
    let place = Place::easy(|_| {}).await;
    let (mallory, victim) = (Surfer::new(), Surfer::new());
    let form = place.go(&mallory, "/");
    // Mallory stops before the box sees the answer, and has the victim's browser bring it.
    let answer = step_post(&mallory, &form.url, "sub=zoe");
    assert!(answer.url.contains("/sign-in/back?") && answer.url.contains("code="), "{answer:?}");
    let came = victim.get(&answer.url);
    assert_eq!(came.status, 400, "{came:?}");
    assert!(!victim.jar().contains("\tpolder\t"), "{}", victim.jar());
    // Not with a cookie of the victim's own either.
    place.go(&victim, "/");
    assert_eq!(victim.get(&answer.url).status, 400);
    // Whoever began it may end it, once, also if the cookie is put back.
    let jar = mallory.jar();
    assert_eq!(mallory.get(&answer.url).status, 200);
    mallory.keep_jar(&jar);
    let again = mallory.get(&answer.url);
    assert_eq!(again.status, 400, "{again:?}");
    assert!(again.body.contains("begin again"), "{}", again.body);
    // What nobody could have sent on purpose.
    for odd in ["", "?state=a&state=b", "?state=&code=", "?code=x", "?error=x", "?state=%FF"] {
        let came = mallory.get(&format!("{}/sign-in/back{odd}", place.base));
        assert_eq!(came.status, 400, "{odd}: {came:?}");
    }
}

/// A form that is sent without following where it leads.
fn step_post(surfer: &Surfer, url: &str, form: &str) -> Seen {
    surfer.curl(&["-d", form, url])
}

#[tokio::test(flavor = "multi_thread")]
async fn another_person_in_the_same_browser_is_another_person() {
    let place = Place::easy(|_| {}).await;
    let browser = Surfer::new();
    let as_somebody = |who: &str| {
        let form = place.go(&browser, "/");
        browser.post(&form.url, &[("sub", who)]);
        browser.get(&format!("{}/account", place.base)).body
    };
    assert!(as_somebody("zoe").contains("zoe"));
    let before = browser.jar();
    let page = as_somebody("yan");
    assert!(page.contains("yan") && !page.contains("zoe"), "{page}");
    // The session before it is over, not merely out of sight.
    let old = Surfer::new();
    old.keep_jar(&before);
    assert!(old.get(&format!("{}/account", place.base)).url.contains("/sign-in"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_links_their_own_identity_with_their_password_and_nobody_elses() {
    let place = Place::easy(|site| site.new_people = false).await;
    let browser = Surfer::new();
    let sign_in = [("name", "ada"), ("password", "correct horse battery")];
    // Nobody is linked by a name or an address that is alike.
    let form = place.go(&browser, "/");
    let unknown = browser.post(&form.url, &[("sub", "ada")]);
    assert_eq!(unknown.status, 403, "{unknown:?}");
    assert!(unknown.body.contains("link it on your account page"), "{}", unknown.body);
    browser.post(&format!("{}/sign-in", place.base), &sign_in);
    let link = format!("{}/account/link", place.base);
    let wrong = browser.post(&link, &[("proof", "a wrong password")]);
    assert!(wrong.body.contains("not your present password"), "{wrong:?}");
    let page = browser.post(&link, &[("proof", "correct horse battery")]);
    assert_eq!(page.status, 200, "{page:?}");
    let to = page.heads.split("refresh: 0; url=").nth(1).map(|rest| rest.lines().next().unwrap());
    assert!(to.is_some(), "{page:?}");
    let to = page.body.split("href=\"").find(|part| part.starts_with("http://127.0.0.1")).unwrap();
    let to = to.split('"').next().unwrap().replace("&amp;", "&");
    let form = browser.get(&to);
    let done = browser.post(&form.url, &[("sub", "ada")]);
    assert!(done.url.ends_with("/account?said=linked"), "{done:?}");
    // Another browser comes in by it now.
    let other = Surfer::new();
    let form = place.go(&other, "/account");
    let page = other.post(&form.url, &[("sub", "ada")]);
    assert!(page.url.ends_with("/account") && page.body.contains("ada"), "{page:?}");
    // Another site's page cannot begin it: there is no way but the form, and that wants an origin and the password.
    let key = format!("cookie: polder={}\norigin: http://evil.example", place.house.session);
    let foreign = place.house.ask(&format!("POST /account/link\n{key}"), "proof=x").await;
    assert_eq!(status_of(&foreign), 403, "{foreign}");
    let page = browser.post(&format!("{}/account/unlink", place.base), &[]);
    assert!(page.url.ends_with("said=unlinked"), "{page:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_away_leaves_the_password_and_every_role_as_it_was() {
    let mut place = Place::easy(groups).await;
    let zoe = Surfer::new();
    let form = place.go(&zoe, "/");
    zoe.post(&form.url, &[("sub", "zoe")]);
    assert_eq!(place.role("zoe"), Some(Role::Steward));
    drop(place.service.take());
    // A box that knows nothing of it yet finds nobody, and says so beside the password.
    let mut anew = place.site.clone();
    anew.client = "another".into();
    place.name(Some(anew)).await;
    let away = Surfer::new();
    let page = place.go(&away, "/");
    assert_eq!(page.status, 503, "{page:?}");
    assert!(page.heads.contains("retry-after"), "{}", page.heads);
    assert!(
        page.body.contains("does not answer") && page.body.contains("Password"),
        "{}",
        page.body
    );
    let page = away.post(
        &format!("{}/sign-in", place.base),
        &[("name", "ada"), ("password", "correct horse battery"), ("next", "/account")],
    );
    assert!(page.url.ends_with("/account"), "{page:?}");
    assert_eq!((place.role("ada"), place.role("zoe")), (Some(Role::Steward), Some(Role::Steward)));
    // Without a service there is no such way at all.
    place.name(None).await;
    assert_eq!(place.go(&away, "/").status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_browser_goes_to_the_service_and_back_and_on_to_an_app() {
    let place = Place::easy(groups).await;
    let window = Window::open();
    // By the button, and back to where they wanted to go.
    window.visit(&format!("{}/usage", place.base));
    window.press("link text", "Sign in with our house");
    window.fill("input[name=sub]", "zoe");
    window.press("css selector", "form button[type=submit]");
    window.at("/?said=welcome");
    window.hear("zoe");
    // To an app, which asks the box; its page is the one of the service here, which says what it does not know.
    let back = format!("{}/back-at-the-app", place.site.issuer);
    let new = polder_members::NewClientApp {
        name: "Wiki".into(),
        redirects: vec![back],
        with_secret: true,
        ..polder_members::NewClientApp::default()
    };
    let (app, _) = place.members().add_client_app(&new).unwrap();
    let question = format!(
        "{}/oidc/authorize?response_type=code&scope=openid&state=s&client_id={}&redirect_uri={}/back-at-the-app",
        place.base, app.id, place.site.issuer
    );
    window.visit(&question);
    // The first time they are asked, and no is no.
    window.hear("Sign in at Wiki?");
    window.press("css selector", "button[value=no]");
    window.at("/back-at-the-app?error=access_denied");
    window.visit(&question);
    window.press("css selector", "button[value=yes]");
    window.at("/back-at-the-app?code=");
    window.visit(&question);
    window.at("/back-at-the-app?code=");
    // Signed out, they sign in by the form, which may lead to no other site: the page after it goes on by itself.
    window.visit(&format!("{}/oidc/end", place.base));
    window.press("css selector", "form[action='/sign-out'] button");
    window.at("/sign-in");
    window.visit(&question);
    window.fill("input[name=name]", "ada");
    window.fill("input[name=password]", "correct horse battery");
    window.press("css selector", "form[action='/sign-in'] button");
    window.press("css selector", "button[value=yes]");
    window.at("/back-at-the-app?code=");
    // Linking begins with a form too, and comes back from the service.
    window.visit(&format!("{}/account", place.base));
    window.fill("input[name=proof]", "correct horse battery");
    window.press("css selector", "form[action='/account/link'] button");
    window.fill("input[name=sub]", "ada");
    window.press("css selector", "form button[type=submit]");
    window.at("/account?said=linked");
}
