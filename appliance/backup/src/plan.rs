//! Pure: what has to be done for a backup, a drill or a restore, as steps.

use polder_control::Step;
use polder_site::{Backup, BackupPlace, Retention};

use crate::Store;

/// One thing to do about backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupAction {
    /// Make a store where there is none.
    MakeStore,
    /// Make a backup: lay out, send.
    Save,
    /// Remove what is not to be kept.
    Thin(Retention),
    /// Restore the last backup into a folder beside.
    FetchForDrill,
    /// See whether it is a whole box.
    ExamineDrill,
    /// Start a gateway on it, ask it who it is, and remove all of it.
    StartDrill,
    /// Read a part of what is stored.
    CheckStore,
    /// Bring a backup beside what is there.
    FetchForRestore,
    /// See whether it is a whole box.
    ExamineRestore,
    /// Choose the models that fit this machine.
    FitRestore,
    /// Put it in place, and start the parts with it.
    PutInPlace,
}

impl BackupAction {
    /// The step that people see; `place` is where the backups are.
    pub fn step(&self, place: &str) -> Step {
        let (id, title) = match self {
            Self::MakeStore => (
                "make-store",
                format!("Make a store for backups at {place}; what else is there stays as it is"),
            ),
            Self::Save => ("save", format!("Encrypt the box's small state and send it to {place}")),
            Self::Thin(keep) => ("thin", kept(keep)),
            Self::FetchForDrill => {
                ("fetch-backup", format!("Restore the newest backup from {place} into a folder of its own"))
            }
            Self::ExamineDrill | Self::ExamineRestore => (
                "examine-backup",
                "See whether it is a whole box: its database, its site, its keys".to_owned(),
            ),
            Self::StartDrill => (
                "start-gateway",
                "Start a door on it that only this machine reaches, ask who it is, and remove all of it".to_owned(),
            ),
            Self::CheckStore => {
                ("check-store", "Read a tenth of what is stored and compare it with its digests".to_owned())
            }
            Self::FetchForRestore => (
                "fetch-backup",
                format!("Fetch the backup from {place}; nothing of this box changes yet"),
            ),
            Self::FitRestore => (
                "fit",
                "Choose which of its models fit this machine; what does not is left out, and the page Backups says so".to_owned(),
            ),
            Self::PutInPlace => (
                "put-in-place",
                "Put what this box was aside, the restored one in its place, and start it".to_owned(),
            ),
        };
        Step { id: id.to_owned(), title }
    }
}

fn kept(keep: &Retention) -> String {
    let part = |count: u16, one: &str| match count {
        0 => None,
        1 => Some(format!("the last {one}")),
        n => Some(format!("{n} {one}s")),
    };
    let parts: Vec<String> = [
        part(keep.hours, "hour"),
        part(keep.days, "day"),
        part(keep.weeks, "week"),
        part(keep.months, "month"),
    ]
    .into_iter()
    .flatten()
    .collect();
    format!("Keep one backup for each of {}, and remove others", parts.join(", "))
}

/// What the first backup to a place takes, after the site names it.
pub fn first_plan(store: Store, backup: &Backup) -> (Vec<BackupAction>, Vec<BackupAction>) {
    let before = match store {
        Store::Nothing => vec![BackupAction::MakeStore],
        Store::Ours(_) => Vec::new(),
    };
    (before, save_plan(backup))
}

/// What every backup takes.
pub fn save_plan(backup: &Backup) -> Vec<BackupAction> {
    match backup.to {
        // It lets nothing be removed from here, and thins out by itself after each trial restore.
        BackupPlace::Spare => vec![BackupAction::Save],
        _ => vec![BackupAction::Save, BackupAction::Thin(backup.keep)],
    }
}

/// What a drill takes.
pub fn drill_plan() -> Vec<BackupAction> {
    use BackupAction::{CheckStore, ExamineDrill, FetchForDrill, StartDrill};
    vec![FetchForDrill, ExamineDrill, StartDrill, CheckStore]
}

/// What a restore takes.
pub fn restore_plan() -> Vec<BackupAction> {
    use BackupAction::{ExamineRestore, FetchForRestore, FitRestore, PutInPlace};
    vec![FetchForRestore, ExamineRestore, FitRestore, PutInPlace]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(actions: &[BackupAction]) -> String {
        let steps = actions.iter().map(|action| action.step("/mnt/usb"));
        steps.map(|step| format!("{}: {}\n", step.id, step.title)).collect()
    }

    #[test]
    fn plans_read_as_written_down() {
        let backup = Backup::to("/mnt/usb".parse().unwrap());
        let (before, after) = first_plan(Store::Nothing, &backup);
        let all = [before, after, drill_plan(), restore_plan()].map(|plan| text(&plan)).join("\n");
        assert_eq!(all, include_str!("plan.golden.txt"));
    }

    #[test]
    fn nothing_is_to_be_removed_from_a_spare() {
        let backup = Backup::to(BackupPlace::Spare);
        assert_eq!(save_plan(&backup), [BackupAction::Save]);
    }

    #[test]
    fn a_store_that_is_there_is_gone_on_with() {
        let backup = Backup::to("/mnt/usb".parse().unwrap());
        assert_eq!(first_plan(Store::Ours(3), &backup).0, []);
    }
}
