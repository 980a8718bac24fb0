//! Pure: what is known of the box, as lines of text.

use std::net::IpAddr;

use polder_control::{BoxStatus, Claim, PartState};
use polder_seal::Reset;
use polder_site::InterfaceName;

use crate::keys::Mode;

/// With less, the box's own records are in danger soon: an import leaves more.
const LITTLE: u64 = 500_000_000;

/// What is known of the box at this moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Version of the image or the program.
    pub version: String,
    /// From the supervisor; nothing while it does not answer.
    pub status: Option<BoxStatus>,
    /// From the gateway; nothing while it does not answer.
    pub door: Option<Shown>,
    /// How the box can be reached from elsewhere.
    pub addresses: Vec<IpAddr>,
    /// The machine's network ports, with a word about each: `no cable`.
    pub ports: Vec<(InterfaceName, String)>,
    /// A change of the network is undone soon unless somebody confirms it: what it does.
    pub waits: Option<String>,
    /// What there is to say of cards in the machine that nothing drives.
    pub cards: Option<String>,
    /// The disk is the box's own: it can be sealed, opened and made to forget.
    pub disk: bool,
    /// It could not be opened at this start.
    pub locked: bool,
    /// Bytes that are free where the box keeps everything, where that is known.
    pub free: Option<u64>,
    /// What the clock shows, if that is a time at which this program did not exist.
    pub early: Option<String>,
    /// What the last reset left.
    pub was_reset: Option<Reset>,
    /// What came of the last key, for a while.
    pub note: Option<String>,
}

/// What the gateway tells its own machine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shown {
    /// SHA-256 of the box's certificate authority.
    pub fingerprint: String,
    /// Whether the box has an owner.
    pub claimed: bool,
    /// Whether it came with an owner's key, and so has no code.
    pub owner_key: bool,
    /// The code, while there is one.
    pub claim: Option<Claim>,
}

/// The whole screen. Every line fits `width`; what is too long goes on in the next.
pub fn paint(facts: &Facts, mode: &Mode, width: usize) -> String {
    let mut lines = head(facts);
    match mode {
        Mode::Home => {
            if !facts.locked {
                lines.extend(way_in(facts));
            }
            lines.push(format!(
                "  {}",
                wrong(facts).unwrap_or_else(|| "Everything runs.".to_owned())
            ));
            lines.extend(facts.cards.iter().map(|cards| format!("  The cards: {cards}.")));
            lines.extend(
                room(facts).into_iter().chain(clock(facts)).map(|line| format!("  {line}")),
            );
            lines.push(String::new());
            lines.push(format!("  Keys:  {}", keys(facts)));
        }
        Mode::SetUp => {
            lines.push(
                "  Open the set-up again? A new code is shown; earlier ones stop working."
                    .to_owned(),
            );
            lines.push(String::new());
            lines.push("  Keys:  y yes   any other key: back".to_owned());
        }
        Mode::Network => {
            lines.push("  Network".to_owned());
            let indented = |line: String| if line.is_empty() { line } else { format!("  {line}") };
            lines.extend(network(facts).into_iter().map(indented));
        }
        Mode::Power => {
            lines.push("  Answers under way are finished first.".to_owned());
            lines.push(String::new());
            lines.push(
                "  Keys:  o turn the machine off   r start it again   any other key: back"
                    .to_owned(),
            );
        }
        _ => {}
    }
    if let Mode::SafeMode
    | Mode::Reset
    | Mode::Port(_)
    | Mode::Address { .. }
    | Mode::Name { .. }
    | Mode::Unlock(_)
    | Mode::Anew(_)
    | Mode::Clock(_) = mode
    {
        lines.extend(question(facts, mode).into_iter().map(|line| format!("  {line}")));
    }
    if let Some(note) = &facts.note {
        lines.extend([String::new(), format!("  {note}")]);
    }
    lines.iter().flat_map(|line| fold(line, width.max(20))).collect::<Vec<_>>().join("\n")
}

