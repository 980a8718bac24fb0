//! The part that watches the UPS: asks it, decides, and has it done.

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use polder_control::{PowerPhase, Supply};
use polder_site::{PowerPlan, UpsRole};

use crate::battery_age;
use crate::battery_test::{self, Known, Record, Test};
use crate::nut;
use crate::policy::{self, Done, Memory, Rules, Seen, Why};
use crate::upsd::{Upsd, UpsdError};
use crate::words::words;

/// Between two looks at the UPS, usually.
const LOOK: Duration = Duration::from_secs(1);
/// Between two tries to turn off a machine that would not.
const AGAIN: Duration = Duration::from_secs(10);
/// A machine whose UPS is to cut its power has at least this long, in seconds.
const CUT_AFTER: u32 = 90;
/// What a test of a battery may take until the UPS says how it went.
const TEST_TAKES: Duration = Duration::from_secs(120);

/// The box, to whom the watcher speaks for the UPS.
pub trait House: Send {
    /// How the power is; the box does what that asks for. True once all parts that answer people have ended.
    fn tell(&mut self, supply: &Supply) -> impl Future<Output = Result<bool, String>> + Send;
    /// Turns the machine off.
    fn power_off(&mut self) -> impl Future<Output = Result<(), String>> + Send;
    /// How far the box had gone before this watcher began; none where it does not know.
    fn phase(&mut self) -> impl Future<Output = Option<PowerPhase>> + Send;
}

/// Watches one UPS for one box.
pub struct Watcher<H> {
    plan: PowerPlan,
    rules: Rules,
    folder: PathBuf,
    /// Where the image has what it tells a NUT of its own.
    own: PathBuf,
    house: H,
    upsd: Option<Upsd>,
    begun: Instant,
    memory: Memory,
    phase: PowerPhase,
    entered: Instant,
    drained: bool,
    forced: bool,
    had_others: bool,
    left: Option<Instant>,
    off_asked: Option<Instant>,
    /// What is wrong with hearing the UPS, once it was said.
    complained: String,
    /// The same of telling the supervisor.
    untold: String,
    test: Option<(Instant, i64)>,
    pace: Duration,
}

impl<H: House> Watcher<H> {
    /// For this plan. `folder` holds the password and the record of tests.
    pub fn new(plan: PowerPlan, folder: PathBuf, house: H) -> Self {
        let now = Instant::now();
        Self {
            rules: Rules::of(&plan),
            plan,
            folder,
            own: PathBuf::from(nut::PLACE),
            house,
            upsd: None,
            begun: now,
            memory: Memory::default(),
            phase: PowerPhase::Mains,
            entered: now,
            drained: false,
            forced: false,
            had_others: false,
            left: None,
            off_asked: None,
            complained: String::new(),
            untold: String::new(),
            test: None,
            pace: LOOK,
        }
    }

    /// The same, looking this often.
    pub fn with_pace(mut self, pace: Duration) -> Self {
        self.pace = pace;
        self
    }

    /// The same by other rules.
    pub fn with_rules(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// The same with NUT's files for a UPS of this machine's own in another place than the image's.
    pub fn with_own(mut self, place: PathBuf) -> Self {
        self.own = place;
        self
    }

    /// Watches for ever; may be dropped between two looks.
    pub async fn run(mut self) {
        if let Some(phase) = self.house.phase().await {
            self.phase = phase;
        }
        let mut looks = tokio::time::interval(self.pace);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            self.look().await;
        }
    }

    /// Looks once, and does what that asks for.
    pub async fn look(&mut self) {
        self.listen().await;
        let seen = self.memory.seen(self.begun.elapsed());
        let why = loop {
            let done = self.done();
            let (phase, why) = policy::decide(&self.rules, &seen, &done, self.phase);
            if phase == self.phase {
                break why;
            }
            self.enter(phase, &seen, why).await;
        };
        let supply = self.supply(&seen, why);
        match self.house.tell(&supply).await {
            Ok(drained) => {
                self.drained = drained && self.phase >= PowerPhase::Draining;
                self.untold.clear();
            }
            Err(why) => {
                let sentence = format!("the supervisor was not told how the power is: {why}");
                complain(&mut self.untold, sentence);
            }
        }
        match self.phase {
            PowerPhase::TellSecondaries => self.count_others().await,
            PowerPhase::PowerOff => self.power_off().await,
            _ => self.test_battery(&seen).await,
        }
    }

    /// How far things have gone.
    pub fn phase(&self) -> PowerPhase {
        self.phase
    }

    /// The house that it watches for.
    pub fn house(&mut self) -> &mut H {
        &mut self.house
    }

