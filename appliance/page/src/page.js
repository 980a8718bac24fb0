// What pages gain where there is JavaScript; each works without. See the crate's first page.
"use strict";
(() => {
  const later = (work, ms) => setTimeout(() => (document.hidden ? later(work, ms) : work()), ms);

  const follow = (place) => {
    const every = Math.max(500, Number(place.dataset.every) || 2000);
    let wait = every;
    const look = async () => {
      try {
        const answer = await fetch(place.dataset.refresh, { credentials: "same-origin", headers: { "x-piece": "1" } });
        const next = answer.headers.get("x-polder-next");
        if (next && next.startsWith("/") && !next.startsWith("//")) { location.assign(next); return; }
        if (answer.redirected || answer.status === 401) { location.reload(); return; }
        if (!answer.ok) throw new Error(String(answer.status));
        const held = document.activeElement && place.contains(document.activeElement);
        const html = await answer.text();
        // Nothing is taken from under the fingers of somebody who is using it.
        if (!held) { place.innerHTML = html; ready(place); }
        place.classList.remove("stale");
        wait = every;
        if (place.querySelector("[data-done]")) return;
      } catch {
        place.classList.add("stale");
        wait = Math.min(wait * 2, 15000);
      }
      later(look, wait);
    };
    later(look, every);
  };

  const copy = async (button) => {
    const source = document.getElementById(button.dataset.copy);
    if (!source) return;
    let said = "Copied";
    try { await navigator.clipboard.writeText(source.textContent); }
    catch {
      const range = document.createRange();
      range.selectNodeContents(source);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      said = document.execCommand("copy") ? "Copied" : "Press Ctrl+C";
    }
    const was = button.textContent;
    button.textContent = said;
    setTimeout(() => { button.textContent = was; }, 2000);
  };

  const ready = (root) => {
    for (const button of root.querySelectorAll("[data-copy]")) button.hidden = false;
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copy(button);
  });
  // A list above the page shuts when one turns elsewhere.
  const shut = (but) => {
    for (const group of document.querySelectorAll("details.group[open]")) if (group !== but) group.open = false;
  };
  document.addEventListener("click", (event) => shut(event.target.closest("details.group")));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const open = document.querySelector("details.group[open]");
    if (open && open.contains(document.activeElement)) open.querySelector("summary").focus();
    shut(null);
  });
  document.addEventListener("submit", (event) => {
    const question = event.target.dataset.confirm;
    if (question && !confirm(question)) event.preventDefault();
  });
  ready(document);
  for (const place of document.querySelectorAll("[data-refresh]")) follow(place);
})();
