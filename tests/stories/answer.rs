//! A member's first answers: by curl, by the official SDK, streamed and not.

use polder_stories::{Running, chat, python};
use serde_json::json;

#[test]
fn a_member_gets_a_streamed_answer_through_the_official_openai_sdk() {
    let state = tempfile::tempdir().unwrap();
    let (_running, up) = Running::ready(state.path());
    let program = r#"
import os, ssl, openai
client = openai.OpenAI(base_url=os.environ["URL"] + "/v1", api_key=os.environ["KEY"],
                       http_client=openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=os.environ["CA"])))
assert [m.id for m in client.models.list()] == [os.environ["MODEL"]]
ask = dict(model=os.environ["MODEL"], temperature=0, max_tokens=24,
           messages=[{"role": "user", "content": "What is the capital of France?"}])
whole = client.chat.completions.create(**ask)
words, finish, usage, chunks = "", None, None, 0
for chunk in client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ask):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        chunks += 1
        words += choice.delta.content or ""
        finish = choice.finish_reason or finish
assert words == whole.choices[0].message.content, (words, whole)
assert finish == whole.choices[0].finish_reason
numbers = lambda usage: (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
assert numbers(usage) == numbers(whole.usage) and usage.completion_tokens > 0, (usage, whole.usage)
cached = [usage.prompt_tokens_details.cached_tokens for usage in (whole.usage, usage)]
assert cached[0] == 0 and 0 < cached[1] < usage.prompt_tokens, cached
assert chunks > 3, "the answer came in one piece"
print(words)
"#;
    let output = python(
        program,
        &[
            ("URL", &up.url),
            ("KEY", &up.api_key),
            ("CA", up.ca_file.to_str().unwrap()),
            ("MODEL", &up.model),
        ],
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("Paris"), "{output:?}");
}

#[test]
fn a_member_gets_a_streamed_answer_through_the_official_anthropic_sdk() {
    let state = tempfile::tempdir().unwrap();
    let (_running, up) = Running::ready(state.path());
    let program = r#"
import os, ssl, anthropic
trust = anthropic.DefaultHttpxClient(verify=ssl.create_default_context(cafile=os.environ["CA"]))
ask = dict(model=os.environ["MODEL"], max_tokens=24, extra_body={"temperature": 0},
           system="x-anthropic-billing-header: cc_version=2.1; cch=00001;\nAnswer in one sentence.",
           messages=[{"role": "user", "content": "What is the capital of France?"}])
for credential in ("api_key", "auth_token"):
    client = anthropic.Anthropic(base_url=os.environ["URL"], http_client=trust, **{credential: os.environ["KEY"]})
    whole = client.messages.create(**ask)
    with client.messages.stream(**ask) as stream:
        words = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert words == whole.content[0].text and last.stop_reason == whole.stop_reason, (words, whole)
    total = lambda usage: usage.input_tokens + usage.cache_read_input_tokens
    assert total(last.usage) == total(whole.usage) and last.usage.cache_read_input_tokens > 0, last.usage
    assert last.usage.output_tokens == whole.usage.output_tokens > 0
    counted = client.messages.count_tokens(model=ask["model"], system=ask["system"], messages=ask["messages"])
    assert counted.input_tokens == total(whole.usage), counted
    try:
        client.messages.create(**{**ask, "model": "claude-6"})
        raise SystemExit("a model that is not there answered")
    except anthropic.NotFoundError as refused:
        assert refused.body["error"]["type"] == "not_found_error", refused.body
print(words)
"#;
    let output = python(
        program,
        &[
            ("URL", &up.url),
            ("KEY", &up.api_key),
            ("CA", up.ca_file.to_str().unwrap()),
            ("MODEL", &up.model),
        ],
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("Paris"), "{output:?}");
}

#[test]
fn curl_with_the_printed_certificate_and_key_gets_an_answer() {
    let state = tempfile::tempdir().unwrap();
    let (_running, up) = Running::ready(state.path());
    let output = std::process::Command::new("curl")
        .args(["-sS", "--fail-with-body", "--cacert"])
        .arg(&up.ca_file)
        .args([
            "-H",
            &format!("Authorization: Bearer {}", up.api_key),
            "-H",
            "Content-Type: application/json",
        ])
        .args(["-d", &chat(&up.model, "Say hello.", 8).to_string()])
        .arg(format!("{}/v1/chat/completions", up.url))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!answer["choices"][0]["message"]["content"].as_str().unwrap().is_empty());
}

#[test]
fn the_same_seed_gives_the_same_answer_beside_other_peoples_requests() {
    let state = tempfile::tempdir().unwrap();
    let (_running, up) = Running::ready(state.path());
    let mut body = chat(&up.model, "Tell me a story about the sea.", 24);
    body["temperature"] = json!(0.9);
    body["seed"] = json!(7);
    let alone = up.client().post("/v1/chat/completions", &body).words();
    let together: Vec<String> = std::thread::scope(|scope| {
        let others: Vec<_> = (0..3)
            .map(|i| {
                let (client, model) = (up.client(), &up.model);
                scope.spawn(move || client.chat(model, &format!("Count to {i}.")).words())
            })
            .collect();
        let same: Vec<_> = (0..2)
            .map(|_| {
                let (client, body) = (up.client(), &body);
                scope.spawn(move || client.post("/v1/chat/completions", body).words())
            })
            .collect();
        others.into_iter().for_each(|o| drop(o.join().unwrap()));
        same.into_iter().map(|s| s.join().unwrap()).collect()
    });
    assert_eq!(together, [alone.clone(), alone]);
}

#[test]
fn what_the_box_cannot_do_is_refused_by_name_and_what_nobody_specified_is_named_and_ignored() {
    let state = tempfile::tempdir().unwrap();
    let (_running, up) = Running::ready(state.path());
    let client = up.client();
    let mut body = chat(&up.model, "Hi.", 4);
    body["modalities"] = json!(["audio"]);
    let refused = client.post("/v1/chat/completions", &body);
    assert_eq!(refused.status, 400);
    assert!(refused.error().contains("modalities"), "{}", refused.error());

    let mut body = chat(&up.model, "Hi.", 4);
    body["next_months_field"] = json!(true);
    let taken = client.post("/v1/chat/completions", &body);
    assert_eq!(taken.status, 200, "{}", taken.text);
    assert_eq!(taken.header("x-polder-ignored"), Some("next_months_field"));

    let wrong = client.chat("gpt-6", "Hi.");
    assert_eq!(wrong.status, 404);
    assert!(wrong.error().contains(&up.model), "the answer names what is there: {}", wrong.error());

    let nobody = client.with_key(None).chat(&up.model, "Hi.");
    assert_eq!(nobody.status, 401);
    assert!(nobody.header("www-authenticate").is_some());
}
