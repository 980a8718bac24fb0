// Signs what the box asks for with the key in the file, here in the browser. The key is not sent.
"use strict";
{
  const form = document.getElementById("owner");
  const file = document.getElementById("key-file");
  const error = document.getElementById("key-error");
  const kind = { name: "ECDSA", namedCurve: "P-256" };

  const read = async chosen => {
    let key;
    try {
      key = JSON.parse(await chosen.text());
    } catch (_) {
      throw new Error("That is not a key file: choose the polder-owner-key.json that seed.html saved.");
    }
    if (key.polder !== "owner key" || key.version !== 1) {
      throw new Error("That is not an owner's key: choose the polder-owner-key.json that seed.html saved.");
    }
    return crypto.subtle.importKey("jwk", key.private, kind, false, ["sign"]);
  };
  const sign = async chosen => {
    const key = await read(chosen);
    const text = new TextEncoder().encode(form.dataset.text);
    const signature = await crypto.subtle.sign({ name: "ECDSA", hash: "SHA-256" }, key, text);
    return Array.from(new Uint8Array(signature), byte => byte.toString(16).padStart(2, "0")).join("");
  };

  form.addEventListener("submit", async event => {
    event.preventDefault();
    error.hidden = true;
    try {
      if (!file.files.length) throw new Error("Choose the key file first.");
      const proof = document.createElement("input");
      proof.type = "hidden";
      proof.name = "signature";
      proof.value = await sign(file.files[0]);
      form.append(proof);
      form.submit();
    } catch (problem) {
      error.textContent = problem.message || "This browser cannot use that key.";
      error.hidden = false;
    }
  });
}
