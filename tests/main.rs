//! Integration tests: the built program, real clients, real scripts. One
//! binary; each module is one subject.

mod abuse; // clients that mean no good, and what is left of them
mod browser; // the pages in headless Chromium
mod cgi_arguments; // a script's command line: C57 to C61
mod cgi_clients; // every fixture script with every kind of client
mod cgi_deviations; // where other servers deviate, a test each
mod cgi_path; // from the URL to the script: C40 to C56
mod cgi_process; // from start to end of a script's process: C126 to C145
mod cgi_request; // the environment a script is given: C1 to C39
mod cgi_stderr; // standard error and the end of a script: C119 to C125
mod cgi_stdin; // the request body on its way to the script: C62 to C75
mod cgi_stdout; // what a script prints: C76 to C118
mod command_line; // what the command says, refuses, and how it ends
mod compression; // content codings of files
mod departure; // clients that leave, and clients that only look like it: C132
mod files; // files over HTTP: methods, types, conditions, ranges, errors
mod gateway; // application servers: routes, FastCGI, SCGI, uwsgi: C146 to C181
mod http; // connections: order, reuse, end
mod large; // bodies far larger than the memory
mod listing; // a folder as a page, as JSON, as an archive
mod paths; // what a path may reach
mod programs; // real CGI programs and frameworks, as their makers wrote them
mod samples; // every script in cgi-bin/ and the page that uses them
mod scaling; // several hosts behind this one: killed, hung, cut off, slowed, and back
mod support; // how to start a server, speak to it and see what it left behind
mod transcripts; // one test a file in tests/transcripts
mod warm; // scripts that start from a prepared interpreter: nothing can tell
mod workers; // applications started from here: workers, PHP, WSGI: C164 to C198
