//! What the box does about its power: the part that watches the UPS says how far things have gone, and this has it done.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use polder_control::{Actor, BatterySeen, PartState, PowerPhase, Supply, Told};
use tokio::time::timeout;

use super::{Work, lock, settled};
use crate::keeper::{Keeper, Order};
use crate::parts::{Part, Parts};

/// A part that watches the UPS and says nothing for so long after the start holds no engine up.
const UNHEARD: Duration = Duration::from_secs(90);
/// A UPS that was just named has this long to be heard.
const FIRST_WORD: Duration = Duration::from_secs(8);
/// The same for one of this machine's own, whose driver is started only now and looks for it.
const FIRST_WORD_OF_OWN: Duration = Duration::from_secs(45);

impl<P: Parts> Work<P> {
    /// How the power is. True once all parts that answer people have ended.
    pub(crate) async fn supply(self: &Arc<Self>, supply: Supply) -> bool {
        if self.board.site().power.is_none() {
            // The last words of a part that is on its way out.
            return false;
        }
        let (phase, may_start) = (supply.phase, supply.may_start);
        let before = self.power.send_replace(phase);
        self.power_of_cards(phase);
        self.board.set_supply(Some(supply.clone()));
        let seen = BatterySeen {
            on_mains: supply.on_mains,
            silent: supply.silent,
            charge: supply.charge,
            replace: supply.replace_battery,
            installed: supply.battery_since,
            made: supply.ups_made,
            tested: supply.tested,
            test_failed: supply.test_failed.clone(),
        };
        if let Err(error) = Told::Battery(seen).leave(&self.sockets) {
            log::warn!("the health part does not hear of the battery: {error}");
        }
        if phase != before {
            // The box stops with this, whether or not it could be written down.
            self.note(Actor::Itself, power_words(phase), "the power").await;
        }
        match (before.refuses_all_work(), phase.refuses_all_work()) {
            (false, true) => self.drain(),
            (true, false) => self.wake(),
            (true, true) | (false, false) => {}
        }
        if may_start && !phase.refuses_all_work() {
            self.may_start.send_if_modified(|may| !std::mem::replace(may, true));
        }
        self.drained.load(Ordering::Acquire)
    }

    /// Nobody watches the UPS any more, although somebody should. What its last word held back goes on: that word may be of hours ago.
    pub(super) async fn unwatched(self: &Arc<Self>) {
        self.board.set_supply(None);
        let before = self.power.send_replace(PowerPhase::Mains);
        self.power_of_cards(PowerPhase::Mains);
        self.may_start.send_replace(true);
        if before.refuses_all_work() {
            self.wake();
        }
        log::error!(
            "nobody watches the UPS: a power cut will not be noticed before its battery is empty"
        );
    }

    /// Ends all parts that answer people: first the engines, whose answers come to their end through the open door, then the
    /// door with the members' database. The door takes nothing new by then: it knows the phase.
    fn drain(self: &Arc<Self>) {
        self.may_start.send_replace(false);
        let work = self.clone();
        self.rouse(tokio::spawn(async move {
            let begun = std::time::Instant::now();
            let keepers: Vec<_> =
                lock(&work.keepers).iter().map(|(p, k)| (p.clone(), k.clone())).collect();
            let of = |wanted: fn(&Part) -> bool| {
                let those = keepers.iter().filter(move |(part, _)| wanted(part));
                those.map(|(_, keeper)| keeper.clone()).collect::<Vec<_>>()
            };
            let groups = [of(|p| matches!(p, Part::Engine(_))), of(|p| *p == Part::Gateway)];
            for group in groups {
                group.iter().for_each(|keeper| keeper.stop(Order::Stop));
                for keeper in &group {
                    keeper.until_stopped().await;
                }
            }
            log::warn!("all parts have ended, {:.1?} after they were asked to", begun.elapsed());
            work.drained.store(true, Ordering::Release);
        }));
    }

    /// The mains is back in time: everything starts again, also what was about to end.
    fn wake(self: &Arc<Self>) {
        self.drained.store(false, Ordering::Release);
        self.keeper(&Part::Gateway).ensure();
        self.start_engines();
    }

