/* What no CGI server can beat: starting the script, reading what it prints, waiting for its end.
 *
 *   floor raw SECONDS THREADS SCRIPT   in a loop on each thread, no HTTP at all; prints its figures as JSON
 *   floor http PORT THREADS SCRIPT     behind the least HTTP that keeps a connection open, for a load generator
 *
 * It checks nothing that a server has to check, and gives the script the same variables each time. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { OUTPUT_BYTES = 64 << 10, HEAD_BYTES = 8 << 10, MAX_SAMPLES = 1 << 20 };

static char *script;
static char *environment[] = {
    "GATEWAY_INTERFACE=CGI/1.1", "PATH=/usr/local/bin:/usr/bin:/bin", "QUERY_STRING=n=1", "REQUEST_METHOD=GET", NULL,
};

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* One run of the script. Returns how many bytes it has printed. */
static size_t run_script(char *output) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        fail("pipe2");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    char *arguments[] = {script, NULL};
    pid_t child;
    if (posix_spawn(&child, script, &actions, NULL, arguments, environment) != 0)
        fail("posix_spawn");
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);

    size_t length = 0;
    ssize_t got;
    while ((got = read(ends[0], output + length, OUTPUT_BYTES - length)) > 0)
        length += (size_t)got;
    close(ends[0]);
    if (waitpid(child, NULL, 0) != child)
        fail("waitpid");
    return length;
}

/* -- raw -- */

struct looper {
    pthread_t thread;
    uint64_t end_ns;
    size_t runs;
    uint32_t *samples_us;
};

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void *loop(void *argument) {
    struct looper *self = argument;
    char *output = malloc(OUTPUT_BYTES);
    if (output == NULL)
        fail("malloc");
    uint64_t start = now_ns();
    while (start < self->end_ns && self->runs < MAX_SAMPLES) {
        if (run_script(output) == 0) {
            fprintf(stderr, "floor: %s prints nothing\n", script);
            exit(1);
        }
        uint64_t end = now_ns();
        self->samples_us[self->runs++] = (uint32_t)((end - start) / 1000);
        start = end;
    }
    free(output);
    return NULL;
}

static int by_size(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static uint64_t cpu_us(int who) {
    struct rusage usage;
    getrusage(who, &usage);
    return (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000u +
           (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static int raw(double seconds, size_t threads) {
    struct looper *loopers = calloc(threads, sizeof *loopers);
    uint32_t *all = malloc(threads * MAX_SAMPLES * sizeof *all);
    if (loopers == NULL || all == NULL)
        fail("malloc");
    uint64_t start = now_ns();
    for (size_t i = 0; i < threads; i++) {
        loopers[i].end_ns = start + (uint64_t)(seconds * 1e9);
        loopers[i].samples_us = all + i * MAX_SAMPLES;
        if (pthread_create(&loopers[i].thread, NULL, loop, &loopers[i]) != 0)
            fail("pthread_create");
    }
    size_t runs = 0;
    for (size_t i = 0; i < threads; i++) {
        pthread_join(loopers[i].thread, NULL);
        memmove(all + runs, loopers[i].samples_us, loopers[i].runs * sizeof *all);
        runs += loopers[i].runs;
    }
    double took = (double)(now_ns() - start) / 1e9;
    if (runs == 0)
        return 1;
    qsort(all, runs, sizeof *all, by_size);
    printf("{\"requests\": %zu, \"seconds\": %.6f, \"cpu_us\": %llu, \"p99_us\": %u}\n", runs, took,
           (unsigned long long)(cpu_us(RUSAGE_SELF) + cpu_us(RUSAGE_CHILDREN)), all[runs * 99 / 100]);
    return 0;
}

/* -- http -- */

/* Reads up to the empty line. 0 at the end of the connection. */
static int read_head(int client) {
    char head[HEAD_BYTES];
    size_t length = 0;
    while (length < sizeof head) {
        ssize_t got = read(client, head + length, sizeof head - length);
        if (got <= 0)
            return 0;
        length += (size_t)got;
        if (memmem(head, length, "\r\n\r\n", 4) != NULL)
            return 1;
    }
    return 0;
}

static int answer(int client, char *output, char *response) {
    size_t length = run_script(output);
    char *body = memmem(output, length, "\n\n", 2);
    if (body == NULL)
        return 0;
    body += 2;
    size_t body_length = length - (size_t)(body - output);
    int head_length = sprintf(response, "HTTP/1.1 200 OK\r\n%.*s\r\nContent-Length: %zu\r\n\r\n",
                              (int)(body - 2 - output), output, body_length);
    memcpy(response + head_length, body, body_length);
    size_t total = (size_t)head_length + body_length;
    return write(client, response, total) == (ssize_t)total;
}

static void *serve(void *argument) {
    int listener = *(int *)argument;
    char *output = malloc(OUTPUT_BYTES), *response = malloc(2 * OUTPUT_BYTES);
    if (output == NULL || response == NULL)
        fail("malloc");
    for (;;) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0)
            continue;
        int on = 1;
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        while (read_head(client) && answer(client, output, response))
            ;
        close(client);
    }
    return NULL;
}

static int http(int port, size_t threads) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 128) != 0)
        fail("bind");
    pthread_t thread;
    for (size_t i = 1; i < threads; i++)
        if (pthread_create(&thread, NULL, serve, &listener) != 0)
            fail("pthread_create");
    serve(&listener);
    return 0;
}

int main(int count, char **arguments) {
    if (count != 5) {
        fprintf(stderr, "usage: floor raw SECONDS THREADS SCRIPT | floor http PORT THREADS SCRIPT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    size_t threads = strtoul(arguments[3], NULL, 10);
    script = arguments[4];
    if (strcmp(arguments[1], "raw") == 0)
        return raw(atof(arguments[2]), threads);
    return http(atoi(arguments[2]), threads);
}
