//! What every long-running part does: says what it has to say, and ends when asked.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use polder_supervisor::{Ending, Part};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::notify::{self, Who};

/// How much is said: `error`, `warn`, `info`, `debug`.
pub(crate) const LEVEL: &str = "POLDER_LOG";

/// At the end of a process, its blocking threads have this long to finish.
pub(crate) const LEFT_BEHIND: Duration = Duration::from_millis(200);

/// Log lines go to standard error, one line each, for people; to the journal where that is what
/// standard error leads to, with their figures as fields of their own.
pub(crate) fn log(level: &str) {
    let environment = env_logger::Env::new().filter_or(LEVEL, level);
    let mut builder = env_logger::Builder::from_env(environment);
    if systemd_journal_logger::connected_to_journal()
        && let Ok(journal) = systemd_journal_logger::JournalLog::new()
    {
        let filter = builder.build();
        log::set_max_level(filter.filter());
        let journal = journal.with_syslog_identifier("polder".to_owned());
        log::set_boxed_logger(Box::new(Journal { filter, journal }))
            .expect("nothing was logged before");
        return;
    }
    builder
        .format(|out, record| {
            let (time, level) = (out.timestamp_seconds(), record.level());
            write!(out, "{time} {level:5} {}", record.args())?;
            let mut pairs = Pairs(String::new());
            // The only error would be our own.
            let _ = record.key_values().visit(&mut pairs);
            writeln!(out, "{}", pairs.0)
        })
        .init();
}

/// The journal, with the levels of [`LEVEL`].
struct Journal {
    filter: env_logger::Logger,
    journal: systemd_journal_logger::JournalLog,
}

impl log::Log for Journal {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }
    fn log(&self, record: &log::Record<'_>) {
        if self.filter.matches(record) {
            self.journal.log(record);
        }
    }
    fn flush(&self) {}
}

struct Pairs(String);
impl<'kvs> log::kv::VisitSource<'kvs> for Pairs {
    fn visit_pair(
        &mut self,
        key: log::kv::Key<'kvs>,
        value: log::kv::Value<'kvs>,
    ) -> Result<(), log::kv::Error> {
        self.0 += &format!(" {key}={value}");
        Ok(())
    }
}

/// The parts' runtime.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("could not set up asynchronous input and output")
}

/// The door's runtime. Its connections live on threads of the gateway's own, each on one; what is
/// left to do here is little (see the gateway's README).
pub(crate) fn one_thread() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not set up asynchronous input and output")
}

/// Turns the system's signals into what they mean. The first asks for an orderly end, the second
/// for a quick one.
pub(crate) fn endings() -> anyhow::Result<(watch::Sender<Ending>, watch::Receiver<Ending>)> {
    let (end, ending) = watch::channel(Ending::No);
    let listen = |kind| signal(kind).context("could not listen for signals");
    let mut signals = [
        listen(SignalKind::terminate())?,
        listen(SignalKind::interrupt())?,
        listen(SignalKind::hangup())?,
    ];
    let told = end.clone();
    tokio::spawn(async move {
        loop {
            let [term, int, hup] = &mut signals;
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {}, _ = hup.recv() => {} }
            told.send_modify(|ending| {
                *ending = if *ending == Ending::No { Ending::InOrder } else { Ending::Now };
            });
        }
    });
    Ok((end, ending))
}

/// Runs one part of the box in `state` on `runtime` until it is told to end: `work` is given a
/// future that is done at that moment. A second signal, or a supervisor that is gone, ends the
/// process there and then.
pub(crate) fn run<W, E>(
    runtime: tokio::runtime::Runtime,
    who: Part,
    state: &Path,
    work: impl FnOnce(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) -> W,
) -> anyhow::Result<()>
where
    W: Future<Output = Result<(), E>>,
    E: std::error::Error + Send + Sync + 'static,
{
    log("info");
    polder_supervisor::lifeline::hold();
    let done = runtime.block_on(async {
        let (_end, mut ending) = endings()?;
        let (state, told) = (state.to_owned(), ending.clone());
        tokio::spawn(async move { notify::keep_telling(Who::Part(who), &state, told).await });
        let mut hurry = ending.clone();
        tokio::spawn(async move {
            if hurry.wait_for(|e| *e == Ending::Now).await.is_ok() {
                std::process::exit(1);
            }
        });
        let told = Box::pin(async move {
            let _ = ending.wait_for(|e| *e != Ending::No).await;
        });
        work(told).await.map_err(anyhow::Error::from)
    });
    // A blocking thread that is still at work must not hold the end up.
    runtime.shutdown_timeout(LEFT_BEHIND);
    if done.is_err() {
        end_soon();
    }
    done
}

/// Ends this process in a few seconds if it does not do so itself: what a driver left to be run at the end may wait for a device that
/// hangs.
fn end_soon() {
    const LAST: Duration = Duration::from_secs(5);
    let watch = std::thread::Builder::new().name("last".to_owned()).spawn(|| {
        std::thread::sleep(LAST);
        let itself = rustix::process::getpid();
        let _ = rustix::process::kill_process(itself, rustix::process::Signal::KILL);
    });
    if let Err(error) = watch {
        log::warn!("nobody watches over the end: {error}");
    }
}

/// A part can only run where there is a box.
pub(crate) fn site(state: &Path) -> anyhow::Result<polder_site::Site> {
    let store = polder_site::Store::open(state)?;
    store.current()?.with_context(|| {
        format!("there is no box in {} yet; make one with `polder up`", state.display())
    })
}
