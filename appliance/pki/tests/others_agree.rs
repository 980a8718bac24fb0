//! Other people's verifiers take the box's certificate, and nothing else that its authority might
//! sign: OpenSSL, Python's ssl at its strictest, rustls.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use polder_pki::decide::LeafDue;
use polder_pki::{Keeper, Names, Refreshed, decide};
use polder_site::Site;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

const NOW: i64 = decide::CLOCK_FLOOR + 30 * 86_400;

fn names(hosts: &[&str]) -> Names {
    let mut site = Site::unclaimed(8443);
    site.name = "oak".parse().unwrap();
    site.door.names = hosts.iter().map(|h| (*h).to_owned()).collect();
    Names::of(&site, ["192.168.7.7".parse::<IpAddr>().unwrap()])
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_secs().try_into().unwrap()
}

fn openssl(folder: &Path, arguments: &[&str]) -> Output {
    Command::new("openssl").args(arguments).current_dir(folder).output().unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn openssl_takes_the_box_by_its_names_and_addresses() {
    let folder = tempfile::tempdir().unwrap();
    Keeper::open(folder.path(), &names(&["gpu.example.org"]), now()).unwrap();
    for host in ["oak.local", "localhost", "gpu.example.org"] {
        let seen = openssl(
            folder.path(),
            &[
                "verify",
                "-x509_strict",
                "-purpose",
                "sslserver",
                "-verify_hostname",
                host,
                "-CAfile",
                "ca.pem",
                "leaf.pem",
            ],
        );
        assert!(seen.status.success(), "{host}: {}", text(&seen));
    }
    for ip in ["127.0.0.1", "::1", "192.168.7.7"] {
        let seen = openssl(
            folder.path(),
            &["verify", "-x509_strict", "-verify_ip", ip, "-CAfile", "ca.pem", "leaf.pem"],
        );
        assert!(seen.status.success(), "{ip}: {}", text(&seen));
    }
    let other = openssl(
        folder.path(),
        &["verify", "-verify_hostname", "elm.local", "-CAfile", "ca.pem", "leaf.pem"],
    );
    assert!(!other.status.success());
}

#[test]
fn a_stolen_authority_key_signs_nothing_that_openssl_takes_for_another_name() {
    let folder = tempfile::tempdir().unwrap();
    Keeper::open(folder.path(), &names(&[]), now()).unwrap();
    let sign = |name: &str, san: &str| {
        fs::write(folder.path().join("san.ext"), format!("subjectAltName={san}\n")).unwrap();
        let commands: [&[&str]; 3] = [
            &[
                "req",
                "-new",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-keyout",
                "e.key",
                "-out",
                "e.csr",
                "-subj",
                &format!("/CN={name}"),
            ],
            &[
                "x509",
                "-req",
                "-in",
                "e.csr",
                "-CA",
                "authority-1.pem",
                "-CAkey",
                "authority-1.pem",
                "-set_serial",
                "77",
                "-days",
                "20",
                "-extfile",
                "san.ext",
                "-out",
                "e.pem",
            ],
            &["verify", "-CAfile", "ca.pem", "e.pem"],
        ];
        let mut last = None;
        for (step, command) in commands.iter().enumerate() {
            let output = openssl(folder.path(), command);
            assert!(step == 2 || output.status.success(), "{}", text(&output));
            last = Some(output);
        }
        last.unwrap()
    };
    let own = sign("oak.local", "DNS:oak.local");
    assert!(own.status.success(), "the test's own signing works: {}", text(&own));
    for (name, san) in [
        ("bank", "DNS:bank.example"),
        ("soak", "DNS:soak.local"),
        // Were the box called `garden`, this would be somebody's site on the internet.
        ("bare", "DNS:oak"),
        ("below", "DNS:a.oak"),
        ("address", "IP:192.168.7.8"),
        ("v6", "IP:2001:db8::1"),
    ] {
        let seen = sign(name, san);
        assert!(!seen.status.success(), "{san} was taken");
        assert!(text(&seen).contains("permitted subtree violation"), "{}", text(&seen));
    }
}

#[test]
fn the_limit_is_critical_and_no_authority_may_hang_below() {
    let folder = tempfile::tempdir().unwrap();
    Keeper::open(folder.path(), &names(&[]), now()).unwrap();
    let seen = text(&openssl(folder.path(), &["x509", "-in", "ca.pem", "-noout", "-text"]));
    assert!(seen.contains("X509v3 Name Constraints: critical"), "{seen}");
    assert!(seen.contains("CA:TRUE, pathlen:0"), "{seen}");
    assert!(seen.contains("DNS:oak.local") && seen.contains("IP:192.168.7.7/255.255.255.255"));
}

#[test]
fn every_file_is_private() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("pki");
    Keeper::open(&folder, &names(&[]), NOW).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    assert!(!fs::read_to_string(folder.join("ca.pem")).unwrap().contains("PRIVATE"));
}

