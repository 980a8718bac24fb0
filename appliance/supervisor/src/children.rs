use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;

use crate::lifeline;
use crate::parts::{Ended, Part, Parts, PartsError, Process, exit_words};

/// More of one line than this is not repeated.
const LONGEST_LINE: u64 = 2000;
/// More of its last words than this is not told to people.
const LONGEST_WORDS: usize = 300;

/// Parts as child processes of this one, each in a process group of its own, with a
/// [lifeline]. What they say goes to our standard error, under their name.
#[derive(Debug, Clone)]
pub struct Children {
    program: PathBuf,
    state: PathBuf,
    environment: Vec<(String, String)>,
}

impl Children {
    /// Parts run `program gateway --state STATE`, `program engine NAME --state STATE` and so on.
    pub fn of(program: &Path, state: &Path) -> Self {
        Self { program: program.to_owned(), state: state.to_owned(), environment: Vec::new() }
    }

    /// Parts also get this environment variable.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn arguments(part: &Part) -> Vec<&str> {
        match part {
            Part::Gateway => vec!["gateway"],
            Part::Engine(name) => vec!["engine", name.as_str()],
            Part::Power => vec!["power", "watch"],
            Part::Wan => vec!["wan"],
            Part::Spare => vec!["spare", "serve"],
            Part::Health => vec!["health", "watch"],
        }
    }
}

impl Parts for Children {
    type Process = ChildProcess;

    async fn start(&self, part: &Part) -> Result<ChildProcess, PartsError> {
        let mut child = Command::new(&self.program)
            .args(Self::arguments(part))
            .arg("--state")
            .arg(&self.state)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env(lifeline::MARK, "1")
            // An init system that started us hears from us alone how we are.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_PID")
            .env_remove("WATCHDOG_USEC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C at the terminal is for the supervisor, which then ends its parts in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| PartsError::Start {
                part: part.clone(),
                program: self.program.clone(),
                source,
            })?;
        let last_words = Arc::new(Mutex::new(None));
        let repeat = |pipe| tokio::spawn(repeat(part.to_string(), pipe, last_words.clone()));
        let pipes: [Box<dyn AsyncRead + Send + Unpin>; 2] = [
            Box::new(child.stdout.take().expect("stdout was asked to be a pipe")),
            Box::new(child.stderr.take().expect("stderr was asked to be a pipe")),
        ];
        // Taken out of `child`, because waiting for a child closes its standard input first.
        let lifeline = child.stdin.take().expect("stdin was asked to be a pipe");
        Ok(ChildProcess {
            repeaters: pipes.map(repeat).into(),
            child,
            last_words,
            _lifeline: lifeline,
        })
    }
}

/// A part that runs as a child process.
pub struct ChildProcess {
    // Dropping it kills the process.
    child: Child,
    // Dropping it makes the process kill itself.
    _lifeline: ChildStdin,
    repeaters: Vec<JoinHandle<()>>,
    last_words: Arc<Mutex<Option<String>>>,
}

impl ChildProcess {
    /// `None` once the process has been waited for: its number may be somebody else's by now.
    fn running(&self) -> Option<Pid> {
        self.child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?))
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.running() {
            // It may be dying at this moment; then there is nothing left to tell it.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Process for ChildProcess {
    fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    async fn ended(&mut self) -> Ended {
        let status = match self.child.wait().await {
            Ok(status) => describe(status),
            Err(error) => format!("could not be waited for: {error}"),
        };
        // A process that it left behind may hold the pipes open; its own words are there already.
        // Each is taken out before it is waited for: one that is done must not be asked again by the
        // next call, if this one is dropped on the way.
        while let Some(repeater) = self.repeaters.pop() {
            let _ = tokio::time::timeout(Duration::from_millis(200), repeater).await;
        }
        let last_words = self.last_words.lock().expect("no one panics holding it").clone();
        Ended { status, last_words }
    }

    fn drain(&self) {
        self.signal(Signal::TERM);
    }

    fn hurry(&self) {
        self.signal(Signal::TERM);
    }

    fn kill(&self) {
        if let Some(pid) = self.running() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Passes on what a part says, line by line, and remembers the last of it.
async fn repeat(
    part: String,
    pipe: Box<dyn AsyncRead + Send + Unpin>,
    last_words: Arc<Mutex<Option<String>>>,
) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut pipe).take(LONGEST_LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let said = printable(&line);
        if said.is_empty() {
            continue;
        }
        // Whoever read our standard error may be gone; the box goes on without them.
        let _ = writeln!(std::io::stderr(), "{part} | {said}");
        if is_worth_repeating(&said) {
            // A program's last line is what it failed of, as it would say it to a person.
            let words = said.strip_prefix("error: ").unwrap_or(&said);
            let words = words.chars().take(LONGEST_WORDS).collect();
            *last_words.lock().expect("no one panics holding it") = Some(words);
        }
    }
}

