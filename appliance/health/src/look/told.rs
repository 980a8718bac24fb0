//! What other parts of the box left about themselves: their backups, their UPS, the other box.

use polder_control::{BatterySeen, Check, PartName, PartState, Told};

use super::{Eyes, Look};
use crate::memory::Remembered;

/// What a part told of itself is good for so long, in seconds.
const TOLD: i64 = 2 * 3600;
/// The same of a UPS, of which somebody tells every second.
const TOLD_OF_UPS: i64 = 5 * 60;

impl Eyes {
    /// What other parts left. What is old is no news, and that there is none does not mean that all is well: what stands then goes on standing.
    pub(super) fn told(&self, look: &mut Look, remembered: &mut Remembered) {
        let site = look.status.as_deref().map(|status| status.site.clone());
        // Where the supervisor does not answer, who left something is still asked for.
        let wanted =
            |is: fn(&polder_site::Site) -> bool, left: bool| site.as_ref().map_or(left, is);
        let now = look.seen.now;
        let (mut battery, mut backup, mut spare) = (None, None, None);
        for (at, told) in Told::left_in(&self.sockets.folder().join(Told::FOLDER)) {
            let age = now.saturating_sub(at);
            match told {
                Told::Battery(told) => battery = Some((age, told)),
                Told::Backup(told) => backup = Some((age, told)),
                Told::Spare(told) => spare = Some((age, told)),
            }
        }
        match wanted(|site| site.power.is_some(), battery.is_some()) {
            true => look.battery(battery, &mut remembered.mains_away),
            false => remembered.mains_away = None,
        }
        match backup {
            Some((..=TOLD, told)) => look.seen.backup = Some(told),
            _ => look.cannot(&[Check::Backup], "nobody has said lately how the backups are"),
        }
        match spare {
            Some((..=TOLD, told)) => look.seen.spare = Some(*told),
            left if wanted(|site| site.spare.is_some(), left.is_some()) => {
                look.cannot(&[Check::Spare], "nobody has said lately how the other box is");
            }
            _ => {}
        }
    }
}

impl Look {
    /// What was last said of a UPS that the site names: so many seconds ago, this. While it is not known what feeds it, a power cut that was told of is not over:
    /// it is remembered when it was heard of last (`away`).
    fn battery(&mut self, left: Option<(i64, BatterySeen)>, away: &mut Option<i64>) {
        let now = self.seen.now;
        if let Some((age, said)) = &left {
            match said.on_mains {
                Some(true) => *away = None,
                Some(false) => *away = Some(now.saturating_sub(*age)),
                None => {
                    let silent = said.silent.and_then(|silent| silent.try_into().ok());
                    let heard = now.saturating_sub(silent.unwrap_or_default()).saturating_sub(*age);
                    *away = away.map(|at| at.min(heard));
                }
            }
        }
        self.seen.mains_away = *away;
        let given_up = self.status.as_deref().is_some_and(|status| {
            let power = status.others.iter().filter(|other| other.name == PartName::Power);
            power.into_iter().any(|other| matches!(other.part.state, PartState::GaveUp(_)))
        });
        let seen = match left {
            Some((age, mut said)) if age > TOLD_OF_UPS => {
                // Of a part that was given up there is an issue already.
                said.on_mains = None;
                said.silent = age.try_into().ok().filter(|_| !given_up);
                Some(said)
            }
            Some((_, said)) => Some(said),
            None => None,
        };
        if seen.as_ref().is_none_or(|seen| seen.on_mains.is_none()) {
            self.cannot(&[Check::Battery], "nobody says what feeds the UPS now");
        }
        self.seen.battery = seen;
    }
}
