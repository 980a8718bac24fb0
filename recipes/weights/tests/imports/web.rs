use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use polder_weights::{CancelFlag, Event, Options, Origin, Phase, Store, WeightsError};

use crate::common::*;
use crate::server::Server;

const SIZE: usize = 300_000;

#[test]
fn a_file_comes_in_parts_over_several_connections() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, SIZE));
    let server = Server::start(&[("/m/m.gguf", &model), ("/m/empty.txt", b"")]);
    let recipe =
        recipe(&format!("{}/m/", server.url), vec![spec("m.gguf", &model), spec("empty.txt", b"")]);
    let store = store(state.path());
    let (imported, events) = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model), ("empty.txt", b"")]);
    assert_eq!(imported.brought, SIZE as u64);
    assert_eq!(server.sent(), SIZE as u64 + 1, "and one byte to learn the size");
    assert_eq!(phases(&events).first(), Some(&Phase::CheckingSpace));
    assert_eq!(phases(&events).last(), Some(&Phase::Done));
    assert!(phases(&events).contains(&Phase::Checking));
    let last = events.iter().rev().find_map(|event| match event {
        Event::Progress(progress) if progress.phase == Phase::Fetching => Some(progress),
        _ => None,
    });
    assert_eq!(last.map(|p| (p.done, p.total)), Some((SIZE as u64, Some(SIZE as u64))));
    let asked = server.requests();
    import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_eq!(server.requests(), asked, "a second import asks nothing");
}

#[test]
fn a_server_without_parts_gives_the_file_over_one_connection() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, SIZE));
    let server = Server::start(&[("/m.gguf", &model)]);
    server.is.gives_parts.store(false, SeqCst);
    for length in [true, false] {
        server.is.gives_length.store(length, SeqCst);
        let state = state.path().join(length.to_string());
        let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
        let store = store(&state);
        let (_, events) = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
        assert!(events.iter().any(|event| matches!(event, Event::OneConnection { .. })));
        assert_model(&store, &recipe, &[("m.gguf", &model)]);
    }
}

#[test]
fn a_connection_that_is_cut_goes_on_at_the_byte_where_it_was_cut() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, SIZE));
    let server = Server::start(&[("/m.gguf", &model)]);
    server.is.cut_after.store(5_000, SeqCst);
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
    let store = store(state.path());
    let (_, events) = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
    assert!(events.iter().any(|event| matches!(event, Event::Retrying { .. })));
    assert_eq!(server.sent(), SIZE as u64 + 1, "no byte came twice");
}

#[test]
fn a_busy_server_is_asked_again() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, SIZE));
    let server = Server::start(&[("/m.gguf", &model)]);
    server.is.failures.lock().unwrap().extend([503, 429, 500]);
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
    let store = store(state.path());
    import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
}

#[test]
fn a_server_that_stays_broken_is_given_up_with_a_sentence() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, 10));
    let server = Server::start(&[("/m.gguf", &model)]);
    server.is.failures.lock().unwrap().extend([503; 100]);
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
    let said = import(&store(state.path()), &recipe, &Origin::AsTheRecipeSays).unwrap_err();
    assert!(said.to_string().contains("the server answered 503"), "{said}");
    assert!(server.requests() < 10);
}

#[test]
fn what_a_server_does_not_have_or_give_is_not_asked_for_twice() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(&[]);
    let recipe = recipe(&server.url, vec![spec("m.gguf", b"x")]);
    let store = store(state.path());
    let said = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap_err().to_string();
    assert!(said.contains("404") && said.contains("m.gguf"), "{said}");
    server.is.failures.lock().unwrap().push_back(403);
    let said = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap_err().to_string();
    assert!(said.contains("sign-in"), "{said}");
    assert_eq!(server.requests(), 2);
}

#[test]
fn a_server_that_is_not_there_is_named_without_its_password() {
    let state = tempfile::tempdir().unwrap();
    let recipe = recipe("http://me:secret@127.0.0.1:1/m", vec![spec("m.gguf", b"x")]);
    let said = import(&store(state.path()), &recipe, &Origin::AsTheRecipeSays).unwrap_err();
    let said = said.to_string();
    assert!(said.contains("http://127.0.0.1:1/m") && !said.contains("secret"), "{said}");
}

