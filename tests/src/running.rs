use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use polder_control::{
    Actor, BoxStatus, Client as Control, PartState, Reply, Request, RunState, Sockets,
};
use polder_site::SiteChange;
use serde_json::Value;

use crate::client::Client;

/// How long a box may take to say something, on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A time to wait, longer where POLDER_SLOWNESS says that this machine emulates another one: so many times.
pub fn scaled(time: Duration) -> Duration {
    let slowness = std::env::var("POLDER_SLOWNESS").ok();
    time * slowness.map_or(1, |times| times.parse().expect("POLDER_SLOWNESS is a whole number"))
}

/// A path that `make test` prepares.
pub fn need(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(value) => PathBuf::from(value),
        None => panic!(
            "{variable} is not set: run the stories with `make test`, which prepares what they need"
        ),
    }
}

/// The folder that holds the trial model's file.
pub fn model_folder() -> PathBuf {
    need("POLDER_SMOLLM2_FOLDER")
}

/// A `polder` command line.
pub fn polder(arguments: &[&str]) -> Command {
    let mut command = Command::new(need("POLDER_BIN"));
    command.args(arguments);
    command
}

/// Runs a Python program of the prepared environment, with the official SDKs.
pub fn python(program: &str, environment: &[(&str, &str)]) -> Output {
    Command::new(need("POLDER_VENV").join("bin/python"))
        .args(["-c", program])
        .envs(environment.iter().copied())
        .output()
        .expect("the prepared Python starts")
}

/// Where stories leave pictures.
pub fn screenshots() -> PathBuf {
    let binary = std::env::current_exe().expect("a running test has a path");
    let target = binary.ancestors().nth(3).expect("target/debug/deps/test has three ancestors");
    let folder = target.join("screenshots");
    std::fs::create_dir_all(&folder).expect("target/ is writable");
    folder
}

/// A port that nobody listened on a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// What `polder up --yes --json` prints when it is ready.
#[derive(Debug, Clone)]
pub struct Up {
    /// `https://localhost:PORT`.
    pub url: String,
    /// The certificate to trust.
    pub ca_file: PathBuf,
    /// A key.
    pub api_key: String,
    /// The model's name.
    pub model: String,
}

/// The program, with another day than this machine's.
fn with_calendar(offset: &str) -> Command {
    let library = std::fs::read_dir("/usr/lib")
        .expect("there are libraries")
        .flatten()
        .map(|entry| entry.path().join("faketime/libfaketime.so.1"))
        .find(|path| path.exists())
        .expect("Debian's package faketime is there");
    let mut command = Command::new(need("POLDER_BIN"));
    command.env("LD_PRELOAD", library).env("FAKETIME", offset);
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    command
}

/// A box that runs.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    /// Its state folder.
    pub state: PathBuf,
    /// Its port.
    pub port: u16,
}

impl Running {
    /// `polder up` with these further arguments.
    pub fn start(state: &Path, port: u16, arguments: &[&str]) -> Self {
        Self::start_as(Command::new(need("POLDER_BIN")), state, port, arguments)
    }

    /// The same on a machine whose calendar is ahead by this many hours; what it waits for takes as long as ever.
    pub fn start_hours_later(state: &Path, port: u16, hours: u32) -> Self {
        Self::start_as(with_calendar(&format!("+{hours}h")), state, port, &[])
    }

    /// [`Self::ready_again`] on a machine whose calendar is so many days behind.
    pub fn ready_days_earlier(state: &Path, port: u16, days: u32) -> (Self, Up) {
        let command = with_calendar(&format!("-{days}d"));
        let running = Self::start_as(command, state, port, &["--yes", "--json"]);
        let up = running.up();
        (running, up)
    }

    /// The same in a network of its own, in which there is nothing but the box: a client that runs [`Self::beside`] it
    /// reaches nobody else.
    pub fn start_cut_off(state: &Path, port: u16, arguments: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--net", "sh", "-c"]);
        command.args(["ip link set lo up && exec \"$@\"", "sh"]).arg(need("POLDER_BIN"));
        Self::start_as(command, state, port, arguments)
    }

