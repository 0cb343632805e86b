// The page updates by itself: on events of a stream, or every two seconds without one.
"use strict";

const desk = document.querySelector("main[data-part]");
const title = document.title;
const longest = 200;
let isAsking = false;
let isWanted = false;
let polling = 0;

async function update() {
  if (isAsking) {
    isWanted = true;
    return;
  }
  isAsking = true;
  const text = await fetchPart();
  isAsking = false;
  if (text !== undefined) {
    const seen = new DOMParser().parseFromString(text, "text/html");
    showScreen(seen.getElementById("screen"));
    showLog(seen.getElementById("lines"));
  }
  if (isWanted) {
    isWanted = false;
    update();
  }
}

async function fetchPart() {
  try {
    const answer = await fetch(desk.dataset.part, { headers: { Accept: "text/html" } });
    return answer.ok ? await answer.text() : undefined;
  } catch {
    return undefined; // The server is unreachable: the next update retries.
  }
}

function showScreen(lit) {
  const screen = document.getElementById("screen");
  if (screen.dataset.state === lit.dataset.state) return;
  const old = screen.querySelector("form[data-prompt]")?.elements;
  const now = lit.querySelector("form[data-prompt]")?.elements;
  const isSame = old && now && old.checkout_request_id.value === now.checkout_request_id.value;
  const isAt = old && old.pin === document.activeElement;
  // Keeps a half-typed PIN.
  if (isSame) now.pin.value = old.pin.value;
  screen.replaceWith(lit);
  const money = desk.querySelector("input[name=balance]");
  if (money.value === money.defaultValue) money.value = money.defaultValue = lit.dataset.balance;
  desk.querySelector("[role=status]").textContent = lit.dataset.said;
  if (isSame ? isAt : now && document.activeElement === document.body) now.pin.focus();
  if (now && !isSame && !document.hasFocus()) document.title = `● ${title}`;
}

function showLog(lines) {
  const log = document.getElementById("lines");
  const list = log.querySelector("ol");
  const updated = lines.querySelector("ol");
  if (!list || !updated) {
    if (list || updated) log.replaceWith(lines);
    return;
  }
  const known = new Set([...list.children].map((line) => line.dataset.key));
  const fresh = [...updated.children].filter((line) => !known.has(line.dataset.key));
  const more = log.querySelector("header button");
  const show = () => {
    list.prepend(...fresh);
    while (list.children.length > longest) list.lastElementChild.remove();
    more.hidden = true;
  };
  // The list does not move while it is hovered, focused or open.
  const isRead = list.matches(":hover, :focus-within") || list.querySelector("details[open]");
  if (!fresh.length || !isRead) return show();
  more.hidden = false;
  more.textContent = `${fresh.length} new – show`;
  more.onclick = show;
}

function poll() {
  if (!polling) polling = setInterval(() => document.hidden || update(), 2000);
}

addEventListener("focus", () => (document.title = title));

if ("EventSource" in window) {
  const stream = new EventSource(desk.dataset.stream);
  stream.addEventListener("changed", () => {
    clearInterval(polling);
    polling = 0;
    update();
  });
  stream.addEventListener("error", poll);
} else {
  poll();
}
