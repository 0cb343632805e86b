"""Verify a webhook with the public Python libraries: each accepts it and rejects another body."""

import json
import sys

import standardwebhooks
import svix

delivery = json.load(sys.stdin)
accepted = []
for name, library in {"standardwebhooks": standardwebhooks, "svix": svix}.items():
    webhook = library.Webhook(delivery["secret"])
    webhook.verify(delivery["body"], delivery["headers"])
    try:
        webhook.verify(delivery["body"].replace("webhook.test", "webhook.tost"), delivery["headers"])
    except library.WebhookVerificationError:
        accepted.append(name)
print(json.dumps(accepted))
