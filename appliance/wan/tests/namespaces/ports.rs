//! A box behind a real router, miniupnpd, and a member on the other side of it.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use polder_control::{PortState, WanRequest, WanStatus};

use super::{shell, status_of, tools, wanbox};

const OUTSIDE: &str = "11.7.0.5";
const AFTERWARDS: &str = "11.7.0.6";

/// A box, its router and the internet, each in a namespace of its own.
struct House {
    name: String,
    state: tempfile::TempDir,
    router: Option<Child>,
    others: Vec<Child>,
    part: Option<Child>,
}

impl House {
    fn new(name: &str, settings: &str) -> Self {
        tools();
        let there = Command::new("miniupnpd").arg("--version").output().is_ok();
        assert!(there, "miniupnpd is missing: install the Debian package miniupnpd-nftables");
        let name = format!("pm{}{name}", std::process::id());
        let house = Self {
            state: tempfile::tempdir().unwrap(),
            router: None,
            others: Vec::new(),
            part: None,
            name,
        };
        let name = &house.name;
        shell(&format!(
            "for place in box router net; do ip netns add {name}$place; ip -n {name}$place link set lo up; done
             ip link add w1 netns {name}box type veth peer name lan netns {name}router
             ip link add wan netns {name}router type veth peer name core netns {name}net
             ip -n {name}box addr add 192.168.1.2/24 dev w1
             ip -n {name}router addr add 192.168.1.1/24 dev lan
             ip -n {name}router addr add {OUTSIDE}/24 dev wan
             ip -n {name}net addr add 11.7.0.1/24 dev core
             ip -n {name}net addr add 11.7.0.2/24 dev core
             ip -n {name}box link set w1 up
             ip -n {name}router link set lan up
             ip -n {name}router link set wan up
             ip -n {name}net link set core up
             ip -n {name}box route add default via 192.168.1.1 dev w1
             ip -n {name}router route add default via 11.7.0.1
             ip netns exec {name}router sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'"
        ));
        house.power_on();
        let config = format!(
            "ext_ifname=wan\nlistening_ip=lan\nport=5000\nsecure_mode=yes\nsystem_uptime=no\nmin_lifetime=120\nmax_lifetime=86400\nuuid=e8f1a3b2-0000-4000-8000-000000000001\nlease_file={leases}\n\
             upnp_table_name=filter\nupnp_nat_table_name=filter\nupnp_forward_chain=miniupnpd\nupnp_nat_chain=prerouting_miniupnpd\nupnp_nat_postrouting_chain=postrouting_miniupnpd\n{settings}\n",
            leases = house.at("leases"),
        );
        std::fs::write(house.at("miniupnpd.conf"), config).unwrap();
        let mut text = polder_site::Site::unclaimed(8443).to_toml();
        text += "\n[dynamic_dns]\nhook = \"https://11.7.0.1/told?a={ip4}\"\n";
        text += "\n[uplinks.u1]\ninterface = \"w1\"\norder = 1\nmetered = false\nask_router = true\ntargets = [\"11.7.0.1:443\", \"11.7.0.2:443\"]\n";
        std::fs::write(house.state.path().join("site.toml"), text).unwrap();
        house
    }

    fn at(&self, file: &str) -> String {
        self.state.path().join(file).to_str().unwrap().to_owned()
    }

    /// What a router forgets when it is switched off: whom it lets in.
    fn power_on(&self) {
        let rules = "flush ruleset
            table inet filter {
                chain miniupnpd {
                }
                chain prerouting_miniupnpd {
                }
                chain postrouting_miniupnpd {
                }
                chain forward { type filter hook forward priority 0; policy drop;
                    ct state established,related accept
                    iifname lan accept
                    jump miniupnpd
                }
                chain prerouting { type nat hook prerouting priority -100;
                    jump prerouting_miniupnpd
                }
                chain postrouting { type nat hook postrouting priority 100;
                    jump postrouting_miniupnpd
                    oifname wan masquerade
                }
            }";
        std::fs::write(self.at("rules.nft"), rules).unwrap();
        self.does("router", &format!("nft -f {}", self.at("rules.nft")));
        let _ = std::fs::remove_file(self.at("leases"));
        std::fs::write(self.at("leases"), "").unwrap();
    }

