//! Sends models to the spare, so that it can serve them: by digest, only what it lacks, and from where a cut left it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request};
use polder_control::{Client, DoorReply, DoorRequest, Plan, Progress, RunId, Unit};
use polder_site::RecipeName;
use polder_spare::{Folders, Link};
use polder_takeover::{Action, send};
use polder_weights::{Held, HeldModel, Judged, Manifest, PIECE, Store, Taken};
use tokio_util::sync::CancellationToken;

use super::takeover::Handing;
use super::{Refusal, Work, blocking};
use crate::pace::Pace;
use crate::parts::Parts;

/// A spare that does not answer is tried again after this, twice as long each time, so often.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const TRIES: u32 = 8;
/// Between two looks at whether sending may go on: the way out is metered, or the mains is away.
const WAIT: Duration = Duration::from_secs(10);
/// Bytes of a piece while members are answered, and how many times as long as it took nothing is sent afterwards.
const SMALL: u64 = 256 << 10;
const LEFT_TO_OTHERS: u32 = 4;
/// The gateway says how it is within this.
const SOON: Duration = Duration::from_secs(2);
/// A piece must be taken within this; then it is sent again.
const PIECE_WITHIN: Duration = Duration::from_secs(120);
/// Files that arrive damaged this often are damaged here.
const MOST_WRONG: u32 = 2;

impl<P: Parts> Work<P> {
    /// What of the box's models would be sent.
    pub(super) async fn sending(&self, other: &str) -> Result<Handing, Refusal> {
        let site = self.board.site();
        let imported = self.imported().await?;
        let mut models: Vec<RecipeName> =
            site.engines.into_values().map(|slot| slot.recipe).collect();
        models.sort();
        models.dedup();
        models.retain(|recipe| imported.contains(recipe));
        if models.is_empty() {
            return Err("this box has no model yet that it could send".to_owned());
        }
        let told = models.into_iter().map(|recipe| {
            let what = self.shelf.describe(&recipe);
            let title = what.as_ref().map_or_else(|| recipe.to_string(), |what| what.title.clone());
            let bytes = what.and_then(|what| what.bytes).map(crate::plan::size);
            (recipe, title, bytes)
        });
        let (plan, actions): (Plan, Vec<Action>) = send(other, told.collect());
        Ok(Handing { plan, actions })
    }

    pub(super) async fn send_model(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        recipe: &RecipeName,
        cancel: &CancellationToken,
    ) -> Result<(), Refusal> {
        let stopped = || "it was stopped; what was sent stays, and goes on from there".to_owned();
        tokio::select! {
            sent = self.send_whole(id, step, recipe) => sent,
            () = cancel.cancelled() => Err(stopped()),
            () = self.ending.cancelled() => Err(stopped()),
        }
    }

    async fn send_whole(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        recipe: &RecipeName,
    ) -> Result<(), Refusal> {
        let (folder, name) = (self.state.join("weights"), recipe.to_string());
        let manifest = blocking(move || {
            let store = Store::open(folder).map_err(|e| e.to_string())?;
            store
                .manifest(&name)
                .map_err(|e| e.to_string())?
                .ok_or_else(|| format!("{name} is not here any more"))
        })
        .await?;
        let link = Link::of(&Folders::of(&self.state)).map_err(|e| e.to_string())?;
        let held: HeldModel = ask(&link, "/hand/weights/held", &manifest).await?;
        let total: u64 = held.files.iter().map(|file| file.size).sum();
        let had: u64 = held.files.iter().map(|file| file.bytes).sum();
        let mut further = Further { total, done: had, pace: Pace::default() };
        for file in &held.files {
            self.send_file(&link, file, &mut further, &|progress| {
                self.board.progress(id, step, progress)
            })
            .await?;
        }
        ask(&link, "/hand/weights/adopt", &manifest).await
    }

    async fn send_file(
        &self,
        link: &Link,
        file: &Held,
        further: &mut Further,
        tell: &(dyn Fn(Progress) + Sync),
    ) -> Result<(), Refusal> {
        let (mut at, mut wrong, mut failures) = (file.bytes, 0, 0);
        if file.whole {
            return Ok(());
        }
        loop {
            while at < file.size {
                self.until_it_may_go(further, tell).await;
                let limit =
                    self.board.site().backup.map_or(0, |backup| u64::from(backup.limit_kib) << 10);
                let turn = Turn::of(limit, self.answering().await);
                let begun = Instant::now();
                match send_piece(link, &self.state, file, at, turn.most.min(file.size - at)).await {
                    Ok(Taken::Here(now)) => {
                        further.done += now - at;
                        let sent = now - at;
                        (at, failures) = (now, 0);
                        tell(further.now("sending"));
                        tokio::time::sleep(turn.pause(sent, begun.elapsed())).await;
                    }
                    Ok(Taken::At(other)) => {
                        further.done = (further.done + other).saturating_sub(at);
                        at = other;
                    }
                    Ok(Taken::Flipped) => failures += 1,
                    Err(why) => {
                        failures += 1;
                        if failures >= TRIES {
                            return Err(format!(
                                "{why}; what was sent stays, and sending goes on from there"
                            ));
                        }
                        tokio::time::sleep(FIRST_WAIT * 2u32.pow(failures)).await;
                    }
                }
                if failures >= TRIES {
                    return Err("what is sent arrives damaged again and again; look at the network between the boxes".to_owned());
                }
            }
            match judged(link, file).await? {
                Judged::Whole => return Ok(()),
                Judged::Lacking => at = 0,
                Judged::Wrong => {
                    wrong += 1;
                    if wrong >= MOST_WRONG {
                        return Err(format!(
                            "a file of it ({}) is damaged on this box; run `polder weights verify`, then import the model again",
                            file.sha256
                        ));
                    }
                    further.done = further.done.saturating_sub(at);
                    at = 0;
                }
            }
        }
    }

