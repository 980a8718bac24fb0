// The link from the machine's screen carries the code behind the #, which browsers never send.
// This fills it in and goes on, so that nobody has to type.
"use strict";
{
  const form = document.getElementById("claim");
  const found = /^#claim=([A-Za-z0-9-]{1,64})$/.exec(location.hash);
  if (found) {
    // Out of the address bar and the history: it is used up in a moment anyway.
    history.replaceState(null, "", location.pathname);
    if (form) {
      form.elements.code.value = found[1];
      form.requestSubmit();
    }
  }
}
