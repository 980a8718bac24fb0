//! The box is carried to another house: another network, other addresses, the same names, members and keys.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use polder_control::{Actor, Client, Reply, Request, RunState, Sockets};
use polder_site::SiteChange;
use polder_stories::{import_trial_model, polder, send_signal};

/// A box, and a house with a member's computer in it; in network namespaces.
struct Houses {
    name: String,
    running: Option<Child>,
}

impl Houses {
    fn new() -> Self {
        let name = format!("pm{}", std::process::id());
        let houses = Self { name, running: None };
        for place in ["box", "old", "new"] {
            houses.shell(&format!(
                "ip netns add {0}{place}; ip -n {0}{place} link set lo up",
                houses.name
            ));
        }
        houses.cable("old", 1);
        houses
    }

    /// A cable from the box to a house: the box gets an address there, and the house's names say where it is.
    fn cable(&self, house: &str, n: u8) {
        let name = &self.name;
        self.shell(&format!(
            "ip link add eth{n} netns {name}box type veth peer name eth{n} netns {name}{house}
             ip -n {name}box addr add 10.{n}.0.2/24 dev eth{n}
             ip -n {name}{house} addr add 10.{n}.0.9/24 dev eth{n}
             ip -n {name}box link set eth{n} up
             ip -n {name}{house} link set eth{n} up
             mkdir -p /etc/netns/{name}{house}
             echo '10.{n}.0.2 polder.local' > /etc/netns/{name}{house}/hosts"
        ));
    }

    fn shell(&self, script: &str) {
        let done = Command::new("sh").args(["-ec", script]).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.success(),
            "{said}: this story needs root, and iproute2 as `make test` installs it"
        );
    }

    fn inside(&self, place: &str, command: &[&str]) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &format!("{}{place}", self.name)]).args(command);
        inside
    }

    /// A member's computer asks, by the name and the key that it always had, and trusts what it always trusted.
    fn asks(&self, house: &str, authority: &Path, path: &str, key: &str) -> (String, String) {
        let url = format!("https://polder.local:8443{path}");
        let bearer = format!("Authorization: Bearer {key}");
        let authority = authority.to_str().unwrap();
        let curl = [
            "curl",
            "-sS",
            "-m",
            "10",
            "--cacert",
            authority,
            "-H",
            &bearer,
            "-w",
            "\n%{http_code}",
            &url,
        ];
        let done = self.inside(house, &curl).output().unwrap();
        let out = String::from_utf8_lossy(&done.stdout).into_owned();
        let (body, code) = out.rsplit_once('\n').unwrap_or((&out, ""));
        (code.to_owned(), body.to_owned())
    }
}

impl Drop for Houses {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            send_signal(running.id(), rustix::process::Signal::TERM);
            let _ = running.wait();
        }
        for place in ["box", "old", "new"] {
            let name = format!("{}{place}", self.name);
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
            let _ = std::fs::remove_dir_all(Path::new("/etc/netns").join(&name));
        }
    }
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
        assert!(begun.elapsed() < Duration::from_secs(90), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_box_in_another_house_has_the_same_names_members_and_keys_and_nobody_can_claim_it() {
    let mut houses = Houses::new();
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path();
    import_trial_model(state);
    let binary = polder(&[]).get_program().to_str().unwrap().to_owned();
    let place = state.to_str().unwrap().to_owned();
    let up = [&binary, "up", "--yes", "--json", "--state", &place, "--port", "8443"];
    let said = state.join("said.json");
    let mut command = houses.inside("box", &up);
    command.stdin(Stdio::null()).stdout(std::fs::File::create(&said).unwrap());
    command.stderr(std::fs::File::create(state.join("story.log")).unwrap());
    houses.running = Some(command.spawn().unwrap());
    let key = until("the first key", || {
        let text = std::fs::read_to_string(&said).ok()?;
        let line = text.lines().find(|line| line.contains("api_key"))?;
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(value["api_key"].as_str()?.to_owned())
    });
    // The door is told one address, that of the old house.
    let change = SiteChange::Door {
        listen: ["127.0.0.1", "10.1.0.2"].map(|ip| ip.parse().unwrap()).into(),
        names: Vec::new(),
    };
    let asked = ask(state, &Request::Apply { change, by: Actor::Console });
    let Some(Reply::Accepted(id)) = asked else { panic!("{asked:?}") };
    until("the door", || {
        let Reply::Runs(runs) = ask(state, &Request::Runs)? else { panic!() };
        runs.into_iter().find(|run| run.id == id && run.state == RunState::Done)
    });
    let authority = state.join("members-copy.pem");
    std::fs::copy(state.join("pki/ca.pem"), &authority).unwrap();
    let works = |house: &str| houses.asks(house, &authority, "/v1/models", &key);
    let (code, models) = works("old");
    assert_eq!(code, "200", "{models}");

    // The cable comes out there, and goes in here.
    houses.shell(&format!("ip -n {}box link del eth1", houses.name));
    houses.cable("new", 2);
    let again =
        until("the box in the new house", || Some(works("new")).filter(|(code, _)| code == "200"));
    assert_eq!(again.1, models, "the same models by the same name and key");
    assert_eq!(houses.asks("new", &authority, "/v1/models", "plk_x_y").0, "401");
    let (_, setup) = houses.asks("new", &authority, "/setup", &key);
    assert!(!setup.contains("claim code"), "{setup}");
    let site = || match ask(state, &Request::Status) {
        Some(Reply::Status(status)) => status.site,
        other => panic!("{other:?}"),
    };
    assert!(site().door.listen.contains(&"10.1.0.2".parse().unwrap()), "nobody changed the site");
    let log = std::fs::read_to_string(state.join("story.log")).unwrap();
    assert!(log.contains("the addresses that the site names are gone"), "{log}");

    // Back in the old house it is as it was.
    houses.shell(&format!("ip -n {}box link del eth2", houses.name));
    houses.cable("old", 1);
    until("the box in the old house", || Some(works("old")).filter(|(code, _)| code == "200"));
}
