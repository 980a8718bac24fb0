//! What is made for somebody who helps has no secret of the box in it: canaries are put into every place that has one, of a
//! real box, and looked for.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use polder_control::{
    AlertSecret, DoorReply, DoorRequest, HealthReply, HealthRequest, Reply, Request, Sockets,
};
use polder_members::{Members, NewMember, Role, Secret};
use polder_site::{Alerts, EngineSlot, MailServer, Site, Store, Updates, Verifier};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Each with its place in it, so that a failure says which one got out.
const PROMPT: &str = "CANARY-prompt-what-ails-me";
const COMMON: &str = "CANARY-common-instructions";
const PASSWORD: &str = "CANARY-password-of-a-member";
const MAIL: &str = "CANARY-mail-password";
const HOOK: &str = "https://hooks.example.org/CANARY-hook";
const TOPIC: &str = "https://ntfy.example.org/CANARY-topic";
const TOKEN: &str = "CANARY-token";
const WELL: &str = "https://well.example.org/CANARY-well";
const USER: &str = "CANARY-mail-user";
const ADDRESS: &str = "canary.ada@example.org";
const MEMBER: &str = "Ada CANARY Lovelace";
const AUTH: &str = "CANARY-verifier-path";
const FOLDER: &str = "CANARY-update-folder";
const KEPT: &str = "CANARY-kept-conversation";

/// A real box, ended with the test.
struct Running {
    child: Child,
    state: tempfile::TempDir,
    port: u16,
}

