//! Uplinks, servers elsewhere and certificates.

use polder_site::InterfaceName;

use super::*;

#[tokio::test]
async fn a_steward_adds_an_uplink_confirms_it_and_one_without_an_interface_is_refused() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "name=mobile&interface=wwan0&metered=on&targets=9.9.9.9%3A443+1.1.1.1%3A443";
    assert_eq!(place.post("/uplinks", steward, form).await.1, "/runs/7");
    let targets = ["9.9.9.9:443", "1.1.1.1:443"].map(|target| target.parse().unwrap()).into();
    let (interface, order) = ("wwan0".parse().unwrap(), 1);
    let mobile =
        polder_site::Uplink { interface, order, metered: true, ask_router: false, targets };
    let uplinks = [("mobile".parse().unwrap(), mobile)].into();
    let wanted = SiteChange::Uplinks(uplinks);
    let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
    assert!(place.asked.lock().unwrap().iter().any(asked));
    assert_eq!(place.post("/runs/7/confirm", steward, "").await.1, "/dashboard?said=confirmed");
    let asked = |r: &Request| matches!(r, Request::Confirm { run: RunId(7), by: Actor::Member(_) });
    assert!(place.asked.lock().unwrap().iter().any(asked));
    let (status, page) = place.post("/uplinks", steward, "name=mobile&interface=%3Cb%3E").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("is not the name of a network interface") && !page.contains("<b>"));
    let (status, _) = place.post("/uplinks/fibre/remove", steward, "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_steward_names_a_server_elsewhere_whose_key_no_page_ever_shows() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let page = place.get("/elsewhere", steward).await.1;
    assert!(page.contains("What leaves the house") && page.contains("nobody answers"), "{page}");
    let form = "name=cloud&kind=cloud&url=https://api.example.org/v1&budget=12,50&when_down=yes";
    // First what it comes to, and nothing done.
    let (status, page) = place.post("/elsewhere", steward, form).await;
    assert_eq!(status, StatusCode::OK);
    for said in [
        "What it comes to",
        "None yet: the box asks it for nothing before a model is named.",
        "encrypted on its way to api.example.org",
        "x-polder-served-by",
        "name=\"budget\" value=\"12.50\"",
        "type=\"password\"",
    ] {
        assert!(page.contains(said), "{said}: {page}");
    }
    let applied = || {
        let asked = place.asked.lock().unwrap();
        asked.iter().filter(|request| matches!(request, Request::Apply { .. })).count()
    };
    assert_eq!(applied(), 0);
    // What is agreed to is what was shown: not another budget, and not the same after the box has changed.
    let seen = super::super::life_tests::seen(&page);
    let other = form.replace("12,50", "9999");
    for (form, seen) in [(other.as_str(), seen.as_str()), (form, "&seen=yes")] {
        let form = format!("{form}&key=sk-secret-of-ours{seen}");
        let (status, page) = place.post("/elsewhere", steward, &form).await;
        assert_eq!(status, StatusCode::CONFLICT);
        assert!(page.contains("nothing was done") && !page.contains("sk-secret"), "{page}");
        assert_eq!(applied(), 0);
        assert!(!place.gateway.state_folder().join("upstreams/secrets.json").exists());
    }
    let form = format!("{form}&key=sk-secret-of-ours{seen}");
    assert_eq!(place.post("/elsewhere", steward, &form).await.1, "/elsewhere?said=upstream");
    assert_eq!(applied(), 1);
    let asked = place.asked.lock().unwrap().clone();
    let change = asked.iter().find_map(|request| match request {
        Request::Apply { change: SiteChange::Upstream { name, upstream }, .. } => {
            Some((name, upstream))
        }
        _ => None,
    });
    let (name, upstream) = change.unwrap();
    assert_eq!((name.as_str(), upstream.budget.to_string()), ("cloud", "12.50".into()));
    assert!(upstream.when_down && !upstream.when_full);
    assert!(!format!("{asked:?}").contains("sk-secret"), "the supervisor was told the key");
    let state = place.gateway.state_folder();
    let kept = std::fs::read_to_string(state.join("upstreams/secrets.json")).unwrap();
    assert_eq!(kept, r#"{"cloud":"sk-secret-of-ours"}"#);
    assert!(
        place.recorded().iter().any(|(what, on)| what == "changed the key for" && on == "cloud")
    );
    let wrong = "name=cloud&url=http://10.0.0.1/v1&budget=1&key=sk-secret-of-ours";
    let (status, page) = place.post("/elsewhere", steward, wrong).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("in the clear") && page.contains("http://10.0.0.1/v1"), "{page}");
    assert!(!page.contains("sk-secret"), "{page}");
    assert_eq!(place.post("/elsewhere/none/test", steward, "").await.0, StatusCode::NOT_FOUND);
    let models = place.get("/models", steward).await.1;
    assert!(models.contains("href=\"/elsewhere\""), "{models}");
}