    async fn listen(&mut self) {
        let reading = async {
            if self.upsd.is_none() {
                self.upsd = Some(self.connect().await?);
            }
            match &mut self.upsd {
                Some(upsd) => upsd.reading().await,
                None => Err(UpsdError::Slow),
            }
        };
        match reading.await {
            Ok(reading) => {
                if !self.complained.is_empty() {
                    log::info!("the UPS {} is heard", self.plan.ups);
                    self.complained.clear();
                }
                self.memory.hear(self.begun.elapsed(), reading);
            }
            Err(error) => {
                // What upsd refuses says nothing against the connection.
                if !matches!(error, UpsdError::Refused(_)) {
                    self.upsd = None;
                }
                let sentence = format!("the UPS {} is not heard: {error}", self.plan.ups);
                complain(&mut self.complained, sentence);
            }
        }
    }

    /// A connection, with the rights that the box has there. Without them the UPS is still heard.
    async fn connect(&mut self) -> Result<Upsd, UpsdError> {
        let mut upsd = Upsd::connect(&self.plan.ups).await?;
        let (user, file) = match self.plan.attached {
            Some(_) => (nut::ITSELF, self.own.join(nut::OWN_PASSWORD)),
            None => (self.plan.user.as_str(), self.folder.join("password")),
        };
        let password = std::fs::read_to_string(file).unwrap_or_default();
        let password = password.lines().next().unwrap_or_default().to_owned();
        if password.is_empty() {
            return Ok(upsd);
        }
        let signed = async {
            upsd.sign_in(user, &password).await?;
            match self.plan.role {
                // So that the machine which looks after the UPS waits for this one.
                UpsRole::Secondary if self.phase < PowerPhase::PowerOff => upsd.log_in().await,
                UpsRole::Secondary | UpsRole::Primary => Ok(()),
            }
        };
        if let Err(error) = signed.await {
            log::warn!(
                "upsd at {} hears this box only as a stranger: {error}",
                self.plan.ups.host()
            );
            return Upsd::connect(&self.plan.ups).await;
        }
        Ok(upsd)
    }

    fn done(&self) -> Done {
        // Before the first count nobody knows that there is nobody.
        let uncounted = self.phase == PowerPhase::TellSecondaries && !self.forced;
        Done {
            in_phase: self.entered.elapsed(),
            drained: self.drained,
            others: u32::from(uncounted || (self.had_others && self.left.is_none())),
            left: self.left.map(|left| left.elapsed()),
        }
    }

    async fn enter(&mut self, phase: PowerPhase, seen: &Seen, why: Why) {
        let words = words(&self.rules, seen, phase, why, true);
        match phase {
            PowerPhase::Mains => log::info!("{words}"),
            _ => log::warn!("{words}"),
        }
        (self.phase, self.entered) = (phase, Instant::now());
        self.drained &= phase >= PowerPhase::Draining;
    }

    fn supply(&self, seen: &Seen, why: Why) -> Supply {
        let last = seen.last.as_ref();
        let may_start = policy::may_start(&self.rules, seen, self.begun.elapsed())
            && !self.phase.refuses_all_work();
        // A UPS that was never heard is silent since somebody listens.
        let silent = last.map_or(self.begun.elapsed(), |_| seen.silent);
        let quiet = silent >= self.rules.silence;
        let tests = self.record().all();
        let battery_since = self.battery_since(seen);
        let says = last.and_then(|last| last.test_result.as_deref());
        let Known { tested, failed } = battery_test::known(&tests, says, battery_since);
        let words = words(&self.rules, seen, self.phase, why, may_start);
        Supply {
            phase: self.phase,
            on_mains: last.filter(|_| !quiet).map(|last| !last.flags.needs_battery()),
            charge: last.and_then(|last| last.charge),
            runtime: seen.left().map(|left| left.as_secs()),
            load: last.and_then(|last| last.load),
            silent: quiet.then_some(silent.as_secs()),
            replace_battery: last.is_some_and(|last| last.flags.replace),
            may_start,
            words: match self.complained.is_empty() {
                true => words,
                false => format!("{words} {}.", sentence(&self.complained)),
            },
            last_test: tests.last().map(|test| test.to_string()),
            // Whoever wants no tests, or leaves them to another machine, is not reminded of any.
            tested: tested.filter(|_| self.tests()),
            test_failed: failed,
            battery_since,
            ups_made: battery_age::made(last.and_then(|last| last.made), unix_now()),
        }
    }

    /// Since when the battery is in, as the UPS or a steward says.
    fn battery_since(&self, seen: &Seen) -> Option<i64> {
        let ups = seen.last.as_ref().and_then(|last| last.battery_day);
        battery_age::since(ups, self.plan.battery_since, unix_now())
    }

    /// Whether this box is the one that has the battery tested.
    fn tests(&self) -> bool {
        self.plan.self_test && self.plan.role == UpsRole::Primary
    }

