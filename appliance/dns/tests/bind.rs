//! Against BIND: what it takes and what it refuses, and what we say then.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use polder_dns::{Change, Data, Key, Zone, update};

const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const OTHER: &str = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=";

struct Bind {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Bind {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bind {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let at = folder.path().display();
        let settings = format!(
            "options {{ directory \"{at}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; pid-file none; session-keyfile none; recursion no; dnssec-validation no; }};\n\
             controls {{ }};\n\
             key \"box\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n\
             key \"guest\" {{ algorithm hmac-sha256; secret \"{OTHER}\"; }};\n\
             zone \"example.org\" {{ type master; file \"zone\"; update-policy {{ grant box zonesub ANY; }}; }};\n"
        );
        let zone = "$TTL 60\n@ SOA ns.example.org. root.example.org. 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\n";
        std::fs::write(folder.path().join("named.conf"), settings).unwrap();
        std::fs::write(folder.path().join("zone"), zone).unwrap();
        let child = Command::new("/usr/sbin/named")
            .args(["-g", "-c"])
            .arg(folder.path().join("named.conf"))
            .stderr(Stdio::null())
            .spawn()
            .expect("BIND is missing: install Debian's bind9, as `make tools-test` does");
        let bind = Self { child, port, _folder: folder };
        for _ in 0..200 {
            if bind.ask("ns.example.org", "A") == ["127.0.0.1"] {
                return bind;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("BIND does not answer");
    }

    fn ask(&self, name: &str, kind: &str) -> Vec<String> {
        let port = self.port.to_string();
        let asked = Command::new("dig")
            .args(["@127.0.0.1", "-p", &port, "+short", "+time=1", "+tries=1", name, kind])
            .output()
            .expect("dig is missing: install Debian's bind9-dnsutils, as `make tools-test` does");
        if !asked.status.success() {
            return Vec::new();
        }
        String::from_utf8(asked.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    fn zone(&self, key: &str, secret: &str) -> Zone {
        Zone {
            server: format!("127.0.0.1:{}", self.port),
            name: "example.org".parse().unwrap(),
            key: Key::new(key, secret).unwrap(),
        }
    }
}

fn text(name: &str, text: &str) -> Change {
    Change::Add { name: name.parse().unwrap(), ttl: 60, data: Data::Txt(text.to_owned()) }
}

#[tokio::test]
async fn records_are_added_beside_others_and_removed_one_by_one_or_all() {
    let bind = Bind::start();
    let zone = bind.zone("box", SECRET);
    let name = "_acme-challenge.gpu.example.org";
    update(&zone, &[text(name, "one"), text(name, "two")]).await.unwrap();
    update(&zone, &[text(name, "one")]).await.unwrap();
    let mut there = bind.ask(name, "TXT");
    there.sort();
    assert_eq!(there, ["\"one\"", "\"two\""]);
    let remove =
        |t: &str| Change::Remove { name: name.parse().unwrap(), data: Data::Txt(t.to_owned()) };
    update(&zone, &[remove("one"), remove("not there")]).await.unwrap();
    assert_eq!(bind.ask(name, "TXT"), ["\"two\""]);

    let host = "gpu.example.org".parse::<polder_dns::Name>().unwrap();
    let at = |a, b, c, d| Data::A(Ipv4Addr::new(a, b, c, d));
    let moved = |from: Data, to: Data| {
        [
            Change::RemoveAll { name: host.clone(), like: from },
            Change::Add { name: host.clone(), ttl: 60, data: to },
        ]
    };
    update(&zone, &moved(at(0, 0, 0, 0), at(192, 0, 2, 1))).await.unwrap();
    update(&zone, &moved(at(0, 0, 0, 0), at(192, 0, 2, 2))).await.unwrap();
    assert_eq!(bind.ask("gpu.example.org", "A"), ["192.0.2.2"]);
    let v6 = Data::Aaaa("2001:db8::7".parse().unwrap());
    update(&zone, &[Change::Add { name: host.clone(), ttl: 60, data: v6 }]).await.unwrap();
    assert_eq!(bind.ask("gpu.example.org", "AAAA"), ["2001:db8::7"]);
}

#[tokio::test]
async fn what_bind_refuses_is_said_in_words() {
    let bind = Bind::start();
    let change = [text("_acme-challenge.gpu.example.org", "x")];
    let why = async |zone: &Zone| update(zone, &change).await.unwrap_err().to_string();
    let wrong = why(&bind.zone("box", OTHER)).await;
    assert!(wrong.contains("secret of the key is another one"), "{wrong}");
    let strange = why(&bind.zone("nobody", SECRET)).await;
    assert!(strange.contains("does not know the key"), "{strange}");
    let guest = why(&bind.zone("guest", OTHER)).await;
    assert!(guest.contains("the key may not"), "{guest}");
    let mut elsewhere = bind.zone("box", SECRET);
    elsewhere.name = "org".parse().unwrap();
    let elsewhere = why(&elsewhere).await;
    assert!(elsewhere.contains("not the primary server"), "{elsewhere}");
    let mut nobody = bind.zone("box", SECRET);
    nobody.server = "127.0.0.1:1".to_owned();
    let nobody = why(&nobody).await;
    assert!(nobody.contains("cannot be reached"), "{nobody}");
    let outside = update(&bind.zone("box", SECRET), &[text("x.example.net", "x")]).await;
    assert!(outside.unwrap_err().to_string().contains("is not in the zone"));
}
