// Verification of a webhook's signature, complete and ready to copy into an application in Go.

package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
)

// Seconds that a webhook may be old, or a clock wrong.
const tolerance = 300

// IsOurs returns true if body, exactly as received, was signed with secret. now is in seconds since 1970.
// For a day after a secret was replaced, the old one signs in a header of its own.
func IsOurs(header http.Header, body []byte, secret string, now int64) bool {
	timestamp := header.Get("X-Payments-Timestamp")
	sent, err := strconv.ParseUint(timestamp, 10, 40)
	if err != nil || now-int64(sent) > tolerance || int64(sent)-now > tolerance {
		return false
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(timestamp + "."))
	mac.Write(body)
	expected := []byte("sha256=" + hex.EncodeToString(mac.Sum(nil)))
	return hmac.Equal(expected, []byte(header.Get("X-Payments-Signature"))) ||
		hmac.Equal(expected, []byte(header.Get("X-Payments-Signature-Previous")))
}
