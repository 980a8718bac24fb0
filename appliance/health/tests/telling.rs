//! Stewards are told, by the real part with a supervisor and a door that are fakes, over a real mail server (aiosmtpd, with
//! TLS and a sign-in) and a web server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use polder_control::{
    AlertSecret, BackupSeen, BatterySeen, BoxStatus, Channel, Client, ControlError, DoorReply,
    DoorRequest, EngineStatus, Fix, Handler, HealthReply, HealthReport, HealthRequest, OtherPart,
    Outlet, OutsideLine, OutsideSeen, PartName, PartState, PartStatus, Reply, Request, Severity,
    Sockets, StewardContact, Told,
};
use polder_site::{Alerts, EngineSlot, MailSecurity, MailServer, PowerPlan, Site};
use tokio::sync::oneshot;

const PASSWORD: &str = "CANARY-mail-password";

/// Debian's own Python, which has Debian's aiosmtpd.
const PYTHON: &str = "/usr/bin/python3";

/// Prints its port, then each mail that it takes as one line of JSON. Whoever does not sign in is refused.
const MAIL_SERVER: &str = r#"
import asyncio, json, ssl, sys
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword
class Inbox:
    async def handle_DATA(self, server, session, envelope):
        print(json.dumps({"to": envelope.rcpt_tos, "from": envelope.mail_from,
                          "mail": envelope.content.decode()}), flush=True)
        return "250 taken"
def who(server, session, envelope, mechanism, data):
    good = isinstance(data, LoginPassword) and data.login == b"box" and data.password == sys.argv[3].encode()
    return AuthResult(success=good, handled=False)
tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
tls.load_cert_chain(sys.argv[1], sys.argv[2])
async def main():
    loop = asyncio.get_running_loop()
    starttls = sys.argv[4] == "starttls"
    def one():
        return SMTP(Inbox(), authenticator=who, auth_required=True, loop=loop,
                    tls_context=tls if starttls else None, require_starttls=starttls,
                    auth_require_tls=starttls)
    server = await loop.create_server(one, "127.0.0.1", 0, ssl=None if starttls else tls)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"#;

/// A mail server, and what it took.
struct Inbox {
    child: Child,
    port: u16,
    mails: Arc<Mutex<Vec<serde_json::Value>>>,
}

impl Inbox {
    fn with(folder: &Path, starttls: bool) -> (Self, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let asked =
            rcgen::CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]);
        let certificate = asked.unwrap().self_signed(&key).unwrap();
        let (certificate_file, key_file) = (folder.join("mail.pem"), folder.join("mail.key"));
        std::fs::write(&certificate_file, certificate.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        let way = if starttls { "starttls" } else { "tls" };
        let mut child = Command::new(PYTHON)
            .args(["-c", MAIL_SERVER])
            .args([&certificate_file, &key_file])
            .args([PASSWORD, way])
            .stdout(Stdio::piped())
            .spawn()
            .expect("Debian's python3 runs the mail server");
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = said.next().expect("aiosmtpd is here (Debian: python3-aiosmtpd)").unwrap();
        let mails = Arc::new(Mutex::new(Vec::new()));
        let taken = mails.clone();
        std::thread::spawn(move || {
            for line in said.map_while(Result::ok) {
                taken.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        (Self { child, port: port.parse().unwrap(), mails }, certificate.pem())
    }

    /// How many mails came; the server's words about the last may still be on their way.
    fn count(&self, expected: usize) -> usize {
        for _ in 0..100 {
            if self.mails.lock().unwrap().len() >= expected {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.mails.lock().unwrap().len()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A web server that takes everything: head and body of each request.
struct Web {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Web {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, asked) =
            (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(Vec::new())));
        let heard = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let heard = heard.clone();
                std::thread::spawn(move || heard.lock().unwrap().push(take(stream)));
            }
        });
        Self { port, asked }
    }

    fn of(&self, path: &str) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|one| one.lines().next().unwrap_or_default().contains(path))
            .cloned()
            .collect()
    }
}

