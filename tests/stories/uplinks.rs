//! Somebody adds a second way to the internet, and a cable comes out.

use std::path::Path;
use std::time::{Duration, Instant};

use polder_control::{
    Actor, Client, Reply, Request, RunId, RunState, Sockets, UplinkState, WanStatus,
};
use polder_site::{PortAddress, SiteChange, Uplink, Uplinks};
use polder_stories::{Running, import_trial_model, polder};

use crate::network::Network;

/// A machine with two cables, and the internet at the other end of both.
fn two_cables() -> Network {
    let mut network = Network::of(&["box", "net"]);
    for (n, cable) in [(1, "fibre"), (2, "mobile")] {
        network.cable(cable, [("box", &format!("10.{n}.0.2")), ("net", &format!("10.{n}.0.1"))]);
        let (inside, outside) = (network.host("box"), network.host("net"));
        network.shell(&format!(
            "ip -n {inside} route add default via 10.{n}.0.1 dev {cable} metric 102{n}
             ip -n {outside} addr add 198.51.100.{n}/32 dev lo"
        ));
    }
    network.runs("net", &["python3", "-m", "http.server", "443"]);
    network
}

fn rules(network: &Network) -> String {
    String::from_utf8(network.inside("box", &["ip", "rule"]).output().unwrap().stdout).unwrap()
}

fn ask(state: &Path, request: &Request) -> Option<Reply> {
    let path = Sockets::of(state).control();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut control: Client<Request, Reply> = Client::connect(&path).await.ok()?;
        control.ask(request).await.ok()
    })
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "waited a minute for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn words(state: &Path, arguments: &[&str]) -> String {
    let output = polder(arguments).arg("--state").arg(state).output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// Changes the uplinks, and says that it is good.
pub(crate) fn change_uplinks(state: &Path, uplinks: Uplinks) {
    let change = SiteChange::Uplinks(uplinks);
    let asked = until("the box", || {
        ask(state, &Request::Apply { change: change.clone(), by: Actor::Console })
    });
    let Reply::Accepted(id) = asked else { panic!("{asked:?}") };
    let run = || {
        let Reply::Runs(runs) = ask(state, &Request::Runs)? else { panic!() };
        runs.into_iter().find(|run| run.id == id)
    };
    until("the question whether it is good", || run()?.waits_for_confirmation());
    let RunId(number) = id;
    assert_eq!(words(state, &["site", "confirm", &number.to_string()]), "It stays.\n");
    until("its end", || run().filter(|run| run.state == RunState::Done));
}

#[test]
fn a_second_uplink_is_added_confirmed_and_used_when_the_cable_of_the_first_comes_out() {
    let mut network = two_cables();
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path();
    let binary = polder(&[]).get_program().to_str().unwrap().to_owned();
    let up = [&binary, "up", "--state", state.to_str().unwrap(), "--port", "8443"];
    network.runs("box", &up);
    let before = rules(&network);

    // The machine's own system gave its ports their addresses, and goes on doing so.
    let change = SiteChange::Port {
        port: "fibre".parse().unwrap(),
        address: PortAddress::line("10.1.0.9/24").unwrap(),
    };
    let said = until("the box", || {
        ask(state, &Request::Apply { change: change.clone(), by: Actor::Console })
    });
    assert!(
        matches!(&said, Reply::Refused(why) if why.contains("whose own system gives its ports")),
        "{said:?}"
    );

    let targets = ["198.51.100.1:443", "198.51.100.2:443"].map(|t| t.parse().unwrap());
    let uplink = |interface: &str, order| {
        let (interface, targets) = (interface.parse().unwrap(), targets.to_vec());
        Uplink { interface, order, metered: order == 2, ask_router: false, targets }
    };
    let names = [("glass", uplink("fibre", 1)), ("radio", uplink("mobile", 2))];
    change_uplinks(state, names.map(|(name, uplink)| (name.parse().unwrap(), uplink)).into());

    let status = || words(state, &["wan", "status"]);
    let said =
        until("an uplink in use", || Some(status()).filter(|s| s.contains("through glass.")));
    assert!(said.contains("mobile, metered: works"), "{said}");

    network.shell(&format!("ip -n {} link set fibre down", network.host("net")));
    let said = until("the other one", || Some(status()).filter(|s| s.contains("through radio.")));
    for told in
        ["no cable, or the device at its other end is off", "the one before it lost its cable"]
    {
        assert!(said.contains(told), "{said}");
    }
    let json = words(state, &["wan", "status", "--json"]);
    let json: WanStatus = serde_json::from_str(&json).unwrap();
    assert_eq!(json.uplinks[0].state, UplinkState::NoCable);
    assert!(json.transfers_wait().unwrap().contains("radio is metered"), "{json:?}");

    // Without uplinks of its own the machine is as it was.
    change_uplinks(state, Uplinks::new());
    until("the machine's own routes", || (rules(&network) == before).then_some(()));
    assert!(status().contains("the site names no uplinks"), "{}", status());
}

