// page.js moves the bar. This says aloud, to those who listen, each new step and each tenth of one.
"use strict";
{
  const region = document.getElementById("progress");
  const say = document.getElementById("say");
  const tell = () => {
    const now = region.querySelector("[data-say]")?.dataset.say ?? "";
    if (now && say.textContent !== now) say.textContent = now;
  };
  if (region && say) new MutationObserver(tell).observe(region, { childList: true });
}
