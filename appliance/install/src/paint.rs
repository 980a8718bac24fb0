//! Pure: what is known, as lines of text for the machine's own screen.

use std::net::IpAddr;

use polder_control::{Progress, Run, RunState, StepState};
use polder_screen::fold;

use crate::disks::Disk;
use crate::keys::Mode;

/// What all faces show.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// Of the image.
    pub version: String,
    /// Where Polder can be put, and where not; nothing before the first look.
    pub disks: Option<Vec<Disk>>,
    /// What is being written, or was.
    pub run: Option<Run>,
    /// How this machine can be reached.
    pub addresses: Vec<IpAddr>,
    /// The same in a browser, where that works.
    pub web: Option<Web>,
    /// Why the seed on the stick is not followed, in a sentence.
    pub bad_seed: Option<String>,
    /// What has to be said, in a sentence.
    pub note: Option<String>,
}

impl View {
    /// The disks that are known.
    pub fn disks(&self) -> &[Disk] {
        self.disks.as_deref().unwrap_or_default()
    }
}

/// What somebody at a browser needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Web {
    /// To be typed there; nothing after it was used.
    pub code: Option<String>,
    /// SHA-256 of the certificate.
    pub fingerprint: String,
}

/// The whole screen.
pub fn paint(view: &View, mode: &Mode, width: usize) -> String {
    let mut lines =
        vec![String::new(), format!("  Install Polder {}", view.version), String::new()];
    match (&view.run, mode) {
        (Some(run), _) => lines.extend(running(run)),
        (None, Mode::List(typed)) => lines.extend(list(view, typed)),
        (None, Mode::Confirm { disk, typed, wrong }) => {
            lines.extend(confirm(view, disk, typed, *wrong));
        }
        (None, Mode::Power) => {
            lines.push("  Nothing is being written.".to_owned());
            lines.push(String::new());
            lines.push(
                "  Keys:  o turn the machine off   r start it again   any other key: back"
                    .to_owned(),
            );
        }
    }
    let seed = view.bad_seed.as_ref().filter(|_| view.run.is_none());
    for note in seed.into_iter().chain(&view.note) {
        lines.extend([String::new(), format!("  {note}")]);
    }
    lines.iter().flat_map(|line| fold(line, width.max(20))).collect::<Vec<_>>().join("\n")
}

fn list(view: &View, typed: &str) -> Vec<String> {
    let mut lines = vec![
        "  Polder goes onto a disk inside this machine. Everything on that disk is lost."
            .to_owned(),
        String::new(),
    ];
    let Some(disks) = &view.disks else {
        lines.push("  Looking for disks.".to_owned());
        return lines;
    };
    for (index, disk) in disks.iter().enumerate() {
        lines.push(format!("  {:>2}  {}", index + 1, disk.title()));
        lines.push(match &disk.refusal {
            Some(why) => format!("      Not this one: {why}."),
            None => format!("      On it: {}.", disk.holds()),
        });
    }
    lines.push(String::new());
    if disks.iter().all(|disk| disk.refusal.is_some()) {
        lines.push(
            "  There is no disk here that Polder could go onto. Put one in; it is listed as soon as it is seen."
                .to_owned(),
        );
    } else {
        lines.push(format!("  Number of the disk, then Enter: {typed}_"));
    }
    lines.push(String::new());
    lines.extend(browser(view));
    let code = if view.web.is_some() { "c new code for a browser   " } else { "" };
    lines.push(format!("  Keys:  {code}p power"));
    lines
}

fn browser(view: &View) -> Vec<String> {
    let Some(web) = &view.web else { return Vec::new() };
    let Some(code) = &web.code else {
        return vec![
            "  The code for a browser was used or is over: press c for a new one.".to_owned(),
            String::new(),
        ];
    };
    if view.addresses.is_empty() {
        return Vec::new();
    }
    let address = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => format!("https://{ip}/"),
        IpAddr::V6(ip) => format!("https://[{ip}]/"),
    };
    let ways: Vec<String> = std::iter::once("https://polder.local/".to_owned())
        .chain(view.addresses.iter().map(address))
        .take(3)
        .collect();
    let half = web.fingerprint.len().div_ceil(2).next_multiple_of(3).min(web.fingerprint.len());
    let (first, second) = web.fingerprint.split_at(half);
    vec![
        format!("  Or in a browser on your network: {}", ways.join("  ")),
        format!("    Code: {code}"),
        "    Certificate fingerprint (SHA-256):".to_owned(),
        format!("      {first}"),
        format!("      {second}"),
        String::new(),
    ]
}

fn confirm(view: &View, name: &str, typed: &str, wrong: bool) -> Vec<String> {
    let Some(disk) = view.disks().iter().find(|disk| disk.name == name) else {
        return vec![format!("  {name} is gone. Press any key.")];
    };
    let mut lines = vec![format!("  {}", disk.title()), "  On it:".to_owned()];
    match disk.content.is_empty() {
        true => lines.push("    nothing that this machine knows".to_owned()),
        false => lines.extend(disk.content.iter().map(|line| format!("    {line}"))),
    }
    lines.push(String::new());
    lines.push("  All of it will be lost, for good.".to_owned());
    lines.push(String::new());
    if wrong {
        lines.push("  That was another name.".to_owned());
    }
    lines.push(format!("  To go on, type the disk's name, {name}, then Enter: {typed}_"));
    lines.push(String::new());
    lines.push("  Keys:  Esc back".to_owned());
    lines
}

