//! A collective shares what its box costs: a steward keeps the books, a member sees their own, and usage counts only when all agree.

use std::path::Path;
use std::time::{Duration, Instant};

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use polder_members::{Clock, Members, NewKey, NewMember, Role, Secret};
use polder_stories::{Browser, Client, Running, free_port, import_trial_model, scaled};

const PASSWORD: &str = "the till is in the drawer";

/// How many days ago it was the 15th: what is used in one month is not split in the next, also where this story begins a minute before midnight.
fn since_the_middle_of_a_month(now: Timestamp) -> u32 {
    let today = now.to_zoned(TimeZone::UTC).date();
    let this = today.first_of_month() + 14.days();
    let last = if this <= today { this } else { today.first_of_month() - 1.month() + 14.days() };
    u32::try_from((today - last).get_days()).unwrap()
}

/// A steward and a member, each with a key.
fn two(state: &Path, days_ago: u32) -> [String; 2] {
    import_trial_model(state);
    let clock = Clock::system();
    clock.pass(-i64::from(days_ago) * 24 * 3600);
    let members = Members::open_with_clock(&state.join("polder.db"), clock).unwrap();
    [("Ada", Role::Steward), ("Cleo", Role::Member)].map(|(name, role)| {
        let password = Secret::new(PASSWORD.into());
        let new = NewMember { name: name.into(), email: None, password };
        let id = members.add_member(&new, role).unwrap().id;
        members.mint_key(id, &NewKey::default()).unwrap().key.expose().to_owned()
    })
}

async fn signed_in(home: &str, name: &str, width: u32) -> Browser {
    let browser = Browser::open(width, 900, false, true).await;
    browser.visit(&format!("{home}/sign-in?next=/money")).await;
    browser.fill("name", name).await;
    browser.fill("password", PASSWORD).await;
    browser.press("Sign in").await;
    browser
}

/// Fills a form of the page, by where it leads, and presses its button.
async fn send(browser: &Browser, form: &str, fields: &[(&str, &str)]) {
    let form = format!("form[action='/money/{form}']");
    for (name, value) in fields {
        browser.fill_first(&format!("{form} [name='{name}']"), value).await;
    }
    browser.press_first(&format!("{form} button")).await;
}

/// Looks at what would be written, and has it written.
async fn write_down(browser: &Browser, sum: &str) {
    browser.hear("What would be written down").await;
    browser.hear(sum).await;
    browser.press("Write it down").await;
    browser.at("/money?said=money").await;
}

