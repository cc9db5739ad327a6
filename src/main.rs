//! The `serve-here` command: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use serve_here::cli::Cli;
use serve_here::config::Config;
use serve_here::error::StartError;
use serve_here::server;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            ) =>
        {
            // A closed pipe (`| head`) is no failure.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&usage_error(&error)),
    };
    let port = std::env::var("PORT").ok().filter(|port| !port.is_empty());
    let config = match Config::new(cli, port.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    match server::run(config) {
        Ok(code) => code.into(),
        Err(error) => fail(&error),
    }
}

fn fail(error: &StartError) -> ExitCode {
    eprintln!("{error}");
    error.code().into()
}

/// clap's several lines as one, with its tip as the way out.
fn usage_error(error: &clap::Error) -> StartError {
    let text = error.render().to_string();
    // What was typed may have a line end in it; a paragraph ends with two.
    let (first, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
    let first = first.trim_end();
    let (first, values) = first
        .strip_suffix(']')
        .and_then(|first| first.split_once("\n  [possible values: "))
        .map_or((first, None), |(first, values)| (first, Some(values)));
    let hint = match values {
        Some(values) => format!("one of {values}"),
        None => rest
            .lines()
            .filter_map(|line| line.trim().strip_prefix("tip: "))
            // `use '-- --flag'` helps nobody who has mistyped one.
            .find(|tip| !tip.starts_with("to pass"))
            .unwrap_or("`serve-here --help` lists the options")
            .to_owned(),
    };
    StartError::usage(first.strip_prefix("error: ").unwrap_or(first)).hint(hint)
}
