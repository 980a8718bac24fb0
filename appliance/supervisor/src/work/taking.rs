//! Takes the other box's state: fetched beside, made a box of this machine, and put in place with its term in one go.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_backup::{
    Folders as Backups, KitKey, Location, Repository, Restic, Snapshot, Stop, restore,
};
use polder_control::{Progress, RunId, SpareReply, SpareRequest, SpareStatus};
use polder_site::{BackupPlace, Ports, Site, Store};
use polder_spare::{Folders, Peer, Tombstones};
use polder_takeover::{LONGEST_PAUSE, Next, Term, adapt, lease, listens, models};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::{Refusal, Work, blocking, lock, with_source};
use crate::parts::Parts;

/// Between two looks at whether the main box serves, and at whether the door is closed.
const LOOK: Duration = Duration::from_millis(300);
/// Files in the state folder that are about this machine, and stay when another box's state comes to it.
const MACHINE: [&str; 2] = ["power", "upstreams"];

impl<P: Parts> Work<P> {
    pub(super) async fn fetch_to_take(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        back: bool,
        cancel: &CancellationToken,
    ) -> Result<(), Refusal> {
        let _turn = self.turn_to_take(cancel).await?;
        let given = match back {
            true => {
                Some(self.given().await?.ok_or("the spare gives nothing back any more")?.snapshot)
            }
            false => None,
        };
        let (state, work, stop) = (self.state.clone(), self.clone(), Stop::default());
        let told = stop.clone();
        let fetching = blocking(move || {
            let say = |error: polder_backup::BackupError| with_source(&error);
            let backups = Backups::of(&state);
            let (store, key) = match back {
                true => store_on_spare(&state)?,
                false => store_of_main(&state)?,
            };
            let all = store.snapshots().map_err(say)?;
            let chosen = match back {
                true => restore::choose(&all, given.as_deref(), "the spare").map_err(say)?,
                false => newest_of_main(&state, &all)?,
            };
            let mut observer = |progress: Progress| work.board.progress(id, step, progress);
            restore::expect(&backups, &key).map_err(say)?;
            restore::fetch(&backups, &store, &chosen, &all, &mut observer, &told).map_err(say)
        });
        tokio::pin!(fetching);
        tokio::select! {
            done = &mut fetching => done,
            () = cancel.cancelled() => { stop.now(); fetching.await }
            () = self.ending.cancelled() => { stop.now(); fetching.await }
        }
    }

    /// Trial restores and backups give way: nobody serves meanwhile.
    pub(super) async fn turn_to_take(
        &self,
        cancel: &CancellationToken,
    ) -> Result<OwnedMutexGuard<()>, Refusal> {
        let turn = self.saving.clone().lock_owned();
        tokio::pin!(turn);
        loop {
            self.hurry_backups();
            tokio::select! {
                turn = &mut turn => return Ok(turn),
                () = tokio::time::sleep(LOOK) => {}
                () = cancel.cancelled() => return Err("it was stopped".to_owned()),
                () = self.ending.cancelled() => return Err("the box ends".to_owned()),
            }
        }
    }

    /// What came becomes a box of this machine.
    pub(super) async fn fit(&self, back: bool) -> Result<(), Refusal> {
        let incoming = restore::incoming(&Backups::of(&self.state));
        let read = incoming.clone();
        let came = blocking(move || {
            let site = Store::open(&read).and_then(|store| store.current());
            site.map_err(|e| with_source(&e))?.ok_or("the backup has no site.toml".to_owned())
        })
        .await?;
        let here = self.board.site();
        let next = match back {
            // The main box's own models and its own place for backups.
            true => {
                let site = adapt(&came, &here, here.engines.clone(), here.backup.clone());
                // With what its engines are called and which of them is to follow which.
                Site { aliases: here.aliases.clone(), succession: here.succession.clone(), ..site }
            }
            false => adapt(&came, &here, models(&came, &self.choices(&came).await?), None),
        };
        let state = self.state.clone();
        blocking(move || {
            let next = Site { ports: ports_here(&state, &here), ..next };
            next.check().map_err(|error| error.to_string())?;
            let store = Store::open(&incoming).map_err(|e| with_source(&e))?;
            store.write(&next, "on another machine").map_err(|e| with_source(&e))?;
            keep_of_machine(&state)
                .and_then(|()| leave_seed(&state))
                .map_err(|error| format!("could not keep what is this machine's: {error}"))?;
            bury(&state).map(drop)
        })
        .await
    }