    fn router_on(&mut self) {
        let (config, pid) = (self.at("miniupnpd.conf"), self.at("miniupnpd.pid"));
        let log = std::fs::File::create(self.at("miniupnpd.log")).unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &format!("{}router", self.name)])
            .args(["miniupnpd", "-d", "-f", &config, "-P", &pid])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.router = Some(child);
    }

    fn router_off(&mut self) {
        if let Some(mut router) = self.router.take() {
            router.kill().unwrap();
            router.wait().unwrap();
        }
    }

    fn starts(&mut self, place: &str, args: &[&str]) -> Child {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}{place}", self.name)]).arg(wanbox()).args(args);
        if args.first() == Some(&"page") {
            command.stderr(std::fs::File::create(self.at("asked")).unwrap());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
    }

    /// The box begins: its door answers, and the part looks after the uplink.
    fn begins(&mut self) {
        let made = rcgen::generate_simple_self_signed(vec!["11.7.0.1".to_owned()]).unwrap();
        let (certificate, key) = (self.at("cert.pem"), self.at("key.pem"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let others = [
            self.starts("net", &["page", "11.7.0.1:443", &certificate, &key]),
            self.starts("net", &["answer", "11.7.0.2:443"]),
            self.starts("box", &["answer", "192.168.1.2:8443"]),
        ];
        self.others.extend(others);
        let state = self.state.path().to_str().unwrap().to_owned();
        self.part = Some(self.starts("box", &["run", &state, &certificate]));
    }

    /// The part ends in order, as when the box leaves.
    fn ends(&mut self) {
        let mut part = self.part.take().unwrap();
        let pid = rustix::process::Pid::from_child(&part);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(part.wait().unwrap().success());
    }

    fn does(&self, place: &str, command: &str) {
        shell(&format!("ip netns exec {}{place} {command}", self.name));
    }

    fn asks(&self, request: WanRequest) -> Option<WanStatus> {
        status_of(self.state.path(), &request)
    }

    fn port(&self) -> Option<PortState> {
        self.asks(WanRequest::Status)?.uplinks.first()?.port.clone()
    }

    /// Who a member outside is to the box's door, if they come through.
    fn member(&self, at: &str) -> Option<String> {
        let knock = format!("exec 3<>/dev/tcp/{at}/8443; read -r -u3 line; echo $line");
        let asked = Command::new("ip")
            .args(["netns", "exec", &format!("{}net", self.name), "timeout", "1", "bash", "-c"])
            .arg(knock)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
        (!said.is_empty()).then_some(said)
    }

    fn until<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            if begun.elapsed() > Duration::from_secs(60) {
                let log = std::fs::read_to_string(self.at("miniupnpd.log")).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(30).collect();
                panic!("waited in vain for {what}: {:?}\n{}", self.port(), end.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn mapped(&self, by: &str, address: &str) {
        let want =
            PortState::Mapped { by: by.into(), address: address.parse().unwrap(), port: 8443 };
        self.until("a port", || (self.port() == Some(want.clone())).then_some(()));
    }

    fn reached(&self, at: &str) {
        let from = self.until("a member who comes in", || self.member(at));
        assert_eq!(from, "11.7.0.1");
    }
}

impl Drop for House {
    fn drop(&mut self) {
        for child in self.others.iter_mut().chain(&mut self.part).chain(&mut self.router) {
            let _ = child.kill();
            let _ = child.wait();
        }
        for place in ["box", "router", "net"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &format!("{}{place}", self.name)])
                .output();
        }
    }
}

const ALLOWS: &str = "allow 1024-65535 192.168.1.0/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535";

/// From the first question to the end, with a router that is started again and one that moves.
fn a_port_by_pcp() {
    let mut house = House::new("c", &format!("enable_natpmp=yes\nenable_upnp=no\n{ALLOWS}"));
    house.router_on();
    house.begins();
    house.mapped("PCP", OUTSIDE);
    house.reached(OUTSIDE);
    house.until("the first telling", || told(&house, OUTSIDE));

    house.router_off();
    house.power_on();
    assert_eq!(house.member(OUTSIDE), None, "the router forgot it");
    house.router_on();
    house.reached(OUTSIDE);

    // Only the router's address changes: the box's own stays, and no uplink is switched.
    house.does("router", &format!("ip addr del {OUTSIDE}/24 dev wan"));
    house.does("router", &format!("ip addr add {AFTERWARDS}/24 dev wan"));
    house.does("router", "ip route replace default via 11.7.0.1");
    house.mapped("PCP", AFTERWARDS);
    house.reached(AFTERWARDS);
    house.until("the second telling", || told(&house, AFTERWARDS));

    house.ends();
    assert_eq!(house.member(AFTERWARDS), None, "it was given back");
}

/// Whether the service was told this address.
fn told(house: &House, address: &str) -> Option<()> {
    let asked = std::fs::read_to_string(house.at("asked")).unwrap_or_default();
    asked.contains(&format!("GET /told?a={address} ")).then_some(())
}

/// A router that knows only the older protocol: what it does not know it does not answer.
fn a_port_by_nat_pmp() {
    let mut house = House::new("n", &format!("enable_natpmp=yes\nenable_upnp=no\n{ALLOWS}"));
    house
        .does("router", "nft 'add chain inet filter input { type filter hook input priority 0; }'");
    house.does("router", "nft add rule inet filter input udp dport 5351 @th,64,8 2 drop");
    house.router_on();
    house.begins();
    house.mapped("NAT-PMP", OUTSIDE);
    house.reached(OUTSIDE);
    house.ends();
    assert_eq!(house.member(OUTSIDE), None);
}

fn a_port_by_upnp() {
    let mut house = House::new("u", &format!("enable_natpmp=no\nenable_upnp=yes\n{ALLOWS}"));
    house.router_on();
    house.begins();
    house.mapped("UPnP", OUTSIDE);
    house.reached(OUTSIDE);
    house.router_off();
    house.power_on();
    house.router_on();
    house.reached(OUTSIDE);
    house.ends();
    assert_eq!(house.member(OUTSIDE), None);
}

/// By UPnP: over PCP miniupnpd tries every port there is before it says no. What somebody outside sees is still worth telling.
fn a_router_that_refuses() {
    let mut house =
        House::new("r", "enable_natpmp=no\nenable_upnp=yes\ndeny 0-65535 0.0.0.0/0 0-65535");
    house.router_on();
    house.begins();
    let why = house.until("a refusal", || match house.port()? {
        PortState::Refused { why } if !why.contains("does not answer") => Some(why),
        _ => None,
    });
    assert!(why.contains("192.168.1.1 refuses (UPnP)"), "{why}");
    assert_eq!(house.member(OUTSIDE), None);
    // A relay knows the address all the same.
    let seen = |address: &str| {
        let seen = [("w1".parse().unwrap(), address.parse().unwrap())].into();
        house.asks(WanRequest::Seen(seen)).unwrap();
    };
    seen(OUTSIDE);
    house.until("what a relay sees", || told(&house, OUTSIDE));
    seen(AFTERWARDS);
    house.until("what a relay sees then", || told(&house, AFTERWARDS));
    house.ends();
}

fn nobody_who_answers() {
    let mut house = House::new("s", "");
    house.begins();
    let why = house.until("silence", || match house.port()? {
        PortState::Refused { why } => Some(why),
        _ => None,
    });
    assert!(why.contains("does not answer when it is asked for a port"), "{why}");
    house.ends();
}

#[test]
fn a_router_passes_members_on_for_as_long_as_the_box_asks_it() {
    tools();
    let all = [
        a_port_by_pcp,
        a_port_by_nat_pmp,
        a_port_by_upnp,
        a_router_that_refuses,
        nobody_who_answers,
    ];
    let all = all.map(std::thread::spawn);
    // All of them come to their end, and take what they started along, before anything is said.
    let ended = all.map(std::thread::JoinHandle::join);
    for one in ended {
        one.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}