/// The ports, and what can be done about them.
fn network(facts: &Facts) -> Vec<String> {
    let may = facts.disk && !facts.locked;
    let port = |(place, (name, word)): (usize, &(InterfaceName, String))| match may && place < 9 {
        true => format!("  {} {name}: {word}; {}", place + 1, how(facts, name)),
        false => format!("  {name}: {word}"),
    };
    let mut lines: Vec<String> = facts.ports.iter().enumerate().map(port).collect();
    if lines.is_empty() {
        lines.push("  This machine has no network port.".to_owned());
    }
    lines.push(String::new());
    if let Some(what) = &facts.waits {
        lines.push(format!("Undone in a minute unless somebody confirms it: {what}."));
        lines.push(String::new());
    }
    let keep = if facts.waits.is_some() { "y keep the change   " } else { "" };
    let number = if may && !facts.ports.is_empty() { "1 to 9 change that port   " } else { "" };
    lines.push(format!("Keys:  {keep}{number}any other key: back"));
    lines
}

/// How a port gets its address, as far as the site says.
fn how(facts: &Facts, name: &InterfaceName) -> String {
    let site = facts.status.as_ref().map(|status| &status.site);
    match site.and_then(|site| site.ports.get(name)) {
        Some(port) if !port.by_dhcp() => format!("it has {port}"),
        Some(_) => "it asks a router".to_owned(),
        None => "it asks a router, or has what the seed said".to_owned(),
    }
}

impl Facts {
    /// The box's name, as it is shown.
    pub(crate) fn name(&self) -> &str {
        self.status.as_ref().map_or("polder", |status| status.site.name.as_str())
    }
}

fn head(facts: &Facts) -> Vec<String> {
    vec![String::new(), format!("  {}    Polder {}", facts.name(), facts.version), String::new()]
}

fn keys(facts: &Facts) -> String {
    let keys = match (facts.disk, facts.locked) {
        (_, true) => "u unlock   n network   f factory reset",
        (true, false) => "s set-up   n network   p power   m safe mode   f factory reset",
        (false, false) => "s set-up   n network   p power",
    };
    let time = if facts.disk && facts.early.is_some() { "   t time" } else { "" };
    format!("{keys}{time}")
}

/// That the disk fills up, while there is still room to do something about it.
fn room(facts: &Facts) -> Option<String> {
    let free = facts.free.filter(|free| *free < LITTLE && !facts.locked)?;
    let megabytes = free / 1_000_000;
    Some(format!(
        "The disk is almost full: {megabytes} MB are free. Remove a model that nobody uses, on the page Models."
    ))
}

/// That the machine does not know the time, and what that costs.
fn clock(facts: &Facts) -> Option<String> {
    let early = facts.early.as_ref()?;
    let way_on = if facts.disk { " Press t to set it, or let" } else { " Let" };
    Some(format!(
        "The clock is wrong: it shows {early}. Sign-ins and limits go by it.{way_on} the machine reach the internet for a moment."
    ))
}

