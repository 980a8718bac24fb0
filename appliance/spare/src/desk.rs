use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::pairing::{Answering, Binding, Proof, Shared};
use crate::{Certificate, Code, SpareError};

/// How long a code is good for.
pub const MINUTES: u64 = 10;
/// Wrong codes after which it is not.
pub const TRIES: u8 = 3;
/// From a main box's first message to its proof.
pub const EXCHANGE: Duration = Duration::from_secs(20);

/// On the spare: shows a code and lets at most one main box pair with it. Everything is in memory: after a restart there is no code.
#[derive(Default)]
pub struct Desk {
    open: Option<Open>,
}

struct Open {
    code: Code,
    until: Instant,
    tries: u8,
    exchange: Option<Exchange>,
}

struct Exchange {
    id: String,
    until: Instant,
    shared: Shared,
    main: Certificate,
    name: String,
}

/// Why a main box is not let in: sentences for whoever sits at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Closed {
    #[error("it shows no code now; show one on its page Spare first")]
    NoCode,
    #[error("somebody is pairing with it at this moment; try again in half a minute")]
    Busy,
    #[error("that is not the code that it shows; {0} more and it shows none")]
    Wrong(u8),
    #[error("that was the third wrong code; show a new one on its page Spare")]
    Last,
    #[error("it does not understand what it was sent")]
    Nonsense,
}

/// A main box that has proved that it knows the code.
#[derive(Debug)]
pub(crate) struct Proved {
    pub(crate) main: Certificate,
    pub(crate) name: String,
    pub(crate) proof: Proof,
}

impl Desk {
    /// A new code; one that was shown before is no good any more.
    pub fn show(&mut self, now: Instant) -> Result<Code, SpareError> {
        let code = Code::make()?;
        let until = now + Duration::from_secs(MINUTES * 60);
        self.open = Some(Open { code: code.clone(), until, tries: TRIES, exchange: None });
        Ok(code)
    }

    /// No code any more.
    pub fn close(&mut self) {
        self.open = None;
    }

    /// The code that is shown, and how long yet.
    pub fn shown(&mut self, now: Instant) -> Option<(&Code, Duration)> {
        let open = self.at(now)?;
        Some((&open.code, open.until.saturating_duration_since(now)))
    }

    /// A main box's first message: which exchange it is from now on, and the spare's own message.
    pub(crate) fn begin(
        &mut self,
        now: Instant,
        message: &[u8],
        binding: &Binding,
    ) -> Result<(String, Vec<u8>), Closed> {
        let open = self.at(now).ok_or(Closed::NoCode)?;
        if open.exchange.as_ref().is_some_and(|exchange| now < exchange.until) {
            return Err(Closed::Busy);
        }
        let answering = Answering::begin(&open.code);
        let ours = answering.message().to_vec();
        let shared = answering.hear(message, binding).ok_or(Closed::Nonsense)?;
        let mut bytes = Zeroizing::new([0; 16]);
        getrandom::fill(bytes.as_mut()).map_err(|_| Closed::Nonsense)?;
        let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        open.exchange = Some(Exchange {
            id: id.clone(),
            until: now + EXCHANGE,
            shared,
            main: binding.main.clone(),
            name: binding.main_name.clone(),
        });
        Ok((id, ours))
    }

    /// A main box's proof. A right one closes the desk; each wrong one costs a try, and with the last one the code.
    pub(crate) fn prove(&mut self, now: Instant, id: &str, proof: &[u8]) -> Result<Proved, Closed> {
        let open = self.at(now).ok_or(Closed::NoCode)?;
        let taken = open.exchange.take_if(|exchange| exchange.id == id && now < exchange.until);
        let exchange = taken.ok_or(Closed::Nonsense)?;
        if exchange.shared.is_main(proof) {
            let proof = exchange.shared.spare_proof();
            self.open = None;
            return Ok(Proved { main: exchange.main, name: exchange.name, proof });
        }
        open.tries -= 1;
        match open.tries {
            0 => {
                self.open = None;
                Err(Closed::Last)
            }
            left => Err(Closed::Wrong(left)),
        }
    }

