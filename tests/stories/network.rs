//! Networks of a story's own: hosts as network namespaces, cables between them, programs that run there.

use std::process::{Child, Command, Stdio};

use polder_stories::send_signal;
use rustix::process::Signal;

/// Hosts that reach each other and nobody else. Gone when it is dropped, with whatever runs there.
pub(crate) struct Network {
    name: String,
    hosts: &'static [&'static str],
    processes: Vec<Child>,
}

impl Network {
    /// These hosts, without any cable.
    pub(crate) fn of(hosts: &'static [&'static str]) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NETWORKS: AtomicU32 = AtomicU32::new(0);
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let name = format!("ps{}n{number}", std::process::id());
        let network = Self { name, hosts, processes: Vec::new() };
        for host in hosts {
            let host = network.host(host);
            network.shell(&format!("ip netns add {host}; ip -n {host} link set lo up"));
        }
        network
    }

    /// What the system calls a host's namespace.
    pub(crate) fn host(&self, host: &str) -> String {
        format!("{}{host}", self.name)
    }

    /// A cable, called the same at both ends, with an address of `/24` at each.
    pub(crate) fn cable(&self, cable: &str, ends: [(&str, &str); 2]) {
        let [(one, _), (other, _)] = ends.map(|(host, address)| (self.host(host), address));
        self.shell(&format!(
            "ip link add {cable} netns {one} type veth peer name {cable} netns {other}"
        ));
        for (host, address) in ends {
            let host = self.host(host);
            self.shell(&format!(
                "ip -n {host} addr add {address}/24 dev {cable}; ip -n {host} link set {cable} up"
            ));
        }
    }

    /// Runs a script on this machine; whoever gives it names namespaces by [`Self::host`].
    pub(crate) fn shell(&self, script: &str) {
        let done = Command::new("sh").args(["-ec", script]).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.success(),
            "{said}: this story needs root, and iproute2 and nftables as `make test` installs them"
        );
    }

    /// A program on one of the hosts.
    pub(crate) fn inside(&self, host: &str, command: &[&str]) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.host(host)]).args(command);
        inside.stdin(Stdio::null());
        inside
    }

    /// A program that runs on one of the hosts as long as the network is there.
    pub(crate) fn runs(&mut self, host: &str, command: &[&str]) {
        let mut inside = self.inside(host, command);
        let process = inside.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.processes.push(process);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for process in &mut self.processes {
            send_signal(process.id(), Signal::TERM);
            let _ = process.wait();
        }
        for host in self.hosts {
            let _ = Command::new("ip").args(["netns", "del", &self.host(host)]).output();
        }
    }
}
