//! Every page as a browser gets it: over the router, with a supervisor and an engine that are fakes.

mod apps;
mod chat;
mod models;
mod network;
mod people;
mod upkeep;

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

impl Supervisor {
    /// From a change by this contact on.
    fn has_no_room(&self) -> bool {
        let filled = |asked: &Request| {
            matches!(asked, Request::Apply { change: SiteChange::Certificate(wish), .. }
                if wish.contact.as_deref() == Some("unrecorded@example.org"))
        };
        self.asked.lock().unwrap().iter().any(filled)
    }
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
                driver: Some("this image has no NVIDIA driver".into()),
                idle_cards: 0,
                ports: vec![polder_control::Port { name: "enp1s0".into(), connected: true }],
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
            Request::ServeAnyway { .. } | Request::Yield { .. } | Request::StartPart { .. } => {
                Reply::Done
            }
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
            Request::Record { .. } if self.has_no_room() => {
                Reply::Refused("the audit trail has no room".into())
            }
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
        looked: None,
        unlooked: None,
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
        others: Vec::new(),
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
const FOR_STEWARDS: [&str; 28] = [
    "/power",
    "/power/live",
    "/collective/stewards",
    "/members/2/leave",
    "/elsewhere",
    "/registries",
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
        "/uplinks/ports".into(),
        "/uplinks/ports/enp1s0/dhcp".into(),
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
        "/issues/again".into(),
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
        "/registries".into(),
        "/registries/forget".into(),
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
