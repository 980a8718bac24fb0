use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// No term has a higher number: one begins when boxes change places. A peer that says more is not believed, since nothing could ever follow it.
pub const MOST_TERMS: u64 = 1 << 32;

/// No file of ours is larger.
const LONGEST: u64 = 16 << 10;

/// Which of the pair a box is. It stays what it is when it takes over: only terms change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The box that members know.
    Main,
    /// The one that keeps its backups.
    Spare,
}

/// What a box knows of who serves. Terms are numbered; who serves does so in the highest one that anybody has begun.
///
/// It lies where no backup and no restore touches it: an older state must not bring back an older term.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// Which of the pair this box is.
    pub side: Side,
    /// The term in which this box serves the collective, if it does.
    pub mine: Option<u64>,
    /// The highest that it has begun or heard of.
    pub highest: u64,
    /// The state in place is the collective's: always on the main box, on a spare while it stands in.
    pub theirs: bool,
    /// On the main box: it stops when it has not heard from its spare for the lease. Only then may silence be taken for its end.
    #[serde(default)]
    pub yields: bool,
    /// On a main box: its spare is the main box for good. It never serves as this collective again, whatever else is true.
    #[serde(default)]
    pub retired: bool,
    /// On a spare that gives back: what the main box is to go on with.
    #[serde(default)]
    pub given: Option<Given>,
    /// On a spare that did not take over after all: the term in which the main box goes on with what it has.
    #[serde(default)]
    pub left: Option<u64>,
    /// On a spare that stands in: the folder in the state folder where its own state was put aside.
    #[serde(default)]
    pub own: Option<String>,
    /// On a spare that has given back: folders in the state folder that are of no use any more, and full of the other box's secrets.
    #[serde(default)]
    pub leftovers: Vec<String>,
}

/// A state that is handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// The term that the other box serves in from now on.
    pub term: u64,
    /// The backup to restore.
    pub snapshot: String,
}

