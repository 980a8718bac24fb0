//! The mains goes away, and does not come back.

#[allow(dead_code, reason = "the story needs less of it than the crate's own tests")]
#[path = "../../appliance/power/tests/nut/toy.rs"]
mod toy;

use std::time::{Duration, Instant};

use polder_control::{Actor, PartName, PartState, PowerPhase, Reply, Request};
use polder_site::{Metering, SiteChange};
use polder_stories::{Running, chat, free_port, polder};
use toy::Nut;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn phase(running: &Running) -> Option<PowerPhase> {
    running.status().supply.map(|supply| supply.phase)
}

#[test]
fn an_answer_comes_to_its_end_when_the_battery_does_and_nothing_acknowledged_is_lost() {
    let toy = runtime();
    let mut nut = toy.block_on(Nut::start());
    let state = tempfile::tempdir().unwrap();
    let (mut running, up) = Running::ready(state.path());
    let folder = state.path().join("power");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(nut.folder().join("password"), folder.join("password")).unwrap();

    // A UPS that is not there is said so, and the box is as it was.
    let choose = |ups: &str| {
        let output = polder(&["power", "use", ups, "--state"]).arg(state.path()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (done, says) = choose(&nut.address().to_string().replace("box@", "nobody@"));
    assert!(!done && says.contains("no UPS of that name"), "{says}");
    assert_eq!(running.status().site.power, None);
    let (done, says) = choose(&nut.address().to_string());
    assert!(done, "{says}");
    running.until("the UPS", |s| s.supply.as_ref().is_some_and(|s| s.charge == Some(100)));

    // Its battery failed its own test, and is old: that becomes an issue, and another battery ends it.
    let says = |what: &str| {
        let begun = Instant::now();
        loop {
            let health = polder(&["health", "--now", "--state"]).arg(state.path()).output();
            let said = String::from_utf8(health.unwrap().stdout).unwrap();
            if said.contains(what) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "no {what:?}: {said}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    nut.write(&[("ups.test.result", "Done and error"), ("battery.mfr.date", "2017/05/31")]);
    toy.block_on(nut.start_upsd());
    running.until("a failed test", |s| s.supply.as_ref().is_some_and(|s| s.test_failed.is_some()));
    says("the battery failed its last test: Done and error");
    nut.write(&[("ups.test.result", "Done and passed")]);
    toy.block_on(nut.start_upsd());
    running.until("a good test", |s| {
        s.supply.as_ref().is_some_and(|s| s.test_failed.is_none() && s.battery_since.is_some())
    });
    says("years old");
    let mut plan = running.status().site.power.unwrap();
    plan.battery_since = Some(jiff::Zoned::now().date().yesterday().unwrap());
    running.change(SiteChange::Power(plan));
    running.until("the day", |s| {
        let since = s.supply.as_ref().and_then(|supply| supply.battery_since);
        since.is_some_and(|since| since > 1_700_000_000)
    });
    // Naming the same UPS once more forgets no day.
    assert!(choose(&nut.address().to_string()).0);
    assert!(running.status().site.power.unwrap().battery_since.is_some());

    // Whoever watches it dies again and again: that is told, and a press of the button tries once more.
    let watch = |running: &Running| {
        let status = running.status();
        let power = status.others.iter().find(|other| other.name == PartName::Power);
        power.unwrap().part.clone()
    };
    let begun = Instant::now();
    while !matches!(watch(&running).state, PartState::GaveUp(_)) {
        if let Some(pid) = watch(&running).pid {
            polder_stories::send_signal(pid, rustix::process::Signal::KILL);
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", watch(&running));
        std::thread::sleep(Duration::from_millis(50));
    }
    says("nobody watches the battery");
    let on = "the part that watches the UPS";
    let fixed =
        polder(&["health", "fix", "part", "--on", on, "--state"]).arg(state.path()).output();
    assert!(fixed.as_ref().unwrap().status.success(), "{fixed:?}");
    running.until("the UPS again", |s| s.supply.as_ref().is_some_and(|s| s.charge == Some(100)));

    // On battery short questions are answered and what a steward decides is kept.
    toy.block_on(nut.say(&[("ups.status", "OB DISCHRG"), ("battery.charge", "90")]));
    running.until("the battery", |s| s.supply.as_ref().is_some_and(|s| s.on_mains == Some(false)));
    assert_eq!(up.client().chat(&up.model, "What is the capital of France?").status, 200);
    let counted = SiteChange::Usage(Metering { per_member: true, ..Metering::default() });
    running.change(counted);
    let recorded = Request::Record {
        by: Actor::Console,
        what: "said before the cut".to_owned(),
        on: "the story".to_owned(),
    };
    assert_eq!(running.ask(&recorded), Reply::Done);

    // Answers that would go on for long, and the battery runs low.
    let mut body = chat(&up.model, "Tell me a long story.", 1900);
    body["ignore_eos"] = true.into();
    body["stream"] = true.into();
    let streams: Vec<_> = (0..6)
        .map(|_| {
            let (client, body) = (up.client(), body.clone());
            std::thread::spawn(move || {
                let stream = client.stream("/v1/chat/completions", &body);
                stream.collect::<Result<Vec<String>, _>>()
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs(1));
    let cut = Instant::now();
    toy.block_on(nut.say(&[("battery.charge", "20"), ("ups.status", "OB LB")]));
    running
        .until("the end", |s| s.supply.as_ref().is_some_and(|s| s.phase == PowerPhase::Draining));
    let refused = up.client().chat(&up.model, "And now?");
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.text.contains("the mains is away") && refused.text.contains("on_battery"));
    assert_eq!(refused.header("retry-after"), Some("300"));

    let mut clean = 0;
    let all = streams.len();
    for stream in streams {
        let events = stream.join().unwrap().expect("the stream was cut");
        assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
        let reasons = events.iter().filter(|event| event.contains("\"finish_reason\":\"length\""));
        assert_eq!(reasons.count(), 1);
        clean += 1;
    }
    let ended = cut.elapsed();
    assert!(running.wait().success());
    let stopped = cut.elapsed();
    assert!(running.log().contains("all is written down"), "{}", running.log());
    assert!(toy.block_on(nut.is_forced()), "other machines on the UPS were not told");
    println!(
        "power-loss: answers ended after {:.1} s, box stopped after {:.1} s, {clean} of {all} answers ended cleanly",
        ended.as_secs_f64(),
        stopped.as_secs_f64()
    );

    // The mains is back; the battery charges first.
    nut.write(&[("ups.status", "OL CHRG"), ("battery.charge", "35")]);
    toy.block_on(nut.start_upsd());
    let running = Running::start(state.path(), free_port(), &[]);
    running.line_with("Ctrl-C");
    let waits =
        running.until("the UPS", |s| s.supply.as_ref().is_some_and(|s| s.charge == Some(35)));
    let words = waits.supply.unwrap().words;
    assert!(words.contains("Engines start when the battery has 40 %; it has 35 %"), "{words}");
    assert!(waits.engines.iter().all(|engine| engine.part.pid.is_none()), "{:?}", waits.engines);
    assert!(waits.site.usage.per_member, "what was acknowledged on battery is lost");
    let Reply::Audit(entries) = running.ask(&Request::Audit { before: None, limit: 50 }) else {
        panic!("no audit trail")
    };
    for wanted in ["said before the cut", "ends its parts, for want of", "ended for want of power:"]
    {
        assert!(entries.iter().any(|entry| entry.what == wanted), "no {wanted:?} in {entries:?}");
    }
    toy.block_on(nut.say(&[("battery.charge", "41")]));
    running.engine_pid();
    assert_eq!(phase(&running), Some(PowerPhase::Mains));
}
