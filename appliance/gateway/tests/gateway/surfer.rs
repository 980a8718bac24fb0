//! Somebody's browser, without its looks: curl, which keeps cookies, follows where it is sent, and fills forms in.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tempfile::TempDir;

pub(crate) struct Surfer(TempDir);

#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) status: u16,
    /// Where it ended up.
    pub(crate) url: String,
    pub(crate) body: String,
    /// All heads on the way.
    pub(crate) heads: String,
}

impl Surfer {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Follows until there is a page.
    pub(crate) fn get(&self, url: &str) -> Seen {
        self.curl(&["-L", "--max-redirs", "15", url])
    }

    /// Goes one step only.
    pub(crate) fn step(&self, url: &str) -> Seen {
        self.curl(&[url])
    }

    /// Sends a form of a page of the same site, and follows.
    pub(crate) fn post(&self, url: &str, fields: &[(&str, &str)]) -> Seen {
        let origin = url.split('/').take(3).collect::<Vec<_>>().join("/");
        let mut arguments = vec!["-L", "--max-redirs", "15", url];
        let origin = format!("Origin: {origin}");
        arguments.extend(["-H", &origin]);
        let fields: Vec<String> = fields.iter().map(|(n, v)| format!("{n}={v}")).collect();
        if fields.is_empty() {
            arguments.extend(["-d", ""]);
        }
        for field in &fields {
            arguments.extend(["--data-urlencode", field]);
        }
        self.curl(&arguments)
    }

    /// What a cookie is worth here, for whoever wants to steal it.
    pub(crate) fn jar(&self) -> String {
        std::fs::read_to_string(self.0.path().join("jar")).unwrap_or_default()
    }

    pub(crate) fn keep_jar(&self, jar: &str) {
        std::fs::write(self.0.path().join("jar"), jar).unwrap();
    }

    pub(crate) fn curl(&self, arguments: &[&str]) -> Seen {
        let at = |name: &str| self.0.path().join(name);
        let done = Command::new("curl")
            .args([
                "-sS",
                "--noproxy",
                "*",
                "--max-time",
                "60",
                "-w",
                "%{http_code} %{url_effective} %{redirect_url}",
            ])
            .arg("-b")
            .arg(at("jar"))
            .arg("-c")
            .arg(at("jar"))
            .arg("-o")
            .arg(at("body"))
            .arg("-D")
            .arg(at("heads"))
            .args(arguments)
            .output()
            .expect("curl is installed");
        assert!(
            done.status.success(),
            "curl {arguments:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        let said = String::from_utf8(done.stdout).unwrap();
        let mut words = said.split(' ');
        let status = words.next().unwrap().parse().unwrap();
        let url = words.next().unwrap_or_default().to_owned();
        let on = words.next().unwrap_or_default().to_owned();
        let read = |name| {
            String::from_utf8_lossy(&std::fs::read(at(name)).unwrap_or_default()).into_owned()
        };
        let url = if on.is_empty() { url } else { on };
        Seen { status, url, body: read("body"), heads: read("heads").to_lowercase() }
    }
}

impl Seen {
    /// Where the first form on the page goes.
    pub(crate) fn form(&self) -> String {
        let action = self.body.split("action=\"").nth(1).and_then(|rest| rest.split('"').next());
        match action {
            Some(action) if action.starts_with('/') => {
                let site = self.url.split('/').take(3).collect::<Vec<_>>().join("/");
                format!("{site}{action}")
            }
            Some(action) => action.to_owned(),
            None => self.url.clone(),
        }
    }
}

/// A program of somebody else's, ended with the test.
pub(crate) struct Program {
    child: Child,
    said: BufReader<ChildStdout>,
    told: ChildStdin,
}

impl Program {
    /// Starts it and waits until it says `ready`.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut program = Self::begin(command);
        let line = program.hear();
        assert_eq!(line, "ready", "{command:?}");
        program
    }

    pub(crate) fn begin(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}; make test installs it"));
        let said = BufReader::new(child.stdout.take().unwrap());
        let told = child.stdin.take().unwrap();
        Self { child, said, told }
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        writeln!(self.told, "{line}").unwrap();
        self.hear()
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        while self.said.read_line(&mut line).unwrap() > 0 {
            if !line.trim().is_empty() {
                return line.trim().to_owned();
            }
            line.clear();
        }
        panic!("a program ended without an answer: {:?}", self.child.try_wait());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where `make test` has put what is not Debian's.
pub(crate) fn tools(name: &str) -> String {
    let cache = std::env::var("CACHE").or_else(|_| {
        let base = std::env::var("XDG_CACHE_HOME");
        let base = base.or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cache")));
        base.map(|base| format!("{base}/polder"))
    });
    format!("{}/{name}", cache.expect("there is a home folder"))
}

/// A script of the tests.
pub(crate) fn script(name: &str) -> String {
    format!("{}/../../tests/oidc/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Nobody listens there, for a moment.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until somebody does.
pub(crate) fn listens(port: u16) {
    for _ in 0..1500 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("nothing listens on port {port}");
}
