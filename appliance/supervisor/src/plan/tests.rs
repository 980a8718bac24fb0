//! Plans as text, golden.

use polder_site::{EngineSlot, Metering};

use super::*;

fn fast() -> EngineName {
    "fast".parse().unwrap()
}

fn serve(recipe: &str) -> SiteChange {
    let slot = EngineSlot::serving(recipe.parse().unwrap());
    SiteChange::Engine { name: fast(), slot }
}

fn fresh() -> Observed {
    Observed {
        site: Site::unclaimed(8443),
        imported: BTreeSet::new(),
        gateway: PartState::Ready,
        engines: BTreeMap::new(),
        store: None,
        logins: BTreeSet::new(),
        gone: None,
    }
}

/// A box that serves `tiny`.
fn serving() -> Observed {
    let mut box_ = fresh();
    box_.site = serve("tiny").applied_to(&box_.site);
    box_.imported.insert("tiny".parse().unwrap());
    box_.engines.insert(fast(), PartState::Ready);
    box_
}

fn text(observed: &Observed, wanted: Wanted) -> String {
    let describe = |recipe: &RecipeName| {
        let title = recipe.as_str().to_uppercase();
        Some(Described { title, bytes: Some(98_362_432) })
    };
    let (plan, actions) = plan(observed, &wanted, &describe);
    assert_eq!(plan.steps, actions.iter().map(Action::step).collect::<Vec<_>>());
    let ids: Vec<&str> = plan.steps.iter().map(|s| s.id.as_str()).collect();
    format!("{plan}\n[{}]", ids.join(" "))
}

#[test]
fn engines_start_again_where_they_are_to_keep_something_else() {
    let keeping = polder_site::Keeping { days: 0, ..Default::default() };
    assert_eq!(
        text(&serving(), Wanted::Change(SiteChange::Keeping(keeping))),
        "Keep nothing of conversations on disk\n  \
         1. Let the engine fast finish and stop it\n  \
         2. Write down what the box should be\n  \
         3. Start the engine fast and wait until it answers\n\
         [stop-engine write-site start-engine]"
    );
    let mut box_ = serving();
    box_.site.keeping = keeping;
    let (plan, actions) = plan(&box_, &Wanted::Change(SiteChange::Keeping(keeping)), &|_| None);
    assert!(actions.is_empty() && plan.steps.is_empty());
}

#[test]
fn being_a_spare_having_one_and_neither_any_more_read_as_written_down() {
    let change = |role| Wanted::Change(SiteChange::Spare(Spare::of(role)));
    assert_eq!(
        text(&fresh(), change(SpareRole::ForAnother)),
        "Be the spare of another box, with at most 50 % of the disk\n  \
         1. Write down what the box should be\n  \
         2. Listen at port 8444 for the box that this one is the spare of\n\
         [write-site tend-link]"
    );
    assert_eq!(
        text(&fresh(), change(SpareRole::OfThis)),
        "Have a spare\n  \
         1. Write down what the box should be\n  \
         2. Keep in touch with the spare\n\
         [write-site tend-link]"
    );
    let mut paired = fresh();
    paired.site.spare = Some(Spare::of(SpareRole::OfThis));
    paired.site.backup = Some(polder_site::Backup::to(BackupPlace::Spare));
    assert_eq!(
        text(&paired, Wanted::Change(SiteChange::RemoveSpare)),
        "Have no spare any more, and be none\n  \
         1. Tell the other box that the two are no pair any more, and forget it; backups stay where they are\n  \
         2. Write down what the box should be\n  \
         3. Stop the link to the other box\n\
         [leave-spare write-site tend-link]"
    );
    let next = SiteChange::RemoveSpare.applied_to(&paired.site);
    assert_eq!((next.spare, next.backup), (None, None));
}

