//! One file over several connections, in chunks that may come in any order.

use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use crate::WeightsError;
use crate::partial::{BLOCK, Hash, Partial};
use crate::progress::{CancelFlag, Event, Teller};
use crate::web::{Fault, Reply, Web, chance, gave_up, sleep};

/// So much on a connection counts as progress, and the patience with it begins anew.
const PROGRESS: u64 = 64 << 10;
/// So much is hashed between two looks at what the connections say.
const HASH_AT_ONCE: u64 = 8 << 20;

/// A file on a server, as the first answer described it.
pub(crate) struct Remote<'a> {
    pub(crate) url: &'a str,
    pub(crate) name: &'a str,
    pub(crate) size: u64,
    /// ETag or date that every part must have; none is not checked.
    pub(crate) mark: Option<&'a str>,
}

/// What a connection says to the one thread that counts, hashes and keeps the journal.
enum News {
    Moved(u64),
    Chunk(usize),
    Retrying(String, Duration),
    Failed(Box<WeightsError>),
    Changed,
}

/// How fetching ended, when nothing failed.
pub(crate) enum Ended {
    /// Everything is in the partial file and was hashed.
    Whole(Hash),
    /// The server has another file now: what is here is of no use.
    Changed,
}

/// Fetches every missing chunk. Hashes behind the connections, so that little is left at the end.
pub(crate) fn fetch(
    web: &Web,
    remote: &Remote<'_>,
    partial: &mut Partial,
    teller: &mut Teller<'_>,
    cancel: &CancelFlag,
) -> Result<Ended, WeightsError> {
    let missing: VecDeque<_> = partial.missing().into();
    let connections = web.connections.min(missing.len());
    let queue = Mutex::new(missing);
    let stop = AtomicBool::new(false);
    let file = partial.file().try_clone().map_err(WeightsError::store("use", partial.path()))?;
    let path = partial.path().to_owned();
    let mut hash = Hash::default();
    let ended = std::thread::scope(|scope| {
        // On every way out, a panic of the observer included, the connections are told to end.
        let _stop = StopOnDrop(&stop);
        let (sender, news) = sync_channel(64);
        for _ in 0..connections {
            let connection = Connection {
                web,
                remote,
                file: &file,
                path: &path,
                queue: &queue,
                stop: &stop,
                news: sender.clone(),
            };
            scope.spawn(move || connection.work());
        }
        drop(sender);
        loop {
            cancel.check()?;
            match news.recv_timeout(Duration::from_millis(100)) {
                Ok(News::Moved(bytes)) => teller.moved(bytes),
                Ok(News::Chunk(index)) => partial.wrote_chunk(index)?,
                Ok(News::Retrying(why, wait)) => {
                    teller.say(Event::Retrying { file: remote.name.to_owned(), why, wait });
                }
                Ok(News::Failed(why)) => return Err(*why),
                Ok(News::Changed) => return Ok(false),
                Err(RecvTimeoutError::Timeout) => teller.tell(),
                Err(RecvTimeoutError::Disconnected) => return Ok(true),
            }
            let frontier = partial.frontier();
            hash.follow(partial.file(), frontier, HASH_AT_ONCE)
                .map_err(WeightsError::store("read back", partial.path()))?;
        }
    })?;
    if !ended {
        return Ok(Ended::Changed);
    }
    partial.save()?;
    Ok(Ended::Whole(hash))
}

struct StopOnDrop<'a>(&'a AtomicBool);
impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Connection<'a> {
    web: &'a Web,
    remote: &'a Remote<'a>,
    file: &'a std::fs::File,
    path: &'a Path,
    queue: &'a Mutex<VecDeque<(usize, Range<u64>)>>,
    stop: &'a AtomicBool,
    news: SyncSender<News>,
}

impl Connection<'_> {
    fn work(&self) {
        let mut block = vec![0; BLOCK / 4];
        loop {
            let next = self.queue.lock().unwrap_or_else(|e| e.into_inner()).pop_front();
            let Some((index, range)) = next else { return };
            let last = match self.chunk(range, &mut block) {
                Ok(()) => News::Chunk(index),
                Err(None) => return,
                Err(Some(last)) => last,
            };
            let go_on = matches!(last, News::Chunk(_));
            if self.news.send(last).is_err() || !go_on {
                return;
            }
        }
    }
    /// Brings one chunk, over as many requests as it takes. `Err(None)` when told to stop.
    fn chunk(&self, range: Range<u64>, block: &mut [u8]) -> Result<(), Option<News>> {
        let Range { start: mut at, end } = range;
        let mut failures = 0;
        loop {
            let before = at;
            let Some(fault) = self.request(&mut at, end, block)? else { return Ok(()) };
            let enough = PROGRESS.min(end - before);
            failures = if at - before >= enough { 1 } else { failures + 1 };
            match fault {
                Fault::Changed => return Err(Some(News::Changed)),
                Fault::Passing(why, asked) if failures < self.web.pace.tries => {
                    let wait = asked.unwrap_or_else(|| self.web.pace.wait(failures, chance()));
                    self.send(News::Retrying(why, wait))?;
                    sleep(wait, &|| self.stopped());
                }
                fault => {
                    let why = gave_up(self.remote.name, self.remote.url, fault);
                    return Err(Some(News::Failed(Box::new(why))));
                }
            }
        }
    }
    /// One request from `at` to `end`; moves `at`. `Ok(None)` when it reached the end.
    fn request(
        &self,
        at: &mut u64,
        end: u64,
        block: &mut [u8],
    ) -> Result<Option<Fault>, Option<News>> {
        let mut body = match self.web.get(self.remote.url, Some(&(*at..end)), self.remote.mark) {
            Ok(Reply::Part { body, total, .. }) if total == self.remote.size => body,
            Ok(_) => return Ok(Some(Fault::Changed)),
            Err(fault) => return Ok(Some(fault)),
        };
        while *at < end {
            let want = usize::try_from(end - *at).unwrap_or(block.len()).min(block.len());
            let count = match body.read(&mut block[..want]) {
                Ok(0) => return Ok(Some(Fault::Passing("the connection was cut".into(), None))),
                Ok(count) => count,
                Err(e) => return Ok(Some(Fault::Passing(e.to_string(), None))),
            };
            self.file.write_all_at(&block[..count], *at).map_err(|e| {
                let why = WeightsError::writing(self.remote.name, self.path)(e);
                Some(News::Failed(Box::new(why)))
            })?;
            *at += count as u64;
            self.send(News::Moved(count as u64))?;
        }
        Ok(None)
    }
    fn send(&self, news: News) -> Result<(), Option<News>> {
        if self.stopped() {
            return Err(None);
        }
        self.news.send(news).map_err(|_| None)
    }
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