/// The questions about the disk, and what was typed so far.
fn question(facts: &Facts, mode: &Mode) -> Vec<String> {
    let lines = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    match mode {
        Mode::SafeMode => lines(&[
            "Start the machine again, once without engines and apps? Answers under way are finished first.",
            "The start after that is an ordinary one.",
            "",
            "Keys:  y yes   any other key: back",
        ]),
        Mode::Port(port) => vec![
            format!("How should the port {port} get its address?"),
            String::new(),
            "Keys:  d from a router (DHCP)   a it always has this one   any other key: back".to_owned(),
        ],
        Mode::Address { port, typed, wrong } => {
            let mut lines = vec![
                format!("Type the address of {port} with the length of its network, then the router's, then a name server's, as in"),
                "192.168.1.10/24 192.168.1.1 9.9.9.9 and press Enter:".to_owned(),
                String::new(),
                format!("> {typed}_"),
                String::new(),
            ];
            lines.extend(wrong.iter().flat_map(|wrong| [format!("{wrong}."), String::new()]));
            lines.push("Keys:  Esc back".to_owned());
            lines
        }
        Mode::Reset if facts.locked => lines(&[
            "Make this box new? Everything on its disk is lost for good: models, members, keys, the audit trail.",
            "",
            "Keys:  e erase everything   any other key: back",
        ]),
        Mode::Reset => lines(&[
            "Make this box new? Members, keys, settings and the audit trail are lost for good.",
            "The models can stay. They are then the only thing that does; what is removed is not overwritten.",
            "",
            "Keys:  e erase everything   m keep the models   any other key: back",
        ]),
        Mode::Name { reset, typed } => {
            let what = match reset {
                Reset::Everything => "Everything on the disk will be lost.",
                Reset::KeepModels => "Everything on the disk but the models will be lost.",
            };
            vec![
                format!("{what} Type the box's name, {}, and press Enter:", facts.name()),
                String::new(),
                format!("> {typed}_"),
                String::new(),
                "Keys:  Esc back".to_owned(),
            ]
        }
        Mode::Unlock(typed) => vec![
            "Type the recovery key that was written down when the disk was sealed, and press Enter:".to_owned(),
            String::new(),
            format!("> {typed}_"),
            String::new(),
            "Keys:  Esc back".to_owned(),
        ],
        Mode::Clock(typed) => vec![
            "Type today's date and the time, as in 2027-03-31 14:05, and press Enter. Some hours more or less do not matter:"
                .to_owned(),
            String::new(),
            format!("> {typed}_"),
            String::new(),
            "Keys:  Esc back".to_owned(),
        ],
        Mode::Anew(_) => lines(&[
            "Should the machine open the disk by itself again, as it is started now? Say yes only if you know what",
            "changed: firmware, its keys, a repair. Otherwise the key is asked for again at the next start.",
            "",
            "Keys:  y yes, by itself again   any other key: only this time",
        ]),
        _ => Vec::new(),
    }
}

/// How to get in: addresses, and the code where nobody owns the box.
fn way_in(facts: &Facts) -> Vec<String> {
    let port = facts.status.as_ref().map_or(443, |status| status.site.door.port);
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let mut lines = Vec::new();
    let address = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => format!("https://{ip}{port}/"),
        IpAddr::V6(ip) => format!("https://[{ip}]{port}/"),
    };
    let name =
        facts.status.as_ref().map(|status| format!("https://{}.local{port}/", status.site.name));
    // Two are enough for a person to type.
    let mut ways: Vec<String> =
        name.into_iter().chain(facts.addresses.iter().map(address)).take(3).collect();
    if facts.addresses.is_empty() {
        lines.push("  No network: plug in a cable that leads to your router.".to_owned());
        ways.clear();
    }
    if !ways.is_empty() {
        lines.push("  Open in a browser on your network:".to_owned());
        lines.extend(ways.iter().map(|way| format!("    {way}")));
    }
    lines.push(String::new());
    if let Some(door) = &facts.door {
        if let (Some(reset), false) = (facts.was_reset, door.claimed) {
            lines.push(match reset {
                Reset::Everything => "  This box was reset: nothing of before is left.".to_owned(),
                Reset::KeepModels => {
                    "  This box was reset: nothing of before is left but the models.".to_owned()
                }
            });
        }
        if let Some(claim) = &door.claim {
            let minutes = claim.seconds.div_ceil(60);
            let word = if door.claimed { "Set-up code" } else { "Claim code" };
            lines.push(format!(
                "  {word}: {}   (good for {minutes} minutes, for one person)",
                claim.code
            ));
        } else if !door.claimed && door.owner_key {
            lines.push(
                "  This box waits for its owner: open it in a browser and choose the key file."
                    .to_owned(),
            );
        } else if !door.claimed {
            lines.push(
                "  Nobody owns this box yet, and its code has run out: press s for a new one."
                    .to_owned(),
            );
        }
        lines.push("  Certificate fingerprint (SHA-256):".to_owned());
        let half = door.fingerprint.len().div_ceil(2).next_multiple_of(3);
        let (first, second) = door.fingerprint.split_at(half.min(door.fingerprint.len()));
        lines.push(format!("    {first}"));
        if !second.is_empty() {
            lines.push(format!("    {second}"));
        }
        lines.push(String::new());
    }
    lines
}

