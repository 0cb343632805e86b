// Prints the verdict of examples/webhooks/verify.mjs about each vector.
import { readFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'

const [checker, vectors] = process.argv.slice(2)
const { isOurs } = await import(pathToFileURL(checker))
for (const line of readFileSync(vectors, 'utf8').trimEnd().split('\n').slice(1)) {
  const [name, , now, secret, timestamp, signature, previous, body] = line.split('\t')
  const given = { 'x-payments-timestamp': timestamp, 'x-payments-signature': signature, 'x-payments-signature-previous': previous }
  const headers = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== ''))
  console.log(`${name} ${isOurs(headers, Buffer.from(body, 'base64'), secret, Number(now))}`)
}
