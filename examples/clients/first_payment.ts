// A payment from start to end with types generated from the OpenAPI document: docs/clients.md.
// GATEWAY is the address of the gateway, KEY an API key. Run it with the simulator or in the sandbox.
import { randomUUID } from 'node:crypto'
import { setTimeout as wait } from 'node:timers/promises'
import createClient from 'openapi-fetch'
import type { components, paths } from './schema.js'

type Schemas = components['schemas']
type Payment = Schemas['PaymentView']
type Failure = Schemas['Failure']

const PATIENCE = 60 // seconds for a payer to type their PIN

const { GATEWAY, KEY, WEBHOOK_URL = 'http://127.0.0.1:8080/mpesa' } = process.env
if (!GATEWAY || !KEY) throw new Error('set GATEWAY and KEY')
const client = createClient<paths>({ baseUrl: GATEWAY, headers: { 'X-API-Key': KEY } })

// Returns a successful answer, throws an error for any other.
function good<T>({ data, error }: { data?: T; error?: Failure }): T {
  if (error) throw new Error(error.errors.map((problem) => `${problem.code}: ${problem.message}`).join('; '))
  if (data === undefined) throw new Error('an answer that the document does not contain')
  return data
}

function expect(truth: boolean, what: string): asserts truth {
  if (!truth) throw new Error(what)
}

async function pay(phone: string, amount: number): Promise<Payment> {
  const request = {
    params: { header: { 'Idempotency-Key': `order-${randomUUID()}` } },
    body: { amount, phone, reference: 'order 1041' },
  } as const
  const { data: payment } = good(await client.POST('/v1/payments', request))
  const { data: again } = good(await client.POST('/v1/payments', request))
  expect(again.id === payment.id, 'the same key returns the same payment')
  const place = { params: { path: { payment_id: payment.id } } }
  for (let second = 0; second < PATIENCE; second++) {
    const { data: found } = good(await client.GET('/v1/payments/{payment_id}', place))
    if (found.status !== 'pending') {
      expect(found.status === 'completed', `failed: ${found.failure_reason}`)
      console.log(`${found.id}: ${found.amount} ${found.currency}, receipt ${found.receipt}`)
      return found
    }
    await wait(1000)
  }
  throw new Error(`${payment.id} is still pending`)
}

// Returns the ids of all completed payments, page by page.
async function completed(): Promise<string[]> {
  const ids: string[] = []
  let cursor: string | null | undefined
  do {
    const query = { status: 'completed', limit: 1, ...(cursor && { cursor }) } as const
    const page = good(await client.GET('/v1/payments', { params: { query } }))
    ids.push(...page.data.map((payment) => payment.id))
    cursor = page.meta.next_cursor
  } while (cursor)
  return ids
}

async function refund(payment_id: string): Promise<void> {
  const { data: created } = good(
    await client.POST('/v1/refunds', {
      params: { header: { 'Idempotency-Key': `refund-${payment_id}` } },
      body: { payment_id, reason: 'ordered twice' },
    }),
  )
  const place = { params: { path: { refund_id: created.id } } }
  for (let second = 0; second < PATIENCE; second++) {
    const { data: found } = good(await client.GET('/v1/refunds/{refund_id}', place))
    if (found.status !== 'pending') {
      expect(found.status === 'completed', `failed: ${found.advice}`)
      console.log(`${found.id}: ${found.amount} ${found.currency} refunded`)
      return
    }
    await wait(1000)
  }
  throw new Error(`${created.id} is still pending`)
}

const endpoint = good(await client.PUT('/v1/merchant/webhook', { body: { webhook_url: WEBHOOK_URL } }))
console.log(`webhooks are sent to ${endpoint.data.webhook_url}`)
const first = await pay('254711000003', 500)
const second = await pay('254711000004', 250)
const [newest, older] = await completed()
expect(newest === second.id && older === first.id, 'the list starts with the newest')
await refund(first.id)

const { error } = await client.POST('/v1/payments', {
  params: { header: { 'Idempotency-Key': 'bad-phone' } },
  body: { amount: 1, phone: '12345' },
})
const problem = error?.errors[0]
const refused: Schemas['ErrorCode'] = 'VALIDATION_ERROR'
expect(problem?.code === refused && problem.field === 'phone', 'an invalid number was accepted')
console.log(`rejected as expected: ${problem.field} ${problem.message} (${error?.request_id})`)