impl Running {
    fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        told(state.path(), port);
        let child = Command::new(env!("CARGO_BIN_EXE_polder"))
            .args(["up", "--state"])
            .arg(state.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let running = Self { child, state, port };
        let begun = Instant::now();
        let sockets = running.sockets();
        for socket in [sockets.gateway(), sockets.health(), sockets.control()] {
            while UnixStream::connect(&socket).is_err() {
                assert!(
                    begun.elapsed() < Duration::from_secs(60),
                    "{} is not there",
                    socket.display()
                );
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        running
    }

    fn sockets(&self) -> Sockets {
        Sockets::of(self.state.path())
    }

    fn polder(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_polder"));
        command.args(arguments).arg("--state").arg(self.state.path()).output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        let _ = kill_process(pid, Signal::TERM);
        let _ = self.child.wait();
    }
}

/// A site, people and files with canaries, before the box starts.
fn told(state: &Path, port: u16) {
    let mut site = Site::unclaimed(port);
    site.common.insert("Agent".into(), COMMON.into());
    let url = format!("http://127.0.0.1:9/{AUTH}").parse().unwrap();
    site.verifier = Some(Verifier { url, mode: Default::default() });
    site.updates = Some(Updates { from: format!("http://127.0.0.1:9/{FOLDER}").parse().unwrap() });
    let mail = MailServer {
        server: "127.0.0.1".parse().unwrap(),
        port: 9,
        security: polder_site::MailSecurity::None,
        sender: ADDRESS.parse().unwrap(),
        user: Some(USER.into()),
        authority: None,
    };
    // An urgent thing is told in all of these ways, and none of them works.
    let all =
        Alerts { mail: Some(mail), webhook: true, ntfy: true, dead_man: true, ..Alerts::default() };
    site.alerts = Some(all);
    site.engines.insert(
        "fast".parse().unwrap(),
        EngineSlot::serving("smollm2-135m-instruct".parse().unwrap()),
    );
    Store::open(state).unwrap().write(&site, "test").unwrap();
    let members = Members::open(&state.join("polder.db")).unwrap();
    let ada = NewMember {
        name: MEMBER.into(),
        email: Some(ADDRESS.into()),
        password: Secret::new(PASSWORD.into()),
    };
    members.add_member(&ada, Role::Steward).unwrap();
    std::fs::create_dir_all(state.join("kv/fast")).unwrap();
    std::fs::write(state.join("kv/fast/keys"), KEPT).unwrap();
}

fn ask<Q: Serialize, A: DeserializeOwned>(socket: &Path, question: &Q) -> A {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut line = serde_json::to_vec(question).unwrap();
    line.push(b'\n');
    stream.write_all(&line).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}

/// Every line of every key of the certificate authority and the door.
fn lines_of_keys(state: &Path) -> BTreeSet<String> {
    let files = std::fs::read_dir(state.join("pki")).unwrap().flatten();
    let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let private = texts.filter(|text| text.contains("PRIVATE KEY"));
    private
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| line.len() > 20 && !line.starts_with("-----"))
        .collect()
}

/// A member asks a model; there is none, and what they asked must be nowhere either way.
fn ask_a_model(port: u16, key: &str) {
    let body = format!(r#"{{"model":"fast","messages":[{{"role":"user","content":"{PROMPT}"}}]}}"#);
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (length, head) = (body.len(), "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost");
    let head = format!(
        "{head}\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let _ = stream.read(&mut [0; 4096]);
}

#[test]
fn nothing_that_opens_the_box_or_was_said_on_it_is_in_what_is_made_for_a_helper() {
    let running = Running::start();
    let (health, gateway) = (running.sockets().health(), running.sockets().gateway());
    let DoorReply::Key(key) = ask(&gateway, &DoorRequest::UpKey) else { panic!("no key") };
    for (secret, value) in [
        (AlertSecret::MailPassword, MAIL),
        (AlertSecret::WebhookUrl, HOOK),
        (AlertSecret::NtfyUrl, TOPIC),
        (AlertSecret::NtfyToken, TOKEN),
        (AlertSecret::DeadManUrl, WELL),
    ] {
        let kept: HealthReply = ask(&health, &HealthRequest::Keep { secret, value: value.into() });
        assert_eq!(kept, HealthReply::Done);
    }
    ask_a_model(running.port, &key);
    // Errors of every way to tell stewards, and of the engine that has no model.
    for channel in polder_control::Channel::ALL {
        let _: HealthReply = ask(&health, &HealthRequest::Test(channel));
    }
    let HealthReply::Report(report) = ask(&health, &HealthRequest::LookNow) else { panic!() };

    let made = running.polder(&["support"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let text = String::from_utf8(made.stdout).unwrap();
    for expected in [
        "== Parts ==",
        "engine fast",
        "1 common instructions",
        "verifier: true",
        "== Audit trail ==",
    ] {
        assert!(text.contains(expected), "no {expected:?} in:\n{text}");
    }
    assert!(!report.unseen.is_empty() || !report.standing.is_empty());

    let mut canaries = lines_of_keys(running.state.path());
    assert!(canaries.len() >= 4, "{canaries:?}");
    let known = [
        PROMPT,
        COMMON,
        PASSWORD,
        MAIL,
        HOOK,
        TOPIC,
        TOKEN,
        WELL,
        USER,
        ADDRESS,
        MEMBER,
        AUTH,
        FOLDER,
        KEPT,
        "CANARY",
        key.as_str(),
    ];
    canaries.extend(known.map(str::to_owned));
    let shown = String::from_utf8(running.polder(&["health", "--json"]).stdout).unwrap();
    for canary in &canaries {
        assert!(!text.contains(canary.as_str()), "{canary:?} is in:\n{text}");
        assert!(!shown.contains(canary.as_str()), "{canary:?} is in:\n{shown}");
    }

    // What was done is in the trail, which is whole, and is known to whoever keeps its head.
    let Reply::AuditHead(head) = ask(&running.sockets().control(), &Request::AuditHead) else {
        panic!()
    };
    let entries = running.polder(&["audit"]);
    assert!(String::from_utf8_lossy(&entries.stdout).contains("made a support text about the box"));
    let kept = format!("--head={}:{}", head.number, head.hash);
    let whole = running.polder(&["audit", "verify", &kept]);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let forged = format!("--head={}:{}", head.number, "0".repeat(64));
    assert!(!running.polder(&["audit", "verify", &forged]).status.success());
}
