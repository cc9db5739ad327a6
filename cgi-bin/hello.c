/* Greets whoever ?name= says: a CGI program in C.
 *
 *     cc -O2 -Wall -o cgi-bin/hello cgi-bin/hello.c
 *
 * builds it; then it is at /cgi-bin/hello. This source is not executable, so
 * the server neither runs nor shows it.
 *
 * Uses: QUERY_STRING. There is no buffer here that a long query could overrun.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int hex(char digit)
{
    if (digit >= '0' && digit <= '9') return digit - '0';
    if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
    if (digit >= 'A' && digit <= 'F') return digit - 'A' + 10;
    return -1;
}

/* Writes one byte so that HTML takes it as text. */
static void put_html(int byte)
{
    switch (byte) {
    case '&': fputs("&amp;", stdout); break;
    case '<': fputs("&lt;", stdout); break;
    case '>': fputs("&gt;", stdout); break;
    case '"': fputs("&quot;", stdout); break;
    case '\'': fputs("&#39;", stdout); break;
    default:
        if (byte >= ' ' && byte != 127) putchar(byte);
    }
}

/* Decodes and writes a field's value, up to the next field or the end. */
static void put_value(const char *at)
{
    for (; *at && *at != '&'; at++) {
        if (*at == '%' && hex(at[1]) >= 0 && hex(at[2]) >= 0) {
            put_html(hex(at[1]) * 16 + hex(at[2]));
            at += 2;
        } else {
            put_html(*at == '+' ? ' ' : (unsigned char)*at);
        }
    }
}

int main(void)
{
    const char *field = getenv("QUERY_STRING");

    /* Step from field to field to the one that starts with "name=". */
    while (field && strncmp(field, "name=", 5) != 0) {
        field = strchr(field, '&');
        if (field) field++;
    }

    puts("Content-Type: text/html; charset=utf-8\n");
    puts("<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">");
    puts("<title>Hello</title>\n<link rel=\"stylesheet\" href=\"/www/style.css\">");
    fputs("<body class=\"answer\">\n<p>Hello, <strong>", stdout);
    if (field && field[5] && field[5] != '&') put_value(field + 5);
    else fputs("world", stdout);
    puts("</strong>, from C.");
    return 0;
}
