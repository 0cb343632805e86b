// Renders SAQ's pages (app.js) with our markup inside the layout. Actions carry the session's form token.
"use strict";

const saq = document.getElementById("app");
const root_path = new URL(saq.dataset.root, location.href).pathname;

{
  const request = window.fetch;
  const refusal = document.getElementById("refusal");
  const token = document.querySelector("input[name=form_token]").value;

  window.fetch = async (address, options = {}) => {
    if (options.method) options.headers["X-Form-Token"] = token;
    const answer = await request(address, options);
    if (answer.status === 401) location.reload(); // the session has ended
    if (answer.ok) return answer;
    const error = (await answer.json()).errors[0].message;
    if (options.method) {
      refusal.textContent = error;
      refusal.hidden = false;
    }
    return Response.json({ error });
  };

  const nairobi = new Intl.DateTimeFormat("en-GB", {
    timeZone: "Africa/Nairobi", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit",
  });
  Date.prototype.toLocaleString = function () {
    return nairobi.format(this).replace(",", "");
  };

  const tones = { complete: "good", failed: "bad", aborted: "bad", aborting: "warn", active: "wait", queued: "wait", scheduled: "wait" };
  const draw = snabbdom.h;
  const nothing = () => draw("!");
  const rows = (part) => part.children ?? [];

  const button = (data, text) => {
    if (!("mayAct" in saq.dataset)) return nothing();
    const isAbort = text === "Abort";
    const click = async (event) => {
      refusal.hidden = true;
      if (!isAbort || confirm("Abort this job? A sweeper takes up again what Postgres still owes.")) await data.on.click(event);
    };
    return draw("button", { on: { click }, attrs: { type: "button", [isAbort ? "data-danger" : "data-quiet"]: "" } }, text);
  };

  const link = (data, children) => {
    if (data.attrs?.role === "button") return button(data, children);
    const href = data.props.href.startsWith("/queues/") ? root_path + data.props.href : data.props.href;
    // Without SAQ's click handler, each address is loaded as a page of its own.
    const made = (text) => draw("a", { props: { href } }, text);
    return children.sel === "td" ? draw("td", [made(children.text)]) : made(children);
  };

  const table = (parts) => {
    const [head, body] = parts;
    if (!rows(body).length) return draw("section", { attrs: { "data-empty": "" } }, "None");
    const titles = rows(rows(head)[0]);
    for (const title of titles) title.sel = "th";
    for (const row of rows(body)) {
      row.children.forEach((cell, at) => {
        const label = titles[at].text;
        if (at || typeof cell.text === "number") cell.data = { ...cell.data, attrs: { "data-label": label } };
        if (label === "Args" && cell.text) cell.data = { ...cell.data, attrs: { "data-label": label, "data-wrap": "" } };
        if (label === "Status" && cell.text) row.children[at] = draw("td", cell.data, [draw("b", { attrs: { "data-tone": tones[cell.text] ?? "mute" } }, cell.text)]);
      });
    }
    const scrolled = draw("table", { attrs: { "data-cards": "" } }, [head, draw("tbody", rows(body))]);
    return draw("section", [draw("div", { attrs: { "data-scroll": "", tabindex: "0" } }, [scrolled])]);
  };

  snabbdom.h = (selector, data, children) => {
    const content = children ?? data;
    switch (selector) {
      case "nav.container": return nothing();
      case "main.container": return draw("div", { attrs: { "data-queue": "" } }, rows(content));
      case "a": return link(data, children);
      case "table": return table(content);
      case "figure": return content[0] ?? content;
      case "grid": return draw("p", { attrs: { "data-row": "" } }, content);
      case "p": return draw("pre", content);
      case "progress": return draw("span", `${Math.round(data.props.value * 100)} %`);
      case "details": return content[1].text ? draw("section", [draw("h2", content[0].text), content[1]]) : nothing();
      default: return children === undefined ? draw(selector, data) : draw(selector, data, children);
    }
  };
}
