//! What people do, on its way into the audit trail. The supervisor keeps that, and may be away or have no room just now: a deed that
//! was acknowledged is not forgotten over it. It is noted in the database first, and told again until it is in the trail. Where a full
//! disk takes neither, it waits in memory for room. Of what does not fit there either the trail says how much it was, and when.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use polder_control::{Actor, Request};
use polder_members::Deed;
use serde::{Deserialize, Serialize};

use crate::{AskError, Gateway};

/// Between two looks for what is not told. Longer than one telling takes, so that what was there at the look before is nobody
/// else's affair any more.
const LOOK: Duration = Duration::from_secs(25);

/// Between two tries to note what waits in memory.
const AGAIN: Duration = Duration::from_secs(1);
/// More do not wait there: who has done so much on a full disk is counted from then on. To refuse what people do instead would keep a steward from
/// making room.
const MOST: usize = 10_000;

/// What could be neither told nor noted: when, in Unix seconds, and as it is noted.
#[derive(Default)]
pub(crate) struct Unnoted(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    deeds: VecDeque<(i64, String)>,
    missing: Option<Missing>,
}

/// What did not even find room in memory.
struct Missing {
    count: u64,
    first: i64,
    last: i64,
}

impl Missing {
    /// As the trail is told of it.
    fn note(&self) -> (i64, String) {
        let time = |at: i64| {
            let at = jiff::Timestamp::from_second(at).unwrap_or_default();
            at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
        };
        let Self { count, first, last } = self;
        let what = "had no room to keep what people did:".to_owned();
        let on = format!(
            "{count} {} between {} and {}, told only to the log of the door",
            if *count == 1 { "deed" } else { "deeds" },
            time(*first),
            time(*last)
        );
        let note = Note { by: Actor::Itself, what, on };
        (*last, serde_json::to_string(&note).unwrap_or_default())
    }
}

impl Unnoted {
    fn wait(&self, text: String) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = jiff::Timestamp::now().as_second();
        // Behind one that was not kept, none is: the trail is in order.
        if waiting.deeds.len() < MOST && waiting.missing.is_none() {
            waiting.deeds.push_back((now, text));
            return;
        }
        let missing = waiting.missing.get_or_insert(Missing { count: 0, first: now, last: now });
        (missing.count, missing.last) = (missing.count + 1, now);
    }

    fn first(&self) -> Option<(i64, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).deeds.front().cloned()
    }

    fn is_noted(&self) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.deeds.pop_front();
        if let Some(missing) = waiting.missing.take() {
            waiting.deeds.push_back(missing.note());
        }
    }
}

/// As it is noted.
#[derive(Serialize, Deserialize)]
struct Note {
    by: Actor,
    what: String,
    on: String,
}

/// Writes into the audit trail what was done just now.
pub(crate) async fn record(gateway: &Gateway, by: Actor, what: &str, on: &str) {
    let note = Note { by: by.clone(), what: what.to_owned(), on: on.to_owned() };
    let text = serde_json::to_string(&note).unwrap_or_default();
    let again = text.clone();
    let noted = gateway.members.ask(move |members| members.note_deed(&text)).await;
    let told = gateway.ask(Request::Record { by: note.by, what: note.what, on: note.on }).await;
    match (told, noted) {
        (Ok(_), Ok(id)) => is_told(gateway, id).await,
        (Ok(_), Err(_)) => {}
        (Err(error), Ok(_)) => {
            log::warn!("the audit trail is told later that {by} {what}: {error}");
        }
        (Err(error), Err(full)) => {
            // In the log as well: a door that dies now forgets it.
            log::error!(by:% = by, what = what, on = on; "not in the audit trail until there is room: {error}; {full}");
            gateway.unnoted.wait(again);
        }
    }
}

/// Notes and tells what could not be noted or told, for ever.
pub(crate) async fn follow(gateway: Arc<Gateway>) {
    tokio::join!(note_again(&gateway), tell_again(&gateway));
}

async fn note_again(gateway: &Gateway) {
    loop {
        while let Some((at, text)) = gateway.unnoted.first() {
            match gateway.members.ask(move |members| members.note_deed_of(at, &text)).await {
                Ok(_) => gateway.unnoted.is_noted(),
                Err(_) => break,
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn tell_again(gateway: &Gateway) {
    // All that is there at the start is of an earlier life.
    let mut known = untold(gateway).await;
    loop {
        for deed in &known {
            if let Err(error) = tell(gateway, deed).await {
                log::debug!("the audit trail cannot be told yet: {error}");
                break;
            }
            is_told(gateway, deed.id).await;
        }
        let before: BTreeSet<i64> = untold(gateway).await.iter().map(|deed| deed.id).collect();
        tokio::time::sleep(LOOK).await;
        known = untold(gateway).await;
        known.retain(|deed| before.contains(&deed.id));
    }
}

async fn untold(gateway: &Gateway) -> Vec<Deed> {
    let asked = gateway.members.ask(|members| members.untold_deeds()).await;
    asked.unwrap_or_else(|error| {
        log::warn!("it cannot be read what the audit trail is still to be told: {error}");
        Vec::new()
    })
}

async fn tell(gateway: &Gateway, deed: &Deed) -> Result<(), AskError> {
    let Ok(Note { by, what, on }) = serde_json::from_str(&deed.text) else {
        log::error!("a deed was noted that cannot be read, and is left out of the audit trail");
        return Ok(());
    };
    let at = jiff::Timestamp::from_second(deed.at).unwrap_or_default();
    let on = format!("{on} (at {}, told later)", at.strftime("%Y-%m-%d %H:%M:%S UTC"));
    let on = on.trim_start().to_owned();
    let request = match by {
        // The box itself, which is told otherwise.
        Actor::Itself => Request::Noticed { what, on },
        by => Request::Record { by, what, on },
    };
    gateway.ask(request).await.map(drop)
}

async fn is_told(gateway: &Gateway, id: i64) {
    if let Err(error) = gateway.members.ask(move |members| members.deed_is_told(id)).await {
        log::warn!("the audit trail may be told twice what was done once: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_even_in_memory_is_told_as_a_number_in_its_place() {
        let unnoted = Unnoted::default();
        let deed = |n: usize| format!("deed {n}");
        (0..MOST + 3).for_each(|n| unnoted.wait(deed(n)));
        assert_eq!(unnoted.first().unwrap().1, deed(0));
        unnoted.is_noted();
        // There is room again, and what comes now is behind what is missing.
        unnoted.is_noted();
        unnoted.wait("later".into());
        let mut told = Vec::new();
        while let Some((_, text)) = unnoted.first() {
            told.push(text);
            unnoted.is_noted();
        }
        assert_eq!(told.len(), MOST);
        assert_eq!(told[MOST - 3], deed(MOST - 1));
        assert!(told[MOST - 2].contains("3 deeds between"), "{}", told[MOST - 2]);
        assert_eq!(told[MOST - 1], "later");
        let note: Note = serde_json::from_str(&told[MOST - 2]).unwrap();
        assert_eq!(note.by, Actor::Itself);
    }
}
