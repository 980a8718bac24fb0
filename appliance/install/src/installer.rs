//! What is known and what is being done, once for all faces: whichever begins, the others follow.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use polder_control::{Run, RunId, RunState, StepState};
use polder_pki::machine_addresses;
use polder_seed::Seed;
use rustix::system::{RebootCommand, reboot};
use tokio::sync::watch;

use crate::disks::Disk;
use crate::error::InstallError;
use crate::machine;
use crate::paint::View;
use crate::plan::{Action, Source, plan};
use crate::unattended::{Unattended, unattended};
use crate::work::{STICK, work};

/// Long enough to be read by somebody who does look.
const OFF_AFTER: Duration = Duration::from_secs(20);

/// The one installation of this machine.
#[derive(Debug)]
pub struct Installer {
    source: Source,
    /// As it is written, carried to the box, and what it says.
    seed: Option<(String, Seed)>,
    /// Whether that was tried. What failed is not tried again by itself.
    followed: AtomicBool,
    view: watch::Sender<View>,
}

impl Installer {
    /// From what this machine runs from, with the seed that may be on the stick.
    pub fn new(source: Source) -> Arc<Self> {
        let (seed, note) = match seed(&Path::new(STICK).join(polder_seed::FILE)) {
            Ok(seed) => (seed, None),
            Err(why) => (None, Some(format!("{why}. You are asked here instead."))),
        };
        let version = source.version.clone();
        let view = View { version, bad_seed: note, ..View::default() };
        let view = watch::Sender::new(view);
        Arc::new(Self { source, seed, followed: AtomicBool::new(false), view })
    }

    /// What is so now, and every change of it.
    pub fn view(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Says something on every face, or nothing any more.
    pub fn say(&self, note: Option<String>) {
        self.change(|view| view.note = note);
    }

    /// Changes what is shown; faces hear of it only if that makes a difference.
    pub(crate) fn change(&self, change: impl FnOnce(&mut View)) {
        self.view.send_if_modified(|view| {
            let before = view.clone();
            change(view);
            *view != before
        });
    }

    /// Looks at the disks and addresses, and follows the seed where it can be followed. Blocks for a moment.
    pub fn look(self: &Arc<Self>) {
        let addresses = machine_addresses();
        self.change(|view| view.addresses = addresses);
        if self.is_working() {
            return;
        }
        match machine::disks(self.source.needs) {
            Ok(disks) => {
                self.follow_seed(&disks);
                self.change(|view| view.disks = Some(disks));
            }
            Err(error) => self.say(Some(sentence(&error))),
        }
    }

    fn follow_seed(self: &Arc<Self>, disks: &[Disk]) {
        let Some((_, seed)) = &self.seed else { return };
        {
            // Looking into a disk means work for it: once, as long as there are no others.
            let view = self.view.borrow();
            if view.run.is_some() || view.disks.as_deref() == Some(disks) {
                return;
            }
        }
        if self.followed.load(Ordering::Relaxed) {
            return;
        }
        match unattended(seed, disks, &machine::is_box) {
            Unattended::Ask => {}
            Unattended::No(why) => self.change(|view| view.bad_seed = Some(why)),
            Unattended::Begin(name) if !self.followed.swap(true, Ordering::Relaxed) => {
                match self.begin_unless_busy(&name, true) {
                    Ok(()) => self.change(|view| view.bad_seed = None),
                    Err(error) => self.say(Some(sentence(&error))),
                }
            }
            Unattended::Begin(_) => {}
        }
    }

    fn is_working(&self) -> bool {
        let view = self.view.borrow();
        view.run.as_ref().is_some_and(|run| run.state == RunState::Running)
    }

    /// Begins to put Polder on the disk of this name, in a thread of its own.
    pub fn begin(self: &Arc<Self>, name: &str) -> Result<(), InstallError> {
        self.begin_unless_busy(name, false)
    }

    fn begin_unless_busy(self: &Arc<Self>, name: &str, alone: bool) -> Result<(), InstallError> {
        let disk = machine::disk(name, self.source.needs)?;
        let (plan, actions) = plan(&self.source, &disk)
            .map_err(|why| InstallError::Refused { disk: disk.name.clone(), why })?;
        let steps = vec![StepState::Waiting; plan.steps.len()];
        let run = Run { id: RunId(1), plan, steps, state: RunState::Running };
        let mut first = false;
        self.view.send_if_modified(|view| {
            first = view.run.is_none();
            if first {
                (view.run, view.note) = (Some(run), None);
            }
            first
        });
        if !first {
            return Err(InstallError::Busy);
        }
        log::info!(disk:% = disk.name, serial:% = disk.serial; "putting Polder on a disk");
        let installer = self.clone();
        std::thread::spawn(move || {
            installer.work(&disk, &actions);
            if alone {
                installer.end_alone();
            }
        });
        Ok(())
    }

    fn work(&self, disk: &Disk, actions: &[Action]) {
        let mut tell = |index: usize, state: StepState| {
            self.change(|view| {
                if let Some(run) = &mut view.run {
                    run.steps[index] = state;
                }
            });
        };
        let done = work(
            &self.source,
            disk,
            self.seed.as_ref().map(|(text, _)| text.as_str()),
            actions,
            &mut tell,
        );
        let state = match done {
            Ok(()) => {
                log::info!(disk:% = disk.name; "Polder is on the disk");
                RunState::Done
            }
            Err(error) => {
                log::error!(disk:% = disk.name; "{}", sentence(&error));
                RunState::Failed(sentence(&error))
            }
        };
        self.change(|view| {
            if let Some(run) = &mut view.run {
                run.state = state;
            }
        });
    }

    /// Nobody looks: a machine that is off says that it is done. One that failed stays on and says why.
    fn end_alone(&self) {
        let done = |run: &Run| run.state == RunState::Done;
        if self.view.borrow().run.as_ref().is_some_and(done) {
            let wait = OFF_AFTER.as_secs();
            self.say(Some(format!(
                "The machine turns itself off in {wait} seconds. Then take the stick out and turn it on."
            )));
            std::thread::sleep(OFF_AFTER);
            self.power(true);
        }
    }

    /// Forgets a run that failed, so that another disk can be chosen.
    pub fn dismiss(self: &Arc<Self>) {
        self.change(|view| {
            if matches!(&view.run, Some(run) if matches!(run.state, RunState::Failed(_))) {
                view.run = None;
            }
        });
        self.look();
    }

    /// Starts the machine again, or turns it off, unless something is being written. Not through the init
    /// system: its programs are on a stick that may be out by now.
    pub fn power(&self, off: bool) {
        if self.is_working() {
            return;
        }
        rustix::fs::sync();
        let command = if off { RebootCommand::PowerOff } else { RebootCommand::Restart };
        if let Err(error) = reboot(command) {
            self.say(Some(format!("The machine does not do that ({error}): press its button.")));
        }
    }
}

/// The seed on the stick, if there is one; why it cannot be followed, in a sentence without its end.
fn seed(path: &Path) -> Result<Option<(String, Seed)>, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{} cannot be read ({error})", polder_seed::FILE)),
    };
    match Seed::parse(&text) {
        Ok(seed) => Ok(Some((text, seed))),
        Err(error) => Err(sentence(&error)),
    }
}

/// An error with what it came from.
pub(crate) fn sentence(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !said.contains(&text) {
            said = format!("{said} ({text})");
        }
        cause = error.source();
    }
    said
}
