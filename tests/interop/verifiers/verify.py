"""Verify a webhook with the public Python libraries: each accepts it and rejects another body."""

import json
import sys

import standardwebhooks
import svix

told = json.load(sys.stdin)
accepted = []
for name, library in {"standardwebhooks": standardwebhooks, "svix": svix}.items():
    webhook = library.Webhook(told["secret"])
    webhook.verify(told["body"], told["headers"])
    try:
        webhook.verify(told["body"].replace("webhook.test", "webhook.tost"), told["headers"])
    except library.WebhookVerificationError:
        accepted.append(name)
print(json.dumps(accepted))