fn take(mut stream: TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (mut text, mut piece) = (String::new(), [0; 4096]);
    loop {
        let head = text.split_once("\r\n\r\n");
        let length = text
            .lines()
            .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if head.is_some_and(|(_, body)| body.len() >= length.unwrap_or(0)) {
            break;
        }
        match stream.read(&mut piece) {
            Ok(length @ 1..) => text += &String::from_utf8_lossy(&piece[..length]),
            _ => break,
        }
    }
    let status = if text.contains("/refuses") { "403 Forbidden" } else { "200 OK" };
    let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    text
}

#[derive(Clone)]
struct Supervisor {
    status: Arc<Mutex<BoxStatus>>,
    noticed: Arc<Mutex<Vec<String>>>,
}

impl Handler<Request, Reply> for Supervisor {
    async fn handle(
        &self,
        question: Request,
        outlet: &mut Outlet<Reply>,
    ) -> Result<(), ControlError> {
        let reply = match question {
            Request::Status => Reply::Status(Box::new(self.status.lock().unwrap().clone())),
            Request::Noticed { what, on } => {
                self.noticed.lock().unwrap().push(format!("{what} {on}"));
                Reply::Done
            }
            _ => Reply::Refused("not in this test".into()),
        };
        outlet.send(&reply).await
    }
}

#[derive(Clone, Default)]
struct Door(Arc<Mutex<OutsideSeen>>);

impl Handler<DoorRequest, DoorReply> for Door {
    async fn handle(
        &self,
        question: DoorRequest,
        outlet: &mut Outlet<DoorReply>,
    ) -> Result<(), ControlError> {
        if question == DoorRequest::Outside {
            let seen = self.0.lock().unwrap().clone();
            return outlet.send(&DoorReply::Outside(seen)).await;
        }
        let steward = |name: &str, email: Option<&str>| StewardContact {
            name: name.into(),
            email: email.map(str::to_owned),
        };
        let stewards = vec![
            steward("Ada", Some("ada@example.org")),
            steward("Ben", None),
            steward("Cem", Some("cem@example.org")),
        ];
        outlet.send(&DoorReply::Stewards(stewards)).await
    }
}

/// A box whose supervisor and door are fakes.
struct Place {
    folder: tempfile::TempDir,
    supervisor: Supervisor,
    door: Door,
    health: Option<(oneshot::Sender<()>, tokio::task::JoinHandle<()>)>,
}

