//! The watcher against NUT itself: upsd, the driver of a toy UPS, and upsmon on another machine.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall stop")]

mod own;
mod toy;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use polder_control::{PowerPhase, Supply};
use polder_power::around;
use polder_power::policy::Rules;
use polder_power::watch::{House, Watcher};
use polder_site::{PowerPlan, UpsRole};
use toy::{Nut, until};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What the watcher logs is shown with the test that fails.
struct Shown;

impl log::Log for Shown {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        println!("{} {}", record.level(), record.args());
    }
    fn flush(&self) {}
}

/// The usual rules, in a hurry.
fn quick() -> Rules {
    Rules {
        save_after: seconds(1),
        low_charge: 30,
        start_charge: 40,
        drain: seconds(8),
        others: seconds(8),
        others_halt: seconds(3),
        halt: seconds(2),
        margin: seconds(5),
        silence: seconds(2),
        blind: seconds(5),
        doubt: seconds(2),
        steady: seconds(2),
        settled: seconds(24 * 3600),
        calm: seconds(1),
    }
}

/// What a house was told, and what it says.
#[derive(Default)]
struct Told {
    phases: Vec<PowerPhase>,
    last: Supply,
    drained: bool,
    off: Option<Instant>,
}

#[derive(Clone, Default)]
struct Toy(Arc<Mutex<Told>>);

impl House for Toy {
    async fn tell(&mut self, supply: &Supply) -> Result<bool, String> {
        let mut told = self.0.lock().unwrap();
        if told.phases.last() != Some(&supply.phase) {
            told.phases.push(supply.phase);
        }
        told.last = supply.clone();
        Ok(told.drained)
    }
    async fn power_off(&mut self) -> Result<(), String> {
        self.0.lock().unwrap().off.get_or_insert(Instant::now());
        Ok(())
    }
    async fn phase(&mut self) -> Option<PowerPhase> {
        None
    }
}

/// A watcher of this UPS that runs, and the house that it tells.
fn watched(nut: &Nut, role: UpsRole) -> (Toy, tokio::task::JoinHandle<()>) {
    let _ = log::set_logger(&Shown).map(|()| log::set_max_level(log::LevelFilter::Info));
    let mut plan = PowerPlan::of(nut.address());
    plan.role = role;
    let (user, folder) = match role {
        UpsRole::Primary => ("polder", nut.folder().to_owned()),
        UpsRole::Secondary => ("other", nut.folder().join("other")),
    };
    plan.user = user.to_owned();
    let house = Toy::default();
    let watcher = Watcher::new(plan, folder, house.clone());
    let others = if role == UpsRole::Primary { quick().others } else { Duration::ZERO };
    (
        house,
        tokio::spawn(
            watcher
                .with_rules(Rules { others, ..quick() })
                .with_pace(Duration::from_millis(200))
                .run(),
        ),
    )
}

