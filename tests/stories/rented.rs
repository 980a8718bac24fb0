//! The box dies and there is no second one: a rented server without a card and without a model goes on as it, through the relay, by a paid service.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use polder_control::{RunState, SecretText};
use polder_site::{SiteChange, UpstreamKind, UpstreamModel, UpstreamServer};
use polder_stories::{Running, need, polder, scaled};
use polder_upstream::{Holder, Secrets};

use crate::backup::key_on;
use crate::network::Network;

const NAME: &str = "oak.example.org";
const RELAY: &str = "198.51.100.9";
const MODEL: &str = "smollm2-135m-instruct";
/// What the paid service asks for.
const ITS_KEY: &str = "sk-a-key-of-the-collective";
const ITS_PORT: &str = "8000";

/// The house, the rented server, and everybody else.
fn house_and_server() -> Network {
    let network = Network::of(&["box", "rented", "net"]);
    network.cable("fibre", [("box", "10.1.0.2"), ("net", "10.1.0.1")]);
    network.cable("rack", [("rented", "10.3.0.2"), ("net", "10.3.0.1")]);
    let (inside, rented, outside) =
        (network.host("box"), network.host("rented"), network.host("net"));
    network.shell(&format!(
        "ip -n {inside} route add default via 10.1.0.1
         ip -n {rented} route add default via 10.3.0.1
         ip -n {outside} addr add {RELAY}/32 dev lo"
    ));
    network
}

/// Answers in the box's place, for money, within a budget.
fn paid_service() -> UpstreamServer {
    let amount = |text: &str| text.parse().unwrap();
    let model = UpstreamModel {
        called: MODEL.into(),
        input: amount("5000"),
        output: amount("1"),
        cached: None,
        // What it keeps from then on costs no more than reading.
        written: Some(amount("5000")),
        longest: None,
    };
    UpstreamServer {
        kind: UpstreamKind::Cloud,
        url: format!("http://127.0.0.1:{ITS_PORT}/v1").parse().unwrap(),
        authority: None,
        // More than five are set aside for a question, and a fifth of one it costs.
        budget: amount("6"),
        currency: Default::default(),
        when_down: true,
        when_full: false,
        full_at: None,
        models: [(MODEL.parse().unwrap(), model)].into(),
    }
}