/// What is wrong, in one line: the first thing that somebody would have to mend.
fn wrong(facts: &Facts) -> Option<String> {
    if facts.locked {
        return Some(
            "The disk is locked: this machine does not open it as it was started now, or the disk is not there. Press u to type the recovery key."
                .to_owned(),
        );
    }
    let Some(status) = &facts.status else {
        return Some("The box is starting, or its supervisor does not answer.".to_owned());
    };
    match &status.gateway.state {
        PartState::GaveUp(why) => return Some(format!("The door does not open: {why}")),
        PartState::Ready => {}
        _ => return Some("The door is opening.".to_owned()),
    }
    if status.safe {
        return Some(
            "Safe mode: no engine and no app runs. To leave it start the machine again: p, then r."
                .to_owned(),
        );
    }
    for engine in &status.engines {
        match &engine.part.state {
            PartState::GaveUp(why) => {
                return Some(format!("{} does not answer: {why}", engine.recipe));
            }
            PartState::Waiting { why, .. } => {
                return Some(format!("{} stopped ({why}) and is started again.", engine.recipe));
            }
            PartState::Starting => return Some(format!("{} is being loaded.", engine.recipe)),
            PartState::Stopped | PartState::Draining => {
                return Some(match &status.supply {
                    // The battery is empty, or charges first.
                    Some(supply) if !supply.may_start || supply.phase.refuses_all_work() => {
                        supply.words.clone()
                    }
                    _ => format!("{} does not run.", engine.recipe),
                });
            }
            PartState::Ready => {}
        }
    }
    if status.engines.is_empty() {
        return Some("It has no model yet.".to_owned());
    }
    None
}

/// A line in pieces of at most `width`, broken at spaces where there are any; of plain characters only.
pub fn fold(line: &str, width: usize) -> Vec<String> {
    let clean: Vec<char> = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut pieces = Vec::new();
    let mut rest = clean.as_slice();
    while rest.len() > width {
        let at = rest[..width].iter().rposition(|c| *c == ' ').filter(|at| *at > width / 2);
        let (piece, after) = rest.split_at(at.unwrap_or(width));
        pieces.push(piece.iter().collect());
        rest = if at.is_some() { &after[1..] } else { after };
    }
    pieces.push(rest.iter().collect());
    pieces
}

#[cfg(test)]
mod tests {
    use polder_control::{EngineStatus, PartStatus};
    use polder_site::{PortAddress, Site};
    use proptest::prelude::*;

    use super::*;

    fn part(state: PartState) -> PartStatus {
        PartStatus { state, restarts: 0, pid: None }
    }

    fn status(engine: Option<PartState>) -> BoxStatus {
        let engines = engine.into_iter().map(|state| EngineStatus {
            name: "fast".parse().unwrap(),
            recipe: "tiny".parse().unwrap(),
            socket: "/x".into(),
            part: part(state),
            note: None,
        });
        let site = Site::unclaimed(443);
        BoxStatus {
            supply: None,
            closed: None,
            others: Vec::new(),
            safe: false,
            site,
            gateway: part(PartState::Ready),
            engines: engines.collect(),
        }
    }

    #[test]
    fn an_engine_that_waits_for_the_battery_is_not_said_to_run() {
        let shown = |supply| {
            let status = BoxStatus { supply, ..status(Some(PartState::Stopped)) };
            paint(&Facts { status: Some(status), ..fresh() }, &Mode::Home, 200)
        };
        let charges = "Engines start when the battery has 40 %; it has 3 %.";
        let supply = polder_control::Supply { words: charges.into(), ..Default::default() };
        assert!(shown(Some(supply.clone())).contains(charges));
        let supply = polder_control::Supply { may_start: true, ..supply };
        assert!(shown(Some(supply)).contains("tiny does not run."));
        assert!(!shown(None).contains("Everything runs."));
    }