impl Toy {
    async fn until(&self, what: &str, holds: impl Fn(&Told) -> bool) -> Duration {
        let begun = Instant::now();
        while !holds(&self.0.lock().unwrap()) {
            let told = self.0.lock().unwrap();
            assert!(
                begun.elapsed() < seconds(30),
                "waited for {what}: {:?} {:?}",
                told.phases,
                told.last
            );
            drop(told);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        begun.elapsed()
    }
    async fn reaches(&self, phase: PowerPhase) -> Duration {
        self.until(&format!("{phase:?}"), |told| told.phases.last() == Some(&phase)).await
    }
    fn phases(&self) -> Vec<PowerPhase> {
        self.0.lock().unwrap().phases.clone()
    }
    fn drained(&self) {
        self.0.lock().unwrap().drained = true;
    }
    async fn off(&self) -> Instant {
        self.until("the end", |told| told.off.is_some()).await;
        self.0.lock().unwrap().off.unwrap()
    }
    fn is_off(&self) -> bool {
        self.0.lock().unwrap().off.is_some()
    }
    fn words(&self) -> String {
        self.0.lock().unwrap().last.words.clone()
    }
}

#[tokio::test]
async fn a_short_cut_pauses_and_saves_and_leaves_no_trace() {
    let nut = Nut::start().await;
    let (house, _watch) = watched(&nut, UpsRole::Primary);
    house.until("a figure", |told| told.last.charge == Some(100)).await;
    assert!(house.0.lock().unwrap().last.may_start);
    nut.say(&[("ups.status", "OB DISCHRG")]).await;
    house.reaches(PowerPhase::OnBattery).await;
    nut.say(&[("ups.status", "OL CHRG")]).await;
    house.reaches(PowerPhase::Mains).await;
    nut.say(&[("ups.status", "OB DISCHRG"), ("battery.charge", "80")]).await;
    house.reaches(PowerPhase::Saving).await;
    let words = house.words();
    assert!(words.contains("At 30 %") && words.contains("no new long answers"), "{words}");
    nut.say(&[("ups.status", "OL CHRG")]).await;
    house.reaches(PowerPhase::Mains).await;
    assert!(!nut.is_forced().await, "nobody else is to be told of a short cut");
}

#[tokio::test]
async fn an_empty_battery_ends_in_a_machine_that_is_off_and_a_latch_that_stays() {
    let nut = Nut::start().await;
    let (house, _watch) = watched(&nut, UpsRole::Primary);
    house.reaches(PowerPhase::Mains).await;
    nut.say(&[("battery.charge", "20"), ("battery.runtime", "100"), ("ups.status", "OB LB")]).await;
    house.reaches(PowerPhase::Draining).await;
    // The mains is back while answers end, but not for long enough.
    nut.say(&[("ups.status", "OL")]).await;
    house.until("hope", |told| told.last.words.contains("is back")).await;
    nut.say(&[("ups.status", "OB LB")]).await;
    house.until("no hope", |told| told.last.words.contains("The box stops")).await;
    assert!(!nut.is_forced().await);
    house.drained();
    house.off().await;
    assert!(nut.is_forced().await);
    // Back too late: nothing is undone.
    nut.say(&[("ups.status", "OL CHRG"), ("battery.charge", "100")]).await;
    tokio::time::sleep(seconds(1)).await;
    assert_eq!(house.phases().last(), Some(&PowerPhase::PowerOff));
    assert!(nut.is_forced().await);
}

#[tokio::test]
async fn mains_that_stays_while_answers_end_starts_everything_again() {
    let nut = Nut::start().await;
    let (house, _watch) = watched(&nut, UpsRole::Primary);
    house.reaches(PowerPhase::Mains).await;
    nut.say(&[("battery.charge", "29"), ("ups.status", "OB")]).await;
    house.reaches(PowerPhase::Draining).await;
    nut.say(&[("ups.status", "OL CHRG")]).await;
    house.until("hope", |told| told.last.words.contains("is back")).await;
    house.drained();
    // Drained or not: as long as the mains is there, nobody is told that it goes.
    house.reaches(PowerPhase::Mains).await;
    assert!(!house.is_off() && !nut.is_forced().await);
    let told = house.0.lock().unwrap().last.clone();
    assert!(
        !told.may_start
            && told.words.contains("Engines start when the battery has 40 %; it has 29 %"),
        "{told:?}"
    );
    nut.say(&[("battery.charge", "40")]).await;
    house.until("engines", |told| told.last.may_start).await;
}

#[tokio::test]
async fn a_upsd_that_dies_on_battery_counts_as_an_empty_battery_and_on_mains_does_not() {
    let mut nut = Nut::start().await;
    let (house, _watch) = watched(&nut, UpsRole::Primary);
    house.reaches(PowerPhase::Mains).await;
    nut.stop_upsd();
    house.until("silence", |told| told.last.silent.is_some()).await;
    assert_eq!(house.phases(), [PowerPhase::Mains]);
    assert!(house.words().contains("would go unnoticed"), "{}", house.words());
    nut.start_upsd().await;
    house.until("a word", |told| told.last.silent.is_none()).await;
    nut.say(&[("ups.status", "OB")]).await;
    house.reaches(PowerPhase::OnBattery).await;
    nut.stop_upsd();
    house.reaches(PowerPhase::Draining).await;
    assert!(house.words().contains("not heard any more"), "{}", house.words());
    house.drained();
    // Nobody can be told any more; they had their time.
    house.off().await;
}

#[tokio::test]
async fn a_driver_that_dies_on_battery_is_a_silence_too() {
    let mut nut = Nut::start().await;
    let (house, _watch) = watched(&nut, UpsRole::Primary);
    nut.say(&[("ups.status", "OB")]).await;
    house.reaches(PowerPhase::OnBattery).await;
    nut.stop_driver();
    house.reaches(PowerPhase::Draining).await;
    assert!(house.words().contains("not heard any more"), "{}", house.words());
}

#[tokio::test]
async fn another_machine_that_still_stops_is_waited_for_after_it_has_left() {
    let nut = Nut::start().await;
    let other = nut.upsmon("sleep 2; touch");
    let (house, _watch) = watched(&nut, UpsRole::Primary);
    nut.until_logins(1).await;
    house.drained();
    nut.say(&[("battery.charge", "10"), ("ups.status", "OB LB")]).await;
    house.reaches(PowerPhase::TellSecondaries).await;
    let off = house.off().await;
    let done = other.done_at().expect("the other machine was done before this one went");
    assert!(done <= off, "done {:?} after this one", done - off);
}

#[tokio::test]
async fn a_secondary_is_told_ends_its_parts_first_and_leaves_only_then() {
    let nut = Nut::start().await;
    let (first, _watch) = watched(&nut, UpsRole::Primary);
    let (second, _watch) = watched(&nut, UpsRole::Secondary);
    nut.until_logins(1).await;
    first.drained();
    nut.say(&[("battery.charge", "10"), ("ups.status", "OB LB")]).await;
    first.reaches(PowerPhase::TellSecondaries).await;
    second.reaches(PowerPhase::Draining).await;
    // It is still at it, and counted.
    tokio::time::sleep(seconds(1)).await;
    assert!(!first.is_off() && !second.is_off());
    second.drained();
    let (second, first) = (second.off().await, first.off().await);
    assert!(first >= second + seconds(2), "the power went before the other machine was down");
}

#[tokio::test]
async fn what_a_ups_says_of_its_battery_and_its_tests_is_heard_and_silence_from_the_start_too() {
    let mut nut = Nut::start().await;
    let (house, _watch) = watched(&nut, UpsRole::Primary);
    house.until("a figure", |told| told.last.charge == Some(100)).await;
    house.until("nothing", |told| told.last.test_failed.is_none()).await;
    assert_eq!(house.0.lock().unwrap().last.battery_since, None, "CPS is no day");
    // When the UPS was made says nothing of its battery.
    nut.write(&[("ups.test.result", "Done and error"), ("ups.mfr.date", "2021/05/23")]);
    nut.start_upsd().await;
    house
        .until("the day of the UPS", |told| {
            (told.last.ups_made, told.last.battery_since) == (Some(1_621_728_000), None)
        })
        .await;
    nut.write(&[("ups.test.result", "Done and error"), ("battery.mfr.date", "2021/05/24")]);
    nut.start_upsd().await;
    house
        .until("a failed test", |told| {
            told.last.test_failed.as_deref() == Some("Done and error")
                && told.last.battery_since == Some(1_621_814_400)
        })
        .await;
    nut.write(&[("ups.test.result", "Done and passed")]);
    nut.start_upsd().await;
    house.until("a test that passed", |told| told.last.test_failed.is_none()).await;
    // A watch that begins while nobody answers says that it hears nothing.
    nut.stop_upsd();
    let (house, _watch) = watched(&nut, UpsRole::Primary);
    house.until("silence", |told| told.last.silent.is_some_and(|seconds| seconds >= 2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ups_that_nut_listens_to_is_found_by_its_machines_address_alone() {
    let mut nut = Nut::start().await;
    let ups = nut.address();
    let place = format!("127.0.0.1:{}", ups.port());
    let found = around::at(&place).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].address, ups);
    let words = found[0].words();
    assert!(words.starts_with("An Eaton 5E 650i is there"), "{words}");
    assert!(words.contains("NUT on this machine") && words.contains("100 % and holds 30 minutes"));
    // Its driver is gone: it is named, and said to be silent.
    nut.stop_only_the_driver();
    until("silence", || async {
        around::at(&place).await.is_ok_and(|found| found[0].on_mains.is_none())
    })
    .await;
    nut.stop_upsd();
    let why = around::at(&place).await.unwrap_err().to_string();
    assert!(why.contains("is upsd running there?"), "{why}");
}

#[tokio::test]
async fn whoever_answers_and_is_no_upsd_is_said_so_and_not_waited_for_long() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let text = "HTTP/1.1 400 Bad Request\r\n".repeat(4000);
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, text.as_bytes()).await;
        }
    });
    let why = around::at(&place).await.unwrap_err().to_string();
    assert!(why.contains("no upsd") || why.contains("broke"), "{why}");
}
