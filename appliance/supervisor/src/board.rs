use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use polder_control::{
    BoxStatus, Closed, EngineStatus, Event, OtherPart, PartState, PartStatus, Plan, Progress, Run,
    RunId, RunState, Sockets, StepState, Supply,
};
use polder_site::Site;
use tokio::sync::watch;

use crate::keeper::Shown;
use crate::parts::Part;

/// Runs that are shown: those that are going on, and this many that are over.
const SHOWN_RUNS: usize = 20;

/// What the box is and does, for whoever wants to see it.
///
/// Every change has a number. A watcher remembers the last number that it saw and is given what
/// changed since, in its newest form: a slow one misses what was in between, not the outcome, and
/// nothing piles up for it.
pub(crate) struct Board {
    sockets: Sockets,
    inner: Mutex<Inner>,
    bell: watch::Sender<u64>,
}

struct Inner {
    clock: u64,
    site: Site,
    safe: bool,
    supply: Option<Supply>,
    closed: Option<Closed>,
    status_changed: u64,
    parts: BTreeMap<Part, watch::Receiver<Shown>>,
    /// With the number of the last change, newest run first.
    runs: Vec<(u64, Run)>,
}

impl Board {
    pub(crate) fn new(sockets: Sockets, site: Site, safe: bool, ended: &[Run]) -> Self {
        let inner = Inner {
            clock: 1,
            site,
            safe,
            supply: None,
            closed: None,
            status_changed: 1,
            parts: BTreeMap::new(),
            runs: ended.iter().map(|run| (0, run.clone())).collect(),
        };
        Self { sockets, inner: Mutex::new(inner), bell: watch::Sender::new(1) }
    }

    pub(crate) fn site(&self) -> Site {
        self.lock().site.clone()
    }

    pub(crate) fn set_site(&self, site: Site) {
        self.status_change(|inner| inner.site = site);
    }

    /// The power, where it was heard of.
    pub(crate) fn supply(&self) -> Option<Supply> {
        self.lock().supply.clone()
    }

    /// Nobody is woken for what is as it was.
    pub(crate) fn set_supply(&self, supply: Option<Supply>) {
        if self.supply() != supply {
            self.status_change(|inner| inner.supply = supply);
        }
    }

    /// Whether the door is closed, though the box runs.
    pub(crate) fn closed(&self) -> Option<Closed> {
        self.lock().closed.clone()
    }

    /// Closes the door to everybody, or opens it.
    pub(crate) fn set_closed(&self, closed: Option<Closed>) {
        if self.closed() != closed {
            self.status_change(|inner| inner.closed = closed);
        }
    }

    pub(crate) fn add_part(&self, part: Part, shown: watch::Receiver<Shown>) {
        self.status_change(|inner| drop(inner.parts.insert(part, shown)));
    }

    pub(crate) fn remove_part(&self, part: &Part) {
        self.status_change(|inner| drop(inner.parts.remove(part)));
    }

    /// A part is not as it was, or watchers should be shown the status once more.
    pub(crate) fn part_changed(&self) {
        self.status_change(|_| ());
    }

    pub(crate) fn part(&self, part: &Part) -> PartStatus {
        self.lock().part(part)
    }

    pub(crate) fn status(&self) -> BoxStatus {
        self.lock().status(&self.sockets)
    }

    /// Newest first.
    pub(crate) fn runs(&self) -> Vec<Run> {
        self.lock().runs.iter().map(|(_, run)| run.clone()).collect()
    }

    pub(crate) fn run(&self, id: RunId) -> Option<Run> {
        self.lock().runs.iter().find(|(_, run)| run.id == id).map(|(_, run)| run.clone())
    }

    /// Puts a run up, or puts it up anew under the same number.
    pub(crate) fn post(&self, id: RunId, plan: Plan, state: RunState) -> Run {
        let steps = vec![StepState::Waiting; plan.steps.len()];
        let run = Run { id, plan, steps, state };
        self.change(|inner| {
            inner.runs.retain(|(_, old)| old.id != id);
            let at = inner.runs.iter().position(|(_, old)| old.id < id);
            let at = at.unwrap_or(inner.runs.len());
            inner.runs.insert(at, (inner.clock, run.clone()));
            let over = |run: &Run| run.state != RunState::Running;
            while inner.runs.iter().filter(|(_, run)| over(run)).count() > SHOWN_RUNS {
                let last = inner.runs.iter().rposition(|(_, run)| over(run));
                inner.runs.remove(last.expect("more than none are over"));
            }
        });
        run
    }

    pub(crate) fn step(&self, id: RunId, step: usize, state: StepState) {
        self.run_change(id, |run| {
            if let Some(slot) = run.steps.get_mut(step) {
                *slot = state;
            }
        });
    }

    pub(crate) fn progress(&self, id: RunId, step: usize, progress: Progress) {
        self.step(id, step, StepState::Running(Some(progress)));
    }

    pub(crate) fn end(&self, id: RunId, state: RunState) {
        self.run_change(id, |run| run.state = state);
    }