#[test]
fn the_first_model_is_imported_written_down_and_started() {
    assert_eq!(
        text(&fresh(), Wanted::Change(serve("tiny"))),
        "Serve TINY as fast\n  \
         1. Import TINY (94 MiB)\n  \
         2. Write down what the box should be\n  \
         3. Start the engine fast and wait until it answers\n\
         [import-model write-site start-engine]"
    );
}

#[test]
fn another_model_comes_in_before_the_old_one_stops() {
    assert_eq!(
        text(&serving(), Wanted::Change(serve("big"))),
        "Serve BIG as fast\n  \
         1. Import BIG (94 MiB)\n  \
         2. Let the engine fast finish and stop it\n  \
         3. Write down what the box should be\n  \
         4. Start the engine fast and wait until it answers\n\
         [import-model stop-engine write-site start-engine]"
    );
}

#[test]
fn a_box_that_is_as_wanted_needs_nothing() {
    let nothing = "Serve TINY as fast\n  nothing to do\n[]";
    assert_eq!(text(&serving(), Wanted::Change(serve("tiny"))), nothing);
    let there = Wanted::Model("tiny".parse().unwrap());
    assert_eq!(text(&serving(), there), "Bring in TINY\n  nothing to do\n[]");
}

#[test]
fn asking_again_for_an_engine_that_does_not_answer_starts_it_or_waits_for_it() {
    for state in [PartState::GaveUp("why".into()), PartState::Starting, PartState::Stopped] {
        let mut box_ = serving();
        box_.engines.insert(fast(), state);
        let text = text(&box_, Wanted::Change(serve("tiny")));
        assert!(text.ends_with("[start-engine]"), "{text}");
    }
}

#[test]
fn an_engine_that_has_no_budget_starts_again_where_another_one_comes_to_share_the_memory() {
    let slow = |memory: Option<&str>| SiteChange::Engine {
        name: "slow".parse().unwrap(),
        slot: EngineSlot {
            memory: memory.map(|text| text.parse().unwrap()),
            ..EngineSlot::serving("big".parse().unwrap())
        },
    };
    assert_eq!(
        text(&serving(), Wanted::Change(slow(Some("60 %")))),
        "Serve BIG as slow, with 60 % of the memory\n  \
         1. Import BIG (94 MiB)\n  \
         2. Let the engine fast finish and stop it\n  \
         3. Write down what the box should be\n  \
         4. Start the engine fast and wait until it answers\n  \
         5. Start the engine slow and wait until it answers\n\
         [import-model stop-engine write-site start-engine start-engine]"
    );
    let mut budgeted = serving();
    budgeted.site.engines.get_mut(&fast()).unwrap().memory = Some("20 GiB".parse().unwrap());
    let text = text(&budgeted, Wanted::Change(slow(None)));
    assert!(text.ends_with("[import-model write-site start-engine]"), "{text}");
}

#[test]
fn another_server_in_a_slot_is_told_with_its_digest_and_its_image_is_brought_before_anything_stops()
{
    let digest = format!("sha256:{}", "ab".repeat(32));
    let container = Container {
        image: "docker.io/vllm/vllm-openai".parse().unwrap(),
        digest: digest.parse().unwrap(),
        authority: None,
        port: 8000,
        arguments: Vec::new(),
        called: None,
        health: None,
        environment: Default::default(),
    };
    let plain = EngineSlot::serving("big".parse().unwrap());
    let kind = polder_site::EngineKind::Container;
    let slot = EngineSlot { kind, container: Some(Box::new(container)), ..plain.clone() };
    let mut known = serving();
    known.logins.insert("docker.io".to_owned());
    let with =
        text(&known, Wanted::Change(SiteChange::Engine { name: fast(), slot: slot.clone() }));
    assert!(with.contains("(with the user and password kept for docker.io)"), "{with}");
    assert_eq!(
        text(&serving(), Wanted::Change(SiteChange::Engine { name: fast(), slot })),
        format!(
            "Serve BIG as fast, from the container image docker.io/vllm/vllm-openai at {digest}\n  \
             1. Import BIG (94 MiB)\n  \
             2. Fetch the container image docker.io/vllm/vllm-openai unless it is here (without a password: none is kept for docker.io), and see that it is {digest}\n  \
             3. Let the engine fast finish and stop it\n  \
             4. Write down what the box should be\n  \
             5. Start the engine fast and wait until it answers\n\
             [import-model bring-image stop-engine write-site start-engine]"
        )
    );
    let url = "http://127.0.0.1:8000/v1".parse().unwrap();
    let served = Some(Box::new(polder_site::Served { url, authority: None, called: None }));
    let slot = EngineSlot { kind: polder_site::EngineKind::Url, served, ..plain };
    assert_eq!(
        text(&fresh(), Wanted::Change(SiteChange::Engine { name: fast(), slot })),
        "Serve BIG as fast, by the server at http://127.0.0.1:8000/v1\n  \
         1. Write down what the box should be\n  \
         2. Start the engine fast and wait until it answers\n\
         [write-site start-engine]"
    );
}

