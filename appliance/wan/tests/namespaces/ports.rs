//! A box behind a real router, miniupnpd, and a member on the other side of it.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_control::{
    BoxStatus, ControlError, Event, Handler, Outlet, PartState, PartStatus, PortState, Reply,
    Request, Sockets, WanRequest, WanStatus,
};
use polder_site::Site;
use tokio::sync::watch;

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
        self.stands();
        self.runs(&[]);
    }

    /// All of it but the part.
    fn stands(&mut self) {
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
    }

    fn runs(&mut self, how: &[&str]) {
        let state = self.state.path().to_str().unwrap().to_owned();
        let certificate = self.at("cert.pem");
        let all = [&["run", &state, &certificate], how].concat();
        self.part = Some(self.starts("box", &all));
    }

    /// Says to the part what the site is, each time that it becomes another one, as the supervisor does.
    fn supervised(&self) -> watch::Sender<Site> {
        let text = std::fs::read_to_string(self.at("site.toml")).unwrap();
        let (tell, site) = watch::channel(Site::from_toml(&text).unwrap());
        let socket = Sockets::of(self.state.path()).control();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            // Until nobody has another site to tell.
            let ends = site.clone();
            let gone = async move { while ends.clone().changed().await.is_ok() {} };
            let serving = polder_control::serve(&socket, Arc::new(Supervisor(site)));
            runtime.unwrap().block_on(async {
                tokio::select! {
                    () = gone => {}
                    _ = serving => {}
                }
            });
        });
        tell
    }

    /// Whom the router lets in: its rules, and what it would let in again after it was started anew.
    fn holds(&self) -> String {
        let list = Command::new("ip")
            .args(["netns", "exec", &format!("{}router", self.name)])
            .args(["nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd"])
            .output()
            .unwrap();
        let rules = String::from_utf8_lossy(&list.stdout).into_owned();
        let rules = rules.lines().filter(|line| line.contains("dnat")).collect::<String>();
        rules + std::fs::read_to_string(self.at("leases")).unwrap_or_default().trim()
    }

    /// It lets nobody in any more.
    fn holds_nothing(&self) {
        self.until("a router that holds nothing", || self.holds().is_empty().then_some(()));
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
    house.holds_nothing();
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
    house.holds_nothing();
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
    assert!(house.holds().contains("8443"), "{}", house.holds());
    house.ends();
    assert_eq!(house.member(OUTSIDE), None);
    house.holds_nothing();
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

/// Switched off and on again within a moment, at a router that hears the first late: what is given back takes nothing along that was asked for
/// since.
fn a_port_that_is_wanted_again_at_once() {
    let mut house = House::new("o", &format!("enable_natpmp=yes\nenable_upnp=no\n{ALLOWS}"));
    house.router_on();
    let tell = house.supervised();
    house.stands();
    // As seldom as on a box: nothing is put right by the next look.
    house.runs(&["seldom"]);
    house.mapped("PCP", OUTSIDE);
    house.reached(OUTSIDE);
    let ask = |on: bool| {
        tell.send_modify(|site| {
            site.uplinks.values_mut().for_each(|uplink| uplink.ask_router = on)
        });
    };
    // What gives a port back (a lifetime of 0) gets lost at first.
    house
        .does("router", "nft 'add chain inet filter input { type filter hook input priority 0; }'");
    house.does("router", "nft add rule inet filter input udp dport 5351 @th,96,32 0 drop");
    ask(false);
    house.until("a port that nobody wants", || house.port().is_none().then_some(()));
    ask(true);
    std::thread::sleep(Duration::from_millis(300));
    house.does("router", "nft flush chain inet filter input");
    // By now the last word about the first one was said.
    std::thread::sleep(Duration::from_secs(3));
    house.mapped("PCP", OUTSIDE);
    let (begun, mut seen) = (Instant::now(), None);
    while seen.is_none() && begun.elapsed() < Duration::from_secs(20) {
        seen = house.member(OUTSIDE);
    }
    assert_eq!(seen.as_deref(), Some("11.7.0.1"), "the router holds: {}", house.holds());
    // Off is off, also at the router.
    ask(false);
    house.holds_nothing();
    assert_eq!(house.member(OUTSIDE), None);
    house.ends();
}

struct Supervisor(watch::Receiver<Site>);

impl Handler<Request, Reply> for Supervisor {
    async fn handle(
        &self,
        question: Request,
        outlet: &mut Outlet<Reply>,
    ) -> Result<(), ControlError> {
        let mut site = self.0.clone();
        if !matches!(question, Request::Watch) {
            return outlet.send(&Reply::Refused("only the site is told here".into())).await;
        }
        loop {
            let status = BoxStatus {
                site: site.borrow_and_update().clone(),
                gateway: PartStatus { state: PartState::Ready, restarts: 0, pid: None },
                engines: Vec::new(),
                safe: false,
                supply: None,
                closed: None,
                others: Vec::new(),
            };
            outlet.send(&Reply::Event(Event::Status(Box::new(status)))).await?;
            if site.changed().await.is_err() {
                return Ok(());
            }
        }
    }
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
        a_port_that_is_wanted_again_at_once,
    ];
    let all = all.map(std::thread::spawn);
    // All of them come to their end, and take what they started along, before anything is said.
    let ended = all.map(std::thread::JoinHandle::join);
    for one in ended {
        one.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}