    /// Tells upsd that the power goes, as long as it has not heard, and counts who has not left.
    async fn count_others(&mut self) {
        if self.plan.role == UpsRole::Secondary {
            return;
        }
        let Some(upsd) = &mut self.upsd else { return };
        if !self.forced {
            match upsd.force().await {
                Ok(()) => self.forced = true,
                Err(error) => {
                    // Nobody can be told; then nobody has to be waited for either.
                    self.forced = matches!(error, UpsdError::Refused(_));
                    log::warn!(
                        "other machines on the UPS were not told that its power goes: {error}"
                    );
                }
            }
        }
        if let Ok(others) = upsd.logins().await {
            self.had_others |= others > 0;
            match (others, self.left) {
                (0, None) if self.had_others => self.left = Some(Instant::now()),
                (0, _) => {}
                (_, _) => self.left = None,
            }
        }
    }

    async fn power_off(&mut self) {
        if self.off_asked.is_some_and(|asked| asked.elapsed() < AGAIN) {
            return;
        }
        if self.off_asked.is_none() {
            self.leave_ups().await;
        }
        self.off_asked = Some(Instant::now());
        if let Err(why) = self.house.power_off().await {
            log::error!("the machine does not turn itself off: {why}; trying again");
        }
    }

    /// The last words to the UPS: this machine is done, and whoever looks after it has its outlet cut, and given power again
    /// with the mains. A machine that is only turned off would stay so when the mains is back before the battery is empty.
    async fn leave_ups(&mut self) {
        match self.plan.role {
            UpsRole::Secondary => {
                if let Some(upsd) = self.upsd.take() {
                    let _ = upsd.log_out().await;
                }
            }
            UpsRole::Primary => {
                if self.plan.attached.is_some() {
                    match nut::ask_for_the_cut(&self.own) {
                        Ok(()) => {
                            log::info!("the UPS cuts its power when this machine has ended");
                            return;
                        }
                        Err(error) => log::warn!(
                            "the UPS cannot be told at the machine's very end ({error}); it is told now"
                        ),
                    }
                }
                let Some(upsd) = &mut self.upsd else { return };
                const CUT: &str = "shutdown.return";
                let cut = async {
                    if !upsd.commands().await?.iter().any(|command| command == CUT) {
                        return Err(UpsdError::Refused("CMD-NOT-SUPPORTED".to_owned()));
                    }
                    upsd.set("ups.delay.shutdown", &CUT_AFTER.to_string()).await?;
                    upsd.command(CUT).await
                };
                match cut.await {
                    Ok(()) => log::info!(
                        "the UPS cuts its power in {CUT_AFTER} s and gives it again with the mains"
                    ),
                    Err(error) => log::warn!(
                        "the UPS does not cut its power by itself ({error}); the firmware of this machine has to start it when power comes"
                    ),
                }
            }
        }
    }

    /// Tests the battery when that is due, and writes down how it went.
    async fn test_battery(&mut self, seen: &Seen) {
        if self.upsd.is_none() {
            return;
        }
        if let Some((begun, at)) = self.test {
            let result = seen.last.as_ref().and_then(|last| last.test_result.clone());
            let going_on = seen.last.as_ref().is_some_and(|last| last.flags.testing);
            if begun.elapsed() >= TEST_TAKES || (begun.elapsed() >= self.pace * 10 && !going_on) {
                let result =
                    result.unwrap_or_else(|| "the UPS does not say how it went".to_owned());
                self.write_down(Test { at, result });
                self.test = None;
            }
            return;
        }
        if !self.tests() {
            return;
        }
        let now = unix_now();
        // Another battery has not been tested yet.
        let of_this = self
            .record()
            .last()
            .filter(|last| self.battery_since(seen).is_none_or(|since| last.at >= since));
        let since = of_this.and_then(|last| last.before(now));
        if !battery_test::is_due(&self.rules, seen, self.begun.elapsed(), since) {
            return;
        }
        let Some(upsd) = &mut self.upsd else { return };
        match upsd.command(battery_test::COMMAND).await {
            Ok(()) => {
                log::info!("the monthly test of the battery has begun");
                self.test = Some((Instant::now(), now));
            }
            Err(error) => self.write_down(Test { at: now, result: format!("not tested: {error}") }),
        }
    }

    fn record(&self) -> Record {
        Record::in_folder(&self.folder)
    }

    fn write_down(&self, test: Test) {
        log::info!("the test of the battery: {test}");
        if let Err(error) = self.record().add(&test) {
            log::warn!("the test of the battery could not be written down: {error}");
        }
    }
}

/// Says something once, until something else is wrong.
fn complain(before: &mut String, sentence: String) {
    if *before != sentence {
        log::warn!("{sentence}");
        *before = sentence;
    }
}

/// With a capital letter.
fn sentence(clause: &str) -> String {
    let mut letters = clause.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
