#!/usr/bin/env perl
# Shows the rest of the path, after the script's own name: /cgi-bin/path.pl/a/b
# Whole sites live in one script this way.
#
# Uses: PATH_INFO, PATH_TRANSLATED, SCRIPT_NAME. Needs CGI.pm (libcgi-pm-perl).

use strict;
use warnings;
use CGI;
use Encode qw(decode encode);

my $cgi = CGI->new;
$cgi->charset('utf-8');

# From bytes to characters to HTML. Bytes that are not UTF-8 become U+FFFD.
sub text { return $cgi->escapeHTML(decode('UTF-8', shift)) }

my $script   = $ENV{SCRIPT_NAME} // '';
my $path     = $ENV{PATH_INFO}   // '';
my @segments = grep { $_ ne '' } split m{/}, $path;

# PATH_INFO arrives decoded, so each link must be encoded again.
my $link   = join '/', map { CGI::escape($_) } split m{/}, $script, -1;
my @crumbs = qq(<a href="$link">) . text($script) . '</a>';
for my $segment (@segments) {
    $link .= '/' . CGI::escape($segment);
    push @crumbs, qq(<a href="$link">) . text($segment) . '</a>';
}

my $trail = join ' / ', @crumbs;
my $info  = exists $ENV{PATH_INFO}       ? text($path)                 : '<em>not set</em>';
my $file  = exists $ENV{PATH_TRANSLATED} ? text($ENV{PATH_TRANSLATED}) : '<em>not set</em>';

binmode STDOUT, ':encoding(UTF-8)';
print $cgi->header('text/html'), <<"HTML";
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Path</title>
<link rel="stylesheet" href="/www/style.css">
<body class="answer">
<p>$trail</p>
<table>
<tr><th>PATH_INFO<td>$info
<tr><th>PATH_TRANSLATED<td>$file
</table>
HTML
