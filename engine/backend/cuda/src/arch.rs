//! Kinds of machine code, and which cards run them.

use std::fmt;
use std::str::FromStr;

/// A kind of machine code: `sm_90a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch {
    /// Major times ten and minor: 90.
    pub number: u32,
}

impl Arch {
    /// Those that every kernel is compiled for: A100, 3090 and A6000; 4090 and L40; H100 and H200; B200; B300 and GB300; 5090,
    /// RTX PRO 6000 and GB10.
    pub const ALL: [Arch; 6] = [
        Arch { number: 80 },
        Arch { number: 89 },
        Arch { number: 90 },
        Arch { number: 100 },
        Arch { number: 103 },
        Arch { number: 120 },
    ];

    /// What a card of this compute capability runs. Code runs on later cards of its generation too, unless it is for one kind alone
    /// (`a`); how much shared memory such a card has is asked of the card itself.
    pub fn of_card(major: u32, minor: u32) -> Self {
        let number = match major * 10 + minor {
            86 => 80,
            121 => 120,
            own => own,
        };
        Self { number }
    }

    /// Whether there are kernels for it.
    pub fn is_known(self) -> bool {
        Self::ALL.contains(&self)
    }

    /// The cards that have it, as people know them.
    pub fn cards(self) -> &'static str {
        match self.number {
            80 => "A100, RTX 30 and A6000",
            89 => "RTX 40 and L40",
            90 => "H100 and H200",
            100 => "B200",
            103 => "B300 and GB300",
            120 => "RTX 50, RTX PRO 6000 and GB10",
            _ => "others",
        }
    }

    /// As the compiler is told.
    pub fn option(self) -> String {
        format!("--gpu-architecture={self}")
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Code with an `a` runs on its own kind alone: that of 12.0 is for 12.1 too.
        let alone = (90..120).contains(&self.number);
        write!(f, "sm_{}{}", self.number, if alone { "a" } else { "" })
    }
}

/// Not the name of a kind of card.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no kind of card; one of: sm_80, sm_89, sm_90a, sm_100a, sm_103a, sm_120")]
pub struct UnknownArch(String);

impl FromStr for Arch {
    type Err = UnknownArch;

    /// `sm_90a`, `90a` or `90`.
    fn from_str(text: &str) -> Result<Self, UnknownArch> {
        let bare = text.strip_prefix("sm_").unwrap_or(text);
        let number = bare.strip_suffix('a').unwrap_or(bare).parse().ok();
        Self::ALL
            .into_iter()
            .find(|arch| Some(arch.number) == number)
            .ok_or_else(|| UnknownArch(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_read_as_it_is_written() {
        for arch in Arch::ALL {
            assert_eq!(arch.to_string().parse::<Arch>().unwrap(), arch);
        }
        assert_eq!("90".parse::<Arch>().unwrap().to_string(), "sm_90a");
        assert!("sm_75".parse::<Arch>().unwrap_err().to_string().contains("sm_120"));
    }

    #[test]
    fn a_card_runs_the_code_of_its_kind() {
        let of = |major, minor| Arch::of_card(major, minor).to_string();
        assert_eq!(of(8, 0), "sm_80");
        assert_eq!(of(8, 9), "sm_89");
        assert_eq!(of(9, 0), "sm_90a");
        assert_eq!(of(10, 3), "sm_103a");
        assert!(!Arch::of_card(7, 5).is_known() && !Arch::of_card(11, 0).is_known());
    }

    #[test]
    fn later_cards_of_a_generation_run_the_code_of_an_earlier_one() {
        let of = |major, minor| Arch::of_card(major, minor).to_string();
        assert_eq!(
            [of(8, 6), of(8, 7)],
            ["sm_80", "sm_87"],
            "3090, and Orin, whose code is its own"
        );
        assert_eq!([of(12, 0), of(12, 1)], ["sm_120", "sm_120"], "5090, GB10");
    }
}