#[test]
fn a_wrong_byte_from_a_server_is_refused_and_nothing_of_it_is_kept() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, SIZE));
    let mut wrong = model.clone();
    wrong[SIZE - 1] ^= 0x80;
    let server = Server::start(&[("/m.gguf", &wrong)]);
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
    let store = store(state.path());
    for parts in [true, false] {
        server.is.gives_parts.store(parts, SeqCst);
        let said = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap_err();
        assert!(
            matches!(&said, WeightsError::WrongBytes { found, .. } if **found == digest(&wrong)),
            "{said}"
        );
        assert_nothing_visible(&store, &recipe);
        assert_eq!(std::fs::read_dir(store.root().join("partial")).unwrap().count(), 0);
    }
    server.is.gives_parts.store(true, SeqCst);
    server.is.files.lock().unwrap().insert("/m.gguf".into(), model.clone());
    import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
}

#[test]
fn a_server_that_announces_another_size_is_refused_before_the_bytes_come() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, SIZE));
    let server = Server::start(&[("/m.gguf", &model[..SIZE - 1])]);
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
    let said = import(&store(state.path()), &recipe, &Origin::AsTheRecipeSays).unwrap_err();
    assert!(matches!(said, WeightsError::WrongSize { .. }), "{said}");
    assert!(server.sent() <= 1);
}

#[test]
fn an_endless_answer_is_cut_at_the_size_that_is_wanted() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, SIZE));
    let server = Server::start(&[("/m.gguf", &model)]);
    server.is.gives_parts.store(false, SeqCst);
    server.is.gives_length.store(false, SeqCst);
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model[..1000])]);
    let store = store(state.path());
    let said = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap_err();
    assert!(matches!(said, WeightsError::WrongSize { .. }), "{said}");
    assert_nothing_visible(&store, &recipe);
}

#[test]
fn a_file_that_changes_on_the_server_is_started_over() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, SIZE));
    let changed: Vec<_> = model.iter().map(|byte| byte ^ 0x55).collect();
    let server = Server::start(&[("/m.gguf", &model)]);
    server.is.changes_at.store(8, SeqCst);
    let recipe = recipe(&server.url, vec![spec("m.gguf", &changed)]);
    let store = store(state.path());
    let (_, events) = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert!(events.iter().any(|event| matches!(event, Event::StartingOver { .. })), "{events:?}");
    assert_model(&store, &recipe, &[("m.gguf", &changed)]);
}

#[test]
fn an_unpinned_file_that_changed_between_two_tries_is_not_mixed() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, SIZE));
    let server = Server::start(&[("/m.gguf", &model)]);
    let recipe = recipe(&server.url, vec![unpinned("m.gguf")]);
    let store = store(state.path());
    let cancel = CancelFlag::default();
    let mut stop_half_way = |event: Event| match event {
        Event::Progress(progress) if progress.done > SIZE as u64 / 2 => cancel.cancel(),
        _ => {}
    };
    let said = store.import(&recipe, &Origin::AsTheRecipeSays, &mut stop_half_way, &cancel);
    assert!(matches!(said, Err(WeightsError::Cancelled)), "{said:?}");
    let changed = bytes(2, SIZE);
    server.is.files.lock().unwrap().insert("/m.gguf".into(), changed.clone());
    *server.is.mark.lock().unwrap() = Some("\"other\"".into());
    let (_, events) = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert!(events.iter().any(|event| matches!(event, Event::StartingOver { .. })), "{events:?}");
    assert_model(&store, &recipe, &[("m.gguf", &changed)]);
}

#[test]
fn a_redirect_is_followed() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, SIZE));
    let server = Server::start(&[("/elsewhere", &model)]);
    server.is.redirects.lock().unwrap().insert("/m.gguf".into(), "/elsewhere".into());
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
    let store = store(state.path());
    import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
}

#[test]
fn a_cancel_is_obeyed_while_a_server_is_slow() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, SIZE));
    let server = Server::start(&[("/m.gguf", &model)]);
    *server.is.slow.lock().unwrap() = Duration::from_millis(300);
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
    let store = store(state.path());
    let cancel = CancelFlag::default();
    let later = cancel.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        later.cancel();
    });
    let start = std::time::Instant::now();
    let said = store.import(&recipe, &Origin::AsTheRecipeSays, &mut |_| {}, &cancel);
    assert!(matches!(said, Err(WeightsError::Cancelled)), "{said:?}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn a_connection_that_falls_silent_is_replaced() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, SIZE));
    let server = Server::start(&[("/m.gguf", &model)]);
    server.is.hangs.store(true, SeqCst);
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
    let options = Options { stall: Duration::from_millis(700), ..quick() };
    let store = Store::open_with(state.path().join("weights"), options).unwrap();
    let (_, events) = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert!(events.iter().any(|event| matches!(event, Event::Retrying { .. })));
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
}

