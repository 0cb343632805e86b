// A shop in Node 18 or newer, without packages: it requests a payment, then prints each order that a webhook reports as paid.
// Run: GATEWAY=http://127.0.0.1:8000 KEY=sk_test_… SECRET=whsec_… node shop.mjs ORDER
import { createServer } from 'node:http'
import { isOurs } from '../webhooks/verify.mjs'

const { GATEWAY, KEY, SECRET, PORT = '3000' } = process.env
const order = process.argv[2] ?? '1002'
const seen = new Set() // a real shop stores the ids in its database, in one transaction with the order

const server = createServer(async (request, response) => {
  const chunks = []
  for await (const chunk of request) chunks.push(chunk)
  const body = Buffer.concat(chunks) // the raw bytes: they are signed
  if (!isOurs(request.headers, body, SECRET)) return response.writeHead(401).end()
  const event = JSON.parse(body)
  if (event.type === 'payment.completed' && !seen.has(event.id)) console.log(`order ${event.data.metadata.order} is paid`)
  seen.add(event.id) // the same event can arrive twice
  response.writeHead(200).end()
})

server.listen(Number(PORT), '127.0.0.1', async () => {
  const answer = await fetch(`${GATEWAY}/v1/payments`, {
    method: 'POST',
    headers: { 'X-API-Key': KEY, 'Idempotency-Key': `order-${order}-1`, 'Content-Type': 'application/json' },
    body: JSON.stringify({ amount: 500, phone: '254700000000', metadata: { order } }),
    signal: AbortSignal.timeout(60_000), // the gateway waits for M-Pesa; without an answer, repeat with the same key
  })
  const { data, errors } = await answer.json()
  console.log(answer.status, data?.status ?? errors[0].message)
})
