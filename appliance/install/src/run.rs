//! The machine's own screen and serial line: paints them, hears their keys.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_screen::Terminal;
use tokio::sync::mpsc;

use crate::installer::{Installer, sentence};
use crate::keys::{Act, Mode, press};
use crate::paint::paint;
use crate::web::Face;

/// Between two looks at the machine's disks.
const LOOK: Duration = Duration::from_secs(3);
/// A question that nobody answers goes away, so that the next person sees the disks.
const QUESTION: Duration = Duration::from_secs(120);

/// Shows the installer on these terminals until `shutdown`; `face` is where a key gets new codes from.
pub async fn run(
    installer: Arc<Installer>,
    face: Option<Face>,
    terminals: Vec<OwnedFd>,
    shutdown: impl Future<Output = ()>,
) {
    let (pressed, mut keys) = mpsc::channel(64);
    let mut terminals: Vec<Terminal> = terminals
        .into_iter()
        .enumerate()
        .map(|(number, terminal)| Terminal::open(terminal, number, pressed.clone()))
        .collect();
    let mut modes: BTreeMap<usize, (Mode, Instant)> = BTreeMap::new();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut view = installer.view();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            _ = looks.tick() => {
                let installer = installer.clone();
                // lsblk waits for a disk that is busy; the screen does not.
                tokio::task::spawn_blocking(move || installer.look());
            }
            changed = view.changed() => if changed.is_err() { return },
            Some((terminal, key)) = keys.recv() => {
                let mode = modes.remove(&terminal).map(|(mode, _)| mode).unwrap_or_default();
                let (mode, act) = {
                    let view = view.borrow();
                    press(mode, key, view.disks(), view.run.as_ref())
                };
                modes.insert(terminal, (mode, Instant::now()));
                if let Some(act) = act {
                    let (installer, face) = (installer.clone(), face.clone());
                    let done = move || do_it(&installer, face.as_ref(), act);
                    let _ = tokio::task::spawn_blocking(done).await;
                }
            }
        }
        modes.retain(|_, (_, since)| since.elapsed() < QUESTION);
        let shown = view.borrow_and_update().clone();
        for (number, terminal) in terminals.iter_mut().enumerate() {
            let mode = modes.get(&number).map(|(mode, _)| mode.clone()).unwrap_or_default();
            terminal.show(&paint(&shown, &mode, terminal.width()));
        }
    }
}

fn do_it(installer: &Arc<Installer>, face: Option<&Face>, act: Act) {
    match act {
        Act::Install(name) => {
            if let Err(error) = installer.begin(&name) {
                installer.say(Some(sentence(&error)));
            }
        }
        Act::NewCode => {
            if let Some(Err(error)) = face.map(Face::new_code) {
                installer.say(Some(sentence(&error)));
            }
        }
        Act::Dismiss => installer.dismiss(),
        Act::PowerOff => installer.power(true),
        Act::Restart => installer.power(false),
    }
}
