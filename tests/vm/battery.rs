//! The mains goes away and does not come back: the machine, which hears its UPS through a serial cable, is off before the battery is
//! empty, and the UPS cuts its outlet after it.
//!
//! The cable ends in a USB plug. On a serial line of the board's own the firmware talks too: it takes for keys pressed in its
//! boot menu what a UPS gives back of lines that it does not understand.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use polder_stories::scaled;

use crate::claimed::{MODEL, claimed};
use crate::machine::PATIENCE;

/// The cable, with a converter of FTDI's at its end.
const CABLE: &[&str] = &[
    "-chardev",
    "socket,id=ups,path=/mnt/vm/ups.sock,server=on,wait=off",
    "-device",
    "usb-serial,chardev=ups",
];

/// A UPS that speaks Megatec's protocol, in a process of its own.
struct Ups {
    ups: Child,
    told: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Ups {
    /// At the other end of a cable that a machine just got.
    fn at(cable: &Path) -> Self {
        let begun = Instant::now();
        while !cable.exists() {
            assert!(begun.elapsed() < PATIENCE, "the machine has no such cable");
            std::thread::sleep(Duration::from_millis(100));
        }
        let mut python = Command::new("python3");
        python.args(["-c", include_str!("../../appliance/power/tests/nut/megatec.py")]).arg(cable);
        let mut ups = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let told = Arc::<Mutex<Vec<_>>>::default();
        let (out, tell) = (BufReader::new(ups.stdout.take().unwrap()), told.clone());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                tell.lock().unwrap().push((Instant::now(), line));
            }
        });
        Self { ups, told }
    }

    fn is(&mut self, how: &str) {
        writeln!(self.ups.stdin.as_mut().unwrap(), "{how}").unwrap();
    }

    /// When it was told to cut its outlet.
    fn cut(&self) -> Option<Instant> {
        let told = self.told.lock().unwrap();
        told.iter().find(|(_, what)| what.starts_with("cut S")).map(|(when, _)| *when)
    }
}

impl Drop for Ups {
    fn drop(&mut self) {
        let _ = self.ups.kill();
        let _ = self.ups.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: `make test-vm-all` runs it; `indoors.rs` sees the same without a machine"]
async fn vm_a_battery_that_runs_low_ends_in_a_machine_that_is_off_with_everything_kept() {
    let (disks, owned) = claimed().await;
    let mut machine = disks.switch_on_with(CABLE);
    let mut ups = Ups::at(&disks.place("ups.sock"));
    machine.says("Everything runs.");
    let home = format!("https://localhost:{}", machine.port);
    let browser = owned.browser(&machine).await;
    browser.visit(&format!("{home}/power")).await;
    browser.select("[name='attached']", "into this machine, by a serial cable").await;
    browser.fill("line", "ttyUSB0").await;
    browser.press("Listen to it").await;
    browser.hear("Listen to the UPS").await;
    browser.hear("Done.").await;
    browser.visit(&format!("{home}/power")).await;
    browser.hear("on mains").await;
    browser.hear("100 %").await;
    browser.picture("vm-power").await;

    // What was acknowledged the moment before is what may be lost.
    browser.visit(&format!("{home}/")).await;
    browser.press("Make a new key").await;
    browser.fill("label", "before the cut").await;
    browser.press("Make the key").await;
    browser.see(".copyable code").await;
    let key = browser.read(".copyable code").await;
    browser.close().await;
    let cut = Instant::now();
    ups.is("mains 0\nvolts 21.0");
    machine.goes_off_within(scaled(PATIENCE));
    let off = Instant::now();
    let told = ups.cut().expect("the UPS was not told to cut its outlet");
    let serial = machine.serial();
    assert!(serial.contains("polder: the UPS cuts its outlet"), "{serial}");
    println!(
        "battery: outlet cut {:.1} s after the mains went away, machine off after {:.1} s",
        (told - cut).as_secs_f64(),
        (off - cut).as_secs_f64()
    );

    // The mains is back, and with it the machine; the battery charges first.
    let mut machine = disks.switch_on_with(CABLE);
    let mut ups = Ups::at(&disks.place("ups.sock"));
    ups.is("volts 22.4");
    machine.says("https://");
    let home = format!("https://localhost:{}", machine.port);
    let browser = owned.browser(&machine).await;
    browser.visit(&format!("{home}/power")).await;
    browser.hear("Engines start when the battery has 40 %; it has 3").await;
    browser.close().await;
    assert_eq!(machine.said("Everything runs."), 0, "{}", machine.serial());
    ups.is("volts 26.0");
    machine.says("Everything runs.");
    let answer =
        owned.client(&machine).with_key(Some(&key)).chat(MODEL, "What is the capital of France?");
    assert!(!answer.words().is_empty(), "a key that was shown is gone: {answer:?}");
    machine.power_button();
    machine.goes_off();
    assert!(ups.cut().is_none(), "the outlet is cut though the mains is there");
}
