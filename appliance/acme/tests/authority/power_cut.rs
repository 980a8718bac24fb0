//! Cut off at every step, as a power cut does it: nothing runs on, and what is on disk is what was synced.

use polder_acme::Step;
use polder_control::{SecretName, SecretText};

use crate::house::{Authority, Bind, DNS_SECRET, Habits, TheBox, quick};

const STEPS: [Step; 9] = [
    Step::AccountKey,
    Step::Account,
    Step::Ordered,
    Step::Showing,
    Step::Shown,
    Step::Looking,
    Step::Proved,
    Step::Requested,
    Step::Kept,
];

#[tokio::test]
async fn a_box_that_is_cut_off_at_any_step_goes_on_with_the_same_order() {
    let bind = Bind::start().await;
    let authority = Authority::open(bind.port, Habits::default()).await;
    let mut wish = authority.wish(&["gpu.example.org", "*.gpu.example.org"]);
    wish.dns_update = Some(bind.proof());
    for (orders, step) in STEPS.into_iter().enumerate() {
        let oak = TheBox::new(wish.clone(), quick());
        oak.acme.keep_secret(SecretName::DnsKey, SecretText::new(DNS_SECRET)).unwrap();
        let mut steps = oak.acme.steps();
        tokio::select! {
            biased;
            reached = steps.wait_for(|at| *at == Some(step)) => drop(reached.unwrap()),
            () = oak.acme.follow(oak.site.subscribe(), |_| ()) => unreachable!(),
            () = tokio::time::sleep(std::time::Duration::from_secs(20)) => panic!("{step:?} is never reached"),
        }
        let folder = oak.folder.clone();
        drop(oak);
        let mut again = TheBox::again(folder, wish.clone(), quick());
        again.follow();
        let status = again.certified().await;
        assert_eq!(status.failed, None, "{step:?}");
        assert_eq!(authority.had(), (orders + 1, orders + 1), "a second order after {step:?}");
        let left = || bind.texts("_acme-challenge.gpu.example.org");
        if step == Step::Kept {
            // The certificate is there: its order is cleared away with the next one, or when the next round finds it.
            again.until("the order is cleared", |_| !again.file("order.json").exists()).await;
        }
        assert_eq!(left(), Vec::<String>::new(), "{step:?} leaves something in the DNS");
    }
}