    /// Starts the engines as soon as the power allows it. Where no UPS is watched, that is now.
    pub(super) fn start_engines(self: &Arc<Self>) {
        if self.board.status().safe {
            return;
        }
        let work = self.clone();
        self.rouse(tokio::spawn(async move {
            let mut may = work.may_start.subscribe();
            if timeout(UNHEARD, may.wait_for(|may| *may)).await.is_err() {
                if work.board.supply().is_some() {
                    // It is watched, and the battery charges.
                    let _ = may.wait_for(|may| *may).await;
                } else {
                    log::warn!("nothing was heard about the power; the engines start nevertheless");
                    work.may_start.send_replace(true);
                }
            }
            for name in work.board.site().engines.keys() {
                work.keeper(&Part::Engine(name.clone())).ensure();
            }
        }));
    }

    /// One of these at a time.
    fn rouse(&self, task: tokio::task::JoinHandle<()>) {
        if let Some(before) = lock(&self.rousing).replace(task) {
            before.abort();
        }
    }

    /// Whether an engine may be started now.
    pub(super) fn engines_may_start(&self) -> bool {
        *self.may_start.borrow()
    }

    /// Starts a part and waits until it answers or is given up; for an engine, from the moment on that the power allows it. A power cut
    /// in between ends it, and then this waits for the mains.
    pub(super) async fn settles(&self, part: &Part, keeper: &Keeper) -> PartState {
        let (mut may, mut power) = (self.may_start.subscribe(), self.power.subscribe());
        loop {
            if matches!(part, Part::Engine(_)) {
                let _ = may.wait_for(|may| *may).await;
            }
            let _ = power.wait_for(|phase| !phase.refuses_all_work()).await;
            tokio::select! {
                state = keeper.until(keeper.ensure(), settled) => return state,
                Ok(_) = power.wait_for(|phase| phase.refuses_all_work()) => {}
            }
        }
    }

    /// Comes back when an import may go on, and when it has to wait.
    pub(super) async fn imports(&self, may: bool) {
        let mut power = self.power.subscribe();
        let _ = power.wait_for(|phase| phase.pauses_work() != may).await;
    }

    /// Watches the UPS that the site names, or none; and waits until it is heard, where that is wanted.
    pub(super) async fn watch_ups(self: &Arc<Self>, wait: bool) -> Result<(), String> {
        self.tend_nut().await?;
        if self.board.site().power.is_none() {
            self.stop_part(&Part::Power).await;
            self.board.set_supply(None);
            let before = self.power.send_replace(PowerPhase::Mains);
            self.power_of_cards(PowerPhase::Mains);
            self.may_start.send_replace(true);
            if before.refuses_all_work() {
                self.wake();
            }
            return Ok(());
        }
        // Afresh, with what the site says now.
        let keeper = self.keeper(&Part::Power);
        let order = keeper.start();
        keeper.until(order, |_| true).await;
        // What the one before said was about another UPS.
        self.board.set_supply(None);
        if !wait {
            return Ok(());
        }
        let heard = async {
            if let PartState::GaveUp(why) = keeper.until(order, settled).await {
                return Err(why);
            }
            let mut bell = self.board.bell();
            loop {
                match self.board.supply() {
                    Some(supply) if supply.on_mains.is_some() => return Ok(()),
                    _ => bell.changed().await.map_err(|error| error.to_string())?,
                }
            }
        };
        let own = self.board.site().power.is_some_and(|plan| plan.attached.is_some());
        timeout(if own { FIRST_WORD_OF_OWN } else { FIRST_WORD }, heard).await.unwrap_or_else(
            |_| {
                let said = self.board.supply().map(|supply| supply.words);
                Err(said.unwrap_or_else(|| "the part that watches the UPS says nothing".to_owned()))
            },
        )
    }
}

fn power_words(phase: PowerPhase) -> &'static str {
    match phase {
        PowerPhase::Mains => "has its mains back:",
        PowerPhase::OnBattery => "went on battery:",
        PowerPhase::Saving => "saves what is left of",
        PowerPhase::Draining => "ends its parts, for want of",
        PowerPhase::TellSecondaries => "told the UPS that it is done with",
        PowerPhase::PowerOff => "turns itself off, for want of",
    }
}
