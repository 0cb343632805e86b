// Starts the API reader with this gateway's OpenAPI document. Every request goes to this gateway.
"use strict"

const base = location.href.replace(/\/schema\/?([?#].*)?$/, "")

Scalar.createApiReference("#reference", {
  url: `${base}/schema/openapi.json`,
  // The content security policy allows requests to this origin only.
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
  // Hides Scalar's placeholder for a key.
  customCss: '[placeholder^="QUxM"]::placeholder { color: transparent !important }',
})