#[test]
fn a_server_elsewhere_is_told_with_when_it_is_asked_and_what_it_may_cost() {
    let mut upstream = polder_site::UpstreamServer {
        kind: polder_site::UpstreamKind::Cloud,
        url: "https://api.example.org/v1".parse().unwrap(),
        authority: None,
        budget: "25".parse().unwrap(),
        currency: Default::default(),
        when_down: true,
        when_full: true,
        full_at: None,
        models: Default::default(),
    };
    let asked = |upstream: &polder_site::UpstreamServer| {
        let (name, upstream) = ("cloud".parse().unwrap(), Box::new(upstream.clone()));
        text(&serving(), Wanted::Change(SiteChange::Upstream { name, upstream }))
    };
    assert_eq!(
        asked(&upstream),
        "Ask cloud at https://api.example.org/v1 when the box is down or full, for at most 25.00 EUR a month: nothing yet\n  \
         1. Write down what the box should be\n\
         [write-site]"
    );
    let price = "0.15".parse().unwrap();
    let model = polder_site::UpstreamModel {
        called: "v/big".into(),
        input: price,
        output: price,
        cached: None,
        written: None,
        longest: None,
    };
    upstream.models.insert("big".parse().unwrap(), model);
    (upstream.when_down, upstream.when_full) = (false, false);
    let only = asked(&upstream);
    assert!(only.starts_with("Ask cloud at https://api.example.org/v1 for what only it has, for at most 25.00 EUR a month: big\n"), "{only}");
    let mut asks = serving();
    asks.site.upstreams.insert("cloud".parse().unwrap(), upstream);
    assert_eq!(
        text(&asks, Wanted::Change(SiteChange::RemoveUpstream("cloud".parse().unwrap()))),
        "Ask cloud no more\n  \
         1. Write down what the box should be\n\
         [write-site]"
    );
}

#[test]
fn an_engine_is_removed_with_its_slot_and_its_weights_stay() {
    assert_eq!(
        text(&serving(), Wanted::Change(SiteChange::RemoveEngine(fast()))),
        "Remove the engine fast\n  \
         1. Let the engine fast finish and stop it\n  \
         2. Write down what the box should be\n\
         [stop-engine write-site]"
    );
    let nothing = text(&fresh(), Wanted::Change(SiteChange::RemoveEngine(fast())));
    assert!(nothing.ends_with("[]"), "{nothing}");
}

