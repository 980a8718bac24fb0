//! Every page as a browser gets it: over the router, with a supervisor and an engine that are fakes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request as HttpRequest, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt;
use http_body_util::BodyExt;
use polder_control::{
    Actor, AuditEntry, AuditHead, BoxStatus, ControlError, Disk, EndRecord, EngineStatus, Event,
    Handler, ImageStatus, Lock, Machine, OfferStatus, OpenShell, Outlet, PartState, PartStatus,
    Plan, Progress, Reply, Request, Run, RunId, RunState, Sockets, Step, StepState, Unit,
    UpdateStatus, UpdateWish,
};
use polder_members::{Clock, Member, Members, NewKey, NewMember, Role, Secret};
use polder_site::{App, EngineSlot, Site, SiteChange, Verifier, VerifierMode};
use tokio::sync::watch;
use tower::ServiceExt;

use crate::limits::Limits;
use crate::link::Link;
use crate::{CaInfo, Gateway, Peer};

pub(super) const PASSWORD: &str = "four words in a row";
const HOSTILE: &str = "<script>alert('x')</script>";

/// A box with a steward, a member, a model and some history.
pub(super) struct Place {
    pub(super) gateway: Arc<Gateway>,
    router: Router,
    asked: Arc<Mutex<Vec<Request>>>,
    pub(super) steward: (Member, String),
    pub(super) member: (Member, String),
    _folder: tempfile::TempDir,
}

#[derive(Clone)]
struct Supervisor {
    status: BoxStatus,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Handler<Request, Reply> for Supervisor {
    async fn handle(
        &self,
        question: Request,
        outlet: &mut Outlet<Reply>,
    ) -> Result<(), ControlError> {
        self.asked.lock().unwrap().push(question.clone());
        let reply = match question {
            Request::Status => Reply::Status(Box::new(self.status.clone())),
            Request::Watch => {
                outlet.send(&Reply::Event(Event::Status(Box::new(self.status.clone())))).await?;
                std::future::pending().await
            }
            Request::Machine => Reply::Machine(Machine {
                cpu: "A processor with sixteen threads".into(),
                threads: 16,
                memory: 64 << 30,
                disk_free: 400 << 30,
                disk_total: 500 << 30,
                gpus: Vec::new(),
                driver: None,
                idle_cards: 0,
                ports: Vec::new(),
            }),
            Request::Disk => Reply::Disk(Some(Disk {
                lock: Lock::Sealed,
                chip: true,
                secure_boot: false,
                signed: true,
            })),
            Request::Seal { .. } | Request::ConfirmSeal { .. } => {
                Reply::Refused("only the wizard asks for that".into())
            }
            Request::Runs => Reply::Runs(runs()),
            Request::Imported => Reply::Imported(vec!["smollm2-135m-instruct".parse().unwrap()]),
            Request::Preview(_) => {
                Reply::Preview { differences: Vec::new(), plan: runs().remove(0).plan }
            }
            Request::Apply { change: SiteChange::Certificate(wish), .. }
                if wish.contact.as_deref() == Some("refused@example.org") =>
            {
                Reply::Refused("the box is busy".into())
            }
            Request::Apply { .. } | Request::Import { .. } => Reply::Accepted(RunId(7)),
            Request::Audit { .. } => Reply::Audit(audit()),
            Request::Updates | Request::CheckUpdate => Reply::Updates(Box::new(updates())),
            Request::PreviewUpdate(_) => {
                Reply::Preview { differences: Vec::new(), plan: runs().remove(0).plan }
            }
            Request::Update { .. } => Reply::Accepted(RunId(7)),
            Request::Judge => Reply::Judged(None),
            Request::Takeover => Reply::Takeover(None),
            Request::PreviewTakeover(_) => Reply::Refused("not here".into()),
            Request::TakeOver { .. } => Reply::Accepted(RunId(7)),
            Request::ServeAnyway { .. } | Request::Yield { .. } => Reply::Done,
            Request::Supply(_) => Reply::Supplied { drained: false },
            Request::Backup => Reply::Backup(Box::default()),
            Request::PairSpare { .. } => Reply::Accepted(RunId(7)),
            Request::BackupKit { .. } => Reply::Kit(kit()),
            Request::PreviewBackup(_) => Reply::Refused("not here".into()),
            Request::Backups { .. } => Reply::Accepted(RunId(7)),
            Request::ConfirmKit { .. } => Reply::Done,
            Request::Shell | Request::CloseShell { .. } => Reply::Shell(None),
            Request::OpenShell { .. } => Reply::Shell(Some(OpenShell {
                fingerprint: "SHA256:abc".into(),
                until: 4_000_000_000,
            })),
            Request::AuditHead => Reply::AuditHead(AuditHead { number: 3, hash: "ab".repeat(32) }),
            Request::PreviewEnd { .. } => {
                Reply::Preview { differences: Vec::new(), plan: runs().remove(0).plan }
            }
            Request::End { keep_models, by, fingerprint } => Reply::Ended(Box::new(EndRecord {
                name: "oak".into(),
                at: "2026-11-27T10:00:00Z".into(),
                by,
                fingerprint,
                keep_models,
                steps: vec!["Overwrite the keys".into()],
                audit: AuditHead { number: 12, hash: "ab".repeat(32) },
            })),
            Request::Record { .. }
            | Request::Noticed { .. }
            | Request::Power { .. }
            | Request::SetClock { .. }
            | Request::UpsPassword { .. }
            | Request::Confirm { .. }
            | Request::Cancel(_) => Reply::Done,
        };
        outlet.send(&reply).await
    }
}

fn kit() -> polder_control::KitWords {
    polder_control::KitWords(polder_backup::KitKey::make().unwrap().expose().to_owned())
}

fn updates() -> UpdateStatus {
    UpdateStatus {
        image: Some(ImageStatus {
            version: "0.1.0".into(),
            arch: "x86_64".into(),
            roothash: "ab".repeat(32),
            kernel: "6.12.117+deb13-amd64".into(),
            driver: None,
            other: Some("0.0.9".into()),
            back: Ok("0.0.9".into()),
            keys: 1,
        }),
        offer: Some(OfferStatus {
            version: "0.2.0".into(),
            from: "/run/media/STICK".into(),
            age: "as of 2026-11-25, today".into(),
            bytes: 240 << 20,
            here: false,
            roothash: "cd".repeat(32),
        }),
        trying: None,
        why: vec!["Ada put in 0.1.0 in place of 0.0.9. It stays.".into()],
    }
}

fn runs() -> Vec<Run> {
    let step = |id: &str, title: &str| Step { id: id.into(), title: title.into() };
    let plan = Plan {
        title: "Use Qwen3 0.6B".into(),
        steps: vec![
            step("fetch", "Import Qwen3 0.6B (1.4 GiB)"),
            step("stop", "Let SmolLM2 135M finish"),
            step("start", "Start Qwen3 0.6B"),
        ],
    };
    let progress = Progress {
        phase: "fetching".into(),
        done: 640 << 20,
        total: Some(1400 << 20),
        unit: Unit::Bytes,
        rate: Some(11.4e6),
        eta_seconds: Some(70),
    };
    let failed =
        "the disk is full: 1.4 GiB are needed, 0.3 GiB are free; free some space and try again";
    vec![
        Run {
            id: RunId(7),
            plan: plan.clone(),
            steps: vec![StepState::Running(Some(progress)), StepState::Waiting, StepState::Waiting],
            state: RunState::Running,
        },
        Run {
            id: RunId(6),
            plan: Plan { title: "Import SmolLM2 135M".into(), ..plan },
            steps: vec![StepState::Failed(failed.into()), StepState::Waiting, StepState::Waiting],
            state: RunState::Failed(failed.into()),
        },
    ]
}

fn audit() -> Vec<AuditEntry> {
    let entry = |number, by: Actor, what: &str, on: &str| AuditEntry {
        number,
        at: "2026-11-23T07:00:00Z".into(),
        by,
        what: what.into(),
        on: on.into(),
        hash: "0".repeat(64),
    };
    vec![
        entry(12, Actor::Member("Ada Lovelace".into()), "invited", HOSTILE),
        entry(11, Actor::Member("Ada Lovelace".into()), "made key", "laptop (plk_8xk2…)"),
        entry(10, Actor::Console, "opened the claim window", "the box"),
        entry(9, Actor::Itself, "started", "fast"),
    ]
}

/// An engine that says what is asked of it, and some figures.
async fn engine(socket: std::path::PathBuf) {
    use axum::routing::{get, post};
    let answer = |body: String| async move {
        let asked: serde_json::Value = serde_json::from_str(&body).unwrap();
        let last = asked["messages"].as_array().unwrap().last().unwrap()["content"].clone();
        let text = last.as_str().unwrap();
        let piece = |text: &str| serde_json::json!({ "choices": [{ "index": 0, "delta": { "content": text } }] });
        let mut events: Vec<String> =
            text.split_inclusive(' ').map(|text| format!("data: {}\n\n", piece(text))).collect();
        for end in [
            r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#,
            "[DONE]",
        ] {
            events.push(format!("data: {end}\n\n"));
        }
        let events = futures_util::stream::iter(events).then(|event| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok::<_, std::convert::Infallible>(event)
        });
        ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events))
    };
    let figures = "vllm:num_requests_running 3\nvllm:num_requests_waiting 1\npolder_kv_blocks_used 25\n\
        polder_kv_blocks 100\nvllm:generation_tokens_total 1000\nvllm:prompt_tokens_total 5000\n";
    let model = r#"{"object":"list","data":[{"id":"m","max_model_len":4096}]}"#;
    let router = Router::new()
        .route("/v1/chat/completions", post(answer))
        .route("/v1/models", get(move || async move { model }))
        .route("/metrics", get(move || async move { figures }));
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
}

