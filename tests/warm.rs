//! Warm scripts: an unmodified script started from a prepared interpreter does
//! what it does when its interpreter is started anew. A corpus of scripts that
//! look closely, tests/fixtures/warm, is run three ways and compared.

mod corpus; // what is run, and with which environments and interpreters
mod edits; // files that change between two requests
mod fallback; // what is left to exec
mod faults; // prepared interpreters that die, stop or are replaced
mod preparing; // who gets a prepared interpreter, and its life
mod requests; // requests that differ, one after the other
mod versions; // another Python than the distribution's
mod ways; // the three ways to run a script, and how they are compared
