//! Starts the two doors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use polder_control::{
    BoxStatus, Client, ControlError, DoorReply, DoorRequest, EngineStatus, Event, Handler, Outlet,
    PartState, PartStatus, Reply, Request, Sockets,
};
use polder_site::{EngineSlot, Site, Store};
use polder_stories::{free_port, need};

use crate::load::Target;

/// `polder gateway` in front of the upstream, told by a supervisor's socket that the upstream is
/// its engine.
pub(crate) struct Polder {
    child: Child,
    pub(crate) target: Target,
}

struct Supervisor(BoxStatus);

impl Handler<Request, Reply> for Supervisor {
    async fn handle(
        &self,
        question: Request,
        outlet: &mut Outlet<Reply>,
    ) -> Result<(), ControlError> {
        match question {
            Request::Watch => {
                outlet.send(&Reply::Event(Event::Status(Box::new(self.0.clone())))).await?;
                std::future::pending().await
            }
            Request::Status => outlet.send(&Reply::Status(Box::new(self.0.clone()))).await,
            _ => outlet.send(&Reply::Done).await,
        }
    }
}

impl Polder {
    pub(crate) async fn start(folder: &Path, upstream: &Path) -> Self {
        let state = folder.join("state");
        let port = free_port();
        let mut site = Site::unclaimed(port);
        let slot = EngineSlot::serving("bench".parse().expect("a valid name"));
        site.engines = BTreeMap::from([("fast".parse().expect("a valid name"), slot.clone())]);
        Store::open(&state).expect("a fresh folder").write(&site, "bench").expect("a valid site");
        let part = PartStatus { state: PartState::Ready, restarts: 0, pid: None };
        let status = BoxStatus {
            closed: None,
            others: Vec::new(),
            supply: None,
            safe: false,
            site,
            gateway: part.clone(),
            engines: vec![EngineStatus {
                name: "fast".parse().expect("a valid name"),
                recipe: slot.recipe,
                socket: upstream.to_owned(),
                part,
                note: None,
            }],
        };
        let sockets = Sockets::of(&state);
        let control = sockets.control();
        tokio::spawn(async move {
            polder_control::serve(&control, Arc::new(Supervisor(status)))
                .await
                .expect("the socket is ours");
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        // The pipe stays open until the child is dropped: the gateway lives as long as we do.
        let child = Command::new(need("POLDER_BIN"))
            .env("POLDER_LOG", "warn")
            .args(["gateway", "--state"])
            .arg(&state)
            .stdin(Stdio::piped())
            .spawn()
            .expect("polder starts");
        let mut door: Client<DoorRequest, DoorReply> = loop {
            match Client::connect(&sockets.gateway()).await {
                Ok(client) => break client,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let DoorReply::Ready { ca_file, .. } =
            door.ask(&DoorRequest::Ready).await.expect("the gateway answers")
        else {
            panic!("the gateway is not ready")
        };
        let DoorReply::Key(key) = door.ask(&DoorRequest::UpKey).await.expect("the gateway answers")
        else {
            panic!("the gateway gave no key")
        };
        Self { child, target: Target::tls(port, &ca_file, &key) }
    }

    pub(crate) fn resident_mib(&self) -> f64 {
        resident_mib(self.child.id())
    }

    /// Seconds of processor time so far.
    pub(crate) fn busy(&self) -> f64 {
        busy(self.child.id())
    }
}

impl Drop for Polder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Debian's nginx in front of the upstream.
pub(crate) struct Nginx {
    child: Child,
    pub(crate) target: Target,
}

impl Nginx {
    pub(crate) async fn start(folder: &Path, upstream: &Path) -> Self {
        let port = free_port();
        let prefix = folder.join("nginx");
        std::fs::create_dir_all(&prefix).expect("a fresh folder");
        let certificate = certificate(&prefix);
        let config = format!(
            "{user} daemon off; pid nginx.pid; error_log stderr error; worker_processes auto; events {{ worker_connections 2048; }}
http {{
  access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  upstream engine {{ server unix:{upstream}; keepalive 128; }}
  server {{
    listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.3; ssl_certificate cert.pem; ssl_certificate_key key.pem;
    keepalive_requests 100000000;
    location /v1/ {{
      auth_request /verify; proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off;
    }}
    location = /verify {{
      internal; proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection \"\";
      proxy_pass_request_body off; proxy_set_header Content-Length \"\";
    }}
  }}
}}
",
            upstream = upstream.display(),
            // Started by root, its workers would become somebody who may not open our socket.
            user = if rustix::process::geteuid().is_root() { "user root;" } else { "" },
        );
        std::fs::write(prefix.join("nginx.conf"), config).expect("a fresh folder");
        let child = Command::new("nginx")
            .arg("-p")
            .arg(&prefix)
            .args(["-c", "nginx.conf", "-e", "stderr"])
            .spawn()
            .expect("nginx is installed (make bench installs it)");
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { child, target: Target::tls(port, &certificate, "any") }
    }

    /// Master and workers together.
    pub(crate) fn resident_mib(&self) -> f64 {
        self.processes().map(resident_mib).sum()
    }

    /// Seconds of processor time so far, likewise.
    pub(crate) fn busy(&self) -> f64 {
        self.processes().map(busy).sum()
    }

    fn processes(&self) -> impl Iterator<Item = u32> {
        let id = self.child.id();
        let children =
            std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        let children: Vec<u32> =
            children.split_whitespace().filter_map(|c| c.parse().ok()).collect();
        std::iter::once(id).chain(children)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        polder_stories::send_signal(self.child.id(), rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

fn certificate(prefix: &Path) -> PathBuf {
    let (cert, key) = (prefix.join("cert.pem"), prefix.join("key.pem"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        // An end-entity certificate, so that it can be trusted directly.
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-out")
        .arg(&cert)
        .arg("-keyout")
        .arg(&key)
        .stderr(Stdio::null())
        .status()
        .expect("openssl is installed (make bench installs it)");
    assert!(made.success(), "openssl made no certificate");
    cert
}

fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .and_then(|l| l.split_whitespace().next());
    kib.and_then(|k| k.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// User and system time from /proc, in hundredths of a second.
fn busy(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() / 100.0
}
