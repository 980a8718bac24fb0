use std::io::{BufRead, IsTerminal};
use std::path::Path;

use anyhow::{Context, bail};
use polder_backup::{
    Folders, Kit, KitKey, Location, Repository, Restic, Snapshot, Stop, Unpaired, disk,
    keep_pairing, locate, restore, restore_plan,
};
use polder_control::{
    Actor, BackupStatus, BackupWish, KitWords, Plan, PluggedDisk, Reply, Request, Sockets,
};
use polder_site::{Backup as Wanted, BackupPlace, FileSystemId, SiteChange};
use polder_supervisor::{Weights, fit_restored};

use crate::console::{ProgressLine, bytes, complain, say};
use crate::follow::Follower;
use crate::state::{State, runtime, unexpected};

/// Keep copies of what is precious of the box elsewhere, and have a box again from them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder backup kit                       the emergency kit, to be printed and typed back\n  polder backup to /mnt/usb               keep backups on that disk, every hour\n  polder backup status                    how old the last one is, and what the last drill found\n  polder backup restore --from /mnt/usb   on a new machine: be that box again"
)]
pub(crate) struct Backup {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Say how old the last backup is, what failed, and what the last drill found.
    #[command(after_help = "Examples:\n  polder backup status\n  polder backup status --json")]
    Status {
        #[command(flatten)]
        state: State,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Print the emergency kit: the key that opens the backups. Print it, keep it where the box is not.
    #[command(
        after_help = "Examples:\n  polder backup kit > kit.txt\n  polder backup kit --confirm      then type the key back from the paper; backups begin after that"
    )]
    Kit {
        #[command(flatten)]
        state: State,
        /// Type the key back from the paper.
        #[arg(long)]
        confirm: bool,
    },
    /// Say where backups go, or with `none` that none are made: a folder, a disk by its label, or a server that speaks restic's protocol.
    #[command(
        after_help = "Examples:\n  polder backup to /mnt/usb\n  polder backup to disk:POLDER-BACKUP --plan\n  polder backup to disk:POLDER-BACKUP@1C2E-44AF      as `polder backup disk list` writes it\n  polder backup to rest:https://spare.local:8000/box --limit-kib 2000\n  polder backup to none"
    )]
    To {
        /// The place.
        #[arg(value_name = "PLACE")]
        place: String,
        /// Send at most so many KiB per second; 0 is as fast as it goes. [default: as it was]
        #[arg(long, value_name = "N")]
        limit_kib: Option<u32>,
        /// Only say what would be done.
        #[arg(long)]
        plan: bool,
        #[command(flatten)]
        state: State,
    },
    /// USB disks that are plugged in; and root's part on the image, which mounts one for writing.
    #[command(after_help = "Example:\n  polder backup disk list")]
    Disk {
        #[command(subcommand)]
        what: Disk,
    },
    /// Write the name and password for a server that asks for them; they are read from standard input, as NAME:PASSWORD.
    #[command(after_help = "Example:\n  polder backup login < name-and-password.txt")]
    Login {
        #[command(flatten)]
        state: State,
    },
    /// Make a backup now.
    #[command(after_help = "Example:\n  polder backup now")]
    Now {
        #[command(flatten)]
        state: State,
    },
    /// Restore the newest backup for a trial, look whether it is a whole box, and start a door on it.
    #[command(after_help = "Example:\n  polder backup drill")]
    Drill {
        #[command(flatten)]
        state: State,
    },
    /// List the backups there are.
    #[command(
        after_help = "Examples:\n  polder backup list\n  polder backup list --from /mnt/usb     then type the key from the emergency kit"
    )]
    List {
        #[command(flatten)]
        state: State,
        /// Of another box, with the key from its emergency kit.
        #[arg(long, value_name = "PLACE")]
        from: Option<BackupPlace>,
    },
    /// Be the box of a backup: same members, keys, names and certificate authority. The key is read from the terminal or standard input.
    #[command(
        after_help = "Examples:\n  polder backup restore --from /mnt/usb --plan\n  polder backup restore --from /mnt/usb --state /var/lib/polder\n  polder backup restore --from rest:https://spare.local:8000/box --snapshot 1a2b3c4d < key.txt\n\nWhat was in the state folder before is put aside in it, never removed. Models are fetched again by their digests at the next start."
    )]
    Restore {
        /// Where the backups are.
        #[arg(long, value_name = "PLACE")]
        from: BackupPlace,
        /// Which, as `polder backup list` names it. [default: the newest]
        #[arg(long, value_name = "ID")]
        snapshot: Option<String>,
        /// Only say what would be done.
        #[arg(long)]
        plan: bool,
        #[command(flatten)]
        state: State,
    },
}

