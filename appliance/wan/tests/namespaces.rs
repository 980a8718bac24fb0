//! The part itself, in a network of namespaces with two providers and real traffic. What it took is measured and printed: run with
//! `--nocapture` to see the table.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

#[path = "namespaces/ports.rs"]
mod ports;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SERVER: &str = "198.51.100.1:80";
const SERVER6: &str = "[2001:db8:100::1]:80";

/// How the part of this box sees it; nothing where it does not answer.
fn status_of(
    state: &std::path::Path,
    request: &polder_control::WanRequest,
) -> Option<polder_control::WanStatus> {
    let sockets = polder_control::Sockets::of(state);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(polder_control::wan_asked(&sockets, request))
}

/// A box with two uplinks, two providers that translate addresses, and the internet behind them.
struct World {
    name: String,
    state: tempfile::TempDir,
    processes: Vec<Child>,
    part: Option<Child>,
}

fn shell(command: &str) {
    let done = Command::new("sh").args(["-exc", command]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
}

fn wanbox() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    deps.parent().unwrap().parent().unwrap().join("examples/wanbox")
}

/// What these tests need of the machine, with a sentence where it is missing.
fn tools() {
    let root = rustix::process::geteuid().is_root();
    assert!(
        root,
        "these tests make network namespaces: run them as root, as `make test` in a container does"
    );
    let needed = [
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("/usr/sbin/named", "bind9"),
        ("dig", "bind9-dnsutils"),
    ];
    for (tool, package) in needed {
        let there = Command::new(tool).arg("-V").output().is_ok();
        assert!(there, "{tool} is missing: install the Debian package {package}");
    }
}

