//! A second box keeps what is precious of the first.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use polder_control::SpareStatus;
use polder_stories::{Running, free_port, polder, scaled};

/// `polder …` of the box in `state`, with something typed.
fn run(state: &Path, arguments: &[&str], typed: &str) -> Output {
    let mut command = polder(arguments);
    command.arg("--state").arg(state);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may have ended before it read all.
    let _ = child.stdin.take().unwrap().write_all(typed.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn done(state: &Path, arguments: &[&str], typed: &str) -> String {
    let output = run(state, arguments, typed);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn status(state: &Path) -> SpareStatus {
    serde_json::from_str(&done(state, &["spare", "status", "--json"], "")).unwrap()
}

fn until(state: &Path, what: &str, condition: impl Fn(&SpareStatus) -> bool) -> SpareStatus {
    let deadline = Instant::now() + scaled(Duration::from_secs(60));
    loop {
        let status = status(state);
        if condition(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "{what}: {status:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_second_box_is_paired_by_a_code_keeps_the_firsts_backups_and_proves_that_they_can_be_restored()
{
    let (elm, ash) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (main, _) = Running::ready(elm.path());
    let spare = Running::start(ash.path(), free_port(), &[]);
    spare.line_with("http");
    let port = free_port().to_string();

    let none = done(ash.path(), &["spare", "status"], "");
    assert!(none.contains("has no spare and is none"), "{none}");
    let code = done(ash.path(), &["spare", "be", "--port", &port], "");
    let address = format!("127.0.0.1:{port}");
    let wrong = text(&run(elm.path(), &["spare", "pair", &address], "0000-acorn-acorn\n"));
    assert!(wrong.contains("not the code that it shows"), "{wrong}");
    let paired = done(elm.path(), &["spare", "pair", &address], &code);
    assert!(paired.contains("kept by the spare polder"), "{paired}");
    let (here, there) = (status(elm.path()), status(ash.path()));
    assert_eq!(here.own, there.peer.as_ref().unwrap().fingerprint);
    assert_eq!(there.own, here.peer.as_ref().unwrap().fingerprint);

    let sheet = done(elm.path(), &["backup", "kit"], "");
    let letters = |line: &&str| line.trim().chars().all(|c| c.is_ascii_lowercase() || c == ' ');
    let lines = sheet.lines().filter(|line| line.starts_with("    ") && !line.trim().is_empty());
    let key: Vec<&str> = lines.filter(letters).collect();
    done(elm.path(), &["backup", "kit", "--confirm"], &key.join(" "));
    let plan = done(elm.path(), &["backup", "to", "spare", "--plan"], "");
    assert!(plan.contains("1. Make a store for backups at spare"), "{plan}");
    done(elm.path(), &["backup", "to", "spare"], "");
    let drilled =
        until(ash.path(), "a trial restore on the spare", |status| status.drill.is_some());
    let (_, found) = drilled.drill.unwrap();
    assert!(found.as_ref().is_ok_and(|found| found.contains("the box polder")), "{found:?}");
    assert!(!ash.path().join("drill").exists());
    // The main box hears of it.
    let heard = until(elm.path(), "the report", |status| status.drill.is_some());
    assert!(heard.backup.is_some() && heard.wrong().is_empty(), "{heard:?}");
    let whole = done(elm.path(), &["audit", "verify", "--spare"], "");
    assert!(whole.contains("that the spare keeps are among them"), "{whole}");

    // The spare's own disk has no secret of the first box's in the clear but the key that it was given.
    let trail = std::fs::read_to_string(elm.path().join("audit/trail.jsonl")).unwrap();
    assert!(
        !trail.contains(code.trim()) && !main.log().contains(code.trim()),
        "the code was written down"
    );
    assert!(!spare.log().contains(code.trim()), "the code is in the log");

    let plan = done(elm.path(), &["spare", "unpair", "--plan"], "");
    assert!(plan.contains("1. Tell the other box that the two are no pair any more"), "{plan}");
    done(elm.path(), &["spare", "unpair"], "");
    assert!(!elm.path().join("spare/peer.json").exists());
    assert_eq!(status(ash.path()).peer, None);
    let backups = text(&run(elm.path(), &["backup", "now"], ""));
    assert!(backups.contains("nobody has said where backups go"), "{backups}");
}
