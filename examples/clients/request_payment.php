<?php
// Requests a payment with PHP's curl extension. Run: GATEWAY=http://127.0.0.1:8000 KEY=sk_test_… php request_payment.php

/** Returns the HTTP status (0 without an answer: repeat with the same key) and the decoded answer. */
function request_payment(string $gateway, string $apiKey, string $idempotencyKey, array $payment): array
{
    $call = curl_init("$gateway/v1/payments");
    curl_setopt_array($call, [
        CURLOPT_HTTPHEADER => ["X-API-Key: $apiKey", "Idempotency-Key: $idempotencyKey", 'Content-Type: application/json'],
        CURLOPT_POSTFIELDS => json_encode($payment),
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_TIMEOUT => 60, // the gateway waits for M-Pesa
    ]);
    $answer = curl_exec($call);
    return [curl_getinfo($call, CURLINFO_RESPONSE_CODE), json_decode((string) $answer, true)];
}

[$status, $answer] = request_payment(getenv('GATEWAY'), getenv('KEY'), 'order-1041', [
    'amount' => 500,
    'phone' => '254708374149',
    'metadata' => ['order' => '1041'],
]);
echo $status, ' ', $answer['data']['status'] ?? $answer['errors'][0]['message'] ?? 'no answer', "\n";
