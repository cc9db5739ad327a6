//! The life of a script's process (RFC 3875 §7.2, §9): C126 to C145.

mod end; // timeouts, clients that leave, descendants, shutdown: C127, C131 to C137
mod fault; // why a script does not start: C140 to C143
mod limits; // how many run at once; a machine at its end: C138, C139
mod start; // what a script inherits: C126 to C130
mod user; // root and others, and what is said at start: C144, C145

/// Runs until the test makes the file `go` in the root, then says so.
const WAITS: &str = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\n\
     while [ ! -e ../go ]; do sleep 0.05; done\necho went\n";
