//! The box is switched off and on again.

use polder_stories::{Running, free_port};

#[test]
fn a_box_started_again_serves_the_same_model_and_only_the_newest_up_key_works() {
    let state = tempfile::tempdir().unwrap();
    let (running, first) = Running::ready(state.path());
    let before = first.client().chat(&first.model, "What is the capital of France?").words();
    assert!(running.stop().success());

    let (_running, second) = Running::ready_again(state.path(), free_port());
    assert_eq!(
        second.client().chat(&second.model, "What is the capital of France?").words(),
        before
    );
    assert_ne!(second.api_key, first.api_key);
    let old = second.client().with_key(Some(&first.api_key)).chat(&second.model, "Hi.");
    assert_eq!(old.status, 401, "the key of an earlier start still works");
}

#[test]
fn sigterm_lets_a_running_answer_finish() {
    let state = tempfile::tempdir().unwrap();
    let (running, up) = Running::ready(state.path());
    let mut body = polder_stories::chat(&up.model, "Tell me a long story.", 120);
    body["ignore_eos"] = true.into();
    body["stream"] = true.into();
    let mut stream = up.client().stream("/v1/chat/completions", &body);
    stream.next().unwrap().unwrap();
    running.signal(rustix::process::Signal::TERM);
    let rest: Vec<String> = stream.map(|event| event.expect("the stream was cut")).collect();
    assert_eq!(rest.last().map(String::as_str), Some("[DONE]"));
    let mut running = running;
    assert!(running.wait().success());
}

#[test]
fn a_second_box_on_the_same_folder_says_so_and_leaves_the_first_alone() {
    let state = tempfile::tempdir().unwrap();
    let (running, up) = Running::ready(state.path());
    let mut second = Running::start(state.path(), free_port(), &["--yes", "--json"]);
    assert!(!second.wait().success());
    assert!(second.log().contains("another polder (process"), "{}", second.log());
    assert_eq!(up.client().chat(&up.model, "Hi.").status, 200);
    drop(running);
}

#[test]
fn a_port_that_is_taken_is_named_in_one_sentence() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let state = tempfile::tempdir().unwrap();
    let mut running = Running::start(state.path(), port, &[]);
    assert!(!running.wait().success());
    assert!(running.log().contains(&port.to_string()), "{}", running.log());
}