impl World {
    fn new(name: &str) -> Self {
        tools();
        let name = format!("pw{}{name}", std::process::id());
        let mut script = String::new();
        for place in ["box", "i1", "i2", "net"] {
            script += &format!("ip netns add {name}{place}; ip -n {name}{place} link set lo up\n");
        }
        for n in [1, 2] {
            script += &format!(
                "
                ip link add w{n} netns {name}box type veth peer name box netns {name}i{n}
                ip link add net netns {name}i{n} type veth peer name i{n} netns {name}net
                ip -n {name}box addr add 10.{n}.0.2/24 dev w{n}
                ip -n {name}box addr add fd0{n}::2/64 dev w{n} nodad
                ip -n {name}i{n} addr add 10.{n}.0.1/24 dev box
                ip -n {name}i{n} addr add fd0{n}::1/64 dev box nodad
                ip -n {name}i{n} addr add 10.3.{n}.1/24 dev net
                ip -n {name}i{n} addr add fd03:{n}::1/64 dev net nodad
                ip -n {name}net addr add 10.3.{n}.2/24 dev i{n}
                ip -n {name}net addr add fd03:{n}::2/64 dev i{n} nodad
                ip -n {name}box link set w{n} up
                ip -n {name}i{n} link set box up
                ip -n {name}i{n} link set net up
                ip -n {name}net link set i{n} up
                ip -n {name}box route add default via 10.{n}.0.1 dev w{n} metric 102{n}
                ip -n {name}box -6 route add default via fd0{n}::1 dev w{n} metric 102{n}
                ip -n {name}i{n} route add default via 10.3.{n}.2
                ip -n {name}i{n} -6 route add default via fd03:{n}::2
                ip -n {name}net -6 route add fd0{n}::/64 via fd03:{n}::1
                ip netns exec {name}i{n} sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding'
                ip netns exec {name}i{n} nft 'table ip t {{ chain n {{ type nat hook postrouting priority 100; oifname net masquerade; }}; }}'
                ip netns exec {name}i{n} nft 'table inet f {{ chain f {{ type filter hook forward priority 0; }}; }}'
                "
            );
        }
        for address in ["198.51.100.1/32", "198.51.100.11/32", "198.51.100.12/32"] {
            script += &format!("ip -n {name}net addr add {address} dev lo\n");
        }
        script += &format!("ip -n {name}net addr add 2001:db8:100::1/128 dev lo nodad\n");
        let mut world =
            Self { name, state: tempfile::tempdir().unwrap(), processes: Vec::new(), part: None };
        shell(&script);
        let servers =
            [SERVER, SERVER6, "198.51.100.11:443", "198.51.100.12:443", "[2001:db8:100::1]:443"];
        world.serve("net", &[&["answer"], &servers[..]].concat());
        world.site(r#"["198.51.100.11:443", "198.51.100.12:443"]"#);
        world
    }

    fn site(&self, targets: &str) {
        let mut text = polder_site::Site::unclaimed(8443).to_toml();
        for n in [1, 2] {
            text += &format!(
                "\n[uplinks.u{n}]\ninterface = \"w{n}\"\norder = {n}\nmetered = false\ntargets = {targets}\n"
            );
        }
        std::fs::write(self.state.path().join("site.toml"), text).unwrap();
    }

    /// In a namespace.
    fn start(&self, place: &str, args: &[&str]) -> Child {
        let place = format!("{}{place}", self.name);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &place]).arg(wanbox()).args(args);
        if args.first() == Some(&"page") {
            command.stderr(std::fs::File::create(self.state.path().join("asked")).unwrap());
        }
        command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap()
    }

    /// In a namespace, until it says that it is ready.
    fn serve(&mut self, place: &str, args: &[&str]) {
        let mut child = self.start(place, args);
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.processes.push(child);
        assert_eq!(line, "ready\n", "{args:?}");
    }

    /// Starts the part, and waits until it has made its rules and both uplinks are found good.
    fn run(&mut self, roots: Option<&str>) -> &mut Self {
        let state = self.state.path().to_str().unwrap().to_owned();
        let args = [&["run", &state], roots.as_slice()].concat();
        self.part = Some(self.start("box", &args));
        for _ in 0..200 {
            std::thread::sleep(Duration::from_millis(50));
            if self.ask("box", "ip rule").contains("5194:") {
                std::thread::sleep(Duration::from_millis(1500));
                return self;
            }
        }
        panic!("no rules: {}", self.ask("box", "ip rule"));
    }

    /// What the part takes of the machine's memory, in KiB.
    fn memory(&self) -> u64 {
        let pid = self.part.as_ref().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Ends the part in order.
    fn end(&mut self) {
        let mut part = self.part.take().unwrap();
        let pid = rustix::process::Pid::from_child(&part);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(part.wait().unwrap().success());
    }

    fn traffic(&mut self, to: &str) -> Seen {
        let mut child = self.start("box", &["traffic", to]);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        self.processes.push(child);
        let seen = Seen::default();
        let kept = seen.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let (at, rest) = line.split_once(' ').unwrap();
                let (kind, words) = rest.split_once(' ').unwrap_or((rest, ""));
                let entry = (at.parse().unwrap(), kind.to_owned(), words.to_owned());
                kept.0.lock().unwrap().push(entry);
            }
        });
        std::thread::sleep(Duration::from_millis(1500));
        seen
    }

    fn does(&self, place: &str, command: &str) {
        shell(&format!("ip netns exec {}{place} {command}", self.name));
    }

    fn ask(&self, place: &str, command: &str) -> String {
        let command = format!("ip netns exec {}{place} {command}", self.name);
        let done = Command::new("sh").args(["-c", &command]).output().unwrap();
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    fn dies(&self, n: u8) {
        self.does(&format!("i{n}"), "nft add rule inet f f drop");
    }

    fn lives(&self, n: u8) {
        self.does(&format!("i{n}"), "nft flush chain inet f f");
    }

    /// How the part itself sees it.
    fn status(&self) -> polder_control::WanStatus {
        status_of(self.state.path(), &polder_control::WanRequest::Status).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().chain(&mut self.part) {
            let _ = process.kill();
            let _ = process.wait();
        }
        for place in ["box", "i1", "i2", "net"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &format!("{}{place}", self.name)])
                .output();
        }
    }
}

type Entry = (u64, String, String);

/// What became of the traffic.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Entry>>>);

fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

