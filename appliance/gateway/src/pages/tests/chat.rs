//! Talking with the model in the browser.

use super::*;

#[tokio::test]
async fn the_chat_streams_what_the_model_says_as_harmless_html() {
    let place = place().await;
    place.gateway.members.set_metering(true);
    let body = serde_json::json!({ "model": "", "messages": [
        { "role": "user", "content": "**bold** <img src=x onerror=alert(1)> [x](javascript:alert(1))" },
    ]});
    let response = place
        .send(
            Method::POST,
            "/chat/stream",
            Some(&place.member.1),
            "application/json",
            &body.to_string(),
        )
        .await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let (status, events) = read(response).await;
    assert_eq!(status, StatusCode::OK);
    assert!(events.contains("event: draw") && events.contains("event: end"), "{events}");
    assert!(events.contains("<strong>bold</strong>"));
    let blocks: String = events
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter_map(|data| serde_json::from_str::<serde_json::Value>(data).ok())
        .map(|value| value["blocks"].to_string())
        .collect();
    assert!(!blocks.contains("<img") && !blocks.contains("href=\\\"javascript"), "{blocks}");
    assert!(events.contains("\"tokens\":4"));
}

#[tokio::test]
async fn the_chat_works_without_javascript() {
    let place = place().await;
    let (status, page) = place.post("/chat", Some(&place.member.1), "message=one+*two*").await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("one <em>two</em>") && page.contains("name=\"conversation\""));
    let (status, page) =
        place.post("/chat", Some(&place.member.1), "message=x&conversation=%7B").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("begin a new one"));
}

#[tokio::test]
async fn a_conversation_with_nobody_or_a_third_speaker_is_refused() {
    let place = place().await;
    for body in
        ["{}", "[", r#"{"messages":[]}"#, r#"{"messages":[{"role":"system","content":"x"}]}"#]
    {
        let response = place
            .send(Method::POST, "/chat/stream", Some(&place.member.1), "application/json", body)
            .await;
        assert!(response.status().is_client_error(), "{body}: {}", response.status());
    }
}

#[tokio::test]
async fn a_tool_is_told_what_the_model_holds_on_this_machine_where_that_is_less_than_it_was_made_for()
 {
    let place = place().await;
    let member = Some(place.member.1.as_str());
    let (_, page) = place.get("/connect", member).await;
    assert!(page.contains("CLAUDE_CODE_MAX_CONTEXT_TOKENS=4096\n"), "{page}");
    assert!(page.contains("holds on this machine") && page.contains("holds too little"), "{page}");
    // An engine that says nothing keeps nobody waiting, and then it is what the recipe says.
    let place = self::place().await;
    let socket = Sockets::of(&place.gateway.state).engine(&"fast".parse().unwrap());
    std::fs::remove_file(&socket).unwrap();
    let _silent = tokio::net::UnixListener::bind(&socket).unwrap();
    let (_, page) = place.get("/connect", Some(place.member.1.as_str())).await;
    assert!(page.contains("CLAUDE_CODE_MAX_CONTEXT_TOKENS=8192\n"), "{page}");
    assert!(page.contains("for how much this one was made"), "{page}");
}
