// Makes the chat page stream. Without it the form sends the whole page anew.
"use strict";
(() => {
  const form = document.getElementById("ask");
  if (!form || !window.ReadableStream) return;
  const talk = document.getElementById("talk");
  const box = document.getElementById("message");
  const send = document.getElementById("send");
  const stop = document.getElementById("stop");
  const news = document.getElementById("news");
  const kept = form.elements.namedItem("conversation");
  const turns = kept ? JSON.parse(kept.value) : [];
  let running = null;
  for (const hint of form.querySelectorAll(".script-only")) hint.hidden = false;

  const say = (who, name) => {
    const said = document.createElement("div");
    said.className = "said " + who;
    const by = document.createElement("span");
    by.className = "by";
    by.textContent = name;
    const words = document.createElement("div");
    words.className = "words";
    said.append(by, words);
    talk.append(said);
    return { said, by, words };
  };

  // Follows the answer only while the reader is at its end.
  const atEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 120;
  const follow = (was) => { if (was) scrollTo(0, document.documentElement.scrollHeight); };

  const draw = (words, { keep, blocks }) => {
    while (words.children.length > keep) words.lastElementChild.remove();
    for (const html of blocks) {
      const block = document.createElement("div");
      // Made by the box, where HTML of the model was turned into text.
      block.innerHTML = html;
      words.append(block);
    }
  };

  const listen = async (answer, handle) => {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      let end;
      while ((end = held.indexOf("\n\n")) >= 0) {
        const lines = held.slice(0, end).split("\n");
        held = held.slice(end + 2);
        const pick = (name) => lines.filter((l) => l.startsWith(name + ":")).map((l) => l.slice(name.length + 1).trimStart()).join("\n");
        const data = pick("data");
        if (data) handle(pick("event"), JSON.parse(data));
      }
    }
  };

  const busy = (on) => {
    send.hidden = on;
    stop.hidden = !on;
    talk.setAttribute("aria-busy", String(on));
  };

  const ask = async (message) => {
    document.getElementById("hello")?.remove();
    say("you", "You").words.textContent = message;
    turns.push({ role: "user", content: message });
    const { said, by, words } = say("box", "The model");
    said.classList.add("waiting");
    words.classList.add("markdown");
    follow(true);
    running = new AbortController();
    busy(true);
    let text = "", problem = "", ended = false;
    try {
      const answer = await fetch(form.dataset.stream, {
        method: "POST",
        credentials: "same-origin",
        headers: { "content-type": "application/json", "x-piece": "1" },
        body: JSON.stringify({ model: form.elements.namedItem("model")?.value || "", messages: turns }),
        signal: running.signal,
      });
      if (answer.status === 401) { location.assign("/sign-in?next=/chat"); return; }
      if (!answer.ok) {
        const why = await answer.json().catch(() => ({}));
        throw new Error(why.why || "The box did not take the question (" + answer.status + ").");
      }
      await listen(answer, (event, data) => {
        const was = atEnd();
        if (event === "draw") {
          text += data.text;
          if (text) said.classList.remove("waiting");
          by.textContent = data.thinking ? "The model is thinking" : "The model";
          draw(words, data);
        } else if (event === "end") {
          ended = true;
          if (data.tokens && data.seconds > 0) by.textContent = "The model · " + data.tokens + " tokens, " + (data.tokens / data.seconds).toFixed(1) + " a second";
          if (data.finish === "length") problem = "The answer reached its greatest length and was cut off here.";
        } else if (event === "trouble") {
          ended = true;
          problem = data.why;
        }
        follow(was);
      });
      if (!ended) problem = "The line to the box broke in the middle of the answer.";
    } catch (error) {
      if (error.name === "AbortError") by.textContent = "The model, stopped";
      else problem = error instanceof TypeError ? "The box cannot be reached. Is it on, and are you on its network?" : error.message;
    }
    said.classList.remove("waiting");
    if (text) turns.push({ role: "assistant", content: text });
    else turns.pop();
    if (problem) {
      const why = document.createElement("p");
      why.className = "error";
      why.textContent = problem;
      said.append(why);
      if (!text && !box.value) box.value = message;
    }
    running = null;
    busy(false);
    news.textContent = problem || "The answer is complete.";
    follow(atEnd());
    box.focus();
  };

  const grow = () => {
    box.rows = Math.min(12, Math.max(2, box.value.split("\n").length));
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const message = box.value.trim();
    if (running || !message) return;
    box.value = "";
    grow();
    ask(message);
  });
  box.addEventListener("input", grow);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  stop.addEventListener("click", () => running?.abort());
  addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
})();
