<?php
// Prints the verdict of examples/webhooks/verify.php about each vector.
[, $checker, $vectors] = $argv;
require $checker;
foreach (array_slice(file($vectors, FILE_IGNORE_NEW_LINES), 1) as $line) {
    [$name, , $now, $secret, $timestamp, $signature, $previous, $body] = explode("\t", $line);
    $headers = array_filter([
        'x-payments-timestamp' => $timestamp,
        'x-payments-signature' => $signature,
        'x-payments-signature-previous' => $previous,
    ], fn ($value) => $value !== '');
    echo $name, ' ', is_ours($headers, base64_decode($body), $secret, (int) $now) ? 'true' : 'false', "\n";
}
