//! NUT with a UPS that is a file, on ports and in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use polder_power::upsd::Upsd;
use polder_site::UpsAddress;
use tempfile::TempDir;

/// Debian's programs; the wrappers beside them want a system-wide configuration.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = Path::new("/lib/nut").join(name);
    assert!(path.exists(), "{} is missing: apt-get install nut-server nut-client", path.display());
    path
}

pub(crate) struct Nut {
    folder: TempDir,
    port: u16,
    driver: Option<Running>,
    upsd: Option<Running>,
}

/// A process of ours.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Nut {
    /// With a UPS `box` that is on mains and full.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("ups.conf", "pollinterval = 1\n[box]\n driver = dummy-ups\n port = box.dev\n");
        write(
            "box.dev",
            "ups.status: OL\nbattery.charge: 100\nbattery.runtime: 1800\nups.load: 20\nups.mfr: Eaton\nups.model: 5E 650i\nups.test.result: No test initiated\nbattery.date: not set\nbattery.mfr.date: CPS\nups.mfr.date: not set\n",
        );
        write("upsd.conf", &format!("LISTEN 127.0.0.1 {port}\nMAXAGE 3\n"));
        write(
            "upsd.users",
            "[polder]\n password = \"a \\\"word\\\"\"\n upsmon primary\n actions = SET FSD\n instcmds = ALL\n\
             [other]\n password = secret\n upsmon secondary\n",
        );
        write("password", "a \"word\"\n");
        std::fs::create_dir(folder.path().join("other")).unwrap();
        write("other/password", "secret\n");
        let mut nut = Self { folder, port, driver: None, upsd: None };
        nut.start_upsd().await;
        nut
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn address(&self) -> UpsAddress {
        format!("box@127.0.0.1:{}", self.port).parse().unwrap()
    }

    fn run(&self, name: &str, arguments: &[&str]) -> Running {
        let log = std::fs::File::create(self.folder().join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(program(name));
        for variable in ["NUT_CONFPATH", "NUT_STATEPATH", "NUT_ALTPIDPATH"] {
            command.env(variable, self.folder());
        }
        let error = log.try_clone().unwrap();
        command.args(arguments).stdin(Stdio::null()).stdout(log).stderr(error);
        Running(command.spawn().unwrap())
    }

    /// With its driver, which does not outlive a upsd that was killed.
    pub(crate) async fn start_upsd(&mut self) {
        let socket = self.folder().join("dummy-ups-box");
        (self.upsd, self.driver) = (None, None);
        let _ = std::fs::remove_file(&socket);
        self.driver = Some(self.run("dummy-ups", &["-a", "box", "-u", "root", "-D"]));
        until("the driver's socket", || async { socket.exists() }).await;
        self.upsd = Some(self.run("upsd", &["-D", "-u", "root"]));
        let address = self.address();
        until("upsd", || async {
            let Ok(mut upsd) = Upsd::connect(&address).await else { return false };
            // All of the file was read, so that it does not come over what is said later.
            upsd.reading().await.is_ok_and(|said| said.charge.is_some() && said.load.is_some())
        })
        .await;
    }

    pub(crate) fn stop_upsd(&mut self) {
        self.upsd = None;
    }

    /// upsd then knows its name and nothing more.
    pub(crate) fn stop_only_the_driver(&mut self) {
        self.driver = None;
    }

    pub(crate) fn stop_driver(&mut self) {
        (self.upsd, self.driver) = (None, None);
    }

    async fn upsd(&self) -> Upsd {
        let mut upsd = Upsd::connect(&self.address()).await.unwrap();
        upsd.sign_in("polder", "a \"word\"").await.unwrap();
        upsd
    }

    /// A driver that is started says this.
    pub(crate) fn write(&self, variables: &[(&str, &str)]) {
        let file = self.folder().join("box.dev");
        let text = std::fs::read_to_string(&file).unwrap();
        let lines = text.lines().map(|line| {
            let name = line.split(':').next().unwrap_or_default();
            let said = variables.iter().find(|(said, _)| *said == name);
            said.map_or(line.to_owned(), |(name, value)| format!("{name}: {value}"))
        });
        let text: Vec<String> = lines.collect();
        std::fs::write(file, text.join("\n") + "\n").unwrap();
    }

    /// From now on the UPS says this.
    pub(crate) async fn say(&self, variables: &[(&str, &str)]) {
        // In its file too, which the driver may read once more.
        self.write(variables);
        let mut upsd = self.upsd().await;
        let begun = Instant::now();
        for (name, value) in variables {
            // The driver tells upsd one after the other what may be set.
            while let Err(error) = upsd.set(name, value).await {
                assert!(begun.elapsed() < Duration::from_secs(10), "{name}: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    pub(crate) async fn is_forced(&self) -> bool {
        self.upsd().await.reading().await.unwrap().flags.forced
    }

    pub(crate) async fn until_logins(&self, wanted: u32) {
        let mut upsd = self.upsd().await;
        let begun = Instant::now();
        while upsd.logins().await.unwrap() != wanted {
            assert!(begun.elapsed() < Duration::from_secs(20), "nobody logged in");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// NUT's own upsmon on another machine, which stops by this command and a file's name.
    pub(crate) fn upsmon(&self, stop: &str) -> Other {
        let done = self.folder().join("other-done");
        let text = format!(
            "MONITOR box@127.0.0.1:{} 1 other secret secondary\nSHUTDOWNCMD \"{stop} {}\"\nRUN_AS_USER root\nPOLLFREQ 1\nPOLLFREQALERT 1\nFINALDELAY 0\nMINSUPPLIES 1\n",
            self.port,
            done.display()
        );
        std::fs::write(self.folder().join("upsmon.conf"), text).unwrap();
        Other { _process: self.run("upsmon", &["-D", "-p"]), done }
    }
}

pub(crate) struct Other {
    _process: Running,
    done: PathBuf,
}

impl Other {
    /// When it had stopped.
    pub(crate) fn done_at(&self) -> Option<Instant> {
        let age = self.done.metadata().ok()?.modified().ok()?.elapsed().ok()?;
        Instant::now().checked_sub(age)
    }
}

pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
