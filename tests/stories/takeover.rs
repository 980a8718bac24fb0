//! The box dies, its spare goes on in its place, and gives back: the client keeps its key and its authority.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use polder_control::{Reply, Request, RunState, Sockets, Stand, TakeoverStatus};
use polder_members::{Members, NewKey, NewMember, Role, Secret};
use polder_site::SiteChange;
use polder_stories::{import_trial_model, need, polder, scaled, send_signal};
use rustix::process::Signal;

use crate::backup::key_on;

const MODEL: &str = "smollm2-135m-instruct";
const PASSWORD: &str = "a lamp beside the harbour";
/// Seconds without a word after which the other box may be taken for gone: short, for the story.
const LEASE: &str = "5";
const MAIN: &str = "10.83.0.1";
const SPARE: &str = "10.83.0.2";

/// Two machines and a third for the client, on one switch; in network namespaces.
struct Network(String);

impl Network {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NETWORKS: AtomicU32 = AtomicU32::new(0);
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let name = format!("pt{}n{number}", std::process::id());
        let mut script = format!(
            "ip netns add {name}net; ip -n {name}net link set lo up
             ip -n {name}net link add switch type bridge
             ip -n {name}net addr add 10.83.0.254/24 dev switch
             ip -n {name}net link set switch up\n"
        );
        for (place, address) in [("main", MAIN), ("spare", SPARE)] {
            script += &format!(
                "ip netns add {name}{place}; ip -n {name}{place} link set lo up
                 ip link add {place} netns {name}net type veth peer name cable netns {name}{place}
                 ip -n {name}net link set {place} master switch
                 ip -n {name}net link set {place} up
                 ip -n {name}{place} addr add {address}/24 dev cable
                 ip -n {name}{place} link set cable up\n"
            );
        }
        let network = Self(name);
        let done = Command::new("sh").args(["-ec", &script]).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{said}: this story needs root, and iproute2");
        network
    }

    fn inside(&self, place: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &format!("{}{place}", self.0)]).arg(program);
        inside
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for place in ["main", "spare", "net"] {
            let _ =
                Command::new("ip").args(["netns", "del", &format!("{}{place}", self.0)]).output();
        }
    }
}

/// A box on one of the machines.
struct Machine {
    state: PathBuf,
    child: Child,
}

impl Machine {
    fn start(network: &Network, place: &str, address: &str, state: &Path, more: &[&str]) -> Self {
        let log = state.join("story.log");
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let mut command = network.inside(place, need("POLDER_BIN"));
        command.args(["up", "--port", "8443", "--listen", address, "--state"]).arg(state);
        command.args(more).env("POLDER_LEASE", LEASE);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        if !more.is_empty() {
            // It is ready when it says so.
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            assert!(line.contains("api_key"), "{line}: {}", log_of(state));
        }
        // A box ends when nobody listens to it any more.
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        let machine = Self { state: state.to_owned(), child };
        until("the box", &machine.state, || machine.ask(&Request::Status));
        machine
    }

