//! The pages about the box's health, with the part that looks after it and without.

use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use polder_control::{
    AlertSecret, Channel, ChannelState, Check, ControlError, Fix, Handler, HealthReply,
    HealthReport, HealthRequest, Issue, IssueId, Outlet, Request, Severity, Standing,
};
use polder_site::SiteChange;

use super::tests::{Place, place};

/// The part that looks after the box's health: what is wrong never changes, and it hears what it is told.
struct Watchman(Arc<Mutex<Vec<HealthRequest>>>);

impl Handler<HealthRequest, HealthReply> for Watchman {
    async fn handle(
        &self,
        question: HealthRequest,
        outlet: &mut Outlet<HealthReply>,
    ) -> Result<(), ControlError> {
        self.0.lock().unwrap().push(question.clone());
        let issue = Issue {
            id: IssueId { check: Check::Part, on: "the model fast".into() },
            severity: Severity::Urgent,
            what: "the model fast was given up: <b>signal 9</b>".into(),
            advice: "Press the button to try once more".into(),
            fix: Some(Fix::StartEngine("fast".parse().unwrap())),
            unsafe_to_update: false,
        };
        let heat = Issue {
            id: IssueId { check: Check::GpuHeat, on: "graphics card 0".into() },
            severity: Severity::Warning,
            what: "graphics card 0 is too hot".into(),
            advice: "Look at its fans".into(),
            fix: None,
            unsafe_to_update: false,
        };
        let stands = |issue| Standing { issue, since: 1_700_000_000, gone_since: None };
        let mail = ChannelState {
            channel: Channel::Mail,
            on: true,
            worked: None,
            failed: Some("the mail server did not take it".into()),
        };
        let report = HealthReport {
            at: 1_700_000_100,
            standing: vec![stands(issue), stands(heat)],
            channels: vec![mail],
            ..HealthReport::default()
        };
        let reply = match question {
            HealthRequest::Report | HealthRequest::LookNow => HealthReply::Report(Box::new(report)),
            HealthRequest::Kept => HealthReply::Kept(vec![AlertSecret::NtfyUrl]),
            HealthRequest::Test(_) => HealthReply::Refused("nobody answers there".into()),
            HealthRequest::Support { .. } => HealthReply::Support("how the box is".into()),
            HealthRequest::Ready | HealthRequest::Keep { .. } => HealthReply::Done,
        };
        outlet.send(&reply).await
    }
}

async fn watched() -> (Place, Arc<Mutex<Vec<HealthRequest>>>) {
    let (place, asked) = (place().await, Arc::<Mutex<Vec<HealthRequest>>>::default());
    let (socket, watchman) = (place.gateway.sockets().health(), Arc::new(Watchman(asked.clone())));
    let at = socket.clone();
    tokio::spawn(async move { polder_control::serve(&at, watchman).await });
    while !socket.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    (place, asked)
}

#[tokio::test]
async fn the_status_page_is_every_members_and_needs_nobody_who_looks_after_health() {
    let place = place().await;
    let member = Some(place.member.1.as_str());
    let (status, page) = place.get("/status", member).await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("The models answer.") && page.contains("It answers."), "{page}");
    assert_eq!(place.get("/issues", member).await.0, StatusCode::FORBIDDEN);
    assert_eq!(place.post("/support", member, "").await.0, StatusCode::FORBIDDEN);
    let steward = Some(place.steward.1.as_str());
    let (_, page) = place.get("/issues", steward).await;
    assert!(page.contains("Nobody looks after the box"), "{page}");
    assert_eq!(place.post("/support", steward, "").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn what_is_wrong_is_shown_with_what_helps_and_a_press_asks_the_supervisor() {
    let (place, _) = watched().await;
    let steward = Some(place.steward.1.as_str());
    let (_, page) = place.get("/issues", steward).await;
    for shown in ["given up: &lt;b&gt;signal 9", "Press the button", "Start fast again", "too hot"]
    {
        assert!(page.contains(shown), "{shown}: {page}");
    }
    for path in ["/dashboard", "/versions"] {
        assert!(place.get(path, steward).await.1.contains("What helps"), "{path}");
    }
    let press = "check=part&on=the+model+fast";
    assert_eq!(place.post("/issues/fix", steward, press).await.1, "/runs/7");
    let change =
        |r: &Request| matches!(r, Request::Apply { change: SiteChange::Engine { .. }, .. });
    assert!(place.asked().iter().any(change));
    let gone = place.post("/issues/fix", steward, "check=part&on=another").await;
    assert_eq!(gone.0, StatusCode::NOT_FOUND);
    // A member sees what matters to them, and not why a model died.
    let (_, page) = place.get("/status", Some(&place.member.1)).await;
    assert!(page.contains("too hot") && !page.contains("signal 9"), "{page}");
    let (status, text) = place.post("/support", steward, "").await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, "how the box is"));
}

#[tokio::test]
async fn secrets_go_to_whoever_keeps_them_and_never_into_the_site_or_a_page() {
    let (place, asked) = watched().await;
    let steward = Some(place.steward.1.as_str());
    let form = "from=urgent&server=smtp.example.org&security=tls&port=&sender=box%40example.org&user=box&password=hunter2hunter2&ntfy=yes";
    assert_eq!(place.post("/issues/alerts", steward, form).await.1, "/issues?said=alerts");
    let keep =
        HealthRequest::Keep { secret: AlertSecret::MailPassword, value: "hunter2hunter2".into() };
    assert!(asked.lock().unwrap().contains(&keep));
    let changes: Vec<SiteChange> = place
        .asked()
        .into_iter()
        .filter_map(|r| match r {
            Request::Apply { change, .. } => Some(change),
            _ => None,
        })
        .collect();
    let [SiteChange::Alerts(alerts)] = &changes[..] else { panic!("{changes:?}") };
    assert!(alerts.ntfy && !alerts.webhook && alerts.mail.as_ref().unwrap().port == 465);
    assert!(!format!("{:?}", place.asked()).contains("hunter2"));
    // A webhook that nobody knows the way to, and mail in the clear.
    for form in [
        "from=warning&webhook=yes&password=hunter2hunter2",
        "from=warning&server=smtp.example.org&security=none&sender=box%40example.org",
        "from=warning&server=smtp.example.org&security=tls&sender=nobody",
    ] {
        let (status, page) = place.post("/issues/alerts", steward, form).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{form}");
        assert!(!page.contains("hunter2"), "{page}");
    }
    let (_, page) = place.post("/issues/test", steward, "channel=mail").await;
    assert!(page.contains("did not work. Nobody answers there."), "{page}");
}
