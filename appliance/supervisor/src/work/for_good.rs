//! A box that stands in for another stays in its place, for good.

use std::sync::Arc;

use polder_control::{SpareReply, SpareRequest, TakeoverWish};
use polder_site::{Spare, SpareRole};
use polder_spare::{Folders, Former};
use polder_takeover::ForGood;

use super::pair::Seen;
use super::takeover::is_there;
use super::{Refusal, Work, blocking};
use crate::parts::Parts;

impl<P: Parts> Work<P> {
    /// What there is to know before this box, which stands in, is the main box for good.
    pub(super) fn for_good(&self, seen: &Seen) -> ForGood {
        let port = self.board.site().spare.map_or(polder_spare::PORT, |spare| spare.port);
        ForGood {
            main: seen.other.clone(),
            there: seen.status.as_ref().is_some_and(is_there),
            term: seen.term.highest,
            port,
            own: seen.term.own.clone(),
            retired: false,
        }
    }

    /// The main box is out, and the site does not say yet that this box is in its place: it was cut off in between. Another one, that was followed long
    /// ago, is none of this.
    pub(super) async fn retired_already(&self) -> Result<Option<ForGood>, Refusal> {
        let Some(spare) = self.board.site().spare.filter(|s| s.role == SpareRole::ForAnother)
        else {
            return Ok(None);
        };
        let state = self.state.clone();
        let cut_off = blocking(move || Ok(Former::unfinished(&Folders::of(&state))));
        Ok(cut_off.await?.map(|former| ForGood {
            main: former.name,
            there: false,
            term: former.term,
            port: spare.port,
            own: None,
            retired: true,
        }))
    }

    pub(super) async fn retire_main(&self) -> Result<(), Refusal> {
        match self.ask_spare_part(&SpareRequest::Retire).await? {
            SpareReply::Done => Ok(()),
            _ => Err("the part that speaks with the main box answered something else".to_owned()),
        }
    }

    /// The main box is out: this one is to have a spare of its own, and can be paired with one.
    pub(super) async fn write_role(self: &Arc<Self>) -> Result<(), Refusal> {
        let mut site = self.board.site();
        let spare = site.spare.unwrap_or(Spare::of(SpareRole::OfThis));
        site.spare = Some(Spare { role: SpareRole::OfThis, ..spare });
        self.write_site(site, "is the main box for good".to_owned()).await?;
        let state = self.state.clone();
        blocking(move || Former::finish(&Folders::of(&state)).map_err(|e| e.to_string())).await
    }
}

/// Whoever only looks has typed nothing.
pub(super) fn gone_is_said(typed: Option<&str>, main: &str) -> Result<(), Refusal> {
    let sentence = TakeoverWish::gone_for_good(main);
    match typed.is_none_or(|typed| said(typed, &sentence)) {
        true => Ok(()),
        false => {
            Err(format!("type the sentence \"{sentence}\", if that is so; nothing was changed"))
        }
    }
}

/// Whether a sentence was typed, give or take how people write.
fn said(typed: &str, sentence: &str) -> bool {
    let plain = |text: &str| -> String {
        let words: Vec<&str> = text.split_whitespace().collect();
        words.join(" ").trim_end_matches('.').to_lowercase()
    };
    plain(typed) == plain(sentence)
}