#[test]
fn only_what_shows_at_the_door_waits_for_the_door() {
    let rename = SiteChange::Rename("birch".parse().unwrap());
    assert_eq!(
        text(&serving(), Wanted::Change(rename)),
        "Call the box birch\n  \
         1. Write down what the box should be\n  \
         2. Open the door as written down; answers that run go on\n\
         [write-site open-door]"
    );
    let door = SiteChange::Door {
        listen: vec!["0.0.0.0".parse().unwrap(), "::".parse().unwrap()],
        names: vec!["ai.example.org".into()],
    };
    assert_eq!(
        text(&fresh(), Wanted::Change(door)),
        "Open the door at 0.0.0.0, ::, also as ai.example.org\n  \
         1. Write down what the box should be\n  \
         2. Open the door as written down; answers that run go on\n\
         [write-site open-door]"
    );
    let usage = SiteChange::Usage(Metering { per_member: true, ..Metering::default() });
    assert!(text(&serving(), Wanted::Change(usage)).ends_with("[write-site]"));
}

#[test]
fn a_place_for_backups_is_made_ready_before_the_site_names_it_and_used_before_it_counts() {
    let change = SiteChange::Backup(polder_site::Backup::to("/mnt/usb".parse().unwrap()));
    let mut box_ = serving();
    box_.store = Some(Store::Nothing);
    assert_eq!(
        text(&box_, Wanted::Change(change.clone())),
        "Keep backups at /mnt/usb\n  \
         1. Make a store for backups at /mnt/usb; what else is there stays as it is\n  \
         2. Write down what the box should be\n  \
         3. Encrypt the box's small state and send it to /mnt/usb\n  \
         4. Keep one backup for each of 48 hours, 14 days, 8 weeks, 12 months, and remove others\n\
         [make-store write-site save thin]"
    );
    box_.store = Some(Store::Ours(7));
    let again = text(&box_, Wanted::Change(change.clone()));
    assert!(again.ends_with("[write-site save thin]"), "{again}");
    box_.site = change.applied_to(&box_.site);
    for (wish, ids) in [
        (BackupWish::Now, "[save thin]"),
        (BackupWish::Drill, "[fetch-backup examine-backup start-gateway check-store]"),
    ] {
        let text = text(&box_, Wanted::Backup(wish));
        assert!(text.ends_with(ids), "{text}");
    }
    let from = "disk:SPARE".parse().unwrap();
    let restore = text(&fresh(), Wanted::Backup(BackupWish::Restore { from, snapshot: None }));
    assert!(restore.ends_with("[fetch-backup examine-backup fit put-in-place]"), "{restore}");
}

#[test]
fn a_verifier_is_only_written_down() {
    let url = "http://127.0.0.1:4180/auth".parse().unwrap();
    let verifier = polder_site::Verifier { url, mode: Default::default() };
    assert_eq!(
        text(&serving(), Wanted::Change(SiteChange::Verifier(verifier))),
        "Ask http://127.0.0.1:4180/auth who somebody is that brings no key of the box\n  \
         1. Write down what the box should be\n\
         [write-site]"
    );
    let nothing = text(&serving(), Wanted::Change(SiteChange::RemoveVerifier));
    assert!(nothing.ends_with("[]"), "{nothing}");
}

#[test]
fn where_people_sign_in_is_only_written_down() {
    let issuer = "https://sso.example.org".parse().unwrap();
    let sign_in = polder_site::SignIn::at("our house", issuer, "box");
    let box_ = serving();
    assert_eq!(
        text(&box_, Wanted::Change(SiteChange::SignIn(Box::new(sign_in)))),
        "Let people sign in with our house (https://sso.example.org)\n  \
         1. Write down what the box should be\n\
         [write-site]"
    );
    let nothing = text(&serving(), Wanted::Change(SiteChange::RemoveSignIn));
    assert!(nothing.ends_with("[]"), "{nothing}");
}

fn uplinks() -> SiteChange {
    let uplink = |interface: &str, order| polder_site::Uplink {
        interface: interface.parse().unwrap(),
        order,
        metered: false,
        ask_router: false,
        targets: Vec::new(),
    };
    let named = [("mobile", uplink("wwan0", 2)), ("zfibre", uplink("enp1s0", 1))];
    let named = named.into_iter().map(|(name, uplink)| (name.parse().unwrap(), uplink));
    SiteChange::Uplinks(named.collect())
}

