//! The `serve-here` command.

fn main() {}