    /// What changed after the change number `seen`, and the number to give next time. From 0 on it
    /// is the status and every run that is not over.
    pub(crate) fn news(&self, seen: u64) -> (Vec<Event>, u64) {
        let inner = self.lock();
        let mut news = Vec::new();
        if inner.status_changed > seen {
            news.push(Event::Status(Box::new(inner.status(&self.sockets))));
        }
        let fresh = |(changed, run): &&(u64, Run)| {
            *changed > seen && (seen > 0 || run.state == RunState::Running)
        };
        news.extend(inner.runs.iter().rev().filter(fresh).map(|(_, run)| Event::Run(run.clone())));
        (news, inner.clock)
    }

    /// Rings at every change.
    pub(crate) fn bell(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }

    fn run_change(&self, id: RunId, change: impl FnOnce(&mut Run)) {
        self.change(|inner| {
            let clock = inner.clock;
            if let Some((changed, run)) = inner.runs.iter_mut().find(|(_, run)| run.id == id) {
                *changed = clock;
                change(run);
            }
        });
    }

    fn status_change(&self, change: impl FnOnce(&mut Inner)) {
        self.change(|inner| {
            inner.status_changed = inner.clock;
            change(inner);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let clock = {
            let mut inner = self.lock();
            inner.clock += 1;
            change(&mut inner);
            inner.clock
        };
        self.bell.send_replace(clock);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds the board")
    }
}

impl Inner {
    fn part(&self, part: &Part) -> PartStatus {
        match self.parts.get(part) {
            Some(shown) => shown.borrow().status.clone(),
            None => PartStatus { state: PartState::Stopped, restarts: 0, pid: None },
        }
    }

    /// Those that are neither the door nor engines, whatever has become of them.
    fn others(&self) -> Vec<OtherPart> {
        let named = self.parts.keys().filter_map(|part| Some((part, part.name()?)));
        named.map(|(part, name)| OtherPart { name, part: self.part(part) }).collect()
    }

    fn note(&self, part: &Part) -> Option<String> {
        self.parts.get(part).and_then(|shown| shown.borrow().note.clone())
    }

    fn status(&self, sockets: &Sockets) -> BoxStatus {
        let engine =
            |(name, slot): (&polder_site::EngineName, &polder_site::EngineSlot)| EngineStatus {
                name: name.clone(),
                recipe: slot.recipe.clone(),
                socket: sockets.engine(name),
                part: self.part(&Part::Engine(name.clone())),
                note: self.note(&Part::Engine(name.clone())),
            };
        BoxStatus {
            site: self.site.clone(),
            gateway: self.part(&Part::Gateway),
            engines: self.site.engines.iter().map(engine).collect(),
            others: self.others(),
            safe: self.safe,
            supply: self.supply.clone(),
            closed: self.closed.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use polder_control::{Step, Unit};

    use super::*;

    fn board() -> Board {
        Board::new(Sockets::of(Path::new("/x")), Site::unclaimed(1), false, &[])
    }

    fn plan(steps: usize) -> Plan {
        let step = Step { id: "s".into(), title: "S".into() };
        Plan { title: "t".into(), steps: vec![step; steps] }
    }

    fn progress(done: u64) -> Progress {
        let (phase, unit) = ("p".into(), Unit::Bytes);
        Progress { phase, done, total: None, unit, rate: None, eta_seconds: None }
    }

    #[test]
    fn a_slow_watcher_gets_the_newest_form_once_however_much_happened() {
        let board = board();
        let (first, seen) = board.news(0);
        assert!(matches!(first[..], [Event::Status(_)]));
        board.post(RunId(1), plan(1), RunState::Running);
        for done in 0..10_000 {
            board.progress(RunId(1), 0, progress(done));
        }
        let (news, seen) = board.news(seen);
        let [Event::Run(run)] = &news[..] else { panic!("{news:?}") };
        assert_eq!(run.steps, [StepState::Running(Some(progress(9_999)))]);
        assert_eq!(board.news(seen), (vec![], seen));
    }

    #[test]
    fn a_new_watcher_sees_runs_that_go_on_and_not_those_that_are_over() {
        let board = board();
        board.post(RunId(1), plan(0), RunState::Done);
        board.post(RunId(2), plan(1), RunState::Running);
        let (news, seen) = board.news(0);
        assert!(matches!(&news[..], [Event::Status(_), Event::Run(run)] if run.id == RunId(2)));
        board.end(RunId(2), RunState::Cancelled);
        let (news, _) = board.news(seen);
        assert!(matches!(&news[..], [Event::Run(run)] if run.state == RunState::Cancelled));
    }

    #[test]
    fn the_list_of_runs_stays_short_and_in_order_and_keeps_what_goes_on() {
        let board = board();
        board.post(RunId(1), plan(1), RunState::Running);
        for id in 2..100 {
            board.post(RunId(id), plan(0), RunState::Done);
        }
        let ids: Vec<u64> = board.runs().iter().map(|run| run.id.0).collect();
        assert_eq!(ids.len(), SHOWN_RUNS + 1);
        assert_eq!((ids[0], *ids.last().unwrap()), (99, 1));
    }
}