/// `polder …` about the box in `state`, with something typed, from a host.
fn does(network: &Network, host: &str, state: &Path, arguments: &[&str], typed: &str) -> String {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &network.host(host)]).arg(need("POLDER_BIN"));
    command.args(arguments).arg("--state").arg(state);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(typed.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A question of a member outside: the name leads to the relay, before and after. The whole answer, with its head.
fn asks(network: &Network, ca: &Path, key: &str) -> String {
    let (lead, ca) = (format!("{NAME}:443:{RELAY}"), ca.to_str().unwrap());
    let (url, bearer) =
        (format!("https://{NAME}/v1/chat/completions"), format!("authorization: Bearer {key}"));
    let body = format!(
        r#"{{"model":"{MODEL}","max_tokens":8,"messages":[{{"role":"user","content":"Hi."}}]}}"#
    );
    let mut asked = network.inside(
        "net",
        &[
            "curl",
            "-sS",
            "-i",
            "--max-time",
            "30",
            "--resolve",
            &lead,
            "--cacert",
            ca,
            "-H",
            &bearer,
            "-H",
            "content-type: application/json",
            "-d",
            &body,
            &url,
        ],
    );
    String::from_utf8_lossy(&asked.output().unwrap().stdout).to_lowercase()
}

fn until(what: &str, running: &Running, mut look: impl FnMut() -> (bool, String)) -> String {
    let begun = Instant::now();
    loop {
        let (found, seen) = look();
        if found {
            return seen;
        }
        let patience = scaled(Duration::from_secs(90));
        assert!(begun.elapsed() < patience, "waited for {what}: {seen}; {}", running.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn without_a_spare_a_rented_server_goes_on_as_the_box_through_the_relay_and_by_a_paid_service() {
    let mut network = house_and_server();
    let folders = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let [house, rented, relay, disk] = folders.each_ref().map(|folder| folder.path());
    let (at, kept) = (format!("{RELAY}:443"), relay.to_str().unwrap());
    let pass = polder(&["relay", "add", "oak", "--at", &at, NAME, "--folder", kept]).output();
    let pass = String::from_utf8(pass.unwrap().stdout).unwrap();
    let pass = pass.split_whitespace().find(|word| word.starts_with("polder-relay://")).unwrap();
    let mut file = std::fs::File::options();
    let mut file = file.write(true).create_new(true).mode(0o600).open(house.join("relay.pass"));
    file.as_mut().unwrap().write_all(pass.as_bytes()).unwrap();
    let binary = need("POLDER_BIN");
    let binary = binary.to_str().unwrap();
    network.runs("net", &[binary, "relay", "run", "--listen", &at, "--folder", kept]);

    // Beforehand: who answers when the box does not, for how much, and where backups go.
    let (running, up) = Running::ready_inside(&network.host("box"), house, 8443);
    let door = running.status().site.door;
    let names = SiteChange::Door { listen: door.listen, names: vec![NAME.to_owned()] };
    assert_eq!(running.change(names), RunState::Done);
    let cloud: polder_site::UpstreamName = "cloud".parse().unwrap();
    let key = SecretText::new(ITS_KEY);
    Secrets::of(house).keep(Holder::Upstream(&cloud), &key).unwrap();
    let change = SiteChange::Upstream { name: cloud, upstream: Box::new(paid_service()) };
    assert_eq!(running.change(change), RunState::Done);
    let ca = disk.join("members-ca.pem");
    std::fs::copy(&up.ca_file, &ca).unwrap();
    let ask = || asks(&network, &ca, &up.api_key);
    until("the box through the relay", &running, || {
        let said = ask();
        (said.contains("x-polder-served-by: polder/fast"), said)
    });
    let repository = disk.join("repository");
    std::fs::create_dir(&repository).unwrap();
    let repository = repository.to_str().unwrap();
    let paper = key_on(&does(&network, "box", house, &["backup", "kit"], ""));
    does(&network, "box", house, &["backup", "kit", "--confirm"], &paper);
    does(&network, "box", house, &["backup", "to", repository], "");
    drop(running);
    let died = Instant::now();

    // One sitting at the rented server: the program, the backups, the sheet of paper.
    let new = rented.join("state");
    std::fs::create_dir(&new).unwrap();
    let restore = ["backup", "restore", "--from", repository];
    let said = does(&network, "rented", &new, &restore, &paper);
    assert!(said.contains("this is the box polder"), "{said}");
    let llama = need("POLDER_LLAMA_SERVER");
    let model = need("POLDER_SMOLLM2");
    let [llama, model] = [&llama, &model].map(|path| path.to_str().unwrap());
    network.runs(
        "rented",
        &[
            llama,
            "--model",
            model,
            "--host",
            "127.0.0.1",
            "--port",
            ITS_PORT,
            "--ctx-size",
            "1024",
            "--parallel",
            "1",
            "--threads",
            "2",
            "--api-key",
            ITS_KEY,
        ],
    );
    let running = Running::start_inside(&network.host("rented"), &new, 8443);
    let ask = || asks(&network, &ca, &up.api_key);
    let said = until("the rented server through the relay", &running, || {
        let said = ask();
        (said.contains("x-polder-served-by: cloud"), said)
    });
    assert!(said.starts_with("http/2 200") || said.starts_with("http/1.1 200"), "{said}");
    println!("a rented server: an answer {:.1} s after the box died", died.elapsed().as_secs_f64());
    assert!(!running.log().contains(ITS_KEY), "a key is in the log");

    // Another's key opens nothing there, and the budget holds.
    let stranger = asks(&network, &ca, "pk-nobody");
    assert!(stranger.contains(" 401"), "{stranger}");
    let refused = until("the end of the budget", &running, || {
        let said = ask();
        (said.contains(" 503"), said)
    });
    assert!(refused.contains("this month's budget"), "{refused}");
    assert_eq!(running.status().site.spare, None);
}