#[tokio::test]
async fn a_change_of_the_certificate_that_is_made_is_not_said_to_have_failed_where_the_trail_has_no_room()
 {
    let place = place_with(Clock::system(), |_| {}, true).await;
    let steward = Some(place.steward.1.as_str());
    let form = "names=gpu.example.org&authority=lets-encrypt&proof=http&account=a\
                &contact=unrecorded%40example.org&account_secret=c2VjcmV0LXNlY3JldA";
    let (status, said) = place.post("/certificate", steward, form).await;
    assert_eq!((status, said.as_str()), (StatusCode::SEE_OTHER, "/certificate?said=certificate"));
    // It waits to be told.
    let members = place.gateway.members.clone();
    let untold = members.ask(|m| m.untold_deeds()).await.unwrap();
    assert!(untold.iter().any(|deed| deed.text.contains("secret")), "{untold:?}");
    assert!(untold.iter().all(|deed| !deed.text.contains("c2VjcmV0")), "{untold:?}");
}

#[tokio::test]
async fn a_steward_asks_for_a_public_certificate_and_a_name_of_the_network_is_refused() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let form = "names=gpu.example.org&authority=lets-encrypt&proof=http";
    assert_eq!(place.post("/certificate", steward, form).await.1, "/certificate?said=certificate");
    let removed = place.post("/certificate/remove", steward, "").await;
    assert_eq!(removed.1, "/certificate?said=certificate-removed");
    let wanted = |r: &Request| match r {
        Request::Apply { change: SiteChange::Certificate(c), by: Actor::Member(_) } => {
            c.names[0].as_str() == "gpu.example.org" && c.proof() == polder_site::Proof::Http
        }
        _ => false,
    };
    let gone =
        |r: &Request| matches!(r, Request::Apply { change: SiteChange::RemoveCertificate, .. });
    for asked in [&wanted as &dyn Fn(&Request) -> bool, &gone] {
        assert!(place.asked.lock().unwrap().iter().any(asked));
    }
    for (form, says) in [
        ("names=box.local&authority=lets-encrypt&proof=http", "not a name that the world can know"),
        ("names=*.gpu.example.org&authority=lets-encrypt&proof=http", "by a proof in the DNS"),
        ("names=gpu.example.org&authority=other&directory=http%3A%2F%2Fx&proof=http", "over TLS"),
    ] {
        let (status, page) = place.post("/certificate", steward, form).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{form}");
        assert!(page.contains(says), "{form}: {page}");
    }
}

#[tokio::test]
async fn a_steward_gives_a_port_an_address_and_what_cannot_work_is_said_with_what_was_typed() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let page = place.get("/uplinks", steward).await.1;
    assert!(page.contains("Addresses of this machine") && page.contains("enp1s0"), "{page}");
    let form =
        "port=enp1s0&addresses=192.168.7.20%2F24+fd00%3A%3A7%2F64&gateways=192.168.7.1&dns=9.9.9.9";
    assert_eq!(place.post("/uplinks/ports", steward, form).await.1, "/runs/7");
    assert_eq!(place.post("/uplinks/ports/enp1s0/dhcp", steward, "").await.1, "/runs/7");
    let port = "enp1s0".parse().unwrap();
    let fixed =
        polder_site::PortAddress::typed("192.168.7.20/24 fd00::7/64", "192.168.7.1", "9.9.9.9");
    for address in [fixed.unwrap(), Default::default()] {
        let wanted = SiteChange::Port { port: InterfaceName::clone(&port), address };
        let asked = |r: &Request| matches!(r, Request::Apply { change, by: Actor::Member(_) } if *change == wanted);
        assert!(place.asked.lock().unwrap().iter().any(asked), "{wanted:?}");
    }
    let wrong = "port=enp1s0&addresses=192.168.7.20%22%3E%3Cb%3E&gateways=";
    let (status, page) = place.post("/uplinks/ports", steward, wrong).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("is not an address with the length of its network"), "{page}");
    assert!(page.contains("value=\"192.168.7.20&quot;") && !page.contains("<b>"), "{page}");
    let (status, _) = place.post("/uplinks/ports/en%20p/dhcp", steward, "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let member = Some(place.member.1.as_str());
    for path in ["/uplinks/ports", "/uplinks/ports/enp1s0/dhcp"] {
        assert_eq!(place.post(path, member, form).await.0, StatusCode::FORBIDDEN, "{path}");
    }
    let moving = place.get("/moving", steward).await.1;
    assert!(moving.contains("href=\"/uplinks#ports\"") && moving.contains("key n"), "{moving}");
}
