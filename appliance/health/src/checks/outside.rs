use polder_control::{Check, Issue, OutsideLine, Severity};

use super::{MINUTE, issue, span, uplink::is_away};
use crate::seen::Seen;

/// A relay may be away for so long without anybody being told: its machine is started again now and then.
const BLINK: u64 = 10 * MINUTE as u64;

/// Lines to the relay that are not held, and doors that should be open and are not. A line over an uplink that is away itself is no news.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    let Some(outside) = &seen.outside else { return Vec::new() };
    let Some(relay) = &outside.relay else { return Vec::new() };
    let away = |line: &&OutsideLine| {
        let name = line.interface.as_deref();
        seen.uplinks.iter().any(|up| is_away(up) && Some(up.interface.as_str()) == name)
    };
    let lines: Vec<&OutsideLine> = outside.lines.iter().filter(|line| !away(line)).collect();
    let broken = |line: &&OutsideLine| {
        let (seconds, why) = line.broken.clone()?;
        (seconds > BLINK).then_some((seconds, why))
    };
    let all = !lines.is_empty() && lines.iter().all(|line| line.broken.is_some());
    let advice = "Look whether the relay's machine is on and its program runs, and whether the pass on the page Outside is still good there: the relay's own log says whom it refused";
    let mut issues = Vec::new();
    if all && let Some((seconds, why)) = lines.iter().filter_map(broken).max() {
        let what = format!(
            "no line to the relay {relay} has been held for {}, and members outside cannot come in by it: {}",
            span(i64::try_from(seconds).unwrap_or(i64::MAX)),
            why.trim_end_matches('.')
        );
        issues.push(issue(Check::Outside, "the relay", Severity::Urgent, what, advice));
    } else if !all {
        for line in &lines {
            let Some((seconds, why)) = broken(line) else { continue };
            let what = format!(
                "the line to the relay {relay} over {} has not been held for {}: {}",
                name(line),
                span(i64::try_from(seconds).unwrap_or(i64::MAX)),
                why.trim_end_matches('.')
            );
            let on = format!("the line over {}", name(line));
            issues.push(issue(Check::Outside, &on, Severity::Warning, what, advice));
        }
    }
    let shut = lines.iter().filter_map(|line| Some((line, line.shut?)));
    let (six, four): (Vec<_>, Vec<_>) = shut.partition(|(line, _)| line.six);
    for (line, port) in four {
        let what = format!(
            "the relay knocked at port {port} of {} and nobody answered: callers from outside do not get through there",
            name(line)
        );
        let advice = "Members outside still come in by the relay, a little slower. Look whether a firewall of the router or of the provider is before the box; where nobody is to come in there, give the port back on the page Outside";
        let on = format!("the door over {}", name(line));
        issues.push(issue(Check::Outside, &on, Severity::Notice, what, advice));
    }
    // One sentence, however many lines there are: it is the same setting of each router.
    if let Some((line, port)) = six.first() {
        let names: Vec<&str> = six.iter().map(|(line, _)| name(line)).collect();
        let what = format!(
            "the relay knocked at port {port} over IPv6 ({}) and nobody answered: a firewall of the router is before the box there",
            names.join(", ")
        );
        let advice = format!(
            "In the settings of the router behind {}, under IPv6 or firewall, allow TCP port {port} to this box (some call it a pinhole or an exception). Until then, or if you do not want that, members outside come in by the relay, a little slower",
            name(line)
        );
        issues.push(issue(Check::Outside, "the door over IPv6", Severity::Notice, what, &advice));
    }
    issues
}

fn name(line: &OutsideLine) -> &str {
    line.interface.as_deref().unwrap_or("the way out")
}

#[cfg(test)]
mod tests {
    use polder_control::OutsideSeen;

    use super::*;

    fn line(interface: &str, broken: Option<u64>, shut: Option<u16>) -> OutsideLine {
        let broken = broken.map(|seconds| (seconds, "nobody answers there.".to_owned()));
        OutsideLine { interface: Some(interface.to_owned()), broken, shut, six: false }
    }

    fn told(lines: Vec<OutsideLine>) -> Vec<(String, Severity)> {
        let outside = Some(OutsideSeen { relay: Some("r.example.org".into()), lines });
        let issues = check(&Seen { outside, ..Seen::default() });
        issues.into_iter().map(|issue| (issue.id.on, issue.severity)).collect()
    }

    #[test]
    fn one_broken_line_of_two_is_a_warning_and_all_of_them_are_urgent() {
        let held = || line("wwan0", None, None);
        assert_eq!(told(vec![line("enp1s0", Some(9), None), held()]), []);
        let one = told(vec![line("enp1s0", Some(3600), None), held()]);
        assert_eq!(one, [("the line over enp1s0".to_owned(), Severity::Warning)]);
        let both = told(vec![line("enp1s0", Some(3600), None), line("wwan0", Some(9), None)]);
        assert_eq!(both, [("the relay".to_owned(), Severity::Urgent)]);
        assert_eq!(told(vec![line("enp1s0", Some(9), None)]), [], "it was started again");
        assert_eq!(check(&Seen { outside: Some(OutsideSeen::default()), ..Seen::default() }), []);
    }

    #[test]
    fn a_door_that_should_be_open_and_is_not_is_a_notice() {
        let one = told(vec![line("enp1s0", None, Some(443))]);
        assert_eq!(one, [("the door over enp1s0".to_owned(), Severity::Notice)]);
    }

    #[test]
    fn a_firewall_before_ipv6_is_told_once_with_what_to_do() {
        let six = |interface| OutsideLine { six: true, ..line(interface, None, Some(443)) };
        let lines = vec![six("enp1s0"), six("wwan0")];
        let outside = Some(OutsideSeen { relay: Some("r.example.org".into()), lines });
        let issues = check(&Seen { outside, ..Seen::default() });
        assert_eq!(issues.len(), 1, "{issues:?}");
        assert!(issues[0].what.contains("over IPv6 (enp1s0, wwan0)"), "{issues:?}");
        assert!(issues[0].advice.contains("allow TCP port 443 to this box"), "{issues:?}");
    }
}