pub(super) async fn place() -> Place {
    place_with(Clock::system(), |_| {}, false).await
}

/// The same, telling the time by this clock.
pub(super) async fn place_at(clock: Clock) -> Place {
    place_with(clock, |_| {}, false).await
}

/// The same with a site that says something else.
pub(super) async fn place_of(different: impl FnOnce(&mut Site)) -> Place {
    place_with(Clock::system(), different, false).await
}

async fn place_with(clock: Clock, different: impl FnOnce(&mut Site), acme: bool) -> Place {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_owned();
    let sockets = Sockets::of(&state);
    let mut site = Site::unclaimed(8443);
    site.name = "oak".parse().unwrap();
    let slot = EngineSlot::serving("smollm2-135m-instruct".parse().unwrap());
    site.engines.insert("fast".parse().unwrap(), slot);
    different(&mut site);
    let part = |state| PartStatus { state, restarts: 1, pid: Some(1) };
    let status = BoxStatus {
        supply: None,
        closed: None,
        safe: false,
        engines: vec![EngineStatus {
            name: "fast".parse().unwrap(),
            recipe: "smollm2-135m-instruct".parse().unwrap(),
            socket: sockets.engine(&"fast".parse().unwrap()),
            part: part(PartState::Ready),
            note: Some("the processor computes, not the card: it came <late>".into()),
        }],
        gateway: part(PartState::Ready),
        site: site.clone(),
    };
    let asked: Arc<Mutex<Vec<Request>>> = Arc::default();
    let supervisor = Arc::new(Supervisor { status, asked: asked.clone() });
    let control = sockets.control();
    tokio::spawn(async move { polder_control::serve(&control, supervisor).await });
    std::fs::create_dir_all(sockets.engine(&"fast".parse().unwrap()).parent().unwrap()).unwrap();
    engine(sockets.engine(&"fast".parse().unwrap())).await;
    while !sockets.control().exists() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let members = Members::open_with_clock(&state.join("polder.db"), clock).unwrap();
    let link = Link::follow(&sockets, site, None);
    let ca = CaInfo {
        file: state.join("ca.pem"),
        pem: "-----BEGIN CERTIFICATE-----\n".into(),
        fingerprint: (0..32).map(|i| format!("{i:02X}")).collect::<Vec<_>>().join(":"),
    };
    let (_, ca) = watch::channel(ca);
    let acme = acme.then(|| polder_acme::Acme::open(&state, Default::default()).unwrap());
    let mut gateway = Gateway::new(state, members, link, Limits::default(), ca);
    gateway.acme = acme;
    let gateway = Arc::new(gateway);
    let join = |name: &str, role| {
        let new = NewMember {
            name: name.into(),
            email: Some("ada@example.org".into()),
            password: Secret::new(PASSWORD.into()),
        };
        let member = gateway.members.add_member(&new, role).unwrap();
        let (member, token) = gateway.members.begin_session(member.id).unwrap();
        (member, token.expose().to_owned())
    };
    let (steward, member) = (join("Ada Lovelace", Role::Steward), join("Ben O'Hara", Role::Member));
    while !gateway.supervisor_answers() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let router = super::routes().with_state(gateway.clone());
    Place { gateway, router, asked, steward, member, _folder: folder }
}

impl Place {
    pub(super) async fn get(&self, path: &str, session: Option<&str>) -> (StatusCode, String) {
        let response =
            self.send(Method::GET, path, session, "application/x-www-form-urlencoded", "").await;
        read(response).await
    }
    pub(super) async fn post(
        &self,
        path: &str,
        session: Option<&str>,
        form: &str,
    ) -> (StatusCode, String) {
        let kind = "application/x-www-form-urlencoded";
        read(self.send(Method::POST, path, session, kind, form).await).await
    }
    async fn send(
        &self,
        method: Method,
        path: &str,
        session: Option<&str>,
        kind: &str,
        body: &str,
    ) -> Response {
        let mut request = HttpRequest::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost:8443")
            .header(header::CONTENT_TYPE, kind);
        if let Some(token) = session {
            request = request.header(header::COOKIE, format!("polder={token}"));
        }
        let mut request = request.body(Body::from(body.to_owned())).unwrap();
        let local = "127.0.0.1:8443".parse().unwrap();
        let remote = "127.0.0.1:50000".parse().unwrap();
        request.extensions_mut().insert(Peer { remote, local, tls: false });
        self.router.clone().oneshot(request).await.unwrap()
    }
    pub(super) fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
    fn recorded(&self) -> Vec<(String, String)> {
        let asked = self.asked.lock().unwrap();
        let records = asked.iter().filter_map(|request| match request {
            Request::Record { what, on, .. } => Some((what.clone(), on.clone())),
            _ => None,
        });
        records.collect()
    }
}

async fn read(response: Response) -> (StatusCode, String) {
    let status = response.status();
    if let Some(to) = response.headers().get(header::LOCATION) {
        return (status, to.to_str().unwrap().to_owned());
    }
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

const FOR_MEMBERS: [&str; 11] = [
    "/",
    "/chat",
    "/connect",
    "/usage",
    "/money",
    "/account",
    "/account/leave",
    "/collective",
    "/collective/sheets",
    "/collective/end",
    "/status",
];
const FOR_STEWARDS: [&str; 26] = [
    "/power",
    "/collective/stewards",
    "/members/2/leave",
    "/elsewhere",
    "/spare/takeover",
    "/spare",
    "/models/change",
    "/moving",
    "/moving/sheet",
    "/issues",
    "/outside",
    "/outside/live",
    "/dashboard",
    "/dashboard/live",
    "/members",
    "/models",
    "/models/smollm2-135m-instruct",
    "/apps",
    "/identity",
    "/certificate",
    "/uplinks",
    "/uplinks/live",
    "/audit",
    "/audit?before=9",
    "/runs/7",
    "/runs/7/live",
];

#[tokio::test]
async fn every_page_opens_for_a_steward_and_the_members_own_for_a_member() {
    let place = place().await;
    for path in FOR_MEMBERS {
        for (member, token) in [&place.steward, &place.member] {
            let (status, page) = place.get(path, Some(token)).await;
            assert_eq!(status, StatusCode::OK, "{path} for {}", member.name);
            assert!(page.contains("</html>") && page.contains("<h1"), "{path}");
            assert!(!page.contains("<script>") && !page.contains(" style="), "{path}");
        }
    }
    for path in FOR_STEWARDS {
        let (status, page) = place.get(path, Some(&place.steward.1)).await;
        assert_eq!(status, StatusCode::OK, "{path}: {page}");
        assert!(!page.contains("<script>") && !page.contains(" style="), "{path}");
        let (status, page) = place.get(path, Some(&place.member.1)).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path} for a member");
        assert!(page.contains("This is for stewards"), "{path}");
    }
}

