#!/usr/bin/perl
use strict;
use warnings;

print "Content-Type: text/plain\n\n";
print "method=$ENV{REQUEST_METHOD} query=$ENV{QUERY_STRING}\n";