    fn fresh() -> Facts {
        Facts {
            version: "0.1.0".into(),
            status: Some(status(None)),
            door: Some(Shown {
                fingerprint: ["AB"; 32].join(":"),
                claimed: false,
                owner_key: false,
                claim: Some(Claim { code: "AAAAA-BBBBB-CCCCC".into(), seconds: 1790 }),
            }),
            addresses: vec!["192.168.1.7".parse().unwrap()],
            ports: vec![("enp1s0".parse().unwrap(), "connected".into())],
            ..Facts::default()
        }
    }

    #[test]
    fn a_new_box_says_where_it_is_and_with_which_code_to_claim_it() {
        let pair = ["AB"; 16].join(":");
        assert_eq!(
            paint(&fresh(), &Mode::Home, 80),
            format!(
                "\n  polder    Polder 0.1.0\n\n  \
                 Open in a browser on your network:\n    \
                 https://polder.local/\n    \
                 https://192.168.1.7/\n\n  \
                 Claim code: AAAAA-BBBBB-CCCCC   (good for 30 minutes, for one person)\n  \
                 Certificate fingerprint (SHA-256):\n    \
                 {pair}:\n    {pair}\n\n  \
                 It has no model yet.\n\n  \
                 Keys:  s set-up   n network   p power"
            )
        );
    }

    #[test]
    fn a_box_with_an_owners_key_says_that_it_waits_for_its_owner_and_has_no_code() {
        let mut facts = fresh();
        let door = facts.door.as_mut().unwrap();
        (door.owner_key, door.claim) = (true, None);
        let text = paint(&facts, &Mode::Home, 80);
        assert!(text.contains("choose the key file") && !text.contains("code"), "{text}");
    }

    #[test]
    fn what_is_wrong_is_one_line_and_the_first_thing_to_mend() {
        let with = |state| Facts { status: Some(status(Some(state))), ..fresh() };
        let said = |facts: &Facts| wrong(facts);
        assert_eq!(said(&with(PartState::Ready)), None);
        let gone = with(PartState::GaveUp("no memory".into()));
        assert_eq!(said(&gone).unwrap(), "tiny does not answer: no memory");
        let mut both = gone.clone();
        both.status.as_mut().unwrap().gateway = part(PartState::GaveUp("port taken".into()));
        assert_eq!(said(&both).unwrap(), "The door does not open: port taken");
        assert!(said(&Facts::default()).unwrap().contains("does not answer"));
    }

    #[test]
    fn cards_that_nothing_drives_are_told_below_what_is_wrong() {
        let facts = Facts { cards: Some("this image has no driver".into()), ..fresh() };
        let text = paint(&facts, &Mode::Home, 80);
        let told = "It has no model yet.\n  The cards: this image has no driver.\n";
        assert!(text.contains(told), "{text}");
    }

    #[test]
    fn a_disk_that_fills_up_and_a_clock_that_is_wrong_are_told_with_what_to_do() {
        let full = Facts { free: Some(12_345_678), ..fresh() };
        let text = paint(&full, &Mode::Home, 120);
        assert!(text.contains("almost full: 12 MB are free. Remove a model"), "{text}");
        let roomy = Facts { free: Some(LITTLE), ..fresh() };
        assert!(!paint(&roomy, &Mode::Home, 120).contains("full"));
        let early = Facts { disk: true, early: Some("1970-01-01 00:03".into()), ..fresh() };
        let text = paint(&early, &Mode::Home, 200);
        assert!(text.contains("it shows 1970-01-01 00:03.") && text.contains("Press t"), "{text}");
        assert!(text.ends_with("f factory reset   t time"), "{text}");
        let program = Facts { disk: false, ..early };
        assert!(!paint(&program, &Mode::Home, 200).contains("   t time"));
    }