    /// From here on the main box serves nothing when it comes back.
    pub(super) async fn raise(&self) -> Result<(), Refusal> {
        let seen = self.pair_seen().await?.ok_or("this box is paired with no other any more")?;
        // It was raised before this run was cut off.
        let begun = seen.status.as_ref().filter(|_| seen.is_begun()).and_then(|s| s.began);
        let began = match begun {
            Some(began) => began,
            None => match self.ask_spare_part(&SpareRequest::RaiseEpoch).await? {
                SpareReply::Epoch(began) => {
                    *lock(&self.pair.failed) = (0, None);
                    began
                }
                _ => {
                    let odd = "the part that speaks with the main box answered something else";
                    return Err(odd.to_owned());
                }
            },
        };
        let late = "this box has heard of a later term; look at the page Takeover";
        let begin = move |term: &mut Term| term.begin(began).then_some(()).ok_or(late.to_owned());
        self.change_term(begin).await
    }

    /// The term is put in place with the state, in the one go that no power cut divides.
    pub(super) async fn put_in_place(&self, back: bool) -> Result<(), Refusal> {
        let seen = self.pair_seen().await?.ok_or("this box is paired with no other any more")?;
        let aside = restore::aside_now();
        let next = match back {
            true => {
                let given = self.given().await?.ok_or("the spare gives nothing back any more")?;
                seen.term.taking(&given).ok_or("another term began since")?
            }
            false if seen.term.leaves().is_some() => {
                return Err("it was left to the main box meanwhile".to_owned());
            }
            false => seen.term.placed(aside.clone()),
        };
        let state = self.state.clone();
        let key = blocking(move || {
            let backups = Backups::of(&state);
            if !back {
                // Also what was revoked since the last look: from here on its place is what was fetched. What comes still later is buried when this box
                // stands in.
                bury(&state)?;
            }
            keep_beside(&backups, &next)?;
            restore::begin_anew(&backups).map_err(|e| with_source(&e))?;
            restore::expected(&backups).map_err(|e| with_source(&e))
        })
        .await?;
        if !back {
            self.fights_nobody().await?;
        }
        let backups = Backups::of(&self.state);
        blocking(move || restore::ready_as(&backups, &key, &aside).map_err(|e| with_source(&e)))
            .await
    }

    /// The last look before this box serves: a main box that came back since the term began has what its last backup lacks, and is left to serve on, as soon
    /// as this run has come to nothing.
    ///
    /// It is waited for until the link has listened for long enough to hear one, which it has unless it began anew just now.
    async fn fights_nobody(&self) -> Result<(), Refusal> {
        let (begun, waits) = (Instant::now(), lease().0.max(listens()));
        loop {
            let none = "this box is paired with no other any more";
            let seen = self.pair_seen().await?.ok_or(none)?;
            if self.next_of(&seen) == Next::Leaves {
                return Err(format!(
                    "{} is there again and has what its last backup lacks, so it is to serve on; nothing was taken over",
                    seen.other
                ));
            }
            let listened = |status: &SpareStatus| status.listening >= listens().as_secs();
            if seen.status.as_ref().is_some_and(listened) {
                return Ok(());
            }
            if begun.elapsed() >= waits {
                // Nobody serves meanwhile, and the main box serves nothing before it has heard of the term.
                return match self.waited() >= LONGEST_PAUSE {
                    true => Ok(()),
                    false => Err(format!(
                        "the part that would hear whether {} is there again does not stay up, so nothing was put in place; this box tries again by itself",
                        seen.other
                    )),
                };
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.ending.cancelled() => return Err("the box ends".to_owned()),
            }
        }
    }
}

/// On a spare: its main box's backups, and the key to them.
pub(super) fn store_of_main(state: &Path) -> Result<(Restic, KitKey), Refusal> {
    let folders = Folders::of(state);
    let none = "this box is paired with no other any more";
    let peer = Peer::read(&folders).map_err(|e| e.to_string())?.ok_or(none)?;
    let text = fs::read_to_string(folders.main_key()).map_err(|_| {
        format!("{} has not given this spare the key to its backups, so there is nothing to take over with; set its backups up, with the emergency kit, on its page Backups", peer.name)
    })?;
    let key = KitKey::typed(&text).map_err(|e| with_source(&e))?;
    let location = Location::Folder(folders.store_of(&peer.certificate));
    Ok((Restic::of(&location, &key, 0, &Backups::of(state).own()), key))
}

/// On a spare: the newest of them.
pub(super) fn newest_of_main(state: &Path, all: &[Snapshot]) -> Result<Snapshot, Refusal> {
    let folders = Folders::of(state);
    let none = "this box is paired with no other any more";
    let peer = Peer::read(&folders).map_err(|e| e.to_string())?.ok_or(none)?;
    restore::choose_arrived(all, &folders.store_of(&peer.certificate), "this spare")
        .map_err(|e| with_source(&e))
}

