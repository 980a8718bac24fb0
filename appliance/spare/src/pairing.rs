//! From a spoken code to two certificates that each box has pinned: SPAKE2, and then a proof by each side that it saw the same
//! certificates and names.
//!
//! Whoever stands between shows one side another certificate than the other side has; then the proofs differ whatever code was typed.
//! Whoever guesses the code has one guess for each exchange, and the spare counts them.

use ring::hmac;
use spake2::{Ed25519Group, Identity, Password, Spake2};

use crate::{Certificate, Code};

/// What both sides must agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The main box's certificate.
    pub main: Certificate,
    /// What it is called.
    pub main_name: String,
    /// The spare's.
    pub spare: Certificate,
    /// What it is called.
    pub spare_name: String,
}

/// Says that one side knows the code and saw what the other one saw: 32 bytes.
pub type Proof = Vec<u8>;

/// The main box, which speaks first.
pub struct Asking {
    spake: Spake2<Ed25519Group>,
    message: Vec<u8>,
}

/// The spare, which answers.
pub struct Answering {
    spake: Spake2<Ed25519Group>,
    message: Vec<u8>,
}

/// One side after both messages: it knows what it has to say and what it must hear.
pub struct Shared {
    key: hmac::Key,
    transcript: Vec<u8>,
}

impl Asking {
    /// Begins.
    pub fn begin(code: &Code) -> Self {
        let (spake, message) =
            Spake2::<Ed25519Group>::start_a(&password(code), &who("main"), &who("spare"));
        Self { spake, message }
    }
    /// For the spare.
    pub fn message(&self) -> &[u8] {
        &self.message
    }
    /// With the spare's message; nothing where that is none.
    pub fn hear(self, theirs: &[u8], binding: &Binding) -> Option<Shared> {
        let key = self.spake.finish(theirs).ok()?;
        Some(Shared::of(&key, &self.message, theirs, binding))
    }
}

impl Answering {
    /// Begins.
    pub fn begin(code: &Code) -> Self {
        let (spake, message) =
            Spake2::<Ed25519Group>::start_b(&password(code), &who("main"), &who("spare"));
        Self { spake, message }
    }
    /// For the main box.
    pub fn message(&self) -> &[u8] {
        &self.message
    }
    /// With the main box's message; nothing where that is none.
    pub fn hear(self, theirs: &[u8], binding: &Binding) -> Option<Shared> {
        let key = self.spake.finish(theirs).ok()?;
        Some(Shared::of(&key, theirs, &self.message, binding))
    }
}

impl Shared {
    fn of(key: &[u8], main: &[u8], spare: &[u8], binding: &Binding) -> Self {
        let mut transcript = Vec::new();
        for part in [
            &binding.main.digest()[..],
            binding.main_name.as_bytes(),
            &binding.spare.digest(),
            binding.spare_name.as_bytes(),
            main,
            spare,
        ] {
            transcript.extend((part.len() as u64).to_be_bytes());
            transcript.extend(part);
        }
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key), transcript }
    }

    /// What the main box says.
    pub fn main_proof(&self) -> Proof {
        hmac::sign(&self.key, &self.said_by("main")).as_ref().to_vec()
    }
    /// What the spare says, after it has heard a main box's proof that is right.
    pub fn spare_proof(&self) -> Proof {
        hmac::sign(&self.key, &self.said_by("spare")).as_ref().to_vec()
    }
    /// Whether the main box knows the code and saw the same.
    pub fn is_main(&self, proof: &[u8]) -> bool {
        hmac::verify(&self.key, &self.said_by("main"), proof).is_ok()
    }
    /// Whether the spare does.
    pub fn is_spare(&self, proof: &[u8]) -> bool {
        hmac::verify(&self.key, &self.said_by("spare"), proof).is_ok()
    }

    fn said_by(&self, side: &str) -> Vec<u8> {
        let mut said = format!("polder pairing 1 {side} ").into_bytes();
        said.extend(&self.transcript);
        said
    }
}

fn password(code: &Code) -> Password {
    Password::new(code.expose().as_bytes())
}

fn who(side: &str) -> Identity {
    Identity::new(format!("polder {side} box").as_bytes())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Folders, Identity as Link};

    pub(crate) fn certificate() -> Certificate {
        let state = tempfile::tempdir().unwrap();
        Link::of_box(&Folders::of(state.path())).unwrap().certificate().clone()
    }

    fn binding() -> Binding {
        let (main, spare) = (certificate(), certificate());
        Binding { main, main_name: "elm".into(), spare, spare_name: "ash".into() }
    }

    /// What each side makes of an exchange of these messages.
    fn exchange(codes: [&str; 2], seen: [&Binding; 2]) -> (bool, bool) {
        let [main, spare] = codes.map(|code| code.parse::<Code>().unwrap());
        let (asking, answering) = (Asking::begin(&main), Answering::begin(&spare));
        let (said, answered) = (asking.message().to_vec(), answering.message().to_vec());
        let main = asking.hear(&answered, seen[0]).unwrap();
        let spare = answering.hear(&said, seen[1]).unwrap();
        (spare.is_main(&main.main_proof()), main.is_spare(&spare.spare_proof()))
    }

    #[test]
    fn the_right_code_and_the_same_certificates_convince_both_and_anything_else_convinces_neither()
    {
        let binding = binding();
        let code = "4821-otter-lamp";
        assert_eq!(exchange([code, code], [&binding, &binding]), (true, true));
        for wrong in ["4821-otter-lamb", "4822-otter-lamp", "4821-lamp-otter"] {
            assert_eq!(exchange([wrong, code], [&binding, &binding]), (false, false), "{wrong}");
        }
        let changes: [fn(&mut Binding); 4] = [
            |b| b.main = certificate(),
            |b| b.spare = certificate(),
            |b| b.main_name = "oak".into(),
            |b| b.spare_name = "oak".into(),
        ];
        for change in changes {
            let mut other = binding.clone();
            change(&mut other);
            assert_eq!(exchange([code, code], [&binding, &other]), (false, false));
        }
    }

    #[test]
    fn a_proof_of_one_side_or_of_another_exchange_is_no_proof() {
        let (binding, code) = (binding(), "4821-otter-lamp".parse::<Code>().unwrap());
        let once = || {
            let (asking, answering) = (Asking::begin(&code), Answering::begin(&code));
            let (said, answered) = (asking.message().to_vec(), answering.message().to_vec());
            (asking.hear(&answered, &binding).unwrap(), answering.hear(&said, &binding).unwrap())
        };
        let ((main, spare), (earlier, _)) = (once(), once());
        assert!(spare.is_main(&main.main_proof()));
        assert!(!spare.is_main(&earlier.main_proof()), "a replay");
        assert!(!spare.is_main(&spare.spare_proof()), "its own words");
        assert!(!main.is_spare(&main.main_proof()), "its own words");
        assert!(!spare.is_main(&[]) && !spare.is_main(&[0; 32]));
    }

    #[test]
    fn a_message_that_is_none_or_ones_own_is_refused() {
        let (binding, code) = (binding(), Code::make().unwrap());
        for message in [vec![], vec![0; 33], vec![b'A'; 33], vec![7; 5000]] {
            assert!(Asking::begin(&code).hear(&message, &binding).is_none());
        }
        let asking = Asking::begin(&code);
        let own = asking.message().to_vec();
        assert!(asking.hear(&own, &binding).is_none());
    }
}
