<?php
// A shop in PHP 8 with the extensions curl and pdo_sqlite: /?order=7 is the checkout and the waiting page, /webhook receives results.
// Run: GATEWAY=http://127.0.0.1:8000 KEY=sk_test_… SECRET=whsec_… php -S 127.0.0.1:3000 shop.php
const UNSURE = 'We do not know yet whether you paid. Do not pay again: write to us, with the SMS of M-Pesa if you have one.';
const TEXTS = ['' => 'Pay with M-Pesa.', 'expired' => UNSURE, 'other' => UNSURE, 'not_sent' => 'M-Pesa was not reached.',
    'cancelled_by_user' => 'You cancelled the payment.', 'wrong_pin' => 'The PIN was wrong.', 'timeout' => 'The time for the PIN is over.',
    'unreachable' => 'Your phone is off or has no network.', 'duplicate_in_progress' => 'Your phone has another prompt. Wait two minutes.',
    'insufficient_funds' => 'Your M-Pesa balance is too low.', 'limit_exceeded' => 'The amount exceeds a limit at M-Pesa.',
    'rejected_by_provider' => 'M-Pesa refused the request. Check the number.'];
$db = new PDO(getenv('DB') ?: 'sqlite:shop-php.sqlite3');
$db->exec("CREATE TABLE IF NOT EXISTS shop_order (number TEXT PRIMARY KEY, amount INTEGER, attempt INTEGER DEFAULT 1,
        phone TEXT, payment_id TEXT, failure TEXT DEFAULT '');
    CREATE TABLE IF NOT EXISTS seen_event (id TEXT PRIMARY KEY); CREATE TABLE IF NOT EXISTS paid_order
        (number TEXT, payment_id TEXT, receipt TEXT, PRIMARY KEY (number, payment_id));
    INSERT OR IGNORE INTO shop_order (number, amount) VALUES ('7', 500)");

function run(string $sql, array $values): PDOStatement
{
    $statement = $GLOBALS['db']->prepare($sql);
    $statement->execute($values);
    return $statement;
}

function find(string $number): array
{
    $sql = 'SELECT *, (SELECT COUNT(*) FROM paid_order p WHERE p.number = o.number) AS paid FROM shop_order o WHERE number = ?';
    return run($sql, [$number])->fetch() ?: [];
}

function call(string $path, array $options = [], string $key = ''): array
{
    $call = curl_init(getenv('GATEWAY') . $path);
    $headers = ['X-API-Key: ' . getenv('KEY'), "Idempotency-Key: $key", 'Content-Type: application/json'];
    curl_setopt_array($call, $options + [CURLOPT_HTTPHEADER => $headers, CURLOPT_RETURNTRANSFER => true, CURLOPT_TIMEOUT => 60]);
    return (array) json_decode((string) curl_exec($call), true);
}

function pay(string $number, string $phone): string
{
    run('UPDATE shop_order SET phone = ? WHERE number = ? AND phone IS NULL', [$phone, $number]); // one key, one body, one prompt
    $order = find($number);
    if (!$order || $order['paid'] || $order['payment_id'] || TEXTS[$order['failure']] === UNSURE) {
        return '';
    }
    $body = ['amount' => (int) $order['amount'], 'phone' => $order['phone'], // the amount is never from the browser
        'metadata' => ['order' => $number, 'attempt' => (string) $order['attempt']]];
    $answer = call('/v1/payments', [CURLOPT_POSTFIELDS => json_encode($body)], "php-$number-{$order['attempt']}");
    $error = $answer['errors'][0] ?? ['code' => ''];
    if ($error['code'] === 'VALIDATION_ERROR') { // nothing was stored: the same key with a corrected phone
        run('UPDATE shop_order SET phone = NULL WHERE number = ? AND phone = ?', [$number, $order['phone']]);
        return $error['message'];
    }
    $id = $answer['data']['id'] ?? ($error['code'] === 'PROVIDER_REJECTED' ? $error['id'] : null); // that payment is failed
    run('UPDATE shop_order SET payment_id = COALESCE(?, payment_id) WHERE number = ? AND attempt = ?', [$id, $number, $order['attempt']]);
    return $id ? '' : 'There is no answer yet. Try again in a minute.';
}

function settle(string $id, array $payment): void
{
    ['order' => $number, 'attempt' => $attempt] = ($payment['metadata'] ?? []) + ['order' => '', 'attempt' => 0];
    if ($payment['status'] === 'completed') {
        run('INSERT OR IGNORE INTO paid_order VALUES (?, ?, ?)', [$number, $id, $payment['receipt']])->rowCount()
            && error_log("order $number is paid: {$payment['receipt']}"); // once, by the webhook or by the page
    } elseif ($payment['status'] === 'failed') { // only now a new attempt, with a new key
        $failure = isset(TEXTS[$payment['failure_reason']]) ? $payment['failure_reason'] : 'other';
        $next = TEXTS[$failure] === UNSURE ? '' : 'attempt = attempt + 1, phone = NULL, payment_id = NULL,';
        run("UPDATE shop_order SET $next failure = ? WHERE number = ? AND attempt = ?", [$failure, $number, (int) $attempt]);
    }
}

function page(string $number, string $notice): string
{
    $id = find($number)['payment_id'] ?? '';
    settle($id, ($id ? call("/v1/payments/$id")['data'] ?? [] : []) + ['status' => 'unknown']);
    $order = find($number) + ['amount' => 0, 'paid' => 0, 'payment_id' => null, 'failure' => ''];
    $text = htmlspecialchars($notice ?: TEXTS[$order['failure']]);
    return match (true) {
        !$order['amount'] => 'There is no such order.',
        $order['paid'] > 0 => 'This order is paid.',
        $text === UNSURE => $text,
        $order['payment_id'] !== null => '<meta http-equiv="refresh" content="3">Enter your PIN on ' . htmlspecialchars($order['phone']),
        default => "$text<form method='post'><input name='phone' type='tel' required><button>Pay KES $order[amount]</button></form>",
    };
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
    $GLOBALS['db']->beginTransaction(); // the event is seen and the order is settled, or neither
    $is_new = run('INSERT OR IGNORE INTO seen_event VALUES (?)', [$event['id']])->rowCount() === 1; // else a duplicate
    if ($is_new && in_array($event['type'], ['payment.completed', 'payment.failed'], true)) {
        settle($event['data']['payment_id'], $event['data']);
    }
    $GLOBALS['db']->commit();
    return 200;
}

$number = $_GET['order'] ?? '';
if ($_SERVER['REQUEST_URI'] === '/webhook') {
    http_response_code(receive(array_change_key_case(getallheaders()), file_get_contents('php://input')));
} elseif ($_SERVER['REQUEST_METHOD'] === 'POST' && ($notice = pay($number, $_POST['phone'] ?? '')) === '') {
    header("Location: ?order=" . urlencode($number), true, 303); // a reload of the page does not pay again
} else {
    echo page($number, $notice ?? ''), "\n";
}
