//! What stands in the network namespaces of the tests: the part itself, somebody far away who answers, and traffic between them.
//!
//! `wanbox run STATE [ROOTS.pem]` looks after the uplinks of the box in STATE. `wanbox answer ADDRESS...` tells whoever connects
//! where they come from, then goes on talking. `wanbox page ADDRESS CERTIFICATE.pem KEY.pem` is a web server. `wanbox traffic ADDRESS` makes a new connection every 50 ms and keeps
//! one open, and says what becomes of them: `MILLISECONDS new|lost|stream|cut WORDS`, by the clock of the machine.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use polder_wan::{Pages, Policy};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        // Nobody who tests waits a minute for a router.
        ["run", state] => run(state, Pages::usual(), Duration::from_secs(1)),
        ["run", state, roots] => run(state, trusting(roots), Duration::from_secs(1)),
        // As long as a box of people waits before it looks whether a port is still passed on.
        ["run", state, roots, "seldom"] => {
            run(state, trusting(roots), Policy::default().port_check)
        }
        ["answer", ref addresses @ ..] => answer(addresses),
        ["page", address, certificate, key] => page(address, certificate, key),
        ["traffic", address] => traffic(address.parse().expect("an address with a port")),
        _ => panic!(
            "usage: wanbox run STATE [ROOTS.pem [seldom]] | answer ADDRESS... | page ADDRESS CERTIFICATE KEY | traffic ADDRESS"
        ),
    }
}

fn trusting(path: &str) -> Pages {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).expect("the file is there") {
        roots.add(certificate.expect("it has certificates")).expect("a root");
    }
    Pages::trusting(roots)
}

#[tokio::main(flavor = "current_thread")]
async fn run(state: &str, pages: Pages, port_check: Duration) {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate()).expect("signals can be heard");
    let told = async move {
        term.recv().await;
    };
    let policy = Policy { port_check, ..Policy::default() };
    if let Err(error) = polder_wan::serve(state.as_ref(), policy, pages, told).await {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn answer(addresses: &[&str]) {
    let answering = addresses.iter().map(|address| {
        let listener = TcpListener::bind(address).expect("the address is here");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || talk(stream));
            }
        })
    });
    let answering: Vec<_> = answering.collect();
    println!("ready");
    answering.into_iter().for_each(|thread| drop(thread.join()));
}

fn page(address: &str, certificate: &str, key: &str) {
    let certificate = CertificateDer::from_pem_file(certificate).expect("a certificate");
    let key = rustls_pki_types::PrivateKeyDer::from_pem_file(key).expect("a key");
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("they belong together");
    let config = std::sync::Arc::new(config);
    let listener = TcpListener::bind(address).expect("the address is here");
    println!("ready");
    for stream in listener.incoming().flatten() {
        let connection = rustls::ServerConnection::new(config.clone()).expect("it is set up");
        std::thread::spawn(move || {
            let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
            let from = stream.get_ref().get_ref().peer_addr()?.ip();
            let mut line = String::new();
            stream.read_line(&mut line)?;
            // Whoever started it may read who asked for what.
            eprintln!("asked from {from}: {}", line.trim());
            while stream.read_line(&mut line)? > 2 {}
            stream.get_mut().write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        });
    }
}

fn talk(mut stream: TcpStream) -> std::io::Result<()> {
    writeln!(stream, "{}", stream.peer_addr()?.ip().to_canonical())?;
    for token in 0.. {
        std::thread::sleep(Duration::from_millis(50));
        writeln!(stream, "token {token}")?;
    }
    Ok(())
}

fn say(at: SystemTime, what: &str) {
    let at = at.duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    // Whoever listened is gone: so is the need for this process.
    if writeln!(std::io::stdout(), "{at} {what}").is_err() {
        std::process::exit(0);
    }
}

fn traffic(to: SocketAddr) {
    std::thread::spawn(move || {
        loop {
            stream(to);
        }
    });
    loop {
        std::thread::spawn(move || {
            let begun = SystemTime::now();
            match first_line(to) {
                Ok(line) => say(begun, &format!("new {line}")),
                Err(error) => say(begun, &format!("lost {}", error.kind())),
            }
        });
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn open(to: SocketAddr) -> std::io::Result<BufReader<TcpStream>> {
    Ok(BufReader::new(TcpStream::connect_timeout(&to, Duration::from_secs(2))?))
}

fn first_line(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = open(to)?;
    stream.get_ref().set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// One answer that streams for as long as it can: nothing but the connection itself says that it is over.
fn stream(to: SocketAddr) {
    let Ok(mut stream) = open(to) else { return std::thread::sleep(Duration::from_millis(20)) };
    let mut line = String::new();
    let mut lines = 0;
    loop {
        line.clear();
        match stream.read_line(&mut line) {
            Ok(0) => return say(SystemTime::now(), "cut end"),
            Ok(_) if lines == 0 => say(SystemTime::now(), &format!("stream {}", line.trim())),
            Ok(_) => {}
            Err(error) => return say(SystemTime::now(), &format!("cut {:?}", error.kind())),
        }
        lines += 1;
    }
}
