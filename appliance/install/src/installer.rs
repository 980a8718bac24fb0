//! What is known and what is being done, once for all faces: whichever begins, the others follow.

use std::sync::Arc;

use polder_control::{Run, RunId, RunState, StepState};
use polder_pki::machine_addresses;
use rustix::system::{RebootCommand, reboot};
use tokio::sync::watch;

use crate::disks::Disk;
use crate::error::InstallError;
use crate::machine;
use crate::paint::View;
use crate::plan::{Action, Source, plan};
use crate::work::work;

/// The one installation of this machine.
#[derive(Debug)]
pub struct Installer {
    source: Source,
    /// Carried to the box.
    seed: Option<String>,
    view: watch::Sender<View>,
}

impl Installer {
    /// From what this machine runs from. `seed` goes onto the box as it is.
    pub fn new(source: Source, seed: Option<String>) -> Arc<Self> {
        let view = View { version: source.version.clone(), ..View::default() };
        Arc::new(Self { source, seed, view: watch::Sender::new(view) })
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

    /// Looks at the disks and addresses. Blocks for a moment.
    pub fn look(&self) {
        let addresses = machine_addresses();
        self.change(|view| view.addresses = addresses);
        if self.is_working() {
            return;
        }
        match machine::disks(self.source.needs) {
            Ok(disks) => self.change(|view| view.disks = Some(disks)),
            Err(error) => self.say(Some(sentence(&error))),
        }
    }

    fn is_working(&self) -> bool {
        let view = self.view.borrow();
        view.run.as_ref().is_some_and(|run| run.state == RunState::Running)
    }

    /// Begins to put Polder on the disk of this name, in a thread of its own.
    pub fn begin(self: &Arc<Self>, name: &str) -> Result<(), InstallError> {
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
        std::thread::spawn(move || installer.work(&disk, &actions));
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
        let done = work(&self.source, disk, self.seed.as_deref(), actions, &mut tell);
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

    /// Forgets a run that failed, so that another disk can be chosen.
    pub fn dismiss(&self) {
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