/// Pages that are led to by something on another one: of one run, one model, one member, or a moving part.
const LED_TO: [&str; 7] =
    ["/live", "/7", "/smollm2-135m-instruct", "?", "/2/leave", "/moving/sheet", "/account/leave"];

#[tokio::test]
async fn every_page_of_a_stewards_is_in_the_lists_above_and_marked_when_one_is_there() {
    let place = place().await;
    let pages =
        FOR_STEWARDS.iter().chain(&FOR_MEMBERS).copied().chain(["/versions", "/backup", "/shell"]);
    for path in pages.filter(|path| !LED_TO.iter().any(|part| path.contains(part))) {
        let page = place.get(path, Some(&place.steward.1)).await.1;
        let above = page.split("<nav").nth(1).unwrap().split("</nav>").next().unwrap();
        let marked = format!("<a href=\"{path}\" aria-current=\"page\">");
        assert_eq!(above.matches(&marked).count(), 1, "{path}: {above}");
        assert_eq!(above.matches("aria-current=\"page\"").count(), 1, "{path}");
        // What one sees without opening anything fits a telephone.
        let shut = above.matches("<summary").count()
            + above.split("<details").next().unwrap().matches("<a ").count();
        assert!(shut <= 10, "{shut} things at once");
    }
    // Members have all of theirs in one line.
    let page = place.get("/usage", Some(&place.member.1)).await.1;
    assert!(
        !page.contains("<summary>Machine")
            && page.contains("<a href=\"/usage\" aria-current=\"page\">")
    );
}

