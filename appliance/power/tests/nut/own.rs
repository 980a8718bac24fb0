//! A UPS of the box's own: NUT as the box tells it to be, with a driver of NUT's for a UPS that is a program at the other end of a
//! serial cable.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use polder_control::PowerPhase;
use polder_power::battery_test::Record;
use polder_power::nut::{CUT, Driver, ITSELF, Passwords, files};
use polder_power::policy::Rules;
use polder_power::upsd::Upsd;
use polder_power::watch::Watcher;
use polder_site::{PowerPlan, UpsAddress, UpsLine};
use tempfile::TempDir;

use super::toy::{Running, program, until};
use super::{Toy, quick, seconds};

/// A UPS at the end of a cable.
struct Megatec {
    ups: Running,
    said: Receiver<String>,
}

impl Megatec {
    /// With the name of the cable's end.
    fn start() -> (Self, String) {
        let mut python = Command::new("python3");
        python.args(["-c", include_str!("megatec.py")]);
        let mut ups = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (tell, said) = channel();
        let out = BufReader::new(ups.stdout.take().unwrap());
        std::thread::spawn(move || {
            out.lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        let cable = said.recv_timeout(seconds(60)).unwrap();
        (Self { ups: Running(ups), said }, cable)
    }

    fn is(&mut self, how: &str) {
        writeln!(self.ups.0.stdin.as_mut().unwrap(), "{how}").unwrap();
    }

    /// Waits until it was told to do this.
    async fn does(&self, what: &str) {
        until(what, || async { self.said.try_iter().any(|said| said.starts_with(what)) }).await;
    }
}

/// NUT with what the box writes for it, but for the port and the cable's name.
struct OwnNut {
    folder: TempDir,
    address: UpsAddress,
    plan: PowerPlan,
    _programs: [Running; 2],
}

impl OwnNut {
    async fn start(cable: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let line: UpsLine = "serial:ttyS1".parse().unwrap();
        let mut plan = PowerPlan::attached(line.clone());
        let passwords =
            Passwords { own: "0123456789abcdef", others: Some("a \"word\" for \\ others") };
        for file in files(&plan, &line, Driver::of(&line, &[]), &passwords) {
            let text = file.text.replace("/dev/ttyS1", cable).replace("3493", &port.to_string());
            let path = folder.path().join(file.name);
            std::fs::write(
                &path,
                text.replace("pollinterval = 2", "pollinterval = 1")
                    .replace("pollfreq = 10", "pollfreq = 2"),
            )
            .unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o640)).unwrap();
        }
        let run = |name: &str, arguments: &[&str]| {
            let log = folder.path().join(format!("{name}.log"));
            let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
            let mut command = Command::new(program(name));
            command.args(arguments).args(["-u", "root", "-D"]).envs(variables(folder.path()));
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            Running(command.spawn().unwrap())
        };
        let programs: [(&str, &[&str]); 2] = [("nutdrv_qx", &["-a", "ups"]), ("upsd", &[])];
        let mut running = programs.map(|(name, arguments)| run(name, arguments));
        let address: UpsAddress = format!("ups@127.0.0.1:{port}").parse().unwrap();
        let heard = async || {
            let Ok(mut upsd) = Upsd::connect(&address).await else { return false };
            upsd.reading().await.is_ok_and(|said| said.charge.is_some())
        };
        let begun = Instant::now();
        while !heard().await {
            // As the units on the image are: what ends is begun again.
            for ((name, arguments), running) in programs.iter().zip(&mut running) {
                if running.0.try_wait().unwrap().is_some() {
                    *running = run(name, arguments);
                }
            }
            let log = |name| std::fs::read_to_string(folder.path().join(name)).unwrap();
            let logs = || log("nutdrv_qx.log") + &log("upsd.log");
            assert!(begun.elapsed() < seconds(60), "the UPS is not heard: {}", logs());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        plan.ups = address.clone();
        Self { folder, address, plan, _programs: running }
    }

    /// A watcher that runs.
    fn watched(&self, rules: Rules) -> Toy {
        let house = Toy::default();
        let record = self.folder.path().join("record");
        let watcher = Watcher::new(self.plan.clone(), record, house.clone());
        let watcher = watcher.with_own(self.folder.path().to_owned()).with_rules(rules);
        tokio::spawn(watcher.with_pace(Duration::from_millis(200)).run());
        house
    }
}

fn variables(folder: &Path) -> [(&'static str, &Path); 3] {
    ["NUT_CONFPATH", "NUT_STATEPATH", "NUT_ALTPIDPATH"].map(|name| (name, folder))
}

#[tokio::test]
async fn a_ups_of_ones_own_is_heard_and_cuts_its_outlet_when_all_has_ended() {
    let (mut ups, cable) = Megatec::start();
    let nut = OwnNut::start(&cable).await;
    let house = nut.watched(quick());
    house
        .until("a figure", |told| told.last.charge == Some(100) && told.last.on_mains == Some(true))
        .await;
    // Others may listen and no more.
    let mut other = Upsd::connect(&nut.address).await.unwrap();
    other.sign_in("polder", "a \"word\" for \\ others").await.unwrap();
    other.log_in().await.unwrap();
    assert!(other.force().await.is_err(), "another machine said that the power goes");
    other.log_out().await.unwrap();

    ups.is("mains 0");
    house.reaches(PowerPhase::OnBattery).await;
    ups.is("volts 21.0");
    house.reaches(PowerPhase::Draining).await;
    assert!(!nut.folder.path().join(CUT).exists(), "the outlet is cut under a box that runs");
    house.drained();
    house.off().await;
    assert!(nut.folder.path().join(CUT).exists());
    let mut upsd = Upsd::connect(&nut.address).await.unwrap();
    assert!(upsd.reading().await.unwrap().flags.forced);

    // The image's hook, as systemd runs it last of all: with every program of NUT's ended.
    let folder = nut.folder;
    drop(nut._programs);
    let place = folder.path().to_str().unwrap();
    let hook = include_str!("../../../../image/tree/usr/lib/systemd/system-shutdown/polder-ups");
    let log = folder.path().join("kmsg");
    let hook = hook.replace("/run/polder-ups", place).replace("/run/polder-nut", place);
    let hook = hook.replace("> /dev/kmsg", &format!(">> {}", log.display()));
    let hook = hook.replace("/usr/sbin/upsdrvctl", "upsdrvctl");
    for how in ["reboot", "poweroff"] {
        let path = format!("{}:/sbin:/usr/sbin", std::env::var("PATH").unwrap());
        let done = Command::new("sh").args(["-c", &hook, "hook", how]).env("PATH", path).status();
        assert!(done.unwrap().success());
        assert_eq!(log.exists(), how == "poweroff");
    }
    ups.does("cut S").await;
    let said = std::fs::read_to_string(log).unwrap();
    assert!(
        said.contains("told to cut its outlet\n") && said.contains("the UPS cuts its outlet\n"),
        "{said}"
    );
}

#[tokio::test]
async fn a_battery_that_is_due_is_tested_by_the_ups_itself_and_that_is_written_down() {
    let (ups, cable) = Megatec::start();
    let nut = OwnNut::start(&cable).await;
    let house = nut.watched(Rules { settled: Duration::ZERO, ..quick() });
    ups.does("test T").await;
    let record = Record::in_folder(&nut.folder.path().join("record"));
    until("the record", || async { record.last().is_some() }).await;
    let last = record.last().unwrap();
    assert!(!last.result.starts_with("not tested"), "{last}");
    house.until("the result", |told| told.last.last_test.is_some()).await;
    house.until("when", |told| told.last.tested == Some(last.at)).await;
    // A test runs the load off the battery, and is no power cut.
    assert_eq!(house.phases(), [PowerPhase::Mains]);
}

#[tokio::test]
async fn what_only_the_box_itself_may_say_nobody_else_says() {
    let (_ups, cable) = Megatec::start();
    let nut = OwnNut::start(&cable).await;
    for (user, password) in
        [(ITSELF, "a \"word\" for \\ others"), ("polder", "0123456789abcdef"), (ITSELF, "")]
    {
        let mut upsd = Upsd::connect(&nut.address).await.unwrap();
        let _ = upsd.sign_in(user, password).await;
        assert!(upsd.force().await.is_err(), "{user} {password:?}");
        assert!(upsd.command("shutdown.return").await.is_err(), "{user} {password:?}");
    }
}
