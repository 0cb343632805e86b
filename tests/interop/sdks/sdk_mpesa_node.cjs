// mpesa-node against the simulator: the calls of its README, with another base URL.
const { readFileSync } = require('node:fs')
const { createRequire } = require('node:module')

const from = createRequire(`${process.cwd()}/`)
const [phase, base] = process.argv.slice(2)
const inputs = JSON.parse(readFileSync(0, 'utf8'))
const Mpesa = from('mpesa-node')

const mpesaApi = new Mpesa({
  consumerKey: 'mpesa-node',
  consumerSecret: 'secret',
  environment: 'sandbox',
  shortCode: '174379',
  initiatorName: 'testapi',
  lipaNaMpesaShortCode: 174379,
  lipaNaMpesaShortPass: inputs.passkey,
  securityCredential: 'Safaricom999!*!',
  certPath: inputs.certificate,
})
mpesaApi.baseURL = base
const URL = inputs.url

async function main() {
  if (phase === 'push') {
    const testMSISDN = 254712345678
    const amount = 250
    const accountRef = Math.random().toString(35).substr(2, 7)
    return { push: (await mpesaApi.lipaNaMpesaOnline(testMSISDN, amount, URL + '/callback', accountRef)).data }
  }
  if (phase === 'c2b') {
    return {
      register: (await mpesaApi.c2bRegister(URL + '/confirmation', URL + '/validation')).data,
      simulate: (await mpesaApi.c2bSimulate(254712345678, 250, 'HOUSE7B')).data,
    }
  }
  if (phase !== 'after') return {}
  const { shortCode } = mpesaApi.configs
  return {
    query: (await mpesaApi.lipaNaMpesaQuery(inputs.push.CheckoutRequestID)).data,
    status: (await mpesaApi.transactionStatus(inputs.receipt, shortCode, 4, URL + '/timeout', URL + '/result')).data,
    reversal: (await mpesaApi.reversal(inputs.receipt, 250, URL + '/timeout', URL + '/result')).data,
  }
}

main().then(
  (done) => console.log(JSON.stringify(done)),
  (problem) => {
    console.error(problem.data ?? problem.response?.data ?? problem)
    process.exit(1)
  },
)
