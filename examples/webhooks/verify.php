<?php
// Verification of a webhook's signature, complete and ready to copy into an application in PHP.

const TOLERANCE = 300; // seconds that a webhook may be old, or a clock wrong

// $body is file_get_contents('php://input'); $headers is array_change_key_case(getallheaders()), with lower-case
// names; $now is time(). For a day after a secret was replaced, the old one signs in a header of its own.
function is_ours(array $headers, string $body, string $secret, int $now): bool
{
    $timestamp = $headers['x-payments-timestamp'] ?? '';
    if (!preg_match('/^[0-9]+\z/', $timestamp) || abs($now - (int) $timestamp) > TOLERANCE) {
        return false;
    }
    $expected = 'sha256=' . hash_hmac('sha256', $timestamp . '.' . $body, $secret);
    return hash_equals($expected, $headers['x-payments-signature'] ?? '')
        || hash_equals($expected, $headers['x-payments-signature-previous'] ?? '');
}