#[tokio::test]
async fn strangers_are_sent_to_sign_in_and_back_again() {
    let place = place().await;
    for path in FOR_MEMBERS.iter().chain(&FOR_STEWARDS) {
        for session in [None, Some("not-a-session")] {
            let (status, to) = place.get(path, session).await;
            assert_eq!(status, StatusCode::SEE_OTHER, "{path}");
            assert!(to.starts_with("/sign-in"), "{path} leads to {to}");
        }
    }
    let (_, to) = place.get("/audit?before=9", None).await;
    assert_eq!(to, "/sign-in?next=/audit%3Fbefore%3D9");
    for path in ["/sign-in", "/ca", "/ca.crt", "/icon.svg", polder_page::style_path()] {
        assert_eq!(place.get(path, None).await.0, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_member_reaches_no_stewards_action_and_a_stranger_none_at_all() {
    let place = place().await;
    let id = place.steward.0.id;
    let actions = [
        "/members/invite".to_owned(),
        "/members/invite/x/withdraw".into(),
        format!("/members/{id}/role"),
        format!("/members/{id}/disable"),
        format!("/members/{id}/groups"),
        format!("/members/{id}/password"),
        format!("/members/{id}/share"),
        format!("/members/{id}/remove"),
        "/collective/announce".into(),
        "/collective/stewards/propose".into(),
        "/collective/stewards/1/agree".into(),
        "/collective/stewards/1/refuse".into(),
        "/collective/recovery/refuse".into(),
        "/collective/sheets/make".into(),
        "/collective/end/ask".into(),
        "/collective/end/back".into(),
        "/collective/end/agree".into(),
        "/sharing".into(),
        "/keeping".into(),
        "/common".into(),
        "/common/remove".into(),
        "/models/smollm2-135m-instruct/use".into(),
        "/models/smollm2-135m-instruct/import".into(),
        "/engines/fast/memory".into(),
        "/engines/fast/remove".into(),
        "/runs/7/cancel".into(),
        "/runs/7/confirm".into(),
        "/spare/takeover".into(),
        "/spare/takeover/back".into(),
        "/spare/takeover/stay".into(),
        "/spare/takeover/send".into(),
        "/spare/takeover/silence".into(),
        "/power".into(),
        "/power/use".into(),
        "/power/remove".into(),
        "/uplinks".into(),
        "/uplinks/fibre/remove".into(),
        "/uplinks/fibre/prefer".into(),
        "/uplinks/dns".into(),
        "/usage".into(),
        "/apps".into(),
        "/apps/wiki/remove".into(),
        "/verifier".into(),
        "/identity".into(),
        "/identity/look".into(),
        "/identity/remove".into(),
        "/clients".into(),
        "/clients/x/remove".into(),
        "/verifier/remove".into(),
        "/certificate".into(),
        "/certificate/again".into(),
        "/certificate/remove".into(),
        "/issues/look".into(),
        "/issues/fix".into(),
        "/issues/alerts".into(),
        "/issues/test".into(),
        "/support".into(),
        "/outside".into(),
        "/outside/name".into(),
        "/outside/port".into(),
        "/outside/remove".into(),
        "/models/change".into(),
        "/models/change/testers".into(),
        "/models/names".into(),
        "/models/names/remove".into(),
        "/moving".into(),
        "/money/currency".into(),
        "/money/enter".into(),
        "/money/dues".into(),
        "/money/fund".into(),
        "/money/correct".into(),
        "/money/split".into(),
        "/money/bring-in".into(),
        "/money/name-off".into(),
        "/elsewhere".into(),
        "/elsewhere/cloud".into(),
        "/elsewhere/cloud/model".into(),
        "/elsewhere/cloud/model/remove".into(),
        "/elsewhere/cloud/test".into(),
        "/elsewhere/cloud/remove".into(),
    ];
    for path in &actions {
        let form = "role=member&disabled=yes&password=another+four+words+here";
        let (status, _) = place.post(path, Some(&place.member.1), form).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
        let (status, to) = place.post(path, None, form).await;
        assert_eq!((status, to.as_str()), (StatusCode::SEE_OTHER, "/sign-in"), "{path}");
    }
    let own = [
        "/keys",
        "/keys/x/revoke",
        "/account/password",
        "/account/forget",
        "/account/sign-out-everywhere",
        "/account/leaving",
        "/usage/forget",
        "/money/agree",
        "/trial",
        "/chat",
        "/chat/stream",
    ];
    for path in own {
        assert_eq!(place.post(path, None, "").await.0, StatusCode::SEE_OTHER, "{path}");
    }
    assert!(place.recorded().is_empty());
    assert!(place.gateway.members.member(id).unwrap().is_steward());
}

#[tokio::test]
async fn signing_in_leads_where_one_wanted_to_go_and_a_wrong_password_says_so() {
    let place = place().await;
    let form = "name=Ada+Lovelace&password=four+words+in+a+row&next=/audit";
    let response =
        place.send(Method::POST, "/sign-in", None, "application/x-www-form-urlencoded", form).await;
    let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    assert!(cookie.starts_with("polder=") && cookie.contains("HttpOnly; SameSite=Lax"));
    assert_eq!(response.headers()[header::LOCATION], "/audit");
    let token = cookie.split(['=', ';']).nth(1).unwrap();
    assert_eq!(place.get("/audit", Some(token)).await.0, StatusCode::OK);
    // A steward's is in the trail.
    assert_eq!(place.recorded(), [("signed in from".into(), "127.0.0.1".into())]);

    let (status, page) =
        place.post("/sign-in", None, "name=%3Cscript%3E&password=wrong&next=//evil.example").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(
        page.contains("Name and password do not belong together") && !page.contains("<script>")
    );
    assert!(!page.contains("evil.example") && !page.contains("wrong\""));
    place.post("/sign-out", Some(token), "").await;
    assert_eq!(place.get("/audit", Some(token)).await.0, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn a_key_is_shown_once_and_revoked_by_its_owner_alone() {
    let place = place().await;
    let form = "label=%3Cscript%3Ealert(1)%3C/script%3E&month=1000";
    let (status, page) = place.post("/keys", Some(&place.member.1), form).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    let key = page.split("plk_").nth(1).unwrap().split('<').next().unwrap();
    let key = format!("plk_{key}");
    let grant = place.gateway.members.verify_key(&key).unwrap();
    assert!(!page.contains("<script>alert"));
    let (_, again) = place.get("/", Some(&place.member.1)).await;
    assert!(!again.contains(&key) && again.contains("&lt;script&gt;alert(1)"));
    assert!(again.contains("tokens this month"));

    let revoke = format!("/keys/{}/revoke", grant.key);
    assert_eq!(place.post(&revoke, Some(&place.steward.1), "").await.0, StatusCode::NOT_FOUND);
    assert!(place.gateway.members.verify_key(&key).is_ok());
    let (status, to) = place.post(&revoke, Some(&place.member.1), "").await;
    assert_eq!((status, to.as_str()), (StatusCode::SEE_OTHER, "/?said=key-revoked"));
    assert!(place.gateway.members.verify_key(&key).is_err());
    let records = place.recorded();
    assert_eq!(records[0].0, "made key");
    assert_eq!(records[1].0, "revoked key");
    assert!(records.iter().all(|(_, on)| !on.contains(&key)), "{records:?}");
}

#[tokio::test]
async fn a_bad_form_says_what_is_wrong_and_keeps_what_was_written() {
    let place = place().await;
    let (status, page) =
        place.post("/keys", Some(&place.member.1), "label=editor&requests=ten").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("The limit of requests is not a whole number"));
    assert!(page.contains("value=\"editor\"") && page.contains("value=\"ten\""));
}

#[tokio::test]
async fn an_invite_makes_a_member_and_signs_them_in() {
    let place = place().await;
    let (status, page) = place
        .post("/members/invite", Some(&place.steward.1), "note=%3Cb%3ECy&role=member&days=7")
        .await;
    assert_eq!(status, StatusCode::OK);
    assert!(!page.contains("<b>Cy"));
    let token = page.split("/invite/").skip(1).map(|t| t.split(['<', '"', '/']).next().unwrap());
    let token = token.max_by_key(|t| t.len()).unwrap().to_owned();
    let (status, page) = place.get(&format!("/invite/{token}"), None).await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("Ada Lovelace") && page.contains("a member"));

    let join = |again: &str| format!("name=Cy&email=&password=some+four+words+here&again={again}");
    let (status, page) = place.post(&format!("/invite/{token}"), None, &join("other")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("differ"));
    let path = format!("/invite/{token}");
    let kind = "application/x-www-form-urlencoded";
    let response = place.send(Method::POST, &path, None, kind, &join("some+four+words+here")).await;
    let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    let session = cookie.split(['=', ';']).nth(1).unwrap();
    let (status, page) = place.get("/?said=welcome", Some(session)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("Good to see you, Cy."));
    let (status, page) = place.get(&format!("/invite/{token}"), None).await;
    assert_eq!(status, StatusCode::GONE);
    assert!(page.contains("ask a steward for a new one"));
    let records = place.recorded();
    assert!(records.iter().all(|(what, on)| !what.contains(&token) && !on.contains(&token)));
    assert_eq!(records.last().unwrap().0, "joined");
}

#[tokio::test]
async fn a_steward_changes_members_and_the_last_one_stays() {
    let place = place().await;
    let (ada, ben) = (place.steward.0.id, place.member.0.id);
    let steward = Some(place.steward.1.as_str());
    let (status, page) = place.post(&format!("/members/{ada}/role"), steward, "role=member").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("This is the last steward"));
    let (_, to) = place.post(&format!("/members/{ada}/remove"), steward, "").await;
    assert_eq!(to, "/account/leave", "oneself one leaves");
    let own = "password=another+four+words";
    let (status, page) = place.post(&format!("/members/{ada}/password"), steward, own).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("on your account page"), "{page}");
    let (_, to) = place.post(&format!("/members/{ben}/role"), steward, "role=steward").await;
    assert_eq!(to, "/members?said=role");
    assert!(place.gateway.members.member(ben).unwrap().is_steward());
    // From now on they are two, and neither of them is changed by the other alone.
    for (act, form) in [
        ("role", "role=member"),
        ("disable", "disabled=yes"),
        ("remove", ""),
        ("password", "password=another+four+words"),
    ] {
        let (status, page) = place.post(&format!("/members/{ben}/{act}"), steward, form).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{act}");
        assert!(page.contains("one steward alone does not change"), "{act}: {page}");
    }
    let own = Some(place.member.1.as_str());
    let (_, to) = place.post(&format!("/members/{ben}/role"), own, "role=member").await;
    assert_eq!(to, "/members?said=role", "oneself one may");
    place.post(&format!("/members/{ben}/disable"), steward, "disabled=yes").await;
    assert_eq!(place.get("/", Some(&place.member.1)).await.1, "/sign-in");
    place.post(&format!("/members/{ben}/remove"), steward, "").await;
    assert!(place.gateway.members.member(ben).is_err());
    let what: Vec<String> = place.recorded().into_iter().map(|(what, _)| what).collect();
    assert_eq!(what, ["made a steward", "made a member", "disabled", "removed"]);
}

#[tokio::test]
async fn the_chat_streams_what_the_model_says_as_harmless_html() {
    let place = place().await;
    place.gateway.members.set_metering(true);
    let body = serde_json::json!({ "model": "", "messages": [
        { "role": "user", "content": "**bold** <img src=x onerror=alert(1)> [x](javascript:alert(1))" },
    ]});
    let response = place
        .send(
            Method::POST,
            "/chat/stream",
            Some(&place.member.1),
            "application/json",
            &body.to_string(),
        )
        .await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let (status, events) = read(response).await;
    assert_eq!(status, StatusCode::OK);
    assert!(events.contains("event: draw") && events.contains("event: end"), "{events}");
    assert!(events.contains("<strong>bold</strong>"));
    let blocks: String = events
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter_map(|data| serde_json::from_str::<serde_json::Value>(data).ok())
        .map(|value| value["blocks"].to_string())
        .collect();
    assert!(!blocks.contains("<img") && !blocks.contains("href=\\\"javascript"), "{blocks}");
    assert!(events.contains("\"tokens\":4"));
}

#[tokio::test]
async fn the_chat_works_without_javascript() {
    let place = place().await;
    let (status, page) = place.post("/chat", Some(&place.member.1), "message=one+*two*").await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("one <em>two</em>") && page.contains("name=\"conversation\""));
    let (status, page) =
        place.post("/chat", Some(&place.member.1), "message=x&conversation=%7B").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("begin a new one"));
}

