//! The life of a collective, on its pages: another model, money, another house.

use axum::http::StatusCode;
use polder_control::Request;
use polder_ledger::{Books, Cents};
use polder_site::{EngineSlot, Money, Site, SiteChange, SuccessionStep, TrialHours};

use super::tests::{place, place_of};

fn begun(site: &mut Site, beside: bool) {
    let now = jiff::Timestamp::now();
    let hour = jiff::SignedDuration::from_hours(1);
    let hours = TrialHours { from: now + hour, until: now + hour * 2 };
    let begin = SuccessionStep::Begin {
        alias: "house".parse().unwrap(),
        from: "fast".parse().unwrap(),
        slot: EngineSlot::serving("qwen3-4b".parse().unwrap()),
        beside,
        hours: (!beside).then_some(hours).into_iter().collect(),
    };
    *site = site.stepped(&begin).unwrap();
}

fn asked_for(asked: &[Request], step: impl Fn(&SuccessionStep) -> bool) -> bool {
    asked
        .iter()
        .any(|r| matches!(r, Request::Apply { change: SiteChange::Succession(s), .. } if step(s)))
}

#[tokio::test]
async fn another_model_is_tried_only_after_its_steps_were_seen_and_by_those_who_were_ticked() {
    let place = place().await;
    let steward = Some(place.steward.1.as_str());
    let ben = place.member.0.id;
    let form = format!(
        "step=begin&recipe=smollm2-135m-instruct&from=fast&alias=house&memory=40+%25&how=beside&tester={ben}"
    );
    let (status, page) = place.post("/models/change", steward, &form).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    assert!(page.contains("Do it") && page.contains("name=\"tester\""), "{page}");
    assert!(!asked_for(&place.asked(), |_| true), "nothing is done before it was seen");
    assert_eq!(place.gateway.members.trying(ben), None);
    let (_, to) = place.post("/models/change", steward, &format!("{form}&seen=yes")).await;
    assert_eq!(to, "/runs/7");
    let begun = |s: &SuccessionStep| matches!(s, SuccessionStep::Begin { beside: true, slot, .. } if slot.memory == Some("40 %".parse().unwrap()));
    assert!(asked_for(&place.asked(), begun));
    assert!(place.gateway.members.trying(ben).is_some());
    assert!(place.gateway.members.trying(place.steward.0.id).is_none());
    for (form, says) in [
        ("step=begin&recipe=none&from=fast&alias=house", "none"),
        ("step=begin&recipe=smollm2-135m-instruct&from=slow&alias=house", "no engine slow"),
        ("step=begin&recipe=smollm2-135m-instruct&from=fast&alias=a+b", "is not usable"),
        (
            "step=begin&recipe=smollm2-135m-instruct&from=fast&alias=house&how=hours&trial_in=x",
            "no number of hours",
        ),
        ("step=dance", "nothing that the box could do"),
    ] {
        let (status, page) = place.post("/models/change", steward, form).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{form}");
        assert!(page.contains(says), "{form}: {page}");
    }
}

#[tokio::test]
async fn everybody_is_told_of_an_announced_change_and_only_who_tries_it_of_the_trial() {
    let place = place_of(|site| {
        begun(site, true);
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(5);
        *site = site.stepped(&SuccessionStep::Announce { at }).unwrap();
    })
    .await;
    let member = Some(place.member.1.as_str());
    for path in ["/", "/status", "/chat"] {
        let (_, page) = place.get(path, member).await;
        assert!(page.contains("makes room for") && page.contains("in 5 hours"), "{path}: {page}");
    }
    assert!(!place.get("/", member).await.1.contains("You try"));
    assert_eq!(place.post("/trial", member, "under_alias=yes").await.0, StatusCode::BAD_REQUEST);
    let ben = place.member.0.id;
    place.gateway.members.choose_for_trial(&[ben]).unwrap();
    assert!(place.get("/", member).await.1.contains("You try"));
    assert_eq!(place.post("/trial", member, "under_alias=yes").await.1, "/");
    assert!(place.gateway.members.trying(ben).unwrap().under_alias);
    let steward = Some(place.steward.1.as_str());
    let page = place.get("/models/change", steward).await.1;
    assert!(page.contains("announced") && page.contains("Take the announcement back"), "{page}");
    for (step, wanted) in [
        ("announce&hours=0.5", "Announce"),
        ("switch", "Switch"),
        ("withdraw", "Withdraw"),
        ("call-off", "CallOff"),
        ("return", "Return"),
        ("let-go", "LetGo"),
    ] {
        let to = place.post("/models/change", steward, &format!("step={step}&seen=yes")).await.1;
        assert_eq!(to, "/runs/7", "{step}");
        assert!(asked_for(&place.asked(), |s| format!("{s:?}").starts_with(wanted)), "{step}");
    }
}

