//! How it goes when something is wrong: what is said, and what is not done twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use polder_acme::Patience;
use polder_control::{SecretName, SecretText};

use crate::house::{
    Authority, BOUND_BY, BOUND_TO, Bind, DNS_SECRET, Habits, TestDns, TheBox, hook, quick, tell,
};

#[tokio::test]
async fn a_slow_authority_gets_one_order_however_often_it_is_asked() {
    let dns = TestDns::start().await;
    let authority = Authority::open(dns.port, Habits { slow: 4, ..Habits::default() }).await;
    let hasty = Patience { first: Duration::from_millis(50), most: Duration::from_millis(300) };
    let mut oak = TheBox::new(authority.wish(&["gpu.example.org"]), hasty);
    oak.open_door(authority.http_port).await;
    oak.follow();
    let mut failed = 0;
    while oak.acme.status().held.is_none() {
        if let Some(try_) = oak.acme.status().failed {
            assert!(try_.why.contains("has not decided yet"), "{}", try_.why);
            failed += 1;
            oak.acme.try_now().unwrap();
        }
        assert!(failed < 100);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(authority.had(), (1, 1), "after {failed} tries");
}

#[tokio::test]
async fn a_wrong_answer_in_the_dns_is_said_in_words_and_a_right_one_is_taken_afterwards() {
    let dns = TestDns::start().await;
    let authority = Authority::open(dns.port, Habits::default()).await;
    let (management, lies) = (dns.management(), Arc::new(AtomicBool::new(true)));
    let lying = lies.clone();
    let folder = tempfile::tempdir().unwrap();
    let at = hook(folder.path(), move |head, body| {
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let text = match lying.load(Ordering::SeqCst) {
            true => "somebody else's proof",
            false => body["value"].as_str().unwrap(),
        };
        let mut told = serde_json::json!({ "host": body["fqdn"], "value": text });
        let present = head.contains("/present");
        if !present {
            told = serde_json::json!({ "host": body["fqdn"] });
        }
        tell(management, if present { "/set-txt" } else { "/clear-txt" }, &told.to_string());
        200
    });
    let mut wish = authority.wish(&["gpu.example.org"]);
    let url = format!("https://localhost:{}", at.port()).parse().unwrap();
    wish.dns_hook = Some(polder_site::DnsHook { url, wait: 0 });
    let hooks = std::fs::read_to_string(folder.path().join("ca.pem")).unwrap();
    wish.root = Some(format!("{}{hooks}", authority.root()));
    let mut oak = TheBox::new(wish, quick());
    oak.follow();
    let why = oak.failed().await;
    assert!(why.contains("gpu.example.org: ") && why.contains("the names are the box's"), "{why}");
    assert!(!oak.file("order.json").exists(), "nothing will come of that order");
    let waits = oak.until("a pause", |status| status.next.contains(", at 20")).await;
    assert!(waits.next.starts_with("orders a certificate"), "{}", waits.next);
    lies.store(false, Ordering::SeqCst);
    oak.acme.try_now().unwrap();
    assert_eq!(oak.certified().await.failed, None);
    assert_eq!(authority.had(), (2, 1));
}

#[tokio::test]
async fn an_authority_that_wants_its_own_account_gets_it_and_the_secret_is_nowhere_else() {
    let dns = TestDns::start().await;
    let authority = Authority::open(dns.port, Habits { bound: true, ..Habits::default() }).await;
    let plain = authority.wish(&["gpu.example.org"]);
    let mut oak = TheBox::new(plain.clone(), quick());
    oak.open_door(authority.http_port).await;
    oak.follow();
    let why = oak.failed().await;
    assert!(why.contains("the number and the secret of the account"), "{why}");

    let mut bound = plain;
    bound.account = Some(BOUND_TO.into());
    oak.site.send_modify(|status| Arc::make_mut(status).site.certificate = Some(bound.clone()));
    oak.until("what is lacking", |status| status.next.contains("is missing")).await;
    oak.acme.keep_secret(SecretName::Account, SecretText::new("d3Jvbmcgc2VjcmV0")).unwrap();
    let why = oak.failed().await;
    assert!(why.contains("the authority refused"), "{why}");
    assert!(!why.contains("d3Jvbmcgc2VjcmV0"), "{why}");
    oak.acme.keep_secret(SecretName::Account, SecretText::new(BOUND_BY)).unwrap();
    oak.until("a certificate", |status| status.held.is_some()).await;
    for entry in std::fs::read_dir(oak.file("")).unwrap() {
        let path = entry.unwrap().path();
        let has = std::fs::read_to_string(&path).unwrap().contains(BOUND_BY);
        assert_eq!(has, path.ends_with("secrets.json"), "{}", path.display());
    }
    assert!(!format!("{:?}", oak.acme).contains(BOUND_BY));
}

#[tokio::test]
async fn an_authority_that_forgot_the_box_gets_to_know_it_again() {
    let dns = TestDns::start().await;
    let mut authority = Authority::open(dns.port, Habits::default()).await;
    let mut oak = TheBox::new(authority.wish(&["gpu.example.org"]), quick());
    oak.open_door(authority.http_port).await;
    oak.follow();
    let first = oak.certified().await.held.unwrap();
    authority.begin().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    oak.acme.try_now().unwrap();
    let other = |status: &polder_control::PublicStatus| {
        status.held.as_ref().is_some_and(|held| held.from != first.from)
    };
    oak.until("another certificate", other).await;
}

#[tokio::test]
async fn without_a_way_to_the_authority_the_order_is_kept_and_nothing_else_is_said() {
    let bind = Bind::start().await;
    let mut authority = Authority::open(bind.port, Habits::default()).await;
    let mut wish = authority.wish(&["gpu.example.org"]);
    wish.dns_update = Some(bind.proof());
    let port = authority.port;
    wish.directory =
        format!("https://localhost:{}/dir", crate::house::free_port()).parse().unwrap();
    let mut oak = TheBox::new(wish.clone(), quick());
    oak.acme.keep_secret(SecretName::DnsKey, SecretText::new(DNS_SECRET)).unwrap();
    oak.follow();
    let why = oak.failed().await;
    assert!(why.contains("localhost cannot be reached"), "{why}");
    // A wrong secret for the zone: the order stays for when it is right.
    wish.directory = format!("https://localhost:{port}/dir").parse().unwrap();
    oak.acme
        .keep_secret(SecretName::DnsKey, SecretText::new("ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4"))
        .unwrap();
    oak.site.send_modify(|status| Arc::make_mut(status).site.certificate = Some(wish));
    let said = |status: &polder_control::PublicStatus| {
        status.failed.as_ref().is_some_and(|try_| try_.why.contains("secret of the key is another"))
    };
    oak.until("what BIND says", said).await;
    oak.acme.keep_secret(SecretName::DnsKey, SecretText::new(DNS_SECRET)).unwrap();
    oak.certified().await;
    assert_eq!(authority.had(), (1, 1));
    authority.begin().await;
}