#[test]
fn other_uplinks_stay_only_if_somebody_confirms() {
    assert_eq!(
        text(&serving(), Wanted::Change(uplinks())),
        "Go out by zfibre, else by mobile\n  \
         1. Write down what the box should be\n  \
         2. Wait for a steward to confirm; without that it is undone after 60 s\n\
         [write-site confirm]"
    );
    let none = SiteChange::Uplinks(Default::default());
    assert!(text(&serving(), Wanted::Change(none)).ends_with("[]"));
}

#[test]
fn a_port_that_is_gone_leaves_its_address_to_others() {
    let port = |name: &str, line: &str| SiteChange::Port {
        port: name.parse().unwrap(),
        address: polder_site::PortAddress::line(line).unwrap_or_default(),
    };
    let mut box_ = serving();
    let before = box_.site.clone();
    box_.site = port("gone0", "10.0.0.5/8").applied_to(&before);
    assert!(port("enp1s0", "10.0.0.5/8").applied_to(&box_.site).check().is_err());
    let by_dhcp = port("gone0", "");
    assert!(site_after(&box_, &by_dhcp).ports.len() == 1, "it may be there, or have a seed");
    box_.gone = Some("gone0".parse().unwrap());
    box_.site = site_after(&box_, &by_dhcp);
    assert_eq!(box_.site, before);
    port("enp1s0", "10.0.0.5/8").applied_to(&box_.site).check().unwrap();
    // Where nothing is known of it nothing is to be done.
    assert!(text(&box_, Wanted::Change(by_dhcp)).ends_with("[]"));
}

#[test]
fn another_address_stays_only_if_somebody_confirms() {
    let address = |line: &str| polder_site::PortAddress::line(line).unwrap();
    let port = |address| SiteChange::Port { port: "enp1s0".parse().unwrap(), address };
    let fixed = port(address("192.168.7.20/24 192.168.7.1 9.9.9.9"));
    assert_eq!(
        text(&serving(), Wanted::Change(fixed.clone())),
        "Give the port enp1s0 192.168.7.20/24, with the router 192.168.7.1, asking 9.9.9.9 for names\n  \
         1. Write down what the box should be\n  \
         2. Give the port its address; the other ports keep theirs\n  \
         3. Wait for a steward to confirm; without that it is undone after 60 s\n\
         [write-site give-addresses confirm]"
    );
    let mut box_ = serving();
    box_.site = fixed.applied_to(&box_.site);
    assert!(text(&box_, Wanted::Change(fixed)).ends_with("[]"));
    assert_eq!(
        text(&box_, Wanted::Change(port(Default::default()))),
        "Give the port enp1s0 whatever address a router gives it\n  \
         1. Write down what the box should be\n  \
         2. Give the port its address; the other ports keep theirs\n  \
         3. Wait for a steward to confirm; without that it is undone after 60 s\n\
         [write-site give-addresses confirm]"
    );
}

#[test]
fn what_a_router_is_asked_for_and_what_that_opens_is_said_before_it_is_asked() {
    let uplink: polder_site::UplinkName = "mobile".parse().unwrap();
    let ask = |ask| SiteChange::AskRouter { uplink: uplink.clone(), ask };
    let mut box_ = serving();
    box_.site = uplinks().applied_to(&box_.site);
    assert_eq!(
        text(&box_, Wanted::Change(ask(true))),
        "Ask the router of mobile to pass callers at port 8443 on to this box: anybody on the internet can then knock at its sign-in page and its API, and at nothing else\n  \
         1. Write down what the box should be\n\
         [write-site]"
    );
    assert!(text(&box_, Wanted::Change(ask(false))).ends_with("[]"));
    box_.site = ask(true).applied_to(&box_.site);
    assert_eq!(
        text(&box_, Wanted::Change(ask(false))),
        "Give back the port that the router of mobile passes on to this box\n  \
         1. Write down what the box should be\n\
         [write-site]"
    );
}