#[derive(Debug, clap::Subcommand)]
enum Disk {
    /// List those that are plugged in, and how a place for backups on each is written.
    #[command(after_help = "Example:\n  polder backup disk list")]
    List {
        #[command(flatten)]
        state: State,
    },
    /// Mount one for the box's own user, with a folder for backups. Needs root; the image does this by itself.
    #[command(after_help = "Example:\n  polder backup disk lend 1C2E-44AF")]
    Lend {
        /// Which: its UUID.
        #[arg(value_name = "ID")]
        id: FileSystemId,
        /// Whose it is to be: the owner of this folder.
        #[arg(long, value_name = "DIR", default_value = "/run/polder")]
        whose: std::path::PathBuf,
    },
    /// Unmount it, and have it only read again. Needs root.
    #[command(after_help = "Example:\n  polder backup disk take-back 1C2E-44AF")]
    TakeBack {
        /// Which: its UUID.
        #[arg(value_name = "ID")]
        id: FileSystemId,
    },
}

impl Disk {
    fn run(self) -> anyhow::Result<()> {
        let disks = disk::Disks::default();
        match self {
            Self::List { state } => {
                let Reply::Backup(status) = state.ask(&Request::Backup)? else {
                    return Err(unexpected());
                };
                let lines: Vec<String> = status.disks.iter().map(line_of).collect();
                say(match lines.is_empty() {
                    true => "no disk is plugged in by USB".to_owned(),
                    false => lines.join("\n"),
                });
            }
            Self::Lend { id, whose } => {
                disks.lend(&id, &whose)?;
            }
            Self::TakeBack { id } => {
                disks.take_back(&id)?;
            }
        }
        Ok(())
    }
}

fn line_of(disk: &PluggedDisk) -> String {
    let place = disk.place.as_deref().unwrap_or("no place for backups");
    let kind = if disk.kind.is_empty() { "no file system" } else { &disk.kind };
    let wrong = disk.wrong.as_ref().map(|why| format!("\n  {why}")).unwrap_or_default();
    format!("{place}  {}, {}, {kind}{wrong}", disk.name, bytes(disk.bytes))
}

impl Backup {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        crate::part::log(match self.command {
            // A unit of the image, whose words are for its journal.
            Command::Disk { what: Disk::Lend { .. } | Disk::TakeBack { .. } } => "info",
            _ => "error",
        });
        match self.command {
            Command::Status { state, json } => status(&state, json),
            Command::Kit { state, confirm } => kit(&state, confirm),
            Command::To { place, limit_kib, plan, state } => to(&state, &place, limit_kib, plan),
            Command::Disk { what } => what.run(),
            Command::Login { state } => login(&state),
            Command::Now { state } => {
                wish(&state, BackupWish::Now)?;
                status(&state, false)
            }
            Command::Drill { state } => {
                wish(&state, BackupWish::Drill)?;
                status(&state, false)
            }
            Command::List { state, from } => list(&state, from),
            Command::Restore { from, snapshot, plan, state } => {
                restore_box(&state, &from, snapshot.as_deref(), plan)
            }
        }
    }
}

fn status(state: &State, json: bool) -> anyhow::Result<()> {
    let Reply::Backup(status) = state.ask(&Request::Backup)? else { return Err(unexpected()) };
    if json {
        say(serde_json::to_string_pretty(&status)?);
    } else {
        say(text(&status, now()));
    }
    Ok(())
}

fn text(status: &BackupStatus, now: i64) -> String {
    let mut lines = Vec::new();
    let to = status.to.as_deref().unwrap_or("nowhere");
    lines.push(format!("backups go to {to}"));
    lines.push(match &status.last {
        Some(last) => format!(
            "  last backup   {}, {} of which {} were new{}",
            ago(now, last.at),
            bytes(last.bytes),
            bytes(last.added),
            if last.thinned { "" } else { "; that place lets no old ones be removed" }
        ),
        None => "  last backup   none yet".to_owned(),
    });
    lines.push(match &status.drill {
        Some((at, Ok(found))) => format!("  last drill    {}: {found}", ago(now, *at)),
        Some((at, Err(why))) => format!("  last drill    {}, not good: {why}", ago(now, *at)),
        None => "  last drill    none yet".to_owned(),
    });
    let wrong = status.wrong(now).into_iter().chain(status.left_out.iter().cloned());
    lines.extend(wrong.map(|wrong| format!("  look after    {wrong}")));
    lines.join("\n")
}