#[tokio::test]
async fn a_conversation_with_nobody_or_a_third_speaker_is_refused() {
    let place = place().await;
    for body in
        ["{}", "[", r#"{"messages":[]}"#, r#"{"messages":[{"role":"system","content":"x"}]}"#]
    {
        let response = place
            .send(Method::POST, "/chat/stream", Some(&place.member.1), "application/json", body)
            .await;
        assert!(response.status().is_client_error(), "{body}: {}", response.status());
    }
}

#[tokio::test]
async fn a_tool_is_told_what_the_model_holds_on_this_machine_where_that_is_less_than_it_was_made_for()
 {
    let place = place().await;
    let member = Some(place.member.1.as_str());
    let (_, page) = place.get("/connect", member).await;
    assert!(page.contains("CLAUDE_CODE_MAX_CONTEXT_TOKENS=4096\n"), "{page}");
    assert!(page.contains("holds on this machine") && page.contains("holds too little"), "{page}");
    // An engine that says nothing keeps nobody waiting, and then it is what the recipe says.
    let place = self::place().await;
    let socket = Sockets::of(&place.gateway.state).engine(&"fast".parse().unwrap());
    std::fs::remove_file(&socket).unwrap();
    let _silent = tokio::net::UnixListener::bind(&socket).unwrap();
    let (_, page) = place.get("/connect", Some(place.member.1.as_str())).await;
    assert!(page.contains("CLAUDE_CODE_MAX_CONTEXT_TOKENS=8192\n"), "{page}");
    assert!(page.contains("for how much this one was made"), "{page}");
}

#[tokio::test]
async fn the_dashboard_names_what_the_site_says_and_this_version_does_not_know() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let store = polder_site::Store::open(&place.gateway.state).unwrap();
    store.write(&Site::unclaimed(8443), "first").unwrap();
    assert!(!place.get("/dashboard", steward).await.1.contains("does not know"));
    let path = place.gateway.state.join("site.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("days = 30", "days = 30\ndais = 3") + "[\"<lamps>\"]\non = true\n";
    std::fs::write(&path, text).unwrap();
    let (_, page) = place.get("/dashboard", steward).await;
    for told in ["keeping.dais, which", "if keeping.days is meant", "&lt;lamps&gt;, which"] {
        assert!(page.contains(told), "{told}: {page}");
    }
}

#[tokio::test]
async fn the_dashboard_shows_figures_and_why() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    place.get("/dashboard", steward).await;
    for _ in 0..200 {
        let (_, page) = place.get("/dashboard/live", steward).await;
        if page.contains("25\u{a0}%") {
            assert!(page.contains("waiting in the queue") && page.contains("started again once"));
            assert!(page.contains("Import Qwen3 0.6B") && page.contains("The disk is full"));
            assert!(page.contains("&lt;script&gt;"), "the audit trail's text is text");
            assert!(page.contains("not the card: it came &lt;late&gt;"), "{page}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no figures came");
}

#[tokio::test]
async fn usage_is_shown_as_the_site_says_and_can_be_deleted() {
    let place = place().await;
    let (status, page) = place.get("/usage", Some(&place.member.1)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("does not count") && !page.contains("Everyone's"));
    place.gateway.members.set_metering(true);
    place.gateway.members.count_chat(place.member.0.id, "m", 1000, 234);
    let (_, page) = place.get("/usage", Some(&place.member.1)).await;
    assert!(page.contains("1,234 tokens"), "{page}");
    place.post("/usage/forget", Some(&place.member.1), "").await;
    assert!(place.gateway.members.usage_of(place.member.0.id, 30).unwrap().is_empty());
    place.post("/usage", Some(&place.steward.1), "per_member=yes&visible_to=stewards").await;
    let asked = place.asked.lock().unwrap();
    assert!(asked.iter().any(|r| matches!(r, Request::Apply { by: Actor::Member(_), .. })));
}

#[tokio::test]
async fn a_steward_opens_an_app_and_one_elsewhere_is_refused() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "name=wiki&upstream=http%3A%2F%2F127.0.0.1%3A3000&open_to=stewards";
    assert_eq!(place.post("/apps", steward, form).await.1, "/apps?said=app");
    let app = App {
        upstream: "http://127.0.0.1:3000".parse().unwrap(),
        open_to: polder_site::Audience::Stewards,
    };
    let wanted = SiteChange::App { name: "wiki".parse().unwrap(), app };
    let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
    assert!(place.asked.lock().unwrap().iter().any(asked));
    let form = "name=wiki&upstream=http%3A%2F%2F192.168.1.7%3A3000";
    let (status, page) = place.post("/apps", steward, form).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("is not a place on this machine") && page.contains("192.168.1.7"));
    let (status, _) = place.post("/apps/nothing/remove", steward, "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_steward_has_another_service_asked_and_one_elsewhere_is_refused() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "url=http%3A%2F%2F127.0.0.1%3A4180%2Fauth&mode=forward";
    assert_eq!(place.post("/verifier", steward, form).await.1, "/apps?said=verifier");
    let url = "http://127.0.0.1:4180/auth".parse().unwrap();
    let wanted = SiteChange::Verifier(Verifier { url, mode: VerifierMode::Forward });
    let removed = place.post("/verifier/remove", steward, "").await;
    assert_eq!(removed.1, "/apps?said=verifier-removed");
    for wanted in [wanted, SiteChange::RemoveVerifier] {
        let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
        assert!(place.asked.lock().unwrap().iter().any(asked), "{wanted:?}");
    }
    let form = "url=http%3A%2F%2Fsso.example%2Fauth&mode=nginx";
    let (status, page) = place.post("/verifier", steward, form).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("is not a place on this machine") && page.contains("sso.example"));
}

#[tokio::test]
async fn a_steward_names_where_people_sign_in_and_its_secret_is_in_no_request_and_no_page() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "name=House&issuer=https%3A%2F%2Fsso.example.org&client=box&secret=s3cr3t&groups_claim=\
                &members=a%0D%0Ab&new_people=yes";
    assert_eq!(place.post("/identity", steward, form).await.1, "/identity?said=identity");
    let issuer = "https://sso.example.org".parse().unwrap();
    let mut wanted = polder_site::SignIn::at("House", issuer, "box");
    wanted.members = vec!["a".into(), "b".into()];
    wanted.new_people = true;
    let wanted = SiteChange::SignIn(Box::new(wanted));
    assert_eq!(
        place.post("/identity/remove", steward, "").await.1,
        "/identity?said=identity-removed"
    );
    let asked = format!("{:?}", place.asked.lock().unwrap());
    assert!(!asked.contains("s3cr3t"), "{asked}");
    for wanted in [wanted, SiteChange::RemoveSignIn] {
        let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
        assert!(place.asked.lock().unwrap().iter().any(asked), "{wanted:?}");
    }
    let form = "name=House&issuer=http%3A%2F%2Fsso.example.org&client=box&secret=s3cr3t";
    let (status, page) = place.post("/identity", steward, form).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("not the address of a service") && !page.contains("s3cr3t"), "{page}");
    assert_eq!(place.post("/identity/look", steward, "").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_app_s_secret_is_shown_once_and_an_address_that_could_lead_anywhere_is_refused() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "title=Wiki&redirects=https%3A%2F%2Fwiki.example%2Fback";
    let (status, page) = place.post("/clients", steward, form).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    assert!(page.contains("shown only now") && page.contains("openid-configuration"), "{page}");
    let (_, list) = place.get("/apps", steward).await;
    assert!(list.contains("https://wiki.example/back") && !list.contains("shown only now"));
    let form = "title=Wiki&redirects=https%3A%2F%2F*.example%2Fback";
    let (status, page) = place.post("/clients", steward, form).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("is not an address that people can be sent back to"), "{page}");
    let id = list.split("/clients/").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let removed = place.post(&format!("/clients/{id}/remove"), steward, "").await;
    assert_eq!(removed.1, "/apps?said=client-removed");
    assert!(!place.get("/apps", steward).await.1.contains("wiki.example"));
}