#[test]
fn a_public_certificate_waits_for_the_door_only_where_its_name_is_new() {
    let certificate = SiteChange::Certificate(Box::new(polder_site::PublicCertificate {
        names: vec!["gpu.example.org".parse().unwrap()],
        directory: "https://acme.example/dir".parse().unwrap(),
        account: None,
        contact: None,
        root: None,
        dns_update: None,
        dns_hook: None,
    }));
    assert_eq!(
        text(&serving(), Wanted::Change(certificate.clone())),
        "Have https://acme.example/dir sign a certificate for gpu.example.org\n  \
         1. Write down what the box should be\n  \
         2. Open the door as written down; answers that run go on\n\
         [write-site open-door]"
    );
    let mut known = serving();
    known.site.door.names.push("gpu.example.org".into());
    let text_of = |change| text(&known, Wanted::Change(change));
    assert!(text_of(certificate).ends_with("[write-site]"));
    assert!(text_of(SiteChange::RemoveCertificate).ends_with("[]"));
}

#[test]
fn a_ups_is_written_down_and_listened_to_and_interrupts_nobody() {
    let plan = polder_site::PowerPlan::of("ups@localhost".parse().unwrap());
    assert_eq!(
        text(&serving(), Wanted::Change(SiteChange::Power(plan.clone()))),
        "Live off the UPS ups@localhost when the mains is away\n  \
         1. Write down what the box should be\n  \
         2. Listen to the UPS\n\
         [write-site watch-ups]"
    );
    let mut box_ = serving();
    box_.site.power = Some(plan.clone());
    let same = text(&box_, Wanted::Change(SiteChange::Power(plan)));
    assert!(same.ends_with("[]"), "{same}");
    let none = text(&box_, Wanted::Change(SiteChange::RemovePower));
    assert!(none.contains("Listen to no UPS any more"), "{none}");
}

#[test]
fn doing_a_plan_leaves_nothing_to_do() {
    let spare = SiteChange::Spare(Spare::of(SpareRole::ForAnother));
    let address = polder_site::PortAddress::line("10.0.0.5/8").unwrap();
    let port = SiteChange::Port { port: "enp1s0".parse().unwrap(), address };
    for change in [serve("big"), SiteChange::RemoveEngine(fast()), uplinks(), spare, port] {
        let mut box_ = serving();
        let wanted = Wanted::Change(change);
        let (_, actions) = plan(&box_, &wanted, &|_| None);
        for action in actions {
            match action {
                Action::ImportModel { recipe, .. } => drop(box_.imported.insert(recipe)),
                Action::StopEngine(name) => drop(box_.engines.remove(&name)),
                Action::WriteSite { site, .. } => box_.site = *site,
                Action::StartEngine(name) => {
                    box_.engines.insert(name, PartState::Ready);
                }
                Action::OpenDoor
                | Action::BringImage { .. }
                | Action::GiveAddresses
                | Action::WatchUps(_)
                | Action::LeaveSpare
                | Action::TendLink(_)
                | Action::Confirm
                | Action::Image(_)
                | Action::Backup { .. }
                | Action::HandOver { .. } => {}
            }
        }
        assert_eq!(plan(&box_, &wanted, &|_| None).1, []);
    }
}

fn step(step: SuccessionStep) -> Wanted {
    Wanted::Change(SiteChange::Succession(step))
}

fn begin(beside: bool) -> SuccessionStep {
    let at = |seconds| jiff::Timestamp::from_second(seconds).unwrap();
    let hours = TrialHours { from: at(1_800_000_000), until: at(1_800_003_600) };
    SuccessionStep::Begin {
        alias: "house".parse().unwrap(),
        from: fast(),
        slot: EngineSlot {
            memory: Some("40 %".parse().unwrap()),
            ..EngineSlot::serving("big".parse().unwrap())
        },
        beside,
        hours: (!beside).then_some(hours).into_iter().collect(),
    }
}

