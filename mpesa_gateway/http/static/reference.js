// Lets the reader of the reference try each call against the gateway that the page comes from. The key that is typed
// stays in this page: it is stored nowhere, and gone when the page is.
"use strict"

const base = location.pathname.replace(/\/schema\/?$/, "")
const key = document.querySelector("input[name=key]")
let asked

const description = () => (asked ??= fetch(`${base}/schema/openapi.json`).then((answer) => answer.json()))

const made = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties)
  element.append(...children)
  return element
}

const field = (parameter) => {
  const schema = parameter.schema ?? {}
  const example = parameter.example ?? schema.examples?.[0] ?? ""
  const input = made("input", {
    name: parameter.name,
    required: Boolean(parameter.required),
    placeholder: String(example),
    autocomplete: "off",
    spellcheck: false,
  })
  input.dataset.place = parameter.in
  // A new name for each visit: a known one would only repeat what it did before.
  if (parameter.name === "Idempotency-Key") input.value = `try-${Date.now().toString(36)}`
  return made("label", {}, parameter.name, input)
}

// The body that stands in the line for a shell, without its quotes, on several lines.
const exampleOf = (line) => {
  const quoted = line.match(/ -d '([\s\S]*)'$/)?.[1].replaceAll(`'"'"'`, "'") ?? "{}"
  return JSON.stringify(JSON.parse(quoted), null, 2)
}

const send = async (form, method, path, body, out) => {
  let where = path
  const query = new URLSearchParams()
  const headers = {}
  if (key.value.trim()) headers["X-API-Key"] = key.value.trim()
  for (const input of form.querySelectorAll("input[data-place]")) {
    const value = input.value.trim()
    if (input.dataset.place === "path") where = where.replace(`{${input.name}}`, encodeURIComponent(value))
    else if (value && input.dataset.place === "query") query.append(input.name, value)
    else if (value) headers[input.name] = value
  }
  if (body) headers["Content-Type"] = "application/json"
  const asking = query.size ? `?${query}` : ""
  const began = performance.now()
  out.textContent = "…"
  try {
    const answer = await fetch(base + where + asking, {
      method: method.toUpperCase(),
      headers,
      body: body?.value,
      credentials: "omit",
    })
    let text = await answer.text()
    try {
      text = JSON.stringify(JSON.parse(text), null, 2)
    } catch {
      // No JSON: it is shown as it came.
    }
    out.textContent = `${answer.status} ${answer.statusText} · ${Math.round(performance.now() - began)} ms\n\n${text}`
  } catch (problem) {
    out.textContent = `No answer: ${problem.message}`
  }
}

const build = async (details, method, path) => {
  const operation = (await description()).paths[path][method]
  const form = made("form")
  form.append(...(operation.parameters ?? []).map(field))
  const body = operation.requestBody && made("textarea", { name: "body", rows: 8, spellcheck: false })
  if (body) {
    body.value = exampleOf(details.parentElement.querySelector("pre").textContent)
    form.append(made("label", { className: "wide" }, "Body", body))
  }
  const out = made("output")
  form.append(made("button", { textContent: "Send" }))
  form.addEventListener("submit", (event) => {
    event.preventDefault()
    send(form, method, path, body, out)
  })
  details.append(form, out)
}

for (const link of document.querySelectorAll("nav a")) {
  const [method, path] = Array.from(link.children, (part) => part.textContent)
  const details = made("details", {}, made("summary", { textContent: "Try it" }))
  details.addEventListener("toggle", () => build(details, method.toLowerCase(), path), { once: true })
  document.getElementById(link.hash.slice(1)).append(details)
}
key.closest("form").hidden = false
key.closest("form").addEventListener("submit", (event) => event.preventDefault())
