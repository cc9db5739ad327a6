#!/usr/bin/perl
use strict;
use warnings;
use CGI;

my $cgi = CGI->new;
print $cgi->header('text/plain');
printf "method=%s query=n=%s\n", $cgi->request_method, scalar $cgi->param('n');
