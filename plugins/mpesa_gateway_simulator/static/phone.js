// The phone wakes up by itself: changes are told by a stream, or asked for every two seconds where there is none.
"use strict";

const desk = document.querySelector("main[data-part]");
let isAsking = false;
let isWanted = false;
let polling = 0;

async function look() {
  if (isAsking) {
    isWanted = true;
    return;
  }
  isAsking = true;
  try {
    const answer = await fetch(desk.dataset.part, { headers: { Accept: "text/html" } });
    if (answer.ok) show(new DOMParser().parseFromString(await answer.text(), "text/html"));
  } catch {
    // The server is away: the next look will tell.
  } finally {
    isAsking = false;
    if (isWanted) {
      isWanted = false;
      look();
    }
  }
}

function show(seen) {
  const screen = document.getElementById("screen");
  const lit = seen.getElementById("screen");
  // What is half typed stays: the screen changes when there is something else on it.
  if (screen.dataset.state !== lit.dataset.state) {
    const isNew = lit.querySelector("[data-prompt]") && !screen.querySelector("[data-prompt]");
    screen.replaceWith(lit);
    if (isNew && !document.hasFocus()) document.title = "● Simulated phone";
    if (isNew && document.activeElement === document.body) lit.querySelector("input[name=pin]").focus();
  }
  const log = document.getElementById("lines");
  const open = new Set([...log.querySelectorAll("details[open]")].map((one) => one.dataset.key));
  const lines = seen.getElementById("lines");
  for (const one of lines.querySelectorAll("details")) one.open = open.has(one.dataset.key);
  log.replaceWith(lines);
}

function poll() {
  if (!polling) polling = setInterval(() => document.hidden || look(), 2000);
}

addEventListener("focus", () => (document.title = document.title.replace("● ", "")));

if ("EventSource" in window) {
  const stream = new EventSource(desk.dataset.stream);
  stream.addEventListener("changed", () => {
    clearInterval(polling);
    polling = 0;
    look();
  });
  stream.addEventListener("error", poll);
} else {
  poll();
}
