#!/usr/bin/env perl
# Takes uploaded files with CGI.pm and says what came. Nothing is kept.
#
# Uses: REQUEST_METHOD, CONTENT_TYPE, CONTENT_LENGTH and standard input, all by
# way of CGI.pm (libcgi-pm-perl), which holds each file in a temporary one.

use strict;
use warnings;
use utf8;
use CGI;
use Digest::SHA;
use Encode qw(decode);

# Set the limit before CGI->new, which reads the body.
$CGI::POST_MAX = 64 * 1024 * 1024;

my $cgi = CGI->new;
$cgi->charset('utf-8');
binmode STDOUT, ':encoding(UTF-8)';

if (my $error = $cgi->cgi_error) {
    print $cgi->header(-type => 'text/plain', -status => $error), "$error\n";
    exit;
}

# The name, the type: a stranger wrote them. Never use such a name as a path.
sub text { return $cgi->escapeHTML(decode('UTF-8', shift // '')) }

my $rows = '';
for my $file ($cgi->upload('file')) {
    my $info = $cgi->uploadInfo($file) || {};
    my $sum  = Digest::SHA->new(256)->addfile($file->handle);
    my $size = -s $file->handle;
    $rows .= '<tr><th>' . text("$file") . '<td>' . text($info->{'Content-Type'})
      . "<td>$size bytes<td><code>" . substr($sum->hexdigest, 0, 16) . '…</code>';
}
$rows ||= '<tr><td>No file came.';

print $cgi->header('text/html'), <<"HTML";
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Upload</title>
<link rel="stylesheet" href="/www/style.css">
<body class="answer">
<table>$rows</table>
<form method="post" enctype="multipart/form-data">
<label>Files <input type="file" name="file" multiple required></label>
<button>Upload</button>
</form>
HTML
