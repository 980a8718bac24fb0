//! The wizard's memory: versioned JSON, read back after a crash or a power cut without trust.

use serde::{Deserialize, Serialize};

use crate::wizard::{Step, Wizard};

/// The layout; raised when an old binary could misread new notes.
const VERSION: u32 = 1;

/// What is kept between two requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// How far the set-up has come.
    pub wizard: Wizard,
    /// A sentence that the next page shows once, such as why the set-up began anew.
    pub notice: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    version: u32,
    wizard: Wizard,
    notice: Option<String>,
}

impl Stored {
    /// As the store keeps it.
    pub fn to_json(&self) -> String {
        let envelope =
            Envelope { version: VERSION, wizard: self.wizard.clone(), notice: self.notice.clone() };
        serde_json::to_string(&envelope).expect("a wizard has only types that JSON can hold")
    }

    /// Reads what the store kept. Whatever cannot be used makes the set-up begin anew, or stay over
    /// on a box that has a steward, with a sentence that says so.
    pub fn read(text: Option<&str>, steward: Option<&str>) -> Self {
        let read = match text {
            Some(text) => parse(text),
            None => Ok(Self { wizard: Wizard::new(), notice: None }),
        };
        match (read, steward) {
            // A steward ends the set-up, whoever made it; unless it was opened again, which the
            // notes then know.
            (Ok(stored), Some(steward)) if stored.wizard.member().is_none() => {
                Self { wizard: Wizard::set_up_elsewhere(steward.to_owned()), notice: None }
            }
            // A finished wizard without a steward: the members were lost, the notes were not.
            (Ok(stored), None) if stored.wizard.step() == Step::Done => {
                Self::anew("it says that the box is set up, but there is no steward")
            }
            (Ok(stored), _) => stored,
            (Err(why), None) => Self::anew(&why),
            (Err(why), Some(steward)) => {
                log::warn!(
                    "the notes of the set-up cannot be used: {why}; the box is set up already"
                );
                Self { wizard: Wizard::set_up_elsewhere(steward.to_owned()), notice: None }
            }
        }
    }

    fn anew(why: &str) -> Self {
        log::warn!("the set-up begins anew: {why}");
        let notice = format!(
            "The box had kept notes of how far the set-up was, but they cannot be used ({why}). \
             So it begins again; a model that was brought in is still there."
        );
        Self { wizard: Wizard::new(), notice: Some(notice) }
    }
}

fn parse(text: &str) -> Result<Stored, String> {
    // The version first: newer notes may have fields that this version would call unknown.
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let head: Head = serde_json::from_str(text).map_err(|_| "they are damaged".to_owned())?;
    if head.version != VERSION {
        return Err(format!("they are of version {}, this polder reads {VERSION}", head.version));
    }
    let Envelope { wizard, notice, .. } =
        serde_json::from_str(text).map_err(|_| "they are damaged".to_owned())?;
    wizard.check()?;
    Ok(Stored { wizard, notice })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wizard::Event;
    use proptest::prelude::*;

    fn midway() -> Wizard {
        Wizard::new().next(Event::Claimed).unwrap().next(Event::MachineSeen).unwrap()
    }

    #[test]
    fn damaged_notes_begin_anew_with_a_sentence() {
        let whole = Stored { wizard: midway(), notice: None }.to_json();
        for bad in
            ["", "{", "null", "[]", &whole[..whole.len() - 3], &whole.replace("over", "ovre")]
        {
            let read = Stored::read(Some(bad), None);
            assert_eq!(read.wizard, Wizard::new(), "{bad:?}");
            assert!(read.notice.unwrap().contains("damaged"));
        }
    }

    #[test]
    fn notes_from_a_newer_polder_say_so() {
        let newer = "{\"version\":2,\"wizard\":{\"steps\":[]}}";
        let read = Stored::read(Some(newer), None);
        assert!(read.notice.unwrap().contains("version 2"));
    }

    #[test]
    fn notes_of_a_version_without_a_step_for_the_battery_lead_to_it() {
        let json = Stored { wizard: midway(), notice: None }.to_json();
        let older = json.replace("\"power_run\":null,\"power\":false,", "");
        assert_ne!(older, json);
        assert_eq!(Stored::read(Some(&older), None).wizard, midway());
    }

    #[test]
    fn notes_that_contradict_themselves_are_not_believed() {
        let json = Stored { wizard: Wizard::new(), notice: None }.to_json();
        let over = json.replace("\"over\":false", "\"over\":true");
        assert_eq!(Stored::read(Some(&over), None).wizard, Wizard::new());
        let waits = json.replace("\"run\":null", "\"run\":7");
        assert!(Stored::read(Some(&waits), None).notice.unwrap().contains("import"));
    }

    #[test]
    fn a_box_with_a_steward_is_set_up_whatever_the_notes_say() {
        let midway = Stored { wizard: midway(), notice: None }.to_json();
        for text in [None, Some("{"), Some(midway.as_str())] {
            let read = Stored::read(text, Some("ada"));
            assert_eq!(read.wizard.step(), Step::Done);
            assert_eq!(read.wizard.member(), Some("ada"));
        }
    }

    #[test]
    fn a_finished_wizard_without_any_steward_begins_anew() {
        let over = Wizard::set_up_elsewhere("ada".into());
        let json = Stored { wizard: over, notice: None }.to_json();
        assert_eq!(Stored::read(Some(&json), None).wizard.step(), Step::Claim);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic_or_believe_an_impossible_state(
            text in "\\PC*", cut in 0..400_usize, flip in 0..255_u8
        ) {
            let _ = Stored::read(Some(&text), None);
            let mut bytes = Stored { wizard: midway(), notice: None }.to_json().into_bytes();
            let at = cut % bytes.len();
            bytes[at] = flip;
            let read = Stored::read(Some(&String::from_utf8_lossy(&bytes)), None);
            prop_assert_eq!(read.wizard.check(), Ok(()));
        }
    }
}