#[tokio::test]
async fn a_steward_adds_an_uplink_confirms_it_and_one_without_an_interface_is_refused() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "name=mobile&interface=wwan0&metered=on&targets=9.9.9.9%3A443+1.1.1.1%3A443";
    assert_eq!(place.post("/uplinks", steward, form).await.1, "/runs/7");
    let targets = ["9.9.9.9:443", "1.1.1.1:443"].map(|target| target.parse().unwrap()).into();
    let (interface, order) = ("wwan0".parse().unwrap(), 1);
    let mobile =
        polder_site::Uplink { interface, order, metered: true, ask_router: false, targets };
    let uplinks = [("mobile".parse().unwrap(), mobile)].into();
    let wanted = SiteChange::Uplinks(uplinks);
    let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
    assert!(place.asked.lock().unwrap().iter().any(asked));
    assert_eq!(place.post("/runs/7/confirm", steward, "").await.1, "/dashboard?said=confirmed");
    let asked = |r: &Request| matches!(r, Request::Confirm { run: RunId(7), by: Actor::Member(_) });
    assert!(place.asked.lock().unwrap().iter().any(asked));
    let (status, page) = place.post("/uplinks", steward, "name=mobile&interface=%3Cb%3E").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("is not the name of a network interface") && !page.contains("<b>"));
    let (status, _) = place.post("/uplinks/fibre/remove", steward, "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_steward_has_a_router_asked_and_reads_before_what_that_opens() {
    let targets = ["9.9.9.9:443", "1.1.1.1:443"].map(|target| target.parse().unwrap()).to_vec();
    let (interface, order) = ("enp1s0".parse().unwrap(), 1);
    let asked = polder_site::Uplink { interface, order, metered: false, ask_router: true, targets };
    let quiet = polder_site::Uplink {
        interface: "wwan0".parse().unwrap(),
        order: 2,
        ask_router: false,
        ..asked.clone()
    };
    let place = place_of(|site| {
        site.uplinks.insert("fibre".parse().unwrap(), asked);
        site.uplinks.insert("mobile".parse().unwrap(), quiet);
    })
    .await;
    let steward = Some(place.steward.1.as_str());
    let (_, page) = place.get("/outside", steward).await;
    for shown in [
        "pass callers at port 8443 on to this box",
        "Anybody on the internet can then knock at the box's sign-in page and its API",
        "Its router is not asked.",
        "Give the port back",
        "does not say anything yet",
    ] {
        assert!(page.contains(shown), "{shown}: {page}");
    }
    for (form, uplink, ask) in
        [("uplink=mobile&ask=on", "mobile", true), ("uplink=fibre", "fibre", false)]
    {
        assert_eq!(place.post("/outside/port", steward, form).await.1, "/runs/7");
        let wanted = SiteChange::AskRouter { uplink: uplink.parse().unwrap(), ask };
        let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
        assert!(place.asked.lock().unwrap().iter().any(asked), "{form}");
    }
    let (status, _) = place.post("/outside/port", steward, "uplink=moon&ask=on").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_steward_sees_what_runs_takes_an_update_and_goes_back() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let (_, page) = place.get("/versions", steward).await;
    for shown in
        ["Polder 0.1.0", "Polder 0.2.0", &"ab".repeat(32), "It stays.", "Go back to Polder 0.0.9"]
    {
        assert!(page.contains(shown), "{shown}: {page}");
    }
    for (path, wish) in [
        ("/versions/apply", UpdateWish::Apply),
        ("/versions/fetch", UpdateWish::Fetch),
        ("/versions/back", UpdateWish::Back),
    ] {
        assert_eq!(place.post(path, steward, "").await.1, "/runs/7");
        let asked = |r: &Request| matches!(r, Request::Update { wish: w, by: Actor::Member(_) } if *w == wish);
        assert!(place.asked.lock().unwrap().iter().any(asked), "{wish:?}");
        // Nothing moves because somebody else presses.
        assert_eq!(place.post(path, Some(&place.member.1), "").await.0, StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn a_steward_has_the_key_of_backups_on_paper_before_a_place_for_them_is_asked_for() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let (_, page) = place.get("/backup", steward).await;
    assert!(page.contains("No backups are made") && page.contains("After the kit is on paper"));
    assert!(place.get("/dashboard", steward).await.1.contains("No backups are made"));
    let (status, sheet) = place.post("/backup/kit", steward, "").await;
    assert!(status == StatusCode::OK && sheet.contains("<svg"), "{sheet}");
    // Neither a link nor another site's picture shows it.
    assert_eq!(place.get("/backup/kit", steward).await.0, StatusCode::METHOD_NOT_ALLOWED);
    let typed = place.post("/backup/confirm", steward, "key=cbde+fghi").await;
    assert_eq!(typed.1, "/backup?said=kit");
    let asked = |r: &Request| matches!(r, Request::ConfirmKit { key, by: Actor::Member(_) } if key.0 == "cbde fghi");
    assert!(place.asked.lock().unwrap().iter().any(asked));
    // A place is done only after its steps were seen.
    let form = "to=%2Fmnt%2Fusb&limit_kib=500";
    let done = |r: &Request| matches!(r, Request::Apply { change: SiteChange::Backup(b), .. } if b.limit_kib == 500);
    place.post("/backup/to", steward, form).await;
    assert!(!place.asked.lock().unwrap().iter().any(done));
    assert_eq!(place.post("/backup/to", steward, &format!("{form}&seen=yes")).await.1, "/runs/7");
    assert!(place.asked.lock().unwrap().iter().any(done));
    assert!(
        place.post("/backup/to", steward, "to=usb").await.1.contains("is no place for backups")
    );
    for path in ["/backup/now", "/backup/drill"] {
        assert_eq!(place.post(path, steward, "").await.1, "/runs/7");
        assert_eq!(place.post(path, Some(&place.member.1), "").await.0, StatusCode::FORBIDDEN);
    }
    assert_eq!(place.post("/backup/kit", Some(&place.member.1), "").await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_steward_pairs_the_box_with_a_spare_or_makes_it_one_and_nobody_else_does() {
    let place = place().await;
    let (steward, member) = (Some(place.steward.1.as_str()), Some(place.member.1.as_str()));
    let (_, page) = place.get("/spare", steward).await;
    for shown in
        ["Have a spare", "Be the spare of another box", "remember each other&#39;s certificate"]
    {
        assert!(
            page.contains(shown) || page.contains(&shown.replace("&#39;", "'")),
            "{shown}: {page}"
        );
    }
    let form = "address=ash.local&code=4821+otter+lamp";
    assert_eq!(place.post("/spare/pair", member, form).await.0, StatusCode::FORBIDDEN);
    assert_eq!(place.post("/spare/pair", steward, form).await.1, "/runs/7");
    let paired = |r: &Request| matches!(r, Request::PairSpare { address, code, by: Actor::Member(_) } if address == "ash.local" && code.expose() == "4821 otter lamp");
    assert!(place.asked.lock().unwrap().iter().any(paired));
    assert!(!format!("{:?}", place.asked.lock().unwrap()).contains("otter"));
    // A change is done only after its steps were seen.
    let done = |r: &Request| matches!(r, Request::Apply { change: SiteChange::Spare(s), .. } if s.disk_percent == 30);
    place.post("/spare/be", steward, "disk_percent=30&port=8444").await;
    assert!(!place.asked.lock().unwrap().iter().any(done));
    let form = "disk_percent=30&port=8444&seen=yes";
    assert_eq!(place.post("/spare/be", steward, form).await.1, "/runs/7");
    assert!(place.asked.lock().unwrap().iter().any(done));
    assert!(place.post("/spare/be", steward, "disk_percent=half").await.1.contains("whole number"));
    // Without a part to ask, the page says so.
    assert!(place.post("/spare/code", steward, "").await.1.contains("is not up"));
    for path in ["be", "none", "code", "hide", "unpair", "remove-old"] {
        let path = format!("/spare/{path}");
        assert_eq!(place.post(&path, member, "seen=yes").await.0, StatusCode::FORBIDDEN, "{path}");
        assert_eq!(place.get(&path, steward).await.0, StatusCode::METHOD_NOT_ALLOWED, "{path}");
    }
}

#[tokio::test]
async fn a_shell_is_opened_for_a_while_by_a_steward_and_by_nobody_else() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "key=ssh-ed25519+AAAA&hours=4";
    assert_eq!(place.post("/shell", Some(&place.member.1), form).await.0, StatusCode::FORBIDDEN);
    assert_eq!(place.post("/shell", steward, form).await.1, "/shell");
    let asked = |r: &Request| matches!(r, Request::OpenShell { key, hours: 4, by: Actor::Member(_) } if key == "ssh-ed25519 AAAA");
    assert!(place.asked.lock().unwrap().iter().any(asked));
    assert!(place.get("/shell", steward).await.1.contains("never as root"));
}

#[tokio::test]
async fn a_steward_says_whether_members_trust_each_other() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    assert!(place.get("/models", steward).await.1.contains("Our members trust each other"));
    assert_eq!(place.post("/sharing", Some(&place.member.1), "").await.0, StatusCode::FORBIDDEN);
    for (form, trusting) in [("trusting=yes", true), ("", false)] {
        assert_eq!(place.post("/sharing", steward, form).await.1, "/models?said=sharing");
        let wanted = SiteChange::Sharing(polder_site::Sharing { trusting });
        let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
        assert!(place.asked.lock().unwrap().iter().any(asked), "{wanted:?}");
    }
}

#[tokio::test]
async fn a_steward_says_which_instructions_are_common_to_all() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "title=+Agent&text=Be%0D%0A+brief.";
    assert_eq!(place.post("/common", Some(&place.member.1), form).await.0, StatusCode::FORBIDDEN);
    assert_eq!(place.post("/common", steward, form).await.1, "/models?said=sharing");
    assert_eq!(
        place.post("/common/remove", steward, "title=Agent").await.1,
        "/models?said=sharing"
    );
    for wanted in [
        SiteChange::Common { title: "Agent".into(), text: "Be\n brief.".into() },
        SiteChange::RemoveCommon("Agent".into()),
    ] {
        let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
        assert!(place.asked.lock().unwrap().iter().any(asked), "{wanted:?}");
    }
    let (status, page) = place.post("/common", steward, "title=Agent&text=+").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("are empty"), "{page}");
}