/// On a main box: the same, over the link.
pub(super) fn store_on_spare(state: &Path) -> Result<(Restic, KitKey), Refusal> {
    let backups = Backups::of(state);
    let key = KitKey::of_box(&backups).map_err(|e| with_source(&e))?;
    // Wherever the box sends its own backups: what is given lies on the spare.
    let location =
        polder_backup::locate(&BackupPlace::Spare, &backups).map_err(|e| with_source(&e))?;
    Ok((Restic::of(&location, &key, 0, &backups.own()), key))
}

/// The term that is put in place with the state.
pub(super) fn keep_beside(backups: &Backups, term: &Term) -> Result<(), Refusal> {
    let folder: PathBuf = restore::also(backups).join("spare");
    let path = folder.join("term.json");
    let kept =
        fs::create_dir_all(&folder).and_then(|()| polder_site::write_durably(&path, &term.text()));
    kept.map_err(|error| format!("could not write {}: {error}", path.display()))
}

/// Files of this machine wait beside, to be put over what came.
fn keep_of_machine(state: &Path) -> std::io::Result<()> {
    let backups = Backups::of(state);
    let (also, incoming) = (restore::also(&backups), restore::incoming(&backups));
    for name in MACHINE {
        let theirs = incoming.join(name);
        if theirs.is_dir() {
            fs::remove_dir_all(&theirs)?;
        }
        copy_folder(&state.join(name), &also.join(name))?;
    }
    Ok(())
}

/// What this machine's ports have now, also where a seed gave it to them.
fn ports_here(state: &Path, here: &Site) -> Ports {
    polder_seed::ports_to_give(state).unwrap_or_else(|error| {
        log::warn!("{error}; the ports keep what the site says");
        here.ports.clone()
    })
}

/// The seed of the box that comes was for another machine: its address is for no port of this one.
fn leave_seed(state: &Path) -> std::io::Result<()> {
    let also = restore::also(&Backups::of(state));
    fs::create_dir_all(&also)?;
    let decided = also.join(polder_seed::BOUND);
    polder_site::write_durably(&decided, b"none: this box was taken over\n")
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if !from.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else if kind.is_file() {
            // With its mode: secrets stay with their owner.
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// What was revoked on the other box never works again here: it is kept where no restore takes it away, before anything is put in place.
pub(super) fn bury(state: &Path) -> Result<usize, Refusal> {
    let lines = tombstones(state)?;
    polder_members::keep_gone_lines(state, &lines).map_err(not_buried)
}

/// The same once this box serves in its place: of how many that is news. What the other box says then counts for less.
pub(super) fn bury_late(state: &Path) -> Result<usize, Refusal> {
    let (lines, now) = (tombstones(state)?, jiff::Timestamp::now().as_second());
    polder_members::keep_late_lines(state, &lines, now).map_err(not_buried)
}

fn tombstones(state: &Path) -> Result<String, Refusal> {
    let lines = Tombstones::all(&Folders::of(state)).map_err(|error| error.to_string())?;
    Ok(lines.join("\n"))
}

fn not_buried(error: std::io::Error) -> Refusal {
    format!("what was revoked could not be kept: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_takes_over_keeps_the_address_of_its_own_seed_and_takes_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        let seed = "version = 1\n[network]\naddress = \"10.0.0.5/8\"\n";
        fs::write(state.join("seed.toml"), seed).unwrap();
        fs::write(state.join("seed.port"), "enp1s0\n").unwrap();
        let ports = ports_here(state, &Site::unclaimed(8443));
        let port = "enp1s0".parse().unwrap();
        assert_eq!(ports[&port].to_string(), "10.0.0.5/8");
        // Whatever seed comes, it is bound to no port once what waits is put over it.
        leave_seed(state).unwrap();
        let also = restore::also(&Backups::of(state));
        let waits = fs::read_to_string(also.join("seed.port")).unwrap();
        assert_eq!(waits, "none: this box was taken over\n");
        fs::write(state.join("seed.port"), waits).unwrap();
        assert!(ports_here(state, &Site::unclaimed(8443)).is_empty());
        // One that cannot be read takes nothing away from the site.
        fs::write(state.join("seed.toml"), "version = 9").unwrap();
        let site = "[ports.enp2s0]\naddresses = [\"10.0.0.6/8\"]\n";
        fs::write(state.join("site.toml"), site).unwrap();
        assert_eq!(ports_here(state, &Site::unclaimed(8443)).len(), 1);
    }
}