    fn ask(&self, request: &Request) -> Option<Reply> {
        let path = Sockets::of(&self.state).control();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut control: polder_control::Client<Request, Reply> =
                polder_control::Client::connect(&path).await.ok()?;
            control.ask(request).await.ok()
        })
    }

    fn change(&self, change: SiteChange) {
        let by = polder_control::Actor::Console;
        let Some(Reply::Accepted(id)) = self.ask(&Request::Apply { change, by }) else {
            panic!("refused")
        };
        until("a change", &self.state, || match self.ask(&Request::Runs)? {
            Reply::Runs(runs) => {
                runs.into_iter().find(|run| run.id == id && run.state == RunState::Done)
            }
            _ => None,
        });
    }

    fn says(&self, arguments: &[&str], typed: &str) -> Output {
        let mut command = polder(arguments);
        command.arg("--state").arg(&self.state).env("POLDER_LEASE", LEASE);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    fn does(&self, arguments: &[&str], typed: &str) -> String {
        let output = self.says(arguments, typed);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}; {}", log_of(&self.state));
        String::from_utf8(output.stdout).unwrap()
    }

    fn stand(&self) -> Option<TakeoverStatus> {
        match self.ask(&Request::Takeover)? {
            Reply::Takeover(status) => status.map(|status| *status),
            _ => None,
        }
    }

    /// The power is cut: nothing ends in order.
    fn cut(mut self) {
        send_signal(self.child.id(), Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            send_signal(self.child.id(), Signal::TERM);
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(10)
                && matches!(self.child.try_wait(), Ok(None))
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Somebody with a key, the box's authority, and its name: which machine has the name is the network's affair.
struct Member<'a> {
    network: &'a Network,
    ca: PathBuf,
    jar: PathBuf,
}

impl Member<'_> {
    fn curl(&self, address: &str, arguments: &[&str]) -> (u16, String) {
        let mut command = self.network.inside("net", "curl");
        command.args(["-s", "-w", "\n%{http_code}", "--max-time", "60", "--cacert"]).arg(&self.ca);
        command.args(["--resolve", &format!("polder.local:8443:{address}")]);
        command.arg("-b").arg(&self.jar).arg("-c").arg(&self.jar).args(arguments);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, code) = text.rsplit_once('\n').unwrap_or_default();
        (code.parse().unwrap_or(0), body.to_owned())
    }

    /// 0 where nobody answers, or somebody whom the authority does not vouch for.
    fn chat(&self, address: &str, key: &str) -> (u16, String) {
        let body = format!(
            r#"{{"model":"{MODEL}","max_tokens":4,"messages":[{{"role":"user","content":"Hi."}}]}}"#
        );
        let header = format!("authorization: Bearer {key}");
        let json = "content-type: application/json";
        let url = "https://polder.local:8443/v1/chat/completions";
        self.curl(address, &["-H", &header, "-H", json, "-d", &body, url])
    }

    /// Whether this key is known there: 200, 401, or 503 and why not.
    fn models(&self, address: &str, key: &str) -> (u16, String) {
        let header = format!("authorization: Bearer {key}");
        self.curl(address, &["-H", &header, "https://polder.local:8443/v1/models"])
    }

    fn post(&self, address: &str, path: &str, fields: &[(&str, &str)]) -> u16 {
        let url = format!("https://polder.local:8443{path}");
        let mut arguments = vec!["-H", "origin: https://polder.local:8443", "-X", "POST"];
        let fields: Vec<String> = fields.iter().map(|(n, v)| format!("{n}={v}")).collect();
        for field in &fields {
            arguments.extend(["--data-urlencode", field]);
        }
        arguments.push(&url);
        self.curl(address, &arguments).0
    }
}

fn log_of(state: &Path) -> String {
    std::fs::read_to_string(state.join("story.log")).unwrap_or_default()
}