fn running(run: &Run) -> Vec<String> {
    let mut lines = vec![format!("  {}", run.plan.title), String::new()];
    for (index, (step, state)) in run.plan.steps.iter().zip(&run.steps).enumerate() {
        let (mark, figures) = match state {
            StepState::Waiting => ("    ", String::new()),
            StepState::Running(progress) => {
                (" .. ", progress.as_ref().map_or_else(String::new, figures))
            }
            StepState::Done => (" ok ", String::new()),
            StepState::Failed(_) => ("FAIL", String::new()),
        };
        lines.push(format!("  [{mark}] {}. {}{figures}", index + 1, step.title));
    }
    lines.push(String::new());
    match &run.state {
        RunState::Running => lines.push("  Leave the machine on and the stick in.".to_owned()),
        RunState::Done => lines.extend([
            "  Polder is on the disk, and what was read back is right.".to_owned(),
            String::new(),
            "  Press r, and take the stick out while the screen is dark. The machine then starts"
                .to_owned(),
            "  as a box and shows where to open it: https://polder.local/".to_owned(),
            String::new(),
            "  Keys:  r start the machine again   o turn it off".to_owned(),
        ]),
        RunState::Failed(why) => lines.extend([
            format!("  Polder is not installed: {why}."),
            String::new(),
            "  Keys:  any key: back to the disks".to_owned(),
        ]),
        RunState::Cancelled => {}
    }
    lines
}

/// `: 96 of 272 MiB, 11.0 MiB/s, 16 s left`.
pub(crate) fn figures(progress: &Progress) -> String {
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let mut text = format!(": {:.0}", mib(progress.done as f64));
    if let Some(total) = progress.total {
        text += &format!(" of {:.0} MiB", mib(total as f64));
    }
    if let Some(rate) = progress.rate {
        text += &format!(", {:.1} MiB/s", mib(rate));
    }
    match progress.eta_seconds {
        Some(seconds @ 0..120) => text += &format!(", {seconds} s left"),
        Some(seconds) => text += &format!(", {} min left", seconds.div_ceil(60)),
        None => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use polder_control::{Plan, RunId, Step, Unit};
    use proptest::prelude::*;

    use super::*;
    use crate::disks::Refusal;

    fn disk(name: &str, refusal: Option<Refusal>) -> Disk {
        Disk {
            name: name.into(),
            path: format!("/dev/{name}"),
            size: 8_589_934_592,
            model: "QEMU".into(),
            serial: "T1".into(),
            content: Vec::new(),
            partitions: Vec::new(),
            refusal,
        }
    }

    fn view() -> View {
        View {
            version: "0.1.0".into(),
            disks: Some(vec![disk("sda", Some(Refusal::RunsFromIt)), disk("nvme0n1", None)]),
            ..View::default()
        }
    }

    #[test]
    fn the_list_says_what_is_lost_and_why_a_disk_cannot_be_chosen() {
        assert_eq!(
            paint(&view(), &Mode::List("2".into()), 80),
            "\n  Install Polder 0.1.0\n\n  \
             Polder goes onto a disk inside this machine. Everything on that disk is lost.\n\n   \
             1  sda  8.6 GB  QEMU  (T1)\n      \
             Not this one: this machine runs from it just now.\n   \
             2  nvme0n1  8.6 GB  QEMU  (T1)\n      \
             On it: empty.\n\n  \
             Number of the disk, then Enter: 2_\n\n  \
             Keys:  p power"
        );
    }

    #[test]
    fn a_machine_without_a_disk_for_polder_says_what_to_do() {
        let view = View { disks: Some(vec![disk("sda", Some(Refusal::RunsFromIt))]), ..view() };
        let text = paint(&view, &Mode::default(), 80);
        assert!(text.contains("There is no disk here") && !text.contains("then Enter"), "{text}");
        let early = paint(&View { disks: None, ..view }, &Mode::default(), 80);
        assert!(early.contains("Looking") && !early.contains("no disk"), "{early}");
    }

    #[test]
    fn what_is_written_is_shown_step_by_step_and_a_failure_with_its_sentence() {
        let step = |title: &str| Step { id: title.into(), title: title.into() };
        let progress = Progress {
            phase: "writing".into(),
            done: 96 << 20,
            total: Some(272 << 20),
            unit: Unit::Bytes,
            rate: Some(11.0 * 1_048_576.0),
            eta_seconds: Some(16),
        };
        let mut run = Run {
            id: RunId(1),
            plan: Plan { title: "Put it".into(), steps: vec![step("Wipe"), step("Write")] },
            steps: vec![StepState::Done, StepState::Running(Some(progress))],
            state: RunState::Running,
        };
        let text =
            |run: &Run| paint(&View { run: Some(run.clone()), ..view() }, &Mode::default(), 80);
        let shown = text(&run);
        assert!(
            shown.contains(
                "[ ok ] 1. Wipe\n  [ .. ] 2. Write: 96 of 272 MiB, 11.0 MiB/s, 16 s left"
            ),
            "{shown}"
        );
        run.state = RunState::Failed("the disk is gone".into());
        assert!(text(&run).contains("Polder is not installed: the disk is gone."));
        run.state = RunState::Done;
        assert!(text(&run).contains("take the stick out"));
    }

    proptest! {
        #[test]
        fn every_line_fits_and_is_plain(model in ".{0,90}", width in 0usize..200, typed in "[a-z0-9]{0,32}") {
            let mut view = view();
            view.disks.as_mut().unwrap()[1].model = model;
            for mode in [Mode::default(), Mode::Confirm { disk: "nvme0n1".into(), typed, wrong: true }] {
                let text = paint(&view, &mode, width);
                prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
                prop_assert!(text.lines().all(|line| line.chars().count() <= width.max(20)));
            }
        }
    }
}