#[tokio::test]
async fn a_steward_says_how_much_memory_a_model_takes() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let models = place.get("/models", steward).await.1;
    assert!(models.contains("what is free") && models.contains("/engines/fast"), "{models}");
    let form = "memory=24+GiB&conversations=compact";
    assert_eq!(place.post("/engines/fast/memory", steward, form).await.1, "/runs/7");
    let slot = EngineSlot {
        memory: Some("24 GiB".parse().unwrap()),
        conversations: polder_site::Conversations::Compact,
        ..EngineSlot::serving("smollm2-135m-instruct".parse().unwrap())
    };
    let wanted = SiteChange::Engine { name: "fast".parse().unwrap(), slot };
    let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
    assert!(place.asked.lock().unwrap().iter().any(asked));
    let (status, page) = place.post("/engines/fast/memory", steward, "memory=a+lot").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("is no amount of memory") && page.contains("value=\"a lot\""), "{page}");
    assert_eq!(place.get("/engines/none", steward).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_steward_names_a_server_elsewhere_whose_key_no_page_ever_shows() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let page = place.get("/elsewhere", steward).await.1;
    assert!(page.contains("What leaves the house") && page.contains("nobody answers"), "{page}");
    let form = "name=cloud&kind=cloud&url=https://api.example.org/v1&budget=12,50&when_down=yes";
    // First what it comes to, and nothing done.
    let (status, page) = place.post("/elsewhere", steward, form).await;
    assert_eq!(status, StatusCode::OK);
    for said in [
        "What it comes to",
        "None yet: the box asks it for nothing before a model is named.",
        "encrypted on its way to api.example.org",
        "x-polder-served-by",
        "name=\"budget\" value=\"12.50\"",
        "name=\"seen\" value=\"yes\"",
        "type=\"password\"",
    ] {
        assert!(page.contains(said), "{said}: {page}");
    }
    let applied = || {
        let asked = place.asked.lock().unwrap();
        asked.iter().filter(|request| matches!(request, Request::Apply { .. })).count()
    };
    assert_eq!(applied(), 0);
    let form = format!("{form}&key=sk-secret-of-ours&seen=yes");
    assert_eq!(place.post("/elsewhere", steward, &form).await.1, "/elsewhere?said=upstream");
    assert_eq!(applied(), 1);
    let asked = place.asked.lock().unwrap().clone();
    let change = asked.iter().find_map(|request| match request {
        Request::Apply { change: SiteChange::Upstream { name, upstream }, .. } => {
            Some((name, upstream))
        }
        _ => None,
    });
    let (name, upstream) = change.unwrap();
    assert_eq!((name.as_str(), upstream.budget.to_string()), ("cloud", "12.50".into()));
    assert!(upstream.when_down && !upstream.when_full);
    assert!(!format!("{asked:?}").contains("sk-secret"), "the supervisor was told the key");
    let state = place.gateway.state_folder();
    let kept = std::fs::read_to_string(state.join("upstreams/secrets.json")).unwrap();
    assert_eq!(kept, r#"{"cloud":"sk-secret-of-ours"}"#);
    assert!(
        place.recorded().iter().any(|(what, on)| what == "changed the key for" && on == "cloud")
    );
    let wrong = "name=cloud&url=http://10.0.0.1/v1&budget=1&key=sk-secret-of-ours";
    let (status, page) = place.post("/elsewhere", steward, wrong).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("in the clear") && page.contains("http://10.0.0.1/v1"), "{page}");
    assert!(!page.contains("sk-secret"), "{page}");
    assert_eq!(place.post("/elsewhere/none/test", steward, "").await.0, StatusCode::NOT_FOUND);
    let models = place.get("/models", steward).await.1;
    assert!(models.contains("href=\"/elsewhere\""), "{models}");
}

#[tokio::test]
async fn a_member_says_on_their_own_page_that_nothing_of_theirs_leaves_the_box() {
    let place = place().await;
    let (member, session) = (&place.member.0, Some(place.member.1.as_str()));
    assert!(place.get("/account", session).await.1.contains("My questions never leave this box"));
    let said = place.post("/account/leaving", session, "stays_here=yes").await;
    assert_eq!(said.1, "/account?said=leaving");
    assert!(place.gateway.members.member(member.id).unwrap().stays_here);
    place.post("/account/leaving", session, "").await;
    assert!(!place.gateway.members.member(member.id).unwrap().stays_here);
    let (_, page) = place.post("/keys", session, "label=x&stays_here=yes").await;
    assert!(page.contains("never elsewhere"), "{page}");
}

#[tokio::test]
async fn a_steward_says_what_stays_on_disk_and_members_read_it() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let page = place.get("/models", steward).await.1;
    assert!(page.contains("<option value=\"30\" selected>for 30 days"), "{page}");
    let form = "days=0&disk_percent=20";
    assert_eq!(place.post("/keeping", Some(&place.member.1), form).await.0, StatusCode::FORBIDDEN);
    assert_eq!(place.post("/keeping", steward, form).await.1, "/runs/7");
    let wanted = SiteChange::Keeping(polder_site::Keeping { days: 0, disk_percent: 20 });
    let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
    assert!(place.asked.lock().unwrap().iter().any(asked));
    let own = place.get("/account", Some(&place.member.1)).await.1;
    assert!(
        own.contains(
            "a key that the box keeps beside it and destroys when you say so, for 30 days"
        ),
        "{own}"
    );
    // An engine that knows nothing of it keeps nothing.
    let forget = place.post("/account/forget", Some(&place.member.1), "").await;
    assert_eq!(forget.1, "/account?said=conversations");
}

#[tokio::test]
async fn updates_are_looked_for_where_a_steward_says_and_nowhere_with_a_password() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "address=https%3A%2F%2Fexample.org%2Fpolder%2F";
    assert_eq!(place.post("/versions/from", steward, form).await.1, "/versions?said=updates");
    let from = "https://example.org/polder".parse().unwrap();
    let wanted = SiteChange::Updates(polder_site::Updates { from });
    let asked = |r: &Request| matches!(r, Request::Apply { change, .. } if *change == wanted);
    assert!(place.asked.lock().unwrap().iter().any(asked));
    let form = "address=https%3A%2F%2Fada%3Asecret%40example.org";
    let (status, page) = place.post("/versions/from", steward, form).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("without a name or password"), "{page}");
}

#[tokio::test]
async fn a_steward_asks_for_a_public_certificate_and_a_name_of_the_network_is_refused() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "names=gpu.example.org&authority=lets-encrypt&proof=http";
    assert_eq!(place.post("/certificate", steward, form).await.1, "/certificate?said=certificate");
    let removed = place.post("/certificate/remove", steward, "").await;
    assert_eq!(removed.1, "/certificate?said=certificate-removed");
    let wanted = |r: &Request| match r {
        Request::Apply { change: SiteChange::Certificate(c), by: Actor::Member(_) } => {
            c.names[0].as_str() == "gpu.example.org" && c.proof() == polder_site::Proof::Http
        }
        _ => false,
    };
    let gone =
        |r: &Request| matches!(r, Request::Apply { change: SiteChange::RemoveCertificate, .. });
    for asked in [&wanted as &dyn Fn(&Request) -> bool, &gone] {
        assert!(place.asked.lock().unwrap().iter().any(asked));
    }
    for (form, says) in [
        ("names=box.local&authority=lets-encrypt&proof=http", "not a name that the world can know"),
        ("names=*.gpu.example.org&authority=lets-encrypt&proof=http", "by a proof in the DNS"),
        ("names=gpu.example.org&authority=other&directory=http%3A%2F%2Fx&proof=http", "over TLS"),
    ] {
        let (status, page) = place.post("/certificate", steward, form).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{form}");
        assert!(page.contains(says), "{form}: {page}");
    }
}