impl Place {
    async fn new(alerts: Alerts) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut site = Site::unclaimed(1);
        site.name = "oak".parse().unwrap();
        let name: polder_site::EngineName = "fast".parse().unwrap();
        site.engines.insert(name.clone(), EngineSlot::serving("tiny".parse().unwrap()));
        site.alerts = Some(alerts);
        let part = |state| PartStatus { state, restarts: 0, pid: None };
        let engine = EngineStatus {
            name,
            recipe: "tiny".parse().unwrap(),
            socket: folder.path().join("none"),
            part: part(PartState::Starting),
            note: None,
        };
        let status = BoxStatus {
            closed: None,
            others: Vec::new(),
            site,
            gateway: part(PartState::Ready),
            engines: vec![engine],
            safe: false,
            supply: None,
        };
        let (status, noticed) = (Arc::new(Mutex::new(status)), Arc::default());
        let supervisor = Supervisor { status, noticed };
        let sockets = Sockets::of(folder.path());
        let (control, gateway, one) = (sockets.control(), sockets.gateway(), supervisor.clone());
        let door = Door::default();
        let two = door.clone();
        tokio::spawn(async move { polder_control::serve(&control, Arc::new(one)).await });
        tokio::spawn(async move { polder_control::serve(&gateway, Arc::new(two)).await });
        let mut place = Self { folder, supervisor, door, health: None };
        place.start().await;
        place
    }

    fn state(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    async fn start(&mut self) {
        let (end, told) = oneshot::channel::<()>();
        let state = self.state();
        let task = tokio::spawn(async move {
            polder_health::run(&state, async { drop(told.await) }).await.unwrap();
        });
        self.health = Some((end, task));
        let socket = Sockets::of(&self.state()).health();
        while Client::<HealthRequest, HealthReply>::connect(&socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn stop(&mut self) {
        let (end, task) = self.health.take().unwrap();
        end.send(()).unwrap();
        task.await.unwrap();
    }

    async fn ask(&self, request: HealthRequest) -> HealthReply {
        let socket = Sockets::of(&self.state()).health();
        let mut client: Client<HealthRequest, HealthReply> =
            Client::connect(&socket).await.unwrap();
        client.ask_within(Duration::from_secs(60), &request).await.unwrap()
    }

    async fn keep(&self, secret: AlertSecret, value: &str) {
        let kept = self.ask(HealthRequest::Keep { secret, value: value.to_owned() }).await;
        assert_eq!(kept, HealthReply::Done);
    }

    async fn look(&self) -> HealthReport {
        let HealthReply::Report(report) = self.ask(HealthRequest::LookNow).await else { panic!() };
        *report
    }

    fn engine_is(&self, state: PartState) {
        self.supervisor.status.lock().unwrap().engines[0].part.state = state;
    }

    /// As if everybody had waited: what was gone a moment ago is long gone, and another letter may be sent.
    async fn much_later(&mut self) {
        self.stop().await;
        let path = self.state().join("health/memory.json");
        let mut memory: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for standing in memory["ledger"]["standing"].as_array_mut().unwrap() {
            if let Some(gone) = standing.get_mut("gone_since") {
                *gone = (gone.as_i64().unwrap() - 1000).into();
            }
        }
        for (_, told) in memory["told"].as_object_mut().unwrap() {
            told["next"] = 0.into();
        }
        std::fs::write(&path, serde_json::to_vec(&memory).unwrap()).unwrap();
        self.start().await;
    }
}

fn mail(inbox: &Inbox, authority: String, security: MailSecurity) -> Option<MailServer> {
    Some(MailServer {
        server: "127.0.0.1".parse().unwrap(),
        port: inbox.port,
        security,
        sender: "box@example.org".parse().unwrap(),
        user: Some("box".into()),
        authority: Some(authority),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_steward_is_told_once_in_every_way_and_when_it_is_over() {
    let files = tempfile::tempdir().unwrap();
    let ((inbox, authority), web) = (Inbox::with(files.path(), false), Web::new());
    let mail = mail(&inbox, authority, MailSecurity::Tls);
    let alerts = Alerts { mail, webhook: true, ntfy: true, dead_man: true, ..Alerts::default() };
    let mut place = Place::new(alerts).await;
    let url = |path: &str| format!("http://127.0.0.1:{}/{path}", web.port);
    place.keep(AlertSecret::MailPassword, PASSWORD).await;
    place.keep(AlertSecret::WebhookUrl, &url("hook")).await;
    place.keep(AlertSecret::NtfyUrl, &url("topic")).await;
    place.keep(AlertSecret::NtfyToken, "tk_7").await;
    place.keep(AlertSecret::DeadManUrl, &url("well")).await;

    let report = place.look().await;
    let urgent = |report: &HealthReport| {
        let part = |s: &&polder_control::Standing| s.issue.id.on == "the model fast";
        report.standing.iter().find(part).cloned()
    };
    assert_eq!(urgent(&report), None, "{report:?}");
    assert_eq!(web.of("/well").len(), 1, "all is well");

    place.engine_is(PartState::GaveUp("it died 5 times of signal 9".into()));
    let report = place.look().await;
    let issue = urgent(&report).unwrap().issue;
    assert_eq!(issue.fix, Some(polder_control::Fix::StartEngine("fast".parse().unwrap())));
    assert!(report.standing.iter().all(|s| s.gone_since.is_none()));
    place.look().await;
    assert_eq!(inbox.count(2), 2, "one each to those with an address");
    let mails = inbox.mails.lock().unwrap().clone();
    let to: Vec<&str> = mails.iter().map(|m| m["to"][0].as_str().unwrap()).collect();
    assert_eq!(to, ["ada@example.org", "cem@example.org"]);
    let text = mails[0]["mail"].as_str().unwrap();
    assert!(text.contains("Subject: [oak] urgent: the model fast was given up"), "{text}");
    assert!(text.contains("What helps: Press the button"), "{text}");
    let hooks = web.of("POST /hook");
    assert_eq!(hooks.len(), 1);
    let document: serde_json::Value =
        serde_json::from_str(hooks[0].split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((&document["box"], &document["begun"][0]["check"]), (&"oak".into(), &"part".into()));
    let topic = web.of("POST /topic");
    assert!(topic.len() == 1 && topic[0].contains("priority: urgent"), "{topic:?}");
    assert!(topic[0].contains("authorization: Bearer tk_7"), "{topic:?}");
    let noticed = place.supervisor.noticed.lock().unwrap().clone();
    assert!(
        noticed[0].starts_with("told stewards that the model fast was given up"),
        "{noticed:?}"
    );

    // A restart of the part tells nothing again, and remembers since when.
    let since = urgent(&report).unwrap().since;
    place.much_later().await;
    assert_eq!(urgent(&place.look().await).unwrap().since, since);
    assert_eq!((inbox.count(2), web.of("POST /hook").len()), (2, 1));
    // Nobody says that all is well while it is not.
    assert_eq!(web.of("/well").len(), 1);

    place.engine_is(PartState::Ready);
    place.look().await;
    place.much_later().await;
    let report = place.look().await;
    assert_eq!(urgent(&report), None);
    assert_eq!(report.past[0].id.on, "the model fast");
    assert_eq!((inbox.count(4), web.of("POST /hook").len()), (4, 2));
    let last = inbox.mails.lock().unwrap()[3]["mail"].as_str().unwrap().to_owned();
    assert!(last.contains("back to normal"), "{last}");
    assert_eq!(web.of("/well").len(), 2);
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_says_what_the_other_side_does_not_like_and_never_the_secret() {
    let files = tempfile::tempdir().unwrap();
    let ((inbox, authority), web) = (Inbox::with(files.path(), true), Web::new());
    let mail = mail(&inbox, authority, MailSecurity::Starttls);
    let alerts = Alerts { mail, webhook: true, ..Alerts::default() };
    let mut place = Place::new(alerts).await;
    let tried = |reply| match reply {
        HealthReply::Done => "done".to_owned(),
        HealthReply::Refused(why) => why,
        other => panic!("{other:?}"),
    };
    place.keep(AlertSecret::MailPassword, "CANARY-wrong").await;
    let why = tried(place.ask(HealthRequest::Test(Channel::Mail)).await);
    assert!(why.contains("127.0.0.1") && !why.contains("CANARY"), "{why}");
    assert_eq!(inbox.count(0), 0);
    place.keep(AlertSecret::MailPassword, PASSWORD).await;
    assert_eq!(tried(place.ask(HealthRequest::Test(Channel::Mail)).await), "done");
    assert_eq!(inbox.count(2), 2);
    // A server whose certificate nobody vouches for is sent nothing.
    place
        .supervisor
        .status
        .lock()
        .unwrap()
        .site
        .alerts
        .as_mut()
        .unwrap()
        .mail
        .as_mut()
        .unwrap()
        .authority = None;
    let why = tried(place.ask(HealthRequest::Test(Channel::Mail)).await);
    assert!(why.contains("certificate"), "{why}");
    assert_eq!(inbox.count(2), 2);

    let why = tried(place.ask(HealthRequest::Test(Channel::Webhook)).await);
    assert!(why.contains("not given yet"), "{why}");
    place
        .keep(AlertSecret::WebhookUrl, &format!("http://127.0.0.1:{}/refuses/CANARY", web.port))
        .await;
    let why = tried(place.ask(HealthRequest::Test(Channel::Webhook)).await);
    assert!(why.contains("403") && !why.contains("CANARY"), "{why}");
    let far = HealthRequest::Keep {
        secret: AlertSecret::WebhookUrl,
        value: "http://example.org/x".into(),
    };
    assert!(matches!(place.ask(far).await, HealthReply::Refused(_)));
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_for_a_helper_has_no_canary_from_any_place_that_has_secrets() {
    let files = tempfile::tempdir().unwrap();
    let (inbox, authority) = Inbox::with(files.path(), false);
    let mut mail = mail(&inbox, authority, MailSecurity::Tls);
    mail.as_mut().unwrap().user = Some("CANARY-user".into());
    let alerts = Alerts { mail, webhook: true, ntfy: true, dead_man: true, ..Alerts::default() };
    let mut place = Place::new(alerts).await;
    let url = |name: &str| format!("http://127.0.0.1:9/CANARY-{name}");
    for (secret, value) in [
        (AlertSecret::MailPassword, "CANARY-password".to_owned()),
        (AlertSecret::WebhookUrl, url("hook")),
        (AlertSecret::NtfyUrl, url("topic")),
        (AlertSecret::NtfyToken, "CANARY-token".to_owned()),
        (AlertSecret::DeadManUrl, url("well")),
    ] {
        place.keep(secret, &value).await;
    }
    {
        let mut status = place.supervisor.status.lock().unwrap();
        status.site.common.insert("Agent".into(), "CANARY-instructions".into());
        status.site.door.names.push("canary.example.org".into());
        let url = "http://127.0.0.1:9/CANARY-verifier".parse().unwrap();
        status.site.verifier = Some(polder_site::Verifier { url, mode: Default::default() });
        let from = "http://127.0.0.1:9/CANARY-updates".parse().unwrap();
        status.site.updates = Some(polder_site::Updates { from });
        // Last words with everything that a part may say by mistake.
        let words = "it said ada@example.org CANARY-password pld_4f7a9c2e8b1d6035c9aa http://127.0.0.1:9/CANARY-hook Ada";
        status.engines[0].part.state = PartState::GaveUp(words.into());
        status.engines[0].note = Some("-----BEGIN PRIVATE KEY----- MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF".into());
    }
    for name in ["pki", "kv", "audit"] {
        std::fs::create_dir_all(place.state().join(name)).unwrap();
        std::fs::write(place.state().join(name).join("secret.pem"), "CANARY-file").unwrap();
    }
    for channel in Channel::ALL {
        place.ask(HealthRequest::Test(channel)).await;
    }
    place.look().await;
    let by = polder_control::Actor::Member("Ada".into());
    let HealthReply::Support(text) = place.ask(HealthRequest::Support { by }).await else {
        panic!()
    };
    assert!(text.contains("1 common instructions") && text.contains("urgent part"), "{text}");
    for canary in
        ["CANARY", "canary.example", "ada@", "cem@", "pld_4f7a", "MC4CAQAw", "127.0.0.1:9", " Ada"]
    {
        assert!(!text.contains(canary), "{canary:?} is in:\n{text}");
    }
    place.stop().await;
}

/// What stands, in words.
fn stands(report: &HealthReport) -> Vec<String> {
    report.standing.iter().map(|standing| standing.issue.what.clone()).collect()
}

impl Place {
    fn leave(&self, told: &Told) {
        told.leave(&Sockets::of(&self.state())).unwrap();
    }

    /// As if what parts left had been left so many seconds ago.
    fn older(&self, seconds: u64) {
        let folder = Sockets::of(&self.state()).folder().join(Told::FOLDER);
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let file = std::fs::File::options().write(true).open(entry.path()).unwrap();
            let at = std::time::SystemTime::now() - Duration::from_secs(seconds);
            file.set_modified(at).unwrap();
        }
    }

    /// As if it had been remembered so long ago.
    async fn remembered(&mut self, what: &str, seconds: i64) {
        self.stop().await;
        let path = self.state().join("health/memory.json");
        let text = std::fs::read(&path).unwrap();
        let mut memory: serde_json::Value = serde_json::from_slice(&text).unwrap();
        memory[what] = (memory[what].as_i64().unwrap() - seconds).into();
        std::fs::write(&path, serde_json::to_vec(&memory).unwrap()).unwrap();
        self.start().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_of_which_nobody_hears_any_more_is_not_over_and_a_silent_ups_is_told() {
    let mut place = Place::new(Alerts::default()).await;
    {
        let mut status = place.supervisor.status.lock().unwrap();
        status.site.power = Some(PowerPlan::of("ups@localhost".parse().unwrap()));
        let part = PartStatus { state: PartState::Ready, restarts: 0, pid: Some(1) };
        status.others = vec![OtherPart { name: PartName::Power, part }];
    }
    let cut = BatterySeen { on_mains: Some(false), charge: Some(71), ..BatterySeen::default() };
    place.leave(&Told::Battery(cut));
    let away = |report: &HealthReport| {
        stands(report).iter().any(|what| what.starts_with("the mains is away"))
    };
    assert!(away(&place.look().await));
    // The watch goes on and hears nothing.
    place.leave(&Told::Battery(BatterySeen { silent: Some(420), ..BatterySeen::default() }));
    place.look().await;
    place.much_later().await;
    let report = place.look().await;
    let away = |report: &HealthReport, how: &str, severity| {
        let mut all = report.standing.iter();
        let mains = all.find(|standing| standing.issue.what.starts_with("the mains "));
        mains.is_some_and(|mains| {
            let issue = &mains.issue;
            issue.what.contains(how) && issue.severity == severity
        })
    };
    let last = "was away when the UPS was last heard, 7 minutes ago";
    assert!(away(&report, last, Severity::Warning), "{report:?}");
    let silent = "the UPS has not been heard for 7 minutes";
    assert!(stands(&report).iter().any(|what| what.starts_with(silent)), "{report:?}");
    // Nor does it end because what was said is old.
    place.older(3 * 3600);
    place.look().await;
    place.much_later().await;
    let report = place.look().await;
    assert!(away(&report, "last heard, 3 hours ago", Severity::Warning), "{report:?}");
    let hours = "the UPS has not been heard for 3 hours";
    assert!(stands(&report).iter().any(|what| what.starts_with(hours)), "{report:?}");
    // And it is not told as if it were now, for ever, nor does it keep updates away.
    place.older(3 * 86_400);
    let report = place.look().await;
    assert!(away(&report, "last heard, 3 days ago", Severity::Notice), "{report:?}");
    assert!(report.standing.iter().all(|standing| !standing.issue.unsafe_to_update));
    // It was given up: one issue says so, with a button.
    place.supervisor.status.lock().unwrap().others[0].part.state =
        PartState::GaveUp("it died 5 times of signal 9".into());
    let report = place.look().await;
    let watch = report.standing.iter().find(|s| s.issue.what.starts_with("nobody watches the bat"));
    assert_eq!(watch.unwrap().issue.fix, Some(Fix::StartPart(PartName::Power)), "{report:?}");
    assert!(away(&report, "was away", Severity::Notice));
    // No UPS any more: nothing is asked for, and what stood is over.
    {
        let mut status = place.supervisor.status.lock().unwrap();
        (status.site.power, status.others) = (None, Vec::new());
    }
    place.look().await;
    place.much_later().await;
    let report = place.look().await;
    assert!(!stands(&report).iter().any(|what| what.starts_with("the mains")), "{report:?}");
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_place_for_backups_no_drill_and_a_broken_line_are_told_and_a_trial_is_left_alone() {
    let mut place = Place::new(Alerts::default()).await;
    let listens = |address: &str| vec![address.parse().unwrap()];
    place.supervisor.status.lock().unwrap().site.door.listen = listens("0.0.0.0");
    place.leave(&Told::Backup(BackupSeen::default()));
    let why = "the relay r.example.org does not answer".to_owned();
    let broken = OutsideLine { broken: Some((3600, why)), ..OutsideLine::default() };
    *place.door.0.lock().unwrap() =
        OutsideSeen { relay: Some("r.example.org".into()), lines: vec![broken] };
    let report = place.look().await;
    let line = "no line to the relay r.example.org has been held for 60 minutes";
    assert!(stands(&report).iter().any(|what| what.starts_with(line)), "{report:?}");
    let nowhere = |report: &HealthReport| {
        stands(report).iter().any(|what| what.starts_with("nobody has said where backups go"))
    };
    assert!(!nowhere(&report), "on its first day");
    place.remembered("lived_in", 5 * 86_400).await;
    place.leave(&Told::Backup(BackupSeen::default()));
    let report = place.look().await;
    assert!(nowhere(&report), "{report:?}");
    assert!(report.standing.iter().any(|s| s.issue.advice.contains("page Backups")));
    let now = jiff::Timestamp::now().as_second();
    let made = BackupSeen { to: Some("elm".into()), last: Some(now), ..BackupSeen::default() };
    place.leave(&Told::Backup(made.clone()));
    place.look().await;
    place.remembered("unproved", 12 * 86_400).await;
    place.leave(&Told::Backup(made));
    let report = place.look().await;
    assert!(
        stands(&report).iter().any(|what| what.contains("none was ever restored")),
        "{report:?}"
    );
    // A trial has nothing to lose.
    place.supervisor.status.lock().unwrap().site.door.listen = listens("127.0.0.1");
    place.leave(&Told::Backup(BackupSeen::default()));
    place.look().await;
    place.much_later().await;
    let report = place.look().await;
    assert!(!nowhere(&report), "{report:?}");
    place.stop().await;
}
