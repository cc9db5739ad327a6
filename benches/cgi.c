/* The CGI program that is measured, linked statically: as little as a script can cost. */
#include <stdio.h>
#include <stdlib.h>

int main(void) {
    const char *method = getenv("REQUEST_METHOD");
    const char *query = getenv("QUERY_STRING");
    printf("Content-Type: text/plain\n\nmethod=%s query=%s\n", method ? method : "", query ? query : "");
    return 0;
}
