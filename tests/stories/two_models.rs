//! Two models share one machine, each with its part of the memory.

use polder_control::PartState;
use polder_site::EngineName;
use polder_stories::{Running, polder};

fn serve(running: &Running, model: &str, name: &str, memory: &str) -> Result<(), String> {
    let arguments = ["site", "serve", model, "--as", name, "--memory", memory, "--state"];
    let served = polder(&arguments).arg(&running.state).output().unwrap();
    match served.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&served.stderr).into_owned()),
    }
}

#[test]
fn a_second_model_comes_beside_the_first_by_budgets_and_what_does_not_fit_stops_nothing() {
    let state = tempfile::tempdir().unwrap();
    let (running, up) = Running::ready(state.path());
    let first = running.engine_pid();

    let over = serve(&running, &up.model, "slow", "9 TB").unwrap_err();
    assert!(over.contains("this machine has") && over.contains("lower a budget by"), "{over}");
    let small = serve(&running, &up.model, "slow", "100 MB").unwrap_err();
    assert!(small.contains("are lacking; raise engines.slow.memory"), "{small}");
    let odd = serve(&running, &up.model, "slow", "some").unwrap_err();
    assert!(odd.contains("such as \"24 GiB\" or \"40 %\""), "{odd}");
    let status = running.status();
    assert_eq!((status.engines.len(), running.engine_pid()), (1, first), "nothing was stopped");

    serve(&running, &up.model, "fast", "1 GiB").unwrap();
    let told = running.engine_pid();
    assert_ne!(told, first, "an engine is told its budget when it starts");
    serve(&running, &up.model, "slow", "1 GiB").unwrap();
    let status = running.status();
    let ready = |name: &str| {
        let name: EngineName = name.parse().unwrap();
        let engine = status.engines.iter().find(|engine| engine.name == name).unwrap();
        (engine.part.state == PartState::Ready, engine.part.pid)
    };
    let (fast, slow) = (ready("fast"), ready("slow"));
    assert!(fast.0 && slow.0 && fast.1 != slow.1, "{:?}", status.engines);
    assert!(!up.client().chat(&up.model, "Say hello.").words().is_empty());
    assert_eq!(fast.1, Some(told), "a second engine changes nothing about a budget");
}