/// A terminal must not obey what a part prints.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The line after a panic's own line tells how to get a backtrace, not what happened.
fn is_worth_repeating(said: &str) -> bool {
    !said.starts_with("note: run with `RUST_BACKTRACE")
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    exit_words(status.code(), status.signal())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(state: &Path, text: &str) -> Children {
        use std::os::unix::fs::PermissionsExt;
        let program = state.join("part.sh");
        std::fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Children::of(&program, state)
    }

    #[tokio::test]
    async fn a_part_that_ends_is_told_with_its_status_and_its_last_words() {
        let state = tempfile::tempdir().unwrap();
        let text = "echo begin; printf 'error: no weights\\033[2J here\\n' >&2; echo 'note: run with `RUST_BACKTRACE=1`' >&2; exit 3";
        let parts = script(state.path(), text);
        let ended = parts.start(&Part::Gateway).await.unwrap().ended().await;
        assert_eq!(ended.status, "exit status 3");
        assert_eq!(ended.last_words.as_deref(), Some("no weights [2J here"));
    }

    #[tokio::test]
    async fn waiting_for_an_end_may_be_broken_off_and_taken_up_again_at_any_moment() {
        let state = tempfile::tempdir().unwrap();
        // What it leaves behind holds one of the pipes open.
        for pipe in ["sleep 2 >/dev/null & exit 5", "sleep 2 2>/dev/null & exit 5"] {
            let parts = script(state.path(), pipe);
            let mut process = parts.start(&Part::Gateway).await.unwrap();
            let ended = loop {
                let slice = Duration::from_millis(40);
                if let Ok(ended) = tokio::time::timeout(slice, process.ended()).await {
                    break ended;
                }
            };
            assert_eq!(ended.status, "exit status 5");
        }
    }

    #[tokio::test]
    async fn waiting_for_a_part_keeps_its_lifeline_and_dropping_it_cuts_it() {
        let state = tempfile::tempdir().unwrap();
        // `read` returns when standard input closes.
        let parts = script(state.path(), "read line; echo cut >&2; exit 4");
        let mut process = parts.start(&Part::Gateway).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(300), process.ended()).await;
        assert!(early.is_err(), "the lifeline was cut while waiting: {early:?}");
        drop(process._lifeline);
        let ended = process.child.wait().await.unwrap();
        assert_eq!(ended.code(), Some(4));
    }

    #[tokio::test]
    async fn killing_a_part_also_kills_what_it_started() {
        let state = tempfile::tempdir().unwrap();
        let parts = script(state.path(), "sleep 600 & echo $! > \"$3/pid\"; wait");
        let mut process = parts.start(&Part::Gateway).await.unwrap();
        let path = state.path().join("pid");
        let pid = loop {
            match std::fs::read_to_string(&path).ok().and_then(|t| t.trim().parse().ok()) {
                Some(pid) => break Pid::from_raw(pid).unwrap(),
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        process.kill();
        assert!(process.ended().await.status.starts_with("signal 9"));
        for _ in 0..100 {
            let gone = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
                Err(_) => true,
                // Nobody may have waited for it yet in a container without an init.
                Ok(stat) => stat.contains(") Z "),
            };
            if gone {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the grandchild lives on");
    }
}