/// A browser on the box's own machine, which nobody outside its network namespace reaches.
struct Surfer<'a> {
    network: &'a Network,
    jar: std::path::PathBuf,
}

impl Surfer<'_> {
    /// Where it is led, and what it reads.
    fn asks(&self, path: &str, form: Option<&str>) -> (String, String) {
        let (jar, url) = (self.jar.to_str().unwrap(), format!("http://localhost:8443{path}"));
        let curl = ["curl", "-sS", "--max-time", "20", "-b", jar, "-c", jar];
        let says = ["-H", "origin: http://localhost:8443", "-w", "\n%header{location}"];
        let form: Vec<&str> = form.into_iter().flat_map(|form| ["-d", form]).collect();
        let curl = [&curl[..], &says, &form, &[&url]].concat();
        let said = self.network.inside("box", &curl).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let (text, led) = said.rsplit_once('\n').unwrap_or_default();
        (led.to_owned(), text.to_owned())
    }

    fn sends(&self, path: &str, form: &str, leads: &str) {
        let (led, text) = self.asks(path, Some(form));
        assert_eq!(led, leads, "{path}: {text}");
    }

    fn is_led(&self, path: &str, leads: &str) {
        until(leads, || (self.asks(path, None).0 == leads).then_some(()));
    }

    fn reads(&self, path: &str, words: &str) {
        until(words, || self.asks(path, None).1.contains(words).then_some(()));
    }
}

#[test]
fn a_person_at_the_wizard_names_two_lines_and_keeps_them_because_they_still_see_the_box() {
    let network = two_cables();
    let (folder, jar) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state = folder.path();
    import_trial_model(state);
    let running = Running::start_inside(&network.host("box"), state, 8443);
    let link = running.line_with("http://localhost");
    let code = link.trim().rsplit_once("#claim=").unwrap().1.to_owned();
    let surfer = Surfer { network: &network, jar: jar.path().join("jar") };
    surfer.sends("/setup/claim", &format!("code={code}"), "/setup/machine");
    surfer.sends("/setup/machine", "", "/setup/model");
    surfer.sends("/setup/model", "recipe=smollm2-135m-instruct", "/setup/import");
    surfer.is_led("/setup/import", "/setup/address");
    surfer.asks("/setup/address", Some("name=dune&reach=here"));
    surfer.is_led("/setup/address", "/setup/power");
    surfer.sends("/setup/power/on", "", "/setup/lines");

    let (_, text) = surfer.asks("/setup/lines", Some("first=fibre&second=fibre"));
    assert!(text.contains("same interface"), "{text}");
    let form = "first=fibre&second=mobile&second_metered=yes";
    surfer.sends("/setup/lines", form, "/setup/lines");
    surfer.reads("/setup/lines", "Keep it");
    surfer.sends("/setup/lines/confirm", "", "/setup/lines");
    surfer.reads("/setup/lines", "The box looks after its lines");
    let uplinks = running.until("two uplinks", |s| s.site.uplinks.len() == 2).site.uplinks;
    let said: Vec<_> = uplinks.values().map(|u| (u.interface.as_str(), u.metered)).collect();
    assert_eq!(said, [("fibre", false), ("mobile", true)]);
    until("both in the status", || {
        let said = words(state, &["wan", "status"]);
        (said.contains("main") && said.contains("mobile, metered")).then_some(())
    });
    surfer.sends("/setup/lines/on", "", "/setup/member");
    assert_eq!(running.stop().code(), Some(0));
}
