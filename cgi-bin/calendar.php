#!/usr/bin/env php-cgi
<?php
// A month on one page: ?month=2026-11&for=Ada
//
// Uses: QUERY_STRING (as $_GET) and SCRIPT_NAME. Needs php-cgi, which itself
// wants SCRIPT_FILENAME to find this file and REDIRECT_STATUS to run at all.

declare(strict_types=1);

// filter_input gives null if a field is missing, false if it is no plain text.
$wanted = filter_input(INPUT_GET, 'month') ?: '';
$for = filter_input(INPUT_GET, 'for') ?: '';

$today = new DateTimeImmutable('today');
$first = preg_match('/^\d{4}-(0[1-9]|1[0-2])$/D', $wanted)
    ? new DateTimeImmutable("$wanted-01")
    : $today->modify('first day of this month');

/** Text of a stranger, as HTML. */
function text(string $value): string
{
    return htmlspecialchars($value, ENT_QUOTES | ENT_SUBSTITUTE | ENT_HTML5, 'UTF-8');
}

/** The address of this script for another month. */
function address(DateTimeImmutable $month, string $for): string
{
    return text('?' . http_build_query(['month' => $month->format('Y-m'), 'for' => $for]));
}

header('Content-Type: text/html; charset=utf-8');
header_remove('X-Powered-By');
?>
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Calendar</title>
<link rel="stylesheet" href="/www/style.css">
<body class="answer">
<table class="month">
<caption>
<a href="<?= address($first->modify('-1 month'), $for) ?>" aria-label="Month before">←</a>
<?= $first->format('F Y') ?><?= $for === '' ? '' : ', for ' . text($for) ?>

<a href="<?= address($first->modify('+1 month'), $for) ?>" aria-label="Month after">→</a>
</caption>
<tr><th>Mo<th>Tu<th>We<th>Th<th>Fr<th>Sa<th>Su
<?php
// From the Monday on or before the first, week by week, until the month is over.
$day = $first->modify('-' . ($first->format('N') - 1) . ' days');
for ($end = $first->modify('+1 month'); $day < $end; $day = $day->modify('+1 day')) {
    echo $day->format('N') === '1' ? "<tr>" : '';
    $shown = $day->format('m') === $first->format('m') ? $day->format('j') : '';
    echo $day == $today ? "<td aria-current=\"date\">$shown" : "<td>$shown";
}
?>

</table>
