//! Less power for graphics cards while the box lives off its battery.

use std::process::Command;

/// What can set how much power cards may draw.
pub trait Cards: Send + 'static {
    /// Each card's usual limit and its lowest, in watts, by the driver's number for it.
    fn limits(&mut self) -> Result<Vec<Card>, String>;
    /// Limits one card.
    fn limit(&mut self, card: u32, watts: u32) -> Result<(), String>;
}

/// A card's limits, in watts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// The driver's number for it.
    pub index: u32,
    /// What it may draw usually.
    pub usual: u32,
    /// The lowest limit that it takes.
    pub lowest: u32,
}

impl Card {
    /// Its limit at this part of the usual one.
    pub fn at(&self, percent: u8) -> u32 {
        (self.usual * u32::from(percent.min(100)) / 100)
            .clamp(self.lowest.min(self.usual), self.usual)
    }
}

/// Limits every card to a part of its usual power, or to that again. A card that does not let itself be limited keeps
/// nobody from limiting the others; the first reason comes back.
pub fn limit_all(cards: &mut dyn Cards, percent: Option<u8>) -> Result<(), String> {
    let mut first = Ok(());
    for card in cards.limits()? {
        let watts = percent.map_or(card.usual, |percent| card.at(percent));
        first = first.and(cards.limit(card.index, watts));
    }
    first
}

/// NVIDIA's cards, by the driver's own program.
#[derive(Debug, Default)]
pub struct NvidiaSmi;

impl Cards for NvidiaSmi {
    fn limits(&mut self) -> Result<Vec<Card>, String> {
        let query = "--query-gpu=index,power.default_limit,power.min_limit";
        let said = run(&[query, "--format=csv,noheader,nounits"])?;
        Ok(said.lines().filter_map(parse).collect())
    }

    fn limit(&mut self, card: u32, watts: u32) -> Result<(), String> {
        run(&["-i", &card.to_string(), "-pl", &watts.to_string()]).map(drop)
    }
}

fn run(arguments: &[&str]) -> Result<String, String> {
    let out = Command::new("nvidia-smi").args(arguments).output();
    let out = out.map_err(|error| format!("nvidia-smi could not be run ({error})"))?;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    match out.status.success() {
        true => Ok(said),
        false => Err(format!("nvidia-smi said: {}", said.lines().next().unwrap_or("nothing"))),
    }
}

/// `0, 700.00, 200.00`; a card that has no limit says `[N/A]`.
fn parse(line: &str) -> Option<Card> {
    let mut words = line.split(',').map(str::trim);
    let index = words.next()?.parse().ok()?;
    let mut watts =
        || Some(words.next()?.parse::<f64>().ok().filter(|w| (1.0..1e5).contains(w))? as u32);
    Some(Card { index, usual: watts()?, lowest: watts()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Fake(Vec<(u32, u32)>);

    impl Cards for Fake {
        fn limits(&mut self) -> Result<Vec<Card>, String> {
            Ok(["0, 700.00, 200.00", "1, [N/A], [N/A]", "2, 300.00, 250.00"]
                .into_iter()
                .filter_map(parse)
                .collect())
        }
        fn limit(&mut self, card: u32, watts: u32) -> Result<(), String> {
            self.0.push((card, watts));
            if card == 0 { Err("no".to_owned()) } else { Ok(()) }
        }
    }

    #[test]
    fn every_card_is_limited_within_what_it_takes_and_given_back_its_own() {
        let mut cards = Fake::default();
        assert_eq!(limit_all(&mut cards, Some(60)), Err("no".to_owned()));
        assert_eq!(limit_all(&mut cards, None), Err("no".to_owned()));
        assert_eq!(cards.0, [(0, 420), (2, 250), (0, 700), (2, 300)]);
    }
}
