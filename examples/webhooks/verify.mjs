// Verification of a webhook's signature, complete and ready to copy into an application on Node.
import { createHmac, timingSafeEqual } from 'node:crypto'

const TOLERANCE = 300 // seconds that a webhook may be old, or a clock wrong

// `body` is a Buffer, exactly as it was received (in Express: express.raw({ type: 'application/json' })).
// `headers` are those of Node, with lower-case names; `now` is in seconds since 1970.
// For a day after a secret was replaced, the old one signs in a header of its own.
export function isOurs(headers, body, secret, now = Date.now() / 1000) {
  const timestamp = headers['x-payments-timestamp'] ?? ''
  if (!/^[0-9]+$/.test(timestamp) || Math.abs(now - Number(timestamp)) > TOLERANCE) return false
  const digest = createHmac('sha256', secret).update(`${timestamp}.`).update(body).digest('hex')
  const expected = Buffer.from(`sha256=${digest}`)
  return ['x-payments-signature', 'x-payments-signature-previous'].some((name) => {
    const signature = Buffer.from(headers[name] ?? '')
    return signature.length === expected.length && timingSafeEqual(signature, expected)
  })
}