/// One TLS connection at a time: says "hello" to whoever completes a handshake.
fn serve(keeper: &Keeper) -> u16 {
    let config = keeper.server_config(&["http/1.1"]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut tls = rustls::StreamOwned::new(connection, stream.unwrap());
            let _ = tls.write_all(b"hello");
            tls.conn.send_close_notify();
            let _ = tls.flush();
            let _ = tls.read(&mut [0; 1]);
        }
    });
    port
}

fn rustls_hello(port: u16, ca: &str, host: &str) -> Result<(String, Vec<u8>), std::io::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut tls = rustls::StreamOwned::new(connection, stream);
    let mut said = String::new();
    tls.read_to_string(&mut said)?;
    let leaf = tls.conn.peer_certificates().unwrap()[0].to_vec();
    Ok((said, leaf))
}

#[test]
fn python_and_rustls_take_it_over_the_wire() {
    let folder = tempfile::tempdir().unwrap();
    let keeper = Keeper::open(folder.path(), &names(&[]), now()).unwrap();
    let port = serve(&keeper);
    let ca = keeper.ca();
    assert_eq!(rustls_hello(port, &ca.pem, "oak.local").unwrap().0, "hello");
    assert_eq!(rustls_hello(port, &ca.pem, "127.0.0.1").unwrap().0, "hello");
    assert!(rustls_hello(port, &ca.pem, "elm.local").is_err());
    // The flags that Python 3.13 sets by itself.
    let script = "import socket, ssl, sys\n\
        c = ssl.create_default_context(cafile=sys.argv[1])\n\
        c.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN\n\
        s = c.wrap_socket(socket.create_connection(('127.0.0.1', int(sys.argv[2]))), server_hostname=sys.argv[3])\n\
        print(s.recv(9).decode(), end='')\n";
    let python = |host: &str| {
        Command::new("python3")
            .args(["-c", script])
            .arg(&ca.file)
            .args([&port.to_string(), host])
            .output()
            .unwrap()
    };
    let seen = python("oak.local");
    assert_eq!(String::from_utf8_lossy(&seen.stdout), "hello", "{}", text(&seen));
    assert!(!python("elm.local").status.success());
}

/// BoringSSL refuses a certificate with an address under an authority that is limited in addresses.
#[test]
fn who_comes_by_name_sees_a_certificate_without_addresses() {
    let folder = tempfile::tempdir().unwrap();
    let keeper = Keeper::open(folder.path(), &names(&[]), now()).unwrap();
    let port = serve(&keeper);
    let says = |host: &str| {
        let leaf = rustls_hello(port, &keeper.ca().pem, host).unwrap().1;
        fs::write(folder.path().join("seen.der"), leaf).unwrap();
        text(&openssl(
            folder.path(),
            &["x509", "-inform", "DER", "-in", "seen.der", "-noout", "-ext", "subjectAltName"],
        ))
    };
    let (by_name, by_address) = (says("oak.local"), says("127.0.0.1"));
    assert!(by_name.contains("DNS:oak.local") && !by_name.contains("IP Address"), "{by_name}");
    assert!(by_address.contains("DNS:oak.local") && by_address.contains("IP Address:192.168.7.7"));
}

#[test]
fn a_box_of_before_with_one_certificate_gets_two() {
    let folder = tempfile::tempdir().unwrap();
    Keeper::open(folder.path(), &names(&[]), now()).unwrap();
    let path = folder.path().join("leaf.pem");
    let two = fs::read_to_string(&path).unwrap();
    let second = two.rfind("-----BEGIN CERTIFICATE").unwrap();
    let key = two.find("-----BEGIN PRIVATE").unwrap();
    fs::write(&path, format!("{}{}", &two[..second], &two[key..])).unwrap();
    let keeper = Keeper::open(folder.path(), &names(&[]), now()).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap().matches("BEGIN CERTIFICATE").count(), 2);
    assert_eq!(rustls_hello(serve(&keeper), &keeper.ca().pem, "oak.local").unwrap().0, "hello");
}

