//! Less power for graphics cards while the box lives off its battery.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A driver in trouble makes its tool hang; one that is well answers within a second or two.
const WITHIN: Duration = Duration::from_secs(10);
/// Between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(20);

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

/// NVIDIA's cards, by the driver's own program, which takes root to change anything. Each call waits at most ten seconds.
#[derive(Debug)]
pub struct NvidiaSmi {
    program: PathBuf,
    within: Duration,
}

impl Default for NvidiaSmi {
    fn default() -> Self {
        Self { program: "nvidia-smi".into(), within: WITHIN }
    }
}

impl Cards for NvidiaSmi {
    fn limits(&mut self) -> Result<Vec<Card>, String> {
        let query = "--query-gpu=index,power.default_limit,power.min_limit";
        let said = self.run(&[query, "--format=csv,noheader,nounits"])?;
        Ok(said.lines().filter_map(parse).collect())
    }

    fn limit(&mut self, card: u32, watts: u32) -> Result<(), String> {
        self.run(&["-i", &card.to_string(), "-pl", &watts.to_string()]).map(drop)
    }
}

impl NvidiaSmi {
    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let child = command.spawn();
        let mut child = child.map_err(|error| format!("nvidia-smi could not be run ({error})"))?;
        let begun = Instant::now();
        // What it says is a line for each card, which a pipe holds.
        while child.try_wait().map_err(|error| error.to_string())?.is_none() {
            if begun.elapsed() >= self.within {
                // In the kernel's hands it may not even be killed; nobody waits for that.
                let _ = child.kill();
                let _ = child.try_wait();
                return Err("nvidia-smi does not answer; the driver may be in trouble".to_owned());
            }
            std::thread::sleep(LOOK);
        }
        let out = child.wait_with_output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        match out.status.success() {
            true => Ok(said),
            false => Err(format!("nvidia-smi said: {}", said.lines().next().unwrap_or("nothing"))),
        }
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

    /// A program in the place of the driver's.
    fn tool(text: &str, within: Duration) -> (tempfile::TempDir, NvidiaSmi) {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("nvidia-smi");
        // Written by another process: a file that a neighbour's fork holds open for writing cannot be run.
        let written = Command::new("sh")
            .args(["-c", "printf '%s' \"$1\" > \"$2\"", "sh", text])
            .arg(&program)
            .status();
        assert!(written.unwrap().success());
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        (folder, NvidiaSmi { program, within })
    }

    #[test]
    fn the_drivers_tool_is_told_each_cards_limit_and_what_it_refuses_is_said() {
        let script = "#!/bin/sh\ncase $1 in --query*) echo '0, 450.00, 150.00' ;; *) echo \"$@\" >> \"$0.log\" ;; esac\n";
        let (folder, mut cards) = tool(script, WITHIN);
        limit_all(&mut cards, Some(60)).unwrap();
        limit_all(&mut cards, None).unwrap();
        let log = std::fs::read_to_string(folder.path().join("nvidia-smi.log")).unwrap();
        assert_eq!(log, "-i 0 -pl 270\n-i 0 -pl 450\n");
        let script = "#!/bin/sh\ncase $1 in --query*) echo '0, 450.00, 150.00' ;; *) echo 'no permission'; exit 4 ;; esac\n";
        let (_folder, mut cards) = tool(script, WITHIN);
        let said = limit_all(&mut cards, Some(60)).unwrap_err();
        assert_eq!(said, "nvidia-smi said: no permission");
    }

    #[test]
    fn a_tool_that_hangs_is_waited_for_no_longer_than_its_time() {
        let (_folder, mut cards) = tool("#!/bin/sh\nexec sleep 600\n", Duration::from_millis(100));
        let begun = Instant::now();
        let said = limit_all(&mut cards, Some(60)).unwrap_err();
        assert!(said.contains("does not answer") && begun.elapsed() < Duration::from_secs(60));
    }
}