    /// Answers of engines that are under way; none where the gateway says nothing.
    pub(super) async fn answering(&self) -> u32 {
        let path = self.sockets.gateway();
        let asked = async {
            let mut door: Client<DoorRequest, DoorReply> = Client::connect(&path).await?;
            door.ask_within(SOON, &DoorRequest::Doorway).await
        };
        match asked.await {
            Ok(DoorReply::Doorway(doorway)) => doorway.answering,
            _ => 0,
        }
    }

    /// What is sent is never more urgent than the bill, or than what is left in the battery.
    async fn until_it_may_go(&self, further: &mut Further, tell: &(dyn Fn(Progress) + Sync)) {
        loop {
            let phase = match () {
                () if self.power.borrow().pauses_work() => "waiting for the mains",
                () if self.costs().await.is_some() => "waiting for a way out that is not metered",
                () => return,
            };
            tell(further.now(phase));
            tokio::time::sleep(WAIT).await;
        }
    }
}

/// How much is sent at once, and how long the line is left to others after it. Pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    /// Bytes of a piece.
    most: u64,
    /// Bytes in a second, as the site says; 0 for any.
    limit: u64,
    /// Somebody is being answered.
    yields: bool,
}

impl Turn {
    fn of(limit: u64, answering: u32) -> Self {
        let yields = answering > 0;
        let whole = if yields { SMALL } else { PIECE };
        let most = if limit == 0 { whole } else { whole.min(limit) };
        Self { most, limit, yields }
    }

    /// Slower than it could, where the site says so; and while members are answered the line and the disk are theirs for most of the time.
    fn pause(&self, sent: u64, took: Duration) -> Duration {
        let limited = (sent * 1000).checked_div(self.limit).map(Duration::from_millis);
        let limited = limited.unwrap_or_default().saturating_sub(took);
        let yielded = if self.yields { took * LEFT_TO_OTHERS } else { Duration::ZERO };
        limited.max(yielded)
    }
}

struct Further {
    total: u64,
    done: u64,
    pace: Pace,
}

impl Further {
    fn now(&mut self, phase: &str) -> Progress {
        let (done, total) = (self.done.min(self.total), Some(self.total));
        let progress = Progress {
            phase: phase.to_owned(),
            done,
            total,
            unit: Unit::Bytes,
            rate: None,
            eta_seconds: None,
        };
        self.pace.of(progress, Instant::now())
    }
}

async fn ask<A: serde::de::DeserializeOwned>(
    link: &Link,
    path: &str,
    manifest: &Manifest,
) -> Result<A, Refusal> {
    link.ask(Method::POST, path, manifest).await.map_err(|error| error.to_string())
}

async fn judged(link: &Link, file: &Held) -> Result<Judged, Refusal> {
    let path = format!("/hand/weights/judge/{}/{}", file.sha256, file.size);
    loop {
        let answer = link.ask(Method::POST, &path, &serde_json::Value::Null).await;
        if let Some(judged) = answer.map_err(|error| error.to_string())? {
            return Ok(judged);
        }
    }
}

async fn send_piece(
    link: &Link,
    state: &Path,
    file: &Held,
    from: u64,
    count: u64,
) -> Result<Taken, Refusal> {
    let (folder, blob) = (state.join("weights"), file.sha256);
    let (bytes, sha256) = blocking(move || {
        let store = Store::open(folder).map_err(|e| e.to_string())?;
        store.piece(&blob, from, count).map_err(|e| e.to_string())
    })
    .await?;
    let path = format!("/hand/weights/piece/{blob}/{}/{from}/{sha256}", file.size);
    let body = Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed();
    let request =
        Request::builder().method(Method::PUT).uri(path).header("host", "spare").body(body);
    let request = request.map_err(|error| error.to_string())?;
    let asked = async {
        let answer = link.open(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), 4096).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        match status.is_success() {
            true => serde_json::from_slice(&body).map_err(|error| error.to_string()),
            false => Err(String::from_utf8_lossy(&body).trim().chars().take(300).collect()),
        }
    };
    tokio::time::timeout(PIECE_WITHIN, asked)
        .await
        .unwrap_or_else(|_| Err("the spare does not answer in time".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_sent_leaves_most_of_the_line_to_members_while_they_are_answered() {
        let idle = Turn::of(0, 0);
        assert_eq!((idle.most, idle.pause(PIECE, SECOND)), (PIECE, Duration::ZERO));
        let busy = Turn::of(0, 3);
        assert_eq!((busy.most, busy.pause(SMALL, SECOND)), (SMALL, 4 * SECOND));
    }

    #[test]
    fn the_sites_limit_holds_whether_somebody_is_answered_or_not() {
        for answering in [0, 1] {
            let turn = Turn::of(100 << 10, answering);
            assert_eq!(turn.most, 100 << 10);
            assert!(turn.pause(100 << 10, SECOND / 10) >= SECOND * 9 / 10);
        }
        // A slow line is slow enough.
        assert_eq!(Turn::of(1 << 20, 0).pause(1 << 20, 2 * SECOND), Duration::ZERO);
    }
}
