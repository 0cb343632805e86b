// mpesa-api against the simulator: the calls of its README, with another base URL.
const { readFileSync } = require('node:fs')
const { createRequire } = require('node:module')

const from = createRequire(`${process.cwd()}/`)
const [phase, base] = process.argv.slice(2)
const inputs = JSON.parse(readFileSync(0, 'utf8'))
from('mpesa-api/lib/routes').routes.sandbox = base
// It uses the host of its base URL and no port.
require('node:http').globalAgent.defaultPort = new URL(base).port
const { Mpesa } = from('mpesa-api')

const credentials = {
  clientKey: 'mpesa-api',
  clientSecret: 'secret',
  initiatorPassword: 'password',
  securityCredential: inputs.credential,
  certificatePath: null,
}
const mpesa = new Mpesa(credentials, 'sandbox')
const addresses = { ResultURL: `${inputs.url}/result`, QueueTimeOutURL: `${inputs.url}/timeout` }

async function main() {
  if (phase === 'push') {
    return {
      push: await mpesa.lipaNaMpesaOnline({
        BusinessShortCode: 174379,
        Amount: 250,
        PartyA: '254712345678',
        // The README says that it defaults to the shortcode; release 3.0.2 sends nothing, which Daraja rejects.
        PartyB: '174379',
        PhoneNumber: '254712345678',
        CallBackURL: `${inputs.url}/callback`,
        AccountReference: 'Account Reference',
        passKey: inputs.passkey,
      }),
    }
  }
  if (phase === 'c2b') {
    return {
      // The README writes `c2bregister` and `c2bsimulate`; release 3.0.2 has capitals.
      register: await mpesa.c2bRegister({
        ShortCode: 174379,
        ConfirmationURL: `${inputs.url}/confirmation`,
        ValidationURL: `${inputs.url}/validation`,
        ResponseType: 'Completed',
      }),
      simulate: await mpesa.c2bSimulate({
        ShortCode: 174379,
        CommandID: 'CustomerPayBillOnline',
        Amount: 250,
        Msisdn: 254712345678,
        BillRefNumber: 'HOUSE7B',
      }),
    }
  }
  if (phase !== 'after') return {}
  return {
    query: await mpesa.lipaNaMpesaQuery({
      BusinessShortCode: 174379,
      CheckoutRequestID: inputs.push.CheckoutRequestID,
      passKey: inputs.passkey,
    }),
    status: await mpesa.transactionStatus({
      Initiator: 'testapi',
      TransactionID: inputs.receipt,
      PartyA: '174379',
      IdentifierType: '4',
      ...addresses,
    }),
    reversal: await mpesa.reversal({
      Initiator: 'testapi',
      TransactionID: inputs.receipt,
      Amount: 250,
      ReceiverParty: '174379',
      ...addresses,
    }),
  }
}

main().then(
  (done) => console.log(JSON.stringify(done)),
  (problem) => {
    console.error(problem.data ?? problem.response?.data ?? problem)
    process.exit(1)
  },
)
