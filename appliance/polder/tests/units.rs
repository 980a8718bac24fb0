//! Parts as an init system starts them: sockets handed over, and news on a socket of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use polder_site::{Site, Store};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// What the init system is told.
struct News {
    socket: UnixDatagram,
    path: PathBuf,
    heard: Vec<String>,
}

impl News {
    fn at(path: PathBuf) -> Self {
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        Self { socket, path, heard: Vec::new() }
    }

    /// Waits for this line.
    fn hear(&mut self, line: &str) {
        let begun = Instant::now();
        while !self.heard.iter().any(|heard| heard == line) {
            let waited = begun.elapsed();
            assert!(waited < Duration::from_secs(30), "no {line:?} in {:?}", self.heard);
            self.listen();
        }
    }

    /// Whether there was something to hear.
    fn listen(&mut self) -> bool {
        let mut message = [0; 4096];
        let Ok(length) = self.socket.recv(&mut message) else { return false };
        let text = std::str::from_utf8(&message[..length]).unwrap();
        self.heard.extend(text.lines().map(str::to_owned));
        true
    }
}

/// A part, and what it is started with.
struct House {
    state: TempDir,
    listener: TcpListener,
    news: News,
}

impl House {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // Inherited by what this test starts, as from an init system.
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
        let site = Site::unclaimed(listener.local_addr().unwrap().port());
        Store::open(state.path()).unwrap().write(&site, "test").unwrap();
        let news = News::at(state.path().join("notify"));
        Self { state, listener, news }
    }

    fn start(&self, part: &str) -> Part {
        // The third descriptor is where handed sockets begin; the shell's number stays the part's.
        let script = format!(
            "exec 3<&{}; export LISTEN_FDS=1 LISTEN_PID=$$; exec {} {part} --state {}",
            self.listener.as_raw_fd(),
            env!("CARGO_BIN_EXE_polder"),
            self.state.path().display()
        );
        let child = Command::new("bash")
            .args(["-c", &script])
            .env("NOTIFY_SOCKET", &self.news.path)
            .env("WATCHDOG_USEC", "900000")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Part(child)
    }

    fn ask(&self) -> TcpStream {
        let mut visitor = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        visitor.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        visitor
            .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .unwrap();
        visitor
    }
}

fn answer(mut visitor: TcpStream) -> String {
    let mut said = String::new();
    visitor.read_to_string(&mut said).unwrap();
    said
}

struct Part(Child);

impl Part {
    fn end(mut self) {
        kill_process(Pid::from_raw(self.0.id() as i32).unwrap(), Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_gateway_serves_the_sockets_it_was_handed_and_turns_nobody_away_while_it_is_restarted() {
    let mut house = House::new();
    let gateway = house.start("gateway");
    house.news.hear("READY=1");
    // The port is taken by this test: only the handed socket can have brought this answer.
    let said = answer(house.ask());
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    gateway.end();

    let waiting = house.ask();
    house.news.heard.clear();
    let gateway = house.start("gateway");
    assert!(answer(waiting).starts_with("HTTP/1.1 200 "));
    gateway.end();
}

#[test]
fn a_part_tells_that_it_answers_that_it_lives_and_that_it_ends() {
    let mut house = House::new();
    let gateway = house.start("gateway");
    for line in ["READY=1", "STATUS=answering", "WATCHDOG=1"] {
        house.news.hear(line);
    }
    house.news.heard.clear();
    house.news.hear("WATCHDOG=1");
    gateway.end();
    for line in ["STOPPING=1", "STATUS=finishing what it has", "EXTEND_TIMEOUT_USEC=45000000"] {
        house.news.hear(line);
    }
}

#[test]
fn a_supervisor_leaves_it_to_the_init_system_to_call_it_stopping() {
    let mut house = House::new();
    let supervisor = house.start("supervise");
    house.news.hear("READY=1");
    supervisor.end();
    house.news.hear("STATUS=finishing what it has");
    while house.news.listen() {}
    assert!(!house.news.heard.iter().any(|line| line == "STOPPING=1"), "{:?}", house.news.heard);
}

#[test]
fn a_gateway_whose_socket_does_not_answer_does_not_say_that_it_lives() {
    let mut house = House::new();
    let _gateway = house.start("gateway");
    house.news.hear("WATCHDOG=1");
    let socket = house.state.path().join("run/gateway.sock");
    std::fs::remove_file(&socket).unwrap();
    // Takes connections and never answers.
    let _hanging = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    house.news.hear("STATUS=not answering");
    house.news.heard.clear();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        house.news.listen();
    }
    assert!(!house.news.heard.iter().any(|line| line == "WATCHDOG=1"), "{:?}", house.news.heard);
}

#[test]
fn what_a_part_failed_of_is_told_in_its_own_words() {
    let mut house = House::new();
    let mut engine = house.start("engine nobody");
    assert!(!engine.0.wait().unwrap().success());
    house.news.hear("STATUS=error: site.toml names no engine nobody; choose a model for it first");
}

#[test]
fn a_part_that_nobody_listens_to_runs_as_well() {
    let house = House::new();
    let state: &Path = house.state.path();
    let said = Command::new(env!("CARGO_BIN_EXE_polder"))
        .args(["engine", "nobody", "--state"])
        .arg(state)
        .env("NOTIFY_SOCKET", state.join("nobody"))
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&said.stderr).contains("names no engine nobody"));
}