    /// `polder up` in a network namespace that is there already.
    pub fn start_inside(namespace: &str, state: &Path, port: u16) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(need("POLDER_BIN"));
        Self::start_as(command, state, port, &[])
    }

    /// A box with the trial model, a steward and a key, in a network namespace that is there already; it also says what goes well.
    pub fn ready_inside(namespace: &str, state: &Path, port: u16) -> (Self, Up) {
        import_trial_model(state);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(need("POLDER_BIN"));
        command.env("POLDER_LOG", "info");
        let running = Self::start_as(command, state, port, &["--yes", "--json"]);
        let up = running.up();
        (running, up)
    }

    /// A program in the network of a box that was cut off.
    pub fn beside(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--preserve-credentials", "--user", "--net", "--target"]);
        command.arg(self.pid().to_string()).arg("--").arg(program);
        command
    }

    fn start_as(mut command: Command, state: &Path, port: u16, arguments: &[&str]) -> Self {
        command.args(["up", "--port", &port.to_string(), "--state"]).arg(state).args(arguments);
        // A display would hide the `ssh -L` line.
        command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(state.join("story.log"))
            .expect("the state folder is writable");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("polder starts");
        let out = child.stdout.take().expect("stdout is piped");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, state: state.to_owned(), port }
    }

    /// A box with the trial model imported, a steward and a key, ready to answer.
    pub fn ready(state: &Path) -> (Self, Up) {
        import_trial_model(state);
        Self::ready_again(state, free_port())
    }

    /// The same on a state folder that was used before.
    pub fn ready_again(state: &Path, port: u16) -> (Self, Up) {
        let running = Self::start(state, port, &["--yes", "--json"]);
        let up = running.up();
        (running, up)
    }

    /// What it says when it is ready, where it was started with `--yes --json`.
    pub fn up(&self) -> Up {
        let line = self.line_with("api_key");
        let value: Value = serde_json::from_str(&line).expect("--json prints one JSON line");
        let text = |key: &str| {
            value[key].as_str().unwrap_or_else(|| panic!("no {key} in {line}")).to_owned()
        };
        Up {
            url: text("url"),
            ca_file: text("ca_file").into(),
            api_key: text("api_key"),
            model: text("model"),
        }
    }

    /// The next line on standard output that contains `part`.
    pub fn line_with(&self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(part) => return line,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no line with {part:?} in {PATIENCE:?}; {}", self.log())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("polder ended without {part:?}; {}", self.log())
                }
            }
        }
    }

    /// What the box wrote on standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.state.join("story.log")).unwrap_or_default()
    }

    /// The supervisor's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the supervisor.
    pub fn ask(&self, request: &Request) -> Reply {
        let path = Sockets::of(&self.state).control();
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be made")
            .block_on(async {
                let mut control: Control<Request, Reply> = Control::connect(&path).await?;
                control.ask_within(PATIENCE, request).await
            })
            .expect("the supervisor answers")
    }

    /// The box now.
    pub fn status(&self) -> BoxStatus {
        match self.ask(&Request::Status) {
            Reply::Status(status) => *status,
            other => panic!("status answered {other:?}"),
        }
    }

    /// Changes the box as somebody at its console would, and waits until that is over.
    pub fn change(&self, change: SiteChange) -> RunState {
        let Reply::Accepted(id) = self.ask(&Request::Apply { change, by: Actor::Console }) else {
            panic!("the change was refused; {}", self.log())
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Reply::Runs(runs) = self.ask(&Request::Runs) else { panic!("no runs") };
            let run = runs.into_iter().find(|run| run.id == id).expect("the run is listed");
            if run.state != RunState::Running {
                return run.state;
            }
            assert!(Instant::now() < deadline, "{run:?} did not end; {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the condition holds.
    pub fn until(&self, what: &str, mut condition: impl FnMut(&BoxStatus) -> bool) -> BoxStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if condition(&status) {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "waited {PATIENCE:?} for {what}; {status:?}; {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The first engine's process, once it is ready.
    pub fn engine_pid(&self) -> u32 {
        let status = self.until("a ready engine", |s| {
            s.engines.first().is_some_and(|e| e.part.state == PartState::Ready)
        });
        status.engines[0].part.pid.expect("a ready engine has a process")
    }

    /// Sends a signal to the supervisor.
    pub fn signal(&self, signal: rustix::process::Signal) {
        send_signal(self.pid(), signal);
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(mut self) -> std::process::ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child can be waited for") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "polder did not end in {PATIENCE:?}; {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Orderly first: the parts end with the supervisor either way.
        if let Ok(None) = self.child.try_wait() {
            self.signal(rustix::process::Signal::TERM);
            let deadline = Instant::now() + Duration::from_secs(10);
            while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Up {
    /// A client with this box's certificate and key.
    pub fn client(&self) -> Client {
        Client::new(&self.url, &self.ca_file, Some(&self.api_key))
    }
}

/// Sends a signal to a process that this story's box started.
pub fn send_signal(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .expect("a process id is positive");
    // An error means that it has ended already, which is what the signal was for.
    let _ = rustix::process::kill_process(pid, signal);
}

/// Brings the trial model into a state folder, from the prepared files.
pub fn import_trial_model(state: &Path) {
    let output = polder(&["weights", "import", "smollm2-135m-instruct", "--from"])
        .arg(model_folder())
        .arg("--state")
        .arg(state)
        .output()
        .expect("polder starts");
    assert!(output.status.success(), "import failed: {}", String::from_utf8_lossy(&output.stderr));
}