fn until<T>(what: &str, state: &Path, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            begun.elapsed() < scaled(Duration::from_secs(90)),
            "waited for {what}; {}",
            log_of(state)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A steward with two keys, before the box is started for the first time.
fn two_keys(state: &Path) -> ([String; 2], String) {
    let members = Members::open(&state.join("polder.db")).unwrap();
    let new = NewMember {
        name: "ada".to_owned(),
        email: None,
        password: Secret::new(PASSWORD.to_owned()),
    };
    let ada = members.add_member(&new, Role::Steward).unwrap();
    let mint = || members.mint_key(ada.id, &NewKey::default()).unwrap();
    let (stays, goes) = (mint(), mint());
    let id = goes.info.id.to_string();
    ([stays.key.expose().to_owned(), goes.key.expose().to_owned()], id)
}

#[test]
fn the_box_dies_its_spare_goes_on_with_the_same_keys_and_gives_back_and_nothing_revoked_comes_back()
{
    let network = Network::new();
    let folder = tempfile::tempdir().unwrap();
    let [oak, elm] = ["a", "b"].map(|name| folder.path().join(name));
    for state in [&oak, &elm] {
        std::fs::create_dir(state).unwrap();
    }
    import_trial_model(&oak);
    let ([stays, goes], id) = two_keys(&oak);
    let late = {
        let members = Members::open(&oak.join("polder.db")).unwrap();
        let ada = members.members().unwrap()[0].id;
        let minted = members.mint_key(ada, &NewKey::default()).unwrap();
        (ada, minted.info.id, minted.key.expose().to_owned())
    };
    let main = Machine::start(&network, "main", MAIN, &oak, &["--yes", "--json"]);
    let spare = Machine::start(&network, "spare", SPARE, &elm, &[]);
    spare.change(SiteChange::Rename("elm".parse().unwrap()));

    // The two are paired, the spare has a backup and the model.
    let code = spare.does(&["spare", "be"], "");
    main.does(&["spare", "pair", SPARE], &code);
    let key = key_on(&main.does(&["backup", "kit"], ""));
    main.does(&["backup", "kit", "--confirm"], &key);
    main.does(&["backup", "to", "spare"], "");
    main.does(&["spare", "send"], "");
    let manifest = elm.join("weights/manifests").join(format!("{MODEL}.toml"));
    assert!(manifest.exists(), "the spare has no model");
    let ca = folder.path().join("members-ca.pem");
    std::fs::copy(oak.join("pki/ca.pem"), &ca).unwrap();
    let member = Member { network: &network, ca, jar: folder.path().join("jar") };
    for key in [&stays, &goes] {
        assert_eq!(member.chat(MAIN, key).0, 200, "{}", log_of(&oak));
    }
    let early = spare.says(&["spare", "takeover", "--main-is-dead", "polder"], "");
    assert!(!early.status.success(), "a box that is there was taken for dead");

    // The main box loses its power, and the spare goes on.
    main.cut();
    let cut = Instant::now();
    // As if somebody had revoked it in its last second: nobody else has heard of that yet.
    Members::open(&oak.join("polder.db")).unwrap().revoke_key(late.0, &late.1).unwrap();
    let status =
        until("the silence", &elm, || spare.stand().filter(|status| status.outlook.is_ok()));
    let told = status.outlook.unwrap().join("\n");
    assert!(told.contains("elm becomes polder") && told.contains("as on polder"), "{told}");
    let wrong = spare.says(&["spare", "takeover", "--main-is-dead", "elm"], "");
    assert!(!wrong.status.success(), "another box was said to be dead");
    let asked = Instant::now();
    spare.does(&["spare", "takeover", "--main-is-dead", "polder"], "");
    until("an answer of the spare", &elm, || (member.chat(SPARE, &stays).0 == 200).then_some(()));
    println!(
        "time to takeover: {:.1} s after it was asked for, {:.1} s after the power was cut",
        asked.elapsed().as_secs_f64(),
        cut.elapsed().as_secs_f64()
    );

    // A key is revoked there.
    for key in [&goes, &late.2] {
        assert_eq!(member.models(SPARE, key).0, 200);
    }
    let signed_in = member.post(SPARE, "/sign-in", &[("name", "ada"), ("password", PASSWORD)]);
    assert_eq!(signed_in, 303, "{}", log_of(&elm));
    assert_eq!(member.post(SPARE, &format!("/keys/{id}/revoke"), &[]), 303);
    assert_eq!(member.chat(SPARE, &goes).0, 401);

    // The main box comes back, and lets nobody in.
    let main = Machine::start(&network, "main", MAIN, &oak, &[]);
    until("the fence", &oak, || main.stand().filter(|status| status.stand == Stand::Fenced));
    for key in [&stays, &goes] {
        until("what the door says", &oak, || {
            let (code, said) = member.chat(MAIN, key);
            assert!(matches!(code, 0 | 503), "{code}: {said}");
            said.contains("spare_serves").then_some(())
        });
    }
    assert_eq!(member.chat(SPARE, &stays).0, 200);
    let anyway = main.says(&["spare", "serve-anyway"], "");
    assert!(!anyway.status.success(), "a fenced box was let in");
    // What was revoked there in its last second is told now, and counts here as well.
    until("the end of a key that was revoked on the way", &elm, || {
        (member.models(SPARE, &late.2).0 == 401).then_some(())
    });

    // And is given back to.
    until("the main box", &elm, || spare.stand().filter(|status| status.main_is_there));
    spare.does(&["spare", "give-back"], "");
    until("an answer of the main box", &oak, || (member.chat(MAIN, &stays).0 == 200).then_some(()));
    let (code, said) = member.chat(MAIN, &goes);
    assert_eq!(code, 401, "a revoked key works again: {said}");
    assert_eq!(member.models(MAIN, &late.2).0, 401, "a key that was revoked on the way works");
    let stand = |machine: &Machine| machine.stand().map(|status| status.stand);
    assert_eq!((stand(&main), stand(&spare)), (Some(Stand::Serves), Some(Stand::Own)));
    assert_ne!(member.chat(SPARE, &stays).0, 200, "the spare still serves");
    // What the spare did last is in the trail that went over.
    let Some(Reply::Audit(trail)) = main.ask(&Request::Audit { before: None, limit: 200 }) else {
        panic!("no trail")
    };
    let hands = |entry: &polder_control::AuditEntry| entry.what.contains("hands the state back");
    assert!(trail.iter().any(hands), "{trail:?}");
}

#[test]
fn the_box_is_lost_for_good_its_spare_stays_and_gets_a_spare_and_the_old_one_never_serves_again() {
    let network = Network::new();
    let folder = tempfile::tempdir().unwrap();
    let [oak, elm, ash] = ["a", "b", "c"].map(|name| folder.path().join(name));
    for state in [&oak, &elm, &ash] {
        std::fs::create_dir(state).unwrap();
    }
    // No model: this is about who serves.
    let ([stays, goes], _) = two_keys(&oak);
    let main = Machine::start(&network, "main", MAIN, &oak, &[]);
    let spare = Machine::start(&network, "spare", SPARE, &elm, &[]);
    let code = spare.does(&["spare", "be"], "");
    main.does(&["spare", "pair", SPARE], &code);
    let key = key_on(&main.does(&["backup", "kit"], ""));
    main.does(&["backup", "kit", "--confirm"], &key);
    main.does(&["backup", "to", "spare"], "");
    let ca = folder.path().join("members-ca.pem");
    std::fs::copy(oak.join("pki/ca.pem"), &ca).unwrap();
    let member = Member { network: &network, ca, jar: folder.path().join("jar") };
    assert_eq!(member.models(MAIN, &stays).0, 200, "{}", log_of(&oak));
    let early = spare.says(&["spare", "become-main", "--sentence", "polder is gone for good"], "");
    assert!(!early.status.success(), "a box that stands in for nobody stayed in its place");

    main.cut();
    until("the silence", &elm, || spare.stand().filter(|status| status.outlook.is_ok()));
    spare.does(&["spare", "takeover", "--main-is-dead", "polder"], "");
    until("the spare", &elm, || (member.models(SPARE, &stays).0 == 200).then_some(()));

    // A refused end of the pairing changes nothing, and the plan tells what is to come.
    let parted = spare.says(&["spare", "unpair"], "");
    let why = String::from_utf8_lossy(&parted.stderr).into_owned();
    assert!(!parted.status.success() && why.contains("stands in for the other"), "{why}");
    let plan = spare.does(&["spare", "become-main", "--plan"], "");
    assert!(plan.contains("gone for good") && plan.contains("1. Write down"), "{plan}");
    let wrong = spare.says(&["spare", "become-main", "--sentence", "polder is gone"], "");
    let why = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(why.contains("type the sentence"), "{why}");
    spare.does(&["spare", "become-main", "--sentence", "Polder is gone for good."], "");
    assert_eq!(member.models(SPARE, &stays).0, 200, "members noticed something");
    assert_eq!(spare.stand(), None, "it stands in for somebody still");

    // Years later the old machine is found in a cellar, and turned on.
    let main = Machine::start(&network, "main", MAIN, &oak, &[]);
    let out = |main: &Machine| {
        until("that it is out", &oak, || main.stand().filter(|s| s.stand == Stand::Retired))
    };
    out(&main);
    for key in [&stays, &goes] {
        until("what its door says", &oak, || {
            let (code, said) = member.models(MAIN, key);
            assert!(matches!(code, 0 | 503), "{code}: {said}");
            said.contains("out for good").then_some(())
        });
    }
    for no in [&["spare", "serve-anyway"][..], &["spare", "unpair"], &["backup", "now"]] {
        assert!(!main.says(no, "").status.success(), "{no:?}");
    }

    // The new main box gets a spare of its own, and sends it a backup.
    let third = Machine::start(&network, "net", "10.83.0.254", &ash, &[]);
    let code = third.does(&["spare", "be"], "");
    spare.does(&["spare", "pair", "10.83.0.254"], &code);
    let key = key_on(&spare.does(&["backup", "kit"], ""));
    spare.does(&["backup", "kit", "--confirm"], &key);
    spare.does(&["backup", "to", "spare"], "");
    let stand = |machine: &Machine| machine.stand().map(|status| status.stand);
    assert_eq!((stand(&spare), stand(&third)), (Some(Stand::Serves), Some(Stand::Own)));
    assert_eq!(member.models(SPARE, &stays).0, 200);

    // Not even when nobody is there who could tell it: it knows.
    spare.cut();
    main.cut();
    let main = Machine::start(&network, "main", MAIN, &oak, &[]);
    out(&main);
    let anyway = main.says(&["spare", "serve-anyway"], "");
    assert!(!anyway.status.success(), "a box that is out was let in");
    until("what its door says", &oak, || {
        member.models(MAIN, &stays).1.contains("out for good").then_some(())
    });
}

/// As a power cut leaves it after the term began and before the state was in place: it is written where the spare keeps what the two boxes heard of each
/// other, and nowhere else.
fn cut_off_in_its_middle(state: &Path) {
    let path = state.join("spare/lease.json");
    let text = std::fs::read(&path).unwrap();
    let mut kept: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let term = kept["epoch"].as_u64().unwrap().max(kept["peer_epoch"].as_u64().unwrap()) + 1;
    (kept["epoch"], kept["began"]) = (term.into(), term.into());
    std::fs::write(&path, kept.to_string()).unwrap();
}

#[test]
fn a_takeover_that_is_cut_off_is_left_to_a_box_that_is_there_and_gone_on_with_where_it_is_silent() {
    let network = Network::new();
    let folder = tempfile::tempdir().unwrap();
    let [oak, elm] = ["a", "b"].map(|name| folder.path().join(name));
    for state in [&oak, &elm] {
        std::fs::create_dir(state).unwrap();
    }
    // No model: this is about who serves.
    let ([stays, _], _) = two_keys(&oak);
    let main = Machine::start(&network, "main", MAIN, &oak, &[]);
    let spare = Machine::start(&network, "spare", SPARE, &elm, &[]);
    let code = spare.does(&["spare", "be"], "");
    main.does(&["spare", "pair", SPARE], &code);
    let key = key_on(&main.does(&["backup", "kit"], ""));
    main.does(&["backup", "kit", "--confirm"], &key);
    main.does(&["backup", "to", "spare"], "");
    let ca = folder.path().join("members-ca.pem");
    std::fs::copy(oak.join("pki/ca.pem"), &ca).unwrap();
    let member = Member { network: &network, ca, jar: folder.path().join("jar") };
    until("that the two know each other", &elm, || {
        let text = std::fs::read_to_string(elm.join("spare/lease.json")).ok()?;
        (text.contains("\"peer_epoch\":1") && text.contains("\"may_be_left\":true")).then_some(())
    });

    // The main box is on: it serves on with all that it has, and nobody presses anything.
    spare.cut();
    cut_off_in_its_middle(&elm);
    let spare = Machine::start(&network, "spare", SPARE, &elm, &[]);
    until("that it is left to the main box", &oak, || {
        main.stand().filter(|status| status.stand == Stand::Serves && status.term == 3)
    });
    until("an answer of the main box", &oak, || {
        (member.models(MAIN, &stays).0 == 200).then_some(())
    });
    assert_eq!(spare.stand().map(|status| status.stand), Some(Stand::Own));
    let said = |machine: &Machine, what: &str| match machine
        .ask(&Request::Audit { before: None, limit: 50 })
    {
        Some(Reply::Audit(entries)) => entries.iter().any(|entry| entry.what.contains(what)),
        other => panic!("{other:?}"),
    };
    assert!(said(&spare, "leaves it to") && said(&main, "it was left to it by"));

    // The same once more with a main box that is silent: the spare goes on, by itself too.
    main.cut();
    spare.cut();
    cut_off_in_its_middle(&elm);
    let spare = Machine::start(&network, "spare", SPARE, &elm, &[]);
    until("the spare", &elm, || (member.models(SPARE, &stays).0 == 200).then_some(()));
    assert_eq!(spare.stand().map(|status| (status.stand, status.term)), Some((Stand::Serves, 4)));
    let main = Machine::start(&network, "main", MAIN, &oak, &[]);
    until("the fence", &oak, || main.stand().filter(|status| status.stand == Stand::Fenced));
    assert_eq!(member.models(SPARE, &stays).0, 200);
}
