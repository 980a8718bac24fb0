use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use polder_control::{Actor, ControlError, Sockets};
use polder_seal::{Reset, SAFE_MODE};
use polder_site::{Site, Store, StoreError};
use tokio::sync::watch;

use crate::audit::{Trail, TrailError, Verdict};
use crate::desk::Desk;
use crate::parts::Parts;
use crate::plan::CONFIRM_WITHIN;
use crate::runs::Ledger;
use crate::shelf::Shelf;
use crate::work::Work;
use crate::{disk, erase};

/// Which box, and how it begins.
#[derive(Debug, Clone)]
pub struct Options {
    /// The state folder; made if it is not there.
    pub state: PathBuf,
    /// The site of a box that has none yet.
    pub first: Site,
    /// Listen on this port from now on, whatever the site says.
    pub port: Option<u16>,
    /// Listen on these addresses from now on, whatever the site says.
    pub listen: Option<Vec<IpAddr>>,
    /// How long parts have to finish what they have.
    pub patience: Patience,
}

/// How long parts may take to finish what they have, before they are told to end at once.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The gateway, with its open streams.
    pub gateway: Duration,
    /// An engine that makes room for another model while the box goes on.
    pub engine: Duration,
    /// The engines when the box ends. The gateway has gone by then, so that they should have
    /// nothing left.
    pub last: Duration,
    /// How long a steward has to confirm a change that could lock everybody out.
    pub confirm: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            gateway: seconds(20),
            engine: seconds(30),
            last: seconds(8),
            confirm: CONFIRM_WITHIN,
        }
    }
}

/// Whether the supervisor should go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Go on.
    No,
    /// Finish what is there, then end.
    InOrder,
    /// End as fast as it goes without damage.
    Now,
}