/// The term could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TermError {
    /// The file could not be used.
    #[error("could not use {}; until it can be, this box does not serve", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not say a term.
    #[error("{} cannot be read ({why}), so this box cannot know whether its spare serves; see that the spare does not, then unpair the boxes and pair them again", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl Term {
    /// A pair begins: the main box serves in the first term.
    pub fn first(side: Side) -> Self {
        let main = side == Side::Main;
        Self {
            side,
            mine: main.then_some(1),
            highest: 1,
            theirs: main,
            yields: false,
            retired: false,
            given: None,
            left: None,
            own: None,
            leftovers: Vec::new(),
        }
    }

    /// Where it is.
    pub fn path(state: &Path) -> PathBuf {
        state.join("spare/term.json")
    }

    /// What this box knows; none where it has no pair.
    pub fn read(state: &Path) -> Result<Option<Self>, TermError> {
        let path = Self::path(state);
        let fail = |source| TermError::File { path: path.clone(), source };
        let text = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
            Ok(file) if file.len() > LONGEST => {
                return Err(TermError::Damaged { path, why: "it is too long".to_owned() });
            }
            Ok(_) => fs::read(&path).map_err(fail)?,
        };
        let damaged = |why: String| TermError::Damaged { path: path.clone(), why };
        let term: Self = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        match term.highest <= MOST_TERMS {
            true => Ok(Some(term)),
            false => Err(damaged(format!("it says that term {} has begun", term.highest))),
        }
    }

    /// Keeps it; on the disk when this returns.
    pub fn keep(&self, state: &Path) -> Result<(), TermError> {
        let path = Self::path(state);
        let fail = |source| TermError::File { path: path.clone(), source };
        polder_site::write_durably(&path, &self.text()).map_err(fail)
    }

    /// As it is written.
    pub fn text(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a term has only plain values")
    }

    /// The pair is no more.
    pub fn forget(state: &Path) -> Result<(), TermError> {
        let path = Self::path(state);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(TermError::File { path, source: error })
            }
            _ => Ok(()),
        }
    }

    /// On a spare: it serves in the main box's place, or has just handed its state over.
    pub fn stands_in(&self) -> bool {
        self.side == Side::Spare && self.theirs
    }

    /// What the other box said of the highest term. True if that is news, which is to be kept before anything else is done.
    pub fn heard(&mut self, highest: u64) -> bool {
        let news = highest > self.highest && highest <= MOST_TERMS;
        if news {
            self.highest = highest;
        }
        news
    }

    /// A new term begins, and nobody serves in it yet: whoever served before hears of it and stops. On a spare that takes over.
    pub fn raise(&mut self) -> u64 {
        self.highest = self.highest.saturating_add(1);
        (self.given, self.left) = (None, None);
        self.highest
    }

    /// The same with the number under which the part that speaks with the main box has begun it. False where this box knows of a later one.
    pub fn begin(&mut self, began: u64) -> bool {
        let newest = (self.highest..=MOST_TERMS).contains(&began) && self.mine != Some(began);
        if newest {
            (self.highest, self.given, self.left) = (began, None, None);
        }
        newest
    }

    /// On a spare: it has begun a term in which it does not serve yet. `began`: the last one that it began itself, as the part that speaks with the
    /// main box has written down; that is written first.
    pub fn is_begun(&self, began: Option<u64>) -> bool {
        let later = |began: u64| began >= self.highest && self.mine != Some(began);
        self.side == Side::Spare && began.is_some_and(later)
    }

    /// On a spare: the main box still has the newest state of the collective, since this box did not serve after it.
    pub fn may_leave(&self) -> bool {
        self.side == Side::Spare && !self.theirs && self.mine.is_none()
    }

    /// On a spare that has begun a term and does not take over: the main box goes on with what it has, in a term above that one. None where its state
    /// is not the newest.
    pub fn leave(&mut self) -> Option<u64> {
        if !self.may_leave() {
            return None;
        }
        self.left = Some(self.raise());
        self.left
    }

    /// What a main box that asks is told: the term in which it goes on with what it has. None where something else happened since.
    pub fn leaves(&self) -> Option<u64> {
        self.left.filter(|left| self.may_leave() && *left == self.highest)
    }

    /// On a main box whose spare does not take over: it goes on with what it has, in the term that is left to it. None where that is over.
    pub fn going_on(&self, left: u64) -> Option<Self> {
        let free = self.side == Side::Main && !self.retired && self.mine.is_none_or(|m| m < left);
        let newest = (self.highest..=MOST_TERMS).contains(&left);
        (free && newest).then(|| Self { mine: Some(left), highest: left, ..self.clone() })
    }

    /// This box serves in the term that was raised.
    pub fn serving(&self) -> Self {
        Self { mine: Some(self.highest), theirs: true, given: None, ..self.clone() }
    }

    /// The same on a spare, whose state until now is put aside at `aside`. Its own is what was put aside first: what it puts aside
    /// when it takes over once more, before it had its own again, is the collective's.
    pub fn placed(&self, aside: String) -> Self {
        let mut placed = self.serving();
        match placed.own {
            Some(_) => placed.leftovers.push(aside),
            None => placed.own = Some(aside),
        }
        placed
    }

    /// This box serves no more; the other one is to, with this state.
    pub fn give(&mut self, snapshot: String) -> u64 {
        self.highest = self.highest.saturating_add(1);
        self.mine = None;
        self.given = Some(Given { term: self.highest, snapshot });
        self.highest
    }

    /// On the main box: it goes on where the spare left off. Only with the term that was given, only if none began since, and only
    /// once: what this box did in that term would be undone, revocations too.
    pub fn taking(&self, given: &Given) -> Option<Self> {
        let newest = (self.highest..=MOST_TERMS).contains(&given.term)
            && self.mine != Some(given.term)
            && !self.retired;
        newest.then(|| Self { mine: Some(given.term), highest: given.term, ..self.clone() })
    }

    /// On a spare whose own state is in place again. `aside` is where the state of the main box was put aside for it.
    pub fn resting(&self, aside: String) -> Self {
        let leftovers = self.leftovers.iter().chain(&self.own).cloned().chain([aside]).collect();
        Self { mine: None, theirs: false, given: None, own: None, leftovers, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_comes_back_as_it_was_and_a_damaged_one_is_no_permission() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(Term::read(state.path()).unwrap(), None);
        fs::create_dir(state.path().join("spare")).unwrap();
        let mut term = Term::first(Side::Spare);
        term.raise();
        term.give("1a2b3c4d".to_owned());
        term.keep(state.path()).unwrap();
        assert_eq!(Term::read(state.path()).unwrap(), Some(term));
        for bad in ["", "{", "null", "{\"side\":\"main\"}"] {
            fs::write(Term::path(state.path()), bad).unwrap();
            let error = Term::read(state.path()).unwrap_err().to_string();
            assert!(error.contains("cannot know whether its spare serves"), "{error}");
        }
        Term::forget(state.path()).unwrap();
        Term::forget(state.path()).unwrap();
    }

    #[test]
    fn what_was_given_is_taken_once_and_not_after_a_newer_term() {
        let mut spare = Term::first(Side::Spare);
        spare.raise();
        let mut spare = spare.serving();
        assert_eq!(spare.give("a".to_owned()), 3);
        let given = spare.given.clone().unwrap();
        let mut main = Term::first(Side::Main);
        let took = main.taking(&given).unwrap();
        assert_eq!((took.mine, took.taking(&given)), (Some(3), None));
        main.heard(4);
        assert_eq!(main.taking(&given), None);
        // Nobody's number closes the door for ever.
        assert!(!main.heard(u64::MAX) && main.highest == 4);
        assert_eq!(main.taking(&Given { term: u64::MAX, ..given }), None);
    }

    #[test]
    fn a_takeover_that_comes_to_nothing_is_left_the_second_time_as_the_first_and_never_what_served()
    {
        let mut main = Term::first(Side::Main);
        let mut spare = Term::first(Side::Spare);
        for began in [2, 4, 6] {
            assert_eq!((spare.is_begun(Some(began - 2)), spare.raise()), (false, began));
            assert!(spare.is_begun(Some(began)) && spare.leaves().is_none());
            main.heard(began);
            let left = spare.leave().unwrap();
            assert_eq!((left, spare.leaves()), (began + 1, Some(left)));
            assert!(!spare.is_begun(Some(began)), "it goes on with what it has left");
            main = main.going_on(left).unwrap();
            assert_eq!(
                (main.mine, main.going_on(left), main.going_on(left - 1)),
                (Some(left), None, None)
            );
        }
        // Cut off between the two files: the part has written it down, and the term is as it was.
        assert!(spare.is_begun(Some(8)));
        assert!(!spare.begin(6) && spare.begin(8) && spare.begin(8));
        assert_eq!((spare.highest, spare.left), (8, None));
        let mut serves = spare.placed("own".to_owned());
        assert_eq!((serves.is_begun(Some(8)), serves.leave()), (false, None));
        serves.give("a".to_owned());
        serves.raise();
        assert!(
            serves.is_begun(Some(10)) && serves.leave().is_none(),
            "what it did here would be undone"
        );
        assert_eq!(
            (main.going_on(u64::MAX), Term { retired: true, ..main }.going_on(99)),
            (None, None)
        );
    }

    #[test]
    fn a_number_of_a_term_that_nobody_can_have_come_to_is_damage() {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(state.path().join("spare")).unwrap();
        let most = Term { highest: MOST_TERMS, ..Term::first(Side::Main) };
        most.keep(state.path()).unwrap();
        assert!(Term::read(state.path()).is_ok());
        Term { highest: MOST_TERMS + 1, ..most }.keep(state.path()).unwrap();
        assert!(Term::read(state.path()).unwrap_err().to_string().contains("cannot be read"));
    }

    #[test]
    fn a_spare_that_takes_over_once_more_rests_in_its_own_state_all_the_same() {
        let mut spare = Term::first(Side::Spare);
        spare.raise();
        let mut spare = spare.placed("own".to_owned());
        spare.give("a".to_owned());
        spare.raise();
        let spare = spare.placed("theirs".to_owned());
        assert_eq!((spare.own.as_deref(), spare.leftovers.len()), (Some("own"), 1));
        let rests = spare.resting("theirs again".to_owned());
        assert_eq!((rests.own, rests.leftovers.len(), rests.theirs), (None, 3, false));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let state = tempfile::tempdir().unwrap();
            fs::create_dir(state.path().join("spare")).unwrap();
            fs::write(Term::path(state.path()), bytes).unwrap();
            let _ = Term::read(state.path());
        }
    }
}
