// Verify a webhook with the public JavaScript libraries: each accepts it, and refuses another body.
const { readFileSync } = require('node:fs')
const { createRequire } = require('node:module')

const from = createRequire(`${process.cwd()}/`)
const told = JSON.parse(readFileSync(0, 'utf8'))
const accepted = []
for (const name of ['standardwebhooks', 'svix']) {
  const webhook = new (from(name).Webhook)(told.secret)
  webhook.verify(told.body, told.headers)
  try {
    webhook.verify(told.body.replace('webhook.test', 'webhook.tost'), told.headers)
  } catch {
    accepted.push(name)
  }
}
console.log(JSON.stringify(accepted))
