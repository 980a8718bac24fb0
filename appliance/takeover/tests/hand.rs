//! What a spare answers over the link, asked as the main box asks it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use polder_recipes::Digest;
use polder_takeover::{Given, Side, Term, hand};
use polder_weights::{HeldModel, Judged, Manifest, Store, StoredFile, Taken};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tower::ServiceExt;

async fn ask(hand: &Router, method: &str, path: &str, body: Vec<u8>) -> (StatusCode, Vec<u8>) {
    let request = Request::builder().method(method).uri(path).body(Body::from(body)).unwrap();
    let answer = hand.clone().oneshot(request).await.unwrap();
    let status = answer.status();
    (status, to_bytes(answer.into_body(), 1 << 20).await.unwrap().to_vec())
}

async fn good<A: DeserializeOwned>(hand: &Router, method: &str, path: &str, body: Vec<u8>) -> A {
    let (status, body) = ask(hand, method, path, body).await;
    assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

#[tokio::test]
async fn a_model_comes_in_pieces_and_is_there_when_the_last_one_was_right() {
    let state = tempfile::tempdir().unwrap();
    let hand = hand(state.path());
    let bytes = vec![3; 9000];
    let blob = digest(&bytes);
    let manifest = Manifest {
        recipe: "tiny".into(),
        source: "a box".into(),
        imported: jiff::Timestamp::UNIX_EPOCH,
        pinned_here: true,
        commit: None,
        files: vec![StoredFile { name: "model.gguf".into(), size: 9000, sha256: blob }],
    };
    let list = serde_json::to_vec(&manifest).unwrap();
    let held: HeldModel = good(&hand, "POST", "/weights/held", list.clone()).await;
    assert_eq!((held.lacking, held.files[0].bytes), (9000, 0));
    let piece = |from: usize, to: usize| {
        let path = format!("/weights/piece/{blob}/9000/{from}/{}", digest(&bytes[from..to]));
        (path, bytes[from..to].to_vec())
    };
    let (path, body) = piece(0, 5000);
    assert_eq!(good::<Taken>(&hand, "PUT", &path, body.clone()).await, Taken::Here(5000));
    let judging = format!("/weights/judge/{blob}/9000");
    let judged: Option<Judged> = good(&hand, "POST", &judging, Vec::new()).await;
    assert_eq!(judged, Some(Judged::Lacking));
    // Once more, and it says where to go on.
    assert_eq!(good::<Taken>(&hand, "PUT", &path, body).await, Taken::At(5000));
    let (path, mut body) = piece(5000, 9000);
    body[7] ^= 1;
    assert_eq!(good::<Taken>(&hand, "PUT", &path, body).await, Taken::Flipped);
    let (path, body) = piece(5000, 9000);
    assert_eq!(good::<Taken>(&hand, "PUT", &path, body).await, Taken::Here(9000));
    assert_ne!(ask(&hand, "POST", "/weights/adopt", list.clone()).await.0, StatusCode::OK);
    let judged: Option<Judged> = good(&hand, "POST", &judging, Vec::new()).await;
    assert_eq!(judged, Some(Judged::Whole));
    let () = good(&hand, "POST", "/weights/adopt", list).await;
    let store = Store::open(state.path().join("weights")).unwrap();
    assert_eq!(store.manifest("tiny").unwrap(), Some(manifest));
}

#[tokio::test]
async fn a_model_without_room_is_refused_with_figures_and_a_hostile_list_and_name_at_all() {
    let state = tempfile::tempdir().unwrap();
    let hand = hand(state.path());
    let list = |name: &str, size: u64| {
        format!(
            r#"{{"recipe":"tiny","source":"a box","imported":"1970-01-01T00:00:00Z","pinned_here":true,"file":[{{"name":"{name}","size":{size},"sha256":"{}"}}]}}"#,
            "ab".repeat(32)
        )
        .into_bytes()
    };
    let (status, said) = ask(&hand, "POST", "/weights/held", list("model.gguf", 1 << 60)).await;
    let said = String::from_utf8(said).unwrap();
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE);
    assert!(said.contains("MiB are lacking"), "{said}");
    for path in ["/weights/held", "/weights/adopt"] {
        for bad in [list("../../../etc/passwd", 1), b"[]".to_vec(), Vec::new()] {
            assert!(!ask(&hand, "POST", path, bad).await.0.is_success(), "{path}");
        }
    }
    let good = "ab".repeat(32);
    for path in [
        format!("/weights/piece/..%2F..%2Fpasswd/1/0/{good}"),
        format!("/weights/piece/{good}/1/0/xyz"),
        format!("/weights/piece/{good}/x/0/{good}"),
    ] {
        assert_eq!(ask(&hand, "PUT", &path, b"x".to_vec()).await.0, StatusCode::BAD_REQUEST);
    }
    let path = format!("/weights/piece/{good}/99999999/0/{good}");
    let too_long = ask(&hand, "PUT", &path, vec![0; 9 << 20]).await;
    assert_eq!(too_long.0, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_spare_gives_something_back_only_when_it_serves_no_more() {
    let state = tempfile::tempdir().unwrap();
    std::fs::create_dir(state.path().join("spare")).unwrap();
    let hand = hand(state.path());
    assert_eq!(good::<Option<Given>>(&hand, "GET", "/given", Vec::new()).await, None);
    let mut term = Term::first(Side::Spare);
    term.raise();
    let mut term = term.serving();
    term.keep(state.path()).unwrap();
    assert_eq!(good::<Option<Given>>(&hand, "GET", "/given", Vec::new()).await, None);
    term.give("1a2b".to_owned());
    term.keep(state.path()).unwrap();
    let given = Given { term: 3, snapshot: "1a2b".to_owned() };
    assert_eq!(good::<Option<Given>>(&hand, "GET", "/given", Vec::new()).await, Some(given));
}