    #[test]
    fn the_ports_are_listed_with_how_each_gets_its_address_and_a_change_with_how_to_keep_it() {
        let mut facts = Facts { disk: true, ..fresh() };
        facts.ports.push(("enp2s0".parse().unwrap(), "no cable".into()));
        let fixed = PortAddress::line("192.168.7.20/24").unwrap();
        let site = &mut facts.status.as_mut().unwrap().site;
        site.ports = [("enp2s0".parse().unwrap(), fixed)].into();
        assert_eq!(
            paint(&facts, &Mode::Network, 120),
            "\n  polder    Polder 0.1.0\n\n  Network\n    \
             1 enp1s0: connected; it asks a router, or has what the seed said\n    \
             2 enp2s0: no cable; it has 192.168.7.20/24\n\n  \
             Keys:  1 to 9 change that port   any other key: back"
        );
        facts.waits = Some("Give the port enp2s0 192.168.7.20/24".into());
        let text = paint(&facts, &Mode::Network, 120);
        assert!(text.contains("unless somebody confirms it: Give the port enp2s0"), "{text}");
        assert!(text.contains("Keys:  y keep the change   1 to 9"), "{text}");
        let locked = Facts { locked: true, waits: None, ..facts.clone() };
        assert!(paint(&locked, &Mode::Network, 120).ends_with("Keys:  any other key: back"));
        let typing = Mode::Address {
            port: "enp1s0".parse().unwrap(),
            typed: "10.0.0.5".into(),
            wrong: Some("it has no length".into()),
        };
        let text = paint(&facts, &typing, 120);
        assert!(
            text.contains("> 10.0.0.5_\n") && text.contains("\n  it has no length.\n"),
            "{text}"
        );
        assert!(paint(&facts, &Mode::Port("a0".parse().unwrap()), 120).contains("d from a router"));
    }

    #[test]
    fn a_locked_disk_is_what_is_wrong_and_no_way_in_is_promised() {
        let facts = Facts { disk: true, locked: true, status: None, door: None, ..fresh() };
        let text = paint(&facts, &Mode::Home, 80);
        assert!(text.contains("The disk is locked") && text.contains("u unlock"), "{text}");
        assert!(!text.contains("https://") && !text.contains("s set-up"), "{text}");
    }

    #[test]
    fn safe_mode_and_a_reset_are_said_with_what_to_do() {
        let mut safe = Facts { disk: true, ..fresh() };
        safe.status.as_mut().unwrap().safe = true;
        let text = paint(&safe, &Mode::Home, 120);
        assert!(text.contains("Safe mode: no engine") && text.contains("p, then r"), "{text}");
        assert!(text.contains("m safe mode   f factory reset"), "{text}");
        let reset = Facts { was_reset: Some(Reset::KeepModels), ..fresh() };
        assert!(
            paint(&reset, &Mode::Home, 80).contains("nothing of before is left but the models")
        );
        let mut claimed = reset;
        claimed.door.as_mut().unwrap().claimed = true;
        assert!(!paint(&claimed, &Mode::Home, 80).contains("was reset"));
    }

    #[test]
    fn what_is_typed_is_shown_below_the_name_to_type() {
        let mode = Mode::Name { reset: Reset::Everything, typed: "pol".into() };
        let text = paint(&fresh(), &mode, 80);
        assert!(text.contains("Type the box's name, polder,") && text.contains("> pol_"), "{text}");
    }

    #[test]
    fn without_a_network_no_address_is_promised() {
        let facts = Facts { addresses: Vec::new(), ..fresh() };
        let text = paint(&facts, &Mode::Home, 80);
        assert!(text.contains("plug in a cable") && !text.contains("https://"), "{text}");
    }

    proptest! {
        #[test]
        fn nothing_that_a_part_says_breaks_out_of_its_line(why in ".{0,300}", width in 0usize..200) {
            let facts = Facts { status: Some(status(Some(PartState::GaveUp(why)))), ..fresh() };
            let text = paint(&facts, &Mode::Home, width);
            prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
            prop_assert!(text.lines().all(|line| line.chars().count() <= width.max(20)));
        }
    }
}