#[test]
fn a_whole_file_that_is_always_cut_is_given_up_and_comes_when_it_is_not() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, SIZE));
    let server = Server::start(&[("/m.gguf", &model)]);
    server.is.gives_parts.store(false, SeqCst);
    server.is.cut_after.store(100_000, SeqCst);
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
    let store = store(state.path());
    let said = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap_err();
    assert!(matches!(said, WeightsError::Server { .. }), "{said}");
    assert!(server.requests() <= 5);
    assert_nothing_visible(&store, &recipe);
    server.is.cut_after.store(0, SeqCst);
    import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
}

#[test]
fn another_address_can_stand_in_for_the_recipes_source() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, SIZE));
    let server = Server::start(&[("/mirror/m.gguf", &model)]);
    let recipe = recipe("http://127.0.0.1:1/gone", vec![spec("m.gguf", &model)]);
    let store = store(state.path());
    import(&store, &recipe, &Origin::Web(format!("{}/mirror", server.url))).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
}

/// The environment is that of a process, so the test runs itself again in another one.
#[test]
fn the_proxy_of_the_environment_is_used() {
    const CHILD: &str = "POLDER_TEST_PROXY";
    let model = bytes(1, SIZE);
    if let Some(folder) = std::env::var_os(CHILD) {
        let recipe = recipe("http://files.lan", vec![spec("m.gguf", &model)]);
        let store = store(std::path::Path::new(&folder));
        import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(&[("/m.gguf", &model)]);
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    for name in ["ALL_PROXY", "HTTPS_PROXY", "NO_PROXY"] {
        child.env_remove(name).env_remove(name.to_lowercase());
    }
    let status = child
        .args(["--exact", "web::the_proxy_of_the_environment_is_used"])
        .env(CHILD, state.path())
        .env("HTTP_PROXY", &server.url)
        .stdout(std::process::Stdio::null())
        .status();
    assert!(status.unwrap().success());
    assert!(server.is.tunnels.load(SeqCst) > 1);
    assert_eq!(server.sent(), SIZE as u64 + 1);
}

/// A CA of our own and a server certificate under it.
fn private_ca() -> (String, Arc<rustls::ServerConfig>) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key.serialize_der().try_into().unwrap());
    (ca.pem(), Arc::new(config.unwrap()))
}

#[test]
fn a_server_with_a_private_ca_is_trusted_only_when_told_to() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, SIZE));
    let (ca, config) = private_ca();
    let ca_file = state.path().join("ca.pem");
    std::fs::write(&ca_file, ca).unwrap();
    let server = Server::start_tls(&[("/m.gguf", &model)], config);
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
    let said = import(&store(state.path()), &recipe, &Origin::AsTheRecipeSays).unwrap_err();
    assert!(said.to_string().contains("trusts the server's certificate"), "{said}");
    let options = Options { ca_file: Some(ca_file), ..quick() };
    let store = Store::open_with(state.path().join("weights"), options).unwrap();
    import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap();
    assert_model(&store, &recipe, &[("m.gguf", &model)]);
}

#[test]
fn https_never_falls_back_to_http() {
    let (state, model) = (tempfile::tempdir().unwrap(), bytes(1, SIZE));
    let (ca, config) = private_ca();
    let ca_file = state.path().join("ca.pem");
    std::fs::write(&ca_file, ca).unwrap();
    let plain = Server::start(&[("/m.gguf", &model)]);
    let server = Server::start_tls(&[], config);
    server.is.redirects.lock().unwrap().insert("/m.gguf".into(), format!("{}/m.gguf", plain.url));
    let recipe = recipe(&server.url, vec![spec("m.gguf", &model)]);
    let options = Options { ca_file: Some(ca_file), ..quick() };
    let store = Store::open_with(state.path().join("weights"), options).unwrap();
    let said = import(&store, &recipe, &Origin::AsTheRecipeSays).unwrap_err().to_string();
    assert!(said.contains("plain http"), "{said}");
    assert_eq!(plain.requests(), 0);
}