impl Seen {
    fn after(&self, at: u64) -> Vec<Entry> {
        let mut list = self.0.lock().unwrap().clone();
        list.retain(|(when, ..)| *when >= at);
        list.sort();
        list
    }

    /// How long after `at` the first one of a kind was, where its words begin so.
    fn first(&self, at: u64, kind: &str, words: &str) -> Option<u64> {
        let list = self.after(at);
        list.iter().find(|(_, k, w)| k == kind && w.starts_with(words)).map(|(when, ..)| when - at)
    }

    fn count(&self, at: u64, kind: &str) -> usize {
        self.after(at).iter().filter(|(_, k, _)| k == kind).count()
    }

    /// The ways that connections went out, one after the other.
    fn ways(&self) -> Vec<String> {
        let all = self.after(0).into_iter().filter(|(_, kind, _)| kind == "new");
        let mut ways: Vec<String> = all.map(|(.., way)| way).collect();
        ways.dedup();
        ways
    }
}

fn wait(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

/// One row of the table: what happened, and what it took.
struct Row(&'static str, String, String, String);

fn row(what: &'static str, seen: &Seen, at: u64, way: &str) -> Row {
    let ms = |took: Option<u64>| took.map_or("never".to_owned(), |took| format!("{took} ms"));
    let lost = seen.count(at, "lost");
    let cut = seen.after(at).into_iter().find(|(_, kind, _)| kind == "cut");
    let cut = cut.map_or("not cut".to_owned(), |(when, _, how)| {
        format!("{how} after {} ms, back after {}", when - at, ms(seen.first(at, "stream", way)))
    });
    Row(what, ms(seen.first(at, "new", way)), format!("{lost}"), cut)
}

/// Milliseconds, while the machine may look elsewhere: one of three has to hold.
fn carrier_loss() -> Row {
    let (mut row, mut in_time) = cable_out("c0");
    for name in ["c1", "c2"] {
        if !in_time {
            (row, in_time) = cable_out(name);
        }
    }
    assert!(in_time, "{}; {}; lost {}", row.1, row.3, row.2);
    row
}

fn cable_out(name: &str) -> (Row, bool) {
    let mut world = World::new(name);
    world.run(None);
    let seen = world.traffic(SERVER);
    assert_eq!(seen.first(0, "stream", "10.3.1.1").map(|_| ()), Some(()));
    let at = now();
    world.does("i1", "ip link set box down");
    wait(3.0);
    let row = row("cable out", &seen, at, "10.3.2.1");
    // A connection begins every 50 ms, so that the first one that is heard of began up to that long after the switch.
    let in_time = seen.first(at, "new", "10.3.2.1").unwrap() < 150
        && seen.first(at, "cut", "ConnectionAborted").unwrap() < 100
        && seen.first(at, "stream", "10.3.2.1").unwrap() < 100
        && seen.count(at, "lost") <= 1;
    let status = world.status();
    assert_eq!(status.in_use().unwrap().name.as_str(), "u2");
    assert!(status.why.contains("lost its cable"), "{status:?}");
    (row, in_time)
}

fn dead_upstream(what: &'static str, name: &str, server: &str, way: &str) -> Row {
    let mut world = World::new(name);
    world.run(None);
    let seen = world.traffic(server);
    let at = now();
    world.dies(1);
    wait(4.6);
    let row = row(what, &seen, at, way);
    let cut = seen.first(at, "cut", "ConnectionAborted").expect("the stream was cut clearly");
    assert!(cut < 3500, "{}", row.3);
    assert!(seen.first(at, "stream", way).unwrap() < 3500, "{}", row.3);
    // Back again: nobody is cut off, and nothing changes before the hold is over.
    world.lives(1);
    let back = now();
    wait(6.0);
    assert_eq!((seen.count(back, "cut"), seen.count(back, "lost")), (0, 0));
    assert_eq!(world.status().uplinks[0].state, polder_control::UplinkState::Good);
    row
}

/// The provider's IPv6 dies, and its IPv4 does not, or the other way round.
fn one_family(six: bool) -> Row {
    let (dies, lives) = if six { ("ipv6", "ipv4") } else { ("ipv4", "ipv6") };
    let mut world = World::new(if six { "6" } else { "4" });
    world.does("net", "ip addr add 2001:db8:100::2/128 dev lo nodad");
    world.serve("net", &["answer", "[2001:db8:100::2]:443"]);
    world.site(
        r#"["198.51.100.11:443", "198.51.100.12:443", "[2001:db8:100::1]:443", "[2001:db8:100::2]:443"]"#,
    );
    world.run(None);
    let (four, sixth) = (world.traffic(SERVER), world.traffic(SERVER6));
    let (dead, well, by) = match six {
        true => (&sixth, &four, "fd02::2"),
        false => (&four, &sixth, "10.3.2.1"),
    };
    let at = now();
    world.does("i1", &format!("nft add rule inet f f meta nfproto {dies} drop"));
    wait(5.0);
    let what = if six { "IPv6 dies alone" } else { "IPv4 dies alone" };
    let row = row(what, dead, at, by);
    assert!(dead.first(at, "cut", "ConnectionAborted").is_some(), "{}", row.3);
    assert!(dead.first(at, "stream", by).unwrap() < 4500, "{}", row.3);
    assert_eq!((well.count(at, "cut"), well.count(at, "lost")), (0, 0), "{lives} is left alone");
    assert_eq!(well.ways().len(), 1, "{:?}", well.ways());
    let status = world.status();
    let family = Some(polder_control::Family::of(six));
    let [first, second] = &status.uplinks[..] else { panic!("{status:?}") };
    assert!(first.in_use && !second.in_use, "{status:?}");
    assert_eq!((first.dead, second.stands_in, second.dead), (family, family, None), "{status:?}");
    // Back by itself, and nobody is cut off by that.
    world.lives(1);
    let back = now();
    let begun = std::time::Instant::now();
    while world.status().uplinks[1].stands_in.is_some() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", world.status());
        wait(0.2);
    }
    wait(0.5);
    assert_eq!(dead.ways().len(), 3, "there and back: {:?}", dead.ways());
    assert_eq!((dead.count(back, "cut"), well.count(at, "cut")), (0, 0));
    row
}

/// Neither what is on the uplink's own wire nor the machine's own table is anybody's business.
fn near_and_main() -> u64 {
    let mut world = World::new("n");
    let main = "sh -c 'ip route; ip -6 route; ip rule; ip -6 rule'";
    let before = world.ask("box", main);
    world.serve("i1", &["answer", "10.1.0.1:81"]);
    world.run(None);
    assert_eq!(
        world.ask("box", "ip route"),
        before.split_inclusive("fd0").next().unwrap().replace("fd0", "")
    );
    let near = world.traffic("10.1.0.1:81");
    world.dies(1);
    wait(5.0);
    assert_eq!(world.status().in_use().unwrap().name.as_str(), "u2");
    assert_eq!((near.count(0, "cut"), near.count(0, "lost")), (0, 0));
    // Whoever takes away our rules, as some network managers do, has them back in a moment.
    world.does("box", "ip rule del priority 5194");
    wait(0.3);
    assert!(world.ask("box", "ip rule").contains("5194:"));
    // An address that is gone takes its connections with it.
    let at = now();
    world.does("box", "ip addr del 10.1.0.2/24 dev w1");
    wait(1.0);
    assert!(near.first(at, "cut", "ConnectionAborted").is_some(), "{:?}", near.after(at));
    world.does("box", "ip addr add 10.1.0.2/24 dev w1");
    world.does("box", "ip route add default via 10.1.0.1 dev w1 metric 1021");
    wait(0.5);
    let memory = world.memory();
    assert!(memory < 40 << 10, "{memory} KiB");
    world.end();
    let lines = |text: String| -> std::collections::BTreeSet<String> {
        text.lines().map(str::to_owned).collect()
    };
    assert_eq!(lines(world.ask("box", main)), lines(before));
    assert_eq!(world.ask("box", "ip route show table 51901"), "");
    memory
}

/// A provider whose sign-in page answers for everybody: only a certificate tells.
fn sign_in_page() {
    let mut world = World::new("p");
    let host = "198.51.100.21";
    world.does("net", "ip addr add 198.51.100.21/32 dev lo");
    let made = rcgen::generate_simple_self_signed(vec![host.to_owned()]).unwrap();
    let at = |name: &str| world.state.path().join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (at("cert.pem"), at("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    world.serve("net", &["page", "198.51.100.21:443", &certificate, &key]);
    world.site(r#"["https://198.51.100.21/", "https://198.51.100.21/again"]"#);
    let path = world.state.path().join("site.toml");
    let mut site = std::fs::read_to_string(&path).unwrap();
    site += "\n[dynamic_dns]\nhook = \"https://198.51.100.21/told?k={secret}\"\n";
    std::fs::write(path, site).unwrap();
    std::fs::create_dir_all(world.state.path().join("uplinks")).unwrap();
    std::fs::write(world.state.path().join(polder_wan::SECRET), "open sesame\n").unwrap();
    world.run(Some(&certificate));
    wait(2.0);
    let status = world.status();
    assert!(
        status.uplinks.iter().all(|u| u.state == polder_control::UplinkState::Good),
        "{status:?}"
    );
    assert!(status.uplinks[0].delay_ms.is_some(), "{status:?}");
    world.serve("i1", &["answer", "0.0.0.0:443"]);
    world.does("i1", "nft 'table ip h { chain p { type nat hook prerouting priority -100; tcp dport 443 redirect to :443; }; }'");
    wait(4.5);
    let status = world.status();
    assert_eq!(status.in_use().unwrap().name.as_str(), "u2", "{status:?}");
    assert_eq!(status.uplinks[0].state, polder_control::UplinkState::Silent);
    // A service is told at the start, and again over the other way.
    wait(1.5);
    assert_eq!(
        world.status().told.as_deref(),
        Some("198.51.100.21 was told that the box is at u2")
    );
    let told = std::fs::read_to_string(world.state.path().join("asked")).unwrap();
    for way in ["10.3.1.1", "10.3.2.1"] {
        let line = format!("asked from {way}: GET /told?k=open%20sesame HTTP/1.1");
        assert_eq!(told.lines().filter(|l| *l == line).count(), 1, "{way}: {told}");
    }
}

/// A zone whose server is BIND: the box's name leads to the way that is in use, by both families.
fn zone_that_follows() {
    const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let mut world = World::new("z");
    for n in [1, 2] {
        world.does("box", &format!("ip addr add 203.0.113.{n}/32 dev w{n}"));
        world.does("box", &format!("ip addr add 2001:db8:{n}::2/128 dev w{n} nodad"));
    }
    world.does("net", "ip addr add 198.51.100.22/32 dev lo");
    let state = world.state.path().to_owned();
    let at = state.display();
    let settings = format!(
        "options {{ directory \"{at}\"; listen-on {{ 198.51.100.22; }}; listen-on-v6 {{ none; }}; pid-file none; session-keyfile none; recursion no; dnssec-validation no; }};\n\
         controls {{ }};\n\
         key \"box\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n\
         zone \"example.org\" {{ type master; file \"zone\"; update-policy {{ grant box zonesub ANY; }}; }};\n"
    );
    let zone = "$TTL 60\n@ SOA ns.example.org. root.example.org. 1 3600 600 86400 60\n@ NS ns\nns A 198.51.100.22\ngpu A 192.0.2.1\n";
    std::fs::write(state.join("named.conf"), settings).unwrap();
    std::fs::write(state.join("zone"), zone).unwrap();
    let mut named = Command::new("ip");
    named.args(["netns", "exec", &format!("{}net", world.name), "/usr/sbin/named", "-g", "-c"]);
    named.arg(state.join("named.conf")).stdin(Stdio::null()).stderr(Stdio::null());
    world.processes.push(named.spawn().unwrap());
    let leads_to = |world: &World, wanted: &str| {
        let asked = |kind| {
            world.ask(
                "net",
                &format!("dig @198.51.100.22 +short +time=1 +tries=1 gpu.example.org {kind}"),
            )
        };
        let begun = now();
        loop {
            let said = asked("A") + &asked("AAAA");
            if said == wanted {
                return;
            }
            assert!(
                now() - begun < 30_000,
                "{wanted:?}, and not {said:?}; {:?}",
                world.status().told
            );
            wait(0.2);
        }
    };
    leads_to(&world, "192.0.2.1\n");

    let mut site = std::fs::read_to_string(state.join("site.toml")).unwrap();
    site += "\n[dynamic_dns.zone]\nname = \"gpu.example.org\"\nzone = \"example.org\"\nserver = \"198.51.100.22\"\nkey = \"box\"\n";
    std::fs::write(state.join("site.toml"), site).unwrap();
    std::fs::create_dir_all(state.join("uplinks")).unwrap();
    std::fs::write(state.join(polder_wan::SECRET), format!("{SECRET}\n")).unwrap();
    world.run(None);
    leads_to(&world, "203.0.113.1\n2001:db8:1::2\n");
    world.dies(1);
    leads_to(&world, "203.0.113.2\n2001:db8:2::2\n");
}

fn five_flaps() -> Row {
    let mut world = World::new("f");
    world.run(None);
    let seen = world.traffic(SERVER);
    let at = now();
    for _ in 0..5 {
        world.dies(1);
        wait(4.0);
        world.lives(1);
        wait(2.0);
    }
    let row = row("five flaps of 4 s", &seen, at, "10.3.2.1");
    assert_eq!(seen.ways(), ["10.3.1.1", "10.3.2.1"]);
    assert_eq!(seen.count(at, "cut"), 1);
    Row(row.0, format!("{}; 1 switch", row.1), row.2, row.3)
}

fn forty_percent_loss() -> Row {
    let mut world = World::new("l");
    world.run(None);
    let seen = world.traffic(SERVER);
    let at = now();
    world.does("i1", "nft add rule inet f f numgen random mod 100 '<' 40 drop");
    wait(35.0);
    let row = row("40 % loss", &seen, at, "10.3.2.1");
    assert_eq!(seen.ways(), ["10.3.1.1", "10.3.2.1"]);
    let left = seen.first(at, "new", "10.3.2.1").unwrap();
    assert!(left < 20_000, "{left}");
    let status = world.status();
    assert_eq!(status.in_use().unwrap().name.as_str(), "u2");
    assert!(status.uplinks[0].state != polder_control::UplinkState::Good, "{status:?}");
    Row(row.0, format!("{}; stays away", row.1), row.2, row.3)
}

#[test]
fn each_failure_is_left_in_its_time_and_streams_end_clearly() {
    tools();
    // Before the others: eight worlds at once are a load of their own.
    let cable = std::thread::spawn(carrier_loss).join();
    let scenarios = [
        std::thread::spawn(|| dead_upstream("dead upstream", "d", SERVER, "10.3.2.1")),
        std::thread::spawn(|| dead_upstream("dead upstream, IPv6", "s", SERVER6, "fd02::2")),
        std::thread::spawn(|| one_family(true)),
        std::thread::spawn(|| one_family(false)),
        std::thread::spawn(five_flaps),
        std::thread::spawn(forty_percent_loss),
    ];
    let (near, page) = (std::thread::spawn(near_and_main), std::thread::spawn(sign_in_page));
    let zone = std::thread::spawn(zone_that_follows);
    let others = scenarios.into_iter().map(std::thread::JoinHandle::join);
    let rows: Vec<_> = std::iter::once(cable).chain(others).collect();
    println!(
        "| what happens | new connections go out again after | lost | a stream |\n|---|---|---|---|"
    );
    for Row(what, after, lost, stream) in rows.iter().flatten() {
        println!("| {what} | {after} | {lost} | {stream} |");
    }
    page.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    zone.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let memory = near.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    println!("the part takes {:.1} MiB", memory as f64 / 1024.0);
    for row in rows {
        drop(row.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    }
}
