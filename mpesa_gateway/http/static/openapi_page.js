// Starts the API reader with this gateway's OpenAPI document. Every request goes to this gateway.
"use strict"

const base = location.href.replace(/\/schema\/?([?#].*)?$/, "")

Scalar.createApiReference("#reference", {
  url: `${base}/schema/openapi.json`,
  // The address in the browser: the policy allows requests to this origin only.
  servers: [{ url: base }],
  agent: { disabled: true },
  mcp: { disabled: true },
  telemetry: false,
  withDefaultFonts: false,
  persistAuth: false,
  hideClientButton: true,
  hideModels: true,
  showDeveloperTools: "never",
  documentDownloadType: "json",
  defaultHttpClient: { targetKey: "shell", clientKey: "curl" },
  // Scalar's placeholder for a key is a joke in base64.
  customCss: '[placeholder^="QUxM"]::placeholder { color: transparent !important }',
})
