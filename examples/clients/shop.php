<?php
// A shop in PHP 8 with the extensions curl and pdo_sqlite: POST /pay requests the payment of an order, POST /webhook receives its result.
// Run: GATEWAY=http://127.0.0.1:8000 KEY=sk_test_… SECRET=whsec_… php -S 127.0.0.1:3000 shop.php

$db = new PDO('sqlite:shop-php.sqlite3');
$db->exec("CREATE TABLE IF NOT EXISTS shop_order (number TEXT PRIMARY KEY, amount INTEGER, attempt INTEGER DEFAULT 1);
    CREATE TABLE IF NOT EXISTS seen_event (id TEXT PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS paid_order (number TEXT, payment_id TEXT, receipt TEXT, PRIMARY KEY (number, payment_id));
    INSERT OR IGNORE INTO shop_order (number, amount) VALUES ('7', 500)");

function run(string $sql, array $values): PDOStatement
{
    $statement = $GLOBALS['db']->prepare($sql);
    $statement->execute($values);
    return $statement;
}

function pay(string $number, string $phone): string
{
    $order = run('SELECT amount, attempt FROM shop_order WHERE number = ?', [$number])->fetch();
    if (!$order || run('SELECT 1 FROM paid_order WHERE number = ?', [$number])->fetch()) {
        return $order ? 'This order is paid.' : 'There is no such order.';
    }
    $call = curl_init(getenv('GATEWAY') . '/v1/payments');
    curl_setopt_array($call, [
        CURLOPT_HTTPHEADER => [
            'X-API-Key: ' . getenv('KEY'),
            "Idempotency-Key: php-$number-{$order['attempt']}", // a second click sends the same key: no second prompt
            'Content-Type: application/json',
        ],
        CURLOPT_POSTFIELDS => json_encode([
            'amount' => (int) $order['amount'], // from the database, never from the browser
            'phone' => $phone,
            'metadata' => ['order' => $number, 'attempt' => (string) $order['attempt']],
        ]),
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_TIMEOUT => 60, // the gateway waits for M-Pesa
    ]);
    $answer = json_decode((string) curl_exec($call), true);
    $status = $answer['data']['status'] ?? '';
    return $status === 'pending' ? 'Enter your PIN on your phone.' : ($answer['errors'][0]['message'] ?? "Try again. $status");
}

function is_ours(array $headers, string $body, string $secret, int $now): bool
{
    $timestamp = $headers['x-payments-timestamp'] ?? '';
    if (!preg_match('/^[0-9]+\z/', $timestamp) || abs($now - (int) $timestamp) > 300) {
        return false;
    }
    $expected = 'sha256=' . hash_hmac('sha256', $timestamp . '.' . $body, $secret);
    return hash_equals($expected, $headers['x-payments-signature'] ?? '')
        || hash_equals($expected, $headers['x-payments-signature-previous'] ?? '');
}

function receive(array $headers, string $body): int
{
    if (!is_ours($headers, $body, getenv('SECRET'), time())) {
        return 401;
    }
    $event = json_decode($body, true);
    $payment = $event['data'];
    ['order' => $number, 'attempt' => $attempt] = ($payment['metadata'] ?? []) + ['order' => '', 'attempt' => 0];
    $GLOBALS['db']->beginTransaction(); // the event is seen and the order is paid, or neither
    if (run('INSERT OR IGNORE INTO seen_event VALUES (?)', [$event['id']])->rowCount() === 1) { // else a duplicate
        if ($event['type'] === 'payment.completed') {
            run('INSERT INTO paid_order VALUES (?, ?, ?)', [$number, $payment['payment_id'], $payment['receipt']]);
            error_log("order $number is paid: {$payment['receipt']}");
        } elseif ($event['type'] === 'payment.failed') { // the next click is a new payment, with a new key
            run('UPDATE shop_order SET attempt = attempt + 1 WHERE number = ? AND attempt = ?', [$number, (int) $attempt]);
        }
    }
    $GLOBALS['db']->commit();
    return 200;
}

if ($_SERVER['REQUEST_URI'] === '/webhook') {
    http_response_code(receive(array_change_key_case(getallheaders()), file_get_contents('php://input')));
} else {
    echo pay($_POST['order'] ?? '', $_POST['phone'] ?? ''), "\n";
}