#[tokio::test]
async fn hours_in_which_the_model_is_away_are_told_before_they_begin() {
    let place = place_of(|site| begun(site, false)).await;
    let page = place.get("/", Some(&place.member.1)).await.1;
    assert!(page.contains("is away") && page.contains("in 60 minutes"), "{page}");
}

fn with_books(site: &mut Site) {
    site.money = Some(Money { currency: "EUR".parse().unwrap() });
}

/// By what a page that shows what would be written knows it.
pub(super) fn seen(page: &str) -> String {
    let value = page.split("name=\"seen\" value=\"").nth(1).unwrap_or_else(|| panic!("{page}"));
    format!("&seen={}", value.split('"').next().unwrap())
}

#[tokio::test]
async fn the_same_payment_entered_twice_is_asked_about_and_written_only_if_it_was() {
    let place = place_of(with_books).await;
    let (steward, ben) = (Some(place.steward.1.as_str()), place.member.0.id);
    let written = "/money?said=money";
    let payment = format!("kind=payment&member={ben}&amount=12%2C50&day=2026-11-02");
    let count = || place.gateway.members.ledger().unwrap().len();
    // A form that was sent twice at once, too.
    let both = tokio::join!(
        place.post("/money/enter", steward, &payment),
        place.post("/money/enter", steward, &payment)
    );
    let mut said = [both.0.0, both.1.0];
    said.sort();
    assert_eq!((said, count()), ([StatusCode::SEE_OTHER, StatusCode::CONFLICT], 1));
    let (status, page) = place.post("/money/enter", steward, &payment).await;
    assert_eq!((status, count()), (StatusCode::CONFLICT, 1));
    assert!(page.contains("The same payment once more?") && page.contains("12.50"), "{page}");
    let twice = format!("{payment}{}", seen(&page));
    assert_eq!(place.post("/money/enter", steward, &twice).await.1, written);
    // Another day, another amount and what was taken back are no question.
    for other in [payment.replace("11-02", "11-03"), payment.replace("12%2C50", "13")] {
        assert_eq!(place.post("/money/enter", steward, &other).await.1, written, "{other}");
    }
    let last = place.gateway.members.ledger().unwrap().last().unwrap().id.0;
    assert_eq!(place.post("/money/correct", steward, &format!("entry={last}")).await.1, written);
    let again = payment.replace("12%2C50", "13");
    assert_eq!(place.post("/money/enter", steward, &again).await.1, written);
}