fn ago(now: i64, then: i64) -> String {
    match now.saturating_sub(then) {
        ..=119 => "just now".to_owned(),
        seconds @ ..=7199 => format!("{} minutes ago", seconds / 60),
        seconds @ ..=172_799 => format!("{} hours ago", seconds / 3600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

fn now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

fn kit(state: &State, confirm: bool) -> anyhow::Result<()> {
    if confirm {
        let key = KitWords(typed_key()?.expose().to_owned());
        state.ask(&Request::ConfirmKit { key, by: Actor::Console })?;
        say("the key is on paper; backups may begin");
        return Ok(());
    }
    let Reply::Kit(key) = state.ask(&Request::BackupKit { by: Actor::Console })? else {
        return Err(unexpected());
    };
    let Reply::Status(status) = state.ask(&Request::Status)? else { return Err(unexpected()) };
    let ca = polder_pki::examine(&state.folder()?.join("pki"))?;
    let kit = Kit {
        name: status.site.name.to_string(),
        place: status.site.backup.map(|backup| backup.to.to_string()),
        fingerprint: ca.fingerprint,
        key: KitKey::typed(&key.0)?,
    };
    say(format!("{}\n{}", kit.text(), kit.code()));
    complain("then: polder backup kit --confirm");
    Ok(())
}

fn to(state: &State, place: &str, limit_kib: Option<u32>, plan: bool) -> anyhow::Result<()> {
    let Reply::Status(status) = state.ask(&Request::Status)? else { return Err(unexpected()) };
    let change = match place {
        "none" => SiteChange::RemoveBackup,
        place => {
            let to: BackupPlace = place.parse()?;
            let mut backup = match status.site.backup {
                Some(before) => Wanted { to, ..before },
                None => Wanted::to(to),
            };
            backup.limit_kib = limit_kib.unwrap_or(backup.limit_kib);
            SiteChange::Backup(backup)
        }
    };
    if plan {
        let Reply::Preview { plan, .. } = state.ask(&Request::Preview(change))? else {
            return Err(unexpected());
        };
        say(plan);
        return Ok(());
    }
    runtime()?.block_on(Follower::of(&state.folder()?).apply(change))?;
    say(match place {
        "none" => "no backups are made any more; those there are stay".to_owned(),
        place => format!("the first backup is at {place}; from now on there is one every hour"),
    });
    Ok(())
}

fn login(state: &State) -> anyhow::Result<()> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("could not read standard input")?;
    let line = line.trim();
    let plain = |c: char| c.is_ascii_graphic() && !"/@#?".contains(c);
    match line.split_once(':') {
        Some((name, password))
            if !name.is_empty() && !password.is_empty() && line.chars().all(plain) => {}
        _ => bail!("write NAME:PASSWORD in one line, without spaces and without / @ # ?"),
    }
    let path = Folders::of(&state.folder()?).login();
    if let Some(folder) = path.parent() {
        crate::state::make(folder)?;
    }
    let _ = std::fs::remove_file(&path);
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
    let written = options.open(&path);
    written
        .and_then(|mut file| std::io::Write::write_all(&mut file, line.as_bytes()))
        .with_context(|| format!("could not write {}", path.display()))
}

fn wish(state: &State, wish: BackupWish) -> anyhow::Result<()> {
    let request = Request::Backups { wish, key: None, by: Actor::Console };
    runtime()?.block_on(Follower::of(&state.folder()?).follow(&request))
}

/// A store, and the key to it: the box's own, or one that is typed.
fn open(folder: &Path, from: Option<&BackupPlace>) -> anyhow::Result<(Location, Restic, KitKey)> {
    let folders = Folders::of(folder);
    let (place, key) = match from {
        Some(place) => (place.clone(), typed_key()?),
        None => {
            let backup = crate::part::site(folder)?.backup;
            let nowhere = "nobody has said where backups go; say so with `polder backup to PLACE`";
            let key = KitKey::read(&folders)?.context("this box has no key of backups yet")?;
            (backup.context(nowhere)?.to, key)
        }
    };
    let location = locate(&place, &folders)?;
    let store = Restic::of(&location, &key, 0, &folders.own());
    Ok((location, store, key))
}

fn list(state: &State, from: Option<BackupPlace>) -> anyhow::Result<()> {
    let (_, store, _) = open(&state.folder()?, from.as_ref())?;
    let line = |snapshot: &Snapshot| {
        let time = snapshot.time.split('.').next().unwrap_or_default();
        let id: String = snapshot.id.chars().take(8).collect();
        format!("{id}  {time}  {}", snapshot.hostname)
    };
    let snapshots = store.snapshots()?;
    say(snapshots.iter().map(line).collect::<Vec<_>>().join("\n"));
    Ok(())
}

fn restore_box(
    state: &State,
    from: &BackupPlace,
    snapshot: Option<&str>,
    plan: bool,
) -> anyhow::Result<()> {
    let steps: Vec<_> = restore_plan().iter().map(|action| action.step(&from.shown())).collect();
    let title = format!("Become the box whose backups are at {from}");
    let shown = Plan { title, steps };
    if plan {
        say(shown);
        return Ok(());
    }
    let folder = state.make()?;
    let running = Sockets::of(&folder).control();
    if std::os::unix::net::UnixStream::connect(running).is_ok() {
        bail!(
            "a box runs in {}; stop it first, or restore from its own first page",
            folder.display()
        );
    }
    let (location, store, key) = open(&folder, Some(from))?;
    let folders = Folders::of(&folder);
    let snapshots = store.snapshots()?;
    let chosen = restore::choose(&snapshots, snapshot, &location.shown())?;
    complain(&shown);
    let mut line = ProgressLine::new();
    let mut observer = |progress| line.show("Fetching the backup", Some(&progress));
    let fetched =
        restore::fetch(&folders, &store, &chosen, &snapshots, &mut observer, &Stop::default());
    line.finish("");
    fetched?;
    let examined = restore::examine(&folders)?;
    keep_pairing(&folders)?;
    restore::begin_anew(&folders)?;
    restore::tell_of_passwords(&folders, &examined.made_at)?;
    let machine = runtime()?.block_on(polder_supervisor::this_machine(&folder));
    let left =
        fit_restored(&folder, &Weights::of(&folder)?, &machine).map_err(anyhow::Error::msg)?;
    restore::ready(&folders, &key)?;
    let settled = restore::settle(&folder)?;
    say(format!("this is {}", examined.words()));
    say(format!("its certificate authority has the fingerprint {}", examined.fingerprint));
    complain(restore::old_passwords(&examined.made_at));
    if let Some(settled) = settled {
        complain(format!("what was here before is in {}", settled.aside.display()));
    }
    for left in &left {
        complain(left.sentence());
    }
    if let Some(lost) = Unpaired::noted(&folder) {
        complain(lost.sentence());
    }
    say(format!("start it with: polder up --state {}", folder.display()));
    Ok(())
}

/// The key as it is typed: never an argument, which everybody on the machine could see.
fn typed_key() -> anyhow::Result<KitKey> {
    if std::io::stdin().is_terminal() {
        complain("Type the key from the emergency kit, nine groups of four letters:");
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("could not read the key")?;
    Ok(KitKey::typed(&line)?)
}

#[cfg(test)]
mod tests {
    use polder_control::LastBackup;

    use super::*;

    #[test]
    fn the_status_says_how_old_a_backup_is_and_what_to_look_after() {
        let mut status = BackupStatus {
            kit: true,
            to: Some("/mnt/usb".to_owned()),
            last: Some(LastBackup { at: 900, bytes: 1 << 20, added: 1024, thinned: true }),
            failed: None,
            drill: Some((500, Ok("the newest backup is a whole box".to_owned()))),
            left_out: Vec::new(),
            disks: Vec::new(),
        };
        assert_eq!(
            text(&status, 1000),
            "backups go to /mnt/usb\n  \
             last backup   just now, 1.0 MiB of which 1.0 KiB were new\n  \
             last drill    8 minutes ago: the newest backup is a whole box"
        );
        status.failed = Some((950, "the disk is full".to_owned()));
        let failed = text(&status, 1000);
        assert!(
            failed.ends_with("look after    The last backup failed: the disk is full"),
            "{failed}"
        );
        status.left_out.push("fast is left out".to_owned());
        assert!(text(&status, 1000).ends_with("look after    fast is left out"));
    }
}
