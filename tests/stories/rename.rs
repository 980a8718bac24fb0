//! The box gets another name and another address while people use it.

use std::net::TcpStream;

use polder_control::RunState;
use polder_site::SiteChange;
use polder_stories::{Running, chat};

fn listen(addresses: &[&str]) -> SiteChange {
    let listen = addresses.iter().map(|address| address.parse().unwrap()).collect();
    SiteChange::Door { listen, names: Vec::new() }
}

#[test]
fn an_answer_goes_on_through_a_new_name_and_address_and_what_was_printed_still_holds() {
    let state = tempfile::tempdir().unwrap();
    let (running, up) = Running::ready(state.path());
    let gateway = running.status().gateway;
    let authority = std::fs::read(&up.ca_file).unwrap();
    let mut body = chat(&up.model, "Tell me a long story.", 400);
    body["ignore_eos"] = true.into();
    body["stream"] = true.into();
    let mut stream = up.client().stream("/v1/chat/completions", &body);
    stream.next().unwrap().unwrap();

    assert_eq!(running.change(SiteChange::Rename("birch".parse().unwrap())), RunState::Done);
    assert_eq!(running.change(listen(&["127.0.0.1", "127.0.0.2"])), RunState::Done);
    TcpStream::connect(("127.0.0.2", running.port)).expect("the new address is open");
    assert_ne!(std::fs::read(&up.ca_file).unwrap(), authority, "another name, another authority");
    assert!(!up.client().chat(&up.model, "Say hello.").words().is_empty());

    let rest: Vec<String> = stream.map(|event| event.expect("the stream was cut")).collect();
    assert_eq!(rest.last().map(String::as_str), Some("[DONE]"));
    assert_eq!(running.status().gateway, gateway, "the door was closed in between");
    assert!(running.log().contains("the box is called birch now"), "{}", running.log());

    // Switched off and on: the same line, and it holds.
    let port = running.port;
    assert!(running.stop().success());
    let (_running, again) = Running::ready_again(state.path(), port);
    assert_eq!((&again.url, &again.ca_file), (&up.url, &up.ca_file));
    assert!(!again.client().chat(&again.model, "Say hello.").words().is_empty());
}

#[test]
fn an_address_that_cannot_be_had_is_taken_back_and_the_door_stays_open() {
    let state = tempfile::tempdir().unwrap();
    let (running, up) = Running::ready(state.path());
    let before = running.status();
    // One of those that nobody has.
    let RunState::Failed(why) = running.change(listen(&["127.0.0.1", "203.0.113.9"])) else {
        panic!("an address that this machine does not have was taken")
    };
    assert!(why.contains("203.0.113.9") && why.ends_with("the change was undone"), "{why}");
    assert_eq!(running.status(), before);
    assert!(!up.client().chat(&up.model, "Say hello.").words().is_empty());
}