#[tokio::test]
async fn a_steward_keeps_the_books_and_a_member_sees_their_own_and_the_fund() {
    let place = place_of(with_books).await;
    let (steward, member) = (Some(place.steward.1.as_str()), Some(place.member.1.as_str()));
    let (ada, ben) = (place.steward.0.id, place.member.0.id);
    let written = "/money?said=money";
    let payment =
        format!("kind=payment&member={ben}&amount=12%2C50&day=2026-11-02&note=%3Cb%3ENovember");
    assert_eq!(place.post("/money/enter", steward, &payment).await.1, written);
    let cost = "kind=cost&amount=31.01&day=2026-11-03&month=2026-11&note=mains";
    assert_eq!(place.post("/money/enter", steward, cost).await.1, written);

    // For everybody, after it was seen, and once.
    let dues = "month=2026-11&amount=10";
    let (_, page) = place.post("/money/dues", steward, dues).await;
    assert!(page.contains("Together") && page.contains("20.00"), "{page}");
    let dues = format!("{dues}{}", seen(&page));
    assert_eq!(place.post("/money/dues", steward, &dues).await.1, written);
    let again = place.post("/money/dues", steward, &dues).await;
    assert!(again.1.contains("Everybody has dues for 2026-11 already"), "{}", again.1);
    let split = "month=2026-11".to_owned();
    let split = format!("{split}{}", seen(&place.post("/money/split", steward, &split).await.1));
    assert_eq!(place.post("/money/split", steward, &split).await.1, written);
    assert!(place.post("/money/split", steward, &split).await.1.contains("is left to be split"));

    let books = Books::of(&place.gateway.members.ledger().unwrap());
    assert_eq!(books.fund, Cents(1250 - 3101));
    assert_eq!(books.of_member(ada.0) + books.of_member(ben.0), Cents(1250 - 2000 - 3101));
    let page = place.get("/money", member).await.1;
    assert!(page.contains("-18.51") && page.contains("mains"), "{page}");
    assert!(page.contains("&lt;b&gt;November") && !page.contains("<b>November"), "{page}");
    assert!(!page.contains("Balances") && !page.contains("/money/enter"), "{page}");
    let mine = place.get("/money/mine.csv", member).await.1;
    assert_eq!(mine.lines().count(), 4, "{mine}");
    assert!(mine.lines().skip(1).all(|line| line.contains("Ben O'Hara")), "{mine}");
    assert_eq!(place.post("/money.csv", member, "").await.0, StatusCode::FORBIDDEN);

    // A mistake is another entry, once.
    assert_eq!(place.post("/money/correct", steward, "entry=1").await.1, written);
    let twice = place.post("/money/correct", steward, "entry=1").await.1;
    assert!(twice.contains("was taken back already"), "{twice}");
    assert_eq!(place.post("/money/fund", steward, "amount=5&note=counted").await.1, written);
    assert_eq!(Books::of(&place.gateway.members.ledger().unwrap()).fund, Cents(500));
    for (path, form, says) in [
        ("enter", "kind=payment&amount=1", "choose whose payment"),
        ("enter", "kind=cost&amount=none", "no amount of money"),
        ("enter", "kind=cost&amount=1&day=31.2.", "is no day"),
        ("dues", "amount=1", "for which month"),
        ("fund", "amount=5", "has that much already"),
        ("correct", "entry=99", "no such entry"),
        ("currency", "currency=gold", "three letters"),
    ] {
        let (status, page) = place.post(&format!("/money/{path}"), steward, form).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {form}");
        assert!(page.to_lowercase().contains(says), "{path} {form}: {page}");
    }
}

#[tokio::test]
async fn two_stewards_who_press_at_once_write_a_months_dues_and_costs_once() {
    let place = place_of(with_books).await;
    let members = &place.gateway.members;
    members.set_role(place.member.0.id, polder_members::Role::Steward).unwrap();
    let (ada, ben) = (Some(place.steward.1.as_str()), Some(place.member.1.as_str()));
    place.post("/money/enter", ada, "kind=cost&amount=30&month=2026-10").await;
    let mut entries = 1;
    for (path, form) in
        [("/money/dues", "month=2026-10&amount=7"), ("/money/split", "month=2026-10")]
    {
        // Both have seen it.
        let form = format!("{form}{}", seen(&place.post(path, ada, form).await.1));
        let (one, two) = tokio::join!(place.post(path, ada, &form), place.post(path, ben, &form));
        let both = [one, two];
        let done = both.iter().filter(|(_, to)| to == "/money?said=money").count();
        assert_eq!(done, 1, "{both:?}");
        let other = both.iter().find(|(_, to)| to != "/money?said=money").unwrap();
        assert_eq!(other.0, StatusCode::BAD_REQUEST, "{path}");
        entries += 2;
        assert_eq!(members.ledger().unwrap().len(), entries, "{path}");
    }
    // What was shown is what is written: with another cost in between it is shown once more.
    place.post("/money/enter", ada, "kind=cost&amount=5&month=2026-10").await;
    let form =
        format!("month=2026-10{}", seen(&place.post("/money/split", ada, "month=2026-10").await.1));
    place.post("/money/enter", ben, "kind=cost&amount=1&month=2026-10").await;
    let (status, page) = place.post("/money/split", ada, &form).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(page.contains("nothing was written") && page.contains("3.00"), "{page}");
    assert_eq!(members.ledger().unwrap().len(), entries + 2);
    let form = format!("month=2026-10{}", seen(&page));
    assert_eq!(place.post("/money/split", ada, &form).await.1, "/money?said=money");
    // Whoever counts the fund counts it once.
    let (one, two) = tokio::join!(
        place.post("/money/fund", ada, "amount=9"),
        place.post("/money/fund", ben, "amount=9")
    );
    assert!(one.1.contains("that much already") != two.1.contains("that much already"));
    assert_eq!(Books::of(&members.ledger().unwrap()).fund, Cents(900));
}