#[tokio::test]
async fn a_ups_is_chosen_by_a_steward_and_a_mistyped_one_is_told_with_what_was_typed() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    assert_eq!(place.get("/power", Some(&place.member.1)).await.0, StatusCode::FORBIDDEN);
    let page = place.get("/power", steward).await.1;
    assert!(page.contains("Live off a UPS"), "{page}");
    let form = "ups=ups%40localhost&role=primary&low_charge=35&start_charge=&card_percent=60";
    let (status, to) = place.post("/power", steward, form).await;
    assert!(status == StatusCode::SEE_OTHER && to.starts_with("/runs/"), "{status} {to}");
    let mut plan = polder_site::PowerPlan::of("ups@localhost".parse().unwrap());
    (plan.low_charge, plan.card_percent) = (35, Some(60));
    let wanted = SiteChange::Power(plan);
    let asked = |r: &Request| matches!(r, Request::Apply { change, .. } if *change == wanted);
    assert!(place.asked.lock().unwrap().iter().any(asked));
    let (status, page) = place.post("/power", steward, "ups=mine&low_charge=3").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("ups@localhost") && page.contains("value=\"mine\""), "{page}");
    let (status, page) = place.post("/power", steward, "ups=a%40b&low_charge=3").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("choose 5 to 90 percent"), "{page}");
}

#[tokio::test]
async fn an_unclaimed_box_leads_to_its_wizard() {
    let place = place().await;
    let ids: Vec<_> = place.gateway.members.members().unwrap();
    assert_eq!(ids.len(), 2);
    // A second box, with nobody on it.
    let folder = tempfile::tempdir().unwrap();
    let members = Members::open(&folder.path().join("polder.db")).unwrap();
    let (_, ca) = watch::channel(place.gateway.ca());
    let link = Link::follow(&Sockets::of(folder.path()), Site::unclaimed(8443), None);
    let gateway =
        Arc::new(Gateway::new(folder.path().into(), members, link, Limits::default(), ca));
    let router = super::routes().with_state(gateway);
    let other = Place { router, ..place };
    for path in ["/", "/sign-in"] {
        assert_eq!(other.get(path, None).await, (StatusCode::SEE_OTHER, "/setup".into()), "{path}");
    }
}

/// Writes every page with its style inside into the folder `POLDER_PAGES_TO`.
#[tokio::test]
#[ignore = "for looking at the pages, not a check"]
async fn pages_can_be_written_out_for_looking_at() {
    let folder = std::env::var_os("POLDER_PAGES_TO").expect("POLDER_PAGES_TO names a folder");
    let folder = std::path::PathBuf::from(folder);
    let place = place().await;
    place.gateway.members.set_metering(true);
    for (label, n) in [("laptop", 9000), ("editor", 4000)] {
        let new = NewKey { label: label.into(), ..NewKey::default() };
        let key = place.gateway.members.mint_key(place.steward.0.id, &new).unwrap();
        let grant = place.gateway.members.verify_key(key.key.expose()).unwrap();
        place.gateway.members.admit(&grant).unwrap().count("smollm2-135m-instruct", n, n / 3);
    }
    let steward = Some(place.steward.1.as_str());
    place.get("/dashboard", steward).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    let talk = "message=What+is+a+polder%3F%0A%0A**Land**+below+the+sea%3A%0A%0A1.+a+dyke%0A2.+a+pump%0A%0A%60%60%60%0Apump+--on%0A%60%60%60";
    let pages = [
        ("home", place.get("/", steward).await.1),
        ("key", place.post("/keys", steward, "label=phone").await.1),
        ("invite-link", place.post("/members/invite", steward, "note=Cy&role=member").await.1),
        ("chat-empty", place.get("/chat", steward).await.1),
        ("chat", place.post("/chat", steward, talk).await.1),
        ("connect", place.get("/connect", steward).await.1),
        ("usage", place.get("/usage", steward).await.1),
        ("account", place.get("/account", steward).await.1),
        ("dashboard", place.get("/dashboard", steward).await.1),
        ("models", place.get("/models", steward).await.1),
        ("model", place.get("/models/smollm2-135m-instruct", steward).await.1),
        ("members", place.get("/members", steward).await.1),
        ("apps", place.get("/apps", steward).await.1),
        ("certificate", place.get("/certificate", steward).await.1),
        ("run", place.get("/runs/7", steward).await.1),
        ("audit", place.get("/audit", steward).await.1),
        ("versions", place.get("/versions", steward).await.1),
        ("backup", place.get("/backup", steward).await.1),
        ("sign-in", place.get("/sign-in", None).await.1),
        ("wrong", place.post("/sign-in", None, "name=Ada&password=x").await.1),
        ("ca", place.get("/ca", None).await.1),
        ("forbidden", place.get("/audit", Some(&place.member.1)).await.1),
    ];
    std::fs::create_dir_all(&folder).unwrap();
    let style = polder_page::ASSETS[0].body;
    for (name, page) in pages {
        let page = page.replace("</head>", &format!("<style>{style}</style></head>"));
        std::fs::write(folder.join(format!("{name}.html")), page).unwrap();
    }
}

#[tokio::test]
async fn a_certificate_that_is_refused_costs_the_one_before_no_secret() {
    let hook = |url: &str, more: &str| {
        format!("names=gpu.example.org&authority=lets-encrypt&proof=dns-hook&hook={url}{more}")
    };
    let wanted = polder_site::PublicCertificate {
        names: vec!["gpu.example.org".parse().unwrap()],
        directory: "https://acme-v02.api.letsencrypt.org/directory".parse().unwrap(),
        account: None,
        contact: None,
        root: None,
        dns_update: None,
        dns_hook: Some(polder_site::DnsHook {
            url: "https://hook.example".parse().unwrap(),
            wait: 20,
        }),
    };
    let different = |site: &mut Site| {
        site.certificate = Some(wanted);
        site.door.names.push("gpu.example.org".to_owned());
    };
    let place = place_with(Clock::system(), different, true).await;
    let steward = Some(place.steward.1.as_str());
    let acme = place.gateway.acme.clone().unwrap();
    let name = polder_control::SecretName::Hook;
    acme.keep_secret(name, polder_control::SecretText::new("ada:first")).unwrap();

    let more = "&contact=refused%40example.org&hook_secret=ada%3Asecond";
    let (status, page) =
        place.post("/certificate", steward, &hook("https://other.example", more)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("The box is busy.") && page.contains("stay as they were"), "{page}");
    assert!(page.contains("typed again") && page.contains("https://other.example"), "{page}");
    assert!(!page.contains("ada:second") && page.contains("There is one. Empty: it stays."));
    let folder = place.gateway.state.join("pki/public");
    let kept = || std::fs::read_to_string(folder.join("secrets.json")).unwrap();
    assert!(kept().contains("ada:first") && !kept().contains("second"));
    assert!(!folder.join("secrets-next.json").exists());
    assert!(place.recorded().iter().all(|(_, on)| on != "the DNS hook"));

    // Taken, it waits until the box is told so.
    let form = hook("https://other.example", "&hook_secret=ada%3Asecond");
    let (_, to) = place.post("/certificate", steward, &form).await;
    assert_eq!(to, "/certificate?said=certificate");
    assert!(kept().contains("ada:first"), "the service of now would get the next one's");
    assert!(std::fs::read_to_string(folder.join("secrets-next.json")).unwrap().contains("second"));
}

#[tokio::test]
async fn a_box_that_cannot_look_after_a_certificate_says_so_where_one_looks() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let page = place.get("/certificate", steward).await.1;
    assert!(page.contains("none is asked for nor renewed"), "{page}");
    assert!(!page.contains("Next: ."), "{page}");
    let place = place_with(Clock::system(), |_| {}, true).await;
    let page = place.get("/certificate", Some(&place.steward.1)).await.1;
    assert!(!page.contains("none is asked for nor renewed"), "{page}");
}
