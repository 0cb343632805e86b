// Operator pages: busy indicator, keyboard shortcuts, copy buttons, and no polling in the background.
"use strict";

const root = document.documentElement;

addEventListener("pageshow", () => {
  delete root.dataset.busy;
  for (const button of document.querySelectorAll("button[aria-busy]")) button.removeAttribute("aria-busy");
});

document.addEventListener("submit", (event) => {
  const button = event.submitter ?? event.target.querySelector("button");
  if (button?.getAttribute("aria-busy")) return event.preventDefault(); // ignore repeated clicks
  button?.setAttribute("aria-busy", "true");
  root.dataset.busy = "";
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  const isDownload = link.hasAttribute("download") || link.target;
  if (!isDownload && link.origin === location.origin && !link.getAttribute("href").startsWith("#")) root.dataset.busy = "";
});

// A page in the background does not poll.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden) event.preventDefault();
});

// While an order is typed, new rows wait: they would move the field under the finger.
document.addEventListener("htmx:configRequest", (event) => {
  const { elt, parameters } = event.detail;
  const fields = [...document.querySelectorAll("[data-counter] input[name=order]")];
  const isTyped = fields.some((field) => field.value || field === document.activeElement);
  if ("still" in elt.dataset && isTyped) parameters.busy = "true";
});

// The session has expired: polling would swap in the login page.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.xhr.responseURL.endsWith("/login")) {
    event.detail.shouldSwap = false;
    location.reload();
  }
});

// -- keyboard ---------------------------------------------------------------------------------------------------------

const isTyping = (element) => /^(INPUT|SELECT|TEXTAREA)$/.test(element.tagName) || element.isContentEditable;
let goes = 0;

function step(by) {
  const links = [...document.querySelectorAll("main tbody tr > :first-child a")];
  const at = links.indexOf(document.activeElement);
  links[Math.min(links.length - 1, Math.max(0, at + by))]?.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.metaKey || event.ctrlKey || event.altKey || isTyping(event.target)) return;
  const help = document.getElementById("keys");
  if (Date.now() - goes < 1500) {
    goes = 0;
    const link = document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"]`);
    if (link) {
      event.preventDefault();
      link.click();
    }
    return;
  }
  if (event.key === "/") document.querySelector("form[role=search] input[type=search]")?.focus();
  else if (event.key === "g") goes = Date.now();
  else if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "n") document.querySelector("[data-newer] a")?.click();
  else if (event.key === "?" && help) help.open ? help.close() : help.showModal();
  else return;
  event.preventDefault();
});

document.getElementById("keys")?.addEventListener("click", (event) => {
  if (event.target.closest("button")) event.currentTarget.close();
});

// -- copying ----------------------------------------------------------------------------------------------------------

for (const shown of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) break;
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.quiet = "";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(shown.textContent.trim());
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  shown.after(" ", button);
}