/// Asks for an answer of so many tokens.
fn uses(client: &Client, model: &str, tokens: u32) {
    let mut asked = polder_stories::chat(model, "Count.", tokens);
    asked["ignore_eos"] = true.into();
    let answer = client.post("/v1/chat/completions", &asked);
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[test]
fn the_books_are_kept_in_the_middle_of_a_month_whatever_day_it_is() {
    for (now, days) in [
        ("2026-11-30T23:59:59Z", 15),
        ("2026-12-01T00:00:00Z", 16),
        ("2026-03-14T12:00:00Z", 27),
        ("2026-03-15T12:00:00Z", 0),
        ("2026-01-01T00:00:00Z", 17),
    ] {
        assert_eq!(since_the_middle_of_a_month(now.parse().unwrap()), days, "{now}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_books_are_kept_a_bank_s_table_comes_in_and_usage_counts_only_when_all_agree() {
    let state = tempfile::tempdir().unwrap();
    let days_ago = since_the_middle_of_a_month(Timestamp::now());
    let [ada_key, cleo_key] = two(state.path(), days_ago);
    let (running, up) = Running::ready_days_earlier(state.path(), free_port(), days_ago);
    let home = format!("http://localhost:{}", running.port);
    let ada = signed_in(&home, "Ada", 1280).await;
    ada.hear("No books are kept").await;
    ada.press("Keep books").await;
    // The door hears of it a moment after the supervisor wrote it.
    let begun = Instant::now();
    while !ada.shows("form[action='/money/dues']").await {
        assert!(begun.elapsed() < scaled(Duration::from_secs(60)), "{}", ada.words().await);
        ada.visit(&format!("{home}/money")).await;
    }

    send(&ada, "dues", &[("month", "2025-01"), ("amount", "10")]).await;
    write_down(&ada, "Together 20.00").await;
    ada.select("form[action='/money/enter'] [name='member']", "Cleo").await;
    send(&ada, "enter", &[("amount", "4,50"), ("note", "in cash")]).await;
    ada.at("/money?said=money").await;
    ada.hear("in cash").await;
    let cost = "form[action='/money/enter']:has([value='cost'])";
    for (name, value) in [("amount", "30"), ("note", "electricity")] {
        ada.fill_first(&format!("{cost} [name='{name}']"), value).await;
    }
    ada.press_first(&format!("{cost} button")).await;
    ada.hear("electricity").await;
    send(&ada, "fund", &[("amount", "100"), ("note", "the tin was counted")]).await;
    ada.hear("the tin was counted").await;
    ada.picture("money-1-steward").await;
    ada.fits_its_window().await;
    ada.is_usable_by_ear_and_keyboard().await;

    // The bank's table: looked at first, brought in once.
    let table = "Date;Amount;Text\n2025-01-02;5,50;Transfer Cleo\n2025-01-03;-12,00;Provider\n2025-01-04;9,00;who knows";
    send(&ada, "bring-in", &[("table", table)]).await;
    ada.hear("2 new, 0 known already, 1 that came in without the name of one member").await;
    ada.press("Write it down").await;
    ada.at("/money?said=money").await;
    send(&ada, "bring-in", &[("table", table)]).await;
    ada.hear("0 new, 2 known already").await;
    ada.press("Back").await;
    ada.press("Everything as a table").await;
    let books = ada.saved("money.csv").await;
    assert_eq!(books.lines().count(), 1 + 2 + 1 + 1 + 1 + 2, "{books}");
    assert!(books.contains("Transfer Cleo") && books.contains("the tin was counted"), "{books}");

    // Cleo sees her own and what the fund paid, on a telephone; nothing of Ada's, and writes nothing.
    let cleo = signed_in(&home, "Cleo", 320).await;
    cleo.hear("You are even.").await;
    let page = cleo.words().await;
    assert!(page.contains("Transfer Cleo") && page.contains("electricity"), "{page}");
    assert!(!page.contains("Balances") && !cleo.shows("form[action='/money/enter']").await);
    assert!(!page.contains("owed"), "what Ada owes is shown to Cleo: {page}");
    cleo.picture("money-2-member").await;
    cleo.fits_its_window().await;
    cleo.is_usable_by_ear_and_keyboard().await;
    cleo.press("All of yours as a table").await;
    let mine = cleo.saved("my-money.csv").await;
    assert_eq!(mine.lines().count(), 4, "{mine}");
    assert!(mine.lines().skip(1).all(|line| line.contains(",Cleo,")), "{mine}");

    // The box counts from now on, and one of them agrees: equal parts all the same.
    ada.visit(&format!("{home}/usage")).await;
    ada.press("Change the rule").await;
    ada.press_first("label[for='per_member']").await;
    ada.press("Set the rule").await;
    ada.at("/usage?said=policy").await;
    let begun = Instant::now();
    while !ada.words().await.contains("This box counts requests") {
        assert!(begun.elapsed() < scaled(Duration::from_secs(60)), "{}", ada.words().await);
        ada.visit(&format!("{home}/usage")).await;
    }
    tokio::task::block_in_place(|| {
        let client = up.client();
        uses(&client.with_key(Some(&ada_key)), &up.model, 2);
        uses(&client.with_key(Some(&cleo_key)), &up.model, 60);
    });
    ada.visit(&format!("{home}/money")).await;
    ada.press_first("label[for='agree']").await;
    ada.press_first("form[action='/money/agree'] button").await;
    ada.see("[name='agree'][checked]").await;
    send(&ada, "split", &[]).await;
    ada.hear("in equal parts").await;
    ada.hear("15.00").await;
    // And the other.
    cleo.visit(&format!("{home}/money")).await;
    cleo.press_first("label[for='agree']").await;
    cleo.press_first("form[action='/money/agree'] button").await;
    cleo.see("[name='agree'][checked]").await;
    let begun = Instant::now();
    loop {
        ada.visit(&format!("{home}/money")).await;
        send(&ada, "split", &[]).await;
        ada.hear("What would be written down").await;
        let shown = ada.words().await;
        // What was used is counted a moment later.
        if shown.contains("by usage: everybody agreed") && !shown.contains("15.00") {
            break;
        }
        assert!(begun.elapsed() < scaled(Duration::from_secs(60)), "{shown}");
    }
    ada.picture("money-3-by-usage").await;
    write_down(&ada, "Together 30.00").await;
    ada.hear("part of the costs for").await;
    // Nothing is left of that month.
    send(&ada, "split", &[]).await;
    ada.hear("is left to be split").await;
    cleo.close().await;
    ada.close().await;
}
