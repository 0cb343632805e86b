// Verify a webhook with the public JavaScript libraries: each accepts it and rejects another body.
const { readFileSync } = require('node:fs')
const { createRequire } = require('node:module')

const from = createRequire(`${process.cwd()}/`)
const delivery = JSON.parse(readFileSync(0, 'utf8'))
const accepted = []
for (const name of ['standardwebhooks', 'svix']) {
  const webhook = new (from(name).Webhook)(delivery.secret)
  webhook.verify(delivery.body, delivery.headers)
  try {
    webhook.verify(delivery.body.replace('webhook.test', 'webhook.tost'), delivery.headers)
  } catch {
    accepted.push(name)
  }
}
console.log(JSON.stringify(accepted))
