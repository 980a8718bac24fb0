//! How it goes when all is well.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use polder_control::{SecretName, SecretText};
use polder_site::DnsHook;

use crate::house::{Authority, Bind, DNS_SECRET, Habits, TestDns, TheBox, hook, quick, tell};

#[tokio::test]
async fn a_box_proves_its_name_at_the_door_and_keeps_what_it_got_to_itself() {
    let dns = TestDns::start().await;
    let authority = Authority::open(dns.port, Habits::default()).await;
    let mut oak = TheBox::new(authority.wish(&["gpu.example.org"]), quick());
    oak.open_door(authority.http_port).await;
    oak.follow();
    let status = oak.certified().await;
    let held = status.held.unwrap();
    assert_eq!(held.names, ["gpu.example.org"]);
    assert!(held.issuer.contains("Pebble"), "{}", held.issuer);
    assert!(held.from < held.renews && held.renews < held.until);
    assert_eq!(status.failed, None);
    assert!(oak.served.borrow().as_ref().unwrap().covers("gpu.example.org"));
    assert_eq!(authority.had(), (1, 1));
    for name in ["certificate.pem", "account.json", "diary.json"] {
        let mode = std::fs::metadata(oak.file(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert!(!oak.file("order.json").exists(), "the order is over");

    // Another start orders nothing.
    let wish = authority.wish(&["gpu.example.org"]);
    let mut again = TheBox::again(oak.folder.clone(), wish, quick());
    drop(oak);
    again.follow();
    again.certified().await;
    assert_eq!(authority.had(), (1, 1));

    // A steward does not want it any more: it is not served, and is still there if they change their mind.
    again.site.send_modify(|status| Arc::make_mut(status).site.certificate = None);
    again.until("no wish", |status| status.wanted.is_empty()).await;
    assert!(again.served.borrow().is_none());
    assert!(again.acme.try_now().is_err());
}

#[tokio::test]
async fn a_box_proves_a_name_and_all_below_it_in_a_zone_that_it_may_write() {
    let bind = Bind::start().await;
    let authority = Authority::open(bind.port, Habits::default()).await;
    let mut wish = authority.wish(&["gpu.example.org", "*.gpu.example.org"]);
    wish.dns_update = Some(bind.proof());
    wish.contact = Some("ada@example.org".into());
    let mut oak = TheBox::new(wish, quick());
    oak.follow();
    let lacking = oak.until("what is lacking", |s| s.next.contains("DNS key is missing")).await;
    assert!(lacking.held.is_none() && lacking.failed.is_none());
    assert_eq!(authority.had(), (0, 0));
    oak.acme.keep_secret(SecretName::DnsKey, SecretText::new(DNS_SECRET)).unwrap();
    let status = oak.certified().await;
    assert_eq!(status.held.unwrap().names, ["*.gpu.example.org", "gpu.example.org"]);
    assert_eq!(status.secrets, [SecretName::DnsKey]);
    assert_eq!(bind.texts("_acme-challenge.gpu.example.org"), Vec::<String>::new());
    assert_eq!(authority.had(), (1, 1));
}

#[tokio::test]
async fn a_box_asks_a_web_service_to_prove_its_name_and_an_authority_that_refuses_nonces_is_borne()
{
    let dns = TestDns::start().await;
    let authority = Authority::open(dns.port, Habits { bad_nonces: 20, ..Habits::default() }).await;
    let (management, seen) = (dns.management(), Arc::new(Mutex::new(Vec::new())));
    let asked = seen.clone();
    let folder = tempfile::tempdir().unwrap();
    let at = hook(folder.path(), move |head, body| {
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let (name, text) = (body["fqdn"].as_str().unwrap(), body["value"].as_str().unwrap());
        let credential = head.contains("authorization: Basic YWRhOnNlY3JldA==");
        let path = head.split(' ').nth(1).unwrap().to_owned();
        asked.lock().unwrap().push((path.clone(), name.to_owned(), credential));
        match path.as_str() {
            "/acme/present" => {
                let text = serde_json::json!({ "host": name, "value": text }).to_string();
                tell(management, "/set-txt", &text);
            }
            _ => tell(management, "/clear-txt", &serde_json::json!({ "host": name }).to_string()),
        }
        200
    });
    let mut wish = authority.wish(&["gpu.example.org"]);
    let url = format!("https://localhost:{}/acme/", at.port()).parse().unwrap();
    wish.dns_hook = Some(DnsHook { url, wait: 0 });
    let both = std::fs::read_to_string(folder.path().join("ca.pem")).unwrap();
    wish.root = Some(format!("{}{both}", authority.root()));
    let mut oak = TheBox::new(wish, quick());
    oak.acme.keep_secret(SecretName::Hook, SecretText::new("ada:secret")).unwrap();
    oak.follow();
    oak.certified().await;
    let seen = seen.lock().unwrap();
    let name = "_acme-challenge.gpu.example.org.".to_owned();
    assert_eq!(seen[0], ("/acme/present".to_owned(), name.clone(), true));
    assert_eq!(seen.last().unwrap(), &("/acme/cleanup".to_owned(), name, true));
    assert_eq!(authority.had().1, 1);
}

#[tokio::test]
async fn a_certificate_that_lasts_seconds_is_renewed_again_and_again_in_time() {
    let dns = TestDns::start().await;
    let authority = Authority::open(dns.port, Habits { lasts: Some(9), ..Habits::default() }).await;
    let mut oak = TheBox::new(authority.wish(&["gpu.example.org"]), quick());
    oak.open_door(authority.http_port).await;
    oak.follow();
    oak.certified().await;
    let mut until = Vec::new();
    let begun = std::time::Instant::now();
    while until.len() < 3 {
        let chain = oak.served.borrow_and_update().clone();
        if let Some(chain) = chain {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            assert!(chain.validity().until >= now.as_secs() as i64, "it is over");
            if until.last() != Some(&chain.validity().until) {
                until.push(chain.validity().until);
            }
        }
        assert!(begun.elapsed().as_secs() < 30, "{until:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let gaps: Vec<i64> = until.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| (4..=7).contains(gap)), "at two thirds: {gaps:?}");
}