/// The supervisor could not begin, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// Two supervisors would undo each other's work.
    #[error(
        "another polder{} is running on {}; use that one (`polder claim reopen` prints a new link to it), end it first, or give this one another --state",
        .process.map(|p| format!(" (process {p})")).unwrap_or_default(),
        state.display()
    )]
    Taken {
        /// Which state folder.
        state: PathBuf,
        /// The other one's process number, where it said so.
        process: Option<u32>,
    },
    /// The state folder could not be used.
    #[error("could not use the state folder {}", path.display())]
    State {
        /// Which file or folder in it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system allows a socket's path 107 bytes.
    #[error(
        "the path of the state folder is too long for the sockets in it ({}); use one of at most \
         {LONGEST_STATE} bytes",
        state.display()
    )]
    LongPath {
        /// The state folder.
        state: PathBuf,
    },
    /// The site could not be read or written.
    #[error(transparent)]
    Site(#[from] StoreError),
    /// The audit trail could not be used.
    #[error(transparent)]
    Trail(#[from] TrailError),
    /// A restored box could not be put in place.
    #[error("a restored box could not be put in place, and the next start tries again")]
    Restore(#[from] polder_backup::BackupError),
    /// A box that was ended could not be erased.
    #[error("this box was ended and could not be erased yet ({0}); the next start goes on with it")]
    End(String),
    /// Nobody could ask us anything.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Runs the box in this state folder until `ending` says otherwise. Returns when every part has
/// ended.
pub async fn run<P: Parts>(
    options: Options,
    parts: P,
    shelf: Arc<dyn Shelf>,
    mut ending: watch::Receiver<Ending>,
) -> Result<(), SupervisorError> {
    let mut options = options;
    make_folder(&options.state)?;
    let _mine = take(&options.state)?;
    if settle_end(&options.state, &parts).await? {
        // What a seed called it was part of what is gone.
        options.first.name = Site::unclaimed(options.first.door.port).name;
    }
    let Options { state, patience, .. } = &options;
    settle_restore(state, &parts).await?;
    let store = Store::open(state)?;
    let (mut trail, verdict) = Trail::open(state)?;
    report(&mut trail, &verdict)?;
    let site = settle_site(&options, &store, &mut trail)?;
    let safe = settle_safe_mode(state, &mut trail)?;
    let ledger = Ledger::open(state)
        .map_err(|source| SupervisorError::State { path: state.join("runs.json"), source })?;
    let work = Work::new(state.clone(), parts, shelf, *patience, site, safe, store, trail, ledger);
    let _gone = Gone(work.clone());

    let control = Sockets::of(state).control();
    let serving = polder_control::serve(&control, Arc::new(Desk(work.clone())));
    tokio::pin!(serving);
    // Bound before the parts start: the gateway asks for the site as soon as it is up.
    let bound = poll_once(serving.as_mut()).await;
    if let Some(ended) = bound {
        return ended.map_err(Into::into);
    }
    work.begin().await;
    let outcome = tokio::select! {
        ended = &mut serving => ended.map_err(Into::into),
        // A restored box waits to be put in place: whoever called begins anew.
        () = work.anew.cancelled() => Ok(()),
        // A sender that is gone cannot call us back either.
        _ = ending.wait_for(|e| *e != Ending::No) => Ok(()),
        () = work.spent.cancelled() => Ok(()),
    };
    let now = *ending.borrow_and_update() == Ending::Now;
    log::info!("ending{}", if now { " at once" } else { " in order; once more to hurry" });
    let end = work.end(now);
    tokio::pin!(end);
    tokio::select! {
        () = &mut end => return outcome,
        // The gateway still has things to write down while it drains.
        _ = &mut serving, if outcome.is_ok() => {}
        _ = ending.wait_for(|e| *e == Ending::Now) => {}
    }
    work.end_now();
    end.await;
    outcome
}

/// Lets go of everything that would go on by itself when the supervisor is gone, however it went: a task that only waits
/// must not keep a part, while the next supervisor keeps it too.
struct Gone<P: Parts>(Arc<Work<P>>);

impl<P: Parts> Drop for Gone<P> {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

/// Polls once, so that what a future does before its first wait is done.
async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match future.as_mut().poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

/// Erases a box that was ended, before anything is read of it. True where that was so.
async fn settle_end<P: Parts>(state: &Path, parts: &P) -> Result<bool, SupervisorError> {
    if !erase::ending(state) {
        return Ok(false);
    }
    log::warn!("this box was ended; everything that it keeps of its members is erased");
    parts.quiet().await.map_err(|error| SupervisorError::End(error.to_string()))?;
    let failed = |error: io::Error| SupervisorError::End(error.to_string());
    let of = state.to_owned();
    let ended = tokio::task::spawn_blocking(move || erase::carry_out(&of)).await;
    let ended = ended.map_err(|error| SupervisorError::End(error.to_string()))?.map_err(failed)?;
    if let Some(mut ended) = ended {
        let reset = if ended.keep_models { Reset::KeepModels } else { Reset::Everything };
        ended.disk = disk::reset(reset).await;
        erase::write_ended(state, &ended).map_err(failed)?;
    }
    for name in polder_backup::restore::ALWAYS_THERE {
        let path = state.join(name);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(failed)?;
    }
    erase::over(state).map_err(failed)?;
    make_folder(state)?;
    Ok(true)
}

/// What a restored box waits for parts of the box that was here, well within the time that its unit has to start.
const AFTER_RESTORE: Duration = Duration::from_secs(15);

/// Puts a restored box in place before anything is read of the one that was there.
async fn settle_restore<P: Parts>(state: &Path, parts: &P) -> Result<(), SupervisorError> {
    if let Some(settled) = polder_backup::restore::settle(state)? {
        log::warn!(
            "this is a restored box; what was here before is in {}",
            settled.aside.display()
        );
        // Whoever knocked in between had systemd start a gateway of the box that was here, whose files it still has open. Later ones have the
        // restored box's, so that one that will not end in time holds nothing up.
        match tokio::time::timeout(AFTER_RESTORE, parts.quiet()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::error!("a part of the box that was here may still run: {error}"),
            Err(_) => log::error!("a part of the box that was here does not end in time"),
        }
    }
    Ok(())
}

/// The site as it will be served: the one there is, or the first one, with the options' door.
fn settle_site(
    options: &Options,
    store: &Store,
    trail: &mut Trail,
) -> Result<Site, SupervisorError> {
    let Options { port, listen, .. } = options;
    let door = |mut site: Site| {
        site.door.port = port.unwrap_or(site.door.port);
        site.door.listen = listen.clone().unwrap_or(site.door.listen);
        site
    };
    let site = store.current_or_first(|| door(options.first.clone()))?;
    for key in store.unknown()? {
        log::warn!("{key}");
    }
    let next = door(site.clone());
    if next != site {
        let addresses: Vec<String> = next.door.listen.iter().map(ToString::to_string).collect();
        let at = format!("port {} at {}", next.door.port, addresses.join(", "));
        trail.append(Actor::Console, "moved the door to", &at)?;
        store.write(&next, "started with another door")?;
    }
    Ok(next)
}

/// Whether this start is one without engines and apps. The wish for it is used up by the first supervisor that finds
/// it, so that the next start is an ordinary one; `run/` does not outlive this one.
fn settle_safe_mode(state: &Path, trail: &mut Trail) -> Result<bool, SupervisorError> {
    let (wish, now) = (state.join(SAFE_MODE), Sockets::of(state).folder().join(SAFE_MODE));
    if wish.exists() {
        trail.append(Actor::Console, "started without engines and apps", "the box")?;
        for done in [File::create(&now).map(drop), fs::remove_file(&wish)] {
            done.map_err(|source| SupervisorError::State { path: wish.clone(), source })?;
        }
    }
    let safe = now.exists();
    if safe {
        log::warn!("this is safe mode: engines and apps stay off until the machine starts again");
    }
    Ok(safe)
}

/// Says how the audit trail was found; loudly, and once per break, in the trail itself.
fn report(trail: &mut Trail, verdict: &Verdict) -> Result<(), SupervisorError> {
    match verdict {
        Verdict::Whole => {}
        Verdict::Repaired { bytes } => {
            log::warn!("the audit trail ended in half a line ({bytes} bytes), which was taken off");
            trail.append(Actor::Itself, "took half a line off", "the audit trail")?;
        }
        Verdict::Broken(fault) => {
            log::error!(
                "the audit trail is broken: {fault}; somebody changed it, or the disk fails"
            );
            const WHAT: &str = "found the audit trail broken:";
            let told = trail.page(None, 500)?.iter().any(|e| e.what == WHAT && e.on == *fault);
            if !told {
                trail.append(Actor::Itself, WHAT, fault)?;
            }
        }
    }
    Ok(())
}

/// Room for `/run/gateway.sock` and for an engine's socket with a name of ten letters.
const LONGEST_STATE: usize = 80;

/// Only the owner of the state folder may look into it: it holds keys and people's sessions.
fn make_folder(state: &Path) -> Result<(), SupervisorError> {
    if state.as_os_str().len() > LONGEST_STATE {
        return Err(SupervisorError::LongPath { state: state.to_owned() });
    }
    for path in [state.to_owned(), Sockets::of(state).folder().to_owned()] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|source| SupervisorError::State { path, source })?;
    }
    Ok(())
}

/// Takes the state folder for this process, until the file is closed: also by a crash.
fn take(state: &Path) -> Result<File, SupervisorError> {
    let path = Sockets::of(state).folder().join("supervisor.lock");
    let fail = |source| SupervisorError::State { path: path.clone(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let _ = (&mut file).take(32).read_to_string(&mut text);
            let process = text.trim().parse().ok();
            return Err(SupervisorError::Taken { state: state.to_owned(), process });
        }
        Err(TryLockError::Error(source)) => return Err(fail(source)),
    }
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(fail)?;
    Ok(file)
}
