// Puts each part in its place when it has changed. What somebody is filling in stays.
"use strict";
const live = new EventSource("live");
const state = document.getElementById("state");
const waiting = new Map();

function inUse(part) {
  return part.contains(document.activeElement) && document.activeElement.matches("input, button, summary") ||
    part.querySelector("details[open]") !== null;
}

function place(id, html) {
  const part = document.getElementById(id);
  if (!part) return;
  if (inUse(part)) { waiting.set(id, html); return; }
  waiting.delete(id);
  part.innerHTML = html;
}

live.onmessage = (event) => {
  const { id, html } = JSON.parse(event.data);
  place(id, html);
};
live.onopen = () => { state.textContent = ""; };
live.onerror = () => { state.textContent = "The daemon does not answer; what you see is old."; };
document.addEventListener("toggle", () => {
  for (const [id, html] of [...waiting]) place(id, html);
}, true);