#[test]
fn a_due_certificate_is_swapped_under_a_running_server() {
    let folder = tempfile::tempdir().unwrap();
    let keeper = Keeper::open(folder.path(), &names(&[]), now()).unwrap();
    let port = serve(&keeper);
    let ca = keeper.ca();
    let (_, first) = rustls_hello(port, &ca.pem, "oak.local").unwrap();
    assert_eq!(keeper.refresh(&names(&[]), now()).unwrap(), Refreshed::Nothing);
    let mut moved = names(&[]);
    moved.addresses.retain(|address| address.is_loopback());
    assert_eq!(keeper.refresh(&moved, now()).unwrap(), Refreshed::Leaf(LeafDue::OtherNames));
    assert_ne!(rustls_hello(port, &ca.pem, "oak.local").unwrap().1, first);
    let later = now() + 70 * 86_400;
    assert_eq!(keeper.refresh(&moved, later).unwrap(), Refreshed::Leaf(LeafDue::Age));
    assert_eq!(keeper.ca(), ca);
}

#[test]
fn a_restart_keeps_authority_and_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let first = Keeper::open(folder.path(), &names(&[]), NOW).unwrap().ca();
    let leaf = fs::read(folder.path().join("leaf.pem")).unwrap();
    let second = Keeper::open(folder.path(), &names(&[]), NOW + 86_400).unwrap().ca();
    assert_eq!(first, second);
    assert_eq!(fs::read(folder.path().join("leaf.pem")).unwrap(), leaf);
}

#[test]
fn a_new_name_gets_another_authority_beside_the_old_one_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let keeper = Keeper::open(folder.path(), &names(&[]), now()).unwrap();
    let port = serve(&keeper);
    let old = keeper.ca();
    let Refreshed::Authority { statement } =
        keeper.refresh(&names(&["gpu.example.org"]), now()).unwrap()
    else {
        panic!("no other authority");
    };
    let new = keeper.ca();
    assert_ne!(old.fingerprint, new.fingerprint);
    assert!(statement.contains("gpu.example.org") && statement.contains(&new.fingerprint));
    assert!(statement.contains("must install"), "{statement}");
    assert!(folder.path().join("authority-1.pem").exists());
    assert_eq!(fs::read_to_string(&new.file).unwrap(), new.pem);
    assert_eq!(rustls_hello(port, &new.pem, "gpu.example.org").unwrap().0, "hello");
    assert!(rustls_hello(port, &old.pem, "oak.local").is_err());
    // Back to the old name: devices that never changed are right again.
    keeper.refresh(&names(&[]), now()).unwrap();
    assert_eq!(keeper.ca().fingerprint, new.fingerprint, "the new one speaks for the old name too");
}

#[test]
fn the_fingerprint_is_the_one_that_openssl_reads() {
    let folder = tempfile::tempdir().unwrap();
    let keeper = Keeper::open(folder.path(), &names(&[]), NOW).unwrap();
    let seen = text(&openssl(
        folder.path(),
        &["x509", "-in", "ca.pem", "-noout", "-fingerprint", "-sha256"],
    ));
    assert!(seen.trim().ends_with(&keeper.ca().fingerprint), "{seen}");
}

#[test]
fn a_damaged_certificate_is_made_anew_but_a_damaged_authority_is_left_for_a_person() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Keeper::open(folder.path(), &names(&[]), NOW).unwrap().ca();
    let authority = folder.path().join("authority-1.pem");
    let whole = fs::read_to_string(&authority).unwrap();
    fs::write(folder.path().join("leaf.pem"), "half a fi").unwrap();
    assert_eq!(Keeper::open(folder.path(), &names(&[]), NOW).unwrap().ca(), ca);
    for broken in ["", "half", &whole[..whole.len() / 2], &ca.pem] {
        fs::write(&authority, broken).unwrap();
        let Err(error) = Keeper::open(folder.path(), &names(&[]), NOW) else {
            panic!("{broken:?} was taken");
        };
        assert!(error.to_string().contains("restore it from a backup"), "{error}");
        assert_eq!(fs::read_to_string(&authority).unwrap(), broken);
    }
}
