//! A server for money that says that it takes too long may be at work all the same, and charge.

use polder_upstream::Asked;

use super::*;

#[tokio::test]
async fn an_answer_that_is_late_is_booked_at_its_most_and_nobody_else_is_asked() {
    let (cloud, other) = (Cloud::open().await, Cloud::open().await);
    let mut house = house_with(cloud.as_upstream()).await;
    let mut dearer = other.as_upstream();
    dearer.models.values_mut().for_each(|model| model.input = "9".parse().unwrap());
    house.site.upstreams.insert("other".parse().unwrap(), dearer);
    house.heard(PartState::Stopped).await;
    let there = &cloud.as_upstream().models[&"small".parse().unwrap()];
    let mut most = 0;
    // As a proxy before a server says it, and as one that many use.
    for (number, status) in [(1, 504), (2, 524)] {
        let question =
            format!("{{\"model\":\"small\",\"max_tokens\":50,\"cloud_status\":{status}}}");
        most += Asked::paid("/v1/chat/completions", question.as_bytes(), there).unwrap().1;
        let answer = house.chat(&question).await;
        assert!(status_of(&answer) >= 500 && answer.contains("cloud"), "{answer}");
        assert!(!answer.contains(KEY), "{answer}");
        soon("the books are written", || house.spent().1 == number).await;
        assert_eq!(house.spent(), (most, number), "{status}");
        assert_eq!((cloud.requests() as u64, other.requests()), (number, 0), "paid for twice");
    }
    // What is a plain failure is for the next one, and costs nothing.
    let answer = house.chat("{\"model\":\"small\",\"max_tokens\":50,\"cloud_status\":500}").await;
    assert_eq!((status_of(&answer), other.requests(), house.spent().0), (503, 1, most), "{answer}");
}