#[tokio::test]
async fn a_table_of_a_bank_is_shown_then_written_down_and_brings_nothing_twice() {
    let place = place_of(with_books).await;
    let steward = Some(place.steward.1.as_str());
    let table = "date%2Camount%2Ctext%0A2026-11-01%2C5.00%2CBen+O%27Hara%0A2026-11-02%2C-3.00%2C%3Dmains%0A2026-11-03%2C7.00%2Csomebody%0A";
    let form = format!("table={table}");
    let (_, page) = place.post("/money/bring-in", steward, &form).await;
    assert!(page.contains("2 new, 0 known already, 1 that came in"), "{page}");
    assert_eq!(place.gateway.members.ledger().unwrap().len(), 0);
    let seen = format!("{form}&seen=yes");
    assert_eq!(place.post("/money/bring-in", steward, &seen).await.1, "/money?said=money");
    let (_, page) = place.post("/money/bring-in", steward, &form).await;
    assert!(page.contains("0 new, 2 known already"), "{page}");
    place.post("/money/bring-in", steward, &seen).await;
    assert_eq!(place.gateway.members.ledger().unwrap().len(), 2);
    let all = place.post("/money.csv", steward, "").await.1;
    assert!(all.contains("'=mains") && !all.contains(",=mains"), "{all}");
    let (status, page) = place.post("/money/bring-in", steward, "table=a%2Cb%0A1%2C2").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("no column for the date"), "{page}");
}

#[tokio::test]
async fn usage_splits_costs_only_when_everybody_agreed_and_the_box_counts() {
    let counted = place_of(|site| {
        with_books(site);
        site.usage.per_member = true;
    })
    .await;
    let steward = Some(counted.steward.1.as_str());
    let members = &counted.gateway.members;
    members.set_metering(true);
    members.count_chat(counted.member.0.id, "m", 300, 0);
    members.count_chat(counted.steward.0.id, "m", 100, 0);
    let month =
        polder_ledger::Month::of(jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date());
    counted.post("/money/enter", steward, &format!("kind=cost&amount=40&month={month}")).await;
    let split = format!("month={month}");
    counted.post("/money/agree", steward, "agree=yes").await;
    let (_, page) = counted.post("/money/split", steward, &split).await;
    assert!(page.contains("in equal parts") && page.contains("20.00"), "{page}");
    counted.post("/money/agree", Some(&counted.member.1), "agree=yes").await;
    for _ in 0..200 {
        let used = members.usage_in_month(month).unwrap();
        if used.values().sum::<u64>() == 400 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let (_, page) = counted.post("/money/split", steward, &split).await;
    assert!(
        page.contains("by usage") && page.contains("30.00") && page.contains("10.00"),
        "{page}"
    );
}

#[tokio::test]
async fn the_page_about_moving_says_what_has_to_be_looked_at_and_has_a_sheet() {
    let place = place_of(|site| {
        site.door.listen = vec!["192.0.2.1".parse().unwrap()];
        site.door.names = vec!["gpu.example.org".into()];
    })
    .await;
    let steward = Some(place.steward.1.as_str());
    let page = place.get("/moving", steward).await.1;
    assert!(page.contains("gpu.example.org") && page.contains("nobody can claim it"), "{page}");
    let sheet = place.get("/moving/sheet", steward).await.1;
    assert!(sheet.contains("https://oak.local:8443") && sheet.contains("00:01:02"), "{sheet}");
    // Nothing is settled that is where it was.
    let (_, page) = place.post("/moving", steward, "seen=yes").await;
    assert!(page.contains("nothing to settle"), "{page}");
    assert!(!place.asked().iter().any(|r| matches!(r, Request::Apply { .. })));
}
