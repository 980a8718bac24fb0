//! The engine is killed: the person in the middle of an answer is told, the next one waits and is
//! served.

use std::time::Duration;

use polder_control::PartState;
use polder_stories::{Running, chat, send_signal};
use rustix::process::Signal;

#[test]
fn a_stream_cut_by_a_dying_engine_ends_with_an_error_and_the_next_request_is_served() {
    let state = tempfile::tempdir().unwrap();
    let (running, up) = Running::ready(state.path());
    let gateway = running.status().gateway.pid;
    let engine = running.engine_pid();
    let mut body = chat(&up.model, "Tell me a story.", 2000);
    body["ignore_eos"] = true.into();
    body["stream"] = true.into();
    let mut stream = up.client().stream("/v1/chat/completions", &body);
    for _ in 0..5 {
        stream.next().unwrap().unwrap();
    }
    send_signal(engine, Signal::KILL);
    let rest: Vec<String> = stream.map_while(Result::ok).collect();
    let last = rest.iter().rev().find(|data| data.contains("error"));
    assert!(last.is_some(), "the stream ended without a word: {rest:?}");
    assert!(!rest.iter().any(|data| data == "[DONE]"), "a broken answer was called done");

    // Asked at once, while the engine is not there: waits for it.
    let answer = up.client().chat(&up.model, "Say hello.");
    assert_eq!(answer.status, 200, "{}", answer.text);
    let status = running.status();
    assert_eq!(status.gateway.pid, gateway, "the gateway went down with the engine");
    assert_eq!(status.engines[0].part.restarts, 1);
}

#[test]
fn an_engine_that_cannot_live_is_given_up_with_a_reason_and_requests_get_a_clear_503() {
    let state = tempfile::tempdir().unwrap();
    let (running, up) = Running::ready(state.path());
    running.engine_pid();
    // The weights vanish under it.
    std::fs::remove_dir_all(state.path().join("weights/models")).unwrap();
    std::fs::remove_dir_all(state.path().join("weights/blobs")).unwrap();
    send_signal(running.engine_pid(), Signal::KILL);
    let status = running.until("the supervisor to give up", |s| {
        matches!(s.engines[0].part.state, PartState::GaveUp(_))
    });
    let PartState::GaveUp(why) = &status.engines[0].part.state else { unreachable!() };
    assert!(!why.is_empty());
    let refused = up.client().chat(&up.model, "Hi.");
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.header("retry-after").is_some());
    assert!(!refused.error().is_empty());
}

#[test]
fn nothing_is_left_running_after_the_supervisor_is_killed() {
    let state = tempfile::tempdir().unwrap();
    let (mut running, _) = Running::ready(state.path());
    let status = running.status();
    let parts = [status.gateway.pid.unwrap(), running.engine_pid()];
    running.signal(Signal::KILL);
    running.wait();
    std::thread::sleep(Duration::from_secs(2));
    for pid in parts {
        let alive =
            std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "));
        assert!(!alive, "process {pid} outlived its supervisor");
    }
}