/// A box on which `big` is on trial.
fn trying(beside: bool) -> Observed {
    let mut box_ = serving();
    box_.site.engines.get_mut(&fast()).unwrap().memory = Some("40 %".parse().unwrap());
    box_.site = box_.site.stepped(&begin(beside)).unwrap();
    box_.imported.insert("big".parse().unwrap());
    box_.engines = box_.site.engines.keys().map(|n| (n.clone(), PartState::Ready)).collect();
    box_
}

#[test]
fn a_model_is_tried_beside_the_old_one_which_serves_on() {
    let mut box_ = serving();
    box_.site.engines.get_mut(&fast()).unwrap().memory = Some("40 %".parse().unwrap());
    assert_eq!(
        text(&box_, step(begin(true))),
        "Try BIG beside the engine fast, before the name house is switched to it\n  \
         1. Import BIG (94 MiB)\n  \
         2. Write down what the box should be\n  \
         3. Start the engine fast-2 and wait until it answers\n\
         [import-model write-site start-engine]"
    );
    assert_eq!(
        text(&box_, step(begin(false))),
        "Try BIG in the place of the engine fast, 2027-01-15 08:00 UTC to 09:00 UTC, before the name house is switched to it\n  \
         1. Import BIG (94 MiB)\n  \
         2. Write down what the box should be\n\
         [import-model write-site]"
    );
}

#[test]
fn switching_a_name_to_a_model_that_runs_stops_nothing_and_so_does_going_back() {
    let mut box_ = trying(true);
    assert_eq!(
        text(&box_, step(SuccessionStep::Switch)),
        "Switch the name house from TINY to BIG\n  \
         1. Write down what the box should be\n\
         [write-site]"
    );
    box_.site = box_.site.stepped(&SuccessionStep::Switch).unwrap();
    assert_eq!(
        text(&box_, step(SuccessionStep::Return)),
        "Return the name house from BIG to TINY\n  \
         1. Write down what the box should be\n\
         [write-site]"
    );
    assert_eq!(
        text(&box_, step(SuccessionStep::LetGo)),
        "Let TINY go; its files stay\n  \
         1. Let the engine fast finish and stop it\n  \
         2. Write down what the box should be\n\
         [stop-engine write-site]"
    );
}

#[test]
fn where_only_one_fits_the_old_model_finishes_before_the_site_names_the_new_one() {
    let at = jiff::Timestamp::from_second(1_800_090_000).unwrap();
    let mut box_ = trying(false);
    let announce = text(&box_, step(SuccessionStep::Announce { at }));
    assert!(announce.starts_with("Announce that house is BIG from 2027-01-16 09:00 UTC on"));
    assert_eq!(
        text(&box_, step(SuccessionStep::Switch)),
        "Switch the name house from TINY to BIG\n  \
         1. Let the engine fast finish and stop it\n  \
         2. Write down what the box should be\n  \
         3. Start the engine fast-2 and wait until it answers\n\
         [stop-engine write-site start-engine]"
    );
    box_.site = box_.site.stepped(&SuccessionStep::Switch).unwrap();
    box_.engines = [("fast-2".parse().unwrap(), PartState::Ready)].into();
    let back = text(&box_, step(SuccessionStep::Return));
    assert!(back.ends_with("[stop-engine write-site start-engine]"), "{back}");
    let gone = text(&box_, step(SuccessionStep::LetGo));
    assert!(gone.ends_with("[write-site]"), "{gone}");
}

#[test]
fn sizes_read_as_people_say_them() {
    assert_eq!(size(98_362_432), "94 MiB");
    assert_eq!(size(1 << 30), "1.0 GiB");
    assert_eq!(size(0), "0.0 KiB");
    assert_eq!(size(u64::MAX), "16777216 TiB");
}