    fn at(&mut self, now: Instant) -> Option<&mut Open> {
        self.open.take_if(|open| now >= open.until);
        self.open.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairing::Asking;
    use crate::pairing::tests::certificate;

    fn binding() -> Binding {
        let (main, spare) = (certificate(), certificate());
        Binding { main, main_name: "elm".into(), spare, spare_name: "ash".into() }
    }

    /// A whole try with this code; the main box is convinced too.
    fn attempt(desk: &mut Desk, now: Instant, code: &Code, seen: &Binding) -> Result<(), Closed> {
        let asking = Asking::begin(code);
        let (id, answer) = desk.begin(now, asking.message(), seen)?;
        let shared = asking.hear(&answer, seen).unwrap();
        let proved = desk.prove(now, &id, &shared.main_proof())?;
        assert!(shared.is_spare(&proved.proof) && proved.main == seen.main);
        Ok(())
    }

    fn wrong(code: &Code) -> Code {
        let digits: u16 = code.expose()[..4].parse().unwrap();
        format!("{:04}{}", (digits + 1) % 10_000, &code.expose()[4..]).parse().unwrap()
    }

    #[test]
    fn the_code_that_is_shown_pairs_once() {
        let (mut desk, now, seen) = (Desk::default(), Instant::now(), binding());
        assert_eq!(attempt(&mut desk, now, &Code::make().unwrap(), &seen), Err(Closed::NoCode));
        let code = desk.show(now).unwrap();
        assert_eq!(attempt(&mut desk, now, &code, &seen), Ok(()));
        assert_eq!(attempt(&mut desk, now, &code, &seen), Err(Closed::NoCode));
        assert!(desk.shown(now).is_none());
    }

    #[test]
    fn a_fourth_try_and_an_eleventh_minute_are_too_late_even_with_the_right_code() {
        let (mut desk, now, seen) = (Desk::default(), Instant::now(), binding());
        let code = desk.show(now).unwrap();
        for left in [Closed::Wrong(2), Closed::Wrong(1), Closed::Last] {
            assert_eq!(attempt(&mut desk, now, &wrong(&code), &seen), Err(left));
        }
        assert_eq!(attempt(&mut desk, now, &code, &seen), Err(Closed::NoCode));

        let code = desk.show(now).unwrap();
        let minutes = |minutes: u64| now + Duration::from_secs(minutes * 60);
        assert_eq!(attempt(&mut desk, minutes(9), &wrong(&code), &seen), Err(Closed::Wrong(2)));
        assert_eq!(attempt(&mut desk, minutes(10), &code, &seen), Err(Closed::NoCode));
        // Begun in time and proved too late.
        let code = desk.show(now).unwrap();
        let asking = Asking::begin(&code);
        let late = minutes(10) - Duration::from_secs(1);
        let (id, answer) = desk.begin(late, asking.message(), &seen).unwrap();
        let shared = asking.hear(&answer, &seen).unwrap();
        let proved = desk.prove(minutes(10), &id, &shared.main_proof());
        assert_eq!(proved.unwrap_err(), Closed::NoCode);
    }

    #[test]
    fn of_two_that_pair_at_once_the_second_is_told_to_wait_and_a_lost_one_holds_nobody_up_for_long()
    {
        let (mut desk, now, seen) = (Desk::default(), Instant::now(), binding());
        let code = desk.show(now).unwrap();
        let lost = Asking::begin(&code);
        let (id, answer) = desk.begin(now, lost.message(), &seen).unwrap();
        assert_eq!(attempt(&mut desk, now, &code, &binding()), Err(Closed::Busy));
        // Somebody else's number is no proof, and does not end the exchange.
        assert_eq!(desk.prove(now, "0", &[0; 32]).unwrap_err(), Closed::Nonsense);
        let later = now + EXCHANGE;
        assert_eq!(attempt(&mut desk, later, &code, &seen), Ok(()));
        let shared = lost.hear(&answer, &seen).unwrap();
        assert_eq!(desk.prove(later, &id, &shared.main_proof()).unwrap_err(), Closed::NoCode);
    }

    #[test]
    fn a_message_said_again_proves_nothing() {
        let (mut desk, now, seen) = (Desk::default(), Instant::now(), binding());
        let code = desk.show(now).unwrap();
        let asking = Asking::begin(&code);
        let said = asking.message().to_vec();
        let (id, answer) = desk.begin(now, &said, &seen).unwrap();
        let proof = asking.hear(&answer, &seen).unwrap().main_proof();
        // Heard on the way, and cut off before it came.
        let later = now + EXCHANGE;
        assert_eq!(desk.prove(later, &id, &proof).unwrap_err(), Closed::Nonsense);
        let (id, _) = desk.begin(later, &said, &seen).unwrap();
        assert_eq!(desk.prove(later, &id, &proof).unwrap_err(), Closed::Wrong(2));
    }

    #[test]
    fn after_a_restart_there_is_no_code() {
        let (mut desk, now, seen) = (Desk::default(), Instant::now(), binding());
        let code = desk.show(now).unwrap();
        let asking = Asking::begin(&code);
        let (id, _) = desk.begin(now, asking.message(), &seen).unwrap();
        let mut desk = Desk::default();
        assert_eq!(desk.prove(now, &id, &[0; 32]).unwrap_err(), Closed::NoCode);
    }
}
